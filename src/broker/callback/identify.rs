//! Identifies the user who consented: by the ID token if one was requested, and by the provider's other values.

use std::time::Duration;

use serde_json::{Map, Value};

use super::BrowserState;
use crate::broker::CallbackService;
use crate::domain::authorization::Authorization;
use crate::domain::identity::{Identity, name_in};
use crate::domain::provider::{OPENID, Server};
use crate::domain::time::Timestamp;
use crate::domain::token::{RawAnswer, TokenSet};
use crate::provider::id_token::Claims;
use crate::provider::{Expected, IdTokenError, OAuthError};
use crate::storage::StorageError;

/// The time for which the provider has to say who the user is. The name is no reason to keep them waiting.
const USERINFO_LIMIT: Duration = Duration::from_secs(5);

/// The answer to a code.
#[derive(Clone, Copy)]
pub(super) struct Exchanged<'a> {
    /// As it came.
    pub(super) answer: &'a RawAnswer,
    /// As it was read.
    pub(super) tokens: &'a TokenSet,
    /// When the code was sent.
    pub(super) at: Timestamp,
}

/// Why there is no telling who consented.
pub(super) enum Unidentified {
    /// The ID token is not believed, so neither are the other tokens.
    Rejected(OAuthError),
    /// The authorization was cancelled while the code was exchanged. Nothing was stored.
    Cancelled,
    Storage(StorageError),
}

fn sub_in(fields: &Map<String, Value>) -> Option<&str> {
    fields.get("sub").and_then(Value::as_str)
}

impl CallbackService {
    /// Finds out who consented. Before anybody is asked, the answer is sealed.
    pub(super) async fn identify(
        &self,
        authorization: &Authorization,
        server: &Server,
        start: &BrowserState<'_>,
        exchanged: Exchanged<'_>,
    ) -> Result<Identity, Unidentified> {
        let openid = authorization.scopes.contains(OPENID);
        let checks = openid && server.checks_id_tokens();
        // What an issuer names is OpenID Connect's own, and wants its scope.
        let userinfo = server
            .userinfo_endpoint
            .as_ref()
            .filter(|_| openid || server.endpoints.userinfo.is_some());
        if !checks && userinfo.is_none() {
            return Ok(Identity::default());
        }
        let held = self
            .health
            .until_stored("a token answer", || {
                self.authorizations.hold_answer(authorization, exchanged.answer)
            })
            .await;
        if !held.map_err(Unidentified::Storage)? {
            return Err(Unidentified::Cancelled);
        }
        let claims = match checks {
            true => self.claims(server, start, exchanged).await?,
            false => None,
        };
        let sub = claims.as_ref().map(|claims| claims.sub.clone());
        let named = |fields: &_| name_in(fields, server.identity.as_deref());
        let mut name = claims.as_ref().and_then(|claims| named(&claims.all));
        if name.is_none()
            && let Some(endpoint) = userinfo
        {
            let token = &exchanged.tokens.access_token.value;
            let asked = self.providers.userinfo(server, endpoint, token);
            name = match tokio::time::timeout(USERINFO_LIMIT, asked).await {
                // An answer about another user must not be used (section 5.3.2).
                Ok(Ok(Some(fields))) if sub.is_none() || sub.as_deref() == sub_in(&fields) => {
                    named(&fields)
                }
                Ok(Ok(_)) => None,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "the provider does not say who the user is");
                    None
                }
                Err(_) => {
                    tracing::warn!("the provider does not say in time who the user is");
                    None
                }
            };
        }
        // Better than nothing: it is the same for the same user.
        let name = name.or_else(|| sub.clone()).unwrap_or_default().replace(char::is_control, "");
        Ok(Identity { name, sub })
    }

    /// The claims of the ID token. Returns `None` if the provider granted no `openid`.
    async fn claims(
        &self,
        server: &Server,
        start: &BrowserState<'_>,
        Exchanged { tokens, at, .. }: Exchanged<'_>,
    ) -> Result<Option<Claims>, Unidentified> {
        let rejected = |code| Unidentified::Rejected(OAuthError::new(code));
        let Some(token) = &tokens.id_token else {
            if !tokens.access_token.scopes.contains(OPENID) {
                return Ok(None);
            }
            tracing::warn!("openid was granted, and there is no ID token");
            return Err(rejected("invalid_id_token"));
        };
        let expected = Expected { nonce: &start.nonce(), now: at };
        match self.providers.check_id_token(server, token, expected).await {
            // At most 255 ASCII characters (OpenID Connect Core section 2). A control character, such as
            // the NUL that PostgreSQL refuses, is no user.
            Ok(claims) if claims.sub.chars().any(char::is_control) => {
                tracing::warn!("the ID token's sub has a control character");
                Err(rejected("invalid_id_token"))
            }
            Ok(claims) => Ok(Some(claims)),
            Err(error) => {
                tracing::warn!(%error, "the ID token is not believed");
                Err(rejected(match error {
                    IdTokenError::Invalid(_) => "invalid_id_token",
                    IdTokenError::Keys(_) => "temporarily_unavailable",
                }))
            }
        }
    }
}
