//! A conversation: both directions of a five-tuple in one window, with its opener known and counted once.
//!
//! Published scan and beacon methods were made for connection logs. On flow records they fail without this step: the
//! server that answers a thousand clients looks like a scanner of a thousand ephemeral ports, and a flow between two
//! hosts of ours, logged at both ends, counts twice.

use std::cmp::Ordering;

use crate::flow::{Address, EventTime, InterfaceId, Marks, protocol, tcp_flags};
use crate::statistical::pane::{Direction, View};

/// What became of an attempt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The other side answered with more than a refusal.
    Answered,
    /// A security group or ACL said no, or the other side sent a reset and nothing else.
    Refused,
    /// Nothing came back within the window.
    Unanswered,
    /// An answer without a question: SYN-ACKs and resets to a spoofed source, or the tail of an older session.
    Backscatter,
}

/// An oriented conversation of one window.
#[derive(Clone, Copy, Debug)]
pub struct Conversation {
    /// Who began it.
    pub opener: Address,
    /// Whom it was begun with.
    pub responder: Address,
    /// From opener to responder.
    pub sent: Direction,
    /// From responder to opener.
    pub received: Direction,
    /// Who saw it.
    pub interface: InterfaceId,
    /// The opener's port.
    pub opener_port: u16,
    /// The responder's port: the service.
    pub port: u16,
    /// IANA number.
    pub protocol: u8,
    /// What became of it.
    pub outcome: Outcome,
    /// Whether the opener is ours.
    pub ours: bool,
    /// Whether the responder is ours.
    pub theirs: bool,
}

/// See [`Conversation::place`].
pub type Place = (EventTime, Address, Address, u16, u16);

impl Conversation {
    /// First packet of either direction.
    pub fn start(&self) -> EventTime {
        EventTime(self.sent.start.min(self.received.start))
    }

    /// Last packet of either direction.
    pub fn end(&self) -> EventTime {
        EventTime(self.sent.end.max(self.received.end))
    }

    /// A place among others that does not depend on the order of arrival; the latest conversation is the last.
    pub fn place(&self) -> Place {
        (self.end(), self.opener, self.responder, self.opener_port, self.port)
    }

    /// Whether the attempt got nowhere.
    pub fn failed(&self) -> bool {
        matches!(self.outcome, Outcome::Refused | Outcome::Unanswered)
    }

    /// A bare probe: a handful of packets without room for data. A SYN with its options is 40 to 64 bytes (60 to 84
    /// over IPv6), retried at most six times by common stacks.
    pub fn is_probe(&self) -> bool {
        let room = if self.opener.as_v4().is_some() { 64 } else { 84 };
        match self.protocol {
            protocol::TCP => self.sent.packets <= 7 && self.sent.bytes <= room * u64::from(self.sent.packets),
            _ => self.sent.packets <= 7,
        }
    }

    /// Bytes above the IP and TCP headers without options, for one direction; 0 for a bare handshake.
    pub fn payload(&self, direction: &Direction) -> u64 {
        let header = match (self.protocol, self.opener.as_v4().is_some()) {
            (protocol::TCP, true) => 40,
            (protocol::TCP, false) => 60,
            (_, true) => 28,
            (_, false) => 48,
        };
        direction.bytes.saturating_sub(header * u64::from(direction.packets))
    }
}

/// How likely a port is the server's: 0 a registered service, 1 unknown, 2 in an ephemeral range (Linux from 32768;
/// RFC 6335 from 49152).
pub fn port_rank(port: u16) -> u8 {
    match port {
        1..=1023 => 0,
        1080
        | 1194
        | 1433
        | 1521
        | 1723
        | 1883
        | 1900
        | 2049
        | 2181
        | 2375..=2380
        | 3000
        | 3128
        | 3268
        | 3269
        | 3306
        | 3389
        | 3478
        | 4222
        | 4317
        | 4318
        | 4443
        | 4500
        | 5000
        | 5060
        | 5061
        | 5222
        | 5223
        | 5228
        | 5353
        | 5432
        | 5671
        | 5672
        | 5900
        | 5985
        | 5986
        | 6379
        | 6443
        | 7001
        | 8000
        | 8008
        | 8080..=8090
        | 8125
        | 8300..=8302
        | 8333
        | 8443
        | 8500
        | 8883
        | 8888
        | 9000
        | 9001
        | 9042
        | 9090..=9100
        | 9200
        | 9300
        | 9418
        | 9443
        | 10250
        | 10255
        | 11211
        | 15672
        | 27017 => 0,
        0 | 1024..=32767 => 1,
        32768.. => 2,
    }
}

