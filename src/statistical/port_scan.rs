//! Port scans: an address that keeps asking for what is not there.
//!
//! What counts is the *first-contact failure*: a (host, port) that the source never reached and that refuses or ignores
//! it. Connection logs gave three published methods, which are joined here because each misses what another finds:
//!
//! - *distinct counts* per target and per port over a span (Zeek's `scan.zeek`: 15 ports of one host or 25 hosts of one
//!   port in 5 min; ncsa/bro-simple-scan: 25 for remote and 250 for local sources, 20 hosts on one port);
//! - *sequential hypothesis testing* (TRW: Jung, Paxson, Berger, Balakrishnan, IEEE S&P 2004): each failed first contact
//!   multiplies the odds of "scanner" by (1−θ₁)/(1−θ₀) = 4, each success divides by θ₀/θ₁ = 4. Failures alone decide
//!   nothing on a host whose contacts mostly succeed: a browser meets dead servers every day;
//! - *memory over a day*, which finds the slow scan that no window holds.
//!
//! Unasked-for probes from the internet are not news: every public address gets thousands a day. An outside source is
//! told only when it works through one host's ports in earnest, or through many hosts on several ports, or when several
//! divide one host's ports among them ([`joint`]).

use std::collections::BTreeMap;

use hashbrown::HashMap;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, InterfaceId, protocol};
use crate::statistical::conversation::{Conversation, Place};
use crate::statistical::explain::Judgement;
use crate::statistical::table::Entry;

pub mod joint;

/// `[statistical.port_scan]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Distinct refused or silent TCP ports of one host, for a source of ours.
    pub ports: u32,
    /// Distinct refused or silent hosts on one TCP port, for a source of ours.
    pub hosts: u32,
    /// Distinct refused or silent TCP (host, port) pairs over at least five hosts and five ports, for a source of ours.
    pub block: u32,
    /// The first two for UDP, where silence is common.
    pub udp: u32,
    /// Distinct ports of one of our hosts, for an outside source.
    pub outside_ports: u32,
    /// The same for TCP within `joint_span`.
    pub outside_burst: u32,
    /// Distinct hosts of ours, for an outside source on at least `outside_sweep_ports` ports.
    pub outside_hosts: u32,
    /// Fewer ports than this is the background radiation of the internet, however many hosts.
    pub outside_sweep_ports: u32,
    /// An outside source is judged over this span.
    pub outside_span: SignedDuration,
    /// A source of ours is judged over this span.
    pub span: SignedDuration,
    /// At most this share of first contacts may succeed.
    pub success_max: f64,
    /// Distinct ports of one of our hosts, for several outside sources together.
    pub joint: u32,
    /// Which they tried within this span.
    pub joint_span: SignedDuration,
    /// An outside source that shares a scan tried at least so many ports of the host.
    pub joint_ports: u32,
    /// A scan is shared by at least so many outside sources.
    pub joint_sources: u32,
    /// And on average at most so many of them tried the same port.
    pub joint_repeats: f64,
}

impl Settings {
    /// The smallest number of failures that any rule needs.
    pub fn least(&self) -> u32 {
        self.ports.min(self.hosts).min(self.udp).min(self.outside_burst).min(self.outside_hosts)
    }
}

/// A source with failures, and what it failed at.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Suspect {
    /// Who.
    pub source: Address,
    /// First contacts that failed: (target, port, protocol) to the first and latest attempt.
    failures: HashMap<(Address, u16, u8), (EventTime, EventTime), foldhash::fast::FixedState>,
    /// Failures that are counted but not kept, since the list was full.
    overflow: u32,
    /// First contacts that succeeded.
    pub successes: u32,
    /// Latest failure.
    last_seen: EventTime,
    /// Place of the latest failure.
    latest: Place,
    /// Interface of the latest failure.
    pub interface: InterfaceId,
    /// Failures, with repeats, since the source was last judged: whoever tries the same again is still at it.
    pub fresh: u32,
    /// Attempts (with repeats) that were refused outright.
    pub refused: u32,
    /// Attempts (with repeats).
    pub attempts: u32,
}

