use super::*;

fn seed() -> foldhash::fast::FixedState {
    foldhash::fast::FixedState::with_seed(7)
}

fn address(text: &str) -> Address {
    text.parse().expect("an address of a test")
}

fn record() -> FlowRecord {
    FlowRecord {
        source: address("10.0.0.5"),
        destination: address("203.0.113.9"),
        bytes: 840,
        packets: 6,
        start: EventTime(1_000),
        end: EventTime(1_030),
        interface: InterfaceId(1),
        source_port: 40_000,
        destination_port: 443,
        protocol: 6,
        tcp_flags: 2,
        marks: Marks::FLAGS_KNOWN,
    }
}

fn answer() -> FlowRecord {
    FlowRecord {
        source: record().destination,
        destination: record().source,
        bytes: 9_000,
        packets: 7,
        source_port: 443,
        destination_port: 40_000,
        tcp_flags: 18,
        ..record()
    }
}

fn fold(pane: &mut Pane, record: &FlowRecord) {
    let prepared = pane.prepare(&seed(), record);
    pane.approach(&prepared);
    pane.fold(&prepared);
}

fn pane(records: &[FlowRecord]) -> Pane {
    let mut pane = Pane::default();
    pane.clear();
    records.iter().for_each(|record| fold(&mut pane, record));
    pane
}

#[test]
fn both_directions_of_a_five_tuple_are_one_view_whatever_comes_first() {
    for records in [[record(), answer()], [answer(), record()]] {
        let pane = pane(&records);
        assert_eq!(pane.views.len(), 1);
        let view = pane.views[0];
        assert_eq!((view.low, view.high), (record().source, record().destination));
        assert_eq!((view.low_port, view.high_port, view.protocol), (40_000, 443, 6));
        assert_eq!((view.interface, view.twin), (InterfaceId(1), None));
        let known = Marks::FLAGS_KNOWN.0;
        let up = Direction { bytes: 840, packets: 6, start: 1_000, end: 1_030, flags: 2, marks: known };
        assert_eq!(view.up, up);
        assert_eq!(view.down, Direction { bytes: 9_000, packets: 7, flags: 18, ..up });
    }
}

#[test]
fn records_of_a_direction_add_up_and_what_was_not_seen_is_told_apart() {
    let later = FlowRecord {
        bytes: u64::MAX,
        packets: u64::from(u32::MAX),
        start: EventTime(990),
        end: EventTime(1_020),
        tcp_flags: 3,
        marks: Marks::REJECTED,
        ..record()
    };
    let view = pane(&[record(), later]).views[0];
    let marks = Marks::FLAGS_KNOWN.with(Marks::REJECTED).0;
    let both = Direction { bytes: u64::MAX, packets: u32::MAX, start: 990, end: 1_030, flags: 3, marks };
    assert_eq!(view.up, both);
    assert!(view.up.seen() && !view.down.seen());
    assert!(view.up.has(Marks::REJECTED) && !view.up.has(Marks::INGRESS) && !view.down.has(Marks::REJECTED));
    assert_eq!(pane(&[record(), FlowRecord { packets: 1 << 40, ..record() }]).views[0].up.packets, u32::MAX);
}

#[test]
fn of_one_address_with_itself_the_lower_port_is_the_low_end() {
    let host = record().source;
    let of = |source_port, destination_port| {
        let to_itself = FlowRecord { destination: host, source_port, destination_port, ..record() };
        let view = pane(&[to_itself]).views[0];
        (view.low_port, view.high_port, view.up.seen())
    };
    assert_eq!(of(80, 443), (80, 443, true));
    assert_eq!(of(443, 80), (80, 443, false));
    assert_eq!(of(80, 80), (80, 80, true));
}

