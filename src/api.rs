//! What people and programs ask: anomalies, the reasons for silence, feedback, health, metrics, and a page to look at.
//!
//! The API knows the store and what health is reported to it, not the pipeline's insides, so it answers while the pipeline
//! is held, restarts or has finished. Every refusal is a problem document (RFC 9457) that names the place and the remedy.
//!
//! Who may ask: the bearers of a token, of an API key, or of a token of an OpenID Connect issuer, each with a role ([`auth`], [`roles`]);
//! health probes and the empty pages are open. Without any of these, only this machine: a public address is refused unless the settings
//! insist, and a request must name the machine by address or as `localhost`, and not come from a page of another site.
//!
//! How much: connections and their deadlines are bounded (`connections`), and so is what each may ask ([`rate_limit`]).

#![allow(clippy::result_large_err, reason = "a refusal is the rare way out, and says all that there is to say")]

use std::any::Any;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{DefaultBodyLimit, MatchedPath, Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Router};
use ipnet::IpNet;
use jiff::SignedDuration;
use opentelemetry_http::HeaderExtractor;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tower_http::CompressionLevel;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::compression::CompressionLayer;
use tower_http::request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer};
use tracing::Instrument;

use crate::explainers::Explainers;
use crate::health::Health;
use crate::ml::watch::Watch;
use crate::publish::AnomalyStore;
use crate::telemetry::{self, Metrics, trace};
use crate::wait::positive;

pub mod anomalies;
pub mod audit;
pub mod auth;
mod cache;
pub mod clients;
pub mod cloud_map;
pub mod config;
mod connections;
pub mod coverage;
pub mod dashboard;
mod docs;
pub mod explain;
pub mod export;
pub mod extract;
pub mod feedback;
pub mod hosts;
pub mod keys;
mod mcp;
pub mod models;
pub mod oidc;
pub mod openapi;
pub mod probes;
pub mod problem;
pub mod rate_limit;
pub mod roles;
pub mod stream;
pub mod suppressions;

use auth::{Access, Token};
use cache::Cache;
use clients::Proxies;
use connections::Limits;
use problem::{Cause, Problem};
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
    /// What the token's bearer may do.
    pub token_role: roles::Role,
    /// Keys of programs and people, each with a role.
    pub keys: Vec<keys::ApiKey>,
    /// The OpenID Connect issuer whose tokens are taken; none where it is not configured.
    pub oidc: Option<oidc::Settings>,
    /// Whether to listen on an address that others can reach although there is no token.
    pub public_without_token: bool,
    /// Networks of the proxies that pass requests on, whose word counts on who has asked.
    pub trusted_proxies: Vec<IpNet>,
    /// How long a request may take.
    pub request_timeout: SignedDuration,
    /// How long the head of a request may take to arrive.
    pub header_timeout: SignedDuration,
    /// How long its body may take to arrive, and the client to take in a part of the answer.
    pub body_timeout: SignedDuration,
    /// How long a connection may stay without a request.
    pub idle_timeout: SignedDuration,
    /// Connections at once.
    pub connections_max: usize,
    /// Connections of one address at once; an IPv6 /64 is one. Those of trusted proxies do not count.
    pub connections_by_address_max: usize,
    /// Whether HTTP/2 is spoken without TLS.
    pub http2_without_tls: bool,
    /// For how long browsers are told to come by TLS alone (HSTS); zero: they are not told.
    pub hsts: SignedDuration,
    /// Largest body of a request, bytes.
    pub body_max: usize,
    /// Most anomalies on a page.
    pub page_max: usize,
    /// Streams of changes that are open at once.
    pub streams_max: usize,
    /// For how long an answer to a hot question is given again.
    pub cache: SignedDuration,
    /// How much one client may ask.
    pub rate_limit: rate_limit::Settings,
    /// What a suppression that is given over the API may hide, and for how long.
    pub suppressions: suppressions::Settings,
    /// The Cloud Map service that is told where the API is; none where it is not configured.
    pub cloud_map: Option<cloud_map::Settings>,
}

