//! How much of the log could be judged: what came too late, where the log itself has gaps, and what was read from where.

use std::cmp::Reverse;

use axum::Json;
use axum::extract::State;
use serde::Serialize;
use utoipa::ToSchema;

use super::Context;
use super::explain::PATIENCE;
use super::extract::{Nothing, Query};
use super::problem::Problem;
use crate::explainers::{Answers, Question};
use crate::flow::EventTime;
use crate::health::Shard;

/// Interfaces with gaps that are named, those with the most lost first.
const NAMED: usize = 100;

/// How much of the log could be judged.
#[derive(Debug, Serialize, ToSchema)]
pub struct Coverage {
    /// By the shards of this task whose engines answered.
    pub shards: Vec<CoverageOfShard>,
    /// Interfaces whose logs have gaps since the process began: the hundred with the most seconds of SKIPDATA, then of NODATA.
    pub gaps: Vec<InterfaceGap>,
    /// Interfaces with gaps in all.
    pub interfaces_with_gaps: usize,
    /// The sources, by shard: state, newest event time, checkpoint, and what could not be read.
    pub sources: std::collections::BTreeMap<String, Shard>,
    /// Shards that were too busy to answer: what they hold is missing here.
    pub silent_shards: Vec<String>,
}

/// How much of one shard could be judged; the counts are kept over restarts.
#[derive(Debug, Serialize, ToSchema)]
pub struct CoverageOfShard {
    /// Which shard.
    pub shard: String,
    /// Records read.
    pub records: u64,
    /// Records that came after their window had closed, and were left out.
    pub late: u64,
    /// Their share of all, 0 to 1.
    pub late_share: f64,
    /// Records dated more than an hour ahead of all others, and left out.
    pub future: u64,
    /// Records that were there already, word for word.
    pub repeated: u64,
    /// Records that opened yet another conversation of an address that crowded its window, when room was short.
    pub left_out: u64,
    /// Conversations judged.
    pub conversations: u64,
    /// Conversations of which neither end is ours: no host is watched in these.
    pub strangers: u64,
    /// Interfaces that have logged anything.
    pub interfaces: u32,
    /// SKIPDATA over all interfaces, s: records were lost.
    pub skipped_seconds: u64,
    /// NODATA over all interfaces, s: there was no traffic.
    pub no_data_seconds: u64,
    /// First event time; null before the first records that are believed.
    pub first: Option<EventTime>,
    /// Last event time; null before the first records that are believed.
    pub last: Option<EventTime>,
}

/// Where the log of an interface says nothing.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct InterfaceGap {
    /// `eni-…`, or empty where it has no name.
    pub interface: String,
    /// The AWS account, or empty.
    pub account: String,
    /// SKIPDATA, s: records were lost.
    pub skipped_seconds: u64,
    /// NODATA, s: there was no traffic.
    pub no_data_seconds: u64,
    /// The end of the latest gap.
    pub last: EventTime,
}

/// How much of the log could be judged: late records, gaps of interfaces, sources
#[utoipa::path(
    get, path = "/v1/coverage", operation_id = "get_coverage", tag = "health",
    responses((status = 200, body = Coverage, description = "by the shards of this task"))
)]
pub async fn show(
    State(context): State<Context>,
    Query(Nothing {}): Query<Nothing>,
) -> Result<Json<Coverage>, Problem> {
    let Answers { answers, silent } = context.explainers.ask(Question::Coverage, PATIENCE).await;
    let (mut shards, mut gaps) = (Vec::new(), Vec::new());
    for (shard, coverage) in answers {
        let counts = coverage.statistics;
        let any = counts.records > 0;
        // Records that nothing has confirmed yet have moved no time.
        let dated = counts.last > EventTime(0);
        shards.push(CoverageOfShard {
            shard,
            records: counts.records,
            late: counts.late,
            late_share: if any { counts.late as f64 / counts.records as f64 } else { 0.0 },
            future: counts.future,
            repeated: counts.repeated,
            left_out: counts.left_out,
            conversations: counts.conversations,
            strangers: counts.strangers,
            interfaces: coverage.interfaces,
            skipped_seconds: counts.skipped_seconds,
            no_data_seconds: counts.no_data_seconds,
            first: dated.then_some(counts.first),
            last: dated.then_some(counts.last),
        });
        gaps.extend(coverage.gaps.into_iter().map(|(interface, account, gap)| InterfaceGap {
            interface,
            account,
            skipped_seconds: gap.skipped_seconds,
            no_data_seconds: gap.no_data_seconds,
            last: gap.last,
        }));
    }
    let interfaces_with_gaps = gaps.len();
    gaps.sort_by(|a, b| rank(a).cmp(&rank(b)));
    gaps.truncate(NAMED);
    let sources = context.health.report().shards;
    Ok(Json(Coverage { shards, gaps, interfaces_with_gaps, sources, silent_shards: silent }))
}

fn rank(gap: &InterfaceGap) -> (Reverse<u64>, Reverse<u64>, &str) {
    (Reverse(gap.skipped_seconds), Reverse(gap.no_data_seconds), &gap.interface)
}
