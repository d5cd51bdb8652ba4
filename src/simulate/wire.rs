//! The wire: sessions go in, the flow records of every interface that sees them come out, second by second.
//!
//! Nothing is sorted. What must happen at a later second waits in that second's bucket: the next aggregation window of a
//! long session, a process that will act again, a record that is due. Memory is bounded by what is open at one moment.

use std::collections::BTreeMap;

use super::labels::{Truth, TruthId};
use super::session::{Millis, Outcome, Party, Session, Talk, Tally};
use super::vpc::Vpc;
use crate::flow::{Address, EventTime, FlowRecord, InterfaceId, Marks, protocol, tcp_flags};
use crate::random::{Random, mix};

/// Length of the aggregation windows, s: what interfaces of Nitro instances have, and the shortest that can be asked for.
pub const AGGREGATION_SECONDS: u32 = 60;

/// How many seconds ahead a bucket can lie; what is later waits in an ordered map. A power of two.
const RING: usize = 1024;

/// The longest delay of a record, s: it must lie within the ring, with a window's length to spare.
pub const SHUFFLE_MAX: u32 = 900;

/// Buckets by second: a ring for the near future, an ordered map for the rest.
#[derive(Debug)]
pub struct Buckets<T> {
    ring: Vec<Vec<T>>,
    later: BTreeMap<u32, Vec<T>>,
    now: u32,
}

impl<T> Buckets<T> {
    fn new() -> Buckets<T> {
        Buckets { ring: std::iter::repeat_with(Vec::new).take(RING).collect(), later: BTreeMap::new(), now: 0 }
    }

    /// Puts an item into the bucket of `second`; what is past goes into the current one.
    pub fn put(&mut self, second: u32, item: T) {
        let second = second.max(self.now);
        if second - self.now < RING as u32 {
            self.ring[second as usize % RING].push(item);
        } else {
            self.later.entry(second).or_default().push(item);
        }
    }

    /// The items of the current second. Calls for one second may be repeated while items are still being put there.
    fn take(&mut self) -> Vec<T> {
        let mut items = std::mem::take(&mut self.ring[self.now as usize % RING]);
        while let Some(entry) = self.later.first_entry() {
            if *entry.key() > self.now {
                break;
            }
            items.append(&mut entry.remove());
        }
        items
    }

    fn is_empty(&self) -> bool {
        self.later.is_empty() && self.ring.iter().all(Vec::is_empty)
    }
}

/// What waits for its second.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A process acts.
    Fire(u32),
    /// A long session's next aggregation window at one of its taps begins.
    Cut {
        /// Which session.
        session: u32,
        /// Which of its taps.
        tap: u8,
    },
}

/// A record that is due, with the truth row that it belongs to (0: benign).
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// The record.
    pub record: FlowRecord,
    /// Its row.
    pub truth: u16,
}

/// How an interface sees a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum View {
    /// As the opener.
    Client,
    /// As the one called.
    Server,
    /// A NAT gateway, on the side of the private host.
    NatInside,
    /// A NAT gateway, on the side of the internet: its own address and port stand for the host's.
    NatOutside,
}

#[derive(Clone, Copy, Debug)]
struct Tap {
    host: u32,
    view: View,
}

#[derive(Debug)]
struct Live {
    session: Session,
    taps: [Option<Tap>; 4],
    open: u8,
}

/// Everything between the sessions and the records.
#[derive(Debug)]
pub struct Wire {
    /// The hosts.
    pub vpc: Vpc,
    /// What is to happen.
    pub events: Buckets<Event>,
    /// The rows of the truth so far.
    pub truths: Vec<Truth>,
    origin: u32,
    seconds: u32,
    shuffle: u32,
    delays: Random,
    due: Buckets<Due>,
    live: Vec<Option<Live>>,
    free: Vec<u32>,
}

impl Wire {
    /// A quiet wire for `seconds` from `start`, whose records come up to `shuffle` seconds late.
    pub fn new(vpc: Vpc, seed: u64, start: EventTime, seconds: u32, shuffle: u32) -> Wire {
        Wire {
            vpc,
            events: Buckets::new(),
            truths: Vec::new(),
            origin: start.0,
            seconds,
            shuffle: shuffle.min(SHUFFLE_MAX),
            delays: Random::new(seed, "delays", 0),
            due: Buckets::new(),
            live: Vec::new(),
            free: Vec::new(),
        }
    }

