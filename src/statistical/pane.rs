//! One open tumbling window: records fold into conversations, in any order.
//!
//! Nothing long-lived is touched before a window closes. That makes the order of records inside the lateness
//! irrelevant by construction (every field below is a sum, a minimum, a maximum or a union), lets two directions of a
//! five-tuple meet before anyone judges them, and turns the many scattered updates of a record into one.

use std::hash::{BuildHasher, Hasher};

use hashbrown::HashTable;
use serde::{Deserialize, Serialize};

use crate::flow::{Address, EventTime, FlowRecord, InterfaceId, Marks};

/// One direction of a conversation, as one interface saw it in one window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Direction {
    /// IP bytes.
    pub bytes: u64,
    /// Packets; 2^32 a minute are beyond any interface, more are held at the maximum.
    pub packets: u32,
    /// First packet; `u32::MAX` while nothing was seen.
    pub start: u32,
    /// Last packet.
    pub end: u32,
    /// OR of the TCP flags, where known.
    pub flags: u8,
    /// OR of the records' [`Marks`].
    pub marks: u8,
}

impl Direction {
    const NONE: Direction = Direction { bytes: 0, packets: 0, start: u32::MAX, end: 0, flags: 0, marks: 0 };

    /// Whether any record of this direction was seen.
    pub fn seen(&self) -> bool {
        self.start != u32::MAX
    }

    fn fold(&mut self, record: &FlowRecord) {
        self.bytes = self.bytes.saturating_add(record.bytes);
        self.packets = self.packets.saturating_add(u32::try_from(record.packets).unwrap_or(u32::MAX));
        self.start = self.start.min(record.start.0);
        self.end = self.end.max(record.end.0);
        self.flags |= record.tcp_flags;
        self.marks |= record.marks.0;
    }

    /// Whether a mark was seen on any record.
    pub fn has(&self, mark: Marks) -> bool {
        Marks(self.marks).has(mark)
    }
}

/// Both directions of one five-tuple in one window, as one interface saw them. Ends are in the order of (address,
/// port), so that both directions find the same entry; who opened it is decided at close.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The lower end.
    pub low: Address,
    /// The higher end.
    pub high: Address,
    /// From low to high.
    pub up: Direction,
    /// From high to low.
    pub down: Direction,
    /// Who saw it.
    pub interface: InterfaceId,
    /// The port of `low`.
    pub low_port: u16,
    /// The port of `high`.
    pub high_port: u16,
    /// IANA number.
    pub protocol: u8,
}

impl View {
    /// The same five-tuple, whoever saw it.
    pub fn same_tuple(&self, other: &View) -> bool {
        self.low == other.low
            && self.high == other.high
            && self.low_port == other.low_port
            && self.high_port == other.high_port
            && self.protocol == other.protocol
    }
}

/// An open window.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pane {
    /// First second.
    pub start: EventTime,
    /// Every (five-tuple, interface) seen.
    pub views: Vec<View>,
    #[serde(skip)]
    index: HashTable<u32>,
    /// How many of the views had been looked at by the last provisional judgement.
    pub peeked: u32,
}

impl Pane {
    /// An empty window.
    pub fn new(start: EventTime) -> Pane {
        Pane { start, views: Vec::new(), index: HashTable::new(), peeked: 0 }
    }

    /// Makes the window ready for use again after it was read from a snapshot.
    pub fn reindex(&mut self, seed: &foldhash::fast::FixedState) {
        let views = &self.views;
        self.index = HashTable::with_capacity(views.len());
        for (at, view) in views.iter().enumerate() {
            let hash =
                hash_tuple(seed, view.low, view.high, view.low_port, view.high_port, view.protocol, view.interface);
            self.index.insert_unique(hash, at as u32, |&other| hash_view(seed, &views[other as usize]));
        }
    }

    /// Empties the window for another span, keeping its memory.
    pub fn reset(&mut self, start: EventTime) {
        self.start = start;
        self.views.clear();
        self.index.clear();
        self.peeked = 0;
    }

    /// Where a record's view would be looked for, to be fetched ahead of [`Pane::fold`].
    #[inline]
    pub fn hash(&self, seed: &foldhash::fast::FixedState, record: &FlowRecord) -> u64 {
        let (low, high, low_port, high_port, _) = ends(record);
        hash_tuple(seed, low, high, low_port, high_port, record.protocol, record.interface)
    }

    /// Folds one record whose [`Pane::hash`] is known.
    #[inline]
    pub fn fold(&mut self, seed: &foldhash::fast::FixedState, hash: u64, record: &FlowRecord) {
        let (low, high, low_port, high_port, upward) = ends(record);
        let views = &mut self.views;
        let found = self.index.find(hash, |&at| {
            let view = &views[at as usize];
            view.low == low
                && view.high == high
                && view.low_port == low_port
                && view.high_port == high_port
                && view.protocol == record.protocol
                && view.interface == record.interface
        });
        let at = match found {
            Some(&at) => at as usize,
            None => {
                let at = views.len();
                views.push(View {
                    low,
                    high,
                    up: Direction::NONE,
                    down: Direction::NONE,
                    interface: record.interface,
                    low_port,
                    high_port,
                    protocol: record.protocol,
                });
                self.index.insert_unique(hash, at as u32, |&other| hash_view(seed, &views[other as usize]));
                at
            }
        };
        let view = &mut views[at];
        if upward { view.up.fold(record) } else { view.down.fold(record) }
    }
}

/// A record's ends in canonical order, and whether it goes from low to high.
#[inline]
fn ends(record: &FlowRecord) -> (Address, Address, u16, u16, bool) {
    let from = (record.source, record.source_port);
    let to = (record.destination, record.destination_port);
    if from <= to { (from.0, to.0, from.1, to.1, true) } else { (to.0, from.0, to.1, from.1, false) }
}

#[inline]
fn hash_tuple(
    seed: &foldhash::fast::FixedState,
    low: Address,
    high: Address,
    low_port: u16,
    high_port: u16,
    protocol: u8,
    interface: InterfaceId,
) -> u64 {
    let mut hasher = seed.build_hasher();
    hasher.write_u128(low.bits());
    hasher.write_u128(high.bits());
    hasher.write_u64(
        u64::from(low_port) << 48 | u64::from(high_port) << 32 | u64::from(protocol) << 24 ^ u64::from(interface.0),
    );
    hasher.finish()
}

fn hash_view(seed: &foldhash::fast::FixedState, view: &View) -> u64 {
    hash_tuple(seed, view.low, view.high, view.low_port, view.high_port, view.protocol, view.interface)
}
