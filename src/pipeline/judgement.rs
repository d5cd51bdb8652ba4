//! Tiers 3 and 4 of all shards of this task: findings fold into incidents, incidents are judged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use uuid::Uuid;

use super::chain::{Chain, Stores, Turn, Waiting};
use super::delivery::insist;
use super::shard::{Barrier, Step};
use super::sweep::{Asked, Sweep};
use super::{CORRELATION, Common, Ending, Holdup, PipelineError, Tiers};
use crate::anomaly::Anomaly;
use crate::correlation::{self, Incident, IncidentStore, Progress, Progresses};
use crate::finding::Finding;
use crate::flow::EventTime;
use crate::health::{Hidden, Learned};
use crate::ingest::{Fence, ShardId};
use crate::publish::rules::Rule;
use crate::publish::{AnomalyStore, Feedback};
use crate::telemetry::{self, trace::BatchTrace};
use crate::validation::calibration::Verdicts;
use crate::validation::suppression::{self, Suppression};
use crate::validation::{Judge, Outcome};
use crate::wait::positive;

/// Verdicts younger than this are left for the next time, s: more of the same second may be on their way.
const FEEDBACK_SETTLES: u32 = 2;

/// Verdicts that are taken up between two windows; each asks the store for its anomaly.
const FEEDBACK_PART: usize = 500;

/// How often other tasks hear of shards that stand still; several times within the silence after which they would not be
/// waited for any more.
const WATERMARKS_TOLD_EVERY: Duration = Duration::from_secs(20);

/// How often it is asked how far other shards are while something waits for them.
const WAITING_POLL: Duration = Duration::from_millis(200);

/// How often the watermarks are told while something waits: what this task alone has folded comes to the others with them.
const WAITING_TOLD_EVERY: Duration = Duration::from_secs(1);

/// How many windows of shards may wait for others; beyond it the oldest go on.
const WAITING_MAX: usize = 2_000;

/// How many shards are remembered that have ended; their names grow, so that the oldest goes first.
const ENDED_MAX: usize = 1_000;

/// How often the rules that people made are read.
const RULES_EVERY: Duration = Duration::from_secs(2);

/// Parts that hold or delay what is told while they are away, and change nothing of it.
const NO_MATTER: [&str; 7] = ["publish", "announcer", "snapshot", "checkpoint", "state", "settings", "clock"];

/// What shards tell the judge.
pub(super) enum Message {
    /// A shard is read from now on: episodes wait for its event time, and for that of its siblings, whoever reads them.
    Enter {
        shard: ShardId,
        fence: Fence,
        siblings: Vec<ShardId>,
        /// What its earlier owners knew; see [`State`].
        judgements: Vec<Vec<u8>>,
    },
    Step(ShardId, Step),
    Leave(ShardId),
    /// One that has left was read to its end, and these continue it.
    Continued(ShardId, Vec<ShardId>),
}

/// What the judge tells delivery.
#[derive(Default)]
pub(super) struct Delivery {
    /// Counts deliveries; it is noted in [`ToDelivery::delivered`] when this one is done with.
    pub number: u64,
    /// What became of incidents, in the order in which it was judged.
    pub outcomes: Vec<Judged>,
    /// Of the shard whose barrier this is.
    pub fence: Fence,
    /// The incidents that are over, to be forgotten once it is told.
    pub closed: Vec<Uuid>,
    /// Open anomalies that nobody goes on with, to be closed.
    pub abandoned: Vec<Anomaly>,
    /// Whose records it came of, and when they arrived.
    pub arrived: Option<(ShardId, BatchTrace)>,
    /// With what the judge knows of the shard's incidents.
    pub barrier: Option<Barrier>,
}

/// The judge's end of the way to delivery.
pub(super) struct ToDelivery {
    pub deliveries: mpsc::Sender<Delivery>,
    /// The number of the last delivery that is done with.
    pub delivered: watch::Receiver<u64>,
}

/// Delivery has ended.
struct Gone;

