//! Tor: a host of ours that uses the network, or relays for it.
//!
//! A client holds connections to one to three guards for weeks and meets several relays when it starts (tor's
//! `guard-spec`, `dir-spec`). What says so, from sure to likely: a directory authority that answered; listed (address, ORPort)
//! pairs that answered; several unlisted addresses that answered on the ports that relays advertise when they hide behind
//! nothing (9001 and its neighbours), at the same time. One such port alone says nothing: Elastic withdrew that rule because ephemeral ports
//! collide with it behind NAT. Failed contacts say nothing either.

use std::collections::BTreeMap;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, InterfaceId, protocol};
use crate::statistical::conversation::{Conversation, Place};
use crate::statistical::explain::Judgement;
use crate::statistical::intel::{Lists, is_tor_authority};

/// `[statistical.tor]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Listed relays that answered within the span.
    pub relays: u32,
    /// Unlisted addresses that answered on an OR port within the span.
    pub or_port_peers: u32,
    /// Ports that relays advertise.
    pub or_ports: Vec<u16>,
    /// Contacts are put together over this span.
    pub span: SignedDuration,
}

/// Why a contact counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Kind {
    /// A directory authority.
    Authority,
    /// On the relay list.
    Listed,
    /// On an OR port, unlisted.
    OrPort,
}

/// What a host of ours has to do with Tor.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Contacts {
    /// Answered peers: first and latest contact, port and kind.
    peers: BTreeMap<Address, (EventTime, EventTime, u16, Kind)>,
    /// Peers when last told.
    told: usize,
    latest: Place,
    interface: InterfaceId,
}

/// Whether a conversation of ours counts, and why.
pub fn kind(c: &Conversation, lists: &Lists, settings: &Settings) -> Option<Kind> {
    // An answer alone is not contact: a handshake and a first cell is more than 500 bytes (tor-spec, 0.2: 514-byte cells).
    if c.protocol != protocol::TCP || c.failed() || c.payload(&c.sent) < 200 || c.payload(&c.received) < 500 {
        return None;
    }
    if is_tor_authority(c.responder) {
        Some(Kind::Authority)
    } else if lists.tor_relays.contains(c.responder, c.port) {
        Some(Kind::Listed)
    } else {
        // Relays are on the internet; at home the same ports are those of Bacula and of Prometheus' exporters.
        let outside = !c.theirs && !c.responder.is_private();
        (outside && settings.or_ports.contains(&c.port)).then_some(Kind::OrPort)
    }
}

impl Contacts {
    /// More peers than this are not kept; a client meets far fewer.
    const PEERS_MAX: usize = 256;

    /// Notes a conversation of a [`kind`].
    pub fn note(&mut self, c: &Conversation, kind: Kind) {
        if c.place() > self.latest {
            (self.latest, self.interface) = (c.place(), c.interface);
        }
        if self.peers.len() >= Self::PEERS_MAX && !self.peers.contains_key(&c.responder) {
            return;
        }
        let peer = self.peers.entry(c.responder).or_insert((c.start(), c.end(), c.port, kind));
        *peer = (peer.0.min(c.start()), peer.1.max(c.end()), peer.2.min(c.port), peer.3.min(kind));
    }

    /// Takes over what another engine knows of the same host; `rename` gives its interfaces their numbers here.
    pub fn join(&mut self, other: &Contacts, rename: impl Fn(InterfaceId) -> InterfaceId) {
        if other.latest > self.latest {
            (self.latest, self.interface) = (other.latest, rename(other.interface));
        }
        for (&address, theirs) in &other.peers {
            if self.peers.len() < Self::PEERS_MAX || self.peers.contains_key(&address) {
                let peer = self.peers.entry(address).or_insert(*theirs);
                let (first, last) = (peer.0.min(theirs.0), peer.1.max(theirs.1));
                *peer = (first, last, peer.2.min(theirs.2), peer.3.min(theirs.3));
            }
        }
        self.told = self.told.max(other.told);
    }

    /// Whether nothing was seen since a moment, so that there is nothing left to remember.
    pub fn is_over(&self, before: EventTime) -> bool {
        self.latest.0 < before
    }

    /// Whether the host was told to use Tor, and this is a peer with which it does.
    pub fn explains(&self, peer: Address) -> bool {
        self.told > 0 && self.peers.contains_key(&peer)
    }

    /// Who saw it.
    pub fn interface(&self) -> InterfaceId {
        self.interface
    }

    /// Judges the host at the end of a window.
    pub fn judge(&mut self, settings: &Settings, now: EventTime) -> Judgement {
        let before = now.minus(settings.span.as_secs() as u32);
        let known = self.peers.len();
        self.peers.retain(|_, peer| peer.1 >= before);
        // What is forgotten was told in its time; as many peers of another day are news.
        self.told = self.told.saturating_sub(known - self.peers.len());
        let count = |kind: Kind| self.peers.values().filter(|p| p.3 == kind).count() as f64;
        let (authorities, listed, or_ports) = (count(Kind::Authority), count(Kind::Listed), count(Kind::OrPort));
        let rules = [
            ("authority", authorities),
            ("relay_list", listed / f64::from(settings.relays)),
            ("or_ports", (or_ports + listed) / f64::from(settings.or_port_peers)),
        ];
        let (method, ratio) = rules.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are three rules");
        let evidence = vec![
            Evidence::at_least("directory_authorities", authorities, 1.0, "addresses", Merge::Max),
            Evidence::at_least("listed_relays", listed, f64::from(settings.relays), "addresses", Merge::Max),
            Evidence::at_least("or_port_peers", or_ports, f64::from(settings.or_port_peers), "addresses", Merge::Max),
        ];
        Judgement { method: method.to_owned(), passed: ratio >= 1.0, evidence, ratio }
    }

    /// Whether something was learned since it was last told.
    pub fn news(&self) -> bool {
        self.peers.len() > self.told
    }

    /// The statement, once [`Contacts::judge`] has passed.
    pub fn finding(&mut self, host: Address, judgement: &Judgement, window: EventTime, window_seconds: u32) -> Finding {
        self.told = self.peers.len();
        let first = self.peers.values().map(|p| p.0).min().unwrap_or(window);
        let last = self.peers.values().map(|p| p.1).max().unwrap_or(window);
        let targets = self.peers.iter().take(Finding::TARGETS_MAX);
        let targets = targets.map(|(&address, p)| Target { address, ports: vec![p.2], port_count: 1 }).collect();
        let why = match judgement.method.as_str() {
            "authority" => "a Tor directory authority",
            "relay_list" => "listed Tor relays",
            _ => "several addresses on the ports of Tor relays at once",
        };
        Finding {
            threat: Threat::Tor,
            method: judgement.method.clone(),
            actor: Actor::One(host),
            subject: Subject::Actor(host),
            targets,
            target_count: self.peers.len() as u32,
            sources: Vec::new(),
            severity_reason: "Tor hides who is spoken to, and is no harm by itself".to_owned(),
            learned: Vec::new(),
            first_seen: first,
            last_seen: last,
            window,
            window_seconds,
            score: if judgement.method == "or_ports" { 0.75 } else { 0.95 },
            severity: Severity::Medium,
            evidence: judgement.evidence.clone(),
            summary: format!("{host} uses Tor: it was answered by {why} ({{targets}} peers)"),
            interfaces: Vec::new(),
            account: String::new(),
            provisional: false,
            ml: None,
            alternatives: Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
