//! Files as one stream in the order of event time.
//!
//! A flow log comes in many files: one for each five minutes and writer (S3), one for each interface (CloudWatch export), or cut
//! in whatever way somebody had in mind. Read one after another, most of their records would come long after their windows have
//! closed. So the files whose times overlap are read side by side, a little of each ahead, and whichever has the earliest
//! record goes on.
//!
//! | a file | is opened | and until its end nothing earlier is expected than |
//! | --- | --- | --- |
//! | of a period, as its name says (`…_20220221T1955Z_…`) | when the stream comes to its period | its period, less what files were seen to begin before theirs |
//! | with any other name | when the stream comes to its first records, which are looked at | the newest of what was read ahead, less what came out of order so far |
//!
//! Within a file records keep their order, which is a rough one; so a batch says how far all of its source has been
//! read ([`Batch::reached`](crate::ingest::Batch)), and the engine keeps windows open from there on. A single record with an
//! absurd time moves neither bound by more than [`DISORDER_MAX`].
//!
//! Memory is bounded by the records that are read ahead, [`AHEAD_RECORDS`] in all files together, and by some 100 KiB an open
//! file. No file handles are kept where there are more files than [`AT_ONCE`].

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flow::{Blindness, EventTime, FlowRecord, Interface};
use crate::ingest::local::files::PATIENCE;
use crate::ingest::local::open::{Decoder, Open, Place};
use crate::ingest::local::walk::{Found, stamp};
use crate::ingest::{Batch, Refused};

/// Files that are opened without a look at where in time they begin, and that may keep their handles.
const AT_ONCE: usize = 64;

/// Records that are read ahead, of all files together: 72 MiB.
const AHEAD_RECORDS: usize = 1 << 20;

/// Records that are read ahead of one file at most: enough to see how records are ordered in it.
const AHEAD_OF_FILE: usize = 1 << 17;

/// Text that is decoded at a time, of all open files together, and of one file at least.
const TEXT_AHEAD: usize = 64 << 20;
const TEXT_LEAST: usize = 16 << 10;

/// A batch ends with so many records, about as many as a chunk of text has.
const BATCH: usize = 2_048;

/// How far the file that goes on may get ahead of the others, s: within it, records need not be compared.
const SLACK: u32 = 30;

/// How far out of order a file's records are expected to be at most, s: one record with an absurd time must not hold all windows open.
const DISORDER_MAX: u32 = 3_600;

/// What files of periods may begin earlier than any was seen to begin, s.
const LEAD_MARGIN: u32 = 60;

/// A file that takes part in a merge.
pub(super) struct Part {
    /// Comes back with everything that concerns the file.
    pub(super) id: usize,
    pub(super) found: Found,
    /// What it is called in messages and places.
    pub(super) name: String,
    /// Where to go on in it.
    pub(super) from: Option<Place>,
    /// Whether its end may not be the end.
    pub(super) tail: bool,
}

/// What comes of a merge.
pub(super) enum Event {
    /// Records are in the batch, and these files stand here after it. A file may be named more than once; the last counts.
    Batch(Vec<Mark>),
    /// A file cannot be opened.
    Unopened { id: usize, cause: std::io::Error },
    /// A file holds nothing readable. `empty` when nothing was refused either.
    Unreadable { id: usize, reason: String, empty: bool },
}

/// Where a file stands.
pub(super) struct Mark {
    pub(super) id: usize,
    pub(super) place: Place,
    /// Whether its end was reached.
    pub(super) ended: bool,
}

/// A file whose turn has not come.
struct Planned {
    part: Part,
    /// When its period begins by its name.
    stamp: Option<EventTime>,
    /// Its period, or the earliest of its first records.
    begins: EventTime,
}

/// A decoded chunk of a file.
struct Piece {
    records: Vec<FlowRecord>,
    /// For each record the earliest start from there on, over all that is read ahead of the file.
    least: Vec<u32>,
    /// Records that are handed on.
    at: usize,
    blind: Vec<Blindness>,
    refused: Refused,
    before: Place,
    after: Place,
}

/// An open file.
struct Slot {
    id: usize,
    open: Open,
    stamp: Option<EventTime>,
    pieces: VecDeque<Piece>,
    /// Records in the pieces that are not handed on.
    ahead: usize,
    ended: bool,
    /// Records at the beginning that were handed on before a restart.
    skip: u64,
    /// The latest start of what was read, by a record in the middle of each piece.
    highest: u32,
    /// How far behind the highest records came, s.
    disorder: u32,
    place: Place,
}

