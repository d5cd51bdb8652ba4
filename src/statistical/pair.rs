//! What is remembered of one of our hosts and a service it uses: (opener, responder, port, protocol).
//!
//! Flow logs cut a long session into one record per window, so that every long session looks like a perfect beacon.
//! Here the pieces are *stitched*: a piece with the opener's port of an earlier piece continues that session, since an
//! ephemeral port is not used again towards the same service within hours (Linux and Windows step through some 28,000
//! and 16,000 of them).
//!
//! Most pairs are seen once or twice, so memory comes in two sizes: a [`Pair`] of 40 bytes for all of them, and a
//! [`Channel`] with the sessions themselves for those that come back.

use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime};
use crate::statistical::conversation::{Conversation, Outcome};
use crate::statistical::habits::Before;
use crate::statistical::pane::Direction;
use crate::statistical::table::Entry;

/// Seconds of silence after which the same five-tuple is a new session. Longer than the keep-alives of push and MQTT
/// services (up to half an hour), and the default of Linux's TCP keep-alive (`tcp_keepalive_time`, 7,200 s).
pub const STITCH_SECONDS: u32 = 7_200;

/// The small memory of a pair.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Pair {
    /// Keyed hash of (opener, responder, port, protocol); two of five million pairs share one with p < 10^-6.
    pub fingerprint: u64,
    /// First conversation.
    pub first_seen: EventTime,
    /// Latest packet.
    pub last_seen: EventTime,
    /// IP bytes sent in the first window, held at the maximum.
    pub sent_bytes: u32,
    /// IP bytes received in the first window, held at the maximum.
    pub received_bytes: u32,
    /// Packets sent in the first window, held at the maximum.
    pub sent_packets: u16,
    /// Packets received in the first window, held at the maximum.
    pub received_packets: u16,
    /// Opener's port in the first window.
    pub opener_port: u16,
    /// Length of the first window's conversation, s, held at the maximum.
    pub first_duration: u16,
    /// The window of the first answer, plus one; 0 for never.
    answered_in: u32,
    /// Whether the first answer was told to [`Pair::take_first_answer`].
    taken: bool,
    /// Whether a [`Channel`] remembers the sessions.
    pub promoted: bool,
}

impl Pair {
    /// A pair that was never seen before.
    pub fn new(fingerprint: u64, c: &Conversation, window: EventTime) -> Pair {
        let mut pair = Pair {
            fingerprint,
            first_seen: EventTime(u32::MAX),
            last_seen: EventTime(0),
            sent_bytes: 0,
            received_bytes: 0,
            sent_packets: 0,
            received_packets: 0,
            opener_port: u16::MAX,
            first_duration: 0,
            answered_in: 0,
            taken: false,
            promoted: false,
        };
        pair.add(c, window);
        pair
    }

    /// Notes a conversation. Of several in the first window the earliest is kept, whatever order they come in.
    pub fn add(&mut self, c: &Conversation, window: EventTime) {
        let (start, end) = (c.start(), c.end());
        if self.last_seen == EventTime(0) || (start, c.opener_port) < (self.first_seen, self.opener_port) {
            self.sent_bytes = c.sent.bytes.try_into().unwrap_or(u32::MAX);
            self.received_bytes = c.received.bytes.try_into().unwrap_or(u32::MAX);
            self.sent_packets = c.sent.packets.try_into().unwrap_or(u16::MAX);
            self.received_packets = c.received.packets.try_into().unwrap_or(u16::MAX);
            self.opener_port = c.opener_port;
            self.first_duration = end.since(start).try_into().unwrap_or(u16::MAX);
        }
        self.first_seen = self.first_seen.min(start);
        self.last_seen = self.last_seen.max(end);
        if !c.failed() && self.answered_in == 0 {
            self.answered_in = window.0 + 1;
        }
    }

