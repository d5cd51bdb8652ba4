//! The engine as a whole: what order, pieces, doubled logs and floods may not change.

use proptest::prelude::*;

use super::*;
use crate::finding::{Actor, Subject, Threat};
use crate::flow::{InterfaceId, protocol};
use crate::settings;

/// Midnight, and the beginning of a window of every length in use.
const START: u32 = 1_700_006_400;

pub(super) fn settings() -> (Settings, Network) {
    let all = settings::Settings::assemble(&[]).expect("the embedded defaults are right");
    (all.statistical, Network::new(&all.network))
}

pub(super) fn engine() -> Engine {
    let (settings, network) = settings();
    Engine::new(&settings, &network)
}

pub(super) fn address(text: &str) -> Address {
    text.parse().expect("an address of a test")
}

/// A session as two records, or one where nothing comes back.
#[derive(Clone, Debug)]
pub(super) struct Exchange {
    pub(super) from: Address,
    pub(super) to: Address,
    pub(super) from_port: u16,
    to_port: u16,
    pub(super) at: u32,
    seconds: u32,
    pub(super) sent: (u64, u64),
    pub(super) received: (u64, u64),
    rejected: bool,
    pub(super) interface: u32,
}

impl Exchange {
    pub(super) fn new(from: &str, from_port: u16, to: &str, to_port: u16, at: u32) -> Exchange {
        Exchange {
            from: address(from),
            to: address(to),
            from_port,
            to_port,
            at: START + at,
            seconds: 1,
            sent: (6, 600),
            received: (5, 900),
            rejected: false,
            interface: 1,
        }
    }

    pub(super) fn refused(mut self) -> Exchange {
        (self.sent, self.received, self.rejected) = ((1, 44), (0, 0), true);
        self
    }

    pub(super) fn records(&self) -> Vec<FlowRecord> {
        let there = FlowRecord {
            source: self.from,
            destination: self.to,
            bytes: self.sent.1,
            packets: self.sent.0,
            start: EventTime(self.at),
            end: EventTime(self.at + self.seconds),
            interface: InterfaceId(self.interface),
            source_port: self.from_port,
            destination_port: self.to_port,
            protocol: protocol::TCP,
            tcp_flags: 0,
            marks: if self.rejected { Marks::REJECTED } else { Marks::default() },
        };
        let back = FlowRecord {
            source: self.to,
            destination: self.from,
            bytes: self.received.1,
            packets: self.received.0,
            source_port: self.to_port,
            destination_port: self.from_port,
            ..there
        };
        if self.received.0 == 0 { vec![there] } else { vec![there, back] }
    }
}

pub(super) fn records(exchanges: &[Exchange]) -> Vec<FlowRecord> {
    let mut records: Vec<FlowRecord> = exchanges.iter().flat_map(Exchange::records).collect();
    records.sort_by_key(|r| (r.end, r.start));
    records
}

pub(super) fn run(engine: &mut Engine, records: &[FlowRecord], batch: usize) -> Output {
    let mut out = Output::default();
    for piece in records.chunks(batch.max(1)) {
        engine.observe(piece);
        engine.advance(&mut out);
    }
    engine.finish(&mut out);
    out
}

fn findings(exchanges: &[Exchange]) -> Vec<Finding> {
    run(&mut engine(), &records(exchanges), 100).findings
}

/// A day of one shape: browsing, a scan, a beacon and a flood, so that every detector has something to say.
pub(super) fn busy(seed: u32) -> Vec<Exchange> {
    let mut all = Vec::new();
    for n in 0..400u32 {
        let random = host::mix(Address::v4(n * 100 + seed)) as u32;
        let peer = format!("198.51.100.{}", 1 + random % 40);
        let mut page = Exchange::new("10.0.0.7", 40_000 + n as u16, &peer, 443, random / 64 % 1_800);
        page.received = (20, 2_000 + u64::from(random % 30_000));
        all.push(page);
    }
    for port in 1..60u16 {
        all.push(Exchange::new("10.0.0.8", 50_000, "10.0.0.9", port, u32::from(port) * 2 + seed).refused());
    }
    for n in 0..20u32 {
        all.push(Exchange::new("10.0.0.10", 41_000 + n as u16, "203.0.113.5", 80, 30 + n * 60 + n % 3));
    }
    for n in 0..1_500u32 {
        let source = format!("192.0.{}.{}", 1 + n / 250, 1 + n % 250);
        let mut syn = Exchange::new(&source, 30_000, "10.0.0.11", 443, 600 + n % 40);
        (syn.sent, syn.received) = ((2, 88), (0, 0));
        all.push(syn);
    }
    all
}

#[test]
fn every_detector_of_the_busy_day_speaks_and_names_the_right_hosts() {
    let found = findings(&busy(0));
    let about = |threat: Threat| {
        found.iter().filter(|f| f.threat == threat).map(|f| f.actor).collect::<std::collections::BTreeSet<_>>()
    };
    assert_eq!(about(Threat::PortScan), [Actor::One(address("10.0.0.8"))].into());
    assert_eq!(about(Threat::C2Beacon), [Actor::One(address("10.0.0.10"))].into());
    assert_eq!(about(Threat::Ddos), [Actor::Many].into());
    let flood = found.iter().find(|f| f.threat == Threat::Ddos).expect("the flood was told");
    assert_eq!(flood.targets[0].address, address("10.0.0.11"));
}

#[test]
fn a_server_that_answers_a_thousand_clients_is_no_scanner() {
    let clients: Vec<Exchange> = (0..1_000u32)
        .map(|n| {
            Exchange::new(
                &format!("198.51.{}.{}", n / 200, 1 + n % 200),
                1_025 + (n * 61 % 64_000) as u16,
                "10.0.0.5",
                443,
                n / 10,
            )
        })
        .collect();
    assert_eq!(findings(&clients), vec![]);
}

