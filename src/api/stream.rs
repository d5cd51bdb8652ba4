//! Changes of anomalies as they happen: server-sent events over `GET /v1/anomalies/stream`.
//!
//! An event's `id` is a place among the changes, the same that `changed_since` takes. A client that comes again with it in
//! `Last-Event-ID` misses nothing; browsers do that by themselves. An anomaly that changes several times between two looks is
//! given once, as it is then.
//!
//! | event | data |
//! | --- | --- |
//! | `ready` | `{}`, at once: the stream has begun; its `id` is the place it began at |
//! | `anomaly` | an anomaly that has changed, as on a list |
//! | `end` | `{"reason": …}`: the service stops, or the store is away; come again with the last `id` |
//!
//! The store is asked, and not the pipeline: other tasks write to it as well. Streams with the same question share what the
//! store answers within `api.cache`. A stream that its client does not read is closed by the deadline of every answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll};
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body::Frame;
use serde::Deserialize;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use utoipa::IntoParams;

use super::Context;
use super::anomalies::{Brief, Listed, Place};
use super::extract::Query;
use super::problem::Problem;
use crate::publish::{self, Page};

/// How often the store is asked for changes.
const LOOK: Duration = Duration::from_secs(1);

/// Changes that are read at once.
const CHANGES: usize = 100;

/// Events that wait for a client; the store is not asked for more before they are taken.
const WAITING: usize = 32;

/// Which changes are wanted. All are optional.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Wanted {
    /// Only of this threat.
    pub threat: Option<crate::finding::Threat>,
    /// Only at least this bad.
    pub severity_min: Option<crate::finding::Severity>,
    /// Only of this status.
    pub status: Option<crate::anomaly::Status>,
    /// Only by or on this address, or an address of this block, as on the list.
    pub address: Option<Place>,
    /// Only with this actor.
    pub actor: Option<crate::flow::Address>,
    /// Only on this address, and not by it.
    pub target: Option<crate::flow::Address>,
    /// Only of this AWS account.
    pub account: Option<String>,
    /// Only where this interface (`eni-…`) saw it.
    pub interface: Option<String>,
    /// Begin after this place: the `changed_until` of a list, or `0` for every change that the store knows. Without it the stream
    /// begins now. `Last-Event-ID` goes before it.
    pub changed_since: Option<String>,
    /// Whether each anomaly is given in its short form.
    #[serde(default)]
    #[param(required = false, default = false)]
    pub brief: bool,
}

