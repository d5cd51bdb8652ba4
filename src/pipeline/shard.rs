//! One shard: read, observe in a thread of its own, score; and the barriers that travel behind.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::{CLOCK, Common, EVENT_TIME, Ending, LATENESS, Tiers, judgement};
use crate::explainers::Question;
use crate::finding::Finding;
use crate::flow::EventTime;
use crate::ingest::snapshot::{Snapshot, SnapshotError};
use crate::ingest::{Batch, IngestError, Position, Read, Refused, Shard, ShardId};
use crate::ml::behavior::Behavior;
use crate::ml::model::Judge;
use crate::ml::sagemaker::EndpointStatus;
use crate::ml::{FeatureVector, Score};
use crate::statistical;
use crate::statistical::intel::local::Files;
use crate::statistical::{Engine, Output, Statistics};
use crate::telemetry::trace::BatchTrace;
use crate::telemetry::{self, Metrics};
use crate::wait::positive;

/// How a shard's life ended in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum End {
    /// It has ended for good.
    Ended,
    /// Somebody else reads it now.
    Lost,
    /// The service was told to stop.
    Stopped,
}

impl End {
    pub(super) fn name(self) -> &'static str {
        match self {
            End::Ended => "ended",
            End::Lost => "lost",
            End::Stopped => "stopped",
        }
    }
}

/// Why a shard's life ended otherwise.
#[derive(Debug, thiserror::Error)]
pub(super) enum ShardError {
    #[error(transparent)]
    Ingest(#[from] IngestError),
    #[error("read: nothing within {0:?}")]
    Silent(Duration),
    #[error("the engine stopped; this is a defect in flowvigil")]
    Engine,
    #[error("start the engine's thread: {0}")]
    Thread(std::io::Error),
    #[error("the snapshot of {0:?} was not saved")]
    Undelivered(Option<Position>),
    #[error("restore the shard's state: {0}")]
    Restore(SnapshotError),
}

/// What the reader tells the engine.
enum Work {
    Batch(Batch),
    /// Nothing has come; for so many seconds, once that is long enough for event time to move on with the clock.
    Quiet(u32),
    Barrier(Barrier),
    /// Why did an address alert or not?
    Question(Question),
    /// Nothing will follow: all windows close.
    Finish,
}

impl Work {
    fn records(&self) -> usize {
        if let Work::Batch(batch) = self { batch.records.len() } else { 0 }
    }
}

/// The part that is away, as health names it, while a checkpoint stands still.
const CHECKPOINT: &str = "checkpoint";

/// Which barrier has come to its end, and whether its snapshots were saved.
pub(super) type Passed = (u64, bool);

/// The mark that turns snapshots into a checkpoint.
pub(super) struct Barrier {
    pub shard: ShardId,
    pub number: u64,
    /// `None` where nothing was read, and the state is all that the shard has.
    pub position: Option<Position>,
    /// What the stages were at the mark.
    pub state: State,
    /// Told when everything before the mark is delivered, and whether the snapshots are saved.
    pub passed: Arc<watch::Sender<Option<Passed>>>,
}

/// What an engine hands on.
pub(super) struct Step {
    pub findings: Vec<Finding>,
    pub vectors: Vec<FeatureVector>,
    pub watermark: Option<EventTime>,
    /// Whether there have been no records for long, and none before.
    pub idle: bool,
    pub trace: BatchTrace,
    pub barrier: Option<Barrier>,
}

/// A shard's snapshot: tier 1, what tier 2 remembers, and what tiers 3 and 4 know of incidents in which it had a part. It is
/// one, and under the shard's name, so that whoever reads the shard next goes on with all of it.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct State {
    pub engine: Vec<u8>,
    pub behavior: Vec<u8>,
    pub judgement: Vec<u8>,
}

