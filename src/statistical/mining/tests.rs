use super::*;
use crate::flow::{Address, InterfaceId};
use crate::settings;

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.crypto_mining
}

/// Half an hour in which a pool speaks every minute: 300 bytes each way, in messages of 150 bytes.
fn session() -> Session {
    Session {
        start: EventTime(1_000),
        end: EventTime(2_800),
        sent_bytes: 11_400,
        received_bytes: 11_400,
        sent_payload: 9_000,
        received_payload: 9_000,
        sent_packets: 60,
        received_packets: 60,
        piece: 59,
        windows: 31,
        sent_windows: 31,
        received_windows: 30,
        opener_port: 40_000,
        failed: false,
    }
}

/// A session of so many seconds at the same pace.
fn lasting(seconds: u32) -> Session {
    let whole = session();
    let part = |amount: u64| amount * u64::from(seconds) / 1_800;
    Session {
        end: EventTime(1_000 + seconds),
        sent_payload: part(whole.sent_payload),
        received_payload: part(whole.received_payload),
        sent_packets: part(60) as u32,
        received_packets: part(60) as u32,
        windows: seconds / 60 + 1,
        received_windows: seconds / 60,
        ..whole
    }
}

fn channel(port: u16, sessions: &[Session]) -> Channel {
    Channel {
        fingerprint: 1,
        opener: Address::v4(0x0a00_0005),
        responder: Address::v4(0xcb00_7105),
        port,
        protocol: protocol::TCP,
        sessions: sessions.to_vec(),
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

/// A port that pools use, one that nobody knows, and one of a database.
const POOL: u16 = 3_333;
const UNKNOWN: u16 = 23_456;
const DATABASE: u16 = 5_432;

fn judged(channel: &Channel, around: &Surroundings, listed: bool) -> Option<Judgement> {
    judge(channel, around, listed, 0.5, &settings())
}

fn told(channel: &Channel, around: &Surroundings, listed: bool) -> Option<String> {
    judged(channel, around, listed).filter(|judgement| judgement.passed).map(|judgement| judgement.method)
}

fn method(name: &str) -> Option<String> {
    Some(name.to_owned())
}

fn passes(port: u16, session: Session) -> bool {
    told(&channel(port, &[session]), &AROUND, false).is_some()
}

#[test]
fn a_session_of_that_shape_is_told_with_a_hint_or_without_one() {
    let on = |port, listed| told(&channel(port, &[session()]), &AROUND, listed);
    assert_eq!(on(POOL, false), method("pool_port"));
    assert_eq!(on(UNKNOWN, false), method("stratum_shape"));
    assert_eq!(on(UNKNOWN, true), method("pool_list"));
    assert_eq!(on(DATABASE, false), None, "a service with long thin sessions of its own");
    assert_eq!(on(DATABASE, true), method("pool_list"));
}

#[test]
fn nothing_is_judged_but_tcp_to_outside() {
    let sound = channel(POOL, &[session()]);
    assert!(judged(&sound, &AROUND, false).is_some());
    assert!(judged(&Channel { protocol: protocol::UDP, ..sound.clone() }, &AROUND, false).is_none());
    assert!(judged(&Channel { aws_service: true, ..sound.clone() }, &AROUND, false).is_none());
    assert!(judged(&sound, &Surroundings { internal: true, ..AROUND }, false).is_none());
    assert!(judged(&channel(POOL, &[]), &AROUND, false).is_none());
    let failed = Session { failed: true, ..session() };
    assert!(judged(&channel(POOL, &[failed]), &AROUND, false).is_none());
    for (windows, some) in [(1, false), (2, true)] {
        let short = Session { windows, ..session() };
        assert_eq!(judged(&channel(POOL, &[short]), &AROUND, false).is_some(), some, "{windows}");
    }
}

#[test]
fn the_longest_session_that_was_answered_is_judged() {
    let failed = Session { failed: true, end: EventTime(9_000), ..session() };
    let short = Session { opener_port: 50_000, ..lasting(300) };
    let judgement = judged(&channel(POOL, &[short, session(), failed]), &AROUND, false).unwrap();
    assert_eq!(judgement.evidence[0].value, 1_800.0);
    // Of two that are as long, the one of the higher port.
    let other = Session { opener_port: 40_001, received_packets: 90, ..session() };
    for order in [[session(), other], [other, session()]] {
        let judgement = judged(&channel(POOL, &order), &AROUND, false).unwrap();
        assert_eq!(judgement.evidence[3].value, 100.0);
    }
}

#[test]
fn two_minutes_suffice_with_a_hint_and_ten_without_one() {
    assert!(passes(POOL, lasting(120)) && !passes(POOL, lasting(119)));
    assert!(passes(UNKNOWN, lasting(600)) && !passes(UNKNOWN, lasting(599)));
}

#[test]
fn the_pool_speaks_in_half_of_the_minutes_with_a_hint_later_in_a_third_and_in_seven_of_ten_without_one() {
    let speaking = |received_windows| Session { received_windows, ..session() };
    let early = |received_windows| Session { received_windows, ..lasting(239) };
    assert!(passes(POOL, early(2)) && !passes(POOL, early(1)));
    assert!(passes(POOL, speaking(10)) && !passes(POOL, speaking(9)), "a job every two minutes or so");
    assert!(passes(UNKNOWN, speaking(21)) && !passes(UNKNOWN, speaking(20)));
}

#[test]
fn less_than_a_hundred_bytes_a_minute_is_a_keep_alive_and_more_than_thirty_thousand_a_transfer() {
    let of = |payload: u64| Session {
        sent_payload: payload / 2,
        received_payload: payload / 2,
        // Messages of 50 bytes, whatever the rate.
        sent_packets: (payload / 100) as u32,
        received_packets: (payload / 100) as u32,
        ..session()
    };
    assert!(passes(POOL, of(3_000)) && !passes(POOL, of(2_998)));
    assert!(passes(POOL, of(900_000)) && !passes(POOL, of(900_002)));
    // A third of it without a hint, in messages of 100 bytes.
    let larger = |payload: u64| {
        let packets = (payload / 200) as u32;
        Session { sent_packets: packets, received_packets: packets, ..of(payload) }
    };
    assert!(passes(UNKNOWN, larger(300_000)) && !passes(UNKNOWN, larger(300_002)));
}

#[test]
fn a_job_is_a_short_message_and_a_third_as_long_without_a_hint() {
    let of = |received_payload| Session { received_payload, received_packets: 10, ..session() };
    assert!(passes(POOL, of(12_000)) && !passes(POOL, of(12_001)));
    assert!(passes(UNKNOWN, of(4_000)) && !passes(UNKNOWN, of(4_001)));
}

#[test]
fn a_word_each_way_is_a_heartbeat_unless_a_list_says_otherwise() {
    let of = |payload| Session { sent_payload: payload, received_payload: payload, ..session() };
    for (port, least) in [(POOL, 40 * 60), (UNKNOWN, 70 * 60)] {
        assert!(passes(port, of(least)) && !passes(port, of(least - 1)), "port {port}");
    }
    assert!(judged(&channel(UNKNOWN, &[of(30 * 60)]), &AROUND, true).unwrap().passed);
}

#[test]
fn neither_side_sends_more_than_twenty_five_times_what_the_other_does() {
    let of = |sent_payload, received_payload| Session { sent_payload, received_payload, ..session() };
    assert!(passes(POOL, of(25_000, 1_000)) && !passes(POOL, of(25_001, 1_000)));
    assert!(passes(POOL, of(1_000, 25_000)) && !passes(POOL, of(1_000, 25_001)));
}

#[test]
fn a_place_that_half_of_our_hosts_use_is_no_pool_unless_a_list_says_so() {
    let miner = channel(POOL, &[session()]);
    let around = |clients, hosts| Surroundings { clients, hosts, ..AROUND };
    assert_eq!(told(&miner, &around(20.0, 40.0), false), method("pool_port"));
    assert_eq!(told(&miner, &around(20.5, 40.0), false), None);
    assert_eq!(told(&miner, &around(40.0, 40.0), true), method("pool_list"));
    assert_eq!(told(&miner, &around(4.0, 4.0), false), method("pool_port"), "too few hosts to tell");
    assert_eq!(told(&miner, &around(5.0, 5.0), false), None);
}

#[test]
fn every_number_stands_beside_its_threshold() {
    let judgement = judged(&channel(POOL, &[session()]), &AROUND, false).unwrap();
    let numbers: Vec<(&str, f64, Option<f64>)> =
        judgement.evidence.iter().map(|e| (&*e.name, e.value, e.threshold)).collect();
    assert_eq!(
        numbers,
        [
            ("session_length", 1_800.0, Some(120.0)),
            ("steadiness", 1.0, Some(1.0 / 3.0)),
            ("payload_rate", 600.0, Some(100.0)),
            ("message_size", 150.0, Some(1_200.0)),
            ("mean_message", 150.0, Some(40.0)),
            ("balance", 1.0, Some(25.0)),
            ("sent_to_received", 1.0, Some(25.0)),
            ("pool_port", 1.0, None),
            ("pool_list", 0.0, None),
            ("prevalence", 0.025, Some(0.5)),
        ]
    );
    assert_eq!(judgement.ratio, 15.0);
    let listed = judged(&channel(UNKNOWN, &[session()]), &AROUND, true).unwrap();
    assert_eq!((listed.evidence[7].value, listed.evidence[8].value), (0.0, 1.0));
    // Nothing is divided by nothing.
    let silent =
        Session { end: EventTime(1_000), sent_payload: 0, received_payload: 0, received_packets: 0, ..session() };
    let shape = Shape::of(&silent);
    assert_eq!((shape.seconds, shape.rate, shape.message, shape.balance), (1.0, 120.0, 1.0, 1.0));
    // A window more than there are whole minutes is not more than always.
    assert_eq!(Shape::of(&Session { received_windows: 31, ..session() }).steadiness, 1.0);
}

#[test]
fn a_miner_is_told_with_its_pool_and_why() {
    let of = |port, listed| {
        let earlier = Session { start: EventTime(500), end: EventTime(560), ..session() };
        let channel = channel(port, &[earlier, session()]);
        let judgement = judged(&channel, &AROUND, listed).unwrap();
        finding(&channel, &judgement, EventTime(2_760), 60)
    };
    let finding = of(POOL, false);
    assert_eq!(
        finding.summary,
        "10.0.0.5 works for 203.0.113.5 port 3333 (a port that mining pools use): one session of 30 min, 600 bytes a minute, \
         the other side speaks 100 % of the time"
    );
    assert_eq!((finding.first_seen, finding.last_seen), (EventTime(500), EventTime(2_800)));
    assert_eq!((finding.score, finding.targets[0].ports[0], finding.window), (0.9, POOL, EventTime(2_760)));
    let shaped = of(UNKNOWN, false);
    assert!(shaped.summary.contains("(an unknown service that behaves like a mining pool)"), "{}", shaped.summary);
    assert_eq!(shaped.score, 0.7);
    let listed = of(UNKNOWN, true);
    assert!(listed.summary.contains("(a listed mining pool)"), "{}", listed.summary);
    assert_eq!(listed.score, 0.9);
}
