//! The tiers as tasks: what runs, what waits for what, and what a crash may cost.
//!
//! ```text
//! shard A: read ─[records]→ engine (thread) ─[findings]→ score ─┐
//! shard B: read ─[records]→ engine (thread) ─[findings]→ score ─┴[judgement]→ judge ─[delivery]→ record, announce
//!            ↑                                                                                        │
//!            └──────────────────────────── checkpoint ◄──── snapshot saved ◄──── the barrier leaves ──┘
//! ```
//!
//! *One owner each.* An engine belongs to its shard's thread, the judge to one task; they share nothing but channels. All
//! channels are bounded: a store that is away holds delivery, which holds judgement, which holds the shards, and the
//! stream keeps the data.
//!
//! *One order.* What the judge does with a window is in [`chain`], which `detect` goes through as well. The windows of several shards,
//! of this task and of others, are folded in the order of their ends: what a shard has found waits until all shards have come as far,
//! and have folded what was before, for at most the settings' `shard_wait`. So ids and times of detection are a function of the
//! records and of event time. What waits is part of the shard's snapshot.
//!
//! *The barrier.* Now and then the reader sends a mark down the chain, behind everything it has read. The engine adds its
//! snapshot to it, the score stage and the judge add theirs, and when it has left delivery, everything before it is
//! recorded and announced. Only then the snapshots are saved and the checkpoint moves. A crash at any instant so loses
//! nothing; what is judged again afterwards has the same ids, and the store knows it already.
//!
//! *What is kept of the judge* travels with each shard: what it knows of the incidents in which the shard had a part. Whoever
//! reads the shard next goes on with it, and nobody else does, however many tasks there are. Of an incident in which other
//! shards have a part it is a little newer than the engine's own snapshot. That is harmless: folding a finding twice changes
//! nothing, and what was told is remembered as told.
//!
//! *A shard that continues others* (Kinesis splits and merges shards) goes on from what they left, all of it together.
//!
//! *What nobody closes.* Where correlation has lost an incident, its anomaly would stay open for ever. The judge looks for such,
//! and delivery closes them (`sweep`).
//!
//! *What a backend refuses.* No error of a store or a bus lets a barrier pass ([`crate::blame`]). An item that can never be taken goes
//! to the dead letters; everything else holds the pipeline, is seen on `/health/ready`, in metrics and in the log, and goes on by
//! itself. A service that is stopped meanwhile checkpoints nothing of it and ends with exit code 1.
//!
//! *Failures.* A shard whose reading or judging fails is dropped and comes back at its last checkpoint, after a pause that
//! doubles each time. Judge and delivery are the same for all shards: if one of them is gone, the pipeline ends and says
//! so, and whoever started the process starts it again.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use serde::Deserialize;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::correlation::IncidentStore;
use crate::explainers::Explainers;
use crate::flow::network::Network;
use crate::health::{Health, Phase};
use crate::ingest::snapshot::SnapshotStore;
use crate::ingest::{FlowSource, IngestError, ShardId};
use crate::publish::dead_letter::{Letters, Refusals};
use crate::publish::{Announcer, AnomalyStore};
use crate::telemetry::{self, Metrics};
use crate::wait::{backoff, positive};
use crate::{correlation, ml, statistical, validation};

pub mod chain;
mod delivery;
mod judgement;
mod shard;
mod sweep;
mod watermarks;

use judgement::Judgement;

/// Settings `[pipeline]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How often a snapshot is taken and the checkpoint moves.
    pub snapshot_interval: SignedDuration,
    /// How often the open anomalies are looked through for those that nobody goes on with; never where it is zero.
    pub sweep_every: SignedDuration,
    /// After how long without records a shard's event time moves on with the clock.
    pub idle_after: SignedDuration,
    /// How long what one shard has found may wait for the other shards to come as far, so that what is reported does not hang
    /// on which is heard first.
    pub shard_wait: SignedDuration,
    /// How far the newest records of what is followed may be from the clock before the service says so; never where it is zero.
    pub clock_gap_max: SignedDuration,
    /// How long one read of a shard may take before the shard is given up.
    pub read_timeout: SignedDuration,
    /// How long one call of a store, an announcer or the correlation backend may take.
    pub call_timeout: SignedDuration,
    /// The first pause after a failure; it doubles.
    pub retry_first: SignedDuration,
    /// The longest pause after a failure.
    pub retry_most: SignedDuration,
    /// How long what was read may take to be finished when the service is told to stop.
    pub grace: SignedDuration,
    /// Batches that wait for a shard's engine.
    pub records_waiting: usize,
    /// Results that wait to be scored, judged and delivered, each.
    pub findings_waiting: usize,
}

