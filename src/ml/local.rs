//! The always-on behaviour scorer, and the pager that turns scores into findings.
//!
//! `top3_z` is the sum of a window's three largest one-sided z-scores: on measured data it ties with the models or beats
//! them, and it needs no training. What counts is how far it is beyond the host's own habit at that hour ([`Habit`]): the dump of
//! every night is as large a rise as the same dump in the afternoon, and only one of them is news. It is calibrated against the
//! windows of this very deployment: the p-value is its rank among all windows of warm hosts seen before (conformal prediction,
//! Vovk et al. 2005), so that a target of one in ten thousand means that, and a deployment that is too young to know says
//! nothing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::finding::{
    Actor, Bound, Evidence, Finding, Merge, MlContribution, MlFeature, Severity, Subject, Threat, Tier,
};
use crate::flow::{Address, EventTime};
use crate::ml::agreement::{Habit, Ranks};
use crate::ml::features::{NAMES, RAW_NAMES, WINDOW_SECONDS, Z_COUNT};
use crate::ml::model::Part;
use crate::ml::{FeatureVector, Score};

/// `[ml.behavior]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// A window counts as unusual below this p-value.
    pub p_value: f64,
    /// And only from this sum of the three largest z-scores.
    pub top3_z: f64,
    /// Where the sequence model spoke: only from this sum of the three largest rises above what it had foretold.
    pub unforeseen: f64,
    /// Windows of history before a host is scored.
    pub warm_up: u32,
    /// So many of a host's last three windows must be unusual.
    pub windows: u32,
    /// Silence after a finding on the same host before it is stated again.
    pub again: SignedDuration,
}

/// Scores a vector by `top3_z` beyond what the host does at this hour, and by the rank of that among those before.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TopThree {
    /// What hosts do at which hour; about 80 bytes each.
    habits: BTreeMap<Address, Habit>,
    hosts_max: u64,
    /// Windows seen, by how far each was beyond the host's habit.
    seen: Ranks,
    /// What it calls itself in a score.
    name: Arc<str>,
    variant: Arc<str>,
}

/// The sum of a vector's three largest z-scores, 0 to 90.
pub fn top3_z(vector: &FeatureVector) -> f64 {
    let mut z: Vec<f64> = vector.values.iter().take(Z_COUNT).map(|&z| f64::from(z).max(0.0)).collect();
    z.sort_unstable_by(|a, b| b.total_cmp(a));
    z.iter().take(3).sum()
}

/// Scores with a larger p-value carry no attribution.
const EXPLAINED: f64 = 0.05;

/// The three largest rises, by name.
fn attribution(vector: &FeatureVector) -> Vec<(String, f32)> {
    let mut rises: Vec<(&str, f32)> =
        NAMES.iter().zip(&vector.values).take(Z_COUNT).map(|(&name, &z)| (name, z.max(0.0))).collect();
    rises.sort_by(|a, b| b.1.total_cmp(&a.1));
    rises.into_iter().take(3).map(|(name, z)| (name.to_owned(), z)).collect()
}

impl TopThree {
    /// Has seen nothing, and remembers the habits of at most so many hosts.
    pub fn new(hosts_max: usize) -> TopThree {
        let (habits, seen) = (BTreeMap::new(), Ranks::new());
        TopThree { habits, hosts_max: hosts_max as u64, seen, name: Arc::from("top3_z"), variant: Arc::from("local") }
    }

    /// The score of a window, then remembers the window. `None` for the p-value while the host is new.
    pub fn score(&mut self, vector: &FeatureVector, warm_up: u32) -> Score {
        // On the scale of -log10 p, roughly: 90 standard deviations are 6.8, and twice as many are one more.
        let evidence = 1.5 * top3_z(vector).ln_1p();
        let (usual, grown) = self.learn(vector, evidence, warm_up);
        let p_value = (vector.history >= warm_up).then(|| {
            let excess = evidence - f64::from(usual);
            let p = self.seen.rank(excess, grown, 0.0);
            self.seen.count(excess, grown);
            p
        });
        // Whatever is not unusual is asked by nobody why.
        let attribution = if p_value.is_some_and(|p| p <= EXPLAINED) { attribution(vector) } else { Vec::new() };
        Score {
            p_value,
            p_values: [p_value, None, None],
            usual: [0.0; 2],
            grown,
            attributions: [attribution, Vec::new(), Vec::new()],
            model_version: self.name.clone(),
            variant: self.variant.clone(),
            calibrated: 0,
            degraded: false,
        }
    }

