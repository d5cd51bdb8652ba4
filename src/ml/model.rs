//! A trained model, and the judge that runs it over a shard's windows.
//!
//! Three scorers look at a window: `top3_z` (the sum of the three largest rises, no training), the isolation forest (joint
//! structure) and the LSTM (what comes when it was not due). Each score becomes a p-value by the artifact's calibration for the
//! host's class, and the three are joined by a weighted Bonferroni bound ([`combine`]). A [`Model`] is immutable and shared; a [`Judge`] holds what is
//! remembered of hosts, and is owned by one shard.
//!
//! What is said here is the model's own opinion. What that is worth on this deployment, whose windows may be of another kind
//! than those of the calibration, is for [`super::agreement`] to say.

use std::collections::BTreeMap;
use std::sync::Arc;

use foldhash::fast::FixedState;
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use super::agreement::Habit;
use super::calibration::Calibration;
use super::drift::Bins;
use super::features::{NAMES, SEQUENCE_NAMES, Z_COUNT};
use super::forest::Forest;
use super::lstm::{INPUTS, Lstm, State, TARGETS};
use super::{FeatureVector, Score};
use crate::flow::{Address, EventTime};

/// The scorers, in the order of their names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Sum of the three largest z-scores.
    Top3Z,
    /// The isolation forest.
    Forest,
    /// The sequence model.
    Lstm,
}

impl Part {
    /// All of them.
    pub const ALL: [Part; 3] = [Part::Top3Z, Part::Forest, Part::Lstm];

    /// The name in the artifact, in evidence and on the wire.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Top3Z => "top3_z",
            Part::Forest => "forest",
            Part::Lstm => "lstm",
        }
    }
}

/// What an artifact says about itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of the artifact's layout.
    pub format: u32,
    /// End of the training data, and a digest of the model: the same model has the same version.
    pub model_version: String,
    /// The version of flowvigil that trained it.
    pub trained_by: String,
    /// The features it expects.
    pub feature_schema: Schema,
    /// Length of a window, s.
    pub window_seconds: u32,
    /// Where its windows came from.
    pub source: Source,
    /// How the forest was grown.
    pub forest: super::forest::Growth,
    /// How the sequence model was trained.
    pub lstm: super::lstm::Training,
    /// The windows it was trained on.
    pub data: Data,
    /// Measured on the last windows, which neither training nor calibration saw: `fpr_at_1e-3` …
    pub metrics: BTreeMap<String, f64>,
    /// The other files of the archive.
    pub files: BTreeMap<String, FileDigest>,
}

/// Names and order of features.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// `hw27-v1`.
    pub id: String,
    /// The features, in order.
    pub names: Vec<String>,
    /// The inputs of the sequence model, in order.
    pub sequence_names: Vec<String>,
}

/// Where the windows of a training came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// `flowvigil simulate`: its calibration counts for nothing on a deployment until its windows agree.
    Simulation,
    /// The deployment's own flow logs.
    Deployment,
}

/// The windows of a training.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Data {
    /// Start of the first window.
    pub from: EventTime,
    /// Start of the last window.
    pub to: EventTime,
    /// Hosts.
    pub hosts: u64,
    /// Windows that the models were fitted to.
    pub training_windows: u64,
    /// Later windows that the scores were calibrated on.
    pub calibration_windows: u64,
    /// Still later windows that the metrics were measured on.
    pub test_windows: u64,
}

/// Size and checksum of a file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileDigest {
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Bytes.
    pub bytes: u64,
}

/// `calibration.json`: what scores mean, and what windows looked like.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrations {
    /// Of the sum of the three largest z-scores.
    pub top3_z: Calibration,
    /// Of the forest: the negative mean path.
    pub forest: Calibration,
    /// Of the sequence model: `ln(1 + sum of squared upward surprises)`.
    pub lstm: Calibration,
    /// Deciles of each feature, for drift.
    pub bins: Vec<Bins>,
}

impl Calibrations {
    /// The calibration of one scorer.
    pub fn of(&self, part: Part) -> &Calibration {
        match part {
            Part::Top3Z => &self.top3_z,
            Part::Forest => &self.forest,
            Part::Lstm => &self.lstm,
        }
    }
}

/// A trained model: immutable, shared.
#[derive(Clone, PartialEq, Debug)]
pub struct Model {
    /// What it says about itself.
    pub manifest: Manifest,
    pub(super) forest: Forest,
    pub(super) lstm: Lstm,
    pub(super) calibrations: Calibrations,
}

