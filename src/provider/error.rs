//! Failures of a provider, classified once for all use cases. See [`super::classify`].

use std::time::Duration;

const REFUSED: &str = "refused: ";

/// The broker's own code for an answer that is none of the protocol.
pub const INVALID_RESPONSE: &str = "invalid_response";

/// The code of a client that is refused (RFC 6749 section 5.2).
pub const INVALID_CLIENT: &str = "invalid_client";

/// The longest error code that is kept, in characters.
const MAX_CODE: usize = 64;

/// The longest description that is logged, in characters.
const MAX_DESCRIPTION: usize = 200;

/// The length of a run of token characters that is not logged, because it may be a token.
const LIKE_A_TOKEN: usize = 20;

/// An error answer of the token endpoint (RFC 6749 section 5.2) or of the redirect (section
/// 4.1.2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuthError {
    /// The error code, reduced to printable characters and 64 bytes.
    pub code: String,
    /// The description for the operator's log. Empty if there is none.
    pub description: String,
}

impl OAuthError {
    /// Takes an error code from outside. The result can be shown and logged.
    #[must_use]
    pub fn new(code: &str) -> Self {
        let code: String = code
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            .take(MAX_CODE)
            .collect();
        let code = if code.is_empty() { "error".to_owned() } else { code };
        Self { code, description: String::new() }
    }

    /// Adds a description from outside. Only printable ASCII is kept, and nothing that could be a token.
    #[must_use]
    pub fn described(mut self, description: &str) -> Self {
        let is_of_tokens = |c: char| c.is_ascii_alphanumeric() || "-._~+/=".contains(c);
        let mut cleaned = String::new();
        for word in description.split(|c: char| !is_of_tokens(c) && !c.is_ascii_punctuation()) {
            let longest = word.split(|c| !is_of_tokens(c)).map(str::len).max().unwrap_or_default();
            let word = if longest >= LIKE_A_TOKEN { "[…]" } else { word };
            if !word.is_empty() {
                cleaned.push_str(if cleaned.is_empty() { "" } else { " " });
                cleaned.push_str(word);
            }
        }
        self.description = cleaned.chars().take(MAX_DESCRIPTION).collect();
        self
    }

    /// Returns `true` if the provider refuses the client's credentials: RFC 6749 section 5.2, GitHub, Slack.
    #[must_use]
    pub fn refuses_client(&self) -> bool {
        matches!(
            self.code.as_str(),
            INVALID_CLIENT
                | "incorrect_client_credentials"
                | "bad_client_secret"
                | "invalid_client_id"
        )
    }

    /// Returns `true` if the operator has to change the client's registration or its configuration.
    #[must_use]
    pub fn is_misconfiguration(&self) -> bool {
        let of_the_registration =
            ["unauthorized_client", "redirect_uri_mismatch", "unsupported_grant_type"];
        self.refuses_client() || of_the_registration.contains(&self.code.as_str())
    }
}

impl std::fmt::Display for OAuthError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.code)?;
        if self.description.is_empty() { Ok(()) } else { write!(f, " ({})", self.description) }
    }
}

/// The result of a request that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No connection, so nothing was sent.
    #[error("cannot connect: {0}")]
    ConnectError(String),
    /// Something was sent and no answer came back: the provider may have acted on it.
    #[error("no answer: {0}")]
    NoResponse(String),
    /// 5xx: the provider may have acted on the request.
    #[error("status {status}{}", .error.as_ref().map(|error| format!(", error {error}")).unwrap_or_default())]
    ServerError {
        /// The HTTP status.
        status: u16,
        /// From `Retry-After`.
        retry_after: Option<Duration>,
        /// The OAuth error in its body. With one, the failure concerns this grant alone.
        error: Option<OAuthError>,
    },
    /// 429: the provider did not act.
    #[error("rate limited")]
    RateLimited {
        /// From `Retry-After`.
        retry_after: Option<Duration>,
    },
    /// The code or the refresh token is dead.
    #[error("error {error}, status {status}")]
    DeadGrant {
        /// The HTTP status.
        status: u16,
        /// The provider's error.
        error: OAuthError,
    },
    /// The broker's own credentials are refused, whichever grant it is about.
    #[error(
        "error {error}, status {status}: the provider refuses the client; check client_id, client_secret and \
         client_auth"
    )]
    RefusesBroker {
        /// The HTTP status.
        status: u16,
        /// The provider's error.
        error: OAuthError,
    },
    /// Another OAuth error.
    #[error("error {error}, status {status}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The provider's error.
        error: OAuthError,
    },
    /// A 401 without an OAuth error: the client is refused (RFC 6749 section 5.2), or, at providers
    /// that mean something else by it, this token alone.
    #[error(
        "status 401 without an error code; check client_secret and client_auth if it concerns every user"
    )]
    Unauthorized,
    /// Another 4xx, a redirect, or something that is no answer of the protocol.
    #[error("unexpected answer: {0}")]
    UnexpectedResponse(String),
}

/// The scope of a failure, by which the circuit breaker decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Concerns {
    /// This grant. The provider is well.
    Grant,
    /// The broker's client, and so every grant.
    Client,
    /// The provider does not answer.
    Provider,
    /// The provider asks for a pause, in general or for this grant.
    Pause(Duration),
}

