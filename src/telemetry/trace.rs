//! Traces: one per batch of records through all tiers, and one per request that the API admits.
//!
//! Spans are those of `tracing`; the layer of `tracing-opentelemetry` hands them to the OpenTelemetry SDK, which sends them to
//! a collector as OTLP over HTTP ([`otlp`]). Where no collector is configured the layer is absent, and a span costs a load of
//! its callsite's interest.
//!
//! A batch crosses threads and channels, so its root span travels with it as a value ([`BatchTrace`]). Whether a trace is
//! sent is decided when its root ends (`sampling`): a share of all, every batch of which an anomaly was announced, and
//! every request whose caller has sampled it.
//!
//! Context comes in with requests as `traceparent` (W3C Trace Context) or `x-amzn-trace-id` (X-Ray), and goes out with
//! announcements as `AWSTraceHeader`. Trace ids are such that X-Ray takes them: the first four bytes are the second in
//! which the trace began.

use std::time::{Duration, Instant};

use opentelemetry::propagation::composite::TextMapCompositePropagator;
use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::TraceContextExt;
use opentelemetry_aws::trace::XrayPropagator;
use opentelemetry_aws::trace::xray_propagator::span_context_to_string;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::field::Empty;
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::registry::LookupSpan;

pub mod otlp;
mod sampling;

/// The target of every span that is sent. No other span is, such as those of the AWS SDKs.
const TARGET: &str = "flowvigil::trace";

/// The attribute of a batch's root span that says how many anomalies were announced.
const ANNOUNCEMENTS: &str = "announcements";

/// What hands spans over to be sent.
pub(super) fn layer<S>(traces: &otlp::Traces) -> impl Layer<S> + use<S>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    tracing_opentelemetry::layer()
        .with_tracer(traces.tracer())
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_context_activation(false)
        .with_filter(Targets::new().with_target(TARGET, LevelFilter::DEBUG))
}

/// When a batch arrived, and its root span.
#[derive(Debug)]
pub struct BatchTrace {
    arrived: Instant,
    root: Span,
}

impl BatchTrace {
    /// A batch that arrives now.
    pub fn begin(shard: &str, records: usize) -> BatchTrace {
        let records = records as i64;
        // At this level the log shows no spans unless it is asked for.
        let root = tracing::debug_span!(
            target: TARGET, parent: None, "batch", otel.kind = "consumer", shard, records, announcements = Empty
        );
        BatchTrace { arrived: Instant::now(), root }
    }

    /// A batch without records, which arrives now and has no trace.
    pub fn untraced() -> BatchTrace {
        BatchTrace { arrived: Instant::now(), root: Span::none() }
    }

    /// The time since it arrived.
    pub fn elapsed(&self) -> Duration {
        self.arrived.elapsed()
    }

    /// A span for the work of one tier on this batch. Its attributes `busy_ns` and `idle_ns` tell how long it was entered.
    pub fn stage(&self, name: &'static str) -> Span {
        if self.root.is_disabled() {
            return Span::none();
        }
        tracing::debug_span!(target: TARGET, parent: &self.root, "stage", otel.name = name)
    }

    /// The batch has left the last tier, and so many anomalies were announced.
    pub fn end(self, announcements: usize) {
        self.root.record(ANNOUNCEMENTS, announcements as i64);
    }
}

/// The current span as the header by which AWS passes a trace on, if it is traced.
pub fn header() -> Option<String> {
    let context = Span::current().context();
    span_context_to_string(context.span().span_context())
}

/// A span for a request, a child of the caller's if the headers name one.
pub fn request(method: &str, route: &str, request_id: &str, headers: &dyn Extractor) -> Span {
    let span = tracing::debug_span!(
        target: TARGET,
        parent: None,
        "request",
        otel.name = format!("{method} {route}"),
        otel.kind = "server",
        http.request.method = method,
        http.route = route,
        http.response.status_code = Empty,
        request_id,
    );
    if !span.is_disabled() {
        // Of two headers the W3C's counts: load balancers add their own to what the caller sent.
        let propagator = TextMapCompositePropagator::new(vec![
            Box::new(XrayPropagator::new()),
            Box::new(TraceContextPropagator::new()),
        ]);
        // The only errors are that there is no layer, or that the span has begun.
        let _ = span.set_parent(propagator.extract(headers));
    }
    span
}

/// The answer to the request of a span.
pub fn answered(span: &Span, status: u16) {
    span.record("http.response.status_code", i64::from(status));
    if status >= 500 {
        span.set_status(opentelemetry::trace::Status::error(""));
    }
}
