//! One open tumbling window: records fold into conversations, in any order.
//!
//! Nothing long-lived is touched before a window closes. That makes the order of records inside the lateness
//! irrelevant by construction (every field below is a sum, a minimum, a maximum or a union), lets two directions of a
//! five-tuple meet before anyone judges them, and turns the many scattered updates of a record into one.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, Hasher};
use std::num::NonZeroU32;

use hashbrown::HashSet;
use serde::{Deserialize, Serialize};

use super::Map;
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

    /// Two sightings of one direction: the fuller one counts, times and facts join.
    pub fn join(&mut self, other: &Direction) {
        if (other.packets, other.bytes) > (self.packets, self.bytes) {
            (self.packets, self.bytes) = (other.packets, other.bytes);
        }
        (self.start, self.end) = (self.start.min(other.start), self.end.max(other.end));
        self.flags |= other.flags;
        self.marks |= other.marks;
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
    /// What tells the first record of either direction, so that the same one is not counted twice; 0 for none.
    pub first: [u32; 2],
    /// Who saw it.
    pub interface: InterfaceId,
    /// The place of the window's first view of the same five-tuple, when another interface saw it before.
    pub twin: Option<NonZeroU32>,
    /// The port of `low`.
    pub low_port: u16,
    /// The port of `high`.
    pub high_port: u16,
    /// IANA number.
    pub protocol: u8,
}

/// A record's five-tuple in canonical order.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Tuple {
    low: Address,
    high: Address,
    low_port: u16,
    high_port: u16,
    protocol: u8,
}

impl Tuple {
    /// The five-tuple of a record, and whether the record goes from low to high.
    #[inline]
    fn of(record: &FlowRecord) -> (Tuple, bool) {
        let (from, to) = (record.source.bits(), record.destination.bits());
        let upward = from < to || from == to && record.source_port <= record.destination_port;
        // Which way a record goes is a coin toss, so it is not branched on.
        let (swap, swap_ports) =
            if upward { (0, 0) } else { (from ^ to, record.source_port ^ record.destination_port) };
        let tuple = Tuple {
            low: Address::from_bits(from ^ swap),
            high: Address::from_bits(to ^ swap),
            low_port: record.source_port ^ swap_ports,
            high_port: record.destination_port ^ swap_ports,
            protocol: record.protocol,
        };
        (tuple, upward)
    }

    #[inline]
    fn hash(&self, seed: &foldhash::fast::FixedState) -> u64 {
        let mut hasher = seed.build_hasher();
        hasher.write_u128(self.low.bits());
        hasher.write_u128(self.high.bits());
        hasher.write_u64(u64::from(self.low_port) << 32 | u64::from(self.high_port) << 16 | u64::from(self.protocol));
        hasher.finish()
    }
}

impl View {
    /// Whether an intermediary logged it, with the packets' own addresses.
    pub fn is_translated(&self) -> bool {
        Marks(self.up.marks | self.down.marks).has(Marks::INTERMEDIARY)
    }

    #[inline]
    fn tuple(&self) -> Tuple {
        let View { low, high, low_port, high_port, protocol, .. } = *self;
        Tuple { low, high, low_port, high_port, protocol }
    }
}

/// An open window.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Pane {
    /// First second.
    pub start: EventTime,
    /// Every (five-tuple, interface) seen.
    pub views: Vec<View>,
    #[serde(skip)]
    index: Index,
    /// How many of the views had been looked at by the last provisional judgement.
    pub peeked: u32,
    /// Addresses with so many conversations that no more are taken in, once room is short.
    crowded: BTreeSet<Address>,
    /// How many views there were when `crowded` was made.
    crowded_at: u32,
    /// Records of crowded addresses that were left out.
    pub left_out: u64,
    /// Records that were there already: a flow log on the VPC beside one on its subnet writes every record twice, and a
    /// stream may deliver one again.
    pub repeated: u64,
    /// Of directions with several records, the second and later ones: where, which way, and what tells it.
    later: HashSet<u64, foldhash::fast::FixedState>,
}

impl Pane {
    /// Makes the window ready for use again after it was read from a snapshot.
    pub fn reindex(&mut self, seed: &foldhash::fast::FixedState) {
        self.index.clear(self.views.len());
        for (at, view) in self.views.iter().enumerate() {
            self.index.insert(view.tuple().hash(seed), at);
        }
    }

    /// Empties the window, for another span. It keeps as much memory as a window of four times the size needs.
    pub fn clear(&mut self) {
        self.index.clear(self.views.len());
        let used = self.views.len();
        self.views.clear();
        self.views.shrink_to(4 * used);
        self.crowded.clear();
        self.later.clear();
        (self.peeked, self.crowded_at, self.left_out, self.repeated) = (0, 0, 0, 0);
    }

