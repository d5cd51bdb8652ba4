use super::*;
use crate::statistical::conversation::tests::{address, call, direction};

fn host(n: u32) -> Address {
    Address::v4(0x0a00_0000 + n)
}

fn gateway() -> Address {
    address("10.0.9.9")
}

/// An exchange of a host that no other number has.
fn exchange_of(opener: Address, n: u64) -> Conversation {
    Conversation { opener, sent: direction(5, 600 + n), received: direction(5, 9_000 + n), ..call() }
}

/// What each of the hosts did, so many exchanges each, and what the gateway repeats of it.
fn translated(of_hosts: &[u64]) -> Vec<Conversation> {
    let mut all = Vec::new();
    for (host_number, &exchanges) in (1..).zip(of_hosts) {
        for n in 0..exchanges {
            let one = exchange_of(host(host_number), u64::from(host_number) * 1_000 + n);
            all.extend([one, Conversation { opener: gateway(), ..one }]);
        }
    }
    all
}

/// The same with every exchange changed.
fn changed(of_hosts: &[u64], change: impl Fn(Conversation) -> Conversation) -> Vec<Conversation> {
    translated(of_hosts).into_iter().map(change).collect()
}

#[test]
fn who_repeats_twenty_exchanges_of_two_hosts_is_a_gateway() {
    assert_eq!(gateways(&translated(&[10, 10])), [gateway()]);
    assert_eq!(gateways(&translated(&[10, 9])), [], "nineteen may be chance");
    assert_eq!(gateways(&translated(&[20])), [], "one host's twin");
    assert_eq!(gateways(&[]), []);
}

#[test]
fn a_gateway_does_half_as_much_again_as_any_of_its_hosts() {
    assert_eq!(gateways(&translated(&[14, 7])), [gateway()]);
    assert_eq!(gateways(&translated(&[15, 7])), []);
}

#[test]
fn a_gateway_repeats_three_tenths_of_what_it_does() {
    let beside = |own: u64| {
        let mut all = translated(&[11, 10]);
        all.extend((0..own).map(|n| exchange_of(gateway(), 90_000 + n)));
        gateways(&all)
    };
    assert_eq!(beside(49), [gateway()]);
    assert_eq!(beside(50), []);
}

#[test]
fn an_exchange_of_more_than_three_hosts_is_a_fleets() {
    // Every exchange of the first host is also one of others.
    let shared_by = |more: u32| {
        let mut all = translated(&[10, 10]);
        let first: Vec<Conversation> = all.iter().filter(|c| c.opener == host(1)).copied().collect();
        for n in 0..more {
            all.extend(first.iter().map(|c| Conversation { opener: host(50 + n), ..*c }));
        }
        gateways(&all)
    };
    assert_eq!(shared_by(1), [gateway()]);
    assert_eq!(shared_by(2), [], "ten of twenty are left");
}

#[test]
fn exchanges_that_are_alike_for_everybody_say_nothing() {
    // Each of the twenty differs from the others by how its bytes are divided.
    let sized = |bytes: u64| {
        changed(&[10, 10], |c| {
            let number = c.sent.bytes - 600;
            let sent = 300 + number % 1_000 + number / 1_000 * 10;
            Conversation { sent: direction(1, sent), received: direction(1, bytes - sent), ..c }
        })
    };
    assert_eq!(gateways(&sized(1_000)), [gateway()]);
    assert_eq!(gateways(&sized(999)), []);
}

#[test]
fn only_answered_exchanges_of_ours_with_outside_count() {
    assert_eq!(gateways(&changed(&[10, 10], |c| Conversation { ours: false, ..c })), []);
    assert_eq!(gateways(&changed(&[10, 10], |c| Conversation { theirs: true, ..c })), []);
    assert_eq!(gateways(&changed(&[10, 10], |c| Conversation { outcome: Outcome::Unanswered, ..c })), []);
}

#[test]
fn an_exchange_is_known_by_peer_service_and_both_amounts() {
    let differing = |change: fn(Conversation) -> Conversation| {
        let by_gateway = |c: Conversation| if c.opener == gateway() { change(c) } else { c };
        gateways(&changed(&[10, 10], by_gateway))
    };
    assert_eq!(differing(|c| Conversation { opener_port: 1, ..c }), [gateway()], "a translated port differs");
    assert_eq!(differing(|c| Conversation { responder: address("203.0.113.10"), ..c }), []);
    assert_eq!(differing(|c| Conversation { port: 442, ..c }), []);
    assert_eq!(differing(|c| Conversation { port: 699, ..c }), [], "the lower octet of 443");
    assert_eq!(differing(|c| Conversation { protocol: 17, ..c }), []);
    assert_eq!(differing(|c| Conversation { sent: c.received, received: c.sent, ..c }), []);
    assert_eq!(differing(|c| Conversation { sent: direction(5, c.sent.bytes + 1), ..c }), []);
    assert_eq!(differing(|c| Conversation { received: direction(5, c.received.bytes + 1), ..c }), []);
}

/// What the gateway's own interface logs of what each of the hosts does: their legs, and its own.
fn relayed(of_hosts: &[u64]) -> Vec<Conversation> {
    let own_leg = |c: Conversation| c.opener == gateway();
    let inside = |c: Conversation| Conversation { responder: gateway(), theirs: true, opener_port: 40_000, ..c };
    translated(of_hosts).into_iter().map(|c| if own_leg(c) { c } else { inside(c) }).collect()
}

