//! Index and decode with AVX2, the index with AVX-512 where there is one.
//!
//! Why the unsafe blocks are sound, once for all: [`Index::at`] holds positions of separators of the text that it was
//! made of, in ascending order, and is made anew for every piece of text. A fast line begins at [`MARGIN`] or later, and
//! every load of the second stage is of at most [`MARGIN`] bytes that *end* at a separator, so that it lies within the
//! text on both sides.

use std::arch::x86_64::*;

use memchr::memrchr;

use super::Level;
use crate::flow::interfaces::Interfaces;
use crate::flow::text::{self, Decoded, Field, Format, Lines, SPAN_MAX};
use crate::flow::{Address, EventTime, FlowRecord, Marks};

/// Text indexed at a time: it, its index and its records stay in the first- and second-level caches.
const PIECE: usize = 32 * 1024;

/// No load reaches further back than this many bytes before a separator.
const MARGIN: usize = 16;

/// The most separators that a line of the fast shapes may have: one compare of two vectors.
const SEPARATORS_MAX: usize = 64;

/// The separators of a piece of text.
#[derive(Debug, Default)]
pub(super) struct Index {
    /// Positions; `at[0]` is the (wrapping) position -1, before the first line, and separator `i` stands at `i + 1`.
    at: Vec<u32>,
    /// Their bytes; separator `i` at `i`.
    what: Vec<u8>,
    /// How many separators there are.
    count: usize,
    /// No separator directly follows another, so that no field is empty.
    tight: bool,
}

impl Index {
    fn build(&mut self, level: Level, text: &[u8]) {
        // Each block of 64 bytes writes a whole vector behind what it has found.
        let room = text.len() + 2 * SEPARATORS_MAX + 1;
        if self.what.len() < room {
            self.at.resize(room + 1, 0);
            self.what.resize(room, 0);
        }
        self.at[0] = u32::MAX;
        // SAFETY: the level was detected on this machine, and there is room for every byte of the text and one block.
        self.count = unsafe {
            match level {
                Level::Avx512 => self.build_avx512(text),
                _ => self.build_avx2(text),
            }
        };
    }

    /// # Safety
    /// `at` and `what` have room for `text.len()` entries and 64 more.
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi2,popcnt")]
    unsafe fn build_avx512(&mut self, text: &[u8]) -> usize {
        const IOTA: [u8; 64] = {
            let mut iota = [0; 64];
            let mut i = 0;
            while i < 64 {
                iota[i] = i as u8;
                i += 1;
            }
            iota
        };
        let (at, what) = (self.at.as_mut_ptr().wrapping_add(1), self.what.as_mut_ptr());
        // SAFETY: 64 bytes of 64.
        let iota = unsafe { _mm512_loadu_si512(IOTA.as_ptr().cast()) };
        let (blank, dot) = (_mm512_set1_epi8(b' ' as i8), _mm512_set1_epi8(b'.' as i8));
        let mut count = 0;
        let mut base = 0;
        let mut neighbours = Neighbours::default();
        while base < text.len() {
            let left = text.len() - base;
            let valid = if left >= 64 { u64::MAX } else { (1 << left) - 1 };
            // SAFETY: bytes past the text are masked out and not touched.
            let bytes = unsafe { _mm512_maskz_loadu_epi8(valid, text.as_ptr().add(base).cast()) };
            let found = valid & (_mm512_cmple_epu8_mask(bytes, blank) | _mm512_cmpeq_epi8_mask(bytes, dot));
            neighbours.note(found);
            let offsets = _mm512_maskz_compress_epi8(found, iota);
            let start = _mm512_set1_epi32(base as i32);
            let number = found.count_ones() as usize;
            // SAFETY: count <= base, so that there is room for 64 entries behind it.
            unsafe {
                _mm512_storeu_si512(what.add(count).cast(), _mm512_maskz_compress_epi8(found, bytes));
                let store = |lane: usize, part: __m128i| {
                    let positions = _mm512_add_epi32(_mm512_cvtepu8_epi32(part), start);
                    _mm512_storeu_si512(at.add(count + lane).cast(), positions);
                };
                store(0, _mm512_castsi512_si128(offsets));
                if number > 16 {
                    store(16, _mm512_extracti32x4_epi32::<1>(offsets));
                    store(32, _mm512_extracti32x4_epi32::<2>(offsets));
                    store(48, _mm512_extracti32x4_epi32::<3>(offsets));
                }
            }
            count += number;
            base += 64;
        }
        self.tight = neighbours.none();
        count
    }