    /// The second that is being simulated.
    pub fn now(&self) -> u32 {
        self.events.now
    }

    /// How long the simulation is, s.
    pub fn seconds(&self) -> u32 {
        self.seconds
    }

    /// The simulation's beginning in event time.
    pub fn origin(&self) -> EventTime {
        EventTime(self.origin)
    }

    /// Adds a row to the truth; it is kept in the labels if records of it appear.
    pub fn state(&mut self, truth: Truth) -> TruthId {
        self.truths.push(truth);
        self.truths.len() as TruthId
    }

    /// Puts a session on the wire. It may have begun in the past (what lies before the simulation is not logged) or lie
    /// in the future.
    pub fn open(&mut self, session: Session) {
        let taps = self.taps(&session);
        if session.truth > 0 {
            self.truths[session.truth as usize - 1].sessions += 1;
        }
        let mut waiting: Option<u32> = None;
        for (number, tap) in taps.iter().enumerate() {
            let Some(tap) = *tap else { continue };
            let Some(next) = self.cut(&session, tap, session.start) else { continue };
            let index = *waiting.get_or_insert_with(|| match self.free.pop() {
                Some(index) => index,
                None => {
                    self.live.push(None);
                    self.live.len() as u32 - 1
                }
            });
            self.events.put(next, Event::Cut { session: index, tap: number as u8 });
            self.live[index as usize].get_or_insert_with(|| Live { session: session.clone(), taps, open: 0 }).open += 1;
        }
    }

