use super::*;
use crate::settings;
use crate::statistical::conversation::tests::{address, at, call, direction};
use crate::statistical::tests::{Exchange, engine, records, run};

const HOUR: u32 = 3_600;
const GB: u64 = 1_000_000_000;
/// When the host was first seen.
const FIRST: EventTime = EventTime(1_000);

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.exfiltration
}

/// So many bytes sent and received in a minute that begins so many seconds after the host was first seen.
fn minute(to: &str, seconds: u32, sent: u64, received: u64) -> Conversation {
    let packets = |bytes: u64| (bytes / 1_400).max(3) as u32;
    let (sent, received) = (direction(packets(sent), sent), direction(packets(received), received));
    at(seconds, Conversation { responder: address(to), sent, received, ..call() })
}

/// An upload of so many bytes, an equal part a minute.
fn upload(to: &str, from: u32, minutes: u32, bytes: u64) -> Vec<Conversation> {
    let part = bytes / u64::from(minutes);
    (0..minutes).map(|n| minute(to, from + n * 60, part, part / 50)).collect()
}

fn judge_with(conversations: &[Conversation], clients: f64) -> Option<Finding> {
    let settings = settings();
    let mut uploads = Uploads::new(address("10.0.0.5"), FIRST);
    let mut found = None;
    for c in conversations.iter().filter(|c| counts(c)) {
        uploads.note(c, FIRST);
        let window = c.start().window(60);
        if let Some((judgement, story)) = uploads.judge(&settings, FIRST, window, |_| clients)
            && judgement.passed
        {
            found = Some(uploads.finding(&judgement, &story, window, 60));
        }
    }
    found
}

fn judge(conversations: &[Conversation]) -> Option<Finding> {
    judge_with(conversations, 1.0)
}

#[test]
fn tens_of_gigabytes_to_a_new_place_are_told_with_their_numbers() {
    let finding = judge(&upload("203.0.113.9", 6 * HOUR, 30, 60 * GB)).expect("it is reported");
    assert_eq!((finding.severity, finding.target_count), (Severity::High, 1));
    let words = "10.0.0.5 sent 60000 MB to 203.0.113.9 port 443 in 1741 s and received 1200 MB; it sent little or nothing there before, \
                 and at most 0 MB a day to any other place";
    assert_eq!(finding.sentence(), words);
}

#[test]
fn a_host_without_a_past_needs_more() {
    assert_eq!(judge(&upload("203.0.113.9", 6 * HOUR, 30, 8 * GB)), None);
    assert!(judge(&upload("203.0.113.9", 30 * HOUR, 30, 8 * GB)).is_some());
    assert_eq!(judge(&upload("203.0.113.9", 30 * HOUR, 30, GB)), None);
    assert_eq!(judge(&upload("203.0.113.9", HOUR / 2, 30, 60 * GB)), None, "it did so when it was first seen");
}

#[test]
fn a_slow_one_and_one_over_several_places_are_the_same_story() {
    let slow = judge(&upload("203.0.113.9", 30 * HOUR, 20 * 60, 5 * GB)).expect("it is reported");
    assert!(slow.last_seen.since(slow.first_seen) > 8 * HOUR);
    let mut spread: Vec<Conversation> =
        (0..5).flat_map(|n| upload(&format!("203.0.{n}.9"), 6 * HOUR + 60 * n, 30, 4 * GB)).collect();
    spread.sort_by_key(Conversation::start);
    let finding = judge(&spread).expect("it is reported");
    assert_eq!((finding.targets.len(), finding.target_count), (5, 5));
    assert!(finding.sentence().contains("to 5 networks"), "{}", finding.sentence());
}

#[test]
fn what_was_sent_there_on_another_day_is_a_backup() {
    let mut nights: Vec<Conversation> =
        (0..5).flat_map(|night| upload("203.0.113.9", 600 + night * 24 * HOUR, 60, 40 * GB)).collect();
    assert_eq!(judge(&nights), None, "every night the same, under watch since the first");
    // A neighbour's address, and a full one after what had changed since.
    nights.extend(upload("203.0.113.10", 5 * 24 * HOUR + 600, 60, 900 * GB));
    assert_eq!(judge(&nights), None);
    // What was sent there before is nothing beside it.
    let mut all = upload("198.51.100.9", 2 * HOUR, 30, GB / 1_000);
    all.extend(upload("198.51.100.9", 60 * HOUR, 30, 50 * GB));
    assert!(judge(&all).is_some());
}

