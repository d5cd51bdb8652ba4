//! The settings of a running service: from all layers at the start, and from Parameter Store again and again.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::SettingsArgs;
use crate::api::config::Effective;
use crate::aws;
use crate::health::Health;
use crate::pipeline::Thresholds;
use crate::settings::dynamic::{Change, Dynamic};
use crate::settings::ssm::{Parameters, Read};
use crate::settings::{Layer, Problems, Settings, SettingsError, effective, secrets};
use crate::wait;

/// What health calls this part.
const PART: &str = "settings";

/// Settings that may change.
pub(super) struct Live {
    /// As they are at the start.
    pub settings: Settings,
    source: Option<Source>,
    shown: Shown,
}

/// The settings in effect, as they may be shown.
#[derive(Clone)]
struct Shown {
    /// The layers that stay, with the ARNs of secrets and not what these stand for.
    layers: Vec<Layer>,
    arguments: Option<Layer>,
    effective: Effective,
}

impl Shown {
    fn of(layers: Vec<Layer>) -> Shown {
        let shown = Shown { layers, arguments: None, effective: Arc::new(ArcSwap::default()) };
        shown.show(None);
        shown
    }

    /// Shows them anew, with the parameters that are in use.
    fn show(&self, parameters: Option<&Read>) {
        let layers = self.layers.iter().chain(parameters.map(|read| &read.layer)).chain(&self.arguments);
        let layers: Vec<Layer> = layers.cloned().collect();
        let is_encrypted = |name: &str| parameters.is_some_and(|read| read.is_encrypted(name));
        self.effective.store(Arc::new(effective(&layers, is_encrypted)));
    }
}

/// Where they change from.
struct Source {
    parameters: Parameters,
    every: Duration,
    dynamic: Dynamic,
    secrets: BTreeMap<String, String>,
    aws: aws_config::SdkConfig,
    /// Why the parameters are not in use.
    trouble: Option<String>,
    /// The parameters as they were last read.
    last: Option<Read>,
    shown: Shown,
}

impl Live {
    /// Reads all layers, and the secrets that they name. Parameters that are away or wrong are left out, and read again
    /// later: the service begins without them and says so.
    pub async fn load(args: &SettingsArgs) -> anyhow::Result<Live> {
        let (mut layers, problems) = Settings::layers(args.config.as_deref(), super::environment())?;
        let begun = Settings::assemble(&layers);
        let settings = match begun {
            Ok(settings) if problems.is_empty() => settings,
            Ok(_) => return Err(SettingsError::Wrong(Problems(problems)).into()),
            Err(more) => return Err(SettingsError::Wrong(Problems([problems, more.0].concat())).into()),
        };
        let shown = Shown::of(layers.clone());
        let named: Vec<String> = layers.iter().flat_map(|layer| layer.texts(secrets::is_secret)).collect();
        let Some(ssm) = settings.settings.ssm.clone() else {
            if named.is_empty() {
                return Ok(Live { settings, source: None, shown });
            }
            let known = secrets::read(&aws::load().await, named).await?;
            layers = layers.into_iter().map(|layer| layer.with_texts(&known)).collect();
            let settings = Settings::assemble(&layers).map_err(SettingsError::Wrong)?;
            return Ok(Live { settings, source: None, shown });
        };
        let aws = aws::load().await;
        let known = secrets::read(&aws, named).await?;
        layers = layers.into_iter().map(|layer| layer.with_texts(&known)).collect();
        let (dynamic, settings) = Dynamic::begin(layers, None).map_err(SettingsError::Wrong)?;
        let parameters = Parameters::new(&aws, &ssm);
        let every = wait::positive(ssm.interval).max(Duration::from_millis(100));
        let (trouble, last) = (None, None);
        let mut source =
            Source { parameters, every, dynamic, secrets: known, aws, trouble, last, shown: shown.clone() };
        let settings = source.begin().await.unwrap_or(settings);
        Ok(Live { settings, source: Some(source), shown })
    }

