//! What was told, and what was not.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Context;
use super::extract::{Nothing, Path, Query};
use super::problem::Problem;
use crate::anomaly::{Anomaly, Status};
use crate::finding::{Severity, Threat};
use crate::flow::{Address, EventTime};
use crate::publish::{self, Silence};

/// Which anomalies are wanted. All are optional; without any, the newest come first.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only of this threat.
    pub threat: Option<Threat>,
    /// Only at least this bad.
    pub severity: Option<Severity>,
    /// Only of this status.
    pub status: Option<Status>,
    /// Only by or on this address.
    pub address: Option<Address>,
    /// Only with this actor.
    pub actor: Option<Address>,
    /// Only last seen at or after this moment (RFC 3339).
    pub since: Option<EventTime>,
    /// Only first seen before this moment (RFC 3339).
    pub until: Option<EventTime>,
    /// At most so many (50 unless told, and never more than the service's page_max).
    pub limit: Option<usize>,
    /// Where the page before ended, as in its `next`.
    pub cursor: Option<String>,
}

/// A page when the asker names no size.
const LIMIT: usize = 50;

/// A page of anomalies.
#[derive(Debug, Serialize, ToSchema)]
pub struct Anomalies {
    /// Newest detection first; ties by id.
    pub anomalies: Vec<Anomaly>,
    /// The path and query of the next page; null on the last.
    pub next: Option<String>,
}

/// The anomalies, newest first
#[utoipa::path(
    get, path = "/v1/anomalies", tag = "anomalies", params(Filter),
    responses((status = 200, body = Anomalies), (status = 400, body = Problem), (status = 401, body = Problem), (status = 503, body = Problem))
)]
pub async fn list(
    State(context): State<Context>,
    RawQuery(raw): RawQuery,
    Query(filter): Query<Filter>,
) -> Result<Response, Problem> {
    let query = publish::Query {
        threat: filter.threat,
        min_severity: filter.severity,
        status: filter.status,
        address: filter.address,
        actor: filter.actor,
        since: filter.since,
        until: filter.until,
        limit: limited(filter.limit, context.page_max)?,
        cursor: filter.cursor,
    };
    let (question, asked) = (format!("{query:?}"), Instant::now());
    let page = match context.cache.get(&question, asked) {
        Some(page) => page,
        None => {
            let page = Arc::new(context.store.query(&query).await?);
            context.cache.put(question, asked, page.clone());
            page
        }
    };
    let next = page.next.as_ref().map(|cursor| next_page(raw.as_deref().unwrap_or_default(), cursor));
    let link = next.as_ref().map(|next| [(header::LINK, format!("<{next}>; rel=\"next\""))]);
    // A large page takes milliseconds to write, which others should not wait for.
    let write = move || serde_json::to_vec(&Shown { anomalies: &page.anomalies, next });
    let written = tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string());
    let body = written.and_then(|written| written.map_err(|error| error.to_string())).map_err(|cause| {
        let context = "write a page of anomalies".to_owned();
        Problem::from(publish::PublishError::Retry { context, cause })
    })?;
    Ok((link, [(header::CONTENT_TYPE, "application/json")], body).into_response())
}

/// [`Anomalies`] that are somebody else's.
#[derive(Serialize)]
struct Shown<'a> {
    anomalies: &'a [Anomaly],
    next: Option<String>,
}

/// The query of this page with the cursor of the next.
fn next_page(raw: &str, cursor: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(form_urlencoded::parse(raw.as_bytes()).filter(|(name, _)| name != "cursor"));
    query.append_pair("cursor", cursor);
    format!("/v1/anomalies?{}", query.finish())
}

fn limited(asked: Option<usize>, most: usize) -> Result<usize, Problem> {
    match asked {
        Some(0) => Err(Problem::new(StatusCode::BAD_REQUEST, "limit is 0", "ask for at least one").of_field("limit")),
        Some(limit) => Ok(limit.min(most)),
        None => Ok(LIMIT.min(most)),
    }
}

/// One anomaly
#[utoipa::path(
    get, path = "/v1/anomalies/{id}", tag = "anomalies", params(("id" = Uuid, Path, description = "its `anomaly_id`")),
    responses((status = 200, body = Anomaly), (status = 400, body = Problem), (status = 404, body = Problem))
)]
pub async fn one(
    State(context): State<Context>,
    Path(id): Path<Uuid>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Anomaly>, Problem> {
    context.store.get(id).await?.map(Json).ok_or_else(|| unknown(id))
}

/// There is no such anomaly.
pub(super) fn unknown(id: Uuid) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no anomaly {id}"),
        "GET /v1/anomalies lists those there are; GET /v1/silences what was not told, and why",
    )
}

/// About whom.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct About {
    /// Only about this address.
    pub address: Option<Address>,
    /// At most so many (50 unless told).
    pub limit: Option<usize>,
}

/// What was not told, and why.
#[derive(Debug, Serialize, ToSchema)]
pub struct Silences {
    /// Newest first.
    pub silences: Vec<Silence>,
}

/// What was too uncertain to tell.
#[derive(Debug, Serialize, ToSchema)]
pub struct Signals {
    /// The likeliest first, of the newest that were not told.
    pub signals: Vec<Silence>,
}

/// Why not: incidents that were judged and not told, with the stage that refused and its reason
#[utoipa::path(
    get, path = "/v1/silences", tag = "anomalies", params(About),
    responses((status = 200, body = Silences), (status = 400, body = Problem))
)]
pub async fn silences(State(context): State<Context>, Query(about): Query<About>) -> Result<Json<Silences>, Problem> {
    let limit = limited(about.limit, context.page_max)?;
    let silences = context.store.silences(about.address, limit).await?;
    Ok(Json(Silences { silences }))
}

/// What was too uncertain to tell, the likeliest first: worth a look beside something else of the same host
#[utoipa::path(
    get, path = "/v1/signals", tag = "anomalies", params(About),
    responses((status = 200, body = Signals), (status = 400, body = Problem))
)]
pub async fn signals(State(context): State<Context>, Query(about): Query<About>) -> Result<Json<Signals>, Problem> {
    let limit = limited(about.limit, context.page_max)?;
    let mut signals = context.store.silences(about.address, context.page_max).await?;
    signals.retain(Silence::is_signal);
    signals.sort_by(|a, b| b.confidence.total_cmp(&a.confidence).then_with(|| b.last_seen.cmp(&a.last_seen)));
    signals.truncate(limit);
    Ok(Json(Signals { signals }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_keeps_the_filters_and_replaces_the_cursor() {
        assert_eq!(next_page("threat=tor&cursor=old&limit=2", "a b"), "/v1/anomalies?threat=tor&limit=2&cursor=a+b");
        assert_eq!(next_page("", "x"), "/v1/anomalies?cursor=x");
    }
}
