use std::sync::Arc;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::finding::{Actor, Alternative, Evidence, Merge, Origin, Target};

#[derive(Deserialize)]
struct File {
    correlation: Settings,
}

fn settings() -> Settings {
    let file: File = toml::from_str(include_str!("../../defaults.toml")).unwrap();
    file.correlation
}

fn shard() -> Arc<str> {
    Arc::from("shard-0")
}

const SCANNER: Address = Address::v4(0xcb00_7109);
const HOST: Address = Address::v4(0x0a00_0005);

/// A scan of `ports` ports of the host in the minute that starts at `window`.
fn scan(window: u32, ports: u16) -> Finding {
    Finding {
        threat: Threat::PortScan,
        method: "vertical".to_owned(),
        actor: Actor::One(SCANNER),
        subject: Subject::Actor(SCANNER),
        targets: vec![Target { address: HOST, ports: (1..=ports.min(16)).collect(), port_count: u32::from(ports) }],
        target_count: 1,
        sources: Vec::new(),
        severity_reason: String::new(),
        learned: Vec::new(),
        first_seen: EventTime(window + 1),
        last_seen: EventTime(window + 50),
        window: EventTime(window),
        window_seconds: 60,
        score: 0.9,
        severity: Severity::Medium,
        evidence: vec![
            Evidence::at_least("distinct_ports", f64::from(ports), 100.0, "ports", Merge::Max),
            Evidence::told("attempts", f64::from(ports), "attempts", Merge::Sum),
        ],
        summary: format!("203.0.113.9 tried {ports} ports of 10.0.0.5"),
        interfaces: vec!["eni-1".to_owned()],
        account: String::new(),
        provisional: false,
        ml: None,
        alternatives: Vec::new(),
    }
}

fn beacon(window: u32, host: Address) -> Finding {
    let peer = Address::v4(0xc633_6401);
    Finding {
        threat: Threat::C2Beacon,
        method: "periodic".to_owned(),
        actor: Actor::One(host),
        subject: Subject::Pair(host, peer),
        targets: vec![Target { address: peer, ports: vec![443], port_count: 1 }],
        severity: Severity::High,
        ..scan(window, 1)
    }
}

#[test]
fn an_incident_allows_what_its_surest_finding_allows() {
    let allows = |score, share: Option<f64>, window| {
        let alternatives = share.map(miner).into_iter().collect();
        Finding { score, alternatives, ..beacon(window, HOST) }
    };
    let after = |findings: &[Finding]| {
        let incident = Incidents::new(&settings()).fold(&shard(), findings).remove(0);
        incident.account().alternatives().to_vec()
    };
    let (unsure, sure) = (allows(0.6, Some(0.4), 0), allows(0.9, Some(0.2), 60));
    assert_eq!(after(&[unsure.clone(), sure.clone()]), [miner(0.2)]);
    assert_eq!(after(&[sure.clone(), unsure]), [miner(0.2)]);
    assert_eq!(after(&[sure.clone(), allows(0.9, Some(0.3), 120)]), [miner(0.3)], "of equals the latest");
    assert_eq!(after(&[sure, allows(0.95, None, 0)]), []);
}

#[test]
fn findings_within_the_gap_are_one_incident_and_beyond_it_two() {
    let mut incidents = Incidents::new(&settings());
    incidents.fold(&shard(), &[scan(0, 100)]);
    incidents.fold(&shard(), &[scan(3_600, 100)]);
    assert_eq!(incidents.len(), 1);
    incidents.fold(&shard(), &[scan(7_260, 100)]);
    assert_eq!(incidents.len(), 2);
}

#[test]
fn sums_add_over_windows_and_shards_and_never_twice() {
    let mut incidents = Incidents::new(&settings());
    incidents.fold(&shard(), &[scan(0, 100), scan(60, 50), scan(0, 100)]);
    let touched = incidents.fold(&Arc::from("shard-1"), &[scan(0, 7)]);
    let account = touched[0].account();
    assert_eq!(account.number("attempts").unwrap().value, 157.0);
    assert_eq!(account.number("distinct_ports").unwrap().value, 100.0);
    assert_eq!(touched[0].windows(), 3);
}

