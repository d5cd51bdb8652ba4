//! Whose hosts: which addresses own the interfaces that log them.
//!
//! The settings name the private blocks, but a VPC may have public IPv4 blocks, and its IPv6 is global unicast. An interface
//! logs what it sends and receives itself, so that one end of each of its records is its own. Where `flow-direction` is
//! logged it says which. Elsewhere the interface's own addresses are those that meet the most partners: a host talks to
//! many, and each of these, on that interface, to the host alone. A node's interface carries the addresses of its pods
//! as well; these lie close together (an interface has one subnet), so the partners of neighbours count together.
//!
//! Only conversations are looked at of which neither end is ours yet: in a VPC of private addresses that is hardly any.
//!
//! An address that never sent anything is nobody's, whoever asks for it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime, InterfaceId, Marks, protocol};
use crate::statistical::conversation::Conversation;
use crate::statistical::host::mix;

/// Interfaces that are learned about at once; each takes a few kilobytes at most.
const INTERFACES_MAX: usize = 10_000;
/// Addresses of one interface that are compared. An interface has at most some 250 addresses of its own.
const CANDIDATES_MAX: usize = 512;
/// Addresses that are ours by what was learned.
const OWNED_MAX: usize = 200_000;
/// Windows in which an address was seen before a single partner, or none but pods' common one, is enough to decide.
const WINDOWS: u16 = 3;

/// What was learned of the owners of interfaces.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Owners {
    owned: BTreeMap<Address, InterfaceId>,
    learning: BTreeMap<InterfaceId, Learner>,
}

/// The addresses that an interface logged, as far as neither end was known to be ours.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Learner {
    candidates: BTreeMap<Address, Candidate>,
    /// Whether what was decided needs no more looking at.
    certain: bool,
    /// Whether anything was noted since the last decision.
    noted: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Candidate {
    /// Partners: a linear counter of 64 bits, as in [`crate::statistical::host::Host`].
    partners: u64,
    /// Windows in which it was seen.
    windows: u16,
    /// The latest of these, plus one.
    last: u32,
    /// Windows in which it opened a conversation.
    opened: u16,
    /// Whether it sent anything.
    spoke: bool,
    /// Records that say by their direction that it is the interface's own.
    named: bool,
}

impl Owners {
    /// Whether an address is ours by what was learned.
    #[inline]
    pub fn owns(&self, address: Address) -> bool {
        !self.owned.is_empty() && self.owned.contains_key(&address)
    }

    /// How many addresses were learned to be ours.
    pub fn len(&self) -> usize {
        self.owned.len()
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.owned.is_empty()
    }

    /// Whether a conversation can teach anything: it has an interface that is not decided about, and its ends are hosts.
    fn teaches(&self, c: &Conversation) -> bool {
        c.interface != InterfaceId(0)
            && !is_no_host(c.opener)
            && !is_no_host(c.responder)
            // An intermediary logs the addresses of others.
            && !Marks(c.sent.marks | c.received.marks).has(Marks::INTERMEDIARY)
            && (self.learning.len() < INTERFACES_MAX || self.learning.contains_key(&c.interface))
    }

    /// Whether the owner of an address may still turn out to be somebody else.
    pub fn is_uncertain(&self, address: Address) -> bool {
        let interface = self.owned.get(&address);
        interface.and_then(|interface| self.learning.get(interface)).is_some_and(|learner| !learner.certain)
    }

    /// Learns from a window's conversations with no end of ours, or with one that is only supposed to be.
    pub fn note(&mut self, c: &Conversation, window: EventTime) {
        if !self.teaches(c) {
            return;
        }
        let learner = self.learning.entry(c.interface).or_default();
        learner.noted = true;
        let (egress, ingress) = (Marks::EGRESS, Marks::INGRESS);
        let opener_named = c.sent.has(egress) || c.received.has(ingress);
        let responder_named = c.sent.has(ingress) || c.received.has(egress);
        learner.note(c.opener, c.responder, window, true, c.sent.seen(), opener_named && !responder_named);
        learner.note(c.responder, c.opener, window, false, c.received.seen(), responder_named && !opener_named);
    }

    /// Decides anew about the interfaces of which something was noted. `is_vetoed` are addresses that are never ours.
    /// True when anything changed.
    pub fn settle(&mut self, is_vetoed: impl Fn(Address) -> bool) -> bool {
        let mut changed = false;
        for (&interface, learner) in self.learning.iter_mut().filter(|(_, learner)| learner.noted) {
            learner.noted = false;
            let owners = learner.owners();
            let gone = |address: &Address, of: &InterfaceId| *of == interface && !owners.contains(address);
            let before = self.owned.len();
            self.owned.retain(|address, of| !gone(address, of));
            changed |= self.owned.len() != before;
            for address in owners {
                if self.owned.len() < OWNED_MAX && !is_vetoed(address) {
                    changed |= self.owned.insert(address, interface).is_none();
                }
            }
        }
        changed
    }

