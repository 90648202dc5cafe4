//! The one classification of a provider's answers: pure functions of an answer and the provider's settings.
//!
//! The circuit breaker, the back-off, the metrics, the log line, the stored error and the caller's status all derive
//! from the result.

use std::time::Duration;

use http::StatusCode;
use secrecy::ExposeSecret;
use serde_json::{Map, Value};

use super::error::{OAuthError, ProviderError};
use super::response::{self, Context, Request, Unusable};
use crate::domain::token::{RawAnswer, TokenSet};

/// Codes of a dead refresh token, beside `invalid_grant`, that mean nothing else at any provider: GitHub's, Slack's,
/// OpenAI's, and `unauthorized_client`, which a client that obtained the grant can meet for this grant alone.
const DEAD_REFRESH_TOKEN: [&str; 8] = [
    "invalid_grant",
    "bad_refresh_token",
    "invalid_refresh_token",
    "refresh_token_reused",
    "refresh_token_expired",
    "refresh_token_invalidated",
    "expired_refresh_token",
    "unauthorized_client",
];

/// The same for a code: GitHub's and Slack's.
const DEAD_CODE: [&str; 5] =
    ["invalid_grant", "bad_verification_code", "invalid_code", "code_already_used", "code_expired"];

/// Errors that say that there is nothing to revoke, or nothing more (RFC 7009 section 2.2.1).
const NOTHING_TO_REVOKE: [&str; 4] =
    ["invalid_token", "invalid_grant", "unsupported_token_type", "token_already_revoked"];

/// A response, as far as it was read.
#[derive(Debug)]
pub(super) struct Response {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// `true` if the connection delivered it to its end.
    pub(super) is_whole: bool,
    /// Decoded.
    pub(super) content: RawAnswer,
}

/// An answer of a token endpoint that has tokens, or should have.
#[derive(Debug)]
pub struct TokenAnswer {
    /// The answer as it came, to be kept before it is used.
    pub raw: RawAnswer,
    /// Its tokens, or the reason why it cannot be used whole.
    pub tokens: Result<TokenSet, Unusable>,
}

/// An answer of a userinfo endpoint.
pub(super) enum Userinfo {
    Plain(Map<String, Value>),
    /// A signed JWT, which is still to be verified.
    Signed(String),
}

/// Classifies an answer of a token endpoint. `dead_grant_errors` are the provider's own codes for a dead code or
/// refresh token.
///
/// # Errors
///
/// [`ProviderError`] if there are no tokens in it.
pub(super) fn token_answer(
    response: Response,
    dead_grant_errors: &[String],
    context: Context<'_>,
) -> Result<TokenAnswer, ProviderError> {
    let error = error_in(&response);
    let is_dead = |error: &OAuthError| {
        let built_in: &[&str] = match context.request {
            Request::Refresh => &DEAD_REFRESH_TOKEN,
            Request::CodeExchange => &DEAD_CODE,
        };
        let is = |code: &str| code.eq_ignore_ascii_case(&error.code);
        built_in.iter().any(|code| is(code)) || dead_grant_errors.iter().any(|code| is(code))
    };
    let raw =
        if response.is_whole { response.content } else { without_cut_value(response.content) };
    let failure = failure(response.status, response.retry_after, error, is_dead);
    let mut tokens = response::read(&raw, context);
    if !response.is_whole {
        tokens = match tokens {
            Ok(tokens) if !is_json(&raw) => Err(Unusable {
                error: None,
                reason: "an answer that ends too early",
                refresh_token: tokens.refresh_token,
                has_acted: true,
            }),
            // Not a page of something between the provider and the broker.
            Err(unusable) => Err(Unusable { has_acted: !is_page(&raw), ..unusable }),
            complete => complete,
        };
    }
    match failure {
        None => match tokens {
            // An error in a 2xx, and nothing that has to be kept.
            Err(Unusable { error: Some(error), refresh_token: None, .. }) => {
                Err(ProviderError::Refused { status: response.status.as_u16(), error })
            }
            tokens => Ok(TokenAnswer { raw, tokens }),
        },
        Some(failure) => {
            // A new refresh token must be kept, also beside an error.
            let refresh_token = match tokens {
                Ok(tokens) => tokens.refresh_token,
                Err(unusable) => unusable.refresh_token,
            };
            if refresh_token.is_none() {
                return Err(failure);
            }
            let reason = "tokens in an answer that reports an error";
            let error = failure.oauth_error().cloned();
            let tokens = Err(Unusable { error, reason, refresh_token, has_acted: true });
            Ok(TokenAnswer { raw, tokens })
        }
    }
}

