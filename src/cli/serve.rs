//! `flowvigil serve`: the model server, under SageMaker's hosting contract and as an endpoint of its own.
//!
//! SageMaker starts the image with the word `serve`, unpacks the artifact to `/opt/ml/model`, asks `GET /ping` and posts to
//! `/invocations` on port 8080. Besides, `POST /endpoints/{name}/invocations` answers as the SageMaker runtime does, with
//! variants, so that the AWS SDK reaches a local endpoint (`AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=http://127.0.0.1:8080`):
//! that is how tests and local runs call the models.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::net::TcpListener;

use super::{SettingsArgs, train};
use crate::ml::artifact::{self, Slot};
use crate::ml::wire::{self, Refusal, Spelling};

/// Arguments of `serve`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The artifact: a model.tar.gz or the folder it was unpacked to; /opt/ml/model if there is one, else the embedded one
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// Another artifact, as the variant `canary` of the endpoints
    #[arg(long, value_name = "PATH")]
    canary: Option<PathBuf>,
    /// How many in a hundred calls to an endpoint go to the canary
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u8).range(0..=100))]
    canary_percent: u8,
    /// Where to listen; 0.0.0.0 and SAGEMAKER_BIND_TO_PORT (8080) by default
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Serves until it is told to stop.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let settings = args.settings.load()?;
    crate::telemetry::log_to_stderr(&settings.telemetry);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(args))?;
    Ok(ExitCode::SUCCESS)
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let place = args.model.or_else(|| Some(train::sagemaker_root().join("model")).filter(|p| p.exists()));
    let primary = match &place {
        Some(place) => artifact::read(place)?,
        None => artifact::embedded()?,
    };
    let canary = args.canary.as_deref().map(artifact::read).transpose()?;
    let version = primary.manifest.model_version.clone();
    let models = Arc::new(Models {
        primary: Slot::new(primary, place),
        canary: canary.map(|model| Slot::new(model, args.canary)),
        canary_percent: u64::from(args.canary_percent),
        calls: AtomicU64::new(0),
    });
    let port = || std::env::var("SAGEMAKER_BIND_TO_PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8080);
    let address = args.listen.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], port())));
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    // On standard output, so that whoever asked for port 0 learns the port.
    println!("serving model {version} on http://{}", listener.local_addr().context("read the address")?);
    tokio::spawn(reload(models.clone()));
    axum::serve(listener, router(models)).with_graceful_shutdown(stopped()).await.context("serve")
}

/// The models that a server answers with.
pub struct Models {
    primary: Slot,
    canary: Option<Slot>,
    canary_percent: u64,
    calls: AtomicU64,
}

/// All routes of a model server.
pub fn router(models: Arc<Models>) -> Router {
    Router::new()
        .route("/ping", get(async || StatusCode::OK))
        .route("/invocations", post(invoke))
        .route("/endpoints/{name}/invocations", post(invoke_endpoint))
        .layer(DefaultBodyLimit::max(wire::BYTES_MAX))
        .with_state(models)
}

/// Looks for a new artifact now and then; one that is refused leaves the old one in use.
async fn reload(models: Arc<Models>) {
    let mut tick = tokio::time::interval(Duration::from_secs(30));
    loop {
        tick.tick().await;
        for slot in std::iter::once(&models.primary).chain(&models.canary) {
            match slot.reload() {
                Ok(false) => {}
                Ok(true) => tracing::info!(version = slot.model().manifest.model_version, "another model is in use"),
                Err(error) => tracing::warn!(%error, "the new model is not used"),
            }
        }
    }
}

/// SIGTERM (SageMaker, containers) or SIGINT.
async fn stopped() {
    let interrupted = tokio::signal::ctrl_c();
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut terminated) => tokio::select! {
            _ = interrupted => {}
            _ = terminated.recv() => {}
        },
        Err(_) => {
            let _ = interrupted.await;
        }
    }
}

async fn invoke(State(models): State<Arc<Models>>, headers: HeaderMap, body: Bytes) -> Response {
    match scored(&models.primary, &headers, body).await {
        Ok((spelling, text)) => ([(header::CONTENT_TYPE, spelling.name())], text).into_response(),
        Err(refusal) => refused(&refusal),
    }
}

/// As the SageMaker runtime: what the container refuses is a `ModelError`, 424.
async fn invoke_endpoint(
    State(models): State<Arc<Models>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    const VARIANT: &str = "x-amzn-invoked-production-variant";
    let wanted = headers.get("x-amzn-sagemaker-target-variant").and_then(|v| v.to_str().ok());
    let (variant, slot) = match (wanted, &models.canary) {
        (None, Some(canary)) if models.falls_to_canary() => ("canary", canary),
        (Some("canary"), Some(canary)) => ("canary", canary),
        (None | Some("primary"), _) => ("primary", &models.primary),
        (Some(other), _) => {
            return fault(400, "ValidationError", &format!("endpoint {name} has no variant {other}"), None);
        }
    };
    match scored(slot, &headers, body).await {
        Ok((spelling, text)) => {
            ([(header::CONTENT_TYPE.as_str(), spelling.name()), (VARIANT, variant)], text).into_response()
        }
        Err(refusal) => fault(424, "ModelError", &refusal.reason, Some(refusal.status)),
    }
}

impl Models {
    /// Spreads calls evenly: of every hundred, the first few are the canary's.
    fn falls_to_canary(&self) -> bool {
        // Strides of 61 visit all hundred remainders, and mix them.
        self.calls.fetch_add(1, Ordering::Relaxed).wrapping_mul(61) % 100 < self.canary_percent
    }
}

async fn scored(slot: &Slot, headers: &HeaderMap, body: Bytes) -> Result<(Spelling, String), Refusal> {
    let named = |name: header::HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let spelling = Spelling::of(named(header::CONTENT_TYPE))?;
    let accepted = named(header::ACCEPT).and_then(|a| Spelling::of(Some(a)).ok()).unwrap_or(spelling);
    let model = slot.model();
    let work = move || {
        let rows = wire::read(&body, spelling)?;
        let reply = wire::answer(&model, &rows.instances);
        Ok((accepted, wire::write(&reply, accepted, rows.bare)))
    };
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| {
        Err(Refusal { status: 500, reason: "scoring failed; this is a defect in flowvigil".to_owned() })
    })
}

fn refused(refusal: &Refusal) -> Response {
    let status = StatusCode::from_u16(refusal.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, axum::Json(serde_json::json!({ "error": refusal.reason }))).into_response()
}

fn fault(status: u16, code: &'static str, message: &str, original: Option<u16>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body = serde_json::json!({ "Message": message, "OriginalMessage": message, "OriginalStatusCode": original });
    (status, [("x-amzn-errortype", code)], axum::Json(body)).into_response()
}
