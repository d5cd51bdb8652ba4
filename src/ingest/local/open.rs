//! One file: unpacked, and decoded by what its bytes say it is.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use memchr::{memchr, memrchr};
use parquet::file::reader::ChunkReader;
use serde::{Deserialize, Serialize};

use crate::flow::envelope::{Envelope, Kind};
use crate::flow::foreign;
use crate::flow::interfaces::Interfaces;
use crate::flow::parquet::{Rows, RowsError};
use crate::flow::simd::Fast;
use crate::flow::text::{Decoded, Format, LINE_MAX, Lines};
use crate::ingest::local::archive::{self, Members, Tar};
use crate::ingest::local::files::PATIENCE;
use crate::ingest::local::handle::{Handle, Parts};
use crate::ingest::local::unpack::{Counted, Unpacked, unpack};
use crate::ingest::local::walk::Found;
use crate::ingest::local::{ReadError, shown};
use crate::ingest::{Batch, Position, Refusal, Refused, Settings};

/// Where in which file: what a [`Position`] of the local backend holds, as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) file: String,
    /// Bytes of text (unpacked), JSON or rows that are done with.
    pub(crate) offset: u64,
    /// Lines, objects or rows that are done with.
    pub(crate) line: u64,
    /// Records behind these that are done with as well: a piece of a file is handed on in parts where other files have records
    /// of the same time.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) skip: u64,
    /// The columns from here on, when a header named them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) fields: Option<String>,
}

fn is_zero(count: &u64) -> bool {
    *count == 0
}

impl Place {
    /// The beginning of a file.
    pub(crate) fn at_start(file: &str) -> Place {
        Place { file: file.to_owned(), offset: 0, line: 0, skip: 0, fields: None }
    }

    pub(crate) fn position(&self) -> Position {
        Position(serde_json::to_string(self).expect("strings and numbers always serialise"))
    }
}

/// What all files of a shard share.
pub(super) struct Decoder {
    pub(super) format: Format,
    pub(super) interfaces: Interfaces,
    pub(super) decoded: Decoded,
    pub(super) fast: Fast,
    pub(super) envelope: Envelope,
    pub(super) payload_bytes_max: usize,
    /// How much text is read and decoded at a time.
    pub(super) chunk: usize,
    /// Whether files keep no handle between two reads, and small buffers: where many are read side by side.
    pub(super) frugal: bool,
    pub(super) buffer: Vec<u8>,
    interfaces_max: usize,
}

impl Decoder {
    pub(super) fn new(settings: &Settings) -> Result<Decoder, ReadError> {
        Ok(Decoder {
            format: settings.format()?,
            interfaces: Interfaces::new(settings.interfaces_max),
            decoded: Decoded::default(),
            fast: Fast::default(),
            envelope: Envelope::new(settings.payload_bytes_max),
            payload_bytes_max: settings.payload_bytes_max,
            chunk: settings.chunk_bytes.max(2 * LINE_MAX),
            frugal: false,
            buffer: Vec::new(),
            interfaces_max: settings.interfaces_max,
        })
    }

    /// Another one with the same settings, for what is read and thrown away.
    fn fresh(&self) -> Decoder {
        Decoder {
            format: self.format.clone(),
            interfaces: Interfaces::new(self.interfaces_max),
            decoded: Decoded::default(),
            fast: Fast::default(),
            envelope: Envelope::new(self.payload_bytes_max),
            payload_bytes_max: self.payload_bytes_max,
            chunk: self.chunk,
            frugal: self.frugal,
            buffer: Vec::new(),
            interfaces_max: self.interfaces_max,
        }
    }

    /// Moves what was decoded of `name` into a batch.
    pub(super) fn take(&mut self, name: &str, batch: &mut Batch) {
        let decoded = &mut self.decoded;
        std::mem::swap(&mut batch.records, &mut decoded.records);
        std::mem::swap(&mut batch.blind, &mut decoded.blind);
        batch.interfaces.extend_from_slice(self.interfaces.take_new());
        let samples = decoded.samples.drain(..).map(|refusal| Refusal {
            source: name.to_owned(),
            line: refusal.line,
            field: refusal.field.map(str::to_owned),
            reason: refusal.reason,
        });
        batch.refused.merge(Refused { count: decoded.refused, samples: samples.collect() });
        decoded.clear();
    }
}

