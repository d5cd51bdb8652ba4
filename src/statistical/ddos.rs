//! Floods: one victim, more than anyone asks for, and nobody waits for the answer.
//!
//! Rate alone tells little: a busy service has more of it than many attacks (FastNetMon's defaults, 20,000 packets/s,
//! miss 20,000 spoofed sources that open one connection each). So every rule here joins an amount with a *shape* that
//! service traffic does not have: nothing answered, connections without a byte of content, answers that nobody asked
//! for. Amount is packets, or the number of distinct sources (Lakhina, Crovella, Diot, SIGCOMM 2005: the dispersion of
//! sources rises while that of destinations falls).

use std::collections::BTreeMap;

use hashbrown::{HashMap, HashSet};
use serde::Deserialize;

use crate::finding::{Actor, Evidence, Finding, Merge, Origin, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, Marks, protocol, tcp_flags};
use crate::statistical::conversation::{Conversation, Outcome, Place, has_ports};
use crate::statistical::explain::Judgement;
use crate::statistical::pane::Direction;

/// `[statistical.ddos]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Unanswered TCP packets per second to one victim, over the seconds in which they came.
    pub syn_packets_per_second: f64,
    /// And at least so many of them in the window.
    pub syn_packets: u64,
    /// Or: distinct sources without an answer, or without content, in the window.
    pub sources: u32,
    /// Answered TCP connections without content in the window.
    pub empty_connections: u32,
    /// Answered TCP connections of one outside source to one host of ours in the window, whatever they carry.
    pub source_connections: u32,
    /// Of these, on a port of the web, such as brought no answer beyond the handshake.
    pub slow_requests: u32,
    /// Ports of the web.
    pub web_ports: Vec<u16>,
    /// Unanswered TCP connections of hosts of ours to one outside address on a few ports, in the window.
    pub our_connections: u32,
    /// What is unanswered, empty, or of sources that open too many must be at least this share of the victim's TCP
    /// connections in the window.
    pub share: f64,
    /// Unanswered UDP packets per second, averaged over the seconds in which they came and over ten at least, from outside.
    pub udp_packets_per_second: f64,
    /// The same from hosts of ours to one outside address.
    pub our_udp_packets_per_second: f64,
    /// Bytes of unasked-for answers of amplifying services in the window.
    pub reflected_bytes: u64,
    /// From at least so many reflectors.
    pub reflectors: u32,
    /// ICMP packets per second, averaged over the window.
    pub icmp_packets_per_second: f64,
}

/// Services known to amplify, by UDP port: US-CERT TA14-017A (UDP-based amplification attacks); SQL Server's resolution
/// service, 1434 (Akamai's threat advisory of 2015), CoAP, 5683, and digital video recorders, 37810 (Netscout, 2018 and 2020).
const AMPLIFIERS: [u16; 20] =
    [17, 19, 53, 69, 111, 123, 137, 161, 389, 427, 520, 1434, 1900, 3283, 3702, 5353, 5683, 10001, 11211, 37810];

/// A victim's window, as far as the rules need it.
#[derive(Debug, Default)]
pub struct Victim {
    tcp: u32,
    unanswered: u32,
    unanswered_packets: u64,
    /// Ports of the unanswered TCP connections.
    tried: HashSet<u16, foldhash::fast::FixedState>,
    empty: u32,
    /// Answered TCP connections by outside opener, and how many of them were [`is_drawn_out`].
    openers: HashMap<Address, (u32, u32), foldhash::fast::FixedState>,
    udp_packets: u64,
    /// First and last second in which they came.
    udp_span: Option<(u32, u32)>,
    icmp_packets: u64,
    reflected_bytes: u64,
    reflectors: HashSet<Address, foldhash::fast::FixedState>,
    /// Packets by source, of whatever a rule counts.
    sources: HashMap<Address, u64, foldhash::fast::FixedState>,
    ports: BTreeMap<u16, u32>,
    first: u32,
    last: u32,
    latest: Place,
    interface: crate::flow::InterfaceId,
}

