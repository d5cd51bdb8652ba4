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

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Map, Set};
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
    owned: Map<Address, InterfaceId>,
    learning: Map<InterfaceId, Learner>,
    /// Interfaces of which something was noted since the last decision, each once.
    #[serde(skip)]
    noted: Vec<InterfaceId>,
}

/// The addresses that an interface logged, as far as neither end was known to be ours.
///
/// Every window decides about thousands of interfaces, so what a decision needs is kept while addresses are noted, and not
/// counted anew each time.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Learner {
    candidates: Map<Address, Candidate>,
    /// What the blocks have together in which the candidates are, by first address.
    blocks: Map<Address, Total>,
    lead: Lead,
    /// Candidates whose records say that they are the interface's own, ascending.
    named: Vec<Address>,
    /// What was last decided, ascending: whatever the interface owns is among these.
    decided: Vec<Address>,
    /// Whether what was decided needs no more looking at.
    certain: bool,
    /// Whether anything was noted since the last decision.
    #[serde(skip)]
    noted: bool,
}

/// What a block of neighbours has together: partners, and windows in which one of them opened a conversation.
type Total = (u32, u32);

/// The block of neighbours with the most, of equals the one of the higher addresses, and what the next one has. Totals only
/// grow until candidates are forgotten, so that it can be told as they grow which of them leads.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Lead {
    /// The first address of the block.
    block: Option<Address>,
    most: Total,
    second: Total,
}

impl Lead {
    /// Notes what a block now has.
    fn note(&mut self, block: Address, total: Total) {
        if self.block == Some(block) {
            self.most = total;
        } else if self.block.is_none_or(|own| (self.most, own) < (total, block)) {
            (self.block, self.most, self.second) = (Some(block), total, self.most);
        } else {
            self.second = self.second.max(total);
        }
    }
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
    /// The latest of these, plus one.
    last_opened: u32,
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

    /// Whether a conversation can teach anything: it has an interface, and its ends are hosts.
    fn teaches(c: &Conversation) -> bool {
        c.interface != InterfaceId(0)
            && !is_no_host(c.opener)
            && !is_no_host(c.responder)
            // An intermediary logs the addresses of others.
            && !Marks(c.sent.marks | c.received.marks).has(Marks::INTERMEDIARY)
    }

    /// Whether the owner of an address may still turn out to be somebody else.
    pub fn is_uncertain(&self, address: Address) -> bool {
        let interface = self.owned.get(&address);
        interface.and_then(|interface| self.learning.get(interface)).is_some_and(|learner| !learner.certain)
    }

    /// Learns from a window's conversations with no end of ours, or with one that is only supposed to be.
    pub fn note<'a>(&mut self, conversations: impl Iterator<Item = &'a Conversation>, window: EventTime) {
        // One interface after the other, so that what is known of each is looked up once.
        let teaching = conversations.filter(|c| Owners::teaches(c));
        let mut teaching: Vec<(InterfaceId, &Conversation)> = teaching.map(|c| (c.interface, c)).collect();
        teaching.sort_unstable_by_key(|&(interface, _)| interface);
        for same in teaching.chunk_by(|a, b| a.0 == b.0) {
            let interface = same[0].0;
            let room = self.learning.len() < INTERFACES_MAX;
            let learner = match self.learning.get_mut(&interface) {
                Some(learner) => learner,
                None if room => self.learning.entry(interface).or_default(),
                None => continue,
            };
            if !learner.noted {
                learner.noted = true;
                self.noted.push(interface);
            }
            same.iter().for_each(|(_, c)| learner.note_both(c, window));
        }
    }

    /// Decides anew about the interfaces of which something was noted. `is_vetoed` are addresses that are never ours.
    /// Says which addresses are ours now that were not, or the other way.
    pub fn settle(&mut self, is_vetoed: impl Fn(Address) -> bool) -> Set<Address> {
        let mut changed = Set::default();
        // In order, since room may be short, and of two interfaces that seem to own an address the last is taken.
        self.noted.sort_unstable();
        for interface in self.noted.drain(..) {
            let Some(learner) = self.learning.get_mut(&interface) else { continue };
            learner.noted = false;
            let owners = learner.owners();
            for gone in learner.decided.iter().filter(|address| owners.binary_search(address).is_err()) {
                if self.owned.get(gone) == Some(&interface) {
                    self.owned.remove(gone);
                    changed.insert(*gone);
                }
            }
            for &address in &owners {
                if self.owned.len() < OWNED_MAX
                    && !is_vetoed(address)
                    && self.owned.insert(address, interface).is_none()
                {
                    changed.insert(address);
                }
            }
            learner.decided = owners;
        }
        changed
    }

    /// Takes over what another engine learned.
    pub fn join(&mut self, other: Owners, rename: impl Fn(InterfaceId) -> InterfaceId) {
        for (address, interface) in other.owned {
            self.owned.entry(address).or_insert(rename(interface));
        }
        for (interface, learner) in other.learning {
            self.learning.entry(rename(interface)).or_default().join(learner);
        }
    }
}

