use super::*;
use crate::flow::Interface;
use crate::statistical::tests::{Exchange, address, engine, records, run};

#[test]
fn a_profile_says_what_a_host_opens_serves_and_sends_and_asking_changes_nothing() {
    let mut engine = engine();
    let calls = |from: &'static str, to: &'static str, port: u16, times: u32| {
        (0..times).map(move |n| Exchange::new(from, 40_000 + n as u16, to, port, 300 * n))
    };
    let mut all: Vec<Exchange> = calls("10.0.0.7", "203.0.113.9", 443, 20).collect();
    all.extend(calls("10.0.0.7", "203.0.113.10", 443, 3));
    all.extend(calls("10.0.0.8", "203.0.113.9", 443, 20));
    all.extend(calls("10.0.0.7", "10.0.0.9", 5432, 20));
    run(&mut engine, &records(&all), 100);
    let before = engine.snapshot();
    let caller = engine.profile(address("10.0.0.7"));
    let opens = caller.opens.expect("it has opened sessions");
    let used: Vec<_> = opens.services.iter().map(|used| (used.port, used.responders)).collect();
    assert_eq!((opens.sessions, opens.tries_ports, used), (23, false, vec![(443, 2)]));
    assert!(caller.explained.seen.is_some_and(|seen| seen.ours) && caller.serves.is_empty());
    let called = engine.profile(address("203.0.113.9"));
    let serves: Vec<_> = called.serves.iter().map(|s| (s.port, s.clients)).collect();
    assert_eq!((serves, called.clients, called.opens), (vec![(443, 2)], Some(2), None));
    let nobody = engine.profile(address("192.0.2.1"));
    assert_eq!((nobody.explained.seen, nobody.clients, nobody.serves), (None, None, Vec::new()));
    assert_eq!(engine.snapshot(), before);
}

#[test]
fn gaps_are_kept_by_interface_and_no_more_interfaces_than_there_is_room_for() {
    let mut engine = engine();
    engine.name_interfaces(&[1, 2].map(|id| Interface {
        id: InterfaceId(id),
        name: format!("eni-{id}"),
        account: "123456789012".to_owned(),
    }));
    let stretch = |interface, kind, start: u32, end: u32| Blindness {
        interface: InterfaceId(interface),
        start: EventTime(start),
        end: EventTime(end),
        kind,
    };
    engine.note_blindness(&[
        stretch(2, BlindnessKind::SkipData, 0, 59),
        stretch(1, BlindnessKind::NoData, 0, 59),
        stretch(2, BlindnessKind::SkipData, 100, 109),
    ]);
    let of = |gap: Gap| (gap.skipped_seconds, gap.no_data_seconds, gap.last.0);
    let gaps: Vec<_> = engine.coverage().gaps.into_iter().map(|(name, _, gap)| (name, of(gap))).collect();
    assert_eq!(gaps, [("eni-1".to_owned(), (0, 60, 59)), ("eni-2".to_owned(), (70, 0, 109))]);
    let mut gaps = Gaps::default();
    for interface in 0..INTERFACES_MAX as u32 + 10 {
        gaps.note(&stretch(interface, BlindnessKind::NoData, 0, 0), 1);
    }
    assert_eq!(gaps.iter().count(), INTERFACES_MAX);
}