impl Victim {
    /// Bounds on what one victim's window remembers by name: 65,536 sources × 24 B; more are not needed for any rule.
    const SOURCES_MAX: usize = 65_536;

    /// Names the sources that open too many connections, instead of those whose connections are empty or fail. This takes a
    /// second look at the window, and is asked for where it is known that [`judge`] found them.
    pub fn name_busy_sources(&mut self, address: Address, conversations: &[Conversation], busy: Busy) {
        self.sources.clear();
        self.ports.clear();
        (self.first, self.last, self.latest) = (0, 0, Place::default());
        let openers = std::mem::take(&mut self.openers);
        let is_busy = |c: &Conversation| openers.get(&c.opener).is_some_and(|opened| busy.is(opened));
        for c in conversations.iter().filter(|c| c.responder == address && c.protocol == protocol::TCP && is_busy(c)) {
            self.trace(c);
        }
    }

    fn add(&mut self, c: &Conversation, outside: bool, web_ports: &[u16], talks: &Talks) {
        let suspicious = match c.protocol {
            protocol::TCP => {
                self.tcp += 1;
                let empty = is_empty(c);
                self.empty += u32::from(empty);
                let room = self.openers.len() < Self::SOURCES_MAX || self.openers.contains_key(&c.opener);
                if room && !c.ours && c.outcome == Outcome::Answered {
                    let opened = self.openers.entry(c.opener).or_default();
                    *opened = (opened.0 + 1, opened.1 + u32::from(web_ports.contains(&c.port) && is_drawn_out(c)));
                }
                if c.failed() && c.payload(&c.sent) <= 24 * u64::from(c.sent.packets) {
                    self.unanswered += 1;
                    self.unanswered_packets += u64::from(c.sent.packets);
                    self.tried.insert(c.port);
                }
                empty || c.failed()
            }
            _ if is_datagram(c) && !c.received.seen() && outside && !talks.answer_elsewhere(c) => {
                self.udp_packets += u64::from(c.sent.packets);
                let (first, last) = self.udp_span.unwrap_or((c.start().0, c.end().0));
                self.udp_span = Some((first.min(c.start().0), last.max(c.end().0)));
                // Unasked-for answers are large, or they would not pay: more than 200 bytes a packet.
                if AMPLIFIERS.contains(&c.opener_port) && c.sent.bytes > 200 * u64::from(c.sent.packets) {
                    self.reflected_bytes += c.sent.bytes;
                    if self.reflectors.len() < Self::SOURCES_MAX {
                        self.reflectors.insert(c.opener);
                    }
                }
                true
            }
            protocol::ICMP | protocol::ICMPV6 => {
                self.icmp_packets += u64::from(c.sent.packets);
                true
            }
            _ => false,
        };
        if suspicious {
            self.trace(c);
        }
    }

    /// Whether it is a port scan, however fast: few sources go through the ports and hardly come back to one. A flood stays
    /// with its ports, and where those are made up, so are its sources. nmap at its fastest, on a host nearby, tries
    /// thousands of ports a second; it asks again for those that stay silent, once or twice as a rule.
    fn is_scanned(&self) -> bool {
        let ports = self.tried.len() as u32;
        4 * ports >= self.unanswered && self.sources.len() as u32 <= ports / 15
    }

    /// Remembers whose it is, when, and at which port.
    fn trace(&mut self, c: &Conversation) {
        if self.first == 0 || c.start().0 < self.first {
            self.first = c.start().0;
        }
        self.last = self.last.max(c.end().0);
        if c.place() > self.latest {
            (self.latest, self.interface) = (c.place(), c.interface);
        }
        if has_ports(c.protocol) {
            *self.ports.entry(c.port).or_default() += 1;
        }
        if self.ports.len() > 64 {
            self.ports.pop_last();
        }
        if self.sources.len() < Self::SOURCES_MAX || self.sources.contains_key(&c.opener) {
            *self.sources.entry(c.opener).or_default() += u64::from(c.sent.packets);
        }
    }
}

