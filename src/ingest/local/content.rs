//! What tells a file from another: the bytes of it that were read.
//!
//! Neither a name nor an inode nor a length does. A log is rotated to another name, copied and cut to nothing, packed, or
//! removed, and the next file gets its inode. So what was read of a file is remembered by two short hashes, of its first bytes and
//! of the last before the place where reading goes on. Bytes are counted as they are unpacked, so that `flow.log.1` and
//! `flow.log.1.gz` are one.

use std::fs::File;
use std::io::{ErrorKind, Read, Seek, SeekFrom};

use serde::{Deserialize, Serialize};

use crate::ingest::local::open::Place;
use crate::ingest::local::unpack::unpack;
use crate::ingest::local::walk::Found;

/// First bytes that are looked at: a few dozen records, which no other file begins with.
const HEAD: usize = 4_096;

/// Bytes before the place where reading goes on.
const TAIL: u64 = 512;

/// What was read of a file, in short.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct Content {
    /// How many first bytes were hashed: as many as were read, and 4,096 at most.
    length: u64,
    head: u64,
    /// Whether the file was packed.
    packed: bool,
    /// Hash of the last bytes that were read, and where in the file they end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail: Option<(u64, u64)>,
}

/// The beginning of a file as it is now.
#[derive(Clone, Default, Debug)]
pub(super) struct Head {
    bytes: Vec<u8>,
    /// Whether the file is packed; then the bytes are those within.
    pub(super) packed: bool,
}

/// How a file stands to what was read of one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Likeness {
    /// It begins with all that was read.
    Same,
    /// It is the beginning of what was read, and shorter.
    Shorter,
    Other,
}

impl Head {
    /// Reads the beginning of a file.
    ///
    /// # Errors
    /// It cannot be opened. That its packing is damaged or cut off is none: the bytes before that are its beginning.
    pub(super) fn read(found: &Found) -> std::io::Result<Head> {
        let file = File::open(&found.path)?;
        let Ok(unpacked) = unpack(Box::new(file), false, true) else {
            return Ok(Head { bytes: Vec::new(), packed: true });
        };
        let mut bytes = Vec::with_capacity(HEAD);
        let mut input = unpacked.input.take(HEAD as u64);
        let mut part = [0; HEAD];
        loop {
            match input.read(&mut part) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        Ok(Head { bytes, packed: unpacked.packed })
    }

    /// What was read of the file whose beginning this is, up to a place in it.
    pub(super) fn content(&self, found: &Found, place: &Place, ended: bool) -> Content {
        // Rows are counted, and not bytes: a file of them is written as a whole.
        let rows = place.offset == 0 && place.line > 0;
        // Of records that are skipped, the bytes behind the place were read too.
        let read = if rows || place.skip > 0 { HEAD } else { usize::try_from(place.offset).unwrap_or(HEAD) };
        let length = self.bytes.len().min(read);
        let end = if rows || self.packed { found.size } else { place.offset };
        let tail = (ended && end > 0).then(|| Some((end, tail(found, end)?))).flatten();
        Content { length: length as u64, head: hash(&self.bytes[..length]), packed: self.packed, tail }
    }

    /// How the file stands to what was read of one up to `offset`.
    pub(super) fn compare(&self, found: &Found, content: &Content, offset: u64) -> Likeness {
        let length = usize::try_from(content.length).unwrap_or(usize::MAX);
        if length == 0 || self.bytes.len() < length || hash(&self.bytes[..length]) != content.head {
            return Likeness::Other;
        }
        if !self.packed && found.size < offset {
            return Likeness::Shorter;
        }
        match content.tail {
            Some((end, expected)) if self.packed == content.packed && tail(found, end) != Some(expected) => {
                Likeness::Other
            }
            _ => Likeness::Same,
        }
    }

    /// Hashes of the first 1, 2, … bytes.
    pub(super) fn hashes(&self) -> Vec<u64> {
        let mut state = BASIS;
        self.bytes.iter().map(|byte| mix(&mut state, *byte)).collect()
    }
}

impl Content {
    /// Of a file that was cut short, which now ends elsewhere.
    pub(super) fn cut(&mut self) {
        self.tail = None;
    }

    /// Number and hash of the first bytes; none where nothing was read.
    pub(super) fn head(&self) -> Option<(u64, u64)> {
        (self.length > 0).then_some((self.length, self.head))
    }
}

/// Hashes the last bytes before an offset; `None` where they cannot be read.
fn tail(found: &Found, offset: u64) -> Option<u64> {
    let mut file = File::open(&found.path).ok()?;
    let from = offset.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut bytes = Vec::new();
    file.take(offset - from).read_to_end(&mut bytes).ok()?;
    (bytes.len() as u64 == offset - from).then(|| hash(&bytes))
}

/// FNV-1a (Fowler, Noll, Vo), 64 bits: it is written to disk, and so must be the same in every build.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

fn mix(state: &mut u64, byte: u8) -> u64 {
    *state = (*state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    *state
}

fn hash(bytes: &[u8]) -> u64 {
    let mut state = BASIS;
    bytes.iter().for_each(|byte| {
        mix(&mut state, *byte);
    });
    state
}