/// What one scorer thought of a window.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Opinion {
    /// The raw score: higher is more unusual, comparable within one model only.
    pub score: f64,
    /// Share of normal windows of the class that score as high.
    pub p_value: f64,
}

/// What all scorers thought of a window.
#[derive(Clone, PartialEq, Debug)]
pub struct Judgement {
    /// By scorer; `None` where it had nothing to go by.
    pub opinions: [Option<Opinion>; 3],
    /// Joined; `None` when no scorer had an opinion.
    pub p_value: Option<f64>,
    /// What is no news of the host: see [`Habit::at`].
    pub usual: [f32; 2],
    /// Whether the host has been known for so long that its habits are.
    pub grown: bool,
    /// By scorer: the features that made it so, largest first; empty for windows that nobody would ask about.
    pub attributions: [Vec<(String, f32)>; 3],
}

impl Judgement {
    /// As the tier's score.
    pub(super) fn score(self, model_version: Arc<str>, variant: Arc<str>, calibrated: u64) -> Score {
        let p_values = self.opinions.map(|opinion| opinion.map(|o| o.p_value));
        let Judgement { p_value, usual, grown, attributions, .. } = self;
        Score { p_value, p_values, usual, grown, attributions, model_version, variant, calibrated, degraded: false }
    }
}

/// The share of the false-positive rate that each scorer may use up, in the order of [`Part::ALL`]. A judgement: `top3_z` needs no
/// model and is the hardest to beat. On simulated days other weights (.7, .2, .1; .6, .3, .1) found the same to within a hundredth.
pub const WEIGHTS: [f64; 3] = [0.6, 0.1, 0.3];

/// Each p-value over its scorer's weight; what did not speak gives up its share to those that did.
pub fn weighted(p_values: [Option<f64>; 3]) -> [Option<f64>; 3] {
    let speaking: f64 = p_values.iter().zip(WEIGHTS).filter(|(p, _)| p.is_some()).map(|(_, weight)| weight).sum();
    std::array::from_fn(|at| p_values[at].map(|p| (p * speaking / WEIGHTS[at]).min(1.0)))
}

/// Joins the p-values of one window: the least of the weighted ones (Bonferroni), valid however they depend on each other.
pub fn combine(p_values: [Option<f64>; 3]) -> Option<f64> {
    weighted(p_values).into_iter().flatten().reduce(f64::min)
}

/// Windows that are more usual are not explained.
const EXPLAINED: f64 = 0.05;
/// What the names of amounts begin with that the sequence model had not foretold.
pub(super) const UNFORESEEN: &str = "unforeseen_";
/// Features that are named for a window.
const NAMED: usize = 3;
/// A host is new for so many windows, two hours: until then its z-scores mean little.
pub const WARM_UP: u32 = 24;
/// A host is remembered from so many windows, an hour: most addresses of a large network are seen a few times and never
/// again, and a kilobyte each would be spent on them for nothing.
const REMEMBERED: u32 = 12;
/// Windows of a host that are kept, 2 h 40 min: another model begins with them, and an endpoint is sent no more. The state that a judge
/// carries from window to window looks back further.
pub const SEQUENCE_MAX: usize = 32;

impl Model {
    /// How many windows of the deployment it is meant for its scores were calibrated on; none where they were simulated.
    pub fn calibrated(&self) -> u64 {
        match self.manifest.source {
            Source::Simulation => 0,
            Source::Deployment => self.manifest.data.calibration_windows,
        }
    }

    /// The distribution that features had in training.
    pub fn bins(&self) -> &[Bins] {
        &self.calibrations.bins
    }

    /// The calibration of a scorer.
    pub fn calibration(&self, part: Part) -> &Calibration {
        self.calibrations.of(part)
    }

    /// Judges rows without memory, as the model server does: `sequence` ends with the window that is judged.
    pub fn judge_row(&self, values: &[f32], sequence: Option<&[[f32; INPUTS]]>, class: &str) -> Judgement {
        self.judge_walked(values, self.forest.paths(values)[0], sequence, class)
    }

