//! How the service is: reported by whoever works, asked by whoever wants to know.
//!
//! It stands below both, so that the API need not know the pipeline nor the pipeline the API. Short critical sections,
//! never held across an await, a few times a second: a plain mutex.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::flow::EventTime;
use crate::ingest::Refused;

/// Where the service stands in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Opening its backends, restoring its state.
    Starting,
    /// At work.
    Running,
    /// Told to stop: what was read is being finished.
    Draining,
    /// The input has ended, or everything is finished; it only answers.
    Finished,
}

/// Something is away, and something lesser stands in for it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Degraded {
    /// What is away: `ml`, `correlation`, `publish`, `announcer`, `snapshot`, `checkpoint`, `state` (a shard goes on from less than its
    /// newest snapshot), `ingest`, `settings`; `input` of which nothing can be read; `files` that cannot be opened; `network` where
    /// most conversations touch no host of ours; `lateness`
    /// where records come too late for their windows, `event_time` where they are dated ahead of the rest, and `clock` where the
    /// newest are hours away from this machine's clock.
    pub part: String,
    /// Why, and what happens in the meantime.
    pub reason: String,
    /// Since when (wall clock).
    #[schema(value_type = String)]
    pub since: Timestamp,
}

/// How one shard is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Shard {
    /// `reading`, `restarting`, `ended`, `lost`.
    pub state: String,
    /// Records read since the start of the process.
    pub records: u64,
    /// Newest event time seen.
    #[schema(value_type = Option<String>)]
    pub newest: Option<EventTime>,
    /// Where it would resume.
    #[schema(value_type = Option<String>)]
    pub checkpoint: Option<String>,
    /// What could not be read, with the first few samples.
    pub refused: Refused,
}

/// What a suppression has hidden since the start of the process.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Hidden {
    /// Incidents that would have been judged further.
    pub incidents: u64,
    /// The last moment of the last of them.
    #[schema(value_type = Option<String>)]
    pub last: Option<EventTime>,
}

/// What verdicts on a threat have come to.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct Learned {
    /// Anomalies that most call true.
    pub true_positive: u32,
    /// Anomalies that most call false.
    pub false_positive: u32,
    /// What they add to the threat's log-odds.
    pub shift: f64,
}

/// How everything is.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
#[schema(as = ServiceReport)]
pub struct Report {
    /// Where the service stands in its life.
    pub phase: Phase,
    /// When the process began (wall clock).
    #[schema(value_type = String)]
    pub started: Timestamp,
    /// What is away; empty when all is well.
    pub degraded: Vec<Degraded>,
    /// The shards that are ours, by name.
    pub shards: BTreeMap<String, Shard>,
    /// What suppressions have hidden here since the process began, by name.
    pub suppressed: BTreeMap<String, Hidden>,
    /// What analysts' verdicts have come to here, by threat.
    pub verdicts: BTreeMap<String, Learned>,
}

/// The part that is away where nothing could be read.
const INPUT: &str = "input";

/// How many samples of refused input are kept per shard.
const SAMPLES: usize = 5;

/// How everything is, shared.
#[derive(Debug)]
pub struct Health {
    report: Mutex<Report>,
    /// Why nothing was read of a shard, or `None` once something was.
    unread: Mutex<BTreeMap<String, Option<String>>>,
}

impl Default for Health {
    fn default() -> Health {
        let report = Report {
            phase: Phase::Starting,
            started: Timestamp::now(),
            degraded: Vec::new(),
            shards: BTreeMap::new(),
            suppressed: BTreeMap::new(),
            verdicts: BTreeMap::new(),
        };
        Health { report: Mutex::new(report), unread: Mutex::default() }
    }
}

impl Health {
    fn lock(&self) -> MutexGuard<'_, Report> {
        // A panic elsewhere is no reason to stop answering how we are.
        self.report.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A copy of all that is known.
    pub fn report(&self) -> Report {
        self.lock().clone()
    }

    /// Enters a phase.
    pub fn enter(&self, phase: Phase) {
        self.lock().phase = phase;
    }

    /// A part is away. True when that is news.
    pub fn degrade(&self, part: &str, reason: impl Into<String>) -> bool {
        let mut report = self.lock();
        let reason = reason.into();
        if let Some(known) = report.degraded.iter_mut().find(|known| known.part == part) {
            known.reason = reason;
            return false;
        }
        report.degraded.push(Degraded { part: part.to_owned(), reason, since: Timestamp::now() });
        true
    }