#[test]
fn a_long_session_is_no_beacon_although_it_is_logged_every_minute() {
    let pieces: Vec<Exchange> =
        (0..180).map(|minute| Exchange::new("10.0.0.5", 45_000, "203.0.113.9", 443, minute * 60)).collect();
    assert_eq!(findings(&pieces), vec![]);
    let mut calls = pieces;
    for (n, call) in calls.iter_mut().enumerate() {
        call.from_port += n as u16;
    }
    assert_eq!(findings(&calls)[0].threat, Threat::C2Beacon, "the same minutes as sessions of their own are one");
}

#[test]
fn a_place_that_half_of_our_hosts_call_is_a_service() {
    let mut calls = Vec::new();
    for host in 1..=8u32 {
        for n in 0..40u32 {
            calls.push(Exchange::new(&format!("10.0.0.{host}"), 42_000 + n as u16, "203.0.113.77", 443, host + n * 60));
        }
    }
    assert_eq!(findings(&calls), vec![]);
}

#[test]
fn a_flow_between_two_of_our_hosts_counts_once_although_both_ends_log_it() {
    let probes: Vec<Exchange> =
        (1..40u16).map(|port| Exchange::new("10.0.0.8", 50_000, "10.0.0.9", port, u32::from(port)).refused()).collect();
    let doubled: Vec<Exchange> = probes
        .iter()
        .cloned()
        .chain(probes.iter().cloned().map(|mut p| {
            p.interface = 2;
            p
        }))
        .collect();
    let (mut once, mut twice) = (engine(), engine());
    let (a, b) = (run(&mut once, &records(&probes), 64), run(&mut twice, &records(&doubled), 64));
    assert_eq!(a.findings, b.findings);
    assert_eq!(once.statistics().conversations, twice.statistics().conversations);
    assert_eq!(twice.statistics().duplicates, 39);
}

#[test]
fn a_nat_gateway_is_not_blamed_for_what_its_clients_do() {
    // The gateway's interface logs the client's leg with the packet's addresses and its own leg plainly.
    let mut calls = Vec::new();
    for n in 0..30u32 {
        let at = 10 + n * 60;
        calls.push(Exchange::new("10.0.0.5", 42_000 + n as u16, "203.0.113.5", 80, at));
        let mut translated = Exchange::new("10.0.1.200", 20_000 + n as u16, "203.0.113.5", 80, at);
        translated.interface = 9;
        calls.push(translated);
    }
    let mut all = records(&calls);
    let mut seen_by_gateway: Vec<FlowRecord> = records(&calls)
        .into_iter()
        .filter(|r| r.interface == InterfaceId(1))
        .map(|mut r| {
            r.interface = InterfaceId(9);
            r.marks = r.marks.with(Marks::INTERMEDIARY);
            r
        })
        .collect();
    all.append(&mut seen_by_gateway);
    all.sort_by_key(|r| (r.end, r.start));
    let found = run(&mut engine(), &all, 50).findings;
    assert!(!found.is_empty());
    assert!(found.iter().all(|f| f.actor == Actor::One(address("10.0.0.5"))), "{found:?}");
}

#[test]
fn backscatter_of_somebody_elses_flood_is_no_scan() {
    let answers: Vec<Exchange> = (0..3_000u32)
        .map(|n| {
            let mut a = Exchange::new("198.51.100.1", 443, "10.0.0.5", 32_800 + (n * 7 % 30_000) as u16, n / 20);
            (a.sent, a.received) = ((1, 44), (0, 0));
            a
        })
        .collect();
    assert_eq!(findings(&answers).iter().filter(|f| f.threat == Threat::PortScan).count(), 0);
}

#[test]
fn a_slow_scan_that_no_window_holds_is_found_by_the_day() {
    let probes: Vec<Exchange> = (0..60u16)
        .map(|n| Exchange::new("10.0.0.8", 50_000 + n, "10.0.0.9", 1_000 + n, u32::from(n) * 200).refused())
        .collect();
    let found = findings(&probes);
    assert!(found.iter().any(|f| f.threat == Threat::PortScan && f.method == "vertical"), "{found:?}");
}

#[test]
fn internet_radiation_is_not_told() {
    let probes: Vec<Exchange> = (0..4_000u32)
        .map(|n| {
            let source = format!("198.{}.{}.{}", 18 + n % 2, n / 200, 1 + n % 200);
            Exchange::new(
                &source,
                50_000,
                &format!("10.0.0.{}", 1 + n % 9),
                [22, 23, 445, 3389][(n % 4) as usize],
                n / 2,
            )
            .refused()
        })
        .collect();
    assert_eq!(findings(&probes), vec![]);
}

#[test]
fn what_is_known_of_our_hosts_survives_a_flood_of_spoofed_addresses() {
    let (mut settings, network) = settings();
    settings.tables.external_hosts = 1_000;
    settings.tables.external_suspects = 1_000;
    settings.tables.conversations = 2_000;
    let mut engine = Engine::new(&settings, &network);
    // A slow scan from inside, and between its probes 40,000 spoofed sources.
    let mut all = Vec::new();
    for n in 0..60u32 {
        all.push(Exchange::new("10.0.0.8", 50_000, "10.0.0.9", 1_000 + n as u16, n * 60).refused());
        for m in 0..700u32 {
            let k = n * 700 + m;
            let source = format!("{}.{}.{}.{}", 20 + k / 65_536, k / 256 % 256, k % 256, 1 + m % 250);
            let mut syn = Exchange::new(&source, 30_000, "10.0.0.11", 443, n * 60 + m % 60);
            (syn.sent, syn.received) = ((1, 44), (0, 0));
            all.push(syn);
        }
    }
    let found = run(&mut engine, &records(&all), 1_000).findings;
    let statistics = engine.statistics();
    assert!(statistics.evictions["external_suspects"] > 10_000, "the flood did not fill the table: {statistics:?}");
    assert!(statistics.entries["external_suspects"] <= 1_000);
    assert_eq!(
        statistics.entries["external_hosts"], 2,
        "nobody of ours called any of them; the two victims never spoke"
    );
    assert!(statistics.left_out > 1_000 && statistics.early_closes == 0, "the crowd was let in: {statistics:?}");
    assert_eq!(statistics.evictions["internal_hosts"] + statistics.evictions["internal_suspects"], 0);
    assert!(found.iter().any(|f| f.actor == Actor::One(address("10.0.0.8")) && f.threat == Threat::PortScan));
}