/// Reads a shard until it ends, is lost, fails, or the service is told to stop.
pub(super) async fn live(
    common: Common,
    mut shard: Box<dyn Shard>,
    to_judgement: mpsc::Sender<judgement::Message>,
) -> Result<End, ShardError> {
    let id = shard.id().clone();
    let Restored { engine, behavior, judgements, said, number, inherited } = restore(&common, shard.as_mut()).await?;
    let (to_engine, work) = mpsc::channel(common.settings.records_waiting.max(1));
    let (to_score, steps) = mpsc::channel(common.settings.findings_waiting.max(1));
    // What a restored engine has counted before is not counted again.
    let counted = engine.statistics();
    let observer = Observer {
        engine,
        counted,
        common: common.clone(),
        id: id.clone(),
        unseen: 0,
        looked: EventTime::default(),
        punctuality: Punctuality::default(),
        strange: false,
    };
    let body = move || observer.run(said, work, &to_score);
    thread::Builder::new().name(format!("engine {}", id.0)).spawn(body).map_err(ShardError::Thread)?;
    // Ends with this future: an engine that is gone is not asked.
    let _questions =
        AbortOnDropHandle::new(tokio::spawn(pass_on(common.explainers.enter(&id.0), to_engine.downgrade())));
    let (fence, siblings) = (shard.fence(), shard.siblings());
    let enter = judgement::Message::Enter { shard: id.clone(), fence, siblings, judgements };
    let mut scoring = tokio::spawn(score(common.clone(), id.clone(), behavior, steps, enter, to_judgement.clone()));

    let (passed, passing) = watch::channel(None);
    let mut reader = Reader {
        common,
        id,
        to_engine,
        passed: Arc::new(passed),
        passing,
        number,
        position: None,
        inherited,
        marked: None,
        settled: None,
        troubled: false,
    };
    let end = reader.read_on(shard.as_mut()).await;
    let result = match end {
        Ok(End::Lost) => {
            // Whoever reads it now tells it: nothing more goes on to the judge from here, least of all after the word that it
            // has left.
            scoring.abort();
            let _ = (&mut scoring).await;
            let _ = to_judgement.send(judgement::Message::Leave(reader.id.clone())).await;
            return Ok(End::Lost);
        }
        Ok(end) => reader.leave(shard.as_mut(), end).await.map(|()| end),
        Err(error) => Err(error),
    };
    let children = if let Ok(End::Ended) = result { shard.children().await } else { Vec::new() };
    // Without a sender the engine ends, then the score stage, and the judge is told that the shard has left.
    let id = reader.id.clone();
    drop(reader);
    let _ = scoring.await;
    if !children.is_empty() {
        let _ = to_judgement.send(judgement::Message::Continued(id, children)).await;
    }
    result
}

/// Passes questions on to the engine for as long as it is there.
async fn pass_on(mut questions: mpsc::Receiver<Question>, to_engine: mpsc::WeakSender<Work>) {
    while let Some(question) = questions.recv().await {
        let Some(to_engine) = to_engine.upgrade() else { return };
        let _ = to_engine.send(Work::Question(question)).await;
    }
}

/// What a shard goes on from.
struct Restored {
    engine: Engine,
    behavior: Behavior,
    /// What the judge knew, once for each shard whose state this is.
    judgements: Vec<Vec<u8>>,
    /// What was said while the states of several shards became one.
    said: Output,
    /// Of the next snapshot.
    number: u64,
    /// Whether it is the state of the shards that this one continues.
    inherited: bool,
}

/// The engine and the scorer as the newest usable snapshot has them; where there is none, as those of all shards that this
/// one continues have them; or new ones.
async fn restore(common: &Common, shard: &mut dyn Shard) -> Result<Restored, ShardError> {
    let own = shard.id().clone();
    let numbers = common.snapshots.numbers(&own.0).await.map_err(ShardError::Restore)?;
    let mut number = numbers.first().map_or(1, |newest| newest + 1);
    let mut parts = Vec::new();
    let found = newest(common, &own, &own, numbers, |position| resumes(shard, position)).await?;
    if let Some(part) = found.usable {
        // What could not be used gives way to the next; the one that could is kept.
        number = part.number + 1;
        if let Some(cause) = found.unusable {
            let cause = format!("{cause}; the shard goes on from number {} and reads again what followed", part.number);
            common.fell_back(&own, cause);
        }
        parts.push(part);
    }
    let inherited = parts.is_empty();
    if inherited {
        for parent in shard.parents() {
            let numbers = common.snapshots.numbers(&parent.0).await.map_err(ShardError::Restore)?;
            let found = newest(common, &own, &parent, numbers, |_| true).await?;
            match (&found.usable, found.unusable) {
                (Some(_), None) => {}
                (Some(part), Some(cause)) => common.fell_back(
                    &own,
                    format!(
                        "{cause}; it continues {} from number {}: what was under way there later is not judged whole",
                        parent.0, part.number
                    ),
                ),
                (None, _) => common.fell_back(
                    &own,
                    format!(
                        "there is no usable snapshot of {}, which it continues: what was under way there is not judged whole",
                        parent.0
                    ),
                ),
            }
            parts.extend(found.usable);
        }
    }
    let inherited = inherited && !parts.is_empty();
    if parts.is_empty() {
        if shard.resume_from().is_some() {
            let cause =
                "there is a checkpoint and no usable snapshot: windows that were open then are not judged whole";
            common.fell_back(&own, cause.to_owned());
        }
        // Drawn from the system once in the life of a shard: the senders of packets must not know it.
        let hash_seed = RandomState::new().hash_one(0);
        let engine = Engine::with_seed(&common.tiers.statistical, &common.tiers.network, hash_seed);
        let behavior = Behavior::new(common.tiers.hosts_max);
        let (judgements, said) = (Vec::new(), Output::default());
        return Ok(Restored { engine, behavior, judgements, said, number, inherited });
    }
    let Part { mut engine, mut behavior, judgement, .. } = parts.remove(0);
    let mut judgements = vec![judgement];
    let mut said = Output::default();
    if !parts.is_empty() {
        // Windows close while the engines become one, and are judged by the lists of the day.
        let lists = Files::open(&common.tiers.statistical.intel).map(|files| files.lists()).unwrap_or_default();
        let mut engines = vec![engine];
        for part in parts {
            engines.push(part.engine);
            behavior.join(part.behavior);
            judgements.push(part.judgement);
        }
        engines.iter_mut().for_each(|engine| engine.set_lists(lists.clone()));
        engine = Engine::merge(engines, &mut said).ok_or(ShardError::Engine)?;
    }
    shard.adopt_interfaces(engine.interfaces());
    Ok(Restored { engine, behavior, judgements, said, number, inherited })
}