#[test]
fn who_passes_on_twenty_exchanges_of_two_hosts_is_a_gateway() {
    assert_eq!(relays(&relayed(&[10, 10])), [gateway()]);
    assert_eq!(relays(&relayed(&[19, 1])), [gateway()], "it need not do more than each of them");
    assert_eq!(relays(&relayed(&[10, 9])), [], "nineteen may be chance");
    assert_eq!(relays(&relayed(&[20])), [], "one host behind another");
    assert_eq!(relays(&translated(&[10, 10])), [], "nobody asked it");
    assert_eq!(relays(&[]), []);
}

#[test]
fn a_gateway_passes_on_three_tenths_of_what_it_does() {
    let beside = |own: u64| {
        let mut all = relayed(&[11, 10]);
        all.extend((0..own).map(|n| exchange_of(gateway(), 90_000 + n)));
        relays(&all)
    };
    assert_eq!(beside(49), [gateway()]);
    assert_eq!(beside(50), []);
}

#[test]
fn both_legs_of_what_is_passed_on_are_of_the_same_packets() {
    let differing = |change: fn(Conversation) -> Conversation| {
        let own = |c: Conversation| if c.opener == gateway() { change(c) } else { c };
        relays(&relayed(&[10, 10]).into_iter().map(own).collect::<Vec<_>>())
    };
    assert_eq!(differing(|c| Conversation { opener_port: 1, ..c }), [gateway()]);
    assert_eq!(differing(|c| Conversation { port: 442, ..c }), []);
    assert_eq!(differing(|c| Conversation { protocol: 17, ..c }), []);
    assert_eq!(
        differing(|c| Conversation { sent: direction(6, c.sent.bytes), ..c }),
        [],
        "a proxy sends packets of its own"
    );
    assert_eq!(differing(|c| Conversation { received: direction(6, c.received.bytes), ..c }), []);
    assert_eq!(differing(|c| Conversation { sent: direction(5, c.sent.bytes + 1), ..c }), []);
    assert_eq!(differing(|c| Conversation { received: direction(5, c.received.bytes + 1), ..c }), []);
    assert_eq!(differing(|c| Conversation { outcome: Outcome::Unanswered, ..c }), []);
}

/// Who opened what with whom, after the clients were put in the gateway's place.
fn attributed(mut all: Vec<Conversation>) -> (Vec<(Address, Address, u16)>, usize) {
    let before = all.len();
    attribute(&mut all, |address| address == gateway(), |_| false);
    let gone = before - all.len();
    (all.iter().map(|c| (c.opener, c.responder, c.opener_port)).collect(), gone)
}

#[test]
fn what_a_gateway_passes_on_is_its_clients() {
    let peer = call().responder;
    let (found, gone) = attributed(relayed(&[1, 2]));
    assert_eq!(found, [(host(1), peer, 40_000), (host(2), peer, 40_000), (host(2), peer, 40_000)]);
    assert_eq!(gone, 3);
}

#[test]
fn an_attempt_that_nothing_came_of_is_the_clients_as_well() {
    let nothing = |c: Conversation| Conversation { received: direction(0, 0), outcome: Outcome::Unanswered, ..c };
    let attempts = relayed(&[3]).into_iter().map(nothing).collect();
    assert_eq!(attributed(attempts).0.iter().filter(|(opener, ..)| *opener == host(1)).count(), 3);
}

#[test]
fn a_client_whose_own_interface_is_logged_has_told_already() {
    let mut all = relayed(&[2, 1]);
    let own = Conversation { opener: host(1), ..exchange_of(host(1), 77) };
    all.push(own);
    let (found, _) = attributed(all);
    assert_eq!(found, [(host(2), own.responder, 40_000), (host(1), own.responder, own.opener_port)]);
}

#[test]
fn what_may_be_one_clients_or_anothers_is_nobodys_and_so_is_what_the_gateway_does_by_itself() {
    let mut all = relayed(&[1]);
    let twin = Conversation { opener: host(2), ..all[0] };
    all.extend([twin, Conversation { opener: gateway(), ..exchange_of(gateway(), 5) }]);
    assert_eq!(attributed(all), (vec![], 4));
}

#[test]
fn a_gateway_between_networks_of_ours_passes_on_as_well_and_may_ask_others_itself() {
    let other = address("172.16.0.7");
    let onwards = |c: Conversation| match c.opener == gateway() {
        true => Conversation { responder: other, theirs: true, ..c },
        false => c,
    };
    let mut all: Vec<Conversation> = relayed(&[1]).into_iter().map(onwards).collect();
    let own = onwards(Conversation { opener: gateway(), ..exchange_of(gateway(), 5) });
    all.push(own);
    let expected = vec![(host(1), other, 40_000), (gateway(), other, own.opener_port)];
    assert_eq!(attributed(all), (expected, 1));
}

#[test]
fn who_asks_the_gateway_itself_stays_in_sight() {
    let asked = Conversation { opener: host(3), responder: gateway(), theirs: true, port: 22, ..call() };
    assert_eq!(attributed(vec![asked]), (vec![(host(3), gateway(), asked.opener_port)], 0));
}

#[test]
fn conversations_with_packet_addresses_are_left_alone() {
    let mut all = relayed(&[1, 1]);
    attribute(&mut all, |address| address == gateway(), |c| c.opener == gateway());
    assert_eq!(all.len(), 4);
}

#[test]
fn a_gateway_is_certain_from_the_second_window_on_and_forgotten_after_a_day() {
    let mut gateway = Gateway::default();
    gateway.note(EventTime(1_060));
    assert!(!gateway.is_certain());
    gateway.note(EventTime(1_000));
    assert!(gateway.is_certain());
    assert!(!gateway.is_over(EventTime(1_060 + 86_400)));
    assert!(gateway.is_over(EventTime(1_061 + 86_400)));
    let mut relay = Gateway::default();
    relay.note_relaying(EventTime(1_000));
    assert!(relay.is_certain(), "what it passes on leaves no doubt");
}