/// What became of an incident.
pub(super) struct Judged {
    pub outcome: Outcome,
    /// Of the shard whose records it came of: only told while that is ours. `None` for what is over, whichever shards had a part in
    /// it.
    pub fence: Option<Fence>,
}

/// Incidents, and until when they matter.
type Parts = BTreeMap<Uuid, EventTime>;

/// What of the judgement a shard's snapshot holds. Behind it stands what waits for other shards, a list of [`Waiting`]; a snapshot
/// without it is of an older version.
#[derive(Serialize, Deserialize)]
struct State {
    /// The incidents in which the shard had a part.
    parts: Parts,
    /// What is known of them, where the backend lives in this process.
    incidents: Option<Vec<u8>>,
    judge: Vec<u8>,
    feedback_from: EventTime,
}

/// The owner of the judge.
pub(super) struct Judgement {
    common: Common,
    places: Places,
    chain: Chain,
    fences: BTreeMap<ShardId, Fence>,
    /// The incidents in which each shard had a part, with the moment at which they are over whoever closes them.
    parts: BTreeMap<ShardId, Parts>,
    /// When the watermarks were last told to correlation.
    told_at: Option<Instant>,
    feedback_from: EventTime,
    /// Verdicts that were read and not taken up yet.
    to_learn: VecDeque<Feedback>,
    /// When the rules that people made were last read.
    rules_read: Option<Instant>,
    sweep: Sweep,
    /// Since when something of each window waits for other shards, by the window's end.
    waiting_since: BTreeMap<EventTime, Instant>,
    /// Since when shards are expected that nobody reads here yet.
    expected_since: BTreeMap<ShardId, Instant>,
    /// Shards that others continue: what a shard names as its siblings may be seconds old.
    ended: BTreeSet<ShardId>,
    /// The number of the last delivery.
    sent: u64,
}

/// The service's backends behind the chain.
struct Places {
    common: Common,
    incidents: Arc<dyn IncidentStore>,
    store: Arc<dyn AnomalyStore>,
    /// Where the steps of the batch that is judged are written down.
    spans: Spans,
}

/// The spans of one batch.
struct Spans {
    correlation: Span,
    validation: Span,
}

impl Spans {
    fn of(trace: &BatchTrace) -> Spans {
        Spans { correlation: trace.stage("correlation"), validation: trace.stage("validation") }
    }

    fn none() -> Spans {
        Spans { correlation: Span::none(), validation: Span::none() }
    }
}

#[async_trait]
impl Stores for Places {
    /// Folds until it is done: findings are not to be lost.
    async fn fold(&self, shard: &ShardId, findings: &[Finding]) -> Vec<Incident> {
        let fold = async {
            let mut holdup = Holdup::new(&self.common, CORRELATION, "fold");
            let patience = positive(self.common.settings.call_timeout);
            loop {
                match timeout(patience, self.incidents.fold(shard, findings)).await {
                    Ok(Ok(incidents)) => {
                        holdup.over();
                        return incidents;
                    }
                    Ok(Err(error)) => holdup.wait(&error.to_string()).await,
                    Err(_) => holdup.wait("no answer in time").await,
                }
            }
        };
        fold.instrument(self.spans.correlation.clone()).await
    }

    /// Folds once; what cannot be folded now waits on.
    async fn fold_together(&self, shard: &ShardId, findings: &[Finding]) -> Option<Vec<Incident>> {
        let patience = positive(self.common.settings.call_timeout);
        let fold = timeout(patience, self.incidents.fold_together(shard, findings));
        match fold.instrument(self.spans.correlation.clone()).await {
            Ok(Ok(incidents)) => incidents,
            Ok(Err(error)) => {
                tracing::debug!(%error, "findings wait");
                None
            }
            Err(_) => None,
        }
    }

    async fn progress(&self, own: &Progresses, expected: &BTreeSet<ShardId>) -> Option<Progress> {
        let patience = positive(self.common.settings.call_timeout);
        match timeout(patience, self.incidents.progress(own, expected)).await {
            Ok(Ok(all)) => all,
            Ok(Err(error)) => {
                tracing::debug!(%error, "how far other shards are is not known");
                None
            }
            Err(_) => None,
        }
    }