/// A file being read.
pub(super) struct Open {
    pub(super) name: String,
    pub(super) size: u64,
    pub(super) read: Arc<AtomicU64>,
    inside: Inside,
    /// Whether any of it was a record or blindness; or it has a header and no line that is refused, for a file of nothing
    /// but a header is a flow log in which nothing happened. One of which nothing but its header could be read is none.
    pub(super) readable: bool,
    pub(super) refused: u64,
    pub(super) first_refusal: Option<String>,
}

/// A file is one stream, or an archive of several.
enum Inside {
    One(Reading),
    Many(Box<Archive>),
}

/// One stream of one kind.
struct Reading {
    content: Content,
    /// Its first bytes, for whoever wonders what it is.
    head: Vec<u8>,
    /// Whether there was a record or blindness.
    read: bool,
    refused: u64,
    first_refusal: Option<String>,
}

enum Content {
    /// It could not be opened as what it is.
    Nothing,
    Text(Box<TextStream>),
    Json(Box<JsonStream>),
    Rows(Box<dyn AnyRows>),
}

/// Rows of a Parquet file, wherever its bytes are.
trait AnyRows: Send {
    fn decode(&mut self, interfaces: &mut Interfaces, out: &mut Decoded) -> Result<bool, RowsError>;
    fn skip_to(&mut self, number: u64) -> Result<(), RowsError>;
    fn number(&self) -> u64;
}

impl<R: ChunkReader + Send + 'static> AnyRows for Rows<R> {
    fn decode(&mut self, interfaces: &mut Interfaces, out: &mut Decoded) -> Result<bool, RowsError> {
        Rows::decode(self, interfaces, out)
    }

    fn skip_to(&mut self, number: u64) -> Result<(), RowsError> {
        Rows::skip_to(self, number)
    }

    fn number(&self) -> u64 {
        Rows::number(self)
    }
}

#[derive(Default)]
pub(super) struct Step {
    pub(super) ended: bool,
}

impl Open {
    /// Opens a file to go on at a place in it. With `tail`, an unfinished line at the end is left for later: the file may
    /// grow.
    pub(super) fn at(found: &Found, decoder: &Decoder, from: Option<&Place>, tail: bool) -> std::io::Result<Open> {
        let read = Arc::new(AtomicU64::new(0));
        let stdin = found.path == Path::new("-");
        let input: Box<dyn Read + Send> = if stdin {
            Box::new(std::io::stdin())
        } else {
            Box::new(Handle::open(&found.path, decoder.frugal, found.inode)?)
        };
        let counted = Counted { input, read: read.clone() };
        let mut unpacked = unpack(Box::new(counted), stdin, decoder.frugal)?;
        let mut open = Open {
            name: shown(&found.path),
            size: found.size,
            read,
            inside: Inside::One(Reading::nothing(Vec::new(), None)),
            readable: false,
            refused: 0,
            first_refusal: None,
        };
        let plain = (!unpacked.packed && !stdin).then_some(found.path.as_path());
        if matches!(unpacked.kind, Kind::Tar | Kind::Zip) {
            open.inside = Archive::open(unpacked, plain, decoder, from.map_or(0, |place| place.line));
            return Ok(open);
        }
        let offset = from.map_or(0, |place| place.offset);
        // What is done with is read over, not sought: the text may be packed, and the head is read already.
        if unpacked.kind != Kind::Parquet {
            let passed = std::io::copy(&mut (&mut unpacked.input).take(offset), &mut std::io::sink())?;
            if passed < offset && unpacked.packed && tail {
                return Err(std::io::Error::new(ErrorKind::UnexpectedEof, "it holds less than was read of it before"));
            }
            if passed < offset {
                // It is shorter than it was: another file, or cut short and written anew.
                return Open::at(found, decoder, None, tail);
            }
        }
        open.inside = Inside::One(Reading::new(unpacked, plain, decoder, from, stdin, tail));
        Ok(open)
    }

