//! What tier 1 costs a record, with records in memory: folding, closing windows, all detectors.
//!
//! Informs: how much of a run's time may go to the engine, and whether a change to the layout of its tables made it slower.
//! The peer is what a reader without care for speed writes with the collections of the standard library: records grouped by
//! conversation, and ports and peers of each source counted, in the same windows. It pairs nothing, remembers nothing across
//! windows and finds nothing else than scans, so that it does less.
//!
//!     cargo bench --bench engine

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use flowvigil::flow::network::Network;
use flowvigil::flow::{Address, FlowRecord};
use flowvigil::settings::Settings;
use flowvigil::simulate::{Scenario, Simulation};
use flowvigil::statistical::{Engine, Output};

/// As many records as a batch of the reader holds, about.
const BATCH: usize = 2_300;

/// A quarter of an hour of a simulated VPC, as it is delivered.
fn records() -> (Vec<FlowRecord>, Vec<ipnet::IpNet>) {
    let simulation = Simulation::new(Scenario { duration_seconds: 900, demand: 4.0, ..Scenario::default() });
    let internal = simulation.internal();
    (simulation.flat_map(|step| step.records).collect(), internal)
}

fn engine(c: &mut Criterion) {
    let (records, internal) = records();
    let mut settings = Settings::assemble(&[]).expect("the defaults are right");
    settings.network.internal = internal;
    let network = Network::new(&settings.network);
    let mut group = c.benchmark_group("engine");
    group.throughput(Throughput::Elements(records.len() as u64)).sample_size(20);
    group.bench_function("peer: std collections", |b| b.iter(|| black_box(plainly(&records))));
    group.bench_function("all detectors", |b| {
        b.iter_batched(
            || Engine::new(&settings.statistical, &network),
            |mut engine| {
                let mut out = Output::default();
                for batch in records.chunks(BATCH) {
                    engine.observe(batch);
                    engine.advance(&mut out);
                }
                engine.finish(&mut out);
                (engine, out)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

#[derive(Default)]
struct Source {
    ports: HashMap<Address, HashSet<u16>>,
    hosts: HashSet<Address>,
}

/// Scanners by the plainest rule, window by window.
fn plainly(records: &[FlowRecord]) -> usize {
    let mut windows: BTreeMap<u32, HashMap<_, (u64, u64)>> = BTreeMap::new();
    for r in records {
        let key = (r.source, r.source_port, r.destination, r.destination_port, r.protocol, r.interface);
        let sums = windows.entry(r.start.0 / 60).or_default().entry(key).or_default();
        *sums = (sums.0 + r.packets, sums.1 + r.bytes);
    }
    let mut scanners = 0;
    for window in windows.into_values() {
        let mut sources: HashMap<Address, Source> = HashMap::new();
        for (source, _, destination, port, ..) in window.keys() {
            let source = sources.entry(*source).or_default();
            source.ports.entry(*destination).or_default().insert(*port);
            source.hosts.insert(*destination);
        }
        let scans = |s: &Source| s.hosts.len() > 25 || s.ports.values().any(|ports| ports.len() > 25);
        scanners += sources.values().filter(|source| scans(source)).count();
    }
    scanners
}

criterion_group!(benches, engine);
criterion_main!(benches);
