//! Building blocks of behaviour: who does something, when, and what it looks like on the wire.

use std::sync::Arc;

use super::labels::TruthId;
use super::session::{Millis, Outcome, Party, Session, Stream, Talk, Volume, datagrams, tcp};
use super::wire::Wire;
use crate::flow::{EventTime, protocol};
use crate::random::Random;

/// Something that acts now and then.
pub trait Process: Send {
    /// Acts at this second; the second at which it wants to act again (always later), or `None` when it is done.
    fn fire(&mut self, wire: &mut Wire) -> Option<u32>;
}

/// When a habit acts.
#[derive(Clone, Copy, Debug)]
pub enum Timing {
    /// Every so many seconds, straying by up to `jitter` (a share of it): timers and cron.
    Every {
        /// s
        seconds: f64,
        /// Share of `seconds`, 0 to 1.
        jitter: f64,
    },
    /// Independently of each other, this many a second on average: what people do.
    Poisson {
        /// Per second, at the busiest time of day.
        per_second: f64,
    },
    /// Once a day.
    Daily {
        /// Second of the day (UTC).
        at: u32,
        /// Strays by up to this many seconds.
        spread: f64,
    },
}

/// How the time of day weighs on a habit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rhythm {
    /// Not at all.
    Flat,
    /// Visitors: twice as many in the afternoon as on average, few before dawn.
    Visitors,
    /// Work: office hours of weekdays.
    Office,
}

impl Rhythm {
    /// The share of the busiest time's rate, 0 to 1.
    pub fn factor(self, at: EventTime) -> f64 {
        let hour = f64::from(at.0 % 86_400) / 3600.0;
        // 1970-01-01 was a Thursday.
        let weekday = (at.0 / 86_400 + 3) % 7;
        match self {
            Rhythm::Flat => 1.0,
            Rhythm::Visitors => 0.55 + 0.45 * ((hour - 15.0) / 24.0 * std::f64::consts::TAU).cos(),
            Rhythm::Office if weekday >= 5 => 0.08,
            Rhythm::Office if (8.0..18.0).contains(&hour) => 1.0,
            Rhythm::Office => 0.12,
        }
    }
}

/// Sizes of a request: medians and deviations (of the logarithm) of log-normal distributions.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Payload bytes from opener to answerer.
    pub out: (f64, f64),
    /// Payload bytes back.
    pub back: (f64, f64),
    /// Duration, s.
    pub seconds: (f64, f64),
}

impl Shape {
    /// The timetable of one request.
    pub fn draw(&self, protocol: u8, random: &mut Random) -> (Talk, Millis) {
        let mut size = |(median, sigma): (f64, f64)| random.log_normal(median, sigma).min(2e10) as u64;
        let (out, back) = (size(self.out), size(self.back));
        let (out, back) = if protocol == protocol::TCP { tcp(out, back) } else { datagrams(out, back) };
        let length = (random.log_normal(self.seconds.0, self.seconds.1).min(86_400.0) * 1000.0) as Millis;
        (Talk::Brief { out, back }, length)
    }
}

/// Short requests of one host, for as long as the host runs.
pub struct Habit {
    /// Its stream.
    pub random: Random,
    /// Who.
    pub client: Party,
    /// Whom it calls: one of these, the same for `sticky` seconds.
    pub servers: Arc<[Party]>,
    /// How long a choice of server lasts (a DNS answer's life), s.
    pub sticky: u32,
    /// Port called.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// When.
    pub timing: Timing,
    /// The time of day's weight (for [`Timing::Poisson`]).
    pub rhythm: Rhythm,
    /// Sizes.
    pub shape: Shape,
    /// How many requests at a time, at most.
    pub burst: u32,
    /// Share of attempts that nobody answers.
    pub silent: f64,
    /// The row of the truth that it belongs to; 0 is benign.
    pub truth: TruthId,
}

impl Habit {
    /// When a habit that begins with the simulation acts first.
    pub fn first(&mut self, origin: EventTime) -> u32 {
        match self.timing {
            Timing::Every { seconds, .. } => self.random.between(0.0, seconds) as u32,
            Timing::Poisson { per_second } => self.random.exponential(1.0 / per_second).min(1e6) as u32,
            Timing::Daily { at, spread } => {
                let wait = (at + 86_400 - origin.0 % 86_400) % 86_400;
                wait + self.random.between(0.0, spread) as u32
            }
        }
    }