/// The name of the header with which a client comes again.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Changes of anomalies as server-sent events
///
/// `ready` at once, `anomaly` for each that is new, updated, closed, merged or given a verdict, `end` before the service stops.
/// The `id` of an event is a place among the changes: come again with it in `Last-Event-ID`, and no change is missed. A comment
/// keeps an idle stream open.
#[utoipa::path(
    get, path = "/v1/anomalies/stream", operation_id = "stream_anomalies", tag = "anomalies",
    params(
        Wanted,
        ("Last-Event-ID" = Option<String>, Header, description = "the `id` of the last event that was received")
    ),
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "events until either side ends it"),
        (status = 503, body = Problem, description = "`api.streams_max` streams are open already, or the store is away")
    )
)]
pub async fn follow(
    State(context): State<Context>,
    headers: HeaderMap,
    Query(wanted): Query<Wanted>,
) -> Result<Response, Problem> {
    let Ok(permit) = context.streams.clone().try_acquire_owned() else {
        let remedy = "close one, poll with changed_since, or raise api.streams_max";
        return Err(Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many streams are open", remedy));
    };
    let resumed = headers.get(LAST_EVENT_ID).map(|id| id.to_str().unwrap_or("not text").to_owned());
    let Wanted { threat, severity_min, status, address, actor, target, account, interface, changed_since, brief } =
        wanted;
    let mut question = publish::Query {
        threat,
        min_severity: severity_min,
        status,
        address: address.and_then(Place::address),
        block: address.and_then(Place::block),
        actor,
        target,
        account,
        interface,
        limit: CHANGES.min(context.page_max),
        changed_since: resumed.or(changed_since),
        ..publish::Query::default()
    };
    // What cannot be followed is refused before the stream begins.
    let first = match &question.changed_since {
        Some(_) => Some(context.store.query(&question).await?),
        None => {
            let now = publish::Query { limit: 1, ..publish::Query::default() };
            question.changed_since = Some(context.store.query(&now).await?.changed_until);
            None
        }
    };
    let (events, waiting) = mpsc::channel(WAITING);
    let keep_alive = (context.body_timeout / 3).clamp(Duration::from_millis(100), Duration::from_secs(15));
    let stream = Stream { context, question, brief, events, keep_alive, _permit: permit };
    tokio::spawn(stream.run(first.map(Arc::new)));
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx and its kin would hold events back.
        (HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    Ok((headers, Body::new(Events(waiting))).into_response())
}

/// One client's stream.
struct Stream {
    context: Context,
    question: publish::Query,
    brief: bool,
    events: mpsc::Sender<Bytes>,
    keep_alive: Duration,
    _permit: OwnedSemaphorePermit,
}

/// The client is gone.
struct Gone;

impl Stream {
    async fn run(mut self, first: Option<Arc<Page>>) {
        // An error means that the client is gone.
        let _ = self.follow(first).await;
    }

    async fn follow(&mut self, first: Option<Arc<Page>>) -> Result<(), Gone> {
        let place = self.question.changed_since.clone().unwrap_or_default();
        self.send(event(&place, "ready", "{}")).await?;
        if let Some(page) = first {
            self.give(&page).await?;
        }
        let mut stopping = self.context.stopping.clone();
        let mut sent_at = Instant::now();
        loop {
            let stops = tokio::select! {
                () = tokio::time::sleep(LOOK) => false,
                () = self.events.closed() => return Err(Gone),
                _ = stopping.wait_for(|&stop| stop) => true,
            };
            // What changed until the service stops is given before the end.
            match self.changes(stops).await {
                Ok(0) => {}
                Ok(_) => sent_at = Instant::now(),
                Err(Some(reason)) => return self.end(reason).await,
                Err(None) => return Err(Gone),
            }
            if stops {
                return self.end("the service stops").await;
            }
            if sent_at.elapsed() >= self.keep_alive {
                self.send(Bytes::from_static(b":\n\n")).await?;
                sent_at = Instant::now();
            }
        }
    }

    /// Gives all that has changed, at the end also what is newer than the cache allows; how many, or why that is not known, or
    /// `None` where the client is gone.
    async fn changes(&mut self, to_the_end: bool) -> Result<usize, Option<&'static str>> {
        let mut given = 0;
        loop {
            let (asked, now) = (format!("{:?}", self.question), Instant::now());
            let page = match self.context.cache.get(&asked, now) {
                Some(page) if !to_the_end => page,
                _ => {
                    let read = self.context.store.query(&self.question).await;
                    let page = Arc::new(read.map_err(|error| {
                        tracing::warn!(%error, "a stream of changes ends");
                        Some("the store does not answer")
                    })?);
                    self.context.cache.put(asked, now, page.clone());
                    page
                }
            };
            given += page.anomalies.len();
            self.give(&page).await.map_err(|Gone| None)?;
            if page.next.is_none() {
                return Ok(given);
            }
        }
    }

    /// Gives a page, and stands behind it afterwards.
    async fn give(&mut self, page: &Page) -> Result<(), Gone> {
        for (anomaly, revision) in page.anomalies.iter().zip(&page.revisions) {
            let listed = match self.brief {
                true => Listed::Brief(Brief::of(anomaly, revision)),
                false => Listed::Whole(anomaly),
            };
            let data = serde_json::to_string(&listed).expect("an anomaly can always be written");
            self.send(event(revision, "anomaly", &data)).await?;
        }
        self.question.changed_since = Some(page.changed_until.clone());
        Ok(())
    }

    async fn end(&self, reason: &str) -> Result<(), Gone> {
        let place = self.question.changed_since.as_deref().unwrap_or_default();
        self.send(event(place, "end", &json!({"reason": reason}).to_string())).await
    }

    async fn send(&self, event: Bytes) -> Result<(), Gone> {
        self.events.send(event).await.map_err(|_| Gone)
    }
}

/// One event; JSON as it is written here has no line breaks.
fn event(id: &str, name: &str, data: &str) -> Bytes {
    format!("id: {id}\nevent: {name}\ndata: {data}\n\n").into()
}

/// The body of a stream.
struct Events(mpsc::Receiver<Bytes>);

impl http_body::Body for Events {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.poll_recv(context).map(|event| event.map(|event| Ok(Frame::data(event))))
    }
}