#[test]
fn a_flood_is_told_from_the_open_window() {
    let mut engine = engine();
    let flood: Vec<Exchange> = busy(0).into_iter().filter(|e| e.to == address("10.0.0.11")).collect();
    engine.observe(&records(&flood));
    let mut early = Output::default();
    engine.advance(&mut early);
    assert_eq!(early.findings, vec![], "the window is still open");
    engine.peek(&mut early);
    assert_eq!(early.findings.len(), 1);
    assert!(early.findings[0].provisional);
    let mut again = Output::default();
    engine.peek(&mut again);
    assert_eq!(again.findings, vec![], "nothing new, nothing said");
    engine.finish(&mut again);
    let (first, last) = (&early.findings[0], &again.findings[0]);
    assert_eq!((first.key(), first.window), (last.key(), last.window), "the closed window says it again, whole");
    assert!(!last.provisional);
}

#[test]
fn a_hosts_window_ends_with_event_time_and_does_not_wait_for_the_next_that_has_records() {
    let mut engine = engine();
    let mut out = Output::default();
    engine.observe(&records(&[Exchange::new("10.0.0.5", 40_000, "198.51.100.7", 443, 10)]));
    engine.advance_to(EventTime(START + 299), &mut out);
    assert_eq!(out.vectors.len(), 0, "it is still open");
    // No window after it has closed, and none has a record.
    engine.advance_to(EventTime(START + 299 + 300), &mut out);
    let windows: Vec<_> = out.vectors.iter().map(|vector| (vector.host, vector.window)).collect();
    assert_eq!(windows, [(address("10.0.0.5"), EventTime(START))]);
    engine.finish(&mut out);
    assert_eq!(out.vectors.len(), 1, "and it is not said again");
}

#[test]
fn looking_at_open_windows_changes_nothing() {
    let all = records(&busy(3));
    let (mut looked, mut plain) = (engine(), engine());
    let (mut a, mut b, mut ignored) = (Output::default(), Output::default(), Output::default());
    for piece in all.chunks(200) {
        looked.observe(piece);
        looked.peek(&mut ignored);
        looked.advance(&mut a);
        plain.observe(piece);
        plain.advance(&mut b);
    }
    looked.finish(&mut a);
    plain.finish(&mut b);
    assert_eq!((a.findings, a.vectors), (b.findings, b.vectors));
}

#[test]
fn a_late_record_is_counted_and_joins_no_other_window() {
    let mut engine = engine();
    let mut out = Output::default();
    let calls = |from_port: u16, at: u32| {
        let calls: Vec<Exchange> =
            (0..8).map(|n| Exchange::new("10.0.0.5", from_port + n, "198.51.100.1", 443, at)).collect();
        records(&calls)
    };
    engine.observe(&calls(40_000, 3_600));
    engine.advance(&mut out);
    engine.observe(&calls(40_010, 3_600 - 30));
    engine.advance(&mut out);
    assert_eq!(engine.statistics().late, 0, "within the lateness");
    engine.observe(&calls(40_020, 7_000));
    engine.advance(&mut out);
    engine.observe(&calls(40_030, 3_600));
    engine.finish(&mut out);
    let statistics = engine.statistics();
    assert_eq!((statistics.records, statistics.late, statistics.conversations), (64, 16, 24));
}

