//! Tier 3: findings of all shards and tasks fold into one [`Incident`] per story.
//!
//! Shards are judged apart, and a crash replays some of their records, so findings arrive in any order and more than
//! once. Folding is therefore *commutative and idempotent by construction*: everything an incident knows is a set, an
//! extreme, HyperLogLog registers, or a number kept per (shard, window) and overwritten; see [`incident`]. What does
//! depend on the order of arrival is the id, and who else was met: the id is derived from the first window that spoke of the
//! episode when it closed, and kept for life. Therefore whoever folds keeps to the order of windows over all shards
//! ([`IncidentStore::progress`]), as far as these are read side by side. What looks at open windows say serves an early report
//! alone ([`incident`]).
//!
//! Findings of one [`IncidentKey`] are one episode while they overlap or lie within the
//! threat's episode gap ([`Settings::episode_gap`]). Incidents that share an actor, or of which one's target is the
//! other's actor, are one story; they stay incidents of their own and name each other ([`Incident::related`]).
//!
//! [`Incidents`] is the pure core; [`local`] puts it behind the port. Both know nothing of what is confirmed: that is
//! for validation to say. Nor are their ids the last word: tasks that cannot ask each other give one episode several, and
//! the store of anomalies decides under which it is told ([`crate::publish::episodes`]).

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use jiff::SignedDuration;
use serde::Deserialize;
use uuid::Uuid;

use crate::finding::{Finding, IncidentKey, Threat};
use crate::flow::EventTime;
use crate::ingest::ShardId;

pub mod fallback;
pub mod incident;
pub mod incidents;
pub mod local;
mod pairs;
pub mod progress;
pub mod redis;

pub use incident::{Account, Incident, Relation};
pub use incidents::Incidents;
pub use progress::{Progress, Progresses};

/// Settings of the tier, `[correlation]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How many incidents are kept open at once, at about 3 KB each and never more than about 32 KB.
    pub incidents_max: usize,
    /// How far apart in time two threats of one actor may lie and still be one story.
    pub story: SignedDuration,
    /// For how long nothing may be seen of an episode before it is over, per threat.
    pub episode_gap: EpisodeGap,
    /// Where the findings of all tasks meet; within each task when it is not configured.
    pub redis: Option<redis::Settings>,
}

/// For how long nothing may be seen of an episode before it is over, `[correlation.episode_gap]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EpisodeGap {
    /// Of a scan.
    pub port_scan: SignedDuration,
    /// Of a flood.
    pub ddos: SignedDuration,
    /// Of a beacon.
    pub c2_beacon: SignedDuration,
    /// Of a miner.
    pub crypto_mining: SignedDuration,
    /// Of Tor use.
    pub tor: SignedDuration,
    /// Of a host out of character.
    pub behavior: SignedDuration,
    /// Of log-ins that are guessed.
    pub brute_force: SignedDuration,
    /// Of a host that sends data away.
    pub exfiltration: SignedDuration,
}

impl EpisodeGap {
    /// The gap of one threat, s.
    pub fn seconds(&self, threat: Threat) -> u32 {
        let gap = match threat {
            Threat::PortScan => self.port_scan,
            Threat::Ddos => self.ddos,
            Threat::C2Beacon => self.c2_beacon,
            Threat::CryptoMining => self.crypto_mining,
            Threat::Tor => self.tor,
            Threat::Behavior => self.behavior,
            Threat::BruteForce => self.brute_force,
            Threat::Exfiltration => self.exfiltration,
        };
        whole_seconds(gap)
    }
}

/// A setting's duration in event time's unit; negative is 0.
fn whole_seconds(duration: SignedDuration) -> u32 {
    u32::try_from(duration.as_secs().max(0)).unwrap_or(u32::MAX)
}