impl Entry for Suspect {
    type Key = Address;

    fn key(&self) -> Address {
        self.source
    }

    fn last_seen(&self) -> EventTime {
        self.last_seen
    }
}

/// A probe's ports that mean route tracing, not looking for services (traceroute(8): 33434 and up).
const TRACEROUTE: std::ops::RangeInclusive<u16> = 33_434..=33_534;

impl Suspect {
    /// More distinct failures than this are counted, not kept: 2,048 × 32 B.
    const FAILURES_MAX: usize = 2_048;

    /// A source without failures.
    pub fn new(source: Address, at: EventTime) -> Suspect {
        Suspect {
            source,
            failures: HashMap::default(),
            overflow: 0,
            successes: 0,
            last_seen: at,
            latest: Place::default(),
            interface: InterfaceId(0),
            fresh: 0,
            refused: 0,
            attempts: 0,
        }
    }

    /// Whether a failed conversation says anything about scanning.
    pub fn counts(c: &Conversation) -> bool {
        c.failed()
            && c.is_probe()
            && !c.responder.is_group()
            && match c.protocol {
                protocol::TCP => true,
                protocol::UDP => !TRACEROUTE.contains(&c.port) && c.port != 0,
                protocol::ICMP | protocol::ICMPV6 => true,
                _ => false,
            }
    }

    /// Notes a failure for which [`Suspect::counts`] holds.
    pub fn note(&mut self, c: &Conversation) {
        self.last_seen = self.last_seen.max(c.end());
        if c.place() > self.latest {
            (self.latest, self.interface) = (c.place(), c.interface);
        }
        self.attempts = self.attempts.saturating_add(1);
        self.refused =
            self.refused.saturating_add(u32::from(c.outcome == crate::statistical::conversation::Outcome::Refused));
        let key = (c.responder, c.port, c.protocol);
        if let Some((first, last)) = self.failures.get_mut(&key) {
            (*first, *last) = ((*first).min(c.start()), (*last).max(c.end()));
            self.fresh += 1;
        } else if self.failures.len() < Self::FAILURES_MAX {
            self.failures.insert(key, (c.start(), c.end()));
            self.fresh += 1;
        } else {
            self.overflow = self.overflow.saturating_add(1);
            self.fresh += 1;
        }
    }

    /// Takes back a failure: the same (host, port) answered after all.
    pub fn note_success(&mut self, c: &Conversation) {
        self.successes = self.successes.saturating_add(1);
        self.failures.remove(&(c.responder, c.port, c.protocol));
    }

    /// Takes over what another engine knows of the same source.
    pub fn join(&mut self, other: Suspect) {
        if other.latest > self.latest {
            (self.latest, self.interface) = (other.latest, other.interface);
        }
        self.last_seen = self.last_seen.max(other.last_seen);
        let mut overflow = 0;
        let mut failures: Vec<_> = other.failures.into_iter().collect();
        failures.sort_unstable();
        for (key, (from, to)) in failures {
            if let Some((first, last)) = self.failures.get_mut(&key) {
                (*first, *last) = ((*first).min(from), (*last).max(to));
            } else if self.failures.len() < Self::FAILURES_MAX {
                self.failures.insert(key, (from, to));
            } else {
                overflow += 1;
            }
        }
        self.overflow = self.overflow.max(other.overflow).saturating_add(overflow);
        self.successes = self.successes.max(other.successes);
        self.fresh = self.fresh.max(other.fresh);
        self.refused = self.refused.max(other.refused);
        self.attempts = self.attempts.max(other.attempts);
    }

    /// Takes back failures of which it is known that they were answered after all: (target, port, protocol).
    pub fn take_back(&mut self, answered: impl Fn(Address, u16, u8) -> bool) {
        self.failures.retain(|&(target, port, protocol), _| !answered(target, port, protocol));
    }

    /// Failures remembered, with those that are only counted.
    pub fn known(&self) -> u32 {
        self.failures.len() as u32 + self.overflow
    }