#[test]
fn a_host_that_sends_much_must_send_much_more() {
    let past = || upload("203.0.113.9", 600, 60, 10 * GB);
    let with = |bytes: u64| {
        let mut all = past();
        all.extend(upload("203.0.113.9", 24 * HOUR + 900, 60, 10 * GB));
        all.extend(upload("198.51.100.9", 30 * HOUR, 60, bytes));
        judge(&all)
    };
    assert_eq!(with(20 * GB), None);
    let finding = with(40 * GB).expect("it is reported");
    assert!(finding.sentence().contains("at most 10000 MB a day"), "{}", finding.sentence());
}

#[test]
fn what_goes_both_ways_is_no_theft() {
    let talk = |received: u64| {
        (0..600).map(|n| minute("203.0.113.9", 30 * HOUR + n * 60, GB / 20, received)).collect::<Vec<_>>()
    };
    assert_eq!(judge(&talk(GB / 30)), None, "a call");
    assert!(judge(&talk(GB / 1_000)).is_some());
    // A speed test: down, then up.
    let mut test = vec![minute("203.0.113.9", 30 * HOUR, GB / 10, 5 * GB)];
    test.push(minute("203.0.113.9", 30 * HOUR + 60, 4 * GB, GB / 10));
    assert_eq!(judge(&test), None);
    assert!(judge(&test[1..]).is_some(), "without the first half");
}

#[test]
fn services_that_many_use_and_swarms_are_not_told() {
    let big = upload("203.0.113.9", 30 * HOUR, 30, 60 * GB);
    assert_eq!(judge_with(&big, 9.0), None);
    let mut swarm: Vec<Conversation> =
        (0..40).flat_map(|n| upload(&format!("203.0.{n}.9"), 30 * HOUR + n, 30, 2 * GB)).collect();
    swarm.sort_by_key(Conversation::start);
    assert_eq!(judge(&swarm), None);
}

#[test]
fn only_what_a_host_of_ours_opened_outside_counts() {
    let c = minute("203.0.113.9", 0, GB, GB / 50);
    assert!(counts(&c));
    for (other, why) in [
        (Conversation { ours: false, ..c }, "a stranger's"),
        (Conversation { theirs: true, ..c }, "to another of ours"),
        (Conversation { responder: address("10.9.0.9"), ..c }, "a neighbour"),
        (Conversation { outcome: Outcome::Unanswered, ..c }, "a flood's"),
        (Conversation { port: 50_000, opener_port: 9_999, ..c }, "a server's answer"),
        (minute("203.0.113.9", 0, LEAST - 1, 100), "little"),
    ] {
        assert!(!counts(&other), "{why}");
    }
    let mut aws = c;
    aws.sent.marks |= Marks::TO_AWS_SERVICE.0;
    assert!(!counts(&aws));
}

#[test]
fn what_is_kept_is_bounded_and_joins_to_the_fuller_sighting() {
    let mut uploads = Uploads::new(address("10.0.0.5"), FIRST);
    let many: Vec<Conversation> = (0..500)
        .map(|n| minute(&format!("198.{}.{}.9", n / 250, n % 250), 2 * HOUR + n, 100_000 + u64::from(n), 2_000))
        .collect();
    many.iter().for_each(|c| uploads.note(c, FIRST));
    assert!(uploads.places.len() <= 2 * PLACES);
    let mut other = Uploads::new(address("10.0.0.5"), FIRST);
    other.note(&minute("203.0.113.9", 2 * HOUR, GB, 1_000), FIRST);
    let mut whole = uploads.clone();
    whole.join(other.clone());
    let again = whole.clone();
    whole.join(other);
    assert_eq!(whole.places, again.places, "joining what is known changes nothing");
    assert!(whole.places.iter().any(|place| place.sent == GB));
}

#[test]
fn the_engine_tells_it_and_leaves_downloads_from_our_servers_alone() {
    let busy = |from: &str, port: u16, to: &str, service: u16, sent: (u64, u64), received: (u64, u64)| {
        let piece = move |n: u32| {
            let mut piece = Exchange::new(from, port, to, service, 8_000 + n * 60);
            (piece.sent, piece.received) = (sent, received);
            piece
        };
        let mut all = vec![Exchange::new("10.0.0.5", 50_000, "198.51.100.1", 443, 0)];
        all.extend((0..30).map(piece));
        let findings = run(&mut engine(), &records(&all), 40).findings;
        findings.into_iter().filter(|f| f.threat == Threat::Exfiltration).collect::<Vec<_>>()
    };
    let (much, little) = ((1_400_000, 2 * GB), (700_000, 30_000_000));
    let found = busy("10.0.0.5", 51_000, "203.0.113.9", 443, much, little);
    assert!(!found.is_empty());
    assert!(found.iter().all(|f| f.subject == Subject::Actor(address("10.0.0.5"))));
    assert_eq!(busy("203.0.113.9", 51_000, "10.0.0.5", 443, little, much), Vec::new(), "what visitors download");
}