/// Why a backend could not fold.
#[derive(Debug, thiserror::Error)]
pub enum CorrelationError {
    /// It may go better later; until then the task correlates by itself and says `degraded`.
    #[error("{context}: {cause}")]
    Retry {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
    /// What was asked is to blame, or a setting: it will not be done, however often.
    #[error("{context}: {cause}")]
    Fatal {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
}

/// An episode as it stands in the store of anomalies.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// What it is about.
    pub key: IncidentKey,
    /// First moment.
    pub first_seen: EventTime,
    /// The last moment that it can have had by then: not everything that is seen of it is told at once.
    pub last_seen: EventTime,
}

/// How far each shard's event time is.
pub type Watermarks = BTreeMap<ShardId, EventTime>;

/// The watermark that all shards have passed; 0 where there are none.
fn least(watermarks: &Watermarks) -> EventTime {
    watermarks.values().copied().min().unwrap_or_default()
}

/// Where the incidents of all shards meet.
#[async_trait]
pub trait IncidentStore: Send + Sync {
    /// Folds findings of one shard, atomically, and returns every incident that they touched, *changed or not*: after a
    /// crash the caller may have folded without having told. Incidents that gained a relation are among them, and so
    /// are those that were found to be part of another (`absorbed_by`, closed). In order of first moment, then of key.
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Result<Vec<Incident>, CorrelationError>;

    /// As [`IncidentStore::fold`], but `None` where the findings of other tasks cannot be met now: nothing is folded then.
    async fn fold_together(
        &self,
        shard: &ShardId,
        findings: &[Finding],
    ) -> Result<Option<Vec<Incident>>, CorrelationError> {
        self.fold(shard, findings).await.map(Some)
    }

    /// Notes how far the shards of this task are; answers how far all shards are, these and those that other tasks read, or
    /// `None` where that cannot be known now. `expected` are shards that nobody reads yet, as far as this task knows.
    async fn progress(
        &self,
        own: &Progresses,
        expected: &BTreeSet<ShardId>,
    ) -> Result<Option<Progress>, CorrelationError> {
        Ok(expected.is_empty().then(|| Progress::least(own.values().copied())).flatten())
    }

    /// Whether incidents outlive this task. What a fold answers is then to be delivered before the next fold: a task that
    /// reads the same records again must find the incident as it was.
    fn is_shared(&self) -> bool {
        false
    }

    /// Closes the incidents of which nothing has been seen for the threat's gap before the least watermark of all shards,
    /// these and those that other tasks read, and returns them. Each is returned once, but for a backend that is shared:
    /// it returns one again that was not forgotten in time, for the task that was to tell it may be gone. What comes in of
    /// an incident before it is forgotten opens it again.
    ///
    /// A shard that has not told a watermark yet stands at 0, and so keeps everything open.
    async fn expire(&self, watermarks: &Watermarks) -> Result<Vec<Incident>, CorrelationError>;

    /// A shard has ended, and these continue it: none of them is less far, and it is not waited for any more.
    async fn continued(&self, _shard: &ShardId, _by: &[ShardId]) -> Result<(), CorrelationError> {
        Ok(())
    }

    /// Forgets closed incidents: what became of them is recorded and announced.
    async fn forget(&self, _ids: &[Uuid]) -> Result<(), CorrelationError> {
        Ok(())
    }

    /// Whether findings of a shard are known to this process alone, so that no checkpoint may pass them: whoever reads the
    /// shard next must find them again.
    fn pending(&self, _shard: &ShardId) -> bool {
        false
    }

    /// Of each told episode, whether it is over, for all shards have passed the threat's gap behind it, and nobody goes on
    /// with it: no incident that is kept, be it closed and not forgotten, overlaps it or lies within the gap, under whichever
    /// id. What a backend cannot know, since others may know more or it is away, is not abandoned.
    ///
    /// An answer is of the moment. What was abandoned a while ago and still is has been lost.
    async fn abandoned(&self, _watermarks: &Watermarks, told: &[Told]) -> Result<Vec<bool>, CorrelationError> {
        Ok(vec![false; told.len()])
    }

    /// An incident that is still open.
    async fn get(&self, id: Uuid) -> Result<Option<Incident>, CorrelationError>;

    /// What of these incidents would be lost with this process, to be kept with a shard's snapshot; `None` where the backend
    /// keeps it.
    async fn state(&self, _ids: &BTreeSet<Uuid>) -> Result<Option<Vec<u8>>, CorrelationError> {
        Ok(None)
    }

    /// Takes in what [`IncidentStore::state`] gave, here or in another process. What is known of them already stays known.
    async fn resume(&self, _state: &[u8]) -> Result<(), CorrelationError> {
        Ok(())
    }

    /// Lets go of incidents that another process goes on with, where that would not hear of them otherwise.
    async fn release(&self, _ids: &BTreeSet<Uuid>) -> Result<(), CorrelationError> {
        Ok(())
    }
}
