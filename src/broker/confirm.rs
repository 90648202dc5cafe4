//! ConfirmAuthorization: the code comes back from the chat.

use super::access::{check_subject, disposal, providers_of};
use super::oauth_state::code_matches;
use super::{AuthorizationService, BrokerError};
use crate::domain::authorization::{Failure, State};
use crate::domain::bot::Bot;
use crate::domain::grant::{Grant, Subject};
use crate::domain::id::Id;
use crate::provider::response::{self, Context, Request};
use crate::storage::Awaiting;

/// A request to confirm an authorization.
#[derive(Debug)]
pub struct ConfirmRequest {
    /// The chat user who typed the code.
    pub subject: Subject,
    /// The 8 digits.
    pub code: String,
    /// The authorization. `None`: the one of the subject's that the code fits.
    pub id: Option<Id>,
}

impl AuthorizationService {
    /// Compares the code, after the attempt has been counted, and stores the grant.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn confirm(&self, bot: &Bot, request: ConfirmRequest) -> Result<Grant, BrokerError> {
        check_subject(bot, &request.subject)?;
        if let Some(id) = request.id
            && let Some(grant) = self.confirmed_before(bot, &request, id).await?
        {
            return Ok(grant);
        }
        let providers = providers_of(&self.providers, bot, None);
        let awaiting = self
            .authorizations
            .count_attempt(&bot.namespace, &request.subject, request.id, &providers)
            .await?;
        let (matching, others): (Vec<_>, Vec<_>) = awaiting.into_iter().partition(|awaiting| {
            let id = awaiting.authorization.id;
            code_matches(&self.keyring, id, &request.code, &awaiting.code_hash)
        });
        match matching.into_iter().next() {
            Some(confirmed) => self.store_confirmed(bot, &request, confirmed, &others).await,
            None => self.mismatch(bot, &request, others).await,
        }
    }

    /// The grant, where this very code has confirmed this authorization before.
    async fn confirmed_before(
        &self,
        bot: &Bot,
        request: &ConfirmRequest,
        id: Id,
    ) -> Result<Option<Grant>, BrokerError> {
        let seen = self
            .authorizations
            .find_authorization(Some(&bot.namespace), id)
            .await?
            .filter(|seen| seen.authorization.key.subject == request.subject)
            .filter(|seen| bot.may_use(seen.authorization.key.provider.as_str()))
            .ok_or(BrokerError::AuthorizationNotFound { id: Some(id.to_string()) })?;
        let state = seen.state();
        if state == State::AwaitingConfirmation {
            return Ok(None);
        }
        let same_code = seen
            .code_hash
            .as_deref()
            .is_some_and(|hash| code_matches(&self.keyring, id, &request.code, hash));
        if state == State::Authorized && same_code {
            let grant = self.grants.find_grant_without_token(&seen.authorization.key).await?;
            if let Some(grant) = grant {
                return Ok(Some(grant));
            }
        }
        Err(BrokerError::NotAwaitingConfirmation { state })
    }

    async fn store_confirmed(
        &self,
        bot: &Bot,
        request: &ConfirmRequest,
        confirmed: Awaiting,
        others: &[Awaiting],
    ) -> Result<Grant, BrokerError> {
        let authorization = &confirmed.authorization;
        let context = Context {
            request: Request::CodeExchange,
            scopes: &authorization.scopes,
            lifetime: None,
            issued_at: confirmed.exchanged_at,
        };
        let tokens = response::read(&confirmed.answer, context).map_err(|unusable| {
            tracing::error!(
                reason = unusable.reason,
                "a token answer that was usable is no longer"
            );
            BrokerError::Internal
        })?;
        let provider = self.providers.get(authorization.key.provider.as_str());
        let idle = provider.and_then(|provider| provider.refresh_idle);
        let tokens = tokens.ending_when_idle(idle);
        let uncount: Vec<_> = others.iter().map(|other| other.authorization.id).collect();
        let stored = self
            .authorizations
            .authorize(authorization, &tokens, &confirmed.identity, &uncount)
            .await?;
        if let Some(grant) = stored {
            self.cache.forget(authorization.key.hash());
            self.metrics.authorization(&authorization.key.provider, "authorized");
            tracing::info!(authorization.id = %authorization.id, "authorization confirmed");
            return Ok(grant);
        }
        // Confirmed or ended by another call in the meantime.
        self.confirmed_before(bot, request, authorization.id)
            .await?
            .ok_or(BrokerError::NotAwaitingConfirmation { state: State::AwaitingConfirmation })
    }

    /// The code fits none: authorizations whose attempts are used up end, and their tokens go.
    async fn mismatch(
        &self,
        bot: &Bot,
        request: &ConfirmRequest,
        awaiting: Vec<Awaiting>,
    ) -> Result<Grant, BrokerError> {
        let attempts_left = awaiting.iter().map(|awaiting| awaiting.attempts_left).max();
        for spent in awaiting.iter().filter(|awaiting| awaiting.attempts_left == 0) {
            tracing::warn!(authorization.id = %spent.authorization.id, "too many wrong codes");
            self.metrics.authorization(&spent.authorization.key.provider, "failed");
            let disposal = disposal(&self.providers, &spent.authorization.key.provider);
            let failure = Failure::too_many_wrong_codes();
            self.authorizations.fail_confirmation(spent, failure, &disposal).await?;
        }
        match (attempts_left, request.id) {
            (Some(attempts_left), _) => Err(BrokerError::ConfirmationMismatch { attempts_left }),
            (None, None) => Err(BrokerError::AuthorizationNotFound { id: None }),
            // Nothing was counted: another call has just confirmed it, or used its attempts up.
            (None, Some(id)) => {
                let confirmed = self.confirmed_before(bot, request, id).await?;
                confirmed.ok_or_else(|| BrokerError::NotAwaitingConfirmation {
                    state: State::Failed(Failure::too_many_wrong_codes()),
                })
            }
        }
    }
}