    async fn expire(&self, watermarks: &correlation::Watermarks) -> Vec<Incident> {
        let patience = positive(self.common.settings.call_timeout);
        let expire = timeout(patience, self.incidents.expire(watermarks));
        let cause = match expire.instrument(self.spans.correlation.clone()).await {
            Ok(Ok(closed)) => return closed,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no answer in time".to_owned(),
        };
        tracing::warn!(cause, "ended episodes stay open until the next time");
        Vec::new()
    }

    async fn recall(&self, id: Uuid) -> Option<Anomaly> {
        let recall = insist(&self.common, "recall", || self.store.get(id));
        // What is stored and cannot be read is as good as unknown.
        recall.instrument(self.spans.validation.clone()).await.ok().flatten()
    }
}

impl Judgement {
    /// Nothing is known before a shard enters and brings it along.
    pub(super) fn new(common: &Common, incidents: Arc<dyn IncidentStore>, store: Arc<dyn AnomalyStore>) -> Judgement {
        let tiers = &common.tiers;
        let judge = Judge::new(&tiers.validation, &tiers.network);
        Judgement {
            common: common.clone(),
            places: Places { common: common.clone(), incidents, store, spans: Spans::none() },
            chain: Chain::new(judge, &tiers.episode_gap, tiers.statistical.window),
            fences: BTreeMap::new(),
            parts: BTreeMap::new(),
            told_at: None,
            feedback_from: EventTime(0),
            to_learn: VecDeque::new(),
            rules_read: None,
            sweep: Sweep::new(positive(common.settings.sweep_every)),
            waiting_since: BTreeMap::new(),
            expected_since: BTreeMap::new(),
            ended: BTreeSet::new(),
            sent: 0,
        }
    }

    /// Takes in what was known of a shard's incidents where it was read before.
    async fn take_in(&mut self, shard: &ShardId, state: &[u8]) -> Result<(), String> {
        let (state, waiting) = postcard::take_from_bytes::<State>(state).map_err(|error| error.to_string())?;
        let waiting: Vec<Waiting> = match waiting {
            [] => Vec::new(),
            waiting => postcard::from_bytes(waiting).map_err(|error| error.to_string())?,
        };
        self.chain.judge.take_in(&state.judge).map_err(|error| error.to_string())?;
        let parts = self.parts.entry(shard.clone()).or_default();
        parts.extend(state.parts);
        if let Some(incidents) = &state.incidents {
            self.places.incidents.resume(incidents).await.map_err(|error| error.to_string())?;
        }
        self.chain.resume(shard, waiting);
        Ok(())
    }