#[test]
fn whatever_differs_in_the_five_tuple_is_another_view() {
    let others = [
        FlowRecord { source: address("10.0.0.6"), ..record() },
        FlowRecord { destination: address("203.0.113.10"), ..record() },
        FlowRecord { source_port: 40_001, ..record() },
        FlowRecord { destination_port: 444, ..record() },
        FlowRecord { protocol: 17, ..record() },
    ];
    let again = others.map(|record| FlowRecord { end: record.end.plus(1), ..record });
    let pane = pane(&[&[record()], &others[..], &again[..]].concat());
    assert_eq!(pane.views.len(), 6);
    assert!(pane.views.iter().all(|view| view.twin.is_none()));
    assert!(pane.views[1..].iter().all(|view| view.up.packets == 12), "each of them was found again");
}

#[test]
fn what_other_interfaces_saw_names_the_first_view_as_its_twin() {
    let seen_by = |interface, record: FlowRecord| FlowRecord { interface: InterfaceId(interface), ..record };
    let other = FlowRecord { source_port: 50_000, ..record() };
    let all = [other, record(), seen_by(2, answer()), seen_by(3, record()), seen_by(2, record()), seen_by(3, answer())];
    let pane = pane(&all);
    let twins: Vec<(u32, Option<u32>)> =
        pane.views.iter().map(|view| (view.interface.0, view.twin.map(NonZeroU32::get))).collect();
    assert_eq!(twins, [(1, None), (1, None), (2, Some(2)), (3, Some(2))]);
    assert!(pane.views[2].up.seen() && pane.views[2].down.seen());
}

#[test]
fn an_intermediary_is_known_by_a_mark_of_either_direction() {
    let marked = |record: FlowRecord| FlowRecord { marks: Marks::INTERMEDIARY, ..record };
    assert!(!pane(&[record(), answer()]).views[0].is_translated());
    assert!(pane(&[marked(record()), answer()]).views[0].is_translated());
    assert!(pane(&[record(), marked(answer())]).views[0].is_translated());
    assert!(pane(&[marked(record()), marked(answer())]).views[0].is_translated());
}

/// So many conversations of one server, each with a client of its own.
fn crowd(clients: u32) -> Vec<FlowRecord> {
    (0..clients).map(|n| FlowRecord { source: Address::v4(0x0a01_0000 + n), ..record() }).collect()
}

#[test]
fn ten_thousand_views_are_found_again_and_after_a_snapshot_and_after_a_window() {
    let records = crowd(10_000);
    let check = |pane: &mut Pane, later: u32| {
        records.iter().for_each(|record| fold(pane, &FlowRecord { end: record.end.plus(later), ..*record }));
        assert_eq!(pane.views.len(), 10_000);
    };
    let mut pane = pane(&records);
    check(&mut pane, 1);
    assert!(pane.views.iter().all(|view| view.up.packets == 12));
    let bytes = postcard::to_stdvec(&pane).unwrap();
    let mut restored: Pane = postcard::from_bytes(&bytes).unwrap();
    restored.reindex(&seed());
    check(&mut restored, 1);
    assert!(restored.views.iter().all(|view| view.up.packets == 12), "what was there is known after a snapshot");
    check(&mut restored, 2);
    assert!(restored.views.iter().all(|view| view.up.packets == 18));
    pane.clear();
    assert!(pane.views.is_empty());
    check(&mut pane, 0);
    assert!(pane.views.iter().all(|view| view.up.packets == 6), "nothing of the window before is left");
    // What was large is made small for the small windows that follow.
    pane.clear();
    assert_eq!(pane.index.slots.len(), 65_536);
    fold(&mut pane, &record());
    pane.clear();
    assert_eq!((pane.index.slots.len(), pane.index.used), (Index::LEAST, 0));
    assert!(pane.views.capacity() < 1_000, "{}", pane.views.capacity());
}

