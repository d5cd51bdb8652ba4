//! Scans that several sources divide among them, so that none of them stands out.
//!
//! Each source keeps below the threshold of one, and together they work through the ports of a host of ours. Background
//! radiation looks alike at first sight, many sources on one host, but there each source knocks at a door or two, and all
//! of them at the same few; here each tries several doors, and hardly two the same (the division of labour is what
//! Gates, *Coordinated Scan Detection*, NDSS 2009, detects by set covering).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::{Settings, Suspect};
use crate::finding::{Actor, Evidence, Finding, Merge, Origin, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, InterfaceId, protocol};
use crate::statistical::Map;
use crate::statistical::conversation::Place;
use crate::statistical::explain::Judgement;
use crate::statistical::table::Entry;

/// A host of ours at whose doors several outsiders work.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Besieged {
    address: Address,
    /// Sources that tried several of its ports, with the latest failure of each.
    sources: BTreeMap<Address, EventTime>,
    last_seen: EventTime,
}

impl Entry for Besieged {
    type Key = Address;

    fn key(&self) -> Address {
        self.address
    }

    fn last_seen(&self) -> EventTime {
        self.last_seen
    }
}

impl Besieged {
    /// More sources than this are not kept: 256 × 24 B.
    const SOURCES_MAX: usize = 256;

    /// Nobody is known yet.
    pub fn new(address: Address, at: EventTime) -> Besieged {
        Besieged { address, sources: BTreeMap::new(), last_seen: at }
    }

    /// Notes a source that is at work until `at`.
    pub fn note(&mut self, source: Address, at: EventTime) {
        self.last_seen = self.last_seen.max(at);
        if self.sources.len() < Besieged::SOURCES_MAX || self.sources.contains_key(&source) {
            self.sources.insert(source, at);
        }
    }

    /// Takes over what another engine knows of the same host.
    pub fn join(&mut self, other: &Besieged) {
        for (&source, &at) in &other.sources {
            let at = self.sources.get(&source).map_or(at, |&known| at.max(known));
            self.note(source, at);
        }
        self.last_seen = self.last_seen.max(other.last_seen);
    }

    /// Sources that were at work since a moment; the others are forgotten.
    pub fn sources(&mut self, since: EventTime) -> Vec<Address> {
        self.sources.retain(|_, last| *last >= since);
        self.sources.keys().copied().collect()
    }
}

/// What several sources did on one host.
#[derive(Debug)]
pub struct Siege {
    target: Address,
    ports: BTreeSet<u16>,
    sources: u32,
    each: Vec<Origin>,
    /// Ports by source, added up.
    tried: u32,
    first: EventTime,
    last: EventTime,
    latest: Place,
    interface: InterfaceId,
}

impl Siege {
    /// What the sources did on the target since a moment. Whoever scans enough to be told alone is left out.
    pub fn of<'a>(
        target: Address,
        sources: impl Iterator<Item = &'a Suspect>,
        settings: &Settings,
        since: EventTime,
    ) -> Siege {
        let mut siege = Siege {
            target,
            ports: BTreeSet::new(),
            sources: 0,
            each: Vec::new(),
            tried: 0,
            first: EventTime(u32::MAX),
            last: EventTime(0),
            latest: Place::default(),
            interface: InterfaceId(0),
        };
        for source in sources {
            let on_target: Vec<_> = source.tcp_ports_of(target, since).collect();
            let own = on_target.len() as u32;
            if own < settings.joint_ports || own >= settings.outside_burst {
                continue;
            }
            siege.sources += 1;
            siege.each.push(Origin { address: source.source, amount: own.into() });
            siege.tried += own;
            if source.latest > siege.latest {
                (siege.latest, siege.interface) = (source.latest, source.interface);
            }
            for (port, (first, last)) in on_target {
                siege.ports.insert(port);
                (siege.first, siege.last) = (siege.first.min(first), siege.last.max(last));
            }
        }
        siege
    }

    /// Judges it.
    pub fn judge(&self, settings: &Settings) -> Judgement {
        let ports = self.ports.len() as f64;
        let repeats = f64::from(self.tried) / ports.max(1.0);
        let sources = f64::from(self.sources);
        let wanted = (f64::from(settings.joint), f64::from(settings.joint_sources));
        let evidence = vec![
            Evidence::at_least("distinct_ports", ports, wanted.0, "ports", Merge::Max),
            Evidence::at_least("sources", sources, wanted.1, "addresses", Merge::Max),
            Evidence::at_most("sources_per_port", repeats, settings.joint_repeats, "ratio", Merge::Latest),
        ];
        let passed = ports >= wanted.0 && sources >= wanted.1 && repeats <= settings.joint_repeats;
        Judgement { method: "joint".to_owned(), passed, evidence, ratio: ports / wanted.0 }
    }

    /// The statement, once [`Siege::judge`] has passed.
    pub fn finding(&self, judgement: &Judgement, window: EventTime, window_seconds: u32) -> Finding {
        let ports: Vec<u16> = self.ports.iter().copied().take(Target::PORTS_MAX).collect();
        let count = self.ports.len() as u32;
        Finding {
            threat: Threat::PortScan,
            method: judgement.method.clone(),
            actor: Actor::Many,
            subject: Subject::Victim(self.target),
            targets: vec![Target { address: self.target, ports, port_count: count }],
            target_count: 1,
            sources: Origin::largest(self.each.clone()),
            severity_reason: "they scan from outside and find nothing".to_owned(),
            learned: Vec::new(),
            first_seen: self.first,
            last_seen: self.last,
            window,
            window_seconds,
            score: 1.0 - 0.5 / judgement.ratio.max(1.0),
            severity: Severity::Low,
            evidence: judgement.evidence.clone(),
            summary: format!(
                "{{sources}} sources together tried {{distinct_ports}} ports of {} in {} s without success, hardly one of them twice",
                self.target,
                self.last.since(self.first)
            ),
            interfaces: Vec::new(),
            account: String::new(),
            ml: None,
            alternatives: Vec::new(),
            provisional: false,
        }
    }

    /// Who saw it.
    pub fn interface(&self) -> InterfaceId {
        self.interface
    }
}

impl Suspect {
    /// The TCP ports of a target at which it failed since a moment, with first and latest attempt.
    fn tcp_ports_of(
        &self,
        target: Address,
        since: EventTime,
    ) -> impl Iterator<Item = (u16, (EventTime, EventTime))> + use<'_> {
        let here = move |key: &(Address, u16, u8)| key.0 == target && key.2 == protocol::TCP;
        self.failures
            .iter()
            .filter(move |(key, times)| here(key) && times.1 >= since)
            .map(|(key, &times)| (key.1, times))
    }

    /// Hosts of which it tried at least so many TCP ports since a moment, without success.
    pub fn besieges(&self, ports: u32, since: EventTime) -> Vec<Address> {
        if (self.failures.len() as u32) < ports {
            return Vec::new();
        }
        let mut tried: Map<Address, u32> = Map::default();
        for ((target, _, protocol), (_, last)) in &self.failures {
            if *protocol == protocol::TCP && *last >= since {
                *tried.entry(*target).or_default() += 1;
            }
        }
        tried.retain(|_, count| *count >= ports);
        // Whose room is short must not hang on the order of a hash table.
        let mut besieged: Vec<Address> = tried.into_keys().collect();
        besieged.sort_unstable();
        besieged
    }
}

#[cfg(test)]
mod tests;