/// Which sources open too many connections: the number that one of them opens, and whether only drawn out ones count.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    each: u32,
    drawn_out: bool,
}

impl Busy {
    /// What a method of [`judge`] counts; `None` for those that do not look for such sources.
    pub fn of(method: &str, settings: &Settings) -> Option<Busy> {
        match method {
            "busy_sources" => Some(Busy { each: settings.source_connections, drawn_out: false }),
            "slow_requests" => Some(Busy { each: settings.slow_requests, drawn_out: true }),
            _ => None,
        }
    }

    fn count(&self, opened: &(u32, u32)) -> u32 {
        if self.drawn_out { opened.1 } else { opened.0 }
    }

    fn is(&self, opened: &(u32, u32)) -> bool {
        self.count(opened) >= self.each
    }

    /// How many sources open so many, how many connections these are together, and how many the busiest of all opened.
    fn totals(&self, victim: &Victim) -> (u32, u32, u32) {
        let counts = || victim.openers.values().map(|opened| self.count(opened));
        let busy = || counts().filter(|&n| n >= self.each);
        (busy().count() as u32, busy().sum(), counts().max().unwrap_or(0))
    }
}

/// Datagrams that go one way only, by the socket that sends or receives them. The other side may speak all the same, by another
/// address: IPsec over two tunnels, calls that are relayed over two addresses.
#[derive(Debug, Default)]
struct Talks {
    /// Packets sent from, and received at, an address and port without an answer on the same five-tuple.
    sockets: HashMap<(Address, u16), (u64, u64), foldhash::fast::FixedState>,
}

impl Talks {
    /// Of the sockets between which conversations went that `counts` says yes to.
    fn of(conversations: &[Conversation], counts: impl Fn(&Conversation) -> bool) -> Talks {
        let one_way = || conversations.iter().filter(|c| is_datagram(c) && !c.received.seen());
        let mut talks = Talks::default();
        for c in one_way().filter(|c| counts(c)) {
            talks.sockets.entry((c.opener, c.opener_port)).or_default();
            talks.sockets.entry((c.responder, c.port)).or_default();
        }
        if talks.sockets.is_empty() {
            return talks;
        }
        for c in one_way() {
            let packets = u64::from(c.sent.packets);
            if let Some(sender) = talks.sockets.get_mut(&(c.opener, c.opener_port)) {
                sender.0 += packets;
            }
            if let Some(receiver) = talks.sockets.get_mut(&(c.responder, c.port)) {
                receiver.1 += packets;
            }
        }
        talks
    }

    /// Whether whoever receives it also sends from that very socket, or whoever sends it also receives there: a twentieth of the
    /// packets at least, which is what a VPN's acknowledgements of a download come to.
    fn answer_elsewhere(&self, c: &Conversation) -> bool {
        let of = |socket| self.sockets.get(&socket).copied().unwrap_or_default();
        let (sends, receives) = of((c.responder, c.port));
        let (sent, received) = of((c.opener, c.opener_port));
        20 * sends >= receives || 20 * received >= sent
    }
}

/// Whether a connection was made and carried no content. What goes on from an earlier window is silent and not empty: where
/// flags are known, it has no SYN; where they are not, it is kept alive.
fn is_empty(c: &Conversation) -> bool {
    let goes_on = if c.sent.has(Marks::FLAGS_KNOWN) {
        let opens = (c.sent.flags | c.received.flags) & tcp_flags::SYN != 0;
        // What nobody knows of is answered by resets alone.
        let refused = c.received.flags & tcp_flags::RST != 0 && is_hollow(c, &c.received) && !is_kept_alive(c);
        !opens && !refused
    } else {
        is_kept_alive(c)
    };
    c.outcome == Outcome::Answered && !goes_on && is_hollow(c, &c.sent)
}