#[test]
fn the_index_is_at_most_half_full_and_keeps_the_order_of_one_hash() {
    let mut index = Index::default();
    let hash = 7 << 32;
    assert_eq!((index.find(hash, |_| true), index.candidate(hash)), (None, None), "before anything is in it");
    let half = Index::LEAST as u64 / 2;
    for place in 0..=half {
        // Every other one has the same hash, so that they stand behind each other.
        index.insert(if place % 2 == 0 { hash } else { place << 32 }, place as usize);
        assert_eq!(index.slots.len(), if place < half { Index::LEAST } else { 2 * Index::LEAST }, "{place}");
    }
    assert_eq!(index.used as u64, half + 1);
    let mut found = Vec::new();
    let all = index.find(hash, |place| {
        found.push(place);
        false
    });
    assert_eq!(all, None);
    let same: Vec<usize> = (0..=Index::LEAST / 2).filter(|place| place % 2 == 0 || *place == 7).collect();
    assert_eq!(found, same);
    assert_eq!((index.find(hash, |_| true), index.candidate(hash)), (Some(0), Some(0)), "the first that was put in");
    assert_eq!(index.candidate((1 << 40) | hash), None, "another hash");
    assert_eq!(index.candidate(1_000 << 32), None, "an empty place");
    assert_eq!(index.find(9 << 32, |place| place == 9), Some(9));
}

#[test]
fn when_room_is_short_those_with_the_most_conversations_get_no_more_of_them() {
    let (server, other) = (record().destination, address("203.0.113.77"));
    let mut pane = pane(&crowd(10));
    let to = |destination, n: u32| FlowRecord { source: Address::v4(0x0a02_0000 + n), destination, ..record() };
    pane.close_to_crowds(10);
    assert!(pane.crowded.is_empty(), "it has not grown by more than that");
    fold(&mut pane, &to(other, 0));
    pane.close_to_crowds(10);
    assert_eq!(pane.crowded, [server].into());
    fold(&mut pane, &to(server, 1));
    assert_eq!((pane.views.len(), pane.left_out), (11, 1), "a new conversation of a crowded address");
    let reply = FlowRecord { source: server, destination: Address::v4(0x0a03_0000), ..record() };
    fold(&mut pane, &reply);
    assert_eq!((pane.views.len(), pane.left_out), (11, 2), "on either end");
    fold(&mut pane, &FlowRecord { end: record().end.plus(1), ..crowd(1)[0] });
    assert_eq!((pane.views[0].up.packets, pane.left_out), (12, 2), "those that are there go on");
    fold(&mut pane, &to(other, 2));
    assert_eq!(pane.views.len(), 12, "others are let in");
    // It is looked at anew when the window has grown by more than as many again.
    for n in 3..12 {
        fold(&mut pane, &to(other, n));
    }
    assert_eq!(pane.views.len(), 21);
    pane.close_to_crowds(10);
    assert_eq!(pane.crowded, [server].into());
    fold(&mut pane, &to(other, 12));
    pane.close_to_crowds(10);
    assert_eq!(pane.crowded, [server, other].into());
    pane.clear();
    fold(&mut pane, &to(server, 1));
    assert_eq!((pane.views.len(), pane.left_out), (1, 0), "another window, another crowd");
}

#[test]
fn a_record_that_comes_twice_counts_once_in_whatever_order() {
    let second = FlowRecord { start: EventTime(1_031), end: EventTime(1_040), ..record() };
    let third = FlowRecord { packets: 7, ..second };
    let orders = [
        vec![record(), record(), second, second, third],
        vec![record(), second, third, record(), second],
        vec![third, second, record(), second, third],
    ];
    for records in orders {
        let pane = pane(&records);
        assert_eq!((pane.views[0].up.packets, pane.repeated), (19, 2), "{records:?}");
    }
    let refused = FlowRecord { marks: Marks::REJECTED, ..record() };
    assert_eq!(pane(&[record(), refused]).repeated, 0, "accepted and refused are two records");
}

#[test]
fn what_the_second_format_of_a_record_knows_is_kept() {
    let bare = FlowRecord { tcp_flags: 0, marks: Marks::default(), ..record() };
    let pane = pane(&[bare, record()]);
    assert_eq!((pane.views[0].up.packets, pane.views[0].up.flags), (6, 2));
    assert!(pane.views[0].up.has(Marks::FLAGS_KNOWN));
}
