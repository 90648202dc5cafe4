//! Spans: of whom, of what kind, and how they are passed on.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::Context;
use opentelemetry::propagation::{Extractor, Injector, TextMapPropagator};
use opentelemetry::trace::{SpanContext, TraceContextExt, TraceFlags, TraceState};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The header that names a trace (W3C Trace Context).
const TRACEPARENT: &str = "traceparent";

/// The trace of a caller (W3C Trace Context).
#[derive(Debug, Clone, Default)]
pub struct Caller(Context);

impl Caller {
    /// Reads it from a call's metadata. A header that is not of its form is no trace.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        // Most callers have none.
        if !headers.contains_key(TRACEPARENT) {
            return Self::default();
        }
        let propagator = TraceContextPropagator::new();
        Self(propagator.extract_with_context(&Context::new(), &Incoming(headers)))
    }

    /// An unauthenticated caller. It has a trace id for the log and is never recorded, because the number of such
    /// callers has no bound.
    #[must_use]
    pub fn stranger() -> Self {
        let ids = RandomIdGenerator::default();
        let context = SpanContext::new(
            ids.new_trace_id(),
            ids.new_span_id(),
            TraceFlags::NOT_SAMPLED,
            true,
            TraceState::NONE,
        );
        Self(Context::new().with_remote_span_context(context))
    }

    /// Returns `true` if the caller records its trace.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        self.0.span().span_context().is_sampled()
    }

    /// Makes a span part of the caller's trace. To be called before anything else is done with it.
    pub fn adopt(&self, span: &Span) {
        if self.0.span().span_context().is_valid() && !span.is_disabled() {
            // It fails where the span has begun already, and then stands in a trace of its own.
            let _ = span.set_parent(self.0.clone());
        }
    }
}

/// Passes the trace on to a third party, and nothing else that a caller has sent.
pub fn pass_on(span: &Span, headers: &mut HeaderMap) {
    if !span.is_disabled() {
        TraceContextPropagator::new().inject_context(&span.context(), &mut Outgoing(headers));
    }
}

struct Incoming<'a>(&'a HeaderMap);

impl Extractor for Incoming<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct Outgoing<'a>(&'a mut HeaderMap);

impl Injector for Outgoing<'_> {
    fn set(&mut self, key: &str, value: String) {
        // `tracestate` would carry on what systems of the caller have put there.
        if key == TRACEPARENT
            && let Ok(value) = HeaderValue::try_from(value)
        {
            self.0.insert(HeaderName::from_static(TRACEPARENT), value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(traceparent: &str) -> Caller {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::try_from(traceparent).expect("a value"));
        Caller::of(&headers)
    }

    #[test]
    fn a_caller_says_whether_it_records() {
        let ids = "4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7";
        assert!(caller(&format!("00-{ids}-01")).is_sampled());
        for not in [format!("00-{ids}-00"), format!("00-{ids}"), "01".to_owned()] {
            assert!(!caller(&not).is_sampled(), "{not}");
        }
        assert!(!Caller::default().is_sampled());
        assert!(!Caller::stranger().is_sampled());
    }
}
