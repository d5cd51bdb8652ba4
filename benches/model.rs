//! What a host-window costs in the models, and what a host costs in memory: may tier 2 stay in process, in the engine's
//! shadow? The bounds are 2 us a window for forest and LSTM together, and 300 MB for 100,000 hosts.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use flowvigil::flow::{Address, EventTime};
use flowvigil::ml::forest::{Forest, Growth};
use flowvigil::ml::model::Judge;
use flowvigil::ml::{FeatureVector, artifact, features};

const HOSTS: u32 = 10_000;

/// One window each of many hosts that are past their warm-up.
fn windows(step: u32, hosts: u32) -> Vec<FeatureVector> {
    let mut state = u64::from(step) * 7_919 + 1;
    let mut noise = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..hosts)
        .map(|host| FeatureVector {
            host: Address::v4(0x0a00_0000 + host),
            window: EventTime(1_772_438_400 + step * features::WINDOW_SECONDS),
            history: 100 + step,
            values: features::NAMES.map(|_| noise()).to_vec(),
            sequence: features::SEQUENCE_NAMES.map(|_| noise()).to_vec(),
            raw: features::RAW_NAMES.map(|_| 3.0).to_vec(),
        })
        .collect()
}

fn model(c: &mut Criterion) {
    let model = artifact::embedded().expect("the embedded model is sound");
    let mut judge = Judge::new(1_000_000);
    judge.judge(&model, &windows(0, 100_000));
    println!("100,000 hosts take {} MB of model state", judge.memory() / 1_000_000);

    let batch = windows(1, HOSTS);
    let mut group = c.benchmark_group("model");
    group.throughput(Throughput::Elements(u64::from(HOSTS)));
    let mut judge = Judge::new(1_000_000);
    (0..30).for_each(|step| drop(judge.judge(&model, &windows(step, HOSTS))));
    group.bench_function("top3_z + forest + lstm", |b| b.iter(|| black_box(judge.judge(&model, black_box(&batch)))));
    let rows: Vec<f32> = batch.iter().flat_map(|v| v.values.iter().copied()).collect();
    let forest = Forest::grow(&rows, features::NAMES.len(), Growth::default()).expect("there are rows enough");
    group.bench_function("forest 100 x 1024", |b| b.iter(|| black_box(forest.paths(black_box(&rows)))));
    group.finish();
}

criterion_group!(benches, model);
criterion_main!(benches);