    /// # Safety
    /// `at` and `what` have room for `text.len()` entries and 64 more.
    #[target_feature(enable = "avx2,popcnt")]
    unsafe fn build_avx2(&mut self, text: &[u8]) -> usize {
        let (at, what) = (self.at.as_mut_ptr().wrapping_add(1), self.what.as_mut_ptr());
        let (blank, dot) = (_mm256_set1_epi8(b' ' as i8), _mm256_set1_epi8(b'.' as i8));
        let found = |bytes: __m256i| {
            let blanks = _mm256_cmpeq_epi8(_mm256_min_epu8(bytes, blank), bytes);
            _mm256_movemask_epi8(_mm256_or_si256(blanks, _mm256_cmpeq_epi8(bytes, dot))) as u32
        };
        let mut count = 0;
        let mut base = 0;
        let mut neighbours = Neighbours::default();
        while base < text.len() {
            let mut last = [b'x'; 64];
            let block = match text.get(base..base + 64) {
                Some(block) => block,
                None => {
                    last[..text.len() - base].copy_from_slice(&text[base..]);
                    &last
                }
            };
            // SAFETY: the block has 64 bytes.
            let (low, high) = unsafe {
                (_mm256_loadu_si256(block.as_ptr().cast()), _mm256_loadu_si256(block.as_ptr().add(32).cast()))
            };
            let bits = u64::from(found(low)) | u64::from(found(high)) << 32;
            neighbours.note(bits);
            // Eight bytes at a time, without a branch: how many separators are among them is a coin toss, and wrong
            // guesses cost more than writing some idle entries, which the next eight bytes overwrite.
            let start = _mm256_set1_epi32(base as i32);
            for part in 0..8 {
                let mask = (bits >> (8 * part)) as u8;
                // SAFETY: the block has 64 bytes, and count <= base + 8 * part, so that there is room for eight entries.
                unsafe {
                    let places = _mm_loadl_epi64(PLACES[usize::from(mask)].as_ptr().cast());
                    let bytes = _mm_loadl_epi64(block.as_ptr().add(8 * part).cast());
                    _mm_storel_epi64(what.add(count).cast(), _mm_shuffle_epi8(bytes, places));
                    let within = _mm_add_epi8(places, _mm_set1_epi8(8 * part as i8));
                    let positions = _mm256_add_epi32(_mm256_cvtepu8_epi32(within), start);
                    _mm256_storeu_si256(at.add(count).cast(), positions);
                }
                count += mask.count_ones() as usize;
            }
            base += 64;
        }
        self.tight = neighbours.none();
        count
    }
}

/// For eight bytes, of which those that are separators are the bits set: the places of these, in order.
const PLACES: [[u8; 8]; 256] = {
    let mut all = [[0; 8]; 256];
    let mut mask = 0;
    while mask < 256 {
        let (mut bit, mut count) = (0, 0);
        while bit < 8 {
            if mask >> bit & 1 == 1 {
                all[mask][count] = bit as u8;
                count += 1;
            }
            bit += 1;
        }
        mask += 1;
    }
    all
};

/// Whether any separator directly follows another, over the blocks of a piece of text.
#[derive(Default)]
struct Neighbours {
    found: u64,
    /// 1 where the block before ended with a separator.
    carry: u64,
}

impl Neighbours {
    #[inline]
    fn note(&mut self, separators: u64) {
        self.found |= separators & (separators << 1 | self.carry);
        self.carry = separators >> 63;
    }

    fn none(&self) -> bool {
        self.found == 0
    }
}

/// Where the fields of a line of one shape are, by counting separators from the line's first.
#[derive(Debug, Clone)]
struct Shape {
    /// How many separators the line has, the line end included.
    count: usize,
    /// Their bytes.
    what: [u8; SEPARATORS_MAX],
    /// For each column, which entries of the line's index stand before and behind it.
    around: [(u8, u8); SEPARATORS_MAX],
    /// Separators that end the octets of source and destination (IPv4 only).
    octets: [u32; 8],
    /// The same of the packet's addresses.
    packet_octets: [u32; 8],
    /// Separators that end the numbers, in the order of [`NUMBERS`].
    numbers: [u32; 8],
    /// Whether octets and numbers each follow one another, so that their positions are one load.
    adjoining: bool,
}

/// The numeric fields by vector lane, with the least and most digits and the greatest value of the fast path.
const NUMBERS: [(Field, u32, u32, u32); 8] = [
    (Field::SourcePort, 1, 8, 0xffff),
    (Field::DestinationPort, 1, 8, 0xffff),
    (Field::Protocol, 1, 8, 0xff),
    (Field::Packets, 1, 8, 99_999_999),
    (Field::Bytes, 1, 19, 99_999_999),
    (Field::Start, 10, 10, 99_999_999),
    (Field::End, 10, 10, 99_999_999),
    (Field::Flags, 1, 8, 0xff),
];
const BYTES: usize = 4;
const START: usize = 5;
const END: usize = 6;
const FLAGS: usize = 7;