/// Whether nothing answers it by itself: UDP, and what is tunnelled (GRE, ESP, IP in IP).
fn is_datagram(c: &Conversation) -> bool {
    !matches!(c.protocol, protocol::TCP | protocol::ICMP | protocol::ICMPV6)
}

/// Whether it is nothing but keep-alives: probes of no or one byte, each acknowledged by a bare header (RFC 9293, 3.8.4), all
/// with timestamps or all without. What opens a connection has other sizes, since a SYN has options that its ACK has not, and
/// other numbers, since the opener's ACK has no answer.
fn is_kept_alive(c: &Conversation) -> bool {
    // Nobody asks more often than every few seconds whether the other side is still there (Linux waits 75 s between probes).
    const PACE: u32 = 5;
    let header = if c.opener.as_v4().is_some() { 40 } else { 60 };
    let bare = |direction: &Direction, most: u64| {
        let packets = u64::from(direction.packets.max(1));
        let (size, rest) = (direction.bytes / packets, direction.bytes % packets);
        rest == 0 && [0, 12].iter().any(|options| (header + options..=header + options + most).contains(&size))
    };
    c.sent.packets == c.received.packets
        && c.sent.packets <= 2 + c.end().since(c.start()) / PACE
        && (bare(&c.sent, 1) && bare(&c.received, 0) || bare(&c.sent, 0) && bare(&c.received, 1))
}

/// Whether a request went out and no answer came in the window: it is drawn out for as long as the server waits (RSnake,
/// *Slowloris*, 2009).
fn is_drawn_out(c: &Conversation) -> bool {
    is_hollow(c, &c.received) && !is_hollow(c, &c.sent)
}

/// No more than acknowledgements and TCP options.
fn is_hollow(c: &Conversation, direction: &Direction) -> bool {
    c.payload(direction) <= 12 * u64::from(direction.packets)
}

/// Whether a host's totals of a window are worth a closer look: a cheap test that no victim fails.
pub fn is_hot(settings: &Settings, flows: u32, packets: u64) -> bool {
    flows >= settings.empty_connections.min(settings.sources).min(settings.reflectors.max(8))
        || packets >= settings.syn_packets.min((settings.icmp_packets_per_second * 10.0) as u64)
}

/// Collects the windows of hot victims.
pub fn collect(
    conversations: &[Conversation],
    hot: &HashSet<Address, foldhash::fast::FixedState>,
    settings: &Settings,
) -> BTreeMap<Address, Victim> {
    let mut victims: BTreeMap<Address, Victim> = BTreeMap::new();
    let is_victim = |c: &Conversation| hot.contains(&c.responder) && !c.responder.is_group();
    let talks = Talks::of(conversations, is_victim);
    for c in conversations {
        if is_victim(c) {
            victims.entry(c.responder).or_default().add(c, !(c.ours && c.theirs), &settings.web_ports, &talks);
        }
    }
    victims
}