impl Settings {
    /// What is wrong with values that are each in range, by key.
    pub fn check(&self) -> Vec<(String, String)> {
        let mut found: Vec<(String, String)> = self.oidc.as_ref().map(oidc::Settings::check).unwrap_or_default();
        found.extend(keys::check(&self.keys).map(|message| ("keys".to_owned(), message)));
        if self.connections_by_address_max > self.connections_max {
            let key = "connections_by_address_max".to_owned();
            found.push((key, "no more than connections_max, which there are in all".to_owned()));
        }
        found
    }
}

/// What the API stands on.
pub struct Parts {
    /// Where anomalies are kept.
    pub store: Arc<dyn AnomalyStore>,
    /// How the service is.
    pub health: Arc<Health>,
    /// Who can be asked why an address did or did not alert.
    pub explainers: Arc<Explainers>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// The models of tier 2, unless they are switched off.
    pub models: Option<Arc<Watch>>,
    /// Which networks are ours.
    pub internal: Vec<IpNet>,
    /// The suppressions of the settings.
    pub suppressions: Vec<crate::validation::suppression::Suppression>,
    /// The settings in effect, as they may be shown.
    pub config: config::Effective,
}

/// What the handlers share.
#[derive(Clone)]
pub struct Context {
    /// Where anomalies are kept.
    pub store: Arc<dyn AnomalyStore>,
    /// How the service is.
    pub health: Arc<Health>,
    /// Who can be asked why an address did or did not alert.
    pub explainers: Arc<Explainers>,
    /// What was counted.
    pub metrics: Arc<Metrics>,
    /// The models of tier 2, unless they are switched off.
    pub models: Option<Arc<Watch>>,
    /// Most anomalies on a page.
    pub page_max: usize,
    /// How long a body may take to arrive.
    body_timeout: Duration,
    /// How long a request may take.
    request_timeout: Duration,
    /// Largest body of a request, bytes.
    body_max: usize,
    /// What browsers are told of TLS.
    hsts: Option<HeaderValue>,
    access: Arc<Access>,
    proxies: Arc<Proxies>,
    cache: Arc<Cache>,
    limiter: Arc<Limiter>,
    /// The AWS region that this process works in, if it is known.
    region: Option<Arc<str>>,
    /// What a suppression is held against.
    bounds: Arc<suppressions::Bounds>,
    /// Who tries a suppression on the stored past.
    trying: Arc<Semaphore>,
    /// The settings in effect, as they may be shown.
    config: config::Effective,
    /// Streams of changes that may still be opened.
    streams: Arc<Semaphore>,
    /// Whether the API stops.
    stopping: watch::Receiver<bool>,
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
    limits: Limits,
    metrics: Arc<Metrics>,
    stop_streams: watch::Sender<bool>,
}

