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

#[test]
fn a_gateway_is_certain_from_the_second_window_on_and_forgotten_after_a_day() {
    let mut gateway = Gateway::default();
    gateway.note(EventTime(1_060));
    assert!(!gateway.is_certain());
    gateway.note(EventTime(1_000));
    assert!(gateway.is_certain());
    assert!(!gateway.is_over(EventTime(1_060 + 86_400)));
    assert!(gateway.is_over(EventTime(1_061 + 86_400)));
}