#[test]
fn the_id_is_kept_when_earlier_evidence_arrives_late() {
    let mut incidents = Incidents::new(&settings());
    let id = incidents.fold(&shard(), &[scan(600, 100)])[0].id;
    let touched = incidents.fold(&shard(), &[scan(0, 100)]);
    assert_eq!(touched.len(), 1);
    assert_eq!(touched[0].id, id);
    assert_eq!(touched[0].span().0, EventTime(1));
}

#[test]
fn a_finding_that_bridges_two_episodes_merges_them_into_the_earlier_id() {
    let mut incidents = Incidents::new(&settings());
    let early = incidents.fold(&shard(), &[scan(0, 100)])[0].id;
    let late = incidents.fold(&shard(), &[scan(6_000, 50)]).pop().unwrap().id;
    let touched = incidents.fold(&shard(), &[scan(3_000, 10)]);
    assert_eq!(incidents.len(), 1);
    let kept = touched.iter().find(|i| i.id == early).unwrap();
    let gone = touched.iter().find(|i| i.id == late).unwrap();
    assert_eq!(kept.account().number("attempts").unwrap().value, 160.0);
    assert_eq!((gone.closed, gone.absorbed_by), (true, Some(early)));
    assert!(kept.related.contains_key(&late));
    assert!(incidents.get(late).is_none());
}

#[test]
fn the_closed_window_takes_the_place_of_every_look_at_the_open_one() {
    let look = |ports| Finding { provisional: true, score: 0.99, ..scan(0, ports) };
    let mut looked = Incidents::new(&settings());
    looked.fold(&shard(), &[look(40)]);
    assert_eq!(looked.fold(&shard(), &[look(80)])[0].account().number("attempts").unwrap().value, 80.0);
    let after = looked.fold(&shard(), &[scan(0, 100)]).remove(0);
    let late_look = looked.fold(&shard(), &[look(90)]).remove(0);
    let mut straight = Incidents::new(&settings());
    let expected = straight.fold(&shard(), &[scan(0, 100)]).remove(0);
    assert_eq!(after, expected);
    assert_eq!(late_look, expected);
}

#[test]
fn a_look_leaves_no_trace_whatever_the_method_that_speaks_when_the_window_closes() {
    let look = |start| Finding { provisional: true, method: "vertical".to_owned(), ..scan(start, 40) };
    let closed = |start| Finding { method: "block".to_owned(), ..scan(start, 100) };
    let mut straight = Incidents::new(&settings());
    let expected = straight.fold(&shard(), &[closed(60)]).remove(0);
    for window in [0, 60] {
        let mut looked = Incidents::new(&settings());
        looked.fold(&shard(), &[look(window)]);
        // What an early look at another window made goes on as part of the episode that its closed window begins.
        let of_episode = |touched: Vec<Incident>| touched.into_iter().find(|i| !i.closed).expect("an open episode");
        let after = of_episode(looked.fold(&shard(), &[closed(60)]));
        assert_eq!(after.account(), expected.account(), "a look at {window}");
        let late = of_episode(looked.fold(&shard(), &[look(window)]));
        assert_eq!(late.account(), expected.account(), "late, {window}");
    }
    let later = straight.fold(&shard(), &[look(120)]).remove(0);
    assert_eq!(later.account(), expected.account(), "a look at a later window waits for that to close");
}

#[test]
fn which_incidents_are_related_hangs_on_nothing_that_a_restart_forgets() {
    let on = |addresses: std::ops::Range<u32>| -> Vec<Target> {
        addresses.map(|n| Target { address: Address::v4(0x0a00_0000 + n), ports: vec![22], port_count: 1 }).collect()
    };
    let many = Finding::TARGETS_MAX as u32;
    // Host 999 is a target by a look alone, and 900 until smaller addresses are known.
    let look = Finding { provisional: true, targets: on(999..1000), ..scan(0, 40) };
    let [first, second] = [on(899..901), on(1..1 + many)].map(|targets| Finding { targets, ..scan(0, 40) });
    let second = Finding { window: EventTime(60), last_seen: EventTime(110), ..second };
    let after = [beacon(120, Address::v4(0x0a00_0000 + 999)), beacon(120, Address::v4(0x0a00_0000 + 900))];
    let mut related = Vec::new();
    for restarts in [false, true] {
        let mut incidents = Incidents::new(&settings());
        for findings in [vec![look.clone()], vec![first.clone()], vec![second.clone()], after.to_vec()] {
            if restarts {
                incidents = Incidents::restore(&incidents.snapshot(), &settings()).unwrap();
            }
            incidents.fold(&shard(), &findings);
        }
        let mut closed = incidents.finish();
        closed.sort_by_key(Incident::rank);
        related.push(closed.iter().map(|incident| (incident.key, incident.related.clone())).collect::<Vec<_>>());
    }
    assert_eq!(related[0], related[1]);
    assert!(related[0].iter().all(|(_, related)| related.is_empty()), "{related:#?}");
}