    /// Takes over what another engine remembers of the same pair.
    pub fn join(&mut self, other: &Pair) {
        let first = |pair: &Pair| (pair.first_seen, pair.opener_port);
        let amount = |pair: &Pair| (pair.sent_packets, pair.received_packets, pair.sent_bytes, pair.received_bytes);
        if first(other) < first(self) || first(other) == first(self) && amount(other) > amount(self) {
            (self.sent_bytes, self.received_bytes) = (other.sent_bytes, other.received_bytes);
            (self.sent_packets, self.received_packets) = (other.sent_packets, other.received_packets);
            (self.opener_port, self.first_duration) = (other.opener_port, other.first_duration);
        }
        self.first_seen = self.first_seen.min(other.first_seen);
        self.last_seen = self.last_seen.max(other.last_seen);
        self.answered_in = match (self.answered_in, other.answered_in) {
            (0, window) | (window, 0) => window,
            (one, another) => one.min(another),
        };
        self.taken |= other.taken;
        self.promoted |= other.promoted;
    }

    /// Whether any conversation was ever answered.
    pub fn answered(&self) -> bool {
        self.answered_in != 0
    }

    /// Whether the first answer came in this window; says so once.
    pub fn take_first_answer(&mut self, window: EventTime) -> bool {
        let first = self.answered_in == window.0 + 1 && !self.taken;
        self.taken |= first;
        first
    }
}

impl Entry for Pair {
    type Key = u64;

    fn key(&self) -> u64 {
        self.fingerprint
    }

    fn last_seen(&self) -> EventTime {
        self.last_seen
    }
}

/// One stitched session.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Session {
    /// First packet.
    pub start: EventTime,
    /// Latest packet.
    pub end: EventTime,
    /// IP bytes sent by the opener.
    pub sent_bytes: u64,
    /// IP bytes received by the opener.
    pub received_bytes: u64,
    /// Payload bytes sent by the opener (above bare headers).
    pub sent_payload: u64,
    /// Payload bytes received by the opener.
    pub received_payload: u64,
    /// Packets sent by the opener.
    pub sent_packets: u32,
    /// Packets received by the opener.
    pub received_packets: u32,
    /// Longest piece that one window held, s: shows the aggregation interval.
    pub piece: u32,
    /// Windows with any packet.
    pub windows: u32,
    /// Windows with payload from the opener.
    pub sent_windows: u32,
    /// Windows with payload from the responder.
    pub received_windows: u32,
    /// Opener's port.
    pub opener_port: u16,
    /// Whether every piece of it failed.
    pub failed: bool,
}

/// Payload that is more than a keep-alive: TCP keep-alives carry 0 or 1 byte (RFC 9293, 3.8.4), TCP options at most 40
/// a packet of which timestamps take 12.
fn carries_data(payload: u64, packets: u32) -> bool {
    payload > 13 * u64::from(packets)
}

/// One message inside a session: what one window held of it, where that is a few packets within a moment. The beat of a program that
/// keeps its session open shows in these, as that of one that calls anew shows in its calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Message {
    /// First packet.
    pub at: EventTime,
    /// Opener's port of the session.
    pub opener_port: u16,
    /// Payload bytes sent by the opener.
    pub sent: u16,
    /// Payload bytes received by the opener.
    pub received: u16,
}

impl Message {
    /// Packets of either side: a message, its answer, and their acknowledgements.
    const PACKETS_MAX: u32 = 4;

    /// From the first packet to the last, s: a beat of a few seconds has several messages in one window, which does not show them.
    const SECONDS_MAX: u32 = 2;

    fn of(c: &Conversation) -> Option<Message> {
        let (sent, received) = (c.payload(&c.sent), c.payload(&c.received));
        let short = c.sent.packets.max(c.received.packets) <= Message::PACKETS_MAX;
        let says = carries_data(sent, c.sent.packets) || carries_data(received, c.received.packets);
        let at_once = c.end().since(c.start()) <= Message::SECONDS_MAX;
        let size = |payload: u64| u16::try_from(payload).unwrap_or(u16::MAX);
        (short && says && at_once).then(|| Message {
            at: c.start(),
            opener_port: c.opener_port,
            sent: size(sent),
            received: size(received),
        })
    }
}

impl Session {
    fn of(c: &Conversation) -> Session {
        let mut session = Session {
            start: c.start(),
            end: c.end(),
            sent_bytes: 0,
            received_bytes: 0,
            sent_payload: 0,
            received_payload: 0,
            sent_packets: 0,
            received_packets: 0,
            piece: 0,
            windows: 0,
            sent_windows: 0,
            received_windows: 0,
            opener_port: c.opener_port,
            failed: true,
        };
        session.add(c);
        session
    }

