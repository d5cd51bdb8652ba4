//! How the service is: for orchestrators, for Prometheus, for people.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Context;
use super::extract::{Nothing, Query};
use crate::health::{Degraded, Phase, Report};

/// That the process answers.
#[derive(Debug, Serialize, ToSchema)]
pub struct Alive {
    /// Always `alive`.
    pub status: &'static str,
}

/// Whether the service does its work.
#[derive(Debug, Serialize, ToSchema)]
pub struct Ready {
    /// `ready`, `degraded`, or `not_ready`.
    pub status: &'static str,
    /// Where the service stands in its life.
    pub phase: Phase,
    /// What is away, why, and since when.
    pub degraded: Vec<Degraded>,
}

/// Whether the process answers
#[utoipa::path(
    get, path = "/health/live", operation_id = "get_liveness", tag = "health",
    responses((status = 200, body = Alive, description = "the process answers"))
)]
pub async fn live() -> Json<Alive> {
    Json(Alive { status: "alive" })
}

/// Whether the service does its work, and what is degraded
///
/// A degraded service is ready: it works with something lesser in place of what is away. Why something is away may name who is
/// in the flow logs, so without the token (where there is one) only the parts are named; `/v1/status` has the reasons, too.
#[utoipa::path(
    get, path = "/health/ready", operation_id = "get_readiness", tag = "health",
    responses(
        (status = 200, body = Ready, description = "it works, with or without something lesser in place of what is away"),
        (status = 503, body = Ready, description = "starting or stopping")
    )
)]
pub async fn ready(State(context): State<Context>, headers: HeaderMap) -> Response {
    let Report { phase, mut degraded, .. } = context.health.report();
    if !context.access.shows_details(&headers).await {
        for part in &mut degraded {
            part.reason = format!("{} is away or works with something lesser; the token shows why", part.part);
        }
    }
    let (code, status) = match phase {
        Phase::Starting | Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "not_ready"),
        Phase::Running | Phase::Finished if degraded.is_empty() => (StatusCode::OK, "ready"),
        Phase::Running | Phase::Finished => (StatusCode::OK, "degraded"),
    };
    (code, Json(Ready { status, phase, degraded })).into_response()
}

/// How everything is: phase, degradations, every shard with what it could not read
#[utoipa::path(
    get, path = "/v1/status", operation_id = "get_status", tag = "health",
    responses((status = 200, body = Report, description = "the phase, what is degraded, and every shard"))
)]
pub async fn status(State(context): State<Context>, Query(Nothing {}): Query<Nothing>) -> Json<Report> {
    Json(context.health.report())
}

/// Metrics in the Prometheus text format
#[utoipa::path(
    get, path = "/metrics", operation_id = "get_metrics", tag = "health",
    responses((status = 200, body = String, content_type = "text/plain", description = "all metrics"))
)]
pub async fn metrics(State(context): State<Context>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], context.metrics.render()).into_response()
}