/// What one snapshot holds.
struct Part {
    /// Of the snapshot.
    number: u64,
    engine: Engine,
    behavior: Behavior,
    judgement: Vec<u8>,
}

/// What snapshots a shard has.
#[derive(Default)]
struct Found {
    /// The newest that can be used.
    usable: Option<Part>,
    /// Why the newest of all cannot.
    unusable: Option<String>,
}

/// The newest snapshot of a shard that can be used to go on with `own`. One that is damaged is passed over; where none can be
/// got at, nothing is begun without it.
async fn newest(
    common: &Common,
    own: &ShardId,
    name: &ShardId,
    numbers: Vec<u64>,
    mut fits: impl FnMut(Option<&Position>) -> bool,
) -> Result<Found, ShardError> {
    let (shard, from) = (&*own.0, &*name.0);
    let mut found = Found::default();
    for number in numbers {
        let loaded = match common.snapshots.load(from, number).await {
            Err(error @ SnapshotError::Backend { .. }) => return Err(ShardError::Restore(error)),
            Err(error) => Err(error.to_string()),
            Ok(snapshot) => revive(common, snapshot),
        };
        match loaded {
            Ok((_, position)) if !fits(position.as_ref()) => {
                tracing::warn!(shard, number, "the snapshot was not taken at the checkpoint; trying the one before")
            }
            Ok((part, _)) => {
                common.metrics.add(&telemetry::SNAPSHOTS, &["restored"], 1);
                tracing::info!(shard, from, number, "going on from a snapshot");
                found.usable = Some(part);
                return Ok(found);
            }
            Err(error) => {
                common.metrics.add(&telemetry::SNAPSHOTS, &["unreadable"], 1);
                tracing::warn!(shard, from, number, error, "the snapshot cannot be used; trying the one before");
                found.unusable.get_or_insert(format!("snapshot {number} of {from} cannot be used: {error}"));
            }
        }
    }
    Ok(found)
}

fn resumes(shard: &mut dyn Shard, position: Option<&Position>) -> bool {
    position.is_some_and(|position| shard.resume_at(position)) || shard.resume_from().as_ref() == position
}

fn revive(common: &Common, snapshot: Snapshot) -> Result<(Part, Option<Position>), String> {
    let state: State = postcard::from_bytes(&snapshot.state).map_err(|error| error.to_string())?;
    let engine = Engine::restore(&state.engine, &common.tiers.statistical, &common.tiers.network);
    let behavior = Behavior::restore(&state.behavior, common.tiers.hosts_max).ok_or("tier 2 cannot be read")?;
    let engine = engine.map_err(|error| error.to_string())?;
    Ok((Part { number: snapshot.number, engine, behavior, judgement: state.judgement }, snapshot.position))
}

/// The end of the chain that faces the stream.
struct Reader {
    common: Common,
    id: ShardId,
    to_engine: mpsc::Sender<Work>,
    passed: Arc<watch::Sender<Option<Passed>>>,
    passing: watch::Receiver<Option<Passed>>,
    /// Of the next snapshot.
    number: u64,
    /// What was read up to.
    position: Option<Position>,
    /// Whether the shard goes on from other shards' snapshots and has none of its own yet.
    inherited: bool,
    /// The last barrier, and where it was set.
    marked: Option<(u64, Option<Position>)>,
    /// The last barrier that is done with: the checkpoint has moved to it, or its snapshots were not saved.
    settled: Option<u64>,
    /// Whether a part of the input cannot be read.
    troubled: bool,
}

