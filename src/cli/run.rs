//! `flowvigil run`: the long-running service.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::live::Live;
use super::{SettingsArgs, backends, observe, state};
use crate::api::cloud_map::Instance;
use crate::api::config::Effective;
use crate::api::{Parts, Server};
use crate::explainers::Explainers;
use crate::flow::network::Network;
use crate::health::Health;
use crate::ml::watch::Watch;
use crate::pipeline::{self, Backends, Outcome, Thresholds, Tiers};
use crate::settings::{Layer, Settings};
use crate::telemetry::trace::otlp::Traces;
use crate::telemetry::{self, Metrics};

pub(super) mod models;

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Args {
    /// Where the settings come from.
    #[command(flatten)]
    pub settings: SettingsArgs,
    /// Flow logs to read in place of the settings' [ingest.local] paths: files, folders, or - for standard input
    #[arg(value_name = "FILE|FOLDER|-")]
    pub paths: Vec<std::path::PathBuf>,
    /// Stop at the end of the files instead of waiting for more
    #[arg(long)]
    pub once: bool,
}

const EXIT_CODES: &str = "Exit codes:
  0  the input has ended, or it was told to stop (SIGTERM, Ctrl-C), and everything that was read is delivered
  1  it failed, what it needs did not answer when it began, or the grace period was over before everything was delivered; a
     restart goes on from the checkpoint
  2  it cannot begin: wrong arguments or settings, a model that is refused, or input that is no flow log";

/// Runs until the input ends or a signal comes.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(args))
}

