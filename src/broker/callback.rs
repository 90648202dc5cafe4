//! The browser's part: the start link, and the redirect that comes back.

mod exchange;
mod exchange_waiters;
mod identify;
mod outcome;

use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use tokio::sync::SemaphorePermit;
use url::Url;

pub(super) use self::exchange_waiters::ExchangeWaiters;
use self::outcome::outcome_of_final;
pub use self::outcome::{CallbackError, CallbackOutcome};
use super::authorize::{start_url, under};
use super::oauth_state::{BrowserSecret, BrowserState, VerifiedState};
use super::{BrokerError, CallbackService};
use crate::crypto::sealed::length_prefixed;
use crate::domain::authorization::{Failure, State};
use crate::domain::bot::Confirmation;
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::provider::{OPENID, Provider, Server};
use crate::provider::{OAuthError, endpoint};
use crate::storage::{Arrival, StoredAuthorization};

/// The time that a reload waits for the exchange that its first load began.
const EXCHANGE_WAIT: Duration = Duration::from_secs(30);
const EXCHANGE_POLL: Duration = Duration::from_millis(200);

/// The number of requests of browsers that use the database at once, and how long others wait for that. A request whose code
/// went to the provider needs no further permit.
pub(super) const BROWSER_PERMITS: usize = 4;
const BROWSER_WAIT: Duration = Duration::from_secs(5);

/// The number of requests that wait for the exchange of one authorization, and of all together.
const EXCHANGE_WAITERS: usize = 64;
const ALL_EXCHANGE_WAITERS: usize = 128;

/// Error codes of a user who refused: RFC 6749 section 4.1.2.1, LinkedIn, OpenID Connect Core section 3.1.2.6, Xero.
const DENIED: [&str; 6] = [
    "access_denied",
    "user_cancelled_login",
    "user_cancelled_authorize",
    "consent_required",
    "user_denied",
    "user_cancelled",
];

/// The parameters of a provider's redirect.
#[derive(Debug)]
pub struct Redirect {
    /// The provider whose redirect URI was called.
    pub provider: String,
    /// `state`, if it is present once.
    pub state: Option<String>,
    /// `code` (RFC 6749 section 4.1.2).
    pub code: Option<SecretString>,
    /// `error` (section 4.1.2.1).
    pub error: Option<OAuthError>,
    /// `iss` (RFC 9207).
    pub iss: Option<String>,
    /// `true` if a parameter is repeated, which RFC 6749 section 3.1 forbids, or too long.
    pub malformed: bool,
}

/// The remaining work for a redirect that is not exchanged.
enum Outcome {
    OtherBrowser,
    Wrong,
    Refused(OAuthError),
}

/// The address to which the start link sends the browser, and the browser's secret.
#[derive(Debug)]
pub struct Departure {
    /// The provider's authorization endpoint, with the request.
    pub url: Url,
    /// The secret for the browser's cookie.
    pub browser: BrowserSecret,
}

impl CallbackService {
    /// Opens a start link. Free of side effects: previews fetch it, users open it in several tabs.
    ///
    /// # Errors
    ///
    /// The [`CallbackError`] to show.
    pub async fn start(
        &self,
        id: &str,
        browser: Option<BrowserSecret>,
    ) -> Result<Departure, CallbackError> {
        let id = Id::parse(id).ok_or(CallbackError::UnknownLink)?;
        let seen = self.find_for_browser(id).await?.ok_or(CallbackError::UnknownLink)?;
        let authorization = &seen.authorization;
        if !authorization.link_works(seen.now) {
            return Err(CallbackError::EndedLink);
        }
        let name = authorization.key.provider.as_str();
        let provider = self.providers.get(name).ok_or(CallbackError::EndedLink)?;
        let server = self.server(provider).await?;
        // An ID token that is asked for is checked, or it is not asked for.
        if authorization.scopes.contains(OPENID)
            && !server.ignores_id_tokens
            && !server.checks_id_tokens()
        {
            tracing::error!(provider = %provider.name, "openid is asked for, and no jwks_uri known");
            return Err(CallbackError::Misconfigured { provider: provider.display_name.clone() });
        }
        let browser = browser.unwrap_or_else(|| BrowserSecret::new(&self.random));
        let start = BrowserState::new(&self.keyring, &self.random, id, &browser);
        let attempt = endpoint::AuthorizationRequest {
            state: &start.state(&provider.name),
            verifier: start.verifier(),
            nonce: start.nonce(),
            redirect_uri: &self.redirect_uri(provider),
        };
        let url = endpoint::authorization_url(
            &server,
            &authorization.scopes,
            &authorization.options,
            attempt,
        );
        Ok(Departure { url, browser })
    }