#[test]
fn a_damaged_snapshot_is_refused() {
    let (settings, network) = settings();
    let mut engine = engine();
    engine.observe(&records(&busy(1)));
    let bytes = engine.snapshot();
    assert!(Engine::restore(&bytes, &settings, &network).is_ok());
    assert!(Engine::restore(&bytes[..bytes.len() / 2], &settings, &network).is_err());
    assert!(Engine::restore(b"", &settings, &network).is_err());
    let mut other = bytes.clone();
    other[0] = 99;
    assert!(Engine::restore(&other, &settings, &network).unwrap_err().to_string().contains("version"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn neither_order_within_the_lateness_nor_the_hash_seed_changes_anything(seed in 0u32..1_000, displacement in 1u32..100, batch in 1usize..900) {
        let exchanges = busy(seed % 17);
        let ordered = records(&exchanges);
        // Each record moves back by less than the lateness of two minutes, as late delivery does.
        let mut shuffled: Vec<(u32, usize)> = ordered
            .iter()
            .enumerate()
            .map(|(at, r)| (r.end.0 + (at as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) % displacement, at))
            .collect();
        shuffled.sort_unstable();
        let shuffled: Vec<FlowRecord> = shuffled.into_iter().map(|(_, at)| ordered[at]).collect();
        let (settings, network) = settings();
        let mut seeded = Engine::with_seed(&settings, &network, u64::from(seed) << 7);
        let (a, b) = (run(&mut engine(), &ordered, 100), run(&mut seeded, &shuffled, batch));
        prop_assert_eq!(a.findings, b.findings);
        prop_assert_eq!(a.vectors, b.vectors);
    }

    #[test]
    fn pieces_with_snapshots_between_them_equal_the_whole(seed in 0u32..17, cuts in proptest::collection::vec(0usize..3_000, 1..4)) {
        let all = records(&busy(seed));
        let whole = run(&mut engine(), &all, 100);
        let (settings, network) = settings();
        let mut cuts: Vec<usize> = cuts.into_iter().map(|c| c % all.len()).collect();
        cuts.sort_unstable();
        cuts.push(all.len());
        let (mut engine, mut out, mut from) = (engine(), Output::default(), 0);
        for to in cuts {
            for piece in all[from..to].chunks(100) {
                engine.observe(piece);
                engine.advance(&mut out);
            }
            from = to;
            engine = Engine::restore(&engine.snapshot(), &settings, &network).expect("our own snapshot");
        }
        engine.finish(&mut out);
        prop_assert_eq!(whole.findings, out.findings);
        prop_assert_eq!(whole.vectors, out.vectors);
    }
}

#[test]
fn a_new_and_rare_place_may_vary_its_bytes_and_one_that_was_always_there_may_not() {
    let day = |first_call: u32| {
        let mut all = Vec::new();
        for host in 1..=30u32 {
            for hour in 0..30u32 {
                let at = hour * 3_600 + host * 11;
                let from = format!("10.0.1.{host}");
                all.push(Exchange::new(&from, 40_000 + hour as u16, "198.51.100.9", 443, at));
            }
        }
        for n in 0..50u32 {
            let mut call = Exchange::new("10.0.1.5", 45_000 + n as u16, "203.0.113.66", 443, first_call + n * 90);
            call.sent.1 += u64::from(n * 7 % 23);
            call.received.1 += u64::from(n * 5 % 19);
            all.push(call);
        }
        findings(&all).into_iter().filter(is_told).collect::<Vec<_>>()
    };
    assert_eq!(day(60), vec![], "an agent like any other");
    let found = day(26 * 3_600);
    assert!(
        found.iter().any(|f| f.threat == Threat::C2Beacon && f.actor == Actor::One(address("10.0.1.5"))),
        "{found:?}"
    );
}

#[test]
fn a_nat_gateway_is_found_without_packet_addresses_and_its_clients_are_blamed_alone() {
    let mut all = Vec::new();
    for minute in 0..30u32 {
        for host in 1..=6u32 {
            for n in 0..10u32 {
                let random = host::mix(Address::v4(minute * 1_000 + host * 20 + n)) as u32;
                let peer = format!("198.51.100.{}", 1 + random % 200);
                let port = 40_000 + (minute * 10 + n) as u16;
                let mut page =
                    Exchange::new(&format!("10.0.0.{host}"), port, &peer, 443, minute * 60 + random / 256 % 50);
                page.received = (20, 2_000 + u64::from(random % 30_000));
                let mut translated = page.clone();
                (translated.from, translated.from_port) =
                    (address("10.0.9.9"), 10_000 + (minute * 60 + host * 10 + n) as u16);
                all.extend([page, translated]);
            }
        }
        let call = Exchange::new("10.0.0.3", 55_000 + minute as u16, "203.0.113.5", 8_081, 7 + minute * 60);
        let mut translated = call.clone();
        (translated.from, translated.from_port) = (address("10.0.9.9"), 30_000 + minute as u16);
        all.extend([call, translated]);
    }
    let found = findings(&all);
    assert!(!found.is_empty());
    assert!(found.iter().all(|f| f.actor == Actor::One(address("10.0.0.3"))), "{found:?}");
}

#[test]
fn who_is_behind_a_nat_gateway_is_known_though_only_the_gateways_own_interface_is_logged() {
    let mut all = Vec::new();
    // The packet's addresses are not logged: what goes to the outside is logged as if it went to the gateway.
    let mut pass_on = |client: &str, port: u16, peer: &str, service: u16, at: u32, received: u64| {
        let mut outside = Exchange::new("10.0.9.9", port, peer, service, at);
        outside.received = (20, received);
        let mut inside = outside.clone();
        (inside.from, inside.from_port, inside.to) = (address(client), port / 2, address("10.0.9.9"));
        all.extend([inside, outside]);
    };
    for minute in 0..30u32 {
        for number in 0..60u32 {
            let random = host::mix(Address::v4(minute * 1_000 + number)) as u32;
            let (client, peer) = (format!("10.0.0.{}", 1 + number % 6), format!("198.51.100.{}", 1 + random % 200));
            let received = 2_000 + u64::from(random % 30_000);
            pass_on(
                &client,
                20_000 + (minute * 60 + number) as u16,
                &peer,
                443,
                minute * 60 + random / 256 % 50,
                received,
            );
        }
        pass_on("10.0.0.3", 60_000 + minute as u16, "203.0.113.5", 8_081, 7 + minute * 60, 200);
    }
    let found = findings(&all);
    assert!(!found.is_empty());
    assert!(found.iter().all(|f| f.actor == Actor::One(address("10.0.0.3"))), "{found:?}");
    assert!(found.iter().all(|f| f.targets.iter().all(|t| t.address == address("203.0.113.5"))), "{found:?}");
}

#[test]
fn a_fleet_of_equal_hosts_is_no_nat_gateway() {
    let mut all = Vec::new();
    for minute in 0..20u32 {
        for host in 1..=3u32 {
            for n in 0..30u32 {
                let port = 40_000 + (minute * 30 + n) as u16;
                all.push(Exchange::new(&format!("10.0.0.{host}"), port, "198.51.100.1", 443, minute * 60 + n));
            }
        }
    }
    let mut engine = engine();
    run(&mut engine, &records(&all), 100);
    assert_eq!(engine.statistics().duplicates, 0);
}

#[test]
fn our_own_host_that_floods_somebody_outside_is_told_and_a_scan_is_not_called_a_flood() {
    let attempts = |ports: u32| {
        let all: Vec<Exchange> = (0..3_000u32)
            .map(|n| {
                let port = (1_000 + n % ports) as u16;
                let mut syn = Exchange::new("10.0.0.8", 10_000 + n as u16, "203.0.113.80", port, n / 60);
                (syn.sent, syn.received) = ((1, 44), (0, 0));
                syn
            })
            .collect();
        findings(&all).into_iter().map(|f| f.threat).collect::<BTreeSet<_>>()
    };
    assert_eq!(attempts(1), [Threat::Ddos].into());
    assert_eq!(attempts(3_000), [Threat::PortScan].into());
}

#[test]
fn a_scan_that_outsiders_divide_among_them_is_one_story_and_independent_scanners_are_none() {
    let probes = |port_of: fn(u32, u32) -> u16| {
        let mut all = Vec::new();
        for source in 0..12u32 {
            for n in 0..30u32 {
                let from = format!("198.51.100.{}", 1 + source);
                let at = n * 15 + source;
                all.push(Exchange::new(&from, 50_000, "10.0.0.9", port_of(source, n), at).refused());
            }
        }
        findings(&all)
    };
    let divided = probes(|source, n| (1_000 + source * 30 + n) as u16);
    let about: BTreeSet<_> = divided.iter().map(|f| (f.threat, f.actor, f.subject)).collect();
    assert_eq!(about, [(Threat::PortScan, Actor::Many, Subject::Victim(address("10.0.0.9")))].into());
    let last = divided.last().expect("it was told");
    assert_eq!((last.targets[0].port_count, last.method.as_str()), (360, "joint"));
    // The same sources, each asking for the same ports as the others, and one that differs.
    assert_eq!(probes(|source, n| if n < 29 { 1_000 + n as u16 } else { 2_000 + source as u16 }), vec![]);
    // As many sources and ports, but a door or two of each source: radiation.
    let radiation: Vec<Exchange> = (0..400u32)
        .map(|n| {
            let from = format!("203.0.{}.{}", n / 2 / 200, 1 + n / 2 % 200);
            Exchange::new(&from, 50_000, "10.0.0.9", (1_000 + n) as u16, n).refused()
        })
        .collect();
    assert_eq!(findings(&radiation), vec![]);
}

/// Connections with content from one outsider to one server of ours, spread over the first minute.
fn page_views(from: &str, count: u32) -> Vec<Exchange> {
    (0..count).map(|n| Exchange::new(from, 1_024 + n as u16, "10.0.0.80", 443, n * 58 / count)).collect()
}

fn floods(exchanges: &[Exchange]) -> Vec<Finding> {
    let mut found = run(&mut engine(), &records(exchanges), 1_000).findings;
    found.retain(|finding| finding.threat == Threat::Ddos && !finding.provisional);
    found
}

#[test]
fn a_source_that_opens_fifty_connections_a_second_floods() {
    let visitors: Vec<Exchange> =
        (1..=200).map(|n| Exchange::new(&format!("198.51.100.{n}"), 40_000, "10.0.0.80", 443, n / 4)).collect();
    let with = |count: u32| [page_views("203.0.113.9", count), visitors.clone()].concat();
    let found = floods(&with(3_000));
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].method, "busy_sources");
    assert_eq!(found[0].actor, Actor::One(address("203.0.113.9")));
    assert_eq!(found[0].targets[0].ports, vec![443]);
    assert!(floods(&with(2_999)).is_empty(), "a busy client");
    // A site that has as many other visitors can bear it.
    let crowd: Vec<Exchange> = (0..800u16)
        .map(|n| Exchange::new(&format!("198.18.{}.{}", n / 250, n % 250), 40_000, "10.0.0.80", 443, 30))
        .collect();
    assert!(floods(&[with(3_000), crowd].concat()).is_empty(), "three of four connections, not four of five");
}

