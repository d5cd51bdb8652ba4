//! Data that leaves: a host of ours sends far more than it ever did to a place outside that is new for it and rare among our hosts.
//!
//! Only what a host sends in conversations that it opened itself counts: what visitors download is serving. A backup looks the
//! same as a theft, but was there yesterday; so a host is judged by what it sent before, and a place by what it was sent
//! before. Places are networks (/24 of IPv4, /48 of IPv6), since stores answer under many addresses of a block.
//!
//! What a host sent in its first hour under watch counts as sent before: of that nobody can say that it is new.

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};

use crate::finding::{Actor, Evidence, Finding, Merge, Severity, Subject, Target, Threat};
use crate::flow::{Address, EventTime, InterfaceId, Marks, protocol, tcp_flags};
use crate::statistical::conversation::{Conversation, Outcome, Place, port_rank};
use crate::statistical::explain::Judgement;
use crate::statistical::profile::Sends;
use crate::statistical::table::Entry;

/// `[statistical.exfiltration]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Bytes within a day where the host's past is not known.
    pub bytes_without_past: u64,
    /// Bytes within a day where it is.
    pub bytes: u64,
    /// For how long a host has been watched when its past is known.
    pub watched: SignedDuration,
    /// So many times the most that it has sent to one place in a day.
    pub times_past: f64,
    /// So many times the most that the place was sent in a day.
    pub times_place: f64,
    /// Bytes sent for each received.
    pub one_sided: f64,
    /// At most so many of our hosts use the place.
    pub clients: f64,
    /// At most so many places together.
    pub places: u32,
}

/// Bytes sent in a window below which nobody looks: 16 kB a minute are 23 MB a day.
pub const LEAST: u64 = 16_384;

/// Bytes that a host sends in a window to acknowledge a download of some 50 MB.
const DOWNLOAD: u64 = 1_000_000;

/// What is sent within so long belongs together, s.
const DAY: u32 = 86_400;

/// What a host does within so long after it was first seen is its habit, s.
const FIRST_HOUR: u32 = 3_600;

/// Places that are kept of a host, 80 bytes each.
const PLACES: usize = 32;

/// What the largest daily amount keeps from day to day: half of it after a week.
const KEPT: f64 = 0.9;

/// A place that has a smaller part in all is no part of the story.
const PART: f64 = 0.05;

/// What the places of a story have of all that is new.
const SHARE: f64 = 0.8;

/// What a host sends to a place.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
struct Upload {
    network: Address,
    /// The address that was sent most at once, and how much.
    address: Address,
    most: u64,
    port: u16,
    /// Start of the day under way.
    began: EventTime,
    last: EventTime,
    /// In the day under way, bytes.
    sent: u64,
    received: u64,
    /// The most of an earlier day, or what was sent in the host's first hour under watch, bytes.
    before: u64,
}

/// What a host of ours sends to places outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Uploads {
    host: Address,
    places: Vec<Upload>,
    /// The most that was sent to one place in a day that is over, bytes; it fades.
    largest: f64,
    /// Until when it has faded.
    faded: EventTime,
    last_seen: EventTime,
    latest: Place,
    interface: InterfaceId,
}

impl Entry for Uploads {
    type Key = Address;

    fn key(&self) -> Address {
        self.host
    }

    fn last_seen(&self) -> EventTime {
        self.last_seen
    }
}

/// Whether a conversation may send data away: a host of ours opened it with somebody outside who answers. Ports tell who serves
/// whom where flags do not.
#[inline]
pub fn counts(c: &Conversation) -> bool {
    let outward = c.ours && !c.theirs && c.sent.bytes >= LEAST;
    outward && {
        let aws = c.sent.has(Marks::TO_AWS_SERVICE) || c.received.has(Marks::FROM_AWS_SERVICE);
        let opened =
            c.sent.has(Marks::FLAGS_KNOWN) && c.sent.flags & tcp_flags::SYN != 0 && c.sent.flags & tcp_flags::ACK == 0;
        let calls = port_rank(c.port) == 0 || port_rank(c.port) < port_rank(c.opener_port) || opened;
        matches!(c.protocol, protocol::TCP | protocol::UDP)
            && c.outcome == Outcome::Answered
            && calls
            && !aws
            && !c.responder.is_private()
            && !c.responder.is_group()
    }
}

/// The network that an address lies in: /24 of IPv4, /48 of IPv6.
fn network_of(address: Address) -> Address {
    match address.as_v4() {
        Some(bits) => Address::v4(bits & 0xffff_ff00),
        None => Address::from_bits(address.bits() >> 80 << 80),
    }
}