    /// Takes a redirect and waits for the result. The work runs in a task of its own, so a browser that disconnects
    /// does not stop an exchange half-way.
    pub async fn callback(
        self: &Arc<Self>,
        redirect: Redirect,
        browsers: Vec<BrowserSecret>,
    ) -> CallbackOutcome {
        if self.tasks.are_draining() {
            return CallbackOutcome::CallbackError(CallbackError::Unavailable);
        }
        let service = Arc::clone(self);
        let task =
            self.tasks.detached(async move { service.take_redirect(redirect, browsers).await });
        match task.await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(problem)) => CallbackOutcome::CallbackError(problem),
            Err(_crashed) => CallbackOutcome::CallbackError(CallbackError::Unavailable),
        }
    }

    async fn take_redirect(
        &self,
        redirect: Redirect,
        browsers: Vec<BrowserSecret>,
    ) -> Result<CallbackOutcome, CallbackError> {
        // 1. The link and the broker: only a state that this broker made goes further.
        let provider = self.providers.get(redirect.provider.as_str());
        let (Some(provider), Some(state)) = (provider, &redirect.state) else {
            return Err(CallbackError::UnknownRedirect);
        };
        let attempt = VerifiedState::parse(&self.keyring, state, &provider.name)
            .ok_or(CallbackError::UnknownRedirect)?;
        let seen =
            self.find_for_browser(attempt.id).await?.ok_or(CallbackError::UnknownRedirect)?;
        let start = browsers.iter().find_map(|browser| attempt.of_browser(browser));

        // 2. The provider: right issuer, on success and on error alike (RFC 9207 section 2.4). Where
        // its metadata cannot be had now, the redirect may come again.
        let server = self.server(provider).await?;
        let wrong_issuer = match (&provider.issuer, &redirect.iss) {
            (Some(issuer), Some(iss)) => iss != issuer,
            (Some(_), None) => server.iss_required,
            (None, _) => false,
        };
        if redirect.malformed || wrong_issuer {
            tracing::warn!(redirect.malformed, wrong_issuer, "redirect refused");
        }
        let in_order = !redirect.malformed && !wrong_issuer;

        // 3. An authorization that takes no redirect has nothing to record: strangers must not write.
        let again = || seen.authorization.link_works(seen.now).then(|| self.start_url(attempt.id));
        if !seen.authorization.takes_redirects(seen.now) {
            return match start {
                Some(start) => self.outcome_again(attempt.id, &start, provider).await,
                None => Err(CallbackError::OtherBrowser { start: again() }),
            };
        }

        // 4. Once: every attempt is recorded, so that cookies and codes cannot be tried.
        let outcome = match (&start, redirect.code, redirect.error) {
            (Some(start), Some(code), None) if in_order => {
                return self.exchange(seen, &attempt, &server, start, &code).await;
            }
            (Some(_), _, Some(error)) if in_order => Outcome::Refused(error),
            (Some(_), ..) => Outcome::Wrong,
            (None, ..) => Outcome::OtherBrowser,
        };
        let permit = self.browser_permit().await?;
        let arrival = self.authorizations.use_attempt(attempt.id, &attempt.salt).await;
        let arrival = arrival.map_err(|error| unavailable(error.into()))?;
        drop(permit);
        match (outcome, start, arrival) {
            (Outcome::OtherBrowser, ..) | (_, None, _) => {
                Err(CallbackError::OtherBrowser { start: again() })
            }
            (_, Some(start), Arrival::Again) => {
                self.outcome_again(attempt.id, &start, provider).await
            }
            (Outcome::Wrong, ..) => Err(CallbackError::WrongRedirect { start: again() }),
            // Also beyond the most that are recorded: strangers must not keep the user from refusing.
            (Outcome::Refused(error), ..) => self.end_refused(seen, provider, &error).await,
        }
    }

    /// One of the few permits for requests of browsers, which anyone can send, to use the database.
    async fn browser_permit(&self) -> Result<SemaphorePermit<'_>, CallbackError> {
        let permit = tokio::time::timeout(BROWSER_WAIT, self.browser_permits.acquire()).await;
        permit.ok().and_then(Result::ok).ok_or(CallbackError::Unavailable)
    }

    async fn find_for_browser(&self, id: Id) -> Result<Option<StoredAuthorization>, CallbackError> {
        let _permit = self.browser_permit().await?;
        self.find(id).await
    }

    async fn find(&self, id: Id) -> Result<Option<StoredAuthorization>, CallbackError> {
        let found = self.authorizations.find_authorization(None, id).await;
        found.map_err(|error| unavailable(BrokerError::from(error)))
    }

    /// The provider with its endpoints.
    async fn server(&self, provider: &Provider) -> Result<Arc<Server>, CallbackError> {
        self.providers.server(provider).await.map_err(|error| {
            let name = provider.display_name.clone();
            match BrokerError::from_provider(&provider.name, &error) {
                BrokerError::ProviderUnavailable { .. } => {
                    CallbackError::ProviderAway { provider: name }
                }
                _ => CallbackError::Misconfigured { provider: name },
            }
        })
    }

    /// Seals a form that a provider posted, for the browser's GET of the same address.
    #[must_use]
    pub fn seal_form(&self, provider: &str, form: &[u8]) -> Vec<u8> {
        self.form_keyring.seal(form, &form_aad(provider), &self.random)
    }

    /// Opens what [`CallbackService::seal_form`] sealed. Returns `None` if it was sealed for another provider, or
    /// is not the broker's.
    #[must_use]
    pub fn open_form(&self, provider: &str, sealed: &[u8]) -> Option<Vec<u8>> {
        self.form_keyring.open(sealed, &form_aad(provider)).ok()
    }

    /// The provider sent the browser back with an error.
    async fn end_refused(
        &self,
        seen: StoredAuthorization,
        provider: &Provider,
        error: &OAuthError,
    ) -> Result<CallbackOutcome, CallbackError> {
        let denied = DENIED.contains(&error.code.as_str());
        let state = if denied {
            State::Denied(Failure::new(&error.code, "The user refused."))
        } else {
            State::Failed(Failure::new(
                &error.code,
                &format!("{} answered with an error.", provider.display_name),
            ))
        };
        let id = seen.authorization.id;
        let ended = self.authorizations.refuse_authorization(id, &state).await;
        if !ended.map_err(|error| unavailable(error.into()))? {
            return self.outcome_of_closed(id, provider).await;
        }
        self.metrics.authorization(&provider.name, if denied { "denied" } else { "failed" });
        tracing::info!(authorization.id = %seen.authorization.id, error.code = %error.code, "authorization refused at the provider");
        let mut seen = seen;
        seen.authorization.state = state;
        Ok(outcome_of_final(&seen, provider))
    }

    /// The same redirect again: a reload shows the same page, to the same browser.
    async fn outcome_again(
        &self,
        id: Id,
        start: &BrowserState<'_>,
        provider: &Provider,
    ) -> Result<CallbackOutcome, CallbackError> {
        let mut seen = self.find_for_browser(id).await?.ok_or(CallbackError::UnknownRedirect)?;
        if seen.state() == State::Exchanging
            && let Some(_waiter) = self.exchange_waiters.enter(id)
        {
            let ends = tokio::time::Instant::now() + EXCHANGE_WAIT;
            while seen.state() == State::Exchanging && tokio::time::Instant::now() < ends {
                tokio::time::sleep(EXCHANGE_POLL).await;
                seen = self.find_for_browser(id).await?.ok_or(CallbackError::UnknownRedirect)?;
            }
        }
        let link = || seen.authorization.link_works(seen.now).then(|| self.start_url(id));
        match seen.state() {
            State::Pending | State::Exchanging => {
                Err(CallbackError::UsedRedirect { start: link() })
            }
            State::AwaitingConfirmation => {
                // Another tab may have completed: its code is not this attempt's to show.
                let own = seen.code_hash.as_deref().is_some_and(|hash| {
                    super::oauth_state::code_matches(
                        &self.keyring,
                        id,
                        &start.confirmation_code(),
                        hash,
                    )
                });
                if !own {
                    return Err(CallbackError::UsedRedirect { start: None });
                }
                Ok(self.confirm_outcome(&seen, start, provider))
            }
            _ => Ok(outcome_of_final(&seen, provider)),
        }
    }

    /// The page of an authorization that another redirect has taken further.
    async fn outcome_of_closed(
        &self,
        id: Id,
        provider: &Provider,
    ) -> Result<CallbackOutcome, CallbackError> {
        let seen = self.find_for_browser(id).await?.ok_or(CallbackError::UnknownRedirect)?;
        match seen.state() {
            State::Exchanging | State::AwaitingConfirmation => {
                Err(CallbackError::UsedRedirect { start: None })
            }
            _ => Ok(outcome_of_final(&seen, provider)),
        }
    }

    fn confirm_outcome(
        &self,
        seen: &StoredAuthorization,
        start: &BrowserState<'_>,
        provider: &Provider,
    ) -> CallbackOutcome {
        let authorization = &seen.authorization;
        CallbackOutcome::Confirm {
            code: start.confirmation_code(),
            bot: authorization.bot.clone(),
            subject: authorization.key.subject.clone(),
            provider: provider.display_name.clone(),
            ttl: authorization.expires_at.since(seen.now),
            return_url: authorization.options.return_url.clone(),
        }
    }

    /// Returns the confirmation that the bot's users give. A bot that is no longer configured gets no exception.
    fn confirmation_of(&self, bot: &Name) -> Confirmation {
        self.bots.get(bot).map_or(Confirmation::Code, |bot| bot.confirmation)
    }

    /// The link that the user opens.
    fn start_url(&self, id: Id) -> Url {
        start_url(&self.public_url, id)
    }

    /// The redirect URI of a provider.
    pub(super) fn redirect_uri(&self, provider: &Provider) -> Url {
        redirect_uri(&self.public_url, &provider.name)
    }
}

/// The redirect URI to register at a provider. Each provider has its own, so that a redirect of one cannot be taken
/// for another's (RFC 9700 section 4.4.2).
#[must_use]
pub fn redirect_uri(public_url: &Url, provider: &Name) -> Url {
    under(public_url, &format!("oauth2/callback/{provider}"))
}

fn form_aad(provider: &str) -> Vec<u8> {
    length_prefixed([&b"form_post"[..], provider.as_bytes()])
}

fn unavailable(error: BrokerError) -> CallbackError {
    if error.is_known_outage() {
        return CallbackError::Outage;
    }
    error.log_storage();
    CallbackError::Unavailable
}
