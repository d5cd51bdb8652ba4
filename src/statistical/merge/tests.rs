//! Two engines become one, and go on as one that saw everything.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::finding::{Actor, Finding, Subject, Threat};
use crate::flow::{Address, FlowRecord};
use crate::statistical::tests::{Exchange, address, busy, settings};

fn engine(seed: u64) -> Engine {
    let (settings, network) = settings();
    Engine::with_seed(&settings, &network, seed)
}

fn copy(engine: &Engine) -> Engine {
    let (settings, network) = settings();
    Engine::restore(&engine.snapshot(), &settings, &network).expect("our own snapshot")
}

/// Of an exchange's ends, the one that is ours; its last octet stands for its interface.
fn home(exchange: &Exchange) -> u32 {
    let ours = address("10.0.0.0").bits() >> 8;
    let end = if exchange.from.bits() >> 8 == ours { exchange.from } else { exchange.to };
    end.bits() as u32 & 0xff
}

/// Records by the end of the exchange that is ours, whichever shard that comes to.
fn records(exchanges: &[Exchange]) -> Vec<FlowRecord> {
    let of = |exchange: &Exchange| {
        let mut exchange = exchange.clone();
        exchange.interface = home(&exchange);
        exchange.records()
    };
    let mut records: Vec<FlowRecord> = exchanges.iter().flat_map(of).collect();
    records.sort_by_key(|r| (r.end, r.start));
    records
}

/// Gives an engine records whose interfaces it numbers itself, as the reader of a shard does.
fn feed<'a>(engine: &mut Engine, records: impl Iterator<Item = &'a FlowRecord>, out: &mut Output) {
    let records: Vec<&FlowRecord> = records.collect();
    for piece in records.chunks(100) {
        let mut numbered = Vec::new();
        for record in piece {
            let name = format!("eni-{}", record.interface.0);
            let next = InterfaceId(engine.interfaces().len() as u32 + 1);
            let known = engine.interfaces().iter().find(|interface| interface.name == name);
            let interface = known.map_or(next, |interface| interface.id);
            if interface == next {
                engine.name_interfaces(&[Interface { id: next, name, account: "1".to_owned() }]);
            }
            numbered.push(FlowRecord { interface, ..**record });
        }
        engine.observe(&numbered);
        engine.advance(out);
    }
}

/// What findings come to: the span, the ports by target, and who saw it.
type Stories = BTreeMap<(Threat, Actor, Subject), (u32, u32, BTreeMap<Address, u32>, BTreeSet<String>)>;

fn stories(findings: &[Finding]) -> Stories {
    let mut stories = Stories::new();
    for f in findings {
        let story =
            stories.entry((f.threat, f.actor, f.subject)).or_insert((u32::MAX, 0, BTreeMap::new(), BTreeSet::new()));
        (story.0, story.1) = (story.0.min(f.first_seen.0), story.1.max(f.last_seen.0));
        for target in &f.targets {
            let count = story.2.entry(target.address).or_default();
            *count = target.port_count.max(*count);
        }
        story.3.extend(f.interfaces.iter().cloned());
    }
    stories
}

/// All of it in one engine.
fn whole(all: &[FlowRecord]) -> Output {
    let (mut engine, mut out) = (engine(1), Output::default());
    feed(&mut engine, all.iter(), &mut out);
    engine.finish(&mut out);
    out
}

/// Two engines that share the interfaces, the one with those of `mask`, as far as `cut`.
fn halves(all: &[FlowRecord], mask: u32, cut: usize, out: &mut Output) -> (Engine, Engine) {
    let (mut left, mut right) = (engine(2), engine(3));
    let is_left = |record: &&FlowRecord| mask >> (record.interface.0 % 32) & 1 == 1;
    feed(&mut left, all[..cut].iter().filter(is_left), out);
    feed(&mut right, all[..cut].iter().filter(|record| !is_left(record)), out);
    (left, right)
}

