//! `flowvigil train`: from flow logs (or a simulation) to a model artifact, with a report of what it is worth.
//!
//! Without arguments it keeps the contract of a SageMaker training container, which starts the image with the single word
//! `train`: it reads `/opt/ml/input/config/hyperparameters.json` and every channel below `/opt/ml/input/data`, leaves the
//! files of the model in `/opt/ml/model` and the report in `/opt/ml/output/data`, and writes the reason of a failure to
//! `/opt/ml/output/failure`. `FLOWVIGIL_SAGEMAKER_ROOT` names another place than `/opt/ml`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use ipnet::IpNet;
use jiff::SignedDuration;

use super::{SettingsArgs, windows};
use crate::ml::model::{Model, Source};
use crate::ml::s3::{self, Artifacts};
use crate::ml::train::{self, Evaluation, Options, Step};
use crate::ml::{FeatureVector, artifact};
use crate::settings::Settings;
use crate::simulate::Scenario;

mod page;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Flow logs to learn from: files or folders
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with = "simulated")]
    input: Vec<PathBuf>,
    /// Learn from a simulated VPC in place of flow logs
    #[arg(long)]
    simulated: bool,
    /// Hosts of the simulated VPC
    #[arg(long, default_value_t = 60, requires = "simulated")]
    hosts: u32,
    /// Length of the simulation
    #[arg(long, default_value = "168h", requires = "simulated")]
    duration: SignedDuration,
    /// Share of its hosts with a recurring job, as for simulate
    #[arg(long, default_value_t = 0.0, value_parser = super::share, requires = "simulated")]
    jobs: f64,
    /// Where the artifact goes: a file, or s3://bucket/key
    #[arg(long, short, value_name = "FILE", default_value = "model.tar.gz")]
    out: PathBuf,
    /// Where a page with the distributions of scores goes (HTML)
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// CIDR blocks of our own hosts, in place of those in the settings
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = super::detect::block)]
    internal: Vec<IpNet>,
    #[command(flatten)]
    hyper: Hyper,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// What may be tuned; the same names are hyperparameters of a training job.
#[derive(Clone, Debug, clap::Args)]
struct Hyper {
    /// Same windows and same seed: same bytes
    #[arg(long, default_value_t = 27)]
    seed: u64,
    /// Trees of the isolation forest
    #[arg(long, default_value_t = 100)]
    trees: u32,
    /// Windows that each tree sees
    #[arg(long, default_value_t = 1024)]
    sample: u32,
    /// Passes of the sequence model over the windows
    #[arg(long, default_value_t = 40)]
    epochs: u32,
}

/// Trains; exit code 2 when there is too little to learn from.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.input.is_empty() && !args.simulated {
        return in_container(&args);
    }
    let mut settings = args.settings.load()?;
    if !args.internal.is_empty() {
        settings.network.internal.clone_from(&args.internal);
    }
    let vectors = if args.simulated {
        let duration_seconds = u32::try_from(args.duration.as_secs()).context("--duration is too long")?;
        let (seed, hosts, jobs) = (args.hyper.seed, args.hosts, args.jobs);
        let scenario = Scenario { seed, hosts, duration_seconds, jobs, ..Scenario::default() };
        windows::of_simulation(scenario, &settings).0
    } else {
        windows::of_files(&args.input, &settings)?
    };
    let source = if args.simulated { Source::Simulation } else { Source::Deployment };
    let (model, evaluation) = fit(&vectors, source, &args.hyper)?;
    let bytes = artifact::pack(&model);
    write(&args.out, &bytes, settings.ml.model.path_style)?;
    if let Some(path) = &args.report {
        let page = page::render(&model, &evaluation);
        std::fs::write(path, page).with_context(|| format!("write {}", path.display()))?;
    }
    println!("{}", summary(&model, &evaluation));
    println!("{} bytes to {}", bytes.len(), args.out.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes an artifact to a path, or to `s3://bucket/key`.
fn write(out: &Path, bytes: &[u8], path_style: bool) -> anyhow::Result<()> {
    let place = out.display().to_string();
    if s3::address(&place).is_none() {
        return artifact::write_whole(out, bytes).with_context(|| format!("write {place}"));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let artifacts = Artifacts::new(&crate::aws::load().await, path_style);
        Ok(artifacts.write(&place, bytes.to_vec()).await?)
    })
}

fn fit(vectors: &[FeatureVector], source: Source, hyper: &Hyper) -> anyhow::Result<(Model, Evaluation)> {
    let mut options = Options::new(source);
    options.forest.seed = hyper.seed;
    options.forest.trees = hyper.trees;
    options.forest.sample = hyper.sample;
    options.lstm.seed = hyper.seed;
    options.lstm.epochs = hyper.epochs;
    let bar = windows::bar(u64::from(hyper.epochs), "{bar:30} epoch {pos} of {len}, {msg}");
    let trained = train::train(vectors, options, |step| {
        if let Step::Epoch(progress) = step {
            bar.set_position(u64::from(progress.epoch));
            bar.set_message(format!("loss {:.3}", progress.loss));
            tracing::info!(epoch = progress.epoch, loss = progress.loss, "trained");
        }
    });
    bar.finish_and_clear();
    Ok(trained?)
}

