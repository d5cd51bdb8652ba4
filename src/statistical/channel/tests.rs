use super::*;
use crate::finding::{Finding, Threat};
use crate::flow::{Address, EventTime, InterfaceId};
use crate::settings;
use crate::statistical::tests::{Exchange, engine, records, run};

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.channel
}

const AROUND: Surroundings =
    Surroundings { clients: 1.0, hosts: 40.0, watched_before: 0, channels: 10, internal: false };

/// What a host does that opens little beside the channel.
const HOST: Around = Around { sessions: 20, on_port: 0, unregistered: 1, contacts_before: 0 };

const PORTS: Ports<'static> = Ports { benign: &[53], pushing: &[443], thin: &[5_938] };

const DAY: u32 = 86_400;

pub(in crate::statistical::channel) fn session(n: u32, sent: u64, received: u64) -> Session {
    Session {
        start: EventTime(100_000 + 60 * n),
        end: EventTime(100_002 + 60 * n),
        sent_bytes: sent + 240,
        received_bytes: received + 240,
        sent_payload: sent,
        received_payload: received,
        sent_packets: 6,
        received_packets: 6,
        piece: 2,
        windows: 1,
        sent_windows: 1,
        received_windows: 1,
        opener_port: 40_000 + n as u16,
        failed: false,
    }
}

pub(in crate::statistical::channel) fn channel(port: u16, sessions: Vec<Session>) -> Channel {
    Channel {
        fingerprint: 1,
        opener: Address::v4(0x0a00_0005),
        responder: Address::v4(0xcb00_7105),
        port,
        protocol: protocol::TCP,
        first_contact: sessions[0].start,
        sessions,
        forgotten: 0,
        messages: Vec::new(),
        aws_service: false,
        judged_sessions: 0,
        told: EventTime(0),
        mined: false,
        judged_windows: 0,
        before: None,
        interface: InterfaceId(1),
    }
}

/// Calls a minute apart with sizes that never repeat.
fn padded(port: u16, calls: u32) -> Channel {
    channel(port, (0..calls).map(|n| session(n, 200 + 37 * u64::from(n), 300 + 91 * u64::from(n))).collect())
}

fn passes(channel: &Channel, around: &Surroundings, host: &Around, watched: u32) -> bool {
    judge(channel, around, host, watched, &settings(), &PORTS).expect("enough to judge").judgement.passed
}

#[test]
fn the_arithmetic_stands_on_the_finding() {
    let judgement =
        judge(&padded(50_001, 12), &AROUND, &HOST, DAY, &settings(), &PORTS).expect("enough to judge").judgement;
    let number = |name: &str| judgement.evidence.iter().find(|e| e.name == name).map_or(f64::NAN, |e| e.value);
    let nats: Vec<f64> = judgement.evidence.iter().filter(|e| e.name.ends_with("_nats")).map(|e| e.value).collect();
    assert_eq!(nats.len(), 6);
    let total = (number("usual") + nats.iter().sum::<f64>()).min(settings().evidence_max) - number("prior_against");
    let probability = 1.0 / (1.0 + (-total).exp());
    assert!((number("probability") - probability).abs() < 1e-12, "{total}");
    assert!(judgement.passed);
}

#[test]
fn a_channel_at_its_usual_numbers_is_far_from_told() {
    let usual = Around { sessions: 240, on_port: 32, unregistered: 0, contacts_before: 0 };
    let benign = channel(50_001, (0..12).map(|n| session(n * n, 1_800, 3_600)).collect());
    let judged = judge(&benign, &AROUND, &usual, DAY, &settings(), &PORTS).expect("enough to judge");
    assert!(!judged.judgement.passed && !judged.signal);
}

#[test]
fn nothing_is_out_of_character_for_a_host_without_a_past() {
    let wanted = settings().watched.as_secs() as u32;
    assert!(passes(&padded(50_001, 12), &AROUND, &HOST, wanted));
    let early = judge(&padded(50_001, 12), &AROUND, &HOST, wanted - 1, &settings(), &PORTS).expect("enough to judge");
    assert!(!early.judgement.passed && early.signal, "it is kept as a signal");
    let known = |contacts_before| {
        let host = Around { contacts_before, ..HOST };
        judge(&padded(50_001, 12), &AROUND, &host, 60, &settings(), &PORTS).expect("enough to judge").judgement.passed
    };
    assert!(!known(39) && known(40), "a busy host has a past within minutes");
    assert!(settings().evidence_max < settings().prior_against + settings().unwatched_against, "and can be no more");
}

