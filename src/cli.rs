//! The commands, one file each. Here the outside world is met: arguments, exit codes, standard streams.
//!
//! | exit code | meaning |
//! | --- | --- |
//! | 0 | done |
//! | 1 | it failed while running, or what it needs was away when it began |
//! | 2 | what was asked for cannot be done: wrong arguments, settings, a model that is refused, or input that is no flow log |

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use clap::{Parser, Subcommand};

use crate::ingest::local::ReadError;
use crate::ml::artifact::{self, ArtifactError, Slot};
use crate::ml::model::Model;
use crate::ml::train::TrainError;
use crate::ml::{ModelSettings, registry, s3};
use crate::settings::{Settings, SettingsError};

mod backends;
pub mod config;
pub mod demo;
pub mod detect;
pub mod evaluate;
pub mod healthcheck;
mod live;
pub mod migrate;
pub mod models;
mod observe;
mod origin;
pub mod replay;
pub mod run;
pub mod serve;
pub mod simulate;
mod state;
pub mod train;
mod windows;

/// Detects network anomalies in AWS VPC flow logs.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What flowvigil can be told to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Detect anomalies in flow logs: files, folders or standard input
    Detect(Box<detect::Args>),
    /// Watch a simulated VPC under attack, on a page in the browser; needs nothing
    Demo(demo::Args),
    /// Run the service: follow flow logs, tell anomalies, answer over HTTP
    Run(run::Args),
    /// Ask a running service whether it is alive; the health check of its container
    Healthcheck(healthcheck::Args),
    /// Make and upgrade the tables that the settings name; shows what it would do until told to
    Migrate(migrate::Args),
    /// Put a flow log on a stream, at the pace at which it was written or faster
    Replay(replay::Args),
    /// Print all settings with their defaults, or check a settings file
    Config(config::Args),
    /// Write seeded, labelled flow logs of a simulated VPC, with any threats in it
    Simulate(simulate::Args),
    /// Train the models on flow logs; without arguments, as a SageMaker training container
    Train(train::Args),
    /// Serve a model over HTTP, as a SageMaker hosting container does and as an endpoint
    Serve(serve::Args),
    /// Look at model artifacts, and hold one against another
    Models(models::Args),
    /// Measure how a model's p-values hold on flow logs
    Evaluate(evaluate::Args),
}

impl Command {
    /// Does it.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Command::Detect(args) => detect::run(*args),
            Command::Demo(args) => demo::run(args),
            Command::Run(args) => run::run(args),
            Command::Healthcheck(args) => healthcheck::run(args),
            Command::Migrate(args) => migrate::run(args),
            Command::Replay(args) => replay::run(args),
            Command::Config(args) => config::run(args),
            Command::Simulate(args) => simulate::run(args),
            Command::Train(args) => train::run(args),
            Command::Serve(args) => serve::run(args),
            Command::Models(args) => models::run(args),
            Command::Evaluate(args) => evaluate::run(args),
        }
    }
}

/// The settings that every command shares.
#[derive(Debug, clap::Args)]
pub struct SettingsArgs {
    /// Settings file; `flowvigil config` prints all there is to set
    #[arg(long, short, value_name = "FILE", env = "FLOWVIGIL_CONFIG")]
    pub config: Option<PathBuf>,
}

impl SettingsArgs {
    /// Defaults, then the file, then the environment.
    pub fn load(&self) -> Result<Settings, SettingsError> {
        Settings::load(self.config.as_deref(), environment())
    }
}

/// Reads a share, 0 to 1, from the command line.
fn share(text: &str) -> Result<f64, String> {
    let share = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (0.0..=1.0).contains(&share) { Ok(share) } else { Err("a share lies between 0 and 1".to_owned()) }
}

/// The model that the settings name, or the embedded one.
fn slot(settings: &ModelSettings) -> Result<Slot, ArtifactError> {
    if settings.path.as_os_str().is_empty() {
        return Ok(Slot::new(artifact::embedded()?, None));
    }
    Ok(Slot::new(artifact::read(&settings.path)?, Some(settings.path.clone())))
}

/// The model that the settings name, wherever it lies.
fn model(settings: &Settings) -> anyhow::Result<Arc<Model>> {
    let place = settings.ml.model.path.display().to_string();
    if s3::address(&place).is_none() && place != registry::PLACE {
        return Ok(slot(&settings.ml.model)?.model());
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    Ok(runtime.block_on(origin::open(settings))?.0.model())
}

/// The environment, as far as it is Unicode.
pub fn environment() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// The exit code for arguments, settings or input with which nothing can be done.
pub fn unusable() -> ExitCode {
    ExitCode::from(2)
}

/// Runs a command line and answers the exit code; errors are told on standard error, once.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    match cli.command.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("flowvigil: {error:#}");
            if is_unusable(&error) { unusable() } else { ExitCode::FAILURE }
        }
    }
}

/// Whether settings, input or a model are to blame, so that the same again must fail again.
fn is_unusable(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<SettingsError>()
            || cause.is::<TrainError>()
            || cause.downcast_ref().is_some_and(ArtifactError::is_refusal)
            || cause.is::<ReadError>()
    })
}