/// Whether windows are closed when a shard ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// Nothing will follow: files that are not followed.
    CloseWindows,
    /// Another shard continues this one.
    LeaveOpen,
}

/// What of the tiers' settings may change while they work.
#[derive(Clone, Debug)]
pub struct Thresholds {
    /// Tier 1; of it, the detectors' thresholds.
    pub statistical: statistical::Settings,
    /// Tier 2, the always-on behaviour scorer.
    pub behavior: ml::local::Settings,
    /// Tier 4.
    pub validation: validation::Settings,
}

/// The tiers' own settings, as far as the pipeline hands them on.
#[derive(Clone, Debug)]
pub struct Tiers {
    /// Tier 1.
    pub statistical: statistical::Settings,
    /// Tier 2, when a host is out of character.
    pub behavior: ml::local::Settings,
    /// Tier 2, the trained models, unless they are switched off.
    pub models: Option<Arc<ml::watch::Watch>>,
    /// Hosts that tier 2 remembers, for each shard.
    pub hosts_max: usize,
    /// Tier 3, as far as it is not a backend's.
    pub episode_gap: correlation::EpisodeGap,
    /// Tier 4.
    pub validation: validation::Settings,
    /// What is ours.
    pub network: Network,
    /// Other thresholds than these, where they come while the service runs; each stage takes them up before its next batch.
    pub changes: Option<watch::Receiver<Arc<Thresholds>>>,
}

impl Tiers {
    /// The thresholds that a stage has not seen yet.
    fn changed(changes: &mut Option<watch::Receiver<Arc<Thresholds>>>) -> Option<Arc<Thresholds>> {
        let changes = changes.as_mut()?;
        // A sender that is gone has nothing more to say.
        changes.has_changed().unwrap_or(false).then(|| changes.borrow_and_update().clone())
    }
}

/// The chosen backend of every port.
pub struct Backends {
    /// Where records come from.
    pub source: Box<dyn FlowSource>,
    /// What the end of one of its shards means.
    pub ending: Ending,
    /// Where state is kept.
    pub snapshots: Arc<dyn SnapshotStore>,
    /// Where findings become incidents.
    pub incidents: Arc<dyn IncidentStore>,
    /// Where anomalies are kept.
    pub store: Arc<dyn AnomalyStore>,
    /// Who is told.
    pub announcer: Arc<dyn Announcer>,
    /// Where what can never be recorded or told is kept.
    pub letters: Arc<Letters>,
    /// Where samples of unreadable input go, if anywhere.
    pub refusals: Option<Refusals>,
}

/// How a pipeline came to its end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The input has ended and all of it was delivered.
    Finished,
    /// It was told to stop; all that was read is delivered, and a restart goes on from there.
    Drained,
    /// It was told to stop, and the grace period was over first; a restart reads what was left again.
    CutOff,
}

/// Why a pipeline failed.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// The source cannot go on.
    #[error("find the next shard: {0}")]
    Source(IngestError),
    /// A stage that all shards share is gone.
    #[error("the {0} stage stopped; this is a defect in flowvigil")]
    Stage(&'static str),
    /// A shard failed, and the source did not offer it again.
    #[error("read shard {0} to its end: it failed, and its source has given it up; the log has the cause")]
    Shard(String),
    /// Those who were to be told are gone.
    #[error("{0}; what was not announced is, after a restart")]
    Unheard(String),
}

/// The reasons for which shards are in trouble, by part.
type Troubles = Arc<Mutex<BTreeMap<&'static str, BTreeMap<ShardId, String>>>>;

