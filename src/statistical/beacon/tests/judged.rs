//! What stands on a judgement, and how it is told.

use super::*;

fn judged(channel: &Channel, around: &Surroundings) -> Judgement {
    judge(channel, around, &settings()).expect("something to judge")
}

fn number<'a>(judgement: &'a Judgement, name: &str) -> &'a Evidence {
    judgement.evidence.iter().find(|e| e.name == name).unwrap_or_else(|| panic!("no {name}"))
}

fn same(calls: u32) -> Channel {
    channel((0..calls).map(|n| session(n, 300, 200)).collect())
}

/// Calls of which the first so many were never answered.
fn failing(calls: u32, failed: u32) -> Channel {
    channel((0..calls).map(|n| Session { failed: n < failed, ..session(n, 300, 200) }).collect())
}

/// How long a session must last to be a channel, s.
fn wanted() -> f64 {
    settings().long_span.as_secs_f64()
}

/// One session of so many seconds on a port that nobody knows.
fn long(seconds: u32) -> Channel {
    let windows = seconds / 60;
    let one = session(0, 10_000, 10_000);
    let end = EventTime(one.start.0 + seconds);
    let one = Session { end, windows, sent_windows: windows, received_windows: windows, ..one };
    Channel { port: 50_001, ..channel(vec![one]) }
}

#[test]
fn the_median_of_two_and_of_five() {
    assert_eq!(median(&mut [1.0, 2.0]), 1.5);
    assert_eq!(median(&mut [5.0, 1.0, 9.0, 2.0, 7.0]), 5.0);
}

#[test]
fn every_number_of_a_periodic_channel_stands_beside_its_threshold() {
    let judgement = judged(&same(11), &AROUND);
    let numbers: Vec<(&str, f64, Option<f64>)> =
        judgement.evidence.iter().map(|e| (&*e.name, e.value, e.threshold)).collect();
    let needed = 6.0 + 10f64.ln();
    assert_eq!(numbers[0].2, Some(needed), "more channels take more evidence");
    assert_eq!(judgement.ratio, numbers[0].1 / needed);
    assert_eq!(
        numbers[1..],
        [
            ("regular_intervals", 1.0, Some(0.7)),
            ("period", 60.0, None),
            ("jitter", 0.0, None),
            ("calls", 11.0, None),
            ("span", 600.0, None),
            ("same_exchange", 1.0, Some(0.6)),
            ("size_dispersion", 0.0, Some(0.005)),
            ("payload", 500.0, Some(65_536.0)),
            ("prevalence", 0.025, Some(0.5)),
        ]
    );
    let none = judged(&same(11), &Surroundings { channels: 0, ..AROUND });
    assert_eq!(number(&none, "timing_log_likelihood_ratio").threshold, Some(6.0));
    let few = judged(&same(11), &Surroundings { hosts: 4.0, ..AROUND });
    assert!(few.evidence.iter().all(|e| e.name != "prevalence"), "too few hosts to tell");
}

#[test]
fn timing_must_outweigh_the_channels_under_watch() {
    let nats = number(&judged(&same(11), &AROUND), "timing_log_likelihood_ratio").value;
    let passes = |timing_nats| judge(&same(11), &AROUND, &Settings { timing_nats, ..settings() }).unwrap().passed;
    assert!(passes(nats - 10f64.ln() - 1e-6));
    assert!(!passes(nats - 10f64.ln() + 1e-6));
    let failing =
        |timing_nats| judge(&failing(11, 11), &AROUND, &Settings { timing_nats, ..settings() }).unwrap().passed;
    assert!(failing(nats - 10f64.ln() - 1e-6));
    assert!(!failing(nats - 10f64.ln() + 1e-6));
}

#[test]
fn at_a_rare_place_twice_the_evidence_stands_for_the_same_bytes() {
    let varied = channel((0..40).map(|n| session(n, 3_000 + u64::from(n) * 7, 2_000)).collect());
    let new = Surroundings { watched_before: settings().rare_watch.as_secs() as u32, ..AROUND };
    let nats = number(&judged(&varied, &new), "timing_log_likelihood_ratio").value;
    let passes = |timing_nats| judge(&varied, &new, &Settings { timing_nats, ..settings() }).unwrap().passed;
    assert!(passes(nats / 2.0 - 10f64.ln() - 1e-6));
    assert!(!passes(nats / 2.0 - 10f64.ln() + 1e-6));
}

