//! Flow log lines: which columns they have ([`Format`]) and what they say ([`Lines`]).
//!
//! The format is told by a header line (files in S3 have one), else by settings (`${srcaddr} ${dstaddr} …`, as AWS writes
//! it), else it is the default: the fields in their documented order, of which a version 2 line has the first fourteen.
//! Field names that are not known are columns to step over, since AWS adds fields every year.
//!
//! Besides lines as flow logs have them, these are read, told line by line:
//!
//! - a table with a header and separators (CSV), quoted or not, its columns named as query engines do;
//! - a table with a column of whole lines (`message`, `@message`, `_raw`);
//! - lines behind the time at which they were logged, or the name of their log stream;
//! - lines in quotes, or several of them with tabs between;
//! - lines of a Transit Gateway without a header, told by their second column.
//!
//! This file is the meaning of the format; its fast twin for the common shape of a line, [`super::simd`], is held equal to
//! it by tests. A line that cannot be read is refused with its number, field and reason, and the next line is read.
//!
//! What is refused, and what is let pass:
//!
//! | in the line | decided | because |
//! | --- | --- | --- |
//! | `log-status` NODATA, SKIPDATA | blindness | no data is not no traffic |
//! | addresses `-` and no `log-status` in the format | blindness, NODATA | the line says nothing else |
//! | ports, protocol, bytes, action, flags `-` or not in the format | 0, accepted, unknown | AWS documents `-` for "not applicable" |
//! | packets `-` or not in the format | as few as the bytes need at 1500 a packet | bytes came in packets, and nothing is judged of none |
//! | an address or both times `-` | refused | nothing can be judged without |
//! | only one of start, end in the format | the other is the same | |
//! | `end` before `start` | refused | either may be the wrong one, and a swapped pair would pass for a real interval |
//! | more than a day from `start` to `end` | refused | intervals are 1 or 10 minutes; a wrong digit in a time would drag every window along |
//! | more or fewer columns than the format | refused | no column can be trusted |

use memchr::memchr;

use crate::flow::interfaces::Interfaces;
use crate::flow::names::{self, Column};
use crate::flow::{Address, Blindness, BlindnessKind, EventTime, FlowRecord, Interface, Marks};

mod loose;
mod otherwise;
mod table;

pub(crate) use loose::decode_loosely;
use table::{Cells, SEPARATORS, Separator};

/// The documented fields in their documented order, versions 2 to 10 (there is none of version 6).
pub const FIELDS: [&str; 42] = [
    "version",
    "account-id",
    "interface-id",
    "srcaddr",
    "dstaddr",
    "srcport",
    "dstport",
    "protocol",
    "packets",
    "bytes",
    "start",
    "end",
    "action",
    "log-status",
    "vpc-id",
    "subnet-id",
    "instance-id",
    "tcp-flags",
    "type",
    "pkt-srcaddr",
    "pkt-dstaddr",
    "region",
    "az-id",
    "sublocation-type",
    "sublocation-id",
    "pkt-src-aws-service",
    "pkt-dst-aws-service",
    "flow-direction",
    "traffic-path",
    "ecs-cluster-arn",
    "ecs-cluster-name",
    "ecs-container-instance-arn",
    "ecs-container-instance-id",
    "ecs-container-id",
    "ecs-second-container-id",
    "ecs-service-name",
    "ecs-task-definition-arn",
    "ecs-task-arn",
    "ecs-task-id",
    "reject-reason",
    "resource-id",
    "encryption-status",
];

/// How many columns a line in documented order has when it stops at the end of a version.
const DOCUMENTED_WIDTHS: [usize; 7] = [14, 21, 25, 29, 39, 40, 41];

/// The most columns that a format may name: 42 fields and as many tags.
pub const COLUMNS_MAX: usize = 128;

/// Longer lines are refused unread; the longest real line (all fields, ECS names at their limits) is under 3 KiB.
pub const LINE_MAX: usize = 64 * 1024;

/// The longest believable time from `start` to `end`, in seconds.
pub const SPAN_MAX: u32 = 86_400;

/// The bytes of a full packet outside a VPC.
const MTU: u64 = 1_500;

