//! A candidate: one look at one channel, with all numbers, whatever came of it.
//!
//! Findings keep the numbers of what was reported. To learn how attacks differ from everything else, the numbers of everything else are
//! needed as well: those of a deployment's own channels, or of a laboratory's.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Serialize;

use crate::flow::{Address, EventTime};
use crate::statistical::channel::nature::Shape;
use crate::statistical::explain::Judgement;
use crate::statistical::pair::Channel;

/// One look at one channel.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Candidate {
    /// End of the window after which it was judged.
    pub at: EventTime,
    /// The host of ours.
    pub host: Address,
    /// The other side.
    pub peer: Address,
    /// The service's port.
    pub port: u16,
    /// IANA number.
    pub protocol: u8,
    /// First packet of the sessions that were judged.
    pub first_seen: EventTime,
    /// Last packet.
    pub last_seen: EventTime,
    /// Whether it was at least a signal.
    pub signal: bool,
    /// The methods that reported it at this look.
    pub reported_by: Vec<String>,
    /// Conditions that do not hold, by the names of their numbers.
    pub fails: Vec<Cow<'static, str>>,
    /// Every number by its name, as in the evidence of findings.
    pub numbers: BTreeMap<Cow<'static, str>, f64>,
}

impl Candidate {
    /// Of a channel and what was thought of it.
    pub fn of(
        channel: &Channel,
        at: EventTime,
        character: Option<&Judgement>,
        signal: bool,
        reported_by: Vec<String>,
    ) -> Candidate {
        let evidence = character.map_or(&[][..], |judgement| &judgement.evidence);
        let mut numbers: BTreeMap<Cow<'static, str>, f64> =
            evidence.iter().map(|e| (e.name.clone(), e.value)).collect();
        if let Some(shape) = Shape::of(channel) {
            let shape = [
                ("carried_by_longest", shape.carried),
                ("pushed", shape.pushed),
                ("sent_to_received", shape.sent_to_received),
            ];
            numbers.extend(shape.map(|(name, value)| (Cow::Borrowed(name), value)));
        }
        Candidate {
            at,
            host: channel.opener,
            peer: channel.responder,
            port: channel.port,
            protocol: channel.protocol,
            first_seen: channel.sessions.iter().map(|s| s.start).min().unwrap_or(at),
            last_seen: channel.sessions.iter().map(|s| s.end).max().unwrap_or(at),
            signal,
            reported_by,
            fails: evidence.iter().filter(|e| e.holds() == Some(false)).map(|e| e.name.clone()).collect(),
            numbers,
        }
    }
}
