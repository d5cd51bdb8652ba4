//! Tail sampling: whether a trace is sent is decided when its root has ended, and a trace is sent whole or not at all.
//!
//! | root | decision |
//! | --- | --- |
//! | a batch of which an anomaly was announced | sent |
//! | has a caller elsewhere, who has sampled it | sent |
//! | any other | sent for a share of the trace ids |
//!
//! Spans of callers who have decided against sampling are not recorded at all (`ParentBased` in [`super::otlp`]).

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use opentelemetry::trace::SpanId;
use opentelemetry::{Context, Value};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SamplingDecision, ShouldSample, Span, SpanData, SpanProcessor};

use super::ANNOUNCEMENTS;
use crate::telemetry::{Metrics, TRACES};

/// Spans that wait to be sent; a trace that does not fit is dropped and counted.
pub(super) const WAITING_MAX: usize = 4096;

/// Traces whose root has not ended. Channels between the tiers hold fewer batches than that.
const OPEN_MAX: usize = 4096;

/// Passes whole traces on to the next processor, or drops them.
#[derive(Debug)]
pub(super) struct TailSampler<P> {
    next: P,
    /// The share of traces that are sent without another reason, 0 to 1.
    share: Sampler,
    /// Spans of traces whose root has not ended. Ids begin with the second, so the first is the oldest.
    open: Mutex<BTreeMap<[u8; 16], Vec<SpanData>>>,
    /// Spans that were passed on and not exported yet.
    waiting: Arc<AtomicUsize>,
    metrics: Weak<Metrics>,
}

/// Whether a span is the first of its trace in this process.
pub(super) fn is_local_root(span: &SpanData) -> bool {
    span.parent_span_id == SpanId::INVALID || span.parent_span_is_remote
}

impl<P> TailSampler<P> {
    pub(super) fn new(next: P, share: f64, waiting: Arc<AtomicUsize>, metrics: Weak<Metrics>) -> TailSampler<P> {
        TailSampler { next, share: Sampler::TraceIdRatioBased(share), open: Mutex::default(), waiting, metrics }
    }

    fn samples(&self, root: &SpanData) -> bool {
        let announced = |value: &Value| matches!(value, Value::I64(announcements) if *announcements > 0);
        let by_share = || {
            let id = root.span_context.trace_id();
            let result = self.share.should_sample(None, id, &root.name, &root.span_kind, &[], &[]);
            result.decision == SamplingDecision::RecordAndSample
        };
        root.parent_span_is_remote
            || root.attributes.iter().any(|of| of.key.as_str() == ANNOUNCEMENTS && announced(&of.value))
            || by_share()
    }

    /// Takes a span; answers its trace if it was the root.
    fn complete(&self, span: SpanData) -> Option<Vec<SpanData>> {
        let id = span.span_context.trace_id().to_bytes();
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if is_local_root(&span) {
            let mut spans = open.remove(&id).unwrap_or_default();
            spans.push(span);
            return Some(spans);
        }
        open.entry(id).or_default().push(span);
        if open.len() > OPEN_MAX && open.pop_first().is_some() {
            self.count_dropped();
        }
        None
    }

    fn count_dropped(&self) {
        if let Some(metrics) = self.metrics.upgrade() {
            metrics.add(&TRACES, &["dropped"], 1);
        }
    }
}

impl<P: SpanProcessor> SpanProcessor for TailSampler<P> {
    fn on_start(&self, span: &mut Span, context: &Context) {
        self.next.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let Some(spans) = self.complete(span) else { return };
        if !spans.last().is_some_and(|root| self.samples(root)) {
            return;
        }
        let more = spans.len();
        if self.waiting.fetch_add(more, Ordering::Relaxed) + more > WAITING_MAX {
            self.waiting.fetch_sub(more, Ordering::Relaxed);
            self.count_dropped();
            return;
        }
        spans.into_iter().for_each(|span| self.next.on_end(span));
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{SpanBuilder, TraceContextExt, Tracer, TracerProvider};
    use opentelemetry::trace::{SpanContext, TraceFlags, TraceId, TraceState};
    use opentelemetry::{KeyValue, trace::Span as _};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;

    /// Keeps what it is given.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _span: &mut Span, _context: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    impl Kept {
        fn names(&self) -> Vec<String> {
            self.0.lock().unwrap().iter().map(|span| span.name.to_string()).collect()
        }
    }

    fn sampling(share: f64) -> (SdkTracerProvider, Kept, Arc<Metrics>, Arc<AtomicUsize>) {
        let (kept, metrics, waiting) = (Kept::default(), Arc::new(Metrics::new()), Arc::new(AtomicUsize::new(0)));
        let sampler = TailSampler::new(kept.clone(), share, waiting.clone(), Arc::downgrade(&metrics));
        (SdkTracerProvider::builder().with_span_processor(sampler).build(), kept, metrics, waiting)
    }

    /// A root with one child, which ends before it.
    fn trace(provider: &SdkTracerProvider, parent: &Context, announcements: i64) {
        let tracer = provider.tracer("test");
        let root = tracer.build_with_context(SpanBuilder::from_name("root"), parent);
        let context = parent.with_span(root);
        tracer.build_with_context(SpanBuilder::from_name("child"), &context).end();
        context.span().set_attribute(KeyValue::new(ANNOUNCEMENTS, announcements));
        context.span().end();
    }

    #[test]
    fn a_trace_is_kept_whole_if_something_was_announced_and_dropped_whole_if_not() {
        let (provider, kept, ..) = sampling(0.0);
        trace(&provider, &Context::new(), 0);
        assert!(kept.names().is_empty(), "{:?}", kept.names());
        trace(&provider, &Context::new(), 1);
        assert_eq!(kept.names(), ["child", "root"]);
    }

    #[test]
    fn a_share_of_one_keeps_every_trace() {
        let (provider, kept, ..) = sampling(1.0);
        trace(&provider, &Context::new(), 0);
        assert_eq!(kept.names(), ["child", "root"]);
    }

    #[test]
    fn a_caller_who_has_sampled_is_followed() {
        let (provider, kept, ..) = sampling(0.0);
        let (trace_id, span_id) = (TraceId::from(7), SpanId::from(7));
        let caller = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE);
        trace(&provider, &Context::new().with_remote_span_context(caller), 0);
        assert_eq!(kept.names(), ["child", "root"]);
    }

    #[test]
    fn a_trace_that_does_not_fit_is_dropped_whole_and_counted() {
        let (provider, kept, metrics, waiting) = sampling(1.0);
        waiting.store(WAITING_MAX - 1, Ordering::Relaxed);
        trace(&provider, &Context::new(), 1);
        assert!(kept.names().is_empty(), "{:?}", kept.names());
        assert!(metrics.render().contains("flowvigil_traces_total{outcome=\"dropped\"} 1"), "{}", metrics.render());
        assert_eq!(waiting.load(Ordering::Relaxed), WAITING_MAX - 1);
    }

    #[test]
    fn traces_whose_root_never_ends_are_bounded() {
        let (provider, kept, metrics, _) = sampling(1.0);
        let tracer = provider.tracer("test");
        for id in 1..=OPEN_MAX as u128 + 1 {
            let parent = SpanContext::new(id.into(), 7.into(), TraceFlags::SAMPLED, false, TraceState::NONE);
            let context = Context::new().with_remote_span_context(parent);
            tracer.build_with_context(SpanBuilder::from_name("child"), &context).end();
        }
        assert!(kept.names().is_empty());
        assert!(metrics.render().contains("flowvigil_traces_total{outcome=\"dropped\"} 1"), "{}", metrics.render());
    }
}
