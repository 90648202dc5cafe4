//! The authorization request (RFC 6749 section 4.1.1).

use oauth2::{PkceCodeChallenge, PkceCodeVerifier};
use url::Url;

use crate::domain::authorization::Options;
use crate::domain::provider::{OPENID, Server};
use crate::domain::scope::Scopes;

/// The parts of an authorization request that belong to one start of the link.
#[derive(Debug)]
pub struct AuthorizationRequest<'a> {
    /// Ties the redirect to the link, the browser and the broker.
    pub state: &'a str,
    /// The PKCE verifier, whose challenge is sent (RFC 7636).
    pub verifier: String,
    /// Ties the ID token to this start, where one is asked for (OpenID Connect Core section 3.1.2.1).
    pub nonce: String,
    /// The address to which the provider sends the browser.
    pub redirect_uri: &'a Url,
}

/// Builds the authorization request for the user's browser.
#[must_use]
pub fn authorization_url(
    server: &Server,
    scopes: &Scopes,
    options: &Options,
    attempt: AuthorizationRequest<'_>,
) -> Url {
    let verifier = PkceCodeVerifier::new(attempt.verifier);
    let challenge = PkceCodeChallenge::from_code_verifier_sha256(&verifier);
    let mut url = server.authorization_endpoint.clone();
    {
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &server.client.id)
            .append_pair("redirect_uri", attempt.redirect_uri.as_str())
            .append_pair("state", attempt.state)
            .append_pair("code_challenge", challenge.as_str())
            .append_pair("code_challenge_method", challenge.method().as_str());
        if !scopes.is_empty() {
            query.append_pair("scope", &scopes.to_string());
        }
        if scopes.contains(OPENID) {
            query.append_pair("nonce", &attempt.nonce);
        }
        if let Some(hint) = &options.login_hint {
            query.append_pair("login_hint", hint);
        }
    }
    url
}
