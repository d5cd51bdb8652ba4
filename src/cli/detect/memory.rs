//! Incidents and anomalies for as long as the command runs, by the rules of the service's stores.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use crate::anomaly::Anomaly;
use crate::correlation::local::LocalIncidents;
use crate::correlation::{self, Incident, IncidentStore, Progress, Progresses, Watermarks};
use crate::finding::{Finding, IncidentKey};
use crate::ingest::ShardId;
use crate::pipeline::chain::Stores;
use crate::pipeline::chain::recording::Records;
use crate::publish::episodes::{Claim, Claimed, Episodes};
use crate::publish::{Recorded, revision};

/// What the chain folds into and the recorder writes to.
pub(super) struct Memory {
    incidents: LocalIncidents,
    told: Mutex<Told>,
}

#[derive(Default)]
struct Told {
    anomalies: BTreeMap<Uuid, Anomaly>,
    episodes: BTreeMap<IncidentKey, Episodes>,
}

impl Memory {
    /// Nothing folded and nothing told.
    pub(super) fn new(settings: &correlation::Settings) -> Memory {
        Memory { incidents: LocalIncidents::new(settings), told: Mutex::default() }
    }

    /// The last word on each.
    pub(super) fn anomalies(&self) -> Vec<Anomaly> {
        self.told().anomalies.values().cloned().collect()
    }

    /// How many incidents were closed early for want of room.
    pub(super) fn evicted_incidents(&self) -> u64 {
        self.incidents.evictions()
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Stores for Memory {
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Vec<Incident> {
        self.incidents.fold(shard, findings).await.expect("memory is never away")
    }

    async fn progress(&self, own: &Progresses, expected: &BTreeSet<ShardId>) -> Option<Progress> {
        self.incidents.progress(own, expected).await.expect("memory is never away")
    }

    async fn expire(&self, watermarks: &Watermarks) -> Vec<Incident> {
        self.incidents.expire(watermarks).await.expect("memory is never away")
    }

    async fn recall(&self, id: Uuid) -> Option<Anomaly> {
        self.told().anomalies.get(&id).cloned()
    }
}

#[async_trait]
impl Records for Memory {
    async fn claim(&self, claim: &Claim) -> Option<Claimed> {
        Some(self.told().episodes.entry(claim.key).or_default().claim(claim))
    }

    async fn record(&self, anomaly: &Anomaly) -> Result<Recorded, String> {
        let mut anomaly = anomaly.clone();
        let anomalies = &mut self.told().anomalies;
        let recorded = match anomalies.get(&anomaly.anomaly_id) {
            None => Recorded::New,
            Some(known) if revision(known) >= revision(&anomaly) => return Ok(Recorded::Unchanged),
            Some(known) => {
                anomaly.detection_timestamp = anomaly.detection_timestamp.min(known.detection_timestamp);
                Recorded::Updated
            }
        };
        anomalies.insert(anomaly.anomaly_id, anomaly);
        Ok(recorded)
    }

    async fn recall(&self, id: Uuid) -> Option<Anomaly> {
        self.told().anomalies.get(&id).cloned()
    }

    async fn bury(&self, _anomaly: Anomaly, _cause: String) {
        unreachable!("memory takes everything");
    }
}
