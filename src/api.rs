//! What people and programs ask: anomalies, the reasons for silence, feedback, health, metrics, and a page to look at.
//!
//! The API knows the store and what health is reported to it, not the pipeline's insides, so it answers while the pipeline
//! is held, restarts or has finished. Every refusal is a problem document (RFC 9457) that names the place and the remedy.
//!
//! Who may ask: with a token file, whoever brings its token (health probes and the empty page are open). Without one, only
//! this machine: a public address is refused unless the settings insist, and a request must name the machine by address or
//! as `localhost`, so that no web page can reach in through a name of its own (DNS rebinding).

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use jiff::SignedDuration;
use serde::Deserialize;
use tokio::net::TcpListener;
use tower_http::compression::CompressionLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tower_http::timeout::TimeoutLayer;
use tower_http::trace::TraceLayer;

use crate::health::Health;
use crate::ml::watch::Watch;
use crate::publish::AnomalyStore;
use crate::telemetry::{self, Metrics};

pub mod anomalies;
pub mod auth;
mod cache;
pub mod cloud_map;
pub mod dashboard;
pub mod explain;
pub mod feedback;
pub mod models;
pub mod openapi;
pub mod probes;
pub mod problem;
pub mod rate_limit;
pub mod suppressions;

use auth::{Access, Token};
use cache::Cache;
use problem::Problem;
use rate_limit::Limiter;

/// Settings `[api]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where to listen; port 0 takes a free one.
    pub listen: SocketAddr,
    /// File with the bearer token that requests must bring; empty for none.
    pub token_file: PathBuf,
    /// The token itself; empty for none. A token file goes before it.
    pub token: Token,
    /// Whether to listen on an address that others can reach although there is no token.
    pub public_without_token: bool,
    /// How long a request may take.
    pub request_timeout: SignedDuration,
    /// Largest body of a request, bytes.
    pub body_max: usize,
    /// Most anomalies on a page.
    pub page_max: usize,
    /// For how long an answer to a hot question is given again.
    pub cache: SignedDuration,
    /// How much one client may ask.
    pub rate_limit: rate_limit::Settings,
    /// The Cloud Map service that is told where the API is; none where it is not configured.
    pub cloud_map: Option<cloud_map::Settings>,
}

/// What the handlers share.
#[derive(Clone)]
pub struct Context {
    /// Where anomalies are kept.
    pub store: Arc<dyn AnomalyStore>,
    /// How the service is.
    pub health: Arc<Health>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// The models of tier 2, unless they are switched off.
    pub models: Option<Arc<Watch>>,
    /// Most anomalies on a page.
    pub page_max: usize,
    access: Arc<Access>,
    cache: Arc<Cache>,
    limiter: Arc<Limiter>,
}

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The address is taken or not ours.
    #[error("listen on {address}: {cause}")]
    Listen {
        /// As in the settings.
        address: SocketAddr,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Who may ask is not settled.
    #[error(transparent)]
    Access(#[from] auth::AccessError),
    /// Serving stopped.
    #[error("serve: {0}")]
    Serve(std::io::Error),
}

/// The API, listening but not yet answering.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    router: Router,
}

impl Server {
    /// Settles who may ask, and takes the address.
    pub async fn bind(
        settings: &Settings,
        store: Arc<dyn AnomalyStore>,
        health: Arc<Health>,
        metrics: Arc<Metrics>,
        models: Option<Arc<Watch>>,
    ) -> Result<Server, ApiError> {
        let access = Arc::new(Access::settle(settings)?);
        let listen = |cause| ApiError::Listen { address: settings.listen, cause };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let cache = Arc::new(Cache::new(crate::aws::positive(settings.cache)));
        let limiter = Arc::new(Limiter::new(&settings.rate_limit));
        let page_max = settings.page_max.max(1);
        let context = Context { store, health, metrics, models, page_max, access, cache, limiter };
        Ok(Server { listener, address, router: router(context, settings) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` resolves and the requests under way are done.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ApiError> {
        let service = self.router.into_make_service_with_connect_info::<SocketAddr>();
        axum::serve(self.listener, service).with_graceful_shutdown(stop).await.map_err(ApiError::Serve)
    }
}

/// All routes with everything that surrounds them.
pub fn router(context: Context, settings: &Settings) -> Router {
    let guarded = Router::new()
        .route("/v1/anomalies", get(anomalies::list))
        .route("/v1/anomalies/{id}", get(anomalies::one))
        .route("/v1/anomalies/{id}/feedback", post(feedback::give))
        .route("/v1/silences", get(anomalies::silences))
        .route("/v1/models", get(models::show))
        .route("/v1/explain", get(explain::explain))
        .route("/v1/suppressions", get(suppressions::list).post(suppressions::make))
        .route("/v1/suppressions/{name}", delete(suppressions::remove))
        .route("/v1/status", get(probes::status))
        .route("/metrics", get(probes::metrics))
        .layer(middleware::from_fn_with_state(context.clone(), auth::guard))
        .layer(middleware::from_fn_with_state(context.clone(), rate_limit::limit));
    let request_id = HeaderName::from_static("x-request-id");
    let timeout = std::time::Duration::try_from(settings.request_timeout).unwrap_or_default();
    Router::new()
        .route("/", get(dashboard::page))
        .route("/health/live", get(probes::live))
        .route("/health/ready", get(probes::ready))
        .route("/openapi.json", get(openapi::document))
        .merge(guarded)
        .fallback(no_such_place)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn_with_state(context.clone(), count))
        .layer(CompressionLayer::new())
        .layer(RequestBodyLimitLayer::new(settings.body_max))
        .layer(TimeoutLayer::with_status_code(StatusCode::SERVICE_UNAVAILABLE, timeout))
        .layer(PropagateRequestIdLayer::new(request_id.clone()))
        .layer(TraceLayer::new_for_http())
        .layer(SetRequestIdLayer::new(request_id, MakeRequestUuid))
        .with_state(context)
}

async fn no_such_place(request: Request) -> Problem {
    let detail = format!("there is nothing at {}", request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, detail, "GET /openapi.json lists all there is")
}

async fn no_such_method(request: Request) -> Problem {
    let detail = format!("{} has no method {}", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail, "GET /openapi.json lists what each path answers to")
}

/// Counts every answer by route, never by raw path: paths are chosen by whoever asks.
async fn count(State(context): State<Context>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let began = Instant::now();
    let mut response = next.run(request).await;
    context.metrics.add(&telemetry::REQUESTS, &[&route, response.status().as_str()], 1);
    context.metrics.observe(&telemetry::REQUEST_SECONDS, &[&route], began.elapsed().as_secs_f64());
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, header::HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(header::HeaderValue::from_static("no-store"));
    response
}

impl IntoResponse for crate::publish::PublishError {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}