    /// As [`Model::judge_row`], with the path of the row: a forest walks many rows in half the time of as many single ones.
    pub(super) fn judge_walked(
        &self,
        values: &[f32],
        path: f32,
        sequence: Option<&[[f32; INPUTS]]>,
        class: &str,
    ) -> Judgement {
        let surprise = sequence
            .filter(|sequence| sequence.len() >= 2)
            .and_then(|sequence| Some((self.lstm.forecast_last(sequence)?, sequence.last()?)))
            .map(|(forecast, window)| forecast.surprise(window));
        let scores = [Some(top3_z(values)), Some(-f64::from(path)), surprise.as_ref().map(surprise_score)];
        let opinions = std::array::from_fn(|i| {
            scores[i].map(|score| Opinion { score, p_value: self.calibration(Part::ALL[i]).p_value(class, score) })
        });
        self.join(opinions, ([Habit::default().at(EventTime(0)); 2], false), values, surprise.as_ref())
    }

    /// From a negative path to the paper's score, 0 to 1, for people who know it.
    pub(super) fn forest_score(&self) -> impl Fn(f64) -> f64 {
        let normal = f64::from(self.forest.normal_path());
        move |negative_path| (negative_path / normal).exp2()
    }

    fn join(
        &self,
        opinions: [Option<Opinion>; 3],
        (usual, grown): ([f32; 2], bool),
        values: &[f32],
        surprise: Option<&[f32; TARGETS]>,
    ) -> Judgement {
        let p_values = opinions.map(|opinion| opinion.map(|o| o.p_value));
        // What is no news of the host will not be asked about; to explain a forest costs four times as much as to walk it.
        let usual_of = |part: Part| match part {
            Part::Top3Z => 0.0,
            Part::Forest => usual[0],
            Part::Lstm => usual[1],
        };
        let explained = |part: Part| match p_values[part as usize] {
            Some(p) if p <= EXPLAINED && -p.log10() > f64::from(usual_of(part)) => self.explain(part, values, surprise),
            _ => Vec::new(),
        };
        Judgement { opinions, p_value: combine(p_values), usual, grown, attributions: Part::ALL.map(explained) }
    }

    /// The features that moved a scorer most: rises in standard deviations, shares of the forest's path, or what the
    /// sequence model had not foretold, in its standard deviations (`unforeseen_flows_out`).
    fn explain(&self, part: Part, values: &[f32], surprise: Option<&[f32; TARGETS]>) -> Vec<(String, f32)> {
        let mut shares: Vec<(usize, f32)> = match (part, surprise) {
            (Part::Lstm, Some(surprise)) => surprise.iter().map(|s| s.sqrt()).enumerate().collect(),
            // The three aggregates at the end repeat what the others say.
            (Part::Forest, _) => self.forest.attribute(values).into_iter().take(24).enumerate().collect(),
            _ => values.iter().copied().take(Z_COUNT).enumerate().collect(),
        };
        shares.retain(|(_, share)| *share > 0.0);
        shares.sort_by(|a, b| b.1.total_cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
        shares.truncate(NAMED);
        let name = |at: usize| match (part, surprise) {
            (Part::Lstm, Some(_)) => format!("{UNFORESEEN}{}", SEQUENCE_NAMES[at].trim_start_matches("z_")),
            _ => NAMES[at].to_owned(),
        };
        shares.into_iter().map(|(at, share)| (name(at), share)).collect()
    }
}

/// The sum of the three largest of the sixteen one-sided z-scores.
pub fn top3_z(values: &[f32]) -> f64 {
    let mut top = [0.0f64; 3];
    for z in values.iter().take(Z_COUNT) {
        let z = f64::from(*z);
        if z > top[2] {
            top[2] = z;
            top.sort_by(|a, b| b.total_cmp(a));
        }
    }
    top.iter().sum()
}

/// One number for all surprises; the logarithm brings the tail within reach of a generalised Pareto distribution.
pub(super) fn surprise_score(surprise: &[f32; TARGETS]) -> f64 {
    f64::from(surprise.iter().sum::<f32>()).ln_1p()
}

/// Whether a vector has the shape of the schema.
pub(super) fn is_sound(vector: &FeatureVector) -> bool {
    vector.values.len() == NAMES.len() && vector.sequence.len() == INPUTS
}

// === Judge ===

/// What a shard remembers of its hosts.
#[derive(Clone, Debug)]
pub struct Judge {
    hosts: HashMap<Address, Host, FixedState>,
    hosts_max: usize,
    /// The model that the hosts' states belong to, and how many models came before it.
    version: String,
    generation: u32,
}

/// What is remembered of one host: about 960 bytes.
#[derive(Clone, Debug)]
struct Host {
    state: State,
    /// The model that the state belongs to.
    generation: u32,
    recent: Recent,
    /// Peers that it opened to and that opened to it in a usual window: moving averages of the logarithm.
    destinations: f32,
    sources: f32,
    windows: u32,
    last_seen: EventTime,
    /// What models usually think of it.
    usual: [Habit; 2],
}

/// The latest windows of a host, to begin anew with another model and to be sent to an endpoint, which remembers nothing: a
/// ring of fixed-point numbers in thousandths, far below what a standard deviation is known to.
#[derive(Clone, Debug)]
struct Recent {
    values: [[i16; INPUTS]; SEQUENCE_MAX],
    count: u32,
}

/// Address, state, latest windows, usual peers (to and from), windows, last seen, usual evidence.
type StoredHost = (Address, Vec<f32>, Vec<i16>, [f32; 2], u32, EventTime, [Habit; 2]);

/// A judge's memory as it is stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: String,
    hosts: Vec<StoredHost>,
}

