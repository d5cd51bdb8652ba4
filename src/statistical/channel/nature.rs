//! Implant or miner: how likely a channel is the one, if it is either.
//!
//! Both are channels that a host of ours opened, and both may have the same port, the same length and the same sizes. What differs is
//! how they are held: a miner keeps one session and its pool speaks all the time, while an implant calls again and again, or keeps a
//! session in which its controller says little and it says more itself.
//!
//! The weights are those of a logistic regression over 14 channels of miners and 47 of implants, learned and made into nats as those of
//! [`channel`](super), and then rounded (`tests/learn_channels.py` learns them again). By weights that had not seen their laboratory 13 of the 14 and
//! 41 of the 47 are on the right side.
//!
//! So few channels cannot make anything sure. Only seven of the implants held one session, and none of these looked like a miner. The next
//! one may, so that the shape alone leaves it one chance in eight.

use std::ops::RangeInclusive;

use crate::finding::{Alternative, Threat};
use crate::statistical::pair::{Channel, Session};

/// What is known of the other side beside the shape.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hint {
    /// Nothing.
    None,
    /// Its port is one that pools publish.
    Port,
    /// A list knows it as a pool.
    List,
}

impl Hint {
    /// Whether it tells a miner from an implant on that port.
    pub fn is_clear(self, port: u16) -> bool {
        match self {
            Hint::List => true,
            Hint::Port => !AMBIGUOUS.contains(&port),
            Hint::None => false,
        }
    }
}

/// What tells an implant from a miner, of a channel's longest answered session.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Shape {
    /// Share of the channel's payload that the session carries, 0 to 1.
    pub carried: f64,
    /// Share of the session's intervals in which the other side sent data, 0 to 1; less for a session of less than four minutes.
    pub pushed: f64,
    /// Payload sent for each byte received.
    pub sent_to_received: f64,
}

/// A session of less has not shown yet whether the other side speaks all the time, s: four jobs at one a minute.
const PUSHED_SECONDS: f64 = 240.0;

/// Who leaves after less has not mined, s: two jobs at one a minute.
const HELD_SECONDS: u32 = 120;

/// Both sides of a pool's session speak about as much; an implant that reports sends several times what it is told.
const ONE_SIDED: f64 = 2.0;

/// What a channel of which nothing is known stands at, nats.
const USUAL: f64 = -6.2;

/// For the whole payload in one session, nats.
const CARRIED: f64 = 7.2;

/// For data from the other side in every interval, nats.
const PUSHED: f64 = 8.2;

/// Against a miner where the host sends more than [`ONE_SIDED`], nats.
const REPORTS: f64 = -2.7;

/// What the shape may say at most: 1 in 14 for a miner where it is an implant's (true of none of 14 miners), 7 in 8 where it is a
/// miner's (true of none of 7 implants that held one session).
const SHAPE: RangeInclusive<f64> = -2.6..=2.0;

/// For a port that pools publish, nats. No implant at hand uses one, but its author is free to.
const POOL_PORT: f64 = 1.0;

/// For a list that knows the pool, nats.
const POOL_LIST: f64 = 3.0;

/// Ports of pools that are the defaults of remote access tools as well (Metasploit's handler, Sliver's), so that they say nothing.
const AMBIGUOUS: [u16; 2] = [4_444, 8_888];

/// What has a smaller share is not named.
const NAMED: f64 = 0.1;

impl Shape {
    /// Of a channel; `None` where nothing of it was answered.
    pub fn of(channel: &Channel) -> Option<Shape> {
        let session = channel.longest()?;
        let payload = |s: &Session| (s.sent_payload + s.received_payload) as f64;
        let all: f64 = channel.sessions.iter().map(payload).sum();
        let seen = (f64::from(session.duration()) / PUSHED_SECONDS).min(1.0);
        Some(Shape {
            carried: payload(session) / all.max(1.0),
            pushed: session.presence(session.received_windows) * seen,
            sent_to_received: (session.sent_payload + 1) as f64 / (session.received_payload + 1) as f64,
        })
    }

    /// Log-odds of a miner against an implant, nats.
    fn nats(&self) -> f64 {
        let reports = if self.sent_to_received > ONE_SIDED { REPORTS } else { 0.0 };
        let nats = USUAL + CARRIED * self.carried + PUSHED * self.pushed + reports;
        nats.clamp(*SHAPE.start(), *SHAPE.end())
    }
}

/// How likely a channel is a miner's, if it is a miner's or an implant's, 0 to 1.
pub fn mining_share(channel: &Channel, hint: Hint) -> f64 {
    let held = channel.longest().is_some_and(|session| session.duration() >= HELD_SECONDS);
    let shape = Shape::of(channel).filter(|_| held).map_or(*SHAPE.start(), |shape| shape.nats());
    let hinted = match hint {
        Hint::List => POOL_LIST,
        Hint::Port if hint.is_clear(channel.port) => POOL_PORT,
        Hint::Port | Hint::None => 0.0,
    };
    1.0 / (1.0 + (-shape - hinted).exp())
}

/// What else a channel may be that is named as one of the two. What is named first is at least as likely as the other, since its
/// own method asked for more than the shape.
pub fn alternatives(named: Threat, mining_share: f64) -> Vec<Alternative> {
    let (threat, share) = match named {
        Threat::CryptoMining => (Threat::C2Beacon, 1.0 - mining_share),
        Threat::C2Beacon => (Threat::CryptoMining, mining_share),
        _ => return Vec::new(),
    };
    let share = (share.min(0.5) * 100.0).round() / 100.0;
    if share < NAMED { Vec::new() } else { vec![Alternative { threat, share }] }
}

#[cfg(test)]
mod tests;
