//! Why an address did or did not alert.
//!
//! What was told and what was not is in the store. How close the detectors came is known only while somebody looks: the
//! first question about an address makes every shard of this task keep, from then on, the closest approach of each
//! detector to it.

use axum::Json;
use axum::extract::State;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Context;
use super::extract::Query;
use super::problem::Problem;
use crate::anomaly::Anomaly;
use crate::flow::Address;
use crate::health::Approach;
use crate::publish::{self, Silence};

/// Anomalies and silences that an explanation shows, each.
const SHOWN: usize = 20;

/// About whom.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct About {
    /// The address.
    pub address: Address,
}

/// Why, or why not.
#[derive(Debug, Serialize, ToSchema)]
pub struct Explanation {
    /// About whom.
    pub address: Address,
    /// What was told, newest first, with the numbers and every stage that it passed.
    pub told: Vec<Anomaly>,
    /// What was judged and not told, newest first, with the stage that refused and its reason.
    pub not_told: Vec<Silence>,
    /// Since when the detectors of this task keep how close they came.
    #[schema(value_type = String)]
    pub watched_since: Timestamp,
    /// The closest approach of each detector since then, each number beside its threshold.
    #[schema(value_type = Vec<Object>)]
    pub approaches: Vec<Approach>,
    /// What to make of an empty list.
    pub note: String,
}

/// Why an address did or did not alert
///
/// The first question about an address begins the watch; ask again when some windows have closed. A task watches a few
/// addresses at a time and forgets the oldest.
#[utoipa::path(
    get, path = "/v1/explain", tag = "anomalies", params(About),
    responses((status = 200, body = Explanation), (status = 400, body = Problem))
)]
pub async fn explain(
    State(context): State<Context>,
    Query(About { address }): Query<About>,
) -> Result<Json<Explanation>, Problem> {
    let (watched_since, approaches) = context.health.watch(address);
    let query = publish::Query { address: Some(address), limit: SHOWN, ..publish::Query::default() };
    let told = context.store.query(&query).await?.anomalies;
    let not_told = context.store.silences(Some(address), SHOWN).await?;
    let note = match approaches.is_empty() {
        true => "no detector has judged it since the watch began: ask again when windows have closed",
        false => "the closest approach of each detector; a shard that another task reads is explained there",
    };
    let note = note.to_owned();
    Ok(Json(Explanation { address, told, not_told, watched_since, approaches, note }))
}