    /// Takes in what another engine has of the same window; `rename` gives its interfaces their numbers here.
    pub fn join(
        &mut self,
        seed: &foldhash::fast::FixedState,
        other: &Pane,
        rename: impl Fn(InterfaceId) -> InterfaceId,
    ) {
        for theirs in &other.views {
            let (tuple, interface) = (theirs.tuple(), rename(theirs.interface));
            let hash = tuple.hash(seed);
            match self.find(hash, &tuple, interface) {
                (Some(at), _) => {
                    self.views[at].up.join(&theirs.up);
                    self.views[at].down.join(&theirs.down);
                }
                (None, head) => {
                    self.index.insert(hash, self.views.len());
                    self.views.push(View { interface, twin: twin_of(head), ..*theirs });
                }
            }
        }
        self.peeked = 0;
        self.crowded.extend(&other.crowded);
        self.crowded_at = self.crowded_at.max(other.crowded_at);
        self.left_out = self.left_out.max(other.left_out);
        self.repeated = self.repeated.max(other.repeated);
    }

    /// The place of a view, or else of the first one of the same five-tuple.
    #[inline]
    fn find(&self, hash: u64, tuple: &Tuple, interface: InterfaceId) -> (Option<usize>, Option<usize>) {
        let views = &self.views;
        let mut twin = None;
        let found = self.index.find(hash, |at| {
            let view = &views[at];
            let same = view.tuple() == *tuple;
            let it = same && view.interface == interface;
            if same && !it && twin.is_none() {
                twin = Some(view.twin.map_or(at, |head| head.get() as usize - 1));
            }
            it
        });
        (found, twin)
    }

    /// Room is short: addresses with at least `least` conversations get no more of them in this window. A flood has told
    /// by then what there is to tell, and the others' conversations are kept whole.
    pub fn close_to_crowds(&mut self, least: u32) {
        let grown = self.views.len() as u32 > self.crowded_at + least;
        if !grown {
            return;
        }
        let mut conversations: Map<Address, u32> = Map::default();
        for end in self.views.iter().flat_map(|view| [view.low, view.high]) {
            *conversations.entry(end).or_default() += 1;
        }
        self.crowded = conversations.into_iter().filter(|&(_, n)| n >= least).map(|(address, _)| address).collect();
        self.crowded_at = self.views.len() as u32;
    }

    fn is_crowded(&self, tuple: &Tuple) -> bool {
        !self.crowded.is_empty() && (self.crowded.contains(&tuple.low) || self.crowded.contains(&tuple.high))
    }

    /// First step of three: where a record belongs, with its slot of the index on the way into the cache.
    #[inline]
    pub fn prepare<'a>(&self, seed: &foldhash::fast::FixedState, record: &'a FlowRecord) -> Prepared<'a> {
        let (tuple, upward) = Tuple::of(record);
        let hash = tuple.hash(seed);
        self.index.prefetch(hash);
        Prepared { tuple, hash, record, upward }
    }

    /// Second step: the view, if there is one, on its way into the cache.
    #[inline]
    pub fn approach(&self, prepared: &Prepared<'_>) {
        if let Some(at) = self.index.candidate(prepared.hash) {
            let view = self.views.as_ptr().wrapping_add(at);
            prefetch(view);
            prefetch(view.wrapping_byte_add(64));
        }
    }

    /// Third step: folds the record.
    #[inline]
    pub fn fold(&mut self, prepared: &Prepared<'_>) {
        let Prepared { tuple, hash, record, upward } = prepared;
        let at = match self.find(*hash, tuple, record.interface) {
            (Some(at), _) => at,
            (None, _) if self.is_crowded(tuple) => {
                self.left_out += 1;
                return;
            }
            (None, head) => {
                let at = self.views.len();
                self.views.push(View {
                    low: tuple.low,
                    high: tuple.high,
                    up: Direction::NONE,
                    down: Direction::NONE,
                    first: [0; 2],
                    interface: record.interface,
                    twin: twin_of(head),
                    low_port: tuple.low_port,
                    high_port: tuple.high_port,
                    protocol: tuple.protocol,
                });
                self.index.insert(*hash, at);
                at
            }
        };
        let view = &mut self.views[at];
        let direction = if *upward { &mut view.up } else { &mut view.down };
        let (first, signature) = (&mut view.first[usize::from(*upward)], signature(record));
        if *first == 0 {
            *first = signature;
        } else if !is_new(&mut self.later, *first, at, *upward, signature) {
            // Another format of the same record may know more of it.
            direction.flags |= record.tcp_flags;
            direction.marks |= record.marks.0;
            self.repeated += 1;
            return;
        }
        direction.fold(record);
    }
}

