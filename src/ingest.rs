//! Where flow records come from.
//!
//! A [`FlowSource`] hands out shards; a [`Shard`] is read in order by one owner. Both backends ([`local`]: files,
//! folders, standard input; `kinesis`) pass the same contract tests.

use std::sync::Arc;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::flow::text::{Format, FormatError};
use crate::flow::{Blindness, EventTime, FlowRecord, Interface};

pub mod kinesis;
pub mod lease;
pub mod local;
pub mod snapshot;

/// Settings `[ingest]`: what every source of records shares.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The fields of lines that no header names, as AWS writes a format: `${srcaddr} ${dstaddr} …`. Empty: the documented
    /// order, of which a default (version 2) line has the first fourteen.
    pub fields: String,
    /// How much text is read and decoded at a time, in bytes; a batch holds the records of at most this much.
    pub chunk_bytes: usize,
    /// The largest JSON object or unpacked payload, in bytes; larger ones are refused unread.
    pub payload_bytes_max: usize,
    /// How many interfaces of a shard are told apart.
    pub interfaces_max: usize,
    /// A Kinesis stream; the source when it is configured.
    pub kinesis: Option<kinesis::Settings>,
    /// Files, folders and standard input; the source when no other is configured.
    pub local: local::Settings,
    /// Where state is kept across restarts.
    pub snapshot: snapshot::Settings,
}

impl Settings {
    /// The format of lines without a header.
    pub fn format(&self) -> Result<Format, FormatError> {
        // Commas may stand between the names, and say nothing of the lines: those have blanks, or are a table.
        let fields = self.fields.replace([',', '\t', ';', '|'], " ");
        if fields.trim().is_empty() { Ok(Format::default()) } else { Format::parse(&fields) }
    }
}

impl Default for Settings {
    /// The embedded defaults, section `[ingest]`.
    fn default() -> Settings {
        #[derive(Deserialize)]
        struct File {
            ingest: Settings,
        }
        let file: File = toml::from_str(include_str!("defaults.toml")).expect("the embedded defaults are valid");
        file.ingest
    }
}

/// Names a shard: a Kinesis shard id, or the path of a file or folder, or `stdin`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ShardId(pub Arc<str>);

/// A position within a shard, opaque to everyone but its backend: a Kinesis sequence number, or file and byte offset.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Position(pub String);

/// Records of one shard in order, with everything that was learned while reading them.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The records, in the order of the shard.
    pub records: Vec<FlowRecord>,
    /// Interfaces that are named for the first time in this batch, by ascending id.
    pub interfaces: Vec<Interface>,
    /// NODATA and SKIPDATA.
    pub blind: Vec<Blindness>,
    /// What could not be read.
    pub refused: Refused,
    /// Where the shard stands after this batch; `None` before its first position.
    pub position: Option<Position>,
    /// No record that follows starts before this, as far as the source knows: windows from here on are to stay open. `None` where the
    /// source knows nothing, and the settings' lateness alone decides.
    pub reached: Option<EventTime>,
}

/// Input that could not be read: counted by reason, a few kept as samples, never in the way of the rest.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, ToSchema)]
pub struct Refused {
    /// How many lines or payloads.
    pub count: u64,
    /// The first few.
    pub samples: Vec<Refusal>,
}

/// How many refusals are kept as samples.
pub const REFUSED_SAMPLES_MAX: usize = 20;

impl Refused {
    /// Adds what was refused elsewhere; samples are kept while there is room.
    pub fn merge(&mut self, other: Refused) {
        self.count += other.count;
        let room = REFUSED_SAMPLES_MAX.saturating_sub(self.samples.len());
        self.samples.extend(other.samples.into_iter().take(room));
    }

    /// Counts one refusal and keeps it while there is room.
    pub fn add(&mut self, refusal: Refusal) {
        self.merge(Refused { count: 1, samples: vec![refusal] });
    }
}

/// One refused line or payload.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Refusal {
    /// File name, shard id or `stdin`.
    pub source: String,
    /// 1-based line number, or record number where there are no lines; 0 when it is the whole of the source.
    pub line: u64,
    /// The field, by its AWS name, where one is to blame.
    pub field: Option<String>,
    /// Why, as a fragment that fits after "refused: ".
    pub reason: String,
}

