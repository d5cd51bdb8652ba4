//! Open anomalies that nobody goes on with.
//!
//! An anomaly is closed by whoever has its incident when that is over. Where the incident is lost, nobody does: a Redis came
//! back empty or threw keys away, a snapshot is gone, or late evidence made the incident part of one that is not told, and the
//! task that had told it died before it could say so. So the judge now and then looks through what is open in the store, a
//! page at a time. What is over by the event time of all shards, and of which correlation knows nothing when it is asked
//! ([`IncidentStore::abandoned`]), is closed as it was last told.
//!
//! In the ordinary course there is none. What for a moment looks like it is told apart thus:
//!
//! | what it is | why it stays open here |
//! | --- | --- |
//! | a service that is behind, or reads old records again | event time decides, not the clock |
//! | a shard that is between two owners, or in its pause after a failure; a Redis that just came back and has not heard of all shards yet; a task that is just taking its state in | only what is found twice, the settings' `sweep_every` apart, is closed |
//! | told under another id than correlation has, here or in another task | correlation is asked for what it is about, and when |
//! | on its way to delivery, as closed or with more | what is found waits behind it, and is closed only if it stands as it was found |
//! | found by several tasks at once | the store takes the revision that closes it once |
//!
//! A storm, which stands for many episodes, has no incident that could be asked for; it is not looked at.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use tokio::time::timeout;
use uuid::Uuid;

use crate::anomaly::{Anomaly, Status};
use crate::correlation::{IncidentStore, Told, Watermarks};
use crate::flow::EventTime;
use crate::publish::{AnomalyStore, Page, Query, revision};

/// Anomalies that are read at once.
const PAGE: usize = 100;

/// The longest pause between two pages of one round; the judge has other things to do.
const PAGE_PAUSE: Duration = Duration::from_secs(1);

/// How many are remembered from one round to the next, at about 60 bytes each. Where more are lost at once, it takes
/// more rounds.
const SUSPECTS_MAX: usize = 10_000;

/// What orders the revisions of one anomaly.
type Revision = (u32, EventTime, Status);

/// Goes through the open anomalies, round after round.
pub(super) struct Sweep {
    /// How often; never where it is zero.
    every: Duration,
    /// When the next page is due.
    due: Instant,
    /// Where it begins; `None` at the beginning of a round.
    cursor: Option<String>,
    round: u64,
    suspects: BTreeMap<Uuid, Suspect>,
}

/// What was found abandoned, and is closed when it still is at the next look.
#[derive(Clone, Copy)]
struct Suspect {
    revision: Revision,
    since: Instant,
    round: u64,
}

/// Who is asked, and how.
pub(super) struct Asked<'a> {
    pub store: &'a dyn AnomalyStore,
    pub incidents: &'a dyn IncidentStore,
    pub watermarks: Watermarks,
    /// For how long an episode may go on without being told again, s.
    pub untold: u32,
}

impl Sweep {
    /// The first look is when the shards have had time to be taken up.
    pub(super) fn new(every: Duration) -> Sweep {
        Sweep { every, due: Instant::now() + every, cursor: None, round: 0, suspects: BTreeMap::new() }
    }

    /// Looks at the next page if that is due; gives what is to be closed. What cannot be asked is asked in the next round.
    pub(super) async fn look(&mut self, asked: &Asked<'_>, patience: Duration) -> Vec<Anomaly> {
        if self.every.is_zero() || Instant::now() < self.due {
            return Vec::new();
        }
        let (anomalies, next) = match timeout(patience, asked.page(self.cursor.take())).await {
            Ok(Ok(page)) => page,
            Ok(Err(cause)) => return self.give_up(&cause),
            Err(_) => return self.give_up("no answer in time"),
        };
        let abandoned = anomalies.into_iter().filter_map(|anomaly| self.confirm(anomaly)).collect();
        self.cursor = next;
        match self.cursor {
            Some(_) => self.due = Instant::now() + PAGE_PAUSE.min(self.every),
            None => self.end_round(),
        }
        abandoned
    }

    /// Notes what is found abandoned, and gives it where it was before.
    fn confirm(&mut self, anomaly: Anomaly) -> Option<Anomaly> {
        let (id, revision) = (anomaly.anomaly_id, revision(&anomaly));
        let known = self.suspects.get(&id).copied().filter(|suspect| suspect.revision == revision);
        if known.is_some_and(|suspect| suspect.round < self.round && suspect.since.elapsed() >= self.every) {
            self.suspects.remove(&id);
            return Some(anomaly);
        }
        if known.is_some() || self.suspects.contains_key(&id) || self.suspects.len() < SUSPECTS_MAX {
            let since = known.map_or_else(Instant::now, |suspect| suspect.since);
            self.suspects.insert(id, Suspect { revision, since, round: self.round });
        }
        None
    }

    /// Forgets what was not found again: somebody goes on with it.
    fn end_round(&mut self) {
        self.suspects.retain(|_, suspect| suspect.round == self.round);
        tracing::debug!(suspects = self.suspects.len(), "looked through the open anomalies");
        self.round += 1;
        self.due = Instant::now() + self.every;
    }

    /// The round begins again; what was found in it so far is found again, as if for the first time in it.
    fn give_up(&mut self, cause: &str) -> Vec<Anomaly> {
        tracing::debug!(cause, "the open anomalies cannot be looked through");
        self.cursor = None;
        self.due = Instant::now() + self.every;
        Vec::new()
    }
}

impl Asked<'_> {
    /// The abandoned ones of a page of open anomalies, and where the next page starts.
    async fn page(&self, cursor: Option<String>) -> Result<(Vec<Anomaly>, Option<String>), String> {
        let query = Query { status: Some(Status::Open), limit: PAGE, cursor, ..Query::default() };
        let Page { mut anomalies, next, .. } = self.store.query(&query).await.map_err(|error| error.to_string())?;
        anomalies.retain(|anomaly| anomaly.key().is_some());
        let told: Vec<Told> = anomalies.iter().filter_map(|anomaly| self.told(anomaly)).collect();
        let mut abandoned = match told.is_empty() {
            true => Vec::new(),
            false => self.incidents.abandoned(&self.watermarks, &told).await.map_err(|error| error.to_string())?,
        }
        .into_iter();
        anomalies.retain(|_| abandoned.next().unwrap_or(false));
        Ok((anomalies, next))
    }

    fn told(&self, anomaly: &Anomaly) -> Option<Told> {
        let last_seen = anomaly.last_seen.plus(self.untold);
        Some(Told { key: anomaly.key()?, first_seen: anomaly.first_seen, last_seen })
    }
}

#[cfg(test)]
mod tests;
