use super::*;
use crate::statistical::conversation::tests::{address, call, probe};

const WINDOW: EventTime = EventTime(960);

/// A conversation on an interface.
fn talk(interface: u32, from: &str, to: &str) -> Conversation {
    let (opener, responder) = (address(from), address(to));
    Conversation { opener, responder, interface: InterfaceId(interface), ours: false, theirs: false, ..call() }
}

/// What is learned from windows of conversations.
fn learned(windows: &[Vec<Conversation>]) -> Owners {
    let mut owners = Owners::default();
    for (n, window) in windows.iter().enumerate() {
        owners.note(window.iter(), EventTime(WINDOW.0 + 60 * n as u32));
        owners.settle(|_| false);
    }
    owners
}

fn owned(owners: &Owners) -> Vec<String> {
    let mut owned: Vec<&Address> = owners.owned.keys().collect();
    owned.sort_unstable();
    owned.into_iter().map(Address::to_string).collect()
}

#[test]
fn an_interface_is_owned_by_the_address_that_meets_all_others_client_or_server() {
    let client = (1..9).map(|n| talk(1, "2001:db8::7", &format!("2a00:{n}::1"))).collect();
    assert_eq!(owned(&learned(&[client])), ["2001:db8::7"]);
    let server = (1..9).map(|n| talk(1, &format!("2a00:{n}::1"), "2001:db8::7")).collect();
    assert_eq!(owned(&learned(&[server])), ["2001:db8::7"]);
}

#[test]
fn pods_of_a_node_are_neighbours_and_the_collector_that_all_of_them_call_is_not_theirs() {
    let pods = || -> Vec<Conversation> {
        let to_collector = (1..9).map(|n| talk(1, &format!("2001:db8::{n}"), "2a00:1::1"));
        let elsewhere = (1..9).map(|n| talk(1, &format!("2001:db8::{n}"), &format!("2a00:{n}::9")));
        to_collector.chain(elsewhere).collect()
    };
    let owners = learned(&[pods()]);
    assert_eq!(owners.len(), 8);
    assert!(!owners.owns(address("2a00:1::1")));
}

#[test]
fn where_there_is_one_partner_only_the_opener_is_ours_after_three_windows() {
    let window = || vec![talk(1, "2001:db8::7", "2a00:1::1")];
    assert_eq!(learned(&[window(), window()]).len(), 0);
    assert_eq!(owned(&learned(&[window(), window(), window()])), ["2001:db8::7"]);
}

#[test]
fn a_first_client_that_was_taken_for_the_owner_is_given_up_when_a_second_one_comes() {
    let from = |n: u32| talk(1, &format!("2a00:{n}::1"), "2001:db8::7");
    let mut windows = vec![vec![from(1)], vec![from(1)], vec![from(1)]];
    assert_eq!(owned(&learned(&windows)), ["2a00:1::1"]);
    windows.push(vec![from(2), from(3)]);
    assert_eq!(owned(&learned(&windows)), ["2001:db8::7"]);
}

#[test]
fn the_direction_of_a_flow_names_the_owner_at_once() {
    let mut c = talk(1, "2a00:1::1", "2001:db8::7");
    (c.sent.marks, c.received.marks) = (Marks::INGRESS.0, Marks::EGRESS.0);
    assert_eq!(owned(&learned(&[vec![c]])), ["2001:db8::7"]);
}

#[test]
fn who_never_spoke_owns_nothing_and_an_intermediary_logs_the_addresses_of_others() {
    let flood = |n: u32| Conversation {
        opener: address(&format!("2a00:{n}::1")),
        responder: address("2001:db8::7"),
        interface: InterfaceId(1),
        ours: false,
        ..probe()
    };
    assert!(!learned(&[(1..99).map(flood).collect()]).owns(address("2001:db8::7")));
    let mut passed_on = talk(1, "2001:db8::7", "2a00:1::1");
    passed_on.sent.marks = Marks::INTERMEDIARY.0;
    assert!(learned(&[vec![passed_on; 3], vec![passed_on], vec![passed_on]]).is_empty());
    let nameless = (1..9).map(|n| talk(0, "2001:db8::7", &format!("2a00:{n}::1"))).collect();
    assert!(learned(&[nameless]).is_empty(), "records without an interface tell nothing");
}

#[test]
fn a_veto_holds_against_what_an_interface_says() {
    let mut owners = Owners::default();
    let talks: Vec<Conversation> = (1..9).map(|n| talk(1, "2001:db8::7", &format!("2a00:{n}::1"))).collect();
    owners.note(talks.iter(), WINDOW);
    owners.settle(|address| address.to_string() == "2001:db8::7");
    assert!(owners.is_empty());
}

#[test]
fn what_one_engine_learned_another_takes_over() {
    let mut one = learned(&[(1..9).map(|n| talk(1, "2001:db8::7", &format!("2a00:{n}::1"))).collect()]);
    let other = learned(&[(1..9).map(|n| talk(1, "2001:db8::8", &format!("2a00:{n}::1"))).collect()]);
    one.join(other, |id| InterfaceId(id.0 + 1));
    assert_eq!(owned(&one), ["2001:db8::7", "2001:db8::8"]);
    assert_eq!(one.owned[&address("2001:db8::8")], InterfaceId(2));
}

#[test]
fn what_is_counted_on_the_way_is_what_counting_anew_gives() {
    let mut learner = Learner::default();
    let mut random = crate::random::Random::seeded(7);
    for n in 0..20_000u32 {
        // Few enough blocks that they overtake each other, and enough addresses that some are forgotten.
        let it = match random.below(3) {
            0 => format!("2a00:{}::{}", random.below(4), random.below(90)),
            _ => format!("198.{}.0.{}", random.below(40), random.below(20)),
        };
        let with = Address::v4(random.below(64) as u32);
        let window = EventTime(WINDOW.0 + n / 100 * 60);
        learner.note(address(&it), with, window, random.below(2) == 0, true, false);
        if n % 97 == 0 {
            let (lead, decided) = (learner.lead, learner.owners());
            learner.count();
            assert_eq!(
                (lead.block, lead.most, lead.second),
                (learner.lead.block, learner.lead.most, learner.lead.second)
            );
            assert_eq!(decided, learner.owners());
        }
    }
    assert!(learner.candidates.len() > 200 && learner.candidates.len() <= CANDIDATES_MAX);
}

#[test]
fn nothing_hangs_on_the_order_of_a_windows_conversations() {
    // Every minute the interface's own address asks the other and is asked by it.
    let window = |own_first: bool| {
        let mut talks = vec![talk(1, "2001:db8::7", "2a00:1::1"), talk(1, "2a00:1::1", "2001:db8::7")];
        talks.push(talk(1, "2001:db8::7", "2a00:1::1"));
        if !own_first {
            talks.reverse();
            talks.swap(0, 1);
        }
        talks
    };
    let counts = |own_first: bool| {
        let owners = learned(&[window(own_first), window(own_first), window(own_first)]);
        let of = |name: &str| owners.learning[&InterfaceId(1)].candidates[&address(name)].opened;
        (of("2001:db8::7"), of("2a00:1::1"))
    };
    assert_eq!(counts(true), (3, 3));
    assert_eq!(counts(false), (3, 3));
}