/// A field that the decoder reads, as its index in [`FIELDS`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)] // each is the field of its name
pub enum Field {
    Account = 1,
    Interface = 2,
    Source = 3,
    Destination = 4,
    SourcePort = 5,
    DestinationPort = 6,
    Protocol = 7,
    Packets = 8,
    Bytes = 9,
    Start = 10,
    End = 11,
    Action = 12,
    Status = 13,
    Flags = 17,
    PacketSource = 19,
    PacketDestination = 20,
    PacketSourceService = 25,
    PacketDestinationService = 26,
    Direction = 27,
    Resource = 40,
}

impl Field {
    /// All of them, in documented order.
    pub(crate) const ALL: [Field; 20] = [
        Field::Account,
        Field::Interface,
        Field::Source,
        Field::Destination,
        Field::SourcePort,
        Field::DestinationPort,
        Field::Protocol,
        Field::Packets,
        Field::Bytes,
        Field::Start,
        Field::End,
        Field::Action,
        Field::Status,
        Field::Flags,
        Field::PacketSource,
        Field::PacketDestination,
        Field::PacketSourceService,
        Field::PacketDestinationService,
        Field::Direction,
        Field::Resource,
    ];

    /// The AWS name.
    pub const fn name(self) -> &'static str {
        FIELDS[self as usize]
    }
}

const ABSENT: u8 = u8::MAX;

/// Which column holds which field.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Format {
    /// Column of each of [`FIELDS`], or [`ABSENT`].
    column: [u8; FIELDS.len()],
    width: usize,
    /// Whether shorter lines that stop at the end of a version are read too: only where nobody named a format.
    documented: bool,
    /// What stands between columns.
    separator: Separator,
    /// The column that holds whole lines, where the others are none of a flow log.
    message: Option<u8>,
    names: Vec<String>,
}

