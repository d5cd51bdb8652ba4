//! What a model's p-values are worth on this deployment.
//!
//! A p-value promises that no more than this share of normal windows is as unusual. The calibration in an artifact kept that
//! promise on the windows that it was made of; the windows of this deployment may be of another kind, and most of all where
//! the model was trained elsewhere: a host whose work the training never saw is odd to it all day. So each model is heard
//! through what was seen here, for each scorer by itself:
//!
//! 1. *The host's own habits.* Evidence is `-log10 p`. Of it counts what exceeds the host's level, a moving average that no
//!    single window pulls far, and what the host did around this hour on at least two earlier days ([`Habit`]): behaviour is a
//!    host out of its own character, and the backup of every night is none.
//! 2. *The rank.* The share of this deployment's windows, of the host's class where there are enough and of hosts that have been
//!    known for two days or have not, as it has, with as large an excess: a conformal p-value (Vovk et al. 2005), whatever the model is worth.
//! 3. *The promise.* While the p-values hold here ([`Promise`]: one-sided Kolmogorov-Smirnov distance from the uniform, and at
//!    most twice the promised share at 1e-1, 1e-2 and 1e-3), the artifact's own calibration windows count as seen here, so that a
//!    model of this deployment can say rare things at once. A model from a simulation brings none, and one that broke its
//!    promise loses them.
//!
//! The larger of model's p-value and rank counts: both must agree. A scorer that calls everything unusual, or nothing, or that
//! is stuck at the least p-value that its calibration knows, ends at 1 and has no say.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::Score;
use super::calibration::Calibration;
use super::model::Part;
use crate::flow::EventTime;

/// What is usual for one host to one scorer: its level, and what it does at which hour.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
pub struct Habit {
    level: f32,
    windows: u16,
    /// The hour of the first window.
    first: u32,
    /// By hour of day: the largest evidence of a day in that hour, and the second largest, in [`STEPS_PER_DECADE`].
    hours: [[u8; 2]; 24],
    /// The hour under way, in hours since 1970, and its largest evidence so far.
    hour: u32,
    now: u8,
}

impl Default for Habit {
    fn default() -> Habit {
        Habit { level: UNIFORM as f32, windows: 0, first: 0, hours: [[0; 2]; 24], hour: 0, now: 0 }
    }
}

/// Mean of `-log10 p` of p-values that are uniform.
pub(super) const UNIFORM: f64 = std::f64::consts::LOG10_E;
/// Weight of a window in a host's level: about 50 windows, as in the features.
const WEIGHT: f64 = 0.02;
/// The first windows of a host define its level; after them none pulls further than this.
const PULL: f64 = 1.0;
const FIRST: u16 = 6;
/// A habit is kept in steps of this share of a decade, up to 7.9 decades.
const STEPS_PER_DECADE: f64 = 32.0;
/// What a habit loses with each day: a decade in eight days, so that a day of rest does not end it.
const FADES: u8 = 4;

impl Habit {
    /// Takes in the evidence of one window.
    pub fn learn(&mut self, window: EventTime, evidence: f64) {
        let hour = window.0 / 3600;
        if self.windows == 0 {
            self.first = hour;
        }
        if hour != self.hour {
            self.end_hour();
            (self.hour, self.now) = (hour, 0);
        }
        // Equal shares while there are few.
        let weight = WEIGHT.max(1.0 / (f64::from(self.windows) + 1.0));
        let step = evidence - f64::from(self.level);
        let step = if self.windows < FIRST { step } else { step.clamp(-PULL, PULL) };
        self.level += (weight * step) as f32;
        self.now = self.now.max((evidence * STEPS_PER_DECADE) as u8);
        self.windows = self.windows.saturating_add(1);
    }

    /// What the hour under way adds.
    fn end_hour(&mut self) {
        let hour = &mut self.hours[self.hour as usize % 24];
        let [first, second] = hour.map(|steps| steps.saturating_sub(FADES));
        *hour = [first.max(self.now), second.max(first.min(self.now))];
    }

