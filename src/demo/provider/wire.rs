//! Forms in, JSON out, and who is calling.

use std::collections::BTreeSet;

use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, PRAGMA, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderValue, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};
use url::form_urlencoded;

use super::Settings;

/// The parameters of token and revocation calls, none of which may come twice.
pub(super) const CALL_PARAMS: [&str; 10] = [
    "client_id",
    "client_secret",
    "code",
    "code_verifier",
    "grant_type",
    "redirect_uri",
    "refresh_token",
    "scope",
    "token",
    "token_type_hint",
];

/// The parameters of a form or a query, in order.
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    /// Never fails: what is no form has no parameters. A parameter without a value counts as
    /// absent (RFC 6749 sections 3.1 and 3.2).
    pub(super) fn parse(form: &[u8]) -> Self {
        let pairs = form_urlencoded::parse(form).into_owned();
        Self(pairs.filter(|(_, value)| !value.is_empty()).collect())
    }

    /// The first value of that name.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of that name, or `invalid_request` with this description.
    pub(super) fn required(
        &self,
        name: &str,
        description: &'static str,
    ) -> Result<String, Refusal> {
        self.get(name).map(str::to_owned).ok_or(Refusal::invalid_request(description))
    }

    /// Returns `true` if one of these names comes more than once. Unknown parameters are ignored (RFC 6749 sections
    /// 3.1 and 3.2).
    pub(super) fn repeated(&self, names: &[&str]) -> bool {
        names.iter().any(|name| self.0.iter().filter(|(known, _)| known == name).count() > 1)
    }
}

/// An error answer of RFC 6749: section 5.2 as JSON, or section 4.1.2.1 as a redirect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    /// One of the codes of those sections.
    pub(super) error: &'static str,
    /// For people: ASCII without quotes and backslashes, as those sections want it.
    pub(super) description: &'static str,
}

impl Refusal {
    /// The answer when the state file cannot be written.
    pub(super) const SERVER_ERROR: Self = Self {
        status: StatusCode::INTERNAL_SERVER_ERROR,
        error: "server_error",
        description: "the demo provider cannot write its state file",
    };

    const INVALID_CLIENT: Self = Self {
        status: StatusCode::UNAUTHORIZED,
        error: "invalid_client",
        description: "unknown client, or wrong or missing secret",
    };

    /// An answer with status 400.
    pub(super) const fn bad(error: &'static str, description: &'static str) -> Self {
        Self { status: StatusCode::BAD_REQUEST, error, description }
    }

    pub(super) const fn invalid_request(description: &'static str) -> Self {
        Self::bad("invalid_request", description)
    }

    pub(super) const fn invalid_grant(description: &'static str) -> Self {
        Self::bad("invalid_grant", description)
    }

    pub(super) const fn invalid_scope(description: &'static str) -> Self {
        Self::bad("invalid_scope", description)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let body = json!({ "error": self.error, "error_description": self.description });
        let mut response = json(self.status, &body);
        if self.status == StatusCode::UNAUTHORIZED {
            // RFC 6749 section 5.2 wants it where the client came with a header, RFC 9110 section
            // 15.5.2 with every 401.
            let challenge = HeaderValue::from_static("Basic realm=\"demo provider\"");
            response.headers_mut().insert(WWW_AUTHENTICATE, challenge);
        }
        response
    }
}