impl Reader {
    /// Reads until there is a reason to stop.
    async fn read_on(&mut self, shard: &mut dyn Shard) -> Result<End, ShardError> {
        let settings = self.common.settings.clone();
        let interval = positive(settings.snapshot_interval);
        let (mut marked_at, mut last_records) = (Instant::now(), Instant::now());
        let mut trouble = 0;
        let mut stop = self.common.stop.clone();
        while !*stop.borrow() {
            let patience = positive(settings.read_timeout);
            match timeout(patience, shard.read()).await.map_err(|_| ShardError::Silent(patience))? {
                Ok(Read::Batch(batch)) => {
                    trouble = 0;
                    if !batch.records.is_empty() {
                        last_records = Instant::now();
                    }
                    self.hand_on(batch).await?;
                }
                Ok(Read::Idle) => {
                    trouble = 0;
                    let quiet = last_records.elapsed();
                    let long = quiet >= positive(settings.idle_after);
                    let seconds = if long { u32::try_from(quiet.as_secs()).unwrap_or(u32::MAX) } else { 0 };
                    self.send(Work::Quiet(seconds)).await?;
                }
                Ok(Read::End) => return Ok(End::Ended),
                Ok(Read::Lost) | Err(IngestError::Lost { .. }) => return Ok(End::Lost),
                Err(IngestError::Retry { context, cause }) => {
                    let pause = settings.pause(trouble);
                    trouble += 1;
                    tracing::debug!(shard = %self.id.0, context, cause, ?pause, "reading again after a pause");
                    let _ = timeout(pause, super::stopped(&mut stop)).await;
                }
                Err(error @ IngestError::Fatal { .. }) => return Err(error.into()),
            }
            self.note_trouble(shard.trouble());
            if marked_at.elapsed() >= interval && self.has_read_on() && self.is_settled() {
                self.mark(shard).await?;
                marked_at = Instant::now();
            }
            if !self.move_checkpoint(shard).await? {
                return Ok(End::Lost);
            }
        }
        Ok(End::Stopped)
    }

    /// Tells what keeps a part of the input from being read, and when it can be read again.
    fn note_trouble(&mut self, trouble: Option<String>) {
        match trouble {
            Some(reason) => {
                self.troubled = true;
                if self.common.health.degrade("files", reason.clone()) {
                    tracing::warn!(shard = %self.id.0, reason, "a part of the input cannot be read");
                }
            }
            None if std::mem::take(&mut self.troubled) && self.common.health.restore("files") => {
                tracing::info!(shard = %self.id.0, "all of the input can be read again");
            }
            None => {}
        }
    }

    /// Whether no barrier is under way. There is one at a time, so that of the two snapshots that are kept one was always
    /// taken where the checkpoint is, whenever a crash comes.
    fn is_settled(&self) -> bool {
        self.marked.as_ref().map(|(number, _)| *number) == self.settled
    }

    /// Whether anything was read since the last barrier.
    fn has_read_on(&self) -> bool {
        self.position.is_some() && self.marked.as_ref().is_none_or(|(_, position)| *position != self.position)
    }

    async fn hand_on(&mut self, mut batch: Batch) -> Result<(), ShardError> {
        let name: &str = &self.id.0;
        if batch.refused.count > 0 {
            self.count_refused(&batch.refused);
            self.common.health.refused(name, &batch.refused);
        }
        let outcome = match batch.refused.samples.first() {
            _ if !batch.records.is_empty() || !batch.blind.is_empty() => Some(Ok(())),
            Some(refusal) if refusal.line == 0 => Some(Err(refusal.reason.clone())),
            Some(refusal) => Some(Err(format!("line {}: {}", refusal.line, refusal.reason))),
            None => None,
        };
        if let Some(outcome) = outcome
            && self.common.health.input(name, outcome.as_ref().copied().map_err(String::as_str))
        {
            match outcome {
                Ok(()) => tracing::info!(shard = name, "it can be read"),
                // The reason may hold text of the log; it stands on /health/ready.
                Err(_) => tracing::warn!(shard = name, "nothing of it was read: /health/ready says why"),
            }
        }
        let records = batch.records.len() as u64;
        self.common.health.shard(name, |shard| {
            shard.state = "reading".to_owned();
            shard.records += records;
        });
        let position = batch.position.take();
        self.send(Work::Batch(batch)).await?;
        if position.is_some() {
            self.position = position;
        }
        Ok(())
    }

    fn count_refused(&self, refused: &Refused) {
        let count = |field: &str, lines: u64| self.common.metrics.add(&telemetry::REFUSED, &[&self.id.0, field], lines);
        for sample in &refused.samples {
            count(sample.field.as_deref().unwrap_or("payload"), 1);
            if let Some(refusals) = &self.common.refusals {
                // Samples that find no room are only counted: unreadable input must not hold up the readable.
                let _ = refusals.try_send((self.id.clone(), sample.clone()));
            }
        }
        count("more", refused.count.saturating_sub(refused.samples.len() as u64));
    }

