//! Tier 2: is this host behaving like itself and like its kind?
//!
//! The engine makes one [`FeatureVector`] per monitored host and closed 5-minute window; a [`Scorer`] turns vectors
//! into calibrated scores. The local behaviour scorer ([`local`]) is always on; models slot in beside it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};

pub mod artifact;
pub mod breaker;
pub mod calibration;
pub mod canary;
pub mod drift;
pub mod features;
pub mod forest;
pub mod local;
pub mod lstm;
pub mod model;
pub mod sagemaker;
pub mod train;
pub mod wire;

/// `[ml]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The always-on behaviour scorer.
    pub behavior: local::Settings,
}

/// One host's closed window, as numbers; see [`features`] for names, units and formulae.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct FeatureVector {
    /// The host.
    pub host: Address,
    /// Start of the window.
    pub window: EventTime,
    /// How many windows of this host came before this one, saturating; scorers stay silent while a host is new.
    pub history: u32,
    /// The features, in the order of [`features::NAMES`].
    pub values: Vec<f32>,
    /// The inputs of the sequence model for this window, in the order of [`features::SEQUENCE_NAMES`].
    pub sequence: Vec<f32>,
    /// Raw (unscaled) amounts for the summary sentence, in the order of [`features::RAW_NAMES`].
    pub raw: Vec<f32>,
}

/// How unusual a window is.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Score {
    /// Probability of a window at least this unusual in normal operation, 0 to 1; `None` while the host is new.
    pub p_value: Option<f64>,
    /// The features that made it so, largest contribution first.
    pub attribution: Vec<(String, f32)>,
    /// Which model spoke.
    pub model_version: String,
    /// `primary`, `canary`, `local`.
    pub variant: String,
    /// Whether a fallback spoke in place of what was asked for.
    pub degraded: bool,
}

/// Why a batch was not scored.
#[derive(Debug, thiserror::Error)]
#[error("score a batch of {windows} windows: {cause}")]
pub struct ScoreError {
    /// How many windows were asked about.
    pub windows: usize,
    /// What came back.
    pub cause: String,
}

/// Scores windows. Order and number of scores are those of the batch.
#[async_trait]
pub trait Scorer: Send + Sync {
    /// Scores a batch, within the backend's own deadline.
    async fn score(&self, batch: &[FeatureVector]) -> Result<Vec<Score>, ScoreError>;
}
