mod busy;

use super::*;
use crate::flow::InterfaceId;
use crate::settings;
use crate::statistical::conversation::tests::{address, at, call, direction, probe};
use crate::statistical::pane::Direction;

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.ddos
}

fn victim() -> Address {
    address("10.0.0.11")
}

fn outsider(n: u32) -> Address {
    Address::v4(0xc633_0000 + n)
}

/// A conversation that an outsider opens with a host of ours.
fn inward(from: u32, c: Conversation) -> Conversation {
    Conversation { opener: outsider(from), responder: victim(), ours: false, theirs: true, ..c }
}

/// A SYN without an answer.
fn syn(from: u32) -> Conversation {
    inward(from, probe())
}

/// So many packets of one conversation, unanswered, in the first second.
fn unanswered(from: u32, packets: u32) -> Conversation {
    Conversation { sent: direction(packets, u64::from(packets) * 44), ..syn(from) }
}

/// A page that is asked for and given.
fn page(from: u32) -> Conversation {
    inward(from, call())
}

/// A connection that is made and left.
fn empty(from: u32) -> Conversation {
    Conversation { sent: direction(3, 132), ..page(from) }
}

fn datagrams(from: u32, packets: u32, bytes: u64) -> Conversation {
    Conversation { protocol: protocol::UDP, sent: direction(packets, bytes), ..syn(from) }
}

fn lasting(seconds: u32, c: Conversation) -> Conversation {
    Conversation { sent: Direction { end: c.sent.start + seconds, ..c.sent }, ..c }
}

fn collected(conversations: &[Conversation]) -> Option<Victim> {
    let hot = conversations.iter().map(|c| c.responder).collect();
    collect(conversations, &hot, &settings()).pop_first().map(|(_, victim)| victim)
}

fn judged(conversations: impl IntoIterator<Item = Conversation>, ours: bool) -> Judgement {
    let conversations: Vec<Conversation> = conversations.into_iter().collect();
    judge(&collected(&conversations).expect("a victim"), ours, &settings(), 60)
}

/// The method that tells it, if one does.
fn told(conversations: impl IntoIterator<Item = Conversation>) -> Option<String> {
    let judgement = judged(conversations, true);
    judgement.passed.then_some(judgement.method)
}

fn method(name: &str) -> Option<String> {
    Some(name.to_owned())
}

fn number(judgement: &Judgement, name: &str) -> f64 {
    judgement.evidence.iter().find(|e| e.name == name).unwrap_or_else(|| panic!("no {name}")).value
}

#[test]
fn unanswered_packets_are_a_flood_from_a_thousand_a_second_and_five_thousand_on() {
    let flood = |packets: u32, seconds| [lasting(seconds, unanswered(1, packets))];
    assert_eq!(told(flood(5_000, 5)), method("syn_flood"));
    assert_eq!(told(flood(4_999, 4)), None, "too few");
    assert_eq!(told(flood(5_000, 6)), None, "too slow");
    assert_eq!(told(flood(5_000, 0)), method("syn_flood"), "within a second");
    let judgement = judged(flood(5_000, 4), true);
    assert_eq!((judgement.ratio, number(&judgement, "unanswered_packets_per_second")), (1.0, 1_250.0));
    assert_eq!((number(&judgement, "unanswered_packets"), number(&judgement, "unanswered_share")), (5_000.0, 1.0));
    assert_eq!((number(&judgement, "distinct_sources"), number(&judgement, "active_seconds")), (1.0, 4.0));
}

#[test]
fn a_flood_is_four_fifths_of_the_connections() {
    let beside = |pages: u32| (0..4).map(|n| unanswered(n, 2_000)).chain((0..pages).map(page));
    assert_eq!(told(beside(1)), method("syn_flood"));
    assert_eq!(told(beside(2)), None);
    let sources = |pages: u32| (0..1_000).map(syn).chain((0..pages).map(page));
    assert_eq!(told(sources(250)), method("many_sources"));
    assert_eq!(told(sources(251)), None);
    let connections = |pages: u32| (0..1_000).map(|_| empty(1)).chain((0..pages).map(page));
    assert_eq!(told(connections(250)), method("connection_flood"));
    assert_eq!(told(connections(251)), None);
}

#[test]
fn data_on_its_way_is_no_syn() {
    let with = |bytes: u64| [Conversation { sent: direction(6_000, 6_000 * bytes), ..syn(1) }];
    assert_eq!(told(with(64)), method("syn_flood"));
    assert_eq!(told(with(65)), None);
    let answered = Conversation { received: direction(1, 60), outcome: Outcome::Answered, ..unanswered(1, 6_000) };
    assert_eq!(told([answered]), None);
}