    /// Reads and decodes one chunk.
    pub(super) fn step(&mut self, decoder: &mut Decoder) -> Step {
        let step = match &mut self.inside {
            Inside::One(reading) => reading.step(decoder),
            Inside::Many(archive) => archive.step(decoder),
        };
        let (readable, refused, first) = match &self.inside {
            Inside::One(reading) => (reading.readable(), reading.refused, &reading.first_refusal),
            Inside::Many(archive) => (archive.read, archive.refused, &archive.first_refusal),
        };
        (self.readable, self.refused) = (readable, refused);
        if self.first_refusal.is_none() {
            self.first_refusal.clone_from(first);
        }
        step
    }

    pub(super) fn why_unreadable(&self) -> String {
        match &self.inside {
            Inside::One(reading) => reading.why_unreadable(),
            Inside::Many(archive) => match &archive.first_refusal {
                Some(reason) => format!("{reason} (and no other file of the archive is one)"),
                None => "it is an archive without a file".into(),
            },
        }
    }

    pub(super) fn place(&self) -> Place {
        let reading = match &self.inside {
            Inside::One(reading) => reading,
            Inside::Many(archive) => {
                // A place in it counts steps, as one in Parquet counts rows: like that, it is written as a whole.
                return Place { file: self.name.clone(), offset: 0, line: archive.steps, skip: 0, fields: None };
            }
        };
        let (offset, line) = match &reading.content {
            Content::Text(text) => (text.offset, text.lines.number()),
            Content::Json(json) => (json.offset, json.lines.number()),
            Content::Rows(rows) => (0, rows.number()),
            Content::Nothing => (0, 0),
        };
        let named = reading.lines().filter(|lines| lines.headers() > 0);
        Place { file: self.name.clone(), offset, line, skip: 0, fields: named.map(|lines| lines.format().to_string()) }
    }
}

impl Reading {
    fn nothing(head: Vec<u8>, why: Option<String>) -> Reading {
        Reading { content: Content::Nothing, head, read: false, refused: 0, first_refusal: why }
    }

    /// What unpacked bytes are, to be read from a place in them on. `plain` is the file when they are all of it.
    fn new(
        unpacked: Unpacked,
        plain: Option<&Path>,
        decoder: &Decoder,
        from: Option<&Place>,
        stdin: bool,
        tail: bool,
    ) -> Reading {
        let Unpacked { kind, head, input, .. } = unpacked;
        let named = from.and_then(|place| place.fields.as_deref()).and_then(|fields| Format::parse(fields).ok());
        let (offset, line) = from.map_or((0, 0), |place| (place.offset, place.line));
        let lines = Lines::resume_under(decoder.format.clone(), named, line);
        let content = match kind {
            Kind::Parquet => {
                let rows = match plain {
                    Some(path) if decoder.frugal => {
                        Parts::open(path).map_err(|error| RowsError::Damaged(error.to_string())).and_then(boxed)
                    }
                    Some(path) => {
                        File::open(path).map_err(|error| RowsError::Damaged(error.to_string())).and_then(boxed)
                    }
                    None => in_memory(input, decoder.payload_bytes_max).map_err(RowsError::Damaged).and_then(boxed),
                };
                let rows = rows.and_then(|mut rows| rows.skip_to(line).map(|()| rows));
                match rows {
                    Ok(rows) => Content::Rows(rows),
                    Err(error) => return Reading::nothing(head, Some(error.to_string())),
                }
            }
            Kind::Json => {
                Content::Json(Box::new(JsonStream { offset, tail, ..JsonStream::new(input, lines, decoder, stdin) }))
            }
            Kind::Tar | Kind::Zip => {
                return Reading::nothing(Vec::new(), Some("it is an archive within an archive".into()));
            }
            Kind::Packed(_) => {
                return Reading::nothing(Vec::new(), Some("it is packed in more layers than anything known".into()));
            }
            Kind::Text => Content::Text(Box::new(TextStream { offset, tail, ..TextStream::new(input, lines, stdin) })),
        };
        Reading { content, ..Reading::nothing(head, None) }
    }

