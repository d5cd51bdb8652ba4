//! `flowvigil models`: look at artifacts, hold one against another, and say which is in charge.
//!
//! `compare` scores the same windows with both and gives the verdict that decides a canary: promote, hold or roll back.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use ipnet::IpNet;

use super::{SettingsArgs, origin, windows};
use crate::flow::EventTime;
use crate::ml::canary::{Comparison, Limits, Report, Variant};
use crate::ml::model::{Judge, Model};
use crate::ml::registry::{Registry, State, Version};
use crate::ml::sagemaker::SageMaker;
use crate::ml::{FeatureVector, Scorer, artifact};
use crate::settings::Settings;
use crate::simulate::Scenario;

/// Arguments of `models`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Print an artifact's manifest (JSON); the embedded one by default
    Show {
        /// A model.tar.gz, or the folder it was unpacked to
        model: Option<PathBuf>,
    },
    /// Score the same windows with two models and say whether the second may take over
    Compare(Compare),
    /// Print every registered version with its state, the latest change first
    List {
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Register an artifact: a path that every task can read, or s3://bucket/key
    Register {
        /// Where the artifact lies
        place: PathBuf,
        /// candidate, canary, primary or retired
        #[arg(long, default_value = "candidate")]
        state: State,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// Give a version a state; a version that comes into charge (primary) retires the one before
    Set {
        /// As `list` prints it
        version: String,
        /// candidate, canary, primary or retired
        state: State,
        #[command(flatten)]
        settings: SettingsArgs,
    },
}

#[derive(Debug, clap::Args)]
struct Compare {
    /// The model in charge; without one, both variants of the endpoints in [ml.sagemaker] are asked
    #[arg(long, value_name = "PATH", requires = "canary")]
    primary: Option<PathBuf>,
    /// The model on trial
    #[arg(long, value_name = "PATH", requires = "primary")]
    canary: Option<PathBuf>,
    /// Flow logs whose windows both score: files or folders
    #[arg(long, value_name = "PATH", num_args = 1.., required_unless_present = "simulated")]
    input: Vec<PathBuf>,
    /// Let both score the windows of a simulated VPC with this seed, 40 hosts over two days
    #[arg(long, value_name = "SEED", conflicts_with = "input")]
    simulated: Option<u64>,
    /// CIDR blocks of our own hosts, in place of those in the settings
    #[arg(long, value_name = "CIDR", value_delimiter = ',', value_parser = super::detect::block)]
    internal: Vec<IpNet>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Windows that are scored at a time, as in a service with as many hosts; as many as a request holds.
const BATCH: usize = 200;
/// Windows that a service with many hosts asks about at once, when they all close.
const ENDPOINT_BATCH: usize = 4096;

/// Shows or compares.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Show { model } => {
            let model = model.as_deref().map_or_else(artifact::embedded, artifact::read)?;
            println!("{}", serde_json::to_string_pretty(&model.manifest).context("write the manifest as JSON")?);
        }
        Action::Compare(args) => compare(args)?,
        Action::List { settings } => in_registry(&settings, async |registry, _| {
            for v in registry.list().await? {
                let (version, state, place, changed) = (v.version, v.state, v.place, v.changed);
                println!("{version:<20}  {state:<9}  {changed}  {place}");
            }
            Ok(())
        })?,
        Action::Register { place, state, settings } => in_registry(&settings, async |registry, settings| {
            let mut named = settings.clone();
            named.ml.model.path.clone_from(&place);
            let model = origin::open(&named).await?.0.model();
            let place = place.display().to_string();
            let version = Version::of(&model.manifest, &place, State::Candidate, now());
            registry.put(&version).await?;
            if state != State::Candidate {
                registry.set(&version.version, state, now()).await?;
            }
            println!("{} is {state}", version.version);
            Ok(())
        })?,
        Action::Set { version, state, settings } => in_registry(&settings, async |registry, _| {
            registry.set(&version, state, now()).await?;
            println!("{version} is {state}");
            Ok(())
        })?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Does something with the registry of the settings.
fn in_registry(
    args: &SettingsArgs,
    act: impl AsyncFnOnce(Arc<dyn Registry>, Settings) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let settings = args.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async { act(origin::registry(&settings).await?, settings.clone()).await })
}

fn now() -> EventTime {
    EventTime(u32::try_from(jiff::Timestamp::now().as_second()).unwrap_or(u32::MAX))
}