#[test]
fn many_sources_are_a_flood_from_a_thousand_on_whether_unanswered_or_empty() {
    assert_eq!(told((0..1_000).map(syn)), method("many_sources"));
    assert_eq!(told((0..999).map(syn)), None);
    assert_eq!(told((0..999).map(syn).chain([syn(5)])), None, "the same source twice");
    assert_eq!(told((0..500).map(syn).chain((500..1_000).map(empty))), method("many_sources"));
    assert_eq!(told((0..1_000).map(page)), None, "a crowd is served");
    let judgement = judged((0..1_200).map(syn), true);
    assert_eq!((number(&judgement, "distinct_sources"), number(&judgement, "hollow_share")), (1_200.0, 1.0));
    assert_eq!(judgement.evidence.iter().filter(|e| e.name == "distinct_sources").count(), 1);
}

#[test]
fn connections_without_content_are_a_flood_from_a_thousand_on() {
    assert_eq!(told((0..1_000).map(|_| empty(1))), method("connection_flood"));
    assert_eq!(told((0..999).map(|_| empty(1))), None);
    let with = |bytes| (0..1_000).map(move |_| Conversation { sent: direction(3, bytes), ..page(1) });
    assert_eq!(told(with(3 * 52)), method("connection_flood"), "timestamps are no content");
    assert_eq!(told(with(3 * 52 + 1)), None);
    let judgement = judged((0..1_500).map(|_| empty(1)), true);
    assert_eq!((judgement.ratio, number(&judgement, "empty_connections")), (1.5, 1_500.0));
    assert_eq!(number(&judgement, "hollow_share"), 1.0);
}

#[test]
fn unanswered_datagrams_are_a_flood_from_ten_thousand_a_second_on() {
    let burst = |packets| datagrams(1, packets, 60_000_000);
    assert_eq!(told([burst(100_000)]), method("udp_flood"), "at once, which counts as ten seconds");
    assert_eq!(told([burst(99_999)]), None);
    let steady = |packets| lasting(50, burst(packets));
    assert_eq!(told([steady(500_000)]), method("udp_flood"));
    assert_eq!(told([steady(499_999)]), None);
    let answered = Conversation { received: direction(1, 100), ..burst(600_000) };
    assert_eq!(told([answered]), None);
    let between_ours = Conversation { ours: true, ..burst(600_000) };
    assert_eq!(told([between_ours]), None, "a backup, a stream");
    let outward = |packets| judged([Conversation { ours: true, theirs: false, ..steady(packets) }], false).passed;
    assert!(outward(150_000) && !outward(149_999), "three thousand a second of ours");
    let two = [steady(700_000), at(25, lasting(50, datagrams(2, 50_000, 60_000_000)))];
    assert_eq!(number(&judged(two, true), "unanswered_udp_packets_per_second"), 10_000.0, "over the span of both");
}

#[test]
fn answers_that_nobody_asked_for_are_a_reflection_from_ten_megabytes_of_ten_reflectors_on() {
    let from = |reflectors: u32, bytes: u64, port| {
        (0..reflectors).map(move |n| Conversation { opener_port: port, ..datagrams(n, 1_000, bytes) })
    };
    assert_eq!(told(from(10, 1_000_000, 53)), method("reflection"));
    assert_eq!(told(from(10, 999_999, 53)), None);
    assert_eq!(told(from(9, 2_000_000, 53)), None, "nine");
    assert_eq!(told(from(10, 1_000_000, 54)), None, "a port that amplifies nothing");
    for port in [11_211, 1_434, 5_683, 37_810] {
        assert_eq!(told(from(10, 1_000_000, port)), method("reflection"), "{port}");
    }
    // Larger than 200 bytes a packet, or it would not pay.
    assert_eq!(told((0..50).map(|n| Conversation { opener_port: 53, ..datagrams(n, 1_000, 200_000) })), None);
    assert_eq!(
        told((0..50).map(|n| Conversation { opener_port: 53, ..datagrams(n, 1_000, 200_001) })),
        method("reflection")
    );
    let judgement = judged(from(20, 1_000_000, 53), true);
    assert_eq!((number(&judgement, "reflected_bytes"), number(&judgement, "reflectors")), (2e7, 20.0));
    assert_eq!(judgement.ratio, 2.0);
}

