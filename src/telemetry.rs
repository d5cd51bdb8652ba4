//! What the service tells about itself: the log, one table of metrics, and traces.
//!
//! Every metric is a constant with its name, unit and help text, and stands in [`TABLE`]; there are no others. Whoever
//! counts names the constant, so a misspelt metric does not compile, and whatever shows metrics (`/metrics`, the
//! documentation) walks the table.

use std::collections::HashMap;
use std::io::IsTerminal;

use prometheus::{Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder};
use serde::Deserialize;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, reload};

pub mod emf;
pub mod trace;

/// Settings `[telemetry]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// How the log is written.
    pub log_format: LogFormat,
    /// What is logged: `info`, or per module as in `info,flowvigil::pipeline=debug`.
    pub log_level: String,
    /// Metrics in the Embedded Metric Format, for CloudWatch; none where it is not configured.
    pub emf: Option<emf::Settings>,
    /// Traces for a collector; none where it is not configured.
    pub otlp: Option<trace::otlp::Settings>,
}

/// How the log is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Pretty on a terminal, JSON otherwise.
    Auto,
    /// One JSON object a line.
    Json,
    /// For eyes.
    Pretty,
}

impl Settings {
    /// Whether the level can be read; the reason if not.
    pub fn check_level(&self) -> Result<(), String> {
        EnvFilter::builder().parse(&self.log_level).map(|_| ()).map_err(|error| error.to_string())
    }
}

/// Changes what is logged while the process runs.
pub struct LogLevel(Box<dyn Fn(EnvFilter) + Send + Sync>);

impl std::fmt::Debug for LogLevel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LogLevel")
    }
}

impl LogLevel {
    /// Logs as the settings say from here on.
    pub fn set(&self, settings: &Settings) {
        (self.0)(EnvFilter::builder().parse_lossy(&settings.log_level));
    }
}

/// Sends the log to standard error. Once per process; a second call changes nothing.
pub fn log_to_stderr(settings: &Settings) -> LogLevel {
    log_and_trace(settings, None)
}

/// The same, and the spans of [`trace`] to a collector.
pub fn log_and_trace(settings: &Settings, traces: Option<&trace::otlp::Traces>) -> LogLevel {
    let filter = EnvFilter::builder().parse_lossy(&settings.log_level);
    let terminal = std::io::stderr().is_terminal();
    let json = match settings.log_format {
        LogFormat::Auto => !terminal,
        LogFormat::Json => true,
        LogFormat::Pretty => false,
    };
    let (filter, handle) = reload::Layer::new(filter);
    let fmt = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let lines = if json {
        fmt.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    } else {
        fmt.with_ansi(terminal).with_target(false).boxed()
    };
    let spans = traces.map(trace::layer);
    // The only error is that there is a subscriber already, e.g. of a test.
    let _ = tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans).try_init();
    LogLevel(Box::new(move |filter| {
        // The only error is that the subscriber is gone.
        let _ = handle.reload(filter);
    }))
}

/// One metric.
#[derive(Debug)]
pub struct Metric {
    /// Its name, with the unit at the end as Prometheus wants it.
    pub name: &'static str,
    /// `records`, `s`, `bytes`, …
    pub unit: &'static str,
    /// What it says.
    pub help: &'static str,
    /// How it behaves.
    pub kind: Kind,
    /// The names of its labels.
    pub labels: &'static [&'static str],
    /// What CloudWatch is told of it.
    pub cloudwatch: Option<CloudWatch>,
}

/// A metric as CloudWatch knows it.
#[derive(Clone, Copy, Debug)]
pub struct CloudWatch {
    /// Its namespace.
    pub namespace: &'static str,
    /// Its name.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What a value is multiplied by to be in that unit.
    pub scale: f64,
    /// Only where a label has this value.
    pub only: Option<(&'static str, &'static str)>,
}

impl CloudWatch {
    const fn service(name: &'static str, unit: &'static str) -> CloudWatch {
        CloudWatch { namespace: "AnomalyDetection/Service", name, unit, scale: 1.0, only: None }
    }

    const fn processing(name: &'static str, unit: &'static str) -> CloudWatch {
        CloudWatch { namespace: "AnomalyDetection/Processing", ..CloudWatch::service(name, unit) }
    }

    const fn times(self, scale: f64) -> CloudWatch {
        CloudWatch { scale, ..self }
    }

