//! Reading a token answer (RFC 6749 section 5) as real providers write it.
//!
//! The refresh token of an odd answer is found if the answer has one.

use std::collections::BTreeMap;
use std::time::Duration;

use secrecy::{ExposeSecret, SecretString};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::error::OAuthError;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::domain::token::{AccessToken, DoomedToken, RawAnswer, TokenKind, TokenSet};

/// The longest lifetime that is believed: some providers answer 10^18 for "never".
const LONGEST_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A 2xx answer that cannot be used whole.
#[derive(Debug, Clone)]
pub struct Unusable {
    /// The error that the provider put into a 2xx answer.
    pub error: Option<OAuthError>,
    /// The reason for the log. Never a value.
    pub reason: &'static str,
    /// The refresh token all the same, if there is one.
    pub refresh_token: Option<SecretString>,
    /// `true` if the provider's tokens are lost with the rest of an answer that was cut: without a new refresh
    /// token here, the old one may have been replaced.
    pub has_acted: bool,
}

/// A request to the token endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// RFC 6749 section 4.1.3.
    CodeExchange,
    /// RFC 6749 section 6.
    Refresh,
}

/// The request of an answer, with what the answer may leave out.
#[derive(Debug, Clone, Copy)]
pub struct Context<'a> {
    /// The request.
    pub request: Request,
    /// The scopes of an answer that names none (RFC 6749 sections 5.1 and 6).
    pub scopes: &'a Scopes,
    /// The lifetime of an access token whose answer names none.
    pub lifetime: Option<Duration>,
    /// The time from which lifetimes count: before the request was sent, on the database's clock.
    pub issued_at: Timestamp,
}

/// Reads a 2xx token answer.
///
/// # Errors
///
/// [`Unusable`] if there is no access token of a type that the broker can issue.
pub fn read(answer: &RawAnswer, context: Context<'_>) -> Result<TokenSet, Unusable> {
    let fields = Fields::of(answer);
    let refresh_token = fields.secret("refresh_token");
    let has_acted = !fields.is_whole;
    let unusable = |error, reason| {
        let refresh_token = refresh_token.clone();
        Unusable { error, reason, refresh_token, has_acted }
    };
    if let Some(error) = fields.error() {
        return Err(unusable(Some(error), "an error in a 2xx answer"));
    }
    if !fields.is_whole {
        return Err(unusable(None, "an answer that ends too early"));
    }
    let value = fields
        .secret("access_token")
        .ok_or_else(|| unusable(None, "no access token in the answer"))?;
    if !fields.text("token_type").is_none_or(|kind| kind.eq_ignore_ascii_case("bearer")) {
        // RFC 6749 section 7.1: a client must not use a token whose type it does not understand.
        return Err(unusable(None, "a token type other than Bearer"));
    }
    // A refresh that names no scope at all has left them as they were.
    let scopes = fields
        .scopes()
        .filter(|scopes| context.request == Request::CodeExchange || !scopes.is_empty());
    let ends = |lifetime: Option<Duration>| lifetime.map(|lifetime| context.issued_at + lifetime);
    let refresh_lifetime = fields.refresh_lifetime();
    Ok(TokenSet {
        access_token: AccessToken {
            value,
            token_type: "Bearer".to_owned(),
            scopes: scopes.unwrap_or_else(|| context.scopes.clone()),
            issued_at: context.issued_at,
            expires_at: ends(fields.lifetime("expires_in").or(context.lifetime)),
        },
        refresh_token,
        refresh_expires_at: ends(refresh_lifetime),
        id_token: fields.secret("id_token"),
        provider_values: BTreeMap::new(),
    })
}

/// Returns every token of an answer, usable or not, for its disposal.
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

/// The error in an answer with any status.
#[must_use]
pub(super) fn error_in(answer: &RawAnswer) -> Option<OAuthError> {
    Fields::of(answer).error()
}