/// Why a list of fields is not a format.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FormatError {
    /// Nothing named.
    #[error("the format names no fields; write it as in AWS: ${{srcaddr}} ${{dstaddr}} …")]
    Empty,
    /// More than [`COLUMNS_MAX`].
    #[error("the format names {0} fields, more than {COLUMNS_MAX}")]
    TooWide(usize),
    /// Fields that nothing can be judged without.
    #[error("the format has no {}; without it nothing can be judged (add the field to the flow log, or to the query)", quoted(.0))]
    Lacks(Vec<&'static str>),
    /// One field twice.
    #[error("the format names `{0}` twice")]
    Twice(String),
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

impl Default for Format {
    /// All fields in their documented order, of which lines of version 2, 3, … have the first 14, 21, ….
    fn default() -> Format {
        let mut format = Format::from_names(FIELDS).expect("the documented fields are a format");
        format.documented = true;
        format
    }
}

impl Format {
    /// A format from field names as in a header line, or as AWS writes formats: `${srcaddr} ${dstaddr} …`. `_` may stand
    /// for `-`. Where commas, tabs, semicolons or bars stand between the names, they do between the columns, too.
    pub fn parse(text: &str) -> Result<Format, FormatError> {
        match Separator::of_names(text.as_bytes()) {
            Separator::Blanks => {
                Format::from_names(text.split([' ', '\t', ',', '\r', '\n']).filter(|name| !name.is_empty()))
            }
            Separator::Byte(separator) => {
                let line = text.trim_matches(['\r', '\n', ' ']);
                let cells = Cells::split(line.as_bytes(), separator);
                if cells.count() > COLUMNS_MAX {
                    return Err(FormatError::TooWide(cells.count()));
                }
                let names = cells.all().iter().map(|cell| std::str::from_utf8(cell).unwrap_or_default());
                Format::of(names, Separator::Byte(separator))
            }
        }
    }

    pub(crate) fn from_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Format, FormatError> {
        Format::of(names, Separator::Blanks)
    }

    fn of<'a>(names: impl IntoIterator<Item = &'a str>, separator: Separator) -> Result<Format, FormatError> {
        let names: Vec<String> = names.into_iter().map(plain_name).collect();
        match names.len() {
            0 => return Err(FormatError::Empty),
            width if width > COLUMNS_MAX => return Err(FormatError::TooWide(width)),
            _ => {}
        }
        let mut column = [ABSENT; FIELDS.len()];
        let mut rank = [usize::MAX; FIELDS.len()];
        let (mut message, mut stamp) = (None, None);
        for (index, name) in names.iter().enumerate() {
            match names::known(name) {
                // A field twice is a column to step over, unless something hangs on it.
                Some((Column::Field(field), 0)) if rank[field as usize] == 0 => {
                    return Err(FormatError::Twice(name.clone()));
                }
                Some((Column::Field(field), better)) if better < rank[field as usize] => {
                    (column[field as usize], rank[field as usize]) = (index as u8, better);
                }
                Some((Column::Message, better)) if message.is_none_or(|(_, other)| better < other) => {
                    message = Some((index as u8, better));
                }
                Some((Column::Stamp, better)) if stamp.is_none_or(|(_, other)| better < other) => {
                    stamp = Some((index as u8, better));
                }
                _ => {}
            }
        }
        let timed = [Field::Start, Field::End].iter().any(|field| column[*field as usize] != ABSENT);
        if let (false, Some((index, _))) = (timed, stamp) {
            column[Field::Start as usize] = index;
        }
        let mut format = Format { column, width: names.len(), documented: false, separator, message: None, names };
        // Whole lines say more than what a query has left of them.
        match (format.sufficient(), message, timed) {
            (Ok(()), _, true) | (Ok(()), None, _) => {}
            (_, Some((index, _)), _) => format.message = Some(index),
            (Err(error), None, _) => return Err(error),
        }
        Ok(format)
    }

    fn sufficient(&self) -> Result<(), FormatError> {
        let any = |fields: &[Field]| fields.iter().any(|&field| self.column(field).is_some());
        let lacks: Vec<&str> = [
            (&[Field::Source, Field::PacketSource], "srcaddr"),
            (&[Field::Destination, Field::PacketDestination], "dstaddr"),
            (&[Field::Start, Field::End], "start"),
        ]
        .into_iter()
        .filter_map(|(fields, name)| (!any(fields)).then_some(name))
        .collect();
        if lacks.is_empty() { Ok(()) } else { Err(FormatError::Lacks(lacks)) }
    }

    /// Whether a line is a header: at least two of its words, and at least half of them or an address, are names of
    /// fields; or it is the header of a table with a column of whole lines. No data line is, since no field's values are
    /// field names.
    pub fn is_header(line: &[u8]) -> bool {
        let line = without_mark(line);
        let separator = Separator::of_names(line);
        let (mut words, mut known, mut addresses) = (0, 0, [false; 2]);
        let (mut messages, mut stamps) = (0, 0);
        let mut look = |word: &[u8]| {
            words += 1;
            let name = std::str::from_utf8(word).map(plain_name).unwrap_or_default();
            known += usize::from(names::is_name(&name));
            match names::known(&name).map(|(column, _)| column) {
                Some(Column::Field(Field::Source | Field::PacketSource)) => addresses[0] = true,
                Some(Column::Field(Field::Destination | Field::PacketDestination)) => addresses[1] = true,
                Some(Column::Message) => messages += 1,
                Some(Column::Stamp) => stamps += 1,
                _ => {}
            }
        };
        match separator {
            Separator::Blanks => {
                line.split(|byte| *byte <= b' ' || *byte == b',').filter(|word| !word.is_empty()).for_each(&mut look);
            }
            Separator::Byte(separator) => Cells::split(line, separator).all().iter().for_each(|cell| look(cell)),
        }
        let lines = messages == 1 && (separator != Separator::Blanks && stamps > 0 || words == 1 && is_message(line));
        known >= 2 && (known * 2 >= words || addresses.contains(&true)) || lines
    }

    /// The names in column order.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// How many columns a line has.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Whether this is the default, for which nobody named columns.
    pub fn is_documented(&self) -> bool {
        self.documented
    }

    /// The column of a field, from 0.
    pub fn column(&self, field: Field) -> Option<usize> {
        match self.column[field as usize] {
            ABSENT => None,
            column => Some(usize::from(column)),
        }
    }

    /// Whether lines are those of a flow log, with blanks between their columns: what the fast decoder knows.
    pub(crate) fn is_plain(&self) -> bool {
        self.separator == Separator::Blanks && self.message.is_none()
    }

    fn fits(&self, width: usize) -> bool {
        width == self.width || self.documented && DOCUMENTED_WIDTHS.contains(&width)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.separator {
            Separator::Blanks => f.write_str(&self.names.join(" ")),
            Separator::Byte(byte) => {
                let separator = char::from(byte);
                for (index, name) in self.names.iter().enumerate() {
                    if index > 0 {
                        write!(f, "{separator}")?;
                    }
                    if name.contains(separator) { write!(f, "\"{name}\"")? } else { f.write_str(name)? }
                }
                // One column alone needs something that says so.
                if self.names.len() == 1 { write!(f, "{separator}") } else { Ok(()) }
            }
        }
    }
}

