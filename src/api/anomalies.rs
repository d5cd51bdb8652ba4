//! What was reported, and what was not.
//!
//! A program that polls asks once without `changed_since`, and from then on with the `changed_until` of the answer before. A list
//! that is read page by page keeps the `changed_until` of its first page, so that what changes meanwhile is given afterwards.
//! Every answer about anomalies carries an `ETag`, made of revisions, for `If-None-Match`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::Context;
use super::export::{self, Format};
use super::extract::{Path, Query};
use super::problem::Problem;
use crate::anomaly::{Anomaly, Status};
use crate::finding::{Actor, Severity, Threat};
use crate::flow::{Address, EventTime};
use crate::publish::{self, Page, Silence};

/// Which anomalies are wanted. All are optional; without any, the newest come first.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Filter {
    /// Only of this threat.
    pub threat: Option<Threat>,
    /// Only at least this bad. `severity` is an older name of it.
    #[serde(alias = "severity")]
    pub severity_min: Option<Severity>,
    /// Only of this status.
    pub status: Option<Status>,
    /// Only by or on this address, or an address of this block: of 8, 16 or 24 bits (IPv4), or 32, 48 or 64 (IPv6).
    pub address: Option<Place>,
    /// Only with this actor.
    pub actor: Option<Address>,
    /// Only on this address, and not by it.
    pub target: Option<Address>,
    /// Only of this AWS account.
    pub account: Option<String>,
    /// Only where this interface (`eni-…`) saw it.
    pub interface: Option<String>,
    /// Only last seen at or after this moment (RFC 3339).
    pub since: Option<EventTime>,
    /// Only first seen before this moment (RFC 3339).
    pub until: Option<EventTime>,
    /// At most so many (50 unless told, and never more than the service's page_max).
    pub limit: Option<usize>,
    /// Where the page before ended, as in its `next`.
    pub cursor: Option<String>,
    /// Only those that have changed since, the oldest change first: new, updated, closed, merged, or given a verdict. It is the
    /// `changed_until` of an earlier answer as it is, or `0` for every change that the store knows. It goes with every filter, and
    /// not with `cursor`: `next` leads on while there is more.
    pub changed_since: Option<String>,
    /// Whether each anomaly is shown in its short form.
    #[serde(default)]
    #[param(required = false, default = false)]
    pub brief: bool,
}

/// An address, or a block of a length that anomalies can be found by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub enum Place {
    /// One address.
    Address(Address),
    /// All addresses of a block.
    Block(IpNet),
}

impl Place {
    pub(super) fn address(self) -> Option<Address> {
        if let Place::Address(address) = self { Some(address) } else { None }
    }

    pub(super) fn block(self) -> Option<IpNet> {
        if let Place::Block(block) = self { Some(block) } else { None }
    }
}

impl TryFrom<String> for Place {
    type Error = String;

    fn try_from(text: String) -> Result<Place, String> {
        let address =
            |text: &str| text.parse().map(Place::Address).map_err(|_| format!("`{text}` is not an IP address"));
        if !text.contains('/') {
            return address(&text);
        }
        let block: IpNet = text.parse().map_err(|_| format!("`{text}` is no CIDR block such as 10.0.0.0/8"))?;
        let lengths = publish::block_lengths(block.network().is_ipv4());
        if block.prefix_len() == block.max_prefix_len() {
            return address(&block.addr().to_string());
        }
        if !lengths.contains(&block.prefix_len()) {
            let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
            return Err(format!("`{text}`: anomalies are found by blocks of {} bits", lengths.join(", ")));
        }
        Ok(Place::Block(block.trunc()))
    }
}

/// A page when the asker names no size.
const LIMIT: usize = 50;

/// A page of anomalies.
#[derive(Debug, Serialize, ToSchema)]
pub struct Anomalies<'a> {
    /// Newest detection first, ties by id; with `changed_since` the oldest change first.
    pub anomalies: Vec<Listed<'a>>,
    /// The path and query of the next page; null on the last.
    pub next: Option<String>,
    /// What to ask for next as `changed_since`, an opaque text. After the last page no change is missed by it.
    pub changed_until: String,
}

