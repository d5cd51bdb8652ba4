//! Tier 2: is this host behaving like itself and like its kind?
//!
//! The engine makes one [`FeatureVector`] per monitored host and closed 5-minute window. `top3_z` ([`local`]) ranks it among
//! this deployment's windows; a [`Scorer`] asks the trained models, in process or at SageMaker endpoints; [`agreement`] says what
//! their opinion is worth here; [`behavior`] joins what they say, makes findings of what is rare enough, and writes the host's latest score beside whatever else is found.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};

pub mod agreement;
pub mod artifact;
pub mod behavior;
pub(crate) mod bounds;
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
pub mod registry;
pub mod s3;
pub mod sagemaker;
pub mod separation;
pub mod train;
pub mod watch;
pub mod wire;

/// `[ml]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// When a host is out of character.
    pub behavior: local::Settings,
    /// The trained models.
    pub model: ModelSettings,
    /// When a model no longer fits.
    pub drift: watch::Settings,
    /// When a canary may take over.
    pub canary: canary::Limits,
    /// Endpoints that score in place of the model in process.
    pub sagemaker: Option<sagemaker::Settings>,
}

/// `[ml.model]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Whether the models are asked at all; if not, `top3_z` is alone.
    pub enabled: bool,
    /// The artifact: a `model.tar.gz`, or the folder it was unpacked to, `s3://bucket/key`, or [`registry::PLACE`] for
    /// whichever is in charge; empty for the embedded one.
    pub path: PathBuf,
    /// Whether a bucket's name goes into the path instead of the host name.
    pub path_style: bool,
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
#[derive(Clone, PartialEq, Debug)]
pub struct Score {
    /// Probability of a window at least this unusual in normal operation, 0 to 1; `None` while the host is new.
    pub p_value: Option<f64>,
    /// The same by scorer, in the order of [`model::Part::ALL`], before they were joined.
    pub p_values: [Option<f64>; 3],
    /// Evidence of forest and sequence model that is no news of the host: see [`agreement::Habit::at`].
    pub usual: [f32; 2],
    /// Whether the host has been known for so long that its habits are.
    pub grown: bool,
    /// By scorer: the features that made it unusual, largest contribution first; empty for what is usual to it.
    pub attributions: [Vec<(String, f32)>; 3],
    /// Which model spoke.
    pub model_version: Arc<str>,
    /// `primary`, `canary`, `local`.
    pub variant: Arc<str>,
    /// How many windows of this deployment the model was calibrated on; 0 where it comes from elsewhere.
    pub calibrated: u64,
    /// Whether a fallback spoke in place of what was asked for.
    pub degraded: bool,
}

impl Score {
    /// The scorer to which the window is least usual, each heard at its weight.
    pub fn loudest(&self) -> model::Part {
        let shares = model::weighted(self.p_values);
        let least = |part: &model::Part| shares[*part as usize].unwrap_or(f64::INFINITY);
        let loudest = model::Part::ALL.into_iter().min_by(|a, b| least(a).total_cmp(&least(b)));
        loudest.unwrap_or(model::Part::Top3Z)
    }

    /// Why the window is unusual to it.
    pub fn attribution(&self) -> &[(String, f32)] {
        &self.attributions[self.loudest() as usize]
    }
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
    /// Scores a batch, within the backend's own deadline; what is remembered of hosts is the caller's, a judge for each shard.
    async fn score(&self, judge: &mut model::Judge, batch: &[FeatureVector]) -> Result<Vec<Score>, ScoreError>;

    /// How the endpoints are that it asks; none for a scorer in process.
    fn endpoints(&self) -> Vec<sagemaker::EndpointStatus> {
        Vec::new()
    }

    /// How a canary compares with the primary; nothing where none is compared.
    fn comparison(&self) -> Option<canary::Report> {
        None
    }
}
