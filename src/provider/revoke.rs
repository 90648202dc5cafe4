//! Revocation (RFC 7009).

use oauth2::{AccessToken, RefreshToken, RevocationUrl, StandardRevocableToken};
use secrecy::{ExposeSecret, SecretString};

use super::classify;
use super::error::ProviderError;
use super::exchange::{Capture, client};
use super::http::{Call, Http, Operation};
use crate::domain::provider::Server;
use crate::domain::token::TokenKind;

impl Http {
    /// Revokes a token. One that the provider does not know counts as revoked (RFC 7009 section 2.2), and so does
    /// one that it cannot revoke: another attempt would not end it either.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] where the provider has not confirmed.
    pub async fn revoke(
        &self,
        server: &Server,
        kind: TokenKind,
        token: &SecretString,
    ) -> Result<(), ProviderError> {
        let Some(endpoint) = &server.revocation_endpoint else {
            return Err(ProviderError::UnexpectedResponse("no revocation endpoint".to_owned()));
        };
        let value = token.expose_secret().to_owned();
        let token: StandardRevocableToken = match kind {
            TokenKind::Access => AccessToken::new(value).into(),
            TokenKind::Refresh => RefreshToken::new(value).into(),
        };
        let capture = Capture::default();
        // The oauth2 crate builds revocations for https alone, and so refuses a provider on
        // loopback. It is given a stand-in; the request then goes to the configured endpoint.
        let stand_in =
            RevocationUrl::new("https://revocation.invalid/".to_owned()).expect("a constant URL");
        let client = client(server).set_revocation_url(stand_in);
        let request = client
            .revoke_token(token)
            .map_err(|error| ProviderError::ConnectError(error.to_string()))?;
        let unsent = request.request_async(&|request| capture.take(request)).await;
        drop(unsent);
        let mut request = capture.request()?;
        *request.uri_mut() = endpoint
            .as_str()
            .parse()
            .map_err(|_| ProviderError::ConnectError("the endpoint is no URL".to_owned()))?;
        let call = Call(Operation::Revoke, &server.name);
        self.send(call, request, None, |response| classify::revocation(&response)).await
    }
}
