mod judged;

use super::*;
use crate::flow::{Address, InterfaceId};
use crate::settings;

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.c2_beacon
}

fn starts(seconds: &[u32]) -> Vec<EventTime> {
    seconds.iter().map(|&s| EventTime(1_000_000 + s)).collect()
}

fn after(intervals: &[u32]) -> Vec<EventTime> {
    let mut at = 0;
    let mut all = vec![0];
    all.extend(intervals.iter().map(|interval| {
        at += interval;
        at
    }));
    starts(&all)
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() < 1e-6
}

#[test]
fn a_clock_is_measured_as_what_it_is() {
    let t = timing(&after(&[60; 10])).expect("ten intervals");
    assert_eq!((t.bursts, t.period, t.jitter, t.regular, t.span), (11, 60.0, 0.0, 1.0, 600));
    // Worked out apart: ten times ln((0.9 timer + 0.1 random) / random), with a spread of 1 % of the period.
    assert!(close(t.nats, 48.074_796_656_6), "{}", t.nats);
    let t = timing(&after(&[50, 60, 70, 60])).expect("four intervals");
    assert_eq!((t.period, t.regular, t.span), (60.0, 1.0, 240));
    assert!(close(t.jitter, 1.4826 * 5.0 / 60.0), "{}", t.jitter);
    assert!(close(t.nats, 6.604_650_819_3), "{}", t.nats);
}

#[test]
fn fewer_than_three_intervals_say_nothing_and_calls_within_five_seconds_are_one() {
    assert_eq!(timing(&after(&[60, 60])), None);
    assert_eq!(timing(&after(&[60, 60, 60])).map(|t| t.bursts), Some(4));
    assert_eq!(timing(&after(&[60, 5, 60, 60])).map(|t| t.bursts), Some(4));
    assert_eq!(timing(&after(&[60, 6, 60, 60])).map(|t| t.bursts), Some(5));
}

#[test]
fn a_pause_of_more_than_twenty_periods_is_sleep_and_counts_neither_way() {
    let asleep = timing(&after(&[60, 60, 60, 1_201, 60, 60])).expect("enough intervals");
    assert_eq!((asleep.regular, asleep.bursts), (1.0, 7));
    let stray = timing(&after(&[60, 60, 60, 1_200, 60, 60])).expect("enough intervals");
    assert!(close(stray.regular, 5.0 / 6.0), "{stray:?}");
}

#[test]
fn an_interval_is_regular_within_half_a_period() {
    let within = timing(&after(&[60, 60, 60, 30, 90, 60, 60])).expect("enough intervals");
    assert_eq!(within.regular, 1.0);
    let beyond = timing(&after(&[60, 60, 60, 29, 91, 60, 60])).expect("enough intervals");
    assert!(close(beyond.regular, 5.0 / 7.0), "{}", beyond.regular);
}

#[test]
fn the_median_is_the_middle_or_the_mean_of_the_two_in_the_middle() {
    assert_eq!(median(&mut []), 0.0);
    assert_eq!(median(&mut [3.0, 1.0, 2.0]), 2.0);
    assert_eq!(median(&mut [4.0, 1.0, 2.0, 9.0]), 3.0);
}

fn session(n: u32, sent: u64, received: u64) -> Session {
    Session {
        start: EventTime(1_000_000 + n * 60),
        end: EventTime(1_000_001 + n * 60),
        sent_bytes: sent + 240,
        received_bytes: received + 200,
        sent_payload: sent,
        received_payload: received,
        sent_packets: 6,
        received_packets: 5,
        piece: 1,
        windows: 1,
        sent_windows: 1,
        received_windows: 1,
        opener_port: 40_000 + n as u16,
        failed: false,
    }
}

#[test]
fn sameness_is_the_share_of_the_commonest_exchange_and_the_scatter_of_four_in_five() {
    let sizes = [(100, 500), (100, 500), (100, 500), (110, 500), (100, 600)];
    let sessions: Vec<Session> = sizes.iter().zip(0..).map(|(&(s, r), n)| session(n, s, r)).collect();
    let alike = sameness(&sessions.iter().collect::<Vec<_>>());
    assert!(close(alike.same, 0.6) && close(alike.payload, 600.0), "{alike:?}");
    // One in five may differ: the scatter is the next one's, in the worse direction.
    assert!(close(alike.dispersion, 0.2), "{alike:?}");
    let calm: Vec<Session> = (0..10).map(|n| session(n, if n < 8 { 100 } else { 900 }, 500)).collect();
    assert!(close(sameness(&calm.iter().collect::<Vec<_>>()).dispersion, 8.0));
    let calm: Vec<Session> = (0..10).map(|n| session(n, if n < 9 { 100 } else { 900 }, 500)).collect();
    assert_eq!(sameness(&calm.iter().collect::<Vec<_>>()).dispersion, 0.0);
}

