//! The pages at which a browser arrives.

use std::time::Duration;

use url::Url;

use crate::domain::authorization::State;
use crate::domain::grant::Subject;
use crate::domain::name::Name;
use crate::domain::provider::Provider;
use crate::provider::OAuthError;
use crate::storage::StoredAuthorization;

/// The page for the browser.
#[derive(Debug, Clone)]
pub enum CallbackOutcome {
    /// The page with the code to type into the chat.
    Confirm {
        /// 8 digits.
        code: String,
        /// The bot that asked.
        bot: Name,
        /// For which chat user.
        subject: Subject,
        /// The provider's displayed name.
        provider: String,
        /// The time for which the code works from now.
        ttl: Duration,
        /// The bot's return URL.
        return_url: Option<String>,
    },
    /// All is done.
    Authorized {
        /// The provider's displayed name.
        provider: String,
        /// The bot's return URL.
        return_url: Option<String>,
    },
    /// The user refused.
    Denied {
        /// The provider's displayed name.
        provider: String,
        /// The bot's return URL.
        return_url: Option<String>,
    },
    /// It did not work.
    CallbackError(CallbackError),
}

/// Why it did not work.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CallbackError {
    /// The link names no authorization.
    UnknownLink,
    /// The link is too old, or its authorization has ended.
    EndedLink,
    /// The redirect is not one that this broker began.
    UnknownRedirect,
    /// The redirect comes from another browser than the start, or its cookie is gone.
    OtherBrowser {
        /// The link to start again, where that still works.
        start: Option<Url>,
    },
    /// The redirect was used before.
    UsedRedirect {
        /// The link to start again, where that still works.
        start: Option<Url>,
    },
    /// The redirect lacks something, repeats something, or comes from another issuer.
    WrongRedirect {
        /// The link to start again, where that still works.
        start: Option<Url>,
    },
    /// The provider refused the code; the user may try again.
    RefusedCode {
        /// The link to start again, where that still works.
        start: Option<Url>,
    },
    /// The provider is at fault.
    ProviderFailed {
        /// The provider's displayed name.
        provider: String,
        /// The error code.
        error: String,
    },
    /// The provider cannot be asked now; the same page may work later.
    ProviderAway {
        /// The provider's displayed name.
        provider: String,
    },
    /// The configuration of the provider is wrong.
    Misconfigured {
        /// The provider's displayed name.
        provider: String,
    },
    /// The authorization failed.
    Failed {
        /// A sentence for the user.
        description: String,
    },
    /// The broker is at fault, for now.
    Unavailable,
    /// The database is known to be away.
    Outage,
}

/// The page of an authorization in its final state.
pub(super) fn outcome_of_final(seen: &StoredAuthorization, provider: &Provider) -> CallbackOutcome {
    let name = provider.display_name.clone();
    let return_url = seen.authorization.options.return_url.clone();
    match seen.state() {
        State::Authorized => CallbackOutcome::Authorized { provider: name, return_url },
        State::Denied(_) => CallbackOutcome::Denied { provider: name, return_url },
        State::Failed(failure) if failure.is_own() => {
            CallbackOutcome::CallbackError(CallbackError::Failed {
                description: failure.description,
            })
        }
        // Only the operator can help.
        State::Failed(failure) if OAuthError::new(&failure.error).refuses_client() => {
            CallbackOutcome::CallbackError(CallbackError::Misconfigured { provider: name })
        }
        State::Failed(failure) => CallbackOutcome::CallbackError(CallbackError::ProviderFailed {
            provider: name,
            error: failure.error,
        }),
        _ => CallbackOutcome::CallbackError(CallbackError::EndedLink),
    }
}
