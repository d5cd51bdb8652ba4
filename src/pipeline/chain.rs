//! Tiers 3 and 4 in their one order, a window at a time: for `detect` and for the service alike.
//!
//! | step | what is done | until |
//! | --- | --- | --- |
//! | wait | the findings of a window wait until all shards have come as far, and have folded what was before | a deadline, which whoever calls knows |
//! | close | incidents that are over are closed, and judged one by one in the order in which they were over | the start of the window, for what it says may begin there; behind the last window the watermark, floored to an end of windows |
//! | fold | the findings of one window of one shard become parts of incidents | |
//! | judge | the incidents that this touched are judged | |
//!
//! Windows come in the order of their ends, of whichever shard, and a window has no other moment than its end. So nothing depends on how records were
//! cut into batches: between two windows with findings nothing changes an incident, closing them at once or one by one is the
//! same, and a watermark within a window closes nothing before the findings of that window have come.
//!
//! Looks at open windows move no time, and come last. What [`validation`](crate::validation) holds back between two updates of an
//! anomaly is told when its incident is closed, and everything is closed at the end of the input, when the watermark is the last
//! moment that there is.
//!
//! The order is here; where incidents and anomalies are kept is behind [`Stores`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::slice;

use async_trait::async_trait;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::watermarks::{Reached, Watermarks};
use crate::anomaly::Anomaly;
use crate::correlation::{self, EpisodeGap, Incident, Progress, Progresses};
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

    /// The same, but nothing where the findings of other tasks cannot be met now.
    async fn fold_together(&self, shard: &ShardId, findings: &[Finding]) -> Option<Vec<Incident>> {
        Some(self.fold(shard, findings).await)
    }

    /// How far all shards are; see [`correlation::IncidentStore::progress`].
    async fn progress(&self, own: &Progresses, expected: &BTreeSet<ShardId>) -> Option<Progress>;

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