/// What all stages share.
#[derive(Clone)]
struct Common {
    settings: Arc<Settings>,
    tiers: Arc<Tiers>,
    health: Arc<Health>,
    explainers: Arc<Explainers>,
    metrics: Arc<Metrics>,
    snapshots: Arc<dyn SnapshotStore>,
    stop: watch::Receiver<bool>,
    ending: Ending,
    refusals: Option<Refusals>,
    /// What is wrong with single shards, by the part as health names it.
    troubles: Troubles,
}

/// Runs until the input ends or `stop` becomes true.
pub async fn run(
    settings: Settings,
    tiers: Tiers,
    backends: Backends,
    health: Arc<Health>,
    explainers: Arc<Explainers>,
    metrics: Arc<Metrics>,
    stop: watch::Receiver<bool>,
) -> Result<Outcome, PipelineError> {
    let Backends { mut source, ending, snapshots, incidents, store, announcer, letters, refusals } = backends;
    let settings = Arc::new(settings);
    let common = Common {
        settings,
        tiers: Arc::new(tiers),
        health,
        explainers,
        metrics,
        snapshots,
        stop,
        ending,
        refusals,
        troubles: Arc::default(),
    };
    let waiting = common.settings.findings_waiting.max(1);
    let (to_delivery, deliveries) = tokio::sync::mpsc::channel(waiting);
    let (to_judgement, judgements) = tokio::sync::mpsc::channel(waiting);

    let judgement = Judgement::new(&common, incidents.clone(), store.clone());
    let mut stages = JoinSet::new();
    let places = delivery::Places { store, announcer, incidents, letters };
    let (delivered, delivering) = watch::channel(0);
    let to_delivery = judgement::ToDelivery { deliveries: to_delivery, delivered: delivering };
    stages.spawn(delivery::run(common.clone(), places, deliveries, delivered));
    stages.spawn(judgement.run(judgements, to_delivery));
    common.health.enter(Phase::Running);
    tracing::info!("running");

    let (failures, last) = (HashMap::new(), HashMap::new());
    let shards = Shards { common: common.clone(), to_judgement, lives: JoinSet::new(), failures, last };
    let grace = positive(common.settings.grace);
    let mut told = common.stop.clone();
    let mut supervising = Box::pin(async move {
        shards.supervise(source.as_mut()).await?;
        // All senders to the judge are gone: the stages finish what they have, and end.
        Ok::<(), PipelineError>(())
    });
    let mut finish = async |stages: &mut JoinSet<Result<&'static str, PipelineError>>| -> Result<(), PipelineError> {
        tokio::select! {
            done = &mut supervising => done?,
            Some(stage) = stages.join_next() => {
                // When one stage fails, the one before it ends, too; the failure is the reason.
                let mut ended = vec![gone(stage)];
                if let Ok(Some(other)) = timeout(Duration::from_secs(1), stages.join_next()).await {
                    ended.push(gone(other));
                }
                ended.sort_by_key(|error| matches!(error, PipelineError::Stage(_)));
                return Err(ended.swap_remove(0));
            }
        }
        while let Some(stage) = stages.join_next().await {
            stage.map_err(|_| PipelineError::Stage("panicked"))??;
        }
        Ok(())
    };
    let outcome = tokio::select! {
        done = finish(&mut stages) => done.map(|()| if *told.borrow() { Outcome::Drained } else { Outcome::Finished }),
        () = async { stopped(&mut told).await; sleep(grace).await } => Ok(Outcome::CutOff),
    };
    match &outcome {
        Ok(Outcome::Finished) => tracing::info!("the input has ended and all of it is delivered"),
        Ok(Outcome::Drained) => tracing::info!("drained: all that was read is delivered"),
        Ok(Outcome::CutOff) => {
            let held = common.health.report().degraded;
            let held: Vec<String> = held.iter().map(|away| format!("{}: {}", away.part, away.reason)).collect();
            tracing::error!(
                ?grace,
                held = held.join("; "),
                "the grace period is over before everything was delivered; no checkpoint has passed what was left: a restart reads it again"
            );
        }
        Err(error) => tracing::error!(%error, "the pipeline failed"),
    }
    common.health.enter(Phase::Finished);
    outcome
}

/// Why a stage that was to stay is gone.
fn gone(stage: Result<Result<&'static str, PipelineError>, tokio::task::JoinError>) -> PipelineError {
    match stage {
        Ok(Ok(name)) => PipelineError::Stage(name),
        Ok(Err(error)) => error,
        Err(_) => PipelineError::Stage("panicked"),
    }
}

