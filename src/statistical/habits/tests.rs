use proptest::prelude::*;

use super::*;
use crate::flow::protocol::{TCP, UDP};

const HOUR: u32 = 3_600;
const START: EventTime = EventTime(1_700_006_400);

fn at(minutes: u32) -> EventTime {
    START.plus(60 * minutes)
}

fn peer(n: u32) -> Address {
    Address::v4(0xc633_6400 + n)
}

fn habits() -> Habits {
    Habits::new(Address::v4(0x0a00_0001))
}

#[test]
fn others_on_a_registered_port_count_from_an_hour_before_and_on_another_ever() {
    for (port, others) in [(443, 3), (9_777, 13)] {
        let mut habits = habits();
        for n in 0..10 {
            habits.note_contact(at(n), peer(n), port, TCP);
        }
        for n in 10..12 {
            habits.note_contact(at(300 + n), peer(n), port, TCP);
        }
        habits.note_contact(at(330), peer(12), port, TCP);
        habits.settle();
        let before = habits.before(at(330), port, TCP);
        habits.note_contact(at(340), peer(13), port, TCP);
        assert_eq!(habits.around(&before, port, TCP).map(|around| around.on_port), Some(others), "port {port}");
    }
}

#[test]
fn sessions_count_from_when_the_channel_began_those_of_its_first_minute_among_them() {
    let mut habits = habits();
    for n in 0..20 {
        habits.note_contact(at(n), peer(n), 443, TCP);
    }
    habits.note_contact(at(60), peer(50), 9_777, TCP);
    habits.note_contact(at(60), peer(51), 443, TCP);
    habits.settle();
    let before = habits.before(at(60), 9_777, TCP);
    for n in 61..64 {
        habits.note_session(at(n));
    }
    assert_eq!(habits.around(&before, 9_777, TCP).map(|around| around.sessions), Some(5));
}

#[test]
fn of_what_began_before_anything_is_known_all_sessions_count() {
    let mut habits = habits();
    for n in 0..200 {
        habits.note_contact(at(n), peer(n), 443, TCP);
    }
    habits.settle();
    let before = habits.before(at(3), 443, TCP);
    assert_eq!(habits.around(&before, 443, TCP).map(|around| around.sessions), Some(200));
}

#[test]
fn a_protocol_is_another_port() {
    let mut habits = habits();
    habits.note_contact(at(0), peer(1), 9_777, UDP);
    habits.note_contact(at(0), peer(2), 9_777, TCP);
    let before = habits.before(at(0), 9_777, TCP);
    assert_eq!(habits.around(&before, 9_777, TCP).map(|around| around.on_port), Some(0));
}

#[test]
fn responders_on_unregistered_ports_count_once_and_for_a_day() {
    let mut habits = habits();
    for n in 0..4 {
        habits.note_contact(at(0), peer(n), 20_001, TCP);
        habits.note_contact(at(0), peer(n), 20_002, TCP);
        habits.note_contact(at(0), peer(10 + n), 443, TCP);
    }
    let before = habits.before(at(0), 443, TCP);
    let unregistered = |habits: &Habits| habits.around(&before, 443, TCP).map(|around| around.unregistered);
    assert_eq!(unregistered(&habits), Some(4));
    habits.note_session(START.plus(24 * HOUR + 60));
    assert_eq!(unregistered(&habits), Some(0));
}

#[test]
fn whoever_tries_ports_is_not_told_by_them_and_has_none_afterwards() {
    let mut habits = habits();
    habits.note_contact(at(0), peer(1), 9_777, TCP);
    let before = habits.before(at(0), 9_777, TCP);
    for port in 0..300 {
        habits.note_contact(at(1), peer(2), 10_000 + port, TCP);
    }
    assert_eq!(habits.around(&before, 9_777, TCP), None);
    habits.note_contact(at(2), peer(3), 9_777, TCP);
    assert_eq!(habits.around(&before, 9_777, TCP).map(|around| around.on_port), Some(0));
}

proptest! {
    /// Conversations of one window come in no order.
    #[test]
    fn the_order_within_a_window_does_not_matter(
        contacts in prop::collection::vec((0u32..400, prop::sample::select(vec![80u16, 443, 9_777, 31_337]), 0u32..4), 0..500),
        shuffled in any::<u64>(),
    ) {
        let mut distinct = contacts.clone();
        distinct.sort_unstable();
        distinct.dedup_by_key(|c| (c.0, c.1));
        let note = |seed: u64| {
            let mut all = distinct.clone();
            all.sort_by_key(|c| (c.2, (u64::from(c.0) * 31 + u64::from(c.1)).wrapping_mul(seed | 1)));
            let mut habits = habits();
            for (responder, port, minute) in all {
                habits.note_contact(at(minute), peer(responder), port, TCP);
            }
            habits.settle();
            let before = habits.before(at(2), 443, TCP);
            (habits.around(&before, 443, TCP), before, habits.sessions)
        };
        prop_assert_eq!(note(1), note(shuffled));
    }

    #[test]
    fn joining_what_is_known_changes_nothing(contacts in prop::collection::vec((0u32..100, 0u16..50, 0u32..9), 0..100)) {
        let mut sorted = contacts;
        sorted.sort_by_key(|c| c.2);
        let mut habits = habits();
        for (responder, port, minute) in sorted {
            habits.note_contact(at(minute), peer(responder), port, TCP);
        }
        let mut joined = habits.clone();
        joined.join(habits.clone());
        prop_assert_eq!(joined, habits);
    }
}

#[test]
fn contacts_before_a_channel_are_those_of_earlier_windows_as_far_as_they_are_kept() {
    let contacts = |earlier: u32, same: u32, later: u32| {
        let mut habits = habits();
        let mut met = 0;
        for (minute, count) in [(0, earlier), (5, same), (6, later)] {
            (met..met + count).for_each(|n| habits.note_contact(at(minute), peer(n), 443, TCP));
            met += count;
        }
        habits.settle();
        let before = habits.before(at(5), 443, TCP);
        habits.around(&before, 443, TCP).map(|around| around.contacts_before)
    };
    assert_eq!(contacts(30, 4, 0), Some(30));
    assert_eq!(contacts(30, 4, 34), Some(26), "64 are kept");
    assert_eq!(contacts(0, 4, 0), Some(0));
}