/// What a format means for the fast path.
#[derive(Debug, Clone)]
struct Plan {
    v4: Shape,
    v6: Shape,
    /// Columns of the effective addresses, and of the interface's own where both are in the format.
    source: usize,
    destination: usize,
    own_source: Option<usize>,
    own_destination: Option<usize>,
    digits_min: [u32; 8],
    digits_max: [u32; 8],
    value_max: [u32; 8],
    /// All ones for numbers that are in the format, 0 for others.
    keep: [u32; 8],
    account: Option<usize>,
    interface: Option<usize>,
    resource: bool,
    action: Option<usize>,
    status: Option<usize>,
    direction: Option<usize>,
    services: [Option<usize>; 2],
    /// Columns that nothing else looks at; they must not be empty.
    unread: Vec<u8>,
    marks: Marks,
}

impl Plan {
    /// `None` where the format has no fast shape: too wide, or without both times.
    fn new(format: &Format) -> Option<Plan> {
        let width = if format.is_documented() { 14 } else { format.width() };
        let column = |field| format.column(field).filter(|column| *column < width);
        let (start, _) = (column(Field::Start)?, column(Field::End)?);
        // Packets that the format does not have are worked out from the bytes, which is rare enough for the plain way.
        if column(Field::Packets).is_none() && column(Field::Bytes).is_some() {
            return None;
        }
        let (own_source, own_destination) = (column(Field::Source), column(Field::Destination));
        let (packet_source, packet_destination) = (column(Field::PacketSource), column(Field::PacketDestination));
        // Both packet addresses or none: half of a pair is rare enough for the plain way.
        if packet_source.is_some() != packet_destination.is_some() || own_source.is_some() != own_destination.is_some()
        {
            return None;
        }
        let (source, destination) = (packet_source.or(own_source)?, packet_destination.or(own_destination)?);
        let dotted: Vec<usize> =
            [own_source, own_destination, packet_source, packet_destination].into_iter().flatten().collect();
        let at = NUMBERS.map(|(field, ..)| column(field));
        let known = |lane: usize| at[lane].is_some();
        let shape = |dotted: &[usize]| {
            let own = (own_source.unwrap_or(source), own_destination.unwrap_or(destination));
            Shape::new(width, dotted, (source, destination), own, at.map(|column| column.unwrap_or(start)))
        };
        let lanes = |of: &dyn Fn(usize) -> u32| std::array::from_fn(of);
        let plan = Plan {
            v4: shape(&dotted)?,
            v6: shape(&[])?,
            source,
            destination,
            own_source: packet_source.and(own_source),
            own_destination: packet_destination.and(own_destination),
            digits_min: lanes(&|lane| if known(lane) { NUMBERS[lane].1 } else { 0 }),
            digits_max: lanes(&|lane| if known(lane) { NUMBERS[lane].2 } else { u32::MAX }),
            value_max: lanes(&|lane| NUMBERS[lane].3),
            keep: lanes(&|lane| if known(lane) { u32::MAX } else { 0 }),
            account: column(Field::Account),
            interface: column(Field::Interface),
            resource: column(Field::Resource).is_some(),
            action: column(Field::Action),
            status: column(Field::Status),
            direction: column(Field::Direction),
            services: [column(Field::PacketSourceService), column(Field::PacketDestinationService)],
            unread: Vec::new(),
            marks: if known(FLAGS) { Marks::FLAGS_KNOWN } else { Marks::default() },
        };
        Some(plan.with_unread(width, &dotted, &at))
    }

    fn with_unread(mut self, width: usize, dotted: &[usize], numbers: &[Option<usize>; 8]) -> Plan {
        let read = |column: &usize| {
            dotted.contains(column)
                || numbers.contains(&Some(*column))
                || [self.action, self.status].contains(&Some(*column))
        };
        self.unread = (0..width).filter(|column| !read(column)).map(|column| column as u8).collect();
        self
    }
}

impl Shape {
    /// `dotted` columns hold three dots each; `None` when a line would have too many separators.
    fn new(
        width: usize,
        dotted: &[usize],
        addresses: (usize, usize),
        own: (usize, usize),
        numbers: [usize; 8],
    ) -> Option<Shape> {
        let (mut what, mut ends) = ([0; SEPARATORS_MAX], [0u8; SEPARATORS_MAX]);
        let mut count = 0;
        for (column, end) in ends.iter_mut().enumerate().take(width) {
            let dots = if dotted.contains(&column) { 3 } else { 0 };
            if count + dots >= SEPARATORS_MAX {
                return None;
            }
            what[count..count + dots].fill(b'.');
            count += dots;
            what[count] = if column + 1 == width { b'\n' } else { b' ' };
            *end = count as u8;
            count += 1;
        }
        let octets_of = |(source, destination): (usize, usize)| -> [u32; 8] {
            if dotted.is_empty() {
                return [3; 8];
            }
            let ends = [ends[source], ends[destination]];
            std::array::from_fn(|lane| u32::from(ends[lane / 4]) - 3 + lane as u32 % 4)
        };
        let (packet_octets, octets) = (octets_of(addresses), octets_of(own));
        let numbers = numbers.map(|column| u32::from(ends[column]));
        let follow = |list: &[u32]| list.windows(2).all(|pair| pair[1] == pair[0] + 1);
        // The last lane (flags) may be missing; its lane then holds whatever follows.
        let adjoining = (dotted.is_empty() || follow(&packet_octets)) && follow(&numbers[..FLAGS]);
        let before = |column: usize| if column == 0 { 0 } else { ends[column - 1] + 1 };
        let around = std::array::from_fn(|column| (before(column), ends[column] + 1));
        Some(Shape { count, what, around, octets, packet_octets, numbers, adjoining })
    }
}

