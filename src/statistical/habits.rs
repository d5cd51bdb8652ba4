//! What a host of ours does with services on the internet, so that one channel of it can be held against the rest.
//!
//! The shape of a channel says less than what its host does around it: with how many others it uses the port, and how much of
//! all that it opens goes there. Kept are counts of sessions and of responders by port, and the latest first contacts.
//!
//! Conversations of one window come in no order, so that nothing here may depend on it: times are those of windows, and which
//! contacts are kept is decided by their order among all, not by who came first.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};
use crate::statistical::conversation::port_rank;
use crate::statistical::host;
use crate::statistical::profile::{Opens, Used};
use crate::statistical::table::Entry;

/// First contacts that are kept of a host, 16 bytes each.
const CONTACTS: usize = 64;

/// Ports that are kept of a host, 12 bytes each.
const SERVICES: usize = 32;

/// Ports in one window from which on a host is not told by its ports: it tries them.
const CROWD: usize = 256;

/// How long before a channel's first call its host is looked at, s.
const BEFORE: u32 = 3_600;

/// For how long a contact with an unregistered port makes its host a peer among peers, s.
const DAY: u32 = 86_400;

/// A service that the host uses, wherever.
#[derive(Clone, Copy, PartialEq, Debug, Serialize, Deserialize)]
struct Service {
    last: EventTime,
    responders: u32,
    port: u16,
    protocol: u8,
}

/// A first contact.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
struct Contact {
    window: EventTime,
    /// A hash of the address.
    responder: u32,
    /// Sessions that the host had opened before that window.
    sessions: u32,
    port: u16,
    protocol: u8,
}

/// The memory of one host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Habits {
    host: Address,
    /// The latest window in which it opened anything.
    window: EventTime,
    /// Sessions that it opened.
    sessions: u32,
    /// Of these, how many before that window.
    sessions_before: u32,
    /// Whether it tried more ports in that window than are worth keeping.
    crowded: bool,
    services: Vec<Service>,
    contacts: Vec<Contact>,
}

impl Entry for Habits {
    type Key = Address;

    fn key(&self) -> Address {
        self.host
    }

    fn last_seen(&self) -> EventTime {
        self.window
    }
}

/// How things stood with a host when a channel of it began.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Before {
    /// Sessions that the host had opened.
    sessions: u32,
    /// Responders with which it had used the channel's port an hour earlier.
    on_port: u32,
    /// Services that it had begun to use, as far as they are among the latest that are kept.
    contacts: u32,
}

/// What a host does around one of its channels.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Around {
    /// Sessions that it opened since the channel began, those of the channel among them.
    pub sessions: u32,
    /// With how many others it uses the port: from an hour before the channel began where the port is a registered service, ever
    /// where it is none.
    pub on_port: u32,
    /// With how many responders it began to use unregistered ports, within a day.
    pub unregistered: u32,
    /// How many services it had begun to use before the channel, up to 64; fewer where as many came after it.
    pub contacts_before: u32,
}

impl Habits {
    /// Of a host that has opened nothing yet.
    pub fn new(host: Address) -> Habits {
        Habits {
            host,
            window: EventTime(0),
            sessions: 0,
            sessions_before: 0,
            crowded: false,
            services: Vec::new(),
            contacts: Vec::new(),
        }
    }

    fn enter(&mut self, window: EventTime) {
        if window > self.window {
            self.settle();
            if self.crowded {
                self.services.clear();
            }
            self.crowded = false;
            if self.services.len() > SERVICES {
                self.services.sort_unstable_by_key(|s| std::cmp::Reverse((s.last, s.responders, s.port, s.protocol)));
                self.services.truncate(SERVICES);
            }
            (self.window, self.sessions_before) = (window, self.sessions);
        }
    }

    /// Forgets all but the latest contacts.
    pub fn settle(&mut self) {
        if self.contacts.len() > CONTACTS {
            self.contacts.sort_unstable_by(|a, b| b.cmp(a));
            self.contacts.truncate(CONTACTS);
        }
    }

    /// Notes that another session was opened with a service that was met before.
    pub fn note_session(&mut self, window: EventTime) {
        self.enter(window);
        self.sessions = self.sessions.saturating_add(1);
    }

    /// Notes the first session with a service.
    pub fn note_contact(&mut self, window: EventTime, responder: Address, port: u16, protocol: u8) {
        self.note_session(window);
        let contact =
            Contact { window, responder: host::mix(responder) as u32, sessions: self.sessions_before, port, protocol };
        self.contacts.push(contact);
        // What is kept of twice as many is what would be kept of all.
        if self.contacts.len() >= 2 * CONTACTS {
            self.settle();
        }
        let room = self.services.len() < CROWD;
        match self.services.iter_mut().find(|s| (s.port, s.protocol) == (port, protocol)) {
            Some(service) => {
                service.responders = service.responders.saturating_add(1);
                service.last = window;
            }
            None if room => {
                self.services.push(Service { last: window, responders: 1, port, protocol });
            }
            None => self.crowded = true,
        }
    }

    /// How things stood when a channel began. To be asked in the window in which that is seen, and once [settled](Self::settle).
    pub fn before(&self, began: EventTime, port: u16, protocol: u8) -> Before {
        let earlier = self.contacts.iter().filter(|contact| contact.window <= began);
        let sessions = match earlier.max_by_key(|contact| contact.window) {
            Some(latest) => latest.sessions,
            // Nothing is known of that time; everything counts then, which speaks for the host.
            None => 0,
        };
        let since = began.minus(BEFORE);
        let new =
            self.contacts.iter().filter(|c| (c.port, c.protocol) == (port, protocol) && c.window >= since).count();
        let contacts = self.contacts.iter().filter(|contact| contact.window < began).count();
        Before {
            sessions,
            on_port: self.responders(port, protocol).saturating_sub(new as u32),
            contacts: contacts as u32,
        }
    }

    fn responders(&self, port: u16, protocol: u8) -> u32 {
        self.services.iter().find(|s| (s.port, s.protocol) == (port, protocol)).map_or(0, |s| s.responders)
    }

    /// What the host does around a channel that it began on a port when things stood so. `None` while it tries ports.
    pub fn around(&self, before: &Before, port: u16, protocol: u8) -> Option<Around> {
        if self.crowded {
            return None;
        }
        let earlier = if port_rank(port) == 0 { before.on_port } else { 0 };
        let since = self.window.minus(DAY);
        let unregistered = self.contacts.iter().filter(|c| port_rank(c.port) > 0 && c.window >= since);
        Some(Around {
            sessions: self.sessions.saturating_sub(before.sessions),
            on_port: self.responders(port, protocol).saturating_sub(earlier).saturating_sub(1),
            unregistered: unregistered.map(|c| c.responder).collect::<BTreeSet<_>>().len() as u32,
            contacts_before: before.contacts,
        })
    }

    /// What the host opens towards outside, for the API.
    pub fn profile(&self) -> Opens {
        let used =
            |s: &Service| Used { port: s.port, protocol: s.protocol, responders: s.responders, last_new: s.last };
        let mut services: Vec<Used> = self.services.iter().map(used).collect();
        services.sort_by_key(|used| (std::cmp::Reverse(used.responders), used.port, used.protocol));
        services.truncate(SERVICES);
        Opens { sessions: self.sessions, tries_ports: self.crowded, services }
    }

    /// Takes over what another engine knows of the same host: of two sightings the fuller one counts.
    pub fn join(&mut self, other: Habits) {
        let amount = |habits: &Habits| (habits.sessions, habits.window);
        if amount(&other) > amount(self) {
            *self = other;
        }
    }
}

#[cfg(test)]
mod tests;
