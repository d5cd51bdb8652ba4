//! Settings: what every tier needs to know before the first record, assembled from layers.
//!
//! `defaults.toml` is embedded, and is at once the default values and their documentation: no default stands anywhere
//! else. Above it lie the settings file, the environment, and whatever further [`Layer`] a caller brings. The text of all
//! layers is merged first and resolved once, in one fallible step, into the tiers' own `Settings`.
//!
//! *All problems at once:* serde stops at its first error. So each problem is noted with the place it came from, the
//! offending value is taken out (the default returns), and the document is read again, until it is read whole. Whoever
//! has five typing errors sees five lines, not the first of them five times.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{api, correlation, flow, ingest, ml, pipeline, publish, statistical, telemetry, validation};

pub mod dynamic;
mod effective;
mod layer;
mod ranges;
pub mod secrets;
pub mod ssm;

pub use effective::effective;
pub use layer::Layer;
use layer::Tree;

/// The commented defaults.
const DEFAULTS: &str = include_str!("defaults.toml");

/// The settings of all tiers, resolved.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What is ours.
    pub network: flow::network::Settings,
    /// Where records come from.
    pub ingest: ingest::Settings,
    /// Tier 1.
    pub statistical: statistical::Settings,
    /// Tier 3.
    pub correlation: correlation::Settings,
    /// Tier 4.
    pub validation: validation::Settings,
    /// Tier 2.
    pub ml: ml::Settings,
    /// Where anomalies are kept and announced.
    pub publish: publish::Settings,
    /// What waits for what, and how long.
    pub pipeline: pipeline::Settings,
    /// Who may ask, and where.
    pub api: api::Settings,
    /// What is logged, and how.
    pub telemetry: telemetry::Settings,
    /// Where settings come from besides the file and the environment.
    pub settings: Sources,
}

/// Settings `[settings]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sources {
    /// Parameters of Parameter Store, which may change while the service runs; none where it is not configured.
    pub ssm: Option<ssm::Settings>,
}

impl Settings {
    /// The defaults alone.
    pub fn defaults() -> Settings {
        Settings::assemble(&[]).expect("the embedded defaults resolve; a test holds them to it")
    }