/// Decodes lines, the fast ones fast, all in order.
pub(super) fn decode(
    level: Level,
    index: &mut Index,
    text: &[u8],
    lines: &mut Lines,
    interfaces: &mut Interfaces,
    out: &mut Decoded,
) {
    let mut plan = plan_of(lines);
    let mut rest = text;
    while !rest.is_empty() {
        let piece = match rest.get(..PIECE).and_then(|start| memrchr(b'\n', start)) {
            Some(end) => &rest[..=end],
            None => {
                &rest[..memchr::memchr(b'\n', &rest[PIECE.min(rest.len())..])
                    .map_or(rest.len(), |end| PIECE.min(rest.len()) + end + 1)]
            }
        };
        rest = &rest[piece.len()..];
        if piece.len() > PIECE {
            // One line longer than a whole piece: not of a fast shape, and perhaps larger than an index should be.
            let headers = lines.headers();
            lines.decode_plainly(piece, interfaces, out);
            if lines.headers() != headers {
                plan = plan_of(lines);
            }
            continue;
        }
        index.build(level, piece);
        // SAFETY: AVX2 was detected; the index is of this piece.
        unsafe { decode_piece(index, piece, lines, &mut plan, interfaces, out) };
    }
}

fn plan_of(lines: &Lines) -> Option<Plan> {
    if lines.unusable().is_some() || !lines.format().is_plain() { None } else { Plan::new(lines.format()) }
}

/// # Safety
/// `index` is of `text`.
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
unsafe fn decode_piece(
    index: &Index,
    text: &[u8],
    lines: &mut Lines,
    plan: &mut Option<Plan>,
    interfaces: &mut Interfaces,
    out: &mut Decoded,
) {
    out.records.reserve(index.count / 14 + 1);
    let mut unnamed = Unnamed::default();
    let mut begin = 0;
    let mut first = 0;
    while begin < text.len() {
        if let Some(plan) = plan.as_ref()
            && begin >= MARGIN
        {
            if unnamed.count == AHEAD {
                unnamed.name(interfaces, out);
            }
            // Written where it stays: a record is too large to be handed from function to function.
            let record = out.records.push_mut(FlowRecord::default());
            // SAFETY: the line begins behind the margin, at separator `first` of the index of this text.
            if let Some(((account, name), count)) = unsafe { fast_line(plan, index, first, text, record) } {
                unnamed.records[unnamed.count] = (account, name, interfaces.prefetch(account, name));
                unnamed.count += 1;
                lines.count_fast();
                first += count;
                begin = index.at[first] as usize + 1;
                continue;
            }
            out.records.pop();
        }
        // In the order of the lines, since that is the order of the numbers.
        unnamed.name(interfaces, out);
        let end = index.what[first..index.count].iter().position(|what| *what == b'\n').map(|ahead| first + ahead);
        let (line_end, next) = match end {
            Some(newline) => (index.at[newline + 1] as usize, newline + 1),
            None => (text.len(), index.count),
        };
        let headers = lines.headers();
        lines.decode_line(&text[begin..line_end], interfaces, out);
        if lines.headers() != headers {
            *plan = plan_of(lines);
        }
        first = next;
        begin = line_end + 1;
    }
    unnamed.name(interfaces, out);
}

/// How many records wait for their interface's number while its slot comes from memory.
const AHEAD: usize = 8;

/// The last few records, whose interfaces are not looked up yet: account, name, and what the prefetch gave.
#[derive(Default)]
struct Unnamed<'a> {
    records: [(&'a [u8], &'a [u8], u64); AHEAD],
    count: usize,
}

impl Unnamed<'_> {
    #[inline]
    fn name(&mut self, interfaces: &mut Interfaces, out: &mut Decoded) {
        let first = out.records.len() - self.count;
        for (record, (account, name, hash)) in out.records[first..].iter_mut().zip(self.records) {
            record.interface = interfaces.intern_hashed(account, name, hash);
        }
        self.count = 0;
    }
}

/// Account and interface.
type Names<'a> = (&'a [u8], &'a [u8]);

