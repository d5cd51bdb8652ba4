//! Drift: are the windows still those that the model was trained on?
//!
//! Three looks, each with its own blind spot: the population stability index of every feature against the training
//! windows, ADWIN (Bifet and Gavaldà, SDM 2007) on the mean score, and the share of alerts against its target. A
//! retraining is recommended when one of them says so or the model is old; the limits are common practice
//! (PSI above .25 is a "major shift" in credit scoring, where it comes from), not measured here.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Ten bins of a feature, each with a tenth of the training windows (fewer bins where values repeat).
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bins {
    /// Upper bounds of all bins but the last, ascending.
    pub bounds: Vec<f32>,
    /// Share of the training windows in each bin; one more than bounds.
    pub shares: Vec<f64>,
}

impl Bins {
    /// Bins at the deciles of training values.
    pub fn fit(mut values: Vec<f32>) -> Bins {
        values.retain(|v| v.is_finite());
        values.sort_unstable_by(f32::total_cmp);
        let mut bounds: Vec<f32> = Vec::new();
        for decile in 1..10 {
            let bound = values.get(values.len() * decile / 10).copied().unwrap_or(0.0);
            if bounds.last().is_none_or(|last| bound > *last) && values.first().is_some_and(|first| bound > *first) {
                bounds.push(bound);
            }
        }
        let mut counts = Counts::new(&bounds);
        values.iter().for_each(|v| counts.count(&bounds, *v));
        let shares = counts.shares();
        Bins { bounds, shares }
    }

    /// Whether what was read makes sense.
    pub fn is_sound(&self) -> bool {
        self.bounds.len() < 64
            && self.shares.len() == self.bounds.len() + 1
            && self.bounds.is_sorted()
            && self.bounds.iter().all(|b| b.is_finite())
            && self.shares.iter().all(|s| (0.0..=1.0).contains(s))
    }
}

/// How many live values fell into each bin.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Counts {
    counts: Vec<u64>,
}

impl Counts {
    /// Empty bins.
    pub fn new(bounds: &[f32]) -> Counts {
        Counts { counts: vec![0; bounds.len() + 1] }
    }

    /// Counts a value; one that is not a number counts in the last bin.
    pub fn count(&mut self, bounds: &[f32], value: f32) {
        self.counts[bounds.partition_point(|b| value.is_nan() || value >= *b)] += 1;
    }

    /// Values counted.
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    fn shares(&self) -> Vec<f64> {
        let total = self.total().max(1) as f64;
        self.counts.iter().map(|c| *c as f64 / total).collect()
    }

    /// Population stability index against the training shares: `sum (q - p) ln(q / p)`, 0 where nothing moved. Empty bins
    /// count as half a value.
    pub fn stability_index(&self, bins: &Bins) -> f64 {
        let total = self.total();
        if total == 0 || self.counts.len() != bins.shares.len() {
            return 0.0;
        }
        let least = 0.5 / total as f64;
        let moved = |p: f64, q: f64| (q - p) * (q / p).ln();
        bins.shares.iter().zip(self.shares()).map(|(p, q)| moved(p.max(least), q.max(least))).sum()
    }
}

/// Adaptive windowing: keeps the longest stretch of recent values whose two parts, however it is cut, have means that do
/// not differ beyond chance, in exponential buckets of at most five a size.
#[derive(Clone, Debug)]
pub struct Adwin {
    delta: f64,
    /// Newest first; each (values, sum, sum of squared deviations from the bucket's mean).
    buckets: VecDeque<Bucket>,
    since_check: u32,
}

#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    count: f64,
    sum: f64,
    deviation: f64,
}

impl Bucket {
    fn join(self, other: Bucket) -> Bucket {
        let (n, m) = (self.count, other.count);
        if n == 0.0 || m == 0.0 {
            return if n == 0.0 { other } else { self };
        }
        let gap = self.sum / n - other.sum / m;
        let deviation = self.deviation + other.deviation + gap * gap * n * m / (n + m);
        Bucket { count: n + m, sum: self.sum + other.sum, deviation }
    }
}