fn compare(args: Compare) -> anyhow::Result<()> {
    let mut settings = args.settings.load()?;
    if !args.internal.is_empty() {
        settings.network.internal.clone_from(&args.internal);
    }
    let mut vectors = match args.simulated {
        Some(seed) => {
            let scenario = Scenario { seed, duration_seconds: 2 * 86_400, ..Scenario::default() };
            windows::of_simulation(scenario, &settings).0
        }
        None => windows::of_files(&args.input, &settings)?,
    };
    vectors.sort_by_key(|v| (v.window, v.host));
    let (report, names) = match (&args.primary, &args.canary) {
        (Some(primary), Some(canary)) => {
            let (primary, canary) = (artifact::read(primary)?, artifact::read(canary)?);
            let names = [canary.manifest.model_version.clone(), primary.manifest.model_version.clone()];
            (of_artifacts(&primary, &canary, &vectors, &settings.ml.canary), names)
        }
        _ => {
            let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
            let report = runtime.block_on(of_endpoints(&settings, &vectors))?;
            (report, ["canary".to_owned(), "primary".to_owned()])
        }
    };
    println!("{}", serde_json::to_string_pretty(&report).context("write the comparison as JSON")?);
    let reasons = report.reasons.iter().fold(String::new(), |all, reason| format!("{all}; {reason}"));
    eprintln!("{} against {}: {}{reasons}", names[0], names[1], report.verdict.name());
    Ok(())
}

/// Both artifacts, in process.
fn of_artifacts(primary: &Model, canary: &Model, vectors: &[FeatureVector], limits: &Limits) -> Report {
    let mut comparison = Comparison::default();
    let first = score(primary, vectors, limits.level, &mut comparison.primary);
    let second = score(canary, vectors, limits.level, &mut comparison.canary);
    for pair in first.into_iter().zip(second) {
        if let (Some(a), Some(b)) = pair {
            comparison.pair(a, b);
        }
    }
    comparison.report(limits)
}

/// Both variants of the endpoints, each asked about every window; says on standard error how fast the endpoints answered.
async fn of_endpoints(settings: &Settings, vectors: &[FeatureVector]) -> anyhow::Result<Report> {
    let remedy = "name the endpoints in [ml.sagemaker], or give --primary and --canary";
    let mut sagemaker = settings.ml.sagemaker.clone().context(remedy)?;
    let slot = Arc::new(super::slot(&settings.ml.model)?);
    let config = crate::aws::load().await;
    // First alone, as a service asks, for the rate; then both variants on the same windows.
    sagemaker.paired_every = 0;
    let alone = SageMaker::new(&config, sagemaker.clone(), settings.ml.canary.clone(), slot.clone());
    let mut judge = Judge::new(usize::MAX);
    let (began, mut asked, mut missed) = (Instant::now(), 0, 0);
    for batch in vectors.chunks(ENDPOINT_BATCH) {
        let scores = alone.score(&mut judge, batch).await?;
        asked += scores.iter().filter(|score| score.p_value.is_some()).count();
        missed += scores.iter().filter(|score| score.degraded).count();
    }
    let rate = asked as f64 / began.elapsed().as_secs_f64();
    eprintln!("{rate:.0} windows/s; {missed} of {asked} were answered by the model in process");
    sagemaker.paired_every = 1;
    let paired = SageMaker::new(&config, sagemaker, settings.ml.canary.clone(), slot);
    let mut judge = Judge::new(usize::MAX);
    for batch in vectors.chunks(BATCH) {
        paired.score(&mut judge, batch).await?;
        paired.compare_now().await;
    }
    Ok(paired.compared())
}

/// The p-values of all windows, counted on the way; at `level` or less they are alerts.
fn score(model: &Model, vectors: &[FeatureVector], level: f64, variant: &mut Variant) -> Vec<Option<f64>> {
    let mut judge = Judge::new(usize::MAX);
    let mut p_values = Vec::with_capacity(vectors.len());
    for batch in vectors.chunks(BATCH) {
        let began = Instant::now();
        let judged = judge.judge(model, batch);
        variant.call(began.elapsed().as_secs_f64() * 1e3, true);
        for p in judged.iter().filter_map(|judgement| judgement.p_value) {
            variant.window(p, p <= level);
        }
        p_values.extend(judged.into_iter().map(|judgement| judgement.p_value));
    }
    p_values
}
