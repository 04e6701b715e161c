//! Spans on their way to a collector, by OTLP over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as SendSpans};
use rekindle_settings::spans_url;
use tokio::runtime::{Handle, Runtime};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{BoxedLayer, TelemetryError};

/// Longest time for a collector to take a batch, and for the rest at the end.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// A collector that is sent spans in batches. Dropped, it sends what is left.
#[derive(Debug)]
pub(super) struct SpanExport {
    provider: SdkTracerProvider,
    runtime: Option<Runtime>,
}

impl SpanExport {
    /// Begins to send spans to `endpoint`; whether anybody listens there shows later, in the log.
    pub(super) fn start(endpoint: &str, service: &str) -> Result<Self, TelemetryError> {
        let url = spans_url(endpoint)
            .map_err(|reason| TelemetryError::Endpoint { endpoint: endpoint.to_owned(), reason })?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("telemetry")
            .enable_all()
            .build()?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(SEND_LIMIT)
            .build()
            .map_err(|error| TelemetryError::Endpoint {
                endpoint: endpoint.to_owned(),
                reason: error.to_string(),
            })?;
        let sender = Sender {
            exporter: Arc::new(exporter),
            runtime: runtime.handle().clone(),
            failing: AtomicBool::new(false),
        };
        let resource = Resource::builder().with_service_name(service.to_owned()).build();
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(sender).build();
        Ok(Self { provider, runtime: Some(runtime) })
    }

    /// Layer that turns our spans into the collector's, at any log level.
    pub(super) fn layer(&self) -> BoxedLayer {
        let ours = Targets::new().with_target("rekindle", LevelFilter::INFO);
        let tracer = self.provider.tracer("rekindle");
        tracing_opentelemetry::layer().with_tracer(tracer).with_filter(ours).boxed()
    }
}

impl Drop for SpanExport {
    fn drop(&mut self) {
        if let Err(error) = self.provider.shutdown_with_timeout(SEND_LIMIT) {
            tracing::warn!(%error, "the last spans were not sent");
        }
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Sends batches on a runtime of its own: they come from a thread that has none.
#[derive(Debug)]
struct Sender {
    exporter: Arc<SpanExporter>,
    runtime: Handle,
    failing: AtomicBool,
}

impl Sender {
    /// Logs where sending begins to fail and where it works again, not each time.
    fn tell(&self, result: &OTelSdkResult) {
        let failing = result.is_err();
        if self.failing.swap(failing, Ordering::Relaxed) == failing {
            return;
        }
        match result {
            Ok(()) => tracing::info!("spans are sent again"),
            Err(error) => tracing::warn!(%error, "spans cannot be sent, those made meanwhile are lost"),
        }
    }
}

impl SendSpans for Sender {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exporter = Arc::clone(&self.exporter);
        let sent = self.runtime.spawn(async move { exporter.export(batch).await });
        let result = sent.await.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        self.tell(&result);
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        // Set before the first batch, so the exporter has no second owner yet.
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}