impl Slot {
    /// The earliest start of what is read ahead; 0 when something other than records is to be handed on first.
    fn head(&self) -> u32 {
        self.pieces.front().and_then(|piece| piece.least.get(piece.at).copied()).unwrap_or(0)
    }
}

/// Files side by side. See the [module](self).
pub(super) struct Merge {
    planned: VecDeque<Planned>,
    slots: Vec<Option<Slot>>,
    free: Vec<usize>,
    /// Open files by their earliest record.
    heads: BinaryHeap<Reverse<(u32, usize)>>,
    events: VecDeque<Event>,
    /// Whether anything at all was readable.
    readable: bool,
    /// Whether to say where files stand.
    marking: bool,
    /// Whether records are handed on as they come: a pipe has no end to wait for.
    live: bool,
    /// The size of a chunk where few files are open.
    chunk: usize,
    /// How long before its period a file was seen to begin, and the longest record, s.
    lead: u32,
    longest: u32,
    /// Interfaces that are named for the first time, on their way.
    interfaces: Vec<Interface>,
    spare: Vec<Vec<FlowRecord>>,
    /// Bytes of all files that were read.
    read: Arc<AtomicU64>,
    /// Bytes of the files that are closed.
    closed: u64,
}

impl Merge {
    /// Looks at where in time the files begin. With `marking`, batches come with where their files stand.
    pub(super) fn new(parts: Vec<Part>, decoder: &mut Decoder, marking: bool, read: Arc<AtomicU64>) -> Merge {
        let live = parts.len() == 1 && !is_regular(&parts[0].found);
        decoder.frugal = parts.len() > AT_ONCE;
        let mut planned: Vec<Planned> = Vec::with_capacity(parts.len());
        for part in parts {
            let stamp = stamp(&part.found.path);
            // A file that was read before goes on where it grows, which its name does not know.
            let known = stamp.filter(|_| part.from.is_none());
            let look = || if decoder.frugal && is_regular(&part.found) { first(&part, decoder) } else { EventTime(0) };
            let begins = known.unwrap_or_else(look);
            planned.push(Planned { part, stamp, begins });
        }
        planned.sort_by(|a, b| (a.begins, &a.part.found.path).cmp(&(b.begins, &b.part.found.path)));
        Merge {
            planned: planned.into(),
            slots: Vec::new(),
            free: Vec::new(),
            heads: BinaryHeap::new(),
            events: VecDeque::new(),
            readable: false,
            marking,
            live,
            chunk: decoder.chunk,
            lead: 0,
            longest: 0,
            interfaces: Vec::new(),
            spare: Vec::new(),
            read,
            closed: 0,
        }
    }

    /// Whether any of the files was one of flow logs so far.
    pub(super) fn readable(&self) -> bool {
        self.readable
    }

    /// What comes next; `None` at the end of all files. `batch` is empty, and holds what comes with [`Event::Batch`].
    pub(super) fn next(&mut self, decoder: &mut Decoder, batch: &mut Batch) -> Option<Event> {
        let mut marks = Vec::new();
        loop {
            self.open_due(decoder);
            if !self.events.is_empty() {
                break;
            }
            let Some(Reverse((_, at))) = self.heads.pop() else { break };
            if self.slots[at].as_ref().is_some_and(|slot| slot.pieces.is_empty()) {
                self.read_ahead(at, decoder);
            }
            self.hand_on(at, batch, &mut marks);
            if !self.live {
                self.read_ahead(at, decoder);
            }
            self.settle(at, &mut marks);
            if batch.records.len() >= BATCH || self.live && holds_something(batch) {
                break;
            }
        }
        self.count();
        if holds_something(batch) || !marks.is_empty() {
            batch.interfaces.append(&mut self.interfaces);
            batch.reached = self.reached();
            return Some(Event::Batch(marks));
        }
        self.events.pop_front()
    }

    /// Opens every file whose turn has come.
    fn open_due(&mut self, decoder: &mut Decoder) {
        while let Some(next) = self.planned.front() {
            let stream = self.heads.peek().map(|Reverse((head, _))| *head);
            if stream.is_some_and(|stream| stream < self.turn(next)) {
                return;
            }
            let Some(Planned { part, stamp, .. }) = self.planned.pop_front() else { return };
            self.open(part, stamp, decoder);
        }
    }

    /// When a file's turn comes.
    fn turn(&self, planned: &Planned) -> u32 {
        let lead = if planned.stamp.is_some() { self.lead + self.longest } else { 0 };
        planned.begins.minus(lead).0
    }

