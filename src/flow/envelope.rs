//! What wraps lines: what a payload of a stream, or the content of a file, is, is told from its bytes.
//!
//! | begins with | is |
//! | --- | --- |
//! | the mark of gzip, zstd, bzip2, xz, LZ4 or Snappy, or UTF-16 | any of these, packed ([`Packing`]) |
//! | `PAR1` | Parquet |
//! | `ustar` in its header, `PK` | an archive, of which files are read and payloads are refused |
//! | `{`, `[` | JSON objects, one after another, with or without line ends between them |
//! | anything else | lines |
//!
//! A byte-order mark before any of these is passed over. What a JSON object holds is told in `envelope/objects.rs`. Nearly all of a
//! subscription event is its messages. They are cut out by searching for their key, which is four times as fast as reading
//! all of the JSON, and is right as long as nothing in them is escaped; where something is, serde reads it.

use std::io::Read;

use bytes::Bytes;
use memchr::memmem::Finder;
use memchr::{memchr, memchr3};
use serde_json::Value;

use crate::flow::interfaces::Interfaces;
use crate::flow::packing::Packing;
use crate::flow::parquet::Rows;
use crate::flow::simd::Fast;
use crate::flow::text::{Decoded, Format, Lines, excerpt, without_mark};

mod objects;

/// Told from the first bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Any of these, packed.
    Packed(Packing),
    /// Parquet.
    Parquet,
    /// Files in a tar archive.
    Tar,
    /// Files in a zip archive.
    Zip,
    /// One or more JSON objects.
    Json,
    /// Lines, or nothing that is known.
    Text,
}

impl Kind {
    /// What bytes that begin so are. Ten bytes are enough, but for tar archives, which are told by 262, and for blanks in
    /// front of JSON.
    pub fn of(head: &[u8]) -> Kind {
        if let Some(packing) = Packing::of(head) {
            return Kind::Packed(packing);
        }
        match head {
            [b'P', b'A', b'R', b'1', ..] => Kind::Parquet,
            [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Kind::Zip,
            _ if head.get(257..262) == Some(b"ustar") => Kind::Tar,
            _ => match without_mark(head).iter().find(|byte| !byte.is_ascii_whitespace()) {
                Some(b'{' | b'[') => Kind::Json,
                _ => Kind::Text,
            },
        }
    }
}

/// JSON deeper than this is none of ours.
const DEPTH_MAX: u32 = 32;

/// Envelopes within envelopes: gzip, JSON, base64, gzip, JSON is the longest chain that exists.
const LAYERS_MAX: u32 = 4;

/// Opens payloads; keeps its memory from one to the next.
pub struct Envelope {
    fast: Fast,
    message: Finder<'static>,
    /// Largest unpacked payload.
    bytes_max: usize,
    lines: Vec<u8>,
}

impl Envelope {
    /// Refuses what is larger than `bytes_max` when unpacked.
    pub fn new(bytes_max: usize) -> Envelope {
        Envelope { fast: Fast::default(), message: Finder::new(b"\"message\""), bytes_max, lines: Vec::new() }
    }

    /// Decodes one payload as it came from a stream. Lines are in `format` unless they bring a header. Refusals are
    /// numbered by line, event or row of the payload; 0 is the payload as a whole.
    pub fn decode(&mut self, payload: &[u8], format: &Format, interfaces: &mut Interfaces, out: &mut Decoded) {
        let mut lines = Lines::new(format.clone());
        self.decode_layer(payload, &mut lines, LAYERS_MAX, interfaces, out);
    }

    fn decode_layer(
        &mut self,
        payload: &[u8],
        lines: &mut Lines,
        layers: u32,
        interfaces: &mut Interfaces,
        out: &mut Decoded,
    ) {
        match Kind::of(payload) {
            Kind::Packed(_) if layers == 0 => {
                out.refuse(0, None, || "is packed in more layers than anything known".into());
            }
            Kind::Packed(packing) => match self.unpack(packing, payload) {
                Ok(unpacked) => self.decode_layer(&unpacked, lines, layers - 1, interfaces, out),
                Err(reason) => out.refuse(0, None, || reason),
            },
            Kind::Parquet => decode_parquet(payload, interfaces, out),
            Kind::Tar | Kind::Zip => out.refuse(0, None, || "is an archive of files, which only a file may be".into()),
            Kind::Json => self.decode_objects(payload, true, lines, layers, interfaces, out).map_or((), |_| ()),
            Kind::Text => self.fast.decode(payload, lines, interfaces, out),
        }
    }

