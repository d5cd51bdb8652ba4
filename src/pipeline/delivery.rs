//! The last stage: record, announce, and only then let the barrier pass.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::chain::recording::{Announcements, Recorder, Records};
use super::judgement::{Delivery, Judged};
use super::shard::Barrier;
use super::{Common, Holdup, PUBLISH, PipelineError};
use crate::anomaly::{Anomaly, Status};
use crate::correlation::IncidentStore;
use crate::ingest::snapshot::Snapshot;
use crate::publish::dead_letter::{Letter, Letters};
use crate::publish::episodes::{Claim, Claimed};
use crate::publish::{Announcement, Announcer, AnomalyStore, PublishError, Recorded, revision};
use crate::telemetry;
use crate::validation::Outcome;
use crate::wait::positive;

/// How many unannounced anomalies of an earlier life are taken up at once.
const LEFTOVERS: usize = 100;

/// Delivers until the judge has nothing more.
pub(super) async fn run(
    common: Common,
    places: Places,
    mut deliveries: mpsc::Receiver<Delivery>,
    delivered: watch::Sender<u64>,
) -> Result<&'static str, PipelineError> {
    let mut courier = Courier::new(common, places);
    courier.announce_leftovers().await?;
    while let Some(delivery) = deliveries.recv().await {
        courier.desk.common.metrics.set(&telemetry::QUEUE_DEPTH, &["delivery"], deliveries.len() as i64);
        let number = delivery.number;
        courier.deliver(delivery).await?;
        delivered.send_replace(number);
    }
    Ok("delivery")
}

/// Where things are delivered to.
pub(super) struct Places {
    pub store: Arc<dyn AnomalyStore>,
    pub announcer: Arc<dyn Announcer>,
    pub incidents: Arc<dyn IncidentStore>,
    /// Where what can never be delivered is kept.
    pub letters: Arc<Letters>,
}

struct Courier {
    recorder: Recorder,
    desk: Desk,
}

/// The service's backends behind the recorder: each is asked until it has answered.
struct Desk {
    common: Common,
    places: Places,
}

impl Desk {
    /// Keeps what can never be delivered, for people; holds while that cannot be.
    async fn keep_letter(&self, letter: Letter) {
        let (kind, cause) = (letter.kind(), letter.cause().to_owned());
        let letters = [letter];
        let put = || async { self.places.letters.put(&letters).await.pop().unwrap_or(Ok(())) };
        match self.insist("bury", put).await {
            Ok(()) => tracing::error!(kind, cause, "it can never be delivered, and is kept as a dead letter"),
            Err(refused) => {
                tracing::error!(kind, cause, refused, "it can never be delivered, nor kept as a dead letter")
            }
        }
    }

    /// Calls until it is done; the cause where it can never be, for its own sake.
    async fn insist<T, F: Future<Output = Result<T, PublishError>>>(
        &self,
        step: &str,
        call: impl Fn() -> F,
    ) -> Result<T, String> {
        insist(&self.common, step, call).await
    }
}

#[async_trait]
impl Records for Desk {
    async fn claim(&self, claim: &Claim) -> Option<Claimed> {
        self.insist("claim", || self.places.store.claim(claim)).await.ok()
    }

    async fn record(&self, anomaly: &Anomaly) -> Result<Recorded, String> {
        self.insist("record", || self.places.store.record(anomaly)).await
    }

    async fn recall(&self, id: Uuid) -> Option<Anomaly> {
        self.insist("recall", || self.places.store.get(id)).await.ok().flatten()
    }

    async fn bury(&self, anomaly: Anomaly, cause: String) {
        self.keep_letter(Letter::Unrecorded { anomaly: Box::new(anomaly), cause }).await;
    }
}

impl Courier {
    fn new(common: Common, places: Places) -> Courier {
        Courier { recorder: Recorder::new(&common.tiers.episode_gap), desk: Desk { common, places } }
    }