    fn step(&mut self, decoder: &mut Decoder) -> Step {
        let before = &decoder.decoded;
        let (records, blind) = (before.records.len(), before.blind.len());
        let (refused, samples) = (before.refused, before.samples.len());
        let step = match &mut self.content {
            Content::Nothing => {
                // Known to be none, so that nobody waits for the rest of it.
                self.refused += u64::from(self.first_refusal.is_some());
                Step { ended: true }
            }
            Content::Text(text) => text.step(decoder),
            Content::Json(json) => json.step(decoder),
            Content::Rows(rows) => match rows.decode(&mut decoder.interfaces, &mut decoder.decoded) {
                Ok(more) => Step { ended: !more },
                Err(error) => {
                    decoder.decoded.refuse(rows.number() + 1, None, || error.to_string());
                    Step { ended: true }
                }
            },
        };
        let decoded = &decoder.decoded;
        self.read |= decoded.records.len() > records || decoded.blind.len() > blind;
        if self.read {
            // Nobody wonders any more what it is.
            self.head = Vec::new();
        }
        self.refused += decoded.refused - refused;
        if self.first_refusal.is_none() {
            self.first_refusal = decoded.samples.get(samples).map(|refusal| match refusal.field {
                Some(field) => format!("line {}: {field}: {}", refusal.line, refusal.reason),
                None => format!("line {}: {}", refusal.line, refusal.reason),
            });
        }
        step
    }

    fn readable(&self) -> bool {
        self.read || self.refused == 0 && self.has_usable_header()
    }

    fn lines(&self) -> Option<&Lines> {
        match &self.content {
            Content::Text(text) => Some(&text.lines),
            Content::Json(json) => Some(&json.lines),
            Content::Rows(_) | Content::Nothing => None,
        }
    }

    /// A file of nothing but a header is a flow log in which nothing happened; so is a table without rows.
    fn has_usable_header(&self) -> bool {
        match &self.content {
            Content::Nothing => false,
            Content::Rows(_) => true,
            _ => self.lines().is_some_and(|lines| lines.headers() > 0 && lines.unusable().is_none()),
        }
    }

    fn why_unreadable(&self) -> String {
        if let Some(error) = self.lines().and_then(Lines::unusable) {
            return error.to_string();
        }
        if let Some(foreign) = foreign::of_bytes(&self.head) {
            return foreign.to_string();
        }
        let text = matches!(self.content, Content::Text(_));
        match &self.first_refusal {
            Some(reason) if text && self.head.contains(&0) => {
                format!("it is binary, and nothing that is known ({reason}; no line was readable)")
            }
            Some(reason) if text && self.has_usable_header() => {
                format!("{reason} (its header was understood, and no line below it)")
            }
            Some(reason) if text && self.lines().is_some_and(|lines| lines.number() > 0) => match columns(&self.head) {
                Some(columns) => format!(
                    "it seems to be a table with the columns {columns}, among which those of a flow log are not: export \
                     srcaddr, dstaddr, srcport, dstport, protocol, packets, bytes, start, end and action ({reason})"
                ),
                None => {
                    format!("{reason} (no line was readable; if its columns are your own, name them with --fields)")
                }
            },
            Some(reason) => format!("{reason} (nothing in it was readable)"),
            None if self.head.iter().any(|byte| *byte > b' ') => "there is no record in it".into(),
            None => "it is empty".into(),
        }
    }
}

