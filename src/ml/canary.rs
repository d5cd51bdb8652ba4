//! Canary: is the new variant of a model fit to take over from the current one?
//!
//! Both variants score the same sampled windows, so that a difference is the model's and not the hour's. The verdict
//! names every statistic with its limit. Limits follow practice and the size of the sample; they were not measured on
//! deployments.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What to do with the canary.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
#[schema(as = CanaryVerdict)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Too few windows, or a limit is not kept that does no harm meanwhile.
    Hold,
    /// Every limit is kept over enough windows.
    Promote,
    /// It fails or alerts far too often.
    RollBack,
}

impl Verdict {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Promote => "promote",
            Verdict::Hold => "hold",
            Verdict::RollBack => "roll back",
        }
    }
}

/// Limits of the verdict, `[ml.canary]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Fewest paired windows, 1 to [`Limits::PAIRS_MOST`].
    pub pairs: usize,
    /// Most that the share of p-values up to x may exceed x: whether the canary's p-values are what they say.
    pub excess: f64,
    /// Alerts of the canary against those of the primary, at [`Limits::level`]: within this factor either way.
    pub alert_ratio: f64,
    /// Least rank correlation (Spearman) of the p-values.
    pub spearman: f64,
    /// Least agreement beyond chance (Cohen's kappa) on which windows are within `level`.
    pub kappa: f64,
    /// The level of alerts and kappa, above 0 and below 1.
    pub level: f64,
    /// Most that the 99th percentile of latency may be of the primary's; with fewer than a thousand calls, a lower one.
    pub latency_ratio: f64,
    /// Share of failed calls that rolls back at once.
    pub errors: f64,
    /// Alerts against the primary's that roll back at once.
    pub alert_ratio_roll_back: f64,
}

impl Limits {
    /// Most pairs that can be waited for: with more, the verdict would fall back whenever the oldest ones are let go.
    pub const PAIRS_MOST: usize = Comparison::PAIRS_MAX - Comparison::PAIRS_DROPPED;
}

/// What was counted of one variant.
#[derive(Clone, Debug, Default)]
pub struct Variant {
    calls: u64,
    errors: u64,
    windows: u64,
    alerts: u64,
    latency: Latency,
    /// p-values in 20 bins of 5 %.
    histogram: [u64; 20],
}

/// A variant's counts, to be shown.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct VariantReport {
    /// Calls made.
    pub calls: u64,
    /// Of these, failed.
    pub errors: u64,
    /// Windows scored.
    pub windows: u64,
    /// Of these, within the alert level.
    pub alerts: u64,
    /// Median latency, ms.
    pub latency_p50_ms: f64,
    /// 99th percentile of latency, ms.
    pub latency_p99_ms: f64,
    /// Share of p-values in each twentieth of 0 to 1; flat when they are what they say.
    pub p_values: Vec<f64>,
}

/// Two variants side by side.
#[derive(Clone, Debug, Default)]
pub struct Comparison {
    /// The variant in charge.
    pub primary: Variant,
    /// The variant on trial.
    pub canary: Variant,
    pairs: Vec<(f64, f64)>,
}

/// A verdict with its statistics.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = CanaryReport)]
pub struct Report {
    /// What to do.
    pub verdict: Verdict,
    /// Why not to promote; empty when it is promoted.
    pub reasons: Vec<String>,
    /// Paired windows the statistics are of: the latest 10,000 to 20,000 once there are as many. The counts of the variants
    /// are of all.
    pub pairs: usize,
    /// Most that the share of the canary's p-values up to x exceeds x.
    pub excess: f64,
    /// Kolmogorov-Smirnov distance between the p-values of both.
    pub distance: f64,
    /// Rank correlation.
    pub spearman: f64,
    /// Agreement at the level.
    pub kappa: f64,
    /// Alerts of the canary over those of the primary, at the level, on the pairs.
    pub alert_ratio: f64,
    /// The variant in charge.
    pub primary: VariantReport,
    /// The variant on trial.
    pub canary: VariantReport,
}

impl Variant {
    /// Counts a call: how long it took, in ms, and whether it was answered.
    pub fn call(&mut self, milliseconds: f64, answered: bool) {
        self.calls += 1;
        self.errors += u64::from(!answered);
        if answered {
            self.latency.count(milliseconds);
        }
    }

    /// Counts a scored window by its p-value, and whether it alerted.
    pub fn window(&mut self, p_value: f64, alerted: bool) {
        self.windows += 1;
        self.alerts += u64::from(alerted);
        self.histogram[((p_value * 20.0) as usize).min(19)] += 1;
    }