impl Uploads {
    /// Of a host that has sent nothing yet.
    pub fn new(host: Address, at: EventTime) -> Uploads {
        Uploads {
            host,
            places: Vec::new(),
            largest: 0.0,
            faded: at,
            last_seen: at,
            latest: Place::default(),
            interface: InterfaceId(0),
        }
    }

    /// Notes a conversation that [counts]. To be called in the order of starts. `watched_since` is when the host was first seen.
    pub fn note(&mut self, c: &Conversation, watched_since: EventTime) {
        let (start, network) = (c.start(), network_of(c.responder));
        self.last_seen = self.last_seen.max(c.end());
        if c.place() > self.latest {
            (self.latest, self.interface) = (c.place(), c.interface);
        }
        let at = match self.places.iter().position(|place| place.network == network) {
            Some(at) => at,
            // A download makes no place, unless it is a large one: what follows may be the other half of a speed test.
            None if c.received.bytes > c.sent.bytes && c.sent.bytes < DOWNLOAD => return,
            None => {
                if self.places.len() >= 2 * PLACES {
                    self.settle();
                }
                self.places.push(Upload {
                    network,
                    address: c.responder,
                    most: 0,
                    port: c.port,
                    began: start,
                    last: start,
                    sent: 0,
                    received: 0,
                    before: 0,
                });
                self.places.len() - 1
            }
        };
        let days = start.since(self.faded) / DAY;
        if days > 0 {
            self.largest *= KEPT.powi(days.min(1_000) as i32);
            self.faded = self.faded.plus(days * DAY);
        }
        let place = &mut self.places[at];
        if start.since(place.began) > DAY {
            self.largest = self.largest.max(place.sent as f64);
            place.before = place.before.max(place.sent);
            (place.began, place.sent, place.received, place.most) = (start, 0, 0, 0);
        }
        place.last = place.last.max(c.end());
        place.sent = place.sent.saturating_add(c.sent.bytes);
        place.received = place.received.saturating_add(c.received.bytes);
        if start.since(watched_since) < FIRST_HOUR {
            place.before = place.before.max(place.sent);
        }
        if c.sent.bytes > place.most {
            (place.most, place.address, place.port) = (c.sent.bytes, c.responder, c.port);
        }
    }

    /// What the host sends outside, for the API.
    pub fn profile(&self) -> Sends {
        Sends { places: self.places.len().min(PLACES) as u32, largest_daily_bytes: self.largest as u64 }
    }

    /// Forgets all but the places that were sent most.
    fn settle(&mut self) {
        self.places.sort_unstable_by_key(|place| (std::cmp::Reverse(place.sent.max(place.before)), place.network));
        self.places.truncate(PLACES);
    }

    /// Takes over what another engine knows of the same host: of two sightings of a place the fuller one counts.
    pub fn join(&mut self, other: Uploads) {
        for theirs in other.places {
            match self.places.iter_mut().find(|place| place.network == theirs.network) {
                Some(known) => {
                    let before = known.before.max(theirs.before);
                    if (theirs.sent, theirs.last) > (known.sent, known.last) {
                        *known = theirs;
                    }
                    known.before = before;
                }
                None => self.places.push(theirs),
            }
        }
        if self.places.len() > 2 * PLACES {
            self.settle();
        }
        self.largest = self.largest.max(other.largest);
        self.faded = self.faded.max(other.faded);
        self.last_seen = self.last_seen.max(other.last_seen);
        if other.latest > self.latest {
            (self.latest, self.interface) = (other.latest, other.interface);
        }
    }

    /// Gives the interface another number.
    pub fn rename(&mut self, rename: impl Fn(InterfaceId) -> InterfaceId) {
        self.interface = rename(self.interface);
    }

    /// Who saw it.
    pub fn interface(&self) -> InterfaceId {
        self.interface
    }

    /// The places that are new for the host with what they are sent, in the day that ends now, the largest first.
    fn new_places(&self, settings: &Settings, now: EventTime) -> Vec<Upload> {
        let since = now.minus(DAY);
        let mut new: Vec<Upload> = self
            .places
            .iter()
            .filter(|place| {
                place.last >= since
                    && (place.before as f64) * settings.times_place < place.sent as f64
                    && place.sent as f64 >= settings.one_sided * place.received as f64
            })
            .copied()
            .collect();
        new.sort_unstable_by_key(|place| (std::cmp::Reverse(place.sent), place.network));
        new
    }