#[test]
fn requests_that_are_never_finished_are_a_flood() {
    let drawn_out = |count: u16, port: u16| -> Vec<Exchange> {
        (0..count)
            .map(|n| Exchange { received: (4, 168), ..Exchange::new("203.0.113.9", 1_024 + n, "10.0.0.80", port, 5) })
            .collect()
    };
    let found = floods(&drawn_out(400, 80));
    assert_eq!(found.iter().map(|f| f.method.as_str()).collect::<Vec<_>>(), ["slow_requests"]);
    assert_eq!(found[0].actor, Actor::One(address("203.0.113.9")));
    assert!(floods(&drawn_out(399, 80)).is_empty());
    assert!(floods(&drawn_out(1_200, 1883)).is_empty(), "devices behind one address publish without an answer");
    // Our own hosts may send what nobody answers: metrics over TCP, for one.
    let metrics: Vec<Exchange> = (0..1_200)
        .map(|n| Exchange { received: (4, 168), ..Exchange::new("10.0.0.7", 1_024 + n, "10.0.0.80", 2003, 5) })
        .collect();
    assert!(floods(&metrics).is_empty());
}

#[test]
fn a_host_of_ours_that_sends_datagrams_without_end_floods() {
    let stream = |from: &str, to: &str, packets: u64| -> Vec<FlowRecord> {
        let sent = Exchange {
            seconds: 50,
            sent: (packets, packets * 1_000),
            received: (0, 0),
            ..Exchange::new(from, 5_000, to, 80, 0)
        };
        sent.records().into_iter().map(|r| FlowRecord { protocol: protocol::UDP, ..r }).collect()
    };
    let methods = |records: &[FlowRecord]| -> Vec<String> {
        run(&mut engine(), records, 10).findings.into_iter().map(|f| f.method).collect()
    };
    assert_eq!(methods(&stream("10.0.0.7", "203.0.113.9", 150_000)), ["udp_flood"]);
    assert!(methods(&stream("10.0.0.7", "203.0.113.9", 149_999)).is_empty(), "a video stream");
    assert!(methods(&stream("203.0.113.9", "10.0.0.7", 150_000)).is_empty(), "what comes in may be one as well");
    assert_eq!(methods(&stream("203.0.113.9", "10.0.0.7", 500_000)), ["udp_flood"]);
}

/// Whether a finding is more than a signal, which validation keeps back.
fn is_told(finding: &Finding) -> bool {
    finding.score >= 0.5
}

fn threats(exchanges: &[Exchange]) -> Vec<Threat> {
    let mut found: Vec<Threat> =
        run(&mut engine(), &records(exchanges), 10).findings.iter().filter(|f| is_told(f)).map(|f| f.threat).collect();
    found.dedup();
    found
}

