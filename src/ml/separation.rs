//! What each scorer is worth: how well its scores tell labelled windows from all others.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;

use super::FeatureVector;
use super::behavior::Behavior;
use super::model::{Model, Part, WARM_UP};

/// How a scorer parts the windows of attacks from the rest.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Separation {
    /// Windows of attacks that it scored.
    pub attacks: u64,
    /// Other windows that it scored.
    pub others: u64,
    /// Probability that a window of an attack is more unusual to it than another (area under the ROC curve), as its p-values
    /// are heard here; a half is chance.
    pub auc: f64,
    /// The same of its raw scores, before they are weighed by this deployment's windows; nothing for all joined.
    pub auc_alone: Option<f64>,
    /// Share of the attacks' windows above what one in a hundred others reaches.
    pub recall_at_1e_2: f64,
    /// The same for one in a thousand.
    pub recall_at_1e_3: f64,
    /// Share of the attacks' windows that it finds so and `top3_z` does not.
    pub beyond_top3_z: f64,
    /// Share of the other windows with a p-value up to each of [`TARGETS`]: what its alarms would cost here.
    pub realised: [f64; 4],
}

/// The rates that realised shares are given at.
pub const TARGETS: [f64; 4] = [1e-1, 1e-2, 1e-3, 1e-4];

/// One window as every scorer saw it.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Seen<'a> {
    /// The window.
    pub vector: &'a FeatureVector,
    /// Whether it is part of an attack; nothing where that is unknown.
    pub attack: Option<bool>,
    /// Raw scores, in the order of [`Part::ALL`].
    pub scores: [Option<f64>; 3],
    /// p-values of the model's calibration.
    pub model: [Option<f64>; 3],
    /// Evidence of forest and sequence model that is no news of the host.
    pub usual: [f32; 2],
    /// p-values as they are heard here.
    pub heard: [Option<f64>; 3],
    /// All joined.
    pub joined: Option<f64>,
}

/// Windows that are judged at a time.
const BATCH: usize = 1024;

/// Scores windows of a deployment in their order, as the service would, and holds them against `is_attack`, which says nothing
/// of windows whose nature is unknown. By scorer, and `all` joined.
pub fn measure(
    model: &Model,
    vectors: &[FeatureVector],
    is_attack: impl Fn(&FeatureVector) -> Option<bool>,
    mut seen: impl FnMut(&Seen<'_>),
) -> BTreeMap<&'static str, Separation> {
    let mut vectors: Vec<FeatureVector> = vectors.to_vec();
    vectors.sort_by_key(|v| (v.window, v.host));
    let mut behavior = Behavior::new(usize::MAX);
    let (version, variant): (Arc<str>, Arc<str>) = (Arc::from("measured"), Arc::from("local"));
    // By scorer, then joined; one entry a window, so that scorers can be held against each other.
    let mut evidence: [Vec<Option<f64>>; 4] = Default::default();
    let mut alone: [Vec<Option<f64>>; 3] = Default::default();
    let mut truth = Vec::new();
    for batch in vectors.chunks(BATCH) {
        let judged = behavior.judge().judge(model, batch);
        for (vector, judgement) in batch.iter().zip(judged) {
            let opinions = judgement.opinions;
            let model_says = judgement.score(version.clone(), variant.clone(), model.calibrated());
            let heard = behavior.weigh(vector, Some(&model_says), WARM_UP);
            if heard.p_value.is_none() {
                continue;
            }
            let (attack, scores) = (is_attack(vector), opinions.map(|opinion| opinion.map(|o| o.score)));
            let (model, usual, joined) = (model_says.p_values, model_says.usual, heard.p_value);
            seen(&Seen { vector, attack, scores, model, usual, heard: heard.p_values, joined });
            let Some(attack) = attack else { continue };
            for part in Part::ALL {
                alone[part as usize].push(scores[part as usize]);
                evidence[part as usize].push(heard.p_values[part as usize].map(|p| -p.log10()));
            }
            evidence[3].push(heard.p_value.map(|p| -p.log10()));
            truth.push(attack);
        }
    }
    let above_top3 = above(&evidence[0], &truth, 1e-3);
    let names = Part::ALL.map(Part::name).into_iter().chain(["all"]);
    let mut measured: BTreeMap<&'static str, Separation> =
        names.zip(&evidence).map(|(name, evidence)| (name, separation(evidence, &truth, &above_top3))).collect();
    for (part, scores) in Part::ALL.into_iter().zip(&alone) {
        if let Some(measured) = measured.get_mut(part.name()) {
            measured.auc_alone = Some(separation(scores, &truth, &above_top3).auc);
        }
    }
    measured
}

