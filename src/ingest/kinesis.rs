//! Flow logs from a Kinesis stream, shared with other tasks by leases in DynamoDB.
//!
//! Shards are polled, or pushed to us where a consumer of enhanced fan-out is named (`fan_out.rs`). Kinesis allows five reads
//! and 2 MiB a second per shard for all pollers together, so a reader waits after every read for as long as what it read
//! took from that allowance, and backs off when it is throttled all the same. A split or merged shard is read to its end
//! before its children are handed out.
//!
//! The position of a record is its sequence number, followed by `/` and the index of the part where the record is an
//! aggregate of the Kinesis Producer Library of which only a part was read (other programs on the same lease table do
//! that; this one takes aggregates whole).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_kinesis::Client;
use aws_sdk_kinesis::operation::get_records::GetRecordsOutput;
use aws_sdk_kinesis::primitives::DateTime;
use aws_sdk_kinesis::types::builders::StartingPositionBuilder;
use aws_sdk_kinesis::types::{ChildShard, Record, ShardIteratorType, StartingPosition, SubscribeToShardEvent};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::aws::{Fault, deadlines};
use crate::flow::Interface;
use crate::ingest::kinesis::coordinator::{Coordinator, Held, hashes};
use crate::ingest::kinesis::fan_out::{Consumer, Subscription};
use crate::ingest::kinesis::payload::Decoder;
use crate::ingest::lease::{Checkpoint, ShardInfo, Start};
use crate::ingest::{self, Fence, FlowSource, IngestError, Position, Read, Shard, ShardId};
use crate::wait::{backoff, positive};

pub mod coordinator;
mod fan_out;
mod payload;
pub mod table;

/// Settings of the backend, `[ingest.kinesis]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the stream.
    pub stream: String,
    /// Name of the application, which is also that of its lease table.
    pub application: String,
    /// Where a stream that was never read is begun.
    pub start: StartAt,
    /// Name or ARN of the consumer of enhanced fan-out that the records are pushed to; empty: shards are polled.
    pub fan_out: String,
    /// Name of this worker; empty makes one of host, process and start time. Two living workers never share one.
    pub worker: String,
    /// How long a lease may go without renewal before others take it.
    pub failover: SignedDuration,
    /// At most so many shards in this process.
    pub leases_max: usize,
    /// At most so many shards taken from other workers in one round.
    pub steal_max: usize,
    /// How often shards without leases and completed leases are looked for.
    pub shard_sync: SignedDuration,
    /// Records per read, 1 to 10,000.
    pub records_max: u32,
    /// Shortest time between two reads of a shard.
    pub read_pause: SignedDuration,
    /// Share of a shard's read allowance, in bytes per second.
    pub bytes_per_second: u64,
    /// How long to wait after a read that gave nothing.
    pub idle: SignedDuration,
    /// Longest back-off after throttles.
    pub backoff_max: SignedDuration,
    /// Deadline of one attempt of a call.
    pub timeout: SignedDuration,
}

/// Where a stream that was never read is begun: `trim_horizon`, `latest`, or a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StartAt {
    /// With the oldest record there is.
    TrimHorizon,
    /// With what arrives after the first read.
    Latest,
    /// With the first record that arrived at or after.
    Timestamp(Timestamp),
}

impl StartAt {
    /// The same without its moment.
    pub fn kind(self) -> Start {
        match self {
            StartAt::TrimHorizon => Start::TrimHorizon,
            StartAt::Latest => Start::Latest,
            StartAt::Timestamp(_) => Start::AtTimestamp,
        }
    }
}

impl<'de> Deserialize<'de> for StartAt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match String::deserialize(deserializer)?.as_str() {
            "trim_horizon" => Ok(StartAt::TrimHorizon),
            "latest" => Ok(StartAt::Latest),
            text => text.parse().map(StartAt::Timestamp).map_err(|_| {
                serde::de::Error::custom(format!("`{text}` is not `trim_horizon`, not `latest` and no RFC 3339 moment"))
            }),
        }
    }
}