    /// The evidence that is no news of the host at a window: its level, or what it did around this hour on two days, for what
    /// was done once is no habit.
    pub fn at(&self, window: EventTime) -> f32 {
        let hour = window.0 as usize / 3600;
        let around = [23, 24, 25].map(|near| self.hours[(hour + near) % 24][1]);
        let habit = around.into_iter().max().unwrap_or(0);
        self.level.max(UNIFORM as f32).max((f64::from(habit) / STEPS_PER_DECADE) as f32)
    }

    /// What two shards know of one host: what was learned from more windows stands.
    pub(super) fn join(&mut self, other: &Habit) {
        if other.windows > self.windows {
            *self = *other;
        }
    }

    /// Whether the host has been known for so long that its habits are: two days.
    pub(super) fn is_grown(&self, window: EventTime) -> bool {
        self.windows > 0 && window.0 / 3600 >= self.first + 48
    }

    /// Whether nothing was heard of the host for a day before a window.
    pub(super) fn is_stale(&self, window: EventTime) -> bool {
        self.hour + 24 < window.0 / 3600
    }
}

/// Windows by twentieths of a decade, from -4 to 8: evidence, or its excess.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Counts {
    counts: Vec<u64>,
    total: u64,
}

impl Counts {
    const PER_DECADE: usize = 20;
    /// Where 0 lies.
    const ZERO: usize = 4 * Self::PER_DECADE;
    const STEPS: usize = Self::ZERO + 8 * Self::PER_DECADE + 1;

    pub(super) fn new() -> Counts {
        Counts { counts: vec![0; Self::STEPS], total: 0 }
    }

    fn step(evidence: f64) -> usize {
        // A cast takes what is negative or no number for 0. The small part keeps p-values that are powers of ten where they belong.
        ((evidence * Self::PER_DECADE as f64 + Self::ZERO as f64 + 1e-9) as usize).min(Self::STEPS - 1)
    }

    pub(super) fn count(&mut self, evidence: f64) {
        self.counts[Self::step(evidence)] += 1;
        self.total += 1;
    }

    /// Takes over what was counted elsewhere. Both may have counted the same windows, so of each count the larger stands.
    pub(super) fn join(&mut self, other: &Counts) {
        for (mine, &theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine = theirs.max(*mine);
        }
        self.total = self.counts.iter().sum();
    }

    /// Windows in the same step or above.
    fn from(&self, step: usize) -> u64 {
        self.counts[step..].iter().sum()
    }

    /// How many windows were in the same step or above, of how many.
    pub(super) fn as_far(&self, evidence: f64) -> (u64, u64) {
        (self.from(Self::step(evidence)), self.total)
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn is_sound(&self) -> bool {
        self.counts.len() == Self::STEPS
            && self.counts.iter().try_fold(0u64, |sum, n| sum.checked_add(*n)) == Some(self.total)
    }
}

/// Windows by how far they were beyond their host's habits: those of hosts whose habits are known, and of hosts that are too young
/// for that. What the latter do every night is not yet known of them, and would stand in the way of all others.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub(super) struct Ranks {
    young: Counts,
    grown: Counts,
}

impl Ranks {
    /// Fewer windows of grown hosts are not by themselves.
    const LEAST: u64 = 10_000;

    pub(super) fn new() -> Ranks {
        Ranks { young: Counts::new(), grown: Counts::new() }
    }

    pub(super) fn count(&mut self, excess: f64, grown: bool) {
        if grown { self.grown.count(excess) } else { self.young.count(excess) }
    }

    /// How many windows were as far out, of how many.
    fn as_far(&self, excess: f64, grown: bool) -> (u64, u64) {
        let step = Counts::step(excess);
        let (young, old) = ((self.young.from(step), self.young.total), (self.grown.from(step), self.grown.total));
        match grown {
            true if old.1 >= Self::LEAST => old,
            true => (young.0 + old.0, young.1 + old.1),
            false => young,
        }
    }

