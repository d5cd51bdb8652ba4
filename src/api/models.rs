//! The models: which are in use, how they do, and whether they still fit.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;

use super::Context;
use super::extract::{Nothing, Query};
use super::problem::Problem;
use crate::flow::EventTime;
use crate::ml::watch::Report;

/// The models in use: artifact, endpoints with their breakers, variants, canary verdict, drift, and whether to train again
#[utoipa::path(
    get, path = "/v1/models", operation_id = "get_models", tag = "models",
    responses(
        (status = 200, body = Report, description = "what they are and how they do"),
        (status = 404, body = Problem, description = "the models are switched off")
    )
)]
pub async fn show(State(context): State<Context>, Query(Nothing {}): Query<Nothing>) -> Response {
    let Some(models) = &context.models else {
        let remedy = "set ml.model.enabled = true";
        return Problem::new(StatusCode::NOT_FOUND, "the models are switched off", remedy).into_response();
    };
    let now = EventTime(u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX));
    Json(models.report(now)).into_response()
}
