//! Finds our NAT gateways where the log does not name them.
//!
//! The default format has no packet addresses: a gateway then looks like a host that does everything its clients do, and
//! every anomaly would be told twice, once about the client and once about the gateway. What gives a gateway away is that
//! its conversations *repeat* those of several other hosts of ours, to the byte, in the same minute. A fleet of equal
//! hosts that call one place repeat each other too, but none of them does more than the others; a gateway does what all of them
//! do together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};

use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};
use crate::statistical::conversation::{Conversation, Outcome};

/// Conversations of one host that another host had as well, before it can be a gateway: a few may be chance.
const REPEATED_MIN: u32 = 20;
/// And so large a share of all it had; long sessions are cut at other moments by each interface and do not repeat.
const REPEATED_SHARE: f64 = 0.3;
/// Exchanges below this many bytes are alike for everybody (a name looked up, a clock set).
const BYTES_MIN: u64 = 1_000;

/// A host that was found to repeat others.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Gateway {
    windows: u32,
    last: EventTime,
}

impl Gateway {
    /// After a day without repeating anybody it is a host like any other: addresses are given to others.
    const FORGOTTEN_SECONDS: u32 = 86_400;

    /// Notes a window in which it repeated others.
    pub fn note(&mut self, window: EventTime) {
        self.windows = self.windows.saturating_add(1);
        self.last = self.last.max(window);
    }

    /// Takes over what another engine has noted of the same host.
    pub fn join(&mut self, other: &Gateway) {
        // Noted at different times is noted in two windows at least.
        let apart = self.windows > 0 && other.windows > 0 && self.last != other.last;
        self.windows = self.windows.max(other.windows).max(if apart { 2 } else { 0 });
        self.last = self.last.max(other.last);
    }

    /// Twice, so that one odd minute does not take a host out of sight.
    pub fn is_certain(&self) -> bool {
        self.windows >= 2
    }

    /// Whether it is no longer one.
    pub fn is_over(&self, now: EventTime) -> bool {
        now.since(self.last) > Gateway::FORGOTTEN_SECONDS
    }
}

#[derive(Default)]
struct Repeats {
    all: u32,
    repeated: u32,
    of: BTreeSet<Address>,
}

/// The hosts that were gateways in this window, by address.
pub fn gateways(conversations: &[Conversation]) -> Vec<Address> {
    // Equal exchanges are brought together by a hash of what they have in common: two of a window's million exchanges
    // share one by chance with p < 10^-6, and then one conversation is counted wrongly.
    let mut exchanges: Vec<(u64, u32)> = conversations
        .iter()
        .zip(0..)
        .filter(|(c, _)| c.ours && !c.theirs && c.outcome == Outcome::Answered)
        .filter(|(c, _)| c.sent.bytes + c.received.bytes >= BYTES_MIN)
        .map(|(c, at)| (exchange(c), at))
        .collect();
    exchanges.sort_unstable();
    let opener = |&(_, at): &(u64, u32)| conversations[at as usize].opener;
    let mut hosts: BTreeMap<Address, Repeats> = BTreeMap::new();
    for same in exchanges.chunk_by(|a, b| a.0 == b.0) {
        let openers: BTreeSet<Address> = same.iter().map(opener).collect();
        for opener in same.iter().map(opener) {
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

/// What an exchange has in common with its translation.
fn exchange(c: &Conversation) -> u64 {
    let mut hasher = foldhash::fast::FixedState::with_seed(0).build_hasher();
    hasher.write_u128(c.responder.bits());
    hasher.write_u64(c.sent.bytes);
    hasher.write_u64(c.received.bytes);
    hasher.write_u32(u32::from(c.port) << 8 | u32::from(c.protocol));
    hasher.finish()
}

#[cfg(test)]
mod tests;