/// The shards that are ours, and how often each has failed in a row.
struct Shards {
    common: Common,
    to_judgement: tokio::sync::mpsc::Sender<judgement::Message>,
    lives: JoinSet<(ShardId, Result<shard::End, shard::ShardError>)>,
    failures: HashMap<ShardId, u32>,
    /// Each shard's last life: the other end goes when it is over.
    last: HashMap<ShardId, oneshot::Receiver<()>>,
}

impl Shards {
    /// Starts a life for every shard that the source offers, until it has no more or the service is told to stop, and waits
    /// for all of them.
    async fn supervise(mut self, source: &mut dyn FlowSource) -> Result<(), PipelineError> {
        let mut stop = self.common.stop.clone();
        let mut trouble = 0;
        let mut more = true;
        while more || !self.lives.is_empty() {
            tokio::select! {
                () = stopped(&mut stop), if more => {
                    self.common.health.enter(Phase::Draining);
                    tracing::info!(shards = self.lives.len(), "stopping: no more is read, what was read is finished");
                    more = false;
                }
                Some(ended) = self.lives.join_next(), if !self.lives.is_empty() => self.note(ended),
                offered = source.next_shard(), if more => match offered {
                    Ok(Some(shard)) => {
                        trouble = 0;
                        self.common.health.restore("ingest");
                        self.begin(shard);
                    }
                    Ok(None) => more = false,
                    Err(IngestError::Retry { context, cause }) => {
                        let pause = self.common.settings.pause(trouble);
                        trouble += 1;
                        let reason = format!("{context}: {cause}; trying again");
                        if self.common.health.degrade("ingest", reason) {
                            tracing::warn!(context, cause, "no shards can be had");
                        }
                        let _ = timeout(pause, stopped(&mut stop)).await;
                    }
                    Err(error) => return Err(PipelineError::Source(error)),
                },
            }
        }
        match self.failures.keys().min() {
            Some(failed) => Err(PipelineError::Shard(failed.0.to_string())),
            None => Ok(()),
        }
    }

    fn begin(&mut self, shard: Box<dyn crate::ingest::Shard>) {
        let id = shard.id().clone();
        let failures = self.failures.get(&id).copied().unwrap_or(0);
        let pause = if failures == 0 { Duration::ZERO } else { self.common.settings.pause(failures - 1) };
        let (common, to_judgement) = (self.common.clone(), self.to_judgement.clone());
        let (living, over) = oneshot::channel();
        let before = self.last.insert(id.clone(), over);
        self.lives.spawn(async move {
            let _living = living;
            // A shard that was lost and won again: the judge must hear that it has left before it enters.
            if let Some(before) = before {
                let _: Result<(), oneshot::error::RecvError> = before.await;
            }
            let mut stop = common.stop.clone();
            // A stop during the pause ends it; the life then begins, sees the stop, and ends in order.
            let _ = timeout(pause, stopped(&mut stop)).await;
            (id, shard::live(common, shard, to_judgement).await)
        });
    }

    fn note(&mut self, ended: Result<(ShardId, Result<shard::End, shard::ShardError>), tokio::task::JoinError>) {
        let Ok((id, result)) = ended else {
            tracing::error!("a shard's task panicked; the shard comes back at its checkpoint");
            return;
        };
        let name = id.0.to_string();
        match result {
            Ok(end) => {
                self.failures.remove(&id);
                for part in [STATE, LATENESS, EVENT_TIME, CLOCK] {
                    self.common.trouble(part, &id, None);
                }
                tracing::info!(shard = name, ?end, "shard left");
                self.common.health.shard(&name, |shard| shard.state = end.name().to_owned());
            }
            Err(error) => {
                *self.failures.entry(id).or_default() += 1;
                tracing::warn!(shard = name, %error, "shard failed; it comes back at its checkpoint");
                self.common.metrics.add(&telemetry::SHARD_RESTARTS, &[&name], 1);
                self.common.health.shard(&name, |shard| shard.state = "restarting".to_owned());
            }
        }
        self.common.metrics.forget(&telemetry::LAG, &[&name]);
    }
}

