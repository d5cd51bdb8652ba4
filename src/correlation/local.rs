//! Incidents within one task: the pure core behind the port.
//!
//! Correct for as long as one task owns all shards, and what every task falls back to while the shared backend is away.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use uuid::Uuid;

use super::incidents::RestoreError;
use super::{
    CorrelationError, Incident, IncidentStore, Incidents, Progress, Progresses, Settings, Told, Watermarks, least,
};
use crate::finding::Finding;
use crate::ingest::ShardId;

/// Incidents in this task's memory, shared by its shards.
#[derive(Debug)]
pub struct LocalIncidents {
    incidents: Mutex<Incidents>,
    /// Whether other tasks may know incidents that this one does not.
    among_others: bool,
}

impl LocalIncidents {
    /// No incidents yet.
    pub fn new(settings: &Settings) -> LocalIncidents {
        LocalIncidents { incidents: Mutex::new(Incidents::new(settings)), among_others: false }
    }

    /// As one of several tasks, of which each correlates by itself: what is not known here may be known to another.
    #[must_use]
    pub fn among_others(self) -> LocalIncidents {
        LocalIncidents { among_others: true, ..self }
    }

    /// Goes on where [`LocalIncidents::snapshot`] was taken.
    pub fn restore(bytes: &[u8], settings: &Settings) -> Result<LocalIncidents, RestoreError> {
        Ok(LocalIncidents { incidents: Mutex::new(Incidents::restore(bytes, settings)?), among_others: false })
    }

    /// How many were closed early because there were too many.
    pub fn evictions(&self) -> u64 {
        self.lock().evictions()
    }

    /// The whole state.
    pub fn snapshot(&self) -> Vec<u8> {
        self.lock().snapshot()
    }

    fn lock(&self) -> MutexGuard<'_, Incidents> {
        // A fold that panicked left whole incidents behind, for each is replaced as one; the others are not to suffer.
        self.incidents.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[async_trait]
impl IncidentStore for LocalIncidents {
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Result<Vec<Incident>, CorrelationError> {
        Ok(self.lock().fold(&shard.0, findings))
    }

    async fn progress(
        &self,
        own: &Progresses,
        expected: &BTreeSet<ShardId>,
    ) -> Result<Option<Progress>, CorrelationError> {
        // What other tasks read is never heard of here.
        let alone = self.among_others || expected.is_empty();
        Ok(alone.then(|| Progress::least(own.values().copied())).flatten())
    }

    async fn expire(&self, watermarks: &Watermarks) -> Result<Vec<Incident>, CorrelationError> {
        Ok(self.lock().expire(least(watermarks)))
    }

    async fn abandoned(&self, watermarks: &Watermarks, told: &[Told]) -> Result<Vec<bool>, CorrelationError> {
        let (incidents, least) = (self.lock(), least(watermarks));
        Ok(told.iter().map(|told| !self.among_others && incidents.abandoned(least, told)).collect())
    }

    async fn get(&self, id: Uuid) -> Result<Option<Incident>, CorrelationError> {
        Ok(self.lock().get(id).cloned())
    }

    async fn state(&self, ids: &BTreeSet<Uuid>) -> Result<Option<Vec<u8>>, CorrelationError> {
        Ok(Some(self.lock().snapshot_of(|incident| ids.contains(&incident.id))))
    }

    async fn resume(&self, state: &[u8]) -> Result<(), CorrelationError> {
        let fatal = |cause: RestoreError| CorrelationError::Fatal {
            context: "restore the incidents".to_owned(),
            cause: cause.to_string(),
        };
        self.lock().take_in(state).map_err(fatal)
    }

    async fn release(&self, ids: &BTreeSet<Uuid>) -> Result<(), CorrelationError> {
        self.lock().release(ids);
        Ok(())
    }
}