#[test]
fn a_channel_is_a_failing_one_when_nine_of_ten_calls_fail() {
    assert_eq!(judged(&failing(40, 36), &AROUND).method, "failing");
    assert_eq!(judged(&failing(40, 35), &AROUND).method, "periodic");
    let judgement = judged(&failing(11, 11), &AROUND);
    assert!(judgement.passed);
    let timing = number(&judgement, "timing_log_likelihood_ratio");
    assert_eq!(judgement.ratio, timing.value / timing.threshold.unwrap());
    let calls = number(&judgement, "failed_calls");
    assert_eq!((calls.value, calls.threshold), (11.0, Some(10.0)));
}

#[test]
fn datagrams_that_nobody_answers_are_no_failing_channel() {
    let udp = |failed| Channel { protocol: protocol::UDP, ..failing(40, failed) };
    assert!(judge(&udp(36), &AROUND, &settings()).is_none());
    assert_eq!(judged(&udp(35), &AROUND).method, "periodic");
}

#[test]
fn failing_calls_keep_time() {
    // Half of the intervals are of another clock: likely no chance, and no timer.
    let mut at = 0;
    let calls = (0..60u32).map(|n| {
        at += if n % 5 < 2 { 400 } else { 60 };
        let start = EventTime(1_000_000 + at);
        Session { start, end: start, failed: true, ..session(n, 0, 0) }
    });
    let judgement = judged(&channel(calls.collect()), &AROUND);
    let timing = number(&judgement, "timing_log_likelihood_ratio");
    assert!(timing.value >= timing.threshold.unwrap(), "{timing:?}");
    assert!(number(&judgement, "regular_intervals").value < 0.7);
    assert!(!judgement.passed);
}

#[test]
fn of_two_shapes_the_one_that_is_further_beyond_its_threshold_is_told() {
    let with_calls = |seconds, calls: u32| {
        let mut both = long(seconds);
        both.sessions.extend((0..calls).map(|n| session(n, 300, 200)));
        judged(&both, &AROUND)
    };
    let long = with_calls(20 * 3_600, 11);
    assert_eq!((long.method.as_str(), long.ratio), ("long_channel", 20.0 * 3_600.0 / wanted()));
    assert_eq!(with_calls(3_600, 11).method, "periodic");
}

#[test]
fn a_long_channel_is_one_tcp_session_with_outside_of_three_windows_and_more() {
    let judgement = judged(&long(7_200), &AROUND);
    assert_eq!((judgement.method.as_str(), judgement.passed), ("long_channel", true));
    assert_eq!(judgement.ratio, 7_200.0 / wanted());
    let numbers: Vec<(&str, f64, Option<f64>)> =
        judgement.evidence.iter().map(|e| (&*e.name, e.value, e.threshold)).collect();
    assert_eq!(
        numbers,
        [
            ("session_length", 7_200.0, Some(wanted())),
            ("payload_rate", 20_000.0 / 120.0, Some(2_000.0)),
            ("presence", 1.0, Some(0.3)),
            ("prevalence", 0.025, Some(0.5)),
        ]
    );
    let judged = |channel: &Channel, around: &Surroundings| judge(channel, around, &settings());
    assert!(judged(&Channel { protocol: protocol::UDP, ..long(7_200) }, &AROUND).is_none());
    let behind_proxy = Channel { port: 9_050, ..long(7_200) };
    assert!(judged(&behind_proxy, &AROUND).is_some());
    assert!(judged(&behind_proxy, &Surroundings { internal: true, ..AROUND }).is_none());
    assert!(judged(&long(180), &AROUND).is_some());
    assert!(judged(&long(179), &AROUND).is_none(), "two windows");
    assert!(judged(&channel(vec![Session { failed: true, ..long(7_200).sessions[0] }]), &AROUND).is_none());
}

#[test]
fn a_long_channel_is_held_by_both_sides_most_of_the_time() {
    let with = |change: fn(&mut Session)| {
        let mut channel = long(6_000);
        change(&mut channel.sessions[0]);
        passes(&channel, &AROUND)
    };
    assert!(with(|_| {}));
    assert!(with(|s| (s.sent_windows, s.received_windows) = (1, 1)));
    assert!(!with(|s| s.sent_windows = 0) && !with(|s| s.received_windows = 0));
    // A ping of four bytes among bare acknowledgements.
    let pinged = |received_payload| {
        let mut channel = long(6_000);
        let session = &mut channel.sessions[0];
        (session.received_windows, session.received_packets, session.received_payload) = (0, 400, received_payload);
        passes(&channel, &AROUND)
    };
    assert!(pinged(40 + 400) && !pinged(20), "the options of the handshake alone");
    assert!(!pinged(20 + 12 * 400), "timestamps");
    assert!(with(|s| s.windows = 30) && !with(|s| s.windows = 29));
    // 2,000 bytes a minute over a hundred minutes, both ways together.
    assert!(with(|s| (s.sent_payload, s.received_payload) = (150_000, 50_000)));
    assert!(!with(|s| (s.sent_payload, s.received_payload) = (150_000, 50_001)));
}

