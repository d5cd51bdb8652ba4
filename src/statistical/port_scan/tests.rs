use super::*;
use crate::flow::InterfaceId;
use crate::settings;
use crate::statistical::conversation::Outcome;
use crate::statistical::conversation::tests::{address, at, call, direction, probe};

pub(super) fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.port_scan
}

/// Probes of tests are seen from here on; see [`probe`].
const START: EventTime = EventTime(1_000);
/// The end of the window that they lie in.
const NOW: EventTime = EventTime(1_020);

fn source() -> Address {
    address("10.0.0.8")
}

pub(super) fn host(n: u32) -> Address {
    Address::v4(0xcb00_7100 + n)
}

/// A TCP probe of a port of a host that stays without an answer.
pub(super) fn on(n: u32, port: u16) -> Conversation {
    Conversation { opener: source(), responder: host(n), port, ..probe() }
}

fn udp(c: Conversation) -> Conversation {
    Conversation { protocol: protocol::UDP, ..c }
}

fn refused(c: Conversation) -> Conversation {
    Conversation { outcome: Outcome::Refused, ..c }
}

fn suspect(failures: impl IntoIterator<Item = Conversation>) -> Suspect {
    let mut suspect = Suspect::new(source(), START);
    for c in failures {
        suspect.note(&c);
    }
    suspect
}

/// Ports 1 to n of one host.
fn ports(n: u16) -> impl Iterator<Item = Conversation> {
    (1..=n).map(|port| on(1, port))
}

/// Port 22 of n hosts.
fn hosts(n: u32) -> impl Iterator<Item = Conversation> {
    (1..=n).map(|n| on(n, 22))
}

/// Every port of every host, in a square.
fn square(hosts: u32, ports: u16) -> impl Iterator<Item = Conversation> {
    (1..=hosts).flat_map(move |n| (1..=ports).map(move |port| on(n, port)))
}

/// The method that tells the source by now, if one does.
fn told(ours: bool, now: EventTime, failures: impl IntoIterator<Item = Conversation>) -> Option<String> {
    let judgement = suspect(failures).judge(&settings(), ours, now);
    judgement.passed.then_some(judgement.method)
}

fn of_ours(failures: impl IntoIterator<Item = Conversation>) -> Option<String> {
    told(true, NOW, failures)
}

fn of_outsider(failures: impl IntoIterator<Item = Conversation>) -> Option<String> {
    told(false, NOW, failures)
}

fn method(name: &str) -> Option<String> {
    Some(name.to_owned())
}

#[test]
fn bare_probes_that_fail_at_a_service_of_one_host_count() {
    assert!(Suspect::counts(&on(1, 22)) && Suspect::counts(&refused(on(1, 22))));
    assert!(!Suspect::counts(&call()));
    assert!(!Suspect::counts(&Conversation { outcome: Outcome::Backscatter, ..on(1, 22) }));
    assert!(!Suspect::counts(&Conversation { sent: direction(8, 320), ..on(1, 22) }), "data was on its way");
    assert!(!Suspect::counts(&Conversation { responder: address("224.0.0.251"), ..on(1, 22) }));
    assert!(Suspect::counts(&udp(on(1, 53))));
    assert!(!Suspect::counts(&udp(on(1, 0))));
    for (port, counts) in [(33_433, true), (33_434, false), (33_534, false), (33_535, true)] {
        assert_eq!(Suspect::counts(&udp(on(1, port))), counts, "{port}");
        assert!(Suspect::counts(&on(1, port)), "over TCP it is a port like any other: {port}");
    }
    for (protocol, counts) in [(protocol::ICMP, true), (protocol::ICMPV6, true), (47, false)] {
        assert_eq!(Suspect::counts(&Conversation { protocol, ..on(1, 0) }), counts, "{protocol}");
    }
}

#[test]
fn an_attempt_that_is_repeated_is_one_failure_from_first_to_last() {
    let early = Conversation { interface: InterfaceId(3), ..at(10, on(1, 22)) };
    let late = Conversation { interface: InterfaceId(4), ..at(50, refused(on(1, 22))) };
    for order in [[early, late], [late, early]] {
        let suspect = suspect(order);
        let times = suspect.failures[&(host(1), 22, protocol::TCP)];
        assert_eq!(times, (EventTime(1_010), EventTime(1_051)));
        assert_eq!((suspect.known(), suspect.fresh, suspect.attempts, suspect.refused), (1, 2, 2, 1));
        assert_eq!(
            (suspect.key(), Entry::last_seen(&suspect), suspect.interface),
            (source(), EventTime(1_051), InterfaceId(4))
        );
    }
    let other = suspect([on(1, 22), on(1, 23), on(2, 22), udp(on(1, 22))]);
    assert_eq!((other.known(), other.fresh), (4, 4));
}

