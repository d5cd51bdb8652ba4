//! The model in process: the scorer where no endpoint is configured.

use std::sync::Arc;

use async_trait::async_trait;

use super::artifact::Slot;
use super::model::Judge;
use super::{FeatureVector, Score, ScoreError, Scorer};

/// Scores with the model in a [`Slot`].
#[derive(Debug)]
pub struct InProcess {
    slot: Arc<Slot>,
}

impl InProcess {
    /// Asks whatever model is in the slot when a batch comes.
    pub fn new(slot: Arc<Slot>) -> InProcess {
        InProcess { slot }
    }
}

#[async_trait]
impl Scorer for InProcess {
    async fn score(&self, judge: &mut Judge, batch: &[FeatureVector]) -> Result<Vec<Score>, ScoreError> {
        Ok(judge.score(&self.slot.model(), batch))
    }
}
