//! Which versions of a model there are, where their artifacts lie, and which of them is in charge.
//!
//! | state | is |
//! | --- | --- |
//! | `candidate` | registered, not in use |
//! | `canary` | on trial beside the primary |
//! | `primary` | in charge; there is one at most |
//! | `retired` | was in charge or on trial; its row stays for the record |
//!
//! On AWS it is the table `model-configuration` (hash `model_type`, range `version`), else a table in the SQLite file of the
//! anomalies. A service whose `[ml.model] path` is [`PLACE`] uses the primary's artifact, and takes up another primary when there
//! is one.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use super::model::{Manifest, Source};
use crate::flow::EventTime;

pub mod dynamodb;
pub mod local;

/// The `model_type` of all rows: one artifact holds the forest and the sequence model.
pub const MODEL_TYPE: &str = "behavior";
/// What stands in `[ml.model] path` for "whichever is in charge".
pub const PLACE: &str = "model-configuration";

/// What a version is to the service.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Registered, not in use.
    Candidate,
    /// On trial.
    Canary,
    /// In charge.
    Primary,
    /// No longer in use.
    Retired,
}

impl State {
    /// The name in the table.
    pub const fn name(self) -> &'static str {
        match self {
            State::Candidate => "candidate",
            State::Canary => "canary",
            State::Primary => "primary",
            State::Retired => "retired",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<State, String> {
        [State::Candidate, State::Canary, State::Primary, State::Retired]
            .into_iter()
            .find(|state| state.name() == text)
            .ok_or_else(|| format!("`{text}` is not candidate, canary, primary or retired"))
    }
}

/// One version.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Version {
    /// As the artifact's manifest has it.
    pub version: String,
    /// What it is to the service.
    pub state: State,
    /// Where the artifact lies: a path, or `s3://bucket/key`.
    pub place: String,
    /// Where its training windows came from.
    pub source: Source,
    /// First and last window of the training.
    pub trained: (EventTime, EventTime),
    /// Measured on windows that training did not see.
    pub metrics: BTreeMap<String, f64>,
    /// When the state last changed (wall clock).
    pub changed: EventTime,
}

impl Version {
    /// A version as its manifest describes it.
    pub fn of(manifest: &Manifest, place: &str, state: State, now: EventTime) -> Version {
        Version {
            version: manifest.model_version.clone(),
            state,
            place: place.to_owned(),
            source: manifest.source,
            trained: (manifest.data.from, manifest.data.to),
            metrics: manifest.metrics.clone(),
            changed: now,
        }
    }
}

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no such version.
    #[error("model {0} is not registered; `flowvigil models register` does it")]
    Unknown(String),
    /// Somebody else changed it meanwhile, or the backend is away.
    #[error("{context}: {cause}")]
    Backend {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
}

/// Where versions are kept.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Keeps a version; one that is there already is replaced, and keeps nothing of what it was.
    async fn put(&self, version: &Version) -> Result<(), RegistryError>;

    /// All versions, the latest change first.
    async fn list(&self) -> Result<Vec<Version>, RegistryError>;

    /// Gives a version a state, at `now`. Whoever was in charge is retired in the same step when another comes into charge.
    async fn set(&self, version: &str, state: State, now: EventTime) -> Result<(), RegistryError>;

    /// The version in charge.
    async fn primary(&self) -> Result<Option<Version>, RegistryError> {
        Ok(self.list().await?.into_iter().find(|version| version.state == State::Primary))
    }
}

/// The latest change first; ties by version.
fn newest_first(mut versions: Vec<Version>) -> Vec<Version> {
    versions.sort_by(|a, b| b.changed.cmp(&a.changed).then_with(|| a.version.cmp(&b.version)));
    versions
}