fn rest(mut engine: Engine, records: &[FlowRecord], out: &mut Output) -> Engine {
    feed(&mut engine, records.iter(), out);
    engine.finish(out);
    engine
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn two_engines_that_become_one_tell_what_one_tells_that_saw_everything(seed in 0u32..17, mask: u32, cut in 0.0..1.0f64) {
        let all = records(&busy(seed));
        let cut = (all.len() as f64 * cut) as usize;
        let one = whole(&all);
        let mut out = Output::default();
        let (left, right) = halves(&all, mask, cut, &mut out);
        let merged = Engine::merge(vec![left, right], &mut out).expect("two engines");
        let merged = rest(copy(&merged), &all[cut..], &mut out);
        prop_assert_eq!(stories(&one.findings), stories(&out.findings));
        // The same windows of the same hosts, with the same numbers.
        let mut vectors = out.vectors;
        vectors.sort_by_key(|vector| (vector.window, vector.host));
        prop_assert_eq!(one.vectors, vectors);
        prop_assert_eq!(merged.statistics().records as usize, all.len());
    }

    #[test]
    fn which_of_them_comes_first_changes_nothing(seed in 0u32..17, mask: u32, cut in 0.0..1.0f64) {
        let all = records(&busy(seed));
        let cut = (all.len() as f64 * cut) as usize;
        let (left, right) = halves(&all, mask, cut, &mut Output::default());
        let (left, right) = ([&left, &right].map(copy), [&right, &left].map(copy));
        let [a, b] = [left, right].map(|engines| {
            let mut out = Output::default();
            let merged = Engine::merge(engines.into(), &mut out).expect("two engines");
            rest(merged, &all[cut..], &mut out);
            out
        });
        prop_assert_eq!(a.findings, b.findings);
        prop_assert_eq!(a.vectors, b.vectors);
    }

    #[test]
    fn an_engine_that_becomes_one_with_its_copy_stays_as_it_is(seed in 0u32..17, cut in 0.0..1.0f64) {
        let all = records(&busy(seed));
        let cut = (all.len() as f64 * cut) as usize;
        let (mut engine, mut before) = (engine(5), Output::default());
        feed(&mut engine, all[..cut].iter(), &mut before);
        let (mut alone, mut twice) = (Output::default(), Output::default());
        let merged = Engine::merge(vec![copy(&engine), copy(&engine)], &mut twice).expect("two engines");
        prop_assert!(twice.findings.is_empty() && twice.vectors.is_empty());
        rest(engine, &all[cut..], &mut alone);
        rest(merged, &all[cut..], &mut twice);
        prop_assert_eq!(alone.findings, twice.findings);
        prop_assert_eq!(alone.vectors, twice.vectors);
    }

    #[test]
    fn one_that_is_split_and_put_together_again_tells_what_one_tells(seed in 0u32..17, mask: u32, cuts: [f64; 2]) {
        let all = records(&busy(seed));
        let mut cuts = cuts.map(|cut| (all.len() as f64 * cut.abs().fract()) as usize);
        cuts.sort_unstable();
        let one = whole(&all);
        let (mut parent, mut out) = (engine(1), Output::default());
        feed(&mut parent, all[..cuts[0]].iter(), &mut out);
        let (mut left, mut right) = (copy(&parent), copy(&parent));
        let is_left = |record: &&FlowRecord| mask >> (record.interface.0 % 32) & 1 == 1;
        feed(&mut left, all[cuts[0]..cuts[1]].iter().filter(is_left), &mut out);
        feed(&mut right, all[cuts[0]..cuts[1]].iter().filter(|record| !is_left(record)), &mut out);
        let merged = Engine::merge(vec![left, right], &mut out).expect("two engines");
        rest(merged, &all[cuts[1]..], &mut out);
        prop_assert_eq!(stories(&one.findings), stories(&out.findings));
    }

    #[test]
    fn a_split_neither_loses_nor_invents_anything(seed in 0u32..17, mask: u32, cut in 0.0..1.0f64) {
        let all = records(&busy(seed));
        let cut = (all.len() as f64 * cut) as usize;
        let (mut parent, mut out) = (engine(1), Output::default());
        feed(&mut parent, all[..cut].iter(), &mut out);
        let (left, right): (Vec<FlowRecord>, Vec<FlowRecord>) =
            all[cut..].iter().copied().partition(|record| mask >> (record.interface.0 % 32) & 1 == 1);
        rest(copy(&parent), &left, &mut out);
        rest(parent, &right, &mut out);
        prop_assert_eq!(stories(&whole(&all).findings), stories(&out.findings));
    }
}