#[test]
fn a_miner_is_as_steady_in_a_log_that_is_cut_every_ten_minutes() {
    // One session with a pool nobody lists: 300 bytes of jobs a minute down, 150 of shares up, in pieces of a record each.
    let session = |length: u32, every: u32, pieces: u32| -> Vec<Exchange> {
        let minutes = u64::from(length / 60 + 1);
        let volume = |payload: u64| (3 * minutes, minutes * (3 * 40 + payload));
        (0..pieces)
            .map(|n| Exchange {
                seconds: length,
                sent: volume(150),
                received: volume(300),
                ..Exchange::new("10.0.0.7", 40_000, "203.0.113.9", 20_011, n * every)
            })
            .collect()
    };
    assert_eq!(threats(&session(55, 60, 12)), [Threat::CryptoMining], "a record a minute");
    assert_eq!(threats(&session(590, 600, 3)), [Threat::CryptoMining], "a record in ten minutes");
    let mines = |session: &[Exchange]| threats(session).contains(&Threat::CryptoMining);
    assert!(!mines(&session(590, 1_800, 3)), "two of three intervals are missing");
    assert!(!mines(&session(55, 120, 12)), "every second minute is missing");
}

#[test]
fn sizes_may_vary_where_the_timer_is_spread_on_purpose() {
    // Sixty calls whose sizes vary by some per cent, at intervals of 60 s spread evenly by `spread` to either side.
    let calls = |spread: f64| -> Vec<Exchange> {
        let mut at = 0.0;
        (0..60u16)
            .map(|n| {
                let (turn, size) = (f64::from(n * 7 % 13) / 6.0 - 1.0, u64::from(n * 5 % 11));
                at += 60.0 * (1.0 + spread * turn);
                let received = (6, 1_600 + 12 * size);
                Exchange { received, ..Exchange::new("10.0.0.7", 40_000 + n, "203.0.113.9", 443, at as u32) }
            })
            .collect()
    };
    assert_eq!(threats(&calls(0.4)), [Threat::C2Beacon]);
    assert_eq!(threats(&calls(0.1)), [], "a scheduler that spreads its hosts a little");
}

#[test]
fn what_the_log_leaves_out_is_counted_in_seconds_by_kind() {
    let mut engine = engine();
    let stretch = |kind, start: u32, end: u32| Blindness {
        interface: InterfaceId(1),
        start: EventTime(START + start),
        end: EventTime(START + end),
        kind,
    };
    engine.note_blindness(&[
        stretch(BlindnessKind::NoData, 0, 59),
        stretch(BlindnessKind::SkipData, 60, 69),
        stretch(BlindnessKind::SkipData, 70, 70),
    ]);
    let statistics = engine.statistics();
    assert_eq!((statistics.no_data_seconds, statistics.skipped_seconds), (60, 11));
}

#[test]
fn a_host_of_ours_is_explained_whoever_asks_and_an_outsider_if_asked_before() {
    let mut engine = engine();
    let outsider = address("203.0.113.5");
    run(&mut engine, &records(&busy(0)), 100);
    let threats = |engine: &Engine, of: &str| {
        let explained = engine.explained(address(of));
        explained.approaches.iter().map(|e| e.threat).collect::<BTreeSet<_>>()
    };
    assert!(threats(&engine, "10.0.0.8").contains(&Threat::PortScan));
    assert!(threats(&engine, "10.0.0.10").contains(&Threat::C2Beacon));
    assert!(!threats(&engine, "10.0.0.10").contains(&Threat::PortScan), "that was the other");
    let called = engine.explained(outsider);
    assert_eq!(called.approaches[0].peer, Some(address("10.0.0.10")), "by whom it was called");
    assert!(!called.seen.expect("it was called").ours);
    let restored = Engine::restore(&engine.snapshot(), &settings().0, &settings().1).expect("a snapshot");
    assert_eq!(restored.explained(outsider), called, "the past outlives the process");
    assert_eq!(engine.explained(address("192.0.2.200")).seen, None);
}

#[test]
fn findings_name_the_interface_that_saw_it() {
    let mut engine = engine();
    let name = |id: u32, name: &str| Interface { id: InterfaceId(id), name: name.to_owned(), account: "1".to_owned() };
    engine.name_interfaces(&[name(1, "eni-a"), name(2, "eni-b")]);
    let scan = |interface: u32, from: &'static str| {
        (1..60u16).map(move |port| {
            let probe = Exchange::new(from, 50_000, "10.0.0.9", port, u32::from(port) * 2).refused();
            Exchange { interface, ..probe }
        })
    };
    let both: Vec<Exchange> = scan(1, "10.0.0.7").chain(scan(2, "10.0.0.8")).collect();
    let found = run(&mut engine, &records(&both), 100).findings;
    for (host, interface) in [("10.0.0.7", "eni-a"), ("10.0.0.8", "eni-b")] {
        let mut of_host = found.iter().filter(|f| f.actor == Actor::One(address(host))).peekable();
        assert!(of_host.peek().is_some());
        assert!(of_host.all(|f| f.interfaces == [interface]), "{found:#?}");
    }
}

#[test]
fn what_goes_to_a_group_or_answers_a_forgery_is_no_use_of_a_service() {
    let mut engine = engine();
    let mut query = Exchange::new("10.0.0.7", 5353, "224.0.0.251", 5353, 10);
    query.received = (0, 0);
    // Answers to packets that somebody sent elsewhere in our name: nobody here has opened anything.
    let forged: Vec<Exchange> = (0..40u16)
        .map(|n| {
            let mut reset = Exchange::new("198.51.100.9", 443, "10.0.0.7", 1_024 + n * 1_000, 20);
            (reset.sent, reset.received) = ((1, 40), (0, 0));
            reset
        })
        .collect();
    let real = Exchange::new("10.0.0.7", 50_000, "198.51.100.7", 443, 30);
    run(&mut engine, &records(&[vec![query, real], forged].concat()), 100);
    assert_eq!(engine.statistics().entries["pairs"], 1);
}

