//! Calibration: what share of normal windows scores at least this high?
//!
//! A raw score means nothing across models, releases or kinds of host. Here it becomes a p-value: conformal (the rank
//! among held-out normal windows; Vovk et al. 2005) in the body, and a generalised Pareto tail beyond the 98 % quantile
//! (peaks over threshold, as in SPOT; Siffer et al. 2017), which goes on where the rank has run out. Fitted per class
//! of host, not per host: one threshold for all gave a NAT gateway 30 times the false positives of a workstation, and
//! the 288 windows of one host's day gave 3 times the target.
//!
//! A p-value is never below `0.5 / n`: at a tenth of `1 / n` the tail was measured to run 6 times over its target.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What one scorer's scores mean, per class of host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibration {
    /// All classes together, for classes that are unknown or too small.
    pub pooled: Tail,
    /// Classes with at least [`Calibration::CLASS_MIN`] windows.
    pub classes: BTreeMap<String, Tail>,
}

/// The distribution of one score among normal windows.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// Windows it was fitted to.
    pub windows: u64,
    /// Scores at equal steps of rank from the least to `threshold`, ascending.
    pub body: Vec<f64>,
    /// Where the tail begins.
    pub threshold: f64,
    /// Windows above the threshold.
    pub exceedances: u64,
    /// Scale of the generalised Pareto distribution, above 0, in units of the score.
    pub scale: f64,
    /// Its shape: 0 is exponential, above 0 heavier, below 0 bounded.
    pub shape: f64,
}

/// Why scores cannot be calibrated, or a calibration cannot be used.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum CalibrationError {
    /// Too little to say anything.
    #[error("calibrate: {found} windows, at least {needed} are needed; train on a longer stretch or on more hosts")]
    TooFew {
        /// Windows given.
        found: usize,
        /// Windows needed.
        needed: usize,
    },
    /// The target lies beyond what the windows support.
    #[error("calibrate to a false-positive rate of {target:e}: {windows} windows support {least:e} and above")]
    TooRare {
        /// The rate asked for.
        target: f64,
        /// Windows at hand.
        windows: u64,
        /// The smallest rate they support.
        least: f64,
    },
    /// A calibration that was read makes no sense.
    #[error("read a calibration: {0}")]
    Malformed(String),
}

impl Calibration {
    /// Windows that a class needs for a tail of its own; below, the pooled one speaks.
    pub const CLASS_MIN: usize = 5_000;

    /// Fits pooled and class tails to the scores of held-out normal windows.
    pub fn fit(scores: &[(&str, f64)]) -> Result<Calibration, CalibrationError> {
        let mut by_class: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for (class, score) in scores {
            by_class.entry(class).or_default().push(*score);
        }
        let pooled = Tail::fit(scores.iter().map(|(_, score)| *score).collect())?;
        let mut classes = BTreeMap::new();
        for (class, scores) in by_class {
            if scores.len() >= Self::CLASS_MIN {
                classes.insert(class.to_owned(), Tail::fit(scores)?);
            }
        }
        Ok(Calibration { pooled, classes })
    }

    /// The tail that speaks for a class.
    pub fn tail(&self, class: &str) -> &Tail {
        self.classes.get(class).unwrap_or(&self.pooled)
    }

    /// Share of normal windows of the class that score at least this high.
    pub fn p_value(&self, class: &str, score: f64) -> f64 {
        self.tail(class).p_value(score)
    }

    /// Checks what was read.
    pub fn check(&self) -> Result<(), CalibrationError> {
        self.pooled.check()?;
        self.classes.values().try_for_each(Tail::check)
    }
}

impl Tail {
    /// Fewest windows that are fitted at all: below, the tail would rest on a handful of points.
    pub const WINDOWS_MIN: usize = 1_000;
    /// Where the tail begins: at this share of all windows, and at no more than [`Tail::TAIL_MAX`] of them, since the
    /// generalised Pareto shape holds in the limit only.
    const TAIL_SHARE: f64 = 0.02;
    const TAIL_MAX: usize = 200;
    /// Points of the body; between two of them lies 0.2 % of the windows.
    const BODY_POINTS: usize = 491;