impl Judge {
    /// A judge that has seen nothing and remembers at most so many hosts.
    pub fn new(hosts_max: usize) -> Judge {
        Judge { hosts: HashMap::default(), hosts_max, version: String::new(), generation: 0 }
    }

    /// Hosts remembered.
    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Bytes held for hosts.
    pub fn memory(&self) -> usize {
        self.hosts.allocation_size()
    }

    /// Judges closed windows, in order, and remembers them. A host that is new is remembered and not judged.
    pub fn judge(&mut self, model: &Model, batch: &[FeatureVector]) -> Vec<Judgement> {
        self.scored(model, batch).into_iter().map(|scored| self.weigh(model, &scored)).collect()
    }

    /// As [`Judge::judge`], as the tier's scores.
    pub fn score(&mut self, model: &Model, batch: &[FeatureVector]) -> Vec<Score> {
        let version: Arc<str> = Arc::from(model.manifest.model_version.as_str());
        let variant: Arc<str> = Arc::from("local");
        let judged = self.judge(model, batch).into_iter();
        judged.map(|judgement| judgement.score(version.clone(), variant.clone(), model.calibrated())).collect()
    }

    /// The class of a host: by the peers of its usual windows, not of the one that is judged.
    pub fn class(&self, host: Address) -> &'static str {
        self.hosts.get(&host).map_or("quiet", Host::class)
    }

    /// The latest windows of a host, oldest first; none of a host that is not remembered.
    pub fn recent(&self, host: Address) -> Vec<[f32; INPUTS]> {
        self.hosts.get(&host).map_or_else(Vec::new, |host| host.recent.windows().collect())
    }

    /// Raw scores with the class of the host, before any calibration: what training calibrates on.
    pub(super) fn scored<'a>(&mut self, model: &Model, batch: &'a [FeatureVector]) -> Vec<Scored<'a>> {
        self.follow(model);
        let remembered = |vector: &FeatureVector| is_sound(vector) && vector.history >= REMEMBERED;
        let rows: Vec<f32> = batch.iter().filter(|v| remembered(v)).flat_map(|v| v.values.iter().copied()).collect();
        let mut paths = model.forest.paths(&rows).into_iter();
        let mut all = Vec::with_capacity(batch.len());
        for vector in batch {
            let mut scored = Scored { vector, class: "quiet", scores: [None; 3], learned: [None; 2], surprise: None };
            let path = if remembered(vector) { paths.next() } else { None };
            if let Some(path) = path {
                let (class, known, surprise) = self.remember(model, vector);
                let forest = -f64::from(path);
                let surprised = surprise.as_ref().map(surprise_score);
                scored.class = class;
                scored.learned = [Some(forest), surprised];
                if vector.history >= WARM_UP {
                    scored.scores = [Some(top3_z(&vector.values)), Some(forest), surprised.filter(|_| known)];
                    scored.surprise = surprise;
                }
            }
            all.push(scored);
        }
        all
    }

    /// Notices another model. States of the one before mean nothing to it: each host's is made anew from its latest windows
    /// when the host is next seen, so that no window goes unjudged.
    fn follow(&mut self, model: &Model) {
        if self.version != model.manifest.model_version {
            if !self.version.is_empty() {
                self.generation += 1;
            }
            self.version.clone_from(&model.manifest.model_version);
        }
    }

    /// Takes a window into the host's memory; its class, whether its rhythm is known, and its surprise.
    fn remember(&mut self, model: &Model, vector: &FeatureVector) -> (&'static str, bool, Option<[f32; TARGETS]>) {
        if !self.hosts.contains_key(&vector.host) && self.hosts.len() >= self.hosts_max {
            let from = vector.window.minus(86_400);
            self.hosts.retain(|_, host| host.last_seen >= from);
            if self.hosts.len() >= self.hosts_max {
                return ("quiet", false, None);
            }
        }
        let generation = self.generation;
        let host = self.hosts.entry(vector.host).or_insert_with(|| Host::new(generation));
        if host.generation != generation {
            host.generation = generation;
            host.state = State::default();
            for window in host.recent.windows() {
                model.lstm.forecast(&mut host.state, &window);
            }
        }
        let window: [f32; INPUTS] = std::array::from_fn(|i| vector.sequence[i]);
        let forecast = model.lstm.forecast(&mut host.state, &window);
        let known = host.windows >= WARM_UP - REMEMBERED;
        let class = host.class();
        host.recent.push(&window);
        host.learn(vector);
        (class, known, Some(forecast.surprise(&window)))
    }

    /// Turns raw scores into p-values, beside what is usual for the host, which then learns from them.
    fn weigh(&mut self, model: &Model, scored: &Scored<'_>) -> Judgement {
        let p_value = |part: Part, score: f64| model.calibration(part).p_value(scored.class, score);
        let opinions = Part::ALL.map(|part| {
            let score = scored.scores[part as usize]?;
            Some(Opinion { score, p_value: p_value(part, score) })
        });
        let window = scored.vector.window;
        let (mut usual, mut grown) = ([Habit::default().at(window); 2], false);
        if let Some(host) = self.hosts.get_mut(&scored.vector.host).filter(|_| scored.learned[0].is_some()) {
            usual = host.usual.each_ref().map(|habit| habit.at(window));
            grown = host.usual[0].is_grown(window);
            for (at, (habit, part)) in host.usual.iter_mut().zip([Part::Forest, Part::Lstm]).enumerate() {
                let opinion = opinions[part as usize].map(|opinion| opinion.p_value);
                if let Some(p) = opinion.or_else(|| Some(p_value(part, scored.learned[at]?))) {
                    habit.learn(window, -p.log10());
                }
            }
        }
        model.join(opinions, (usual, grown), &scored.vector.values, scored.surprise.as_ref())
    }

    /// Takes over what the judge of another shard remembers; of a host that both know, the longer memory.
    pub fn join(&mut self, other: Judge) {
        if self.version.is_empty() {
            self.version.clone_from(&other.version);
        }
        let same = self.version == other.version;
        for (address, mut host) in other.hosts {
            // A state of another model is made anew when the host is next seen.
            let current = same && host.generation == other.generation;
            host.generation = if current { self.generation } else { self.generation.wrapping_sub(1) };
            let room = self.hosts.len() < self.hosts_max;
            match self.hosts.get_mut(&address) {
                Some(known) if (known.windows, known.last_seen) >= (host.windows, host.last_seen) => {}
                Some(known) => *known = host,
                None if room => drop(self.hosts.insert(address, host)),
                None => {}
            }
        }
    }

    /// The memory, to be restored by [`Judge::restore`].
    pub fn snapshot(&self) -> Vec<u8> {
        // A state of an older model is as good as none: it is made anew from the latest windows.
        let state = |h: &Host| if h.generation == self.generation { h.state.to_values().to_vec() } else { Vec::new() };
        let mut hosts: Vec<StoredHost> = self
            .hosts
            .iter()
            .map(|(a, h)| {
                (*a, state(h), h.recent.stored(), [h.destinations, h.sources], h.windows, h.last_seen, h.usual)
            })
            .collect();
        hosts.sort_unstable_by_key(|host| host.0);
        let stored = Stored { version: self.version.clone(), hosts };
        postcard::to_allocvec(&stored).expect("plain numbers can be written")
    }

    /// A judge that goes on where the snapshot was taken; `None` when the bytes are not one.
    pub fn restore(bytes: &[u8], hosts_max: usize) -> Option<Judge> {
        let stored: Stored = postcard::from_bytes(bytes).ok()?;
        let mut judge = Judge::new(hosts_max);
        judge.version = stored.version;
        judge.generation = 1;
        for (address, values, recent, [destinations, sources], windows, last_seen, usual) in
            stored.hosts.into_iter().take(hosts_max)
        {
            let (state, generation) = match <&[f32; State::VALUES]>::try_from(values.as_slice()) {
                Ok(values) => (State::from_values(values), 1),
                Err(_) if values.is_empty() => (State::default(), 0),
                Err(_) => return None,
            };
            let recent = Recent::restore(&recent)?;
            let host = Host { state, generation, recent, destinations, sources, windows, last_seen, usual };
            judge.hosts.insert(address, host);
        }
        Some(judge)
    }
}