#[test]
fn what_answers_after_all_is_taken_back_and_counts_for_the_source() {
    let mut suspect = suspect([on(1, 22), on(1, 23), on(2, 22), udp(on(1, 22))]);
    suspect.note_success(&on(1, 22));
    assert_eq!((suspect.known(), suspect.successes), (3, 1));
    suspect.note_success(&on(9, 80));
    assert_eq!((suspect.known(), suspect.successes), (3, 2));
}

#[test]
fn failures_beyond_the_room_are_counted_and_not_kept() {
    let room = Suspect::FAILURES_MAX as u32;
    let mut suspect = suspect(hosts(room));
    assert_eq!((suspect.known(), suspect.overflow), (room, 0));
    suspect.note(&on(room + 1, 22));
    suspect.note(&on(1, 22));
    assert_eq!((suspect.known(), suspect.overflow, suspect.fresh), (room + 1, 1, room + 2));
    let judgement = suspect.judge(&settings(), true, NOW);
    let failures = judgement.evidence.iter().find(|e| e.name == "first_contact_failures").unwrap();
    assert_eq!((failures.value, suspect.fresh), (f64::from(room + 1), 0));
    assert!(suspect.finding(&judgement, &settings(), true, START, 60).sentence().contains("port 22 on 2048 hosts"));
    suspect.note(&at(40, on(room + 2, 22)));
    let judgement = suspect.judge(&settings(), true, NOW);
    assert_eq!(
        suspect.finding(&judgement, &settings(), true, START, 60).last_seen,
        EventTime(1_041),
        "it is still at it"
    );
}

#[test]
fn a_host_of_ours_is_a_scanner_from_fifteen_ports_or_twenty_five_hosts_on() {
    assert_eq!(of_ours(ports(14)), None);
    assert_eq!(of_ours(ports(15)), method("vertical"));
    assert_eq!(of_ours(hosts(24)), None);
    assert_eq!(of_ours(hosts(25)), method("horizontal"));
    assert_eq!(of_ours(ports(59).map(udp)), None);
    assert_eq!(of_ours(ports(60).map(udp)), method("vertical_udp"));
    assert_eq!(of_ours(hosts(59).map(udp)), None);
    assert_eq!(of_ours(hosts(60).map(udp)), method("horizontal_udp"));
    assert_eq!(of_ours(ports(14).chain((30..44).map(|port| on(2, port)))), None, "two hosts are not one");
    assert_eq!(of_ours(ports(14).chain((30..44).map(|port| udp(on(1, port))))), None, "nor two protocols");
}

#[test]
fn a_host_of_ours_that_tries_a_block_is_a_scanner_from_a_hundred_pairs_on() {
    assert_eq!(of_ours(square(10, 10)), method("block"));
    assert_eq!(of_ours(square(10, 10).skip(1)), None);
    assert_eq!(of_ours(square(10, 10).skip(1).chain([udp(on(1, 1))])), None, "a pair is TCP's");
    assert_eq!(of_ours(square(8, 13)), method("block"));
    assert_eq!(of_ours(square(20, 5)), method("block"));
    // Four of either are a list of services or of hosts, whatever the threshold.
    let eager = Settings { ports: 25, block: 90, ..settings() };
    for (hosts, ports, passed) in [(4, 24, false), (5, 24, true), (24, 4, false), (24, 5, true)] {
        assert_eq!(suspect(square(hosts, ports)).judge(&eager, true, NOW).passed, passed, "{hosts} × {ports}");
    }
}