    /// Opens a file and reads until there is something readable in it.
    fn open(&mut self, part: Part, stamp: Option<EventTime>, decoder: &mut Decoder) {
        let Part { id, found, name, from, tail } = part;
        let size = found.size;
        decoder.chunk = (TEXT_AHEAD / (self.heads.len() + 1)).clamp(TEXT_LEAST.min(self.chunk), self.chunk);
        let open = match Open::at(&found, decoder, from.as_ref(), tail) {
            Ok(open) => open,
            Err(cause) => {
                self.closed += size;
                self.events.push_back(Event::Unopened { id, cause });
                return;
            }
        };
        // Where less is in it than was read before, it is read from its beginning.
        let skip = from.as_ref().filter(|from| open.place().line == from.line).map_or(0, |from| from.skip);
        let place = Place { file: name, skip: 0, ..open.place() };
        let (pieces, ahead, ended, highest, disorder) = (VecDeque::new(), 0, false, 0, 0);
        let mut slot = Slot { id, open, stamp, pieces, ahead, ended, skip, highest, disorder, place };
        slot.open.size = size;
        let mut step = slot.open.step(decoder);
        while !slot.open.readable && from.is_none() {
            if step.ended || slot.open.refused >= PATIENCE {
                decoder.decoded.clear();
                self.closed += size;
                let (reason, empty) = (slot.open.why_unreadable(), slot.open.refused == 0);
                self.events.push_back(Event::Unreadable { id, reason, empty });
                return;
            }
            step = slot.open.step(decoder);
        }
        self.readable = true;
        self.take(&mut slot, step.ended, decoder);
        let at = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        let head = slot.head();
        self.slots[at] = Some(slot);
        self.heads.push(Reverse((head, at)));
    }

    /// Makes a piece of what was decoded.
    fn take(&mut self, slot: &mut Slot, ended: bool, decoder: &mut Decoder) {
        let mut batch = Batch { records: self.spare.pop().unwrap_or_default(), ..Batch::default() };
        batch.records.clear();
        decoder.take(&slot.place.file, &mut batch);
        self.interfaces.append(&mut batch.interfaces);
        let at = usize::try_from(slot.skip).unwrap_or(usize::MAX).min(batch.records.len());
        slot.skip -= at as u64;
        let least = if self.live { Vec::new() } else { self.look_over(slot, &batch.records) };
        let after = Place { file: slot.place.file.clone(), ..slot.open.place() };
        let before = std::mem::replace(&mut slot.place, after.clone());
        let Batch { records, blind, refused, .. } = batch;
        slot.ended = ended;
        slot.ahead += records.len() - at;
        slot.pieces.push_back(Piece { records, least, at, blind, refused, before, after });
    }

    /// Learns how a file's records are ordered, and says for each the earliest start from there on.
    fn look_over(&mut self, slot: &mut Slot, records: &[FlowRecord]) -> Vec<u32> {
        let mut least = vec![0; records.len()];
        let mut earliest = u32::MAX;
        let in_reach = slot.stamp.map(|stamp| stamp.minus(3 * DISORDER_MAX).0..=stamp.0);
        for (least, record) in least.iter_mut().zip(records).rev() {
            earliest = earliest.min(record.start.0);
            *least = earliest;
            self.longest = self.longest.max(record.end.since(record.start).min(600));
            if let (Some(reach), Some(stamp)) = (&in_reach, slot.stamp)
                && reach.contains(&record.start.0)
            {
                self.lead = self.lead.max(stamp.since(record.start));
            }
        }
        let Some(middle) = records.get(records.len() / 2) else { return least };
        // What was read before is waited for by what came now.
        for piece in slot.pieces.iter_mut().rev() {
            let later = piece.least.iter_mut().rev().take_while(|least| **least > earliest);
            if later.map(|least| *least = earliest).count() < piece.least.len() {
                break;
            }
        }
        slot.disorder = slot.disorder.max(slot.highest.saturating_sub(earliest)).min(DISORDER_MAX);
        slot.highest = slot.highest.max(middle.start.0);
        least
    }

    /// Reads ahead in a file as far as there is room.
    fn read_ahead(&mut self, at: usize, decoder: &mut Decoder) {
        let open = self.heads.len() + 1;
        decoder.chunk = (TEXT_AHEAD / open).clamp(TEXT_LEAST.min(self.chunk), self.chunk);
        let room = if self.live { 0 } else { (AHEAD_RECORDS / open).min(AHEAD_OF_FILE) };
        let Some(mut slot) = self.slots[at].take() else { return };
        while !slot.ended && (slot.pieces.is_empty() || slot.ahead < room) {
            let step = slot.open.step(decoder);
            self.take(&mut slot, step.ended, decoder);
        }
        self.slots[at] = Some(slot);
    }