/// Findings of one window of one shard that wait for the other shards.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Waiting {
    /// Under whose name they are folded: the shard that found them.
    found_by: ShardId,
    findings: Vec<Finding>,
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
    /// What waits, by the end of its window and the shard that found it, with the shard that brought it.
    waiting: BTreeMap<(EventTime, ShardId), (ShardId, Vec<Finding>)>,
    /// Looks at open windows, which wait for nobody.
    looks: VecDeque<(ShardId, Vec<Finding>)>,
    /// How far each awaited shard was when that was last noted.
    noted: Progresses,
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
            waiting: BTreeMap::new(),
            looks: VecDeque::new(),
            noted: Progresses::new(),
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
        findings: Vec<Finding>,
        watermark: Option<EventTime>,
    ) -> Vec<Turn> {
        self.take(shard, findings, watermark);
        let mut turns = Vec::new();
        while let Some(some) = self.next(stores, EventTime(0)).await {
            turns.extend(some);
        }
        turns
    }

    /// Takes in what a shard says; [`Chain::next`] goes on with it.
    pub fn take(&mut self, shard: &ShardId, mut findings: Vec<Finding>, watermark: Option<EventTime>) {
        findings.sort_by_key(moment);
        for window in findings.chunk_by(|a, b| moment(a) == moment(b)) {
            if window[0].provisional {
                self.looks.push_back((shard.clone(), window.to_vec()));
                continue;
            }
            let end = window_end(&window[0]);
            self.watermarks.move_to(shard, end, end.minus(self.window));
            self.hold(shard, shard, window.to_vec());
        }
        if let Some(watermark) = watermark {
            self.watermarks.move_to(shard, watermark, watermark);
        }
    }

    /// Takes in what waited when a shard's snapshot was taken.
    pub fn resume(&mut self, shard: &ShardId, waiting: Vec<Waiting>) {
        for Waiting { found_by, findings } in waiting.into_iter().filter(|waiting| !waiting.findings.is_empty()) {
            self.hold(shard, &found_by, findings);
        }
    }

    fn hold(&mut self, shard: &ShardId, found_by: &ShardId, findings: Vec<Finding>) {
        let key = (window_end(&findings[0]), found_by.clone());
        let (_, held) = self.waiting.entry(key).or_insert_with(|| (shard.clone(), Vec::new()));
        for finding in findings {
            if !held.contains(&finding) {
                held.push(finding);
            }
        }
    }

    /// What a shard has brought and still waits, for its snapshot.
    pub fn waiting_of(&self, shard: &ShardId) -> Vec<Waiting> {
        let own = self.waiting.iter().filter(|(_, (brought_by, _))| brought_by == shard);
        own.map(|((_, found_by), (_, findings))| Waiting { found_by: found_by.clone(), findings: findings.clone() })
            .collect()
    }

    /// The ends of the windows of which something waits.
    pub fn waits(&self) -> impl Iterator<Item = EventTime> {
        self.waiting.keys().map(|(end, _)| *end)
    }

    /// Forgets what a shard has brought and still waits: whoever reads it next brings it again.
    pub fn drop_waiting(&mut self, shard: &ShardId) {
        self.waiting.retain(|_, (brought_by, _)| brought_by != shard);
    }

    /// The next turns; nothing once all is done that can be done now. A window is folded when all shards have come as far and have
    /// folded what was before it, or when it ends by `until`.
    pub async fn next(&mut self, stores: &impl Stores, until: EventTime) -> Option<Vec<Turn>> {
        let first = self.waits().next();
        if let Some(end) = first
            && (end <= until || self.may_fold(stores, end).await)
        {
            let mut turns: Vec<Turn> = self.close(stores).await.into_iter().collect();
            let folded = turns.len();
            while let Some(entry) = self.waiting.first_entry()
                && entry.key().0 == end
            {
                let (found_by, (shard, findings)) = (&entry.key().1, entry.get());
                let incidents = match end <= until {
                    true => Some(stores.fold(found_by, findings).await),
                    false => stores.fold_together(found_by, findings).await,
                };
                let Some(incidents) = incidents else { break };
                let (shard, keys) = (shard.clone(), findings.iter().map(Finding::key).collect());
                entry.remove();
                let outcomes = self.judge(stores, &incidents).await;
                turns.push(Turn { shard: Some(shard), keys, incidents, outcomes });
            }
            if turns.len() > folded {
                return Some(turns);
            }
        }
        if let Some((shard, looks)) = self.looks.pop_front() {
            let incidents = stores.fold(&shard, &looks).await;
            let outcomes = self.judge(stores, &incidents).await;
            let keys = looks.iter().map(Finding::key).collect();
            return Some(vec![Turn { shard: Some(shard), keys, incidents, outcomes }]);
        }
        if self.progress() != self.noted {
            self.note_progress(stores).await;
        }
        self.close(stores).await.map(|turn| vec![turn])
    }

    /// Whether all shards have come so far, and have folded what was before.
    async fn may_fold(&mut self, stores: &impl Stores, end: EventTime) -> bool {
        let all = self.note_progress(stores).await;
        all.is_some_and(|all| all.received >= end && all.folded.plus(self.window) >= end)
    }

    async fn note_progress(&mut self, stores: &impl Stores) -> Option<Progress> {
        self.noted = self.progress();
        stores.progress(&self.noted, self.watermarks.expected()).await
    }

    /// How far each awaited shard is, by ends of windows.
    fn progress(&self) -> Progresses {
        let progress = |(shard, reached): (&ShardId, &Reached)| {
            let received = reached.received.unwrap_or_default().window(self.window);
            let folded = self.folded(shard, reached).unwrap_or_default().window(self.window);
            (shard.clone(), Progress { received, folded })
        };
        self.watermarks.awaited().map(progress).collect()
    }

    /// Up to where everything that a shard has brought is folded; `None` where it does not know how far it is.
    fn folded(&self, shard: &ShardId, reached: &Reached) -> Option<EventTime> {
        let first = self.waiting.iter().find(|(_, (brought_by, _))| brought_by == shard);
        let before = first.map_or(EventTime(u32::MAX), |((end, _), _)| end.minus(self.window));
        reached.passed.map(|passed| passed.min(before))
    }

    /// The moment up to which everything is folded that the shards of this task have brought; `None` where one of them does not know
    /// how far it is.
    pub fn least(&self) -> Option<EventTime> {
        self.watermarks.awaited().map(|(shard, reached)| self.folded(shard, reached)).min().flatten()
    }

    /// Closes what all shards' event time has left behind, where that has moved on.
    async fn close(&mut self, stores: &impl Stores) -> Option<Turn> {
        let least = self.least()?.window(self.window);
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

    /// Up to where the windows of each awaited shard are folded; one that does not know how far it is stands at 0.
    pub fn told(&self) -> correlation::Watermarks {
        self.progress().into_iter().map(|(shard, progress)| (shard, progress.folded)).collect()
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
