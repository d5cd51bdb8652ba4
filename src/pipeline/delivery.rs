//! The last stage: record, announce, and only then let the barrier pass.

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::judgement::Delivery;
use super::shard::Barrier;
use super::{Common, Holdup, PUBLISH, PipelineError, sweep};
use crate::anomaly::{Anomaly, Status};
use crate::correlation::IncidentStore;
use crate::ingest::snapshot::Snapshot;
use crate::publish::dead_letter::{Letter, Letters};
use crate::publish::episodes::{Claim, Claimed};
use crate::publish::{Announcement, Announcer, AnomalyStore, PublishError, Recorded};
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
) -> Result<&'static str, PipelineError> {
    let mut courier = Courier { common, places, ids: BTreeMap::new(), settled: BTreeSet::new() };
    courier.announce_leftovers().await?;
    while let Some(delivery) = deliveries.recv().await {
        courier.common.metrics.set(&telemetry::QUEUE_DEPTH, &["delivery"], deliveries.len() as i64);
        courier.deliver(delivery).await?;
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
    common: Common,
    places: Places,
    /// Ids under which others had told an episode before, by the id that correlation here has for it.
    ids: BTreeMap<Uuid, Uuid>,
    /// Episodes that are known to be recorded as part of another.
    settled: BTreeSet<Uuid>,
}

/// How many ids are remembered; asking again costs one call.
const IDS_MAX: usize = 10_000;