/// Fills in the record of the line whose first separator is `first`, and gives its names and its number of separators;
/// `None`, with the record in any state, when the line is not of a fast shape.
///
/// # Safety
/// `index` is of `text`; the line begins at [`MARGIN`] or later.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
unsafe fn fast_line<'a>(
    plan: &Plan,
    index: &Index,
    first: usize,
    text: &'a [u8],
    record: &mut FlowRecord,
) -> Option<(Names<'a>, usize)> {
    // SAFETY: passed on.
    unsafe {
        if matches(&plan.v4, index, first) {
            let at = &index.at[first..];
            if too_long(at, plan.v4.count) {
                return None;
            }
            let octets = if plan.v4.adjoining {
                lanes_adjoining(at, plan.v4.packet_octets[0])
            } else {
                lanes(at, &plan.v4.packet_octets)
            };
            let (source, destination) = v4_pair(text, octets)?;
            let mut marks = Marks::default();
            if plan.own_source.is_some() {
                let own = v4_pair(text, lanes(at, &plan.v4.octets))?;
                if own != (source, destination) {
                    marks = Marks::INTERMEDIARY;
                }
            }
            (record.source, record.destination) = (Address::v4(source), Address::v4(destination));
            record.marks = marks;
            Some((rest_of_line(plan, &plan.v4, (at, index.tight), text, record)?, plan.v4.count))
        } else if matches(&plan.v6, index, first) {
            let at = &index.at[first..];
            if too_long(at, plan.v6.count) {
                return None;
            }
            let column = |column: usize| column_of(&plan.v6, at, text, column);
            let (source, destination) = (v6(column(plan.source))?, v6(column(plan.destination))?);
            let mut marks = Marks::default();
            if let (Some(own_source), Some(own_destination)) = (plan.own_source, plan.own_destination)
                && (v6(column(own_source))?, v6(column(own_destination))?) != (source, destination)
            {
                marks = Marks::INTERMEDIARY;
            }
            (record.source, record.destination, record.marks) = (source, destination, marks);
            Some((rest_of_line(plan, &plan.v6, (at, index.tight), text, record)?, plan.v6.count))
        } else {
            None
        }
    }
}

/// Whether a line is over the limit that the plain decoder refuses.
#[inline]
fn too_long(at: &[u32], count: usize) -> bool {
    at[count].wrapping_sub(at[0].wrapping_add(1)) as usize > text::LINE_MAX
}

/// Whether the separators from `first` are those of the shape.
#[inline]
#[target_feature(enable = "avx2")]
fn matches(shape: &Shape, index: &Index, first: usize) -> bool {
    if first + shape.count > index.count {
        return false;
    }
    let wanted = if shape.count >= 64 { u64::MAX } else { (1 << shape.count) - 1 };
    // SAFETY: `what` has room for 64 bytes behind the last separator, and the shape has 64.
    unsafe {
        let same = |offset: usize| {
            let found = _mm256_loadu_si256(index.what.as_ptr().add(first + offset).cast());
            let shape = _mm256_loadu_si256(shape.what.as_ptr().add(offset).cast());
            u64::from(_mm256_movemask_epi8(_mm256_cmpeq_epi8(found, shape)) as u32)
        };
        let mut equal = same(0);
        if shape.count > 32 {
            equal |= same(32) << 32;
        }
        equal & wanted == wanted
    }
}

/// The text of a column; may be empty.
#[inline(always)]
fn column_of<'a>(shape: &Shape, at: &[u32], text: &'a [u8], column: usize) -> &'a [u8] {
    let (start, end) = bounds(shape, at, column);
    &text[start..end]
}

#[inline(always)]
fn bounds(shape: &Shape, at: &[u32], column: usize) -> (usize, usize) {
    let (before, behind) = shape.around[column];
    (at[usize::from(before)].wrapping_add(1) as usize, at[usize::from(behind)] as usize)
}

/// The eight bytes before the end of a column, as one number of which the last byte is the highest: short words are
/// compared with the blank before them.
///
/// # Safety
/// `at` is the rest of an index of `text` from a line of this shape on, which begins at [`MARGIN`] or later.
#[inline(always)]
unsafe fn eight_before(shape: &Shape, at: &[u32], text: &[u8], column: usize) -> u64 {
    let end = at[usize::from(shape.around[column].1)] as usize;
    // SAFETY: eight bytes before a separator; the margin is larger.
    unsafe { text.as_ptr().add(end - 8).cast::<u64>().read_unaligned() }
}

/// A word and what stands before it, as [`eight_before`] gives them, with the bytes that say nothing left out.
const fn word(word: &[u8; 8], length: usize) -> (u64, u64) {
    let mask = u64::MAX << (8 * (8 - length));
    (u64::from_le_bytes(*word) & mask, mask)
}
const ACCEPT: (u64, u64) = word(b"  ACCEPT", 7);
const REJECT: (u64, u64) = word(b"  REJECT", 7);
const OK: (u64, u64) = word(b"      OK", 3);