/// Whether the whole line is a name for lines.
fn is_message(line: &[u8]) -> bool {
    let name = line.trim_ascii();
    [&b"message"[..], b"@message", b"_raw"].iter().any(|known| name.trim_quotes() == *known)
}

trait TrimQuotes {
    fn trim_quotes(&self) -> &[u8];
}

impl TrimQuotes for [u8] {
    fn trim_quotes(&self) -> &[u8] {
        let inner = self.strip_prefix(b"\"").unwrap_or(self);
        inner.strip_suffix(b"\"").unwrap_or(inner)
    }
}

/// A line without the byte-order marks in front of it; files that were put together have them in the middle, too.
pub(crate) fn without_mark(mut line: &[u8]) -> &[u8] {
    while let Some(rest) = line.strip_prefix(b"\xef\xbb\xbf") {
        line = rest;
    }
    line
}

fn plain_name(name: &str) -> String {
    let name = name.strip_prefix("${").and_then(|name| name.strip_suffix('}')).unwrap_or(name);
    name.trim_start_matches('\u{feff}').trim_matches(['"', '\'', '`', ' ']).replace('_', "-").to_ascii_lowercase()
}

/// What came of lines: filled by the decoder, emptied and used again by its owner.
#[derive(Default, Debug)]
pub struct Decoded {
    /// The records, in order.
    pub records: Vec<FlowRecord>,
    /// NODATA and SKIPDATA.
    pub blind: Vec<Blindness>,
    /// How many lines were refused.
    pub refused: u64,
    /// The first few of them, at most [`SAMPLES_MAX`].
    pub samples: Vec<Refusal>,
}

/// How many refusals are kept with their words.
pub const SAMPLES_MAX: usize = 16;

/// One refused line (or row, or event).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// From 1.
    pub line: u64,
    /// The AWS name of the field to blame.
    pub field: Option<&'static str>,
    /// Why.
    pub reason: String,
}

impl Decoded {
    /// Forgets everything, keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        self.blind.clear();
        self.refused = 0;
        self.samples.clear();
    }

    /// Counts a refusal and keeps it while there is room; its words are made only then.
    pub fn refuse(&mut self, line: u64, field: Option<&'static str>, reason: impl FnOnce() -> String) {
        self.refused += 1;
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(Refusal { line, field, reason: reason() });
        }
    }
}

