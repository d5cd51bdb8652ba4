//! Seeded, labelled traffic: a plausible VPC and every threat in it.
//!
//! A [`Scenario`] is all there is to say; equal scenarios give equal records, byte for byte. A [`Simulation`] is an iterator
//! over simulated seconds: each [`Step`] has the flow records whose aggregation ended then, in the order in which a log would
//! deliver them. [`Simulation::labels`] says what was malicious.
//!
//! ```
//! use flowvigil::simulate::{Scenario, Simulation};
//!
//! let scenario = Scenario { duration_seconds: 300, threats: "c2_beacon.short".parse().unwrap(), ..Scenario::default() };
//! let mut simulation = Simulation::new(scenario);
//! let mut records = 0;
//! while let Some(step) = simulation.next() {
//!     records += step.records.len() as u64;
//! }
//! assert_eq!(simulation.labels().records, records);
//! ```
//!
//! Quality figures on simulated traffic say nothing about real traffic: whoever writes both the attack and the detector can
//! make them agree. It is here to make load, to make every threat appear at will, to show the product without anybody's
//! data, and to test laws (order, restarts, duplicates), never to tune a threshold.
//!
//! How it is made: hosts with roles ([`vpc`]) run processes ([`habit`], [`job`], [`background`], [`attack`]); processes put sessions on
//! the [`wire`]; each interface that sees a [`session`] cuts it into its own aggregation windows, one record per direction.

pub mod attack;
pub mod background;
pub mod habit;
pub mod job;
pub mod labels;
pub mod line;
pub mod load;
pub mod session;
pub mod vpc;
pub mod wire;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use self::attack::Campaigns;
use self::habit::Process;
use self::labels::{Labels, Source};
use self::line::{Format, LineWriter};
use self::vpc::{Role, Vpc};
use self::wire::{AGGREGATION_SECONDS, Event, Wire};
use crate::flow::{Blindness, BlindnessKind, EventTime, FlowRecord, Interface, InterfaceId};
use crate::random::Random;

/// Everything that decides a simulation.
#[derive(Clone, PartialEq, Debug)]
pub struct Scenario {
    /// Fixes all that is random.
    pub seed: u64,
    /// The first second.
    pub start: EventTime,
    /// How long, s.
    pub duration_seconds: u32,
    /// How many hosts; at least [`Vpc::HOSTS_MIN`] are made.
    pub hosts: u32,
    /// What goes wrong.
    pub threats: Campaigns,
    /// Multiplies what visitors do; 1 is about two page views a second for each web host at the busiest hour.
    pub demand: f64,
    /// How late a record may come, s, at most [`wire::SHUFFLE_MAX`]; 0 delivers by end time.
    pub shuffle_seconds: u32,
    /// Share of visitors who come by IPv6.
    pub ipv6_share: f64,
    /// Whether the house's own vulnerability scanner (which should be allow-listed) works in it.
    pub scanner: bool,
    /// Share of hosts (of the roles that do such work) with a recurring job of a period of its own.
    pub jobs: f64,
}

impl Default for Scenario {
    fn default() -> Scenario {
        Scenario {
            seed: 1,
            // Monday 2026-03-02 08:00 UTC: a weekday's morning.
            start: EventTime(1_772_438_400),
            duration_seconds: 3_600,
            hosts: 40,
            threats: Campaigns::default(),
            demand: 1.0,
            shuffle_seconds: 0,
            ipv6_share: 0.04,
            scanner: false,
            jobs: 0.0,
        }
    }
}

/// What a simulated second delivers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// The second.
    pub time: EventTime,
    /// The records that are delivered in it, with all that version 5 of the format tells.
    pub records: Vec<FlowRecord>,
    /// Intervals of which an interface says NODATA or SKIPDATA.
    pub blind: Vec<Blindness>,
}

/// A simulation in progress.
pub struct Simulation {
    scenario: Scenario,
    wire: Wire,
    processes: Vec<Box<dyn Process>>,
    blindness: Random,
    spares: Vec<u32>,
    records: u64,
    blind: u64,
    time_range: Option<(u32, u32)>,
    limit: u64,
}

impl Simulation {
    /// Lays out the VPC and sets the stage; nothing has happened yet.
    pub fn new(scenario: Scenario) -> Simulation {
        let Scenario { seed, start, duration_seconds, demand, ipv6_share, scanner, jobs, .. } = scenario;
        let vpc = Vpc::new(seed, scenario.hosts, duration_seconds, ipv6_share);
        let mut wire = Wire::new(vpc, seed, start, duration_seconds, scenario.shuffle_seconds);
        let settings = background::Settings { seed, demand, ipv6_share, scanner, jobs };
        let mut starting = background::populate(&wire.vpc, start, settings);
        starting.extend(attack::plan(&mut wire, seed, jobs, &scenario.threats));
        let mut processes = Vec::with_capacity(starting.len());
        for (number, (first, process)) in starting.into_iter().enumerate() {
            wire.events.put(first, Event::Fire(number as u32));
            processes.push(process);
        }
        let spares = wire.vpc.with_role(&[Role::Spare]);
        let blindness = Random::new(seed, "blindness", 0);
        Simulation {
            scenario,
            wire,
            processes,
            blindness,
            spares,
            records: 0,
            blind: 0,
            time_range: None,
            limit: u64::MAX,
        }
    }