impl Adwin {
    const PER_SIZE: usize = 5;
    /// How many values arrive between two looks for a cut.
    const CHECK_EVERY: u32 = 32;

    /// `delta` is the probability of a false alarm at any one look; .002 is the authors' choice.
    pub fn new(delta: f64) -> Adwin {
        Adwin { delta, buckets: VecDeque::new(), since_check: 0 }
    }

    /// Takes a value in; true when the mean has changed (the older part is then forgotten).
    pub fn observe(&mut self, value: f64) -> bool {
        if !value.is_finite() {
            return false;
        }
        self.buckets.push_front(Bucket { count: 1.0, sum: value, deviation: 0.0 });
        self.compress();
        self.since_check += 1;
        if self.since_check < Self::CHECK_EVERY {
            return false;
        }
        self.since_check = 0;
        let mut changed = false;
        while self.cut() {
            self.buckets.pop_back();
            changed = true;
        }
        changed
    }

    /// Mean of what is kept.
    pub fn mean(&self) -> f64 {
        let all = self.all();
        if all.count > 0.0 { all.sum / all.count } else { 0.0 }
    }

    fn all(&self) -> Bucket {
        self.buckets.iter().fold(Bucket::default(), |all, b| all.join(*b))
    }

    /// Joins the two oldest of a size where there are too many of it.
    fn compress(&mut self) {
        let mut start = 0;
        while start < self.buckets.len() {
            let size = self.buckets[start].count;
            let end = start + self.buckets.iter().skip(start).take_while(|b| b.count == size).count();
            if end - start > Self::PER_SIZE {
                let joined = self.buckets[end - 2].join(self.buckets[end - 1]);
                self.buckets[end - 2] = joined;
                self.buckets.remove(end - 1);
                start = end - 2;
            } else {
                start = end;
            }
        }
    }

    /// Whether some cut parts the values into two whose means differ (theorem 3.1 with the variance bound).
    fn cut(&self) -> bool {
        let all = self.all();
        if all.count < 64.0 {
            return false;
        }
        let variance = all.deviation / all.count;
        let confidence = (2.0 * all.count.ln() / self.delta).ln();
        let mut new = Bucket::default();
        for bucket in self.buckets.iter().take(self.buckets.len() - 1) {
            new = new.join(*bucket);
            let old = all.count - new.count;
            if new.count < 5.0 || old < 5.0 {
                continue;
            }
            let harmonic = 1.0 / (1.0 / new.count + 1.0 / old);
            let bound = (2.0 / harmonic * variance * confidence).sqrt() + 2.0 / (3.0 * harmonic) * confidence;
            if (new.sum / new.count - (all.sum - new.sum) / old).abs() > bound {
                return true;
            }
        }
        false
    }
}

/// Limits beyond which a retraining is recommended.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// A feature with a higher index has moved.
    pub stability_index: f64,
    /// Share of features that must have moved.
    pub features: f64,
    /// Fewest windows that are judged.
    pub windows: u64,
    /// The realised share of alerts may be this many times above or below its target.
    pub alert_ratio: f64,
    /// How far the mean of `-log10 p` must have come from where it was, besides that the change is none of chance: the
    /// rhythm of a day moves it as well, and is no drift. For p-values that hold, the mean is .43.
    pub score: f64,
    /// Oldest model, s.
    pub age_seconds: u64,
}

impl Default for Limits {
    fn default() -> Limits {
        // 10,000 windows are 3 hours of 280 hosts.
        Limits {
            stability_index: 0.25,
            features: 0.2,
            windows: 10_000,
            alert_ratio: 3.0,
            score: 0.2,
            age_seconds: 7 * 86_400,
        }
    }
}

/// What is known about a model's windows since it was loaded, or since the last report.
#[derive(Clone, Debug)]
pub struct Monitor {
    bins: Vec<Bins>,
    counts: Vec<Counts>,
    adwin: Adwin,
    /// The mean score before its first change.
    before: Option<f64>,
    sum: f64,
    windows: u64,
    alerts: u64,
}

