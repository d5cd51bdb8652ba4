//! What an analyst says of an anomaly.

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json as Answer};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;
use uuid::Uuid;

use super::Context;
use super::anomalies::unknown;
use super::audit;
use super::auth::Principal;
use super::extract::{Json, Nothing, Path, Query};
use super::problem::Problem;
use crate::flow::EventTime;
use crate::publish::audit::Action;
use crate::publish::{Feedback, Verdict};

/// The longest note that is kept, characters.
const NOTE_MAX: usize = 1_000;

/// The longest name that is kept, characters.
const BY_MAX: usize = 200;

/// A verdict on an anomaly.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Given {
    /// Whether it was true.
    pub verdict: Verdict,
    /// What whoever says so calls themselves. It is kept and shown; whose verdict it is, is said by how they came in.
    pub by: Option<String>,
    /// In their words.
    #[serde(default)]
    pub note: String,
}

/// Says whether an anomaly was true
///
/// One verdict of whoever was authenticated on an anomaly counts, the latest: other names make no other people. An anomaly
/// counts once for its threat, whoever and however many have spoken on it.
#[utoipa::path(
    post, path = "/v1/anomalies/{id}/feedback", operation_id = "give_feedback", tag = "feedback", request_body = Given,
    params(("id" = Uuid, Path, description = "its `anomaly_id`")),
    responses(
        (status = 201, body = Feedback, description = "as it is kept"),
        (status = 400, body = Problem, description = "it cannot be read, or has a field that nobody knows"),
        (status = 404, body = Problem, description = "there is no such anomaly"),
        (status = 422, body = Problem, description = "it can be read and is not right")
    )
)]
pub async fn give(
    State(context): State<Context>,
    Extension(principal): Extension<Principal>,
    Path(anomaly_id): Path<Uuid>,
    Query(Nothing {}): Query<Nothing>,
    Json(Given { verdict, by, note }): Json<Given>,
) -> Result<(StatusCode, Answer<Feedback>), Problem> {
    let named = by.is_some();
    let name = by.unwrap_or_default().trim().to_owned();
    if named && name.is_empty() || name.chars().count() > BY_MAX || note.chars().count() > NOTE_MAX {
        let detail = format!("`by` has 1 to {BY_MAX} characters where it is given, `note` at most {NOTE_MAX}");
        let field = if note.chars().count() > NOTE_MAX { "note" } else { "by" };
        return Err(
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail, "shorten it, or leave it out").of_field(field)
        );
    }
    if context.store.get(anomaly_id).await?.is_none() {
        return Err(unknown(anomaly_id));
    }
    let at = EventTime(u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX));
    let feedback = Feedback { anomaly_id, verdict, by: principal.name.clone(), name, note, at };
    let before = context.store.verdict(anomaly_id, &principal.name).await?;
    let action = Action::GiveFeedback;
    audit::note(&context, &principal, action, anomaly_id, before.as_ref(), Some(&feedback)).await?;
    context.store.feedback(&feedback).await?;
    tracing::info!(by = feedback.by, anomaly = %anomaly_id, verdict = ?verdict, "a verdict was given");
    Ok((StatusCode::CREATED, Answer(feedback)))
}
