//! Logs with trace ids.
//!
//! Every log line of a call carries the trace id that an error page or an internal error shows, so
//! that an operator finds the one by the other.

use opentelemetry::trace::{TraceContextExt, TracerProvider};
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::{Level, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// Where log lines go.
#[derive(Debug)]
pub enum Output {
    /// Standard error.
    StandardError,
    /// A file, for a program whose terminal is taken.
    File(std::fs::File),
}

/// Begins logging, and giving trace ids.
///
/// # Errors
///
/// Where `filter` is no filter directive, or logging has begun before.
pub fn init(
    filter: &str,
    format: Format,
    output: Output,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let filter = EnvFilter::try_new(filter)?;
    let tracer = SdkTracerProvider::builder().build().tracer("token-broker");
    let writer = match output {
        Output::StandardError => BoxMakeWriter::new(std::io::stderr),
        Output::File(file) => BoxMakeWriter::new(std::sync::Mutex::new(file)),
    };
    // Without colours: they would stand in files, and confuse whoever searches them.
    let lines = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(writer);
    let lines = match format {
        Format::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
        Format::Text => lines.boxed(),
    };
    // Each layer has its own filter: a call has a trace id however little is logged.
    let traced = Targets::new().with_target("token_broker", Level::INFO);
    tracing_subscriber::registry()
        .with(tracing_opentelemetry::layer().with_tracer(tracer).with_filter(traced))
        .with(lines.with_filter(filter))
        .try_init()?;
    Ok(())
}

/// The trace id of the current span: 32 hexadecimal digits, all zero where there is no trace.
#[must_use]
pub fn trace_id() -> String {
    trace_id_of(&Span::current())
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