/// How often the log says that the pipeline is still held up.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// A wait for a backend that refuses or does not answer, with pauses that grow. It is seen on health, in a metric, and in the log:
/// at once, and then at intervals.
struct Holdup<'a> {
    common: &'a Common,
    /// What is away, as health names it.
    part: &'static str,
    step: &'a str,
    failures: u32,
    since: Instant,
    said: Option<Instant>,
}

impl<'a> Holdup<'a> {
    fn new(common: &'a Common, part: &'static str, step: &'a str) -> Holdup<'a> {
        Holdup { common, part, step, failures: 0, since: Instant::now(), said: None }
    }

    /// It failed: waits before the next try.
    async fn wait(&mut self, cause: &str) {
        let Common { settings, health, metrics, .. } = self.common;
        let (part, step) = (self.part, self.step);
        if part == PUBLISH {
            metrics.add(&telemetry::PUBLISH_RETRIES, &[step], 1);
        }
        let news = health.degrade(part, format!("{step}: {cause}; the pipeline holds"));
        if self.failures == 0 {
            (self.since, self.said) = (Instant::now(), (!news).then(Instant::now));
        }
        if news || self.said.is_none_or(|said| said.elapsed() >= SAID_EVERY) {
            self.said = Some(Instant::now());
            let held = self.since.elapsed();
            tracing::warn!(part, step, cause, ?held, "the pipeline holds; no checkpoint passes what is not delivered");
        }
        let pause = settings.pause(self.failures);
        self.failures = self.failures.saturating_add(1);
        sleep(pause).await;
    }

    /// It is done, or will never be.
    fn over(self) {
        if self.failures > 0 && self.common.health.restore(self.part) {
            tracing::info!(part = self.part, step = self.step, held = ?self.since.elapsed(), "the pipeline goes on");
        }
    }
}

impl Common {
    /// Whether the pipeline is held up by a backend.
    fn is_held(&self) -> bool {
        self.health.degraded().iter().any(|part| part == PUBLISH || part == CORRELATION)
    }

    /// A shard could not go on from its newest snapshot. Seen until its checkpoint moves again.
    fn fell_back(&self, shard: &ShardId, cause: String) {
        tracing::warn!(shard = &*shard.0, cause, "a shard does not go on from its newest snapshot");
        self.trouble(STATE, shard, Some(cause));
    }

    /// The checkpoint of a shard has moved, or it is read no more here.
    fn caught_up(&self, shard: &ShardId) {
        self.trouble(STATE, shard, None);
    }

    /// Notes what is wrong with a shard, or that it is over. Health shows a part for as long as one shard is in trouble. Whether
    /// that is news of this shard.
    fn trouble(&self, part: &'static str, shard: &ShardId, cause: Option<String>) -> bool {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        let shards = troubles.entry(part).or_default();
        let news = match cause {
            Some(cause) => shards.insert(shard.clone(), cause).is_none(),
            None => shards.remove(shard).is_some(),
        };
        match shards.iter().next() {
            None if news => drop(self.health.restore(part)),
            None => {}
            Some((shard, cause)) => {
                let others = shards.len() - 1;
                let more = if others > 0 { format!(" (and {others} more shards)") } else { String::new() };
                self.health.degrade(part, format!("shard {}: {cause}{more}", shard.0));
            }
        }
        news
    }
}

/// The parts whose backends hold the pipeline, as health names them.
const PUBLISH: &str = "publish";
const CORRELATION: &str = "correlation";

/// The part that is away, as health names it, while a shard goes on from less than its newest snapshot.
const STATE: &str = "state";

/// The part while many records come too late for their windows.
const LATENESS: &str = "lateness";

/// The part while records are dated ahead of all others.
const EVENT_TIME: &str = "event_time";

/// The part while what is followed is of another time than the clock's.
const CLOCK: &str = "clock";

impl Settings {
    /// The pause after so many failures in a row.
    fn pause(&self, failures: u32) -> Duration {
        let first = positive(self.retry_first).max(Duration::from_millis(1));
        backoff(first, positive(self.retry_most), failures)
    }
}

/// Resolves once the service is told to stop; a sender that is gone counts as that.
async fn stopped(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could ask for more.
    let _ = stop.wait_for(|&stop| stop).await;
}

#[cfg(test)]
mod tests;
