//! `/oauth2/callback/{provider}`: takes the redirect and answers the result page.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use url::form_urlencoded;

use super::{SharedBroker, browser, page};
use crate::broker::Broker;
use crate::broker::callback::{CallbackError, Redirect};
use crate::provider::OAuthError;

/// The longest parameter that is read, in bytes.
const MAX_PARAMETER: usize = 8 * 1024;

/// The parameters that are read. All others are ignored.
const READ: [&str; 4] = ["state", "code", "error", "iss"];

/// The parameter that carries a posted form, sealed.
const SEALED: &str = "sealed";

pub(super) async fn callback(
    State(broker): SharedBroker,
    provider: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let Ok(Path(provider)) = provider else {
        return page::problem(&CallbackError::UnknownRedirect);
    };
    let mut query = query.unwrap_or_default();
    if let Some(sealed) = only_sealed(&query) {
        match open(&broker, &provider, &sealed) {
            Some(form) => query = form,
            None => return page::problem(&CallbackError::UnknownRedirect),
        }
    }
    let browsers = browser::secrets(&headers, &broker.settings.public_url);
    page::of_callback(&broker.callbacks.callback(parse(provider, &query), browsers).await)
}

/// `response_mode=form_post`: a cross-site POST comes without the Lax cookie, so the browser is
/// sent to the GET of the same address, with the form sealed, because URLs end up in logs and histories.
pub(super) async fn form_post(
    State(broker): SharedBroker,
    provider: Result<Path<String>, PathRejection>,
    form: String,
) -> Response {
    let Ok(Path(provider)) = provider else {
        return page::problem(&CallbackError::UnknownRedirect);
    };
    if broker.providers.get(&provider).is_none() {
        return page::problem(&CallbackError::UnknownRedirect);
    }
    // What is read of it alone: a form may also have an ID token, too long for a URL.
    let read =
        form_urlencoded::parse(form.as_bytes()).filter(|(name, _)| READ.contains(&name.as_ref()));
    let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(read).finish();
    let sealed = broker.callbacks.seal_form(&provider, form.as_bytes());
    let location = format!("?{SEALED}={}", BASE64_URL_SAFE_NO_PAD.encode(sealed));
    (StatusCode::SEE_OTHER, [(header::LOCATION, location)]).into_response()
}

fn only_sealed(query: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    match (pairs.next(), pairs.next()) {
        (Some((name, value)), None) if name == SEALED => Some(value.into_owned()),
        _ => None,
    }
}

fn open(broker: &Broker, provider: &str, sealed: &str) -> Option<String> {
    let sealed = BASE64_URL_SAFE_NO_PAD.decode(sealed).ok()?;
    String::from_utf8(broker.callbacks.open_form(provider, &sealed)?).ok()
}

fn parse(provider: String, query: &str) -> Redirect {
    let mut redirect =
        Redirect { provider, state: None, code: None, error: None, iss: None, malformed: false };
    let mut states = 0;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        // One without a value counts as left out (RFC 6749 section 3.1).
        if value.is_empty() || !READ.contains(&name.as_ref()) {
            continue;
        }
        if value.len() > MAX_PARAMETER {
            redirect.malformed = true;
            continue;
        }
        let repeated = match name.as_ref() {
            "state" => {
                states += 1;
                redirect.state.replace(value.into_owned()).is_some()
            }
            "code" => redirect.code.replace(value.into_owned().into()).is_some(),
            "error" => redirect.error.replace(OAuthError::new(&value)).is_some(),
            "iss" => redirect.iss.replace(value.into_owned()).is_some(),
            _ => false,
        };
        redirect.malformed |= repeated;
    }
    if states > 1 {
        // Which of them to believe? None.
        redirect.state = None;
    }
    redirect
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret;

    use super::*;

    #[test]
    fn a_redirect_is_read() {
        let redirect = parse("acme".into(), "code=a%2Bb&state=s&iss=https%3A%2F%2Fi&x=1&x=2");
        assert_eq!(redirect.code.map(|c| c.expose_secret().to_owned()).as_deref(), Some("a+b"));
        assert_eq!(redirect.state.as_deref(), Some("s"));
        assert_eq!(redirect.iss.as_deref(), Some("https://i"));
        assert!(!redirect.malformed);
    }

    #[test]
    fn a_parameter_that_is_not_read_may_be_long() {
        let long = "x".repeat(MAX_PARAMETER + 1);
        let redirect = parse("acme".into(), &format!("code=a&state=s&id_token={long}"));
        assert!(!redirect.malformed && redirect.code.is_some());
        assert!(parse("acme".into(), &format!("code={long}&state=s")).malformed);
    }

    #[test]
    fn repeated_parameters_are_noticed() {
        assert!(parse("acme".into(), "code=a&code=a&state=s").malformed);
        assert!(parse("acme".into(), "code=a&iss=1&iss=1&state=s").malformed);
        let redirect = parse("acme".into(), "code=a&state=s&state=t");
        assert!(redirect.malformed && redirect.state.is_none());
    }
}