    fn unpack(&self, packing: Packing, payload: &[u8]) -> Result<Vec<u8>, String> {
        let mut unpacked = Vec::new();
        let limit = self.bytes_max as u64 + 1;
        let read = packing.unpack(payload).and_then(|inside| inside.take(limit).read_to_end(&mut unpacked));
        match read {
            Ok(_) if unpacked.len() > self.bytes_max => {
                Err(format!("unpacks to more than {} bytes (payload_bytes_max)", self.bytes_max))
            }
            Ok(_) => Ok(unpacked),
            Err(error) => Err(format!("the packed payload is damaged or cut off ({error})")),
        }
    }

    /// Decodes the whole objects at the beginning of `text` and says how many bytes are done with. `last` is whether no
    /// more will come; an object that is not whole is then refused. `None` when everything is done with.
    pub(crate) fn decode_stream(
        &mut self,
        text: &[u8],
        last: bool,
        lines: &mut Lines,
        interfaces: &mut Interfaces,
        out: &mut Decoded,
    ) -> usize {
        self.decode_objects(text, last, lines, LAYERS_MAX, interfaces, out).unwrap_or(text.len())
    }

    fn decode_objects(
        &mut self,
        text: &[u8],
        last: bool,
        lines: &mut Lines,
        layers: u32,
        interfaces: &mut Interfaces,
        out: &mut Decoded,
    ) -> Option<usize> {
        let mut at = 0;
        while at < text.len() {
            match text[at] {
                b'{' => {}
                // Between objects: blanks, and the punctuation of an array of them.
                b'[' | b']' | b',' => {
                    at += 1;
                    continue;
                }
                byte if byte.is_ascii_whitespace() => {
                    at += 1;
                    continue;
                }
                0xef if text[at..].starts_with(b"\xef\xbb\xbf") => {
                    at += 3;
                    continue;
                }
                // A list of lines, such as a query for `events[].message` gives.
                b'"' => match string_end(&text[at + 1..]) {
                    Ok(None) if !last => {
                        self.flush(lines, interfaces, out);
                        return Some(at);
                    }
                    Ok(Some(length)) if !is_key(&text[at + 1 + length..]) => {
                        let end = at + 1 + length;
                        if let Err(reason) = self.decode_string(&text[at..end], lines, layers, interfaces, out) {
                            self.flush(lines, interfaces, out);
                            lines.refuse_event(None, || reason, out);
                        }
                        at = end;
                        continue;
                    }
                    _ => {
                        self.flush(lines, interfaces, out);
                        lines.refuse_event(None, || "is not a whole JSON object".into(), out);
                        at = after_line(text, at);
                        continue;
                    }
                },
                _ => {
                    let ahead = memchr(b'{', &text[at..]).unwrap_or(text.len() - at);
                    self.flush(lines, interfaces, out);
                    lines.refuse_event(None, || format!("`{}` is not JSON", excerpt(&text[at..at + ahead])), out);
                    at += ahead;
                    continue;
                }
            }
            let end = match object_end(&text[at..]) {
                Ok(Some(length)) => at + length,
                Ok(None) if !last => {
                    self.flush(lines, interfaces, out);
                    return Some(at);
                }
                Ok(None) | Err(()) => {
                    self.flush(lines, interfaces, out);
                    lines.refuse_event(None, || "is not a whole JSON object".into(), out);
                    at = after_line(text, at);
                    continue;
                }
            };
            at = match self.decode_object(&text[at..end], lines, layers, interfaces, out) {
                Ok(()) => end,
                Err(reason) => {
                    self.flush(lines, interfaces, out);
                    lines.refuse_event(None, || reason, out);
                    after_line(&text[..end], at)
                }
            };
        }
        self.flush(lines, interfaces, out);
        None
    }

    /// Decodes the lines that were cut out so far: before anything else is counted, so that the order stays.
    fn flush(&mut self, lines: &mut Lines, interfaces: &mut Interfaces, out: &mut Decoded) {
        self.fast.decode(&self.lines, lines, interfaces, out);
        self.lines.clear();
    }

    fn decode_object(
        &mut self,
        object: &[u8],
        lines: &mut Lines,
        layers: u32,
        interfaces: &mut Interfaces,
        out: &mut Decoded,
    ) -> Result<(), String> {
        if self.cut_messages(object) {
            return Ok(());
        }
        let value: Value = serde_json::from_slice(object).map_err(|error| format!("is not valid JSON: {error}"))?;
        let Value::Object(map) = value else { return Err("is not a JSON object".into()) };
        objects::Reader { envelope: self, lines, interfaces, out }.document(&map, layers)
    }