/// Of each exchange, the way there in one engine and the way back in the other.
#[test]
fn a_conversation_whose_directions_came_to_two_shards_is_whole_again() {
    let calls: Vec<Exchange> =
        (0..40u16).map(|n| Exchange::new("10.0.0.8", 50_000 + n, "10.0.0.9", 1_000 + n, 10)).collect();
    let (mut there, mut back) = (engine(1), engine(2));
    let mut out = Output::default();
    let all = records(&calls);
    let from_us = |record: &&FlowRecord| record.source == address("10.0.0.8");
    feed(&mut there, all.iter().filter(from_us), &mut out);
    feed(&mut back, all.iter().filter(|record| !from_us(record)), &mut out);
    let mut apart = Output::default();
    copy(&there).finish(&mut apart);
    assert_eq!(apart.findings.len(), 0, "unanswered, and too large for probes");
    let mut merged = Engine::merge(vec![there, back], &mut out).expect("two engines");
    merged.finish(&mut out);
    let statistics = merged.statistics();
    assert_eq!((statistics.conversations, statistics.entries["internal_suspects"]), (40, 0));
    assert_eq!(out.findings, vec![]);
}

#[test]
fn a_scan_of_which_each_shard_saw_too_little_is_told_at_the_next_probe() {
    let probes: Vec<Exchange> = (0..31u16)
        .map(|n| Exchange::new("10.0.0.8", 50_000, "10.0.0.9", 1_000 + n, u32::from(n) * 60).refused())
        .collect();
    let (mut odd, mut even, mut out) = (engine(1), engine(2), Output::default());
    let all = records(&probes);
    let is_odd = |record: &&FlowRecord| record.destination_port % 2 == 1;
    feed(&mut odd, all[..30].iter().filter(is_odd), &mut out);
    feed(&mut even, all[..30].iter().filter(|record| !is_odd(record)), &mut out);
    let merged = Engine::merge(vec![odd, even], &mut out).expect("two engines");
    assert_eq!(out.findings, vec![]);
    rest(merged, &all[30..], &mut out);
    let last = out.findings.last().expect("it was told");
    assert_eq!((last.threat, last.targets[0].port_count), (Threat::PortScan, 31));
}

#[test]
fn what_failed_in_one_and_was_answered_in_the_other_is_no_failure() {
    let refused: Vec<Exchange> =
        (0..20u16).map(|n| Exchange::new("10.0.0.8", 50_000, "10.0.0.9", 1_000 + n, 10).refused()).collect();
    let answered: Vec<Exchange> =
        (0..20u16).map(|n| Exchange::new("10.0.0.8", 50_001, "10.0.0.9", 1_000 + n, 20)).collect();
    let (mut left, mut right, mut out) = (engine(1), engine(2), Output::default());
    feed(&mut left, records(&refused).iter(), &mut out);
    feed(&mut right, records(&answered).iter(), &mut out);
    left.finish(&mut out);
    right.finish(&mut out);
    let merged = Engine::merge(vec![left, right], &mut out).expect("two engines");
    let suspect = merged.state.internal_suspects.get(&merged.seed, address("10.0.0.8")).expect("it had failed");
    assert_eq!(suspect.known(), 0);
}