#[test]
fn an_engine_that_has_seen_nothing_begins_at_no_time() {
    assert_eq!(engine().statistics().first, EventTime(0));
    let mut engine = engine();
    engine.observe(&Exchange::new("10.0.0.7", 50_000, "198.51.100.7", 443, 30).records());
    // One record alone is believed when nothing else comes.
    engine.advance_to(EventTime(START + 31), &mut Output::default());
    assert_eq!(engine.statistics().first, EventTime(START + 30));
    assert_eq!(engine.statistics().entries["open_conversations"], 1);
}

/// Both directions of a session that speaks every half minute for so many minutes, thinly, with a place that nobody knows.
fn thin_session(peer: &str, port: u16, minutes: u32, bytes: u64) -> Vec<FlowRecord> {
    let pieces = (0..minutes).map(|minute| {
        let mut piece = Exchange::new("10.0.0.5", 45_000, peer, port, 5 + minute * 60);
        (piece.seconds, piece.sent, piece.received) = (50, (4, 4 * (40 + bytes)), (4, 4 * (40 + bytes)));
        piece
    });
    pieces.flat_map(|piece| piece.records()).collect()
}

fn told_of(mut records: Vec<FlowRecord>) -> Vec<(Threat, String)> {
    records.sort_by_key(|r| (r.end, r.start));
    let found = run(&mut engine(), &records, 100).findings;
    found.into_iter().map(|f| (f.threat, f.method)).collect()
}

#[test]
fn a_peer_among_peers_has_no_controller_and_no_pool() {
    let peers =
        |n: u32, bytes| (1..=n).flat_map(move |n| thin_session(&format!("203.0.113.{n}"), 20_001, 45, bytes)).collect();
    let methods = |n, bytes| told_of(peers(n, bytes)).into_iter().map(|(_, method)| method).collect::<BTreeSet<_>>();
    assert_eq!(methods(2, 20), ["long_channel".to_owned()].into());
    assert_eq!(methods(5, 20), [].into());
    assert_eq!(methods(2, 90), ["stratum_shape".to_owned()].into());
    assert_eq!(methods(5, 90), [].into());
}

#[test]
fn what_was_told_as_mining_is_not_told_as_a_thin_channel_when_it_slows_down() {
    // Ten minutes of jobs, then an hour of less than a pool pushes.
    let mut records = thin_session("203.0.113.9", 20_001, 12, 90);
    let mut slow = thin_session("203.0.113.9", 20_001, 80, 20);
    slow.retain(|r| r.start.0 >= START + 12 * 60);
    records.append(&mut slow);
    let threats: BTreeSet<Threat> = told_of(records).into_iter().map(|(threat, _)| threat).collect();
    assert_eq!(threats, [Threat::CryptoMining].into());
}

#[test]
fn an_address_that_is_not_on_the_internet_is_no_controller() {
    let calls = |to: &str| {
        let calls = (0..30u32).map(|n| Exchange::new("10.0.0.5", 42_000 + n as u16, to, 8_081, n * 60));
        calls.flat_map(|call| call.records()).collect::<Vec<_>>()
    };
    let (settings, _) = settings();
    let ours = crate::flow::network::Settings {
        internal: vec!["10.0.0.5/32".parse().unwrap()],
        external: Vec::new(),
        learn: false,
    };
    let found = |to| run(&mut Engine::new(&settings, &Network::new(&ours)), &calls(to), 100).findings.len();
    assert!(found("203.0.113.5") > 0);
    for neighbour in ["192.168.1.1", "10.0.0.1", "169.254.7.7", "100.64.0.1"] {
        assert_eq!(found(neighbour), 0, "{neighbour}");
    }
}

#[test]
fn whoever_reports_closed_ports_to_those_who_ask_searches_for_nobody() {
    let over = |protocol, mut r: FlowRecord| {
        (r.protocol, r.source_port, r.destination_port) = match protocol {
            protocol::ICMP => (protocol, 0, 0),
            _ => (protocol, r.source_port, r.destination_port),
        };
        r
    };
    let one_way = |from: &str, to: &str, protocol, at| {
        let mut exchange = Exchange::new(from, 50_000, to, 5_060, at);
        (exchange.sent, exchange.received) = ((1, 92), (0, 0));
        over(protocol, exchange.records()[0])
    };
    let outsider = |n: u32| format!("198.51.100.{n}");
    let asked = (1..=80).map(|n| one_way(&outsider(n), "10.0.0.5", protocol::UDP, n * 10));
    let errors = || (1..=80).map(|n| one_way("10.0.0.5", &outsider(n), protocol::ICMP, n * 10));
    assert_eq!(told_of(asked.chain(errors()).collect()), vec![]);
    assert!(
        told_of(errors().collect()).iter().any(|(_, method)| method == "horizontal_udp"),
        "pings without an answer"
    );
}

#[test]
fn who_never_spoke_is_nobodys_host() {
    let dead: Vec<Exchange> = (0..2_000u32)
        .map(|n| {
            let mut probe =
                Exchange::new("10.0.0.8", 50_000, &format!("10.9.{}.{}", n / 250, 1 + n % 250), 445, n / 20);
            (probe.sent, probe.received) = ((1, 44), (0, 0));
            probe
        })
        .collect();
    let mut engine = engine();
    let out = run(&mut engine, &records(&dead), 100);
    assert_eq!(engine.statistics().entries["internal_hosts"], 1, "the scanner alone");
    let hosts: std::collections::BTreeSet<Address> = out.vectors.iter().map(|vector| vector.host).collect();
    assert_eq!(hosts, [address("10.0.0.8")].into());
}

