//! Reading a token answer (RFC 6749 section 5) as real providers write it.
//!
//! Whatever is odd in an answer, its refresh token is found where there is one.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde_json::Value;

use super::error::OAuthError;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::domain::token::{AccessToken, DoomedToken, RawAnswer, TokenKind, TokenSet};

/// The longest lifetime that is believed: some providers answer 10^18 for "never".
const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// Why a 2xx answer cannot be used whole.
#[derive(Debug, Clone)]
pub struct Unusable {
    /// The error that the provider put into a 2xx answer.
    pub error: Option<OAuthError>,
    /// What is wrong, for the log. Never a value.
    pub reason: &'static str,
    /// The refresh token all the same, where there is one.
    pub refresh_token: Option<SecretString>,
}

/// What the answer leaves out.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// What the scopes are where the answer names none (RFC 6749 sections 5.1 and 6).
    pub scopes: &'a Scopes,
    /// From when lifetimes count: before the request was sent, on the database's clock.
    pub issued_at: Timestamp,
}

/// Reads a 2xx token answer.
///
/// # Errors
///
/// [`Unusable`] where there is no access token of a type that the broker can lend.
pub fn read(answer: &RawAnswer, context: Context<'_>) -> Result<TokenSet, Unusable> {
    let fields = Fields::of(answer);
    let refresh_token = fields.secret("refresh_token");
    let unusable = |error, reason| Unusable { error, reason, refresh_token: refresh_token.clone() };
    if let Some(error) = fields.error() {
        return Err(unusable(Some(error), "an error in a 2xx answer"));
    }
    let value = fields
        .secret("access_token")
        .ok_or_else(|| unusable(None, "no access token in the answer"))?;
    if !fields.text("token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer")) {
        // RFC 6749 section 7.1: a client must not use a token whose type it does not understand.
        return Err(unusable(None, "a token type other than Bearer"));
    }
    let ends = |lifetime: Option<Duration>| lifetime.map(|lifetime| context.issued_at + lifetime);
    let refresh_lifetime = fields.refresh_lifetime();
    Ok(TokenSet {
        access_token: AccessToken {
            value,
            token_type: "Bearer".to_owned(),
            scopes: fields.scopes().unwrap_or_else(|| context.scopes.clone()),
            issued_at: context.issued_at,
            expires_at: ends(fields.lifetime("expires_in")),
        },
        refresh_token,
        refresh_expires_at: ends(refresh_lifetime),
        id_token: fields.secret("id_token"),
        provider_values: BTreeMap::new(),
    })
}

/// Every token in an answer, whether or not the answer can be used: for its disposal.
#[must_use]
pub fn tokens_in(answer: &RawAnswer, issued_at: Timestamp) -> Vec<DoomedToken> {
    let fields = Fields::of(answer);
    let token = |kind, name, lifetime: Option<Duration>| {
        let expires_at = lifetime.map(|lifetime| issued_at + lifetime);
        fields.secret(name).map(|value| DoomedToken { kind, value, expires_at })
    };
    [
        token(TokenKind::Refresh, "refresh_token", fields.refresh_lifetime()),
        token(TokenKind::Access, "access_token", fields.lifetime("expires_in")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The error code in an answer, whatever its status.
#[must_use]
pub fn error_in(answer: &RawAnswer) -> Option<OAuthError> {
    Fields::of(answer).error()
}

/// The top level of an answer, whichever format it has.
struct Fields(serde_json::Map<String, Value>);

impl Fields {
    fn of(answer: &RawAnswer) -> Self {
        let text = String::from_utf8_lossy(answer.body.expose_secret());
        let text = text.trim_start_matches('\u{feff}').trim_start();
        // The body tells more surely than the Content-Type, which some providers get wrong.
        if text.starts_with('{') {
            // The first value alone: rubbish behind it must not cost the token.
            let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
            return match values.next() {
                Some(Ok(Value::Object(fields))) => Self(fields),
                _ => Self(serde_json::Map::new()),
            };
        }
        if answer.content_type.contains("json") {
            return Self(serde_json::Map::new());
        }
        Self(
            url::form_urlencoded::parse(text.trim_end().as_bytes())
                .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
                .collect(),
        )
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// A token. One with a control character could not travel in a header and is none.
    fn secret(&self, name: &str) -> Option<SecretString> {
        self.text(name).filter(|text| !text.contains(char::is_control)).map(SecretString::from)
    }

    fn error(&self) -> Option<OAuthError> {
        match self.0.get("error")? {
            Value::String(code) if !code.is_empty() => Some(OAuthError::new(code)),
            Value::Object(error) => {
                // Facebook and others: an object with a code or type inside.
                let code = ["code", "type", "status"]
                    .iter()
                    .find_map(|name| error.get(*name).and_then(Value::as_str));
                Some(OAuthError::new(code.unwrap_or("error")))
            }
            Value::Bool(true) => Some(OAuthError::new("error")),
            _ => None,
        }
    }

    /// A lifetime in seconds: number or text. Zero, negative and absent: none given.
    fn lifetime(&self, name: &str) -> Option<Duration> {
        let seconds = match self.0.get(name)? {
            Value::Number(number) => number.as_f64()?,
            Value::String(text) => text.trim().parse().ok()?,
            _ => return None,
        };
        if seconds.is_nan() || seconds < 1.0 {
            return None;
        }
        let seconds = seconds.min(LONGEST_LIFETIME.as_secs_f64());
        Some(Duration::from_secs_f64(seconds.trunc()))
    }

    /// The refresh token's lifetime, by either of the names that providers have for it.
    fn refresh_lifetime(&self) -> Option<Duration> {
        ["refresh_token_expires_in", "refresh_expires_in"].iter().find_map(|n| self.lifetime(n))
    }

    /// Scopes as text (spaces or commas) or as a list. Absent and null: none named.
    fn scopes(&self) -> Option<Scopes> {
        match self.0.get("scope")? {
            Value::String(text) => Some(Scopes::from_provider(text)),
            Value::Array(items) => {
                let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
                Some(Scopes::from_provider(&items.join(" ")))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests;