    /// Takes over what another engine learned.
    pub fn join(&mut self, other: Owners, rename: impl Fn(InterfaceId) -> InterfaceId) {
        for (address, interface) in other.owned {
            self.owned.entry(address).or_insert(rename(interface));
        }
        for (interface, learner) in other.learning {
            let known = self.learning.entry(rename(interface)).or_default();
            known.certain |= learner.certain;
            for (address, candidate) in learner.candidates {
                known.candidates.entry(address).or_default().join(&candidate);
            }
        }
    }
}

impl Learner {
    fn note(&mut self, it: Address, with: Address, window: EventTime, opened: bool, spoke: bool, named: bool) {
        if self.candidates.len() >= CANDIDATES_MAX && !self.candidates.contains_key(&it) {
            self.forget();
        }
        let candidate = self.candidates.entry(it).or_default();
        candidate.partners |= 1 << (mix(with) & 63);
        if candidate.last != window.0 + 1 {
            candidate.last = window.0 + 1;
            candidate.windows = candidate.windows.saturating_add(1);
            candidate.opened = candidate.opened.saturating_add(u16::from(opened));
        }
        candidate.spoke |= spoke;
        candidate.named |= named;
    }

    /// Room is short: those with one partner go, the ones seen least recently first.
    fn forget(&mut self) {
        let mut ages: Vec<(u32, u32, Address)> =
            self.candidates.iter().map(|(&address, c)| (c.partners.count_ones(), c.last, address)).collect();
        ages.sort_unstable();
        for (_, _, address) in &ages[..CANDIDATES_MAX / 4] {
            self.candidates.remove(address);
        }
    }

    /// The addresses that are the interface's own, as far as can be told.
    fn owners(&mut self) -> Vec<Address> {
        let named: Vec<Address> = self.candidates.iter().filter(|(_, c)| c.named).map(|(&a, _)| a).collect();
        if !named.is_empty() {
            self.certain = true;
            return named;
        }
        // Neighbours' partners count together, and between equals who opens: clients' servers are many, or they are pods' one.
        let mut blocks: BTreeMap<u128, (u32, u32)> = BTreeMap::new();
        for (&address, candidate) in &self.candidates {
            let total = blocks.entry(block(address)).or_default();
            *total = (total.0 + candidate.partners.count_ones(), total.1 + u32::from(candidate.opened));
        }
        let mut ranked: Vec<((u32, u32), u128)> = blocks.into_iter().map(|(block, total)| (total, block)).collect();
        ranked.sort_unstable();
        let Some(((most, opened), own)) = ranked.pop() else { return Vec::new() };
        let second = ranked.pop().map_or((0, 0), |(total, _)| total);
        self.certain = most >= 4 && most >= 2 * second.0;
        let ahead = most > second.0;
        let of_block = self.candidates.iter().filter(|(address, _)| block(**address) == own);
        let is_own = |c: &Candidate| {
            let lasting = c.windows >= WINDOWS && (ahead || opened > second.1);
            c.spoke && (ahead && c.partners.count_ones() >= 2 || lasting)
        };
        of_block.filter(|(_, c)| is_own(c)).map(|(&address, _)| address).collect()
    }
}

impl Candidate {
    fn join(&mut self, other: &Candidate) {
        self.partners |= other.partners;
        self.windows = self.windows.max(other.windows);
        self.opened = self.opened.max(other.opened);
        self.last = self.last.max(other.last);
        self.spoke |= other.spoke;
        self.named |= other.named;
    }
}

/// Neighbours: the same /16 of IPv4 (the largest block that a VPC can have), or the same /64 of IPv6 (a VPC's subnet).
pub fn block(address: Address) -> u128 {
    match address.as_v4() {
        Some(_) => address.bits() >> 16,
        None => address.bits() >> 64,
    }
}

/// Multicast, broadcast, unspecified, link-local or loopback: the interface's own as little as anybody's.
fn is_no_host(address: Address) -> bool {
    let local = match address.to_ip() {
        std::net::IpAddr::V4(ip) => ip.is_link_local() || ip.is_loopback(),
        std::net::IpAddr::V6(ip) => ip.is_unicast_link_local() || ip.is_loopback(),
    };
    local || address.is_group()
}

/// Whether a conversation says nothing of anybody's hosts: it goes to a group, or stays on the link.
pub fn is_between_hosts(c: &Conversation) -> bool {
    !is_no_host(c.opener) && !is_no_host(c.responder) && c.protocol != protocol::ICMPV6
}

#[cfg(test)]
mod tests;
