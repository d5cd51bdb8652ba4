//! Looking for what is open: MITRE ATT&CK T1595.001 (from outside) and T1046 (from within).
//!
//! Rates follow nmap's timing templates (`-T0` one probe in five minutes, `-T1` one in 15 s, `-T3` tens to hundreds a
//! second) and masscan (thousands); ports are nmap's most frequent ones in random order, as nmap sends them.

use super::Stage;
use crate::flow::{Address, protocol};
use crate::random::{Random, mix, unit_of};
use crate::simulate::habit::Process;
use crate::simulate::session::{Millis, Outcome, Party, Session, Talk, Volume, tcp};
use crate::simulate::vpc::{Role, public_v4};
use crate::simulate::wire::Wire;

/// The ports that nmap tries first, most frequent first.
pub const COMMON_PORTS: &[u16] = &[
    80, 23, 443, 21, 22, 25, 3389, 110, 445, 139, 143, 53, 135, 3306, 8080, 1723, 111, 995, 993, 5900, 1025, 587, 8888,
    199, 1720, 465, 548, 113, 81, 6001, 10000, 514, 5060, 179, 1026, 2000, 8443, 8000, 32768, 554, 26, 1433, 49152,
    2001, 515, 8008,
];

/// One probe: a SYN, and whatever comes back.
pub fn probe(
    random: &mut Random,
    client: Party,
    server: Party,
    port: u16,
    outcome: Outcome,
    now: u32,
    truth: u16,
) -> Session {
    let size = if client.is_ours() { 60 } else { 44 };
    let (out, back) = match outcome {
        Outcome::Answered => (Volume { packets: 3, bytes: size + 92 }, tcp(0, 0).1),
        Outcome::Refused => (Volume::of(1, size), Volume::of(1, 40)),
        // Nmap tries once more where nothing comes back.
        Outcome::Rejected | Outcome::Silent => (Volume::of(1 + random.below(2) as u64, size), Volume::default()),
    };
    Session {
        client,
        server,
        client_port: random.client_port(),
        server_port: port,
        protocol: protocol::TCP,
        start: Millis::from(now) * 1000 + random.below(1000) as Millis,
        length: if out.packets > 1 { 1_000 } else { 0 },
        talk: Talk::Brief { out, back },
        outcome,
        truth,
        seed: random.bits(),
    }
}

/// A sweep over all pairs of targets and ports in an order of its own.
struct Sweep {
    random: Random,
    sources: Vec<Party>,
    targets: Vec<Party>,
    ports: Vec<u16>,
    /// Mean seconds between probes.
    gap: f64,
    truth: u16,
    next: u64,
    step: u64,
}

impl Sweep {
    fn new(random: Random, sources: Vec<Party>, targets: Vec<Party>, ports: Vec<u16>, gap: f64, truth: u16) -> Sweep {
        // A step without a factor in common with the number of pairs visits each of them once.
        let count = (targets.len() * ports.len()) as u64;
        let mut step = (count as f64 * 0.618) as u64 | 1;
        while (1..count).contains(&step) && gcd(step, count) != 1 {
            step += 2;
        }
        Sweep { random, sources, targets, ports, gap, truth, next: 0, step: step.max(1) }
    }

    fn probe_next(&mut self, wire: &mut Wire) -> bool {
        let count = (self.targets.len() * self.ports.len()) as u64;
        if self.next >= count {
            return false;
        }
        let pair = (self.next * self.step % count) as usize;
        self.next += 1;
        let (target, port) = (self.targets[pair / self.ports.len()], self.ports[pair % self.ports.len()]);
        let source = self.random.pick(&self.sources);
        let outcome = match target.is_ours() {
            true => wire.vpc.verdict(source, target.host, port),
            false => outside_verdict(target.address, port),
        };
        let session = probe(&mut self.random, source, target, port, outcome, wire.now(), self.truth);
        wire.open(session);
        true
    }
}

/// What a stranger's address does: most do not exist or drop, a few refuse, a few serve.
fn outside_verdict(address: Address, port: u16) -> Outcome {
    match unit_of(mix(address.bits() as u64 ^ u64::from(port) << 40)) {
        x if x < 0.03 => Outcome::Answered,
        x if x < 0.09 => Outcome::Refused,
        _ => Outcome::Silent,
    }
}

