use std::sync::Arc;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use super::*;
use crate::ml::agreement::Habit;
use crate::ml::features::{NAMES, RAW_NAMES};

const HOSTS: u32 = 50;
const WARM_UP: u32 = 24;

fn units(seed: u64) -> impl FnMut() -> f64 {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    move || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// A window that a share `unit` of all exceeds. All are of one hour of one day: of habits there are tests of their own.
fn vector(number: u32, unit: f64) -> FeatureVector {
    let mut values = vec![0.0; NAMES.len()];
    values[..3].fill(-unit.ln() as f32);
    FeatureVector {
        host: Address::v4(number % HOSTS),
        window: EventTime(number / HOSTS % 12 * WINDOW_SECONDS),
        history: 100,
        values,
        sequence: vec![],
        raw: vec![1.0; RAW_NAMES.len()],
    }
}

/// What a model says of a window.
fn said(version: &str, calibrated: u64, forest: f64, lstm: f64) -> Score {
    Score {
        p_value: None,
        p_values: [None, Some(forest), Some(lstm)],
        usual: [Habit::default().at(EventTime(0)); 2],
        grown: false,
        attributions: Default::default(),
        model_version: Arc::from(version),
        variant: Arc::from("local"),
        calibrated,
        degraded: false,
    }
}

/// From how rare a window is to `top3_z`, and a draw, to how rare forest and sequence model call it.
type Scorers = fn(f64, f64) -> [f64; 2];

/// How model and `top3_z` may hang together, where all windows are of one kind.
const KINDS: [(&str, Scorers); 4] = [
    ("all say the same", |top, _| [top; 2]),
    ("none knows of the others", |_, draw| [draw, (draw * 1e4).fract()]),
    ("what is rare to one is usual to the other", |top, draw| [1.0 - top, draw]),
    ("the forest is stuck", |top, _| [2.5e-5, top]),
];

/// p-values of so many windows, as they are heard.
fn heard(behavior: &mut Behavior, windows: u32, seed: u64, version: &str, scorers: Scorers) -> Vec<f64> {
    let mut unit = units(seed);
    let hear = |number| {
        let (top, draw) = (unit(), unit());
        let [forest, lstm] = scorers(top, draw);
        behavior.weigh(&vector(number, top), Some(&said(version, 0, forest, lstm)), WARM_UP).p_value.unwrap()
    };
    (0..windows).map(hear).collect()
}

fn count(heard: &[f64], target: f64) -> f64 {
    heard.iter().filter(|p| **p <= target).count() as f64
}

#[test]
fn windows_of_one_kind_are_as_rare_as_it_is_said_however_the_scorers_depend_on_each_other() {
    for (kind, scorers) in KINDS {
        for seed in [1, 2] {
            let all = heard(&mut Behavior::new(100), 60_000, seed, "a", scorers);
            for target in [1e-1, 1e-2, 1e-3, 1e-4] {
                // Three standard deviations of the count, and an eighth for the steps in which bounds are counted.
                let expected = target * all.len() as f64;
                let least = expected * 0.87 - 3.0 * expected.sqrt();
                let most = expected * 1.13 + 3.0 * expected.sqrt();
                let realised = count(&all, target);
                assert!(
                    (least..most).contains(&realised),
                    "{kind}, seed {seed}: {realised} for {expected} at {target:e}"
                );
            }
        }
    }
}

#[test]
fn another_model_moves_the_rate_by_less_than_a_factor_of_two() {
    for [(before, first), (after, second)] in [[KINDS[0], KINDS[1]], [KINDS[1], KINDS[3]]] {
        let mut behavior = Behavior::new(100);
        heard(&mut behavior, 40_000, 3, "a", first);
        let all = heard(&mut behavior, 20_000, 4, "b", second);
        for target in [1e-1, 1e-2] {
            let realised = count(&all, target) / all.len() as f64;
            assert!((target / 2.0..target * 2.0).contains(&realised), "{before}, {after}: {realised:e} for {target:e}");
        }
    }
}

#[test]
fn windows_that_only_top3_z_judged_are_not_ranked_again() {
    let mut behavior = Behavior::new(100);
    let mut unit = units(5);
    let (mut alone, mut joined) = (Vec::new(), Vec::new());
    for number in 0..60_000 {
        let top = unit();
        // Asked by turns, and of a host that it does not remember a model has nothing to say.
        let silent = Score { p_values: [None; 3], ..said("a", 0, 1.0, 1.0) };
        let models = [None, Some(silent), Some(said("a", 0, top, top))][number as usize % 3].take();
        let score = behavior.weigh(&vector(number, top), models.as_ref(), WARM_UP);
        let list = if number % 3 == 2 { &mut joined } else { &mut alone };
        list.push(score.p_value.unwrap());
    }
    for target in [1e-1, 1e-2] {
        for (name, list) in [("alone", &alone), ("joined", &joined)] {
            // Ranked again, those that were judged alone would run to 10/6 of the rate.
            let realised = count(list, target) / list.len() as f64;
            assert!((0.7 * target..1.3 * target).contains(&realised), "{name}: {realised:e} for {target:e}");
        }
    }
}

#[test]
fn a_model_of_this_deployment_says_rare_things_before_as_many_windows_were_heard() {
    let mut behavior = Behavior::new(100);
    let mut unit = units(7);
    for number in 0..200 {
        let model = said("a", 100_000, unit(), unit());
        behavior.weigh(&vector(number, unit()), Some(&model), WARM_UP);
    }
    let score = behavior.weigh(&vector(200, 0.5), Some(&said("a", 100_000, 0.5, 5e-6)), WARM_UP);
    assert!(score.p_value.unwrap() <= 1e-4, "{score:?}");
}

#[test]
fn a_snapshot_goes_on_where_it_was_taken() {
    let mut behavior = Behavior::new(100);
    heard(&mut behavior, 5_000, 9, "a", KINDS[0].1);
    let bytes = behavior.snapshot();
    let mut restored = Behavior::restore(&bytes, 100).unwrap();
    let next = |behavior: &mut Behavior| heard(behavior, 1_000, 10, "a", KINDS[0].1);
    let expected = next(&mut behavior);
    assert_eq!(next(&mut restored), expected);
    assert_eq!(restored.snapshot(), behavior.snapshot());

    let without = bytes.len() - postcard::to_allocvec(&Behavior::restore(&bytes, 100).unwrap().bounds).unwrap().len();
    let mut restored = Behavior::restore(&bytes[..without], 100).expect("a snapshot from before bounds were counted");
    assert!(
        next(&mut restored).into_iter().zip(expected).all(|(p, with)| p >= with.min(1e-3)),
        "nothing to rank among"
    );

    assert!(Behavior::restore(&bytes[..bytes.len() - 1], 100).is_none(), "cut off");
    let mut damaged = bytes.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    assert!(Behavior::restore(&damaged, 100).is_none(), "the total is not the sum");
    assert!(Behavior::restore(b"noise", 100).is_none());
}

#[test]
fn a_shard_that_continues_two_ranks_among_what_both_have_heard() {
    let [one, other] = [11, 12].map(|seed| {
        let mut behavior = Behavior::new(100);
        heard(&mut behavior, 5_000, seed, "a", KINDS[0].1);
        behavior
    });
    let mut joined = other.clone();
    joined.join(one.clone());
    let mut expected = other.bounds.clone();
    expected.join(one.bounds);
    assert_ne!(expected, other.bounds);
    assert_eq!(joined.bounds, expected);
}