/// What drifted.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
#[schema(as = DriftReport)]
pub struct Report {
    /// Windows looked at.
    pub windows: u64,
    /// Population stability index by feature, largest first.
    pub features: Vec<(String, f64)>,
    /// Features over the limit.
    pub over: usize,
    /// Their share of all.
    pub moved: f64,
    /// Whether the mean score changed.
    pub score_changed: bool,
    /// Share of windows that alerted.
    pub alert_rate: f64,
    /// Age of the model, s.
    pub age_seconds: u64,
    /// Why a retraining is recommended; empty when it is not.
    pub reasons: Vec<String>,
}

impl Monitor {
    /// Watches against the bins of the training windows.
    pub fn new(bins: Vec<Bins>) -> Monitor {
        let counts = bins.iter().map(|b| Counts::new(&b.bounds)).collect();
        Monitor { bins, counts, adwin: Adwin::new(0.002), before: None, sum: 0.0, windows: 0, alerts: 0 }
    }

    /// Takes in a window: its features, its score as `-log10 p`, and whether it alerted.
    pub fn observe(&mut self, values: &[f32], surprise: f64, alerted: bool) {
        for ((counts, bins), value) in self.counts.iter_mut().zip(&self.bins).zip(values) {
            counts.count(&bins.bounds, *value);
        }
        if self.adwin.observe(surprise) && self.before.is_none() {
            self.before = Some(self.sum / self.windows.max(1) as f64);
        }
        self.sum += surprise;
        self.windows += 1;
        self.alerts += u64::from(alerted);
    }

    /// Judges what was seen; `names` are those of the features, `target` the intended share of alerts.
    pub fn report(&self, names: &[&str], target: f64, age_seconds: u64, limits: &Limits) -> Report {
        let mut features: Vec<(String, f64)> = self
            .counts
            .iter()
            .zip(&self.bins)
            .zip(names)
            .map(|((counts, bins), name)| ((*name).to_owned(), counts.stability_index(bins)))
            .collect();
        features.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        let over = features.iter().filter(|(_, index)| *index > limits.stability_index).count();
        let moved = over as f64 / features.len().max(1) as f64;
        let alert_rate = self.alerts as f64 / self.windows.max(1) as f64;
        let mut reasons = Vec::new();
        let now = self.adwin.mean();
        let changed = self.before.map(|before| (before, now)).filter(|(a, b)| (a - b).abs() >= limits.score);
        if self.windows >= limits.windows {
            if moved >= limits.features {
                reasons.push(format!("{over} of {} features have moved", features.len()));
            }
            if let Some((before, now)) = changed {
                reasons.push(format!("the mean score has changed from {before:.2} to {now:.2}"));
            }
            // With fewer than five alerts expected, a ratio says nothing about too few.
            let expected = target * self.windows as f64;
            let high = self.alerts as f64 > (expected * limits.alert_ratio).max(5.0);
            let low = expected >= 5.0 && (self.alerts as f64) < expected / limits.alert_ratio;
            if high || low {
                reasons.push(format!("{} windows alerted where {expected:.1} were intended", self.alerts));
            }
        }
        if age_seconds > limits.age_seconds {
            reasons.push(format!("the model is {} days old", age_seconds / 86_400));
        }
        let windows = self.windows;
        Report { windows, features, over, moved, score_changed: changed.is_some(), alert_rate, age_seconds, reasons }
    }