    /// Forgets what is older than the span.
    fn expire(&mut self, before: EventTime) {
        self.failures.retain(|_, (_, last)| *last >= before);
        if self.failures.is_empty() {
            (self.overflow, self.refused, self.attempts, self.successes) = (0, 0, 0, 0);
        }
    }

    /// Breadth of what is remembered: the host with most ports, the port with most hosts.
    fn breadth(&self) -> Breadth {
        let mut ports_of: BTreeMap<(Address, u8), u32> = BTreeMap::new();
        let mut hosts_of: BTreeMap<(u16, u8), u32> = BTreeMap::new();
        for &(target, port, protocol) in self.failures.keys() {
            *ports_of.entry((target, protocol)).or_default() += 1;
            *hosts_of.entry((port, protocol)).or_default() += 1;
        }
        let most = |tcp: bool, map: &mut dyn Iterator<Item = (u8, u32)>| {
            map.filter(|&(p, _)| (p == protocol::TCP) == tcp).map(|(_, n)| n).max().unwrap_or(0)
        };
        let hosts: std::collections::BTreeSet<Address> = self.failures.keys().map(|k| k.0).collect();
        let ports: std::collections::BTreeSet<u16> = self.failures.keys().map(|k| k.1).collect();
        Breadth {
            tcp_ports: most(true, &mut ports_of.iter().map(|(k, &n)| (k.1, n))),
            udp_ports: most(false, &mut ports_of.iter().map(|(k, &n)| (k.1, n))),
            tcp_hosts: most(true, &mut hosts_of.iter().map(|(k, &n)| (k.1, n))),
            udp_hosts: most(false, &mut hosts_of.iter().map(|(k, &n)| (k.1, n))),
            tcp: self.failures.keys().filter(|k| k.2 == protocol::TCP).count() as u32,
            hosts: hosts.len() as u32,
            ports: ports.len() as u32,
        }
    }

    /// The most TCP ports of one host that it tried since a moment.
    fn burst(&self, since: EventTime) -> u32 {
        let mut ports_of: BTreeMap<Address, u32> = BTreeMap::new();
        for ((target, _, protocol), (_, last)) in &self.failures {
            if *protocol == protocol::TCP && *last >= since {
                *ports_of.entry(*target).or_default() += 1;
            }
        }
        ports_of.into_values().max().unwrap_or(0)
    }

    /// Judges the source at the end of a window. `None` where nothing is to be said; see [`Settings`] for the rules.
    pub fn judge(&mut self, settings: &Settings, ours: bool, now: EventTime) -> Judgement {
        let span = if ours { settings.span } else { settings.outside_span };
        self.expire(now.minus(span.as_secs() as u32));
        self.fresh = 0;
        let b = self.breadth();
        let failures = self.failures.len() as u32 + self.overflow;
        let share = f64::from(self.successes) / f64::from((self.successes + failures).max(1));
        let rules: Vec<(&str, u32, u32)> = if ours {
            vec![
                ("vertical", b.tcp_ports, settings.ports),
                ("horizontal", b.tcp_hosts, settings.hosts),
                ("vertical_udp", b.udp_ports, settings.udp),
                ("horizontal_udp", b.udp_hosts, settings.udp),
                ("block", if b.hosts >= 5 && b.ports >= 5 { b.tcp } else { 0 }, settings.block),
            ]
        } else {
            let sweep = if b.ports >= settings.outside_sweep_ports { b.hosts } else { 0 };
            let burst = self.burst(now.minus(settings.joint_span.as_secs() as u32));
            vec![
                ("vertical", burst, settings.outside_burst),
                ("vertical", b.tcp_ports, settings.outside_ports),
                ("vertical_udp", b.udp_ports, settings.outside_ports.max(settings.udp)),
                ("block", sweep, settings.outside_hosts),
            ]
        };
        let closest = rules
            .into_iter()
            .max_by(|a, b| (f64::from(a.1) / f64::from(a.2)).total_cmp(&(f64::from(b.1) / f64::from(b.2))))
            .expect("there is a rule for everybody");
        let (method, value, threshold) = closest;
        let passed = value >= threshold && share <= settings.success_max;
        let unit = if method.starts_with("horizontal") || (method == "block" && !ours) { "hosts" } else { "ports" };
        let evidence = vec![
            Evidence::judged(
                if unit == "hosts" { "distinct_hosts" } else { "distinct_ports" },
                f64::from(value),
                f64::from(threshold),
                unit,
                Merge::Max,
            ),
            Evidence::judged("success_ratio", share, settings.success_max, "ratio", Merge::Latest),
            Evidence::told("first_contact_failures", f64::from(failures), "targets", Merge::Max),
            Evidence::told(
                "refused_ratio",
                f64::from(self.refused) / f64::from(self.attempts.max(1)),
                "ratio",
                Merge::Latest,
            ),
            Evidence::told(
                "trw_log_odds",
                f64::from(failures) * 4f64.ln() - f64::from(self.successes) * 4f64.ln(),
                "nats",
                Merge::Max,
            ),
        ];
        Judgement { method: method.to_owned(), passed, evidence, ratio: f64::from(value) / f64::from(threshold) }
    }