async fn serve(args: Args) -> anyhow::Result<ExitCode> {
    let mut live = Live::load(&args.settings).await?;
    let mut settings = live.settings.clone();
    let mut arguments = Vec::new();
    if !args.paths.is_empty() {
        settings.ingest.local.paths.clone_from(&args.paths);
        let paths: Vec<String> = args.paths.iter().map(|path| path.display().to_string()).collect();
        arguments.push(("ingest.local.paths".to_owned(), "PATH".to_owned(), toml::Value::from(paths).to_string()));
    }
    if args.once {
        arguments.push(("ingest.local.follow".to_owned(), "--once".to_owned(), "false".to_owned()));
    }
    let config = live.effective(Some(Layer::from_texts("arguments", arguments)));
    settings.ingest.local.follow &= !args.once;
    let metrics = Arc::new(Metrics::new());
    let traces = match &settings.telemetry.otlp {
        Some(otlp) => match Traces::start(otlp, &metrics).await {
            Ok(traces) => Some(traces),
            Err(error) => {
                eprintln!("flowvigil: {error}");
                return Ok(super::unusable());
            }
        },
        None => None,
    };
    let log = telemetry::log_and_trace(&settings.telemetry, traces.as_ref());
    let refused = super::config::refusals(&settings);
    if !refused.is_empty() {
        refused.iter().for_each(|reason| eprintln!("flowvigil: {reason}"));
        return Ok(super::unusable());
    }
    let health = Arc::new(Health::default());
    let locks = match state::lock(&settings) {
        Ok(locks) => locks,
        Err(error) => {
            eprintln!("flowvigil: {error:#}");
            return Ok(super::unusable());
        }
    };
    let backends = match backends::choose(&settings, &health, &metrics).await {
        Ok(backends) => backends,
        Err(error) => {
            eprintln!("flowvigil: {error:#}");
            return Ok(if backends::may_pass(&error) { ExitCode::FAILURE } else { super::unusable() });
        }
    };
    let (stop, told) = watch::channel(false);
    tokio::spawn(heed_signals(stop));
    let models = models::open(&settings).await?;
    let endpoints = models.sagemaker.clone();
    let changes = live.follow(health.clone(), move |settings| {
        log.set(&settings.telemetry);
        if let (Some(endpoints), Some(sagemaker)) = (&endpoints, &settings.ml.sagemaker) {
            endpoints.set_breaker(&sagemaker.breaker);
        }
    });
    let service = Service { settings, backends, health, metrics, models: models.watch, changes, config };
    let listening = |address| tracing::info!(%address, "the API listens");
    let outcome = with_api(service, told, listening, false).await;
    if let Some(traces) = traces {
        traces.finish().await;
    }
    drop(locks);
    let outcome = outcome?;
    Ok(if outcome == Outcome::CutOff { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What a service is made of.
pub(super) struct Service {
    /// As they are at the start.
    pub settings: Settings,
    /// Of every port.
    pub backends: Backends,
    /// How it is.
    pub health: Arc<Health>,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// The trained models, unless they are switched off.
    pub models: Option<Arc<Watch>>,
    /// Where other thresholds come from while it runs.
    pub changes: Option<watch::Receiver<Arc<Thresholds>>>,
    /// The settings in effect, as they may be shown.
    pub config: Effective,
}

/// The pipeline with the API beside it. With `linger`, the API answers until it is told to stop, also when the input has
/// ended.
pub(super) async fn with_api(
    service: Service,
    mut told: watch::Receiver<bool>,
    listening: impl FnOnce(std::net::SocketAddr),
    linger: bool,
) -> anyhow::Result<Outcome> {
    let Service { settings, backends, health, metrics, models, changes, config } = service;
    let explainers: Arc<Explainers> = Arc::default();
    let parts = Parts {
        store: backends.store.clone(),
        health: health.clone(),
        explainers: explainers.clone(),
        metrics: metrics.clone(),
        models: models.clone(),
        internal: settings.network.internal.clone(),
        suppressions: settings.validation.suppressions.clone(),
        config,
    };
    let server = Server::bind(&settings.api, parts).await?;
    listening(server.address());
    let instance = match &settings.api.cloud_map {
        Some(cloud_map) => Some(Instance::new(&crate::aws::load().await, cloud_map, server.address())?),
        None => None,
    };
    let registering = instance.clone().map(|instance| tokio::spawn(async move { instance.register().await }));
    let observed =
        observe::run(health.clone(), metrics.clone(), backends.store.clone(), settings.telemetry.emf.clone());
    let observing = tokio::spawn(observed);
    let (end_api, api_ends) = tokio::sync::oneshot::channel::<()>();
    let api = tokio::spawn(server.serve(async move {
        // Whether told or dropped: it is over.
        let _ = api_ends.await;
    }));
    let tiers = Tiers {
        network: Network::new(&settings.network),
        statistical: settings.statistical,
        models: models.clone(),
        hosts_max: settings.ml.model.hosts_max,
        behavior: settings.ml.behavior,
        episode_gap: settings.correlation.episode_gap,
        validation: settings.validation,
        changes,
    };
    // Ends with this future, whichever way it ends.
    let _watching = models.map(|models| {
        let every = crate::wait::positive(settings.ml.drift.check_every);
        let watching = models::watch_drift(models, every, metrics.clone(), backends.announcer.clone());
        AbortOnDropHandle::new(tokio::spawn(watching))
    });
    let outcome = pipeline::run(settings.pipeline, tiers, backends, health, explainers, metrics, told.clone()).await;
    if linger && outcome.is_ok() {
        // An error means that nobody is left to tell.
        let _ = told.wait_for(|&stop| stop).await;
    }
    observing.abort();
    if let (Some(instance), Some(registering)) = (instance, registering) {
        registering.abort();
        instance.deregister().await;
    }
    drop(end_api);
    // Requests under way have their own deadline; a client that holds on longer does not hold us.
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), api).await;
    Ok(outcome?)
}

/// The first signal asks, the second insists.
pub(super) async fn heed_signals(stop: watch::Sender<bool>) {
    let (Ok(mut term), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt())) else {
        tracing::warn!("signals cannot be heard; only SIGKILL ends this process");
        return std::future::pending().await;
    };
    for round in 0..2 {
        tokio::select! {
            _ = term.recv() => {}
            _ = interrupt.recv() => {}
        }
        if round == 0 {
            stop.send_replace(true);
        }
    }
    tracing::warn!("told twice: leaving at once; what was left will be read again");
    std::process::exit(1);
}