/// An anomaly on a list: whole, or with `brief=true` in its short form.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub enum Listed<'a> {
    /// The whole.
    #[schema(value_type = Anomaly)]
    Whole(&'a Anomaly),
    /// The short form.
    Brief(Brief<'a>),
}

/// The short form of an anomaly; `GET /v1/anomalies/{id}` has the rest.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BriefAnomaly)]
pub struct Brief<'a> {
    /// One id for the life of the episode.
    pub anomaly_id: Uuid,
    /// What kind of trouble.
    pub threat: Threat,
    /// How bad.
    pub severity: Severity,
    /// Whether it goes on.
    pub status: Status,
    /// Calibrated probability that it is true, 0 to 1.
    pub confidence: f64,
    /// Who did it; `many` for a distributed flood or scan.
    pub actor: Actor,
    /// First moment of the episode.
    pub first_seen: EventTime,
    /// Last moment of the episode so far.
    pub last_seen: EventTime,
    /// One sentence for a person.
    pub summary: &'a str,
    /// How many distinct targets in all.
    pub target_count: u32,
    /// The revision: an opaque text, and another after every change.
    pub changed: &'a str,
}

impl<'a> Brief<'a> {
    pub(super) fn of(anomaly: &'a Anomaly, changed: &'a str) -> Brief<'a> {
        Brief {
            anomaly_id: anomaly.anomaly_id,
            threat: anomaly.threat,
            severity: anomaly.severity,
            status: anomaly.status,
            confidence: anomaly.confidence,
            actor: anomaly.actor,
            first_seen: anomaly.first_seen,
            last_seen: anomaly.last_seen,
            summary: &anomaly.summary,
            target_count: anomaly.target_count,
            changed,
        }
    }
}

/// The anomalies, newest first, or what has changed since an earlier answer
#[utoipa::path(
    get, path = "/v1/anomalies", operation_id = "list_anomalies", tag = "anomalies",
    params(Filter, ("If-None-Match" = Option<String>, Header, description = "an `ETag` of an earlier answer to this question")),
    responses(
        (status = 200, body = Anomalies, description = "a page of anomalies", headers(("ETag" = String, description = "weak"))),
        (status = 304, description = "the page has not changed since `If-None-Match`")
    )
)]
pub async fn list(
    State(context): State<Context>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    Query(filter): Query<Filter>,
) -> Result<Response, Problem> {
    if filter.cursor.is_some() && filter.changed_since.is_some() {
        let detail = "cursor and changed_since do not go together";
        let remedy = "follow `next`, which leads on by changed_since alone";
        return Err(Problem::new(StatusCode::BAD_REQUEST, detail, remedy).of_field("cursor"));
    }
    // The cursor of a list carries what its first page said of the changes.
    let (first_until, cursor) = match filter.cursor {
        Some(cursor) => match cursor.split_once(UNTIL) {
            Some((until, cursor)) => (Some(until.to_owned()), Some(cursor.to_owned())),
            None => (None, Some(cursor)),
        },
        None => (None, None),
    };
    let query = publish::Query {
        threat: filter.threat,
        min_severity: filter.severity_min,
        status: filter.status,
        address: filter.address.and_then(Place::address),
        block: filter.address.and_then(Place::block),
        actor: filter.actor,
        target: filter.target,
        account: filter.account,
        interface: filter.interface,
        since: filter.since,
        until: filter.until,
        limit: limited(filter.limit, context.page_max)?,
        cursor,
        changed_since: filter.changed_since,
    };
    let (question, asked) = (format!("{query:?}"), Instant::now());
    let page = match context.cache.get(&question, asked) {
        Some(page) => page,
        None => {
            let page = Arc::new(context.store.query(&query).await?);
            context.cache.put(question.clone(), asked, page.clone());
            page
        }
    };
    let etag = etag_of_page(&question, filter.brief, &page);
    if is_known(&headers, &etag) {
        return Ok(not_modified(etag));
    }
    let changed_until = first_until.unwrap_or_else(|| page.changed_until.clone());
    let next = page.next.as_ref().map(|next| {
        let raw = raw.as_deref().unwrap_or_default();
        match query.changed_since {
            Some(_) => next_page(raw, "changed_since", next),
            None => next_page(raw, "cursor", &format!("{changed_until}{UNTIL}{next}")),
        }
    });
    let link = next.as_ref().map(|next| [(header::LINK, format!("<{next}>; rel=\"next\""))]);
    // A large page takes milliseconds to write, which others should not wait for.
    let brief = filter.brief;
    let write = move || {
        let listed = page.anomalies.iter().zip(&page.revisions).map(|(anomaly, revision)| match brief {
            true => Listed::Brief(Brief::of(anomaly, revision)),
            false => Listed::Whole(anomaly),
        });
        serde_json::to_vec(&Anomalies { anomalies: listed.collect(), next, changed_until })
    };
    let written = tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string());
    let body = written.and_then(|written| written.map_err(|error| error.to_string())).map_err(|cause| {
        let context = "write a page of anomalies".to_owned();
        Problem::from(publish::PublishError::Retry { context, cause })
    })?;
    Ok((link, [(header::CONTENT_TYPE, "application/json".to_owned()), (header::ETAG, etag)], body).into_response())
}