    /// The counts, to be shown.
    pub fn report(&self) -> VariantReport {
        let all = self.histogram.iter().sum::<u64>().max(1) as f64;
        VariantReport {
            calls: self.calls,
            errors: self.errors,
            windows: self.windows,
            alerts: self.alerts,
            latency_p50_ms: self.latency.quantile(0.5),
            latency_p99_ms: self.latency.quantile(0.99),
            p_values: self.histogram.iter().map(|c| *c as f64 / all).collect(),
        }
    }

    fn error_rate(&self) -> f64 {
        self.errors as f64 / self.calls.max(1) as f64
    }
}

impl Comparison {
    /// Pairs that are kept; later ones replace the oldest.
    pub const PAIRS_MAX: usize = 20_000;
    /// How many of the oldest make room at a time: rare enough to cost nothing.
    const PAIRS_DROPPED: usize = 10_000;

    /// Takes in the p-values that both variants gave to one window.
    pub fn pair(&mut self, primary: f64, canary: f64) {
        if self.pairs.len() == Self::PAIRS_MAX {
            self.pairs.drain(..Self::PAIRS_DROPPED);
        }
        self.pairs.push((primary, canary));
    }

    /// Judges the canary.
    pub fn report(&self, limits: &Limits) -> Report {
        let (mut first, mut second): (Vec<f64>, Vec<f64>) = self.pairs.iter().copied().unzip();
        let spearman = correlation(&ranks(&first), &ranks(&second));
        let within = |p: &f64| *p <= limits.level;
        let (a, b) = (first.iter().filter(|p| within(p)).count(), second.iter().filter(|p| within(p)).count());
        let kappa = kappa(&self.pairs, limits.level);
        // One is added to both, so that few alerts do not make a ratio of infinity.
        let alert_ratio = (b as f64 + 1.0) / (a as f64 + 1.0);
        first.sort_unstable_by(f64::total_cmp);
        second.sort_unstable_by(f64::total_cmp);
        let mut report = Report {
            verdict: Verdict::Hold,
            reasons: Vec::new(),
            pairs: self.pairs.len(),
            excess: excess(&second),
            distance: distance(&first, &second),
            spearman,
            kappa,
            alert_ratio,
            primary: self.primary.report(),
            canary: self.canary.report(),
        };
        self.judge(&mut report, limits);
        report
    }

    fn judge(&self, report: &mut Report, limits: &Limits) {
        let mut harmful = Vec::new();
        let mut unfit = Vec::new();
        let errors = (self.canary.error_rate(), self.primary.error_rate());
        if self.canary.calls >= 100 && errors.0 > limits.errors && errors.0 > 2.0 * errors.1 {
            harmful.push(format!(
                "{:.1} % of its calls fail, {:.1} % of the primary's",
                errors.0 * 100.0,
                errors.1 * 100.0
            ));
        }
        if report.pairs >= 1_000 && report.alert_ratio > limits.alert_ratio_roll_back {
            harmful.push(format!("{:.1} times the primary's alerts", report.alert_ratio));
        }
        if report.pairs < limits.pairs {
            unfit.push(format!("{} paired windows of {}", report.pairs, limits.pairs));
        }
        if report.excess > limits.excess {
            unfit.push(format!("p-values are {:.3} too small, more than {}", report.excess, limits.excess));
        }
        if !(1.0 / limits.alert_ratio..=limits.alert_ratio).contains(&report.alert_ratio) {
            unfit.push(format!("{:.2} times the primary's alerts", report.alert_ratio));
        }
        if report.spearman < limits.spearman {
            unfit.push(format!("rank correlation {:.2}, less than {}", report.spearman, limits.spearman));
        }
        if report.kappa < limits.kappa {
            unfit.push(format!("agreement {:.2}, less than {}", report.kappa, limits.kappa));
        }
        // A percentile beyond which ten calls lie: the 99th of a hundred calls is the chance of one of them.
        let calls = self.canary.latency.total().min(self.primary.latency.total());
        let percentile = (1.0 - 10.0 / calls.max(1) as f64).min(0.99);
        let latency = (self.canary.latency.quantile(percentile), self.primary.latency.quantile(percentile));
        if calls >= 100 && latency.0 > limits.latency_ratio * latency.1 {
            let percent = percentile * 100.0;
            unfit.push(format!("{percent:.0}th percentile of latency {:.1} ms against {:.1} ms", latency.0, latency.1));
        }
        if errors.0 > errors.1 {
            unfit.push(format!(
                "{:.2} % of its calls fail, {:.2} % of the primary's",
                errors.0 * 100.0,
                errors.1 * 100.0
            ));
        }
        report.verdict = match (harmful.is_empty(), unfit.is_empty()) {
            (false, _) => Verdict::RollBack,
            (true, false) => Verdict::Hold,
            (true, true) => Verdict::Promote,
        };
        report.reasons = if harmful.is_empty() { unfit } else { harmful };
    }
}

