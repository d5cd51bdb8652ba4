//! What an engine holds of one address, and how much of the log it could judge, for the API.
//!
//! Everything here is read from what detectors keep for their own use; nothing is kept for it but the gaps of interfaces.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::flow::{Address, Blindness, BlindnessKind, EventTime, InterfaceId};
use crate::statistical::Statistics;
use crate::statistical::explain::Explained;
use crate::statistical::pair::Channel;

/// Services that a profile names at most, each way.
const NAMED: usize = 32;

/// Interfaces whose gaps are kept; of further ones only the sums are known.
const INTERFACES_MAX: usize = 10_000;

/// What one engine holds of an address.
#[derive(Clone, PartialEq, Debug)]
pub struct Profile {
    /// What was seen of it, and how close detectors came.
    pub explained: Explained,
    /// How many hosts of ours opened conversations with it, estimated as [`super::host::Host::clients`].
    pub clients: Option<u32>,
    /// What it opens towards outside; `None` where it is no host of ours, or has opened nothing there.
    pub opens: Option<Opens>,
    /// The services that others keep coming back for.
    pub serves: Vec<Served>,
    /// What it sends outside; `None` where it has sent nothing that counts.
    pub sends: Option<Sends>,
}

/// What a host of ours opens towards outside.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct Opens {
    /// Sessions that it has opened with outsiders.
    pub sessions: u32,
    /// Whether it tried so many ports in its latest window that it is not described by them.
    pub tries_ports: bool,
    /// The services that it uses, the most widely used first; the latest 32 are kept.
    pub services: Vec<Used>,
}

/// A service outside that a host uses, with whomever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Used {
    /// The port.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// With how many others it uses it.
    pub responders: u32,
    /// The window in which it last began to use it with another one.
    pub last_new: EventTime,
}

/// A service at an address that hosts of ours keep coming back to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Served {
    /// The port.
    pub port: u16,
    /// IANA protocol number.
    pub protocol: u8,
    /// How many hosts of ours keep coming back.
    pub clients: u32,
    /// Their latest packet.
    pub last: EventTime,
}

/// What a host of ours sends to places outside, in conversations that it opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, ToSchema)]
pub struct Sends {
    /// Places (/24 of IPv4, /48 of IPv6) that are kept.
    pub places: u32,
    /// The most that it sent to one place in a day that is over, bytes; it fades by a tenth a day.
    pub largest_daily_bytes: u64,
}

/// The services of an address that channels lead to, the one with the most clients first.
pub(super) fn served<'a>(address: Address, channels: impl Iterator<Item = &'a Channel>) -> Vec<Served> {
    let mut ports: BTreeMap<(u16, u8), Served> = BTreeMap::new();
    for channel in channels.filter(|channel| channel.responder == address) {
        let last = channel.sessions.iter().map(|session| session.end).max().unwrap_or(channel.first_contact);
        let none = Served { port: channel.port, protocol: channel.protocol, clients: 0, last };
        let service = ports.entry((channel.port, channel.protocol)).or_insert(none);
        service.clients += 1;
        service.last = service.last.max(last);
    }
    let mut services: Vec<Served> = ports.into_values().collect();
    services.sort_by_key(|service| (Reverse(service.clients), service.port, service.protocol));
    services.truncate(NAMED);
    services
}

/// Where the log says nothing of an interface, s, since the process began.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Gap {
    /// SKIPDATA: records were lost.
    pub skipped_seconds: u64,
    /// NODATA: there was no traffic.
    pub no_data_seconds: u64,
    /// The end of the latest of either.
    pub last: EventTime,
}

/// The gaps of interfaces.
#[derive(Debug, Default)]
pub(super) struct Gaps(BTreeMap<InterfaceId, Gap>);

impl Gaps {
    pub(super) fn note(&mut self, stretch: &Blindness, seconds: u64) {
        if self.0.len() >= INTERFACES_MAX && !self.0.contains_key(&stretch.interface) {
            return;
        }
        let gap = self.0.entry(stretch.interface).or_default();
        match stretch.kind {
            BlindnessKind::NoData => gap.no_data_seconds += seconds,
            BlindnessKind::SkipData => gap.skipped_seconds += seconds,
        }
        gap.last = gap.last.max(stretch.end);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (InterfaceId, Gap)> {
        self.0.iter().map(|(interface, gap)| (*interface, *gap))
    }
}

/// How much of the log one engine could judge.
#[derive(Clone, PartialEq, Debug)]
pub struct Coverage {
    /// Its counts; they are kept in its snapshot, over restarts.
    pub statistics: Statistics,
    /// Interfaces that have logged anything.
    pub interfaces: u32,
    /// The gaps since the process began, by the name of the interface and its account.
    pub gaps: Vec<(String, String, Gap)>,
}

#[cfg(test)]
mod tests;