/// Why a line was refused; made into words only when it is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed<'a> {
    pub(crate) field: Option<Field>,
    pub(crate) why: Why<'a>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Why<'a> {
    Columns { found: usize, expected: usize },
    TooLong(usize),
    Missing,
    Address(&'a [u8]),
    Number { text: &'a [u8], max: u64 },
    Action(&'a [u8]),
    Status(&'a [u8]),
    Direction(&'a [u8]),
    EndBeforeStart { start: u32, end: u32 },
    Span(u32),
}

impl std::fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            Why::Columns { found, expected } => write!(f, "{found} columns where the format has {expected}"),
            Why::TooLong(length) => write!(f, "the line has {length} bytes or more, the limit is {LINE_MAX}"),
            Why::Missing => f.write_str("is `-` in a record that is not NODATA or SKIPDATA"),
            Why::Address(text) => write!(f, "`{}` is not an IP address", excerpt(text)),
            Why::Number { text, max } => write!(f, "`{}` is not a number from 0 to {max}", excerpt(text)),
            Why::Action(text) => write!(f, "`{}` is neither ACCEPT nor REJECT", excerpt(text)),
            Why::Status(text) => write!(f, "`{}` is none of OK, NODATA, SKIPDATA", excerpt(text)),
            Why::Direction(text) => write!(f, "`{}` is neither ingress nor egress", excerpt(text)),
            Why::EndBeforeStart { start, end } => write!(f, "end {end} is before start {start}"),
            Why::Span(seconds) => write!(f, "{seconds} s from start to end, more than a day"),
        }
    }
}

/// At most 40 printable bytes of a value, for a message.
pub(crate) fn excerpt(text: &[u8]) -> String {
    let shown = &text[..text.len().min(40)];
    let more = if text.len() > shown.len() { "…" } else { "" };
    format!("{}{more}", shown.escape_ascii())
}

/// The lines of one file or payload, as they are decoded.
#[derive(Clone, Debug)]
pub struct Lines {
    format: Format,
    /// What held before any header: the format of lines within a table.
    inner: Format,
    number: u64,
    headers: u64,
    /// A header that is not a format: its lines are refused without being looked at.
    unusable: Option<FormatError>,
}

impl Lines {
    /// Begins at line 1, with the format that holds until a header says otherwise.
    pub fn new(format: Format) -> Lines {
        Lines { inner: format.clone(), format, number: 0, headers: 0, unusable: None }
    }

    /// Goes on after `number` lines, in the middle of a file.
    pub fn resume(format: Format, number: u64) -> Lines {
        Lines { number, ..Lines::new(format) }
    }

    /// Goes on in the middle of a file whose header named `named`.
    pub(crate) fn resume_under(format: Format, named: Option<Format>, number: u64) -> Lines {
        let mut lines = Lines::resume(format, number);
        if let Some(named) = named {
            (lines.format, lines.headers) = (named, 1);
        }
        lines
    }

    /// How many lines were seen, blank ones included.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// How many of them were headers.
    pub fn headers(&self) -> u64 {
        self.headers
    }

    /// The format that holds now.
    pub fn format(&self) -> &Format {
        &self.format
    }

    /// Why the last header could not be used, if so.
    pub fn unusable(&self) -> Option<&FormatError> {
        self.unusable.as_ref()
    }

    /// Decodes whole lines; the last one may lack its line end. This is the plain way, one byte at a time; [`super::simd`]
    /// has the fast one with the same result.
    pub fn decode_plainly(&mut self, text: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) {
        let mut rest = text;
        while !rest.is_empty() {
            let (line, after) = match memchr(b'\n', rest) {
                Some(end) => (&rest[..end], &rest[end + 1..]),
                None => (rest, &rest[rest.len()..]),
            };
            self.decode_line(line, interfaces, out);
            rest = after;
        }
    }

    /// Decodes one line, without its line end.
    pub(crate) fn decode_line(&mut self, line: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) {
        self.number += 1;
        if line.len() > LINE_MAX {
            return self.refuse(Malformed { field: None, why: Why::TooLong(line.len()) }, out);
        }
        if self.unusable.is_none() {
            let malformed = match (self.format.message, self.format.separator) {
                (None, Separator::Blanks) => match decode(&self.format, line, interfaces, out) {
                    Ok(()) => return,
                    Err(malformed) => malformed,
                },
                _ => return self.decode_row(line, interfaces, out),
            };
            if self.decode_otherwise(line, &malformed, interfaces, out) {
                return;
            }
            if !Format::is_header(line) {
                return self.refuse(malformed, out);
            }
        }
        self.header_or_refuse(line, out);
    }

    /// Counts a line that was decoded elsewhere.
    #[inline]
    pub(crate) fn count_fast(&mut self) {
        self.number += 1;
    }

    /// Counts a line that was too long to be kept.
    pub fn refuse_long_line(&mut self, out: &mut Decoded) {
        self.number += 1;
        self.refuse(Malformed { field: None, why: Why::TooLong(LINE_MAX + 1) }, out);
    }

    /// Counts something that stands where a line should, and refuses it.
    pub(crate) fn refuse_event(
        &mut self,
        field: Option<&'static str>,
        reason: impl FnOnce() -> String,
        out: &mut Decoded,
    ) {
        self.number += 1;
        out.refuse(self.number, field, reason);
    }

    #[cold]
    fn refuse(&self, malformed: Malformed<'_>, out: &mut Decoded) {
        out.refuse(self.number, malformed.field.map(Field::name), || malformed.why.to_string());
    }

    #[cold]
    fn header_or_refuse(&mut self, line: &[u8], out: &mut Decoded) {
        if !Format::is_header(line) {
            if line.iter().any(|byte| *byte > b' ') {
                let reason = || self.unusable.as_ref().map_or_else(String::new, FormatError::to_string);
                out.refuse(self.number, None, reason);
            }
            return;
        }
        self.headers += 1;
        match Format::parse(&String::from_utf8_lossy(without_mark(line))) {
            Ok(format) => {
                self.format = format;
                self.unusable = None;
            }
            Err(error) => self.unusable = Some(error),
        }
    }
}

/// The columns of one line: starts and ends within it.
struct Columns<'a> {
    line: &'a [u8],
    bounds: [(u32, u32); COLUMNS_MAX],
    count: usize,
}

impl<'a> Columns<'a> {
    /// Splits at runs of blanks. Columns past [`COLUMNS_MAX`] are counted, not kept.
    fn split(line: &'a [u8]) -> Columns<'a> {
        let mut columns = Columns { line, bounds: [(0, 0); COLUMNS_MAX], count: 0 };
        let mut at = 0;
        while at < line.len() {
            if is_blank(line[at]) {
                at += 1;
                continue;
            }
            let start = at;
            while at < line.len() && !is_blank(line[at]) {
                at += 1;
            }
            if columns.count < COLUMNS_MAX {
                columns.bounds[columns.count] = (start as u32, at as u32);
            }
            columns.count += 1;
        }
        columns
    }

    /// The text of a field; `None` where the format or this line does not have it, or it is `-`.
    fn get(&self, format: &Format, field: Field) -> Option<&'a [u8]> {
        let column = usize::from(format.column[field as usize]);
        // Columns past the line's own are those that a short documented line leaves out; ABSENT is past every line.
        if column >= self.count {
            return None;
        }
        let (start, end) = self.bounds[column];
        let text = &self.line[start as usize..end as usize];
        if text == b"-" { None } else { Some(text) }
    }
}

/// What separates columns: space, and every control character (tab, carriage return, …).
#[inline]
pub(crate) fn is_blank(byte: u8) -> bool {
    byte <= b' '
}

fn decode<'a>(
    format: &Format,
    line: &'a [u8],
    interfaces: &mut Interfaces,
    out: &mut Decoded,
) -> Result<(), Malformed<'a>> {
    let columns = Columns::split(line);
    if columns.count == 0 {
        return Ok(());
    }
    if !format.fits(columns.count) {
        let expected = if format.documented { DOCUMENTED_WIDTHS[0] } else { format.width };
        return Err(Malformed { field: None, why: Why::Columns { found: columns.count, expected } });
    }
    decode_fields(&|field| columns.get(format, field), format.column(Field::Status).is_some(), interfaces, out)
}