/// The error in an answer whose status says that it is one: there it may also stand at the top level, as
/// HubSpot's does.
#[must_use]
pub(super) fn error_in_failure(answer: &RawAnswer) -> Option<OAuthError> {
    let fields = Fields::of(answer);
    let at_top = || {
        let code = ["error_code", "code", "errorCode", "status"]
            .iter()
            .find_map(|name| fields.text(name).filter(|code| code.parse::<u16>().is_err()));
        Some(OAuthError::new(code?).described(fields.text("message").unwrap_or_default()))
    };
    fields.error().or_else(at_top)
}

/// The top level of an answer, whichever format it has.
struct Fields {
    members: Map<String, Value>,
    /// `true` if the answer was read to its end.
    is_whole: bool,
}

/// Takes the members of a JSON object as they come, so that those before a fault are kept.
struct Members<'a>(&'a mut Map<String, Value>);

impl<'de> Visitor<'de> for Members<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some((name, value)) = map.next_entry()? {
            self.0.insert(name, value);
        }
        Ok(())
    }
}

impl Fields {
    fn of(answer: &RawAnswer) -> Self {
        let text = String::from_utf8_lossy(answer.body.expose_secret());
        let text = text.trim_start_matches('\u{feff}').trim();
        // The body is more reliable than the Content-Type, which some providers get wrong.
        if text.starts_with('{') {
            let mut members = Map::new();
            // The first value alone: rubbish behind it must not cost the token.
            let mut json = serde_json::Deserializer::from_str(text);
            let is_whole = json.deserialize_map(Members(&mut members)).is_ok();
            return Self { members, is_whole };
        }
        let word = text.split_whitespace().next().unwrap_or_default();
        let is_form = word.contains('=') && !word.starts_with('<');
        if !is_form {
            return Self { members: Map::new(), is_whole: true };
        }
        let members = url::form_urlencoded::parse(text.as_bytes())
            .map(|(name, value)| (name.into_owned(), Value::String(value.into_owned())))
            .collect();
        Self { members, is_whole: true }
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.members.get(name).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// A token. One with a control character could not travel in a header and is none.
    fn secret(&self, name: &str) -> Option<SecretString> {
        self.text(name).filter(|text| !text.contains(char::is_control)).map(SecretString::from)
    }

    /// The error: as RFC 6749 section 5.2 has it, as an object, or as the first of a list.
    fn error(&self) -> Option<OAuthError> {
        let (error, list) = (self.members.get("error"), self.members.get("errors"));
        let description = self.text("error_description").or_else(|| self.text("message"));
        let error = match error {
            Some(Value::String(code)) if !code.is_empty() => OAuthError::new(code),
            Some(Value::Object(error)) => return Some(nested_error(error)),
            Some(Value::Bool(true)) => OAuthError::new("error"),
            _ => match list.and_then(|list| list.get(0)) {
                Some(Value::Object(error)) => return Some(nested_error(error)),
                Some(Value::String(code)) if !code.is_empty() => OAuthError::new(code),
                _ => return None,
            },
        };
        Some(error.described(description.unwrap_or_default()))
    }

    /// A lifetime in seconds: number or text. Zero, negative and absent: none given.
    fn lifetime(&self, name: &str) -> Option<Duration> {
        let seconds = match self.members.get(name)? {
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
        match self.members.get("scope")? {
            Value::String(text) => Some(Scopes::from_provider(text)),
            Value::Array(items) => {
                let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
                Some(Scopes::from_provider(&items.join(" ")))
            }
            _ => None,
        }
    }
}

/// An error that is an object, as at Facebook, OpenAI and Fitbit. A number says less than a word.
fn nested_error(error: &Map<String, Value>) -> OAuthError {
    let words = ["code", "type", "errorType", "error", "status", "reason"];
    let word = words.iter().find_map(|name| error.get(*name)?.as_str());
    let number = ["code", "status"].iter().find_map(|name| error.get(*name)?.as_i64());
    let code = match (word, number) {
        (Some(word), _) => OAuthError::new(word),
        (None, Some(number)) => OAuthError::new(&number.to_string()),
        (None, None) => OAuthError::new("error"),
    };
    let description = error.get("message").or_else(|| error.get("error_description"));
    code.described(description.and_then(Value::as_str).unwrap_or_default())
}

#[cfg(test)]
mod tests;