    async fn send(&self, work: Work) -> Result<(), ShardError> {
        let depth = self.to_engine.max_capacity() - self.to_engine.capacity();
        self.common.metrics.set(&telemetry::QUEUE_DEPTH, &["records"], depth as i64);
        self.to_engine.send(work).await.map_err(|_| ShardError::Engine)
    }

    /// Sets a barrier behind everything that was read.
    async fn mark(&mut self, shard: &mut dyn Shard) -> Result<(), ShardError> {
        let (number, passed) = (self.number, self.passed.clone());
        self.number += 1;
        self.marked = Some((number, self.position.clone()));
        let position = self.position.as_ref().map(|position| shard.bookmark(position));
        let (shard, state) = (self.id.clone(), State::default());
        self.send(Work::Barrier(Barrier { shard, number, position, state, passed })).await
    }

    /// Moves the checkpoint to the last barrier when that has passed; false when the shard is no longer ours.
    async fn move_checkpoint(&mut self, shard: &mut dyn Shard) -> Result<bool, ShardError> {
        let passed = *self.passing.borrow_and_update();
        let Some((number, position)) = self.marked.clone().filter(|(number, _)| Some(*number) != self.settled) else {
            return Ok(true);
        };
        match passed.filter(|(passed, _)| *passed == number) {
            None => return Ok(true),
            Some((_, false)) => {
                // As if it had never been set: another is set in its place, also when nothing more is read.
                (self.marked, self.settled) = (None, None);
                return Ok(true);
            }
            Some((_, true)) => self.inherited = false,
        }
        let Some(position) = position else {
            self.settled = Some(number);
            return Ok(true);
        };
        let patience = positive(self.common.settings.call_timeout);
        match timeout(patience, shard.checkpoint(&position)).await {
            Ok(Ok(())) => {
                self.common.health.shard(&self.id.0, |shard| shard.checkpoint = Some(position.0.clone()));
                self.settled = Some(number);
                self.common.caught_up(&self.id);
                if self.common.health.restore(CHECKPOINT) {
                    tracing::info!(shard = %self.id.0, "the checkpoint moves again");
                }
            }
            Ok(Err(IngestError::Lost { .. })) => return Ok(false),
            // It is tried again after the next read; until then no other barrier is set.
            Ok(Err(error)) => self.stuck(&error.to_string()),
            Err(_) => self.stuck("no answer in time"),
        }
        Ok(true)
    }

    /// The checkpoint did not move; the log says so once.
    fn stuck(&self, cause: &str) {
        let reason = format!("{cause}; the checkpoint of {} stands still", self.id.0);
        if self.common.health.degrade(CHECKPOINT, reason) {
            tracing::warn!(shard = %self.id.0, cause, "the checkpoint did not move");
        }
    }

    /// Waits for the barrier under way, if there is one, and moves the checkpoint to it.
    async fn settle(&mut self, shard: &mut dyn Shard) -> Result<bool, ShardError> {
        let patience = positive(self.common.settings.read_timeout);
        while !self.is_settled() {
            let Some((number, position)) = self.marked.clone() else { break };
            let passing = self.passing.wait_for(|passed| passed.is_some_and(|(n, _)| n == number));
            let passed = timeout(patience, passing).await.map(|passed| passed.ok().and_then(|passed| *passed));
            // What is held is not lost: to read it again would only hold more.
            if passed.is_err() && self.common.is_held() {
                continue;
            }
            let saved = passed.ok().flatten().is_some_and(|(_, saved)| saved);
            if !saved {
                return Err(ShardError::Undelivered(position));
            }
            if !self.move_checkpoint(shard).await? {
                return Ok(false);
            }
            if !self.is_settled() {
                tokio::time::sleep(self.common.settings.pause(0)).await;
            }
        }
        Ok(true)
    }

    /// Finishes what was read, checkpoints, and gives the shard up. The grace period bounds it from outside.
    async fn leave(&mut self, shard: &mut dyn Shard, end: End) -> Result<(), ShardError> {
        let finishing = end == End::Ended && self.common.ending == Ending::CloseWindows;
        if finishing {
            self.send(Work::Finish).await?;
        }
        if !self.settle(shard).await? {
            return Ok(());
        }
        // Whoever continues a shard of which nothing was read goes on from what that went on from.
        let handed_on = end == End::Ended && self.inherited;
        if finishing && self.position.is_some() || self.has_read_on() || handed_on {
            self.mark(shard).await?;
            if !self.settle(shard).await? {
                return Ok(());
            }
        }
        shard.release().await?;
        Ok(())
    }
}

/// Tier 1 in its own thread.
struct Observer {
    common: Common,
    id: ShardId,
    engine: Engine,
    counted: Statistics,
    /// Records since open windows were last looked into.
    unseen: usize,
    /// Newest event time when they were.
    looked: EventTime,
    punctuality: Punctuality,
    /// Whether most of what this shard has read touches no host of ours.
    strange: bool,
}

