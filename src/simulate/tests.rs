use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::labels::Truth;
use super::line::Format;
use super::*;
use crate::flow::interfaces::Interfaces;
use crate::flow::text;
use crate::flow::{Address, Marks, protocol};

fn scenario(threats: &str) -> Scenario {
    Scenario { duration_seconds: 1_200, threats: threats.parse().unwrap(), demand: 0.3, ..Scenario::default() }
}

fn run(scenario: Scenario) -> (Vec<FlowRecord>, Labels) {
    let mut simulation = Simulation::new(scenario);
    let records = simulation.by_ref().flat_map(|step| step.records).collect();
    (records, simulation.labels())
}

#[test]
fn equal_scenarios_give_equal_records_and_another_seed_gives_others() {
    let one = run(scenario("all:low"));
    assert_eq!(one, run(scenario("all:low")));
    assert_ne!(one.0, run(Scenario { seed: 2, ..scenario("all:low") }).0);
}

#[test]
fn an_attack_leaves_the_background_as_it_was() {
    let (quiet, _) = run(scenario("none"));
    let (attacked, labels) = run(scenario("c2_beacon.fixed,tor.client"));
    let malicious: u64 = labels.truth.iter().map(|row| row.records).sum();
    assert!(malicious > 0);
    assert_eq!(attacked.len() as u64, quiet.len() as u64 + malicious);
    let attacked: HashSet<String> = attacked.iter().map(|r| format!("{r:?}")).collect();
    assert!(quiet.iter().all(|r| attacked.contains(&format!("{r:?}"))));
}

#[test]
fn jobs_come_on_top_of_the_background_and_a_run_off_the_beat_on_top_of_the_jobs() {
    let day =
        |jobs, threats: &str| run(Scenario { duration_seconds: 6 * 3_600, demand: 0.0, jobs, ..scenario(threats) });
    let ((plain, _), (with_jobs, _), (attacked, labels)) =
        (day(0.0, "none"), day(0.5, "none"), day(0.5, "behavior.off_beat:low"));
    let of = |records: &[FlowRecord]| -> HashSet<String> { records.iter().map(|r| format!("{r:?}")).collect() };
    let (plain, jobs, all) = (of(&plain), of(&with_jobs), of(&attacked));
    assert!(plain.len() < jobs.len(), "{} and {} records", plain.len(), jobs.len());
    assert!(plain.is_subset(&jobs) && jobs.is_subset(&all));
    let rows: Vec<&Truth> = labels.truth.iter().collect();
    assert!(!rows.is_empty() && rows.iter().all(|row| row.method == "off_beat" && row.records > 0));
    assert_eq!((all.len() - jobs.len()) as u64, rows.iter().map(|row| row.records).sum::<u64>());
}

#[test]
fn every_row_of_the_truth_is_in_the_records() {
    let (records, labels) = run(scenario("all:low"));
    for threat in ["port_scan", "ddos", "c2_beacon", "crypto_mining", "tor"] {
        assert!(labels.truth.iter().any(|row| row.threat == threat && !row.weak), "{threat}");
    }
    for row in &labels.truth {
        let (mut first, mut last, mut count) = (u32::MAX, 0, 0);
        for record in records.iter().filter(shown_by(row)) {
            (first, last, count) = (first.min(record.start.0), last.max(record.end.0), count + 1);
        }
        assert!(count >= row.records, "{count} records of {row:?}");
        assert_eq!((first, last), (row.first, row.last), "{row:?}");
        assert_eq!(row.span_s, row.last - row.first);
    }
}

/// The records between the actor and the target of a row (either direction) in its time, or between its target and the NAT
/// gateway that stands in for the actor.
fn shown_by(row: &Truth) -> impl Fn(&&FlowRecord) -> bool {
    let (actor, target) = (row.actor.parse::<Address>().ok(), row.target.parse::<Address>().ok());
    let accessories: HashSet<Address> = row.accessories.iter().filter_map(|a| a.parse().ok()).collect();
    let time = row.first..=row.last;
    move |record| {
        let fits = |from: Address, to: Address| {
            let is_actor = actor.is_none_or(|a| a == from) || accessories.contains(&from);
            is_actor && target.is_none_or(|t| t == to)
        };
        time.contains(&record.start.0)
            && time.contains(&record.end.0)
            && (fits(record.source, record.destination) || fits(record.destination, record.source))
    }
}

#[test]
fn hosts_are_either_benign_or_part_of_an_attack() {
    let labels = run(scenario("all:low")).1;
    let benign: HashSet<&String> = labels.benign_hosts.iter().collect();
    assert!(!benign.is_empty());
    assert!(labels.infected_hosts.iter().all(|host| !benign.contains(host)));
    assert!(labels.truth.iter().all(|row| !benign.contains(&row.actor) && !benign.contains(&row.target)));
    let quiet = run(scenario("none")).1;
    assert_eq!((quiet.truth.len(), quiet.benign_hosts.len() as u64), (0, quiet.hosts));
}

#[test]
fn a_simulation_that_is_cut_short_labels_only_what_it_told() {
    let mut simulation = Simulation::new(scenario("all"));
    simulation.limit(Some(30_000));
    let records: Vec<FlowRecord> = simulation.by_ref().flat_map(|step| step.records).collect();
    let labels = simulation.labels();
    assert_eq!((records.len(), labels.records), (30_000, 30_000));
    assert_eq!(labels.time_range.1, records.iter().map(|r| r.end.0).max().unwrap());
    assert!(labels.truth.iter().all(|row| row.last <= labels.time_range.1));
}