/// A Kinesis stream, of which this worker reads its share.
#[derive(Debug)]
pub struct Kinesis {
    coordinator: Arc<Coordinator>,
    /// Whom shards are pushed to; else they are polled.
    consumer: Option<Consumer>,
    settings: Settings,
    ingest: ingest::Settings,
}

impl Kinesis {
    /// Joins the application's workers. Makes the lease table where there is none.
    pub async fn open(aws: &SdkConfig, settings: &Settings, ingest: &ingest::Settings) -> Result<Kinesis, IngestError> {
        decoder(ingest)?;
        let me = if settings.worker.is_empty() { worker_name() } else { settings.worker.clone() };
        info!(worker = me, stream = settings.stream, application = settings.application, "joining the stream");
        // Before leases: a consumer may take a minute to become active, and a lease must not wait for it.
        let consumer = match settings.fan_out.as_str() {
            "" => None,
            named => Some(
                Consumer::find(aws, settings)
                    .await
                    .map_err(|fault| failed(format!("register stream consumer {named}"), fault))?,
            ),
        };
        let coordinator = Coordinator::start(aws, settings, me)
            .await
            .map_err(|fault| failed(format!("open lease table {}", settings.application), fault))?;
        Ok(Kinesis { coordinator, consumer, settings: settings.clone(), ingest: ingest.clone() })
    }
}

/// A client with the deadlines of the settings.
fn client(aws: &SdkConfig, settings: &Settings) -> Client {
    Client::from_conf(aws_sdk_kinesis::config::Builder::from(aws).timeout_config(deadlines(settings.timeout)).build())
}

impl Drop for Kinesis {
    /// No more shards are taken; those that are being read stay ours until they are released.
    fn drop(&mut self) {
        self.coordinator.close();
    }
}

#[async_trait]
impl FlowSource for Kinesis {
    async fn next_shard(&mut self) -> Result<Option<Box<dyn Shard>>, IngestError> {
        let held = self.coordinator.next().await;
        Ok(Some(Box::new(KinesisShard {
            id: ShardId(held.key().into()),
            after: held.from().clone(),
            delivered: false,
            decoder: decoder(&self.ingest)?,
            subscription: self.consumer.as_ref().map(|consumer| consumer.subscription(held.key())),
            iterator: None,
            next_read: Instant::now(),
            pauses: 0,
            ended: false,
            children: None,
            coordinator: self.coordinator.clone(),
            settings: self.settings.clone(),
            held,
        })))
    }
}

fn decoder(ingest: &ingest::Settings) -> Result<Decoder, IngestError> {
    Decoder::new(ingest)
        .map_err(|e| IngestError::Fatal { context: "read ingest.fields".to_owned(), cause: e.to_string() })
}

/// One shard that this worker has the lease of.
pub struct KinesisShard {
    coordinator: Arc<Coordinator>,
    settings: Settings,
    held: Arc<Held>,
    id: ShardId,
    decoder: Decoder,
    /// The last checkpoint when reading began, then the last record delivered.
    after: Checkpoint,
    /// Whether `after` was read by us, so that reading goes on behind it instead of looking into it once more.
    delivered: bool,
    /// What the shard's records are pushed through; without it the shard is polled.
    subscription: Option<Subscription>,
    iterator: Option<String>,
    /// Not before this moment.
    next_read: Instant,
    /// Pauses after failures in a row.
    pauses: u32,
    ended: bool,
    children: Option<Vec<ShardInfo>>,
}

