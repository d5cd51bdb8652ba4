//! Tiers 3 and 4 in their one order, a window at a time: for `detect` and for the service alike.
//!
//! | step | what is done | until |
//! | --- | --- | --- |
//! | close | incidents that are over are closed, and judged one by one in the order in which they were over | the start of the window, for what it says may begin there; behind the last window the watermark, floored to an end of windows |
//! | fold | the findings of one window of one shard become parts of incidents | |
//! | judge | the incidents that this touched are judged | |
//!
//! Windows come in the order of their ends, and a window has no other moment than its end. So nothing depends on how records were
//! cut into batches: between two windows with findings nothing changes an incident, closing them at once or one by one is the
//! same, and a watermark within a window closes nothing before the findings of that window have come.
//!
//! Looks at open windows move no time, and come last. What [`validation`](crate::validation) holds back between two updates of an
//! anomaly is told when its incident is closed, and everything is closed at the end of the input, when the watermark is the last
//! moment that there is.
//!
//! The order is here; where incidents and anomalies are kept is behind [`Stores`].

use std::collections::BTreeSet;
use std::slice;

use async_trait::async_trait;
use jiff::SignedDuration;
use uuid::Uuid;

use super::Watermarks;
use crate::anomaly::Anomaly;
use crate::correlation::{self, EpisodeGap, Incident};
use crate::finding::{Finding, IncidentKey};
use crate::flow::EventTime;
use crate::ingest::ShardId;
use crate::validation::{Judge, Outcome};

pub mod recording;

/// Where incidents meet and what was told of them is known: backends that may be away for a while, or memory. Each call answers
/// in the end.
#[async_trait]
pub trait Stores: Send + Sync {
    /// Folds findings; see [`correlation::IncidentStore::fold`].
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Vec<Incident>;

    /// Closes what is over; see [`correlation::IncidentStore::expire`]. Nothing where that cannot be known now: it is closed the
    /// next time.
    async fn expire(&self, watermarks: &correlation::Watermarks) -> Vec<Incident>;

    /// What was told of an incident in an earlier life, or by another task.
    async fn recall(&self, id: Uuid) -> Option<Anomaly>;
}

/// One step of the chain, with what came of it.
#[derive(Debug)]
pub struct Turn {
    /// Whose window was folded; `None` for what is over, whichever shards had a part in it.
    pub shard: Option<ShardId>,
    /// What the window's findings are about.
    pub keys: BTreeSet<IncidentKey>,
    /// The incidents that were touched or closed.
    pub incidents: Vec<Incident>,
    /// What became of them.
    pub outcomes: Vec<Outcome>,
}

/// The order of tiers 3 and 4, with what tier 4 remembers.
#[derive(Debug)]
pub struct Chain {
    /// Tier 4.
    pub judge: Judge,
    pub(super) watermarks: Watermarks,
    gaps: EpisodeGap,
    /// Length of tier 1's windows, s.
    window: u32,
    /// Up to here everything that was over is closed.
    closed_until: EventTime,
}

impl Chain {
    /// Nothing has passed yet. `window` is the length of tier 1's windows.
    pub fn new(judge: Judge, gaps: &EpisodeGap, window: SignedDuration) -> Chain {
        Chain {
            judge,
            watermarks: Watermarks::default(),
            gaps: gaps.clone(),
            window: u32::try_from(window.as_secs()).unwrap_or(0).max(1),
            closed_until: EventTime(0),
        }
    }

    /// How far event time is for all shards: everything that was over by then is closed.
    pub fn closed_until(&self) -> EventTime {
        self.closed_until
    }

    /// Takes what the windows of a shard said through tiers 3 and 4, and then moves its event time on to the watermark.
    pub async fn pass(
        &mut self,
        stores: &impl Stores,
        shard: &ShardId,
        mut findings: Vec<Finding>,
        watermark: Option<EventTime>,
    ) -> Vec<Turn> {
        findings.sort_by_key(moment);
        let mut turns = Vec::new();
        for window in findings.chunk_by(|a, b| moment(a) == moment(b)) {
            if !window[0].provisional {
                self.watermarks.move_to(shard, window_end(&window[0]).minus(self.window));
                turns.extend(self.close(stores).await);
            }
            let incidents = stores.fold(shard, window).await;
            let outcomes = self.judge(stores, &incidents).await;
            let keys = window.iter().map(Finding::key).collect();
            turns.push(Turn { shard: Some(shard.clone()), keys, incidents, outcomes });
        }
        if let Some(watermark) = watermark {
            self.watermarks.move_to(shard, watermark);
            turns.extend(self.close(stores).await);
        }
        turns
    }

    /// Closes what all shards' event time has left behind, where that has moved on.
    async fn close(&mut self, stores: &impl Stores) -> Option<Turn> {
        let least = self.watermarks.least()?.window(self.window);
        if least <= self.closed_until {
            return None;
        }
        self.closed_until = least;
        Some(self.close_by(stores, &self.told()).await)
    }

    /// Closes what is over by these watermarks.
    pub async fn close_by(&mut self, stores: &impl Stores, watermarks: &correlation::Watermarks) -> Turn {
        let least = watermarks.values().copied().min().unwrap_or_default();
        let mut incidents = stores.expire(watermarks).await;
        // What had to go for want of room is not over, and comes first.
        incidents.sort_by_cached_key(|incident| {
            let over = incident.span().1.plus(self.gaps.seconds(incident.key.threat));
            (over < least, over, incident.rank())
        });
        let mut outcomes = Vec::new();
        for incident in &incidents {
            outcomes.extend(self.judge(stores, slice::from_ref(incident)).await);
        }
        outcomes.extend(self.judge.close_storms(least));
        Turn { shard: None, keys: BTreeSet::new(), incidents, outcomes }
    }

    /// How far each shard's windows are closed; one that has told no watermark yet stands at 0.
    pub fn told(&self) -> correlation::Watermarks {
        self.watermarks.told().into_iter().map(|(shard, moment)| (shard, moment.window(self.window))).collect()
    }

    async fn judge(&mut self, stores: &impl Stores, incidents: &[Incident]) -> Vec<Outcome> {
        // Another task may have told them, or this one before its state was lost.
        for incident in incidents {
            if !self.judge.knows(incident.id)
                && let Some(anomaly) = stores.recall(incident.id).await
            {
                self.judge.remember(&anomaly);
            }
        }
        self.judge.judge(incidents)
    }
}

/// What orders findings: looks come last, each with those of its window.
fn moment(finding: &Finding) -> (bool, EventTime) {
    (finding.provisional, window_end(finding))
}

/// When the window of a finding ends.
fn window_end(finding: &Finding) -> EventTime {
    finding.window.plus(finding.window_seconds)
}

#[cfg(test)]
mod tests;