fn channel(sessions: Vec<Session>) -> Channel {
    Channel {
        fingerprint: 1,
        opener: Address::v4(0x0a00_0005),
        responder: Address::v4(0xcb00_7105),
        port: 443,
        protocol: protocol::TCP,
        sessions,
        forgotten: 0,
        messages: Vec::new(),
        aws_service: false,
        judged_sessions: 0,
        told: EventTime(0),
        mined: false,
        judged_windows: 0,
        first_contact: EventTime(0),
        before: None,
        interface: InterfaceId(1),
    }
}

/// A network of forty hosts, one of which knows the place.
const AROUND: Surroundings =
    Surroundings { clients: 1.0, hosts: 40.0, watched_before: 0, channels: 10, internal: false };

fn passes(channel: &Channel, around: &Surroundings) -> bool {
    judge(channel, around, &settings()).is_some_and(|judgement| judgement.passed)
}

#[test]
fn a_beacon_is_told_from_the_sixth_same_call_on_and_only_at_a_rare_place() {
    let same = |n| channel((0..n).map(|n| session(n, 300, 200)).collect());
    assert!(passes(&same(6), &AROUND));
    assert!(!passes(&same(5), &AROUND), "five calls");
    assert!(passes(&same(6), &Surroundings { clients: 20.0, ..AROUND }));
    assert!(!passes(&same(6), &Surroundings { clients: 20.1, ..AROUND }), "more than half of our hosts");
    assert!(passes(&same(6), &Surroundings { clients: 3.0, hosts: 4.0, ..AROUND }), "too few hosts to tell");
    assert!(!passes(&same(6), &Surroundings { internal: true, ..AROUND }), "one of ours");
    assert!(passes(&Channel { port: 3128, ..same(6) }, &Surroundings { internal: true, ..AROUND }), "by our proxy");
    assert!(!passes(&Channel { aws_service: true, ..same(6) }, &AROUND));
    assert!(!passes(&Channel { port: 123, ..same(6) }, &AROUND), "clocks are regular by trade");
    assert!(!passes(&Channel { protocol: protocol::ICMP, ..same(6) }, &AROUND));
}

#[test]
fn a_check_in_is_short_and_not_empty() {
    let of = |payload| channel((0..6).map(|n| session(n, payload, 0)).collect());
    assert!(passes(&of(settings().payload_max), &AROUND));
    assert!(!passes(&of(settings().payload_max + 1), &AROUND));
    assert!(!passes(&of(0), &AROUND));
}

#[test]
fn sizes_that_vary_a_little_are_believed_after_twenty_calls() {
    let varied = |n| channel((0..n).map(|n| session(n, 3_000 + u64::from(n), 2_000)).collect());
    assert!(!passes(&varied(19), &AROUND));
    assert!(passes(&varied(20), &AROUND));
    let widely = channel((0..40).map(|n| session(n, 3_000 + u64::from(n) * 7, 2_000)).collect());
    assert!(!passes(&widely, &AROUND));
    // Unless hardly anybody of many knows the place, and it is new.
    let new = Surroundings { watched_before: settings().rare_watch.as_secs() as u32, ..AROUND };
    assert!(passes(&widely, &new));
    assert!(!passes(&widely, &Surroundings { watched_before: new.watched_before - 1, ..new }));
    assert!(!passes(&widely, &Surroundings { clients: 3.0, ..new }));
    assert!(!passes(&widely, &Surroundings { hosts: settings().rare_hosts - 1.0, ..new }));
}

#[test]
fn calls_that_are_never_answered_are_told_when_they_last() {
    let failing = |n: u32, gap: u32| {
        let failed = |n: u32| {
            let mut session = session(0, 0, 0);
            (session.start, session.end) = (EventTime(1_000_000 + n * gap), EventTime(1_000_000 + n * gap));
            Session { failed: true, opener_port: 40_000 + n as u16, ..session }
        };
        channel((0..n).map(failed).collect())
    };
    let span = settings().failing_span.as_secs() as u32;
    let (calls, gap) = (settings().failing_min, span.div_ceil(settings().failing_min - 1));
    assert!(passes(&failing(calls, gap), &AROUND));
    assert!(!passes(&failing(calls - 1, gap + gap / 2), &AROUND), "too few");
    assert!(!passes(&failing(calls, gap * 9 / 10), &AROUND), "not for long enough");
    assert!(!passes(&failing(calls, gap), &Surroundings { clients: 30.0, ..AROUND }), "an outage for everybody");
}

#[test]
fn a_thin_session_of_hours_on_an_unknown_port_is_a_channel() {
    let long = |seconds: u32, payload: u64| {
        let mut session = session(0, payload, payload);
        session.end = EventTime(session.start.0 + seconds);
        session.windows = seconds / 60;
        (session.sent_windows, session.received_windows) = (session.windows, session.windows);
        Channel { port: 50_001, ..channel(vec![session]) }
    };
    let wanted = settings().long_span.as_secs() as u32;
    assert!(passes(&long(wanted, 10_000), &AROUND));
    assert!(!passes(&long(wanted - 1, 10_000), &AROUND));
    assert!(!passes(&long(wanted, 1_000_000_000), &AROUND), "a download");
    assert!(!passes(&Channel { port: 22, ..long(wanted, 10_000) }, &AROUND), "somebody's shell");
}