impl Server {
    /// Settles who may ask, and takes the address.
    pub async fn bind(settings: &Settings, parts: Parts) -> Result<Server, ApiError> {
        let access = Arc::new(Access::settle(settings)?);
        auth::warn_of_readers(&settings.token_file);
        let listen = |cause| ApiError::Listen { address: settings.listen, cause };
        let listener = TcpListener::bind(settings.listen).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let Parts { store, health, explainers, metrics, models, internal, suppressions, config } = parts;
        let hsts =
            settings.hsts.is_positive().then(|| format!("max-age={}; includeSubDomains", settings.hsts.as_secs()));
        let bounds =
            suppressions::Bounds { settings: settings.suppressions.clone(), internal, configured: suppressions };
        let (stop_streams, stopping) = watch::channel(false);
        let context = Context {
            store,
            health,
            explainers,
            metrics: metrics.clone(),
            models,
            page_max: settings.page_max.max(1),
            body_timeout: positive(settings.body_timeout),
            request_timeout: positive(settings.request_timeout),
            body_max: settings.body_max,
            hsts: hsts.and_then(|value| HeaderValue::try_from(value).ok()),
            access,
            proxies: Arc::new(Proxies::new(&settings.trusted_proxies)),
            cache: Arc::new(Cache::new(positive(settings.cache))),
            limiter: Arc::new(Limiter::new(&settings.rate_limit)),
            region: std::env::var("AWS_REGION").ok().map(Arc::from),
            bounds: Arc::new(bounds),
            trying: Arc::new(Semaphore::new(1)),
            config,
            streams: Arc::new(Semaphore::new(settings.streams_max)),
            stopping,
        };
        let limits = Limits::new(settings);
        Ok(Server { listener, address, router: router(context), limits, metrics, stop_streams })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until `stop` resolves and the requests under way are done.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> Result<(), ApiError> {
        // A stream would go on for ever, and the connections wait for it.
        let stop_streams = self.stop_streams;
        let stop = async move {
            stop.await;
            stop_streams.send_replace(true);
        };
        connections::serve(self.listener, self.router, self.limits, self.metrics, stop).await;
        Ok(())
    }
}

/// All routes with everything that surrounds them.
fn router(context: Context) -> Router {
    let body_max = context.body_max;
    let agents = mcp::Endpoint::new(
        operations()
            .layer(middleware::from_fn(roles::allow))
            .layer(CatchPanicLayer::custom(panicked))
            .layer(middleware::from_fn_with_state(context.clone(), count))
            .with_state(context.clone()),
        body_max,
    );
    let guarded = operations()
        .route("/mcp", post(mcp::answer).layer(Extension(agents)))
        .route("/metrics", get(probes::metrics))
        .layer(middleware::from_fn(roles::allow))
        .layer(middleware::from_fn(traced))
        .layer(middleware::from_fn_with_state(context.clone(), auth::guard));

    let open = Router::new()
        .route("/", get(dashboard::page))
        .route("/docs", get(docs::page))
        .route("/dashboard.css", get(dashboard::style))
        .route("/dashboard.js", get(dashboard::script))
        .route("/health/ready", get(probes::ready))
        .route("/openapi.json", get(openapi::document))
        .fallback(no_such_place)
        .layer(middleware::from_fn_with_state(context.clone(), auth::open));
    let request_id = HeaderName::from_static("x-request-id");
    Router::new()
        .route("/health/live", get(probes::live))
        .merge(guarded)
        .merge(open)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(context.body_max))
        .layer(middleware::from_fn_with_state(context.clone(), bounded))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(middleware::from_fn_with_state(context.clone(), count))
        // The fastest level: what it saves is most of what there is to save, and others wait while it is at work.
        .layer(CompressionLayer::new().quality(CompressionLevel::Fastest))
        .layer(PropagateRequestIdLayer::new(request_id.clone()))
        .layer(SetRequestIdLayer::new(request_id, MakeRequestUuid))
        .with_state(context)
}

/// The operations on what is kept, for people, programs and agents.
fn operations() -> Router<Context> {
    Router::new()
        .route("/v1/anomalies", get(anomalies::list))
        .route("/v1/anomalies/stream", get(stream::follow))
        .route("/v1/anomalies/{id}", get(anomalies::one))
        .route("/v1/anomalies/{id}/feedback", post(feedback::give))
        .route("/v1/rejections", get(anomalies::rejections))
        .route("/v1/silences", get(anomalies::silences))
        .route("/v1/signals", get(anomalies::signals))
        .route("/v1/models", get(models::show))
        .route("/v1/explain", get(explain::explain))
        .route("/v1/hosts/{address}", get(hosts::show))
        .route("/v1/suppressions", get(suppressions::list).post(suppressions::make))
        .route("/v1/suppressions/{name}", delete(suppressions::remove))
        .route("/v1/audit", get(audit::list))
        .route("/v1/config", get(config::show))
        .route("/v1/coverage", get(coverage::show))
        .route("/v1/status", get(probes::status))
}

