use super::*;
use crate::settings;
use crate::statistical::conversation::Outcome;
use crate::statistical::conversation::tests::{address, at, call, direction, probe};
use crate::statistical::intel::AddressList;

fn settings() -> Settings {
    settings::Settings::assemble(&[]).expect("the embedded defaults are right").statistical.tor
}

fn lists() -> Lists {
    let tor_relays = AddressList::parse("198.51.100.1:443\n198.51.100.2:9001\n").unwrap();
    Lists { tor_relays, ..Lists::default() }
}

const AUTHORITY: &str = "128.31.0.39";
const HOST: &str = "10.0.0.5";

/// A handshake and a cell each way, with a peer on a port.
fn cells(peer: &str, port: u16) -> Conversation {
    Conversation { responder: address(peer), port, sent: direction(6, 840), received: direction(5, 1_200), ..call() }
}

/// A peer that no list knows.
fn peer(n: u32) -> Address {
    Address::v4(0xcb00_7100 + n)
}

fn contacts(all: &[(Conversation, Kind)]) -> Contacts {
    let mut contacts = Contacts::default();
    for (c, kind) in all {
        contacts.note(c, *kind);
    }
    contacts
}

/// So many contacts with peers of their own.
fn several(n: u32, kind: Kind) -> Vec<(Conversation, Kind)> {
    let first = 100 * (1 + kind as u32);
    (0..n).map(|k| (Conversation { responder: peer(first + k), ..cells("203.0.113.1", 9_001) }, kind)).collect()
}

#[test]
fn a_contact_is_an_authority_a_listed_pair_or_an_or_port() {
    let kind = |c: &Conversation| kind(c, &lists(), &settings());
    assert_eq!(kind(&cells(AUTHORITY, 443)), Some(Kind::Authority));
    assert_eq!(kind(&cells("198.51.100.1", 443)), Some(Kind::Listed));
    assert_eq!(kind(&cells("198.51.100.2", 9_001)), Some(Kind::Listed));
    assert_eq!(kind(&cells("198.51.100.1", 80)), None, "a web server on a relay's address");
    assert_eq!(kind(&cells("198.51.100.9", 9_001)), Some(Kind::OrPort));
    assert_eq!(kind(&cells("198.51.100.9", 9_000)), None);
    assert_eq!(kind(&Conversation { theirs: true, ..cells("198.51.100.9", 9_102) }), None, "an exporter of ours");
    assert_eq!(kind(&cells("192.168.7.30", 9_102)), None, "a neighbour's Bacula");
}

#[test]
fn a_contact_was_answered_and_carried_a_cell() {
    let kind = |c: &Conversation| kind(c, &lists(), &settings());
    let with = |sent: u64, received: u64| {
        kind(&Conversation {
            sent: direction(1, 40 + sent),
            received: direction(1, 40 + received),
            ..cells(AUTHORITY, 443)
        })
    };
    assert!(with(200, 500).is_some());
    assert!(with(199, 500).is_none());
    assert!(with(200, 499).is_none());
    assert!(kind(&Conversation { protocol: protocol::UDP, ..cells(AUTHORITY, 443) }).is_none());
    assert!(kind(&Conversation { outcome: Outcome::Refused, ..cells(AUTHORITY, 443) }).is_none());
    assert!(kind(&Conversation { responder: address(AUTHORITY), ..probe() }).is_none());
}

#[test]
fn a_peer_is_known_from_first_to_last_by_its_lowest_port_and_surest_kind() {
    let early = at(10, cells("198.51.100.2", 9_001));
    let late = Conversation { interface: crate::flow::InterfaceId(7), ..at(90, cells("198.51.100.2", 9_030)) };
    for order in [[(early, Kind::Listed), (late, Kind::OrPort)], [(late, Kind::OrPort), (early, Kind::Listed)]] {
        let contacts = contacts(&order);
        let known = (EventTime(1_010), EventTime(1_091), 9_001, Kind::Listed);
        assert_eq!(contacts.peers.values().collect::<Vec<_>>(), [&known]);
        assert_eq!(contacts.interface().0, 7);
    }
    let known = contacts(&[(early, Kind::Listed)]);
    assert!(!known.is_over(EventTime(1_011)) && known.is_over(EventTime(1_012)));
}

#[test]
fn there_is_room_for_so_many_peers_and_those_that_are_known_stay_up_to_date() {
    let room = Contacts::PEERS_MAX as u32;
    let mut contacts = contacts(&several(room + 1, Kind::OrPort));
    assert_eq!(contacts.peers.len(), room as usize);
    contacts.note(&Conversation { responder: peer(300), ..at(60, cells(HOST, 9_001)) }, Kind::OrPort);
    assert_eq!(contacts.peers[&peer(300)].1, EventTime(1_061));
}

