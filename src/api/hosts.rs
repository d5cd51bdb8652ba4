//! What is known of one address, in one answer: for an analyst or an agent who has to judge something that names it.
//!
//! The engines hold the traffic, the store what came of it. Flow records are folded into conversations when they are read, so
//! the counts are of conversations.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::Context;
use super::anomalies::Brief;
use super::explain::{Approach, PATIENCE};
use super::extract::{Nothing, Path, Query};
use super::problem::Problem;
use crate::anomaly::Status;
use crate::explainers::{Answers, Question};
use crate::flow::{Address, EventTime};
use crate::publish::{self, Silence};
use crate::statistical::explain::{self, Seen};
use crate::statistical::profile::{Opens, Profile, Sends, Served};

/// Open anomalies and signals that a profile shows, each.
const SHOWN: usize = 20;

/// Approaches that a profile shows.
const APPROACHES: usize = 10;

/// What is known of an address.
#[derive(Debug, Serialize, ToSchema)]
pub struct HostProfile<'a> {
    /// About whom.
    pub address: Address,
    /// Whether it is a host of ours; null where no engine of this task has seen it.
    pub ours: Option<bool>,
    /// Start of its first conversation.
    pub first_seen: Option<EventTime>,
    /// Start of its last conversation.
    pub last_seen: Option<EventTime>,
    /// What each shard of this task holds of it.
    pub shards: Vec<HostOfShard>,
    /// How close detectors came, the nearest ten; `GET /v1/explain` has more.
    pub approaches: Vec<Approach>,
    /// Open anomalies by or on it, the newest first.
    pub open_anomalies: Vec<Brief<'a>>,
    /// Whether there are more open anomalies than are shown.
    pub more_open_anomalies: bool,
    /// What was too uncertain to report, the likeliest first.
    pub signals: Vec<Silence>,
    /// Shards that were too busy to answer: what they hold is missing here.
    pub silent_shards: Vec<String>,
}

/// What one shard holds of an address.
#[derive(Debug, Serialize, ToSchema)]
pub struct HostOfShard {
    /// Which shard.
    pub shard: String,
    /// What it saw.
    #[serde(flatten)]
    pub seen: Seen,
    /// How many hosts of ours opened conversations with it; an estimate that is good to a tenth up to 100.
    pub clients: Option<u32>,
    /// What it opens towards outside: its habits; null where it is no host of ours, or has opened nothing there.
    pub opens: Option<Opens>,
    /// The services at which hosts of ours keep coming back to it, the one with the most clients first.
    pub serves: Vec<Served>,
    /// What it sends outside; null where it has sent nothing that counts.
    pub sends: Option<Sends>,
}

/// What is known of an address
///
/// Whether it is ours, what was seen of it, what it opens, serves and sends, how close detectors came, its open anomalies and
/// signals. The engines of this task answer; a shard that another task reads is known there.
#[utoipa::path(
    get, path = "/v1/hosts/{address}", operation_id = "get_host", tag = "anomalies",
    params(("address" = Address, Path, description = "an IPv4 or IPv6 address")),
    responses((status = 200, body = HostProfile<'static>, description = "what is known; nulls where nothing is"))
)]
pub async fn show(
    State(context): State<Context>,
    Path(address): Path<Address>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Response, Problem> {
    let Answers { answers, silent } =
        context.explainers.ask(|answer| Question::Profile(address, answer), PATIENCE).await;
    let open = publish::Query {
        address: Some(address),
        status: Some(Status::Open),
        limit: SHOWN,
        ..publish::Query::default()
    };
    let open = context.store.query(&open).await?;
    let mut signals = context.store.silences(Some(address), context.page_max).await?;
    signals.retain(Silence::is_signal);
    signals.sort_by(Silence::by_likelihood);
    signals.truncate(SHOWN);
    let (mut shards, mut approaches) = (Vec::new(), Vec::new());
    for (shard, Profile { explained, clients, opens, serves, sends }) in answers {
        approaches.extend(explained.approaches.into_iter().map(|explanation| Approach::of(&shard, explanation)));
        shards.extend(explained.seen.map(|seen| HostOfShard { shard, seen, clients, opens, serves, sends }));
    }
    approaches.sort_by(|a, b| explain::nearer(&a.explanation, &b.explanation));
    approaches.truncate(APPROACHES);
    let seen = || shards.iter().map(|of: &HostOfShard| of.seen);
    let profile = HostProfile {
        address,
        ours: (!shards.is_empty()).then(|| seen().any(|seen| seen.ours)),
        first_seen: seen().map(|seen| seen.first_seen).min(),
        last_seen: seen().map(|seen| seen.last_seen).max(),
        approaches,
        open_anomalies: open.anomalies.iter().zip(&open.revisions).map(|(one, at)| Brief::of(one, at)).collect(),
        more_open_anomalies: open.next.is_some(),
        signals,
        silent_shards: silent,
        shards,
    };
    Ok(Json(profile).into_response())
}