    /// Judges the host in a window in which it sent something; the judgement, and the places that it is about. `None` where it
    /// sends too little to say how close it came. `clients` says how many of our hosts use an address.
    pub fn judge(
        &self,
        settings: &Settings,
        watched_since: EventTime,
        window: EventTime,
        clients: impl Fn(Address) -> f64,
    ) -> Option<(Judgement, Story)> {
        let new = self.new_places(settings, window.plus(1));
        let enough = |places: &[Upload]| places.iter().map(|place| place.sent).sum::<u64>() >= settings.bytes / 10;
        if !enough(&new) {
            return None;
        }
        let is_rare = |place: &Upload| clients(place.address) <= settings.clients;
        let (rare, common): (Vec<Upload>, Vec<Upload>) = new.iter().copied().partition(is_rare);
        let asked = if enough(&rare) { rare } else { common };
        let all: u64 = asked.iter().map(|place| place.sent).sum();
        let mut places: Vec<Upload> = asked.into_iter().take(settings.places as usize).collect();
        places.retain(|place| place.sent as f64 >= PART * all as f64);
        let users = places.iter().map(|place| clients(place.address)).fold(0.0, f64::max);
        let (sent, received) = places.iter().fold((0, 0), |(s, r), place| (s + place.sent, r + place.received));
        let began = places.iter().map(|place| place.began).min()?;
        let last = places.iter().map(|place| place.last).max()?;
        let known = self.places.iter().filter(|place| !new.contains(place));
        let past = known.map(|place| place.sent as f64).fold(self.largest, f64::max);
        let watched = began.since(watched_since);
        let floor = match i64::from(watched) >= settings.watched.as_secs() {
            true => settings.bytes,
            false => settings.bytes_without_past,
        } as f64;
        let wanted = floor.max(settings.times_past * past);
        let share = sent as f64 / all as f64;
        let ratio = sent as f64 / (received.max(1)) as f64;
        let evidence = vec![
            Evidence::at_least("sent", sent as f64 / MB, wanted / MB, "MB", Merge::Max),
            Evidence::told("received", received as f64 / MB, "MB", Merge::Max),
            Evidence::at_least("sent_to_received", ratio, settings.one_sided, "ratio", Merge::Latest),
            Evidence::told("own_past", past / MB, "MB", Merge::Latest),
            Evidence::told("watched_before", watched.into(), "s", Merge::Latest),
            Evidence::at_most("clients", users, settings.clients, "hosts", Merge::Latest),
            Evidence::at_least("share_of_new_places", share, SHARE, "ratio", Merge::Latest),
            Evidence::told("places", places.len() as f64, "networks", Merge::Max),
            Evidence::told("span", last.since(began).into(), "s", Merge::Max),
        ];
        let passed = sent as f64 >= wanted && users <= settings.clients && share >= SHARE && last >= window;
        let judgement = Judgement { method: METHOD.to_owned(), passed, evidence, ratio: sent as f64 / wanted };
        Some((judgement, Story { places }))
    }

    /// The statement, once [`Uploads::judge`] has passed.
    pub fn finding(&self, judgement: &Judgement, story: &Story, window: EventTime, window_seconds: u32) -> Finding {
        let target = |place: &Upload| Target { address: place.address, ports: vec![place.port], port_count: 1 };
        let mut targets: Vec<Target> = story.places.iter().map(target).collect();
        targets.sort_by_key(|target| target.address);
        let first = story.places.iter().map(|place| place.began).min().unwrap_or(window);
        let last = story.places.iter().map(|place| place.last).max().unwrap_or(window);
        let whom = match targets.as_slice() {
            [one] => format!("{} port {}", one.address, story.places[0].port),
            _ => "{places} networks".to_owned(),
        };
        Finding {
            threat: Threat::Exfiltration,
            method: judgement.method.clone(),
            actor: Actor::One(self.host),
            subject: Subject::Actor(self.host),
            target_count: targets.len() as u32,
            targets,
            sources: Vec::new(),
            severity_reason: "the data is gone".to_owned(),
            learned: Vec::new(),
            first_seen: first,
            last_seen: last,
            window,
            window_seconds,
            score: 1.0 - 0.4 / judgement.ratio.max(1.0),
            severity: Severity::High,
            evidence: judgement.evidence.clone(),
            summary: format!(
                "{} sent {{sent}} MB to {whom} in {{span}} s and received {{received}} MB; it sent little or nothing there before, and \
                 at most {{own_past}} MB a day to any other place",
                self.host
            ),
            interfaces: Vec::new(),
            account: String::new(),
            provisional: false,
            ml: None,
            alternatives: Vec::new(),
        }
    }
}

/// The method's name.
const METHOD: &str = "new_place";

/// Bytes of the evidence's unit.
const MB: f64 = 1e6;

/// The places that a judgement is about.
#[derive(Clone, Debug)]
pub struct Story {
    places: Vec<Upload>,
}

#[cfg(test)]
mod tests;