    /// Fits body and tail. Scores that are not finite are left out.
    pub fn fit(mut scores: Vec<f64>) -> Result<Tail, CalibrationError> {
        scores.retain(|s| s.is_finite());
        if scores.len() < Self::WINDOWS_MIN {
            return Err(CalibrationError::TooFew { found: scores.len(), needed: Self::WINDOWS_MIN });
        }
        scores.sort_unstable_by(f64::total_cmp);
        let n = scores.len();
        let first = n - ((n as f64 * Self::TAIL_SHARE) as usize).min(Self::TAIL_MAX);
        let threshold = scores[first - 1];
        // Ties with the threshold belong to the body.
        let first = scores.partition_point(|s| *s <= threshold);
        let excesses: Vec<f64> = scores[first..].iter().map(|s| s - threshold).collect();
        let (scale, shape) = pareto(&excesses);
        let body = (0..Self::BODY_POINTS).map(|i| scores[i * (first - 1) / (Self::BODY_POINTS - 1)]).collect();
        Ok(Tail { windows: n as u64, body, threshold, exceedances: (n - first) as u64, scale, shape })
    }

    /// Share of normal windows that score at least this high, from [`Tail::least`] to 1; 1 for what is not a number.
    pub fn p_value(&self, score: f64) -> f64 {
        if score.is_nan() {
            return 1.0;
        }
        let n = self.windows as f64;
        if score <= self.threshold {
            // The body point at or below the score: a p-value that is a little too large rather than too small.
            let below = self.body.partition_point(|s| *s < score).saturating_sub(1);
            let rank = below as f64 / (self.body.len() - 1) as f64 * (n - self.exceedances as f64);
            return ((n - rank + 1.0) / (n + 1.0)).min(1.0);
        }
        let at = (self.exceedances as f64 + 1.0) / (n + 1.0);
        (at * self.survival(score - self.threshold)).max(self.least())
    }

    /// The smallest p-value that the windows support, `0.5 / n`.
    pub fn least(&self) -> f64 {
        0.5 / self.windows as f64
    }

    /// The score that a share `target` of normal windows reaches.
    pub fn score_at(&self, target: f64) -> Result<f64, CalibrationError> {
        if target < self.least() {
            return Err(CalibrationError::TooRare { target, windows: self.windows, least: self.least() });
        }
        let at = (self.exceedances as f64 + 1.0) / (self.windows as f64 + 1.0);
        if target >= at {
            let rank =
                ((1.0 - target) * (self.body.len() - 1) as f64 / (1.0 - at)).clamp(0.0, (self.body.len() - 1) as f64);
            return Ok(self.body[rank.ceil() as usize]);
        }
        let share = target / at;
        let excess = if self.shape.abs() < 1e-9 {
            -self.scale * share.ln()
        } else {
            self.scale / self.shape * (share.powf(-self.shape) - 1.0)
        };
        Ok(self.threshold + excess)
    }

    /// Survival function of the generalised Pareto distribution.
    fn survival(&self, excess: f64) -> f64 {
        if self.shape.abs() < 1e-9 {
            return (-excess / self.scale).exp();
        }
        let base = 1.0 + self.shape * excess / self.scale;
        if base <= 0.0 { 0.0 } else { base.powf(-1.0 / self.shape) }
    }

    fn check(&self) -> Result<(), CalibrationError> {
        let malformed = |what: &str| Err(CalibrationError::Malformed(what.to_owned()));
        if self.windows < Self::WINDOWS_MIN as u64 || self.exceedances >= self.windows {
            return malformed("too few windows, or more exceedances than windows");
        }
        if !(2..=10_000).contains(&self.body.len())
            || !self.body.iter().all(|s| s.is_finite())
            || !self.body.is_sorted()
        {
            return malformed("the body is empty or not ascending");
        }
        let finite = self.threshold.is_finite() && self.scale.is_finite() && self.shape.is_finite();
        if !finite || self.scale <= 0.0 || self.body.last() > Some(&self.threshold) {
            return malformed("the tail's threshold, scale or shape is out of range");
        }
        Ok(())
    }
}

