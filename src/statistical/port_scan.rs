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
use crate::statistical::conversation::{Conversation, Place, port_rank};
use crate::statistical::explain::Judgement;
use crate::statistical::table::Entry;
use crate::statistical::{Map, Set};

pub mod joint;
pub mod sweep;

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
    /// At most this share of first contacts may succeed: for a source of ours over TCP, those with the same host (vertical) or on the
    /// same port (horizontal, but for `client_ports`); else all of them.
    pub success_max: f64,
    /// Ports at which clients meet many hosts that they did not choose. Hosts that fail there count as scanned only
    pub client_ports: Vec<u16>,
    /// where each is tried at most so often on average.
    pub client_repeats: f64,
    /// Ports of peer-to-peer networks, whose members try many addresses that are gone: no scan of hosts on one port.
    pub peer_ports: Vec<u16>,
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
    /// Ports by which hosts are administered. A host of ours that suddenly uses one with `hosts` others sweeps them,
    pub admin_ports: Vec<u16>,
    /// where the first contacts with these lie within this span,
    pub sweep_span: SignedDuration,
    /// and it was watched for so long without doing it.
    pub sweep_watch: SignedDuration,
    /// A log that is younger is waited for so long: what is repeated meanwhile is a job.
    pub sweep_hold: SignedDuration,
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
    /// What became of its attempts by port, over all hosts.
    by_port: BTreeMap<(u16, u8), Tally>,
    /// First contacts that succeeded, by host and protocol.
    by_host: BTreeMap<(Address, u8), u32>,
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

/// Attempts of a source at one port.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
struct Tally {
    /// That failed, with repeats.
    failed: u32,
    /// First contacts that succeeded.
    answered: u32,
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
    /// More ports, or hosts that answered, are not told apart: 256 × 24 B each. The share of all contacts stands in for a port;
    /// that a host with fifteen closed ports answered on others is not missed.
    const TALLIES_MAX: usize = 256;

    /// A source without failures.
    pub fn new(source: Address, at: EventTime) -> Suspect {
        Suspect {
            source,
            failures: HashMap::default(),
            overflow: 0,
            successes: 0,
            by_port: BTreeMap::new(),
            by_host: BTreeMap::new(),
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
        if let Some(tally) = self.tally(c) {
            tally.failed = tally.failed.saturating_add(1);
        }
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
        if let Some(tally) = self.tally(c) {
            tally.answered = tally.answered.saturating_add(1);
        }
        let host = (c.responder, c.protocol);
        if c.ours && (self.by_host.len() < Self::TALLIES_MAX || self.by_host.contains_key(&host)) {
            *self.by_host.entry(host).or_default() += 1;
        }
        self.failures.remove(&(c.responder, c.port, c.protocol));
    }

    /// Where attempts at a port are tallied: for hosts of ours, since outsiders are judged by all that they do.
    fn tally(&mut self, c: &Conversation) -> Option<&mut Tally> {
        let port = (c.port, c.protocol);
        let room = self.by_port.len() < Self::TALLIES_MAX || self.by_port.contains_key(&port);
        (c.ours && room).then(|| self.by_port.entry(port).or_default())
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
        for (port, theirs) in other.by_port {
            if self.by_port.len() < Self::TALLIES_MAX || self.by_port.contains_key(&port) {
                let tally = self.by_port.entry(port).or_default();
                (tally.failed, tally.answered) = (tally.failed.max(theirs.failed), tally.answered.max(theirs.answered));
            }
        }
        for (host, theirs) in other.by_host {
            if self.by_host.len() < Self::TALLIES_MAX || self.by_host.contains_key(&host) {
                let answered = self.by_host.entry(host).or_default();
                *answered = theirs.max(*answered);
            }
        }
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
            self.by_port.clear();
            self.by_host.clear();
        }
    }