    /// The session of a pair's first window, from what the pair kept of it.
    fn remembered(pair: &Pair, c: &Conversation) -> Session {
        let as_direction = |bytes: u32, packets: u16| Direction {
            bytes: u64::from(bytes),
            packets: u32::from(packets),
            start: pair.first_seen.0,
            end: pair.first_seen.0 + u32::from(pair.first_duration),
            ..Direction::default()
        };
        let mut first = *c;
        first.sent = as_direction(pair.sent_bytes, pair.sent_packets);
        first.received = as_direction(pair.received_bytes, pair.received_packets);
        first.opener_port = pair.opener_port;
        first.outcome = if pair.answered() { Outcome::Answered } else { Outcome::Unanswered };
        Session::of(&first)
    }

    fn add(&mut self, c: &Conversation) {
        let (sent, received) = (c.payload(&c.sent), c.payload(&c.received));
        self.start = self.start.min(c.start());
        self.end = self.end.max(c.end());
        self.sent_bytes += c.sent.bytes;
        self.received_bytes += c.received.bytes;
        self.sent_payload += sent;
        self.received_payload += received;
        self.sent_packets = self.sent_packets.saturating_add(c.sent.packets);
        self.received_packets = self.received_packets.saturating_add(c.received.packets);
        self.piece = self.piece.max(c.end().since(c.start()));
        self.windows += 1;
        self.sent_windows += u32::from(carries_data(sent, c.sent.packets));
        self.received_windows += u32::from(carries_data(received, c.received.packets));
        self.failed &= c.failed();
    }

    /// The share of the session's life that so many of its windows stand for, 0 to 1. Records are cut every 60 s or every 600 s
    /// (AWS knows no other aggregation interval), and a record counts in the window in which it begins; a piece of more than
    /// three minutes can only come of the longer one.
    pub fn presence(&self, windows: u32) -> f64 {
        let interval = if self.piece > 180 { 600.0 } else { 60.0 };
        // A session has a window more than it has whole intervals.
        let intervals = (f64::from(self.duration()) / interval).max(1.0);
        (f64::from(windows) / intervals).min(1.0)
    }

    /// Whether the responder sent data in spite of packets that are hardly more than bare headers on average: options stand in
    /// every segment or in none (timestamps: RFC 7323, 3.2), so that a mean between 0 and their 12 bytes is of words among bare
    /// acknowledgements, as in a remote access tool's ping of four bytes. The SYN-ACK's options take 40 bytes at most.
    pub fn is_answered_thinly(&self) -> bool {
        let mean = self.received_payload.saturating_sub(40) as f64 / f64::from(self.received_packets.max(1));
        (0.5..11.5).contains(&mean)
    }

    /// Whether both are pieces of one session.
    fn is_with(&self, other: &Session) -> bool {
        self.opener_port == other.opener_port
            && other.start.since(self.end) <= STITCH_SECONDS
            && self.start.since(other.end) <= STITCH_SECONDS
    }

    /// Takes over what another engine knows of the same session: of two sightings the fuller one counts.
    fn join(&mut self, other: &Session) {
        let amount = |s: &Session| (s.windows, s.sent_bytes.saturating_add(s.received_bytes), s.sent_packets);
        let (start, end) = (self.start.min(other.start), self.end.max(other.end));
        let (piece, failed) = (self.piece.max(other.piece), self.failed && other.failed);
        if amount(other) > amount(self) {
            *self = *other;
        }
        (self.start, self.end, self.piece, self.failed) = (start, end, piece, failed);
    }

    /// Seconds from first to last packet.
    pub fn duration(&self) -> u32 {
        self.end.since(self.start)
    }
}