#[test]
fn an_outsider_is_told_for_a_burst_of_ports_or_for_many_within_the_hour() {
    assert_eq!(of_outsider(ports(74)), None);
    assert_eq!(of_outsider(ports(75)), method("vertical"));
    assert_eq!(of_outsider(ports(40).chain((50..90).map(|port| on(2, port)))), None, "forty of two hosts each");
    assert_eq!(of_outsider(hosts(75)), None, "one port of many hosts is background");
    // The burst is over ten minutes after its last probe, which ends at 1,001.
    assert_eq!(told(false, EventTime(1_001 + 600), ports(75)), method("vertical"));
    assert_eq!(told(false, EventTime(1_001 + 601), ports(75)), None);
    // One in fifteen seconds is no burst, and an hour of it is a scan.
    let slow = |n: u16| (1..=n).map(|port| at(15 * u32::from(port), on(1, port)));
    let end = EventTime(1_001 + 3_000);
    assert_eq!(told(false, end, slow(199)), None);
    assert_eq!(told(false, end, slow(200)), method("vertical"));
    assert_eq!(of_outsider(ports(199).map(udp)), None);
    assert_eq!(of_outsider(ports(200).map(udp)), method("vertical_udp"));
    let patient = Settings { udp: 210, ..settings() };
    assert!(!suspect(ports(209).map(udp)).judge(&patient, false, NOW).passed);
    assert!(suspect(ports(210).map(udp)).judge(&patient, false, NOW).passed);
}

#[test]
fn an_outsider_who_sweeps_is_told_from_fifty_hosts_and_three_ports_on() {
    let sweep = |hosts: u32, ports: u32| (1..=hosts).map(move |n| on(n, (n % ports) as u16 + 1));
    assert_eq!(of_outsider(sweep(50, 3)), method("block"));
    assert_eq!(of_outsider(sweep(49, 3)), None);
    assert_eq!(of_outsider(sweep(500, 2)), None, "two ports are the internet's background");
}

#[test]
fn who_succeeds_at_more_than_a_fifth_of_its_first_contacts_with_a_host_is_no_scanner_of_its() {
    let with = |successes: u32| {
        let mut suspect = suspect(ports(28));
        (0..successes).for_each(|n| suspect.note_success(&on(1, 1_000 + n as u16)));
        suspect.judge(&settings(), true, NOW)
    };
    let judgement = with(7);
    assert!(judgement.passed);
    let number = |name: &str| judgement.evidence.iter().find(|e| e.name == name).unwrap().value;
    assert_eq!((number("success_ratio"), number("first_contact_failures")), (0.2, 28.0));
    assert!((number("trw_log_odds") - 21.0 * 4f64.ln()).abs() < 1e-9, "{}", number("trw_log_odds"));
    assert!(!with(8).passed);
}

#[test]
fn the_closest_rule_is_the_one_that_is_told_of_with_its_numbers() {
    let judgement = suspect(ports(12).map(refused).chain(hosts(10))).judge(&settings(), true, NOW);
    assert!(!judgement.passed);
    assert_eq!((judgement.method.as_str(), judgement.ratio), ("vertical", 13.0 / 15.0));
    let numbers: Vec<(&str, f64, Option<f64>, &str)> =
        judgement.evidence.iter().map(|e| (&*e.name, e.value, e.threshold, &*e.unit)).collect();
    assert_eq!(numbers[0], ("distinct_ports", 13.0, Some(15.0), "ports"));
    assert_eq!(numbers[1], ("success_ratio", 0.0, Some(0.2), "ratio"));
    assert_eq!(numbers[3], ("refused_ratio", 12.0 / 22.0, None, "ratio"));
    let leading = |ours, failures: Vec<Conversation>| {
        let judgement = suspect(failures).judge(&settings(), ours, NOW);
        (judgement.evidence[0].name.clone(), judgement.evidence[0].unit.clone(), judgement.evidence[0].value)
    };
    let named = |name: &'static str, unit: &'static str, value| (name.into(), unit.into(), value);
    assert_eq!(leading(true, hosts(20).collect()), named("distinct_hosts", "hosts", 20.0));
    assert_eq!(leading(true, hosts(50).map(udp).collect()), named("distinct_hosts", "hosts", 50.0));
    assert_eq!(leading(true, square(9, 9).collect()), named("distinct_ports", "ports", 81.0));
    let sweep = (1..=45).map(|n| on(n, (n % 3) as u16 + 1)).collect();
    assert_eq!(leading(false, sweep), named("distinct_hosts", "hosts", 45.0));
}

#[test]
fn a_source_of_ours_is_remembered_for_a_day_and_an_outsider_for_an_hour() {
    for (ours, span) in [(true, 86_400), (false, 3_600)] {
        let known = |now| {
            let mut suspect = suspect([on(1, 22)]);
            suspect.note_success(&on(2, 22));
            suspect.judge(&settings(), ours, EventTime(now));
            (suspect.known(), suspect.attempts, suspect.successes)
        };
        assert_eq!(known(1_001 + span), (1, 1, 1));
        assert_eq!(known(1_002 + span), (0, 0, 0), "what it succeeded at is forgotten with it");
    }
    let mut suspect = suspect([on(1, 22), at(100, on(1, 23))]);
    suspect.judge(&settings(), false, EventTime(1_001 + 3_650));
    assert_eq!((suspect.known(), suspect.attempts), (1, 2), "the younger failure stays");
}