/// What stands in a cursor between what the first page said of the changes and the store's own cursor.
const UNTIL: char = '~';

/// A weak tag of a page: another for every other question, and for every change of what stands on it.
fn etag_of_page(question: &str, brief: bool, page: &Page) -> String {
    let mut digest = Sha256::new();
    digest.update(format!("{question} {brief} {:?}", page.next));
    for (anomaly, revision) in page.anomalies.iter().zip(&page.revisions) {
        digest.update(format!(" {} {revision} {}", anomaly.anomaly_id, anomaly.updates));
    }
    weak(&digest.finalize())
}

/// A weak tag of one anomaly.
fn etag_of(anomaly: &Anomaly, revision: &str, format: Format) -> String {
    weak(&Sha256::digest(format!("{} {revision} {} {format:?}", anomaly.anomaly_id, anomaly.updates)))
}

fn weak(digest: &[u8]) -> String {
    let hex: String = digest.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    format!("W/\"{hex}\"")
}

/// Whether a request already has what is tagged so (RFC 9110, 13.1.2: tags are compared weakly).
fn is_known(headers: &HeaderMap, etag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    let known = headers.get_all(header::IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
    known.flat_map(|value| value.split(',')).any(|tag| tag.trim() == "*" || opaque(tag) == opaque(etag))
}

fn not_modified(etag: String) -> Response {
    (StatusCode::NOT_MODIFIED, [(header::ETAG, etag)]).into_response()
}

/// The query of this page with another value of what leads on.
fn next_page(raw: &str, name: &str, value: &str) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(form_urlencoded::parse(raw.as_bytes()).filter(|(other, _)| other != name));
    query.append_pair(name, value);
    format!("/v1/anomalies?{}", query.finish())
}

pub(super) fn limited(asked: Option<usize>, most: usize) -> Result<usize, Problem> {
    match asked {
        Some(0) => Err(Problem::new(StatusCode::BAD_REQUEST, "limit is 0", "ask for at least one").of_field("limit")),
        Some(limit) => Ok(limit.min(most)),
        None => Ok(LIMIT.min(most)),
    }
}

/// In which form an anomaly is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Form {
    /// `ocsf` for a Detection Finding of OCSF 1.5, `asff` for a finding of AWS Security Hub; its own form where it is left out.
    #[serde(default)]
    #[param(required = false)]
    pub format: Format,
    /// The region of Security Hub, for `asff`; that of the service where it is left out.
    pub region: Option<String>,
}

