//! SageMaker endpoints, and what stands in for them when they are away.
//!
//! Every window is judged in process first: that takes some µs, keeps the memory of hosts warm, and is the answer whenever an
//! endpoint has none. Then both endpoints are asked, in bounded requests, under one deadline, each behind its own
//! [`super::breaker`]. What an endpoint did not answer in time is answered by the local copy of the model and
//! marked as degraded; the stream never waits longer than the deadline. Scoring changes nothing on the server, so that a
//! call that failed on the way is tried once more by the SDK, as long as the deadline allows.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use aws_sdk_sagemakerruntime::Client;
use aws_sdk_sagemakerruntime::config::retry::RetryConfig;
use aws_sdk_sagemakerruntime::config::timeout::TimeoutConfig;
use aws_sdk_sagemakerruntime::primitives::Blob;
use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;
use utoipa::ToSchema;

use super::artifact::Slot;
use super::breaker::{self, Breaker, Outcome, Permit};
use super::canary::{self, Comparison};
use super::features::SCHEMA;
use super::model::{Judge, Judgement, Part, combine};
use super::wire::{Entry, Instance, Reply, Request};
use super::{FeatureVector, Score, ScoreError, Scorer};
use crate::aws;
use crate::wait;

/// Settings `[ml.sagemaker]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Name of the endpoint of the isolation forest.
    pub isolation_forest_endpoint: String,
    /// Name of the endpoint of the sequence model; empty for none.
    pub lstm_endpoint: String,
    /// How long a batch may take, with its retry.
    pub deadline: SignedDuration,
    /// Most windows in a request.
    pub request_windows: usize,
    /// Most requests under way at once.
    pub concurrency: usize,
    /// One of so many batches is scored by both variants, beside the stream; 0 for none.
    pub paired_every: u64,
    /// When an endpoint is left alone.
    pub breaker: BreakerSettings,
}

/// Settings `[ml.sagemaker.breaker]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakerSettings {
    /// Outcomes older than this do not count.
    pub window: SignedDuration,
    /// Below this many outcomes nothing is concluded.
    pub calls_min: usize,
    /// Share of failed calls that opens.
    pub failure_rate: f64,
    /// A call that takes longer is slow.
    pub slow_call: SignedDuration,
    /// Share of slow calls that opens.
    pub slow_rate: f64,
    /// First pause before a probe; it doubles with every probe that fails.
    pub pause: SignedDuration,
    /// Longest pause.
    pub pause_max: SignedDuration,
}

impl BreakerSettings {
    fn resolve(&self) -> breaker::Settings {
        breaker::Settings {
            window: wait::positive(self.window),
            calls_max: 1_000,
            calls_min: self.calls_min,
            failure_rate: self.failure_rate,
            slow_call: wait::positive(self.slow_call),
            slow_rate: self.slow_rate,
            pause: wait::positive(self.pause),
            pause_max: wait::positive(self.pause_max),
        }
    }
}

/// How an endpoint is, for `/v1/models` and the metrics.
#[derive(Clone, PartialEq, Debug, Serialize, ToSchema)]
pub struct EndpointStatus {
    /// Its name.
    pub endpoint: String,
    /// What its breaker does.
    pub breaker: breaker::State,
    /// What the breaker has done.
    pub life: breaker::Life,
    /// Calls made.
    pub calls: u64,
    /// Of these, failed or too late.
    pub failures: u64,
    /// The last failure.
    pub last_failure: Option<String>,
    /// Latest model version that answered.
    pub model_version: Option<String>,
    /// Answered calls by production variant: how many, how long they took, and the p-values they brought.
    pub variants: BTreeMap<String, canary::VariantReport>,
}

/// One endpoint with its breaker. The lock is held for a few instructions, never across a call.
#[derive(Debug)]
struct Endpoint {
    name: String,
    part: Part,
    /// A p-value of this or less is counted as an alert of its variant.
    level: f64,
    state: Mutex<EndpointState>,
}

#[derive(Debug)]
struct EndpointState {
    breaker: Breaker,
    calls: u64,
    failures: u64,
    last_failure: Option<String>,
    model_version: Option<String>,
    variants: BTreeMap<String, canary::Variant>,
}

