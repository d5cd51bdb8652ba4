use super::*;
use crate::flow::EventTime;
use crate::statistical::channel::tests::{channel, session};

/// A session of so many seconds in which the other side spoke in so many of its minutes.
fn held(seconds: u32, spoke: u32, sent: u64, received: u64) -> Session {
    let first = session(0, sent, received);
    Session { end: EventTime(first.start.0 + seconds), windows: seconds / 60, received_windows: spoke, ..first }
}

fn listed(named: Threat, channel: &Channel, hint: Hint) -> Vec<(Threat, f64)> {
    let others = alternatives(named, mining_share(channel, hint));
    others.iter().map(|other| (other.threat, other.share)).collect()
}

#[test]
fn a_miners_shape_alone_leaves_an_implant_one_chance_in_eight_and_a_clear_hint_leaves_none() {
    let miner = |port| channel(port, vec![held(1_200, 20, 9_000, 16_000)]);
    assert_eq!(listed(Threat::CryptoMining, &miner(50_001), Hint::None), [(Threat::C2Beacon, 0.12)]);
    assert_eq!(listed(Threat::CryptoMining, &miner(4_444), Hint::Port), [(Threat::C2Beacon, 0.12)], "Metasploit's too");
    assert_eq!(listed(Threat::CryptoMining, &miner(3_333), Hint::Port), []);
    assert_eq!(listed(Threat::CryptoMining, &miner(4_444), Hint::List), []);
}

#[test]
fn who_calls_again_and_again_mines_for_nobody() {
    let calls = channel(443, (0..12).map(|n| session(n, 300, 400)).collect());
    assert_eq!(listed(Threat::C2Beacon, &calls, Hint::None), []);
    let one_is_most_of_it = channel(443, vec![session(0, 300, 400), session(1, 3_000, 4_000)]);
    assert!(mining_share(&calls, Hint::None) < 0.1 && mining_share(&one_is_most_of_it, Hint::None) < 0.1);
}

#[test]
fn who_reports_more_than_it_is_told_is_the_likelier_an_implant_and_may_still_be_a_miner() {
    let reports = channel(50_001, vec![held(1_200, 4, 40_000, 9_000)]);
    let share = mining_share(&reports, Hint::None);
    assert!((0.1..0.95).contains(&share), "{share}");
    let balanced = channel(50_001, vec![held(1_200, 4, 9_000, 9_000)]);
    assert!(share < mining_share(&balanced, Hint::None));
}

#[test]
fn what_is_named_first_has_half_of_it_at_least_and_what_is_below_a_tenth_is_not_named() {
    let shares = |named, share| alternatives(named, share).iter().map(|other| other.share).collect::<Vec<_>>();
    assert_eq!(shares(Threat::C2Beacon, 0.9), [0.5]);
    assert_eq!(shares(Threat::CryptoMining, 0.3), [0.5]);
    assert_eq!(shares(Threat::C2Beacon, 0.314), [0.31]);
    assert_eq!(shares(Threat::C2Beacon, 0.094), [0.0; 0]);
    assert_eq!(shares(Threat::Tor, 0.5), [0.0; 0]);
}
