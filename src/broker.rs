//! The use cases: each is one file that reads from top to bottom.

pub mod authorize;
mod background;
mod boot_instant;
mod cache;
pub mod callback;
pub mod caller;
pub mod cancel;
pub mod confirm;
mod database_health;
pub mod error;
pub mod get_token;
pub mod list;
mod oauth_state;
pub mod refresh;
pub mod revoke;
mod settings;
mod used;
pub mod watch_authorization;
mod watchers;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

pub use boot_instant::BootInstant;
pub use cache::{Bounds, CacheCounts, CachedToken, NO_CACHE};
pub use callback::redirect_uri;
pub use error::BrokerError;
pub use oauth_state::BrowserSecret;
pub use settings::{CallLimits, Settings};

use self::database_health::{DatabaseHealth, Sharing};
use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;
use crate::domain::bot::Bot;
use crate::domain::grant::{GrantKey, KeyHash, Subject};
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::provider::Provider;
use crate::domain::time::Timestamp;
use crate::domain::token::{DoomedToken, RawAnswer};
use crate::provider::{Directory, Http, response};
use crate::storage::{Disposal, Storage, StorageError, Takeover};
use crate::telemetry::Metrics;

/// The time that a result that cannot be stored waits before the next try.
const STORE_AGAIN: Duration = Duration::from_secs(1);

/// The broker's parts, shared by the listeners and the workers.
pub struct Broker {
    storage: Storage,
    keyring: Arc<Keyring>,
    /// Seals forms that strangers post, so not with the keys of tokens.
    form_keyring: Keyring,
    random: Random,
    providers: Directory,
    bots: BTreeMap<Name, Arc<Bot>>,
    settings: Settings,
    flights: refresh::SingleFlight,
    breakers: BTreeMap<Name, refresh::CircuitBreaker>,
    /// Work that outlives its caller: it is awaited at shutdown.
    tasks: TaskTracker,
    draining: CancellationToken,
    database: DatabaseHealth,
    cache: cache::TokenCache,
    used: used::Used,
    watchers: Arc<watchers::Watchers>,
    /// For requests of browsers that use the database.
    browser_permits: Semaphore,
    metrics: Metrics,
}

/// The parts of [`Broker::new`].
#[derive(Debug)]
pub struct Parts {
    /// The database.
    pub storage: Storage,
    /// The client for calls to providers.
    pub http: Http,
    /// Derives what redirects carry.
    pub keyring: Arc<Keyring>,
    /// For salts and jitter.
    pub random: Random,
    /// The configured providers.
    pub providers: Vec<Provider>,
    /// The configured bots.
    pub bots: Vec<Bot>,
    /// Settings of the operator.
    pub settings: Settings,
    /// The metrics.
    pub metrics: Metrics,
}

