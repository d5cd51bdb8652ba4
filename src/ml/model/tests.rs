use std::sync::LazyLock;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use super::*;
use crate::ml::features::RAW_NAMES;
use crate::ml::train::{Options, train};

/// Windows of `hosts` hosts over `days` days: noise in every feature, and a working day in the amounts of the sequence.
pub(in crate::ml) fn windows(hosts: u32, days: u32, seed: u64) -> Vec<FeatureVector> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut unit = move || ((random.next_u64() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
    let mut normal = move || ((-2.0 * unit().ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()) as f32;
    let mut all = Vec::new();
    for window in 0..days * 288 {
        let hour = (window % 288) as f32 / 12.0;
        let busy = if (8.0..18.0).contains(&hour) { 1.5 } else { -0.7 };
        let angle = hour / 24.0 * std::f32::consts::TAU;
        for host in 1..=hosts {
            let mut values: Vec<f32> = (0..NAMES.len()).map(|_| normal().max(-1.0)).collect();
            let top = top3_z(&values) as f32;
            values[25] = top.ln_1p();
            let mut sequence: Vec<f32> = (0..TARGETS).map(|_| 0.4 * normal() + busy).collect();
            sequence.extend([angle.sin(), angle.cos()]);
            all.push(FeatureVector {
                host: Address::v4(0x0a00_0000 + host),
                window: EventTime(1_700_006_400 + window * 300),
                history: window,
                values,
                sequence,
                raw: vec![5.0 + host as f32; RAW_NAMES.len()],
            });
        }
    }
    all
}

pub(in crate::ml) fn options(source: Source) -> Options {
    let mut options = Options::new(source);
    options.forest.trees = 40;
    options.lstm.epochs = 1;
    options.lstm.batch = 1;
    options
}

/// One small model for all tests, trained once.
pub(in crate::ml) static MODEL: LazyLock<Model> =
    LazyLock::new(|| train(&windows(10, 4, 1), options(Source::Deployment), |_| ()).unwrap().0);

#[test]
fn a_rise_in_three_features_is_unusual_and_explained_by_them() {
    let mut judge = Judge::new(100);
    let mut batch = windows(4, 1, 2);
    let usual = judge.judge(&MODEL, &batch);
    assert_eq!(usual.iter().filter(|j| j.p_value.is_none()).count(), 4 * WARM_UP as usize, "new hosts are not judged");
    let mut burst = batch.pop().unwrap();
    for feature in [1, 4, 7] {
        burst.values[feature] = 14.0;
    }
    burst.values[25] = 42.0f32.ln_1p();
    let judged = judge.judge(&MODEL, &[burst]).pop().unwrap();
    assert!(judged.p_value.unwrap() < 1e-3, "{judged:?}");
    let mut named: Vec<&str> =
        judged.attributions[Part::Forest as usize].iter().map(|(name, _)| name.as_str()).collect();
    named.sort_unstable();
    assert_eq!(named, ["z_flows_in", "z_new_dst", "z_uniq_dst"]);
}

#[test]
fn the_sequence_model_speaks_once_the_hosts_rhythm_is_known() {
    let batch = windows(1, 1, 3);
    let judged = Judge::new(100).judge(&MODEL, &batch);
    assert!(judged[WARM_UP as usize..].iter().all(|j| j.opinions[Part::Lstm as usize].is_some()));
}

#[test]
fn a_snapshot_goes_on_where_it_was_taken() {
    let batch = windows(5, 1, 4);
    let (first, second) = batch.split_at(batch.len() / 2);
    let mut whole = Judge::new(100);
    whole.judge(&MODEL, first);
    let mut restored = Judge::restore(&whole.snapshot(), 100).unwrap();
    assert_eq!(restored.judge(&MODEL, second), whole.judge(&MODEL, second));
    assert_eq!(restored.snapshot(), whole.snapshot());
    assert!(Judge::restore(b"noise", 100).is_none());
}

#[test]
fn the_number_of_hosts_is_bounded_and_those_of_today_are_kept() {
    let mut judge = Judge::new(8);
    judge.judge(&MODEL, &windows(50, 1, 5)[..1_000]);
    assert_eq!(judge.hosts(), 8);
    let mut later = windows(1, 1, 6).remove(0);
    later.window = later.window.plus(3 * 86_400);
    later.host = Address::v4(99);
    later.history = 50;
    judge.judge(&MODEL, &[later]);
    assert_eq!(judge.hosts(), 1, "hosts that were not seen for a day make room");
}

#[test]
fn a_vector_of_another_shape_is_not_judged() {
    let mut vector = windows(1, 1, 8).pop().unwrap();
    vector.values.pop();
    let judged = Judge::new(10).judge(&MODEL, &[vector]);
    assert_eq!(judged[0].p_value, None);
}

#[test]
fn hosts_have_a_class_by_their_usual_peers() {
    let class = |destinations: f32, sources: f32| {
        let mut host = Host::new(0);
        let mut vector = windows(1, 1, 9).pop().unwrap();
        vector.raw[Host::DESTINATIONS_AT] = destinations;
        vector.raw[Host::SOURCES_AT] = sources;
        (0..30).for_each(|_| host.learn(&vector));
        host.class()
    };
    assert_eq!(
        [class(1.0, 0.0), class(20.0, 2.0), class(3.0, 12.0), class(100.0, 100.0)],
        ["quiet", "client", "server", "hub"]
    );
}

#[test]
fn a_hundred_thousand_hosts_fit_into_three_hundred_megabytes() {
    let mut judge = Judge::new(200_000);
    let mut vector = windows(1, 1, 10).pop().unwrap();
    for host in 0..100_000 {
        vector.host = Address::v4(0x0a00_0000 + host);
        judge.remember(&MODEL, &vector);
    }
    assert_eq!(judge.hosts(), 100_000);
    assert!(judge.memory() < 300_000_000, "{} bytes", judge.memory());
    // 960 bytes and a key, in a table that is at most seven eighths full.
    assert!(judge.memory() > 90_000_000, "{} bytes: the table is what takes the room", judge.memory());
}

#[test]
fn another_model_finds_the_hosts_rhythm_known() {
    let mut other = MODEL.clone();
    other.manifest.model_version = "another".to_owned();
    let batch = windows(3, 2, 12);
    let (first, second) = batch.split_at(batch.len() - 6);
    let mut judge = Judge::new(100);
    judge.judge(&MODEL, first);
    let exchanged = judge.judge(&other, second);
    assert!(exchanged.iter().all(|j| j.opinions[Part::Lstm as usize].is_some()), "nobody is silent");
}