/// A window with its raw scores.
pub(super) struct Scored<'a> {
    pub(super) vector: &'a FeatureVector,
    pub(super) class: &'static str,
    pub(super) scores: [Option<f64>; 3],
    /// Scores of forest and sequence model, also while the host is new: what is usual for it is known when it is judged.
    learned: [Option<f64>; 2],
    surprise: Option<[f32; TARGETS]>,
}

impl Recent {
    const STEP: f32 = 1000.0;

    fn new() -> Recent {
        Recent { values: [[0; INPUTS]; SEQUENCE_MAX], count: 0 }
    }

    fn push(&mut self, window: &[f32; INPUTS]) {
        // What goes in is within 6 of 0; a cast takes what is not a number for 0.
        let at = self.count as usize % SEQUENCE_MAX;
        self.values[at] = std::array::from_fn(|i| (window[i].clamp(-30.0, 30.0) * Self::STEP).round() as i16);
        // Counted so that the place in the ring stays right when the count is cut short.
        self.count = if self.count == u32::MAX { SEQUENCE_MAX as u32 } else { self.count + 1 };
    }

    /// The raw numbers, oldest window first.
    fn rows(&self) -> impl Iterator<Item = &[i16; INPUTS]> {
        let kept = (self.count as usize).min(SEQUENCE_MAX);
        let from = self.count as usize - kept;
        (from..from + kept).map(|at| &self.values[at % SEQUENCE_MAX])
    }