impl Broker {
    /// A broker of these parts.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let breakers = parts.providers.iter().map(|p| (p.name.clone(), Default::default()));
        let breakers = breakers.collect();
        let sharing = if parts.storage.is_shared() { Sharing::Shared } else { Sharing::Alone };
        let bots = parts.bots.into_iter().map(|b| (b.name.clone(), Arc::new(b))).collect();
        Arc::new(Self {
            storage: parts.storage,
            form_keyring: parts.keyring.derived("form_post"),
            keyring: parts.keyring,
            random: parts.random,
            providers: Directory::new(parts.http, parts.providers),
            bots,
            flights: refresh::SingleFlight::default(),
            breakers,
            tasks: TaskTracker::new(),
            draining: CancellationToken::new(),
            database: DatabaseHealth::new(sharing),
            used: used::Used::default(),
            watchers: Arc::default(),
            browser_permits: Semaphore::new(callback::BROWSER_PERMITS),
            metrics: parts.metrics,
            cache: cache::TokenCache::new(parts.settings.cache),
            settings: parts.settings,
        })
    }

    /// The configured bots.
    pub fn bots(&self) -> impl Iterator<Item = &Arc<Bot>> {
        self.bots.values()
    }

    /// Settings of the operator.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The database, for the workers that watch it.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// The configured providers, and what is known of their endpoints.
    #[must_use]
    pub fn providers(&self) -> &Directory {
        &self.providers
    }

    /// Takes note that a grant is used.
    fn note_use(&self, grant: Option<Id>) {
        if let Some(grant) = grant {
            self.used.note(grant);
        }
    }

    /// Another replica has revoked or replaced a grant.
    pub fn note_change(&self, key: KeyHash) {
        self.cache.forget(key);
    }

    /// The cache's counts since the start.
    #[must_use]
    pub fn cache_counts(&self) -> CacheCounts {
        self.cache.counts()
    }

    /// Records that the database answered with the time on its clock, between two times here. Returns by
    /// how many milliseconds its clock was set, if it was.
    pub fn database_answered(
        &self,
        shown: Timestamp,
        asked: BootInstant,
        answered: BootInstant,
    ) -> Option<i64> {
        self.database.mark_up();
        self.storage.outage_ended();
        if !self.storage.clock_runs() {
            return None;
        }
        self.database.read_clock(shown, asked, answered)
    }

    /// Records that the database does not answer or accepts no writes.
    pub fn database_failed(&self) {
        self.database.mark_down();
    }

    /// The terms on which refreshes of unknown outcome may be taken over at a provider. `None` while
    /// this replica's view of the database is not stable.
    fn takeover(&self, provider: &Provider) -> Option<Takeover> {
        let holder_timeout =
            provider.refresh_grace.is_zero().then_some(self.settings.replica_timeout);
        self.database
            .is_stable()
            .then(|| Takeover { expected_now: self.database.expected_now(), holder_timeout })
    }

    /// The time on the database's clock: as this replica expects it, or else as the database says.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn database_now(&self) -> Result<Timestamp, StorageError> {
        match self.database.expected_now() {
            Some(now) => Ok(now),
            None => self.storage.now().await,
        }
    }

    /// Runs work in a task of its own, which is awaited at shutdown.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn(work);
    }

    /// Runs a use case in a task of its own, and waits for it. A caller that goes away does not cancel
    /// it: a statement that is cancelled costs its connection, and a cancelled use case may leave work
    /// half done.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Internal`] if it panics.
    pub async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        self.tasks.spawn(work.in_current_span()).await.map_err(|crash| {
            tracing::error!(%crash, "a call crashed");
            BrokerError::Internal
        })
    }

    /// The metrics.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// The providers, and why calls to them are stopped here, where they are.
    #[must_use]
    pub fn breakers(&self) -> Vec<(Name, Option<&'static str>)> {
        self.breakers.iter().map(|(name, breaker)| (name.clone(), breaker.reason())).collect()
    }

    /// Returns `true` if the database answered when it was last asked.
    #[must_use]
    pub fn storage_answers(&self) -> bool {
        self.database.is_up()
    }

    /// The source of randomness.
    #[must_use]
    pub fn random(&self) -> &Random {
        &self.random
    }

    /// Ends when the broker takes no new calls any more.
    #[must_use]
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Takes no new work from here on. [`Broker::drained`] waits for work in progress.
    pub fn drain(&self) {
        self.draining.cancel();
        self.tasks.close();
    }

    /// Waits until every exchange and refresh under way has been stored.
    pub async fn drained(&self) {
        self.tasks.wait().await;
    }

    /// Returns the provider if this bot may use it. The error does not reveal whether it is configured.
    fn provider_for(&self, bot: &Bot, name: &Name) -> Result<&Arc<Provider>, BrokerError> {
        self.providers
            .get(name.as_str())
            .filter(|_| bot.may_use(name.as_str()))
            .ok_or_else(|| BrokerError::ProviderNotAllowed { provider: name.clone() })
    }

    fn check_subject(bot: &Bot, subject: &Subject) -> Result<(), BrokerError> {
        if bot.may_act_for(subject.as_str()) {
            return Ok(());
        }
        Err(BrokerError::SubjectNotAllowed { subject: subject.clone() })
    }

    /// The provider of a key, after the checks that every use case makes.
    fn admit(&self, bot: &Bot, key: &GrantKey) -> Result<&Arc<Provider>, BrokerError> {
        let provider = self.provider_for(bot, &key.provider)?;
        Self::check_subject(bot, &key.subject)?;
        Ok(provider)
    }

    /// The disposal of a provider's tokens. A provider that is no longer configured cannot be called.
    fn disposal(&self, provider: &Name) -> Disposal<'static> {
        let provider = self.providers.get(provider.as_str());
        Disposal {
            revocable: provider.is_some_and(|p| p.may_revoke()),
            reach: provider.map(|p| p.revocation_reach).unwrap_or_default(),
            read: &read_tokens,
        }
    }

    /// Stores something that must not be lost, however long the database is away.
    async fn until_stored<T, F>(
        &self,
        what: &'static str,
        mut store: impl FnMut() -> F,
    ) -> Result<T, StorageError>
    where
        F: Future<Output = Result<T, StorageError>>,
    {
        let mut told = false;
        loop {
            match store().await {
                Err(error) if error.is_transient() => {
                    // A lock that is held, for example, says nothing about the database as a whole.
                    if error.is_out_of_reach() {
                        self.database.restart_calm();
                    }
                    if !std::mem::replace(&mut told, true) {
                        tracing::error!(%error, what, "cannot store; held until storage is back");
                    }
                    tokio::time::sleep(STORE_AGAIN).await;
                }
                done => return done,
            }
        }
    }
}

fn read_tokens(answer: &RawAnswer, issued_at: Timestamp) -> Vec<DoomedToken> {
    response::tokens_in(answer, issued_at)
}

impl std::fmt::Debug for Broker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Broker")
            .field("providers", &self.providers.iter().map(|p| &p.name).collect::<Vec<_>>())
            .field("bots", &self.bots.keys())
            .finish_non_exhaustive()
    }
}