/// A JSON answer that must not be stored (RFC 6749 section 5.1).
pub(super) fn json(status: StatusCode, body: &Value) -> Response {
    let headers = [
        (CONTENT_TYPE, "application/json"),
        (CACHE_CONTROL, "no-store"),
        (PRAGMA, "no-cache"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (status, headers, body.to_string()).into_response()
}

/// The answer of a revocation that worked: the status says it all (RFC 7009 section 2.2).
pub(super) fn empty_ok() -> Response {
    (StatusCode::OK, [(CACHE_CONTROL, "no-store")]).into_response()
}

/// The answer to a call without a token, or with one that does not work (RFC 6750 section 3: the
/// error is named only where a token was shown).
pub(super) fn bearer_challenge(with_error: bool) -> Response {
    let (challenge, body) = if with_error {
        ("Bearer realm=\"demo provider\", error=\"invalid_token\"", "invalid_token")
    } else {
        ("Bearer realm=\"demo provider\"", "no_token")
    };
    let mut response = json(StatusCode::UNAUTHORIZED, &json!({ "error": body }));
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    response
}

/// The token of an `Authorization: Bearer` header (RFC 6750 section 2.1).
pub(super) fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Refuses bodies that are no form (RFC 6749 section 3.2).
pub(super) fn require_form(headers: &HeaderMap) -> Result<(), Refusal> {
    let essence = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .unwrap_or_default();
    if essence.trim().eq_ignore_ascii_case("application/x-www-form-urlencoded") {
        Ok(())
    } else {
        Err(Refusal::invalid_request("the body is no application/x-www-form-urlencoded"))
    }
}

/// Checks the client's id and secret, from the header or from the form (RFC 6749 section 2.3.1).
pub(super) fn authenticate(
    settings: &Settings,
    headers: &HeaderMap,
    params: &Params,
) -> Result<(), Refusal> {
    let named = params.get("client_id");
    let (id, secret) = match headers.get(AUTHORIZATION) {
        Some(header) => {
            // RFC 6749 section 2.3: one method in each request.
            if params.get("client_secret").is_some() {
                return Err(Refusal::invalid_request("more than one client authentication"));
            }
            let (id, secret) = basic(header).ok_or(Refusal::INVALID_CLIENT)?;
            if named.is_some_and(|named| named != id) {
                return Err(Refusal::INVALID_CLIENT);
            }
            (id, secret)
        }
        None => {
            let secret = params.get("client_secret").unwrap_or_default();
            (named.unwrap_or_default().to_owned(), secret.to_owned())
        }
    };
    // `&`, not `&&`: the time must not reveal which half was wrong.
    let known = same(&id, &settings.client_id) & same(&secret, &settings.client_secret);
    if bool::from(known) { Ok(()) } else { Err(Refusal::INVALID_CLIENT) }
}

/// Id and secret of a Basic header. Both are form-encoded before they are joined, so that either
/// may hold a colon (RFC 6749 section 2.3.1).
fn basic(header: &HeaderValue) -> Option<(String, String)> {
    let (scheme, credentials) = header.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let joined = String::from_utf8(STANDARD.decode(credentials.trim()).ok()?).ok()?;
    let (id, secret) = joined.split_once(':')?;
    Some((form_decoded(id), form_decoded(secret)))
}

/// Undoes the form encoding of one value.
fn form_decoded(text: &str) -> String {
    // The parser reads pairs; with the separators escaped the text is one name without a value.
    let one = text.replace('&', "%26").replace('=', "%3D");
    let decoded = form_urlencoded::parse(one.as_bytes()).next();
    decoded.map(|(name, _)| name.into_owned()).unwrap_or_default()
}

/// Compares in constant time, by hashes, so that the lengths don't show either.
fn same(left: &str, right: &str) -> Choice {
    let left: [u8; 32] = Sha256::digest(left).into();
    let right: [u8; 32] = Sha256::digest(right).into();
    left.ct_eq(&right)
}

/// Reads a `scope` parameter (RFC 6749 section 3.3).
pub(super) fn scopes(text: &str) -> Result<BTreeSet<String>, Refusal> {
    let plain = |b: u8| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e);
    text.split(' ')
        .filter(|token| !token.is_empty())
        .map(|token| {
            if token.bytes().all(plain) {
                Ok(token.to_owned())
            } else {
                Err(Refusal::invalid_scope("a scope has a character that scopes cannot have"))
            }
        })
        .collect()
}

/// Scopes as one text.
pub(super) fn scope_text(scopes: &BTreeSet<String>) -> String {
    scopes.iter().map(String::as_str).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::domain::provider::RevocationReach;

    fn settings() -> Settings {
        Settings {
            client_id: "a:b".to_owned(),
            client_secret: "p&=+ %é".to_owned(),
            redirect_uris: Vec::new(),
            access_token_lifetime: Duration::from_secs(300),
            refresh_grace: Duration::ZERO,
            revocation_reach: RevocationReach::Grant,
            state_file: None,
            issuer: "http://127.0.0.1:1".to_owned(),
            clock: Arc::new(|| 0),
            random: Arc::new(|bytes: &mut [u8]| bytes.fill(7)),
        }
    }

    fn with_basic(joined: &str) -> HeaderMap {
        let value = format!("basic {}", STANDARD.encode(joined));
        HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_str(&value).expect("ASCII"))])
    }

    fn checked(headers: &HeaderMap, form: &str) -> Result<(), &'static str> {
        let params = Params::parse(form.as_bytes());
        authenticate(&settings(), headers, &params).map_err(|refusal| refusal.error)
    }

    #[test]
    fn both_ways_of_client_authentication_are_taken() {
        let header = with_basic("a%3Ab:p%26%3D%2B+%25%C3%A9");
        assert_eq!(checked(&header, ""), Ok(()));
        assert_eq!(checked(&header, "client_id=a%3Ab"), Ok(()));
        let form = "client_id=a%3Ab&client_secret=p%26%3D%2B+%25%C3%A9";
        assert_eq!(checked(&HeaderMap::new(), form), Ok(()));
    }

    #[test]
    fn other_clients_are_refused() {
        assert_eq!(checked(&HeaderMap::new(), ""), Err("invalid_client"));
        assert_eq!(checked(&with_basic("a%3Ab:wrong"), ""), Err("invalid_client"));
        assert_eq!(checked(&with_basic("no-colon"), ""), Err("invalid_client"));
        let header = with_basic("a%3Ab:p%26%3D%2B+%25%C3%A9");
        assert_eq!(checked(&header, "client_id=other"), Err("invalid_client"));
        assert_eq!(checked(&header, "client_secret=twice"), Err("invalid_request"));
    }

    #[test]
    fn an_empty_parameter_is_absent_and_a_repeated_one_is_noticed() {
        let params = Params::parse(b"code=&code=1&scope=a&scope=b&other=1&other=2");
        assert_eq!(params.get("code"), Some("1"));
        assert!(!params.repeated(&["code"]));
        assert!(params.repeated(&["code", "scope"]));
    }
}