    /// The share of windows that were as far out, with the one that is asked about among them: its conformal p-value. `prior`
    /// windows of a calibration count as if seen here.
    pub(super) fn rank(&self, excess: f64, grown: bool, prior: f64) -> f64 {
        let (as_far, of) = self.as_far(excess, grown);
        let prior_as_far = prior * 10f64.powf(-(excess + UNIFORM).max(0.0));
        (as_far as f64 + prior_as_far + 1.0) / (of as f64 + prior + 1.0)
    }

    /// Takes over what was counted elsewhere, see [`Counts::join`].
    pub(super) fn join(&mut self, other: &Ranks) {
        self.young.join(&other.young);
        self.grown.join(&other.grown);
    }

    fn known(&self, grown: bool) -> u64 {
        if grown { self.grown.total } else { self.young.total }
    }

    pub(super) fn is_sound(&self) -> bool {
        self.young.is_sound() && self.grown.is_sound()
    }
}

/// Whether p-values are as rare as they say, by those of late.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Promise {
    counts: Counts,
}

/// How a promise is kept.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, ToSchema)]
#[schema(as = CalibrationCheck)]
pub struct Kept {
    /// Windows of late.
    pub windows: u64,
    /// Most that the share of p-values up to x exceeds x, 0 to 1; above 0 they are too small.
    pub excess: f64,
    /// Share of p-values up to 1e-2.
    pub share_at_1e_2: f64,
    /// Whether the p-values hold; nothing is concluded from fewer than 500 windows.
    pub holds: bool,
}

impl Default for Promise {
    fn default() -> Promise {
        Promise { counts: Counts::new() }
    }
}

impl Promise {
    /// Fewer windows conclude nothing.
    const LEAST: u64 = 500;
    /// From so many on, older windows lose weight: two months of a host, or two hours of a thousand.
    const MOST: u64 = 20_000;
    /// Windows of one host follow each other and are alike, so that so many tell as much as one.
    const ALIKE: f64 = 5.0;

    /// Takes a p-value in.
    pub fn hear(&mut self, p_value: f64) {
        self.counts.count(-p_value.log10());
        if self.counts.total >= Self::MOST {
            self.counts.counts.iter_mut().for_each(|n| *n /= 2);
            self.counts.total = self.counts.counts.iter().sum();
        }
    }

    /// How it is kept.
    pub fn kept(&self) -> Kept {
        let windows = self.counts.total;
        let n = windows.max(1) as f64;
        let (mut above, mut excess) = (0, 0.0f64);
        for step in (Counts::ZERO..Counts::STEPS).rev() {
            above += self.counts.counts[step];
            let p = 10f64.powf(-((step - Counts::ZERO) as f64) / Counts::PER_DECADE as f64);
            excess = excess.max(above as f64 / n - p);
        }
        let independent = n / Self::ALIKE;
        // The one-sided bound of the 1 % level, beside five hundredths that nobody minds.
        let uniform = excess <= 0.05 + 1.52 / independent.sqrt();
        let share = |decade: usize| self.counts.from(Counts::ZERO + decade * Counts::PER_DECADE) as f64 / n;
        let twice = |decade: usize| {
            let p = 10f64.powi(-(decade as i32));
            share(decade) <= 2.0 * p + 3.0 * (p / independent).sqrt()
        };
        let holds = windows < Self::LEAST || (uniform && (1..=3).all(twice));
        Kept { windows, excess, share_at_1e_2: share(2), holds }
    }
}

/// What one scorer of one model said here.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
struct Heard {
    promise: Promise,
    /// Whether the promise held when it was last looked at, every so many windows.
    broken: bool,
    pooled: Option<Ranks>,
    classes: BTreeMap<String, Ranks>,
    windows: u64,
}

