//! How the models do in service: which model is in use, what was asked of its endpoints, how its variants compare, and
//! whether the windows are still those it was trained on. `/v1/models` shows it, metrics count it, and a model that no longer
//! fits is announced.
//!
//! One for all shards of a task. The lock is taken once a batch for as long as counting takes, never across a call.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::agreement::{Agreement, Kept, Promise};
use super::artifact::Slot;
use super::canary;
use super::drift::{self, Monitor};
use super::features::NAMES;
use super::model::{Judge, Manifest, Model, Part, Source};
use super::sagemaker::EndpointStatus;
use super::{FeatureVector, Score, ScoreError, Scorer};
use crate::flow::EventTime;

/// `[ml.drift]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How often drift is looked at.
    pub check_every: SignedDuration,
    /// Fewest windows before anything is concluded from them.
    pub windows: u64,
    /// A feature with a higher population stability index has moved.
    pub stability_index: f64,
    /// Share of features that must have moved, 0 to 1.
    pub features: f64,
    /// The realised share of alerts may be this many times above or below its target.
    pub alert_ratio: f64,
    /// How far the mean of `-log10 p` must have come from where it was.
    pub score: f64,
    /// Oldest model that is not told to be old.
    pub age: SignedDuration,
    /// How long the same recommendation is not announced again.
    pub again: SignedDuration,
}

impl Settings {
    fn limits(&self) -> drift::Limits {
        drift::Limits {
            stability_index: self.stability_index,
            features: self.features,
            windows: self.windows,
            alert_ratio: self.alert_ratio,
            score: self.score,
            age_seconds: u64::try_from(self.age.as_secs()).unwrap_or(0),
        }
    }
}

/// The models of a task, and what is known of how they do.
#[derive(Debug)]
pub struct Watch {
    scorer: Arc<dyn Scorer>,
    slot: Arc<Slot>,
    limits: drift::Limits,
    again: u32,
    /// The intended share of alerts.
    target: f64,
    seen: Mutex<Seen>,
}

/// What was counted since the model in use came.
#[derive(Debug)]
struct Seen {
    version: String,
    monitor: Monitor,
    /// By the variant that spoke.
    variants: BTreeMap<Arc<str>, canary::Variant>,
    /// Whether what forest and sequence model say is as rare here as they say.
    promises: [Promise; 2],
    degraded: u64,
    /// How many models came before it.
    exchanged: u64,
    /// What was announced last of the model in use, and when.
    announced: Option<(Vec<String>, EventTime)>,
}

/// Everything about the models.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = ModelsReport)]
pub struct Report {
    /// The manifest of the model in process: version, schema, training data, metrics, files with their checksums.
    #[schema(value_type = Object)]
    pub model: Manifest,
    /// Where it came from; nothing for the embedded one.
    pub place: Option<String>,
    /// How many models were in use before it, since the start.
    pub exchanged: u64,
    /// Windows that were scored, by the variant that spoke: `local` in process, `primary` and `canary` at endpoints.
    pub variants: BTreeMap<String, canary::VariantReport>,
    /// Windows for which the model in process stood in.
    pub degraded_windows: u64,
    /// The endpoints with their breakers; empty where the models run in process alone.
    pub endpoints: Vec<EndpointStatus>,
    /// The canary against the primary on the same windows, with its verdict; nothing where none is compared.
    pub canary: Option<canary::Report>,
    /// Whether the p-values of forest and sequence model hold on the windows of this deployment; where they do not, they are
    /// ranked among its windows.
    #[schema(value_type = BTreeMap<String, Kept>)]
    pub promises: BTreeMap<&'static str, Kept>,
    /// Whether the windows are still those of the training.
    pub drift: drift::Report,
    /// Whether the model should be trained again.
    pub retrain: Recommendation,
}

/// Whether to train again, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Recommendation {
    /// Whether.
    pub recommended: bool,
    /// Why; empty when it is not.
    pub reasons: Vec<String>,
}

/// The detail of the event `Model Drift Detected`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Drifted {
    /// Which model.
    pub model_version: String,
    /// Why it should be trained again.
    pub reasons: Vec<String>,
    /// Windows that were looked at.
    pub windows: u64,
    /// Share of windows that alerted, and the share that is intended.
    pub alert_rate: f64,
    /// See `alert_rate`.
    pub alert_target: f64,
    /// Age of the model, s.
    pub age_seconds: u64,
    /// The features that have moved most, with their population stability index.
    pub features: Vec<(String, f64)>,
}

/// How many features an event names.
const NAMED: usize = 5;

