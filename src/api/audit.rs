//! Who changed what: kept before each change, read by admins.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Context;
use super::anomalies::limited;
use super::auth::Principal;
use super::extract::Query;
use super::problem::Problem;
use crate::publish::audit::{Action, Entry};

/// Which entries are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Asked {
    /// At most so many (50 where it is left out, and never more than the service's page_max).
    pub limit: Option<usize>,
    /// Where the page before ended, as in its `next`.
    pub cursor: Option<String>,
}

/// A page of the audit trail.
#[derive(Debug, Serialize, ToSchema)]
pub struct Trail {
    /// The newest first.
    pub entries: Vec<Entry>,
    /// The path and query of the next page; null on the last.
    pub next: Option<String>,
}

/// Who changed what, and when, with how it was before and after
///
/// Verdicts and suppressions. An entry is kept before the change is made; where the change then failed it stands all the same.
/// It needs the role admin.
#[utoipa::path(
    get, path = "/v1/audit", operation_id = "list_audit_entries", tag = "administration", params(Asked),
    responses((status = 200, body = Trail, description = "a page of entries, the newest first"))
)]
pub async fn list(State(context): State<Context>, Query(asked): Query<Asked>) -> Result<Json<Trail>, Problem> {
    let limit = limited(asked.limit, context.page_max)?;
    let (entries, next) = context.store.trail(limit, asked.cursor.as_deref()).await?;
    let next = next.map(|next| {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &limit.to_string()).append_pair("cursor", &next);
        format!("/v1/audit?{}", query.finish())
    });
    Ok(Json(Trail { entries, next }))
}

/// Keeps an entry for a change that is about to be made.
pub(super) async fn note<B: Serialize, A: Serialize>(
    context: &Context,
    principal: &Principal,
    action: Action,
    subject: impl ToString,
    before: Option<&B>,
    after: Option<&A>,
) -> Result<(), Problem> {
    let now = Timestamp::now();
    let subject = subject.to_string();
    // The moment to the nanosecond, who and what: two entries that share all of it are one.
    let content = format!("{now:.9} {} {action:?} {subject}", principal.name);
    let entry = Entry {
        id: Uuid::new_v5(&Uuid::NAMESPACE_OID, content.as_bytes()),
        at: now,
        by: principal.name.clone(),
        action,
        subject,
        before: before.and_then(|before| serde_json::to_value(before).ok()),
        after: after.and_then(|after| serde_json::to_value(after).ok()),
    };
    Ok(context.store.note(&entry).await?)
}