impl Process for Sweep {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let count = if self.gap < 2.0 { self.random.poisson(1.0 / self.gap) } else { 1 };
        for _ in 0..count {
            if !self.probe_next(wire) {
                return None;
            }
        }
        let wait = if self.gap < 2.0 { 1 } else { (self.gap * self.random.between(0.8, 1.2)) as u32 };
        Some(wire.now() + wait.max(1))
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// nmap's first ports and then others, in random order.
fn ports(random: &mut Random, count: usize) -> Vec<u16> {
    let mut ports: Vec<u16> = COMMON_PORTS.iter().copied().take(count).collect();
    while ports.len() < count {
        let port = 1 + random.below(if ports.len() < 700 { 10_000 } else { 65_535 }) as u16;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    for at in (1..ports.len()).rev() {
        ports.swap(at, random.below(at + 1));
    }
    ports
}

/// Addresses of the subnets of `host`, in use or not.
fn neighbourhood(stage: &mut Stage<'_>, own: Party, count: usize) -> Vec<Party> {
    let vpc = &stage.wire.vpc;
    let mut all: Vec<Party> = Vec::with_capacity(count);
    let subnets = 7.min(1 + count / 64) as u32;
    for index in 0..count as u32 {
        let bits = vpc.block.0 + ((index % subnets) << 12) + 4 + index / subnets;
        let address = Address::v4(bits);
        let host = vpc.hosts.iter().position(|h| h.address == address);
        let party = host.map_or(Party::outside(address), |h| vpc.party(h as u32));
        if party.address != own.address {
            all.push(party);
        }
    }
    all
}

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let level = stage.intensity;
    // Seconds between probes: careful, usual, careless.
    let gap = stage.random.log_normal(level.of(4.0, 0.08, 0.004), 0.5);
    let many = (stage.random.log_normal(level.of(150.0, 1_000.0, 5_000.0), 0.3)) as usize;
    let (sources, actor, targets, ports, gap, port) = match variant {
        "vertical" => {
            let (from, to) = (stage.outside(), stage.front());
            let ports = ports(&mut stage.random, many.clamp(100, 20_000));
            (vec![from], from, vec![to], ports, gap, None)
        }
        "horizontal" => {
            let own = stage.victim();
            let port = stage.random.pick(&[22, 445, 3389, 5985, 6379, 9200]);
            let targets = neighbourhood(stage, own, level.of(96, 512, 2_000));
            (vec![own], own, targets, vec![port], gap, Some(port))
        }
        "block" => {
            let own = stage.victim();
            let targets = neighbourhood(stage, own, level.of(24, 64, 250));
            let ports = ports(&mut stage.random, level.of(6, 16, 40));
            (vec![own], own, targets, ports, gap, None)
        }
        "slow" => {
            let (from, to) = (stage.outside(), stage.front());
            let gap = stage.random.between(0.6, 1.4) * level.of(300.0, 120.0, 45.0);
            let ports = ports(&mut stage.random, 400);
            (vec![from], from, vec![to], ports, gap, None)
        }
        "distributed" => {
            let to = stage.front();
            let sources: Vec<Party> = (0..level.of(12, 60, 400)).map(|_| stage.outside()).collect();
            let ports = ports(&mut stage.random, many.clamp(300, 20_000));
            (sources, Party::outside(Address::UNSPECIFIED), vec![to], ports, gap.max(0.02), None)
        }
        "lateral" => {
            let own = stage.victim();
            let role = stage.random.pick(&[Role::Database, Role::App, Role::Container]);
            let to = stage.host(&[role]);
            let to = stage.wire.vpc.party(to);
            let ports = ports(&mut stage.random, level.of(60, 400, 2_000));
            (vec![own], own, vec![to], ports, gap, None)
        }
        _ => {
            // A worm on one of our hosts: random addresses on the internet, one port.
            let own = stage.victim();
            let port = stage.random.pick(&[23, 22, 445, 8080, 5555]);
            let targets =
                (0..many.max(200)).map(|_| Party::outside(Address::v4(public_v4(stage.random.bits())))).collect();
            (vec![own], own, targets, vec![port], gap, Some(port))
        }
    };
    let seconds = gap * (targets.len() * ports.len()) as f64;
    let at = stage.moment(seconds);
    let basis = format!(
        "simulated {variant} scan: {} sources, {} targets, {} ports, {gap:.3} s between probes on average",
        sources.len(),
        targets.len(),
        ports.len()
    );
    let target = (targets.len() == 1).then(|| targets[0]);
    let truth = stage.state("port_scan", variant, actor, target, port, basis);
    if sources.len() > 1 {
        let row = &mut stage.wire.truths[truth as usize - 1];
        row.actor = "many".to_owned();
        row.accessories.extend(sources.iter().map(|s| s.address.to_string()));
    }
    let random = Random::new(stage.random.bits(), "sweep", 0);
    stage.starting.push((at, Box::new(Sweep::new(random, sources, targets, ports, gap, truth))));
}
