//! `flowvigil config`: print all settings with their defaults and reasons; find every mistake in a file.

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
        Some(Action::Check { file }) => {
            Settings::load(Some(&file), super::environment())?;
            writeln!(out, "{}: no problems", file.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