/// Classifies an answer to a revocation.
///
/// # Errors
///
/// [`ProviderError`] if the token may still live and another attempt may end it.
pub(super) fn revocation(response: &Response) -> Result<(), ProviderError> {
    if response.status.is_success() {
        return Ok(());
    }
    // There is no such endpoint, or there is no such token any more.
    if matches!(response.status.as_u16(), 404 | 405 | 410) {
        return Ok(());
    }
    match error_in(response) {
        Some(error)
            if response.status.is_client_error()
                && NOTHING_TO_REVOKE.contains(&error.code.as_str()) =>
        {
            Ok(())
        }
        error => {
            failure(response.status, response.retry_after, error, |_| false).map_or(Ok(()), Err)
        }
    }
}

/// Classifies a JSON document: metadata, keys, or claims. `None` if there is none here.
///
/// # Errors
///
/// [`ProviderError`] if it may be had later.
pub(super) fn document(response: &Response) -> Result<Option<Value>, ProviderError> {
    match failure(response.status, response.retry_after, None, |_| false) {
        None => Ok(serde_json::from_slice(response.content.body.expose_secret()).ok()),
        Some(ProviderError::UnexpectedResponse(_) | ProviderError::Unauthorized) => Ok(None),
        Some(passes) => Err(passes),
    }
}

/// Removes the last value of a form that was cut. The end of JSON shows by itself.
fn without_cut_value(content: RawAnswer) -> RawAnswer {
    if is_json(&content) || is_page(&content) {
        return content;
    }
    let body = content.body.expose_secret();
    let end = body.iter().rposition(|byte| *byte == b'&').unwrap_or_default();
    RawAnswer { body: body[..end].to_vec().into(), content_type: content.content_type }
}

fn is_page(content: &RawAnswer) -> bool {
    content.body.expose_secret().trim_ascii_start().starts_with(b"<")
}

fn is_json(content: &RawAnswer) -> bool {
    content.body.expose_secret().trim_ascii_start().starts_with(b"{")
}

/// Classifies an answer of a userinfo endpoint.
///
/// # Errors
///
/// [`ProviderError`] if it may be had later.
pub(super) fn userinfo(response: &Response) -> Result<Option<Userinfo>, ProviderError> {
    if let Some(Value::Object(fields)) = document(response)? {
        return Ok(Some(Userinfo::Plain(fields)));
    }
    let text =
        std::str::from_utf8(response.content.body.expose_secret()).unwrap_or_default().trim();
    let is_jwt =
        response.status.is_success() && text.split('.').count() == 3 && !text.contains(' ');
    Ok(is_jwt.then(|| Userinfo::Signed(text.to_owned())))
}

fn error_in(response: &Response) -> Option<OAuthError> {
    if response.status.is_success() {
        response::error_in(&response.content)
    } else {
        response::error_in_failure(&response.content)
    }
}

/// `None` if the status and the error allow the content to be used.
fn failure(
    status: StatusCode,
    retry_after: Option<Duration>,
    error: Option<OAuthError>,
    is_dead: impl Fn(&OAuthError) -> bool,
) -> Option<ProviderError> {
    let number = status.as_u16();
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Some(ProviderError::RateLimited { retry_after });
    }
    if status.is_server_error() {
        return Some(ProviderError::ServerError { status: number, retry_after, error });
    }
    match error {
        Some(error) if is_dead(&error) => Some(ProviderError::DeadGrant { status: number, error }),
        Some(error) if error.refuses_client() => {
            Some(ProviderError::RefusesBroker { status: number, error })
        }
        _ if status.is_success() => None,
        Some(error) => Some(ProviderError::Refused { status: number, error }),
        None if status == StatusCode::UNAUTHORIZED => Some(ProviderError::Unauthorized),
        None => Some(ProviderError::UnexpectedResponse(format!("status {number}"))),
    }
}

#[cfg(test)]
mod tests;