/// Tells a record from others of the same interface, five-tuple and direction; never 0. What one format of the record has and
/// another has not (flags, direction) is left out.
#[inline]
fn signature(record: &FlowRecord) -> u32 {
    let times = u64::from(record.start.0) << 32 | u64::from(record.end.0);
    let rejected = u64::from(record.marks.has(Marks::REJECTED));
    // Odd constants of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), as a cheap mixing of four numbers.
    let mixed = times.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        ^ (record.bytes << 1 | rejected).wrapping_mul(0xbf58_476d_1ce4_e5b9)
        ^ record.packets.wrapping_mul(0x94d0_49bb_1331_11eb);
    (mixed >> 32) as u32 | 1
}

/// Whether a direction's second or later record was not there before.
#[cold]
fn is_new(
    later: &mut HashSet<u64, foldhash::fast::FixedState>,
    first: u32,
    at: usize,
    upward: bool,
    signature: u32,
) -> bool {
    // Where more records than this are second ones of their window, the log is none of an interface.
    const LATER_MAX: usize = 4_000_000;
    let place = (at as u64) << 33 | u64::from(upward) << 32 | u64::from(signature);
    first != signature && (later.len() >= LATER_MAX || later.insert(place))
}

/// A place as [`View::twin`] has it.
fn twin_of(head: Option<usize>) -> Option<NonZeroU32> {
    head.and_then(|head| NonZeroU32::new(head as u32 + 1))
}

/// A record on its way into a window.
#[derive(Clone, Copy)]
pub struct Prepared<'a> {
    tuple: Tuple,
    hash: u64,
    record: &'a FlowRecord,
    upward: bool,
}

/// Where views are, by the hash of their five-tuple: open addressing over one word an entry, so that a record costs one
/// look at the index and one at its view, both fetched ahead. The library's table gives no way to fetch ahead.
#[derive(Clone, Debug, Default)]
struct Index {
    /// Upper half of the hash, and the place plus one; 0 is empty. A power of two of them, at most half full.
    slots: Vec<u64>,
    used: usize,
}

impl Index {
    const LEAST: usize = 1 << 10;

    /// Empties the index, with room for `expected` entries.
    fn clear(&mut self, expected: usize) {
        let size = (4 * expected).next_power_of_two().max(Index::LEAST);
        if self.slots.len() > size {
            self.slots.truncate(size);
            self.slots.shrink_to_fit();
        }
        self.slots.fill(0);
        self.slots.resize(size, 0);
        self.used = 0;
    }

    #[inline]
    fn start(&self, hash: u64) -> usize {
        (hash >> 32) as usize & self.slots.len().wrapping_sub(1)
    }

    #[inline]
    fn prefetch(&self, hash: u64) {
        prefetch(self.slots.as_ptr().wrapping_add(self.start(hash)));
    }

    /// The first entry that may be the one.
    #[inline]
    fn candidate(&self, hash: u64) -> Option<usize> {
        let slot = *self.slots.get(self.start(hash))?;
        (slot != 0 && slot >> 32 == hash >> 32).then(|| (slot as u32 - 1) as usize)
    }

    /// The first entry of this hash that `is` says yes to, in order of insertion.
    #[inline]
    fn find(&self, hash: u64, mut is: impl FnMut(usize) -> bool) -> Option<usize> {
        let mut at = self.start(hash);
        loop {
            let slot = *self.slots.get(at)?;
            if slot == 0 {
                return None;
            }
            let place = (slot as u32).wrapping_sub(1) as usize;
            if slot >> 32 == hash >> 32 && is(place) {
                return Some(place);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    fn insert(&mut self, hash: u64, place: usize) {
        if 2 * self.used >= self.slots.len() {
            self.grow();
        }
        self.put((hash >> 32) << 32 | (place as u64 + 1));
        self.used += 1;
    }

    fn put(&mut self, entry: u64) {
        let mask = self.slots.len() - 1;
        let mut at = (entry >> 32) as usize & mask;
        while self.slots[at] != 0 {
            at = (at + 1) & mask;
        }
        self.slots[at] = entry;
    }

    /// Entries go over in the order of their places, so that those of one hash stay in order.
    #[cold]
    fn grow(&mut self) {
        let larger = vec![0; (2 * self.slots.len()).max(Index::LEAST)];
        let mut entries = std::mem::replace(&mut self.slots, larger);
        entries.retain(|&entry| entry != 0);
        entries.sort_unstable_by_key(|&entry| entry as u32);
        for entry in entries {
            self.put(entry);
        }
    }
}

/// Asks for a cache line that is needed soon; a hint that may point anywhere.
#[inline]
pub(super) fn prefetch<T>(at: *const T) {
    crate::flow::simd::hints::prefetch(at);
}

#[cfg(test)]
mod tests;