#[test]
fn below_the_smallest_threshold_nobody_is_looked_at() {
    let defaults = settings();
    assert_eq!(defaults.least(), 15);
    for n in 0..5 {
        let mut settings = defaults.clone();
        *[
            &mut settings.ports,
            &mut settings.hosts,
            &mut settings.udp,
            &mut settings.outside_burst,
            &mut settings.outside_hosts,
        ][n] = 7;
        assert_eq!(settings.least(), 7, "rule {n}");
    }
}

fn finding(ours: bool, failures: impl IntoIterator<Item = Conversation>) -> Finding {
    let mut suspect = suspect(failures);
    let judgement = suspect.judge(&settings(), ours, NOW);
    suspect.finding(&judgement, &settings(), ours, EventTime(960), 60)
}

#[test]
fn a_scan_is_told_in_one_sentence_that_fits_its_kind() {
    let vertical = finding(true, ports(30).map(refused).chain([at(40, on(1, 31))]));
    let words = "10.0.0.8 tried 31 ports of 203.0.113.1 in 41 s without success; 97 % were refused";
    assert_eq!(vertical.sentence(), words);
    assert_eq!((vertical.first_seen, vertical.last_seen), (EventTime(1_000), EventTime(1_041)));
    assert_eq!((vertical.actor, vertical.subject), (Actor::One(source()), Subject::Actor(source())));
    assert_eq!((vertical.window, vertical.window_seconds, vertical.threat), (EventTime(960), 60, Threat::PortScan));
    let sweep = finding(true, hosts(30));
    assert_eq!(sweep.sentence(), "10.0.0.8 tried port 22 on 30 hosts in 1 s without success; 0 % were refused");
    let block = finding(true, square(10, 11));
    assert_eq!(block.sentence(), "10.0.0.8 tried 110 ports on 10 hosts in 1 s without success; 0 % were refused");
}

#[test]
fn of_many_targets_those_with_the_most_ports_are_shown_in_order_of_address() {
    let failures: Vec<Conversation> =
        hosts(40).chain((1..=20).rev().map(|port| on(40, port))).chain([udp(on(40, 5))]).collect();
    let finding = finding(true, failures);
    assert_eq!((finding.target_count, finding.targets.len()), (40, Finding::TARGETS_MAX));
    let shown: Vec<Address> = finding.targets.iter().map(|t| t.address).collect();
    let expected: Vec<Address> = (1..=31).chain([40]).map(host).collect();
    assert_eq!(shown, expected);
    assert_eq!((&finding.targets[0].ports, finding.targets[0].port_count), (&vec![22], 1));
    let last = &finding.targets[31];
    assert_eq!((&last.ports, last.port_count), (&(1..=16).collect::<Vec<u16>>(), 21));
}

#[test]
fn a_scan_from_within_is_severe_and_scores_by_how_far_it_went() {
    let at_it = finding(true, ports(15));
    assert_eq!((at_it.score, at_it.severity), (0.5, Severity::High));
    assert_eq!(finding(true, ports(30)).score, 0.75);
    assert_eq!(finding(true, ports(5)).score, 0.5, "a score below one half says nothing");
    assert_eq!(finding(false, ports(75)).severity, Severity::Low);
}

/// Whether a host of ours is told for failures beside so many first contacts that succeed.
fn beside(failures: impl IntoIterator<Item = Conversation>, answers: impl IntoIterator<Item = Conversation>) -> bool {
    let mut suspect = suspect(failures);
    answers.into_iter().for_each(|c| suspect.note_success(&c));
    suspect.judge(&settings(), true, NOW).passed
}

