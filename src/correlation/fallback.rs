//! Shared incidents with a fallback: while the shared store is away, the task correlates by itself.
//!
//! Every incident that the shared store answers is also kept here, so that episodes go on under their ids when it goes
//! away. What was folded meanwhile is folded again there once it is back, which by construction changes nothing that it
//! already knows. What other tasks saw during the gap comes together then. Until then no checkpoint passes what only this
//! task knows, so that a crash makes somebody find it again ([`IncidentStore::pending`]); and ids that several tasks gave to
//! one episode meanwhile are one id where they are told ([`crate::publish::episodes`]).

use std::collections::{BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::time::Instant;
use tracing::{info, warn};
use uuid::Uuid;

use super::{
    CorrelationError, Incident, IncidentStore, Incidents, Progress, Progresses, Settings, Told, Watermarks, least,
};
use crate::finding::Finding;
use crate::ingest::ShardId;

/// Findings kept for the shared store while it is away: an hour of a busy shard. Older ones are dropped first, and were
/// told by this task alone.
const MISSED_MAX: usize = 50_000;

/// Findings folded at once when it is back.
const CATCH_UP: usize = 200;

/// How often it is asked while it is away.
const PROBE: Duration = Duration::from_secs(1);

/// Told when the shared store goes away (with the cause) and when it is back (`None`).
pub type OnChange = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// A shared store, and this task's own memory for when it is away.
pub struct WithFallback<S> {
    shared: S,
    state: Mutex<State>,
    probe: Duration,
    on_change: OnChange,
}

struct State {
    local: Incidents,
    away_since_probe: Option<Instant>,
    missed: VecDeque<(ShardId, Finding)>,
    dropped: u64,
    /// Shards that have ended, with those that continue them, of which the shared store was not told yet.
    ended: Vec<(ShardId, Vec<ShardId>)>,
}

impl<S: IncidentStore> WithFallback<S> {
    /// Uses `shared` while it answers.
    pub fn new(shared: S, settings: &Settings, on_change: OnChange) -> WithFallback<S> {
        let state = State {
            local: Incidents::new(settings),
            away_since_probe: None,
            missed: VecDeque::new(),
            dropped: 0,
            ended: Vec::new(),
        };
        WithFallback { shared, state: Mutex::new(state), probe: PROBE, on_change }
    }

    /// Asks the shared store every time, away or not.
    #[cfg(test)]
    pub(crate) fn impatient(self) -> WithFallback<S> {
        WithFallback { probe: Duration::ZERO, ..self }
    }

    /// Whether this task correlates by itself.
    pub fn is_away(&self) -> bool {
        self.lock().away_since_probe.is_some()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Whether to leave the shared store alone for now.
    fn leave_alone(&self) -> bool {
        self.lock().away_since_probe.is_some_and(|since| since.elapsed() < self.probe)
    }

    fn note_away(&self, error: &CorrelationError) {
        if self.lock().away_since_probe.replace(Instant::now()).is_none() {
            warn!(error = %error, "correlating within this task");
            (self.on_change)(Some(&error.to_string()));
        }
    }

    fn note_back(&self) {
        let mut state = self.lock();
        if state.away_since_probe.take().is_some() {
            info!(dropped = std::mem::take(&mut state.dropped), "correlating with other tasks again");
            drop(state);
            (self.on_change)(None);
        }
    }

    /// Notes what the shared store answered; adds what was known here under another id, as part of it.
    fn keep(&self, mut incidents: Vec<Incident>) -> Vec<Incident> {
        let mut state = self.lock();
        let parts: Vec<Incident> = incidents.iter().flat_map(|incident| state.local.replace(incident)).collect();
        incidents.extend(parts);
        incidents
    }

    /// Does what is to be done once everything that was missed is folded, and answers both; `None` while the shared store
    /// is away.
    async fn together(
        &self,
        then: impl Future<Output = Result<Vec<Incident>, CorrelationError>>,
    ) -> Result<Option<Vec<Incident>>, CorrelationError> {
        let both = async {
            let mut touched = self.catch_up().await?;
            self.tell_of_the_ended().await?;
            touched.extend(then.await?);
            Ok(touched)
        };
        match both.await {
            Ok(touched) => {
                self.note_back();
                Ok(Some(self.keep(latest(touched))))
            }
            Err(error @ CorrelationError::Retry { .. }) => {
                self.note_away(&error);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    fn fold_alone(&self, shard: &ShardId, findings: &[Finding]) -> Vec<Incident> {
        let mut state = self.lock();
        for finding in findings {
            if state.missed.len() >= MISSED_MAX {
                state.missed.pop_front();
                state.dropped += 1;
            }
            state.missed.push_back((shard.clone(), finding.clone()));
        }
        state.local.fold(&shard.0, findings)
    }

    /// Tells the shared store which shards have ended; what fails stays for the next time.
    async fn tell_of_the_ended(&self) -> Result<(), CorrelationError> {
        loop {
            let Some((shard, by)) = self.lock().ended.first().cloned() else { return Ok(()) };
            self.shared.continued(&shard, &by).await?;
            self.lock().ended.retain(|(ended, _)| *ended != shard);
        }
    }

    /// Folds what was missed; what fails stays for the next time.
    async fn catch_up(&self) -> Result<Vec<Incident>, CorrelationError> {
        let mut touched = Vec::new();
        loop {
            let part: Vec<(ShardId, Finding)> = {
                let state = self.lock();
                let Some((first, _)) = state.missed.front() else { return Ok(touched) };
                state.missed.iter().take_while(|(shard, _)| shard == first).take(CATCH_UP).cloned().collect()
            };
            let shard = part[0].0.clone();
            let count = part.len();
            let findings: Vec<Finding> = part.into_iter().map(|(_, finding)| finding).collect();
            touched.extend(self.shared.fold(&shard, &findings).await?);
            let mut state = self.lock();
            // Another shard's fold may have caught up at the same time; folding a part twice is harmless, dropping a part
            // that was never folded is not.
            let same = state.missed.iter().take(count).map(|(_, f)| f).eq(findings.iter());
            if same {
                state.missed.drain(..count);
            }
        }
    }
}

#[async_trait]
impl<S: IncidentStore> IncidentStore for WithFallback<S> {
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Result<Vec<Incident>, CorrelationError> {
        if self.leave_alone() {
            return Ok(self.fold_alone(shard, findings));
        }
        Ok(match self.together(self.shared.fold(shard, findings)).await? {
            Some(touched) => touched,
            None => self.fold_alone(shard, findings),
        })
    }

    async fn fold_together(
        &self,
        shard: &ShardId,
        findings: &[Finding],
    ) -> Result<Option<Vec<Incident>>, CorrelationError> {
        if self.leave_alone() {
            return Ok(None);
        }
        self.together(self.shared.fold(shard, findings)).await
    }

    async fn progress(
        &self,
        own: &Progresses,
        expected: &BTreeSet<ShardId>,
    ) -> Result<Option<Progress>, CorrelationError> {
        // What only this task knows is not folded for the others; the next fold or expiry brings it to them.
        if self.leave_alone() || !self.lock().missed.is_empty() {
            return Ok(None);
        }
        match self.shared.progress(own, expected).await {
            Err(error @ CorrelationError::Retry { .. }) => {
                self.note_away(&error);
                Ok(None)
            }
            answered => {
                self.note_back();
                answered
            }
        }
    }

    fn is_shared(&self) -> bool {
        self.shared.is_shared()
    }

    async fn expire(&self, watermarks: &Watermarks) -> Result<Vec<Incident>, CorrelationError> {
        // Alone, nothing is closed: only all tasks together know that an episode is over, and they will when they meet.
        // Nor is a watermark told before what it has passed is folded.
        if self.leave_alone() {
            return Ok(Vec::new());
        }
        let Some(touched) = self.together(self.shared.expire(watermarks)).await? else { return Ok(Vec::new()) };
        // What other tasks closed is over here, too.
        self.lock().local.expire(least(watermarks));
        Ok(touched)
    }

    async fn continued(&self, shard: &ShardId, by: &[ShardId]) -> Result<(), CorrelationError> {
        self.lock().ended.push((shard.clone(), by.to_vec()));
        if self.leave_alone() {
            return Ok(());
        }
        match self.tell_of_the_ended().await {
            // It is told when the shared store is back.
            Err(CorrelationError::Retry { .. }) => Ok(()),
            done => done,
        }
    }

    async fn forget(&self, ids: &[Uuid]) -> Result<(), CorrelationError> {
        if self.leave_alone() {
            return Ok(());
        }
        match self.shared.forget(ids).await {
            // They are handed out again, and what was told of them is known to be told.
            Err(CorrelationError::Retry { .. }) => Ok(()),
            done => done,
        }
    }

    async fn abandoned(&self, watermarks: &Watermarks, told: &[Told]) -> Result<Vec<bool>, CorrelationError> {
        let nothing = vec![false; told.len()];
        let untold = || {
            let state = self.lock();
            !state.missed.is_empty() || !state.ended.is_empty()
        };
        if self.is_away() || untold() {
            return Ok(nothing);
        }
        match self.shared.abandoned(watermarks, told).await {
            // Another shard's fold may have found it away meanwhile, and have folded here.
            Ok(abandoned) => Ok(if untold() { nothing } else { abandoned }),
            Err(error @ CorrelationError::Retry { .. }) => {
                self.note_away(&error);
                Ok(nothing)
            }
            Err(error) => Err(error),
        }
    }

    fn pending(&self, shard: &ShardId) -> bool {
        self.lock().missed.iter().any(|(missed, _)| missed == shard)
    }

    async fn get(&self, id: Uuid) -> Result<Option<Incident>, CorrelationError> {
        let alone = || self.lock().local.get(id).cloned();
        if self.leave_alone() {
            return Ok(alone());
        }
        match self.shared.get(id).await {
            Ok(found) => Ok(found),
            Err(error @ CorrelationError::Retry { .. }) => {
                self.note_away(&error);
                Ok(alone())
            }
            Err(error) => Err(error),
        }
    }
}

/// The last word on each incident, in the order of their first mention.
fn latest(touched: Vec<Incident>) -> Vec<Incident> {
    let mut kept: Vec<Incident> = Vec::with_capacity(touched.len());
    for incident in touched {
        match kept.iter_mut().find(|known| known.id == incident.id) {
            Some(known) => *known = incident,
            None => kept.push(incident),
        }
    }
    kept
}