/// The first names of a table that has others than a flow log.
fn columns(head: &[u8]) -> Option<String> {
    let first = String::from_utf8_lossy(head.split(|byte| *byte == b'\n').next()?).into_owned();
    let separator = [',', '\t', ';', '|'].into_iter().find(|separator| first.matches(*separator).count() >= 2)?;
    let names: Vec<&str> = first.trim().split(separator).map(|name| name.trim().trim_matches('"')).collect();
    let is_name =
        |name: &&str| name.starts_with(|c: char| c.is_alphabetic() || c == '_' || c == '@') && name.len() < 64;
    if !names.iter().all(is_name) {
        return None;
    }
    let more = if names.len() > 8 { ", …" } else { "" };
    Some(format!("{}{more}", names[..names.len().min(8)].join(", ")))
}

/// The files of an archive, read one after another.
struct Archive {
    members: Box<dyn Members>,
    current: Option<(String, Reading)>,
    /// How many steps were made: a place in an archive, since what its members are packed in cannot be sought in.
    steps: u64,
    read: bool,
    refused: u64,
    first_refusal: Option<String>,
}

impl Archive {
    /// Opens an archive, and makes again the steps that were made before.
    fn open(unpacked: Unpacked, plain: Option<&Path>, decoder: &Decoder, steps: u64) -> Inside {
        let members: Result<Box<dyn Members>, String> = match unpacked.kind {
            Kind::Zip => match archive::zip_of(plain, unpacked.input, decoder.payload_bytes_max) {
                Ok(zip) if zip.is_office() => {
                    Err("it seems to be a workbook or document of an office program: export it as CSV".into())
                }
                Ok(zip) => Ok(Box::new(zip)),
                Err(error) => Err(error),
            },
            _ => Ok(Box::new(Tar::new(unpacked.input))),
        };
        let members = match members {
            Ok(members) => members,
            Err(reason) => return Inside::One(Reading::nothing(Vec::new(), Some(reason))),
        };
        let mut archive = Archive { members, current: None, steps: 0, read: false, refused: 0, first_refusal: None };
        if steps > 0 {
            let mut thrown_away = decoder.fresh();
            while archive.steps < steps && !archive.step(&mut thrown_away).ended {
                thrown_away.decoded.clear();
            }
        }
        Inside::Many(Box::new(archive))
    }

    /// One chunk of one member. One in which nothing is readable is one refusal.
    fn step(&mut self, decoder: &mut Decoder) -> Step {
        self.steps += 1;
        let before = (decoder.decoded.refused, decoder.decoded.samples.len());
        let (name, mut reading) = match self.current.take() {
            Some(current) => current,
            None => match self.members.next() {
                Ok(None) => return Step { ended: true },
                Ok(Some(member)) => (member.name, opened(member.input, decoder)),
                Err(error) => {
                    self.refuse(damaged(&error), decoder);
                    return Step { ended: true };
                }
            },
        };
        loop {
            let refused = reading.refused;
            let step = reading.step(decoder);
            if !reading.readable() && (step.ended || reading.refused >= PATIENCE) {
                decoder.decoded.refused = before.0;
                decoder.decoded.samples.truncate(before.1);
                self.refuse(format!("{name} in it is not a flow log: {}", reading.why_unreadable()), decoder);
                return Step::default();
            }
            if reading.readable() {
                self.read |= reading.read;
                self.refused += reading.refused - refused;
                if !step.ended {
                    self.current = Some((name, reading));
                }
                return Step::default();
            }
        }
    }

    fn refuse(&mut self, reason: String, decoder: &mut Decoder) {
        self.refused += 1;
        self.first_refusal.get_or_insert_with(|| reason.clone());
        decoder.decoded.refuse(0, None, || reason);
    }
}

fn opened(input: Result<Box<dyn Read + Send>, String>, decoder: &Decoder) -> Reading {
    let unpacked = input.and_then(|input| unpack(input, false, decoder.frugal).map_err(|error| damaged(&error)));
    match unpacked {
        Ok(unpacked) => Reading::new(unpacked, None, decoder, None, false, false),
        Err(reason) => Reading::nothing(Vec::new(), Some(reason)),
    }
}

fn boxed<R: ChunkReader + Send + 'static>(input: R) -> Result<Box<dyn AnyRows>, RowsError> {
    Ok(Box::new(Rows::new(input)?))
}

