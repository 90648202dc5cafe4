//! Revocation (RFC 7009).

use http::StatusCode;
use oauth2::{AccessToken, RefreshToken, RevocationUrl, StandardRevocableToken};
use secrecy::{ExposeSecret, SecretString};

use super::error::ProviderError;
use super::exchange::{Capture, client};
use super::http::{Call, Http, Operation};
use super::response;
use crate::domain::provider::Server;
use crate::domain::token::{RawAnswer, TokenKind};

impl Http {
    /// Revokes a token. A token that the provider does not know counts as revoked (RFC 7009
    /// section 2.2).
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
            return Err(ProviderError::Odd("no revocation endpoint".to_owned()));
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
            .map_err(|error| ProviderError::NotSent(error.to_string()))?;
        let unsent = request.request_async(&|request| capture.take(request)).await;
        drop(unsent);
        let mut request = capture.request()?;
        *request.uri_mut() = endpoint
            .as_str()
            .parse()
            .map_err(|_| ProviderError::NotSent("the endpoint is no URL".to_owned()))?;
        let (status, content_type, body) =
            self.send(Call(Operation::Revoke, &server.name), request).await?;
        confirmed(status, &RawAnswer { content_type, body: Vec::from(body).into() })
    }
}

fn confirmed(status: StatusCode, answer: &RawAnswer) -> Result<(), ProviderError> {
    if status.is_success() {
        return Ok(());
    }
    match response::error_in(answer) {
        // Some providers say so instead of answering 200: the token is dead all the same.
        Some(error) if matches!(error.code.as_str(), "invalid_token" | "invalid_grant") => Ok(()),
        Some(error) => Err(ProviderError::Refused { status: status.as_u16(), error }),
        None if status == StatusCode::UNAUTHORIZED => Err(ProviderError::Unauthorized),
        None => Err(ProviderError::Odd(format!("status {}", status.as_u16()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(status: u16, body: &str) -> Result<(), ProviderError> {
        confirmed(
            StatusCode::from_u16(status).expect("a status"),
            &RawAnswer {
                content_type: "application/json".to_owned(),
                body: body.as_bytes().to_vec().into(),
            },
        )
    }

    #[test]
    fn a_token_that_is_unknown_there_counts_as_revoked() {
        assert_eq!(outcome(200, ""), Ok(()));
        assert_eq!(outcome(400, r#"{"error":"invalid_token"}"#), Ok(()));
        assert!(outcome(400, r#"{"error":"unsupported_token_type"}"#).is_err());
        assert!(outcome(302, "").is_err());
        assert!(outcome(401, "").is_err());
    }
}