#[test]
fn what_succeeds_elsewhere_does_not_excuse_a_host_of_ours() {
    let browsing = || (0..1_000).map(|n| on(500 + n, 443));
    assert!(beside(ports(20), browsing()), "a day of web pages beside a scan of one host");
    assert!(beside(hosts(30), browsing()), "and beside one for SSH");
    assert!(!beside(hosts(30), (0..8).map(|n| on(500 + n, 22))), "who reaches every fifth is at work there");
    assert!(beside(hosts(30), (0..7).map(|n| on(500 + n, 22))));
    // Datagrams and blocks are judged by all that the source does.
    assert!(!beside(hosts(60).map(udp), browsing()));
    assert!(!beside(square(10, 10), browsing()));
    // Nor is a web port by itself, which is what peers fall back to.
    assert!(!beside((0..30).map(|n| on(n, 80)), browsing()));
    // A port that fails the more, where most else succeeds, does not hide another.
    let dead = (0..40).map(|n| on(n, 443));
    assert!(beside(dead.chain(hosts(30)), browsing()));
}

#[test]
fn with_too_many_ports_to_tell_apart_all_contacts_stand_for_each() {
    let many = Suspect::TALLIES_MAX as u16;
    let answers = || (0..many).map(|n| on(9_000 + u32::from(n), 10_000 + n));
    assert!(beside(hosts(30), answers()), "port 22 came first");
    let mut full = suspect([]);
    answers().chain((0..9).map(|n| on(500 + n, 1))).for_each(|c| full.note_success(&c));
    assert_eq!((full.by_port.len(), full.by_host.len()), (Suspect::TALLIES_MAX, Suspect::TALLIES_MAX));
    hosts(30).for_each(|c| full.note(&c));
    assert!(!full.judge(&settings(), true, NOW).passed, "no room for port 22");
}

#[test]
fn clients_that_come_back_to_dead_web_servers_scan_none() {
    let tries = |port, repeats: u32| (0..30 * repeats).map(move |n| at(n / 30, on(n % 30, port)));
    assert_eq!(of_ours(tries(443, 2)), method("horizontal"));
    assert_eq!(of_ours(tries(443, 3)), None);
    assert_eq!(of_ours(tries(445, 3)), method("horizontal"), "no browser asks there");
    // Beyond what is kept, a wide scan stays one.
    assert_eq!(of_ours((0..5_000).map(|n| on(n, 80))), method("horizontal"));
}

#[test]
fn a_host_whose_ipv6_leads_nowhere_scans_no_web_servers() {
    let v6 =
        |n: u32, port| Conversation { responder: Address::from_bits(0x2a00_1450 << 96 | u128::from(n)), ..on(1, port) };
    assert_eq!(of_ours((0..200).map(|n| v6(n, 443))), None);
    assert_eq!(of_ours((0..30).map(|n| v6(n, 22))), method("horizontal"));
}

#[test]
fn peers_that_are_gone_are_no_scan() {
    assert_eq!(of_ours((0..200).map(|n| on(n, 8_333)).chain((0..9).map(|n| on(n, 700 + n as u16)))), None);
    assert_eq!(of_ours((1..=20).map(|n| on(1, 6_870 + n))), method("vertical"), "one host's ports are");
}

#[test]
fn a_port_is_named_where_it_is_the_only_one() {
    let finding = finding(true, (0..60).map(|n| on(n, if n % 3 == 0 { 80 } else { 22 })));
    assert_eq!(finding.sentence(), "10.0.0.8 tried 60 ports on 60 hosts in 1 s without success; 0 % were refused");
}

#[test]
fn two_engines_tallies_are_the_larger_of_both() {
    let mut one = suspect(hosts(3));
    one.note_success(&on(9, 22));
    let mut other = suspect(hosts(2));
    (0..4).for_each(|n| other.note_success(&on(9, 23 + n)));
    one.join(other);
    let tally = one.by_port[&(22, protocol::TCP)];
    assert_eq!((tally.failed, tally.answered, one.by_host[&(host(9), protocol::TCP)]), (3, 1, 4));
}

#[test]
fn a_sweep_of_doors_to_which_names_lead_weighs_less_than_one_of_others() {
    let severity = |port| {
        let on_port = move |c: Conversation| Conversation { port, ..c };
        finding(true, hosts(30).map(on_port)).severity
    };
    assert_eq!(severity(25), Severity::Medium);
    assert_eq!(severity(445), Severity::High);
}

#[test]
fn peers_that_each_have_a_port_of_their_own_are_no_block() {
    let peers = |n: u32, from: u16| (1..=n).map(move |n| on(n, from + n as u16));
    assert_eq!(of_ours(peers(300, 20_000)), None);
    assert_eq!(of_ours(square(10, 10).chain(peers(300, 20_000))), method("block"), "they hide no block either");
}