/// The scorer that asks SageMaker.
#[derive(Debug)]
pub struct SageMaker {
    calls: Arc<Calls>,
    endpoints: Vec<Arc<Endpoint>>,
    local: Arc<Slot>,
    comparison: Arc<Mutex<Comparison>>,
    comparing: TaskTracker,
    batches: AtomicU64,
    settings: Settings,
    limits: canary::Limits,
}

/// What calls need.
#[derive(Debug)]
struct Calls {
    client: Client,
    running: Semaphore,
    began: Instant,
}

/// A reply to one chunk.
#[derive(Debug)]
struct Answered {
    part: Part,
    /// The place of the first window.
    from: usize,
    entries: Vec<Entry>,
    version: Arc<str>,
    variant: Arc<str>,
    calibrated: u64,
}

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
enum Miss {
    #[error("{0}")]
    Failed(String),
    #[error("no answer within {0:?}")]
    TooLate(Duration),
}

/// What came of a chunk; nothing where the endpoint did not answer in time.
type Answer = Option<Answered>;

impl SageMaker {
    /// Asks the endpoints of the settings; `local` stands in for them, and `limits` decide on a canary. Credentials, region and
    /// address come with `config`.
    pub fn new(
        config: &aws_config::SdkConfig,
        settings: Settings,
        limits: canary::Limits,
        local: Arc<Slot>,
    ) -> SageMaker {
        let deadline = wait::positive(settings.deadline);
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(deadline / 2)
            .operation_attempt_timeout(deadline)
            .operation_timeout(deadline)
            .build();
        let retries = RetryConfig::standard()
            .with_max_attempts(2)
            .with_initial_backoff(Duration::from_millis(10))
            .with_max_backoff(deadline / 4);
        let config = aws_sdk_sagemakerruntime::config::Builder::from(config)
            .timeout_config(timeouts)
            .retry_config(retries)
            // The breaker is what holds calls back; a second judge in the SDK would make its counts a riddle.
            .retry_partition(aws_sdk_sagemakerruntime::config::retry::RetryPartition::new("flowvigil-models"))
            .build();
        let endpoint = |name: &str, part: Part| {
            let breaker = Breaker::new(settings.breaker.resolve());
            let (last_failure, model_version, variants) = (None, None, BTreeMap::new());
            let state = EndpointState { breaker, calls: 0, failures: 0, last_failure, model_version, variants };
            Arc::new(Endpoint { name: name.to_owned(), part, level: limits.level, state: Mutex::new(state) })
        };
        let named = [(&settings.isolation_forest_endpoint, Part::Forest), (&settings.lstm_endpoint, Part::Lstm)];
        let endpoints =
            named.into_iter().filter(|(name, _)| !name.is_empty()).map(|(name, part)| endpoint(name, part)).collect();
        let running = Semaphore::new(settings.concurrency.max(1));
        SageMaker {
            calls: Arc::new(Calls { client: Client::from_conf(config), running, began: Instant::now() }),
            endpoints,
            local,
            comparison: Arc::default(),
            comparing: TaskTracker::new(),
            batches: AtomicU64::new(0),
            settings,
            limits,
        }
    }

    /// How the endpoints are.
    pub fn status(&self) -> Vec<EndpointStatus> {
        let now = self.calls.began.elapsed();
        let status = |endpoint: &Arc<Endpoint>| {
            let mut state = endpoint.lock();
            EndpointStatus {
                endpoint: endpoint.name.clone(),
                breaker: state.breaker.state(now),
                life: state.breaker.life(),
                calls: state.calls,
                failures: state.failures,
                last_failure: state.last_failure.clone(),
                model_version: state.model_version.clone(),
                variants: state.variants.iter().map(|(name, variant)| (name.clone(), variant.report())).collect(),
            }
        };
        self.endpoints.iter().map(status).collect()
    }

    /// The breakers go on under other settings.
    pub fn set_breaker(&self, settings: &BreakerSettings) {
        for endpoint in &self.endpoints {
            endpoint.lock().breaker.set_settings(settings.resolve());
        }
    }