    /// The statement, once [`Suspect::judge`] has passed.
    pub fn finding(&mut self, judgement: &Judgement, ours: bool, window: EventTime, window_seconds: u32) -> Finding {
        let mut per_target: BTreeMap<Address, Vec<u16>> = BTreeMap::new();
        let (mut first, mut last) = (EventTime(u32::MAX), EventTime(0));
        for (&(target, port, _), &(from, to)) in &self.failures {
            per_target.entry(target).or_default().push(port);
            (first, last) = (first.min(from), last.max(to));
        }
        // What is only counted, since the list is full, moves the end as well.
        last = last.max(self.last_seen);
        let failures = self.failures.len() as u32 + self.overflow;
        let target_count = per_target.len() as u32;
        // The hosts with the most ports are the ones to show; then by address, so that the choice is stable.
        let mut targets: Vec<(Address, Vec<u16>)> = per_target.into_iter().collect();
        targets.sort_by_key(|(address, ports)| (std::cmp::Reverse(ports.len()), *address));
        targets.truncate(Finding::TARGETS_MAX);
        let mut targets: Vec<Target> = targets
            .into_iter()
            .map(|(address, mut ports)| {
                ports.sort_unstable();
                ports.dedup();
                let port_count = ports.len() as u32;
                ports.truncate(Target::PORTS_MAX);
                Target { address, ports, port_count }
            })
            .collect();
        let refused = f64::from(self.refused) / f64::from(self.attempts.max(1));
        let summary = summary(self.source, &targets, target_count, failures, refused, last.since(first));
        targets.sort_by_key(|t| t.address);
        Finding {
            threat: Threat::PortScan,
            method: judgement.method.clone(),
            actor: Actor::One(self.source),
            subject: Subject::Actor(self.source),
            targets,
            target_count,
            target_sketch: Vec::new(),
            first_seen: first,
            last_seen: last,
            window,
            window_seconds,
            // A source of ours has no reason to knock at closed doors; an outsider does little harm by it alone.
            score: 1.0 - 0.5 / judgement.ratio.max(1.0),
            severity: if ours { Severity::High } else { Severity::Low },
            evidence: judgement.evidence.clone(),
            summary,
            interfaces: Vec::new(),
            account: String::new(),
            provisional: false,
            ml: None,
        }
    }
}

struct Breadth {
    tcp_ports: u32,
    udp_ports: u32,
    tcp_hosts: u32,
    udp_hosts: u32,
    tcp: u32,
    hosts: u32,
    ports: u32,
}

fn summary(source: Address, targets: &[Target], hosts: u32, failures: u32, refused: f64, seconds: u32) -> String {
    let what = match (targets, hosts) {
        ([only], 1) => format!("{} ports of {}", failures.max(only.port_count), only.address),
        ([first, ..], _) if targets.iter().all(|t| t.port_count == 1) => {
            format!("port {} on {} hosts", first.ports.first().copied().unwrap_or(0), hosts)
        }
        _ => format!("{failures} ports on {hosts} hosts"),
    };
    format!("{source} tried {what} in {seconds} s without success; {:.0} % were refused", refused * 100.0)
}

#[cfg(test)]
mod tests;
