//! From a file's bytes to what it is inside.

use std::io::{BufReader, Cursor, ErrorKind, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flow::envelope::Kind;
use crate::flow::text::without_mark;

/// Counts what is read of the file itself, before it is unpacked.
pub(super) struct Counted {
    pub(super) input: Box<dyn Read + Send>,
    pub(super) read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// What a file is inside.
pub(super) struct Unpacked {
    pub(super) kind: Kind,
    /// Whether it was packed.
    pub(super) packed: bool,
    /// Its first bytes, unpacked.
    pub(super) head: Vec<u8>,
    pub(super) input: Box<dyn Read + Send>,
}

/// Enough to tell what a file is.
const HEAD: usize = 1024;

/// What is waited for where the rest may be long in coming: enough for what can come through a pipe line by line.
const HEAD_OF_PIPE: usize = 32;

/// Packed more often than this is none of ours, so that a bomb of nested archives stays one.
const LAYERS_MAX: u32 = 3;

/// Takes off what the bytes are packed in. Of a `pipe`, no more is waited for than is needed; where many files are read side by side,
/// each is `frugal` with memory.
pub(super) fn unpack(mut input: Box<dyn Read + Send>, pipe: bool, frugal: bool) -> std::io::Result<Unpacked> {
    let mut layers = 0;
    let capacity = if frugal { 16 * 1024 } else { 64 * 1024 };
    let enough = if pipe { HEAD_OF_PIPE } else { HEAD };
    loop {
        let mut head = vec![0; HEAD];
        let mut length = 0;
        while length < enough {
            match input.read(&mut head[length..]) {
                Ok(0) => break,
                Ok(count) => length += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Told where the bytes are asked for, like any later damage.
                Err(error) => {
                    input = Box::new(Failed(Some(error)));
                    break;
                }
            }
        }
        head.truncate(length);
        let kind = Kind::of(&head);
        match kind {
            Kind::Packed(packing) if layers < LAYERS_MAX => {
                let whole = BufReader::with_capacity(capacity, Cursor::new(head).chain(input));
                input = packing.unpack(whole)?;
                layers += 1;
            }
            _ => {
                let text = matches!(kind, Kind::Text | Kind::Json);
                let begin = if text { head.len() - without_mark(&head).len() } else { 0 };
                let whole: Box<dyn Read + Send> = Box::new(Cursor::new(head[begin..].to_vec()).chain(input));
                let input = if kind == Kind::Text && has_lines_between_tabs(&head) {
                    Box::new(TabsAsLines(whole))
                } else {
                    whole
                };
                return Ok(Unpacked { kind, packed: layers > 0, head, input });
            }
        }
    }
}

/// Whether the first line is several lines with tabs between, as the AWS command line prints a list of them as text. There
/// is no end to such a line, so it has to be cut before it is read.
fn has_lines_between_tabs(head: &[u8]) -> bool {
    let first = head.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let mut parts = first
        .split(|byte| *byte == b'\t')
        .map(|part| part.split(|byte| *byte == b' ').filter(|word| !word.is_empty()).count());
    parts.next().is_some_and(|words| words >= 10) && parts.next().is_some()
}

struct TabsAsLines(Box<dyn Read + Send>);

impl Read for TabsAsLines {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.read(buffer)?;
        buffer[..count].iter_mut().filter(|byte| **byte == b'\t').for_each(|byte| *byte = b'\n');
        Ok(count)
    }
}

/// What is left of a file that could not be read on: its error, once.
struct Failed(Option<std::io::Error>);

impl Read for Failed {
    fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}