#[test]
fn a_look_of_a_shard_that_has_ended_leaves_no_trace_when_the_episode_is_over() {
    let look = Finding { provisional: true, method: "vertical".to_owned(), ..scan(60, 40) };
    let mut incidents = Incidents::new(&settings());
    let expected = incidents.fold(&Arc::from("child"), &[scan(60, 100)]).remove(0).account();
    let open = incidents.fold(&Arc::from("parent"), std::slice::from_ref(&look)).remove(0).account();
    assert!(open.methods.contains_key("vertical"));
    assert_eq!(incidents.finish()[0].account(), expected);
    // Where nobody else spoke, it is all that is known.
    let mut alone = Incidents::new(&settings());
    alone.fold(&Arc::from("parent"), &[look]);
    assert!(alone.finish()[0].account().methods.contains_key("vertical"));
}

#[test]
fn an_incident_is_closed_once_when_its_gap_has_passed() {
    let mut incidents = Incidents::new(&settings());
    incidents.fold(&shard(), &[scan(0, 100)]);
    assert!(incidents.expire(EventTime(50 + 3_600)).is_empty());
    let closed = incidents.expire(EventTime(50 + 3_601));
    assert_eq!(closed.len(), 1);
    assert!(closed[0].closed);
    assert!(incidents.is_empty() && incidents.expire(EventTime(u32::MAX)).is_empty());
}

#[test]
fn a_scanned_host_that_then_beacons_is_one_story_and_both_sides_know() {
    let mut incidents = Incidents::new(&settings());
    let scan = incidents.fold(&shard(), &[scan(0, 100)])[0].id;
    let touched = incidents.fold(&shard(), &[beacon(3_540, HOST)]);
    let beacon = touched.iter().find(|i| i.id != scan).unwrap();
    assert_eq!(beacon.related.get(&scan), Some(&Relation::Preceded));
    assert_eq!(touched.iter().find(|i| i.id == scan).unwrap().related.get(&beacon.id), Some(&Relation::Followed));
}

#[test]
fn who_else_scans_a_host_and_who_is_related_does_not_depend_on_which_shard_is_heard_first() {
    let by = |n: u32, window| {
        let scanner = Address::v4(0xcb00_7100 + n);
        Finding { actor: Actor::One(scanner), subject: Subject::Actor(scanner), ..scan(window, 40) }
    };
    // The last is known when the first is over, however long that is kept, and so is the beacon.
    let heard = [by(1, 0), by(2, 600), by(3, 3_600), by(2, 1_200), beacon(3_600, HOST)];
    let orders = [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 0, 4, 3, 1], [1, 4, 0, 2, 3]];
    let ends = orders.map(|order| {
        let mut incidents = Incidents::new(&settings());
        order.iter().for_each(|&at| drop(incidents.fold(&Arc::from(format!("shard-{at}")), &[heard[at].clone()])));
        let mut closed = incidents.finish();
        closed.sort_by_key(|incident| incident.key);
        closed.into_iter().map(|i| (i.key, i.actors_on_target(), i.related.len())).collect::<Vec<_>>()
    });
    assert_eq!(ends[0].iter().map(|(_, actors, _)| *actors).collect::<Vec<_>>(), [2, 3, 2, 1]);
    assert_eq!(ends[0].iter().map(|(.., related)| *related).collect::<Vec<_>>(), [0, 1, 1, 2]);
    assert!(ends.iter().all(|end| *end == ends[0]), "{ends:#?}");
}