/// `sup (F(x) - x)` of ascending values: how far they are from being valid p-values.
fn excess(sorted: &[f64]) -> f64 {
    let n = sorted.len().max(1) as f64;
    sorted.iter().enumerate().map(|(i, p)| (i + 1) as f64 / n - p).fold(0.0, f64::max)
}

/// Two-sample Kolmogorov-Smirnov distance of ascending values.
fn distance(a: &[f64], b: &[f64]) -> f64 {
    let share = |sorted: &[f64], x: f64| sorted.partition_point(|v| *v <= x) as f64 / sorted.len().max(1) as f64;
    a.iter().chain(b).map(|x| (share(a, *x) - share(b, *x)).abs()).fold(0.0, f64::max)
}

/// Ranks from 0, ties share their mean.
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|a, b| values[*a].total_cmp(&values[*b]));
    let mut ranks = vec![0.0; values.len()];
    let mut at = 0;
    while at < order.len() {
        let end = at + order[at..].iter().take_while(|i| values[**i] == values[order[at]]).count();
        for i in &order[at..end] {
            ranks[*i] = (at + end - 1) as f64 / 2.0;
        }
        at = end;
    }
    ranks
}

/// Pearson's correlation; of ranks it is Spearman's. 0 where one side does not vary.
fn correlation(a: &[f64], b: &[f64]) -> f64 {
    let n = a.len().max(1) as f64;
    let (mean_a, mean_b) = (a.iter().sum::<f64>() / n, b.iter().sum::<f64>() / n);
    let (mut both, mut only_a, mut only_b) = (0.0, 0.0, 0.0);
    for (x, y) in a.iter().zip(b) {
        both += (x - mean_a) * (y - mean_b);
        only_a += (x - mean_a).powi(2);
        only_b += (y - mean_b).powi(2);
    }
    if only_a > 0.0 && only_b > 0.0 { both / (only_a * only_b).sqrt() } else { 0.0 }
}

/// Cohen's kappa on which windows are within the level; 1 where neither has any.
fn kappa(pairs: &[(f64, f64)], level: f64) -> f64 {
    let n = pairs.len().max(1) as f64;
    let share = |f: &dyn Fn(&(f64, f64)) -> bool| pairs.iter().filter(|p| f(p)).count() as f64 / n;
    let agreed = share(&|p| (p.0 <= level) == (p.1 <= level));
    let (a, b) = (share(&|p| p.0 <= level), share(&|p| p.1 <= level));
    let by_chance = a * b + (1.0 - a) * (1.0 - b);
    if by_chance < 1.0 { (agreed - by_chance) / (1.0 - by_chance) } else { 1.0 }
}

/// A histogram of latencies in steps of 5 %, from 1 us to 15 min.
#[derive(Clone, Debug, Default)]
struct Latency {
    counts: Vec<u64>,
}

impl Latency {
    const STEP: f64 = 1.05;
    const STEPS: usize = 424;

    fn count(&mut self, milliseconds: f64) {
        if self.counts.is_empty() {
            self.counts = vec![0; Self::STEPS];
        }
        let step = (milliseconds * 1e3).max(1.0).log(Self::STEP) as usize;
        self.counts[step.min(Self::STEPS - 1)] += 1;
    }

    fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// In ms, to within 5 %; 0 when nothing was counted.
    fn quantile(&self, q: f64) -> f64 {
        let wanted = (self.total() as f64 * q).ceil() as u64;
        let mut seen = 0;
        for (step, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Self::STEP.powf(step as f64 + 0.5) / 1e3;
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

    use super::*;
    use crate::settings::Settings;

    fn limits() -> Limits {
        Settings::defaults().ml.canary
    }

    /// Pairs of p-values that share most of their randomness; the canary's are raised to `power`.
    fn comparison(pairs: usize, power: f64, own: f64) -> Comparison {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(3);
        let mut unit = move || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let mut comparison = Comparison::default();
        for _ in 0..pairs {
            let p = unit();
            let canary = if unit() < own { unit() } else { p }.powf(power);
            comparison.pair(p, canary);
            comparison.primary.window(p, p < 1e-4);
            comparison.canary.window(canary, canary < 1e-4);
        }
        for i in 0..500 {
            comparison.primary.call(10.0 + f64::from(i % 7), true);
            comparison.canary.call(11.0 + f64::from(i % 7), true);
        }
        comparison
    }

    #[test]
    fn a_canary_that_agrees_is_promoted() {
        let report = comparison(12_000, 1.0, 0.05).report(&limits());
        assert_eq!((report.verdict, report.reasons.as_slice()), (Verdict::Promote, &[] as &[String]));
        assert!(report.spearman > 0.9 && report.kappa > 0.8 && report.excess < 0.02, "{report:?}");
    }

    #[test]
    fn too_few_pairs_hold() {
        let report = comparison(2_000, 1.0, 0.05).report(&limits());
        assert_eq!((report.verdict, report.reasons.len()), (Verdict::Hold, 1), "{:?}", report.reasons);
    }

    #[test]
    fn a_canary_stays_promoted_when_the_oldest_pairs_are_let_go() {
        let limits = Limits { pairs: Limits::PAIRS_MOST, ..limits() };
        let report = comparison(Comparison::PAIRS_MAX + 1, 1.0, 0.05).report(&limits);
        assert_eq!((report.verdict, report.pairs), (Verdict::Promote, Limits::PAIRS_MOST + 1), "{:?}", report.reasons);
    }

    #[test]
    fn a_canary_of_another_opinion_is_held() {
        let report = comparison(12_000, 1.0, 0.9).report(&limits());
        assert_eq!(report.verdict, Verdict::Hold);
        assert_eq!(report.reasons.len(), 2, "{:?}", report.reasons);
    }

    #[test]
    fn a_canary_that_alerts_far_more_is_rolled_back_before_there_are_enough_pairs() {
        let report = comparison(3_000, 2.0, 0.0).report(&limits());
        assert_eq!(report.verdict, Verdict::RollBack, "{report:?}");
    }

    #[test]
    fn a_canary_that_fails_is_rolled_back_and_a_slow_one_is_held() {
        let mut failing = comparison(12_000, 1.0, 0.05);
        (0..20).for_each(|_| failing.canary.call(1.0, false));
        assert_eq!(failing.report(&limits()).verdict, Verdict::RollBack);
        let mut slow = comparison(12_000, 1.0, 0.05);
        (0..20).for_each(|_| slow.canary.call(80.0, true));
        let report = slow.report(&limits());
        assert_eq!((report.verdict, report.reasons.len()), (Verdict::Hold, 1));
        assert!((75.0..85.0).contains(&report.canary.latency_p99_ms));
        assert!(report.reasons[0].starts_with("98th percentile of latency"), "{:?}", report.reasons);
    }

    #[test]
    fn a_few_slow_calls_of_some_hundred_are_chance() {
        let mut odd = comparison(12_000, 1.0, 0.05);
        (0..8).for_each(|_| odd.canary.call(80.0, true));
        assert_eq!(odd.report(&limits()).verdict, Verdict::Promote);
    }

    #[test]
    fn statistics_are_those_of_the_textbook() {
        assert_eq!(ranks(&[3.0, 1.0, 3.0]), [1.5, 0.0, 1.5]);
        assert!((correlation(&ranks(&[1.0, 2.0, 3.0, 4.0]), &ranks(&[1.0, 3.0, 2.0, 4.0])) - 0.8).abs() < 1e-12);
        assert_eq!(distance(&[0.1, 0.2], &[0.3, 0.4]), 1.0);
        // 20 both, 5 and 10 one, 15 neither, of 50 (the usual example): 0.4.
        let pairs: Vec<(f64, f64)> = [(0.0, 0.0, 20), (0.0, 1.0, 5), (1.0, 0.0, 10), (1.0, 1.0, 15)]
            .into_iter()
            .flat_map(|(a, b, n)| vec![(a, b); n])
            .collect();
        assert!((kappa(&pairs, 0.5) - 0.4).abs() < 1e-12);
    }

    #[test]
    fn nothing_compared_yet_is_a_hold_and_no_panic() {
        assert_eq!(Comparison::default().report(&limits()).verdict, Verdict::Hold);
    }
}