/// Judges a victim's window.
pub fn judge(victim: &Victim, ours: bool, settings: &Settings, window_seconds: u32) -> Judgement {
    let seconds = f64::from(window_seconds);
    let active = f64::from(victim.last.saturating_sub(victim.first).max(1));
    let tcp = f64::from(victim.tcp.max(1));
    let sources = victim.sources.len() as f64;
    let syn_rate = victim.unanswered_packets as f64 / active;
    let unanswered_share = f64::from(victim.unanswered) / tcp;
    let hollow_share = f64::from(victim.unanswered + victim.empty) / tcp;
    let shaped = |share: f64| if share >= settings.share { 1.0 } else { 0.0 };
    let ratio = |value: f64, threshold: f64| value / threshold;
    let flooded = if victim.is_scanned() { 0.0 } else { 1.0 };
    let enough = ratio(victim.unanswered_packets as f64, settings.syn_packets as f64);
    // Of a victim outside we see our share of the flood alone. A scan has many ports, a flood few.
    let concentrated = !ours && victim.ports.len() <= 8;
    let ours_alone =
        if concentrated { ratio(f64::from(victim.unanswered), f64::from(settings.our_connections)) } else { 0.0 };
    let busy = |method: &str| Busy::of(method, settings).expect("a method that looks for busy sources");
    let by_busy = |method: &str| {
        let (_, together, busiest) = busy(method).totals(victim);
        if ours { shaped(f64::from(together) / tcp) * ratio(busiest.into(), busy(method).each.into()) } else { 0.0 }
    };
    // What is sent within less than ten seconds is a burst: FastNetMon averages over five.
    let udp_seconds = victim.udp_span.map_or(10, |(first, last)| last.saturating_sub(first).max(10));
    let udp_rate = victim.udp_packets as f64 / f64::from(udp_seconds);
    let udp_limit = if ours { settings.udp_packets_per_second } else { settings.our_udp_packets_per_second };
    let rules: [(&str, f64); 9] = [
        ("outbound_flood", shaped(unanswered_share) * ours_alone),
        ("busy_sources", by_busy("busy_sources")),
        ("slow_requests", by_busy("slow_requests")),
        (
            "syn_flood",
            flooded * shaped(unanswered_share) * enough.min(ratio(syn_rate, settings.syn_packets_per_second)),
        ),
        ("many_sources", shaped(hollow_share) * ratio(sources, f64::from(settings.sources))),
        (
            "connection_flood",
            shaped(hollow_share) * ratio(f64::from(victim.empty), f64::from(settings.empty_connections)),
        ),
        ("udp_flood", ratio(udp_rate, udp_limit)),
        (
            "reflection",
            ratio(victim.reflected_bytes as f64, settings.reflected_bytes as f64)
                .min(ratio(victim.reflectors.len() as f64, f64::from(settings.reflectors)))
                .max(ratio(victim.reflectors.len() as f64, f64::from(settings.sources))),
        ),
        ("icmp_flood", ratio(victim.icmp_packets as f64 / seconds, settings.icmp_packets_per_second)),
    ];
    let (method, ratio) = rules.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("there are nine rules");
    let told = |name: &'static str, value: f64, unit: &'static str| Evidence::told(name, value, unit, Merge::Max);
    let judged = |name: &'static str, value: f64, threshold: f64, unit: &'static str| {
        Evidence::at_least(name, value, threshold, unit, Merge::Max)
    };
    let mut evidence = match method {
        "syn_flood" => vec![
            judged("unanswered_packets_per_second", syn_rate, settings.syn_packets_per_second, "packets/s"),
            judged("unanswered_packets", victim.unanswered_packets as f64, settings.syn_packets as f64, "packets"),
            judged("unanswered_share", unanswered_share, settings.share, "ratio"),
        ],
        "outbound_flood" => vec![
            judged(
                "unanswered_connections",
                f64::from(victim.unanswered),
                f64::from(settings.our_connections),
                "connections",
            ),
            judged("unanswered_share", unanswered_share, settings.share, "ratio"),
        ],
        "busy_sources" | "slow_requests" => {
            let (sources, together, busiest) = busy(method).totals(victim);
            vec![
                judged("connections_of_one_source", busiest.into(), busy(method).each.into(), "connections"),
                judged("busy_sources_share", f64::from(together) / tcp, settings.share, "ratio"),
                told("busy_sources", sources.into(), "addresses"),
            ]
        }
        "many_sources" => vec![
            judged("distinct_sources", sources, f64::from(settings.sources), "addresses"),
            judged("hollow_share", hollow_share, settings.share, "ratio"),
        ],
        "connection_flood" => vec![
            judged("empty_connections", f64::from(victim.empty), f64::from(settings.empty_connections), "connections"),
            judged("hollow_share", hollow_share, settings.share, "ratio"),
        ],
        "udp_flood" => vec![judged("unanswered_udp_packets_per_second", udp_rate, udp_limit, "packets/s")],
        // A slice of a second has few bytes, and so many that nobody asked all the same.
        "reflection" if victim.reflectors.len() >= settings.sources as usize => vec![
            told("reflected_bytes", victim.reflected_bytes as f64, "bytes"),
            judged("reflectors", victim.reflectors.len() as f64, settings.sources.into(), "addresses"),
        ],
        "reflection" => vec![
            judged("reflected_bytes", victim.reflected_bytes as f64, settings.reflected_bytes as f64, "bytes"),
            judged("reflectors", victim.reflectors.len() as f64, f64::from(settings.reflectors), "addresses"),
        ],
        _ => vec![judged(
            "icmp_packets_per_second",
            victim.icmp_packets as f64 / seconds,
            settings.icmp_packets_per_second,
            "packets/s",
        )],
    };
    if Busy::of(method, settings).is_none() && method != "many_sources" {
        evidence.push(told("distinct_sources", sources, "addresses"));
    }
    evidence.push(told("active_seconds", active, "s"));
    Judgement { method: method.to_owned(), passed: ratio >= 1.0, evidence, ratio }
}