/// What was trained and what its p-values realise, in lines for a terminal or a log.
pub(super) fn summary(model: &Model, evaluation: &Evaluation) -> String {
    let data = &model.manifest.data;
    let mut text = format!(
        "model {} from {} windows of {} hosts ({} to {}), calibrated on {}, measured on {}",
        model.manifest.model_version,
        data.training_windows,
        data.hosts,
        data.from,
        data.to,
        data.calibration_windows,
        data.test_windows,
    );
    text.push_str(&rates(evaluation));
    text
}

/// Realised against intended rates, a line a scorer.
pub(super) fn rates(evaluation: &Evaluation) -> String {
    let mut text = format!("\n{} windows, share with a p-value up to", evaluation.windows);
    for target in train::TARGETS {
        text.push_str(&format!("  {target:>8e}"));
    }
    let by_class = evaluation.by_class.iter().map(|(class, rates)| (format!("all, of class {class}"), rates));
    for (name, rates) in evaluation.realised.iter().map(|(name, rates)| (name.clone(), rates)).chain(by_class) {
        text.push_str(&format!("\n  {name:<36}"));
        for rate in rates {
            text.push_str(&format!("  {:>8.1e}", rate.share));
        }
    }
    text
}

// === SageMaker ===

fn in_container(args: &Args) -> anyhow::Result<ExitCode> {
    let root = sagemaker_root();
    let trained = train_in_container(&root, args);
    if let Err(error) = &trained {
        // SageMaker shows the first 1,024 characters as the reason of the failure.
        let reason: String = format!("{error:#}").chars().take(1024).collect();
        let output = root.join("output");
        let written = std::fs::create_dir_all(&output).and_then(|()| std::fs::write(output.join("failure"), reason));
        if let Err(cause) = written {
            eprintln!("flowvigil: write {}: {cause}", output.join("failure").display());
        }
    }
    trained.map(|()| ExitCode::SUCCESS)
}

/// `/opt/ml`, where SageMaker mounts what a container reads and writes.
pub(super) fn sagemaker_root() -> PathBuf {
    std::env::var_os("FLOWVIGIL_SAGEMAKER_ROOT").map_or_else(|| PathBuf::from("/opt/ml"), PathBuf::from)
}

fn train_in_container(root: &Path, args: &Args) -> anyhow::Result<()> {
    let mut settings = args.settings.load()?;
    crate::telemetry::log_to_stderr(&settings.telemetry);
    let mut hyper = args.hyper.clone();
    let source = tune(root, &mut hyper, &mut settings)?;
    let data = root.join("input/data");
    let channels: Vec<PathBuf> = std::fs::read_dir(&data)
        .with_context(|| format!("read the channels in {}; give --input PATH outside of SageMaker", data.display()))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.is_dir())
        .collect();
    anyhow::ensure!(!channels.is_empty(), "no channel in {}", data.display());
    let vectors = windows::of_files(&channels, &settings)?;
    let (model, evaluation) = fit(&vectors, source, &hyper)?;
    let folder = root.join("model");
    artifact::write_folder(&model, &folder).with_context(|| format!("write {}", folder.display()))?;
    let output = root.join("output/data");
    std::fs::create_dir_all(&output)
        .and_then(|()| std::fs::write(output.join("report.html"), page::render(&model, &evaluation)))
        .with_context(|| format!("write the report to {}", output.display()))?;
    println!("{}", summary(&model, &evaluation));
    Ok(())
}

/// Reads the hyperparameters, all of which are strings; none is required.
fn tune(root: &Path, hyper: &mut Hyper, settings: &mut Settings) -> anyhow::Result<Source> {
    let path = root.join("input/config/hyperparameters.json");
    let mut source = Source::Deployment;
    if !path.exists() {
        return Ok(source);
    }
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let given: BTreeMap<String, String> =
        serde_json::from_str(&text).with_context(|| format!("{} is no map of strings", path.display()))?;
    for (name, value) in &given {
        let wrong = || format!("hyperparameter {name} is `{value}`");
        match name.as_str() {
            "seed" => hyper.seed = value.parse().with_context(wrong)?,
            "trees" => hyper.trees = value.parse().with_context(wrong)?,
            "sample" => hyper.sample = value.parse().with_context(wrong)?,
            "epochs" => hyper.epochs = value.parse().with_context(wrong)?,
            "simulated" => {
                source = if value.parse().with_context(wrong)? { Source::Simulation } else { Source::Deployment };
            }
            "internal" => {
                settings.network.internal =
                    value.split(',').map(|block| block.trim().parse()).collect::<Result<_, _>>().with_context(wrong)?;
            }
            // SageMaker adds names of its own, such as sagemaker_program.
            _ if name.starts_with("sagemaker_") => {}
            _ => anyhow::bail!(
                "hyperparameter {name} is unknown; known are seed, trees, sample, epochs, internal, simulated"
            ),
        }
    }
    Ok(source)
}