    /// Breadth of what is remembered: the host with most ports, the port with most hosts.
    fn breadth(&self, settings: &Settings, ours: bool) -> Breadth {
        let mut ports_of: Map<(Address, u8), u32> = Map::default();
        let mut hosts_of: Map<(u16, u8), u32> = Map::default();
        for &(target, port, protocol) in self.failures.keys() {
            *ports_of.entry((target, protocol)).or_default() += 1;
            // No rule asks of an outsider how many hosts there are on one port.
            if ours && !is_client_v6(target, port, settings) {
                *hosts_of.entry((port, protocol)).or_default() += 1;
            }
        }
        let vertical = |tcp: bool| {
            let counts = ports_of.iter().filter(|(key, _)| (key.1 == protocol::TCP) == tcp);
            let kinds = counts.map(|(key, &count)| {
                let answered = self.by_host.get(key).copied().unwrap_or(0);
                Kind { count, share: self.share(key.1, count, answered) }
            });
            Kind::most(kinds, settings)
        };
        let horizontal = |tcp: bool| {
            let counts = hosts_of.iter().filter(|(key, _)| (key.1 == protocol::TCP) == tcp);
            let counts = counts.filter(|(key, count)| !self.is_clients(key.0, key.1, **count, settings));
            let kinds = counts.map(|(key, &count)| {
                let share = match self.by_port.get(key) {
                    // Peers fall back to these ports too, where nobody listens.
                    Some(_) if settings.client_ports.contains(&key.0) => self.share_of_all(),
                    Some(tally) => self.share(key.1, count, tally.answered),
                    // There were too many ports to tell this one apart.
                    None => self.share_of_all(),
                };
                Kind { count, share }
            });
            Kind::most(kinds, settings)
        };
        let is_peers = |key: &&(Address, u16, u8)| settings.peer_ports.contains(&key.1);
        let telling = || self.failures.keys().filter(|key| !is_peers(key) && !is_client_v6(key.0, key.1, settings));
        // A block is tried port by port and host by host. Of a peer one port is tried, which is its own.
        let in_block = |key: &&(Address, u16, u8)| {
            let (target, port, protocol) = **key;
            !ours
                || port_rank(port) == 0
                || ports_of.get(&(target, protocol)).is_some_and(|&n| n > 1)
                || hosts_of.get(&(port, protocol)).is_some_and(|&n| n > 1)
        };
        let hosts: Set<Address> = telling().filter(in_block).map(|k| k.0).collect();
        let ports: Set<u16> = telling().filter(in_block).map(|k| k.1).collect();
        Breadth {
            tcp_ports: vertical(true),
            udp_ports: vertical(false),
            tcp_hosts: horizontal(true),
            udp_hosts: horizontal(false),
            tcp: telling().filter(in_block).filter(|k| k.2 == protocol::TCP).count() as u32,
            hosts: hosts.len() as u32,
            ports: ports.len() as u32,
        }
    }

    /// Whether hosts that fail at a port are what clients and peers meet, and no scan.
    fn is_clients(&self, port: u16, protocol: u8, hosts: u32, settings: &Settings) -> bool {
        let tries = self.by_port.get(&(port, protocol)).map_or(0, |tally| tally.failed);
        // What is only counted was tried once as far as is known.
        let hosts = hosts.saturating_add(self.overflow);
        settings.peer_ports.contains(&port)
            || settings.client_ports.contains(&port) && f64::from(tries) > settings.client_repeats * f64::from(hosts)
    }

    /// The share of contacts that succeed, beside so many failures: of TCP those of one kind, of other protocols, whose silence
    /// says little by itself, all.
    fn share(&self, protocol: u8, failed: u32, answered: u32) -> f64 {
        match protocol {
            protocol::TCP => f64::from(answered) / f64::from((answered + failed).max(1)),
            _ => self.share_of_all(),
        }
    }

    fn share_of_all(&self) -> f64 {
        f64::from(self.successes) / f64::from((self.successes + self.known()).max(1))
    }

