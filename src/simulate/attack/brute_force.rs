//! Guessing log-ins: MITRE ATT&CK T1110.
//!
//! Hydra and its kin open a connection for every few tries, four to sixteen at a time; a careful one waits tens of seconds. A failed
//! SSH log-in takes 1 to 3 s and moves 1.3 to 2.5 kB each way, which hangs on the client and hardly on the name that is tried.
//! Outsiders do not reach the log-in ports of this VPC, so that whoever guesses is one of its own hosts.

use super::Stage;
use crate::flow::protocol;
use crate::random::Random;
use crate::simulate::habit::Process;
use crate::simulate::session::{Millis, Outcome, Party, Session, Talk, tcp};
use crate::simulate::vpc::Role;
use crate::simulate::wire::Wire;

struct Guesser {
    random: Random,
    host: Party,
    target: Party,
    /// s between log-ins, on average.
    pause: f64,
    /// Payload of a failure, out and back.
    failure: (f64, f64),
    until: u32,
    truth: u16,
}

impl Process for Guesser {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let now = wire.now();
        if now >= self.until {
            return None;
        }
        let random = &mut self.random;
        let (mut at, mut next) = (f64::from(now), now);
        while next == now {
            let (out, back) =
                (random.log_normal(self.failure.0, 0.01) as u64, random.log_normal(self.failure.1, 0.01) as u64);
            let (out, back) = tcp(out, back);
            wire.open(Session {
                client: self.host,
                server: self.target,
                client_port: random.client_port(),
                server_port: 22,
                protocol: protocol::TCP,
                start: (at * 1000.0) as Millis,
                length: (random.between(1.0, 3.0) * 1000.0) as Millis,
                talk: Talk::Brief { out, back },
                outcome: Outcome::Answered,
                truth: self.truth,
                seed: random.bits(),
            });
            at += self.pause * random.between(0.6, 1.4);
            next = at as u32;
        }
        Some(next)
    }
}

/// Sets the stage for one variant.
pub fn plan(stage: &mut Stage<'_>, variant: &str) {
    let level = stage.intensity;
    let host = stage.victim();
    let target = match variant {
        "inside" => {
            let target = stage.host(&[Role::Database, Role::App, Role::Web]);
            stage.wire.vpc.party(target)
        }
        _ => stage.outside(),
    };
    let whole = f64::from(stage.wire.seconds());
    let random = &mut stage.random;
    let (per_minute, seconds) = match variant {
        "slow" => (random.between(2.0, 4.0), whole * random.between(0.7, 0.9)),
        _ => (random.log_normal(level.of(20.0, 60.0, 200.0), 0.3), (whole * 0.6).min(random.between(1_200.0, 3_600.0))),
    };
    let failure = (random.between(1_300.0, 2_400.0), random.between(1_600.0, 2_600.0));
    let from = stage.moment(seconds);
    let until = from + seconds as u32;
    let basis = format!("simulated SSH log-ins: {per_minute:.0} a minute for {seconds:.0} s");
    let truth = stage.state("brute_force", variant, host, Some(target), Some(22), basis);
    let random = Random::new(stage.random.bits(), "guesser", 0);
    let guesser = Guesser { random, host, target, pause: 60.0 / per_minute, failure, until, truth };
    stage.starting.push((from, Box::new(guesser)));
}