#[test]
fn what_many_hosts_use_is_a_service_and_one_of_many_peers_says_nothing() {
    assert!(!passes(&padded(50_001, 12), &Surroundings { clients: 3.0, ..AROUND }, &HOST, DAY));
    assert!(passes(&padded(50_001, 12), &AROUND, &Around { unregistered: 8, ..HOST }, DAY), "itself and seven others");
    assert!(!passes(&padded(50_001, 12), &AROUND, &Around { unregistered: 9, ..HOST }, DAY));
}

#[test]
fn on_a_registered_port_only_a_timer_is_told_that_lasts() {
    assert!(passes(&padded(8_080, 22), &AROUND, &HOST, DAY));
    let hasty = channel(
        8_080,
        (0..40).map(|n| Session { start: EventTime(100_000 + 12 * n), ..session(0, 200, 300) }).collect(),
    );
    assert!(!passes(&hasty, &AROUND, &HOST, DAY), "over in eight minutes");
    let remote_help = channel(5_938, vec![Session { end: EventTime(101_800), ..session(0, 900, 900) }]);
    assert!(!passes(&remote_help, &AROUND, &HOST, DAY), "a service that its maker names");
    let untimed = channel(8_080, (0..22).map(|n| session(n * n, 200, 300)).collect());
    assert!(!passes(&untimed, &AROUND, &HOST, DAY));
}

#[test]
fn some_are_not_judged_at_all() {
    let judged =
        |channel: &Channel, around: &Surroundings| judge(channel, around, &HOST, DAY, &settings(), &PORTS).is_some();
    assert!(judged(&padded(50_001, 5), &AROUND));
    assert!(!judged(&padded(50_001, 4), &AROUND), "too few calls");
    assert!(!judged(&padded(53, 12), &AROUND));
    assert!(!judged(&padded(50_001, 12), &Surroundings { internal: true, ..AROUND }));
    assert!(!judged(&Channel { aws_service: true, ..padded(50_001, 12) }, &AROUND));
    let mut unanswered = padded(50_001, 12);
    unanswered.sessions.iter_mut().for_each(|s| s.failed = true);
    assert!(judged(&unanswered, &AROUND), "a controller that was taken down");
    unanswered.protocol = protocol::UDP;
    assert!(!judged(&unanswered, &AROUND), "nothing says that an answer was wanted");
}

#[test]
fn one_session_is_enough_once_it_has_lasted() {
    let lasting =
        |seconds: u32| channel(50_001, vec![Session { end: EventTime(100_000 + seconds), ..session(0, 900, 90) }]);
    let judged = |seconds| judge(&lasting(seconds), &AROUND, &HOST, DAY, &settings(), &PORTS);
    assert!(judged(239).is_none());
    assert!(judged(240).is_some());
}

fn is_kin(channel: &Channel, other: &Channel) -> bool {
    kin(channel, [channel, other].into_iter()) == 1
}

#[test]
fn a_service_that_moves_to_another_address_keeps_its_rhythm_and_sizes() {
    let before = padded(443, 30);
    let mut after = padded(443, 30);
    after.responder = Address::v4(0xcb00_7106);
    after.sessions.iter_mut().for_each(|s| s.start = s.start.plus(7_200));
    after.first_contact = after.sessions[0].start;
    assert!(is_kin(&after, &before));
    assert!(!is_kin(&before, &after), "the later one is the kin of the earlier");
    assert!(!is_kin(&after, &Channel { port: 444, ..before.clone() }));
    assert!(!is_kin(&after, &Channel { opener: Address::v4(1), ..before.clone() }));
    let mut slower = before.clone();
    slower.sessions.iter_mut().for_each(|s| s.start = EventTime(2 * s.start.0 - 100_000));
    assert!(!is_kin(&after, &slower));
    let mut larger = before.clone();
    larger.sessions.iter_mut().for_each(|s| s.sent_payload *= 2);
    assert!(!is_kin(&after, &larger));
    after.first_contact = before.first_contact;
    assert!(!is_kin(&after, &before), "neither was there before the other");
}

#[test]
fn a_miner_receives_as_much_as_it_sends_in_short_lines() {
    let held = |sent: u64, received: u64, packets: u32| {
        let one = Session {
            end: EventTime(101_200),
            received_packets: packets,
            windows: 20,
            received_windows: 18,
            ..session(0, sent, received)
        };
        is_mining(&channel(50_001, vec![one]), false)
    };
    assert!(held(3_000, 4_500, 30));
    assert!(!held(12_000, 400, 20), "an implant that reports");
    assert!(!held(600, 40_000, 40), "a download in full packets");
    let short = channel(3_333, vec![session(0, 180, 330)]);
    assert!(is_mining(&short, true) && !is_mining(&short, false), "a pool's port lets a short session speak");
}

