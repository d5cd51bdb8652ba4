use crate::flow::{EventTime, FlowRecord};
use crate::statistical::tests::{Exchange, busy, settings};
use crate::statistical::{Engine, Output};

const YEAR_2100: u32 = 4_102_444_800;

fn records(shift: u32) -> Vec<FlowRecord> {
    let mut records: Vec<FlowRecord> = busy(1).iter().flat_map(Exchange::records).collect();
    records.sort_by_key(|record| (record.end, record.start));
    for record in &mut records {
        (record.start, record.end) = (record.start.plus(shift), record.end.plus(shift));
    }
    records
}

fn run(records: &[FlowRecord], cut: usize) -> (Output, crate::statistical::Statistics) {
    let (settings, network) = settings();
    let (mut engine, mut out) = (Engine::new(&settings, &network), Output::default());
    for piece in records.chunks(cut) {
        engine.observe(piece);
        engine.advance(&mut out);
    }
    engine.finish(&mut out);
    (out, engine.statistics())
}

#[test]
fn a_record_of_the_year_2100_changes_nothing_wherever_it_stands_and_is_counted() {
    let clean = records(0);
    let (undisturbed, statistics) = run(&clean, 100);
    assert_eq!((statistics.late, statistics.future), (0, 0));
    let dated =
        |record: FlowRecord| FlowRecord { start: EventTime(YEAR_2100), end: EventTime(YEAR_2100 + 10), ..record };
    for at in [0, 1, 15, clean.len() / 2, clean.len() - 1, clean.len()] {
        for cut in [1, 7, 100, 100_000] {
            let mut poisoned = clean.clone();
            poisoned.insert(at, dated(clean[3]));
            let (out, statistics) = run(&poisoned, cut);
            assert_eq!((out.findings.len(), statistics.late), (undisturbed.findings.len(), 0), "at {at}, cut by {cut}");
            assert_eq!(out.findings, undisturbed.findings, "at {at}, cut by {cut}");
            assert_eq!(statistics.future, 1, "at {at}, cut by {cut}");
            assert!(statistics.last < EventTime(YEAR_2100));
        }
    }
}

#[test]
fn one_interface_whose_clock_is_a_year_ahead_carries_nothing_off() {
    let clean = records(0);
    let (undisturbed, _) = run(&clean, 100);
    let mut disturbed = Vec::new();
    for (n, record) in clean.iter().enumerate() {
        disturbed.push(*record);
        if n % 5 == 0 {
            let (start, end) = (record.start.plus(31_536_000), record.end.plus(31_536_000));
            disturbed.push(FlowRecord { start, end, interface: crate::flow::InterfaceId(77), ..*record });
        }
    }
    let (out, statistics) = run(&disturbed, 64);
    assert_eq!(out.findings, undisturbed.findings);
    assert_eq!((statistics.late, statistics.future), (0, clean.len().div_ceil(5) as u64));
}

#[test]
fn a_night_without_traffic_or_weeks_between_two_episodes_are_no_mistake() {
    for pause in [10 * 3_600, 40 * 86_400] {
        let (first, second) = (records(0), records(pause));
        let (alone, _) = run(&first, 100);
        let both = [first, second].concat();
        for cut in [1, 100, 100_000] {
            let (out, statistics) = run(&both, cut);
            assert_eq!((statistics.late, statistics.future), (0, 0), "{pause} s, cut by {cut}");
            assert!(out.findings.len() > alone.findings.len(), "{pause} s, cut by {cut}");
            assert_eq!(statistics.last, both.last().unwrap().end);
        }
    }
}

#[test]
fn a_log_of_a_record_in_some_hours_is_judged_whole() {
    let (settings, network) = settings();
    for count in [1u32, 5, 16, 100] {
        let (mut engine, mut out) = (Engine::new(&settings, &network), Output::default());
        for n in 0..count {
            let call = Exchange::new("10.0.0.5", 40_000 + n as u16, "198.51.100.1", 443, n * 7_200);
            engine.observe(&call.records());
            engine.advance(&mut out);
        }
        engine.finish(&mut out);
        let statistics = engine.statistics();
        assert_eq!((statistics.conversations, statistics.late, statistics.future), (u64::from(count), 0, 0));
    }
}

#[test]
fn hours_in_no_order_at_all_lose_nothing() {
    let clean = records(0);
    let mut random = crate::random::Random::seeded(11);
    let mut shuffled: Vec<FlowRecord> = (0..6).flat_map(|_| clean.iter().copied()).collect();
    for record in &mut shuffled {
        let later = 900 * random.below(24) as u32;
        (record.start, record.end) = (record.start.plus(later), record.end.plus(later));
    }
    for at in (1..shuffled.len()).rev() {
        shuffled.swap(at, random.below(at + 1));
    }
    for cut in [1, 7, 100, 100_000] {
        let (_, statistics) = run(&shuffled, cut);
        assert_eq!(statistics.future, 0, "cut by {cut}");
    }
}