#[test]
fn hosts_of_global_addresses_are_learned_from_their_interfaces_and_judged() {
    let mut calls: Vec<Exchange> =
        (0..9u32).map(|n| Exchange::new("2001:db8::7", 45_000 + n as u16, &format!("2a00:{n}::1"), 443, n)).collect();
    for port in 1..60u16 {
        calls.push(Exchange::new("2001:db8::7", 50_000, "2001:db8:9::9", port, 60 + u32::from(port)).refused());
    }
    let mut engine = engine();
    let found = run(&mut engine, &records(&calls), 100).findings;
    assert_eq!(found.iter().map(|f| (f.threat, f.actor)).collect::<std::collections::BTreeSet<_>>().len(), 1);
    assert_eq!(found[0].actor, Actor::One(address("2001:db8::7")));
    assert_eq!(found[0].severity, crate::finding::Severity::High, "a host of ours scans");
    assert_eq!(found[0].learned, [address("2001:db8::7")], "which validation cannot know from the settings");
    assert_eq!(engine.statistics().learned_hosts, 1);
    assert_eq!(engine.statistics().strangers, 0);
}

#[test]
fn conversations_of_strangers_are_counted_by_network() {
    let mut calls = vec![];
    for n in 0..50u32 {
        let mut call = Exchange::new("198.18.1.7", 45_000 + n as u16, &format!("203.0.{n}.9"), 443, n);
        call.interface = 0;
        calls.push(call);
    }
    let mut engine = engine();
    run(&mut engine, &records(&calls), 100);
    let statistics = engine.statistics();
    assert_eq!(statistics.strangers, 50);
    assert_eq!(statistics.strange_networks["198.18.0.0/16"], 50);
}

#[test]
fn the_end_of_a_session_with_a_served_port_is_no_attempt() {
    let flagged = |record: FlowRecord, flags| FlowRecord {
        tcp_flags: flags,
        marks: record.marks.with(Marks::FLAGS_KNOWN),
        ..record
    };
    let mut all = Vec::new();
    for n in 0..400u32 {
        let client = format!("198.51.100.{}", 1 + n % 250);
        let opened = Exchange::new(&client, 33_000 + n as u16, "10.0.0.5", 50_000, n % 50);
        let records = opened.records();
        all.push(flagged(records[0], 2));
        all.push(flagged(records[1], 18));
        // The server says farewell a window later, and nobody answers any more.
        let mut tail = flagged(records[1], 1);
        (tail.start, tail.end, tail.packets, tail.bytes) = (tail.start.plus(70), tail.end.plus(70), 1, 52);
        all.push(tail);
    }
    all.sort_by_key(|record| (record.end, record.start));
    assert_eq!(run(&mut engine(), &all, 100).findings, vec![]);
}

/// What the engine says of a sweep of port 445, answered or refused, and of the records that follow.
fn told_of_sweep(refused: bool, after: &[u32]) -> Vec<(String, EventTime)> {
    let mut engine = engine();
    let mut out = Output::default();
    let mut records = Exchange::new("10.0.7.1", 40_000, "10.0.7.2", 443, 0).records();
    for n in 0..60 {
        let exchange = Exchange::new("10.0.2.4", 40_000 + n, &format!("10.0.3.{n}"), 445, 600 + u32::from(n));
        records.extend(if refused { exchange.refused() } else { exchange }.records());
    }
    engine.observe(&records);
    engine.advance(&mut out);
    for &at in after {
        engine.observe(&Exchange::new("10.0.7.1", 40_000, "10.0.7.2", 443, at).records());
        engine.advance_to(EventTime(START + at), &mut out);
    }
    engine.finish(&mut out);
    out.findings.iter().map(|finding| (finding.method.clone(), finding.window)).collect()
}

#[test]
fn a_sweep_that_was_held_back_is_told_when_its_time_is_over_whenever_the_next_record_comes() {
    let over = [("sweep".to_owned(), EventTime(START + 600 + 7_200 - 60).window(60))];
    assert_eq!(told_of_sweep(false, &[172_800]), over, "the next record comes two days later");
    assert_eq!(told_of_sweep(false, &[7_000, 9_000, 172_800]), over);
    assert_eq!(told_of_sweep(false, &[3_000, 7_860, 7_920, 7_980, 86_400]), over);
}

#[test]
fn a_sweep_of_which_most_fails_is_told_as_a_scan_alone() {
    let told = told_of_sweep(true, &[7_000, 172_800]);
    assert!(!told.is_empty() && told.iter().all(|(method, _)| method == "horizontal"), "{told:?}");
}

#[test]
fn asking_about_everybody_changes_nothing_of_what_is_told() {
    for seed in 0..4 {
        let exchanges = busy(seed);
        let records = records(&exchanges);
        let told = |ask: bool| {
            let mut engine = engine();
            let mut out = Output::default();
            for piece in records.chunks(100) {
                if ask {
                    piece.iter().for_each(|record| engine.ask(record.source));
                }
                engine.observe(piece);
                engine.advance(&mut out);
                if ask {
                    engine.explained(piece[0].source);
                }
            }
            engine.finish(&mut out);
            let explained = engine.explained(address("10.0.0.8"));
            (out.findings, out.vectors.len(), explained)
        };
        let ((findings, vectors, explained), (with, vectors_with, _)) = (told(false), told(true));
        assert_eq!((findings, vectors), (with, vectors_with));
        let seen = explained.seen.expect("it was seen, though nobody asked");
        assert_eq!((seen.ours, seen.conversations, seen.peers), (true, 59, 1));
        let nearest = explained.approaches.first().expect("a scan was judged");
        assert_eq!((nearest.threat, nearest.found), (Threat::PortScan, true));
    }
}

#[test]
fn members_of_a_cluster_that_look_for_those_who_left_scan_nobody() {
    let told = |serves: u16| {
        let mut all: Vec<Exchange> =
            (0..20).map(|n| Exchange::new("10.0.0.8", 30_000 + n, "10.0.0.7", serves, u32::from(n))).collect();
        for n in 1..=60u16 {
            let gone = format!("10.0.1.{n}");
            let mut call = Exchange::new("10.0.0.7", 40_000 + n, &gone, 7_946, 120 + u32::from(n));
            (call.sent, call.received) = ((2, 88), (0, 0));
            all.push(call);
        }
        findings(&all).iter().any(|f| f.threat == Threat::PortScan)
    };
    assert!(!told(7_946));
    assert!(told(7_947), "what it serves elsewhere says nothing");
}
