use proptest::prelude::*;
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng as _;

use super::*;
use crate::ml::behavior::Behavior;
use crate::ml::model::tests::{MODEL, windows};
use crate::ml::model::{Source, WARM_UP, WEIGHTS, combine};

/// What a model says: p-values of one window.
fn said(version: &str, calibrated: u64, usual: &mut [Habit; 2], p_values: [Option<f64>; 3]) -> Score {
    // All at one moment: of hours and days there are tests of their own.
    let before = usual.each_ref().map(|habit| habit.at(EventTime(0)));
    for (habit, p) in usual.iter_mut().zip([p_values[1], p_values[2]]) {
        p.into_iter().for_each(|p| habit.learn(EventTime(0), -p.log10()));
    }
    Score {
        p_value: None,
        p_values,
        usual: before,
        grown: false,
        attributions: Default::default(),
        model_version: Arc::from(version),
        variant: Arc::from("local"),
        calibrated,
        degraded: false,
    }
}

/// p-values of fifty hosts in turn, as `of` makes them of host and a uniform draw; what they are worth to the forest's place.
fn weighed(windows: usize, calibrated: u64, mut of: impl FnMut(usize, f64) -> f64) -> Vec<(usize, f64)> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(5);
    let mut agreement = Agreement::default();
    let mut usual = [[Habit::default(); 2]; 50];
    let weigh = |at: usize| {
        let host = at % usual.len();
        let unit = ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let said = said("a", calibrated, &mut usual[host], [None, Some(of(host, unit)), None]);
        (host, agreement.weigh(&said, "client")[1].unwrap())
    };
    (0..windows).map(weigh).collect()
}

fn share(weighed: &[(usize, f64)], target: f64) -> f64 {
    weighed.iter().filter(|(_, p)| *p <= target).count() as f64 / weighed.len() as f64
}

#[test]
fn a_model_of_this_deployment_says_rare_things_at_once_and_one_from_elsewhere_does_not() {
    let own = weighed(100, 20_000, |host, u| if host == 7 { 1e-4 } else { u });
    let first = own.iter().find(|(host, _)| *host == 7).unwrap().1;
    assert!(first < 2e-4, "{first}");
    let elsewhere = weighed(100, 0, |host, u| if host == 7 { 1e-4 } else { u });
    assert!(elsewhere.iter().all(|(_, p)| *p >= 1e-2), "a hundred windows support no more");
}

#[test]
fn p_values_that_hold_stay_what_they_are() {
    for calibrated in [0, 20_000] {
        let all = weighed(60_000, calibrated, |_, u| u);
        for target in [1e-1, 1e-2, 1e-3] {
            let realised = share(&all[20_000..], target);
            assert!((0.6 * target..1.5 * target).contains(&realised), "{realised:e} for {target:e}, {calibrated}");
        }
    }
}

#[test]
fn p_values_that_are_too_small_lose_their_credit_and_are_ranked() {
    let mut promise = Promise::default();
    (1..2_000).for_each(|n| promise.hear((f64::from(n) / 2_000.0).powi(3)));
    let kept = promise.kept();
    assert!(!kept.holds && kept.excess > 0.3 && kept.share_at_1e_2 > 0.2, "{kept:?}");
    let all = weighed(60_000, 20_000, |_, u| u.powi(3));
    for target in [1e-1, 1e-2, 1e-3] {
        let realised = share(&all[5_000..], target);
        assert!(realised <= 2.0 * target, "{realised:e} for {target:e}");
    }
}