impl Courier {
    async fn deliver(&mut self, delivery: Delivery) -> Result<(), PipelineError> {
        let Delivery { outcomes, fence, closings, closed, abandoned, arrived, barrier } = delivery;
        let stage = arrived.as_ref().map_or_else(Span::none, |(_, trace)| trace.stage("publish"));
        let mut announcements = Vec::new();
        for outcome in outcomes {
            // Whoever reads the shard now finds it again and tells it.
            if !fence.holds() {
                tracing::debug!("what came of a shard that is somebody else's now is not told");
                break;
            }
            self.record(outcome, &mut announcements).instrument(stage.clone()).await;
        }
        for outcome in closings {
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
            && let Err(error) = self.places.incidents.forget(&closed).await
        {
            tracing::warn!(%error, "what is over is not forgotten yet");
        }
        stage.set_attribute("announcements", told as i64);
        drop(stage);
        if let Some((shard, trace)) = arrived {
            self.common.metrics.observe(&telemetry::PROCESSING, &[&shard.0], trace.elapsed().as_secs_f64());
            trace.end(told);
        }
        if let Some(barrier) = barrier {
            // What was recorded where nobody will find it is as good as not recorded.
            let _ = self.insist("look", || self.places.store.stands()).await;
            if fence.holds() {
                self.keep(barrier).await;
            }
        }
        Ok(())
    }

    /// Records one outcome; what is to be announced of it is added.
    async fn record(&mut self, outcome: Outcome, announcements: &mut Vec<(Announcement, Anomaly)>) {
        match outcome {
            Outcome::Told(anomaly) => self.tell(*anomaly, announcements).await,
            Outcome::Silent(silence) => {
                self.common.metrics.add(&telemetry::SILENCES, &[&silence.stage], 1);
                if let Err(cause) = self.insist("silence", || self.places.store.silence(&silence)).await {
                    self.bury(Letter::Unkept { silence: Box::new(silence), cause }).await;
                }
            }
        }
    }

    /// Records an anomaly under the id under which its episode is told.
    async fn tell(&mut self, anomaly: Anomaly, announcements: &mut Vec<(Announcement, Anomaly)>) {
        let claimed = self.claim(&anomaly).await;
        self.tell_as(claimed, anomaly, announcements).await;
    }

    /// The same with the answer to its claim, which may be out of date by the time that it is recorded.
    async fn tell_as(
        &mut self,
        mut claimed: Option<Claimed>,
        mut anomaly: Anomaly,
        announcements: &mut Vec<(Announcement, Anomaly)>,
    ) {
        if let Some(claimed) = &claimed {
            self.rename(&mut anomaly, claimed.id);
            anomaly.detection_timestamp = claimed.detected.unwrap_or(anomaly.detection_timestamp);
        }
        let mut recorded = match self.insist("record", || self.places.store.record(&anomaly)).await {
            Ok(recorded) => recorded,
            Err(cause) => return self.bury(Letter::Unrecorded { anomaly: Box::new(anomaly), cause }).await,
        };
        if recorded == Recorded::Unchanged && anomaly.status == Status::Closed {
            recorded = self.close(&mut anomaly).await;
        }
        if recorded != Recorded::Unchanged {
            // Whoever found two to be one after we had claimed, and before we had recorded, closed what we have just written
            // over, or could not close it.
            claimed = self.claim(&anomaly).await;
        }
        let (told, is_over) = (anomaly.anomaly_id, anomaly.status == Status::Closed);
        match recorded {
            Recorded::New => announcements.push((kind(&anomaly, true), anomaly)),
            Recorded::Updated => announcements.push((kind(&anomaly, false), anomaly)),
            Recorded::Unchanged => {}
        }
        if let Some(Claimed { id, merged, .. }) = claimed {
            for part in merged {
                // At the end everything is looked at once more: others may have written since.
                if is_over || part == told || !self.settled.contains(&part) {
                    announcements.extend(self.close_part(part, id).await);
                }
            }
        }
    }

    /// Under which id an episode is told; nothing for what stands for many.
    async fn claim(&self, anomaly: &Anomaly) -> Option<Claimed> {
        let (key, episode) = (anomaly.key()?, anomaly.episode?);
        let claim = Claim {
            key,
            id: anomaly.anomaly_id,
            known_from: episode.known_from,
            first_seen: anomaly.first_seen,
            last_seen: anomaly.last_seen,
            gap: self.common.tiers.episode_gap.seconds(anomaly.threat),
            detected: anomaly.detection_timestamp,
            early: anomaly.updates == 0,
        };
        self.insist("claim", || self.places.store.claim(&claim)).await.ok()
    }

    fn rename(&mut self, anomaly: &mut Anomaly, id: Uuid) {
        if id != anomaly.anomaly_id {
            tracing::debug!(known = %anomaly.anomaly_id, told = %id, "an episode was told under another id before");
            if self.ids.len() >= IDS_MAX {
                self.ids.clear();
            }
            self.ids.insert(anomaly.anomaly_id, id);
            anomaly.anomaly_id = id;
        }
        for related in &mut anomaly.related {
            *related = self.ids.get(related).copied().unwrap_or(*related);
        }
        anomaly.related.sort_unstable();
        anomaly.related.dedup();
        anomaly.related.retain(|related| *related != id);
    }

    /// Closes an episode of which somebody has told more company than we know of: the store takes only what says more.
    async fn close(&self, anomaly: &mut Anomaly) -> Recorded {
        let known = self.recall(anomaly.anomaly_id).await;
        let Some(known) = known.filter(|known| known.status == Status::Open) else { return Recorded::Unchanged };
        let updates = known.updates + 1;
        let related: BTreeSet<Uuid> = anomaly.related.iter().chain(&known.related).copied().collect();
        // Ours may be a part of what others have put together.
        if known.first_seen < anomaly.first_seen || known.last_seen > anomaly.last_seen {
            *anomaly = Anomaly { status: anomaly.status, ..known };
        }
        (anomaly.updates, anomaly.related) = (updates, related.into_iter().collect());
        match self.insist("record", || self.places.store.record(anomaly)).await {
            Ok(recorded) => recorded,
            Err(cause) => {
                self.bury(Letter::Unrecorded { anomaly: Box::new(anomaly.clone()), cause }).await;
                Recorded::Unchanged
            }
        }
    }

    /// Closes an anomaly that turned out to be part of another; nothing to announce when that was done before.
    async fn close_part(&mut self, part: Uuid, whole: Uuid) -> Option<(Announcement, Anomaly)> {
        if self.settled.len() >= IDS_MAX {
            self.settled.clear();
        }
        loop {
            // One that was claimed and is not recorded yet is closed by whoever records it.
            let mut anomaly = self.recall(part).await?;
            if anomaly.merged_into.is_some() {
                self.settled.insert(part);
                return None;
            }
            anomaly.status = Status::Closed;
            anomaly.merged_into = Some(whole);
            if !anomaly.related.contains(&whole) {
                anomaly.related.push(whole);
            }
            anomaly.updates += 1;
            // Unchanged where somebody has said more of it meanwhile.
            if self.insist("record", || self.places.store.record(&anomaly)).await.ok()? != Recorded::Unchanged {
                self.settled.insert(part);
                return Some((Announcement::Closed, anomaly));
            }
        }
    }

    /// Closes what nobody goes on with, as it was last told; nothing to announce where somebody has told more of it, or closed
    /// it, since it was found.
    async fn close_abandoned(&self, found: Anomaly) -> Option<(Announcement, Anomaly)> {
        let known = self.recall(found.anomaly_id).await?;
        if sweep::revision(&known) != sweep::revision(&found) {
            return None;
        }
        let closed = Anomaly { status: Status::Closed, updates: known.updates + 1, ..known };
        // Unchanged where another task has closed it meanwhile.
        let recorded = self.insist("record", || self.places.store.record(&closed)).await.ok()?;
        (recorded != Recorded::Unchanged).then(|| {
            tracing::warn!(id = %closed.anomaly_id, threat = closed.threat.name(), "closed an anomaly that nobody went on with");
            (Announcement::Closed, closed)
        })
    }

    /// What was recorded in an earlier life and not announced before that ended.
    async fn announce_leftovers(&self) -> Result<(), PipelineError> {
        let mut said = BTreeSet::new();
        loop {
            let mut left = self.insist("recall", || self.places.store.unannounced(LEFTOVERS)).await.unwrap_or_default();
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
        let mut holdup = Holdup::new(&self.common, PUBLISH, "announce");
        let mut told = 0;
        let patience = positive(self.common.settings.call_timeout);
        while !batch.is_empty() {
            let Ok(results) = timeout(patience, self.places.announcer.announce(&batch)).await else {
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
                        self.common.metrics.add(&telemetry::ANOMALIES, &[anomaly.threat.name(), name], 1);
                        self.mark(&anomaly).await;
                    }
                    Err(error @ PublishError::Gone { .. }) => return Err(PipelineError::Unheard(error.to_string())),
                    Err(error @ PublishError::Fatal { .. }) => {
                        let (cause, unheard) = (error.to_string(), Box::new(anomaly.clone()));
                        self.bury(Letter::Announcement { announcement, anomaly: unheard, cause }).await;
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
        if let Err(cause) = self.insist("mark", || self.places.store.announced(anomaly)).await {
            tracing::error!(id = %anomaly.anomaly_id, cause, "that it was announced cannot be kept");
        }
    }

    /// An anomaly as it was last told; nothing where there is none, or none that can be read.
    async fn recall(&self, id: Uuid) -> Option<Anomaly> {
        self.insist("recall", || self.places.store.get(id)).await.ok().flatten()
    }

    /// Keeps what can never be delivered, for people; holds while that cannot be.
    async fn bury(&self, letter: Letter) {
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

    /// Everything before the barrier is delivered: the snapshot becomes current.
    async fn keep(&self, barrier: Barrier) {
        let Barrier { shard, number, position, state, passed } = barrier;
        let state = postcard::to_stdvec(&state).expect("plain data can always be written");
        let (name, bytes) = (shard.0.to_string(), state.len());
        if let Err(error) = self.common.snapshots.save(Snapshot { name, number, position, state }).await {
            self.common.metrics.add(&telemetry::SNAPSHOTS, &["failed"], 1);
            if self.common.health.degrade("snapshot", format!("{error}; the checkpoint stands still")) {
                tracing::warn!(%error, "no snapshot could be saved; the checkpoint stands still");
            }
            passed.send_replace(Some((number, false)));
            return;
        }
        if self.common.health.restore("snapshot") {
            tracing::info!("snapshots are saved again");
        }
        self.common.metrics.add(&telemetry::SNAPSHOTS, &["saved"], 1);
        self.common.metrics.set(&telemetry::SNAPSHOT_BYTES, &[&shard.0], bytes as i64);
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

fn kind(anomaly: &Anomaly, new: bool) -> Announcement {
    match anomaly.status {
        _ if new => Announcement::Detected,
        Status::Closed => Announcement::Closed,
        Status::Open => Announcement::Updated,
    }
}

#[cfg(test)]
mod tests;
