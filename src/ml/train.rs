//! Training: from the windows of hosts to a model, its calibration and an honest measure of it.
//!
//! The windows are cut by time, since a model must hold tomorrow: the first part fits the models, the next calibrates
//! their scores, the last measures what the calibrated p-values realise. Windows of hosts that are new count for nothing.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::artifact;
use super::calibration::{Calibration, CalibrationError};
use super::drift::Bins;
use super::features::{NAMES, WINDOW_SECONDS};
use super::forest::{Forest, ForestError, Growth};
use super::lstm::{INPUTS, Lstm, LstmError, Training};
use super::model::{Calibrations, Data, Judge, Manifest, Model, Part, Source, WARM_UP, combine, is_sound};
use super::{FeatureVector, canary};
use crate::flow::{Address, EventTime};

/// How to train.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Options {
    /// The forest.
    pub forest: Growth,
    /// The sequence model.
    pub lstm: Training,
    /// Where the windows came from.
    pub source: Source,
    /// Share of the time that fits the models, above 0 and below 1.
    pub fit_share: f64,
    /// Share of the time that calibrates, above 0; the rest measures.
    pub calibrate_share: f64,
}

impl Options {
    /// Half fits, a third calibrates (the rare end of p-values needs many windows), the rest measures.
    pub fn new(source: Source) -> Options {
        let (forest, lstm) = (Growth::default(), Training::default());
        Options { forest, lstm, source, fit_share: 0.5, calibrate_share: 0.33 }
    }
}

/// Why nothing was trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// Too short or too few.
    #[error(
        "train: {windows} windows of hosts that are past their warm-up; {needed} are needed: a longer stretch or more hosts"
    )]
    TooFew {
        /// Windows found.
        windows: usize,
        /// Windows needed.
        needed: usize,
    },
    /// The forest.
    #[error(transparent)]
    Forest(#[from] ForestError),
    /// The sequence model.
    #[error(transparent)]
    Lstm(#[from] LstmError),
    /// The calibration.
    #[error(transparent)]
    Calibration(#[from] CalibrationError),
}

/// What training is doing.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Step {
    /// The forest has been grown.
    Forest,
    /// An epoch of the sequence model is over.
    Epoch(super::lstm::Progress),
    /// The scores have been calibrated.
    Calibrated,
}

/// How a model's p-values hold on windows.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Evaluation {
    /// Windows judged.
    pub windows: u64,
    /// Windows by class of host.
    pub classes: BTreeMap<String, u64>,
    /// Per scorer, and `all` joined: share of windows with a p-value up to each target.
    pub realised: BTreeMap<String, Vec<Realised>>,
    /// The same of all joined, per class of host.
    pub by_class: BTreeMap<String, Vec<Realised>>,
    /// Per scorer, and `all` joined: share of windows in each twentieth of 0 to 1.
    pub p_values: BTreeMap<String, Vec<f64>>,
    /// Per scorer: share of windows in each of 40 steps between least and greatest score.
    pub scores: BTreeMap<String, Histogram>,
}

/// A target rate and what came of it.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Realised {
    /// The p-value.
    pub target: f64,
    /// Share of windows with a p-value up to the target.
    pub share: f64,
    /// How many these are.
    pub windows: u64,
}

/// Shares in steps of equal width.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Histogram {
    /// Least value.
    pub from: f64,
    /// Greatest value.
    pub to: f64,
    /// Shares.
    pub shares: Vec<f64>,
}

/// Rates that are looked at.
pub const TARGETS: [f64; 4] = [1e-1, 1e-2, 1e-3, 1e-4];

