//! One trace per batch of records, through all tiers, sent as OTLP over HTTP.
//!
//! A batch crosses threads and channels, so its trace travels with it as a value ([`Journey`]) instead of hanging on a
//! thread. Each tier adds a span, a few pushes onto a list; whether the trace is kept is settled at the end: a share of all,
//! and every one in which an anomaly was told.
//!
//! Ids are such that X-Ray takes them: the first four bytes of a trace's id are the second in which it began. What is
//! announced carries the id as `AWSTraceHeader`, so that whoever handles the event joins the trace.
//!
//! Format: OTLP 1.x, JSON encoding of `ExportTraceServiceRequest` (opentelemetry.io, "OTLP Specification"). The SDK of
//! OpenTelemetry would bring a second HTTP stack and a span model of its own for this one request.

use std::future::Future;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Metrics, TRACES};
use crate::aws::{positive, post};

/// Settings `[telemetry.otlp]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the collector takes OTLP over HTTP; `/v1/traces` is added.
    pub endpoint: String,
    /// The share of batches whose trace is sent, 0 to 1; those in which an anomaly was told are always sent.
    pub sample: f64,
    /// The `service.name` of the traces.
    pub service: String,
    /// Deadline of one request.
    pub timeout: SignedDuration,
}

/// Traces that wait to be sent; what comes on top is dropped and counted.
const WAITING: usize = 512;

/// Traces of one request.
const TOGETHER: usize = 64;

/// How long traces are gathered for a request.
const GATHER: Duration = Duration::from_millis(500);

tokio::task_local! {
    static CURRENT: String;
}

/// The header by which AWS carries a trace on, while a traced batch is being announced.
pub fn header() -> Option<String> {
    CURRENT.try_with(String::clone).ok()
}

/// Where traces begin and go.
#[derive(Clone, Debug)]
pub struct Tracer {
    send: mpsc::Sender<Trace>,
    sample: f64,
    metrics: std::sync::Weak<Metrics>,
}

#[derive(Debug)]
struct Trace {
    id: [u8; 16],
    root: [u8; 8],
    shard: String,
    records: usize,
    /// Wall clock, ns since 1970, and the same moment by the clock that never jumps.
    began: (i128, Instant),
    ended: Instant,
    spans: Vec<Span>,
}

#[derive(Debug)]
struct Span {
    id: [u8; 8],
    name: &'static str,
    from: Instant,
    to: Instant,
    attributes: Vec<(&'static str, i64)>,
}

/// A batch on its way: when it arrived, and its trace where there is a tracer.
#[derive(Debug)]
pub struct Journey {
    arrived: Instant,
    trace: Option<(Tracer, Box<Trace>)>,
}

impl Journey {
    /// A batch that arrives now, and is not traced.
    pub fn untraced() -> Journey {
        Journey { arrived: Instant::now(), trace: None }
    }

    /// How long it has been under way.
    pub fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// A tier was at work from a moment until now.
    pub fn step(&mut self, name: &'static str, from: Instant, attributes: &[(&'static str, i64)]) {
        self.step_of(name, from, from.elapsed(), attributes);
    }

    /// A tier was at work for so long, with pauses, from a moment on.
    pub fn step_of(&mut self, name: &'static str, from: Instant, spent: Duration, attributes: &[(&'static str, i64)]) {
        if let Some((_, trace)) = &mut self.trace {
            let attributes = attributes.to_vec();
            trace.spans.push(Span { id: random().to_be_bytes(), name, from, to: from + spent, attributes });
        }
    }

    /// Announces within the trace: [`header`] answers there.
    pub async fn carry<T>(&self, announcing: impl Future<Output = T>) -> T {
        match &self.trace {
            Some((_, trace)) => CURRENT.scope(trace.header(), announcing).await,
            None => announcing.await,
        }
    }

    /// The batch has left the last tier. `told` is how many anomalies came of it.
    pub fn end(self, told: usize) {
        let Some((tracer, mut trace)) = self.trace else { return };
        let chosen = (random() as f64) < tracer.sample * u64::MAX as f64;
        if told == 0 && !chosen {
            return;
        }
        trace.ended = Instant::now();
        if tracer.send.try_send(*trace).is_err()
            && let Some(metrics) = tracer.metrics.upgrade()
        {
            metrics.add(&TRACES, &["dropped"], 1);
        }
    }
}

