//! Tier 2: is this host behaving like itself and like its kind?
//!
//! The engine makes one [`FeatureVector`] per monitored host and closed 5-minute window; a [`Scorer`] turns vectors
//! into calibrated scores. The local behaviour scorer ([`local`]) is always on; models slot in beside it.

use std::path::PathBuf;

use async_trait::async_trait;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};

pub mod artifact;
pub mod breaker;
pub mod calibration;
pub mod canary;
pub mod drift;
pub mod features;
pub mod forest;
pub mod in_process;
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
    /// The trained models; without this table the behaviour scorer is alone.
    pub model: Option<ModelSettings>,
    /// Endpoints that score in place of the model in process.
    pub sagemaker: Option<sagemaker::Settings>,
}

/// `[ml.model]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// The artifact: a `model.tar.gz`, or the folder it was unpacked to; empty for the embedded one.
    pub path: PathBuf,
    /// How often the path is looked at for another model.
    pub reload: SignedDuration,
    /// Hosts that are remembered.
    pub hosts_max: usize,
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
pub trait Scorer: Send + Sync + std::fmt::Debug {
    /// Scores a batch, within the backend's own deadline.
    async fn score(&self, batch: &[FeatureVector]) -> Result<Vec<Score>, ScoreError>;

    /// How the endpoints are that it asks; none for a scorer in process.
    fn endpoints(&self) -> Vec<sagemaker::EndpointStatus> {
        Vec::new()
    }
}