    /// Forgets what was seen, but for the mean score's history.
    pub fn reset(&mut self) {
        self.counts = self.bins.iter().map(|b| Counts::new(&b.bounds)).collect();
        (self.before, self.sum, self.windows, self.alerts) = (None, 0.0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

    use super::*;

    fn normals(seed: u64, count: usize) -> Vec<f32> {
        let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut unit = move || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (0..count).map(|_| ((-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()) as f32).collect()
    }

    fn index(bins: &Bins, live: impl Iterator<Item = f32>) -> f64 {
        let mut counts = Counts::new(&bins.bounds);
        live.for_each(|v| counts.count(&bins.bounds, v));
        counts.stability_index(bins)
    }

    #[test]
    fn the_index_tells_a_shift_from_the_same_again() {
        let bins = Bins::fit(normals(1, 20_000));
        assert!(index(&bins, normals(2, 20_000).into_iter()) < 0.01);
        // For normals moved by d the index is near d^2: .64 for .8.
        let moved = index(&bins, normals(3, 20_000).into_iter().map(|v| v + 0.8));
        assert!((0.4..0.8).contains(&moved), "{moved}");
    }

    #[test]
    fn a_feature_that_was_always_the_same_has_one_bin_and_notices_change() {
        let bins = Bins::fit(vec![0.0; 100]);
        assert_eq!(bins.shares, [1.0]);
        assert_eq!(index(&bins, std::iter::repeat_n(0.0, 50)), 0.0);
        let mostly = Bins::fit((0..1000).map(|i| if i % 20 == 0 { 1.0 } else { 0.0 }).collect());
        assert!(mostly.is_sound());
    }

    #[test]
    fn adwin_finds_a_change_of_mean_and_keeps_quiet_without_one() {
        let mut quiet = Adwin::new(0.002);
        assert!(!normals(4, 20_000).into_iter().any(|v| quiet.observe(f64::from(v))));
        let mut changing = Adwin::new(0.002);
        let values = normals(5, 4_000);
        let found = values
            .iter()
            .enumerate()
            .position(|(i, v)| changing.observe(f64::from(*v) + if i >= 2_000 { 1.0 } else { 0.0 }));
        assert!(found.is_some_and(|at| (2_000..2_400).contains(&at)), "{found:?}");
        assert!(changing.buckets.len() < 100);
    }

    #[test]
    fn a_retraining_is_recommended_for_each_reason_and_for_none() {
        let bins: Vec<Bins> = (0..4).map(|f| Bins::fit(normals(f, 5_000))).collect();
        let run = |shift: f32, alert_every: usize, age: u64| run_with(&bins, shift, alert_every, age, 0.0);
        let louder = run_with(&bins, 0.0, 1_000, 60, 0.5).reasons;
        assert!(louder.len() == 1 && louder[0].starts_with("the mean score has changed from 0.4"), "{louder:?}");
        assert_eq!(run_with(&bins, 0.0, 1_000, 60, 0.1).reasons, Vec::<String>::new(), "as much as a day's rhythm");
        assert_eq!(run(0.0, 1_000, 60).reasons, Vec::<String>::new());
        assert_eq!(run(1.5, 1_000, 60).reasons, ["1 of 4 features have moved"]);
        assert_eq!(run(1.5, 1_000, 60).features[0].0, "a");
        assert_eq!(run(0.0, 100, 60).reasons, ["120 windows alerted where 12.0 were intended"]);
        assert_eq!(run(0.0, 0, 60).reasons, ["0 windows alerted where 12.0 were intended"]);
        assert_eq!(run(0.0, 1_000, 8 * 86_400).reasons, ["the model is 8 days old"]);
    }

    /// A report on 12,000 windows; the score rises by `louder` after half of them.
    fn run_with(bins: &[Bins], shift: f32, alert_every: usize, age: u64, louder: f64) -> Report {
        let names = ["a", "b", "c", "d"];
        let mut monitor = Monitor::new(bins.to_vec());
        let live: Vec<Vec<f32>> = (0..4).map(|f| normals(50 + f, 12_000)).collect();
        for i in 0..live[0].len() {
            let mut row: Vec<f32> = live.iter().map(|feature| feature[i]).collect();
            row[0] += shift;
            let surprise = 0.4 + if i >= 6_000 { louder } else { 0.0 };
            monitor.observe(&row, surprise, alert_every > 0 && i % alert_every == 0);
        }
        monitor.report(&names, 1e-3, age, &Limits::default())
    }
}