#[test]
fn the_promise_is_not_broken_by_chance() {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(9);
    let mut promise = Promise::default();
    for n in 1..=50_000 {
        promise.hear(((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64);
        if n % 100 == 0 {
            assert!(promise.kept().holds, "{:?}", promise.kept());
        }
    }
    assert!(promise.kept().windows < Promise::MOST, "what is old weighs less");
}

#[test]
fn a_scorer_that_is_stuck_has_no_say() {
    for stuck in [2.5e-5, 1.0] {
        let all = weighed(20_000, 20_000, |_, _| stuck);
        assert!(all[5_000..].iter().all(|(_, p)| *p == 1.0), "{stuck}");
    }
}

#[test]
fn a_host_that_is_odd_all_day_takes_nobodys_place() {
    let mut n = 0;
    let all = weighed(40_000, 0, |host, u| {
        n += 1;
        match host {
            // A hundred times as unusual as anybody else, always.
            3 => u * 1e-2,
            7 if n == 39_958 => 1e-4,
            _ => u,
        }
    });
    let odd: Vec<_> = all[20_000..].iter().copied().filter(|(host, _)| *host == 3).collect();
    assert!(share(&odd, 1e-2) <= 0.03, "{:e}", share(&odd, 1e-2));
    let (host, p) = all[39_957];
    assert!(host == 7 && p <= 1e-3, "{p:e} of host {host}");
}

#[test]
fn an_attack_of_an_hour_does_not_become_usual() {
    let mut habit = Habit::default();
    let at = |n: u32| EventTime(1_700_006_400 + n * 300);
    (0..100).for_each(|n| habit.learn(at(n), 0.4));
    (100..112).for_each(|n| habit.learn(at(n), 4.0));
    assert!(habit.at(at(112)) < 0.8, "{}", habit.at(at(112)));
}

#[test]
fn what_was_done_at_this_hour_on_two_days_is_a_habit_and_once_is_none() {
    let mut habit = Habit::default();
    let at = |day: u32, hour: u32| EventTime(1_700_006_400 + day * 86_400 + hour * 3_600);
    let mut at_three = Vec::new();
    for day in 0..12 {
        for hour in 0..24 {
            if hour == 3 {
                at_three.push(habit.at(at(day, hour)));
            }
            // Three days of a backup at night, and then none.
            let evidence = if hour == 3 && day < 3 { 3.5 } else { 0.3 };
            (0..12).for_each(|_| habit.learn(at(day, hour), evidence));
        }
    }
    assert!(at_three[1] < 1.0, "once is no habit: {at_three:?}");
    assert!(at_three[2] > 3.2, "twice is: {at_three:?}");
    assert!(at_three[4] > 3.0 && at_three[11] < 2.8, "it fades: {at_three:?}");
    assert!(habit.at(at(12, 14)) < 1.0, "at another hour it never was");
}

#[test]
fn a_model_on_trial_is_counted_by_itself() {
    let mut agreement = Agreement::default();
    let mut usual = [Habit::default(); 2];
    for n in 0..1_000 {
        for version in ["a", "b"] {
            let p = if version == "a" { f64::from(n % 100 + 1) / 100.0 } else { 1e-3 };
            agreement.weigh(&said(version, 0, &mut usual, [None, Some(p), None]), "client");
        }
    }
    let kept = |version: &str| {
        let (_, heard) = agreement.models.iter().find(|(name, _)| &**name == version).unwrap();
        heard[0].promise.kept().holds
    };
    assert_eq!((kept("a"), kept("b")), (true, false));
    agreement.weigh(&said("c", 0, &mut usual, [None, Some(0.5), None]), "client");
    let names: Vec<&str> = agreement.models.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["b", "c"], "the latest two");
    assert!(agreement.is_sound());
}

#[test]
fn a_model_from_a_simulation_says_nothing_rarer_than_this_deployment_has_seen() {
    let mut foreign = MODEL.clone();
    foreign.manifest.source = Source::Simulation;
    let mut batch = windows(2, 2, 7);
    let at = batch.len() - 1;
    batch[at].values[..16].fill(20.0);
    let mut behavior = Behavior::new(100);
    let scores = behavior.judge().score(&foreign, &batch);
    let heard: Vec<_> = batch.iter().zip(&scores).map(|(v, score)| behavior.weigh(v, Some(score), WARM_UP)).collect();
    let seen = heard.iter().filter(|score| score.p_value.is_some()).count();
    let p = heard[at].p_value.unwrap();
    assert!(p >= 1.0 / seen as f64, "{p} of {seen} windows");
    assert!(p <= 6.0 / seen as f64, "{p} of {seen} windows: still the rarest that could be said");
    assert!(heard[..at].iter().flat_map(|j| j.p_value).all(|p| p > 1e-4));
}

#[test]
fn a_broken_forest_costs_the_others_nothing_of_their_share() {
    // The forest calls every attack usual and every second other window as rare as it can.
    let mut random = Xoshiro256PlusPlus::seed_from_u64(11);
    let mut unit = || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let (mut agreement, mut usual) = (Agreement::default(), [[Habit::default(); 2]; 20]);
    let mut found = [0u32; 2];
    let mut false_alarms = [0u32; 2];
    for n in 0..40_000usize {
        let attack = n % 400 == 399;
        let top3 = if attack { unit() * 1e-3 } else { unit() };
        let forest = if attack { 1.0 } else { [2.5e-5, unit()][n % 2] };
        let said = said("a", 20_000, &mut usual[n % 20], [Some(top3), Some(forest), None]);
        let joined = combine(agreement.weigh(&said, "client")).unwrap();
        let counts = if attack { &mut found } else { &mut false_alarms };
        counts[0] += u32::from(top3 <= 1e-3);
        counts[1] += u32::from(joined <= 1e-3 / WEIGHTS[0] * (WEIGHTS[0] + WEIGHTS[1]));
    }
    assert_eq!(found, [100, 100]);
    assert!(false_alarms[1] <= 2 * false_alarms[0].max(40), "{false_alarms:?}");
}

proptest! {
    /// Whatever the others say: at any rate, joining finds what one finds at its share of it.
    #[test]
    fn joining_never_hides_what_one_found(p in proptest::array::uniform3(0.0001f64..1.0), rate in 0.001f64..1.0) {
        let joined = combine(p.map(Some)).unwrap();
        for (p, weight) in p.into_iter().zip(WEIGHTS) {
            prop_assert!(p > weight * rate || joined <= rate * 1.000_001);
        }
        let total: f64 = WEIGHTS.iter().sum();
        prop_assert!((total - 1.0).abs() < 1e-12, "together no more than the rate: Bonferroni's bound");
    }
}
