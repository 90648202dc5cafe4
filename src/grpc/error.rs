//! Errors of a call.

use std::time::Duration;

use crate::broker::BrokerError;

/// An error of a call.
///
/// Its text is for the log: it names no subject.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum CallError {
    #[error("{0}")]
    Broker(BrokerError),
    #[error("bad fields: {}", fields(.0))]
    Invalid(Vec<Violation>),
    #[error("no credential, or an unknown one")]
    Unauthenticated,
    #[error("the method {method} is not allowed")]
    MethodNotAllowed { method: &'static str },
    #[error("over the bot's rate")]
    RateLimited { retry_after: Duration },
}

impl CallError {
    /// Returns `true` if a caller can cause it as often as it likes, at no cost.
    pub(super) fn may_flood(&self) -> bool {
        matches!(
            self,
            Self::Unauthenticated
                | Self::RateLimited { .. }
                | Self::Broker(BrokerError::Overloaded)
        )
    }

    /// Returns `true` if nothing was tried because the database is known to be away, which is logged once
    /// and not for each call.
    pub(super) fn is_known_outage(&self) -> bool {
        matches!(self, Self::Broker(error) if error.is_known_outage())
    }
}

fn fields(violations: &[Violation]) -> String {
    violations.iter().map(|violation| violation.field).collect::<Vec<_>>().join(", ")
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