    /// The canary beside the primary.
    pub fn compared(&self) -> canary::Report {
        self.comparison.lock().unwrap_or_else(PoisonError::into_inner).report(&self.limits)
    }

    /// Waits for the comparisons that are under way: for whoever compares and does nothing else.
    pub async fn compare_now(&self) {
        self.comparing.close();
        self.comparing.wait().await;
        self.comparing.reopen();
    }

    /// Asks all endpoints that are admitted about all windows, until the deadline.
    async fn ask(&self, instances: &Arc<Vec<Instance>>) -> Vec<Answer> {
        let mut tasks = JoinSet::new();
        let size = self.settings.request_windows.max(1);
        for endpoint in &self.endpoints {
            for from in (0..instances.len()).step_by(size) {
                let (calls, endpoint, instances) = (self.calls.clone(), endpoint.clone(), instances.clone());
                let to = (from + size).min(instances.len());
                // A task of its own: a call that is cut off by the deadline still settles its permit.
                tasks.spawn(calls.chunk(endpoint, instances, from, to, wait::positive(self.settings.deadline)));
            }
        }
        let mut answers = Vec::new();
        while let Some(done) = tasks.join_next().await {
            answers.extend(done.ok());
        }
        answers
    }

    /// Scores a batch by both variants, beside the stream, and compares.
    fn compare(&self, instances: &Arc<Vec<Instance>>) {
        let number = self.batches.fetch_add(1, Ordering::Relaxed);
        let every = self.settings.paired_every;
        let Some(endpoint) = self.endpoints.first().cloned() else { return };
        if every == 0 || !number.is_multiple_of(every) || instances.is_empty() {
            return;
        }
        let (calls, comparison, instances) = (self.calls.clone(), self.comparison.clone(), instances.clone());
        let size = self.settings.request_windows.max(1).min(instances.len());
        let (deadline, level) = (wait::positive(self.settings.deadline), self.limits.level);
        self.comparing.spawn(async move {
            let ask = async |variant: &str| {
                let body = body(&instances[..size], true);
                let began = Instant::now();
                let reply =
                    tokio::time::timeout(deadline, calls.invoke(&endpoint.name, body, size, Some(variant))).await;
                (began.elapsed(), reply.ok().and_then(Result::ok))
            };
            // By turns, so that neither is always the one that finds everything warm.
            let ((first_took, first), (second_took, second)) = if (number / every).is_multiple_of(2) {
                let first = ask("primary").await;
                (first, ask("canary").await)
            } else {
                let second = ask("canary").await;
                (ask("primary").await, second)
            };
            let mut comparison = comparison.lock().unwrap_or_else(PoisonError::into_inner);
            comparison.primary.call(first_took.as_secs_f64() * 1e3, first.is_some());
            comparison.canary.call(second_took.as_secs_f64() * 1e3, second.is_some());
            let (Some((first, _)), Some((second, _))) = (first, second) else { return };
            for (a, b) in first.scores.iter().zip(&second.scores) {
                if let (Some(a), Some(b)) = (a.p_value, b.p_value) {
                    comparison.primary.window(a, a <= level);
                    comparison.canary.window(b, b <= level);
                    comparison.pair(a, b);
                }
            }
        });
    }
}