    const fn only(self, label: &'static str, value: &'static str) -> CloudWatch {
        CloudWatch { only: Some((label, value)), ..self }
    }
}

/// How a metric behaves.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// A distribution over [`SECONDS`].
    Histogram,
}

/// Bucket bounds of all histograms, s: a batch takes milliseconds, a held pipeline minutes.
pub const SECONDS: &[f64] =
    &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0];

macro_rules! told {
    () => {
        None
    };
    ($cloudwatch:expr) => {
        Some($cloudwatch)
    };
}

macro_rules! metrics {
    ($($(#[doc = $help:literal])+ $constant:ident = $kind:ident $name:literal [$($label:literal),*] $unit:literal $(=> $cloudwatch:expr)?;)*) => {
        $(
            $(#[doc = $help])+
            pub const $constant: Metric = Metric {
                name: $name,
                unit: $unit,
                help: concat!($($help),+).trim_ascii_start(),
                kind: Kind::$kind,
                labels: &[$($label),*],
                cloudwatch: told!($($cloudwatch)?),
            };
        )*
        /// All metrics there are.
        pub const TABLE: &[&Metric] = &[$(&$constant),*];
    };
}

metrics! {
    /// Windows of hosts that the trained models scored, by the variant that spoke and whether it stood in for another.
    MODEL_WINDOWS = Counter "flowvigil_model_windows_total" ["variant", "degraded"] "windows";
    /// What the breaker of a model endpoint does: 0 closed, 1 open, 2 half-open.
    ENDPOINT_BREAKER = Gauge "flowvigil_model_endpoint_breaker_state" ["endpoint"] "state" => CloudWatch::service("BreakerState", "None");
    /// Calls to a model endpoint since the start.
    ENDPOINT_CALLS = Gauge "flowvigil_model_endpoint_calls" ["endpoint"] "calls";
    /// Of these, failed or too late.
    ENDPOINT_FAILURES = Gauge "flowvigil_model_endpoint_failures" ["endpoint"] "calls";
    /// Transitions of the breaker since the start, by the state it came to.
    ENDPOINT_TRANSITIONS = Gauge "flowvigil_model_endpoint_breaker_transitions" ["endpoint", "to"] "transitions";
    /// Connections to the API that are open.
    API_CONNECTIONS = Gauge "flowvigil_api_connections" [] "connections";
    /// Connections that were ended by us: what the client did not send or take in time, or that it gave way or found no room.
    API_CONNECTIONS_ENDED = Counter "flowvigil_api_connections_ended_total" ["reason"] "connections";
    /// Incidents that a suppression has hidden since the start, by its name.
    SUPPRESSED = Gauge "flowvigil_suppressed_incidents" ["suppression"] "incidents";
    /// Windows of hosts that alerted.
    MODEL_ALERTS = Counter "flowvigil_model_alerts_total" [] "windows";
    /// 1 while it is recommended to train the model again; `/v1/models` says why.
    MODEL_RETRAIN = Gauge "flowvigil_model_retrain_recommended" [] "1";
    /// Features whose distribution has moved since the training.
    MODEL_FEATURES_MOVED = Gauge "flowvigil_model_features_moved" [] "features";
    /// Population stability index of a feature against the training, in thousandths.
    MODEL_FEATURE_SHIFT = Gauge "flowvigil_model_feature_shift_thousandths" ["feature"] "1/1000";
    /// Age of the model in use: since the end of its training data.
    MODEL_AGE = Gauge "flowvigil_model_age_seconds" [] "s";
    /// What a canary's verdict is: 0 hold, 1 promote, 2 roll back.
    MODEL_CANARY = Gauge "flowvigil_model_canary_verdict" [] "verdict";
    /// Flow records observed.
    RECORDS = Counter "flowvigil_records_total" ["shard"] "records" => CloudWatch::processing("Records", "Count");
    /// Lines or payloads that could not be read, by the field to blame; `payload` where none is, `more` beyond the samples of a batch.
    REFUSED = Counter "flowvigil_refused_total" ["shard", "field"] "lines" => CloudWatch::processing("Refused", "Count");
    /// Records that came after their window had closed, and were left out; a larger `statistical.lateness` waits for them.
    LATE = Counter "flowvigil_late_records_total" ["shard"] "records";
    /// Records that are dated far ahead of all others, and were left out.
    FUTURE = Counter "flowvigil_future_records_total" ["shard"] "records";
    /// Records that said again what another interface had said.
    DUPLICATES = Counter "flowvigil_duplicate_records_total" ["shard"] "records";
    /// Records that were there already, word for word, and were counted once.
    REPEATED = Counter "flowvigil_repeated_records_total" ["shard"] "records";
    /// Conversations of which no end is ours.
    STRANGERS = Counter "flowvigil_stranger_conversations_total" ["shard"] "conversations";
    /// Windows closed.
    WINDOWS = Counter "flowvigil_windows_total" ["shard"] "windows";
    /// Entries evicted from full tables.
    EVICTIONS = Counter "flowvigil_evictions_total" ["shard", "table"] "entries" => CloudWatch::processing("Evictions", "Count");
    /// Seconds for which the log of an interface says nothing: no data, or skipped by the exporter.
    BLIND = Counter "flowvigil_blind_seconds_total" ["shard", "kind"] "s";
    /// What detectors said of closed windows.
    FINDINGS = Counter "flowvigil_findings_total" ["threat"] "findings";
    /// Incidents that validation refused to tell.
    SILENCES = Counter "flowvigil_silences_total" ["stage"] "incidents";
    /// Anomalies announced.
    ANOMALIES = Counter "flowvigil_anomalies_total" ["threat", "announcement"] "anomalies"
        => CloudWatch::service("AnomaliesDetected", "Count").only("announcement", "detected");
    /// From the arrival of a batch to the recording and announcing of all that came of it.
    PROCESSING = Histogram "flowvigil_processing_seconds" ["shard"] "s"
        => CloudWatch::service("ProcessingLatency", "Milliseconds").times(1e3);
    /// Messages waiting in a channel.
    QUEUE_DEPTH = Gauge "flowvigil_queue_depth" ["queue"] "messages" => CloudWatch::processing("QueueDepth", "Count");
    /// Wall clock less the newest event time: how far behind the traffic we are.
    LAG = Gauge "flowvigil_lag_seconds" ["shard"] "s" => CloudWatch::processing("Lag", "Seconds");
    /// Snapshots by what became of them: saved, failed, restored, unreadable.
    SNAPSHOTS = Counter "flowvigil_snapshots_total" ["outcome"] "snapshots";
    /// Size of the last snapshot before compression.
    SNAPSHOT_BYTES = Gauge "flowvigil_snapshot_bytes" ["name"] "bytes";
    /// Shards that failed and were started again from their checkpoint.
    SHARD_RESTARTS = Counter "flowvigil_shard_restarts_total" ["shard"] "restarts";
    /// Attempts to record or announce that failed and were repeated.
    PUBLISH_RETRIES = Counter "flowvigil_publish_retries_total" ["step"] "attempts";
    /// 1 while a part is away and something lesser stands in for it.
    DEGRADED = Gauge "flowvigil_degraded" ["part"] "1";
    /// For how long a part was away.
    DEGRADED_SECONDS = Counter "flowvigil_degraded_seconds_total" ["part"] "s" => CloudWatch::service("Degraded", "Seconds");
    /// Of the anomalies of the last 30 days on which an analyst has spoken, the share that was called false.
    FALSE_POSITIVE_RATE = Gauge "flowvigil_false_positive_ratio" [] "ratio" => CloudWatch::service("FalsePositiveRate", "None");
    /// Attempts of calls to AWS, by what they came to: done, throttled, refused, failed, silent.
    AWS_CALLS = Counter "flowvigil_aws_calls_total" ["service", "outcome"] "attempts";
    /// Of these, repetitions by the SDK.
    AWS_REPEATED = Counter "flowvigil_aws_repeated_calls_total" ["service"] "attempts" => CloudWatch::processing("AwsRetries", "Count");
    /// Of these, throttled.
    AWS_THROTTLED = Counter "flowvigil_aws_throttled_calls_total" ["service"] "attempts" => CloudWatch::processing("AwsThrottles", "Count");
    /// Dead letters, by kind (announcement, refusal) and what became of them: put, failed, announced.
    DEAD_LETTERS = Counter "flowvigil_dead_letters_total" ["kind", "outcome"] "letters" => CloudWatch::service("DeadLetters", "Count").only("outcome", "put");
    /// Traces that are sampled, by what became of them: sent, failed, dropped.
    TRACES = Counter "flowvigil_traces_total" ["outcome"] "traces";
    /// Requests answered.
    REQUESTS = Counter "flowvigil_http_requests_total" ["route", "status"] "requests";
    /// How long answers took.
    REQUEST_SECONDS = Histogram "flowvigil_http_request_seconds" ["route"] "s";
}

/// All metrics of the process, counting.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    counters: HashMap<&'static str, IntCounterVec>,
    gauges: HashMap<&'static str, GaugeVec>,
    histograms: HashMap<&'static str, HistogramVec>,
}

impl Default for Metrics {
    fn default() -> Metrics {
        Metrics::new()
    }
}

impl Metrics {
    /// All at zero.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let (mut counters, mut gauges, mut histograms) = (HashMap::new(), HashMap::new(), HashMap::new());
        let valid = "the table holds valid, distinct names; a test makes them all";
        for metric in TABLE {
            match metric.kind {
                Kind::Counter => {
                    let made = IntCounterVec::new(Opts::new(metric.name, metric.help), metric.labels).expect(valid);
                    registry.register(Box::new(made.clone())).expect(valid);
                    counters.insert(metric.name, made);
                }
                Kind::Gauge => {
                    let made = GaugeVec::new(Opts::new(metric.name, metric.help), metric.labels).expect(valid);
                    registry.register(Box::new(made.clone())).expect(valid);
                    gauges.insert(metric.name, made);
                }
                Kind::Histogram => {
                    let options = HistogramOpts::new(metric.name, metric.help).buckets(SECONDS.to_vec());
                    let made = HistogramVec::new(options, metric.labels).expect(valid);
                    registry.register(Box::new(made.clone())).expect(valid);
                    histograms.insert(metric.name, made);
                }
            }
        }
        Metrics { registry, counters, gauges, histograms }
    }

    /// Adds to a counter.
    pub fn add(&self, metric: &Metric, labels: &[&str], amount: u64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{} has other labels", metric.name);
        if let Some(counter) = self.counters.get(metric.name)
            && let Ok(counter) = counter.get_metric_with_label_values(labels)
        {
            counter.inc_by(amount);
        }
    }

    /// Sets a gauge.
    pub fn set(&self, metric: &Metric, labels: &[&str], value: i64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{} has other labels", metric.name);
        if let Some(gauge) = self.gauges.get(metric.name)
            && let Ok(gauge) = gauge.get_metric_with_label_values(labels)
        {
            gauge.set(value as f64);
        }
    }

    /// Sets a gauge to a share.
    pub fn set_share(&self, metric: &Metric, labels: &[&str], share: f64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{} has other labels", metric.name);
        if let Some(gauge) = self.gauges.get(metric.name)
            && let Ok(gauge) = gauge.get_metric_with_label_values(labels)
        {
            gauge.set(share);
        }
    }

    /// Adds to a distribution.
    pub fn observe(&self, metric: &Metric, labels: &[&str], seconds: f64) {
        debug_assert_eq!(metric.labels.len(), labels.len(), "{} has other labels", metric.name);
        if let Some(histogram) = self.histograms.get(metric.name)
            && let Ok(histogram) = histogram.get_metric_with_label_values(labels)
        {
            histogram.observe(seconds);
        }
    }

    /// Forgets what was said of a shard that is no longer ours.
    pub fn forget(&self, metric: &Metric, labels: &[&str]) {
        if let Some(gauge) = self.gauges.get(metric.name) {
            // The only error is that there was nothing to forget.
            let _ = gauge.remove_label_values(labels);
        }
    }

    /// The Prometheus text exposition format, version 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("writing into memory has nothing to fail on");
        String::from_utf8(text).expect("names and labels are UTF-8")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_metric_of_the_table_can_be_counted_and_rendered() {
        let metrics = Metrics::new();
        for metric in TABLE {
            let labels = vec!["x"; metric.labels.len()];
            match metric.kind {
                Kind::Counter => metrics.add(metric, &labels, 3),
                Kind::Gauge => metrics.set(metric, &labels, -3),
                Kind::Histogram => metrics.observe(metric, &labels, 0.3),
            }
        }
        let text = metrics.render();
        for metric in TABLE {
            assert!(text.contains(&format!("# HELP {} {}", metric.name, metric.help)), "{} is not shown", metric.name);
        }
        assert!(text.contains("flowvigil_records_total{shard=\"x\"} 3"), "{text}");
    }
}