/// What is read from its end has to be in memory when it comes packed or through a pipe.
pub(super) fn in_memory(input: impl Read, bytes_max: usize) -> Result<Bytes, String> {
    let mut bytes = Vec::new();
    let read = input.take(bytes_max as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() > bytes_max {
        return Err(format!("it is larger than {bytes_max} bytes (payload_bytes_max), and not in a plain file"));
    }
    Ok(Bytes::from(bytes))
}

/// Lines read in chunks through one buffer.
struct TextStream {
    input: Box<dyn Read + Send>,
    lines: Lines,
    /// Bytes of text that are done with.
    offset: u64,
    /// The unfinished line that the next chunk begins with.
    kept: Vec<u8>,
    /// In the middle of a line that is too long to be kept.
    skipping: bool,
    /// Decode what one read gives instead of waiting for a full chunk: a pipe may be slow.
    eager: bool,
    /// The end may not be the end: an unfinished line is left alone.
    tail: bool,
}

impl TextStream {
    fn new(input: Box<dyn Read + Send>, lines: Lines, eager: bool) -> TextStream {
        TextStream { input, lines, offset: 0, kept: Vec::new(), skipping: false, eager, tail: false }
    }

    fn step(&mut self, decoder: &mut Decoder) -> Step {
        // An unfinished line and a chunk behind it; in a chunk of full size the line is part of it.
        let size = decoder.chunk.max(self.kept.len() + decoder.chunk / 2);
        if decoder.buffer.len() < size {
            decoder.buffer.resize(size, 0);
        }
        let (filled, ended) = self.fill(&mut decoder.buffer[..size]);
        let mut from = 0;
        if self.skipping {
            match memchr(b'\n', &decoder.buffer[..filled]) {
                Some(end) => {
                    self.skipping = false;
                    from = end + 1;
                }
                None => from = filled,
            }
        }
        let text = &decoder.buffer[from..filled];
        let whole = match (memrchr(b'\n', text), &ended) {
            (_, Some(Ok(()))) if !self.tail => text.len(),
            (Some(end), _) => end + 1,
            (None, _) => 0,
        };
        decoder.fast.decode(&text[..whole], &mut self.lines, &mut decoder.interfaces, &mut decoder.decoded);
        self.keep_rest(from + whole, filled, decoder);
        if let Some(Err(error)) = &ended {
            let reason = damaged(error);
            decoder.decoded.refuse(self.lines.number() + 1, None, || reason);
        }
        Step { ended: ended.is_some() }
    }

    /// Keeps the unfinished line; one that is too long is refused now and skipped as it comes.
    fn keep_rest(&mut self, done: usize, filled: usize, decoder: &mut Decoder) {
        let rest = filled - done;
        self.offset += done as u64;
        if rest > LINE_MAX && !self.skipping {
            self.lines.refuse_long_line(&mut decoder.decoded);
            self.skipping = true;
        }
        self.kept.clear();
        if self.skipping {
            self.offset += rest as u64;
        } else {
            self.kept.extend_from_slice(&decoder.buffer[done..filled]);
        }
    }

    /// Fills the buffer behind what is kept. The end is `Ok` when the file is, `Err` when reading failed.
    fn fill(&mut self, buffer: &mut [u8]) -> (usize, Option<std::io::Result<()>>) {
        let mut filled = self.kept.len();
        buffer[..filled].copy_from_slice(&self.kept);
        while filled < buffer.len() {
            match self.input.read(&mut buffer[filled..]) {
                Ok(0) => return (filled, Some(Ok(()))),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return (filled, Some(Err(error))),
            }
            if self.eager {
                break;
            }
        }
        (filled, None)
    }
}

/// JSON objects read in chunks; the buffer grows to hold the largest.
struct JsonStream {
    input: Box<dyn Read + Send>,
    lines: Lines,
    offset: u64,
    buffer: Vec<u8>,
    filled: usize,
    eager: bool,
    /// The end may not be the end: an unfinished object is left alone.
    tail: bool,
}

impl JsonStream {
    fn new(input: Box<dyn Read + Send>, lines: Lines, decoder: &Decoder, eager: bool) -> JsonStream {
        JsonStream { input, lines, offset: 0, buffer: vec![0; decoder.chunk], filled: 0, eager, tail: false }
    }

    fn step(&mut self, decoder: &mut Decoder) -> Step {
        let ended = self.fill();
        let text = &self.buffer[..self.filled];
        let (interfaces, out) = (&mut decoder.interfaces, &mut decoder.decoded);
        let last = matches!(ended, Some(Ok(()))) && !self.tail;
        let mut done = decoder.envelope.decode_stream(text, last, &mut self.lines, interfaces, out);
        if done == 0 && ended.is_none() && self.filled == self.buffer.len() {
            if self.filled < decoder.payload_bytes_max {
                self.buffer.resize((self.filled * 2).min(decoder.payload_bytes_max), 0);
            } else {
                self.lines.refuse_event(None, || "is larger than payload_bytes_max".into(), out);
                done = memchr(b'\n', text).map_or(self.filled, |end| end + 1);
            }
        }
        self.offset += done as u64;
        self.buffer.copy_within(done..self.filled, 0);
        self.filled -= done;
        if let Some(Err(error)) = &ended {
            let reason = damaged(error);
            out.refuse(self.lines.number() + 1, None, || reason);
        }
        Step { ended: ended.is_some() }
    }

    fn fill(&mut self) -> Option<std::io::Result<()>> {
        while self.filled < self.buffer.len() {
            match self.input.read(&mut self.buffer[self.filled..]) {
                Ok(0) => return Some(Ok(())),
                Ok(count) => self.filled += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Some(Err(error)),
            }
            if self.eager {
                break;
            }
        }
        None
    }
}

/// In words: why a file could not be read on.
fn damaged(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => "the packed file is cut off here; what follows is lost".into(),
        ErrorKind::InvalidData | ErrorKind::InvalidInput | ErrorKind::Other => {
            format!("the packed file is damaged here ({error}); what follows is lost")
        }
        _ => format!("reading failed here ({error}); what follows is lost"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(input: Box<dyn Read + Send>) -> (Decoder, u64) {
        let mut decoder = Decoder::new(&Settings::default()).unwrap();
        let mut stream = TextStream::new(input, Lines::new(decoder.format.clone()), false);
        while !stream.step(&mut decoder).ended {}
        (decoder, stream.offset)
    }

    #[test]
    fn a_line_of_a_gigabyte_is_refused_in_bounded_memory_and_the_next_is_read() {
        let line = b"\n2 123456789010 eni-1 10.0.0.1 10.0.0.2 20641 22 6 20 4249 1418530010 1418530070 ACCEPT OK\n";
        let (decoder, offset) = read(Box::new(std::io::repeat(b'7').take(1 << 30).chain(&line[..])));
        assert_eq!((decoder.decoded.records.len(), decoder.decoded.refused), (1, 1));
        assert_eq!(decoder.decoded.samples[0].line, 1);
        assert_eq!(offset, (1 << 30) + line.len() as u64);
        assert_eq!(decoder.buffer.len(), decoder.chunk);
    }

    #[test]
    fn an_object_of_a_gigabyte_is_refused_in_bounded_memory() {
        let settings = Settings { payload_bytes_max: 1 << 20, ..Settings::default() };
        let mut decoder = Decoder::new(&settings).unwrap();
        let input = (&b"{\"message\":\""[..]).chain(std::io::repeat(b'7').take(1 << 28));
        let lines = Lines::new(decoder.format.clone());
        let mut stream = JsonStream::new(Box::new(input), lines, &decoder, false);
        while !stream.step(&mut decoder).ended {}
        assert!(decoder.decoded.refused >= 1 && decoder.decoded.records.is_empty());
        assert!(stream.buffer.len() <= 1 << 20);
    }
}