    /// Moves records of a file into the batch, up to where others have earlier ones.
    fn hand_on(&mut self, at: usize, batch: &mut Batch, marks: &mut Vec<Mark>) {
        let others = self.heads.peek().map_or(u32::MAX, |Reverse((head, _))| *head);
        let planned = self.planned.front().map_or(u32::MAX, |next| self.turn(next));
        let limit = others.min(planned).saturating_add(SLACK);
        let Some(slot) = self.slots[at].as_mut() else { return };
        while let Some(piece) = slot.pieces.front_mut() {
            let all = piece.records.len();
            let until = match self.live {
                true => all,
                false => piece.at + piece.least[piece.at..].partition_point(|least| *least <= limit),
            };
            slot.ahead -= until - piece.at;
            if piece.at == 0 && until == all && batch.records.is_empty() {
                std::mem::swap(&mut batch.records, &mut piece.records);
            } else {
                batch.records.extend_from_slice(&piece.records[piece.at..until]);
            }
            piece.at = until;
            if until < all {
                if self.marking {
                    let place = Place { skip: until as u64, ..piece.before.clone() };
                    marks.push(Mark { id: slot.id, place, ended: false });
                }
                return;
            }
            let Some(piece) = slot.pieces.pop_front() else { return };
            batch.blind.extend_from_slice(&piece.blind);
            batch.refused.merge(piece.refused);
            if self.marking && !slot.pieces.is_empty() {
                marks.push(Mark { id: slot.id, place: piece.after, ended: false });
            } else if self.marking {
                marks.push(Mark { id: slot.id, place: piece.after, ended: slot.ended });
            }
            if self.spare.len() < 8 {
                self.spare.push(piece.records);
            }
            if batch.records.len() >= BATCH || self.live {
                return;
            }
        }
    }

    /// Puts a file back in its place by its earliest record, or closes it when it is read to its end.
    fn settle(&mut self, at: usize, marks: &mut Vec<Mark>) {
        let Some(slot) = &self.slots[at] else { return };
        if !slot.pieces.is_empty() || !slot.ended {
            self.heads.push(Reverse((slot.head(), at)));
            return;
        }
        if self.marking {
            marks.push(Mark { id: slot.id, place: slot.place.clone(), ended: true });
        }
        self.closed += slot.open.size.max(slot.open.read.load(Ordering::Relaxed));
        self.slots[at] = None;
        self.free.push(at);
    }

    /// Nothing that follows starts before this, as far as is known; `None` when nothing follows, or nothing is known.
    fn reached(&self) -> Option<EventTime> {
        if self.live {
            return None;
        }
        let lead = self.lead + self.longest + LEAD_MARGIN;
        let floor = |slot: &Slot| {
            let unread = match slot.stamp {
                _ if slot.ended => u32::MAX,
                Some(stamp) => stamp.minus(lead).0,
                None => slot.highest.saturating_sub(slot.disorder),
            };
            let head = if slot.pieces.is_empty() { u32::MAX } else { slot.head() };
            head.min(unread)
        };
        let open = self.slots.iter().flatten().map(floor).min();
        let planned = self.planned.front().map(|next| match next.stamp {
            Some(_) => next.begins.minus(lead).0,
            None => next.begins.0,
        });
        open.into_iter().chain(planned).min().map(EventTime)
    }

    fn count(&self) {
        let open = self.slots.iter().flatten().map(|slot| slot.open.read.load(Ordering::Relaxed));
        self.read.store(self.closed + open.sum::<u64>(), Ordering::Relaxed);
    }
}

fn holds_something(batch: &Batch) -> bool {
    !batch.records.is_empty() || !batch.blind.is_empty() || batch.refused.count > 0
}

/// Whether a file can be looked at and read again: no pipe, and not standard input.
fn is_regular(found: &Found) -> bool {
    found.path != Path::new("-") && std::fs::metadata(&found.path).is_ok_and(|about| about.is_file())
}

/// The earliest of a file's first records; 0 where there are none.
fn first(part: &Part, decoder: &mut Decoder) -> EventTime {
    let chunk = decoder.chunk;
    decoder.chunk = TEXT_LEAST.min(chunk);
    let mut earliest = None;
    if let Ok(mut open) = Open::at(&part.found, decoder, part.from.as_ref(), part.tail) {
        let mut step = open.step(decoder);
        while decoder.decoded.records.is_empty() && !step.ended && open.refused < PATIENCE {
            step = open.step(decoder);
        }
        earliest = decoder.decoded.records.iter().map(|record| record.start).min();
    }
    decoder.decoded.clear();
    decoder.chunk = chunk;
    earliest.unwrap_or_default()
}