/// What a read of a shard gave.
#[derive(Debug)]
pub enum Read {
    /// Records, perhaps none but with news (blindness, refusals).
    Batch(Batch),
    /// Nothing has arrived within the backend's poll interval; the shard goes on.
    Idle,
    /// The shard has ended for good (end of the files without follow; SHARD_END).
    End,
    /// Somebody else owns the shard now: stop, and tell nothing more of it.
    Lost,
}

/// Why reading failed, and whether to try again.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    /// It may go better later.
    #[error("{context}: {cause}")]
    Retry {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
    /// It will not.
    #[error("{context}: {cause}")]
    Fatal {
        /// What was being done, as a verb phrase.
        context: String,
        /// What came back.
        cause: String,
    },
    /// Somebody else owns the shard now.
    #[error("{context}: the lease is lost")]
    Lost {
        /// What was being done, as a verb phrase.
        context: String,
    },
}

/// A stream of flow logs, in shards.
#[async_trait]
pub trait FlowSource: Send {
    /// Waits until a shard is ours to read; `None` when there will be no more. Cancellation safe.
    async fn next_shard(&mut self) -> Result<Option<Box<dyn Shard>>, IngestError>;
}

/// Whether a shard is still ours: asked by whoever is about to tell something that was read from it, for what was read
/// before a lease was lost may still be under way when somebody else reads the shard.
#[derive(Clone, Default)]
pub struct Fence(Option<Arc<dyn Fn() -> bool + Send + Sync>>);

impl Fence {
    /// A fence that stands for as long as `ours` says so. The default one always does.
    pub fn new(ours: impl Fn() -> bool + Send + Sync + 'static) -> Fence {
        Fence(Some(Arc::new(ours)))
    }

    /// Whether the shard is still ours.
    pub fn holds(&self) -> bool {
        self.0.as_ref().is_none_or(|ours| ours())
    }
}

impl std::fmt::Debug for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Fence({})", if self.holds() { "holds" } else { "fallen" })
    }
}

/// One shard that is ours for now.
#[async_trait]
pub trait Shard: Send {
    /// Its name.
    fn id(&self) -> &ShardId;

    /// The shards this one continues (after a split or merge); empty for most.
    fn parents(&self) -> Vec<ShardId>;

    /// The shards that continue this one, once it was released at its end; none where there are none, or they are not known.
    async fn children(&mut self) -> Vec<ShardId> {
        Vec::new()
    }

    /// Where reading starts, i.e. the last checkpoint; `None` at the beginning.
    fn resume_from(&self) -> Option<Position>;

    /// Other shards of the stream that are not read to their ends, as far as this one knows: whoever reads them, nothing
    /// that they may still add to is over.
    fn siblings(&self) -> Vec<ShardId> {
        Vec::new()
    }

    /// What keeps a part of the input from being read at the moment, in words: a file that cannot be opened. It is tried again.
    fn trouble(&self) -> Option<String> {
        None
    }

    /// Says, at any time and to anybody, whether the shard is still ours.
    fn fence(&self) -> Fence {
        Fence::default()
    }

    /// A position that this shard has given with a batch, in the form that is kept with a snapshot: it says all that
    /// [`Shard::resume_at`] needs in another life.
    fn bookmark(&self, position: &Position) -> Position {
        position.clone()
    }

    /// Starts reading after `position`, where a restored snapshot was taken, instead of at the last checkpoint. Only before
    /// the first read. False where the backend cannot: then only a snapshot taken at the checkpoint can be used.
    fn resume_at(&mut self, _position: &Position) -> bool {
        false
    }

    /// Tells the shard which interfaces already have numbers, before the first read, when a snapshot is restored.
    fn adopt_interfaces(&mut self, known: &[Interface]);

    /// The next records. Not cancellation safe: the owner awaits it to the end.
    async fn read(&mut self) -> Result<Read, IngestError>;

    /// Records that everything up to `position` is done with. Idempotent.
    async fn checkpoint(&mut self, position: &Position) -> Result<(), IngestError>;

    /// Gives the shard up after the last checkpoint, so that others need not wait for it. A shard that was read to
    /// [`Read::End`] and checkpointed there is thereby marked as done, and the shards that continue it may be read.
    /// Dropping a shard without this is what a crash does: it comes back at its last checkpoint.
    async fn release(&mut self) -> Result<(), IngestError> {
        Ok(())
    }
}