/// The full memory of a pair that came back.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Channel {
    /// As in [`Pair`].
    pub fingerprint: u64,
    /// Our host.
    pub opener: Address,
    /// The other side.
    pub responder: Address,
    /// The service's port.
    pub port: u16,
    /// IANA number.
    pub protocol: u8,
    /// Sessions, the oldest forgotten beyond [`Channel::SESSIONS_MAX`].
    pub sessions: Vec<Session>,
    /// Sessions that were forgotten.
    pub forgotten: u32,
    /// The latest messages inside sessions, in order of time, up to [`Channel::MESSAGES_MAX`].
    pub messages: Vec<Message>,
    /// `pkt-dst-aws-service` named an AWS service.
    pub aws_service: bool,
    /// How many sessions there were when it was last judged as a beacon.
    pub judged_sessions: u32,
    /// When it was last stated as a finding; zero for never.
    pub told: EventTime,
    /// Whether it was told as mining, which it then is for good.
    pub mined: bool,
    /// Highest number of windows of a session when it was last judged as one long session.
    pub judged_windows: u32,
    /// When the host first used the service, whatever was forgotten since.
    pub first_contact: EventTime,
    /// How things stood with its host when these sessions began, once it was looked at.
    pub before: Option<Before>,
    /// Interface that saw it first.
    pub interface: crate::flow::InterfaceId,
}

impl Entry for Channel {
    type Key = u64;

    fn key(&self) -> u64 {
        self.fingerprint
    }

    fn last_seen(&self) -> EventTime {
        self.sessions.iter().map(|s| s.end).max().unwrap_or_default()
    }
}

impl Channel {
    /// Enough for a test of regularity over a day of a five-minute beacon; 288 × 88 B = 25 KB at most.
    pub const SESSIONS_MAX: usize = 288;

    /// Enough for the beat of an hour at one message a minute, at 12 bytes each.
    pub const MESSAGES_MAX: usize = 64;

    /// Calls of longer ago are forgotten, once twice as long has passed: what was regular a month ago need not be any more.
    const AGE_SECONDS: u32 = 30 * 86_400;

    /// A channel that begins with what its pair remembered.
    pub fn promote(pair: &Pair, c: &Conversation) -> Channel {
        Channel {
            fingerprint: pair.fingerprint,
            opener: c.opener,
            responder: c.responder,
            port: c.port,
            protocol: c.protocol,
            sessions: vec![Session::remembered(pair, c)],
            forgotten: 0,
            messages: Vec::new(),
            aws_service: false,
            judged_sessions: 0,
            told: EventTime(0),
            mined: false,
            judged_windows: 0,
            first_contact: pair.first_seen,
            before: None,
            interface: c.interface,
        }
    }

    /// Takes over what another engine remembers of the same channel.
    pub fn join(&mut self, other: Channel) {
        let first = |channel: &Channel| channel.sessions.first().map_or(EventTime(u32::MAX), |s| s.start);
        if first(&other) < first(self) {
            self.interface = other.interface;
        }
        for session in &other.sessions {
            match self.sessions.iter_mut().find(|known| known.is_with(session)) {
                Some(known) => known.join(session),
                None => self.sessions.push(*session),
            }
        }
        self.sessions.sort_by_key(|s| (s.start, s.opener_port));
        self.forgotten = self.forgotten.max(other.forgotten);
        self.messages.extend(other.messages);
        self.messages.sort_unstable();
        self.messages.dedup();
        self.messages.drain(..self.messages.len().saturating_sub(Self::MESSAGES_MAX));
        while self.sessions.len() > Self::SESSIONS_MAX {
            self.forget_oldest();
        }
        self.aws_service |= other.aws_service;
        self.judged_sessions = self.judged_sessions.max(other.judged_sessions);
        self.judged_windows = self.judged_windows.max(other.judged_windows);
        self.told = self.told.max(other.told);
        self.mined |= other.mined;
        self.first_contact = self.first_contact.min(other.first_contact);
        // What either engine knew of the host is compared with what the fuller of both knows now.
        self.before = self.before.min(other.before);
    }

    fn forget_oldest(&mut self) {
        if let Some(oldest) = (0..self.sessions.len()).min_by_key(|&i| self.sessions[i].end) {
            self.sessions.remove(oldest);
            self.forgotten += 1;
        }
    }

    /// Whether it is time to judge: something new since the last time, and after a finding not before ten minutes have
    /// passed. Sessions and windows grow by an eighth between judgements, so that judging costs a constant a session.
    pub fn due(&self, now: EventTime) -> bool {
        let sessions = self.sessions.len() as u32 + self.forgotten;
        let windows = self.sessions.iter().map(|s| s.windows).max().unwrap_or(0);
        let grown = |new: u32, old: u32| new > old + old / 8;
        let news = grown(sessions, self.judged_sessions) || grown(windows, self.judged_windows);
        if self.told == EventTime(0) { news } else { now.since(self.told) >= 600 }
    }