    /// What is no news of the host, and whether its habits are known; it then learns from the window: from the middle of its warm-up, so that its level is
    /// known when it is judged.
    fn learn(&mut self, vector: &FeatureVector, evidence: f64, warm_up: u32) -> (f32, bool) {
        let (host, window) = (vector.host, vector.window);
        if vector.history < warm_up / 2 {
            return (Habit::default().at(window), false);
        }
        if !self.habits.contains_key(&host) && self.habits.len() as u64 >= self.hosts_max {
            self.habits.retain(|_, habit| !habit.is_stale(window));
            if self.habits.len() as u64 >= self.hosts_max {
                return (Habit::default().at(window), false);
            }
        }
        let habit = self.habits.entry(host).or_default();
        let known = (habit.at(window), habit.is_grown(window));
        habit.learn(window, evidence);
        known
    }

    /// Whether what was read makes sense.
    pub(super) fn is_sound(&self) -> bool {
        self.seen.is_sound()
    }
}

impl TopThree {
    /// Takes over the windows that the scorer of another shard has seen. Both may have seen the same, so of each count the
    /// larger stands.
    pub(super) fn join(&mut self, other: &TopThree) {
        self.seen.join(&other.seen);
        for (host, theirs) in &other.habits {
            if self.habits.contains_key(host) || (self.habits.len() as u64) < self.hosts_max {
                self.habits.entry(*host).or_default().join(theirs);
            }
        }
    }
}

/// Decides which scores are worth a finding.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pager {
    /// Per host: the last three windows with their verdicts, and when it was last told.
    recent: BTreeMap<Address, Recent>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Recent {
    windows: Vec<(EventTime, bool)>,
    told: EventTime,
}

impl Pager {
    /// Takes over what the pager of another shard has heard.
    pub(super) fn join(&mut self, other: Pager) {
        for (host, theirs) in other.recent {
            let recent = self.recent.entry(host).or_default();
            let mut windows: BTreeMap<EventTime, bool> = recent.windows.iter().copied().collect();
            for (window, unusual) in theirs.windows {
                *windows.entry(window).or_default() |= unusual;
            }
            recent.windows = windows.into_iter().collect();
            recent.told = recent.told.max(theirs.told);
        }
    }

    /// Hears a host's score; says something when enough of its last three windows were unusual.
    pub fn hear(&mut self, vector: &FeatureVector, score: &Score, settings: &Settings) -> Option<Finding> {
        let (rise, least) = rise(vector, score, settings);
        let unusual = score.p_value.is_some_and(|p| p <= settings.p_value) && rise >= least;
        if !unusual && !self.recent.contains_key(&vector.host) {
            return None;
        }
        let recent = self.recent.entry(vector.host).or_default();
        recent.windows.push((vector.window, unusual));
        let from = vector.window.minus(2 * WINDOW_SECONDS);
        recent.windows.retain(|w| w.0 >= from);
        let count = recent.windows.iter().filter(|w| w.1).count() as u32;
        let quiet = vector.window.since(recent.told) >= settings.again.as_secs() as u32;
        let first = recent.windows.iter().find(|w| w.1).map_or(vector.window, |w| w.0);
        if count == 0 && quiet {
            self.recent.remove(&vector.host);
            return None;
        }
        if !(unusual && count >= settings.windows && quiet) {
            return None;
        }
        recent.told = vector.window;
        Some(finding(vector, score, settings, first, count))
    }
}