/// Orients every view of a window, counting each conversation once.
///
/// A conversation is seen twice when both ends are ours, or when an intermediary (a NAT gateway, a transit gateway)
/// logs the packet's own addresses again. The view with the most packets speaks for it, an end's before an intermediary's; a refusal seen by any view
/// holds, since a security group may refuse at one end what the other end sent in good faith. `duplicates` counts the
/// views that were folded away.
pub fn conversations<'a>(
    views: &[View],
    ours: impl Fn(Address) -> bool + Copy,
    name: impl Fn(InterfaceId) -> &'a str,
    out: &mut Vec<Conversation>,
    duplicates: &mut u64,
) {
    // Where the next view of the same five-tuple is, the head's first and in their order; 0, which is a head's place, for none.
    let mut next = vec![0u32; views.len()];
    for (at, view) in views.iter().enumerate().rev() {
        if let Some(head) = view.twin {
            let head = head.get() as usize - 1;
            (next[at], next[head]) = (next[head], at as u32);
            *duplicates += 1;
        }
    }
    for (at, view) in views.iter().enumerate().filter(|(_, view)| view.twin.is_none()) {
        if next[at] == 0 {
            out.push(orient(view, ours));
            continue;
        }
        let others = std::iter::successors(Some(next[at] as usize), |&at| Some(next[at] as usize));
        let others = others.take_while(|&at| at != 0).map(|at| &views[at]);
        out.push(orient(&speaker(view, others, &name), ours));
    }
}

fn speaker<'a, 'b>(
    first: &View,
    others: impl Iterator<Item = &'a View>,
    name: impl Fn(InterfaceId) -> &'b str,
) -> View {
    let (mut speaker, mut most) = (*first, weight(first));
    for view in others {
        // Equals are told apart by name: numbers are given in order of arrival.
        let order = weight(view).cmp(&most).then_with(|| name(speaker.interface).cmp(name(view.interface)));
        if order == Ordering::Greater {
            (speaker.interface, most) = (view.interface, weight(view));
        }
        speaker.up.join(&view.up);
        speaker.down.join(&view.down);
    }
    speaker
}

/// Who speaks for a conversation: an end of it before an intermediary, then who saw the most.
fn weight(view: &View) -> (bool, u64) {
    (!view.is_translated(), u64::from(view.up.packets) + u64::from(view.down.packets))
}

/// Decides who opened a conversation. In order: SYN without ACK (where flags are logged); a well-known port against
/// one that is not; who was seen first; the higher rank of port; the lower port. Of two equal ports the end that is ours
/// opens. Without ports, see [`low_asked`].
fn orient(view: &View, is_ours: impl Fn(Address) -> bool) -> Conversation {
    let (low_ours, high_ours) = (is_ours(view.low), is_ours(view.high));
    let low_opens = match (view.up.seen(), view.down.seen()) {
        (true, true) if has_ports(view.protocol) => low_opened(view, low_ours, high_ours),
        (true, true) => low_asked(view, low_ours, high_ours),
        (up, _) => up,
    };
    let (ours, theirs) = if low_opens { (low_ours, high_ours) } else { (high_ours, low_ours) };
    let (opener, responder, opener_port, port, sent, received) = if low_opens {
        (view.low, view.high, view.low_port, view.high_port, view.up, view.down)
    } else {
        (view.high, view.low, view.high_port, view.low_port, view.down, view.up)
    };
    let mut conversation = Conversation {
        opener,
        responder,
        sent,
        received,
        interface: view.interface,
        opener_port,
        port,
        protocol: view.protocol,
        outcome: Outcome::Answered,
        ours,
        theirs,
    };
    conversation.outcome = outcome(&conversation);
    conversation
}

/// TCP, UDP, SCTP and DCCP; every other protocol's ports are 0 in a flow log.
pub fn has_ports(number: u8) -> bool {
    matches!(number, protocol::TCP | protocol::UDP | 33 | 132)
}