/// The longest path with its query, bytes.
const PATH_MAX: usize = 8 * 1024;

/// Refuses what is too large before anything of it is read, and gives up what takes too long.
async fn bounded(State(context): State<Context>, request: Request, next: Next) -> Response {
    if request.uri().path_and_query().is_some_and(|path| path.as_str().len() > PATH_MAX) {
        let detail = format!("the path with its query has more than {PATH_MAX} bytes");
        return Problem::new(StatusCode::URI_TOO_LONG, detail, "ask for less").into_response();
    }
    let said = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|said| said > context.body_max as u64) {
        return extract::too_large().into_response();
    }
    match tokio::time::timeout(context.request_timeout, next.run(request)).await {
        Ok(response) => response,
        Err(_) => {
            let seconds = context.request_timeout.as_secs_f64();
            let mut response = Problem::new(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("there was no answer within {seconds} s"),
                "ask for less, or try again in a moment; api.request_timeout sets the deadline",
            )
            .into_response();
            let cause = format!("no answer within {seconds} s");
            response.extensions_mut().insert(Cause { context: "answer in time".to_owned(), cause });
            response
        }
    }
}

/// A defect of ours ends one request and not the service.
fn panicked(panic: Box<dyn Any + Send + 'static>) -> Response {
    let words = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let cause = Cause { context: "answer".to_owned(), cause: format!("it panicked: {}", words.unwrap_or("no words")) };
    let remedy = "the log of the service has the cause under the id in `x-request-id`";
    let mut response =
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "a defect of this service", remedy).into_response();
    response.extensions_mut().insert(cause);
    response
}

async fn no_such_place(request: Request) -> Problem {
    let detail = format!("there is nothing at {}", request.uri().path());
    Problem::new(StatusCode::NOT_FOUND, detail, "GET /openapi.json lists all there is")
}

async fn no_such_method(request: Request) -> Problem {
    let detail = format!("{} has no method {}", request.uri().path(), request.method());
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, detail, "GET /openapi.json lists what each path answers to")
}

/// A span for each request that is admitted, as part of the caller's trace.
async fn traced(request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str);
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default();
    let span = trace::request(request.method().as_str(), route, id, &HeaderExtractor(request.headers()));
    let response = next.run(request).instrument(span.clone()).await;
    trace::answered(&span, response.status().as_u16());
    response
}

/// Counts every answer by route, never by raw path: paths are chosen by whoever asks. What we could not answer goes to the log
/// with the id that whoever asked has in hand.
async fn count(State(context): State<Context>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
    let began = Instant::now();
    let mut response = next.run(request).await;
    let (status, seconds) = (response.status(), began.elapsed().as_secs_f64());
    context.metrics.add(&telemetry::REQUESTS, &[&route, status.as_str()], 1);
    context.metrics.observe(&telemetry::REQUEST_SECONDS, &[&route], seconds);
    if let Some(Cause { context, cause }) = response.extensions_mut().remove::<Cause>() {
        let (status, request_id) = (status.as_u16(), id);
        if status == 500 {
            tracing::error!(request_id, status, %method, route, seconds, context, cause, "a request failed");
        } else {
            tracing::warn!(request_id, status, %method, route, seconds, context, cause, "a request was not answered");
        }
    }
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    if let Some(hsts) = &context.hsts {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, hsts.clone());
    }
    response
}

impl IntoResponse for crate::publish::PublishError {
    fn into_response(self) -> Response {
        Problem::from(self).into_response()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_defect_is_a_problem_that_shows_nothing_of_itself() {
        let response = panicked(Box::new("index out of bounds".to_owned()));
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
        assert!(response.extensions().get::<Cause>().unwrap().cause.contains("index out of bounds"));
    }
}