#[async_trait]
impl Scorer for SageMaker {
    async fn score(&self, judge: &mut Judge, batch: &[FeatureVector]) -> Result<Vec<Score>, ScoreError> {
        let model = self.local.model();
        let version: Arc<str> = Arc::from(model.manifest.model_version.as_str());
        let judged = judge.judge(&model, batch);
        let (places, instances) = worth_asking(judge, &judged, batch);
        let instances = Arc::new(instances);
        let answers = self.ask(&instances).await;
        self.compare(&instances);
        let mut said: Vec<[Option<Said<'_>>; 3]> = instances.iter().map(|_| [None, None, None]).collect();
        for Answered { part, from, entries, version, variant, calibrated } in answers.iter().flatten() {
            for (at, entry) in entries.iter().enumerate() {
                let (version, variant, calibrated) = (version.clone(), variant.clone(), *calibrated);
                said[from + at][*part as usize] = Some(Said { entry, version, variant, calibrated });
            }
        }
        let mut asked = places.iter().peekable();
        let scores = judged.into_iter().enumerate().map(|(at, local)| {
            let place = asked.next_if(|place| **place == at).is_some();
            let said = if place { said.get(at - unasked_before(&places, at)) } else { None };
            let wanted = self.endpoints.iter().map(|endpoint| endpoint.part);
            join(
                local,
                said.map(|said| said.each_ref().map(Option::as_ref)).as_ref(),
                wanted,
                (&version, model.calibrated()),
            )
        });
        Ok(scores.collect())
    }

    fn endpoints(&self) -> Vec<EndpointStatus> {
        self.status()
    }

    fn comparison(&self) -> Option<canary::Report> {
        (self.settings.paired_every > 0).then(|| self.compared())
    }
}

/// How many windows before `at` were not asked about.
fn unasked_before(places: &[usize], at: usize) -> usize {
    at - places.partition_point(|place| *place < at)
}

/// Puts the endpoints' p-values in place of the local ones; what is missing is the local model's, and told as degraded.
fn join(
    local: Judgement,
    said: Option<&[Option<&Said<'_>>; 3]>,
    wanted: impl Iterator<Item = Part>,
    (version, calibrated): (&Arc<str>, u64),
) -> Score {
    let mut p_values = local.opinions.map(|opinion| opinion.map(|o| o.p_value));
    let (usual, grown, mut attributions) = (local.usual, local.grown, local.attributions);
    let mut degraded = false;
    let mut answered: Option<&Said<'_>> = None;
    for part in wanted.filter(|part| local.opinions[*part as usize].is_some()) {
        let said = said.and_then(|said| said[part as usize]);
        let opinion = said.and_then(|s| s.entry.of(part));
        let (Some(said), Some(opinion)) = (said, opinion) else {
            degraded = true;
            continue;
        };
        answered = Some(said);
        p_values[part as usize] = Some(opinion.p_value);
        attributions[part as usize].clone_from(&opinion.attribution);
    }
    let (model_version, variant, calibrated) = match answered {
        Some(said) => (said.version.clone(), said.variant.clone(), said.calibrated),
        None => (version.clone(), Arc::from("local"), calibrated),
    };
    Score {
        p_value: combine(p_values),
        p_values,
        usual,
        grown,
        attributions,
        model_version,
        variant,
        calibrated,
        degraded,
    }
}

/// What an endpoint said of one window.
struct Said<'a> {
    entry: &'a Entry,
    version: Arc<str>,
    variant: Arc<str>,
    calibrated: u64,
}

/// The windows that are worth a call, those of hosts that are not new: their places in the batch, and what is sent of them.
fn worth_asking(judge: &Judge, judged: &[Judgement], batch: &[FeatureVector]) -> (Vec<usize>, Vec<Instance>) {
    let (mut places, mut instances) = (Vec::new(), Vec::new());
    for (at, (vector, judgement)) in batch.iter().zip(judged).enumerate() {
        if judgement.p_value.is_none() {
            continue;
        }
        places.push(at);
        instances.push(Instance {
            features: vector.values.iter().copied().map(super::forest::clamp).collect(),
            sequence: Some(judge.recent(vector.host).iter().map(|window| window.to_vec()).collect()),
            class: judge.class(vector.host).to_owned(),
        });
    }
    (places, instances)
}

impl Endpoint {
    fn lock(&self) -> std::sync::MutexGuard<'_, EndpointState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn admit(&self, now: Duration) -> Option<Permit> {
        self.lock().breaker.admit(now)
    }

