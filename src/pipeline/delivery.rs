//! The last stage: record, announce, and only then let the barrier pass.

use std::future::Future;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

use super::judgement::Delivery;
use super::shard::Barrier;
use super::{Common, duration};
use crate::anomaly::{Anomaly, Status};
use crate::ingest::snapshot::Snapshot;
use crate::publish::{Announcement, Announcer, AnomalyStore, PublishError, Recorded};
use crate::telemetry;
use crate::validation::Outcome;

/// How many unannounced anomalies of an earlier life are taken up at once.
const LEFTOVERS: usize = 100;

/// Delivers until the judge has nothing more.
pub(super) async fn run(
    common: Common,
    store: Arc<dyn AnomalyStore>,
    announcer: Arc<dyn Announcer>,
    mut deliveries: mpsc::Receiver<Delivery>,
) -> &'static str {
    let courier = Courier { common, store, announcer };
    courier.announce_leftovers().await;
    while let Some(Delivery { outcomes, shard, arrived, barrier }) = deliveries.recv().await {
        courier.common.metrics.set(&telemetry::QUEUE_DEPTH, &["delivery"], deliveries.len() as i64);
        courier.deliver(outcomes).await;
        match barrier {
            Some((barrier, judgement)) => courier.keep(barrier, judgement).await,
            None => {
                courier.common.metrics.observe(&telemetry::PROCESSING, &[&shard.0], arrived.elapsed().as_secs_f64());
            }
        }
    }
    "delivery"
}

struct Courier {
    common: Common,
    store: Arc<dyn AnomalyStore>,
    announcer: Arc<dyn Announcer>,
}

impl Courier {
    /// What was recorded in an earlier life and not announced before that ended.
    async fn announce_leftovers(&self) {
        loop {
            let Some(left) = self.insist("recall", || self.store.unannounced(LEFTOVERS)).await else { return };
            if left.is_empty() {
                return;
            }
            tracing::info!(anomalies = left.len(), "announcing what an earlier life had recorded");
            let known = left.len();
            let batch = left.into_iter().map(|anomaly| (kind(&anomaly, anomaly.updates <= 1), anomaly)).collect();
            if self.announce(batch).await < known {
                return;
            }
        }
    }

    async fn deliver(&self, outcomes: Vec<Outcome>) {
        let mut announcements = Vec::new();
        for outcome in outcomes {
            match outcome {
                Outcome::Told(anomaly) => {
                    let recorded = self.insist("record", || self.store.record(&anomaly)).await;
                    match recorded {
                        Some(Recorded::New) => announcements.push((kind(&anomaly, true), *anomaly)),
                        Some(Recorded::Updated) => announcements.push((kind(&anomaly, false), *anomaly)),
                        Some(Recorded::Unchanged) | None => {}
                    }
                }
                Outcome::Silent(silence) => {
                    self.common.metrics.add(&telemetry::SILENCES, &[&silence.stage], 1);
                    self.insist("silence", || self.store.silence(&silence)).await;
                }
            }
        }
        if !announcements.is_empty() {
            self.announce(announcements).await;
        }
    }

    /// Announces until each is told or can never be; answers how many were.
    async fn announce(&self, mut batch: Vec<(Announcement, Anomaly)>) -> usize {
        let mut trouble = 0;
        let mut told = 0;
        let patience = duration(self.common.settings.call_timeout);
        while !batch.is_empty() {
            let Ok(results) = timeout(patience, self.announcer.announce(&batch)).await else {
                self.hold("announce", "no answer in time", &mut trouble).await;
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
                        self.insist("mark", || self.store.announced(&anomaly)).await;
                    }
                    Err(error @ PublishError::Fatal { .. }) => {
                        tracing::error!(id = %anomaly.anomaly_id, %error, "an anomaly is recorded and cannot be announced");
                    }
                    Err(error) => {
                        cause = error.to_string();
                        again.push((announcement, anomaly));
                    }
                }
            }
            batch = again;
            if !batch.is_empty() {
                self.hold("announce", &cause, &mut trouble).await;
            }
        }
        self.back();
        told
    }

    /// Calls until it is done; `None` when it can never be, which is logged.
    async fn insist<T, F: Future<Output = Result<T, PublishError>>>(
        &self,
        step: &str,
        call: impl Fn() -> F,
    ) -> Option<T> {
        let mut trouble = 0;
        let patience = duration(self.common.settings.call_timeout);
        loop {
            match timeout(patience, call()).await {
                Ok(Ok(done)) => {
                    if trouble > 0 {
                        self.back();
                    }
                    return Some(done);
                }
                Ok(Err(error @ PublishError::Fatal { .. })) => {
                    tracing::error!(step, %error, "the store refuses for good");
                    return None;
                }
                Ok(Err(error)) => self.hold(step, &error.to_string(), &mut trouble).await,
                Err(_) => self.hold(step, "no answer in time", &mut trouble).await,
            }
        }
    }

    /// The pipeline holds while the outside is away: the stream keeps the data.
    async fn hold(&self, step: &str, cause: &str, trouble: &mut u32) {
        let pause = self.common.settings.pause(*trouble);
        *trouble += 1;
        self.common.metrics.add(&telemetry::PUBLISH_RETRIES, &[step], 1);
        if self.common.health.degrade("publish", format!("{step}: {cause}; the pipeline holds")) {
            tracing::warn!(step, cause, "publishing is held up");
        }
        sleep(pause).await;
    }

    fn back(&self) {
        if self.common.health.restore("publish") {
            tracing::info!("publishing goes on");
        }
    }

    /// Everything before the barrier is delivered: the snapshots become current. The judgement's goes first, for an older
    /// judgement must never stand beside a newer engine.
    async fn keep(&self, barrier: Barrier, judgement: Snapshot) {
        let Barrier { shard, number, position, state, passed } = barrier;
        let name = shard.0.to_string();
        let sizes = [(judgement.name.clone(), judgement.state.len()), (name.clone(), state.len())];
        let own = Snapshot { name, number, position: Some(position), state };
        for snapshot in [judgement, own] {
            if let Err(error) = self.common.snapshots.save(snapshot).await {
                self.common.metrics.add(&telemetry::SNAPSHOTS, &["failed"], 1);
                if self.common.health.degrade("snapshot", format!("{error}; the checkpoint stands still")) {
                    tracing::warn!(%error, "no snapshot could be saved; the checkpoint stands still");
                }
                passed.send_replace(Some((number, false)));
                return;
            }
        }
        if self.common.health.restore("snapshot") {
            tracing::info!("snapshots are saved again");
        }
        self.common.metrics.add(&telemetry::SNAPSHOTS, &["saved"], 1);
        for (name, bytes) in sizes {
            self.common.metrics.set(&telemetry::SNAPSHOT_BYTES, &[&name], bytes as i64);
        }
        passed.send_replace(Some((number, true)));
    }
}

fn kind(anomaly: &Anomaly, new: bool) -> Announcement {
    match anomaly.status {
        _ if new => Announcement::Detected,
        Status::Closed => Announcement::Closed,
        Status::Open => Announcement::Updated,
    }
}
