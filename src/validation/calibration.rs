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
//! many anomalies are true, and `tests/quality.py --simulated` adds that up over simulated hours (figures in the README).
//! So far every tenth is more often true than it says: the confidence understates.
//!
//! Analysts' verdicts shift a threat's intercept: the log-odds of true over false verdicts, each counted from one
//! (Laplace), once there are enough of them to mean something.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::corroboration::{PerThreat, list_hits};
use super::{Case, stage};
use crate::anomaly::Stage;
use crate::finding::Threat;
use crate::publish::Verdict;

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
    /// How many verdicts on a threat move it.
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

/// The map from scores to probabilities, with what analysts have taught it.
#[derive(Clone, Debug)]
pub struct Calibration {
    settings: Settings,
    feedbacks: Feedbacks,
}

impl Calibration {
    /// The map of the settings, untaught.
    pub fn new(settings: &Settings) -> Calibration {
        Calibration { settings: settings.clone(), feedbacks: Feedbacks::new() }
    }

    /// Counts a verdict.
    pub fn learn(&mut self, threat: Threat, verdict: Verdict) {
        let verdicts = self.feedbacks.entry(threat).or_default();
        match verdict {
            Verdict::TruePositive => verdicts.true_positive += 1,
            Verdict::FalsePositive => verdicts.false_positive += 1,
        }
    }

    /// Verdicts so far.
    pub fn feedbacks(&self) -> &Feedbacks {
        &self.feedbacks
    }

    /// Goes on with verdicts from before.
    pub fn resume(&mut self, feedbacks: Feedbacks) {
        self.feedbacks = feedbacks;
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
        let windows = f64::from(case.account.distinct_windows().max(1)).log2();
        let methods = case.account.methods.len().saturating_sub(1) as f64;
        let support = windows * self.settings.per_doubling_of_windows
            + methods * self.settings.per_method
            + list_hits(case) as f64 * self.settings.per_list;
        self.probability(case.threat(), case.account.score(), support)
    }

    /// The stage: refuses what is less probable than the threat's threshold.
    pub(super) fn stage(&self, case: &Case<'_>) -> Stage {
        let (confidence, threshold) = (self.confidence(case), self.settings.threshold.of(case.threat()));
        let reason = format!("{confidence:.2} of at least {threshold:.2}, from score {:.2}", case.account.score());
        stage("confidence", confidence >= threshold, reason)
    }
}

#[cfg(test)]
mod tests;
