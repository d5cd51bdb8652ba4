//! Records by the million, for benches and soak tests: the shape of a big network's log without its meaning.
//!
//! Where [`super::Simulation`] keeps every session alive, this draws each record on its own, so that a table of any size can
//! be filled at several million records a second. There is no truth in it. [`Spread::Zipf`] is what traffic looks like (few
//! hosts make most of it); [`Spread::Even`] visits every pair in turn and is the worst case for caches and tables: with a
//! million hosts it is a million sources, a million destinations and five million pairs.

use super::Step;
use super::labels::{Labels, Source};
use super::vpc::{public_v4, public_v6};
use crate::flow::{
    Address, Blindness, BlindnessKind, EventTime, FlowRecord, Interface, InterfaceId, Marks, protocol, tcp_flags,
};
use crate::random::{Random, mix, unit_of};

/// How traffic spreads over hosts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spread {
    /// The k-th busiest host makes 1/k of the traffic of the first; each has up to 32 peers, of which the same holds.
    Zipf,
    /// Every host has five peers, and every pair comes in its turn.
    Even,
}

/// What is to be drawn.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Settings {
    /// Fixes everything.
    pub seed: u64,
    /// The first second.
    pub start: EventTime,
    /// Over how long the records are spread, s.
    pub duration_seconds: u32,
    /// How many openers, half of them ours; as many others are called.
    pub hosts: u32,
    /// How many records.
    pub records: u64,
    /// How late a record may come, s.
    pub shuffle_seconds: u32,
    /// Share of records (of pairs, with [`Spread::Even`]) with IPv6 addresses.
    pub ipv6_share: f64,
    /// How they spread.
    pub spread: Spread,
}

/// Addresses of ours that share an interface (secondary addresses), to keep their number within reason.
const HOSTS_PER_INTERFACE: u32 = 16;

/// Share of requests that are answered, which makes four replies in ten records.
const REPLY_SHARE: f64 = 2.0 / 3.0;

/// Share of requests that are refused, which makes 5 % of the records.
const REJECT_SHARE: f64 = 0.05 * (1.0 + REPLY_SHARE);

/// Share of lines that say NODATA.
const NODATA_SHARE: f64 = 0.004;

const SERVICES: [(u16, u8); 16] = [
    (443, protocol::TCP),
    (443, protocol::TCP),
    (443, protocol::TCP),
    (443, protocol::TCP),
    (80, protocol::TCP),
    (53, protocol::UDP),
    (53, protocol::UDP),
    (123, protocol::UDP),
    (5432, protocol::TCP),
    (3306, protocol::TCP),
    (6379, protocol::TCP),
    (8080, protocol::TCP),
    (22, protocol::TCP),
    (9092, protocol::TCP),
    (9100, protocol::TCP),
    (0, protocol::ICMP),
];

/// An iterator over seconds of load.
#[derive(Clone, Debug)]
pub struct Load {
    settings: Settings,
    random: Random,
    interfaces: Vec<Interface>,
    second: u32,
    made: u64,
    blind: u64,
    turn: u64,
}

impl Load {
    /// Nothing is drawn yet.
    pub fn new(settings: Settings) -> Load {
        let settings = Settings { hosts: settings.hosts.max(2), ..settings };
        // Ours are half of the openers and, at other addresses, half of the called.
        let ours = settings.hosts;
        let interfaces = (1..=ours.div_ceil(HOSTS_PER_INTERFACE) + 1)
            .map(|id| Interface {
                id: InterfaceId(id),
                name: format!("eni-0{:016x}", mix(settings.seed ^ u64::from(id) << 24)),
                account: "123456789012".to_owned(),
            })
            .collect();
        let random = Random::new(settings.seed, "load", 0);
        Load { settings, random, interfaces, second: 0, made: 0, blind: 0, turn: 0 }
    }

    /// The interfaces that records refer to, by ascending id.
    pub fn interfaces(&self) -> &[Interface] {
        &self.interfaces
    }