impl Heard {
    const LOOK_EVERY: u64 = 100;

    fn join(&mut self, other: Heard) {
        self.promise.counts.join(&other.promise.counts);
        self.broken |= other.broken;
        self.windows = self.windows.max(other.windows);
        if let Some(theirs) = &other.pooled {
            self.pooled.get_or_insert_with(Ranks::new).join(theirs);
        }
        for (class, theirs) in other.classes {
            self.classes.entry(class).or_insert_with(Ranks::new).join(&theirs);
        }
    }

    fn weigh(&mut self, p_value: f64, excess: f64, grown: bool, class: &str, calibrated: u64) -> f64 {
        let pooled = self.pooled.get_or_insert_with(Ranks::new);
        if !self.classes.contains_key(class) {
            self.classes.insert(class.to_owned(), Ranks::new());
        }
        let own = self.classes.get_mut(class).expect("it was just put there");
        let ranks = if own.known(grown) >= Calibration::CLASS_MIN as u64 { &*own } else { &*pooled };
        let rank = ranks.rank(excess, grown, if self.broken { 0.0 } else { calibrated as f64 });
        own.count(excess, grown);
        pooled.count(excess, grown);
        self.promise.hear(p_value);
        self.windows += 1;
        if self.windows.is_multiple_of(Self::LOOK_EVERY) {
            self.broken = !self.promise.kept().holds;
        }
        p_value.max(rank).min(1.0)
    }

    fn is_sound(&self) -> bool {
        self.classes.len() <= 16
            && self.classes.values().chain(&self.pooled).all(Ranks::is_sound)
            && self.promise.counts.is_sound()
    }
}

/// What the models said here, by version: the one in charge and one on trial.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Agreement {
    /// The latest to speak last.
    models: Vec<(Arc<str>, [Heard; 2])>,
}

impl Agreement {
    /// Versions that are remembered.
    const MODELS: usize = 2;
    pub(super) const PARTS: [Part; 2] = [Part::Forest, Part::Lstm];

    /// What a model's p-values of a window of a host of some class are worth here.
    pub fn weigh(&mut self, said: &Score, class: &str) -> [Option<f64>; 3] {
        let heard = self.of(&said.model_version);
        let mut weighed = said.p_values;
        for (at, part) in Self::PARTS.into_iter().enumerate() {
            weighed[part as usize] = said.p_values[part as usize].map(|p_value| {
                let excess = -p_value.log10() - f64::from(said.usual[at]);
                heard[at].weigh(p_value, excess, said.grown, class, said.calibrated)
            });
        }
        weighed
    }

    /// Takes over what the models said on another shard, which this one continues as well.
    pub fn join(&mut self, other: Agreement) {
        for (version, theirs) in other.models {
            if let Some((_, heard)) = self.models.iter_mut().find(|(known, _)| *known == version) {
                heard.iter_mut().zip(theirs).for_each(|(mine, theirs)| mine.join(theirs));
            } else if self.models.len() < Self::MODELS {
                self.models.insert(0, (version, theirs));
            }
        }
    }

    fn of(&mut self, version: &Arc<str>) -> &mut [Heard; 2] {
        let known = self.models.iter().position(|(name, _)| name == version);
        match known {
            Some(at) => {
                let last = self.models.len() - 1;
                self.models.swap(at, last);
            }
            None => {
                if self.models.len() == Self::MODELS {
                    self.models.remove(0);
                }
                self.models.push((version.clone(), Default::default()));
            }
        }
        &mut self.models.last_mut().expect("one was just put there").1
    }

    /// Whether what was read makes sense.
    pub fn is_sound(&self) -> bool {
        self.models.len() <= Self::MODELS && self.models.iter().flat_map(|(_, heard)| heard).all(Heard::is_sound)
    }
}

#[cfg(test)]
mod tests;
