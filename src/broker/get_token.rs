//! GetToken: an access token that is good for as long as the caller needs, refreshed where it is not.

use std::time::Duration;

use super::access::{admit, check_scopes};
use super::authorize::{AuthorizeOptions, AuthorizeRequest, RETURN_URL};
use super::cache::CachedToken;
use super::{BrokerError, CacheCounts, TokenService};
use crate::domain::bot::Bot;
use crate::domain::grant::{Grant, GrantKey, GrantState, KeyHash};
use crate::domain::id::Id;
use crate::domain::scope::Scopes;
use crate::domain::token::AccessToken;
use crate::storage::{GrantStore, InvalidationListener, StorageError, StoredGrant};

/// The time that a caller waits for a new token whose old one lives.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request for an access token.
#[derive(Debug, Clone)]
pub struct GetTokenRequest {
    /// The key of the grant.
    pub key: GrantKey,
    /// The least time that the token must stay valid.
    pub min_ttl: Duration,
    /// The scopes that the token must cover.
    pub scopes: Scopes,
    /// Starts an authorization with these options if the user has to authorize.
    pub start: Option<AuthorizeOptions>,
}

/// A token for a caller, with the grant that it is of.
#[derive(Debug, Clone)]
pub struct IssuedToken {
    /// The grant.
    pub grant: Grant,
    /// The token.
    pub token: AccessToken,
}

impl TokenService {
    /// Lends an access token as the database has it, refreshed where it is too short.
    ///
    /// # Errors
    ///
    /// [`BrokerError`]; where the user has to authorize and the request says so, with the
    /// authorization that was started.
    pub async fn get_token(
        &self,
        bot: &Bot,
        request: GetTokenRequest,
    ) -> Result<IssuedToken, BrokerError> {
        let issued = self.token_of(bot, &request).await;
        match (issued, request.start) {
            (Err(error), Some(start))
                if error.needs_authorization() && bot.may_call("Authorize") =>
            {
                let authorize =
                    AuthorizeRequest { key: request.key, scopes: request.scopes, start };
                // Boxed, as below: the state of a call is moved about, and this is rarely a part of it.
                let started = Box::pin(self.authorizations.authorize_once(bot, authorize)).await;
                let started = started.map_err(in_start)?;
                Err(error.with_started(started))
            }
            (issued, _) => issued,
        }
    }

    async fn token_of(
        &self,
        bot: &Bot,
        request: &GetTokenRequest,
    ) -> Result<IssuedToken, BrokerError> {
        admit(&self.providers, bot, &request.key)?;
        check_scopes(bot, &request.key, &request.scopes)?;
        let held = match self.held_now(&request.key).await {
            // A bot may keep using a token that it was issued a moment ago.
            Err(error) if error.is_storage_unavailable() => self.held_in_outage(request, error)?,
            held => held?,
        };
        // Before anything is sent: a bot that may not have the token must not cause a refresh either.
        self.may_have(bot, &held.grant, &request.scopes)?;
        let held = match due(&held, request.min_ttl) {
            Due::Nothing => held,
            Due::Reauthorization => return Err(reauthorization(&request.key)),
            // A refresh is impossible now, and the token is valid.
            Due::Refresh { old_still_lives: true } if !self.health.is_up() => held,
            Due::Refresh { old_still_lives: true } => {
                Box::pin(self.refreshed_or_held(held)).await?
            }
            Due::Refresh { old_still_lives: false } => {
                Box::pin(self.refreshes.refreshed(&held)).await?
            }
        };
        self.issue(bot, held, &request.scopes)
    }

    /// Returns a suitable token from the cache. [`TokenService::get_token`] decides everything else: a demand on the user never
    /// comes from the cache.
    pub fn get_cached_token(&self, bot: &Bot, request: &GetTokenRequest) -> Option<CachedToken> {
        admit(&self.providers, bot, &request.key).ok()?;
        check_scopes(bot, &request.key, &request.scopes).ok()?;
        let hit = self.cache.get(&request.key, false)?;
        if !hit.token().is_good_for(request.min_ttl, hit.now) {
            return None;
        }
        self.may_have(bot, hit.grant(), &request.scopes).ok()?;
        self.note_use(hit.first_use);
        Some(hit)
    }