impl Watch {
    /// Watches what a scorer says; `slot` holds the model in process, `target` is the intended share of alerts.
    pub fn new(scorer: Arc<dyn Scorer>, slot: Arc<Slot>, settings: &Settings, target: f64) -> Watch {
        let model = slot.model();
        let seen = Seen::new(&model.manifest.model_version, Monitor::new(model.bins().to_vec()));
        let again = u32::try_from(settings.again.as_secs()).unwrap_or(0);
        Watch { scorer, slot, limits: settings.limits(), again, target, seen: Mutex::new(seen) }
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model in use and what was seen of it, which begins anew with each: nothing is ever told of one model that was seen of
    /// another. The model is looked up under the lock, so that whoever still holds the one before cannot bring it back.
    fn of_the_model_in_use(&self) -> (Arc<Model>, MutexGuard<'_, Seen>) {
        let mut seen = self.seen();
        let model = self.slot.model();
        if seen.version != model.manifest.model_version {
            let exchanged = seen.exchanged + 1;
            *seen = Seen::new(&model.manifest.model_version, Monitor::new(model.bins().to_vec()));
            seen.exchanged = exchanged;
        }
        (model, seen)
    }

    /// Scores windows of one shard; see [`Scorer::score`].
    pub async fn score(&self, judge: &mut Judge, batch: &[FeatureVector]) -> Result<Vec<Score>, ScoreError> {
        self.scorer.score(judge, batch).await
    }

    /// The endpoints.
    pub fn endpoints(&self) -> Vec<EndpointStatus> {
        self.scorer.endpoints()
    }

    /// Takes in what came of windows: their scores, and which of them alerted.
    pub fn observe(&self, batch: &[FeatureVector], scores: &[Score], alerts: &[bool]) {
        let (_, mut seen) = self.of_the_model_in_use();
        for ((vector, score), alert) in batch.iter().zip(scores).zip(alerts) {
            let Some(p_value) = score.p_value else { continue };
            seen.monitor.observe(&vector.values, -p_value.log10(), *alert);
            seen.variants.entry(score.variant.clone()).or_default().window(p_value, *alert);
            seen.degraded += u64::from(score.degraded);
            for (promise, part) in seen.promises.iter_mut().zip(Agreement::PARTS) {
                score.p_values[part as usize].into_iter().for_each(|p| promise.hear(p));
            }
        }
    }

    /// Everything, at `now` (wall clock).
    pub fn report(&self, now: EventTime) -> Report {
        let (model, seen) = self.of_the_model_in_use();
        let manifest = model.manifest.clone();
        let age = u64::from(now.since(manifest.data.to));
        let mut drift = seen.monitor.report(&NAMES, self.target, age, &self.limits);
        let promises = Agreement::PARTS.map(Part::name).into_iter().zip(seen.promises.each_ref().map(Promise::kept));
        let promises: BTreeMap<&'static str, Kept> = promises.collect();
        for (name, kept) in promises.iter().filter(|(_, kept)| !kept.holds && kept.windows >= self.limits.windows) {
            let share = kept.share_at_1e_2 * 100.0;
            drift.reasons.push(format!("{share:.1} % of the windows have a p-value of the {name} of 0.01 or less"));
        }
        if manifest.source == Source::Simulation {
            // It never was of this network, so that neither its age nor its features say anything new.
            drift.reasons =
                vec!["the model was trained on simulated traffic: train one on flow logs of yours".to_owned()];
        }
        let retrain = Recommendation { recommended: !drift.reasons.is_empty(), reasons: drift.reasons.clone() };
        Report {
            model: manifest,
            place: self.slot.place(),
            exchanged: seen.exchanged,
            variants: seen.variants.iter().map(|(name, variant)| (name.to_string(), variant.report())).collect(),
            degraded_windows: seen.degraded,
            endpoints: self.scorer.endpoints(),
            canary: self.scorer.comparison(),
            promises,
            drift,
            retrain,
        }
    }

    /// What is to be announced at `now`: a recommendation that was not announced of late. Of a model that was trained on
    /// simulated traffic nothing is, for it has not drifted: it never was of this network.
    pub fn news(&self, report: &Report, now: EventTime) -> Option<Drifted> {
        if !report.retrain.recommended || report.model.source == Source::Simulation {
            return None;
        }
        let told = self.seen().announced.clone();
        let kinds = |reasons: &[String]| -> Vec<String> { reasons.iter().map(|r| without_numbers(r)).collect() };
        let same = |(reasons, at): &(Vec<String>, EventTime)| {
            *reasons == kinds(&report.retrain.reasons) && now.since(*at) < self.again
        };
        if told.as_ref().is_some_and(same) {
            return None;
        }
        Some(Drifted {
            model_version: report.model.model_version.clone(),
            reasons: report.retrain.reasons.clone(),
            windows: report.drift.windows,
            alert_rate: report.drift.alert_rate,
            alert_target: self.target,
            age_seconds: report.drift.age_seconds,
            features: report.drift.features.iter().take(NAMED).cloned().collect(),
        })
    }

    /// Notes that it was announced.
    pub fn announced(&self, drifted: &Drifted, now: EventTime) {
        let kinds = drifted.reasons.iter().map(|r| without_numbers(r)).collect();
        self.seen().announced = Some((kinds, now));
    }
}

/// Reasons are the same when only their numbers differ.
fn without_numbers(reason: &str) -> String {
    reason.chars().filter(|c| !c.is_ascii_digit() && *c != '.').collect()
}

impl Seen {
    fn new(version: &str, monitor: Monitor) -> Seen {
        let version = version.to_owned();
        let promises = Default::default();
        Seen { version, monitor, variants: BTreeMap::new(), promises, degraded: 0, exchanged: 0, announced: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ml::behavior::Behavior;
    use crate::ml::in_process::InProcess;
    use crate::ml::model::tests::{MODEL, windows};

    const SETTINGS: Settings = Settings {
        check_every: SignedDuration::from_mins(1),
        windows: 500,
        stability_index: 0.25,
        features: 0.2,
        alert_ratio: 3.0,
        score: 0.2,
        age: SignedDuration::from_hours(7 * 24),
        again: SignedDuration::from_hours(24),
    };

    fn watch(source: Source) -> Watch {
        let mut model = MODEL.clone();
        model.manifest.source = source;
        let slot = Arc::new(Slot::new(model, None));
        Watch::new(Arc::new(InProcess::new(slot.clone())), slot, &SETTINGS, 1e-3)
    }

    async fn hear(watch: &Watch, batch: &[FeatureVector]) {
        let mut behavior = Behavior::new(100);
        let scores = watch.score(behavior.judge(), batch).await.unwrap();
        let alerts: Vec<bool> = scores.iter().map(|s| s.p_value.is_some_and(|p| p <= 1e-3)).collect();
        watch.observe(batch, &scores, &alerts);
    }

    #[tokio::test]
    async fn windows_that_moved_are_announced_once_and_windows_that_did_not_are_not() {
        let now = MODEL.manifest.data.to.plus(3_600);
        let usual = watch(Source::Deployment);
        hear(&usual, &windows(10, 2, 21)).await;
        let report = usual.report(now);
        assert!(!report.retrain.recommended, "{:?}", report.retrain);
        assert_eq!(usual.news(&report, now), None);
        assert!(report.variants["local"].windows > 4_000);
        assert!(report.promises.values().all(|kept| kept.windows > 4_000 && kept.holds), "{:?}", report.promises);

        let mut moved = windows(10, 2, 22);
        moved.iter_mut().for_each(|v| v.values[3..10].iter_mut().for_each(|value| *value += 3.0));
        let drifting = watch(Source::Deployment);
        hear(&drifting, &moved).await;
        let report = drifting.report(now);
        let news = drifting.news(&report, now).expect("seven features have moved");
        assert!(news.reasons[0].contains("of 27 features have moved"), "{news:?}");
        assert!(!report.promises["forest"].holds, "{:?}", report.promises);
        assert!(news.reasons.iter().any(|reason| reason.contains("p-value of the forest")), "{news:?}");
        drifting.announced(&news, now);
        assert_eq!(drifting.news(&drifting.report(now.plus(600)), now.plus(600)), None, "told already");
        let tomorrow = now.plus(25 * 3600);
        assert!(drifting.news(&drifting.report(tomorrow), tomorrow).is_some(), "still so a day later");
    }

    #[tokio::test]
    async fn a_model_from_a_simulation_is_to_be_replaced_and_has_not_drifted() {
        let watch = watch(Source::Simulation);
        let now = MODEL.manifest.data.to.plus(90 * 86_400);
        let report = watch.report(now);
        assert!(report.retrain.recommended && report.retrain.reasons[0].contains("simulated"));
        assert_eq!(watch.news(&report, now), None);
    }

    #[tokio::test]
    async fn another_model_begins_with_fresh_counts() {
        let slot = Arc::new(Slot::new(MODEL.clone(), None));
        let watch = Watch::new(Arc::new(InProcess::new(slot.clone())), slot.clone(), &SETTINGS, 1e-3);
        hear(&watch, &windows(4, 1, 23)).await;
        let mut other = MODEL.clone();
        other.manifest.model_version = "another".to_owned();
        slot.swap(other);
        let report = watch.report(EventTime(0));
        assert_eq!(
            (report.model.model_version.as_str(), report.exchanged),
            ("another", 1),
            "before it has seen anything"
        );
        assert!(report.variants.is_empty() && report.drift.windows == 0, "the other model's windows are not its own");
        hear(&watch, &windows(1, 1, 24)).await;
        let report = watch.report(EventTime(0));
        assert_eq!((report.model.model_version.as_str(), report.exchanged), ("another", 1));
        assert_eq!(report.variants["local"].windows, 288 - u64::from(crate::ml::model::WARM_UP));
    }
}
