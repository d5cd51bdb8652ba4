//! Finds our NAT gateways where the log does not name them.
//!
//! The default format has no packet addresses: a gateway then looks like a host that does everything its clients do, and
//! every anomaly would be told twice, once about the client and once about the gateway. What gives a gateway away is that
//! its conversations *repeat* those of several other hosts of ours, to the byte, in the same minute. A fleet of equal
//! hosts that call one place repeat each other too, but none of them does more than the others; a gateway does what all of them
//! do together.

use std::collections::{BTreeMap, BTreeSet};

use crate::flow::Address;
use crate::statistical::conversation::{Conversation, Outcome};

/// Conversations of one host that another host had as well, before it can be a gateway: a few may be chance.
const REPEATED_MIN: u32 = 20;
/// And so large a share of all it had; long sessions are cut at other moments by each interface and do not repeat.
const REPEATED_SHARE: f64 = 0.3;
/// Exchanges below this many bytes are alike for everybody (a name looked up, a clock set).
const BYTES_MIN: u64 = 1_000;

#[derive(Default)]
struct Repeats {
    all: u32,
    repeated: u32,
    of: BTreeSet<Address>,
}

/// The hosts that were gateways in this window, by address.
pub fn gateways(conversations: &[Conversation], is_internal: impl Fn(Address) -> bool) -> Vec<Address> {
    let mut exchanges: Vec<_> = conversations
        .iter()
        .filter(|c| c.outcome == Outcome::Answered && c.sent.bytes + c.received.bytes >= BYTES_MIN)
        .filter(|c| is_internal(c.opener) && !is_internal(c.responder))
        .map(|c| ((c.responder, c.port, c.protocol, c.sent.bytes, c.received.bytes), c.opener))
        .collect();
    exchanges.sort_unstable();
    let mut hosts: BTreeMap<Address, Repeats> = BTreeMap::new();
    for same in exchanges.chunk_by(|a, b| a.0 == b.0) {
        let openers: BTreeSet<Address> = same.iter().map(|&(_, opener)| opener).collect();
        for &(_, opener) in same {
            let host = hosts.entry(opener).or_default();
            host.all += 1;
            // More than a few openers of one exchange are a fleet, and say nothing of who repeats whom.
            if (2..=3).contains(&openers.len()) {
                host.repeated += 1;
                host.of.extend(openers.iter().filter(|&&other| other != opener));
            }
        }
    }
    let does_more = |host: &Repeats| {
        host.of.iter().all(|other| hosts.get(other).is_none_or(|o| f64::from(host.all) >= 1.5 * f64::from(o.all)))
    };
    hosts
        .iter()
        .filter(|(_, host)| host.repeated >= REPEATED_MIN && host.of.len() >= 2)
        .filter(|(_, host)| f64::from(host.repeated) >= REPEATED_SHARE * f64::from(host.all) && does_more(host))
        .map(|(&address, _)| address)
        .collect()
}