/// Scale and shape of ascending excesses by probability-weighted moments (Hosking and Wallis 1987): closed form, and
/// steadier than maximum likelihood on a few hundred points. The shape is held within -0.5 and 0.5, where the moments
/// exist and are trustworthy.
fn pareto(excesses: &[f64]) -> (f64, f64) {
    let n = excesses.len() as f64;
    let mean = excesses.iter().sum::<f64>() / n.max(1.0);
    if excesses.len() < 10 || mean <= 0.0 {
        // Nothing to fit (ties): what lies above is as rare as the windows can say.
        return (mean.max(1e-9), 0.0);
    }
    let weighted = excesses.iter().enumerate().map(|(i, x)| (1.0 - (i as f64 + 1.0 - 0.35) / n) * x).sum::<f64>() / n;
    let shape = (2.0 - mean / (mean - 2.0 * weighted)).clamp(-0.5, 0.5);
    // The scale that keeps the mean, whatever the shape was held at.
    (mean * (1.0 - shape), shape)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::SeedableRng as _;

    use super::*;

    fn units(seed: u64) -> impl FnMut() -> f64 {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        move || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    /// Draws of four shapes of score: bounded, normal, exponential, lognormal.
    fn draws(shape: usize, seed: u64, n: usize) -> Vec<f64> {
        let mut unit = units(seed);
        let mut normal = move || (-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos();
        (0..n)
            .map(|_| match shape {
                0 => 1.0 / (1.0 + (-normal()).exp()),
                1 => normal(),
                2 => normal().powi(2) + normal().powi(2),
                _ => normal().exp(),
            })
            .collect()
    }

    #[test]
    fn the_realised_rate_is_within_a_factor_of_two_of_the_target_on_draws_not_used_for_calibration() {
        // The mean over calibrations: of 20,000 windows two reach 1e-4, so that one calibration alone scatters by half.
        for shape in 0..4 {
            let tails: Vec<Tail> = (0..8).map(|seed| Tail::fit(draws(shape, 10 * seed + 1, 20_000)).unwrap()).collect();
            let fresh = draws(shape, 777 + shape as u64, 100_000);
            for target in [1e-2, 1e-3, 1e-4] {
                let told: usize =
                    tails.iter().map(|tail| fresh.iter().filter(|s| tail.p_value(**s) <= target).count()).sum();
                let realised = told as f64 / (fresh.len() * tails.len()) as f64;
                assert!((target / 2.0..target * 2.0).contains(&realised), "shape {shape}: {realised:e} for {target:e}");
            }
        }
    }

    #[test]
    fn p_values_of_normal_windows_are_uniform() {
        let tail = Tail::fit(draws(3, 5, 20_000)).unwrap();
        let mut p: Vec<f64> = draws(3, 6, 20_000).into_iter().map(|s| tail.p_value(s)).collect();
        p.sort_by(f64::total_cmp);
        let distance = p.iter().enumerate().map(|(i, p)| (p - (i as f64 + 0.5) / 20_000.0).abs()).fold(0.0, f64::max);
        assert!(distance < 0.02, "{distance}");
    }

    #[test]
    fn a_target_beyond_the_windows_is_refused() {
        let tail = Tail::fit(draws(1, 7, 2_000)).unwrap();
        assert!(matches!(tail.score_at(1e-4), Err(CalibrationError::TooRare { windows: 2_000, .. })));
        assert_eq!(tail.p_value(1e9), tail.least());
    }

    #[test]
    fn the_score_of_a_rate_has_that_p_value() {
        let tail = Tail::fit(draws(2, 8, 20_000)).unwrap();
        for target in [0.5, 0.1, 0.03, 0.01, 1e-3, 1e-4] {
            let p = tail.p_value(tail.score_at(target).unwrap());
            assert!((p / target - 1.0).abs() < 0.02 || (p - target).abs() < 0.003, "{p} for {target}");
        }
    }

    #[test]
    fn too_few_windows_are_refused() {
        assert_eq!(Tail::fit(vec![1.0; 10]), Err(CalibrationError::TooFew { found: 10, needed: 1_000 }));
    }

    #[test]
    fn a_class_with_few_windows_is_judged_by_all() {
        let all = draws(1, 9, 8_000);
        let scores: Vec<(&str, f64)> =
            all.iter().enumerate().map(|(i, s)| if i % 8 == 0 { ("hub", s * 5.0) } else { ("client", *s) }).collect();
        let calibration = Calibration::fit(&scores).unwrap();
        assert!(calibration.classes.contains_key("client") && !calibration.classes.contains_key("hub"));
        assert_eq!(calibration.p_value("hub", 2.0), calibration.pooled.p_value(2.0));
        assert!(calibration.p_value("client", 6.0) < calibration.p_value("hub", 6.0));
    }

    #[test]
    fn scores_that_are_all_the_same_say_nothing() {
        let tail = Tail::fit(vec![3.0; 2_000]).unwrap();
        assert_eq!(tail.p_value(3.0), 1.0);
        tail.check().unwrap();
    }

    proptest! {
        #[test]
        fn a_higher_score_is_never_more_usual(
            seed in 0u64..50, shape in 0usize..4, a in -20.0f64..200.0, b in -20.0f64..200.0,
        ) {
            let tail = Tail::fit(draws(shape, seed, 1_500)).unwrap();
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(tail.p_value(low) >= tail.p_value(high));
            prop_assert!(tail.p_value(high) > 0.0 && tail.p_value(low) <= 1.0);
        }
    }
}