    /// What can be said of it: that nothing is known to be malicious or benign.
    pub fn labels(&self) -> Labels {
        Labels {
            source: Source {
                generator: concat!("flowvigil simulate ", env!("CARGO_PKG_VERSION"), ", load").to_owned(),
                seed: self.settings.seed,
            },
            description: format!("load of {} openers, {:?} spread", self.settings.hosts, self.settings.spread),
            time_range: (self.settings.start.0, self.settings.start.plus(self.second.saturating_sub(1)).0),
            duration_s: self.second.saturating_sub(1),
            records: self.made,
            blind: self.blind,
            hosts: u64::from(self.settings.hosts),
            local_hosts: vec!["10.0.0.0/8".to_owned(), "fd00::/8".to_owned()],
            unlabelled: true,
            notes: "Records without meaning, for benches only.".to_owned(),
            ..Labels::default()
        }
    }

    /// The number of the next pair, and of its opener.
    fn pair(&mut self) -> (u64, u32) {
        let hosts = u64::from(self.settings.hosts);
        match self.settings.spread {
            Spread::Zipf => {
                // The inverse of the continuous distribution function of 1/k on 1..=hosts.
                let rank = |unit: f64, n: u64| ((n as f64 + 1.0).ln() * unit).exp() as u64 - 1;
                let host = rank(self.random.unit(), hosts).min(hosts - 1);
                let peers = 1 + mix(host) % 32;
                let peer = rank(self.random.unit(), peers).min(peers - 1);
                (host * 32 + peer, host as u32)
            }
            Spread::Even => {
                let pairs = hosts * 5;
                self.turn = (self.turn + 1) % pairs;
                // A prime step that is no factor of the number of pairs scatters neighbours and still visits each of them.
                let step = if pairs.is_multiple_of(2_654_435_761) { 2_654_435_789 } else { 2_654_435_761 };
                let pair = (u128::from(self.turn) * step % u128::from(pairs)) as u64;
                (pair, (pair % hosts) as u32)
            }
        }
    }

    fn draw(&mut self, now: u32, records: &mut Vec<FlowRecord>) {
        let (pair, host) = self.pair();
        let traits = mix(pair ^ self.settings.seed << 40);
        let is_ours = host.is_multiple_of(2);
        let called = (mix(traits) % u64::from(self.settings.hosts)) as u32;
        let draw = self.random.bits();
        // Where a few pairs make most of the traffic, the family is drawn per record, or they would decide the share.
        let family = if self.settings.spread == Spread::Zipf { mix(draw ^ traits) } else { traits };
        let by_v6 = unit_of(family) < self.settings.ipv6_share;
        // Ours that open are in 10.0.0.0/9, ours that are called in 10.128.0.0/9.
        let (ours, interface) = if is_ours {
            (host / 2, host / 2)
        } else {
            ((1 << 23) | (called / 2), called / 2 + self.settings.hosts / 2)
        };
        let theirs = u64::from(if is_ours { called } else { host }) << 1 | u64::from(is_ours);
        let (own, other) = match by_v6 {
            true => (Address::from_bits(0xfd00_u128 << 112 | u128::from(ours)), public_v6(mix(theirs))),
            false => (Address::v4(10 << 24 | ours), Address::v4(public_v4(theirs))),
        };
        let (port, number) = SERVICES[(traits >> 7) as usize % SERVICES.len()];
        let protocol = if number == protocol::ICMP && by_v6 { protocol::ICMPV6 } else { number };
        let late = if self.settings.shuffle_seconds == 0 {
            0
        } else {
            (draw >> 48) as u32 % (self.settings.shuffle_seconds + 1)
        };
        let end = self.settings.start.0 + now.saturating_sub(late);
        let start = (end - (draw >> 40) as u32 % 60).max(self.settings.start.0);
        let is_rejected = unit_of(mix(draw)) < REJECT_SHARE;
        let packets = if is_rejected { 1 } else { 1 + ((draw & 0xff) >> (draw >> 8 & 7)) };
        let record =
            FlowRecord {
                source: if is_ours { own } else { other },
                destination: if is_ours { other } else { own },
                bytes: packets * (40 + (draw >> 12 & 0x3ff)),
                packets,
                start: EventTime(start),
                end: EventTime(end),
                interface: InterfaceId(interface / HOSTS_PER_INTERFACE + 1),
                source_port: if port == 0 { 0 } else { 32_768 + (draw >> 24) as u16 % 28_232 },
                destination_port: port,
                protocol,
                tcp_flags: if protocol == protocol::TCP { tcp_flags::SYN } else { 0 },
                marks: Marks::FLAGS_KNOWN
                    .with(if is_ours { Marks::EGRESS } else { Marks::INGRESS })
                    .with(if is_rejected { Marks::REJECTED } else { Marks::default() }),
            };
        records.push(record);
        if !is_rejected && unit_of(mix(!draw)) < REPLY_SHARE / (1.0 - REJECT_SHARE) {
            records.push(FlowRecord {
                source: record.destination,
                destination: record.source,
                source_port: record.destination_port,
                destination_port: record.source_port,
                bytes: packets * (40 + (draw >> 30 & 0x3ff)),
                tcp_flags: if protocol == protocol::TCP { tcp_flags::SYN | tcp_flags::ACK } else { 0 },
                marks: Marks::FLAGS_KNOWN.with(if is_ours { Marks::INGRESS } else { Marks::EGRESS }),
                ..record
            });
        }
    }
}