    /// Judges until all shards have left for good.
    pub(super) async fn run(
        mut self,
        mut messages: mpsc::Receiver<Message>,
        mut to_delivery: ToDelivery,
    ) -> Result<&'static str, PipelineError> {
        let mut changes = self.common.tiers.changes.clone();
        loop {
            let poll = if self.chain.waits().next().is_some() { WAITING_POLL } else { Duration::MAX };
            let message = match timeout(poll, messages.recv()).await {
                Ok(Some(message)) => message,
                Ok(None) => break,
                Err(_) => {
                    let Ok(mut delivery) = self.advance(&mut to_delivery).await else { return Ok("judgement") };
                    self.tell_watermarks(WAITING_TOLD_EVERY, &mut delivery).await;
                    if self.send(delivery, &mut to_delivery).await.is_err() {
                        return Ok("judgement");
                    }
                    continue;
                }
            };
            if let Some(thresholds) = Tiers::changed(&mut changes) {
                self.chain.judge.set_settings(&thresholds.validation);
            }
            self.take_up_rules().await;
            let depth = messages.len() as i64;
            self.common.metrics.set(&telemetry::QUEUE_DEPTH, &["judgement"], depth);
            let delivery = match message {
                Message::Enter { shard, fence, siblings, judgements } => {
                    for state in &judgements {
                        if let Err(error) = self.take_in(&shard, state).await {
                            tracing::warn!(shard = &*shard.0, error, "what was known of its incidents cannot be used");
                        }
                    }
                    self.enter(shard, fence, siblings).await
                }
                Message::Leave(shard) => {
                    self.leave(&shard).await;
                    continue;
                }
                Message::Continued(shard, by) => {
                    self.give_up(&shard);
                    self.ended.insert(shard.clone());
                    if self.ended.len() > ENDED_MAX {
                        self.ended.pop_first();
                    }
                    by.iter().for_each(|child| self.expect(child.clone()));
                    let patience = positive(self.common.settings.call_timeout);
                    if let Ok(Err(error)) = timeout(patience, self.places.incidents.continued(&shard, &by)).await {
                        tracing::warn!(shard = &*shard.0, %error, "others still wait for a shard that has ended");
                    }
                    // Something may be over now.
                    self.told_at = None;
                    continue;
                }
                Message::Step(shard, _) if !self.fence(&shard).holds() => {
                    tracing::debug!(
                        shard = &*shard.0,
                        "what was read of a shard that is somebody else's now is dropped"
                    );
                    continue;
                }
                Message::Step(shard, step) => match self.step(shard, step, &mut to_delivery).await {
                    Ok(delivery) => delivery,
                    Err(Gone) => return Ok("judgement"),
                },
            };
            if self.send(delivery, &mut to_delivery).await.is_err() {
                return Ok("judgement");
            }
        }
        // No shard is read any more, so that nobody is waited for.
        if let Ok(delivery) = self.fold_until(EventTime(u32::MAX), &mut to_delivery).await {
            let _ = self.send(delivery, &mut to_delivery).await;
        }
        Ok("judgement")
    }

    /// Hands a delivery on. Where incidents outlive this task it is waited for: whoever reads the same records again after a crash
    /// must find the incidents as they were when this was told.
    async fn send(&mut self, mut delivery: Delivery, to_delivery: &mut ToDelivery) -> Result<(), Gone> {
        self.sent += 1;
        delivery.number = self.sent;
        let waits = self.places.incidents.is_shared() && !delivery.outcomes.is_empty();
        to_delivery.deliveries.send(delivery).await.map_err(|_| Gone)?;
        if waits {
            let number = self.sent;
            to_delivery.delivered.wait_for(|&delivered| delivered >= number).await.map_err(|_| Gone)?;
        }
        Ok(())
    }

    /// Goes on with what waits, as far as that can be, or has waited long enough.
    async fn advance(&mut self, to_delivery: &mut ToDelivery) -> Result<Delivery, Gone> {
        let now = Instant::now();
        let patience = positive(self.common.settings.shard_wait);
        let waits: BTreeSet<EventTime> = self.chain.waits().collect();
        self.waiting_since.retain(|end, _| waits.contains(end));
        for end in &waits {
            self.waiting_since.entry(*end).or_insert(now);
        }
        let late = self.waiting_since.iter().filter(|(_, since)| since.elapsed() >= patience).map(|(end, _)| *end);
        let many = (self.chain.waits().count() > WAITING_MAX).then(|| waits.first().copied()).flatten();
        let until = late.chain(many).max().unwrap_or_default();
        let given_up: Vec<ShardId> = self
            .expected_since
            .extract_if(.., |_, since| since.elapsed() >= patience)
            .map(|(shard, _)| shard)
            .collect();
        given_up.iter().for_each(|shard| self.chain.watermarks.give_up(shard));
        self.fold_until(until, to_delivery).await
    }

    /// Goes on with what waits, whoever is still behind, up to windows that end by a moment. What came last is answered, the rest is
    /// on its way.
    async fn fold_until(&mut self, until: EventTime, to_delivery: &mut ToDelivery) -> Result<Delivery, Gone> {
        let mut delivery = Delivery::default();
        while let Some(turns) = self.chain.next(&self.places, until).await {
            turns.into_iter().for_each(|turn| self.add(turn, &mut delivery));
            // Before others hear that it is folded.
            if self.places.incidents.is_shared() && !delivery.outcomes.is_empty() {
                self.send(std::mem::take(&mut delivery), to_delivery).await?;
            }
        }
        Ok(delivery)
    }

    fn expect(&mut self, shard: ShardId) {
        if self.ended.contains(&shard) {
            return;
        }
        self.expected_since.insert(shard.clone(), Instant::now());
        self.chain.watermarks.expect(shard);
    }

    fn give_up(&mut self, shard: &ShardId) {
        self.expected_since.remove(shard);
        self.chain.watermarks.give_up(shard);
    }

    fn fence(&self, shard: &ShardId) -> Fence {
        self.fences.get(shard).cloned().unwrap_or_default()
    }

    /// From now on nothing is over that the shard, or one that nobody reads yet, may add to.
    async fn enter(&mut self, shard: ShardId, fence: Fence, siblings: Vec<ShardId>) -> Delivery {
        self.fences.insert(shard.clone(), fence);
        self.chain.watermarks.enter(shard);
        let mut watermarks = self.chain.told();
        for sibling in siblings {
            watermarks.entry(sibling.clone()).or_default();
            self.expect(sibling);
        }
        let mut delivery = Delivery::default();
        self.told_at = Some(Instant::now());
        let turn = self.chain.close_by(&self.places, &watermarks).await;
        self.add(turn, &mut delivery);
        delivery
    }

    /// Whoever reads the shard next goes on with its incidents, unless nobody will.
    async fn leave(&mut self, shard: &ShardId) {
        self.chain.watermarks.leave(shard);
        if self.common.ending == Ending::LeaveOpen {
            self.chain.drop_waiting(shard);
            self.expect(shard.clone());
        }
        self.fences.remove(shard);
        let parts = self.parts.remove(shard).unwrap_or_default();
        let alone = |id: &Uuid| self.parts.values().all(|others| !others.contains_key(id));
        let ids: BTreeSet<Uuid> = parts.into_keys().filter(alone).collect();
        if self.common.ending == Ending::LeaveOpen
            && let Err(error) = self.places.incidents.release(&ids).await
        {
            tracing::warn!(%error, "incidents that others go on with are kept");
        }
    }

    /// Takes what a shard says through the chain.
    async fn step(&mut self, shard: ShardId, step: Step, to_delivery: &mut ToDelivery) -> Result<Delivery, Gone> {
        let Step { findings, watermark, idle, trace, barrier, .. } = step;
        self.places.spans = Spans::of(&trace);
        for finding in findings.iter().filter(|finding| !finding.provisional) {
            self.common.metrics.add(&telemetry::FINDINGS, &[finding.threat.name()], 1);
        }
        let (count, closed_until) = (findings.len(), self.chain.closed_until());
        if idle {
            self.chain.watermarks.note_idle(&shard);
        }
        self.chain.take(&shard, findings, watermark);
        let mut delivery = self.advance(to_delivery).await?;
        delivery.fence = self.fence(&shard);
        if self.chain.closed_until() > closed_until {
            self.told_at = Some(Instant::now());
            self.learn().await;
            self.forget_the_past();
        } else {
            self.tell_watermarks(WATERMARKS_TOLD_EVERY, &mut delivery).await;
        }
        if watermark.is_some() {
            self.sweep(&mut delivery).await;
        }
        let Spans { correlation, validation } = std::mem::replace(&mut self.places.spans, Spans::none());
        correlation.set_attribute("findings", count as i64);
        validation.set_attribute("outcomes", delivery.outcomes.len() as i64);
        drop((correlation, validation));
        delivery.arrived = barrier.is_none().then(|| (shard.clone(), trace));
        delivery.barrier = match barrier {
            // What only this process knows is found again by whoever reads the shard next, so no checkpoint passes it.
            Some(barrier) if self.places.incidents.pending(&shard) => {
                barrier.passed.send_replace(Some((barrier.number, false)));
                None
            }
            Some(mut barrier) => {
                barrier.state.judgement = self.snapshot(&shard).await;
                Some(barrier)
            }
            None => None,
        };
        Ok(delivery)
    }

    /// Tells correlation how far our shards are, where that was last told so long ago: others wait for our shards only while they
    /// hear of them, also when those stand still.
    async fn tell_watermarks(&mut self, every: Duration, delivery: &mut Delivery) {
        if self.told_at.is_none_or(|at| at.elapsed() >= every) {
            self.told_at = Some(Instant::now());
            let turn = self.chain.close_by(&self.places, &self.chain.told()).await;
            self.add(turn, delivery);
        }
    }

    /// Hands a turn of the chain on to delivery, and notes in which incidents its shard had a part.
    fn add(&mut self, turn: Turn, delivery: &mut Delivery) {
        let Turn { shard, keys, incidents, mut outcomes } = turn;
        self.stamp(&mut outcomes);
        let suppressed = |o: &Outcome| matches!(o, Outcome::Silent(silence) if silence.stage == suppression::NAME);
        if outcomes.iter().any(suppressed) {
            self.tell_hidden();
        }
        let fence = shard.as_ref().map(|shard| self.fence(shard));
        delivery.outcomes.extend(outcomes.into_iter().map(|outcome| Judged { outcome, fence: fence.clone() }));
        delivery.closed.extend(over(&incidents));
        if let Some(shard) = shard {
            let gaps = &self.common.tiers.episode_gap;
            // What another task closed is not heard of here; it was over after one gap.
            let until =
                |incident: &Incident| incident.span().1.plus(gaps.seconds(incident.key.threat).saturating_mul(2));
            let own = incidents.iter().filter(|incident| keys.contains(&incident.key));
            let parts: Vec<_> = own.map(|incident| (incident.id, until(incident))).collect();
            self.parts.entry(shard).or_default().extend(parts);
        }
        self.forget_parts(&incidents);
    }

    /// Forgets what was closed by others long ago.
    fn forget_the_past(&mut self) {
        let closed_until = self.chain.closed_until();
        for parts in self.parts.values_mut() {
            for (id, _) in parts.extract_if(.., |_, until| *until < closed_until) {
                self.chain.judge.forget(id);
            }
        }
    }

    fn forget_parts(&mut self, incidents: &[Incident]) {
        for incident in incidents.iter().filter(|incident| incident.closed) {
            for parts in self.parts.values_mut() {
                parts.remove(&incident.id);
            }
        }
    }

    /// Says how much each suppression has hidden: whoever looks should know what is not seen.
    fn tell_hidden(&self) {
        let mut all = BTreeMap::new();
        for (suppression, matches) in
            self.chain.judge.suppressions().iter().filter(|(_, matches)| matches.incidents > 0)
        {
            self.common.metrics.set(&telemetry::SUPPRESSED, &[&suppression.name], matches.incidents as i64);
            let hidden = Hidden { incidents: matches.incidents, last: matches.last };
            all.insert(suppression.name.clone(), hidden);
        }
        self.common.health.hidden(all);
    }

    /// Has closed what should have been and was not; it waits behind everything that is on its way to delivery.
    async fn sweep(&mut self, delivery: &mut Delivery) {
        // A shard that has told no watermark yet may add to anything.
        if self.chain.least().is_none() {
            return;
        }
        let asked = Asked {
            store: &*self.places.store,
            incidents: &*self.places.incidents,
            watermarks: self.chain.told(),
            untold: u32::try_from(self.common.tiers.validation.update_interval.as_secs()).unwrap_or(0),
        };
        delivery.abandoned = self.sweep.look(&asked, positive(self.common.settings.call_timeout)).await;
    }

    /// Takes up what analysts have said since the last time, from the store: after a restart all of it, a part at a time.
    async fn learn(&mut self) {
        let patience = positive(self.common.settings.call_timeout);
        if self.to_learn.is_empty() {
            let now = u32::try_from(Timestamp::now().as_second()).unwrap_or(u32::MAX);
            let asked = timeout(patience, self.places.store.feedbacks(self.feedback_from)).await;
            let Ok(Ok(mut feedbacks)) = asked else { return };
            feedbacks.retain(|feedback| feedback.at.0 <= now.saturating_sub(FEEDBACK_SETTLES));
            self.feedback_from = feedbacks.iter().map(|f| f.at.plus(1)).max().unwrap_or(self.feedback_from);
            self.to_learn = feedbacks.into();
        }
        let part = self.to_learn.len().min(FEEDBACK_PART);
        if part == 0 {
            return;
        }
        for _ in 0..part {
            let Some(feedback) = self.to_learn.pop_front() else { break };
            match timeout(patience, self.places.store.get(feedback.anomaly_id)).await {
                Ok(Ok(Some(anomaly))) => self.chain.judge.learn(anomaly.threat, &feedback),
                Ok(Ok(None)) => {}
                // Not answered now: it is asked for again.
                _ => {
                    self.to_learn.push_front(feedback);
                    break;
                }
            }
        }
        let calibration = self.chain.judge.calibration();
        let learned = calibration.feedbacks().iter().map(|(threat, verdicts)| {
            let Verdicts { true_positive, false_positive } = *verdicts;
            (threat.name().to_owned(), Learned { true_positive, false_positive, shift: calibration.shift(*threat) })
        });
        self.common.health.learned(learned.collect());
    }

    /// Takes up the suppressions that people have made while the service runs.
    async fn take_up_rules(&mut self) {
        if self.rules_read.is_some_and(|at| at.elapsed() < RULES_EVERY) {
            return;
        }
        self.rules_read = Some(Instant::now());
        let patience = positive(self.common.settings.call_timeout);
        // Where the store is away, those that are known stay.
        let Ok(Ok(rules)) = timeout(patience, self.places.store.rules()).await else { return };
        let read = |rule: &Rule| match Suppression::stored(&rule.body) {
            Ok(suppression) => Some(suppression),
            Err(error) => {
                tracing::debug!(name = rule.name, %error, "a rule cannot be read");
                None
            }
        };
        self.chain.judge.suppress(rules.iter().filter_map(read).collect());
    }

    /// Writes on every anomaly what was away while it was judged, where that makes a difference to it.
    fn stamp(&self, outcomes: &mut [Outcome]) {
        let mut degraded = self.common.health.degraded();
        degraded.retain(|part| !NO_MATTER.contains(&&**part));
        if degraded.is_empty() {
            return;
        }
        for outcome in outcomes {
            if let Outcome::Told(anomaly) = outcome {
                anomaly.degraded.extend(degraded.iter().cloned());
                anomaly.degraded.sort_unstable();
                anomaly.degraded.dedup();
            }
        }
    }

    /// What is known of the incidents in which a shard had a part.
    async fn snapshot(&self, shard: &ShardId) -> Vec<u8> {
        let parts = self.parts.get(shard).cloned().unwrap_or_default();
        let incidents = match self.places.incidents.state(&parts.keys().copied().collect()).await {
            Ok(incidents) => incidents,
            Err(error) => {
                tracing::warn!(%error, "the incidents are left out of the snapshot");
                None
            }
        };
        let judge = self.chain.judge.snapshot_of(|id| parts.contains_key(&id));
        let state = State { parts, incidents, judge, feedback_from: self.feedback_from };
        let waiting = self.chain.waiting_of(shard);
        postcard::to_stdvec(&(state, waiting)).expect("plain data can always be written")
    }
}

/// Those of some incidents that are over and told as such; what became part of another is not.
fn over(incidents: &[Incident]) -> impl Iterator<Item = Uuid> {
    incidents.iter().filter(|incident| incident.closed && incident.absorbed_by.is_none()).map(|incident| incident.id)
}

#[cfg(test)]
mod tests;
