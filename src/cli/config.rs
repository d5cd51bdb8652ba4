//! `flowvigil config`: print all settings with their defaults and reasons, list their names, find every mistake in a file.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use crate::api::auth::Access;
use crate::ml::{artifact, registry, s3};
use crate::settings::{self, Settings};
use crate::statistical::intel;

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
    /// Check a settings file together with the environment: what `run` would refuse of it, every problem with its line and
    /// key, and the files that it names
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
            let settings = Settings::load(Some(&file), super::environment())?;
            let refused = refusals(&settings);
            if !refused.is_empty() {
                refused.iter().for_each(|reason| eprintln!("flowvigil: {reason}"));
                return Ok(super::unusable());
            }
            writeln!(out, "{}: no problems", file.display())?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is wrong with what the settings point to, of which `run` would find out when it begins: lists, a model and a token that
/// cannot be read, and who may ask. One look for both, so that they refuse the same.
pub(super) fn refusals(settings: &Settings) -> Vec<String> {
    let mut found = Vec::new();
    if let Err(error) = intel::local::Files::open(&settings.statistical.intel) {
        found.push(error.to_string());
    }
    if let Err(error) = Access::settle(&settings.api) {
        found.push(error.to_string());
    }
    let place = settings.ml.model.path.display().to_string();
    let elsewhere = place.is_empty() || place == registry::PLACE || s3::address(&place).is_some();
    if settings.ml.model.enabled
        && !elsewhere
        && let Err(error) = artifact::read(&settings.ml.model.path)
    {
        found.push(format!("ml.model.path: {error}"));
    }
    found
}