    fn request(&mut self, wire: &mut Wire) {
        let epoch = u64::from(wire.now() / self.sticky.max(1));
        let choice = crate::random::mix(epoch ^ u64::from(self.client.host) << 32 ^ u64::from(self.port));
        let server = self.servers[(choice % self.servers.len() as u64) as usize];
        if server == self.client {
            return;
        }
        let (talk, length) = self.shape.draw(self.protocol, &mut self.random);
        let outcome = if self.random.chance(self.silent) { Outcome::Silent } else { Outcome::Answered };
        wire.open(Session {
            client: self.client,
            server,
            client_port: if self.port == 0 { 0 } else { self.random.client_port() },
            server_port: self.port,
            protocol: self.protocol,
            start: Millis::from(wire.now()) * 1000 + self.random.below(1000) as Millis,
            length: if outcome == Outcome::Silent { 3_000 } else { length },
            talk: if outcome == Outcome::Silent { unanswered(&mut self.random, self.protocol) } else { talk },
            outcome,
            truth: self.truth,
            seed: self.random.bits(),
        });
    }
}

/// What an attempt without an answer puts on the wire: a SYN and its repetitions after 1 and 3 s, or a datagram.
pub fn unanswered(random: &mut Random, protocol: u8) -> Talk {
    let packets = if protocol == protocol::TCP { 1 + random.below(3) as u64 } else { 1 };
    Talk::Brief { out: Volume::of(packets, 60), back: Volume::default() }
}

impl Process for Habit {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let now = wire.now();
        let at = wire.origin().plus(now);
        let (wait, times) = match self.timing {
            Timing::Every { seconds, jitter } => {
                let stray = 1.0 + jitter * (self.random.unit() - 0.5);
                (seconds * stray, 1)
            }
            // Often: a count for each second. Seldom: thinning, candidates at the highest rate of which each is kept with
            // the share that the time of day leaves.
            Timing::Poisson { per_second } if per_second > 0.1 => {
                (1.0, self.random.poisson(per_second * self.rhythm.factor(at)))
            }
            Timing::Poisson { per_second } => {
                (self.random.exponential(1.0 / per_second), u32::from(self.random.chance(self.rhythm.factor(at))))
            }
            Timing::Daily { spread, .. } => (86_400.0 + spread * (self.random.unit() - 0.5), 1),
        };
        if !self.client.is_ours() || wire.vpc.is_up(self.client.host, now) {
            for _ in 0..times {
                for _ in 0..1 + self.random.below(self.burst.max(1) as usize) {
                    self.request(wire);
                }
            }
        }
        Some(now + (wait.round() as u32).clamp(1, 1 << 24))
    }
}

/// A connection that is kept open, and opened again when it ends: pools, subscriptions, WebSockets.
pub struct Standing {
    /// Its stream.
    pub random: Random,
    /// Who opens it.
    pub client: Party,
    /// To one of these.
    pub servers: Arc<[Party]>,
    /// Port called.
    pub port: u16,
    /// Median life of a connection, s (log-normal, deviation 1).
    pub life: f64,
    /// How long until the next, s.
    pub pause: f64,
    /// What it carries.
    pub greeting: (Volume, Volume),
    /// What recurs on it.
    pub streams: Arc<[Stream]>,
}

impl Process for Standing {
    fn fire(&mut self, wire: &mut Wire) -> Option<u32> {
        let now = wire.now();
        let length = (self.random.log_normal(self.life, 1.0).clamp(1.0, 30.0 * 86_400.0) * 1000.0) as Millis;
        // A connection that is found at the beginning began before it.
        let before = if now == 0 { (self.random.unit() * length as f64) as Millis } else { 0 };
        let mut left = length - before;
        if self.client.is_ours() {
            let (from, to) = wire.vpc.hosts[self.client.host as usize].up;
            if now < from {
                return Some(from + 1 + self.random.below(20) as u32);
            }
            left = left.min(Millis::from(to.saturating_sub(now)) * 1000);
            if left < 1000 {
                return None;
            }
        }
        wire.open(Session {
            client: self.client,
            server: self.random.pick(&self.servers),
            client_port: self.random.client_port(),
            server_port: self.port,
            protocol: protocol::TCP,
            start: Millis::from(now) * 1000 + self.random.below(1000) as Millis - before,
            length: left + before,
            talk: Talk::Streams { greeting: self.greeting, streams: self.streams.clone() },
            outcome: Outcome::Answered,
            truth: 0,
            seed: self.random.bits(),
        });
        Some(now + 1 + (left / 1000) as u32 + self.random.exponential(self.pause.max(0.01)) as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nights_and_weekends_are_quieter() {
        // Monday 2026-03-02.
        let at = |day: u32, hour: u32| EventTime(1_772_409_600 + day * 86_400 + hour * 3600);
        assert!(Rhythm::Visitors.factor(at(0, 15)) > 5.0 * Rhythm::Visitors.factor(at(0, 3)));
        assert!(Rhythm::Office.factor(at(0, 10)) > Rhythm::Office.factor(at(0, 22)));
        assert!(Rhythm::Office.factor(at(0, 10)) > Rhythm::Office.factor(at(5, 10)));
    }
}
