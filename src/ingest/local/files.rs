//! Files that are read to their end, in the order of event time.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use crate::flow::Interface;
use crate::ingest::local::merge::{Event, Merge, Part};
use crate::ingest::local::open::Decoder;
use crate::ingest::local::walk::Found;
use crate::ingest::local::{ReadError, shown};
use crate::ingest::{Batch, Refusal, Refused, Settings};

/// Refused lines after which a file without a single readable one is given up.
pub(super) const PATIENCE: u64 = 1000;

/// Files read to their end.
pub(crate) struct Files {
    found: Vec<Found>,
    merge: Option<Merge>,
    decoder: Decoder,
    read: Arc<AtomicU64>,
    /// The first file that was not readable.
    unreadable: Option<(String, String)>,
    passed_over: Refused,
    walked: bool,
}

impl Files {
    pub(crate) fn new(found: Vec<Found>, settings: &Settings, read: Arc<AtomicU64>) -> Result<Files, ReadError> {
        Ok(Files {
            walked: found.iter().any(|file| !file.named),
            found,
            merge: None,
            decoder: Decoder::new(settings)?,
            read,
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
        let merge = match &mut self.merge {
            Some(merge) => merge,
            None => {
                let part = |(id, found): (usize, &Found)| {
                    let (found, name) = (found.clone(), shown(&found.path));
                    Part { id, found, name, from: None, tail: false }
                };
                let parts = self.found.iter().enumerate().map(part).collect();
                let marking = self.found.len() == 1;
                self.merge.insert(Merge::new(parts, &mut self.decoder, marking, self.read.clone()))
            }
        };
        while let Some(event) = merge.next(&mut self.decoder, &mut batch) {
            let (id, reason) = match event {
                Event::Batch(marks) => {
                    batch.refused.merge(std::mem::take(&mut self.passed_over));
                    batch.position = marks.last().map(|mark| mark.place.position());
                    if batch.records.is_empty() && batch.blind.is_empty() && batch.refused.count == 0 {
                        continue;
                    }
                    return Ok(Some(batch));
                }
                Event::Unopened { id, cause } if self.found[id].named => {
                    return Err(ReadError::Open { path: shown(&self.found[id].path), cause });
                }
                Event::Unopened { id, cause } => (id, cause.to_string()),
                Event::Unreadable { id, reason, .. } => (id, reason),
            };
            let name = shown(&self.found[id].path);
            // An error when it was named, a refusal when it was found in a folder.
            if self.found[id].named {
                return Err(ReadError::NotFlowLogs { path: name, reason });
            }
            let reason_here = format!("not a flow log: {reason}");
            self.passed_over.add(Refusal { source: name.clone(), line: 0, field: None, reason: reason_here });
            self.unreadable.get_or_insert((name, reason));
        }
        self.end(batch)
    }

    /// At the end: what folders held besides flow logs, or the error that they held nothing else.
    fn end(&mut self, mut batch: Batch) -> Result<Option<Batch>, ReadError> {
        if self.walked && self.merge.as_ref().is_some_and(|merge| !merge.readable()) {
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
    batch.reached = None;
}
