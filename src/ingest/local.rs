//! Flow logs in files, folders and on standard input.
//!
//! [`Reader`] is the synchronous way, for a command that reads to the end:
//!
//! ```no_run
//! # use flowvigil::ingest;
//! let mut reader = ingest::local::Reader::open(&["vpc.log.gz".into()], &ingest::Settings::default())?;
//! while let Some(batch) = reader.next_batch()? {
//!     println!("{} records, {:.0} %", batch.records.len(), 100.0 * reader.progress().fraction());
//! }
//! # Ok::<(), ingest::local::ReadError>(())
//! ```
//!
//! What a file is, is told from its bytes: gzip or zstd around anything, Parquet, JSON, else lines. Reading, unpacking and
//! decoding run in a thread of their own, two batches ahead, so that the judging beside it has the next records ready.
//!
//! [`Source`] is the way of the long-running service: the same files, followed as they grow, from the last checkpoint on.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use jiff::SignedDuration;
use serde::Deserialize;

use crate::flow::Interface;
use crate::flow::text::FormatError;
use crate::ingest::{Batch, Settings as IngestSettings};

mod archive;
mod content;
mod files;
mod follow;
mod handle;
mod merge;
mod open;
mod unpack;
mod walk;

use files::Files;
pub use follow::Source;

/// Settings `[ingest.local]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Files, folders, `-` for standard input.
    pub paths: Vec<PathBuf>,
    /// Whether to go on at the end: files grow and are rotated, folders get new files.
    pub follow: bool,
    /// How often grown or new files are looked for.
    pub poll_interval: SignedDuration,
    /// Folder of the checkpoint; empty for none.
    pub checkpoint: PathBuf,
}

/// Why reading stopped, or why one file was left out.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The format in the settings is none.
    #[error("read the format of lines: {0}")]
    Format(#[from] FormatError),
    /// A named path that cannot be opened.
    #[error("open {path}: {cause}")]
    Open {
        /// As it was named.
        path: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// A named file, or all files of a named folder, in which nothing is a flow log. The next call goes on with what is
    /// left of the input.
    #[error("{path} is not a flow log: {reason}")]
    NotFlowLogs {
        /// As it was named.
        path: String,
        /// The first thing that could not be read.
        reason: String,
    },
    /// The thread that reads is gone.
    #[error("the reading thread stopped; this is a defect in flowvigil")]
    Stopped,
}

/// How far the reading is.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Progress {
    /// Bytes of the files (packed as they are) that were read.
    pub read: u64,
    /// Bytes of all files; 0 when not known (standard input).
    pub total: u64,
}

impl Progress {
    /// From 0 to 1; 0 when the total is not known.
    pub fn fraction(self) -> f64 {
        if self.total == 0 { 0.0 } else { (self.read as f64 / self.total as f64).min(1.0) }
    }
}

/// Reads paths to their end, in a thread of its own. See the [module](self).
pub struct Reader {
    waiting: Option<Box<Files>>,
    running: Option<Running>,
    read: Arc<AtomicU64>,
    total: u64,
}

struct Running {
    filled: Receiver<Result<Batch, ReadError>>,
    emptied: SyncSender<Batch>,
}

/// Batches under way between the reading thread and the caller.
const AHEAD: usize = 2;

impl Reader {
    /// Looks at the paths (`-` is standard input, folders are walked) without reading yet. Every path must exist.
    pub fn open(paths: &[PathBuf], settings: &IngestSettings) -> Result<Reader, ReadError> {
        let found = walk::find(paths)?;
        let read = Arc::new(AtomicU64::new(0));
        let total = found.iter().map(|file| file.size).sum();
        let files = Files::new(found, settings, read.clone())?;
        Ok(Reader { waiting: Some(Box::new(files)), running: None, read, total })
    }

    /// Tells which interfaces already have numbers. Only before the first batch.
    pub fn adopt_interfaces(&mut self, known: &[Interface]) {
        if let Some(files) = &mut self.waiting {
            files.adopt_interfaces(known);
        }
    }

    /// The next records; `None` at the end. After [`ReadError::NotFlowLogs`] the reading may go on.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, ReadError> {
        if let Some(files) = self.waiting.take() {
            self.running = Some(start(files)?);
        }
        let Some(running) = &self.running else { return Ok(None) };
        match running.filled.recv() {
            Ok(Ok(batch)) => Ok(Some(batch)),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                self.running = None;
                Ok(None)
            }
        }
    }

    /// Gives a batch back, so that its memory is used again. Optional.
    pub fn recycle(&mut self, batch: Batch) {
        if let Some(running) = &self.running {
            // A full channel only means that there is memory enough.
            let _ = running.emptied.try_send(batch);
        }
    }

    /// How far the reading is.
    pub fn progress(&self) -> Progress {
        Progress { read: self.read.load(Ordering::Relaxed), total: self.total }
    }
}

fn start(mut files: Box<Files>) -> Result<Running, ReadError> {
    let (fill, filled) = sync_channel(AHEAD);
    let (emptied, empty) = sync_channel::<Batch>(AHEAD + 2);
    let body = move || {
        loop {
            let reuse = empty.try_recv().unwrap_or_default();
            let sent = match files.next(reuse) {
                Ok(Some(batch)) => fill.send(Ok(batch)),
                Ok(None) => return,
                Err(error) => fill.send(Err(error)),
            };
            // The receiver is gone: nobody wants the rest.
            if sent.is_err() {
                return;
            }
        }
    };
    let spawned = thread::Builder::new().name("flowvigil-read".into()).spawn(body);
    spawned.map_err(|cause| ReadError::Open { path: "a thread to read in".into(), cause })?;
    Ok(Running { filled, emptied })
}

/// How a path is named in messages.
fn shown(path: &Path) -> String {
    if path == Path::new("-") { "stdin".into() } else { path.display().to_string() }
}

#[cfg(test)]
mod tests;