/// One anomaly, also in the forms that other systems take
#[utoipa::path(
    get, path = "/v1/anomalies/{id}", operation_id = "get_anomaly", tag = "anomalies",
    params(
        ("id" = Uuid, Path, description = "its `anomaly_id`"),
        Form,
        ("If-None-Match" = Option<String>, Header, description = "an `ETag` of an earlier answer about it")
    ),
    responses(
        (
            status = 200, body = Anomaly, description = "the anomaly as it was last recorded",
            headers(("ETag" = String, description = "weak"))
        ),
        (status = 304, description = "it has not changed since `If-None-Match`"),
        (status = 404, body = Problem, description = "there is no such anomaly")
    )
)]
pub async fn one(
    State(context): State<Context>,
    Path(id): Path<Uuid>,
    headers: HeaderMap,
    Query(Form { format, region }): Query<Form>,
) -> Result<Response, Problem> {
    let (anomaly, revision) = context.store.revised(id).await?.ok_or_else(|| unknown(id))?;
    let etag = etag_of(&anomaly, &revision, format);
    if is_known(&headers, &etag) {
        return Ok(not_modified(etag));
    }
    let tag = [(header::ETAG, etag)];
    Ok(match format {
        Format::Flowvigil => (tag, Json(anomaly)).into_response(),
        Format::Ocsf => (tag, Json(export::ocsf(&anomaly))).into_response(),
        Format::Asff => {
            let region = region.as_deref().or(context.region.as_deref());
            (tag, Json(export::asff(&anomaly, region)?)).into_response()
        }
    })
}

/// There is no such anomaly.
pub(super) fn unknown(id: Uuid) -> Problem {
    Problem::new(
        StatusCode::NOT_FOUND,
        format!("there is no anomaly {id}"),
        "GET /v1/anomalies lists those there are; GET /v1/rejections what was not confirmed, and why",
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

/// What validation did not confirm, and why.
#[derive(Debug, Serialize, ToSchema)]
pub struct Rejections {
    /// Newest first.
    pub rejections: Vec<Silence>,
}

/// The same under its older name.
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

/// Why not: incidents that validation did not confirm, with the stage that refused and its reason
#[utoipa::path(
    get, path = "/v1/rejections", operation_id = "list_rejections", tag = "anomalies", params(About),
    responses((status = 200, body = Rejections, description = "incidents that were not confirmed, newest first"))
)]
pub async fn rejections(
    State(context): State<Context>,
    Query(about): Query<About>,
) -> Result<Json<Rejections>, Problem> {
    let limit = limited(about.limit, context.page_max)?;
    let rejections = context.store.silences(about.address, limit).await?;
    Ok(Json(Rejections { rejections }))
}

/// `GET /v1/rejections` under its older name
#[utoipa::path(
    get, path = "/v1/silences", operation_id = "list_silences", tag = "anomalies", params(About),
    responses((status = 200, body = Silences, description = "incidents that were not reported, newest first"))
)]
pub async fn silences(State(context): State<Context>, Query(about): Query<About>) -> Result<Json<Silences>, Problem> {
    let limit = limited(about.limit, context.page_max)?;
    let silences = context.store.silences(about.address, limit).await?;
    Ok(Json(Silences { silences }))
}

/// What was too uncertain to tell, the likeliest first: worth a look beside something else of the same host
#[utoipa::path(
    get, path = "/v1/signals", operation_id = "list_signals", tag = "anomalies", params(About),
    responses((status = 200, body = Signals, description = "uncertain incidents, the likeliest first"))
)]
pub async fn signals(State(context): State<Context>, Query(about): Query<About>) -> Result<Json<Signals>, Problem> {
    let limit = limited(about.limit, context.page_max)?;
    let mut signals = context.store.silences(about.address, context.page_max).await?;
    signals.retain(Silence::is_signal);
    signals.sort_by(Silence::by_likelihood);
    signals.truncate(limit);
    Ok(Json(Signals { signals }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_page_keeps_the_filters_and_replaces_the_cursor() {
        let next = |raw: &str, value: &str| next_page(raw, "cursor", value);
        assert_eq!(next("threat=tor&cursor=old&limit=2", "a b"), "/v1/anomalies?threat=tor&limit=2&cursor=a+b");
        assert_eq!(next("", "x"), "/v1/anomalies?cursor=x");
        let changes = next_page("changed_since=4&brief=true", "changed_since", "9");
        assert_eq!(changes, "/v1/anomalies?brief=true&changed_since=9");
    }

    #[test]
    fn a_tag_is_compared_weakly_and_among_others() {
        let known = |value: &'static str| {
            let headers = HeaderMap::from_iter([(header::IF_NONE_MATCH, value.parse().unwrap())]);
            is_known(&headers, "W/\"a\"")
        };
        assert!(known("W/\"a\"") && known("\"a\"") && known("\"b\", W/\"a\"") && known("*"));
        assert!(!known("W/\"b\"") && !known("a") && !known(""));
    }
}