fn told(channel: &Channel) -> Finding {
    finding(channel, &judged(channel, &AROUND), EventTime(1_000_560), 60)
}

#[test]
fn each_shape_is_told_in_its_own_sentence() {
    let periodic = told(&same(11));
    let words = "10.0.0.5 calls 203.0.113.5 port 443 every 60 s (± 0 %) with the same exchange: 11 calls in 10 min";
    assert_eq!((periodic.summary.as_str(), periodic.severity), (words, Severity::High));
    assert_eq!((periodic.first_seen, periodic.last_seen), (EventTime(1_000_000), EventTime(1_000_601)));
    let (host, peer) = (Address::v4(0x0a00_0005), Address::v4(0xcb00_7105));
    assert_eq!((periodic.actor, periodic.subject), (Actor::One(host), Subject::Pair(host, peer)));
    let varied = told(&channel((0..20).map(|n| session(n, 3_000 + u64::from(n), 2_000)).collect()));
    assert!(varied.summary.contains("with nearly the same exchange: 20 calls"), "{}", varied.summary);
    let jittery = told(&channel(
        (0..20).map(|n| Session { start: EventTime(1_000_000 + n * 60 + n % 3 * 5), ..session(n, 300, 200) }).collect(),
    ));
    assert!(jittery.summary.contains("every 65 s (± 0 %)"), "{}", jittery.summary);
    let failing = told(&failing(11, 11));
    let words = "10.0.0.5 keeps trying 203.0.113.5 port 443 every 60 s and is never answered: 11 calls in 10 min";
    assert_eq!((failing.summary.as_str(), failing.severity), (words, Severity::Medium));
    let long = told(&long(9_000));
    let words = "10.0.0.5 holds one thin session with 203.0.113.5 port 50001 open for 2.5 h: 133 bytes a minute";
    assert_eq!((long.summary.as_str(), long.severity), (words, Severity::Medium));
    assert_eq!(long.score, 1.0 - 0.5 / (9_000.0 / wanted()));
    let weak = finding(&same(11), &Judgement { ratio: 0.2, ..judged(&same(11), &AROUND) }, EventTime(0), 60);
    assert_eq!(weak.score, 0.5, "a score below one half says nothing");
}

#[test]
fn spans_are_told_in_seconds_then_minutes_then_hours() {
    let told = [0, 119, 120, 7_199, 7_200, 9_000].map(span);
    assert_eq!(told, ["0 s", "119 s", "2 min", "119 min", "2.0 h", "2.5 h"]);
}

#[test]
fn who_spreads_the_beat_widely_may_vary_the_bytes_where_the_beat_is_sure() {
    let spread = |by: u32| {
        let calls = (0..60u32).map(|n| {
            let one = session(n, 3_000 + u64::from(n) * 5, 2_000);
            let start = EventTime(1_000_000 + n * 60 + n * 7 % 11 * by);
            Session { start, end: start, ..one }
        });
        channel(calls.collect())
    };
    let judgement = judged(&spread(2), &AROUND);
    let number = |name: &str| number(&judgement, name).value;
    let (nats, jitter) = (number("timing_log_likelihood_ratio"), number("jitter"));
    let passes = |timing_nats: f64, wilful_jitter: f64| {
        judge(&spread(2), &AROUND, &Settings { timing_nats, wilful_jitter, ..settings() }).unwrap().passed
    };
    let sure = nats / 2.0 - 10f64.ln();
    assert!(passes(sure - 1e-6, jitter), "sizes within {}", number("size_dispersion"));
    assert!(!passes(sure - 1e-6, jitter + 1e-6), "spread a little less than that");
    assert!(!passes(sure + 1e-6, jitter), "a beat that is less sure");
}

#[test]
fn a_thin_session_on_the_port_of_a_service_that_has_them_is_no_channel() {
    assert!(!passes(&Channel { port: 5_938, ..long(7_200) }, &AROUND));
    assert!(passes(&Channel { port: 5_938, ..same(11) }, &AROUND), "calls on a timer are another matter");
}

#[test]
fn mailboxes_and_log_ins_are_not_judged() {
    for port in [21, 22, 110, 143, 993, 995, 3_389] {
        assert!(judge(&Channel { port, ..same(11) }, &AROUND, &settings()).is_none(), "{port}");
    }
}
