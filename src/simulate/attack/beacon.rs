//! Calling home: MITRE ATT&CK T1071.001 (web protocols), T1573 (encrypted channel), T1090.001 (internal proxy).
//!
//! Sleep and jitter are those of common frameworks: Cobalt Strike sleeps 60 s by default and subtracts up to the jitter;
//! Sliver and Mythic 10 to 60 s with 30 %; low-and-slow implants hours. Check-ins are small and mostly of one size, with a
//! larger one when a task comes.

use super::Stage;
use crate::flow::protocol;
use crate::random::Random;
use crate::simulate::habit::{Process, unanswered};
use crate::simulate::session::{Millis, Outcome, Party, Session, Stream, Talk, message, tcp};
use crate::simulate::vpc::Role;
use crate::simulate::wire::Wire;

struct Beacon {
    random: Random,
    host: Party,
    peer: Party,
    port: u16,
    /// s between check-ins.
    sleep: f64,
    /// Share of the sleep that may be missing or, with `both_ways`, added.
    jitter: f64,
    both_ways: bool,
    /// Payload of an idle check-in, out and back.
    idle: (f64, f64),
    outcome: Outcome,
    until: u32,
    truth: u16,
}

impl Process for Beacon {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let now = wire.now();
        if now >= self.until {
            return None;
        }
        let random = &mut self.random;
        let has_task = random.chance(0.03);
        let out = (random.log_normal(self.idle.0, 0.05) * if has_task { 8.0 } else { 1.0 }) as u64;
        let back = (random.log_normal(self.idle.1, 0.05) * if has_task { 60.0 } else { 1.0 }) as u64;
        let (out, back) = tcp(out, back);
        let (talk, length) = match self.outcome {
            Outcome::Answered => (Talk::Brief { out, back }, random.log_normal(400.0, 0.5) as Millis),
            _ => (unanswered(random, protocol::TCP), 3_000),
        };
        let session = Session {
            client: self.host,
            server: self.peer,
            client_port: random.client_port(),
            server_port: self.port,
            protocol: protocol::TCP,
            start: Millis::from(now) * 1000 + random.below(1000) as Millis,
            length,
            talk,
            outcome: self.outcome,
            truth: self.truth,
            seed: random.bits(),
        };
        let stray = if self.both_ways { 2.0 * random.unit() - 1.0 } else { -random.unit() };
        let wait = self.sleep * (1.0 + self.jitter * stray);
        wire.open(session);
        Some(now + (wait.round() as u32).max(1))
    }
}

/// One session that is simply there.
pub struct Once(pub Option<Session>);

impl Process for Once {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        if let Some(session) = self.0.take() {
            wire.open(session);
        }
        None
    }
}

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let level = stage.intensity;
    let (host, outside) = (stage.victim(), stage.outside());
    let whole = f64::from(stage.wire.seconds());
    let random = &mut stage.random;
    let mut port = random.pick(&[443, 443, 443, 80, 8080, 8443, 4444]);
    let usual = random.log_normal(level.of(180.0, 60.0, 15.0), 0.3);
    let long = whole * random.between(0.6, 0.9);
    let (sleep, jitter, seconds, outcome) = match variant {
        "fixed" => (usual, 0.0, long, Outcome::Answered),
        "jittered" => (usual, random.between(0.1, 0.5), long, Outcome::Answered),
        "slow" => (
            random.log_normal(level.of(7_200.0, 1_800.0, 600.0), 0.3),
            random.between(0.0, 0.2),
            whole * 0.95,
            Outcome::Answered,
        ),
        "failing" => (usual, random.between(0.0, 0.15), long, random.pick(&[Outcome::Silent, Outcome::Refused])),
        "short" => {
            (random.between(5.0, 20.0), random.between(0.0, 0.2), random.between(180.0, 700.0), Outcome::Answered)
        }
        "proxied" => (usual, random.between(0.0, 0.3), long, Outcome::Answered),
        _ => (random.between(20.0, 60.0), random.between(0.0, 0.3), long, Outcome::Answered),
    };
    let idle = (random.log_normal(350.0, 0.5), random.log_normal(250.0, 0.6));
    let both_ways = random.chance(0.5);
    let peer = if variant == "proxied" {
        let proxies = stage.wire.vpc.with_role(&[Role::Proxy]);
        port = 3128;
        stage.wire.vpc.party(proxies[0])
    } else {
        outside
    };
    let from = stage.moment(seconds);
    let until = from + seconds as u32;
    let basis =
        format!("simulated {variant} beacon: every {sleep:.0} s, jitter {:.0} %, for {seconds:.0} s", jitter * 100.0);
    let truth = stage.state("c2_beacon", variant, host, Some(peer), Some(port), basis);
    let random = Random::new(stage.random.bits(), "beacon", 0);
    if variant == "channel" {
        let session = channel(random, host, peer, port, (from, seconds), (sleep, jitter), truth);
        stage.starting.push((from, Box::new(Once(Some(session)))));
        return;
    }
    let beacon = Beacon { random, host, peer, port, sleep, jitter, both_ways, idle, outcome, until, truth };
    stage.starting.push((from, Box::new(beacon)));
    if variant == "proxied" {
        // What the proxy sends on is the same story, seen a hop later.
        let proxy = peer;
        let basis = "the same beacon, from the proxy on".to_owned();
        let truth = stage.state("c2_beacon", "proxied_onward", proxy, Some(outside), Some(443), basis);
        let random = Random::new(stage.random.bits(), "onward", 0);
        let onward = Beacon {
            random,
            host: proxy,
            peer: outside,
            port: 443,
            sleep,
            jitter,
            both_ways,
            idle: (idle.0 * 1.1, idle.1),
            outcome,
            until,
            truth,
        };
        stage.starting.push((from, Box::new(onward)));
    }
}

/// One long thin session: a heartbeat now and then, and hardly anything else.
fn channel(
    mut random: Random,
    host: Party,
    peer: Party,
    port: u16,
    (from, seconds): (u32, f64),
    (every, jitter): (f64, f64),
    truth: u16,
) -> Session {
    let (out, back) = message(random.between(30.0, 180.0) as u64, random.between(10.0, 120.0) as u64);
    let every = (every * 1000.0) as Millis;
    let alive = Stream { every, offset: 2_000, jitter: jitter as f32, presence: 1.0, out, back, spread: 0.1 };
    let (out, back) = message(random.between(200.0, 900.0) as u64, random.between(300.0, 9_000.0) as u64);
    let tasks = Stream { every: 600_000, offset: 60_000, jitter: 1.0, presence: 0.3, out, back, spread: 0.9 };
    Session {
        client: host,
        server: peer,
        client_port: random.client_port(),
        server_port: port,
        protocol: protocol::TCP,
        start: Millis::from(from) * 1000,
        length: (seconds * 1000.0) as Millis,
        talk: Talk::Streams { greeting: tcp(600, 2_500), streams: [alive, tasks].into() },
        outcome: Outcome::Answered,
        truth,
        seed: random.bits(),
    }
}