    /// Its answered sessions of five minutes at least: who holds several of these at once holds them on purpose.
    pub fn held(&self) -> impl Iterator<Item = &Session> {
        self.sessions.iter().filter(|s| !s.failed && s.duration() >= 300)
    }

    /// The longest of the answered sessions, of equals the one of the higher port.
    pub fn longest(&self) -> Option<&Session> {
        self.sessions.iter().filter(|s| !s.failed).max_by_key(|s| (s.duration(), s.opener_port))
    }

    /// Notes that it was judged.
    pub fn judged(&mut self, now: EventTime, told: bool) {
        self.judged_sessions = self.sessions.len() as u32 + self.forgotten;
        self.judged_windows = self.sessions.iter().map(|s| s.windows).max().unwrap_or(0);
        if told {
            self.told = now;
        }
    }

    /// After how long a silence the calls that follow are another story. Implants sleep overnight and are off over a weekend, so
    /// a day at least, and three of the channel's own intervals; what has called three times at most may be rarer than that.
    fn gap(&self) -> u32 {
        const DAY: u32 = 86_400;
        let mut intervals: Vec<u32> = self.sessions.windows(2).map(|pair| pair[1].start.since(pair[0].start)).collect();
        if intervals.len() < 3 {
            return 7 * DAY;
        }
        let middle = intervals.len() / 2;
        let (_, typical, _) = intervals.select_nth_unstable(middle);
        typical.saturating_mul(3).max(DAY)
    }

    /// Begins another story after such a silence.
    fn begin_anew_after_silence(&mut self, at: EventTime) {
        // The latest to begin is nearly always the latest to end, so that a look at it is enough for most calls.
        let quiet = |end: EventTime| at.since(end) > 86_400;
        if self.sessions.last().is_some_and(|last| quiet(last.end)) && at.since(self.last_seen()) > self.gap() {
            self.sessions.clear();
            self.messages.clear();
            (self.forgotten, self.judged_sessions, self.judged_windows) = (0, 0, 0);
            (self.told, self.mined, self.before) = (EventTime(0), false, None);
        }
    }

    /// Forgets the calls of long ago.
    fn age(&mut self, at: EventTime) {
        if self.sessions.first().is_some_and(|first| at.since(first.start) > 2 * Self::AGE_SECONDS) {
            let before = self.sessions.len();
            self.sessions.retain(|session| at.since(session.end) <= Self::AGE_SECONDS);
            self.forgotten += (before - self.sessions.len()) as u32;
        }
    }

    /// Keeps a message of a session that goes on.
    fn note_message(&mut self, c: &Conversation) {
        if let Some(message) = Message::of(c) {
            if self.messages.len() == Self::MESSAGES_MAX {
                self.messages.remove(0);
            }
            let place = self.messages.partition_point(|known| *known <= message);
            self.messages.insert(place, message);
        }
    }

    /// The messages of one session.
    pub fn messages_of<'a>(&'a self, session: &'a Session) -> impl Iterator<Item = &'a Message> {
        self.messages
            .iter()
            .filter(move |m| m.opener_port == session.opener_port && (session.start..=session.end).contains(&m.at))
    }

    /// Adds one window's conversation: to the session it continues, or as a new one. Says whether it is new.
    pub fn add(&mut self, c: &Conversation) -> bool {
        let at = c.start();
        self.begin_anew_after_silence(at);
        let continued = self.sessions.iter_mut().rev().find(|s| {
            s.opener_port == c.opener_port
                && at.since(s.end) <= STITCH_SECONDS
                && s.start.since(c.end()) <= STITCH_SECONDS
        });
        match continued {
            Some(session) => {
                session.add(c);
                self.note_message(c);
                false
            }
            None => {
                self.age(at);
                if self.sessions.len() == Self::SESSIONS_MAX {
                    self.forget_oldest();
                }
                // Kept in order of start, whatever order the window's conversations came in.
                let session = Session::of(c);
                let place =
                    self.sessions.partition_point(|s| (s.start, s.opener_port) <= (session.start, session.opener_port));
                self.sessions.insert(place, session);
                true
            }
        }
    }
}

#[cfg(test)]
mod tests;
