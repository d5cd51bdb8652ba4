use super::*;
use crate::settings;
use crate::statistical::conversation::tests::{address, at, call, probe};

/// When the log began.
const FIRST: EventTime = EventTime(1_000);
const HOUR: u32 = 3_600;
const DAY: u32 = 24 * HOUR;

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.port_scan
}

fn host(n: u32) -> Address {
    Address::v4(0x0a00_3200 + n)
}

/// One host's port 445 used by another, so many seconds after the log began.
fn use_of(n: u32, seconds: u32) -> Conversation {
    at(seconds, Conversation { opener: address("10.0.2.4"), responder: host(n), port: 445, theirs: true, ..call() })
}

/// A sweep of so many hosts, one in two seconds.
fn sweep(hosts: u32, seconds: u32) -> Vec<Conversation> {
    (0..hosts).map(|n| use_of(n, seconds + 2 * n)).collect()
}

struct Case(Sweeper);

impl Case {
    fn new() -> Case {
        Case(Sweeper::new(address("10.0.2.4"), 445, FIRST))
    }

    /// Notes conversations and judges at the end of the minute of the last one; whether it was reported.
    fn see(&mut self, conversations: &[Conversation]) -> Option<Finding> {
        conversations.iter().for_each(|c| self.0.note(c));
        let last = conversations.iter().map(Conversation::end).max().expect("some");
        self.judge(last.window(60).plus(60), false)
    }

    fn judge(&mut self, now: EventTime, ended: bool) -> Option<Finding> {
        let judgement = self.0.judge(&settings(), FIRST, now, ended);
        judgement.passed.then(|| self.0.finding(&judgement, &settings(), now.minus(60), 60))
    }
}

#[test]
fn a_host_that_was_watched_for_a_day_is_reported_at_once() {
    let mut case = Case::new();
    let finding = case.see(&sweep(60, DAY)).expect("it is reported");
    assert_eq!((finding.severity, finding.target_count, finding.method.as_str()), (Severity::High, 60, "sweep"));
    let words = "10.0.2.4 opened port 445 on 60 hosts in 118 s, 60 of which answered; it did not use that port before";
    assert_eq!(finding.sentence(), words);
    assert_eq!(Case::new().see(&sweep(24, DAY)), None, "fewer are no sweep");
}

#[test]
fn what_fails_in_part_counts_as_well() {
    let half = sweep(30, DAY).into_iter().enumerate().map(|(n, c)| match n % 2 {
        0 => Conversation { sent: probe().sent, received: probe().received, outcome: probe().outcome, ..c },
        _ => c,
    });
    let finding = Case::new().see(&at_day(half.collect())).expect("it is reported");
    assert!(finding.sentence().contains("on 30 hosts") && finding.sentence().contains("15 of which answered"));
}

/// Moves what has lost its time in a probe back to the day.
fn at_day(conversations: Vec<Conversation>) -> Vec<Conversation> {
    let day = |c: Conversation| if c.start().0 < DAY { at(DAY, c) } else { c };
    conversations.into_iter().map(day).collect()
}

#[test]
fn in_a_young_log_it_is_held_back_for_two_hours_or_until_the_end() {
    let mut case = Case::new();
    assert_eq!(case.see(&sweep(60, 600)), None);
    assert!(case.0.is_held());
    assert_eq!(case.judge(FIRST.plus(600 + HOUR), false), None);
    let finding = case.judge(FIRST.plus(600 + 2 * HOUR), false).expect("nothing was repeated");
    assert_eq!(finding.severity, Severity::Medium);
    assert!(!case.0.is_held());
    let mut case = Case::new();
    assert_eq!(case.see(&sweep(60, 600)), None);
    assert!(case.judge(FIRST.plus(780), true).is_some(), "the input has ended");
}

#[test]
fn what_comes_back_to_its_hosts_is_a_job_for_good() {
    let mut case = Case::new();
    for run in 0..4 {
        assert_eq!(case.see(&sweep(60, 600 + run * HOUR / 2)), None, "run {run}");
    }
    assert_eq!(case.judge(FIRST.plus(3 * HOUR), true), None);
    assert_eq!(case.see(&sweep(100, 2 * DAY)), None, "more hosts than before, but no other order of magnitude");
}

#[test]
fn a_nightly_job_is_known_by_its_second_night() {
    let mut case = Case::new();
    assert_eq!(case.see(&sweep(60, 600)), None);
    let (second, third) = (sweep(60, 600 + DAY), sweep(60, 600 + 2 * DAY));
    second.iter().chain(&third).for_each(|c| case.0.note(c));
    assert_eq!(case.judge(FIRST.plus(600 + 2 * DAY + 180), false), None);
}

#[test]
fn hosts_that_are_used_one_after_the_other_over_a_day_are_no_sweep() {
    let mut case = Case::new();
    for n in 0..60 {
        assert_eq!(case.see(&[use_of(n, DAY + n * HOUR / 2)]), None);
    }
}

#[test]
fn two_sightings_join_to_what_one_engine_would_know() {
    let all = sweep(60, DAY);
    let (mut one, mut other) = (Case::new(), Case::new());
    all[..30].iter().for_each(|c| one.0.note(c));
    all[20..].iter().for_each(|c| other.0.note(c));
    one.0.join(other.0);
    let finding = one.judge(FIRST.plus(DAY + 180), false).expect("it is reported");
    assert_eq!(finding.target_count, 60);
}