/// Fewer conversations than this say nothing of whose network it is.
const LEAST_WATCHED: u64 = 100;

/// How many of the last records came too late, or were dated ahead of all others.
#[derive(Default)]
struct Punctuality {
    records: u64,
    late: u64,
    future: u64,
}

impl Punctuality {
    /// Records over which shares are taken, and the share that is told.
    const RECORDS: u64 = 10_000;
    const SHARE: f64 = 0.01;

    /// Tells health when a share of the last records is lost for detection, and when it is not any more. Where the input has
    /// `ended`, of however many there were.
    fn note(&mut self, now: &Statistics, before: &Statistics, ended: bool, common: &Common, shard: &ShardId) {
        self.records += now.records - before.records;
        self.late += now.late - before.late;
        self.future += now.future.saturating_sub(before.future);
        if self.future > 0 {
            let reason = format!(
                "{} of the last {} records are dated more than an hour ahead of all others and are left out: look at the clock of what \
                 writes them",
                self.future, self.records
            );
            common.trouble(EVENT_TIME, shard, Some(reason));
        }
        let records = if ended { self.records } else { Punctuality::RECORDS };
        let many = self.late as f64 > records as f64 * Punctuality::SHARE;
        if many {
            let reason = format!("of the last records, {}", statistical::late_records(self.late, self.records));
            if common.trouble(LATENESS, shard, Some(reason.clone())) {
                tracing::warn!(shard = &*shard.0, reason, "records come late");
            }
        }
        if self.records >= Punctuality::RECORDS {
            if !many {
                common.trouble(LATENESS, shard, None);
            }
            if self.future == 0 {
                common.trouble(EVENT_TIME, shard, None);
            }
            *self = Punctuality::default();
        }
    }
}

/// So many records, or so many seconds of event time, lie between two looks into open windows: small batches must not cost
/// a look each. By the records and not by the clock, so that a replay looks when the live run did.
const LOOK_RECORDS: usize = 4096;
const LOOK_SECONDS: u32 = 5;

impl Observer {
    fn run(mut self, said: Output, mut work: mpsc::Receiver<Work>, to_score: &mpsc::Sender<Step>) {
        let mut lists = self.open_lists();
        let mut changes = self.common.tiers.changes.clone();
        let Output { findings, vectors } = said;
        if !findings.is_empty() || !vectors.is_empty() {
            let (watermark, trace) = (Some(self.engine.watermark()), BatchTrace::untraced());
            if to_score.blocking_send(Step { findings, vectors, watermark, idle: false, trace, barrier: None }).is_err()
            {
                return;
            }
        }
        while let Some(item) = work.blocking_recv() {
            if let Some(thresholds) = Tiers::changed(&mut changes) {
                self.set_thresholds(&thresholds.statistical);
                lists = self.open_lists();
            }
            self.refresh_lists(lists.as_mut());
            let records = item.records();
            let trace = match records {
                0 => BatchTrace::untraced(),
                records => BatchTrace::begin(&self.id.0, records),
            };
            let stage = trace.stage("statistical").entered();
            let mut out = Output::default();
            let mut barrier = None;
            let finished = matches!(item, Work::Finish);
            let quiet = matches!(item, Work::Quiet(1..));
            match item {
                Work::Batch(batch) => self.observe(&batch, &mut out),
                Work::Quiet(seconds) => self.wait(seconds, &mut out),
                Work::Finish => self.engine.finish(&mut out),
                Work::Question(question) => {
                    question.answer(&self.engine);
                    continue;
                }
                Work::Barrier(mut mark) => {
                    mark.state.engine = self.engine.snapshot();
                    barrier = Some(mark);
                }
            }
            self.count(finished);
            // When nothing will follow, nothing is waited for.
            let watermark = if finished { EventTime(u32::MAX) } else { self.engine.watermark() };
            let watermark = (self.counted.records > 0).then_some(watermark);
            let idle = quiet && self.counted.records == 0 && self.common.ending == Ending::LeaveOpen;
            let Output { findings, vectors } = out;
            stage.set_attribute("records", records as i64);
            stage.set_attribute("findings", findings.len() as i64);
            drop(stage);
            if to_score.blocking_send(Step { findings, vectors, watermark, idle, trace, barrier }).is_err() {
                return;
            }
        }
    }

    /// Goes on under the detectors' other thresholds, as after a restart. The window, the lateness and the tables stay: they
    /// shape the state.
    fn set_thresholds(&mut self, thresholds: &statistical::Settings) {
        let tiers = &self.common.tiers;
        let statistical::Settings { window, lateness, tables, intel, .. } = tiers.statistical.clone();
        let settings = statistical::Settings { window, lateness, tables, intel, ..thresholds.clone() };
        match Engine::restore(&self.engine.snapshot(), &settings, &tiers.network) {
            Ok(engine) => self.engine = engine,
            Err(error) => tracing::error!(%error, "the thresholds stay as they were; this is a defect in flowvigil"),
        }
    }