/// A time from its first two digits, before `end`, and the number that its other eight are.
#[inline(always)]
fn time_of(text: &[u8], end: usize, rest: u32) -> Option<u32> {
    let first = text.get(end.checked_sub(10)?..)?.first_chunk::<2>()?;
    let [tens, ones] = first.map(|digit| digit.wrapping_sub(b'0'));
    let seconds = u64::from(tens) * 1_000_000_000 + u64::from(ones) * 100_000_000 + u64::from(rest);
    if tens > 9 || ones > 9 { None } else { u32::try_from(seconds).ok() }
}

/// Positions of the separators that end eight fields, and of those before them.
type Lanes = (__m256i, __m256i);

/// Of eight fields that follow one another, the first of which is ended by separator `end` of the line.
///
/// # Safety
/// `at` is the rest of an index from a line on; it has room for a block behind the line's separators.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn lanes_adjoining(at: &[u32], end: u32) -> Lanes {
    // SAFETY: an index has room for 64 entries behind every separator.
    unsafe {
        let before = at.as_ptr().add(end as usize);
        (_mm256_loadu_si256(before.add(1).cast()), _mm256_loadu_si256(before.cast()))
    }
}

/// Of any eight fields. One by one: before Zen 4, and on Intel since the mitigation of Downfall, that is faster than a gather.
///
/// # Safety
/// `at` is the rest of an index from a line on, and `ends` are separators of the line.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn lanes(at: &[u32], ends: &[u32; 8]) -> Lanes {
    // SAFETY: each of `ends` and the one after it are within the line's separators.
    let place = |lane: usize, behind: usize| unsafe { *at.get_unchecked(ends[lane] as usize + behind) as i32 };
    let all = |behind| {
        let place = |lane| place(lane, behind);
        _mm256_setr_epi32(place(0), place(1), place(2), place(3), place(4), place(5), place(6), place(7))
    };
    (all(1), all(0))
}

/// Two IPv4 addresses from the places of their eight octets.
///
/// # Safety
/// The places are within `text`, from [`MARGIN`] on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn v4_pair(text: &[u8], (end, before): Lanes) -> Option<(u32, u32)> {
    let one = _mm256_set1_epi32(1);
    let length = _mm256_sub_epi32(_mm256_sub_epi32(end, before), one);
    // An address has at most 15 bytes, so that the 16 before its end hold four bytes before the end of each octet.
    let ends = (_mm256_extract_epi32::<3>(end) as u32, _mm256_extract_epi32::<7>(end) as u32);
    // SAFETY: sixteen bytes before a separator: the margin.
    let both = unsafe {
        let sixteen = |end: u32| _mm_loadu_si128(text.as_ptr().add(end as usize - MARGIN).cast());
        _mm256_inserti128_si256::<1>(_mm256_castsi128_si256(sixteen(ends.0)), sixteen(ends.1))
    };
    // Where these four bytes are, in each byte of the lane; outside for an octet that is too long, which is refused below.
    let last = _mm256_shuffle_epi32::<0b11_11_11_11>(end);
    let place = _mm256_add_epi32(_mm256_sub_epi32(end, last), _mm256_set1_epi32(12));
    let first_of_lane = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12, 12, 12));
    let places = _mm256_add_epi8(_mm256_shuffle_epi8(place, first_of_lane), _mm256_set1_epi32(0x0302_0100));
    let bytes = _mm256_shuffle_epi8(both, places);
    let digits = _mm256_sub_epi8(bytes, _mm256_set1_epi8(b'0' as i8));
    // What precedes the octet is in the low bytes: shifted out, and zeros in.
    let shift = _mm256_sub_epi32(_mm256_set1_epi32(32), _mm256_slli_epi32::<3>(length));
    let digits = _mm256_sllv_epi32(_mm256_srlv_epi32(digits, shift), shift);
    let weights = _mm256_set1_epi32(i32::from_le_bytes([0, 100, 10, 1]));
    let value = _mm256_madd_epi16(_mm256_maddubs_epi16(digits, weights), _mm256_set1_epi16(1));
    // Two digits are at least 10, three at least 100: no leading zeros, as in the plain decoder.
    let least = _mm256_permutevar8x32_epi32(_mm256_setr_epi32(0, 0, 10, 100, 0, 0, 0, 0), length);
    let nine = _mm256_set1_epi8(9);
    let short = _mm256_sub_epi32(length, one);
    let good = _mm256_and_si256(
        _mm256_cmpeq_epi8(_mm256_max_epu8(digits, nine), nine),
        _mm256_cmpeq_epi32(_mm256_min_epu32(short, _mm256_set1_epi32(2)), short),
    );
    let bad = _mm256_or_si256(_mm256_cmpgt_epi32(least, value), _mm256_cmpgt_epi32(value, _mm256_set1_epi32(255)));
    if _mm256_movemask_epi8(_mm256_andnot_si256(bad, good)) != -1 {
        return None;
    }
    let order = _mm256_set1_epi32(i32::from_le_bytes([12, 8, 4, 0]));
    let packed = _mm256_shuffle_epi8(value, order);
    Some((_mm256_extract_epi32::<0>(packed) as u32, _mm256_extract_epi32::<4>(packed) as u32))
}