/// How far the window rose, in the terms of the scorer that spoke, and how far it must.
fn rise(vector: &FeatureVector, score: &Score, settings: &Settings) -> (f64, f64) {
    match score.loudest() {
        Part::Lstm => (score.attribution().iter().map(|(_, sd)| f64::from(*sd)).sum(), settings.unforeseen),
        Part::Top3Z | Part::Forest => (top3_z(vector), settings.top3_z),
    }
}

/// What a score says, as it stands on an anomaly.
pub(super) fn contribution(vector: &FeatureVector, score: &Score) -> MlContribution {
    let feature = |(name, contribution): &(String, f32)| MlFeature { name: name.clone(), contribution: *contribution };
    MlContribution {
        host: vector.host,
        window: vector.window,
        model_version: score.model_version.to_string(),
        variant: score.variant.to_string(),
        score: 1.0 - score.p_value.unwrap_or(1.0),
        features: score.attribution().iter().map(feature).collect(),
    }
}

fn finding(vector: &FeatureVector, score: &Score, settings: &Settings, first: EventTime, count: u32) -> Finding {
    let p = score.p_value.unwrap_or(1.0);
    let (rise, least) = rise(vector, score, settings);
    let ml = |name: Cow<'static, str>, value: f64, threshold: Option<f64>, unit: &'static str| Evidence {
        tier: Tier::Ml,
        value,
        threshold,
        bound: threshold.map(|_| if name == "p_value" { Bound::AtMost } else { Bound::AtLeast }),
        unit: unit.into(),
        merge: Merge::Latest,
        name,
    };
    let mut evidence = vec![
        ml("p_value".into(), p, Some(settings.p_value), "probability"),
        ml((if score.loudest() == Part::Lstm { "unforeseen" } else { "top3_z" }).into(), rise, Some(least), "sd"),
        ml("unusual_windows".into(), f64::from(count), Some(f64::from(settings.windows)), "windows of 3"),
    ];
    evidence.extend(
        score
            .attribution()
            .iter()
            .map(|(name, value)| ml(name.clone().into(), f64::from(*value), None, "contribution")),
    );
    let what: Vec<String> = score.attribution().iter().map(|(name, z)| plain(vector, name, *z)).collect();
    Finding {
        threat: Threat::Behavior,
        method: score.loudest().name().to_owned(),
        actor: Actor::One(vector.host),
        subject: Subject::Actor(vector.host),
        targets: Vec::new(),
        target_count: 0,
        sources: Vec::new(),
        alternatives: Vec::new(),
        severity_reason: "unusual for the host by itself; nothing says what it is".to_owned(),
        learned: Vec::new(),
        first_seen: first,
        last_seen: vector.window.plus(WINDOW_SECONDS - 1),
        window: vector.window,
        window_seconds: WINDOW_SECONDS,
        score: 1.0 - p,
        severity: Severity::Medium,
        evidence,
        summary: format!("{} is out of character: {} (p = {p:.1e})", vector.host, what.join(", ")),
        interfaces: Vec::new(),
        account: String::new(),
        provisional: false,
        ml: Some(contribution(vector, score)),
    }
}

