use super::*;
use crate::statistical::conversation::Conversation;
use crate::statistical::conversation::tests::{address, at, probe};
use crate::statistical::port_scan::tests::settings;

fn target() -> Address {
    address("10.0.0.9")
}

fn outsider(n: u32) -> Address {
    Address::v4(0xc633_6400 + n)
}

fn knock(from: u32, port: u16, seconds: u32) -> Conversation {
    Conversation { opener: outsider(from), responder: target(), port, ..at(seconds, probe()) }
}

/// A source that tried so many ports from one on, a second each.
fn source(n: u32, from: u16, ports: u16) -> Suspect {
    let mut suspect = Suspect::new(outsider(n), EventTime(1_000));
    for port in from..from + ports {
        suspect.note(&knock(n, port, u32::from(port - from)));
    }
    suspect
}

fn siege(sources: &[Suspect]) -> Siege {
    Siege::of(target(), sources.iter(), &settings(), EventTime(1_000))
}

#[test]
fn a_besieged_host_knows_who_was_at_work_since_a_moment() {
    let mut besieged = Besieged::new(target(), EventTime(900));
    assert_eq!((besieged.key(), Entry::last_seen(&besieged)), (target(), EventTime(900)));
    besieged.note(outsider(1), EventTime(1_060));
    besieged.note(outsider(2), EventTime(1_000));
    assert_eq!(Entry::last_seen(&besieged), EventTime(1_060));
    assert_eq!(besieged.sources(EventTime(1_000)), [outsider(1), outsider(2)]);
    assert_eq!(besieged.sources(EventTime(1_001)), [outsider(1)]);
    assert_eq!(besieged.sources(EventTime(0)), [outsider(1)], "who is forgotten stays so");
}

#[test]
fn a_besieged_host_has_room_for_so_many_and_keeps_those_it_knows() {
    let mut besieged = Besieged::new(target(), EventTime(900));
    let room = Besieged::SOURCES_MAX as u32;
    for n in 0..=room {
        besieged.note(outsider(n), EventTime(1_000));
    }
    besieged.note(outsider(0), EventTime(1_060));
    assert_eq!(besieged.sources.len(), room as usize);
    assert_eq!(besieged.sources(EventTime(1_001)), [outsider(0)]);
}

#[test]
fn a_siege_adds_up_those_who_tried_several_ports_and_leaves_out_who_is_told_alone() {
    let alone = u16::try_from(settings().outside_burst).unwrap();
    let own = u16::try_from(settings().joint_ports).unwrap();
    let sources = [source(1, 100, own), source(2, 103, own), source(3, 500, own - 1), source(4, 1_000, alone)];
    let two = siege(&sources);
    assert_eq!((two.sources, two.tried, two.ports.len()), (2, 10, 8));
    assert_eq!((two.first, two.last), (EventTime(1_000), EventTime(1_005)));
    let more = siege(&[source(4, 1_000, alone - 1)]);
    assert_eq!((more.sources, more.tried), (1, u32::from(alone) - 1));
}

#[test]
fn a_siege_looks_at_tcp_on_its_target_since_its_moment() {
    let mut suspect = source(1, 100, 5);
    suspect.note(&Conversation { responder: address("10.0.0.10"), ..knock(1, 200, 0) });
    suspect.note(&Conversation { protocol: protocol::UDP, ..knock(1, 201, 0) });
    let of = |since| {
        let siege = Siege::of(target(), [&suspect].into_iter(), &settings(), EventTime(since));
        siege.ports.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(of(1_001), [100, 101, 102, 103, 104]);
    assert!(of(1_002).is_empty(), "of the five, one ended before");
    assert_eq!(suspect.besieges(5, EventTime(1_001)), [target()]);
    assert!(suspect.besieges(5, EventTime(1_002)).is_empty());
    assert!(suspect.besieges(6, EventTime(0)).is_empty());
    assert_eq!(suspect.besieges(1, EventTime(0)), [target(), address("10.0.0.10")]);
    assert_eq!(source(1, 100, 5).besieges(5, EventTime(0)), [target()]);
}

#[test]
fn the_interface_is_that_of_the_latest_attempt_whatever_order_sources_stand_in() {
    let with = |n, ports, interface| {
        let mut suspect = source(n, 100, ports);
        suspect.interface = InterfaceId(interface);
        suspect
    };
    let (early, late) = (with(1, 5, 7), with(2, 9, 8));
    assert_eq!(siege(&[early.clone(), late.clone()]).interface(), InterfaceId(8));
    assert_eq!(siege(&[late, early]).interface(), InterfaceId(8));
}

/// Sources that divide a range of ports, so many each.
fn shared(sources: u32, ports: u16) -> Vec<Suspect> {
    (0..sources).map(|n| source(n, 1_000 + n as u16 * ports, ports)).collect()
}

#[test]
fn a_shared_scan_has_three_sources_and_a_hundred_and_fifty_ports_and_repeats_few() {
    let passes = |sources: &[Suspect]| siege(sources).judge(&settings()).passed;
    assert!(passes(&shared(3, 50)));
    let mut fewer = shared(2, 50);
    fewer.push(source(9, 5_000, 49));
    assert!(!passes(&fewer), "a port less");
    assert!(!passes(&shared(2, 74)), "two are chance");
    let settings_of_two = Settings { joint: 148, ..settings() };
    assert!(!siege(&shared(2, 74)).judge(&settings_of_two).passed, "even where the ports suffice");
    // 150 ports, and half as many attempts again at the same: one and a half a port.
    let mut at_it = shared(3, 50);
    at_it.extend([source(7, 1_000, 70), source(8, 1_000, 5)]);
    assert_eq!(siege(&at_it).judge(&settings()).evidence[2].value, 1.5);
    assert!(passes(&at_it));
    at_it.push(source(9, 1_000, 5));
    assert!(!passes(&at_it), "independent scanners ask for the same");
}

#[test]
fn a_shared_scan_is_told_of_its_victim() {
    let siege = siege(&shared(4, 50));
    let judgement = siege.judge(&settings());
    assert_eq!((judgement.method.as_str(), judgement.ratio), ("joint", 200.0 / 150.0));
    let numbers: Vec<(&str, f64, Option<f64>)> =
        judgement.evidence.iter().map(|e| (&*e.name, e.value, e.threshold)).collect();
    assert_eq!(
        numbers,
        [("distinct_ports", 200.0, Some(150.0)), ("sources", 4.0, Some(3.0)), ("sources_per_port", 1.0, Some(1.5))]
    );
    let finding = siege.finding(&judgement, EventTime(960), 60);
    assert_eq!((finding.actor, finding.subject), (Actor::Many, Subject::Victim(target())));
    assert_eq!((finding.targets[0].ports.len(), finding.targets[0].port_count), (16, 200));
    assert_eq!(finding.score, 1.0 - 0.5 / (200.0 / 150.0));
    assert_eq!(
        finding.sentence(),
        "4 sources together tried 200 ports of 10.0.0.9 in 50 s without success, hardly one of them twice"
    );
    let weak = Judgement { ratio: 0.25, ..judgement };
    assert_eq!(siege.finding(&weak, EventTime(960), 60).score, 0.5);
}