    /// The events of this second.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.take()
    }

    /// Logs the window of a long session that begins now, and waits for the next.
    pub fn resume(&mut self, index: u32, tap: u8) {
        let Some(live) = self.live[index as usize].take() else { return };
        let at = Millis::from(self.now()) * 1000;
        let next = live.taps[tap as usize].and_then(|seen| self.cut(&live.session, seen, at));
        let still_open = live.open - u8::from(next.is_none());
        if let Some(next) = next {
            self.events.put(next, Event::Cut { session: index, tap });
        }
        if still_open > 0 {
            self.live[index as usize] = Some(Live { open: still_open, ..live });
        } else {
            self.free.push(index);
        }
    }

    /// Ends this second: its records, and the clock moves on. `None` when everything is over.
    pub fn finish_second(&mut self) -> Option<Vec<Due>> {
        if self.now() >= self.seconds && self.due.is_empty() {
            return None;
        }
        let due = self.due.take();
        self.due.now += 1;
        self.events.now += 1;
        Some(due)
    }

    /// Which interfaces log a session.
    fn taps(&self, session: &Session) -> [Option<Tap>; 4] {
        let mut taps = [None; 4];
        if session.client.is_ours() {
            taps[0] = Some(Tap { host: session.client.host, view: View::Client });
            if !session.server.is_ours()
                && let Some(nat) = self.vpc.nat_between(session.client.host, session.server.address)
            {
                taps[2] = Some(Tap { host: nat, view: View::NatInside });
                taps[3] = Some(Tap { host: nat, view: View::NatOutside });
            }
        }
        if session.server.is_ours() {
            taps[1] = Some(Tap { host: session.server.host, view: View::Server });
        }
        taps
    }

    /// Logs the aggregation window that holds `from` at one tap, and says at which second the next one begins, if the
    /// session still has packets then.
    fn cut(&mut self, session: &Session, tap: Tap, from: Millis) -> Option<u32> {
        let over = (Millis::from(self.seconds) * 1000).min(session.end());
        let now = Millis::from(self.now()) * 1000;
        let from = from.max(session.start).max(now);
        if from >= over {
            return None;
        }
        if from >= now + 1000 {
            return Some((from / 1000) as u32);
        }
        let phase = Millis::from(self.vpc.hosts[tap.host as usize].phase) * 1000;
        let window = Millis::from(AGGREGATION_SECONDS) * 1000;
        let until = from + window - (from - phase).rem_euclid(window);
        let (out, back) = session.tally(from, until.min(over));
        self.log(session, tap, out, back);
        (until < over).then_some((until / 1000) as u32)
    }

    fn log(&mut self, session: &Session, tap: Tap, out: Tally, back: Tally) {
        let rejected_here = session.outcome == Outcome::Rejected && tap.view == View::Server;
        let mut record = FlowRecord {
            source: session.client.address,
            destination: session.server.address,
            source_port: session.client_port,
            destination_port: session.server_port,
            protocol: session.protocol,
            interface: InterfaceId(tap.host + 1),
            marks: Marks::FLAGS_KNOWN,
            ..FlowRecord::default()
        };
        if tap.view == View::NatOutside {
            record.source = self.vpc.hosts[tap.host as usize].address;
            record.source_port = nat_port(session);
        }
        if tap.view == View::NatInside {
            record.marks = record.marks.with(Marks::INTERMEDIARY);
        }
        let leaves = matches!(tap.view, View::Client | View::NatOutside);
        let reply = FlowRecord {
            source: record.destination,
            destination: record.source,
            source_port: record.destination_port,
            destination_port: record.source_port,
            marks: record.marks.with(if leaves { Marks::INGRESS } else { Marks::EGRESS }),
            ..record
        };
        record.marks = record.marks.with(if leaves { Marks::EGRESS } else { Marks::INGRESS });
        if rejected_here {
            record.marks = record.marks.with(Marks::REJECTED);
        }
        self.push(session, record, out, true);
        if matches!(session.outcome, Outcome::Answered | Outcome::Refused) {
            self.push(session, reply, back, false);
        }
    }

    fn push(&mut self, session: &Session, mut record: FlowRecord, tally: Tally, is_out: bool) {
        if tally.volume.packets == 0 {
            return;
        }
        let to_aws = super::vpc::aws_service(record.destination).is_some();
        let from_aws = super::vpc::aws_service(record.source).is_some();
        record.marks = record.marks.with(Marks(if to_aws { Marks::TO_AWS_SERVICE.0 } else { 0 }));
        record.marks = record.marks.with(Marks(if from_aws { Marks::FROM_AWS_SERVICE.0 } else { 0 }));
        record.packets = tally.volume.packets;
        record.bytes = tally.volume.bytes;
        record.start = EventTime(self.origin + (tally.first / 1000) as u32);
        record.end = EventTime(self.origin + (tally.last / 1000) as u32);
        if session.protocol == protocol::TCP {
            record.tcp_flags = flags(session, tally, is_out);
        }
        let delay = if self.shuffle == 0 { 0 } else { self.delays.below(self.shuffle as usize + 1) as u32 };
        self.due.put((tally.last / 1000) as u32 + delay, Due { record, truth: session.truth });
    }
}

/// The flags as flow logs OR them: SYN (SYN-ACK in the answer) where the connection opens, FIN where it closes.
fn flags(session: &Session, tally: Tally, is_out: bool) -> u8 {
    match (session.outcome, is_out) {
        (Outcome::Refused, false) => return tcp_flags::RST,
        (Outcome::Answered, _) => {}
        _ => return tcp_flags::SYN,
    }
    // A lone SYN of a flood is answered, but neither side goes on.
    let is_half_open = matches!(&session.talk, Talk::Brief { out, back } if out.packets <= 1 && back.packets > 0);
    let mut flags = 0;
    if tally.first == session.start {
        flags |= if is_out { tcp_flags::SYN } else { tcp_flags::SYN | tcp_flags::ACK };
    }
    if !is_half_open && session.outcome == Outcome::Answered && tally.last + 1000 >= session.end() {
        flags |= tcp_flags::FIN;
    }
    flags
}

/// The port that the gateway puts in the place of the host's (its range is 1024 to 65535).
fn nat_port(session: &Session) -> u16 {
    let Party { address: Address { .. }, host } = session.client;
    1024 + (mix(session.seed ^ u64::from(host) << 32 ^ u64::from(session.client_port)) % 64_512) as u16
}