impl KinesisShard {
    /// Where reading goes on, as both ways of reading ask for it.
    fn starting_position(&self) -> StartingPosition {
        let from = |kind| StartingPosition::builder().r#type(kind);
        let position: StartingPositionBuilder = match &self.after {
            // A checkpoint may stand inside an aggregate: its record is read once more and what was read is dropped.
            Checkpoint::Sequence { number, .. } => from(match self.delivered {
                true => ShardIteratorType::AfterSequenceNumber,
                false => ShardIteratorType::AtSequenceNumber,
            })
            .sequence_number(number),
            Checkpoint::Latest => from(ShardIteratorType::Latest),
            Checkpoint::AtTimestamp => match self.settings.start {
                StartAt::Timestamp(at) => from(ShardIteratorType::AtTimestamp)
                    .timestamp(DateTime::from_nanos(at.as_nanosecond()).unwrap_or(DateTime::from_secs(0))),
                _ => from(ShardIteratorType::TrimHorizon),
            },
            Checkpoint::TrimHorizon | Checkpoint::ShardEnd => from(ShardIteratorType::TrimHorizon),
        };
        position.build().expect("the type is set")
    }

    async fn fresh_iterator(&self) -> Result<String, Fault> {
        let from = self.starting_position();
        let request = self
            .coordinator
            .kinesis
            .get_shard_iterator()
            .stream_name(&self.coordinator.stream)
            .shard_id(self.held.key())
            .shard_iterator_type(from.r#type)
            .set_starting_sequence_number(from.sequence_number)
            .set_timestamp(from.timestamp);
        let told = request.send().await.map_err(|e| Fault::of(&e))?;
        told.shard_iterator.ok_or_else(|| Fault {
            code: String::new(),
            cause: "the answer has no iterator".to_owned(),
            retry: true,
        })
    }

    async fn get_records(&mut self) -> Result<GetRecordsOutput, Fault> {
        let iterator = match self.iterator.clone() {
            Some(iterator) => iterator,
            None => self.fresh_iterator().await?,
        };
        let limit = self.settings.records_max.clamp(1, 10_000) as i32;
        let asked = self.coordinator.kinesis.get_records().shard_iterator(&iterator).limit(limit).send().await;
        self.iterator = Some(iterator);
        asked.map_err(|e| Fault::of(&e))
    }

    /// Decides what a failed read means; `None` is to read again at once.
    fn judge(&mut self, fault: Fault) -> Option<Result<Read, IngestError>> {
        match fault.code.as_str() {
            "ExpiredIteratorException" => {
                debug!(shard = self.held.key(), "iterator expired");
                self.iterator = None;
                None
            }
            "ProvisionedThroughputExceededException" | "LimitExceededException" | "ThrottlingException" => {
                self.back_off();
                Some(Ok(Read::Idle))
            }
            _ => {
                // Another iterator at LATEST would skip what has come since this one was made.
                if self.after != Checkpoint::Latest || !fault.retry {
                    self.iterator = None;
                }
                self.back_off();
                Some(Err(failed(format!("read shard {}", self.held.key()), fault)))
            }
        }
    }

    fn back_off(&mut self) {
        let settings = &self.settings;
        let pause = backoff(positive(settings.read_pause), positive(settings.backoff_max), self.pauses);
        self.pauses = self.pauses.saturating_add(1);
        self.next_read = Instant::now() + pause;
    }

    fn take(&mut self, told: GetRecordsOutput, asked: Instant) -> Read {
        self.pauses = 0;
        let bytes: u64 = told.records.iter().map(|r| r.data.as_ref().len() as u64 + PARTITION_KEY).sum();
        let owed = Duration::from_secs_f64(bytes as f64 / self.settings.bytes_per_second.max(1) as f64);
        let nothing_behind = told.records.is_empty() && told.millis_behind_latest.unwrap_or(0) == 0;
        let pause = if nothing_behind { positive(self.settings.idle) } else { Duration::ZERO };
        self.next_read = asked + owed.max(pause).max(positive(self.settings.read_pause));
        self.iterator = told.next_shard_iterator;
        if self.iterator.is_none() {
            self.end(told.child_shards);
        }
        self.deliver(&told.records)
    }

    /// The same of what was pushed. At the end of a shard there is no number to go on from. A server that gives one all the
    /// same, and tells the children as soon as the shard is closed, is at its end when it has nothing more.
    fn take_pushed(&mut self, event: SubscribeToShardEvent) -> Read {
        let closed = event.child_shards.as_ref().is_some_and(|children| !children.is_empty());
        if event.continuation_sequence_number.is_empty() || closed && event.records.is_empty() {
            self.end(event.child_shards);
        }
        self.deliver(&event.records)
    }

    fn end(&mut self, children: Option<Vec<ChildShard>>) {
        self.ended = true;
        self.children = children.map(|all| all.iter().map(child_info).collect());
    }

    /// Hands on what lies behind the last record delivered. The library drops what lies before as well: not every server
    /// begins where it was told to.
    fn deliver(&mut self, records: &[Record]) -> Read {
        let known = match &self.after {
            Checkpoint::Sequence { number, .. } => records.partition_point(|r| is_earlier(&r.sequence_number, number)),
            _ => 0,
        };
        let records = &records[known..];
        let Some(last) = records.last() else {
            return if self.ended { Read::End } else { Read::Idle };
        };
        let mut batch = self.decoder.decode(&self.id, records, &self.after);
        self.after = Checkpoint::Sequence { number: last.sequence_number.clone(), sub: self.decoder.last_part() };
        self.delivered = true;
        batch.position = position(&self.after);
        Read::Batch(batch)
    }

    async fn poll(&mut self) -> Result<Read, IngestError> {
        tokio::time::sleep_until(self.next_read).await;
        loop {
            if !self.coordinator.may_speak(&self.held) {
                return Ok(Read::Lost);
            }
            let asked = Instant::now();
            match self.get_records().await {
                // What came while the lease was lost is read by somebody else.
                Ok(_) if !self.coordinator.may_speak(&self.held) => return Ok(Read::Lost),
                Ok(told) => return Ok(self.take(told, asked)),
                Err(fault) => {
                    if let Some(outcome) = self.judge(fault) {
                        return outcome;
                    }
                }
            }
        }
    }

    async fn read_on(&mut self) -> Result<Read, IngestError> {
        let from = self.starting_position();
        let Some(subscription) = &mut self.subscription else { return self.poll().await };
        match subscription.next(from, &self.settings).await {
            _ if !self.coordinator.may_speak(&self.held) => Ok(Read::Lost),
            Ok(Some(event)) => Ok(self.take_pushed(event)),
            Ok(None) => Ok(Read::Idle),
            Err(fault) => Err(failed(format!("listen to shard {}", self.held.key()), fault)),
        }
    }
}

#[async_trait]
impl Shard for KinesisShard {
    fn id(&self) -> &ShardId {
        &self.id
    }