#[test]
fn one_authority_two_listed_relays_or_three_or_ports_tell() {
    let told = |all: &[(Conversation, Kind)]| {
        let judgement = contacts(all).judge(&settings(), EventTime(1_020));
        judgement.passed.then_some(judgement.method)
    };
    let method = |name: &str| Some(name.to_owned());
    assert_eq!(told(&several(1, Kind::Authority)), method("authority"));
    assert_eq!(told(&several(2, Kind::Listed)), method("relay_list"));
    assert_eq!(told(&several(1, Kind::Listed)), None);
    assert_eq!(told(&several(3, Kind::OrPort)), method("or_ports"));
    assert_eq!(told(&several(2, Kind::OrPort)), None);
    // A listed one counts beside those that are not.
    let mixed = |listed, unlisted| [several(listed, Kind::Listed), several(unlisted, Kind::OrPort)].concat();
    assert_eq!(told(&mixed(1, 2)), method("or_ports"));
    assert_eq!(told(&mixed(1, 1)), None);
}

#[test]
fn every_number_stands_beside_its_threshold() {
    let all = [several(1, Kind::Listed), several(1, Kind::OrPort)].concat();
    let judgement = contacts(&all).judge(&settings(), EventTime(1_020));
    let numbers: Vec<(&str, f64, Option<f64>)> =
        judgement.evidence.iter().map(|e| (&*e.name, e.value, e.threshold)).collect();
    assert_eq!(
        numbers,
        [
            ("directory_authorities", 0.0, Some(1.0)),
            ("listed_relays", 1.0, Some(2.0)),
            ("or_port_peers", 1.0, Some(3.0)),
        ]
    );
    assert_eq!((judgement.ratio, judgement.method.as_str()), (2.0 / 3.0, "or_ports"));
}

#[test]
fn contacts_are_put_together_over_an_hour() {
    let after =
        |seconds: u32| contacts(&several(2, Kind::Listed)).judge(&settings(), EventTime(1_001 + seconds)).passed;
    assert!(after(3_600));
    assert!(!after(3_601));
}

#[test]
fn a_host_is_told_again_when_it_meets_another_peer() {
    let mut contacts = contacts(&several(2, Kind::Listed));
    assert!(contacts.news());
    let judgement = contacts.judge(&settings(), EventTime(1_020));
    contacts.finding(address(HOST), &judgement, EventTime(960), 60);
    assert!(!contacts.news());
    contacts.note(&cells("198.51.100.77", 9_001), Kind::OrPort);
    assert!(contacts.news());
}

#[test]
fn a_host_that_meets_as_many_other_peers_on_another_day_is_told_again() {
    let mut contacts = contacts(&several(2, Kind::Listed));
    let judgement = contacts.judge(&settings(), EventTime(1_020));
    contacts.finding(address(HOST), &judgement, EventTime(960), 60);
    for n in 0..2 {
        contacts.note(&Conversation { responder: peer(n), ..at(86_400, cells(HOST, 9_001)) }, Kind::Listed);
    }
    assert!(contacts.judge(&settings(), EventTime(86_400 + 1_020)).passed);
    assert!(contacts.news());
    contacts.finding(address(HOST), &judgement, EventTime(86_400 + 960), 60);
    contacts.judge(&settings(), EventTime(86_400 + 1_080));
    assert!(!contacts.news(), "nothing new within the hour");
}

#[test]
fn the_statement_names_peers_span_and_why() {
    let of = |all: &[(Conversation, Kind)]| {
        let mut contacts = contacts(all);
        let judgement = contacts.judge(&settings(), EventTime(1_020));
        contacts.finding(address(HOST), &judgement, EventTime(960), 60)
    };
    let mut listed = several(40, Kind::Listed);
    listed[0].0 = Conversation { opener_port: 1, ..at(30, listed[0].0) };
    let finding = of(&listed);
    assert_eq!(finding.sentence(), "10.0.0.5 uses Tor: it was answered by listed Tor relays (40 peers)");
    assert_eq!((finding.targets.len(), finding.target_count, finding.score), (32, 40, 0.95));
    assert_eq!((finding.first_seen, finding.last_seen), (EventTime(1_000), EventTime(1_031)));
    assert_eq!((finding.targets[0].address, &finding.targets[0].ports), (peer(200), &vec![9_001]));
    let shaped = of(&several(3, Kind::OrPort));
    assert!(shaped.sentence().contains("several addresses on the ports of Tor relays at once (3 peers)"));
    assert_eq!(shaped.score, 0.75);
    let authority = of(&several(1, Kind::Authority));
    assert!(authority.sentence().contains("a Tor directory authority (1 peers)"));
    assert_eq!(authority.score, 0.95);
}