/// `z_flows_out` of 12.3 as "flows out 812 (12.3 sd above its usual)".
fn plain(vector: &FeatureVector, name: &str, z: f32) -> String {
    let (raw, unit) = if let Some(raw) = name.strip_prefix("z_") {
        (raw, "sd above its usual")
    } else if let Some(raw) = name.strip_prefix("unforeseen_") {
        (raw, "sd above what its hour and its last hours foretold")
    } else {
        (name.strip_prefix("log_").unwrap_or(name), "of the forest's path")
    };
    let value = RAW_NAMES.iter().position(|&n| n == raw).and_then(|at| vector.raw.get(at));
    let value = value.map_or(String::new(), |value| {
        if *value >= 100.0 || value.fract() == 0.0 { format!(" {value:.0}") } else { format!(" {value:.2}") }
    });
    format!("{}{value} ({z:.1} {unit})", raw.replace('_', " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(host: u32, window: u32, z: f32) -> FeatureVector {
        let mut values = vec![0.0; NAMES.len()];
        values[..3].fill(z);
        FeatureVector {
            host: Address::v4(host),
            window: EventTime(window * WINDOW_SECONDS),
            history: 100,
            values,
            sequence: vec![],
            raw: vec![1.0; RAW_NAMES.len()],
        }
    }

    const SETTINGS: Settings = Settings {
        p_value: 1e-3,
        top3_z: 12.0,
        unforeseen: 12.0,
        warm_up: 24,
        windows: 2,
        again: SignedDuration::from_hours(1),
    };

    #[test]
    fn a_young_deployment_says_nothing_and_one_window_is_not_enough() {
        let (mut scorer, mut pager) = (TopThree::new(1_000), Pager::default());
        let mut hear = |v: &FeatureVector, s: &mut TopThree| {
            let score = s.score(v, SETTINGS.warm_up);
            pager.hear(v, &score, &SETTINGS)
        };
        assert!(hear(&vector(1, 0, 20.0), &mut scorer).is_none(), "no past to compare with");
        for n in 0..5_000 {
            assert!(hear(&vector(n % 50, 1 + n / 50, (n % 7) as f32 / 10.0), &mut scorer).is_none());
        }
        assert!(hear(&vector(7, 200, 20.0), &mut scorer).is_none(), "one window");
        let second = hear(&vector(7, 201, 20.0), &mut scorer).expect("the second unusual window");
        assert_eq!(second.first_seen, EventTime(200 * WINDOW_SECONDS));
        assert!(second.summary.contains("flows out"), "{}", second.summary);
        assert!(hear(&vector(7, 202, 20.0), &mut scorer).is_none(), "told already");
    }

    #[test]
    fn the_dump_of_every_night_is_no_news_and_the_same_dump_in_the_afternoon_is() {
        let mut scorer = TopThree::new(100);
        let mut said = Vec::new();
        let mut state = 1u64;
        let mut noise = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            -(((state >> 33) as f32 + 1.0) / 2_147_483_649.0).ln()
        };
        for n in 0..6 * 288u32 {
            let (day, hour) = (n / 288, n % 288 / 12);
            for host in 0..20 {
                let dumps = host == 7 && (hour == 3 || day == 5 && hour == 15);
                let z = if dumps { 20.0 } else { noise() };
                let score = scorer.score(&vector(host, n, z), SETTINGS.warm_up);
                if dumps {
                    said.push(((day, hour), score.p_value.unwrap()));
                }
            }
        }
        let least = |at: (u32, u32)| said.iter().filter(|(when, _)| *when == at).map(|(_, p)| *p).fold(1.0, f64::min);
        assert!(least((5, 3)) > 5e-3, "after five nights: {}", least((5, 3)));
        assert!(least((5, 15)) < 1e-3, "in the afternoon: {}", least((5, 15)));
    }

    #[test]
    fn habits_are_kept_of_so_many_hosts_and_of_those_of_today() {
        let mut scorer = TopThree::new(8);
        (0..50).for_each(|host| drop(scorer.score(&vector(host, 1, 1.0), SETTINGS.warm_up)));
        assert_eq!(scorer.habits.len(), 8);
        scorer.score(&vector(99, 3 * 288, 1.0), SETTINGS.warm_up);
        assert_eq!(scorer.habits.len(), 1);
    }

    #[test]
    fn p_values_of_exchangeable_windows_are_uniform() {
        let mut scorer = TopThree::new(1_000);
        let mut state = 1u64;
        let mut below = 0;
        for n in 0..20_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let z = -(((state >> 33) as f32 + 1.0) / 2_147_483_649.0).ln();
            // All at one hour of one day: where there is no past, there is no habit.
            let mut window = vector(1, 0, z);
            window.window = EventTime(n % 12 * WINDOW_SECONDS);
            let score = scorer.score(&window, 24);
            below += u32::from(score.p_value.unwrap() <= 0.05);
        }
        let share = f64::from(below) / 20_000.0;
        assert!((0.03..0.07).contains(&share), "{share} of the windows have p <= 0.05");
    }
}
