//! What can go wrong with a provider, sorted once for all use cases.

use std::time::Duration;

const REFUSED: &str = "refused: ";

/// The broker's own code for an answer that is none of the protocol.
pub const INVALID_RESPONSE: &str = "invalid_response";

/// What a client that is refused is told (RFC 6749 section 5.2).
pub const INVALID_CLIENT: &str = "invalid_client";

/// An error answer of the token endpoint (RFC 6749 section 5.2) or of the redirect (section
/// 4.1.2.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OAuthError {
    /// The error code, reduced to printable characters and 64 bytes.
    pub code: String,
}

impl OAuthError {
    /// Takes an error code from outside: whatever it is, it can be shown and logged.
    #[must_use]
    pub fn new(code: &str) -> Self {
        let code: String = code
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
            .take(64)
            .collect();
        Self { code: if code.is_empty() { "error".to_owned() } else { code } }
    }

    /// Whether it says that the code or the refresh token is dead.
    #[must_use]
    pub fn is_invalid_grant(&self) -> bool {
        self.code == "invalid_grant"
    }

    /// Whether it says that the broker's own registration is at fault.
    #[must_use]
    pub fn is_misconfiguration(&self) -> bool {
        matches!(
            self.code.as_str(),
            INVALID_CLIENT | "unauthorized_client" | "redirect_uri_mismatch"
        )
    }
}

/// Why a provider gave no 2xx answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProviderError {
    /// No connection, so nothing was sent.
    #[error("cannot connect: {0}")]
    NotSent(String),
    /// Something was sent and no whole answer came back: the provider may have acted on it.
    #[error("no answer: {0}")]
    NoAnswer(String),
    /// 5xx: the provider may have acted on the request.
    #[error("status {status}")]
    Broken {
        /// The HTTP status.
        status: u16,
        /// What `Retry-After` says.
        retry_after: Option<Duration>,
    },
    /// 429: the provider refused to act.
    #[error("rate limited")]
    RateLimited {
        /// What `Retry-After` says.
        retry_after: Option<Duration>,
    },
    /// An OAuth error.
    #[error("error {:?}, status {status}", error.code)]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What the provider said.
        error: OAuthError,
    },
    /// A 401 without an OAuth error: the client is refused (RFC 6749 section 5.2), or, at providers
    /// that mean something else by it, this token alone.
    #[error("status 401")]
    Unauthorized,
    /// An answer that is too large to be read: the provider may have acted on the request.
    #[error("more than {0} bytes")]
    TooLarge(usize),
    /// Another 4xx, a redirect, or something that is no answer of the protocol.
    #[error("unexpected answer: {0}")]
    Odd(String),
}

impl ProviderError {
    /// Whether the provider may have acted on the request although no answer was stored.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Self::NoAnswer(_) | Self::Broken { .. } | Self::TooLarge(_))
    }

    /// Whether everybody would be refused, whichever grant it is about.
    #[must_use]
    pub fn refuses_the_broker(&self) -> bool {
        matches!(self, Self::Refused { error, .. } if error.code == INVALID_CLIENT)
    }

    /// How the error is written down with a grant: one that has to be told again has its code.
    #[must_use]
    pub fn to_record(&self) -> String {
        match self {
            Self::Refused { error, .. } => format!("{REFUSED}{}", error.code),
            Self::Unauthorized => format!("{REFUSED}{INVALID_CLIENT}"),
            Self::Odd(_) | Self::TooLarge(_) => format!("{REFUSED}{INVALID_RESPONSE}"),
            other => other.to_string(),
        }
    }

    /// Reads what [`ProviderError::to_record`] wrote. Absent for errors that pass by themselves.
    #[must_use]
    pub fn from_record(record: &str) -> Option<Self> {
        let code = record.strip_prefix(REFUSED)?;
        Some(Self::Refused { status: 0, error: OAuthError::new(code) })
    }

    /// What `Retry-After` says (RFC 9110 section 10.2.3).
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Broken { retry_after, .. } | Self::RateLimited { retry_after } => *retry_after,
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
}
