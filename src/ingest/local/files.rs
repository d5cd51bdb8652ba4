//! Files one after another, read to their end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::flow::Interface;
use crate::ingest::local::open::{Decoder, Open};
use crate::ingest::local::walk::Found;
use crate::ingest::local::{ReadError, shown};
use crate::ingest::{Batch, Refusal, Refused, Settings};

/// Refused lines after which a file without a single readable one is given up.
pub(super) const PATIENCE: u64 = 1000;

/// Files in order, read to their end.
pub(crate) struct Files {
    queue: VecDeque<Found>,
    current: Option<Open>,
    decoder: Decoder,
    read: Arc<AtomicU64>,
    /// Whether anything at all was readable, and the first file that was not.
    readable: bool,
    unreadable: Option<(String, String)>,
    passed_over: Refused,
    walked: bool,
}

impl Files {
    pub(crate) fn new(found: Vec<Found>, settings: &Settings, read: Arc<AtomicU64>) -> Result<Files, ReadError> {
        let decoder = Decoder::new(settings)?;
        Ok(Files {
            walked: found.iter().any(|file| !file.named),
            queue: found.into(),
            current: None,
            decoder,
            read,
            readable: false,
            unreadable: None,
            passed_over: Refused::default(),
        })
    }

    pub(crate) fn adopt_interfaces(&mut self, known: &[Interface]) {
        self.decoder.interfaces.adopt(known);
    }

    /// The next batch, in the memory of an old one; `None` at the end of all files.
    pub(crate) fn next(&mut self, mut batch: Batch) -> Result<Option<Batch>, ReadError> {
        clear(&mut batch);
        loop {
            if self.current.is_none() && !self.open_next()? {
                return self.end(batch);
            }
            let Some(open) = &mut self.current else { continue };
            let step = open.step(&mut self.decoder);
            self.read.store(open.base + open.read.load(Ordering::Relaxed), Ordering::Relaxed);
            self.readable |= open.readable;
            let given_up = !open.readable && (step.ended || open.refused >= PATIENCE);
            if given_up {
                self.give_up()?;
                continue;
            }
            if open.readable || step.ended {
                self.take(&mut batch);
            }
            if step.ended {
                self.close();
            }
            if !batch.records.is_empty() || !batch.blind.is_empty() || batch.refused.count > 0 {
                return Ok(Some(batch));
            }
        }
    }

    /// Moves on to the next file that can be opened; false when there is none left.
    fn open_next(&mut self) -> Result<bool, ReadError> {
        let Some(found) = self.queue.pop_front() else { return Ok(false) };
        let base = self.read.load(Ordering::Relaxed);
        match Open::new(&found, base, &self.decoder) {
            Ok(open) => self.current = Some(open),
            Err(cause) if found.named => return Err(ReadError::Open { path: shown(&found.path), cause }),
            Err(cause) => self.pass_over(shown(&found.path), cause.to_string()),
        }
        Ok(true)
    }

    /// The current file holds nothing readable: an error when it was named, a refusal when it was found in a folder.
    fn give_up(&mut self) -> Result<(), ReadError> {
        let Some(open) = self.close() else { return Ok(()) };
        let reason = open.why_unreadable();
        self.decoder.decoded.clear();
        if open.named {
            return Err(ReadError::NotFlowLogs { path: open.name, reason });
        }
        self.pass_over(open.name, reason);
        Ok(())
    }

    fn pass_over(&mut self, name: String, reason: String) {
        let reason_here = format!("not a flow log: {reason}");
        self.passed_over.add(Refusal { source: name.clone(), line: 0, field: None, reason: reason_here });
        self.unreadable.get_or_insert((name, reason));
    }

    fn close(&mut self) -> Option<Open> {
        let open = self.current.take()?;
        self.read.store(open.base + open.size.max(open.read.load(Ordering::Relaxed)), Ordering::Relaxed);
        Some(open)
    }

    fn take(&mut self, batch: &mut Batch) {
        let Some(open) = &mut self.current else { return };
        self.decoder.take(&open.name, batch);
        batch.refused.merge(std::mem::take(&mut self.passed_over));
        batch.position = Some(open.place().position());
    }

    /// At the end: what folders held besides flow logs, or the error that they held nothing else.
    fn end(&mut self, mut batch: Batch) -> Result<Option<Batch>, ReadError> {
        if self.walked && !self.readable {
            self.walked = false;
            let (path, reason) = match self.unreadable.take() {
                Some((path, reason)) => (path, format!("{reason} (and no other file of the folder is one)")),
                None => ("the folder".to_owned(), "it holds no files".to_owned()),
            };
            return Err(ReadError::NotFlowLogs { path, reason });
        }
        batch.refused.merge(std::mem::take(&mut self.passed_over));
        if batch.refused.count > 0 { Ok(Some(batch)) } else { Ok(None) }
    }
}

pub(super) fn clear(batch: &mut Batch) {
    batch.records.clear();
    batch.interfaces.clear();
    batch.blind.clear();
    batch.refused = Refused::default();
    batch.position = None;
}