    async fn deliver(&mut self, delivery: Delivery) -> Result<(), PipelineError> {
        let Delivery { outcomes, fence, closed, abandoned, arrived, barrier, .. } = delivery;
        let stage = arrived.as_ref().map_or_else(Span::none, |(_, trace)| trace.stage("publish"));
        let mut announcements = Vec::new();
        for Judged { outcome, fence } in outcomes {
            // Whoever reads the shard now finds it again and tells it.
            if fence.is_some_and(|fence| !fence.holds()) {
                tracing::debug!("what came of a shard that is somebody else's now is not told");
                continue;
            }
            self.record(outcome, &mut announcements).instrument(stage.clone()).await;
        }
        for anomaly in abandoned {
            announcements.extend(self.close_abandoned(anomaly).await);
        }
        let told = announcements.len();
        if !announcements.is_empty() {
            self.announce(announcements).instrument(stage.clone()).await?;
        }
        if !closed.is_empty()
            && let Err(error) = self.desk.places.incidents.forget(&closed).await
        {
            tracing::warn!(%error, "what is over is not forgotten yet");
        }
        stage.set_attribute("announcements", told as i64);
        drop(stage);
        if let Some((shard, trace)) = arrived {
            self.desk.common.metrics.observe(&telemetry::PROCESSING, &[&shard.0], trace.elapsed().as_secs_f64());
            trace.end(told);
        }
        if let Some(barrier) = barrier {
            // What was recorded where nobody will find it is as good as not recorded.
            let _ = self.desk.insist("look", || self.desk.places.store.stands()).await;
            if fence.holds() {
                self.keep(barrier).await;
            }
        }
        Ok(())
    }

    /// Records one outcome; what is to be announced of it is added.
    async fn record(&mut self, outcome: Outcome, announcements: &mut Announcements) {
        match outcome {
            Outcome::Told(anomaly) => self.recorder.tell(&self.desk, *anomaly, announcements).await,
            Outcome::Silent(silence) => {
                self.desk.common.metrics.add(&telemetry::SILENCES, &[&silence.stage], 1);
                if let Err(cause) = self.desk.insist("silence", || self.desk.places.store.silence(&silence)).await {
                    self.desk.keep_letter(Letter::Unkept { silence: Box::new(silence), cause }).await;
                }
            }
        }
    }

    /// Closes what nobody goes on with, as it was last told; nothing to announce where somebody has told more of it, or closed
    /// it, since it was found.
    async fn close_abandoned(&self, found: Anomaly) -> Option<(Announcement, Anomaly)> {
        let known = self.desk.recall(found.anomaly_id).await?;
        if revision(&known) != revision(&found) {
            return None;
        }
        let closed = Anomaly { status: Status::Closed, updates: known.updates + 1, ..known };
        // Unchanged where another task has closed it meanwhile.
        let recorded = self.desk.insist("record", || self.desk.places.store.record(&closed)).await.ok()?;
        (recorded != Recorded::Unchanged).then(|| {
            tracing::warn!(id = %closed.anomaly_id, threat = closed.threat.name(), "closed an anomaly that nobody went on with");
            (Announcement::Closed, closed)
        })
    }

    /// What was recorded in an earlier life and not announced before that ended.
    async fn announce_leftovers(&self) -> Result<(), PipelineError> {
        let mut said = BTreeSet::new();
        loop {
            let mut left =
                self.desk.insist("recall", || self.desk.places.store.unannounced(LEFTOVERS)).await.unwrap_or_default();
            // A store that cannot keep that something was announced must not make us say it for ever.
            left.retain(|anomaly| said.insert((anomaly.anomaly_id, anomaly.updates, anomaly.detection_timestamp)));
            if left.is_empty() {
                return Ok(());
            }
            tracing::info!(anomalies = left.len(), "announcing what an earlier life had recorded");
            let batch: Vec<_> = left.into_iter().flat_map(leftover).collect();
            let known = batch.len();
            if self.announce(batch).await? < known {
                return Ok(());
            }
        }
    }