    /// Reads the lists of addresses. They were read once when the service began, so a failure now is no mistake in the settings.
    fn open_lists(&mut self) -> Option<Files> {
        match Files::open(&self.common.tiers.statistical.intel) {
            Ok(files) => {
                self.engine.set_lists(files.lists());
                Some(files)
            }
            Err(error) => {
                tracing::warn!(%error, "lists of addresses are not used");
                None
            }
        }
    }

    fn refresh_lists(&mut self, files: Option<&mut Files>) {
        match files.map(Files::refresh) {
            Some(Ok(Some(lists))) => {
                tracing::info!(
                    tor_relays = lists.tor_relays.len(),
                    mining_pools = lists.mining_pools.len(),
                    "lists of addresses read again"
                );
                self.engine.set_lists(lists);
            }
            Some(Err(error)) => tracing::warn!(%error, "a changed list of addresses is not used, the old one stays"),
            Some(Ok(None)) | None => {}
        }
    }

    fn observe(&mut self, batch: &Batch, out: &mut Output) {
        self.engine.name_interfaces(&batch.interfaces);
        self.engine.observe(&batch.records);
        self.engine.note_reached(batch.reached);
        self.engine.note_blindness(&batch.blind);
        self.engine.advance(out);
        self.unseen += batch.records.len();
        let newest = batch.records.iter().map(|record| record.end).max().unwrap_or_default();
        // Where the input ends by itself nobody waits, and what is told is what `detect` tells of it.
        if self.common.ending == Ending::CloseWindows {
            return;
        }
        if self.unseen >= LOOK_RECORDS || newest.since(self.looked) >= LOOK_SECONDS {
            self.look(newest, out);
        }
    }

    /// Looks into the open windows: what cannot wait is told now.
    fn look(&mut self, newest: EventTime, out: &mut Output) {
        self.engine.peek(out);
        self.unseen = 0;
        self.looked = self.looked.max(newest);
    }

    /// Event time moves on with the clock, from the newest record: the log is late by a constant, not silent for ever.
    fn wait(&mut self, seconds: u32, out: &mut Output) {
        if self.unseen > 0 && self.common.ending == Ending::LeaveOpen {
            self.look(self.counted.last, out);
        }
        // Where the input ends by itself its records alone are event time: a pipe that stands still is not over.
        if self.counted.records == 0 || seconds == 0 || self.common.ending == Ending::CloseWindows {
            return;
        }
        self.engine.advance_to(self.counted.last.plus(seconds), out);
    }

    /// Carries what the engine has counted since the last time over into the metrics.
    fn count(&mut self, ended: bool) {
        let (now, before, metrics) = (self.engine.statistics(), &self.counted, &self.common.metrics);
        let name: &str = &self.id.0;
        for (metric, now, before) in [
            (&telemetry::RECORDS, now.records, before.records),
            (&telemetry::LATE, now.late, before.late),
            (&telemetry::FUTURE, now.future, before.future),
            (&telemetry::DUPLICATES, now.duplicates, before.duplicates),
            (&telemetry::REPEATED, now.repeated, before.repeated),
            (&telemetry::STRANGERS, now.strangers, before.strangers),
            (&telemetry::WINDOWS, now.windows, before.windows),
        ] {
            if now > before {
                metrics.add(metric, &[name], now - before);
            }
        }
        for (kind, now, before) in [
            ("skip_data", now.skipped_seconds, before.skipped_seconds),
            ("no_data", now.no_data_seconds, before.no_data_seconds),
        ] {
            if now > before {
                metrics.add(&telemetry::BLIND, &[name, kind], now - before);
            }
        }
        for (table, &now) in &now.evictions {
            let before = before.evictions.get(table).copied().unwrap_or(0);
            if now > before {
                metrics.add(&telemetry::EVICTIONS, &[name, table], now - before);
            }
        }
        self.punctuality.note(&now, before, ended, &self.common, &self.id);
        let read = now.records > before.records;
        match now.nobody_watched().filter(|_| now.conversations >= LEAST_WATCHED) {
            Some(warning) => {
                if self.common.health.degrade("network", warning.clone()) {
                    tracing::warn!(strangers = now.strangers, "most conversations touch no host of ours");
                }
                self.strange = true;
            }
            None if self.strange => {
                self.common.health.restore("network");
                self.strange = false;
            }
            None => {}
        }
        if now.last > EventTime(0) {
            let lag = Timestamp::now().as_second() - i64::from(now.last.0);
            metrics.set(&telemetry::LAG, &[name], lag);
            self.common.health.shard(name, |shard| shard.newest = Some(now.last));
            if read && self.common.ending == Ending::LeaveOpen {
                self.hold_against_the_clock(now.last, lag);
            }
        }
        if let Some(late) = now.late_records().filter(|_| ended) {
            tracing::warn!(shard = name, late, "the input has ended");
        }
        self.counted = now;
    }
}