    fn decode_string(
        &mut self,
        text: &[u8],
        lines: &mut Lines,
        layers: u32,
        interfaces: &mut Interfaces,
        out: &mut Decoded,
    ) -> Result<(), String> {
        let text: String = serde_json::from_slice(text).map_err(|error| format!("is not valid JSON: {error}"))?;
        objects::Reader { envelope: self, lines, interfaces, out }.text(&text, layers)
    }

    fn add_line(&mut self, message: &[u8]) {
        self.lines.extend_from_slice(message);
        self.lines.push(b'\n');
    }

    /// Cuts the messages out of an object of a known shape without reading the rest; false, with nothing done, when serde
    /// must look at it.
    fn cut_messages(&mut self, object: &[u8]) -> bool {
        let before = self.lines.len();
        let whole = match object.strip_prefix(b"{\"message\":\"").and_then(|rest| rest.strip_suffix(b"\"}")) {
            Some(message) if is_plain(message) => {
                self.add_line(message);
                true
            }
            _ if object.starts_with(b"{\"messageType\":\"DATA_MESSAGE\"") => self.cut_events(object).is_some(),
            _ => false,
        };
        if !whole {
            self.lines.truncate(before);
        }
        whole
    }

    /// `None` when anything is not as CloudWatch Logs writes it: an escape anywhere, a second kind of `message`.
    fn cut_events(&mut self, object: &[u8]) -> Option<()> {
        if memchr(b'\\', object).is_some() || memchr::memmem::find(object, b"\"extractedFields\"").is_some() {
            return None;
        }
        let mut rest = object;
        while let Some(at) = self.message.find(rest) {
            let value = rest[at..].strip_prefix(b"\"message\":\"")?;
            let length = memchr(b'"', value)?;
            self.lines.extend_from_slice(&value[..length]);
            self.lines.push(b'\n');
            rest = &value[length + 1..];
        }
        Some(())
    }
}

/// Whether a JSON string is its own text.
fn is_plain(text: &[u8]) -> bool {
    memchr3(b'\\', b'"', b'\n', text).is_none()
}

/// Whether what follows a string makes it a key.
fn is_key(behind: &[u8]) -> bool {
    behind.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b':')
}

fn decode_parquet(payload: &[u8], interfaces: &mut Interfaces, out: &mut Decoded) {
    let mut rows = match Rows::new(Bytes::copy_from_slice(payload)) {
        Ok(rows) => rows,
        Err(error) => return out.refuse(0, None, || error.to_string()),
    };
    loop {
        match rows.decode(interfaces, out) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => return out.refuse(rows.number() + 1, None, || error.to_string()),
        }
    }
}

/// The length of the object at the beginning of `text`; `None` when it goes on behind it; an error when it cannot be an
/// object: nested too deep, or with a line end within a string, so that a cut line does not swallow those behind it.
fn object_end(text: &[u8]) -> Result<Option<usize>, ()> {
    let mut depth = 0u32;
    let mut at = 0;
    while at < text.len() {
        match text[at] {
            b'{' | b'[' => {
                depth += 1;
                if depth > DEPTH_MAX {
                    return Err(());
                }
            }
            b'}' | b']' => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return Ok(Some(at + 1));
                }
            }
            b'"' => match string_end(&text[at + 1..])? {
                Some(length) => at += length,
                None => return Ok(None),
            },
            _ => {}
        }
        at += 1;
    }
    Ok(None)
}

/// The length of a string behind its opening quote, closing quote included.
fn string_end(text: &[u8]) -> Result<Option<usize>, ()> {
    let mut at = 0;
    while let Some(ahead) = memchr3(b'"', b'\\', b'\n', &text[at..]) {
        match text[at + ahead] {
            b'"' => return Ok(Some(at + ahead + 1)),
            b'\\' => at += ahead + 2,
            _ => return Err(()),
        }
        if at > text.len() {
            break;
        }
    }
    Ok(None)
}

/// Where to go on after something that could not be read: the next line, else the end.
fn after_line(text: &[u8], at: usize) -> usize {
    memchr(b'\n', &text[at..]).map_or(text.len(), |end| at + end + 1)
}

#[cfg(test)]
mod tests;