/// The statement, once [`judge`] has passed.
pub fn finding(
    address: Address,
    victim: &Victim,
    judgement: &Judgement,
    ours: bool,
    window: EventTime,
    window_seconds: u32,
) -> Finding {
    let total: u64 = victim.sources.values().sum();
    let dominant = victim.sources.iter().max_by_key(|&(&source, &packets)| (packets, std::cmp::Reverse(source)));
    // One name is told only when it stands for most of it: spoofed or many sources have none.
    let actor = match dominant {
        Some((&source, &packets)) if packets * 10 >= total * 8 => Actor::One(source),
        _ => Actor::Many,
    };
    let ports: Vec<u16> = victim.ports.keys().copied().take(Target::PORTS_MAX).collect();
    let port_count = victim.ports.len() as u32;
    let sources = victim.sources.len();
    let counted = judgement.evidence.iter().any(|e| e.name == "distinct_sources");
    let who = match actor {
        Actor::One(source) => source.to_string(),
        Actor::Many if counted => "{distinct_sources} sources".to_owned(),
        Actor::Many => format!("{sources} sources"),
    };
    let leading = &judgement.evidence[0];
    let what = judgement.method.replace('_', " ");
    let seconds = victim.last.saturating_sub(victim.first).max(1);
    let summary = match &*leading.name {
        "distinct_sources" => format!("connections that carry nothing from {who} on {address} within {seconds} s"),
        name => format!("{what} from {who} on {address}: {{{name}}} {} within {seconds} s", name.replace('_', " ")),
    };
    let (first_seen, last_seen) = (EventTime(victim.first), EventTime(victim.last));
    let (severity, reason) = match ours {
        true => (Severity::High, "a host of ours is flooded"),
        false if judgement.ratio >= 10.0 => {
            (Severity::High, "hosts of ours flood somebody, ten times over the threshold")
        }
        false => (Severity::Medium, "hosts of ours send somebody more than is answered"),
    };
    Finding {
        threat: Threat::Ddos,
        method: judgement.method.clone(),
        actor,
        subject: Subject::Victim(address),
        targets: vec![Target { address, ports, port_count }],
        target_count: 1,
        sources: match actor {
            Actor::One(_) => Vec::new(),
            Actor::Many => {
                let source = |(&address, &amount)| Origin { address, amount };
                Origin::largest(victim.sources.iter().map(source).collect())
            }
        },
        severity_reason: reason.to_owned(),
        learned: Vec::new(),
        first_seen,
        last_seen,
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

impl Victim {
    /// Who saw it.
    pub fn interface(&self) -> crate::flow::InterfaceId {
        self.interface
    }
}

#[cfg(test)]
mod tests;