/// Decodes a record from its fields; `text` gives `None` for a field that is not there or is `-`. `has_status` is whether
/// the format has a `log-status`. Used for lines, JSON objects and Parquet rows alike.
pub(crate) fn decode_fields<'a>(
    text: &impl Fn(Field) -> Option<&'a [u8]>,
    has_status: bool,
    interfaces: &mut Interfaces,
    out: &mut Decoded,
) -> Result<(), Malformed<'a>> {
    let status = text(Field::Status);
    let packet_source = address(text, Field::PacketSource);
    let packet_destination = address(text, Field::PacketDestination);
    let source = address(text, Field::Source);
    let destination = address(text, Field::Destination);
    let kind = match status {
        Some(b"NODATA") => Some(BlindnessKind::NoData),
        Some(b"SKIPDATA") => Some(BlindnessKind::SkipData),
        Some(b"OK") | None => None,
        Some(other) => return Err(Malformed { field: Some(Field::Status), why: Why::Status(other) }),
    };
    let (start, end) = times(text)?;
    if let Some(kind) = kind {
        let interface = interface(text, interfaces);
        out.blind.push(Blindness { interface, start, end, kind });
        return Ok(());
    }
    let nothing = matches!(
        (&source, &destination, &packet_source, &packet_destination),
        (Ok(None), Ok(None), Ok(None), Ok(None))
    );
    if nothing && !has_status {
        let interface = interface(text, interfaces);
        out.blind.push(Blindness { interface, start, end, kind: BlindnessKind::NoData });
        return Ok(());
    }
    let mut marks = Marks::default();
    let (source, seen_source) = (source?, packet_source?);
    let (destination, seen_destination) = (destination?, packet_destination?);
    let differs = |packet: Option<Address>, interface: Option<Address>| matches!((packet, interface), (Some(packet), Some(interface)) if packet != interface);
    if differs(seen_source, source) || differs(seen_destination, destination) {
        marks = marks.with(Marks::INTERMEDIARY);
    }
    let missing = |field| Malformed { field: Some(field), why: Why::Missing };
    let source = seen_source.or(source).ok_or(missing(Field::Source))?;
    let destination = seen_destination.or(destination).ok_or(missing(Field::Destination))?;
    let bytes = number(text, Field::Bytes, u64::MAX)?.unwrap_or(0);
    let mut record = FlowRecord {
        source,
        destination,
        bytes,
        packets: number(text, Field::Packets, u64::MAX)?.unwrap_or(bytes.div_ceil(MTU)),
        start,
        end,
        source_port: number(text, Field::SourcePort, 0xffff)?.unwrap_or(0) as u16,
        destination_port: number(text, Field::DestinationPort, 0xffff)?.unwrap_or(0) as u16,
        protocol: number(text, Field::Protocol, 0xff)?.unwrap_or(0) as u8,
        ..FlowRecord::default()
    };
    if let Some(flags) = number(text, Field::Flags, 0xff)? {
        record.tcp_flags = flags as u8;
        marks = marks.with(Marks::FLAGS_KNOWN);
    }
    record.marks = marks.with(words(text)?);
    record.interface = interface(text, interfaces);
    out.records.push(record);
    Ok(())
}

