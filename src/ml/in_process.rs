//! The model in process: the scorer where no endpoint is configured.

use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::artifact::Slot;
use super::model::Judge;
use super::{FeatureVector, Score, ScoreError, Scorer};

/// Scores with the model in a [`Slot`]. Two microseconds a window, so that the lock is no queue.
#[derive(Debug)]
pub struct InProcess {
    slot: Arc<Slot>,
    judge: Mutex<Judge>,
}

impl InProcess {
    /// Remembers at most so many hosts.
    pub fn new(slot: Arc<Slot>, hosts_max: usize) -> InProcess {
        InProcess { slot, judge: Mutex::new(Judge::new(hosts_max)) }
    }
}

#[async_trait]
impl Scorer for InProcess {
    async fn score(&self, batch: &[FeatureVector]) -> Result<Vec<Score>, ScoreError> {
        let model = self.slot.model();
        Ok(self.judge.lock().unwrap_or_else(PoisonError::into_inner).score(&model, batch))
    }
}
