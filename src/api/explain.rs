//! Why an address did or did not alert.
//!
//! What was told and what was not is in the store. What was seen of the address, and how close the detectors came, the
//! engines know ([`crate::explainers`]); asking them changes nothing.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::Context;
use super::extract::Query;
use super::problem::Problem;
use crate::anomaly::Anomaly;
use crate::explainers::{Answers, Question};
use crate::flow::Address;
use crate::publish::{self, Silence};
use crate::statistical::explain::{self, Seen};

/// Anomalies and silences that an explanation shows, each.
const SHOWN: usize = 20;

/// Approaches that an explanation shows.
const APPROACHES: usize = 50;

/// An engine answers between two batches, within milliseconds, unless it is held up.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

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
    /// What was seen of it, by each shard of this task that has seen it.
    pub seen: Vec<Sight>,
    /// What was told, newest first, with the numbers and every stage that it passed.
    pub told: Vec<Anomaly>,
    /// What was judged and not told, newest first, with the stage that refused and its reason.
    pub not_told: Vec<Silence>,
    /// How close the detectors came, nearest first; the closest few of each threat are kept of each host.
    pub approaches: Vec<Approach>,
    /// Shards that were too busy to answer: what they know is missing here.
    pub silent_shards: Vec<String>,
    /// What to make of it, in a sentence.
    pub note: String,
}

/// What one shard has seen of an address.
#[derive(Debug, Serialize, ToSchema)]
pub struct Sight {
    /// Which shard.
    pub shard: String,
    /// What it saw.
    #[serde(flatten)]
    pub seen: Seen,
}

/// How close a detector came to a finding.
#[derive(Debug, Serialize, ToSchema)]
pub struct Approach {
    /// Where it was seen.
    pub shard: String,
    /// Which conditions hold, in words.
    pub verdict: String,
    /// Each number beside its threshold, with the sign between them and whether it holds.
    pub conditions: Vec<String>,
    /// What the detector thought.
    #[serde(flatten)]
    pub explanation: explain::Explanation,
}

impl Approach {
    /// Of one shard's explanation.
    pub(super) fn of(shard: &str, explanation: explain::Explanation) -> Approach {
        Approach {
            shard: shard.to_owned(),
            verdict: explanation.verdict(),
            conditions: explanation.evidence.iter().map(explain::condition).collect(),
            explanation,
        }
    }
}

/// Why an address did or did not alert
///
/// What was seen of it, what was told, what was not and why, and how close each detector came. The past is known as far as
/// the engines remember it; a shard that another task reads is explained there.
#[utoipa::path(
    get, path = "/v1/explain", operation_id = "explain_address", tag = "anomalies", params(About),
    responses((status = 200, body = Explanation, description = "what is known of the address"))
)]
pub async fn explain(
    State(context): State<Context>,
    Query(About { address }): Query<About>,
) -> Result<Json<Explanation>, Problem> {
    let question = |answer| Question::Explain(address, answer);
    let Answers { answers, silent } = context.explainers.ask(question, PATIENCE).await;
    let query = publish::Query { address: Some(address), limit: SHOWN, ..publish::Query::default() };
    let told = context.store.query(&query).await?.anomalies;
    let not_told = context.store.silences(Some(address), SHOWN).await?;
    let (mut seen, mut approaches) = (Vec::new(), Vec::new());
    let asked = answers.len();
    for (shard, answer) in answers {
        seen.extend(answer.seen.map(|seen| Sight { shard: shard.clone(), seen }));
        approaches.extend(answer.approaches.into_iter().map(|explanation| Approach::of(&shard, explanation)));
    }
    // Each shard's are nearest first, and stay so beside those of others.
    approaches.sort_by(|a, b| explain::nearer(&a.explanation, &b.explanation));
    approaches.truncate(APPROACHES);
    let note = note(asked, &seen, &approaches);
    Ok(Json(Explanation { address, seen, told, not_told, approaches, silent_shards: silent, note }))
}

fn note(asked: usize, seen: &[Sight], approaches: &[Approach]) -> String {
    let note = match (asked, seen.is_empty(), approaches.is_empty()) {
        (0, ..) => "this task reads no shard, or all are busy: what was seen of the address is not known here",
        (_, true, true) => {
            "no record of what this task reads shows the address as a host of ours, or as a service that one of ours uses; of \
             outsiders who only ask nothing is kept but what was told"
        }
        (_, false, true) => "it was seen, and no detector had anything to judge about it",
        (_, _, false) => "the closest approaches of each detector; a shard that another task reads is explained there",
    };
    note.to_owned()
}