impl Tracer {
    /// Sends traces to a collector for as long as the process runs. A collector that is away costs the traces and nothing else.
    pub fn start(settings: &Settings, metrics: &Arc<Metrics>) -> Tracer {
        let (send, mut traces) = mpsc::channel::<Trace>(WAITING);
        let (settings, counting) = (settings.clone(), Arc::downgrade(metrics));
        let tracer = Tracer { send, sample: settings.sample, metrics: counting.clone() };
        let url = format!("{}/v1/traces", settings.endpoint.trim_end_matches('/'));
        tokio::spawn(async move {
            while let Some(first) = traces.recv().await {
                tokio::time::sleep(GATHER).await;
                let mut batch = vec![first];
                while batch.len() < TOGETHER
                    && let Ok(next) = traces.try_recv()
                {
                    batch.push(next);
                }
                let body = request(&settings.service, &batch).to_string();
                let sent = post(&url, "application/json", body, positive(settings.timeout)).await;
                let outcome = if sent.is_ok() { "sent" } else { "failed" };
                if let Err(cause) = sent {
                    tracing::debug!(cause, "the collector takes no traces");
                }
                if let Some(metrics) = counting.upgrade() {
                    metrics.add(&TRACES, &[outcome], batch.len() as u64);
                }
            }
        });
        tracer
    }

    /// A batch that arrives now.
    pub fn begin(&self, shard: &str, records: usize) -> Journey {
        let now = Timestamp::now();
        let arrived = Instant::now();
        let mut id = [0; 16];
        id[..4].copy_from_slice(&(now.as_second() as u32).to_be_bytes());
        id[4..8].copy_from_slice(&random().to_be_bytes()[..4]);
        id[8..].copy_from_slice(&random().to_be_bytes());
        let trace = Trace {
            id,
            root: random().to_be_bytes(),
            shard: shard.to_owned(),
            records,
            began: (now.as_nanosecond(), arrived),
            ended: arrived,
            spans: Vec::with_capacity(5),
        };
        Journey { arrived, trace: Some((self.clone(), Box::new(trace))) }
    }
}

impl Trace {
    fn header(&self) -> String {
        let id = hex(&self.id);
        format!("Root=1-{}-{};Parent={};Sampled=1", &id[..8], &id[8..], hex(&self.root))
    }

    /// A moment as OTLP writes it, ns since 1970.
    fn moment(&self, at: Instant) -> String {
        let (wall, steady) = self.began;
        (wall + at.saturating_duration_since(steady).as_nanos() as i128).to_string()
    }

    fn spans(&self) -> Vec<Value> {
        let number = |(key, value): &(&str, i64)| json!({"key": key, "value": {"intValue": value.to_string()}});
        let mut spans = vec![json!({
            "traceId": hex(&self.id),
            "spanId": hex(&self.root),
            "name": "batch",
            "kind": 5,
            "startTimeUnixNano": self.moment(self.began.1),
            "endTimeUnixNano": self.moment(self.ended),
            "attributes": [{"key": "shard", "value": {"stringValue": self.shard}}, number(&("records", self.records as i64))],
        })];
        spans.extend(self.spans.iter().map(|span| {
            json!({
                "traceId": hex(&self.id),
                "spanId": hex(&span.id),
                "parentSpanId": hex(&self.root),
                "name": span.name,
                "kind": 1,
                "startTimeUnixNano": self.moment(span.from),
                "endTimeUnixNano": self.moment(span.to),
                "attributes": span.attributes.iter().map(number).collect::<Vec<_>>(),
            })
        }));
        spans
    }
}

/// The request that holds these traces.
fn request(service: &str, traces: &[Trace]) -> Value {
    let spans: Vec<Value> = traces.iter().flat_map(Trace::spans).collect();
    let resource = json!({"attributes": [{"key": "service.name", "value": {"stringValue": service}}]});
    let scope = json!({"name": "flowvigil", "version": env!("CARGO_PKG_VERSION")});
    json!({"resourceSpans": [{"resource": resource, "scopeSpans": [{"scope": scope, "spans": spans}]}]})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ids need to differ, not to be secret: the seeds of the standard library's hash maps do.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
