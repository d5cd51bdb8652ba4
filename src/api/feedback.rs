//! What an analyst says of an anomaly.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::extract::{Path, State};
use axum::http::StatusCode;
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Context;
use super::anomalies::unknown;
use super::problem::Problem;
use crate::flow::EventTime;
use crate::publish::{Feedback, Verdict};

/// The longest note that is kept, characters.
const NOTE_MAX: usize = 4_000;

/// The longest name that is kept, characters.
const BY_MAX: usize = 200;

/// A verdict on an anomaly.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Whether it was true.
    pub verdict: Verdict,
    /// Who says so.
    pub by: String,
    /// In their words.
    #[serde(default)]
    pub note: String,
}

/// Says whether an anomaly was true; the latest verdict of one analyst counts
#[utoipa::path(
    post, path = "/v1/anomalies/{id}/feedback", tag = "feedback", request_body = Given,
    params(("id" = Uuid, Path, description = "its `anomaly_id`")),
    responses((status = 201, body = Feedback), (status = 404, body = Problem), (status = 422, body = Problem))
)]
pub async fn give(
    State(context): State<Context>,
    id: Result<Path<Uuid>, PathRejection>,
    given: Result<Json<Given>, JsonRejection>,
) -> Result<(StatusCode, Json<Feedback>), Problem> {
    let (Path(anomaly_id), Json(Given { verdict, by, note })) = (id?, given?);
    let by = by.trim().to_owned();
    if by.is_empty() || by.chars().count() > BY_MAX || note.chars().count() > NOTE_MAX {
        let detail = format!("`by` has 1 to {BY_MAX} characters, `note` at most {NOTE_MAX}");
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail, "shorten it, and say who judges"));
    }
    if context.store.get(anomaly_id).await?.is_none() {
        return Err(unknown(anomaly_id));
    }
    let at = EventTime(u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX));
    let feedback = Feedback { anomaly_id, verdict, by, note, at };
    context.store.feedback(&feedback).await?;
    Ok((StatusCode::CREATED, Json(feedback)))
}
