//! Spans on their way to a collector, by OTLP over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter as SendSpans};
use tokio::runtime::{Handle, Runtime};
use tracing_subscriber::Layer as _;
use tracing_subscriber::filter::{LevelFilter, Targets};

use super::{BoxedLayer, TelemetryError};

/// Longest time for a collector to take a batch, and for the rest at the end.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// Path at which collectors take spans.
const SPANS_PATH: &str = "/v1/traces";

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

/// `http://HOST[:PORT][/PATH]`, with the usual path where none is given.
pub(crate) fn spans_url(endpoint: &str) -> Result<String, String> {
    let Some(rest) = endpoint.strip_prefix("http://") else {
        return Err("it does not begin with http:// (a collector on this node takes TLS from there)".into());
    };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if host.is_empty() {
        return Err("it names no host".into());
    }
    Ok(if path.is_empty() { format!("http://{host}{SPANS_PATH}") } else { endpoint.to_owned() })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_gets_the_usual_path_unless_it_has_one() {
        assert_eq!(spans_url("http://localhost:4318"), Ok("http://localhost:4318/v1/traces".into()));
        assert_eq!(spans_url("http://localhost:4318/"), Ok("http://localhost:4318/v1/traces".into()));
        assert_eq!(spans_url("http://localhost/own"), Ok("http://localhost/own".into()));
    }

    #[test]
    fn an_endpoint_that_cannot_be_used_is_refused() {
        for endpoint in ["https://localhost:4318", "localhost:4318", "http://", "http:///v1/traces", ""] {
            assert!(spans_url(endpoint).is_err(), "{endpoint}");
        }
    }
}