impl Observer {
    /// Says so where the newest records are hours away from the clock: what is told is then no news, or not of now. `lag` is by
    /// how much they are behind it, s.
    fn hold_against_the_clock(&self, newest: EventTime, lag: i64) {
        let most = self.common.settings.clock_gap_max.as_secs();
        let apart = most > 0 && lag.abs() > most;
        let cause = apart.then(|| {
            let hours = lag.abs() as f64 / 3600.0;
            let side = if lag > 0 { "behind" } else { "ahead of" };
            format!(
                "its newest records end at {newest}, {hours:.1} h {side} this machine's clock: the log is of another time, is delivered \
                 late, or is still being caught up with; or a clock is wrong"
            )
        });
        if self.common.trouble(CLOCK, &self.id, cause) && apart {
            tracing::warn!(shard = &*self.id.0, lag, "the newest records are hours away from the clock");
        }
    }
}

/// Tells the metrics how the endpoints are.
pub(super) fn count_endpoints(metrics: &Metrics, endpoints: &[EndpointStatus]) {
    for endpoint in endpoints {
        let name = endpoint.endpoint.as_str();
        metrics.set(&telemetry::ENDPOINT_BREAKER, &[name], endpoint.breaker as i64);
        metrics.set(&telemetry::ENDPOINT_CALLS, &[name], endpoint.calls as i64);
        metrics.set(&telemetry::ENDPOINT_FAILURES, &[name], endpoint.failures as i64);
        let life = endpoint.life;
        for (to, times) in [("open", life.opened), ("half_open", life.half_opened), ("closed", life.closed)] {
            metrics.set(&telemetry::ENDPOINT_TRANSITIONS, &[name, to], times as i64);
        }
    }
}

/// What the trained models say, where they are configured; health and metrics tell how they are.
async fn ask_models(common: &Common, judge: &mut Judge, vectors: &[FeatureVector]) -> Option<Vec<Score>> {
    let models = common.tiers.models.as_ref().filter(|_| !vectors.is_empty())?;
    let scores = match models.score(judge, vectors).await {
        Ok(scores) => scores,
        Err(error) => {
            common.health.degrade("ml", error.to_string());
            return None;
        }
    };
    for score in &scores {
        let degraded = if score.degraded { "true" } else { "false" };
        common.metrics.add(&telemetry::MODEL_WINDOWS, &[&score.variant, degraded], 1);
    }
    let endpoints = models.endpoints();
    count_endpoints(&common.metrics, &endpoints);
    if scores.iter().any(|score| score.degraded) {
        let why = endpoints.into_iter().find_map(|e| e.last_failure).unwrap_or_else(|| "no answer".to_owned());
        common.health.degrade("ml", format!("the model in process answers: {why}"));
    } else {
        common.health.restore("ml");
    }
    Some(scores)
}

/// Tier 2: closed windows of hosts become scores, and scores that matter become findings.
async fn score(
    common: Common,
    id: ShardId,
    mut behavior: Behavior,
    mut steps: mpsc::Receiver<Step>,
    enter: judgement::Message,
    to_judgement: mpsc::Sender<judgement::Message>,
) {
    if to_judgement.send(enter).await.is_err() {
        return;
    }
    let mut changes = common.tiers.changes.clone();
    let mut settings = common.tiers.behavior.clone();
    while let Some(mut step) = steps.recv().await {
        if let Some(thresholds) = Tiers::changed(&mut changes) {
            settings = thresholds.behavior.clone();
        }
        let stage = step.trace.stage("ml");
        let scores = ask_models(&common, behavior.judge(), &step.vectors).instrument(stage.clone()).await;
        let entered = stage.enter();
        let alerts = behavior.hear(&step.vectors, scores.as_deref(), &mut step.findings, &settings);
        if let (Some(models), Some(scores)) = (&common.tiers.models, &scores) {
            models.observe(&step.vectors, scores, &alerts);
            let alerted = alerts.iter().filter(|alerted| **alerted).count();
            common.metrics.add(&telemetry::MODEL_ALERTS, &[], alerted as u64);
        }
        drop(entered);
        stage.set_attribute("windows", step.vectors.len() as i64);
        drop(stage);
        if let Some(barrier) = &mut step.barrier {
            barrier.state.behavior = behavior.snapshot();
        }
        if to_judgement.send(judgement::Message::Step(id.clone(), step)).await.is_err() {
            return;
        }
    }
    // The judge may be gone, and then it does not matter.
    let _ = to_judgement.send(judgement::Message::Leave(id)).await;
}