fn separation(scores: &[Option<f64>], truth: &[bool], above_top3: &[bool]) -> Separation {
    let of = |attack: bool| -> Vec<f64> {
        let mut list: Vec<f64> =
            scores.iter().zip(truth).filter(|(_, t)| **t == attack).filter_map(|(s, _)| *s).collect();
        list.sort_unstable_by(f64::total_cmp);
        list
    };
    let (attacks, others) = (of(true), of(false));
    // The small part keeps p-values that are a target where they belong.
    let reached = |target: f64| {
        let count = others.iter().filter(|e| **e >= -target.log10() - 1e-9).count();
        count as f64 / others.len().max(1) as f64
    };
    let realised = TARGETS.map(reached);
    if attacks.is_empty() || others.is_empty() {
        let (attacks, others) = (attacks.len() as u64, others.len() as u64);
        return Separation { attacks, others, realised, ..Separation::default() };
    }
    let below = |score: f64| {
        let (low, high) = (others.partition_point(|o| *o < score), others.partition_point(|o| *o <= score));
        (low + high) as f64 / 2.0
    };
    let auc = attacks.iter().map(|s| below(*s)).sum::<f64>() / (attacks.len() * others.len()) as f64;
    let share = |flags: &[bool]| {
        flags.iter().zip(truth).filter(|(flag, attack)| **flag && **attack).count() as f64 / attacks.len() as f64
    };
    let rare = above(scores, truth, 1e-3);
    let beyond: Vec<bool> = rare.iter().zip(above_top3).map(|(mine, top3)| *mine && !top3).collect();
    Separation {
        attacks: attacks.len() as u64,
        others: others.len() as u64,
        auc,
        recall_at_1e_2: share(&above(scores, truth, 1e-2)),
        recall_at_1e_3: share(&rare),
        beyond_top3_z: share(&beyond),
        auc_alone: None,
        realised,
    }
}

/// Which windows score higher than all but a share of the others.
fn above(scores: &[Option<f64>], truth: &[bool], rate: f64) -> Vec<bool> {
    let mut others: Vec<f64> = scores.iter().zip(truth).filter(|(_, t)| !**t).filter_map(|(s, _)| *s).collect();
    others.sort_unstable_by(|a, b| b.total_cmp(a));
    let limit = others.get((others.len() as f64 * rate) as usize).copied().unwrap_or(f64::NEG_INFINITY);
    scores.iter().map(|score| score.is_some_and(|score| score > limit)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_perfect_scorer_a_blind_one_and_what_one_sees_beyond_the_other() {
        let truth: Vec<bool> = (0..2_000).map(|i| i % 20 == 0).collect();
        let perfect: Vec<Option<f64>> = truth.iter().map(|t| Some(f64::from(u8::from(*t)))).collect();
        let blind = vec![Some(1.0); truth.len()];
        let nothing = above(&blind, &truth, 1e-3);
        let seen = separation(&perfect, &truth, &nothing);
        assert_eq!((seen.auc, seen.recall_at_1e_3, seen.beyond_top3_z), (1.0, 1.0, 1.0));
        let unseen = separation(&blind, &truth, &nothing);
        assert_eq!((unseen.auc, unseen.recall_at_1e_2), (0.5, 0.0));
        assert_eq!((seen.attacks, seen.others), (100, 1_900));
    }
    #[test]
    fn what_is_realised_is_known_where_nothing_is_an_attack() {
        let p_values = (1..=1_000).map(|n| f64::from(n) / 1_000.0);
        let evidence: Vec<Option<f64>> = p_values.map(|p| Some(-p.log10())).collect();
        let seen = separation(&evidence, &[false; 1_000], &[false; 1_000]);
        assert_eq!((seen.others, seen.realised), (1_000, [0.1, 0.01, 0.001, 0.0]));
    }
}
