//! `flowvigil evaluate`: how a model's p-values hold on flow logs that it was not trained on.
//!
//! On benign logs the realised shares should be near the targets. A model whose shares are far above them was trained on
//! other traffic than this: train it on the deployment's own logs.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use ipnet::IpNet;
use jiff::SignedDuration;

use super::{SettingsArgs, train, windows};
use crate::ml::{artifact, train as training};
use crate::simulate::Scenario;

/// Arguments of `evaluate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact: a model.tar.gz, or the folder it was unpacked to; the embedded one by default
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Flow logs to measure on: files or folders
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "simulated")]
    input: Vec<PathBuf>,
    /// Measure on a simulated VPC, with this seed
    #[arg(long, value_name = "SEED", conflicts_with = "input")]
    simulated: Option<u64>,
    /// Hosts of the simulated VPC
    #[arg(long, default_value_t = 80, requires = "simulated")]
    hosts: u32,
    /// Length of the simulation
    #[arg(long, default_value = "48h", requires = "simulated")]
    duration: SignedDuration,
    /// CIDR blocks of our own hosts, in place of those in the settings
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    internal: Vec<IpNet>,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Measures and prints.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut settings = args.settings.load()?;
    if !args.internal.is_empty() {
        settings.network.internal.clone_from(&args.internal);
    }
    let model = match &args.model {
        Some(path) => artifact::read(path)?,
        None => artifact::embedded()?,
    };
    let vectors = match args.simulated {
        Some(seed) => {
            let duration_seconds = u32::try_from(args.duration.as_secs()).context("--duration is too long")?;
            let scenario = Scenario { seed, hosts: args.hosts, duration_seconds, ..Scenario::default() };
            windows::of_simulation(scenario, &settings)
        }
        None => windows::of_files(&args.input, &settings)?,
    };
    let evaluation = training::evaluate(&model, &vectors);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&evaluation).context("write the evaluation as JSON")?);
    } else {
        println!("model {}{}", model.manifest.model_version, train::rates(&evaluation));
    }
    Ok(ExitCode::SUCCESS)
}
