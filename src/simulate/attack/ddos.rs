//! Floods: MITRE ATT&CK T1498 and T1499.
//!
//! Amplifiers and their answers' sizes are those of US-CERT alert TA14-017A; spoofed SYN floods follow RFC 4987. The sizes
//! are small beside what makes the news: a flow log holds one record per source, and a flood that fills a link fills a disk.

use super::Stage;
use crate::flow::{Address, protocol};
use crate::random::Random;
use crate::simulate::habit::Process;
use crate::simulate::session::{Millis, Outcome, Party, Session, Talk, Volume, message, tcp};
use crate::simulate::vpc::public_v4;
use crate::simulate::wire::Wire;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// SYNs from invented addresses, each answered into the void.
    Syn,
    /// Answers of abused services to questions we never asked; source port and bytes a packet.
    Reflection(u16, u64),
    /// Echo requests.
    Icmp,
    /// Real connections that send nothing.
    Connections,
    /// Bots that each ask for a few pages.
    Pages,
    /// Our own host sends UDP as fast as it can.
    OurUdp(u16),
    /// Our own host sends SYNs as fast as it can.
    OurSyn(u16),
}

struct Flood {
    random: Random,
    kind: Kind,
    victim: Party,
    port: u16,
    /// Who floods; empty when every packet has another invented source.
    sources: Vec<Party>,
    /// New five-tuples a second at full strength.
    rate: f64,
    from: u32,
    until: u32,
    truth: u16,
}

impl Process for Flood {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let now = wire.now();
        if now >= self.until {
            return None;
        }
        // It rises within ten seconds and wavers.
        let strength = (f64::from(now - self.from + 1) / 10.0).min(1.0) * self.random.between(0.8, 1.2);
        for _ in 0..self.random.poisson(self.rate * strength) {
            let session = self.one(now);
            wire.open(session);
        }
        Some(now + 1)
    }
}

impl Flood {
    fn one(&mut self, now: u32) -> Session {
        let random = &mut self.random;
        let source = match self.sources.is_empty() {
            true => Party::outside(Address::v4(public_v4(random.bits()))),
            false => random.pick(&self.sources),
        };
        let any_port = 1024 + random.below(64_512) as u16;
        let (client_port, server_port, protocol) = match self.kind {
            Kind::Reflection(port, _) => (port, self.port, protocol::UDP),
            Kind::Icmp => (0, 0, protocol::ICMP),
            Kind::OurUdp(port) => (any_port, port, protocol::UDP),
            Kind::OurSyn(port) => (any_port, port, protocol::TCP),
            _ => (any_port, self.port, protocol::TCP),
        };
        let (out, back, seconds, outcome) = match self.kind {
            // The victim answers each SYN with one to five SYN-ACKs (RFC 4987).
            Kind::Syn => (Volume::of(1, 40), Volume::of(1 + random.below(5) as u64, 44), 15.0, Outcome::Answered),
            Kind::Reflection(_, size) => {
                let packets = random.log_normal(40.0, 1.2) as u64 + 1;
                (Volume::of(packets, size), Volume::default(), random.between(0.5, 40.0), Outcome::Rejected)
            }
            Kind::Icmp => {
                let packets = random.log_normal(120.0, 1.0) as u64 + 1;
                let size = random.pick(&[64, 84, 1_028, 1_500]);
                (Volume::of(packets, size), Volume::default(), 45.0, Outcome::Rejected)
            }
            Kind::Connections => {
                let (out, back) = tcp(random.below(30) as u64, 0);
                (out, back, random.between(5.0, 50.0), Outcome::Answered)
            }
            Kind::Pages => {
                let (out, back) = message(random.log_normal(600.0, 0.3) as u64, random.log_normal(3_000.0, 1.0) as u64);
                let pages = 1 + random.below(4) as u64;
                let times = |v: Volume| Volume { packets: v.packets * pages + 3, bytes: v.bytes * pages + 156 };
                (times(out), times(back), random.between(0.3, 8.0), Outcome::Answered)
            }
            Kind::OurUdp(_) => {
                let packets = random.log_normal(9_000.0, 0.5) as u64;
                (Volume::of(packets, 1_428), Volume::default(), 40.0, Outcome::Silent)
            }
            Kind::OurSyn(_) => (Volume::of(1 + random.below(2) as u64, 40), Volume::default(), 1.0, Outcome::Silent),
        };
        Session {
            client: source,
            server: self.victim,
            client_port,
            server_port,
            protocol,
            start: Millis::from(now) * 1000 + random.below(1000) as Millis,
            length: (seconds * 1000.0) as Millis,
            talk: Talk::Brief { out, back },
            outcome,
            truth: self.truth,
            seed: random.bits(),
        }
    }
}

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let level = stage.intensity;
    let seconds = stage.random.log_normal(300.0, 0.4).clamp(90.0, 1_800.0);
    let rate = stage.random.log_normal(level.of(40.0, 250.0, 4_000.0), 0.3);
    let crowd = |stage: &mut Stage<'_>, few: usize, some: usize, many: usize| -> Vec<Party> {
        (0..level.of(few, some, many)).map(|_| stage.outside()).collect()
    };
    let (kind, sources, rate) = match variant {
        "syn_flood" => (Kind::Syn, Vec::new(), rate),
        "reflection" => {
            let amplifiers =
                [(53, 1_450), (123, 468), (389, 1_460), (11211, 1_428), (1900, 330), (19, 1_050), (161, 1_200)];
            let (port, size) = stage.random.pick(&amplifiers);
            (Kind::Reflection(port, size), crowd(stage, 300, 1_500, 8_000), rate * 0.5)
        }
        "icmp" => (Kind::Icmp, crowd(stage, 80, 500, 4_000), rate * 0.2),
        "connections" => (Kind::Connections, crowd(stage, 60, 400, 3_000), rate),
        "many_sources" => (Kind::Pages, crowd(stage, 600, 3_000, 20_000), rate),
        _ => {
            let own = stage.victim();
            let (kind, times) = match stage.random.chance(0.5) {
                true => (Kind::OurUdp(stage.random.pick(&[53, 80, 443, 27015])), 0.1),
                false => (Kind::OurSyn(stage.random.pick(&[80, 443, 22])), 1.0),
            };
            (kind, vec![own], rate * times)
        }
    };
    let is_outbound = variant == "outbound";
    let victim = if is_outbound { stage.outside() } else { stage.front() };
    let from = stage.moment(seconds);
    let port = match kind {
        Kind::Icmp => None,
        Kind::Reflection(..) => Some(1024 + stage.random.below(64_000) as u16),
        Kind::OurUdp(port) | Kind::OurSyn(port) => Some(port),
        _ => Some(443),
    };
    let basis = format!(
        "simulated flood ({kind:?}): about {rate:.0} new five-tuples a second for {seconds:.0} s from {}",
        if sources.is_empty() { "invented sources".to_owned() } else { format!("{} sources", sources.len()) }
    );
    let actor = if is_outbound { sources[0] } else { Party::outside(Address::UNSPECIFIED) };
    let truth = stage.state("ddos", variant, actor, Some(victim), port, basis);
    if !is_outbound {
        let row = &mut stage.wire.truths[truth as usize - 1];
        row.actor = "*".to_owned();
        row.accessories.extend(sources.iter().map(|s| s.address.to_string()));
    }
    let random = Random::new(stage.random.bits(), "flood", 0);
    let flood = Flood {
        random,
        kind,
        victim,
        port: port.unwrap_or(0),
        sources,
        rate,
        from,
        until: from + seconds as u32,
        truth,
    };
    stage.starting.push((from, Box::new(flood)));
}
