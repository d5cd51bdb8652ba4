//! `flowvigil config`: print all settings with their defaults and reasons, list their names, find every mistake in a file.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::settings::{self, Settings};

/// Arguments of `config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List every key with its names in the environment and in Parameter Store, and whether it applies while running
    Keys,
    /// Check a settings file together with the environment; prints every problem with its line and key
    Check {
        /// The settings file
        file: PathBuf,
    },
}

/// Prints the defaults, or checks a file; exit code 2 when it has problems.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    match args.action {
        None => out.write_all(settings::printed_defaults().as_bytes())?,
        Some(Action::Keys) => {
            for (key, _) in settings::documented_keys() {
                let applies = if settings::dynamic::is_changeable(&key) { "running" } else { "restart" };
                let (variable, parameter) = (settings::environment_name(&key), settings::parameter_name(&key));
                writeln!(out, "{applies}  {key}  {variable}  {parameter}")?;
            }
        }
        Some(Action::Check { file }) => {
            Settings::load(Some(&file), super::environment())?;
            writeln!(out, "{}: no problems", file.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
