//! From what Kinesis hands out to flow records: aggregates come apart, payloads are decoded.

use aws_sdk_kinesis::types::Record;

use crate::flow::envelope::Envelope;
use crate::flow::interfaces::Interfaces;
use crate::flow::text::{Decoded, Format, FormatError, named};
use crate::flow::{Interface, kpl};
use crate::ingest::lease::Checkpoint;
use crate::ingest::{Batch, Refusal, Refused, Settings, ShardId};

/// Decodes the records of one shard.
pub struct Decoder {
    format: Format,
    interfaces: Interfaces,
    envelope: Envelope,
    last_part: u64,
}

impl Decoder {
    /// For lines of the format that the settings name.
    pub fn new(settings: &Settings) -> Result<Decoder, FormatError> {
        Ok(Decoder {
            format: settings.format()?,
            interfaces: Interfaces::new(settings.interfaces_max),
            envelope: Envelope::new(settings.payload_bytes_max),
            last_part: 0,
        })
    }

    /// Takes over interface numbers of a snapshot.
    pub fn adopt_interfaces(&mut self, known: &[Interface]) {
        self.interfaces.adopt(known);
    }

    /// The index of the last part of the last record, where that was an aggregate; else 0.
    pub fn last_part(&self) -> u64 {
        self.last_part
    }

    /// Decodes records in order, without what was read up to and including `after`.
    pub fn decode(&mut self, shard: &ShardId, records: &[Record], after: &Checkpoint) -> Batch {
        let mut decoded = Decoded::default();
        let mut refused = Refused::default();
        for record in records {
            let payload = record.data.as_ref();
            let parts = kpl::parts(payload).unwrap_or_else(|| vec![payload]);
            self.last_part = parts.len().saturating_sub(1) as u64;
            for part in parts.into_iter().skip(already_read(record, after)) {
                self.envelope.decode(part, &self.format, &mut self.interfaces, &mut decoded);
            }
            refused.merge(Refused {
                count: std::mem::take(&mut decoded.refused),
                samples: decoded.samples.drain(..).map(|sample| placed(shard, record, sample)).collect(),
            });
        }
        Batch {
            records: decoded.records,
            interfaces: named(&mut self.interfaces),
            blind: decoded.blind,
            refused,
            position: None,
            reached: None,
        }
    }
}

/// How many parts of a record lie before the checkpoint.
fn already_read(record: &Record, after: &Checkpoint) -> usize {
    match after {
        Checkpoint::Sequence { number, sub } if *number == record.sequence_number => *sub as usize + 1,
        _ => 0,
    }
}

fn placed(shard: &ShardId, record: &Record, sample: crate::flow::text::Refusal) -> Refusal {
    Refusal {
        source: format!("{} {}", shard.0, record.sequence_number),
        line: sample.line,
        field: sample.field.map(str::to_owned),
        reason: sample.reason,
    }
}