    fn windows(&self) -> impl Iterator<Item = [f32; INPUTS]> + '_ {
        self.rows().map(|row| std::array::from_fn(|i| f32::from(row[i]) / Self::STEP))
    }

    fn stored(&self) -> Vec<i16> {
        self.rows().flatten().copied().collect()
    }

    fn restore(stored: &[i16]) -> Option<Recent> {
        let (rows, rest) = stored.as_chunks::<INPUTS>();
        if !rest.is_empty() || rows.len() > SEQUENCE_MAX {
            return None;
        }
        let mut recent = Recent::new();
        recent.values[..rows.len()].copy_from_slice(rows);
        recent.count = rows.len() as u32;
        Some(recent)
    }
}

impl Host {
    fn new(generation: u32) -> Host {
        let (state, recent) = (State::default(), Recent::new());
        let usual = [Habit::default(); 2];
        Host { state, generation, recent, destinations: 0.0, sources: 0.0, windows: 0, last_seen: EventTime(0), usual }
    }

    /// Where in [`super::features::RAW_NAMES`] the numbers of peers stand.
    const DESTINATIONS_AT: usize = 4;
    const SOURCES_AT: usize = 6;

    fn learn(&mut self, vector: &FeatureVector) {
        let amount = |at: usize| vector.raw.get(at).copied().filter(|v| v.is_finite()).unwrap_or(0.0).max(0.0).ln_1p();
        // A window's weight: a twentieth, and equal shares while there are fewer than twenty.
        let weight = (1.0 / (self.windows as f32 + 1.0)).max(0.05);
        self.destinations += weight * (amount(Self::DESTINATIONS_AT) - self.destinations);
        self.sources += weight * (amount(Self::SOURCES_AT) - self.sources);
        self.windows = self.windows.saturating_add(1);
        self.last_seen = vector.window;
    }

    /// `hub` with 64 peers a window or more (gateways, resolvers, load balancers), `server` where more peers open to it than it
    /// opens to, `quiet` below four peers, else `client`.
    fn class(&self) -> &'static str {
        let (destinations, sources) = (self.destinations.exp_m1(), self.sources.exp_m1());
        match destinations + sources {
            peers if peers >= 64.0 => "hub",
            peers if peers < 4.0 => "quiet",
            _ if sources > destinations => "server",
            _ => "client",
        }
    }
}

#[cfg(test)]
pub(super) mod tests;