/// The digits of four numbers, the last ones of eight bytes each, with zeros before them.
#[inline]
#[target_feature(enable = "avx2")]
fn digits_of(bytes: __m256i, length: __m128i) -> __m256i {
    let digits = _mm256_sub_epi8(bytes, _mm256_set1_epi8(b'0' as i8));
    let bits = _mm256_slli_epi64::<3>(_mm256_cvtepu32_epi64(length));
    let shift = _mm256_sub_epi64(_mm256_set1_epi64x(64), bits);
    _mm256_sllv_epi64(_mm256_srlv_epi64(digits, shift), shift)
}

/// Numbers of eight digits as two of four digits each.
#[inline]
#[target_feature(enable = "avx2")]
fn fours(digits: __m256i) -> __m256i {
    let tens = _mm256_maddubs_epi16(digits, _mm256_set1_epi16(i16::from_le_bytes([10, 1])));
    _mm256_madd_epi16(tens, _mm256_set1_epi32(100 | 1 << 16))
}

/// Eight numbers of at most eight digits (longer ones modulo 10⁸), after the checks of the plan.
///
/// # Safety
/// The places are within `text`, from [`MARGIN`] on.
#[inline]
#[target_feature(enable = "avx2")]
unsafe fn numbers(plan: &Plan, text: &[u8], (end, before): Lanes) -> Option<[u32; 8]> {
    // SAFETY: loads of whole arrays of eight.
    let load = |array: &[u32; 8]| unsafe { _mm256_loadu_si256(array.as_ptr().cast()) };
    let length = _mm256_sub_epi32(_mm256_sub_epi32(end, before), _mm256_set1_epi32(1));
    let eight = _mm256_min_epu32(length, _mm256_set1_epi32(8));
    let mut ends = [0u32; 8];
    // SAFETY: an array of eight.
    unsafe { _mm256_storeu_si256(ends.as_mut_ptr().cast(), end) };
    // SAFETY: eight bytes before each separator; the margin is larger.
    let eight_of = |lane: usize| unsafe { text.as_ptr().add(ends[lane] as usize - 8).cast::<i64>().read_unaligned() };
    let bytes = (
        _mm256_setr_epi64x(eight_of(0), eight_of(1), eight_of(2), eight_of(3)),
        _mm256_setr_epi64x(eight_of(4), eight_of(5), eight_of(6), eight_of(7)),
    );
    let low = digits_of(bytes.0, _mm256_castsi256_si128(eight));
    let high = digits_of(bytes.1, _mm256_extracti128_si256::<1>(eight));
    let (low_parts, high_parts) = (fours(low), fours(high));
    let parts = _mm256_packus_epi32(low_parts, high_parts);
    let value = _mm256_madd_epi16(parts, _mm256_set1_epi32(10_000 | 1 << 16));
    let value = _mm256_permute4x64_epi64::<0b11_01_10_00>(value);
    let keep = load(&plan.keep);
    let value = _mm256_and_si256(value, keep);

    // Digits are checked where the number is kept: the lane of an absent one points elsewhere.
    let nine = _mm256_set1_epi8(9);
    let wide = |half: __m128i| _mm256_cvtepi32_epi64(half);
    let (keep_low, keep_high) = (wide(_mm256_castsi256_si128(keep)), wide(_mm256_extracti128_si256::<1>(keep)));
    let greatest = _mm256_max_epu8(_mm256_and_si256(low, keep_low), _mm256_and_si256(high, keep_high));
    let digits_good = _mm256_cmpeq_epi8(_mm256_max_epu8(greatest, nine), nine);
    let (least, most, value_max) = (load(&plan.digits_min), load(&plan.digits_max), load(&plan.value_max));
    let good = _mm256_and_si256(
        _mm256_and_si256(
            _mm256_cmpeq_epi32(_mm256_max_epu32(length, least), length),
            _mm256_cmpeq_epi32(_mm256_min_epu32(length, most), length),
        ),
        _mm256_and_si256(digits_good, _mm256_cmpeq_epi32(_mm256_min_epu32(value, value_max), value)),
    );
    if _mm256_movemask_epi8(good) != -1 {
        return None;
    }
    let mut numbers = [0; 8];
    // SAFETY: an array of eight.
    unsafe { _mm256_storeu_si256(numbers.as_mut_ptr().cast(), value) };
    Some(numbers)
}