#[test]
fn the_products_own_parser_reads_every_line_as_it_was_meant() {
    for (format, blindness) in [(Format::V2, 0), (Format::V5, 0)] {
        let mut simulation = Simulation::new(Scenario { duration_seconds: 400, ..scenario("all:low") });
        let lines = simulation.lines(format);
        let mut interfaces = Interfaces::new(1_000);
        let names: Vec<Interface> = simulation.interfaces().to_vec();
        for interface in &names {
            assert_eq!(interfaces.intern(interface.account.as_bytes(), interface.name.as_bytes()), interface.id);
        }
        let mut parser = text::Lines::new(text::Format::parse(format.header()).unwrap());
        let (mut text, mut meant, mut blind) = (Vec::new(), Vec::new(), Vec::new());
        for step in simulation.by_ref() {
            step.blind.iter().for_each(|interval| lines.blind(interval, &mut text));
            step.records.iter().for_each(|record| lines.record(record, &mut text));
            meant.extend(step.records.iter().map(|record| lines.as_read(record)));
            blind.extend(step.blind);
        }
        let mut read = text::Decoded::default();
        parser.decode_plainly(&text, &mut interfaces, &mut read);
        assert_eq!((read.refused, &read.samples), (blindness, &Vec::new()));
        assert_eq!(read.blind, blind);
        assert_eq!(read.records.len(), meant.len());
        for (read, meant) in read.records.iter().zip(&meant) {
            assert_eq!(read, meant);
        }
    }
}

#[test]
fn both_ends_of_an_internal_flow_tell_the_same_volume() {
    let simulation = Simulation::new(scenario("none"));
    let ours = |a: Address| a.as_v4().is_some_and(|bits| bits >> 24 == 10);
    let mut volume: HashMap<_, HashMap<InterfaceId, (u64, u64)>> = HashMap::new();
    for record in simulation.flat_map(|step| step.records) {
        if ours(record.source) && ours(record.destination) && !record.marks.has(Marks::INTERMEDIARY) {
            let tuple =
                (record.source, record.destination, record.source_port, record.destination_port, record.protocol);
            let seen = volume.entry(tuple).or_default().entry(record.interface).or_default();
            *seen = (seen.0 + record.packets, seen.1 + record.bytes);
        }
    }
    assert!(volume.len() > 1_000);
    for (tuple, seen) in volume {
        let seen: Vec<_> = seen.into_values().collect();
        assert_eq!(seen.len(), 2, "{tuple:?}");
        assert_eq!(seen[0], seen[1], "{tuple:?}");
    }
}

#[test]
fn the_background_is_hard_periodic_rare_and_knocked_at() {
    let scenario = Scenario { duration_seconds: 3_600, demand: 0.3, ..Scenario::default() };
    let simulation = Simulation::new(scenario);
    let hosts = simulation.vpc().hosts.len();
    let records: Vec<FlowRecord> = simulation.flat_map(|step| step.records).collect();
    let share =
        |test: &dyn Fn(&FlowRecord) -> bool| records.iter().filter(|r| test(r)).count() as f64 / records.len() as f64;
    let replies = share(&|r| r.source_port < 32_768 && r.destination_port >= 32_768);
    assert!((0.35..0.55).contains(&replies), "{replies}");
    assert!(share(&|r| r.marks.has(Marks::REJECTED)) > 0.001);
    assert!(share(&|r| r.source.as_v4().is_none()) > 0.001);
    assert!(share(&|r| r.protocol == protocol::UDP) > 0.05);

    let mut starts: HashMap<(Address, Address, u16), Vec<u32>> = HashMap::new();
    for r in records.iter().filter(|r| r.destination_port < 32_768) {
        starts.entry((r.source, r.destination, r.destination_port)).or_default().push(r.start.0);
    }
    let periodic = starts.into_values().filter(|times| is_periodic(times.clone())).count();
    assert!(periodic > 4 * hosts, "{periodic} periodic pairs");
    let knocking: HashSet<Address> =
        records.iter().filter(|r| r.marks.has(Marks::REJECTED)).map(|r| r.source).collect();
    assert!(knocking.len() > 200, "{} sources of background radiation", knocking.len());
}

/// A coefficient of variation of the intervals of at most 0.35, the plain test that flags a VPC's agents.
fn is_periodic(mut times: Vec<u32>) -> bool {
    times.sort_unstable();
    times.dedup();
    let gaps: Vec<f64> = times.windows(2).map(|pair| f64::from(pair[1] - pair[0])).collect();
    let mean = gaps.iter().sum::<f64>() / gaps.len().max(1) as f64;
    let variance = gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len().max(1) as f64;
    gaps.len() >= 5 && variance.sqrt() <= 0.35 * mean
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn nothing_is_outside_the_simulated_time_and_no_window_is_longer_than_a_minute(
        seed in any::<u64>(), duration in 1u32..900, hosts in 1u32..80, shuffle in 0u32..60, demand in 0.0f64..0.5,
    ) {
        let scenario = Scenario {
            seed, duration_seconds: duration, hosts, shuffle_seconds: shuffle, demand,
            threats: "c2_beacon,tor,port_scan:low,crypto_mining".parse().unwrap(), ..Scenario::default()
        };
        let (from, to) = (scenario.start, scenario.start.plus(duration));
        for step in Simulation::new(scenario) {
            for record in step.records {
                prop_assert!(from <= record.start && record.start <= record.end && record.end < to, "{:?}", record);
                prop_assert!(record.end.0 - record.start.0 < AGGREGATION_SECONDS);
                prop_assert!(record.end <= step.time && step.time.since(record.end) <= shuffle);
                prop_assert!(record.packets > 0 && record.bytes >= 20 * record.packets);
            }
        }
    }
}