    /// Defaults, then the file if there is one, then the environment.
    pub fn load(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Settings, SettingsError> {
        let (layers, problems) = Settings::layers(file, environment)?;
        match Settings::assemble(&layers) {
            Ok(settings) if problems.is_empty() => Ok(settings),
            Ok(_) => Err(SettingsError::Wrong(Problems(problems))),
            Err(more) => Err(SettingsError::Wrong(Problems([problems, more.0].concat()))),
        }
    }

    /// The layers of [`Settings::load`], with what of the file cannot be parsed.
    ///
    /// # Errors
    /// The file cannot be read at all.
    pub fn layers(
        file: Option<&Path>,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Result<(Vec<Layer>, Vec<Problem>), SettingsError> {
        let mut layers = Vec::new();
        let mut problems = Vec::new();
        if let Some(path) = file {
            let text = std::fs::read_to_string(path)
                .map_err(|cause| SettingsError::Unreadable { path: path.to_owned(), cause })?;
            let (layer, mistakes) = Layer::from_toml(&path.display().to_string(), &text);
            layers.push(layer);
            problems.extend(mistakes);
        }
        layers.push(Layer::from_environment(environment));
        Ok((layers, problems))
    }

    /// The defaults under the given layers, of which later ones win.
    pub fn assemble(layers: &[Layer]) -> Result<Settings, Problems> {
        let defaults = Tree::defaults();
        let mut tree = Tree::of(layers);
        let mut problems = Vec::new();
        let settings = loop {
            match serde_path_to_error::deserialize::<_, Settings>(tree.value()) {
                Ok(settings) => break settings,
                Err(error) => {
                    let (origin, repaired) = tree.take_out(error.path(), &defaults);
                    problems.push(Problem::new(&origin, first_line(&error.inner().to_string())));
                    if !repaired {
                        return Err(Problems(problems));
                    }
                }
            }
        };
        let mut found = settings.contradictions();
        for (key, message) in ranges::check(&tree.flat(), |key| defaults.leaf(key)) {
            if found.iter().all(|(known, _)| *known != key) {
                found.push((key, message));
            }
        }
        for (key, message) in found {
            problems.push(Problem::new(&tree.origin(&key), message));
        }
        if problems.is_empty() { Ok(settings) } else { Err(Problems(problems)) }
    }

    /// Values that are each well-formed, and wrong together or in a way that a range does not say.
    fn contradictions(&self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut require = |holds: bool, key: &str, message: &str| {
            if !holds {
                found.push((key.to_owned(), message.to_owned()));
            }
        };
        let mining = &self.statistical.crypto_mining;
        let rates = mining.rate_min <= mining.rate_max;
        require(
            rates,
            "statistical.crypto_mining.rate_min",
            "it is above rate_max, so that no session could be a miner's",
        );
        let messages = mining.message_min <= mining.message_max;
        require(
            messages,
            "statistical.crypto_mining.message_min",
            "it is above message_max, so that no session could be a miner's",
        );
        let pipeline = &self.pipeline;
        let grows = pipeline.retry_first <= pipeline.retry_most;
        require(grows, "pipeline.retry_first", "the first pause is longer than retry_most, the longest");
        let canary = &self.ml.canary;
        let pairs = 1..=ml::canary::Limits::PAIRS_MOST;
        require(
            pairs.contains(&canary.pairs),
            "ml.canary.pairs",
            &format!("from 1 to {} windows are compared", pairs.end()),
        );
        require(canary.level > 0.0 && canary.level < 1.0, "ml.canary.level", "a p-value lies between 0 and 1");
        require(canary.alert_ratio >= 1.0, "ml.canary.alert_ratio", "below 1 not even as many alerts would do");
        if let Some(sagemaker) = &self.ml.sagemaker {
            let stands_in = "the model in process stands in when an endpoint is away: set ml.model.enabled = true, or leave ml.sagemaker out";
            require(self.ml.model.enabled, "ml.sagemaker", stands_in);
            let breaker = &sagemaker.breaker;
            let grows = breaker.pause <= breaker.pause_max;
            require(grows, "ml.sagemaker.breaker.pause", "the first pause is longer than pause_max, the longest");
        }
        if let Err(reason) = self.telemetry.check_level() {
            found.push(("telemetry.log_level".to_owned(), reason));
        }
        let below = |table: &str, key: &str| format!("{table}.{key}");
        found.extend(self.api.check().into_iter().map(|(key, message)| (below("api", &key), message)));
        let sqlite = self.publish.sqlite.check().into_iter();
        found.extend(sqlite.map(|(key, message)| (below("publish.sqlite", key), message)));
        let silences = self.validation.check(&self.network.internal).into_iter();
        found.extend(silences.map(|(key, message)| (below("validation", key), message)));
        found
    }
}

/// The commented defaults as a settings file: what stands under `when` is commented out, ready to be chosen.
pub fn printed_defaults() -> String {
    let mut conditional = false;
    let mut printed = String::with_capacity(DEFAULTS.len() + 1024);
    for line in DEFAULTS.lines() {
        if line.starts_with('[') {
            conditional = line.starts_with("[when.");
            let table = line.trim_matches(['[', ']']).trim_start_matches("when.");
            if dynamic::is_changeable(table) && !line.starts_with("[[") {
                printed.push_str(&format!("# Changeable while running: /flowvigil/{}/…\n", table.replace('.', "/")));
            }
        }
        if conditional && !line.is_empty() && !line.starts_with('#') {
            printed.push_str("#: ");
        }
        printed.push_str(&line.replacen("[when.", "[", 1));
        printed.push('\n');
    }
    printed
}

/// Every leaf key of the defaults, dotted, with the text of the comment above it; `when.` is left out of the name.
pub fn documented_keys() -> Vec<(String, String)> {
    layer::documented_keys(DEFAULTS)
}

/// The variable of the environment that sets a dotted key.
pub fn environment_name(key: &str) -> String {
    format!("{}{}", layer::PREFIX, key.to_uppercase().replace('.', "__"))
}

/// The parameter, below the default path, that sets a dotted key.
pub fn parameter_name(key: &str) -> String {
    format!("/flowvigil/{}", key.replace('.', "/"))
}

fn first_line(message: &str) -> String {
    message.lines().next().unwrap_or_default().to_owned()
}

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file cannot be read at all.
    #[error("read settings file {}: {cause}", path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        cause: std::io::Error,
    },
    /// It was read, and is wrong.
    #[error("{0}")]
    Wrong(Problems),
}

/// Everything that is wrong with the settings.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problems(pub Vec<Problem>);

impl std::error::Error for Problems {}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0.len();
        write!(f, "{n} problem{} in the settings", if n == 1 { "" } else { "s" })?;
        self.0.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// One thing that is wrong, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// The file, or `environment`.
    pub place: String,
    /// 1-based line, where the place has lines.
    pub line: Option<usize>,
    /// The dotted key, or the variable's name.
    pub key: String,
    /// What is wrong with it.
    pub message: String,
}

impl Problem {
    fn new(origin: &layer::Origin, message: String) -> Problem {
        Problem { place: origin.place.to_string(), line: origin.line, key: origin.key.clone(), message }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.place)?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

#[cfg(test)]
mod tests;
