//! The token requests: a code (RFC 6749 section 4.1.3) and a refresh (section 6).
//!
//! The oauth2 crate builds the requests: client authentication, PKCE, encoding. It neither sends
//! them nor reads their answers, because its response types are stricter than real providers, and an
//! answer that it refused would take the only copy of a rotated refresh token with it.

use std::sync::{Mutex, PoisonError};

use http::Request;
use oauth2::basic::BasicClient;
use oauth2::{
    AuthType, AuthorizationCode, ClientId, ClientSecret, EndpointNotSet, EndpointSet,
    PkceCodeVerifier, RedirectUrl, RefreshToken, TokenUrl,
};
use secrecy::{ExposeSecret, SecretString};
use url::Url;

use super::classify::{TokenAnswer, token_answer};
use super::error::ProviderError;
use super::http::{Call, Http, InTime, Operation};
use super::response::Context;
use crate::domain::provider::{ClientAuth, Server};

/// A client of the oauth2 crate that knows its token endpoint.
pub(super) type Client<Revocation = EndpointNotSet> = oauth2::basic::BasicClient<
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    Revocation,
    EndpointSet,
>;

impl Http {
    /// Exchanges a code. Every answer leaves the code used up.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] if there are no tokens.
    pub async fn exchange_code(
        &self,
        server: &Server,
        code: &SecretString,
        verifier: String,
        redirect_uri: &Url,
        context: Context<'_>,
    ) -> Result<TokenAnswer, ProviderError> {
        let client = client(server).set_redirect_uri(RedirectUrl::from_url(redirect_uri.clone()));
        let capture = Capture::default();
        let unsent = client
            .exchange_code(AuthorizationCode::new(code.expose_secret().to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier))
            .request_async(&|request| capture.take(request))
            .await;
        drop(unsent);
        let call = Call(Operation::Exchange, &server.name);
        self.token_request(call, server, capture.request()?, None, context).await
    }

    /// Exchanges a refresh token. Scopes are not sent: absent means unchanged. Nothing of the token is
    /// sent once it is not `in_time` any more.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] if there are no tokens.
    pub async fn refresh(
        &self,
        server: &Server,
        refresh_token: &SecretString,
        in_time: InTime,
        context: Context<'_>,
    ) -> Result<TokenAnswer, ProviderError> {
        let capture = Capture::default();
        let unsent = client(server)
            .exchange_refresh_token(&RefreshToken::new(refresh_token.expose_secret().to_owned()))
            .request_async(&|request| capture.take(request))
            .await;
        drop(unsent);
        let call = Call(Operation::Refresh, &server.name);
        self.token_request(call, server, capture.request()?, Some(in_time), context).await
    }

    async fn token_request(
        &self,
        call: Call<'_>,
        server: &Server,
        request: Request<Vec<u8>>,
        in_time: Option<InTime>,
        context: Context<'_>,
    ) -> Result<TokenAnswer, ProviderError> {
        let dead = &server.dead_grant_errors;
        self.send(call, request, in_time, |response| token_answer(response, dead, context)).await
    }
}

pub(super) fn client(server: &Server) -> Client {
    let client = BasicClient::new(ClientId::new(server.client.id.clone()))
        .set_token_uri(TokenUrl::from_url(server.token_endpoint.clone()));
    let secret = |secret: &SecretString| ClientSecret::new(secret.expose_secret().to_owned());
    match &server.client_auth {
        ClientAuth::Basic(value) => {
            client.set_auth_type(AuthType::BasicAuth).set_client_secret(secret(value))
        }
        ClientAuth::Post(value) => {
            client.set_auth_type(AuthType::RequestBody).set_client_secret(secret(value))
        }
        ClientAuth::None => client.set_auth_type(AuthType::RequestBody),
    }
}

/// Takes the request that the oauth2 crate has built, instead of sending it.
#[derive(Default)]
pub(super) struct Capture(Mutex<Option<Request<Vec<u8>>>>);

/// The oauth2 crate's future ends with this, always.
#[derive(Debug, thiserror::Error)]
#[error("captured")]
pub(super) struct Captured;

impl Capture {
    pub(super) fn take(
        &self,
        request: Request<Vec<u8>>,
    ) -> std::future::Ready<Result<oauth2::HttpResponse, Captured>> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
        std::future::ready(Err(Captured))
    }

    pub(super) fn request(self) -> Result<Request<Vec<u8>>, ProviderError> {
        self.0
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .ok_or_else(|| ProviderError::ConnectError("the request cannot be built".to_owned()))
    }
}