#[test]
fn a_thousand_reflectors_at_once_are_a_reflection_whatever_they_send() {
    let slice = |reflectors| {
        (0..reflectors).map(|n| Conversation { opener_port: 37_810, ..datagrams(n, 1, 288) }).collect::<Vec<_>>()
    };
    assert_eq!(told(slice(1_000)), method("reflection"));
    assert_eq!(told(slice(999)), None);
    let judgement = judged(slice(2_000), true);
    let reflectors = judgement.evidence.iter().find(|e| e.name == "reflectors").expect("the number that tells");
    assert_eq!((reflectors.value, reflectors.threshold, judgement.ratio), (2_000.0, Some(1_000.0), 2.0));
}

#[test]
fn pings_are_a_flood_from_five_hundred_a_second_on() {
    for protocol in [protocol::ICMP, protocol::ICMPV6] {
        let pings = |packets| [Conversation { protocol, sent: direction(packets, 84 * u64::from(packets)), ..syn(1) }];
        assert_eq!(told(pings(30_000)), method("icmp_flood"));
        assert_eq!(told(pings(29_999)), None);
        let judgement = judged(pings(60_000), true);
        assert_eq!((judgement.ratio, number(&judgement, "icmp_packets_per_second")), (2.0, 1_000.0));
    }
    let other = Conversation { protocol: 47, sent: direction(60_000, 5_000_000), ..syn(1) };
    assert_eq!(told([other]), None, "a tunnel");
}

#[test]
fn hosts_of_ours_that_keep_knocking_at_one_outside_flood_it() {
    let outward = |n: u32, ports: u16| {
        (0..n).map(move |k| Conversation {
            responder: address("203.0.113.80"),
            port: 80 + (k as u16) % ports,
            ours: true,
            theirs: false,
            ..syn(1)
        })
    };
    let told = |conversations: Vec<Conversation>, ours| {
        let judgement = judged(conversations, ours);
        judgement.passed.then_some(judgement.method)
    };
    assert_eq!(told(outward(2_000, 8).collect(), false), method("outbound_flood"));
    assert_eq!(told(outward(1_999, 8).collect(), false), None);
    assert_eq!(told(outward(2_000, 9).collect(), false), None, "a scan has many ports");
    assert_eq!(told(outward(2_000, 8).collect(), true), None, "of our own hosts we see all of it");
    let served =
        |n| (0..n).map(|n| Conversation { theirs: false, ours: true, responder: address("203.0.113.80"), ..page(n) });
    assert_eq!(told(outward(2_000, 1).chain(served(500)).collect(), false), method("outbound_flood"));
    assert_eq!(told(outward(2_000, 1).chain(served(501)).collect(), false), None);
    let judgement = judged(outward(3_000, 1), false);
    assert_eq!((judgement.ratio, number(&judgement, "unanswered_connections")), (1.5, 3_000.0));
    assert_eq!(number(&judgement, "unanswered_share"), 1.0);
}

#[test]
fn only_hot_hosts_are_collected_and_no_groups() {
    let all = [syn(1), Conversation { responder: address("10.0.0.12"), ..syn(1) }];
    let hot = [victim()].into_iter().collect();
    assert_eq!(collect(&all, &hot, &settings()).into_keys().collect::<Vec<_>>(), [victim()]);
    let group = address("224.0.0.1");
    assert!(collected(&[Conversation { responder: group, ..syn(1) }]).is_none());
}

#[test]
fn a_host_is_hot_long_before_any_rule_can_hold() {
    let hot = |flows, packets| is_hot(&settings(), flows, packets);
    assert!(hot(10, 0) && !hot(9, 0), "as many flows as a reflection needs");
    assert!(hot(0, 5_000) && !hot(0, 4_999));
    let hot_of = |change: fn(&mut Settings), flows, packets| {
        let mut settings = settings();
        change(&mut settings);
        is_hot(&settings, flows, packets)
    };
    assert!(!hot_of(|s| s.reflectors = 3, 7, 0) && hot_of(|s| s.reflectors = 3, 8, 0));
    assert!(!hot_of(|s| s.sources = 5, 4, 0) && hot_of(|s| s.sources = 5, 5, 0));
    assert!(!hot_of(|s| s.empty_connections = 5, 4, 0) && hot_of(|s| s.empty_connections = 5, 5, 0));
    assert!(!hot_of(|s| s.icmp_packets_per_second = 50.0, 0, 499));
    assert!(hot_of(|s| s.icmp_packets_per_second = 50.0, 0, 500));
}