#[test]
fn who_was_met_on_a_target_that_a_wide_scan_names_no_more_is_not_met_in_any_order() {
    let by = |n: u32, targets: std::ops::Range<u32>| {
        let scanner = Address::v4(0xcb00_7100 + n);
        let target = |n| Target { address: Address::v4(0x0a00_0000 + n), ports: vec![22], port_count: 1 };
        let targets = targets.map(target).collect();
        Finding { actor: Actor::One(scanner), subject: Subject::Actor(scanner), targets, ..scan(0, 1) }
    };
    let most = Finding::TARGETS_MAX as u32;
    // Two shards' parts of a wide scan, of which the second has smaller addresses, two others, and the victims of many.
    let victim = |n: u32| {
        let address = Address::v4(0x0a00_0000 + n);
        Finding { actor: Actor::Many, subject: Subject::Victim(address), ..by(9, n..n + 1) }
    };
    let (last, kept) = (2 * most - 1, most);
    let heard = [
        by(1, most..2 * most),
        by(1, 0..most - 1),
        by(2, last..last + 1),
        by(3, kept..kept + 1),
        victim(last),
        victim(kept),
    ];
    for order in [
        [0, 4, 1, 2, 3, 5],
        [0, 2, 1, 3, 5, 4],
        [2, 0, 5, 3, 1, 4],
        [1, 5, 2, 3, 4, 0],
        [3, 2, 1, 4, 5, 0],
        [5, 4, 2, 3, 0, 1],
    ] {
        let mut incidents = Incidents::new(&settings());
        order.iter().for_each(|&at| drop(incidents.fold(&Arc::from(format!("shard-{at}")), &[heard[at].clone()])));
        let mut closed = incidents.finish();
        closed.sort_by_key(|incident| incident.key);
        let met: Vec<(Subject, u32)> = closed.iter().map(|i| (i.key.subject, i.actors_on_target())).collect();
        let of = |at: usize| heard[at].subject;
        let expected = [(of(0), 2), (of(2), 1), (of(3), 2), (of(5), 3), (of(4), 2)];
        assert_eq!(met, expected, "{order:?}");
    }
}

#[test]
fn two_threats_of_one_actor_are_related_within_a_day_only() {
    let mut incidents = Incidents::new(&settings());
    incidents.fold(&shard(), &[scan(0, 100)]);
    let near = incidents.fold(&shard(), &[beacon(3_540, SCANNER)]);
    assert_eq!(near.len(), 2);
    let mut incidents = Incidents::new(&settings());
    incidents.fold(&shard(), &[scan(0, 100)]);
    assert!(incidents.fold(&shard(), &[beacon(100_000, SCANNER)])[0].related.is_empty());
}

#[test]
fn a_flood_of_scanners_pushes_out_scanners_and_never_a_beacon() {
    let mut incidents = Incidents::new(&Settings { incidents_max: 100, ..settings() });
    let beacon = incidents.fold(&shard(), &[beacon(0, HOST)])[0].id;
    for n in 0..1_000 {
        let scanner = Address::v4(0x5000_0000 + n);
        let finding =
            Finding { actor: Actor::One(scanner), subject: Subject::Actor(scanner), targets: vec![], ..scan(60, 20) };
        incidents.fold(&shard(), &[finding]);
        assert!(incidents.len() <= 100);
    }
    assert!(incidents.get(beacon).is_some());
    assert_eq!(incidents.evictions() as usize + incidents.len(), 1_001);
    let handed_out = incidents.expire(EventTime(0));
    assert_eq!(handed_out.len() as u64, incidents.evictions());
}

#[test]
fn a_snapshot_goes_on_as_if_nothing_had_happened() {
    let findings: Vec<Finding> = (0..20).map(|n| scan(n * 60, 10 + n as u16)).chain([beacon(60, HOST)]).collect();
    let mut whole = Incidents::new(&settings());
    let mut cut = Incidents::new(&settings());
    for finding in &findings {
        cut = Incidents::restore(&cut.snapshot(), &settings()).unwrap();
        let one = std::slice::from_ref(finding);
        assert_eq!(whole.fold(&shard(), one), cut.fold(&shard(), one));
    }
    assert_eq!(whole.finish(), cut.finish());
}

#[test]
fn a_snapshot_that_is_none_is_refused() {
    assert!(Incidents::restore(b"{}", &settings()).is_err());
    assert!(Incidents::restore(b"", &settings()).is_err());
}

#[test]
fn numbers_that_are_none_do_not_enter() {
    let mut finding = scan(0, 10);
    finding.score = f64::NAN;
    finding.evidence[0].value = f64::INFINITY;
    let mut incidents = Incidents::new(&settings());
    let account = incidents.fold(&shard(), &[finding])[0].account();
    assert_eq!(account.score(), 0.0);
    assert!(account.number("distinct_ports").is_none());
    assert!(Incidents::restore(&incidents.snapshot(), &settings()).is_ok());
}

