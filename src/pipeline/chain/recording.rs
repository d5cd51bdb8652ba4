//! Under which id and revision an anomaly is recorded, and what is to be announced of it.
//!
//! Whoever tells an episode claims it ([`crate::publish::episodes`]), is told the id under which it goes, and closes what turned out
//! to be part of it. The rules are here, for `detect` and for the service alike; the place that anomalies are recorded in is behind
//! [`Records`].

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use uuid::Uuid;

use crate::anomaly::{Anomaly, Status};
use crate::correlation::EpisodeGap;
use crate::publish::episodes::{Claim, Claimed};
use crate::publish::{Announcement, Recorded};

/// Where anomalies are recorded: a store that may be away for a while, or memory. Each call answers in the end.
#[async_trait]
pub trait Records: Send + Sync {
    /// Claims an episode; nothing where that can never be.
    async fn claim(&self, claim: &Claim) -> Option<Claimed>;

    /// Records a revision; the cause where it can never be.
    async fn record(&self, anomaly: &Anomaly) -> Result<Recorded, String>;

    /// An anomaly as it was last told; nothing where there is none, or none that can be read.
    async fn recall(&self, id: Uuid) -> Option<Anomaly>;

    /// Takes what can never be recorded.
    async fn bury(&self, anomaly: Anomaly, cause: String);
}

/// What is to be announced.
pub type Announcements = Vec<(Announcement, Anomaly)>;

/// Records anomalies under the ids of their episodes.
#[derive(Debug)]
pub struct Recorder {
    gaps: EpisodeGap,
    /// Ids under which others had told an episode before, by the id that correlation here has for it.
    ids: BTreeMap<Uuid, Uuid>,
    /// Episodes that are known to be recorded as part of another.
    settled: BTreeSet<Uuid>,
}

/// How many ids are remembered; asking again costs one call.
const IDS_MAX: usize = 10_000;

impl Recorder {
    /// Has recorded nothing yet.
    pub fn new(gaps: &EpisodeGap) -> Recorder {
        Recorder { gaps: gaps.clone(), ids: BTreeMap::new(), settled: BTreeSet::new() }
    }

    /// Records an anomaly under the id under which its episode is told; what is to be announced is added.
    pub async fn tell(&mut self, records: &impl Records, anomaly: Anomaly, announcements: &mut Announcements) {
        let claimed = self.claim(records, &anomaly).await;
        self.tell_as(records, claimed, anomaly, announcements).await;
    }

    /// The same with the answer to its claim, which may be out of date by the time that it is recorded.
    pub(in crate::pipeline) async fn tell_as(
        &mut self,
        records: &impl Records,
        mut claimed: Option<Claimed>,
        mut anomaly: Anomaly,
        announcements: &mut Announcements,
    ) {
        if let Some(claimed) = &claimed {
            self.rename(&mut anomaly, claimed.id);
            anomaly.detection_timestamp = claimed.detected.unwrap_or(anomaly.detection_timestamp);
        }
        let mut recorded = match records.record(&anomaly).await {
            Ok(recorded) => recorded,
            Err(cause) => return records.bury(anomaly, cause).await,
        };
        if recorded == Recorded::Unchanged && anomaly.status == Status::Closed {
            recorded = self.close(records, &mut anomaly).await;
        }
        if recorded != Recorded::Unchanged {
            // Whoever found two to be one after we had claimed, and before we had recorded, closed what we have just written
            // over, or could not close it.
            claimed = self.claim(records, &anomaly).await;
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
                    announcements.extend(self.close_part(records, part, id).await);
                }
            }
        }
    }

    /// Under which id an episode is told; nothing for what stands for many.
    pub(in crate::pipeline) async fn claim(&self, records: &impl Records, anomaly: &Anomaly) -> Option<Claimed> {
        let (key, episode) = (anomaly.key()?, anomaly.episode?);
        let claim = Claim {
            key,
            id: anomaly.anomaly_id,
            known_from: episode.known_from,
            first_seen: anomaly.first_seen,
            last_seen: anomaly.last_seen,
            gap: self.gaps.seconds(anomaly.threat),
            detected: anomaly.detection_timestamp,
            early: anomaly.updates == 0,
        };
        records.claim(&claim).await
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
    async fn close(&self, records: &impl Records, anomaly: &mut Anomaly) -> Recorded {
        let known = records.recall(anomaly.anomaly_id).await;
        let Some(known) = known.filter(|known| known.status == Status::Open) else { return Recorded::Unchanged };
        let updates = known.updates + 1;
        let related: BTreeSet<Uuid> = anomaly.related.iter().chain(&known.related).copied().collect();
        // Ours may be a part of what others have put together.
        if known.first_seen < anomaly.first_seen || known.last_seen > anomaly.last_seen {
            *anomaly = Anomaly { status: anomaly.status, ..known };
        }
        (anomaly.updates, anomaly.related) = (updates, related.into_iter().collect());
        match records.record(anomaly).await {
            Ok(recorded) => recorded,
            Err(cause) => {
                records.bury(anomaly.clone(), cause).await;
                Recorded::Unchanged
            }
        }
    }

    /// Closes an anomaly that turned out to be part of another; nothing to announce when that was done before.
    async fn close_part(&mut self, records: &impl Records, part: Uuid, whole: Uuid) -> Option<(Announcement, Anomaly)> {
        if self.settled.len() >= IDS_MAX {
            self.settled.clear();
        }
        loop {
            // One that was claimed and is not recorded yet is closed by whoever records it.
            let mut anomaly = records.recall(part).await?;
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
            if records.record(&anomaly).await.ok()? != Recorded::Unchanged {
                self.settled.insert(part);
                return Some((Announcement::Closed, anomaly));
            }
        }
    }
}

/// What is said of an anomaly of which more is recorded than before.
fn kind(anomaly: &Anomaly, new: bool) -> Announcement {
    match anomaly.status {
        _ if new => Announcement::Detected,
        Status::Closed => Announcement::Closed,
        Status::Open => Announcement::Updated,
    }
}