#[test]
fn what_is_served_is_not_part_of_what_is_told() {
    let early = lasting(2, at(10, syn(1)));
    let late = Conversation { interface: InterfaceId(7), port: 80, ..at(30, syn(2)) };
    let served = at(50, page(3));
    for order in [[early, late, served], [served, late, early]] {
        let victim = collected(&order).unwrap();
        assert_eq!((victim.first, victim.last, victim.interface()), (1_010, 1_031, InterfaceId(7)));
        assert_eq!(victim.ports.keys().copied().collect::<Vec<_>>(), [80, 443]);
        assert_eq!((victim.sources.len(), victim.tcp), (2, 3));
    }
}

#[test]
fn of_many_ports_the_lowest_are_kept_and_of_many_sources_so_many() {
    let ports: Vec<Conversation> = (1..=100).map(|port| Conversation { port, ..syn(1) }).collect();
    let victim = collected(&ports).unwrap();
    assert_eq!((victim.ports.len(), victim.ports.last_key_value().map(|(port, _)| *port)), (64, Some(64)));
    let room = Victim::SOURCES_MAX as u32;
    let sources: Vec<Conversation> = (0..=room).chain([0]).map(syn).collect();
    let victim = collected(&sources).unwrap();
    assert_eq!((victim.sources.len(), victim.sources[&outsider(0)]), (room as usize, 2));
    let reflected = |n| Conversation { opener_port: 53, ..datagrams(n, 1, 1_000) };
    let reflectors: Vec<Conversation> = (0..=room).map(reflected).collect();
    assert_eq!(collected(&reflectors).unwrap().reflectors.len(), room as usize);
}

fn finding_of(conversations: &[Conversation], ours: bool) -> Finding {
    let victim = collected(conversations).unwrap();
    let judgement = judge(&victim, ours, &settings(), 60);
    finding(self::victim(), &victim, &judgement, ours, EventTime(960), 60)
}

#[test]
fn a_source_is_named_when_four_fifths_of_the_packets_are_its_own() {
    let of = |first, second| finding_of(&[unanswered(1, first), unanswered(2, second)], true);
    assert_eq!(of(8_000, 2_000).actor, Actor::One(outsider(1)));
    assert_eq!(of(7_999, 2_001).actor, Actor::Many);
    assert_eq!(of(2_000, 8_000).actor, Actor::One(outsider(2)));
    assert_eq!(
        of(8_000, 2_000).sentence(),
        "syn flood from 198.51.0.1 on 10.0.0.11: 10000 unanswered packets per second within 1 s"
    );
    assert_eq!(
        of(5_000, 5_000).sentence(),
        "syn flood from 2 sources on 10.0.0.11: 10000 unanswered packets per second within 1 s"
    );
}

#[test]
fn a_flood_is_told_of_its_victim_with_its_ports_and_span() {
    let flood: Vec<Conversation> =
        (0..5).map(|n| lasting(5 + n, Conversation { port: 100 - n as u16, ..unanswered(n, 4_000) })).collect();
    let finding = finding_of(&flood, true);
    assert_eq!((finding.subject, finding.threat), (Subject::Victim(victim()), Threat::Ddos));
    assert_eq!((finding.first_seen, finding.last_seen), (EventTime(1_000), EventTime(1_009)));
    let target = Target { address: victim(), ports: vec![96, 97, 98, 99, 100], port_count: 5 };
    assert_eq!(finding.targets, [target]);
    assert_eq!(finding.score, 1.0 - 0.5 / (20_000.0 / 9.0 / 1_000.0));
    assert!(finding.sentence().ends_with("2222 unanswered packets per second within 9 s"), "{}", finding.summary);
    let ports: Vec<Conversation> = (1..=40).map(|port| Conversation { port, ..unanswered(1, 500) }).collect();
    let finding = finding_of(&ports, true);
    assert_eq!((finding.targets[0].ports.len(), finding.targets[0].port_count), (16, 40));
}

#[test]
fn a_flood_on_us_is_severe_and_one_from_us_when_it_is_tenfold() {
    let severity = |packets, ours| finding_of(&[lasting(1, unanswered(1, packets))], ours).severity;
    assert_eq!(severity(5_000, true), Severity::High);
    assert_eq!(severity(49_999, false), Severity::Medium);
    assert_eq!(severity(50_000, false), Severity::High);
    let weak = finding_of(&[unanswered(1, 50)], true);
    assert_eq!(weak.score, 0.5, "a score below one half says nothing");
}