/// Who asks, where no port tells: ICMP and tunnels. A request has one answer at most, so that whoever sends more asks, by a tenth
/// at least, since both directions are cut into windows at their own seconds. What is answered one for one is a ping in either
/// direction: in a flood an outsider asks, for an outsider's answers to a flood of ours would be limited (RFC 4443, 2.4); else
/// whoever was seen first.
fn low_asked(view: &View, low_ours: bool, high_ours: bool) -> bool {
    /// More than a few monitors' pings a minute.
    const FLOOD: u64 = 1_000;
    let (up, down) = (u64::from(view.up.packets), u64::from(view.down.packets));
    if 10 * up.max(down) >= 11 * up.min(down) {
        return up > down;
    }
    if up.max(down) >= FLOOD && low_ours != high_ours {
        return high_ours;
    }
    if view.up.start != view.down.start {
        return view.up.start < view.down.start;
    }
    low_ours >= high_ours
}

fn low_opened(view: &View, low_ours: bool, high_ours: bool) -> bool {
    let opens =
        |d: &Direction| d.has(Marks::FLAGS_KNOWN) && d.flags & tcp_flags::SYN != 0 && d.flags & tcp_flags::ACK == 0;
    match (opens(&view.up), opens(&view.down)) {
        (true, false) => return true,
        (false, true) => return false,
        _ => {}
    }
    let (low, high) = (port_rank(view.low_port), port_rank(view.high_port));
    if low != high && low.min(high) == 0 {
        return low > high;
    }
    if view.up.start != view.down.start {
        return view.up.start < view.down.start;
    }
    if view.low_port == view.high_port {
        return low_ours >= high_ours;
    }
    (low, view.low_port) > (high, view.high_port)
}

fn outcome(c: &Conversation) -> Outcome {
    if c.sent.has(Marks::REJECTED) || c.received.has(Marks::REJECTED) {
        return if answers_nothing(c) { Outcome::Backscatter } else { Outcome::Refused };
    }
    if !c.received.seen() {
        return if answers_nothing(c) { Outcome::Backscatter } else { Outcome::Unanswered };
    }
    if c.protocol == protocol::TCP && reset_only(c) { Outcome::Refused } else { Outcome::Answered }
}

/// Whether it may be a piece of a session that was opened before: nothing in it opens one. What was refused is an attempt.
pub fn may_go_on(c: &Conversation) -> bool {
    let opens = c.sent.has(Marks::FLAGS_KNOWN) && c.sent.flags & tcp_flags::SYN != 0;
    c.protocol == protocol::TCP && c.outcome == Outcome::Unanswered && !opens
}

/// One direction only, from a service port to an ephemeral one, or (flags known) without any SYN of its own. A port that is no
/// registered service but below all ephemeral ranges speaks to an ephemeral port as a server does: what a session's last
/// packets look like in a window of their own (RFC 6335 puts dynamic ports at 49152 and up, Linux from 32768; scanners
/// send from there as well). What was refused was an attempt: Windows XP opened from 1025 to 5000.
fn answers_nothing(c: &Conversation) -> bool {
    if c.received.seen() || c.protocol != protocol::TCP && c.protocol != protocol::UDP {
        return false;
    }
    if c.protocol == protocol::TCP && c.sent.has(Marks::FLAGS_KNOWN) && c.sent.flags != 0 {
        let (syn, ack, rst) =
            (c.sent.flags & tcp_flags::SYN, c.sent.flags & tcp_flags::ACK, c.sent.flags & tcp_flags::RST);
        if syn != 0 || rst != 0 {
            return syn == 0 || ack != 0;
        }
        // A FIN alone is the end of a session, or a scan with such packets: ports tell.
    }
    match port_rank(c.opener_port) {
        0 => port_rank(c.port) > 0,
        1 => port_rank(c.port) > 1 && !c.sent.has(Marks::REJECTED),
        _ => false,
    }
}

/// A reset has no options, so it is a bare header; a SYN-ACK carries at least the maximum segment size (RFC 9293, 3.7.1).
fn reset_only(c: &Conversation) -> bool {
    if c.received.has(Marks::FLAGS_KNOWN) && c.received.flags != 0 {
        return c.received.flags & tcp_flags::RST != 0 && c.received.flags & tcp_flags::SYN == 0 && c.is_probe();
    }
    let header = if c.opener.as_v4().is_some() { 40 } else { 60 };
    c.is_probe() && c.received.packets <= c.sent.packets && c.received.bytes <= header * u64::from(c.received.packets)
}

#[cfg(test)]
pub(super) mod tests;