impl Iterator for Load {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let Settings { records: wanted, duration_seconds, start, .. } = self.settings;
        if self.made >= wanted || self.second >= duration_seconds {
            return None;
        }
        let now = self.second;
        self.second += 1;
        let until = (u128::from(wanted) * u128::from(self.second) / u128::from(duration_seconds)) as u64;
        let count = (until - self.made.min(until)) as usize;
        let mut records = Vec::with_capacity(count + 1);
        let mut blind = Vec::new();
        while records.len() < count {
            self.draw(now, &mut records);
            if self.random.chance(NODATA_SHARE / (1.0 - REPLY_SHARE / (1.0 + REPLY_SHARE))) {
                let interface = InterfaceId(1 + self.random.below(self.interfaces.len()) as u32);
                let end = start.plus(now);
                blind.push(Blindness { interface, start: end.minus(59), end, kind: BlindnessKind::NoData });
            }
        }
        records.truncate(count);
        self.made += records.len() as u64;
        self.blind += blind.len() as u64;
        Some(Step { time: start.plus(now), records, blind })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn settings(spread: Spread) -> Settings {
        Settings {
            seed: 5,
            start: EventTime(1_772_438_400),
            duration_seconds: 100,
            hosts: 10_000,
            records: 200_000,
            shuffle_seconds: 30,
            ipv6_share: 0.04,
            spread,
        }
    }

    #[test]
    fn the_shape_is_as_stated() {
        let records: Vec<FlowRecord> = Load::new(settings(Spread::Zipf)).flat_map(|step| step.records).collect();
        let share = |test: &dyn Fn(&FlowRecord) -> bool| records.iter().filter(|r| test(r)).count() as f64 / 200_000.0;
        assert_eq!(records.len(), 200_000);
        assert!((share(&|r| r.source_port < 32_768 && r.destination_port >= 32_768) - 0.4).abs() < 0.05);
        assert!((share(&|r| r.marks.has(Marks::REJECTED)) - 0.05).abs() < 0.005);
        assert!((share(&|r| r.source.as_v4().is_none()) - 0.04).abs() < 0.005);
        assert!(records.iter().all(|r| r.start <= r.end && r.end.0 < 1_772_438_500 && r.start.0 >= 1_772_438_400));
        assert_eq!(records, Load::new(settings(Spread::Zipf)).flat_map(|step| step.records).collect::<Vec<_>>());
    }

    #[test]
    fn even_spread_fills_every_table() {
        let records: Vec<FlowRecord> = Load::new(settings(Spread::Even)).flat_map(|step| step.records).collect();
        let requests = || records.iter().filter(|r| r.source_port >= 32_768 || r.source_port == r.destination_port);
        let pairs: HashSet<_> = requests().map(|r| (r.source, r.destination)).collect();
        let sources: HashSet<_> = requests().map(|r| r.source).collect();
        assert!(sources.len() >= 10_000, "{} sources", sources.len());
        assert!(pairs.len() >= 48_000, "{} pairs", pairs.len());
    }
}
