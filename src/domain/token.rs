//! Tokens and what decides whether one is still good.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretSlice, SecretString};

use super::scope::Scopes;
use super::time::Timestamp;

/// The least remaining lifetime that GetToken asks for where the caller names none.
pub const DEFAULT_MIN_TTL: Duration = Duration::from_secs(60);

/// An access token as stored (RFC 6749 section 1.4).
#[derive(Clone)]
pub struct AccessToken {
    /// The token itself.
    pub value: SecretString,
    /// `Bearer`.
    pub token_type: String,
    /// The scopes.
    pub scopes: Scopes,
    /// When it was asked for. The provider issued it no earlier.
    pub issued_at: Timestamp,
    /// When it expires at the latest. `None`: the provider gave no lifetime.
    pub expires_at: Option<Timestamp>,
}

impl AccessToken {
    /// Returns `true` if the token has not expired at `now`, according to the provider.
    #[must_use]
    pub fn is_living(&self, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| now < at)
    }

    /// Returns `true` if the token stays valid for `min_ttl` from `now`.
    ///
    /// `min_ttl` is never taken as more than half of the granted lifetime: otherwise a caller that
    /// asks for more than a short-lived token has would cause a refresh with every call.
    #[must_use]
    pub fn is_good_for(&self, min_ttl: Duration, now: Timestamp) -> bool {
        self.expires_at.is_none_or(|at| {
            let half_life = at.since(self.issued_at) / 2;
            now + min_ttl.min(half_life) < at
        })
    }
}

impl fmt::Debug for AccessToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken")
            .field("scopes", &self.scopes)
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// A successful answer of a token endpoint as it came: the only copy of a rotated refresh token,
/// so it is stored before it is understood.
#[derive(Clone)]
pub struct RawAnswer {
    /// The `Content-Type`.
    pub content_type: String,
    /// The body.
    pub body: SecretSlice<u8>,
}

impl fmt::Debug for RawAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RawAnswer({} bytes)", self.body.expose_secret().len())
    }
}

/// The kind of a token, as in `token_type_hint` (RFC 7009 section 2.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// `access_token`.
    Access,
    /// `refresh_token`.
    Refresh,
}

impl TokenKind {
    /// The value of `token_type_hint`, and the word in the database.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Access => "access_token",
            Self::Refresh => "refresh_token",
        }
    }

    /// Reads what [`TokenKind::as_str`] wrote. Returns `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Access, Self::Refresh].into_iter().find(|kind| kind.as_str() == text)
    }
}

/// A token that awaits its revocation at the provider.
#[derive(Clone)]
pub struct DoomedToken {
    /// The kind.
    pub kind: TokenKind,
    /// The token itself.
    pub value: SecretString,
    /// When it ends by itself, where that is known.
    pub expires_at: Option<Timestamp>,
}

impl fmt::Debug for DoomedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DoomedToken({})", self.kind.as_str())
    }
}

/// The usable parts of a token response (RFC 6749 section 5.1).
#[derive(Clone)]
pub struct TokenSet {
    /// The access token.
    pub access_token: AccessToken,
    /// The refresh token, where the provider issued one.
    pub refresh_token: Option<SecretString>,
    /// When the refresh token expires. `None`: the provider did not say.
    pub refresh_expires_at: Option<Timestamp>,
    /// The ID token (OpenID Connect Core section 2).
    pub id_token: Option<SecretString>,
    /// Other values of the provider's answer. Never a secret.
    pub provider_values: BTreeMap<String, String>,
}

impl TokenSet {
    /// Lets the refresh token end after so long without use, unless the provider names an earlier end.
    #[must_use]
    pub fn ending_when_idle(mut self, idle: Option<Duration>) -> Self {
        let ends = idle.map(|idle| self.access_token.issued_at + idle);
        self.refresh_expires_at = self.refresh_expires_at.into_iter().chain(ends).min();
        self
    }
}

impl fmt::Debug for TokenSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSet")
            .field("access_token", &self.access_token)
            .field("refresh_token", &self.refresh_token.is_some())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(lifetime: Option<u64>) -> AccessToken {
        let issued_at = Timestamp::from_millis(1_000_000);
        AccessToken {
            value: "value".into(),
            token_type: "Bearer".into(),
            scopes: Scopes::default(),
            issued_at,
            expires_at: lifetime.map(|seconds| issued_at + Duration::from_secs(seconds)),
        }
    }

    fn good(lifetime: Option<u64>, age: u64, min_ttl: u64) -> bool {
        let token = token(lifetime);
        token.is_good_for(Duration::from_secs(min_ttl), token.issued_at + Duration::from_secs(age))
    }

    #[test]
    fn min_ttl_is_honoured_up_to_half_the_lifetime() {
        assert!(good(Some(3600), 3539, 60));
        assert!(!good(Some(3600), 3540, 60));
        assert!(good(Some(60), 29, 3600));
        assert!(!good(Some(60), 30, 3600));
        assert!(good(Some(60), 59, 0));
        assert!(!good(Some(60), 60, 0));
    }

    #[test]
    fn a_token_without_a_lifetime_is_always_good() {
        assert!(good(None, u64::from(u32::MAX), 3600));
        assert!(token(None).is_living(Timestamp::from_millis(i64::MAX)));
    }

    #[test]
    fn a_token_never_lives_past_its_expiry() {
        let token = token(Some(0));
        assert!(!token.is_living(token.issued_at));
        assert!(!token.is_good_for(Duration::ZERO, token.issued_at));
    }

    #[test]
    fn debug_shows_no_token() {
        assert!(!format!("{:?}", token(None)).contains("value"));
    }
}