#[test]
fn a_scan_is_no_flood_however_fast_it_is() {
    let probes = |ports: u16, repeats: u32| {
        (0..6_000u32).map(move |n| {
            let port = 1 + (n / repeats) as u16 % ports;
            Conversation { port, opener_port: 40_000 + (n % 9_000) as u16, ..unanswered(1, 1) }
        })
    };
    assert_eq!(told(probes(6_000, 1)), None, "each port once");
    assert_eq!(told(probes(6_000, 3)), None, "each port three times, as where nothing answers");
    assert_eq!(told(probes(8, 1)), method("syn_flood"), "the same few ports again and again");
    let spoofed = (0..6_000u32).map(|n| Conversation { port: 1 + n as u16, ..unanswered(n % 900, 1) });
    assert_eq!(told(spoofed), method("syn_flood"), "ports made up, and so are the sources");
    let together = (0..6_000u32).map(|n| Conversation { port: 1 + n as u16, ..unanswered(n % 12, 1) });
    assert_eq!(told(together), None, "a dozen that share the work");
}

/// A pool's idle connection: a probe each way, or as many as there are.
fn kept_alive(from: u32, packets: u32, size: u64) -> Conversation {
    let probes = direction(packets, u64::from(packets) * size);
    Conversation { sent: probes, received: probes, ..page(from) }
}

#[test]
fn idle_connections_are_no_flood_with_flags_and_without() {
    let idle = |size| (0..3_000).map(move |n| kept_alive(n % 60, 1, size));
    assert_eq!(told(idle(52)), None);
    assert_eq!(told(idle(40)), None);
    let flagged = |flags| {
        (0..3_000).map(move |n| {
            let mut c = empty(n % 60);
            (c.sent.marks, c.sent.flags) = (Marks::FLAGS_KNOWN.0, flags);
            c
        })
    };
    assert_eq!(told(flagged(0)), None, "neither SYN nor FIN nor RST was seen: it goes on");
    assert_eq!(told(flagged(tcp_flags::SYN)), method("connection_flood"));
    let opened = (0..3_000).map(|n| empty(n % 60));
    assert_eq!(told(opened), method("connection_flood"), "a handshake has one packet more from its opener");
}

#[test]
fn datagrams_are_answered_when_the_other_side_speaks_by_another_address() {
    let tunnel = datagrams(1, 720_000, 700_000_000);
    assert_eq!(told([lasting(59, tunnel)]), method("udp_flood"));
    let back = |packets| Conversation {
        opener: victim(),
        opener_port: tunnel.port,
        responder: outsider(2),
        port: tunnel.opener_port,
        ours: true,
        theirs: false,
        ..datagrams(1, packets, u64::from(packets) * 400)
    };
    let both = |packets| [lasting(59, tunnel), lasting(59, back(packets))];
    let hot = [victim()].into_iter().collect();
    let judged = |packets| {
        let victims = collect(&both(packets), &hot, &settings());
        judge(&victims[&victim()], true, &settings(), 60).passed
    };
    assert!(!judged(300_000), "a twentieth of the packets comes back from the same socket");
    assert!(judged(3_000), "a few do not answer a flood");
}

#[test]
fn a_tunnels_packets_flood_as_datagrams_do() {
    let tunnelled = |number| (0..60).map(move |n| Conversation { protocol: number, ..datagrams(n, 20_000, 2_000_000) });
    assert_eq!(told(tunnelled(47)), method("udp_flood"));
    assert_eq!(told(tunnelled(protocol::UDP)), method("udp_flood"));
}

#[test]
fn what_resets_alone_answer_is_a_flood_with_flags_and_without() {
    let knocking = |n: u32| kept_alive(n, 30, 40);
    assert_eq!(told((0..3_000).map(knocking)), method("connection_flood"), "no connection is kept alive at that pace");
    let flagged = |n: u32| {
        let mut c = knocking(n);
        (c.sent.marks, c.sent.flags) = (Marks::FLAGS_KNOWN.0, tcp_flags::ACK);
        (c.received.marks, c.received.flags) = (Marks::FLAGS_KNOWN.0, tcp_flags::RST);
        c
    };
    assert_eq!(told((0..3_000).map(flagged)), method("connection_flood"));
    let slowly = |n: u32| lasting(600, knocking(n));
    assert_eq!(told((0..3_000).map(slowly)), None);
}