    fn settle(&self, permit: Permit, result: &Result<(Reply, String), Miss>, now: Duration) {
        let mut state = self.lock();
        state.calls += 1;
        let took = now.saturating_sub(permit.started());
        let outcome = match result {
            Ok((reply, variant)) => {
                state.model_version = Some(reply.model_version.clone());
                let counted = state.variants.entry(variant.clone()).or_default();
                counted.call(took.as_secs_f64() * 1e3, true);
                for said in reply.scores.iter().filter_map(|entry| entry.of(self.part)) {
                    counted.window(said.p_value, said.p_value <= self.level);
                }
                Outcome::Answered
            }
            Err(miss) => {
                state.failures += 1;
                state.last_failure = Some(miss.to_string());
                match miss {
                    // It began late, for the calls before it: that it was cut off tells nothing about the endpoint.
                    Miss::TooLate(deadline) if took < *deadline / 2 => Outcome::Void,
                    _ => Outcome::Failed,
                }
            }
        };
        let before = state.breaker.life();
        state.breaker.settle(permit, outcome, now);
        let after = state.breaker.life();
        if after.opened > before.opened {
            let reason = state.last_failure.as_deref().unwrap_or("slow answers");
            tracing::warn!(endpoint = self.name, reason, "the breaker opened; the local model answers");
        } else if after.closed > before.closed {
            tracing::info!(endpoint = self.name, "the breaker closed");
        }
    }
}

impl Calls {
    /// Asks one endpoint about some windows, within the deadline, and settles its permit whatever comes.
    async fn chunk(
        self: Arc<Calls>,
        endpoint: Arc<Endpoint>,
        instances: Arc<Vec<Instance>>,
        from: usize,
        to: usize,
        deadline: Duration,
    ) -> Answer {
        let until = tokio::time::Instant::now() + deadline;
        let _place = tokio::time::timeout_at(until, self.running.acquire()).await.ok()?.ok()?;
        // Only now: how long calls waited for each other is not the endpoint's doing, and it is no longer asked once it is known to
        // be away.
        let permit = endpoint.admit(self.began.elapsed())?;
        let body = body(&instances[from..to], endpoint.part == Part::Lstm);
        let asked = self.invoke(&endpoint.name, body, to - from, None);
        let result = match tokio::time::timeout_at(until, asked).await {
            Ok(result) => result.map_err(Miss::Failed),
            Err(_) => Err(Miss::TooLate(deadline)),
        };
        endpoint.settle(permit, &result, self.began.elapsed());
        let (reply, variant) = result.ok()?;
        let (version, variant, calibrated) = (Arc::from(reply.model_version), Arc::from(variant), reply.calibrated);
        Some(Answered { part: endpoint.part, from, entries: reply.scores, version, variant, calibrated })
    }

    /// One call; a reply of another number of scores, another schema, or values out of range is a failure.
    async fn invoke(
        &self,
        endpoint: &str,
        body: Vec<u8>,
        windows: usize,
        variant: Option<&str>,
    ) -> Result<(Reply, String), String> {
        let output = self
            .client
            .invoke_endpoint()
            .endpoint_name(endpoint)
            .content_type("application/json")
            .accept("application/json")
            .set_target_variant(variant.map(str::to_owned))
            .body(Blob::new(body))
            .send()
            .await
            .map_err(|error| aws::Fault::of(&error).cause)?;
        let variant = output.invoked_production_variant().unwrap_or("primary").to_owned();
        let bytes = output.body().map(Blob::as_ref).unwrap_or_default();
        let reply: Reply =
            serde_json::from_slice(bytes).map_err(|error| format!("the reply is not scores: {error}"))?;
        if reply.scores.len() != windows {
            return Err(format!("{} scores for {windows} windows", reply.scores.len()));
        }
        if reply.schema != SCHEMA {
            return Err(format!("the endpoint scores features `{}`, not {SCHEMA}", reply.schema));
        }
        let said = reply.scores.iter().flat_map(|entry| [&entry.forest, &entry.lstm]).flatten();
        if said.into_iter().any(|said| !(said.p_value > 0.0 && said.p_value <= 1.0)) {
            return Err("a p-value is not within 0 to 1".to_owned());
        }
        Ok((reply, variant))
    }
}

fn body(instances: &[Instance], with_sequences: bool) -> Vec<u8> {
    let instances = instances.iter().map(|instance| instance.row(with_sequences)).collect();
    serde_json::to_vec(&Request { schema: SCHEMA, instances }).expect("finite numbers and names")
}