/// Trains on windows in any order.
pub fn train(
    vectors: &[FeatureVector],
    options: Options,
    mut told: impl FnMut(Step),
) -> Result<(Model, Evaluation), TrainError> {
    let mut vectors: Vec<&FeatureVector> = vectors.iter().filter(|v| is_sound(v)).collect();
    vectors.sort_by_key(|v| (v.window, v.host));
    let needed = 4 * super::calibration::Tail::WINDOWS_MIN;
    let warm = vectors.iter().filter(|v| v.history >= WARM_UP).count();
    let (Some(first), Some(last), true) = (vectors.first(), vectors.last(), warm >= needed) else {
        return Err(TrainError::TooFew { windows: warm, needed });
    };
    let (from, to) = (first.window, last.window);
    let (calibrate_from, test_from) = cuts(from, to.plus(WINDOW_SECONDS), &options);
    let fit: Vec<&FeatureVector> = vectors.iter().copied().filter(|v| v.window < calibrate_from).collect();

    let rows: Vec<f32> = fit.iter().filter(|v| v.history >= WARM_UP).flat_map(|v| v.values.iter().copied()).collect();
    let forest = Forest::grow(&rows, NAMES.len(), options.forest)?;
    told(Step::Forest);
    let lstm = Lstm::train(&series(&fit), options.lstm, |progress| told(Step::Epoch(progress)))?;

    let bins =
        (0..NAMES.len()).map(|f| Bins::fit(rows.iter().skip(f).step_by(NAMES.len()).copied().collect())).collect();
    let hosts = vectors.iter().map(|v| v.host).collect::<BTreeSet<Address>>().len();
    let uncalibrated = uncalibrated(options, forest, lstm, bins);
    let owned: Vec<FeatureVector> = vectors.iter().copied().cloned().collect();
    let scored = Judge::new(usize::MAX)
        .scored(&uncalibrated, &owned)
        .into_iter()
        .filter(|s| s.vector.window >= calibrate_from && s.scores[0].is_some())
        .map(|s| (s.vector.window, s.class, s.scores));
    let (calibrating, testing): (Vec<_>, Vec<_>) = scored.partition(|(window, ..)| *window < test_from);
    let fitted = |part: Part| -> Result<Calibration, CalibrationError> {
        let scores: Vec<(&str, f64)> =
            calibrating.iter().filter_map(|(_, class, scores)| Some((*class, scores[part as usize]?))).collect();
        Calibration::fit(&scores)
    };
    let mut model = uncalibrated;
    model.calibrations.top3_z = fitted(Part::Top3Z)?;
    model.calibrations.forest = fitted(Part::Forest)?;
    model.calibrations.lstm = fitted(Part::Lstm)?;
    told(Step::Calibrated);
    let evaluation = evaluate_scores(&model, testing.iter().map(|(_, class, scores)| (*class, *scores)));
    model.manifest.data = Data {
        from,
        to,
        hosts: hosts as u64,
        training_windows: (rows.len() / NAMES.len()) as u64,
        calibration_windows: calibrating.len() as u64,
        test_windows: testing.len() as u64,
    };
    model.manifest.metrics = evaluation
        .realised
        .iter()
        .flat_map(|(name, rates)| rates.iter().map(move |r| (format!("{name}_fpr_at_{:e}", r.target), r.share)))
        .collect();
    Ok((artifact::seal(model), evaluation))
}

/// Where fitting ends and calibrating begins, and where that ends and measuring begins. On whole days where there are three: the
/// rarest scores come from what happens once a day, and a calibration on a day and a third beside a test of two thirds of
/// one, with a night in each, was measured to run 2 to 3 times over its rate.
fn cuts(from: EventTime, to: EventTime, options: &Options) -> (EventTime, EventTime) {
    const DAY: u32 = 86_400;
    let span = to.since(from);
    let days = (span + DAY / 24) / DAY;
    if days < 3 {
        let at = |share: f64| from.plus((f64::from(span) * share) as u32);
        return (at(options.fit_share), at(options.fit_share + options.calibrate_share));
    }
    let part = |share: f64| ((f64::from(days) * share).round() as u32).max(1);
    let calibrate = part(options.calibrate_share).min(days - 2);
    let test = part(1.0 - options.fit_share - options.calibrate_share).min(days - 1 - calibrate);
    (to.minus((calibrate + test) * DAY), to.minus(test * DAY))
}

/// Measures a model's own p-values (without the deployment's agreement) on windows in any order.
pub fn evaluate(model: &Model, vectors: &[FeatureVector]) -> Evaluation {
    let mut vectors: Vec<FeatureVector> = vectors.to_vec();
    vectors.sort_by_key(|v| (v.window, v.host));
    let scored = Judge::new(usize::MAX).scored(model, &vectors);
    evaluate_scores(model, scored.into_iter().filter(|s| s.scores[0].is_some()).map(|s| (s.class, s.scores)))
}