#[test]
fn long_episodes_keep_their_sums_while_their_windows_are_added_up() {
    let mut incidents = Incidents::new(&settings());
    let mut last = None;
    for n in 0..1_000 {
        last = incidents.fold(&shard(), &[scan(n * 60, 10)]).pop();
    }
    let incident = last.unwrap();
    assert_eq!(incident.account().number("attempts").unwrap().value, 10_000.0);
    assert_eq!(incident.windows(), 1_000);
    assert!(incidents.snapshot().len() < 32 * 1024);
    // A repeat of what has been added up is not added again.
    let again = incidents.fold(&shard(), &[scan(0, 10)]).remove(0);
    assert_eq!(again.account().number("attempts").unwrap().value, 10_000.0);
}

fn source(number: u32, amount: u64) -> Origin {
    Origin { address: Address::v4(0xcb00_7100 + number), amount }
}

fn miner(share: f64) -> Alternative {
    Alternative { threat: Threat::CryptoMining, share }
}

fn any_finding() -> impl Strategy<Value = Finding> {
    let parts = (0..10_u32, 1..200_u16, 0..100_u8, any::<bool>(), 0..4_u32, 0..3_usize);
    parts.prop_map(|(minute, ports, score, provisional, target, method)| Finding {
        method: ["vertical", "horizontal", "slow"][method].to_owned(),
        score: f64::from(score) / 100.0,
        provisional,
        targets: vec![Target {
            address: Address::v4(0x0a00_0000 + target),
            ports: (ports..ports + 10).collect(),
            port_count: u32::from(ports),
        }],
        sources: (0..u32::from(ports % 30)).map(|n| source(n * 7 % 41, u64::from(n * target))).collect(),
        severity_reason: format!("reason {}", score % 3),
        alternatives: (score % 4 > 1).then(|| miner(f64::from(score % 7) / 10.0)).into_iter().collect(),
        learned: Vec::new(),
        interfaces: vec![format!("eni-{target}")],
        severity: if score > 50 { Severity::High } else { Severity::Low },
        evidence: vec![
            Evidence::at_least("distinct_ports", f64::from(ports), f64::from(target), "ports", Merge::Max),
            Evidence::at_least("failure_ratio", f64::from(score), 0.5, "ratio", Merge::Min),
            Evidence::told("attempts", f64::from(ports) * 0.1, "attempts", Merge::Sum),
            Evidence::told("rate", f64::from(ports), "1/s", Merge::Latest),
        ],
        ..scan(minute * 60, ports)
    })
}

/// Everything but the id, which depends on what was known first.
fn content(incident: &Incident) -> (Account, u32) {
    (incident.account(), incident.windows())
}

use crate::correlation::Account;

proptest! {
    #[test]
    fn any_order_and_repetition_gives_the_same_incident(
        findings in prop::collection::vec((any_finding(), 0..3_usize), 1..40),
        order in any::<prop::sample::Index>(),
        repeats in prop::collection::vec(any::<prop::sample::Index>(), 0..20),
    ) {
        let shards: [Arc<str>; 3] = ["a", "b", "c"].map(Arc::from);
        let mut straight = Incidents::new(&settings());
        let mut going_on = Vec::new();
        for (finding, shard) in &findings {
            going_on = straight.fold(&shards[*shard], std::slice::from_ref(finding));
        }
        let mut shuffled = findings.clone();
        shuffled.rotate_left(order.index(findings.len()));
        shuffled.reverse();
        for repeat in repeats {
            let at = repeat.index(shuffled.len());
            let again = shuffled[at].clone();
            shuffled.insert(shuffled.len() / 2, again);
        }
        let mut other = Incidents::new(&settings());
        let mut other_going_on = Vec::new();
        for (finding, shard) in &shuffled {
            other_going_on = other.fold(&shards[*shard], std::slice::from_ref(finding));
        }
        let alive = |all: &[Incident]| all.iter().find(|i| i.absorbed_by.is_none()).map(content);
        prop_assert_eq!(alive(&going_on), alive(&other_going_on));
        let (straight, other) = (straight.finish(), other.finish());
        prop_assert_eq!(straight.len(), 1);
        prop_assert_eq!(other.len(), 1);
        prop_assert_eq!(content(&straight[0]), content(&other[0]));
    }
}