/// A host that browses, and from `from` on (s) calls one place on a port that nobody else uses, with sizes that never repeat.
fn told(from: u32) -> Vec<Finding> {
    let mut all = Vec::new();
    for n in 0..400u32 {
        let peer = format!("198.51.100.{}", 1 + n % 50);
        let mut page = Exchange::new("10.0.0.7", 30_000 + n as u16, &peer, 443, 60 * n + n * 7 % 60);
        page.received = (20, 3_000 + u64::from(n * 7_919 % 30_000));
        all.push(page);
    }
    for n in 0..30u32 {
        let mut call = Exchange::new("10.0.0.7", 40_000 + n as u16, "203.0.113.9", 9_777, from + 65 * n);
        call.sent = (6, 500 + u64::from(n * 337 % 900));
        call.received = (5, 400 + u64::from(n * 631 % 1_100));
        all.push(call);
    }
    run(&mut engine(), &records(&all), 100).findings
}

#[test]
fn padded_calls_are_told_of_a_host_with_a_past_and_not_of_one_without() {
    let findings = told(5 * 3_600);
    let found = findings.iter().rfind(|f| f.method == METHOD).expect("a finding");
    assert!(found.score >= 0.5, "{}", found.score);
    assert_eq!(found.threat, Threat::C2Beacon);
    assert!(found.sentence().contains("out of character"), "{}", found.sentence());
    assert!(!found.sentence().contains('{'), "{}", found.sentence());
    let early = told(600);
    assert!(early.iter().all(|f| f.method != METHOD || f.score < 0.5), "the host was not known yet");
    assert!(early.iter().any(|f| f.method == METHOD && f.score >= SIGNAL), "it is a signal");
}

/// A channel of another host, with a responder of its own, first used so long after that host was first seen.
fn of_host(n: u32, later: u32, channel: &Channel) -> (Channel, EventTime) {
    let other = Channel {
        fingerprint: u64::from(n),
        opener: Address::v4(0x0a00_0100 + n),
        responder: Address::v4(0xcb00_7100 + n % 4),
        ..channel.clone()
    };
    let first_seen = other.first_contact.minus(later);
    (other, first_seen)
}

#[test]
fn what_other_hosts_have_done_since_they_were_first_seen_is_their_agents() {
    let own = channel(8_443, (0..12).map(|n| session(n, 400, 900)).collect());
    let fleet_of = |others: &[(Channel, EventTime)], most: usize| {
        let first_seen = |host| others.iter().find(|(c, _)| c.opener == host).map(|&(_, first)| first);
        fleet(&own, others.iter().map(|(c, _)| c).chain([&own]), first_seen, most)
    };
    let alike: Vec<_> = (0..9).map(|n| of_host(n, 600, &own)).collect();
    assert_eq!(fleet_of(&alike, 99), 9, "whatever the address");
    assert_eq!(fleet_of(&alike, 5), 5, "no more are looked for than matter");
    let spreading: Vec<_> = (0..9).map(|n| of_host(n, 601 + n, &own)).collect();
    assert_eq!(fleet_of(&spreading, 99), 0, "these began later");
    let slower = channel(8_443, (0..12).map(|n| session(2 * n, 400, 900)).collect());
    let larger = channel(8_443, (0..12).map(|n| session(n, 1_400, 900)).collect());
    let elsewhere = channel(8_444, (0..12).map(|n| session(n, 400, 900)).collect());
    let unlike: Vec<_> = [slower, larger, elsewhere].iter().zip(0..).map(|(c, n)| of_host(n, 0, c)).collect();
    assert_eq!(fleet_of(&unlike, 99), 0);
}

#[test]
fn hosts_that_call_one_place_alike_from_the_beginning_are_told_while_they_are_few() {
    let told = |callers: u32| {
        let mut all = Vec::new();
        for host in 1..=20u32 {
            let name = format!("10.0.0.{host}");
            all.push(Exchange::new(&name, 30_000, "198.51.100.7", 443, host));
            let calls = if host <= callers { 40 } else { 0 };
            all.extend(
                (0..calls).map(|n| Exchange::new(&name, 40_000 + n as u16, "203.0.113.9", 9_777, host + 60 * n)),
            );
        }
        let found = run(&mut engine(), &records(&all), 100).findings;
        found
            .iter()
            .filter(|f| f.threat == Threat::C2Beacon)
            .map(|f| f.actor)
            .collect::<std::collections::HashSet<_>>()
            .len()
    };
    assert_eq!(told(4), 4);
    assert_eq!(told(8), 0, "less than half of the hosts, and a fleet's agents");
}
