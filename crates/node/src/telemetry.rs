//! The daemon's telemetry: log lines, for people or as JSON, and spans for a collector.

mod spans;

use std::str::FromStr;

use rekindle_settings::LogFormat;
use tracing::Dispatch;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt::{self as lines, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::{EnvFilter, Layer, reload};

use spans::SpanExport;

/// Options of telemetry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TelemetryOptions {
    /// The least level that is logged, or several by module: `info`, `warn,rekindle_engine::life=debug`.
    pub log_level: String,
    /// Form of log lines.
    pub log_format: LogFormat,
    /// Address that spans are sent to by OTLP over HTTP: `http://127.0.0.1:4318`. None are made where it is not said.
    pub otlp_endpoint: Option<String>,
    /// The name under which they are sent.
    pub service_name: String,
}

/// Reason that telemetry cannot be set up, or changed.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The level is none.
    #[error(
        "log level {level:?}: {source}; use error, warn, info, debug or trace, or several as in warn,rekindle_engine=debug"
    )]
    Level {
        /// The level given.
        level: String,
        /// The fault in it.
        source: ParseError,
    },
    /// The endpoint cannot be used.
    #[error(
        "OTLP endpoint {endpoint:?}: {reason}; use the address of a collector on this node, such as http://127.0.0.1:4318"
    )]
    Endpoint {
        /// The address given.
        endpoint: String,
        /// The fault in it.
        reason: String,
    },
    /// The thread that sends spans could not be started.
    #[error("starting to send spans: {0}")]
    Start(#[from] std::io::Error),
    /// Another part of the program is told already.
    #[error("logging was set up before")]
    Again,
    /// The logger to be changed has ended.
    #[error("changing what is logged: {0}")]
    Ended(#[from] reload::Error),
}

/// A running program's telling of itself. Dropped, it sends the spans that are left, for a bounded time.
#[derive(Debug)]
#[must_use = "dropped, it sends no more spans"]
pub struct Telemetry {
    human: FilterHandle,
    json: FilterHandle,
    _spans: Option<SpanExport>,
}

type FilterHandle = reload::Handle<EnvFilter, Registry>;
type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

impl Telemetry {
    /// Logs to stderr from now on, and sends spans if asked to. Once in a program.
    pub fn start(options: &TelemetryOptions) -> Result<Self, TelemetryError> {
        let (telemetry, dispatch) = Self::prepare(options, std::io::stderr)?;
        tracing::dispatcher::set_global_default(dispatch).map_err(|_| TelemetryError::Again)?;
        Ok(telemetry)
    }

    /// The same with another writer, for the holder of the dispatch.
    pub fn prepare<W>(options: &TelemetryOptions, writer: W) -> Result<(Self, Dispatch), TelemetryError>
    where
        W: for<'writer> MakeWriter<'writer> + Clone + Send + Sync + 'static,
    {
        // Both formats stand ready and one is silent: a span keeps its fields in the form of the layer that saw it.
        let (human_level, json_level) = levels(&options.log_level, options.log_format)?;
        let (human_filter, human) = reload::Layer::new(human_level);
        let (json_filter, json) = reload::Layer::new(json_level);
        let mut layers: Vec<BoxedLayer> = vec![
            lines::layer().with_writer(writer.clone()).with_filter(human_filter).boxed(),
            lines::layer().json().with_writer(writer).with_filter(json_filter).boxed(),
        ];
        let start = |endpoint| SpanExport::start(endpoint, &options.service_name);
        let spans = options.otlp_endpoint.as_deref().map(start).transpose()?;
        layers.extend(spans.as_ref().map(SpanExport::layer));
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layers));
        Ok((Self { human, json, _spans: spans }, dispatch))
    }

    /// Logs by another level, in another format, from now on.
    pub fn change_logging(&self, level: &str, format: LogFormat) -> Result<(), TelemetryError> {
        let (human, json) = levels(level, format)?;
        self.human.reload(human)?;
        self.json.reload(json)?;
        Ok(())
    }
}

/// Filters of the human and of the JSON lines.
fn levels(level: &str, format: LogFormat) -> Result<(EnvFilter, EnvFilter), TelemetryError> {
    let wanted = EnvFilter::from_str(level)
        .map_err(|source| TelemetryError::Level { level: level.to_owned(), source })?;
    let silent = EnvFilter::new("off");
    Ok(match format {
        LogFormat::Human => (wanted, silent),
        LogFormat::Json => (silent, wanted),
    })
}

#[cfg(test)]
mod tests;