    fn parents(&self) -> Vec<ShardId> {
        self.held.parents().iter().map(|p| ShardId(p.as_str().into())).collect()
    }

    async fn children(&mut self) -> Vec<ShardId> {
        self.held.children().await.into_iter().map(|child| ShardId(child.into())).collect()
    }

    fn siblings(&self) -> Vec<ShardId> {
        let unfinished = self.coordinator.unfinished();
        unfinished.into_iter().filter(|key| key != self.held.key()).map(|key| ShardId(key.into())).collect()
    }

    fn fence(&self) -> Fence {
        let (coordinator, held) = (self.coordinator.clone(), self.held.clone());
        Fence::new(move || coordinator.may_speak(&held))
    }

    fn resume_from(&self) -> Option<Position> {
        position(&self.after)
    }

    fn resume_at(&mut self, position: &Position) -> bool {
        self.after = checkpoint_of(position);
        true
    }

    fn adopt_interfaces(&mut self, known: &[Interface]) {
        self.decoder.adopt_interfaces(known);
    }

    async fn read(&mut self) -> Result<Read, IngestError> {
        if self.ended {
            return Ok(if self.coordinator.may_speak(&self.held) { Read::End } else { Read::Lost });
        }
        if !self.coordinator.may_speak(&self.held) {
            return Ok(Read::Lost);
        }
        self.read_on().await
    }

