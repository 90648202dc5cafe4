//! The exchange of a code: sent once, its answer sealed before it is used.

use std::time::Duration;

use secrecy::SecretString;

use super::identify::{Exchanged, Unidentified};
use super::{
    BrowserState, CallbackError, CallbackOutcome, VerifiedState, outcome_of_final, unavailable,
};
use crate::broker::CallbackService;
use crate::broker::access::disposal;
use crate::domain::authorization::{Failure, State};
use crate::domain::bot::Confirmation;
use crate::domain::grant::GrantKey;
use crate::domain::id::Id;
use crate::domain::provider::{Provider, Server};
use crate::domain::time::Timestamp;
use crate::domain::token::RawAnswer;
use crate::provider::response::{Context, Request};
use crate::provider::{INVALID_RESPONSE, OAuthError, ProviderError, TokenAnswer};
use crate::storage::{Answered, Begun, StoredAuthorization};

/// The time that a revocation under way is waited for: as long as one call may take.
const REVOCATION_WAIT: Duration = crate::provider::http::TIMEOUT;
const REVOCATION_POLL: Duration = Duration::from_millis(100);

impl CallbackService {
    /// Exchanges the code and stores what comes back.
    pub(super) async fn exchange(
        &self,
        seen: StoredAuthorization,
        attempt: &VerifiedState<'_>,
        server: &Server,
        start: &BrowserState<'_>,
        code: &SecretString,
    ) -> Result<CallbackOutcome, CallbackError> {
        let id = attempt.id;
        // Recorded first: from here on no other redirect may send a code for this authorization.
        let permit = self.browser_permit().await?;
        let begun = self.authorizations.begin_exchange(id, &attempt.salt).await;
        drop(permit);
        let exchanged_at = match begun.map_err(|error| unavailable(error.into()))? {
            Begun::Now(at) => at,
            Begun::Before => return self.outcome_again(id, start, server).await,
            Begun::Closed => {
                return self.outcome_of_closed(id, server).await;
            }
        };
        self.let_revocations_end(&seen.authorization.key).await;
        let redirect_uri = self.redirect_uri(server);
        let http = self.providers.http();
        let scopes = &seen.authorization.scopes;
        let request = Request::CodeExchange;
        let context = Context { request, scopes, lifetime: None, issued_at: exchanged_at };
        let answer =
            http.exchange_code(server, code, start.verifier(), &redirect_uri, context).await;
        match answer {
            Ok(answer) => self.store_answer(seen, server, start, answer, exchanged_at).await,
            Err(error) => self.end_failed(&seen, server, &error, None).await,
        }
    }

    /// Waits while an old token of the key is on its way to be revoked: the provider could end the
    /// new grant with it. From here on the outbox leaves the key alone.
    async fn let_revocations_end(&self, key: &GrantKey) {
        let ends = tokio::time::Instant::now() + REVOCATION_WAIT;
        while tokio::time::Instant::now() < ends {
            match self.outbox.revoking(key).await {
                Ok(true) => tokio::time::sleep(REVOCATION_POLL).await,
                // Without storage the answer could not be kept either; that is seen to later.
                Ok(false) | Err(_) => return,
            }
        }
    }

    async fn store_answer(
        &self,
        seen: StoredAuthorization,
        server: &Server,
        start: &BrowserState<'_>,
        answer: TokenAnswer,
        exchanged_at: Timestamp,
    ) -> Result<CallbackOutcome, CallbackError> {
        let authorization = &seen.authorization;
        let TokenAnswer { raw: answer, tokens } = answer;
        let tokens = match tokens {
            Ok(tokens) => tokens.ending_when_idle(server.refresh_idle),
            Err(unusable) => {
                tracing::warn!(reason = unusable.reason, "the token answer cannot be used");
                let error = unusable.error.unwrap_or_else(|| OAuthError::new(INVALID_RESPONSE));
                return self.give_up(&seen, server, &answer, exchanged_at, error).await;
            }
        };
        let exchanged = Exchanged { answer: &answer, tokens: &tokens, at: exchanged_at };
        let identity = match self.identify(authorization, server, start, exchanged).await {
            Ok(identity) => identity,
            Err(Unidentified::Cancelled) => {
                self.discard(&seen, server, &answer, exchanged_at).await?;
                return Err(CallbackError::EndedLink);
            }
            Err(Unidentified::Rejected(error)) => {
                return self.give_up(&seen, server, &answer, exchanged_at, error).await;
            }
            Err(Unidentified::Storage(error)) => return Err(unavailable(error.into())),
        };
        let disposal = disposal(&self.providers, &server.name);
        let stored = match self.confirmation_of(&authorization.bot) {
            Confirmation::Code => {
                let code_hash = start.confirmation_code_hash();
                self.health
                    .until_stored("a token answer", || {
                        let answered =
                            Answered { answer: &answer, identity: &identity, exchanged_at };
                        let ttl = self.confirmation_ttl;
                        self.authorizations.quarantine(
                            authorization,
                            answered,
                            &code_hash,
                            ttl,
                            &disposal,
                        )
                    })
                    .await
            }
            Confirmation::None => self
                .health
                .until_stored("a grant", || {
                    self.authorizations.authorize(authorization, &tokens, &identity, &[])
                })
                .await
                .map(|grant| grant.is_some()),
        };
        if let Err(error) = &stored
            && !error.is_transient()
        {
            tracing::error!(%error, "the database refuses the token answer; the authorization fails");
            let error = OAuthError::new(INVALID_RESPONSE);
            return self.give_up(&seen, server, &answer, exchanged_at, error).await;
        }
        if let Some(breaker) = self.breakers.get(&server.name) {
            breaker.note_success(authorization.id, exchanged_at);
        }
        self.cache.forget(authorization.key.hash());
        let unconfirmed = self.confirmation_of(&authorization.bot) == Confirmation::None;
        let stored = stored.map_err(|error| unavailable(error.into()))?;
        // Stored by this exchange, although the confirmation of the commit was lost.
        let stored = stored || unconfirmed && self.is_authorized(authorization.id).await?;
        if !stored {
            // Cancelled while the provider was answering; a quarantine has seen to its answer.
            if unconfirmed {
                self.discard(&seen, server, &answer, exchanged_at).await?;
            }
            return Err(CallbackError::EndedLink);
        }
        if unconfirmed {
            self.metrics.authorization(&server.name, "authorized");
        }
        tracing::info!(authorization.id = %authorization.id, "code exchanged");
        let seen = self.find(authorization.id).await?.ok_or(CallbackError::UnknownRedirect)?;
        match seen.state() {
            State::AwaitingConfirmation => Ok(self.confirm_outcome(&seen, start, server)),
            _ => Ok(outcome_of_final(&seen, server)),
        }
    }