/// The facts that stand as words: action, direction, AWS services.
fn words<'a>(text: &impl Fn(Field) -> Option<&'a [u8]>) -> Result<Marks, Malformed<'a>> {
    let action = match text(Field::Action) {
        Some(b"ACCEPT") | None => Marks::default(),
        Some(b"REJECT") => Marks::REJECTED,
        Some(other) => return Err(Malformed { field: Some(Field::Action), why: Why::Action(other) }),
    };
    let direction = match text(Field::Direction) {
        None => Marks::default(),
        Some(b"ingress") => Marks::INGRESS,
        Some(b"egress") => Marks::EGRESS,
        Some(other) => return Err(Malformed { field: Some(Field::Direction), why: Why::Direction(other) }),
    };
    let from = text(Field::PacketSourceService).map_or(Marks::default(), |_| Marks::FROM_AWS_SERVICE);
    let to = text(Field::PacketDestinationService).map_or(Marks::default(), |_| Marks::TO_AWS_SERVICE);
    Ok(action.with(direction).with(from).with(to))
}

fn interface<'a>(text: &impl Fn(Field) -> Option<&'a [u8]>, interfaces: &mut Interfaces) -> crate::flow::InterfaceId {
    let name = text(Field::Interface).or_else(|| text(Field::Resource)).unwrap_or_default();
    interfaces.intern(text(Field::Account).unwrap_or_default(), name)
}

fn times<'a>(text: &impl Fn(Field) -> Option<&'a [u8]>) -> Result<(EventTime, EventTime), Malformed<'a>> {
    let start = number(text, Field::Start, u64::from(u32::MAX))?.map(|seconds| seconds as u32);
    let end = number(text, Field::End, u64::from(u32::MAX))?.map(|seconds| seconds as u32);
    let missing = Malformed { field: Some(Field::Start), why: Why::Missing };
    let (start, end) = (start.or(end).ok_or(missing)?, end.or(start).ok_or(missing)?);
    let malformed = |why| Malformed { field: Some(Field::End), why };
    match end.checked_sub(start) {
        None => Err(malformed(Why::EndBeforeStart { start, end })),
        Some(span) if span > SPAN_MAX => Err(malformed(Why::Span(span))),
        Some(_) => Ok((EventTime(start), EventTime(end))),
    }
}