/// Consecutive windows of each host: a gap of a day or more begins another series.
fn series(vectors: &[&FeatureVector]) -> Vec<Vec<[f32; INPUTS]>> {
    let mut by_host: BTreeMap<Address, Vec<&FeatureVector>> = BTreeMap::new();
    vectors.iter().for_each(|v| by_host.entry(v.host).or_default().push(v));
    let mut all = Vec::new();
    for windows in by_host.into_values() {
        let mut last: Option<EventTime> = None;
        for vector in windows {
            if last.is_none_or(|last| vector.window.since(last) > 86_400) {
                all.push(Vec::new());
            }
            last = Some(vector.window);
            let window = std::array::from_fn(|i| vector.sequence[i]);
            if let Some(series) = all.last_mut() {
                series.push(window);
            }
        }
    }
    all
}

fn uncalibrated(options: Options, forest: Forest, lstm: Lstm, bins: Vec<Bins>) -> Model {
    let tail = super::calibration::Tail {
        windows: 1,
        body: vec![0.0, 0.0],
        threshold: 0.0,
        exceedances: 0,
        scale: 1.0,
        shape: 0.0,
    };
    let none = Calibration { pooled: tail, classes: BTreeMap::new() };
    let data = Data {
        from: EventTime(0),
        to: EventTime(0),
        hosts: 0,
        training_windows: 0,
        calibration_windows: 0,
        test_windows: 0,
    };
    let manifest = Manifest {
        format: artifact::FORMAT,
        model_version: String::new(),
        trained_by: format!("flowvigil {}", env!("CARGO_PKG_VERSION")),
        feature_schema: artifact::schema(),
        window_seconds: WINDOW_SECONDS,
        source: options.source,
        forest: forest.growth(),
        lstm: options.lstm,
        data,
        metrics: BTreeMap::new(),
        files: BTreeMap::new(),
    };
    let calibrations = Calibrations { top3_z: none.clone(), forest: none.clone(), lstm: none, bins };
    Model { manifest, forest, lstm, calibrations }
}

fn evaluate_scores<'a>(model: &Model, scored: impl Iterator<Item = (&'a str, [Option<f64>; 3])>) -> Evaluation {
    let mut evaluation = Evaluation::default();
    let mut p_values: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut raw: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let mut by_class: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for (class, scores) in scored {
        evaluation.windows += 1;
        *evaluation.classes.entry(class.to_owned()).or_default() += 1;
        let mut said = [None; 3];
        for part in Part::ALL {
            let Some(score) = scores[part as usize] else { continue };
            let p = model.calibration(part).p_value(class, score);
            said[part as usize] = Some(p);
            p_values.entry(part.name()).or_default().push(p);
            raw.entry(part.name()).or_default().push(score);
        }
        let joined = combine(said);
        p_values.entry("all").or_default().extend(joined);
        by_class.entry(class).or_default().extend(joined);
    }
    evaluation.by_class = by_class.into_iter().map(|(class, values)| (class.to_owned(), realised(&values))).collect();
    for (name, values) in p_values {
        evaluation.realised.insert(name.to_owned(), realised(&values));
        let mut variant = canary::Variant::default();
        values.iter().for_each(|p| variant.window(*p, false));
        evaluation.p_values.insert(name.to_owned(), variant.report().p_values);
    }
    for (name, values) in raw {
        evaluation.scores.insert(name.to_owned(), histogram(&values));
    }
    evaluation
}

/// The share of p-values up to each target.
fn realised(p_values: &[f64]) -> Vec<Realised> {
    let share = |target: f64| {
        let windows = p_values.iter().filter(|p| **p <= target).count();
        Realised { target, share: windows as f64 / p_values.len().max(1) as f64, windows: windows as u64 }
    };
    TARGETS.map(share).to_vec()
}

fn histogram(values: &[f64]) -> Histogram {
    const STEPS: usize = 40;
    let from = values.iter().copied().fold(f64::INFINITY, f64::min);
    let to = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut shares = vec![0.0; STEPS];
    let width = ((to - from) / STEPS as f64).max(f64::MIN_POSITIVE);
    for value in values {
        shares[(((value - from) / width) as usize).min(STEPS - 1)] += 1.0 / values.len() as f64;
    }
    Histogram { from, to, shares }
}

#[cfg(test)]
mod tests;