/// Everything but the addresses. The interface is left to the caller: a line that is given up must not have named one.
///
/// # Safety
/// `at` is the rest of an index of `text` from a line of this shape on, which begins at [`MARGIN`] or later.
#[inline]
#[target_feature(enable = "avx2,bmi1,bmi2,popcnt")]
unsafe fn rest_of_line<'a>(
    plan: &Plan,
    shape: &Shape,
    (at, tight): (&[u32], bool),
    text: &'a [u8],
    record: &mut FlowRecord,
) -> Option<Names<'a>> {
    // SAFETY: the separators of the line are those of the shape.
    let places = unsafe {
        if shape.adjoining && plan.keep[FLAGS] == 0 {
            lanes_adjoining(at, shape.numbers[0])
        } else {
            lanes(at, &shape.numbers)
        }
    };
    // The lane of absent flags may hold what stands behind the line in the index: inside the text all the same, or, past
    // the last separator, left from an earlier piece; so it is clamped.
    let last = _mm256_set1_epi32(at[shape.count] as i32);
    let places = (_mm256_min_epu32(places.0, last), _mm256_min_epu32(places.1, last));
    // SAFETY: the places are separators of this line.
    let numbers = unsafe { numbers(plan, text, places)? };
    let end_of = |lane: usize| at[shape.numbers[lane] as usize + 1] as usize;
    let (start, end) = (time_of(text, end_of(START), numbers[START])?, time_of(text, end_of(END), numbers[END])?);
    if end.wrapping_sub(start) > SPAN_MAX {
        return None;
    }
    let mut marks = record.marks.with(plan.marks);
    if let Some(action) = plan.action {
        // SAFETY: the line is of this shape.
        let said = unsafe { eight_before(shape, at, text, action) };
        if said & ACCEPT.1 != ACCEPT.0 {
            if said & REJECT.1 != REJECT.0 {
                return None;
            }
            marks = marks.with(Marks::REJECTED);
        }
    }
    if let Some(status) = plan.status {
        // SAFETY: the line is of this shape.
        let said = unsafe { eight_before(shape, at, text, status) };
        if said & OK.1 != OK.0 {
            return None;
        }
    }
    if !tight {
        for &unread in &plan.unread {
            let (start, end) = bounds(shape, at, usize::from(unread));
            if start == end {
                return None;
            }
        }
    }
    if let Some(direction) = plan.direction {
        match column_of(shape, at, text, direction) {
            b"ingress" => marks = marks.with(Marks::INGRESS),
            b"egress" => marks = marks.with(Marks::EGRESS),
            b"-" => {}
            _ => return None,
        }
    }
    for (service, mark) in plan.services.iter().zip([Marks::FROM_AWS_SERVICE, Marks::TO_AWS_SERVICE]) {
        if let Some(service) = service
            && column_of(shape, at, text, *service) != b"-"
        {
            marks = marks.with(mark);
        }
    }
    let bytes_end = end_of(BYTES);
    let bytes_start = at[shape.numbers[BYTES] as usize] as usize + 1;
    record.bytes = if plan.keep[BYTES] != 0 && bytes_end - bytes_start > 8 {
        text[bytes_start..bytes_end].iter().try_fold(0u64, |value, byte| {
            let digit = byte.wrapping_sub(b'0');
            if digit > 9 { None } else { Some(value * 10 + u64::from(digit)) }
        })?
    } else {
        u64::from(numbers[BYTES])
    };
    record.packets = u64::from(numbers[3]);
    record.start = EventTime(start);
    record.end = EventTime(end);
    record.source_port = numbers[0] as u16;
    record.destination_port = numbers[1] as u16;
    record.protocol = numbers[2] as u8;
    record.tcp_flags = numbers[FLAGS] as u8;
    record.marks = marks;
    let name = match plan.interface {
        Some(interface) => column_of(shape, at, text, interface),
        None => b"",
    };
    if plan.resource && (name.is_empty() || name == b"-") {
        return None;
    }
    let account = match plan.account {
        Some(account) => column_of(shape, at, text, account),
        None => b"",
    };
    Some((account, name))
}

/// An IPv6 address; IPv4 never has the shape that leads here.
fn v6(text: &[u8]) -> Option<Address> {
    text::parse_v6(text)
}

/// How many lines of a text take the fast way.
#[cfg(test)]
pub(super) fn fast_lines(format: &Format, text: &[u8]) -> usize {
    let mut index = Index::default();
    index.build(Level::detect(), text);
    let Some(plan) = Plan::new(format) else { return 0 };
    let mut fast = 0;
    let mut first = 0;
    let mut begin = 0;
    while begin < text.len() {
        // SAFETY: the index is of this text, and lines before the margin are left out.
        if begin >= MARGIN && unsafe { fast_line(&plan, &index, first, text, &mut FlowRecord::default()) }.is_some() {
            fast += 1;
        }
        first += index.what[first..index.count].iter().position(|what| *what == b'\n').unwrap() + 1;
        begin = index.at[first] as usize + 1;
    }
    fast
}
