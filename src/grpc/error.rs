//! What the edge itself can answer instead of a result.

use std::time::Duration;

use crate::broker::BrokerError;

/// What a call can answer instead of a result.
#[derive(Debug, Clone)]
pub(super) enum CallError {
    Broker(BrokerError),
    Invalid(Vec<Violation>),
    Unauthenticated,
    MethodNotAllowed { method: &'static str },
    RateLimited { retry_after: Duration },
}

/// One bad field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Violation {
    pub(super) field: &'static str,
    pub(super) problem: String,
}

impl From<BrokerError> for CallError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}
