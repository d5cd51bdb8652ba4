//! From a detector's score to a probability that the anomaly is true.
//!
//! A score orders findings; it is no probability. The map is logistic (Platt 1999) in the score's own log-odds, so it is
//! monotone: `logit(p) = intercept + slope * logit(score) + support`, where `support` grows with independent
//! confirmation: so much per doubling of the windows that agree, per further method, per list that knows the peer. Every
//! coefficient stands in `defaults.toml` with its origin.
//!
//! How it was calibrated: it was not fitted. Intercept 0 and slope 1 take a detector's score, which says 0.5 where its
//! thresholds are just reached, as the probability. On the labelled real traffic at hand no anomaly of known nature is
//! false, and to that no slope can be fitted. It is measured, though: `detect --truth` counts for each tenth of confidence how
//! many anomalies are true, and `tests/quality.py --simulated` adds that up over simulated hours (figures in tests/README.md).
//! So far every tenth is more often true than it says: the confidence understates.
//!
//! Analysts' verdicts shift a threat's intercept: the log-odds of true over false anomalies, each counted from one
//! (Laplace), once there are enough of them to mean something. What counts is an anomaly, once, whoever and however many have
//! spoken on it: the majority, and where there is none, nothing. A later verdict of the same person takes the place of the
//! earlier one. How far verdicts move a threat is bounded, and is said wherever it has moved a confidence.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::corroboration::{PerThreat, list_hits};
use super::{Case, stage};
use crate::anomaly::Stage;
use crate::finding::Threat;
use crate::flow::EventTime;
use crate::publish::{Feedback, Verdict};
use crate::statistical::channel;

/// Settings `[validation.calibration]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The probability below which a threat is not told.
    pub threshold: PerThreat,
    /// Log-odds added to the score's own.
    pub intercept: PerThreat,
    /// What the score's log-odds are multiplied by; above 0.
    pub slope: PerThreat,
    /// Log-odds per doubling of the number of windows that agree.
    pub per_doubling_of_windows: f64,
    /// Log-odds per method beyond the first.
    pub per_method: f64,
    /// Log-odds per list that knows the peer.
    pub per_list: f64,
    /// On how many anomalies of a threat there must be verdicts before they move it.
    pub verdicts_min: u32,
    /// How far verdicts may move the log-odds, either way.
    pub verdicts_shift_max: f64,
}

/// Scores of 0 and 1 would be certain; no detector is.
const SCORE_RANGE: (f64, f64) = (0.001, 0.999);

/// Verdicts on one threat.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Verdicts {
    /// True ones.
    pub true_positive: u32,
    /// False ones.
    pub false_positive: u32,
}

/// Verdicts by threat.
pub type Feedbacks = BTreeMap<Threat, Verdicts>;

/// Anomalies whose verdicts are remembered; that on which nobody has spoken for the longest is forgotten first.
pub const ANOMALIES_MAX: usize = 10_000;

/// People whose verdicts on one anomaly are remembered; the oldest goes first.
pub const JUDGES_MAX: usize = 16;

/// What was said of one anomaly.
#[derive(Clone, PartialEq, Debug)]
struct Opinion {
    threat: Threat,
    /// By whoever was authenticated.
    by: BTreeMap<String, (EventTime, Verdict)>,
}

impl Opinion {
    /// What most say.
    fn majority(&self) -> Option<Verdict> {
        let right = self.by.values().filter(|(_, verdict)| *verdict == Verdict::TruePositive).count();
        match (right * 2).cmp(&self.by.len()) {
            Ordering::Greater => Some(Verdict::TruePositive),
            Ordering::Less => Some(Verdict::FalsePositive),
            Ordering::Equal => None,
        }
    }

    fn newest(&self) -> EventTime {
        self.by.values().map(|(at, _)| *at).max().unwrap_or(EventTime(0))
    }
}

/// The map from scores to probabilities, with what analysts have taught it.
#[derive(Clone, Debug)]
pub struct Calibration {
    settings: Settings,
    opinions: BTreeMap<Uuid, Opinion>,
    feedbacks: Feedbacks,
}

impl Calibration {
    /// The map of the settings, untaught.
    pub fn new(settings: &Settings) -> Calibration {
        Calibration { settings: settings.clone(), opinions: BTreeMap::new(), feedbacks: Feedbacks::new() }
    }

