//! Why the broker refused a call.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use tonic::Status;
use tonic_types::StatusExt;

use crate::ERROR_DOMAIN;
use crate::proto::AuthorizeResponse;

/// A refusal of the broker, read from the details of a [`Status`].
#[derive(Debug, Clone, PartialEq)]
pub struct Refusal {
    /// Why.
    pub reason: Reason,
    /// A sentence for people.
    pub message: String,
    /// Every dynamic value of the message.
    pub metadata: HashMap<String, String>,
    /// When to try again, where that may help.
    pub retry_after: Option<Duration>,
    /// The authorization that GetToken started for the user.
    pub authorization: Option<AuthorizeResponse>,
}

macro_rules! reasons {
    ($($variant:ident = $text:literal,)*) => {
        /// The reasons of the contract.
        #[derive(Debug, Clone, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[expect(missing_docs, reason = "the contract says when each arises")]
        pub enum Reason {
            $($variant,)*
            /// One that this version of the client does not know.
            Other(String),
        }

        impl Reason {
            fn parse(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }

            /// The reason as the contract writes it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other(other) => other,
                }
            }
        }
    };
}

reasons! {
    InvalidArgument = "INVALID_ARGUMENT",
    FlowNotSupported = "FLOW_NOT_SUPPORTED",
    Unauthenticated = "UNAUTHENTICATED",
    ProviderNotAllowed = "PROVIDER_NOT_ALLOWED",
    ScopeNotAllowed = "SCOPE_NOT_ALLOWED",
    SubjectNotAllowed = "SUBJECT_NOT_ALLOWED",
    MethodNotAllowed = "METHOD_NOT_ALLOWED",
    AuthorizationRequired = "AUTHORIZATION_REQUIRED",
    ReauthorizationRequired = "REAUTHORIZATION_REQUIRED",
    ScopeMissing = "SCOPE_MISSING",
    NotRefreshable = "NOT_REFRESHABLE",
    ProviderMisconfigured = "PROVIDER_MISCONFIGURED",
    ProviderError = "PROVIDER_ERROR",
    AuthorizationNotAwaitingConfirmation = "AUTHORIZATION_NOT_AWAITING_CONFIRMATION",
    ConfirmationMismatch = "CONFIRMATION_MISMATCH",
    AuthorizationNotFound = "AUTHORIZATION_NOT_FOUND",
    RateLimited = "RATE_LIMITED",
    ProviderUnavailable = "PROVIDER_UNAVAILABLE",
    StorageUnavailable = "STORAGE_UNAVAILABLE",
    Overloaded = "OVERLOADED",
    Internal = "INTERNAL",
}

impl Refusal {
    /// Reads a status. Returns `None` if it is not the broker's own, such as a lost connection.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == ERROR_DOMAIN)?;
        Some(Self {
            reason: Reason::parse(&info.reason),
            message: status.message().to_owned(),
            metadata: info.metadata.clone(),
            retry_after: details.retry_info().and_then(|retry| retry.retry_delay),
            authorization: authorization_in(status),
        })
    }
}

fn authorization_in(status: &Status) -> Option<AuthorizeResponse> {
    let rich = tonic_types::pb::Status::decode(status.details()).ok()?;
    rich.details
        .iter()
        .find(|detail| detail.type_url.ends_with("/tokenbroker.v1.AuthorizeResponse"))
        .and_then(|detail| AuthorizeResponse::decode(detail.value.as_slice()).ok())
}