fn number<'a>(text: &impl Fn(Field) -> Option<&'a [u8]>, field: Field, max: u64) -> Result<Option<u64>, Malformed<'a>> {
    let Some(text) = text(field) else { return Ok(None) };
    match digits(text) {
        Some(value) if value <= max => Ok(Some(value)),
        _ => Err(Malformed { field: Some(field), why: Why::Number { text, max } }),
    }
}

/// Up to 20 decimal digits and nothing else.
fn digits(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |value, &byte| {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 { None } else { value.checked_mul(10)?.checked_add(u64::from(digit)) }
    })
}

fn address<'a>(text: &impl Fn(Field) -> Option<&'a [u8]>, field: Field) -> Result<Option<Address>, Malformed<'a>> {
    let Some(text) = text(field) else { return Ok(None) };
    match parse_address(text) {
        Some(address) => Ok(Some(address)),
        None => Err(Malformed { field: Some(field), why: Why::Address(text) }),
    }
}

/// An address as flow logs write them: dotted IPv4 without leading zeros, or IPv6 of any RFC 4291 form.
pub(crate) fn parse_address(text: &[u8]) -> Option<Address> {
    parse_v4(text).or_else(|| parse_v6(text))
}

/// An IPv6 address (RFC 4291, 2.2) of hexadecimal groups, as logs have it, quickly; other forms as the library reads
/// them.
pub(crate) fn parse_v6(text: &[u8]) -> Option<Address> {
    parse_groups(text).or_else(|| {
        let text = std::str::from_utf8(text).ok()?;
        text.parse::<std::net::Ipv6Addr>().ok().map(|ip| Address::from_bits(ip.to_bits()))
    })
}

/// Eight groups of one to four digits, or fewer around one `::`. `None` says nothing but that it is not of this form.
fn parse_groups(text: &[u8]) -> Option<Address> {
    let (mut bits, mut groups, mut gap) = (0u128, 0, None);
    let mut rest = text;
    if let Some(after) = rest.strip_prefix(b"::") {
        (gap, rest) = (Some(0), after);
    }
    while !rest.is_empty() {
        let digits = rest.iter().take(4).take_while(|byte| byte.is_ascii_hexdigit()).count();
        if digits == 0 || groups == 8 {
            return None;
        }
        let group = rest[..digits].iter().fold(0, |value, &byte| {
            let digit = if byte <= b'9' { byte - b'0' } else { (byte | 0x20) - b'a' + 10 };
            value << 4 | u128::from(digit)
        });
        bits = bits << 16 | group;
        groups += 1;
        rest = &rest[digits..];
        if !rest.is_empty() {
            rest = rest.strip_prefix(b":").filter(|rest| !rest.is_empty())?;
            if let Some(after) = rest.strip_prefix(b":") {
                if gap.replace(groups).is_some() {
                    return None;
                }
                rest = after;
            }
        }
    }
    match gap {
        None if groups == 8 => Some(Address::from_bits(bits)),
        // Of the groups, those behind the gap are the last ones, and the others move up over the zeros.
        Some(before) if groups < 8 => {
            let behind = 16 * (groups - before);
            let (upper, lower) = if behind == 0 { (bits, 0) } else { (bits >> behind, bits & ((1 << behind) - 1)) };
            let upper = if before == 0 { 0 } else { upper << (16 * (8 - before)) };
            Some(Address::from_bits(upper | lower))
        }
        _ => None,
    }
}

fn parse_v4(text: &[u8]) -> Option<Address> {
    if text.len() > 15 {
        return None;
    }
    let mut bits = 0u32;
    let mut octets = 0;
    for octet in text.split(|byte| *byte == b'.') {
        if octet.is_empty() || octet.len() > 3 || octet.len() > 1 && octet[0] == b'0' {
            return None;
        }
        let value = digits(octet)?;
        if value > 255 {
            return None;
        }
        bits = bits << 8 | value as u32;
        octets += 1;
    }
    if octets == 4 { Some(Address::v4(bits)) } else { None }
}

/// The interfaces that a batch names for the first time.
pub fn named(interfaces: &mut Interfaces) -> Vec<Interface> {
    interfaces.take_new().to_vec()
}

#[cfg(test)]
mod tests;