    /// The most TCP ports of one host that it tried since a moment.
    fn burst(&self, since: EventTime) -> u32 {
        let mut ports_of: Map<Address, u32> = Map::default();
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
        let b = self.breadth(settings, ours);
        let failures = self.known();
        let of_all = |count: u32| Kind { count, share: self.share_of_all() };
        let rules: Vec<(&str, Kind, u32)> = if ours {
            vec![
                ("vertical", b.tcp_ports, settings.ports),
                ("horizontal", b.tcp_hosts, settings.hosts),
                ("vertical_udp", b.udp_ports, settings.udp),
                ("horizontal_udp", b.udp_hosts, settings.udp),
                ("block", of_all(if b.hosts >= 5 && b.ports >= 5 { b.tcp } else { 0 }), settings.block),
            ]
        } else {
            let sweep = if b.ports >= settings.outside_sweep_ports { b.hosts } else { 0 };
            let burst = self.burst(now.minus(settings.joint_span.as_secs() as u32));
            vec![
                ("vertical", of_all(burst), settings.outside_burst),
                ("vertical", of_all(b.tcp_ports.count), settings.outside_ports),
                ("vertical_udp", of_all(b.udp_ports.count), settings.outside_ports.max(settings.udp)),
                ("block", of_all(sweep), settings.outside_hosts),
            ]
        };
        let passes = |rule: &(&str, Kind, u32)| rule.1.count >= rule.2 && rule.1.share <= settings.success_max;
        let reach = |rule: &(&str, Kind, u32)| f64::from(rule.1.count) / f64::from(rule.2);
        let closest = rules
            .into_iter()
            .max_by(|a, b| passes(a).cmp(&passes(b)).then(reach(a).total_cmp(&reach(b))))
            .expect("there is a rule for everybody");
        let passed = passes(&closest);
        let (method, Kind { count: value, share }, threshold) = closest;
        let unit = if method.starts_with("horizontal") || (method == "block" && !ours) { "hosts" } else { "ports" };
        let evidence = vec![
            Evidence::at_least(
                if unit == "hosts" { "distinct_hosts" } else { "distinct_ports" },
                f64::from(value),
                f64::from(threshold),
                unit,
                Merge::Max,
            ),
            Evidence::at_most("success_ratio", share, settings.success_max, "ratio", Merge::Latest),
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
    pub fn finding(
        &mut self,
        judgement: &Judgement,
        settings: &Settings,
        ours: bool,
        window: EventTime,
        window_seconds: u32,
    ) -> Finding {
        let mut per_target: BTreeMap<Address, Vec<u16>> = BTreeMap::new();
        let (mut first, mut last) = (EventTime(u32::MAX), EventTime(0));
        for (&(target, port, _), &(from, to)) in &self.failures {
            per_target.entry(target).or_default().push(port);
            (first, last) = (first.min(from), last.max(to));
        }
        // What is only counted, since the list is full, moves the end as well.
        last = last.max(self.last_seen);
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
        let summary = summary(self.source, &targets, judgement, refused, last.since(first));
        // A source of ours has no reason to knock at closed doors, but at those of the web and of mail, which it is sent to by
        // names that others publish; an outsider does little harm by it alone.
        let sent_there = |target: &Target| target.ports.iter().all(|port| settings.client_ports.contains(port));
        let (severity, reason) = match ours {
            true if judgement.method == "horizontal" && targets.iter().all(sent_there) => {
                (Severity::Medium, "it scans from inside, though only ports to which names lead")
            }
            true => (Severity::High, "it scans from inside, which hosts of ours have no reason to do"),
            false => (Severity::Low, "it scans from outside and was refused, as happens to everybody on the internet"),
        };
        targets.sort_by_key(|t| t.address);
        Finding {
            threat: Threat::PortScan,
            method: judgement.method.clone(),
            actor: Actor::One(self.source),
            subject: Subject::Actor(self.source),
            targets,
            target_count,
            sources: Vec::new(),
            severity_reason: reason.to_owned(),
            learned: Vec::new(),
            first_seen: first,
            last_seen: last,
            window,
            window_seconds,
            score: 1.0 - 0.5 / judgement.ratio.max(1.0),
            severity,
            evidence: judgement.evidence.clone(),
            summary,
            interfaces: Vec::new(),
            account: String::new(),
            provisional: false,
            ml: None,
            alternatives: Vec::new(),
        }
    }
}

/// Failures of one kind, and the share of contacts of that kind that succeeded.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    count: u32,
    share: f64,
}

impl Kind {
    /// The kind with most failures among those that hardly ever succeed, or among all where there is none.
    fn most(kinds: impl Iterator<Item = Kind>, settings: &Settings) -> Kind {
        let rank = |kind: &Kind| (kind.share <= settings.success_max, kind.count);
        kinds.max_by(|a, b| rank(a).cmp(&rank(b)).then(b.share.total_cmp(&a.share))).unwrap_or_default()
    }
}

/// Browsers try both families of a name at once, and fall back where IPv6 leads nowhere (RFC 8305), so that a host whose IPv6 is
/// broken fails at every web server it visits; sweeping IPv6 for servers is out of the question (RFC 7707).
fn is_client_v6(target: Address, port: u16, settings: &Settings) -> bool {
    target.as_v4().is_none() && settings.client_ports.contains(&port)
}

struct Breadth {
    tcp_ports: Kind,
    udp_ports: Kind,
    tcp_hosts: Kind,
    udp_hosts: Kind,
    tcp: u32,
    hosts: u32,
    ports: u32,
}

/// The sentence, with the evidence's names in the place of numbers.
fn summary(source: Address, targets: &[Target], judgement: &Judgement, refused: f64, seconds: u32) -> String {
    let count = |name: &str| judgement.evidence.iter().find(|e| e.name == name).map_or(0.0, |e| e.value);
    // What the rule counted is told where it is all that failed; else all that failed is.
    let ports = match count("distinct_ports") >= count("first_contact_failures") {
        true => "{distinct_ports}",
        false => "{first_contact_failures}",
    };
    let what = match targets {
        [only] => format!("{ports} ports of {}", only.address),
        [first, ..] if targets.iter().all(|t| t.port_count == 1 && t.ports == first.ports) => {
            format!("port {} on {{targets}} hosts", first.ports.first().copied().unwrap_or(0))
        }
        _ => format!("{ports} ports on {{targets}} hosts"),
    };
    format!("{source} tried {what} in {seconds} s without success; {:.0} % were refused", refused * 100.0)
}

#[cfg(test)]
mod tests;