    /// A part is back. True when that is news.
    pub fn restore(&self, part: &str) -> bool {
        let mut report = self.lock();
        let before = report.degraded.len();
        report.degraded.retain(|known| known.part != part);
        report.degraded.len() < before
    }

    /// Notes what suppressions have hidden.
    pub fn hidden(&self, suppressed: BTreeMap<String, Hidden>) {
        self.lock().suppressed = suppressed;
    }

    /// Notes what verdicts have come to.
    pub fn learned(&self, verdicts: BTreeMap<String, Learned>) {
        self.lock().verdicts = verdicts;
    }

    /// How far the traffic is by its own time, as far as that is not ahead of the clock; the clock where there is none.
    pub fn event_time(&self) -> EventTime {
        let now = EventTime(u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX));
        let newest = self.lock().shards.values().filter_map(|shard| shard.newest).max();
        newest.map_or(now, |newest| newest.min(now))
    }

    /// The parts that are away, by name, in order.
    pub fn degraded(&self) -> Vec<String> {
        let mut parts: Vec<String> = self.lock().degraded.iter().map(|known| known.part.clone()).collect();
        parts.sort_unstable();
        parts
    }

    /// Notes how a shard is.
    pub fn shard(&self, id: &str, note: impl FnOnce(&mut Shard)) {
        let fresh = || Shard {
            state: "reading".to_owned(),
            records: 0,
            newest: None,
            checkpoint: None,
            refused: Refused::default(),
        };
        note(self.lock().shards.entry(id.to_owned()).or_insert_with(fresh));
    }

    /// Counts what could not be read, and keeps the first few samples.
    pub fn refused(&self, id: &str, refused: &Refused) {
        self.shard(id, |shard| {
            shard.refused.count += refused.count;
            let room = SAMPLES.saturating_sub(shard.refused.samples.len());
            shard.refused.samples.extend(refused.samples.iter().take(room).cloned());
        });
    }

    /// Notes what came of reading a shard: `Ok` when something was readable, else why not. A shard of which nothing was
    /// read since the start is a degradation, for nothing read must not look like nothing found. True when that is news.
    pub fn input(&self, id: &str, outcome: Result<(), &str>) -> bool {
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        match (unread.get(id), outcome) {
            (Some(None), _) | (Some(Some(_)), Err(_)) => return false,
            (None, Ok(())) => {
                unread.insert(id.to_owned(), None);
                return false;
            }
            (_, outcome) => unread.insert(id.to_owned(), outcome.err().map(str::to_owned)),
        };
        self.tell_unread(&unread)
    }

    fn tell_unread(&self, unread: &BTreeMap<String, Option<String>>) -> bool {
        let reasons: Vec<String> = unread
            .iter()
            .filter_map(|(id, why)| Some(format!("nothing of {id} was read: {}", why.as_ref()?)))
            .collect();
        if reasons.is_empty() { self.restore(INPUT) } else { self.degrade(INPUT, reasons.join("; ")) }
    }

    /// Forgets a shard that is no longer ours.
    pub fn forget(&self, id: &str) {
        self.lock().shards.remove(id);
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        if unread.remove(id).flatten().is_some() {
            self.tell_unread(&unread);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_of_which_nothing_is_read_is_a_degradation_until_something_is() {
        let health = Health::default();
        assert!(!health.input("good", Ok(())));
        assert!(health.input("a.csv", Err("line 2: it is a poem")));
        assert!(!health.input("a.csv", Err("line 3: it is a poem")));
        assert_eq!(health.report().degraded[0].reason, "nothing of a.csv was read: line 2: it is a poem");
        assert!(!health.input("good", Err("one bad line")));
        assert!(health.input("a.csv", Ok(())));
        assert!(health.degraded().is_empty());
        health.input("b.csv", Err("it is empty"));
        health.forget("b.csv");
        assert!(health.degraded().is_empty());
    }

    #[test]
    fn a_part_is_away_once_until_it_is_back() {
        let health = Health::default();
        assert!(health.degrade("ml", "no answer within 2 s"));
        assert!(!health.degrade("ml", "refused"));
        assert_eq!(health.report().degraded[0].reason, "refused");
        assert!(health.restore("ml"));
        assert!(!health.restore("ml"));
        assert!(health.degraded().is_empty());
    }
}