    /// Returns the last token that was read, while the database cannot be asked.
    fn held_in_outage(
        &self,
        request: &GetTokenRequest,
        error: BrokerError,
    ) -> Result<StoredGrant, BrokerError> {
        let hit = self.cache.get(&request.key, true);
        let hit = hit.filter(|hit| hit.token().is_living(hit.now));
        let covering = hit.filter(|hit| self.covers(hit.grant(), &request.scopes).is_ok());
        covering.map(CachedToken::into_held).ok_or(error)
    }

    /// Reads a grant, and keeps it for those who ask next.
    async fn held_now(&self, key: &GrantKey) -> Result<StoredGrant, BrokerError> {
        let ticket = self.cache.ticket(key);
        let held = read_grant(&self.grants, key).await?;
        self.cache.put(ticket, &held);
        self.note_use(Some(held.grant.id));
        Ok(held)
    }

    /// The grant with a new token, or with the old one if the refresh fails or takes long. A refresh that
    /// takes long does not end with its caller's patience.
    async fn refreshed_or_held(&self, held: StoredGrant) -> Result<StoredGrant, BrokerError> {
        let error = match tokio::time::timeout(PATIENCE, self.refreshes.refreshed(&held)).await {
            Ok(Ok(refreshed)) => return Ok(refreshed),
            Ok(Err(error)) => error,
            Err(_) => BrokerError::ProviderUnavailable {
                provider: held.grant.key.provider.clone(),
                retry_after: PATIENCE,
            },
        };
        self.still_held(held, error).await
    }

    /// The old token is served while it is valid, also if the refresh fails. The grant is read again, because it may
    /// have been revoked during the refresh.
    async fn still_held(
        &self,
        before: StoredGrant,
        error: BrokerError,
    ) -> Result<StoredGrant, BrokerError> {
        let now = match read_grant(&self.grants, &before.grant.key).await {
            Ok(now) => now,
            // Storage is away, and perhaps that is why the refresh failed.
            Err(error) if error.is_storage_unavailable() => before,
            Err(gone) => return Err(gone),
        };
        if !now.access_token.as_ref().is_some_and(|token| token.is_living(now.now)) {
            return Err(error);
        }
        tracing::warn!(%error, "refresh failed; the old access token still lives");
        Ok(now)
    }

    /// Takes note that a grant is used.
    fn note_use(&self, grant: Option<Id>) {
        if let Some(grant) = grant {
            self.used.note(grant);
        }
    }

    /// Records which grants were used since the last call, `at_once` in one statement. If this fails, the next use of a
    /// grant is recorded.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn record_use(&self, at_once: usize) -> Result<(), StorageError> {
        for some in self.used.take().chunks(at_once) {
            self.grants.note_used(some).await?;
        }
        Ok(())
    }

    /// Listens for the invalidations of other replicas. Returns `None` if there can be no other replica.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn listen(&self) -> Result<Option<InvalidationListener>, StorageError> {
        self.invalidations.listen().await
    }

    /// Removes a grant from the cache, because another replica has revoked or replaced it.
    pub fn invalidate(&self, key: KeyHash) {
        self.cache.forget(key);
    }

    /// Notifications that could not be sent to other replicas.
    #[must_use]
    pub fn unnotified(&self) -> u64 {
        self.invalidations.unnotified()
    }

    /// The cache's counts since the start.
    #[must_use]
    pub fn cache_counts(&self) -> CacheCounts {
        self.cache.counts()
    }
}

/// Reads a grant with its token from the database.
pub(super) async fn read_grant(
    grants: &GrantStore,
    key: &GrantKey,
) -> Result<StoredGrant, BrokerError> {
    grants.find_grant(key).await?.ok_or_else(|| BrokerError::AuthorizationRequired {
        provider: key.provider.clone(),
        started: None,
    })
}

/// A field of Authorize, by its path in GetToken.
fn in_start(error: BrokerError) -> BrokerError {
    match error {
        BrokerError::InvalidArgument { field: RETURN_URL, problem } => {
            BrokerError::InvalidArgument { field: "start_authorization.return_url", problem }
        }
        error => error,
    }
}

/// The action of GetToken for a grant.
#[derive(Debug, PartialEq, Eq)]
enum Due {
    /// The token is good, or nothing better can be had while it lives.
    Nothing,
    /// The token is too short or gone, and the broker can renew it.
    Refresh { old_still_lives: bool },
    /// The token is gone, and only the user can renew it.
    Reauthorization,
}