    /// Announces until each is told, or buried where it can never be; answers how many were. When nobody is left to be told, it is over: going
    /// on in silence would look like peace.
    async fn announce(&self, mut batch: Vec<(Announcement, Anomaly)>) -> Result<usize, PipelineError> {
        let mut holdup = Holdup::new(&self.desk.common, PUBLISH, "announce");
        let mut told = 0;
        let patience = positive(self.desk.common.settings.call_timeout);
        while !batch.is_empty() {
            let Ok(results) = timeout(patience, self.desk.places.announcer.announce(&batch)).await else {
                holdup.wait("no answer in time").await;
                continue;
            };
            let mut again = Vec::new();
            let mut cause = String::new();
            for ((announcement, anomaly), result) in batch.into_iter().zip(results) {
                match result {
                    Ok(()) => {
                        told += 1;
                        let name = match announcement {
                            Announcement::Detected => "detected",
                            Announcement::Updated => "updated",
                            Announcement::Closed => "closed",
                        };
                        self.desk.common.metrics.add(&telemetry::ANOMALIES, &[anomaly.threat.name(), name], 1);
                        self.mark(&anomaly).await;
                    }
                    Err(error @ PublishError::Gone { .. }) => return Err(PipelineError::Unheard(error.to_string())),
                    Err(error @ PublishError::Fatal { .. }) => {
                        let (cause, unheard) = (error.to_string(), Box::new(anomaly.clone()));
                        self.desk.keep_letter(Letter::Announcement { announcement, anomaly: unheard, cause }).await;
                        self.mark(&anomaly).await;
                    }
                    Err(error) => {
                        cause = error.to_string();
                        again.push((announcement, anomaly));
                    }
                }
            }
            batch = again;
            if !batch.is_empty() {
                holdup.wait(&cause).await;
            }
        }
        holdup.over();
        Ok(told)
    }

    /// Notes that this revision is announced. A row that can never be marked is announced once more after a restart.
    async fn mark(&self, anomaly: &Anomaly) {
        if let Err(cause) = self.desk.insist("mark", || self.desk.places.store.announced(anomaly)).await {
            tracing::error!(id = %anomaly.anomaly_id, cause, "that it was announced cannot be kept");
        }
    }

    /// Everything before the barrier is delivered: the snapshot becomes current.
    async fn keep(&self, barrier: Barrier) {
        let Barrier { shard, number, position, state, passed } = barrier;
        let state = postcard::to_stdvec(&state).expect("plain data can always be written");
        let (name, bytes) = (shard.0.to_string(), state.len());
        if let Err(error) = self.desk.common.snapshots.save(Snapshot { name, number, position, state }).await {
            self.desk.common.metrics.add(&telemetry::SNAPSHOTS, &["failed"], 1);
            if self.desk.common.health.degrade("snapshot", format!("{error}; the checkpoint stands still")) {
                tracing::warn!(%error, "no snapshot could be saved; the checkpoint stands still");
            }
            passed.send_replace(Some((number, false)));
            return;
        }
        if self.desk.common.health.restore("snapshot") {
            tracing::info!("snapshots are saved again");
        }
        self.desk.common.metrics.add(&telemetry::SNAPSHOTS, &["saved"], 1);
        self.desk.common.metrics.set(&telemetry::SNAPSHOT_BYTES, &[&shard.0], bytes as i64);
        passed.send_replace(Some((number, true)));
    }
}

/// Calls a store until it has done what it is asked; the cause where it never will, for the item's own sake. While the store is
/// away or refuses, the pipeline holds: the stream keeps the data.
pub(super) async fn insist<T, F: Future<Output = Result<T, PublishError>>>(
    common: &Common,
    step: &str,
    call: impl Fn() -> F,
) -> Result<T, String> {
    let mut holdup = Holdup::new(common, PUBLISH, step);
    let patience = positive(common.settings.call_timeout);
    loop {
        match timeout(patience, call()).await {
            Ok(Ok(done)) => {
                holdup.over();
                return Ok(done);
            }
            Ok(Err(error @ PublishError::Fatal { .. })) => {
                holdup.over();
                return Err(error.to_string());
            }
            Ok(Err(error)) => holdup.wait(&error.to_string()).await,
            Err(_) => holdup.wait("no answer in time").await,
        }
    }
}

/// What is said of an anomaly that was recorded in an earlier life: that it was detected, since nobody knows whether that was
/// ever heard (it may have been updated before it was announced at all), and that it is closed if it is. Who has heard of it
/// knows it by its id.
fn leftover(anomaly: Anomaly) -> Vec<(Announcement, Anomaly)> {
    let closed = anomaly.status == Status::Closed && anomaly.updates > 1;
    let closing = closed.then(|| (Announcement::Closed, anomaly.clone()));
    std::iter::once((Announcement::Detected, anomaly)).chain(closing).collect()
}

#[cfg(test)]
mod tests;
