//! What each scorer is worth: how well its scores tell labelled windows from all others.

use std::collections::BTreeMap;

use serde::Serialize;

use super::FeatureVector;
use super::model::{Judge, Model, Part, combine};

/// How a scorer parts the windows of attacks from the rest.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Separation {
    /// Windows of attacks that it scored.
    pub attacks: u64,
    /// Other windows that it scored.
    pub others: u64,
    /// Probability that a window of an attack scores higher than another (area under the ROC curve); a half is chance.
    pub auc: f64,
    /// Share of the attacks' windows above the score that one in a hundred others reaches.
    pub recall_at_1e_2: f64,
    /// The same for one in a thousand.
    pub recall_at_1e_3: f64,
    /// Share of the attacks' windows above that score where `top3_z` is below its own.
    pub beyond_top3_z: f64,
}

/// Scores windows of a deployment in their order and holds them against `is_attack`, which says nothing of windows whose
/// nature is unknown. By scorer, and `all` joined.
pub fn measure(
    model: &Model,
    vectors: &[FeatureVector],
    is_attack: impl Fn(&FeatureVector) -> Option<bool>,
) -> BTreeMap<&'static str, Separation> {
    let mut vectors: Vec<FeatureVector> = vectors.to_vec();
    vectors.sort_by_key(|v| (v.window, v.host));
    // By scorer, then joined; one entry a window, so that scorers can be held against each other.
    let mut scores: [Vec<Option<f64>>; 4] = Default::default();
    let mut truth = Vec::new();
    for scored in Judge::new(usize::MAX).scored(model, &vectors) {
        let Some(attack) = is_attack(scored.vector).filter(|_| scored.scores[0].is_some()) else { continue };
        let p =
            |part: Part| scored.scores[part as usize].map(|score| model.calibration(part).p_value(scored.class, score));
        for part in Part::ALL {
            scores[part as usize].push(scored.scores[part as usize]);
        }
        scores[3].push(combine(Part::ALL.map(p)).map(|p| -p.ln()));
        truth.push(attack);
    }
    let above_top3 = above(&scores[0], &truth, 1e-3);
    let names = Part::ALL.map(Part::name).into_iter().chain(["all"]);
    names.zip(&scores).map(|(name, scores)| (name, separation(scores, &truth, &above_top3))).collect()
}

fn separation(scores: &[Option<f64>], truth: &[bool], above_top3: &[bool]) -> Separation {
    let of = |attack: bool| -> Vec<f64> {
        let mut list: Vec<f64> =
            scores.iter().zip(truth).filter(|(_, t)| **t == attack).filter_map(|(s, _)| *s).collect();
        list.sort_unstable_by(f64::total_cmp);
        list
    };
    let (attacks, others) = (of(true), of(false));
    if attacks.is_empty() || others.is_empty() {
        return Separation { attacks: attacks.len() as u64, others: others.len() as u64, ..Separation::default() };
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
}
