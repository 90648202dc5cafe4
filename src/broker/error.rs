//! Errors of the use cases: the reasons of the contract's error table.

use std::time::Duration;

use super::authorize::Started;
use crate::domain::authorization::State;
use crate::domain::grant::Subject;
use crate::domain::name::Name;
use crate::provider::{OAuthError, ProviderError};
use crate::storage::StorageError;

/// The time after which a caller may try again, if no better one is known.
pub const RETRY: Duration = Duration::from_secs(1);

/// Why a use case gave no result. Internal detail is logged where the call ends; nothing here is secret.
#[derive(Debug, Clone, thiserror::Error)]
#[expect(missing_docs, reason = "the contract's error table says when each arises")]
pub enum BrokerError {
    #[error("{field}: {problem}")]
    InvalidArgument { field: &'static str, problem: String },
    #[error("the flow {flow} is not supported for {provider}")]
    FlowNotSupported { provider: Name, flow: &'static str },
    #[error("the provider {provider} is not allowed")]
    ProviderNotAllowed { provider: Name },
    #[error("the scopes {scopes:?} are not allowed")]
    ScopeNotAllowed { scopes: Vec<String> },
    #[error("the subject is not allowed")]
    SubjectNotAllowed { subject: Subject },
    #[error("no grant at {provider}")]
    AuthorizationRequired { provider: Name, started: Option<Box<Started>> },
    #[error("the grant at {provider} is dead")]
    ReauthorizationRequired { provider: Name, started: Option<Box<Started>> },
    #[error("the grant at {provider} lacks {missing:?}")]
    ScopeMissing { provider: Name, missing: Vec<String>, started: Option<Box<Started>> },
    #[error("the grant at {provider} has no refresh token")]
    NotRefreshable { provider: Name },
    #[error("{provider} refuses the broker: {}", error.code)]
    ProviderMisconfigured { provider: Name, error: OAuthError },
    #[error("{provider} answered {}", error.code)]
    ProviderError { provider: Name, error: OAuthError },
    #[error("the authorization is {}", state.as_str())]
    NotAwaitingConfirmation { state: State },
    #[error("the confirmation code is wrong")]
    ConfirmationMismatch { attempts_left: u32 },
    #[error("no such authorization")]
    AuthorizationNotFound { id: Option<String> },
    #[error("{provider} is unavailable")]
    ProviderUnavailable { provider: Name, retry_after: Duration },
    #[error("storage is unavailable")]
    StorageUnavailable,
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("draining")]
    Overloaded,
    #[error("internal error")]
    Internal,
}

impl BrokerError {
    /// Converts a provider's error into the contract's error.
    pub(super) fn from_provider(provider: &Name, error: &ProviderError) -> Self {
        let provider = provider.clone();
        match error.code() {
            Some(_) if matches!(error, ProviderError::DeadGrant { .. }) => {
                Self::ReauthorizationRequired { provider, started: None }
            }
            Some(error) if error.is_misconfiguration() => {
                Self::ProviderMisconfigured { provider, error }
            }
            Some(error) => Self::ProviderError { provider, error },
            None => {
                let retry_after = error.retry_after().unwrap_or(RETRY);
                Self::ProviderUnavailable { provider, retry_after }
            }
        }
    }

    /// Adds the authorization that was started for the caller.
    pub(super) fn with_started(mut self, new: Started) -> Self {
        if let Self::AuthorizationRequired { started, .. }
        | Self::ReauthorizationRequired { started, .. }
        | Self::ScopeMissing { started, .. } = &mut self
        {
            *started = Some(Box::new(new));
        }
        self
    }

    /// Returns `true` if the database cannot be used now, and the same call may succeed later.
    #[must_use]
    pub fn is_storage_unavailable(&self) -> bool {
        match self {
            Self::StorageUnavailable => true,
            Self::Storage(error) => error.is_transient(),
            _ => false,
        }
    }

    /// Returns `true` if nothing was tried because the database is known to be away.
    #[must_use]
    pub fn is_known_outage(&self) -> bool {
        matches!(self, Self::Storage(error) if error.is_known_outage())
    }

    /// Logs the cause of a storage failure, which callers do not see. The database watch logs broken connections.
    pub fn log_storage(&self) {
        match self {
            Self::Storage(error) if error.is_connection_failure() => {
                tracing::debug!(%error, "storage failed");
            }
            Self::Storage(error) => tracing::error!(%error, "storage failed"),
            _ => {}
        }
    }

    /// Returns `true` if the user has to authorize (again).
    #[must_use]
    pub fn needs_authorization(&self) -> bool {
        matches!(
            self,
            Self::AuthorizationRequired { .. }
                | Self::ReauthorizationRequired { .. }
                | Self::ScopeMissing { .. }
        )
    }
}