    async fn checkpoint(&mut self, position: &Position) -> Result<(), IngestError> {
        let context = || format!("checkpoint shard {}", self.held.key());
        match self.coordinator.checkpoint(&self.held, checkpoint_of(position)).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(IngestError::Lost { context: context() }),
            Err(fault) => Err(failed(context(), fault)),
        }
    }

    async fn release(&mut self) -> Result<(), IngestError> {
        let context = format!("release shard {}", self.held.key());
        let drained = self.ended && (!self.delivered || self.held.checkpoint().await == self.after);
        if drained {
            let children = self.children.take();
            return match self.coordinator.finish(&self.held, children).await {
                Ok(true) => {
                    info!(shard = self.held.key(), "shard read to its end");
                    Ok(())
                }
                Ok(false) => Err(IngestError::Lost { context }),
                Err(fault) => Err(failed(context, fault)),
            };
        }
        self.coordinator.evict(&self.held).await.map_err(|fault| failed(context, fault))
    }
}

impl Drop for KinesisShard {
    fn drop(&mut self) {
        self.coordinator.drop_lease(&self.held);
    }
}

/// Compares sequence numbers: decimal, of up to 129 bits, without leading zeros.
fn is_earlier(number: &str, than: &str) -> bool {
    (number.len(), number) < (than.len(), than)
}

/// Kinesis counts partition keys (at most 256 bytes) towards the allowance; a stream's keys are much alike.
const PARTITION_KEY: u64 = 32;

fn child_info(child: &ChildShard) -> ShardInfo {
    ShardInfo {
        id: child.shard_id().to_owned(),
        parents: child.parent_shards().iter().cloned().collect::<BTreeSet<_>>(),
        hashes: hashes(child.hash_key_range()),
        open: true,
    }
}

fn position(checkpoint: &Checkpoint) -> Option<Position> {
    match checkpoint {
        Checkpoint::Sequence { number, sub: 0 } => Some(Position(number.clone())),
        Checkpoint::Sequence { number, sub } => Some(Position(format!("{number}/{sub}"))),
        _ => None,
    }
}

fn checkpoint_of(position: &Position) -> Checkpoint {
    let (number, sub) = position.0.split_once('/').unwrap_or((&position.0, "0"));
    Checkpoint::Sequence { number: number.to_owned(), sub: sub.parse().unwrap_or(0) }
}

fn failed(context: String, fault: Fault) -> IngestError {
    match fault.retry {
        true => IngestError::Retry { context, cause: fault.cause },
        false => IngestError::Fatal { context, cause: fault.cause },
    }
}

/// Host, process and start: no two workers that ever lived share it.
#[allow(clippy::disallowed_methods)] // the wall clock only makes the name unique
pub fn worker_name() -> String {
    let host = std::env::var("HOSTNAME")
        .ok()
        .or_else(|| std::fs::read_to_string("/etc/hostname").ok())
        .unwrap_or_else(|| "worker".to_owned());
    let born = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis());
    format!("{}-{}-{born:x}", host.trim(), std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_names_the_part_of_an_aggregate_where_there_is_one() {
        for text in ["4968", "4968/3"] {
            assert_eq!(position(&checkpoint_of(&Position(text.to_owned()))), Some(Position(text.to_owned())));
        }
    }

    #[test]
    fn sequence_numbers_are_compared_as_numbers() {
        assert!(is_earlier("999", "1000") && is_earlier("1000", "1001"));
        assert!(!is_earlier("1000", "1000") && !is_earlier("1000", "999"));
    }

    #[test]
    fn a_start_is_a_word_or_a_moment() {
        #[derive(Deserialize)]
        struct Only {
            start: StartAt,
        }
        let read = |text: &str| toml::from_str::<Only>(&format!("start = \"{text}\"")).map(|o| o.start.kind());
        assert_eq!(read("latest").unwrap(), Start::Latest);
        assert_eq!(read("2026-11-20T10:00:00Z").unwrap(), Start::AtTimestamp);
        assert!(read("yesterday").is_err());
    }
}