fn due(held: &StoredGrant, min_ttl: Duration) -> Due {
    let token = held.access_token.as_ref();
    let lives = token.is_some_and(|token| token.is_living(held.now));
    let renewable = held.grant.refreshable && held.grant.state == GrantState::Active;
    if token.is_some_and(|token| token.is_good_for(min_ttl, held.now)) {
        return Due::Nothing;
    }
    match (renewable, lives) {
        (true, old_still_lives) => Due::Refresh { old_still_lives },
        (false, true) => Due::Nothing,
        (false, false) => Due::Reauthorization,
    }
}

impl TokenService {
    /// Checks that the grant covers what is asked for, and that the bot may have what it covers.
    pub(super) fn issue(
        &self,
        bot: &Bot,
        held: StoredGrant,
        asked: &Scopes,
    ) -> Result<IssuedToken, BrokerError> {
        let token = held.access_token.ok_or_else(|| reauthorization(&held.grant.key))?;
        self.may_have(bot, &held.grant, asked)?;
        Ok(IssuedToken { grant: held.grant, token })
    }

    fn may_have(&self, bot: &Bot, grant: &Grant, asked: &Scopes) -> Result<(), BrokerError> {
        self.covers(grant, asked)?;
        // A namespace may be shared with a bot that may request more. What a provider adds by itself does not
        // count, because no bot has requested it.
        check_scopes(bot, &grant.key, grant.requested_scopes())
    }

    fn covers(&self, grant: &Grant, asked: &Scopes) -> Result<(), BrokerError> {
        if asked.is_empty() {
            return Ok(());
        }
        let provider = &grant.key.provider;
        let missing = match self.providers.get(provider.as_str()) {
            Some(of) => of.scope_names.missing(asked, &grant.scopes, grant.requested.as_ref()),
            None => asked.missing_from(&grant.scopes),
        };
        if missing.is_empty() {
            return Ok(());
        }
        Err(BrokerError::ScopeMissing { provider: provider.clone(), missing, started: None })
    }
}

pub(super) fn reauthorization(key: &GrantKey) -> BrokerError {
    BrokerError::ReauthorizationRequired { provider: key.provider.clone(), started: None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::{Account, Subject, Version};
    use crate::domain::name::Name;
    use crate::domain::time::Timestamp;

    /// A grant whose token of one hour has `left` seconds left.
    fn held(left: i64, refreshable: bool, state: GrantState) -> StoredGrant {
        let name = |text| Name::parse(text).expect("a name");
        let issued_at = Timestamp::from_millis(0);
        let expires_at = Some(Timestamp::from_millis(3_600_000));
        StoredGrant {
            grant: Grant {
                id: Id::from_bytes([1; 16]),
                key: GrantKey {
                    namespace: name("helper"),
                    provider: name("acme"),
                    subject: Subject::parse("u1").expect("a subject"),
                    account: Account::default(),
                },
                state,
                version: Version { generation: 1, token_version: 1 },
                scopes: Scopes::default(),
                requested: None,
                identity: crate::domain::identity::Identity::default(),
                provider_values: std::collections::BTreeMap::new(),
                created_at: issued_at,
                issued_at,
                expires_at,
                refreshable,
                refresh_expires_at: None,
                failures: 0,
                failing_since: None,
                next_attempt_at: None,
                last_error: None,
                last_used_at: None,
            },
            access_token: Some(AccessToken {
                value: "token".into(),
                token_type: "Bearer".into(),
                scopes: Scopes::default(),
                issued_at,
                expires_at,
            }),
            leased: false,
            now: Timestamp::from_millis(3_600_000 - left * 1000),
        }
    }

    #[test]
    fn what_is_due() {
        use GrantState::{Active, ReauthorizationRequired};

        let minute = Duration::from_secs(60);
        let due_of = |left, refreshable, state| due(&held(left, refreshable, state), minute);
        assert_eq!(due_of(61, true, Active), Due::Nothing);
        assert_eq!(due_of(60, true, Active), Due::Refresh { old_still_lives: true });
        assert_eq!(due_of(0, true, Active), Due::Refresh { old_still_lives: false });
        assert_eq!(due_of(1, false, Active), Due::Nothing);
        assert_eq!(due_of(0, false, Active), Due::Reauthorization);
        assert_eq!(due_of(1, true, ReauthorizationRequired), Due::Nothing);
        assert_eq!(due_of(0, true, ReauthorizationRequired), Due::Reauthorization);
        let mut without_token = held(3600, true, Active);
        without_token.access_token = None;
        assert_eq!(due(&without_token, minute), Due::Refresh { old_still_lives: false });
    }
}
