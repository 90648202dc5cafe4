//! `check --online`: whether a provider accepts the client.

use std::sync::Arc;

use secrecy::SecretString;

use crate::crypto::random::Random;
use crate::domain::provider::Provider;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::provider::response::{Context, Request};
use crate::provider::{Directory, ProviderError, TokenAnswer};

/// Sends a made-up refresh token. A provider that accepts the client refuses only the token (`invalid_grant`), and one
/// that does not, the client (`invalid_client`; RFC 6749 section 5.2).
pub(super) async fn client(directory: &Directory, provider: &Provider) -> anyhow::Result<String> {
    let server = directory.server(provider).await.map_err(|error| {
        anyhow::anyhow!("not tried, because its endpoints are not known: {error}")
    })?;
    let made_up = format!("token-broker-check-{}", hex::encode(Random::system().bytes::<16>()));
    let (scopes, issued_at) = (Scopes::default(), Timestamp::from_millis(0));
    let context = Context { request: Request::Refresh, scopes: &scopes, lifetime: None, issued_at };
    let token = SecretString::from(made_up);
    // Any time will do: nothing is stored.
    let answer = directory.http().refresh(&server, &token, Arc::new(|| true), context).await;
    let keys = format!("providers.{}.client_id, client_secret and client_auth", provider.name);
    let endpoint = format!("providers.{}.token_endpoint", provider.name);
    match answer {
        Ok(TokenAnswer { tokens: Ok(_), .. }) => anyhow::bail!(
            "a made-up refresh token was accepted; correct {endpoint}, for no authorization server does that"
        ),
        Ok(TokenAnswer { tokens: Err(unusable), .. }) => anyhow::bail!(
            "the answer to a made-up refresh token is no token response ({}); correct {endpoint}",
            unusable.reason
        ),
        Err(ProviderError::DeadGrant { error, .. }) if error.is_misconfiguration() => {
            anyhow::bail!(
                "refused: {error}; allow this client refresh tokens at the provider, or correct {keys}"
            )
        }
        Err(ProviderError::DeadGrant { error, .. }) => {
            Ok(format!("accepted (a made-up refresh token was refused: {error})"))
        }
        Err(ProviderError::RefusesBroker { error, .. }) => {
            anyhow::bail!("refused: {error}; correct {keys}")
        }
        Err(ProviderError::Unauthorized) => {
            anyhow::bail!("refused: status 401 without an error code; correct {keys}")
        }
        Err(ProviderError::Refused { error, status }) if error.is_misconfiguration() => {
            anyhow::bail!("refused: {error}, status {status}; correct {keys}")
        }
        Err(error @ (ProviderError::Refused { .. } | ProviderError::UnexpectedResponse(_))) => {
            Ok(format!(
                "not known, because the provider answers a made-up refresh token in its own way: {error}"
            ))
        }
        Err(error) => anyhow::bail!("not tried: {error}; try again"),
    }
}