#[test]
fn pairs_of_another_seed_are_known_again_and_let_go_after_a_day() {
    let call = |from_port, at| [Exchange::new("10.0.0.8", from_port, "198.51.100.7", 443, at)];
    let (mut left, mut right, mut out) = (engine(1), engine(2), Output::default());
    feed(&mut left, records(&[Exchange::new("10.0.0.7", 50_000, "198.51.100.7", 443, 10)]).iter(), &mut out);
    feed(&mut right, records(&call(50_000, 10)).iter(), &mut out);
    left.finish(&mut out);
    right.finish(&mut out);
    let merged = Engine::merge(vec![left, right], &mut out).expect("two engines");
    assert_eq!((merged.state.pairs.len(), waiting(&merged.state.inherited)), (1, 1));
    let mut later = Output::default();
    let met = rest(copy(&merged), &records(&call(50_001, 3_600)), &mut later);
    assert_eq!((met.state.pairs.len(), waiting(&met.state.inherited)), (2, 0));
    assert_eq!((met.state.channels.len(), later.vectors[0].raw[7]), (1, 0.0), "it came back, and is not new");
    let forgotten = rest(merged, &records(&call(50_001, 2 * KEPT_SECONDS)), &mut later);
    assert_eq!((forgotten.state.inherited.len(), forgotten.state.channels.len()), (0, 0));
}

#[test]
fn inherited_pairs_make_room_before_the_table_would_be_over_its_cap() {
    let calls = |host: &str| -> Vec<Exchange> {
        (0..100u16).map(|n| Exchange::new(host, 50_000, "198.51.100.7", 1_000 + n, u32::from(n) * 60)).collect()
    };
    let (mut left, mut right, mut out) = (engine(1), engine(2), Output::default());
    left.settings.tables.pairs = 150;
    feed(&mut left, records(&calls("10.0.0.7")).iter(), &mut out);
    feed(&mut right, records(&calls("10.0.0.8")).iter(), &mut out);
    left.finish(&mut out);
    right.finish(&mut out);
    let merged = Engine::merge(vec![left, right], &mut out).expect("two engines");
    let kept = waiting(&merged.state.inherited);
    assert!(kept > 0 && merged.state.pairs.len() + kept <= 150, "{} and {kept}", merged.state.pairs.len());
}

#[test]
fn engines_of_no_shard_are_none() {
    assert!(Engine::merge(Vec::new(), &mut Output::default()).is_none());
}

#[test]
fn counts_of_both_are_added_up_and_the_span_is_that_of_both() {
    let of = |n: u64| Statistics {
        records: n,
        late: n + 1,
        duplicates: n + 2,
        conversations: n + 3,
        windows: n + 4,
        early_closes: n + 5,
        left_out: n + 6,
        evictions: BTreeMap::from([("pairs".to_owned(), n + 7)]),
        first: EventTime(n as u32),
        last: EventTime(n as u32 + 9),
        skipped_seconds: n + 10,
        no_data_seconds: n + 11,
        ..Statistics::default()
    };
    let mut known = of(100);
    join_statistics(&mut known, of(20));
    let sums = Statistics { first: EventTime(20), last: EventTime(109), ..of(0) };
    let sums = Statistics {
        records: 120,
        late: 122,
        duplicates: 124,
        conversations: 126,
        windows: 128,
        early_closes: 130,
        left_out: 132,
        evictions: BTreeMap::from([("pairs".to_owned(), 134)]),
        skipped_seconds: 140,
        no_data_seconds: 142,
        ..sums
    };
    assert_eq!(known, sums);
}

#[test]
fn inherited_pairs_are_counted_among_the_pairs_and_stay_while_there_is_room() {
    let calls = |host: &str| -> Vec<Exchange> {
        (0..20u16).map(|n| Exchange::new(host, 50_000, "198.51.100.7", 1_000 + n, u32::from(n) * 60)).collect()
    };
    let (mut left, mut right, mut out) = (engine(1), engine(2), Output::default());
    left.settings.tables.pairs = 50;
    feed(&mut left, records(&calls("10.0.0.7")).iter(), &mut out);
    feed(&mut right, records(&calls("10.0.0.8")).iter(), &mut out);
    left.finish(&mut out);
    right.finish(&mut out);
    let merged = Engine::merge(vec![left, right], &mut out).expect("two engines");
    assert_eq!((merged.state.pairs.len(), waiting(&merged.state.inherited)), (20, 20), "together 40 of 50");
    assert_eq!(merged.statistics().entries["pairs"], 40);
}
