//! Sending traces to a collector as OTLP over HTTP, JSON encoding.
//!
//! The SDK's batch processor has a thread of its own; requests run on the service's runtime, over the HTTP client and the TLS
//! that the AWS SDKs use. A collector that is away costs the traces and nothing else.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jiff::SignedDuration;
use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_aws::detector::EcsResourceDetector;
use opentelemetry_aws::trace::XrayIdGenerator;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracer, SdkTracerProvider, SpanData, SpanExporter,
};
use serde::Deserialize;
use tokio::runtime::Handle;

use super::sampling::{TailSampler, WAITING_MAX, is_local_root};
use crate::telemetry::{Metrics, TRACES};
use crate::wait::positive;

/// Settings `[telemetry.otlp]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Where the collector takes OTLP over HTTP; `/v1/traces` is added.
    pub endpoint: String,
    /// The share of traces that are sent, 0 to 1; batches of which an anomaly was announced are always sent.
    pub sample: f64,
    /// The `service.name` of the traces.
    pub service: String,
    /// Deadline of one request.
    pub timeout: SignedDuration,
}

/// Why no traces can be sent.
#[derive(Debug, thiserror::Error)]
pub enum OtlpError {
    /// The endpoint is no URL.
    #[error("telemetry.otlp.endpoint `{endpoint}` is no URL such as http://127.0.0.1:4318: {cause}")]
    Endpoint {
        /// As it stands in the settings.
        endpoint: String,
        /// What is wrong with it.
        cause: opentelemetry_otlp::ExporterBuildError,
    },
    /// The endpoint is asked over TLS, and there are no certificates to trust.
    #[error("read the certificates that this system trusts, for telemetry.otlp.endpoint: {0}")]
    Certificates(#[from] std::io::Error),
}

/// How long spans are gathered for a request.
const GATHER: Duration = Duration::from_millis(500);

/// How long a service that stops may take to send what is left; ECS may kill it soon after.
const FINISH_MAX: Duration = Duration::from_secs(2);

/// Spans of one request at most.
const TOGETHER: usize = 512;

/// The way of spans to a collector.
#[derive(Debug)]
pub struct Traces {
    provider: SdkTracerProvider,
    timeout: Duration,
}

impl Traces {
    /// Sends traces to a collector. On ECS the agent is asked what this task is, which takes two seconds at most.
    pub async fn start(settings: &Settings, metrics: &Arc<Metrics>) -> Result<Traces, OtlpError> {
        let timeout = positive(settings.timeout);
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_http()
            .with_http_client(OnRuntime { client: client(&settings.endpoint, timeout)?, runtime: Handle::current() })
            .with_protocol(Protocol::HttpJson)
            .with_endpoint(format!("{}/v1/traces", settings.endpoint.trim_end_matches('/')))
            .with_timeout(timeout)
            .build()
            .map_err(|cause| OtlpError::Endpoint { endpoint: settings.endpoint.clone(), cause })?;
        let waiting = Arc::new(AtomicUsize::new(0));
        let counted = Counted { exporter, waiting: waiting.clone(), metrics: Arc::downgrade(metrics) };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING_MAX)
            .with_max_export_batch_size(TOGETHER)
            .with_scheduled_delay(GATHER)
            .build();
        let batching = BatchSpanProcessor::builder(counted).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_id_generator(XrayIdGenerator::default())
            .with_resource(resource(settings.service.clone()).await)
            .with_span_processor(TailSampler::new(batching, settings.sample, waiting, Arc::downgrade(metrics)))
            .build();
        Ok(Traces { provider, timeout })
    }

    /// What makes spans.
    pub(in crate::telemetry) fn tracer(&self) -> SdkTracer {
        let scope = opentelemetry::InstrumentationScope::builder("flowvigil").with_version(env!("CARGO_PKG_VERSION"));
        self.provider.tracer_with_scope(scope.build())
    }

    /// Sends what is left, for as long as one request may take and for two seconds at most.
    pub async fn finish(self) {
        let Traces { provider, timeout } = self;
        // Waiting blocks a thread, and requests need this runtime.
        let ended = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(timeout.min(FINISH_MAX))).await;
        if let Ok(Err(error)) = ended {
            tracing::debug!(%error, "the last traces are not sent");
        }
    }
}

/// Who sends the traces: the service, its version, on ECS its task, and what `OTEL_RESOURCE_ATTRIBUTES` adds.
async fn resource(service: String) -> Resource {
    let build = || {
        Resource::builder()
            .with_detector(Box::new(EcsResourceDetector))
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build()
    };
    // The detector blocks.
    tokio::task::spawn_blocking(build).await.unwrap_or_else(|_| Resource::builder_empty().build())
}

/// Over TLS by ring if the endpoint says so.
pub(crate) fn client(endpoint: &str, timeout: Duration) -> Result<Arc<dyn HttpClient>, std::io::Error> {
    if !endpoint.starts_with("https:") {
        return Ok(Arc::new(HyperClient::with_default_connector(timeout, None)));
    }
    let connector = hyper_rustls::HttpsConnectorBuilder::new()
        .with_provider_and_native_roots(rustls::crypto::ring::default_provider())?
        .https_only()
        .enable_http1()
        .build();
    Ok(Arc::new(HyperClient::new(connector, timeout, None)))
}

/// Runs requests on the service's runtime: the thread of the batch processor has none, and the client needs one.
#[derive(Debug)]
struct OnRuntime {
    client: Arc<dyn HttpClient>,
    runtime: Handle,
}

#[async_trait]
impl HttpClient for OnRuntime {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        self.runtime.spawn(async move { client.send_bytes(request).await }).await?
    }
}

/// Counts what becomes of traces.
#[derive(Debug)]
struct Counted<E> {
    exporter: E,
    /// Spans that were passed on and not exported yet.
    waiting: Arc<AtomicUsize>,
    metrics: Weak<Metrics>,
}

impl<E: SpanExporter> SpanExporter for Counted<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        let traces = batch.iter().filter(|span| is_local_root(span)).count();
        let result = self.exporter.export(batch).await;
        self.waiting.fetch_sub(spans, Ordering::Relaxed);
        let outcome = if result.is_ok() { "sent" } else { "failed" };
        if let Some(metrics) = self.metrics.upgrade() {
            metrics.add(&TRACES, &[outcome], traces as u64);
        }
        if let Err(error) = result {
            tracing::debug!(%error, "the collector takes no traces");
        }
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}