    async fn is_authorized(&self, id: Id) -> Result<bool, CallbackError> {
        let seen = self.find(id).await?;
        Ok(seen.is_some_and(|seen| matches!(seen.state(), State::Authorized)))
    }

    /// Ends an authorization whose answer cannot be used, and sees to its tokens.
    async fn give_up(
        &self,
        seen: &StoredAuthorization,
        server: &Server,
        answer: &RawAnswer,
        exchanged_at: Timestamp,
        error: OAuthError,
    ) -> Result<CallbackOutcome, CallbackError> {
        let error = ProviderError::Refused { status: 200, error };
        self.end_failed(seen, server, &error, Some((answer, exchanged_at))).await
    }

    /// Disposes of the tokens of an unused answer.
    async fn discard(
        &self,
        seen: &StoredAuthorization,
        provider: &Provider,
        answer: &RawAnswer,
        exchanged_at: Timestamp,
    ) -> Result<(), CallbackError> {
        let disposal = disposal(&self.providers, &provider.name);
        let end = State::Failed(Failure::exchange_interrupted());
        self.health
            .until_stored("tokens to be revoked", || {
                let authorization = &seen.authorization;
                self.authorizations.discard_answer(
                    authorization,
                    answer,
                    exchanged_at,
                    &end,
                    &disposal,
                )
            })
            .await
            .map_err(|error| unavailable(error.into()))
    }

    /// The provider sent no usable tokens. A refused code leaves the authorization pending, because anyone with the
    /// link can send garbage. Everything else ends it, because a code is never sent twice.
    async fn end_failed(
        &self,
        seen: &StoredAuthorization,
        provider: &Provider,
        error: &ProviderError,
        answered: Option<(&RawAnswer, Timestamp)>,
    ) -> Result<CallbackOutcome, CallbackError> {
        let id = seen.authorization.id;
        tracing::warn!(authorization.id = %id, provider = %provider.name, %error, "code exchange failed");
        let code = error.code().map_or("temporarily_unavailable".to_owned(), |error| error.code);
        let sentence = format!("{} did not give a token.", provider.display_name);
        let failure = Failure::new(&code, &sentence);
        let refused_code = matches!(error, ProviderError::DeadGrant { .. });
        let stored = if refused_code {
            self.health
                .until_stored("a refused code", || self.authorizations.refuse_code(id, &failure))
                .await
        } else {
            self.metrics.authorization(&provider.name, "failed");
            let state = State::Failed(failure);
            let disposal = disposal(&self.providers, &provider.name);
            self.health
                .until_stored("a failed exchange", || async {
                    match answered {
                        Some((answer, at)) => {
                            let authorization = &seen.authorization;
                            self.authorizations
                                .discard_answer(authorization, answer, at, &state, &disposal)
                                .await
                        }
                        None => self.authorizations.end_exchange(id, &state).await.map(|_| ()),
                    }
                })
                .await
        };
        stored.map_err(|error| unavailable(error.into()))?;
        let seen = self.find(id).await?.ok_or(CallbackError::UnknownRedirect)?;
        match seen.state() {
            State::Pending => {
                let again = seen.authorization.link_works(seen.now).then(|| self.start_url(id));
                Err(CallbackError::RefusedCode { start: again })
            }
            _ => Ok(outcome_of_final(&seen, provider)),
        }
    }
}
