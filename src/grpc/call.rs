//! The name, trace and measurement of every call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderMap;
use opentelemetry::trace::Status;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Code;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::domain::bot::Bot;
use crate::telemetry::{self, Caller, Metrics};

/// An RPC, by its names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Method {
    /// As configuration names it.
    pub(super) name: &'static str,
    /// As traces and metrics name it: with its service.
    pub(super) full: &'static str,
    pub(super) is_stream: bool,
    /// In [`METHODS`].
    pub(super) index: usize,
}

macro_rules! method {
    ($index:literal, $name:literal) => {
        method!($index, $name, false)
    };
    ($index:literal, $name:literal, $is_stream:literal) => {
        Method {
            index: $index,
            name: $name,
            full: concat!("tokenbroker.v1.TokenBrokerService/", $name),
            is_stream: $is_stream,
        }
    };
}

/// The methods of the service. The most frequent one comes first.
pub(super) const METHODS: [Method; 11] = [
    method!(0, "GetToken"),
    method!(1, "Refresh"),
    method!(2, "Authorize"),
    method!(3, "GetAuthorization"),
    method!(4, "WatchAuthorization", true),
    method!(5, "ConfirmAuthorization"),
    method!(6, "CancelAuthorization"),
    method!(7, "Revoke"),
    method!(8, "RevokeAll"),
    method!(9, "ListGrants"),
    method!(10, "ListProviders"),
];

impl Method {
    /// Returns the method of a name.
    pub(super) fn named(name: &str) -> Option<Self> {
        METHODS.into_iter().find(|method| method.name == name)
    }
}

/// A call under way. When it is dropped it has ended, and is measured.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) method: Method,
    caller: Caller,
    began: Instant,
    metrics: Metrics,
    code: Code,
    /// The time that the caller waits.
    deadline: Option<Duration>,
    /// Among the calls that may be under way at once.
    place: Option<Arc<OwnedSemaphorePermit>>,
}

impl Call {
    pub(super) fn begin(method: Method, headers: &HeaderMap, metrics: &Metrics) -> Self {
        Self {
            method,
            caller: Caller::of(headers),
            began: Instant::now(),
            metrics: metrics.clone(),
            // Unless something else is heard of it, its caller has gone.
            code: Code::Cancelled,
            deadline: deadline(headers),
            place: None,
        }
    }

    /// Keeps a place for as long as the call lasts.
    pub(super) fn hold(&mut self, place: OwnedSemaphorePermit) {
        self.place = Some(Arc::new(place));
    }

    /// The place, for work that may outlast its caller.
    pub(super) fn place(&self) -> Option<Arc<OwnedSemaphorePermit>> {
        self.place.clone()
    }

    /// Nothing of what a stranger says of traces is believed.
    pub(super) fn distrust(&mut self) {
        self.caller = Caller::stranger();
    }

    /// Returns `true` if the caller records its trace.
    pub(super) fn is_recorded(&self) -> bool {
        self.caller.is_sampled()
    }

    /// The call's span, with its bot if that is known.
    pub(super) fn span(&self, bot: Option<&Bot>) -> Span {
        let span = tracing::info_span!(
            "rpc",
            otel.name = self.method.full,
            otel.kind = "server",
            rpc.method = self.method.full,
            bot = bot.map(|bot| bot.name.as_str()),
            trace_id = tracing::field::Empty,
        );
        self.caller.adopt(&span);
        telemetry::record_trace_id(&span);
        span.set_attribute("rpc.system.name", "grpc");
        span
    }

    /// Takes note of how the call ends.
    pub(super) fn ends(&mut self, code: Code, span: &Span) {
        self.code = code;
        span.set_attribute("rpc.response.status_code", name(code));
        if is_fault(code) {
            span.set_attribute("error.type", name(code));
            span.set_status(Status::error(name(code)));
        }
    }

    /// A stream has come to an error.
    pub(super) fn stream_ends(&mut self, code: Code) {
        self.code = code;
    }

    /// A stream was seen to its end.
    pub(super) fn stream_seen(&mut self) {
        if self.code == Code::Cancelled {
            self.code = Code::Ok;
        }
    }

    /// A stream has begun: unless its end is seen, its caller has gone before it.
    pub(super) fn streams(&mut self) {
        self.code = Code::Cancelled;
    }

    /// The call was answered without a span.
    pub(super) fn answered(mut self) {
        self.code = Code::Ok;
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let took = self.began.elapsed();
        let late = self.deadline.is_some_and(|deadline| took >= deadline);
        let code =
            if self.code == Code::Cancelled && late { Code::DeadlineExceeded } else { self.code };
        self.metrics.call(self.method.full, name(code), took);
    }
}

/// Reads `grpc-timeout`: at most eight digits and a unit.
fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
    match unit {
        "H" => Some(Duration::from_secs(number * 60 * 60)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Returns `true` if the server is at fault, as the conventions of OpenTelemetry for RPC see it.
fn is_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// A code by its name in the gRPC specification.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("grpc-timeout", text.parse().expect("a value"));
            deadline(&headers)
        };
        assert_eq!(of("5S"), Some(Duration::from_secs(5)));
        assert_eq!(of("1500m"), Some(Duration::from_millis(1500)));
        assert_eq!(of("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for not in ["", "S", "5", "5s", "-5S", "123456789S", "5 S"] {
            assert_eq!(of(not), None, "{not:?}");
        }
    }
}
