//! Authorize: begin an authorization and give the link for the user.

use url::Url;

use super::access::{admit, check_scopes, disposal};
use super::{AuthorizationService, BrokerError};
use crate::domain::authorization::{Authorization, Flow, Options};
use crate::domain::bot::Bot;
use crate::domain::grant::GrantKey;
use crate::domain::id::Id;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::provider::{INVALID_RESPONSE, OAuthError};
use crate::storage::{NewAuthorization, StorageError, Swept};

/// A request to start an authorization.
#[derive(Debug, Clone)]
pub struct AuthorizeRequest {
    /// The grant that it is to leave.
    pub key: GrantKey,
    /// Empty: the provider's default scopes.
    pub scopes: Scopes,
    /// Options of the flow.
    pub start: AuthorizeOptions,
}

/// Options of a new authorization.
#[derive(Debug, Clone, Default)]
pub struct AuthorizeOptions {
    /// The flow. `None`: the provider's default.
    pub flow: Option<Flow>,
    /// The return URL and the login hint.
    pub options: Options,
}

/// The field of Authorize that a return URL comes in.
pub(super) const RETURN_URL: &str = "options.return_url";

/// An authorization that waits for its user.
#[derive(Debug, Clone)]
pub struct Started {
    /// Names it.
    pub id: Id,
    /// The link for the user.
    pub url: Url,
    /// Until when the link works.
    pub link_expires_at: Timestamp,
}

impl AuthorizationService {
    /// Begins an authorization.
    ///
    /// # Errors
    ///
    /// [`BrokerError`] where the bot may not, an option is not allowed, or storage is away.
    pub async fn authorize(
        &self,
        bot: &Bot,
        request: AuthorizeRequest,
    ) -> Result<Started, BrokerError> {
        let (request, scopes) = self.checked(bot, request).await?;
        let new = self.new_authorization(bot, &request, &scopes);
        let authorization = self.authorizations.insert_authorization(&new).await?;
        tracing::info!(
            authorization.id = %authorization.id,
            provider = %request.key.provider,
            "authorization started"
        );
        Ok(self.started(&authorization))
    }

    /// The same, or one that already waits with the same parameters: a bot that polls GetToken
    /// does not pile up links.
    pub(super) async fn authorize_once(
        &self,
        bot: &Bot,
        request: AuthorizeRequest,
    ) -> Result<Started, BrokerError> {
        let (request, scopes) = self.checked(bot, request).await?;
        let new = self.new_authorization(bot, &request, &scopes);
        let authorization = self.authorizations.find_or_insert_authorization(&new).await?;
        tracing::info!(
            authorization.id = %authorization.id,
            provider = %request.key.provider,
            "authorization started, or waiting already"
        );
        Ok(self.started(&authorization))
    }

    fn new_authorization<'a>(
        &self,
        bot: &'a Bot,
        request: &'a AuthorizeRequest,
        scopes: &'a Scopes,
    ) -> NewAuthorization<'a> {
        NewAuthorization {
            key: &request.key,
            bot: &bot.name,
            scopes,
            options: &request.start.options,
            link_ttl: self.link_ttl,
        }
    }

    /// Checks the request, and returns the scopes to ask for. Those that were requested for a grant of the key are among
    /// them, so that one feature does not take another's away, as far as the bot's policy allows them.
    async fn checked(
        &self,
        bot: &Bot,
        mut request: AuthorizeRequest,
    ) -> Result<(AuthorizeRequest, Scopes), BrokerError> {
        let provider = admit(&self.providers, bot, &request.key)?;
        if request.start.flow == Some(Flow::DeviceCode) {
            return Err(BrokerError::FlowNotSupported {
                provider: provider.name.clone(),
                flow: "device_code",
            });
        }
        let asked =
            if request.scopes.is_empty() { &provider.default_scopes } else { &request.scopes };
        check_scopes(bot, &request.key, asked)?;
        // With unusable metadata the link would end at an error page.
        self.providers.check_metadata(provider).await.map_err(|_wrong| {
            let error = OAuthError::new(INVALID_RESPONSE);
            BrokerError::ProviderMisconfigured { provider: provider.name.clone(), error }
        })?;
        let asked = asked.clone();
        if let Some(text) = &request.start.options.return_url {
            let Some(url) = bot.allowed_return_url(text) else {
                return Err(BrokerError::InvalidArgument {
                    field: RETURN_URL,
                    problem: "is not among the return URLs that are allowed to this bot".to_owned(),
                });
            };
            // As it was compared: a browser might read another spelling otherwise.
            request.start.options.return_url = Some(url.into());
        }
        let grant = self.grants.find_grant_without_token(&request.key).await?;
        let name = provider.name.as_str();
        let scopes = grant.map_or_else(
            || asked.clone(),
            |grant| asked.union(&bot.scopes_within(name, grant.requested_scopes())),
        );
        Ok((request, scopes))
    }

    fn started(&self, authorization: &Authorization) -> Started {
        Started {
            id: authorization.id,
            url: self.start_url(authorization.id),
            link_expires_at: authorization.link_expires_at,
        }
    }

    /// The link that the user opens.
    #[must_use]
    pub fn start_url(&self, id: Id) -> Url {
        start_url(&self.public_url, id)
    }

    /// Ends authorizations whose time is up, about `limit` at once.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn sweep(&self, limit: u64) -> Result<Swept, StorageError> {
        self.outbox.forget_ended_revocations().await?;
        let swept = self
            .authorizations
            .sweep_authorizations(limit, |provider| disposal(&self.providers, provider))
            .await?;
        for (provider, state) in &swept.ended {
            self.metrics.authorization(provider, state.as_str());
        }
        Ok(swept)
    }
}

/// The link that the user opens to authorize.
pub(super) fn start_url(public_url: &Url, id: Id) -> Url {
    under(public_url, &format!("oauth2/start/{id}"))
}

/// A path under a public URL, which may itself have one.
pub(super) fn under(public_url: &Url, path: &str) -> Url {
    let mut url = public_url.clone();
    let base = url.path().trim_end_matches('/').to_owned();
    url.set_path(&format!("{base}/{path}"));
    url
}
