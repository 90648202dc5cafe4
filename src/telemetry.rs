//! Logs, traces and metrics.
//!
//! Every log line of a call carries the trace id that an error page or an internal error shows, so
//! that an operator finds the one by the other. Traces and metrics go out by OTLP where an endpoint is
//! configured; metrics can always be read from `/metrics`.

mod log;
mod metrics;
mod panics;
mod traces;

use std::io::IsTerminal as _;
use std::sync::LazyLock;
use std::time::Duration;

use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{
    ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig as _, WithTonicConfig as _,
};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tonic::transport::ClientTlsConfig;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use url::Url;

use crate::crypto::random::Random;

pub use metrics::{DatabaseFigures, Metrics, ProcessFigures, TEXT_FORMAT};
pub use panics::log_panics;
pub use traces::{Caller, pass_on};

/// Distinguishes this process from other replicas, unless the environment does.
static INSTANCE: LazyLock<String> = LazyLock::new(|| hex::encode(Random::system().bytes::<16>()));

/// The time that one export may take.
const EXPORT: Duration = Duration::from_secs(3);

/// The format of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object per line.
    Json,
    /// One readable line per event.
    Text,
}

impl Format {
    /// The format that suits standard error: text on a terminal.
    #[must_use]
    pub fn of_standard_error() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// The destination of the log.
#[derive(Debug)]
pub enum Output {
    /// Standard error.
    StandardError,
    /// A file, for a program that uses its terminal otherwise.
    File(std::fs::File),
}

/// Why telemetry could not begin.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SetupError(String);

/// The destination of traces and metrics.
#[derive(Debug, Clone)]
pub struct Otlp {
    /// A collector that speaks OTLP over gRPC.
    pub endpoint: Url,
}

impl Otlp {
    fn spans(&self) -> Result<SpanExporter, SetupError> {
        let exporter = SpanExporter::builder().with_tonic().with_endpoint(self.endpoint.as_str());
        let exporter = exporter.with_timeout(EXPORT);
        let exporter = match self.tls() {
            Some(tls) => exporter.with_tls_config(tls),
            None => exporter,
        };
        exporter.build().map_err(unusable)
    }

    fn metrics(&self) -> Result<MetricExporter, SetupError> {
        let exporter = MetricExporter::builder().with_tonic().with_endpoint(self.endpoint.as_str());
        let exporter = exporter.with_timeout(EXPORT);
        let exporter = match self.tls() {
            Some(tls) => exporter.with_tls_config(tls),
            None => exporter,
        };
        exporter.build().map_err(unusable)
    }

    /// With the system's roots, which a machine may lack where it needs none.
    fn tls(&self) -> Option<ClientTlsConfig> {
        let tls = self.endpoint.scheme() == "https";
        tls.then(|| ClientTlsConfig::new().with_enabled_roots())
    }
}

fn unusable(error: ExporterBuildError) -> SetupError {
    SetupError(error.to_string())
}

/// Running telemetry, which [`Telemetry::end`] ends.
#[derive(Debug)]
pub struct Telemetry {
    /// The metrics.
    pub metrics: Metrics,
    tracers: SdkTracerProvider,
}

impl Telemetry {
    /// Sends what was not sent yet. Takes 11 s at most, where the collector does not answer.
    #[expect(
        clippy::disallowed_methods,
        reason = "ending blocks, and what it waits for runs on the runtime's threads"
    )]
    pub async fn end(self) {
        let ending = tokio::task::spawn_blocking(move || {
            self.metrics.end();
            // The last, for without it log lines have no trace id.
            let ended = self.tracers.shutdown_with_timeout(2 * EXPORT);
            if let Err(error) = ended {
                tracing::warn!(%error, "the last spans were not sent");
            }
        });
        if let Err(crash) = ending.await {
            tracing::error!(error = %crash, "telemetry did not end");
        }
    }
}

/// Begins logging, tracing and counting. To be called inside the runtime.
///
/// # Errors
///
/// [`SetupError`] where `filter` is no filter directive, the endpoint cannot be used, or logging has begun
/// before.
pub fn init(
    filter: &str,
    format: Format,
    output: Output,
    otlp: Option<&Otlp>,
) -> Result<Telemetry, SetupError> {
    let filter = log::filter(filter)?;
    let tracers = SdkTracerProvider::builder().with_resource(resource());
    let tracers = match otlp {
        // Which traces that no caller has begun are recorded: OTEL_TRACES_SAMPLER, or else all.
        Some(otlp) => tracers.with_batch_exporter(otlp.spans()?),
        // Ids for the log, and nothing else.
        None => tracers.with_sampler(Sampler::AlwaysOff),
    };
    let tracers = tracers.build();
    let writer = match output {
        Output::StandardError => BoxMakeWriter::new(std::io::stderr),
        Output::File(file) => BoxMakeWriter::new(std::sync::Mutex::new(file)),
    };
    // Without colours, which would stay in files and hide text from searches.
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let lines = match format {
        Format::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        Format::Text => lines.fmt_fields(log::SpanFields).event_format(log::Text).boxed(),
    };
    // Each layer has its own filter: a call has a trace id however little is logged. Nothing but the
    // service's own: what the exporter does must not be exported.
    let traced = Targets::new().with_target("token_broker", Level::INFO);
    let spans = tracing_opentelemetry::layer()
        .with_tracer(tracers.tracer_with_scope(scope()))
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(traced);
    tracing_subscriber::registry()
        .with(spans)
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| SetupError(error.to_string()))?;
    Ok(Telemetry { metrics: Metrics::new(otlp)?, tracers })
}

/// The attributes of this process. The environment (`OTEL_RESOURCE_ATTRIBUTES`) may add to them.
fn resource() -> Resource {
    Resource::builder()
        .with_service_name("token-broker")
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        // Replicas must not be taken for one.
        .with_attribute(KeyValue::new("service.instance.id", INSTANCE.as_str()))
        .build()
}

fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("token-broker").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// The trace id of the current span: 32 hexadecimal digits, all zero where there is no trace.
#[must_use]
pub fn trace_id() -> String {
    trace_id_of(&Span::current())
}

/// Returns `true` if the current span's trace is recorded.
#[must_use]
pub fn is_recorded() -> bool {
    let span = Span::current();
    !span.is_disabled() && span.context().span().span_context().is_sampled()
}

/// Writes a span's trace id into its field `trace_id`.
pub fn record_trace_id(span: &Span) {
    if !span.is_disabled() {
        span.record("trace_id", trace_id_of(span));
    }
}

fn trace_id_of(span: &Span) -> String {
    span.context().span().span_context().trace_id().to_string()
}