impl Learner {
    fn note_both(&mut self, c: &Conversation, window: EventTime) {
        let (egress, ingress) = (Marks::EGRESS, Marks::INGRESS);
        let opener_named = c.sent.has(egress) || c.received.has(ingress);
        let responder_named = c.sent.has(ingress) || c.received.has(egress);
        self.note(c.opener, c.responder, window, true, c.sent.seen(), opener_named && !responder_named);
        self.note(c.responder, c.opener, window, false, c.received.seen(), responder_named && !opener_named);
    }

    fn note(&mut self, it: Address, with: Address, window: EventTime, opened: bool, spoke: bool, named: bool) {
        if self.candidates.len() >= CANDIDATES_MAX && !self.candidates.contains_key(&it) {
            self.forget();
        }
        let candidate = self.candidates.entry(it).or_default();
        let before = candidate.total();
        candidate.partners |= 1 << (mix(with) & 63);
        if candidate.last != window.0 + 1 {
            candidate.last = window.0 + 1;
            candidate.windows = candidate.windows.saturating_add(1);
        }
        if opened && candidate.last_opened != window.0 + 1 {
            candidate.last_opened = window.0 + 1;
            candidate.opened = candidate.opened.saturating_add(1);
        }
        candidate.spoke |= spoke;
        if named && !candidate.named {
            candidate.named = true;
            let place = self.named.partition_point(|&known| known < it);
            self.named.insert(place, it);
        }
        let after = candidate.total();
        if after == before {
            return;
        }
        let block = *block(it).start();
        let (partners, opened) = self.blocks.entry(block).or_default();
        *partners += after.0 - before.0;
        *opened += after.1 - before.1;
        self.lead.note(block, (*partners, *opened));
    }

    /// Counts anew what a decision needs.
    fn count(&mut self) {
        self.blocks.clear();
        for (&address, candidate) in &self.candidates {
            let total = self.blocks.entry(*block(address).start()).or_default();
            *total = plus(*total, candidate.total());
        }
        self.lead = Lead::default();
        self.blocks.iter().for_each(|(&block, &total)| self.lead.note(block, total));
        self.named = self.candidates.iter().filter(|(_, c)| c.named).map(|(&address, _)| address).collect();
        self.named.sort_unstable();
    }

    /// Takes over what another engine learned of the same interface.
    fn join(&mut self, other: Learner) {
        self.certain |= other.certain;
        for (address, candidate) in other.candidates {
            self.candidates.entry(address).or_default().join(&candidate);
        }
        self.count();
        self.decided.extend(other.decided);
        self.decided.sort_unstable();
        self.decided.dedup();
    }

    /// Room is short: those with one partner go, the ones seen least recently first.
    fn forget(&mut self) {
        let mut ages: Vec<(u32, u32, Address)> =
            self.candidates.iter().map(|(&address, c)| (c.partners.count_ones(), c.last, address)).collect();
        ages.sort_unstable();
        for (_, _, address) in &ages[..CANDIDATES_MAX / 4] {
            self.candidates.remove(address);
        }
        self.count();
    }

    /// The addresses that are the interface's own, as far as can be told, ascending.
    fn owners(&mut self) -> Vec<Address> {
        if !self.named.is_empty() {
            self.certain = true;
            return self.named.clone();
        }
        // Neighbours' partners count together, and between equals who opens: clients' servers are many, or they are pods' one.
        let Lead { block: Some(own), most: (most, opened), second } = self.lead else { return Vec::new() };
        self.certain = most >= 4 && most >= 2 * second.0;
        let ahead = most > second.0;
        let is_own = |c: &Candidate| {
            let lasting = c.windows >= WINDOWS && (ahead || opened > second.1);
            c.spoke && (ahead && c.partners.count_ones() >= 2 || lasting)
        };
        let neighbours = block(own);
        let own = self.candidates.iter().filter(|(address, c)| neighbours.contains(address) && is_own(c));
        let mut own: Vec<Address> = own.map(|(&address, _)| address).collect();
        own.sort_unstable();
        own
    }
}

impl Candidate {
    /// What it adds to its block.
    fn total(&self) -> Total {
        (self.partners.count_ones(), self.opened.into())
    }

    fn join(&mut self, other: &Candidate) {
        self.partners |= other.partners;
        self.windows = self.windows.max(other.windows);
        self.opened = self.opened.max(other.opened);
        (self.last, self.last_opened) = (self.last.max(other.last), self.last_opened.max(other.last_opened));
        self.spoke |= other.spoke;
        self.named |= other.named;
    }
}

fn plus(one: Total, other: Total) -> Total {
    (one.0 + other.0, one.1 + other.1)
}

/// Neighbours: the same /16 of IPv4 (the largest block that a VPC can have), or the same /64 of IPv6 (a VPC's subnet).
fn block(address: Address) -> RangeInclusive<Address> {
    let hosts = if address.as_v4().is_some() { u128::from(u16::MAX) } else { u128::from(u64::MAX) };
    let first = address.bits() & !hosts;
    Address::from_bits(first)..=Address::from_bits(first | hosts)
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