impl ProviderError {
    /// The scope of the failure. `pause` is assumed if the provider asks for a pause of unknown length.
    #[must_use]
    pub fn concerns(&self, pause: Duration) -> Concerns {
        match self {
            Self::ConnectError(_) | Self::NoResponse(_) => Concerns::Provider,
            Self::ServerError { error: Some(_), .. } => Concerns::Grant,
            Self::ServerError { retry_after: Some(wait), .. } => {
                Concerns::Pause((*wait).max(pause))
            }
            Self::ServerError { .. } => Concerns::Provider,
            Self::RateLimited { retry_after } => Concerns::Pause(retry_after.unwrap_or(pause)),
            Self::RefusesBroker { .. } => Concerns::Client,
            Self::DeadGrant { .. }
            | Self::Refused { .. }
            | Self::Unauthorized
            | Self::UnexpectedResponse(_) => Concerns::Grant,
        }
    }

    /// Returns `true` if the provider may have acted on the request although it has sent no tokens.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::NoResponse(_) | Self::ServerError { .. })
    }

    /// Returns `true` if the same request is worth sending again at once: there was no connection, or it is
    /// unknown whether the provider has acted, and it does not ask for a pause.
    #[must_use]
    pub fn deserves_retry(&self) -> bool {
        match self {
            Self::ConnectError(_) | Self::NoResponse(_) => true,
            Self::ServerError { retry_after, .. } => retry_after.is_none(),
            _ => false,
        }
    }

    /// Returns `true` if the provider has refused this grant. Repeated refusals of one grant while others
    /// are well mean that it is dead under any error code.
    #[must_use]
    pub fn refuses_grant(&self) -> bool {
        match self {
            Self::Refused { .. }
            | Self::Unauthorized
            | Self::UnexpectedResponse(_)
            | Self::ServerError { .. } => true,
            Self::ConnectError(_)
            | Self::NoResponse(_)
            | Self::RateLimited { .. }
            | Self::DeadGrant { .. }
            | Self::RefusesBroker { .. } => false,
        }
    }

    /// The OAuth error, if there is one.
    #[must_use]
    pub fn oauth_error(&self) -> Option<&OAuthError> {
        match self {
            Self::DeadGrant { error, .. }
            | Self::RefusesBroker { error, .. }
            | Self::Refused { error, .. }
            | Self::ServerError { error: Some(error), .. } => Some(error),
            _ => None,
        }
    }

    /// The code that users and bots see. `None` for failures that pass by themselves.
    #[must_use]
    pub fn code(&self) -> Option<OAuthError> {
        match self {
            Self::DeadGrant { error, .. }
            | Self::RefusesBroker { error, .. }
            | Self::Refused { error, .. } => Some(error.clone()),
            Self::Unauthorized => Some(OAuthError::new(INVALID_CLIENT)),
            Self::UnexpectedResponse(_) => Some(OAuthError::new(INVALID_RESPONSE)),
            Self::ConnectError(_)
            | Self::NoResponse(_)
            | Self::ServerError { .. }
            | Self::RateLimited { .. } => None,
        }
    }

    /// The word for this failure in metrics.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::ConnectError(_) => "connect_error",
            Self::NoResponse(_) => "no_response",
            Self::ServerError { .. } => "server_error",
            Self::RateLimited { .. } => "rate_limited",
            Self::DeadGrant { .. } | Self::RefusesBroker { .. } | Self::Refused { .. } => "refused",
            Self::Unauthorized => "unauthorized",
            Self::UnexpectedResponse(_) => "unexpected_response",
        }
    }

    /// The error as it is stored with a grant. One that has to be reported again has its code.
    #[must_use]
    pub fn to_record(&self) -> String {
        match self.code() {
            Some(error) => format!("{REFUSED}{}", error.code),
            None => match self {
                Self::ServerError { status, .. } => format!("status {status}"),
                other => other.to_string(),
            },
        }
    }

    /// Reads what [`ProviderError::to_record`] wrote. Returns `None` for errors that pass by themselves.
    #[must_use]
    pub fn from_record(record: &str) -> Option<Self> {
        let error = OAuthError::new(record.strip_prefix(REFUSED)?);
        Some(match error.code.as_str() {
            INVALID_CLIENT => Self::RefusesBroker { status: 0, error },
            _ => Self::Refused { status: 0, error },
        })
    }

    /// From `Retry-After` (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::ServerError { retry_after, .. } | Self::RateLimited { retry_after } => {
                *retry_after
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_code_from_outside_is_harmless() {
        let error = OAuthError::new(&format!("<b>\r\ninvalid_grant{}", "x".repeat(100)));
        assert!(error.code.starts_with("binvalid_grantxxx"));
        assert_eq!(error.code.len(), 64);
    }

    #[test]
    fn a_description_from_outside_is_harmless() {
        let of = |text: &str| OAuthError::new("x").described(text).description;
        assert_eq!(
            of("The refresh token\r\nis \u{1b}[31minvalid."),
            "The refresh token is [31minvalid."
        );
        assert_eq!(of("Token 1//0gabcdefghijklmnopqrst was revoked"), "Token […] was revoked");
        assert_eq!(of("(token=abcdefghijklmnopqrstu)"), "[…]");
        assert_eq!(of(&"ab ".repeat(500)).chars().count(), 200);
        assert_eq!(of(""), "");
    }
}
