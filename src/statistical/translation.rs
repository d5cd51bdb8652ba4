//! Finds our NAT gateways where the log does not name them, and whose traffic it is that they pass on.
//!
//! The default format has no packet addresses: a gateway then looks like a host that does everything its clients do, and
//! every anomaly would be told twice, once about the client and once about the gateway. Two things give it away.
//!
//! - Its own interface logs every conversation twice: the client's with the gateway, for the interface's address stands for the
//!   packet's, and the gateway's with the service, at the same port, of the same packets ("Traffic through a NAT gateway" in
//!   the examples of the VPC flow log documentation). So the gateway is known, and who is behind it, although the clients'
//!   own interfaces are in other shards, or not logged at all.
//! - Its conversations *repeat* those of several other hosts of ours, to the byte, in the same minute. A fleet of equal
//!   hosts that call one place repeat each other too, but none of them does more than the others; a gateway does what all of them
//!   do together.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher};

use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};
use crate::statistical::conversation::{Conversation, Outcome};
use crate::statistical::{Map, Set};

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

    /// Notes a window in which it passed on what others had sent to it: that leaves no doubt.
    pub fn note_relaying(&mut self, window: EventTime) {
        self.note(window);
        self.windows = self.windows.max(2);
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

impl Repeats {
    fn repeats_much(&self) -> bool {
        let enough = f64::from(self.repeated) >= REPEATED_SHARE * f64::from(self.all);
        enough && self.repeated >= REPEATED_MIN && self.of.len() >= 2
    }
}

/// The hosts that were gateways in this window, by address.
pub fn gateways(conversations: &[Conversation]) -> Vec<Address> {
    // Equal exchanges are brought together by a hash of what they have in common: two of a window's million exchanges
    // share one by chance with p < 10^-6, and then one conversation is counted wrongly.
    let mut exchanges: Vec<(u64, u32)> = conversations
        .iter()
        .zip(0..)
        .filter(|(c, _)| c.ours && !c.theirs && is_telling(c))
        .map(|(c, at)| (exchange(c), at))
        .collect();
    exchanges.sort_unstable();
    let opener = |&(_, at): &(u64, u32)| conversations[at as usize].opener;
    let mut hosts: Map<Address, Repeats> = Map::default();
    let mut openers: Vec<Address> = Vec::new();
    for same in exchanges.chunk_by(|a, b| a.0 == b.0) {
        openers.clear();
        openers.extend(same.iter().map(opener));
        openers.sort_unstable();
        openers.dedup();
        // More than a few openers of one exchange are a fleet, and say nothing of who repeats whom.
        let repeated = (2..=3).contains(&openers.len());
        for opener in same.iter().map(opener) {
            let host = hosts.entry(opener).or_default();
            host.all += 1;
            if repeated {
                host.repeated += 1;
                host.of.extend(openers.iter().filter(|&&other| other != opener));
            }
        }
    }
    let does_more = |host: &Repeats| {
        host.of.iter().all(|other| hosts.get(other).is_none_or(|o| f64::from(host.all) >= 1.5 * f64::from(o.all)))
    };
    let found = hosts.iter().filter(|(_, host)| host.repeats_much() && does_more(host));
    let mut found: Vec<Address> = found.map(|(&address, _)| address).collect();
    found.sort_unstable();
    found
}

/// The hosts that passed on what others had sent to them in this window, by address.
pub fn relays(conversations: &[Conversation]) -> Vec<Address> {
    // Few hosts both open a lot to the outside and are asked by others of ours; the legs of the others need no comparing.
    let mut sides: Map<Address, (u32, u32)> = Map::default();
    for c in conversations.iter().filter(|c| c.ours && is_telling(c)) {
        if c.theirs {
            sides.entry(c.responder).or_default().0 += 1;
        } else {
            sides.entry(c.opener).or_default().1 += 1;
        }
    }
    sides.retain(|_, (inside, outside)| *inside.min(outside) >= REPEATED_MIN);
    if sides.is_empty() {
        return Vec::new();
    }
    let (inside, outside) = legs(conversations, |address| sides.contains_key(&address));
    let mut hosts: BTreeMap<Address, Repeats> = BTreeMap::new();
    let telling = |at: usize| !conversations[at].theirs && is_telling(&conversations[at]);
    for (leg, at) in outside.into_iter().filter(|&(_, at)| telling(at)) {
        let host = hosts.entry(conversations[at].opener).or_default();
        host.all += 1;
        if let Some(behind) = inside.get(&leg) {
            host.repeated += 1;
            host.of.extend(behind.legs.iter().map(|&at| conversations[at].opener));
        }
    }
    hosts.iter().filter(|(_, host)| host.repeats_much()).map(|(&address, _)| address).collect()
}

/// Puts the clients in the place of gateways: what a gateway passed on is its client's, and what cannot be told apart by
/// client is nobody's. Where a client's own interface is logged here, it has told already. Conversations that carry packet
/// addresses (`translated`) are left alone.
pub fn attribute(
    conversations: &mut Vec<Conversation>,
    is_gateway: impl Fn(Address) -> bool,
    translated: impl Fn(&Conversation) -> bool,
) {
    let (mut inside, outside) = legs(conversations, &is_gateway);
    let at_home: Set<Address> =
        conversations.iter().filter(|c| c.ours && !c.theirs && !is_gateway(c.opener)).map(|c| c.opener).collect();
    let mut gone = vec![false; conversations.len()];
    for (leg, at) in outside {
        if translated(&conversations[at]) {
            continue;
        }
        let Some(behind) = inside.get_mut(&leg) else {
            // A gateway between networks of ours passes on to hosts of ours as well; but what they ask of each other is their own.
            gone[at] = !conversations[at].theirs;
            continue;
        };
        if behind.given == 0 {
            behind.legs.iter().for_each(|&at| gone[at] = true);
        }
        let client = conversations[behind.next()];
        let is_told = behind.alone && !is_gateway(client.opener) && !at_home.contains(&client.opener);
        let c = &mut conversations[at];
        match is_told {
            true => (c.opener, c.opener_port) = (client.opener, client.opener_port),
            false => gone[at] = true,
        }
    }
    let mut gone = gone.into_iter();
    conversations.retain(|_| !gone.next().unwrap_or_default());
}

/// The legs from clients to a gateway that have the same in common.
#[derive(Debug)]
struct Behind {
    /// Where they are.
    legs: Vec<usize>,
    /// Whether one client has them all.
    alone: bool,
    /// How many of the gateway's own legs were given to them.
    given: usize,
}

impl Behind {
    /// The client's leg that stands for the gateway's next one: they are as many, and which of them is which does not matter.
    fn next(&mut self) -> usize {
        self.given += 1;
        self.legs[(self.given - 1) % self.legs.len()]
    }
}

/// By what both legs have in common: the clients', and where the gateways' own are, each in its order.
type Legs = (Map<u64, Behind>, Vec<(u64, usize)>);

/// The legs of gateways: from their clients to them, and from them onwards.
fn legs(conversations: &[Conversation], is_gateway: impl Fn(Address) -> bool) -> Legs {
    let (mut inside, mut outside): Legs = (Map::default(), Vec::new());
    for (at, c) in conversations.iter().enumerate().filter(|(_, c)| c.ours) {
        if c.theirs && is_gateway(c.responder) {
            let behind = inside.entry(leg(c.responder, c));
            let behind = behind.or_insert_with(|| Behind { legs: Vec::new(), alone: true, given: 0 });
            // A sweep through a gateway has thousands of equal legs, so that they are not compared with each other.
            behind.alone &= behind.legs.first().is_none_or(|&first| conversations[first].opener == c.opener);
            behind.legs.push(at);
        } else if is_gateway(c.opener) {
            outside.push((leg(c.opener, c), at));
        }
    }
    (inside, outside)
}

/// Whether an exchange has enough to it not to be like another by chance.
fn is_telling(c: &Conversation) -> bool {
    c.outcome == Outcome::Answered && c.sent.bytes + c.received.bytes >= BYTES_MIN
}

/// What the two legs of one conversation through a gateway have in common.
fn leg(gateway: Address, c: &Conversation) -> u64 {
    let mut hasher = foldhash::fast::FixedState::with_seed(0).build_hasher();
    hasher.write_u128(gateway.bits());
    hasher.write_u64(c.sent.bytes);
    hasher.write_u64(c.received.bytes);
    hasher.write_u64(u64::from(c.sent.packets) << 32 | u64::from(c.received.packets));
    hasher.write_u32(u32::from(c.port) << 8 | u32::from(c.protocol));
    hasher.finish()
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