    /// The settings in effect, as they may be shown, with `arguments` over all layers.
    pub fn effective(&mut self, arguments: Option<Layer>) -> Effective {
        self.shown.arguments = arguments;
        let last =
            self.source.as_ref().filter(|source| source.trouble.is_none()).and_then(|source| source.last.as_ref());
        self.shown.show(last);
        if let Some(source) = &mut self.source {
            source.shown = self.shown.clone();
        }
        self.shown.effective.clone()
    }

    /// Where the stages of the pipeline hear of changes; nothing where nothing can change. Runs until the process ends.
    pub fn follow(
        self,
        health: Arc<Health>,
        apply: impl Fn(&Settings) + Send + 'static,
    ) -> Option<watch::Receiver<Arc<Thresholds>>> {
        let source = self.source?;
        let (send, changes) = watch::channel(Arc::new(thresholds(&self.settings)));
        tokio::spawn(source.run(health, send, apply));
        Some(changes)
    }
}

impl Source {
    /// The settings with the parameters as they are now; they count as what the process began with.
    async fn begin(&mut self) -> Option<Settings> {
        match self.read().await {
            Ok(layer) => match self.dynamic.restart(&layer) {
                Ok(settings) => return Some(settings),
                Err(problems) => self.trouble = Some(refused(&problems)),
            },
            Err(trouble) => self.trouble = Some(trouble),
        }
        None
    }

    async fn run(
        mut self,
        health: Arc<Health>,
        changes: watch::Sender<Arc<Thresholds>>,
        apply: impl Fn(&Settings) + Send + 'static,
    ) {
        if let Some(trouble) = &self.trouble {
            tracing::warn!(trouble, "the parameters are not in use");
            health.degrade(PART, trouble.clone());
        }
        // What waits for a restart is no failure of the moment: it stays until the parameters say otherwise.
        let mut waiting: Vec<String> = Vec::new();
        loop {
            tokio::time::sleep(self.every).await;
            let outcome = match self.read().await {
                Ok(layer) => self.dynamic.replace(&layer).map_err(|problems| refused(&problems)),
                Err(trouble) => Err(trouble),
            };
            match outcome {
                Ok(change) => {
                    if let Some(Change { settings, applied, waiting: later }) = change {
                        tracing::info!(?applied, waiting = ?later, "the parameters have changed");
                        self.shown.show(self.last.as_ref());
                        changes.send_replace(Arc::new(thresholds(&settings)));
                        apply(&settings);
                        waiting = later;
                    }
                    if waiting.is_empty() {
                        if health.restore(PART) {
                            tracing::info!("the parameters are in use");
                        }
                    } else {
                        health.degrade(PART, format!("in use only after a restart: {}", waiting.join(", ")));
                    }
                }
                Err(trouble) => {
                    if health.degrade(PART, trouble.clone()) {
                        tracing::warn!(trouble, "the parameters are not in use, the old settings stay");
                    }
                }
            }
        }
    }

    /// The parameters as a layer, with the secrets that they name in it.
    async fn read(&mut self) -> Result<Layer, String> {
        let away = |cause: &dyn std::fmt::Display| format!("read the parameters: {cause}; the last settings stay");
        let read = self.parameters.read().await.map_err(|fault| away(&fault.cause))?;
        let mut named = read.layer.texts(secrets::is_secret);
        named.retain(|arn| !self.secrets.contains_key(arn));
        if !named.is_empty() {
            self.secrets.extend(secrets::read(&self.aws, named).await.map_err(|error| away(&error))?);
        }
        // The values of encrypted parameters must not come back in a message.
        if let Err(problems) = self.dynamic.check(&read.layer) {
            return Err(refused(&read.hide(problems)));
        }
        let layer = read.layer.clone().with_texts(&self.secrets);
        self.last = Some(read);
        Ok(layer)
    }
}

/// Everything that is wrong, in one line.
fn refused(problems: &Problems) -> String {
    let all: Vec<String> = problems.0.iter().map(ToString::to_string).collect();
    format!("the parameters are refused, the last settings stay: {}", all.join("; "))
}

fn thresholds(settings: &Settings) -> Thresholds {
    Thresholds {
        statistical: settings.statistical.clone(),
        behavior: settings.ml.behavior.clone(),
        validation: settings.validation.clone(),
    }
}