    /// The map with other settings that has learned the same.
    #[must_use]
    pub fn with(self, settings: &Settings) -> Calibration {
        Calibration { settings: settings.clone(), ..self }
    }

    /// Takes up a verdict on an anomaly of a threat. The same verdict twice changes nothing.
    pub fn learn(&mut self, threat: Threat, feedback: &Feedback) {
        let id = feedback.anomaly_id;
        if self.opinions.len() >= ANOMALIES_MAX
            && !self.opinions.contains_key(&id)
            && let Some(oldest) = self.opinions.iter().min_by_key(|(_, o)| o.newest()).map(|(id, _)| *id)
        {
            self.opinions.remove(&oldest);
        }
        let opinion = self.opinions.entry(id).or_insert_with(|| Opinion { threat, by: BTreeMap::new() });
        let said = (feedback.at, feedback.verdict);
        let known = opinion.by.entry(feedback.by.clone()).or_insert(said);
        if known.0 <= said.0 {
            *known = said;
        }
        if opinion.by.len() > JUDGES_MAX
            && let Some(oldest) = opinion.by.iter().min_by_key(|(_, (at, _))| *at).map(|(by, _)| by.clone())
        {
            opinion.by.remove(&oldest);
        }
        self.feedbacks.clear();
        for opinion in self.opinions.values() {
            let verdicts = self.feedbacks.entry(opinion.threat).or_default();
            match opinion.majority() {
                Some(Verdict::TruePositive) => verdicts.true_positive += 1,
                Some(Verdict::FalsePositive) => verdicts.false_positive += 1,
                None => {}
            }
        }
    }

    /// Anomalies on which somebody has spoken, by threat.
    pub fn feedbacks(&self) -> &Feedbacks {
        &self.feedbacks
    }

    /// Log-odds that verdicts add to a threat.
    pub fn shift(&self, threat: Threat) -> f64 {
        let Some(verdicts) = self.feedbacks.get(&threat) else { return 0.0 };
        let (t, f) = (verdicts.true_positive, verdicts.false_positive);
        if t + f < self.settings.verdicts_min {
            return 0.0;
        }
        let max = self.settings.verdicts_shift_max;
        (f64::from(t + 1) / f64::from(f + 1)).ln().clamp(-max, max)
    }

    /// The probability of a score with its support, 0 to 1.
    pub fn probability(&self, threat: Threat, score: f64, support: f64) -> f64 {
        let score = score.clamp(SCORE_RANGE.0, SCORE_RANGE.1);
        let log_odds = (score / (1.0 - score)).ln();
        let (intercept, slope) = (self.settings.intercept.of(threat), self.settings.slope.of(threat));
        let z = intercept + slope * log_odds + support + self.shift(threat);
        let p = 1.0 / (1.0 + (-z).exp());
        // Four digits are more than the calibration knows, and the same on every machine.
        (p * 1e4).round() / 1e4
    }

    /// The probability that a case is true.
    pub fn confidence(&self, case: &Case<'_>) -> f64 {
        // A channel's evidence is of all its calls: what a later window says of it, the first has said in part.
        let whole = case.account.methods.keys().all(|method| method == channel::METHOD);
        let windows = if whole { 0.0 } else { f64::from(case.account.distinct_windows().max(1)).log2() };
        let methods = case.account.methods.len().saturating_sub(1) as f64;
        let support = windows * self.settings.per_doubling_of_windows
            + methods * self.settings.per_method
            + list_hits(case) as f64 * self.settings.per_list;
        self.probability(case.threat(), case.account.score(), support)
    }

    /// The stage: refuses what is less probable than the threat's threshold.
    pub(super) fn stage(&self, case: &Case<'_>) -> Stage {
        let (confidence, threshold) = (self.confidence(case), self.settings.threshold.of(case.threat()));
        let mut reason = format!("{confidence:.2} of at least {threshold:.2}, from score {:.2}", case.account.score());
        let shift = self.shift(case.threat());
        if let Some(Verdicts { true_positive, false_positive }) = self.feedbacks.get(&case.threat())
            && shift != 0.0
        {
            reason.push_str(&format!(
                "; verdicts move the log-odds by {shift:+.2} ({true_positive} anomalies true, {false_positive} false)"
            ));
        }
        stage("confidence", confidence >= threshold, reason)
    }
}

#[cfg(test)]
mod tests;