    /// Ends the simulation after so many records; the labels then tell of those alone.
    pub fn limit(&mut self, records: Option<u64>) {
        self.limit = records.unwrap_or(u64::MAX);
    }

    /// The interfaces that records refer to, by ascending id.
    pub fn interfaces(&self) -> &[Interface] {
        &self.wire.vpc.interfaces
    }

    /// A writer for the lines of this simulation.
    pub fn lines(&self, format: Format) -> LineWriter {
        let addresses = self.wire.vpc.hosts.iter().map(|host| host.address).collect();
        LineWriter::new(format, &self.wire.vpc.interfaces, addresses)
    }

    /// The hosts.
    pub fn vpc(&self) -> &Vpc {
        &self.wire.vpc
    }

    /// The blocks that are ours, for the setting `network.internal`.
    pub fn internal(&self) -> Vec<IpNet> {
        let (block, prefix) = self.wire.vpc.block;
        let v4 = Ipv4Net::new(block.into(), prefix).expect("the VPC is a /16 or a /12");
        let v6 = Ipv6Net::new(self.wire.vpc.block_v6.into(), 56).expect("56 is a prefix length");
        vec![v4.trunc().into(), v6.trunc().into()]
    }

    /// What has been malicious so far, and everything else that the labels tell; complete when the iterator has ended.
    pub fn labels(&self) -> Labels {
        let mut truth: Vec<_> = self.wire.truths.iter().filter(|row| row.records > 0).cloned().collect();
        truth.iter_mut().for_each(labels::Truth::judge);
        let ours: Vec<String> = self.wire.vpc.hosts.iter().map(|host| host.address.to_string()).collect();
        let mut ambiguous: Vec<String> = truth.iter().flat_map(|row| row.accessories.clone()).collect();
        let mut infected: Vec<String> =
            truth.iter().map(|row| row.actor.clone()).filter(|a| ours.contains(a)).collect();
        for list in [&mut ambiguous, &mut infected] {
            list.sort_unstable();
            list.dedup();
        }
        let is_benign = |host: &&String| {
            !ambiguous.contains(host) && !truth.iter().any(|t| t.actor == **host || t.target == **host)
        };
        let benign_hosts = ours.iter().filter(is_benign).cloned().collect();
        let time_range = self.time_range.unwrap_or((self.scenario.start.0, self.scenario.start.0));
        Labels {
            source: Source {
                generator: concat!("flowvigil simulate ", env!("CARGO_PKG_VERSION")).to_owned(),
                seed: self.scenario.seed,
            },
            description: format!("a simulated VPC of {} hosts", ours.len()),
            time_range,
            duration_s: time_range.1 - time_range.0,
            records: self.records,
            blind: self.blind,
            hosts: ours.len() as u64,
            truth,
            benign_hosts,
            infected_hosts: infected,
            ambiguous,
            local_hosts: self.internal().iter().map(IpNet::to_string).collect(),
            unlabelled: false,
            notes: "Simulated: quality figures on this data say nothing about real traffic.".to_owned(),
        }
    }

    /// NODATA of interfaces without traffic at the end of each of their windows; now and then a SKIPDATA of any.
    fn blindness(&mut self, now: u32) -> Vec<Blindness> {
        if now >= self.scenario.duration_seconds {
            return Vec::new();
        }
        let end = self.scenario.start.plus(now);
        let start = end.minus(AGGREGATION_SECONDS - 1);
        let mut blind = Vec::new();
        for &host in &self.spares {
            if now % AGGREGATION_SECONDS == self.wire.vpc.hosts[host as usize].phase && now >= AGGREGATION_SECONDS {
                blind.push(Blindness { interface: InterfaceId(host + 1), start, end, kind: BlindnessKind::NoData });
            }
        }
        if now >= AGGREGATION_SECONDS && self.blindness.chance(1.0 / 1_800.0) {
            let host = self.blindness.below(self.wire.vpc.hosts.len()) as u32;
            blind.push(Blindness { interface: InterfaceId(host + 1), start, end, kind: BlindnessKind::SkipData });
        }
        blind
    }
}

impl Iterator for Simulation {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let now = self.wire.now();
        if self.records >= self.limit {
            return None;
        }
        if now < self.scenario.duration_seconds {
            for event in self.wire.take_events() {
                match event {
                    Event::Cut { session, tap } => self.wire.resume(session, tap),
                    Event::Fire(number) => {
                        if let Some(next) = self.processes[number as usize].fire(&mut self.wire) {
                            self.wire.events.put(next.max(now + 1), Event::Fire(number));
                        }
                    }
                }
            }
        }
        let due = self.wire.finish_second()?;
        let mut records = Vec::with_capacity(due.len());
        for item in due.into_iter().take((self.limit - self.records).min(usize::MAX as u64) as usize) {
            if item.truth > 0 {
                self.wire.truths[item.truth as usize - 1].count(&item.record);
            }
            let (first, last) = self.time_range.unwrap_or((u32::MAX, 0));
            self.time_range = Some((first.min(item.record.start.0), last.max(item.record.end.0)));
            records.push(item.record);
        }
        let blind = self.blindness(now);
        self.records += records.len() as u64;
        self.blind += blind.len() as u64;
        Some(Step { time: self.scenario.start.plus(now), records, blind })
    }
}

#[cfg(test)]
mod tests;
