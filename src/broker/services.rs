//! The services and their dependencies, and the one place that builds them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use url::Url;

use super::cache::TokenCache;
use super::callback::{BROWSER_PERMITS, ExchangeWaiters};
use super::database_health::{DatabaseHealth, Sharing};
use super::refresh::{CircuitBreaker, SingleFlight};
use super::used::Used;
use super::watchers::Watchers;
use super::{DatabaseService, Settings, Tasks};
use crate::crypto::keyring::Keyring;
use crate::crypto::random::Random;
use crate::domain::bot::Bot;
use crate::domain::name::Name;
use crate::domain::provider::Provider;
use crate::provider::{Directory, Http};
use crate::storage::{AuthorizationStore, GrantStore, Invalidations, RevocationOutbox, Storage};
use crate::telemetry::Metrics;

/// The services, as the listeners and the workers use them.
#[derive(Debug)]
pub struct Broker {
    /// Access tokens for bots.
    pub tokens: Arc<TokenService>,
    /// Refreshes of grants.
    pub refreshes: Arc<RefreshService>,
    /// Authorizations, from the link to the confirmation.
    pub authorizations: Arc<AuthorizationService>,
    /// Requests of browsers.
    pub callbacks: Arc<CallbackService>,
    /// The end of grants, here and at their providers.
    pub revocations: Arc<RevocationService>,
    /// Lists of grants and providers.
    pub lists: ListService,
    /// The database as a whole.
    pub database: Arc<DatabaseService>,
    /// Work that outlives its caller.
    pub tasks: Arc<Tasks>,
    /// The configured providers, and what is known of their endpoints.
    pub providers: Arc<Directory>,
    /// The configured bots.
    pub bots: Arc<BTreeMap<Name, Arc<Bot>>>,
    /// Settings of the operator.
    pub settings: Settings,
    /// The metrics.
    pub metrics: Metrics,
    /// For jitter.
    pub random: Random,
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

/// Issues access tokens: from the cache, from the database, or refreshed.
pub struct TokenService {
    pub(super) grants: GrantStore,
    pub(super) invalidations: Invalidations,
    pub(super) providers: Arc<Directory>,
    pub(super) refreshes: Arc<RefreshService>,
    pub(super) authorizations: Arc<AuthorizationService>,
    pub(super) health: Arc<DatabaseHealth>,
    pub(super) cache: Arc<TokenCache>,
    pub(super) used: Used,
}

/// Refreshes grants: the one place where a refresh token is sent.
pub struct RefreshService {
    pub(super) grants: GrantStore,
    pub(super) providers: Arc<Directory>,
    pub(super) breakers: Arc<Breakers>,
    pub(super) flights: SingleFlight,
    pub(super) health: Arc<DatabaseHealth>,
    pub(super) cache: Arc<TokenCache>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) replica_timeout: Duration,
    pub(super) metrics: Metrics,
    pub(super) random: Random,
}

/// The circuit breaker of each provider.
pub(super) type Breakers = BTreeMap<Name, CircuitBreaker>;

/// Starts, shows, confirms and cancels authorizations.
pub struct AuthorizationService {
    pub(super) authorizations: AuthorizationStore,
    pub(super) grants: GrantStore,
    pub(super) outbox: RevocationOutbox,
    pub(super) providers: Arc<Directory>,
    pub(super) keyring: Arc<Keyring>,
    pub(super) cache: Arc<TokenCache>,
    pub(super) watchers: Arc<Watchers>,
    pub(super) tasks: Arc<Tasks>,
    pub(super) public_url: Url,
    pub(super) link_ttl: Duration,
    pub(super) metrics: Metrics,
}

/// Answers browsers: the start link, and the redirect from the provider with the exchange of its code.
pub struct CallbackService {
    pub(super) authorizations: AuthorizationStore,
    pub(super) outbox: RevocationOutbox,
    pub(super) providers: Arc<Directory>,
    pub(super) bots: Arc<BTreeMap<Name, Arc<Bot>>>,
    pub(super) breakers: Arc<Breakers>,
    pub(super) keyring: Arc<Keyring>,
    /// Seals forms that strangers post, so not with the keys of tokens.
    pub(super) form_keyring: Keyring,
    pub(super) health: Arc<DatabaseHealth>,
    pub(super) cache: Arc<TokenCache>,
    pub(super) tasks: Arc<Tasks>,
    /// For requests of browsers that use the database.
    pub(super) browser_permits: Semaphore,
    pub(super) exchange_waiters: ExchangeWaiters,
    pub(super) public_url: Url,
    pub(super) confirmation_ttl: Duration,
    pub(super) metrics: Metrics,
    pub(super) random: Random,
}

/// Deletes grants, and revokes their tokens at the providers.
pub struct RevocationService {
    pub(super) grants: GrantStore,
    pub(super) authorizations: AuthorizationStore,
    pub(super) outbox: RevocationOutbox,
    pub(super) providers: Arc<Directory>,
    pub(super) cache: Arc<TokenCache>,
}

/// Lists grants and providers.
pub struct ListService {
    pub(super) grants: GrantStore,
    pub(super) providers: Arc<Directory>,
}

impl Broker {
    /// Builds the services.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts { storage, http, keyring, random, providers, bots, settings, metrics } = parts;
        let sharing = if storage.is_shared() { Sharing::Shared } else { Sharing::Alone };
        let breakers = providers.iter().map(|p| (p.name.clone(), CircuitBreaker::default()));
        let breakers: Arc<Breakers> = Arc::new(breakers.collect());
        let bots = bots.into_iter().map(|bot| (bot.name.clone(), Arc::new(bot)));
        let bots: Arc<BTreeMap<_, _>> = Arc::new(bots.collect());
        let providers = Arc::new(Directory::new(http, providers));
        let health = Arc::new(DatabaseHealth::new(sharing));
        let cache = Arc::new(TokenCache::new(settings.cache));
        let tasks = Arc::new(Tasks::default());
        let grants = storage.grants().clone();
        let authorizations = storage.authorizations().clone();
        let outbox = storage.revocations().clone();
        let invalidations = storage.invalidations().clone();
        let watchers = Watchers::new(authorizations.clone(), Arc::clone(&tasks), random.clone());

        let refreshes = Arc::new(RefreshService {
            grants: grants.clone(),
            providers: Arc::clone(&providers),
            breakers: Arc::clone(&breakers),
            flights: SingleFlight::default(),
            health: Arc::clone(&health),
            cache: Arc::clone(&cache),
            tasks: Arc::clone(&tasks),
            replica_timeout: settings.replica_timeout,
            metrics: metrics.clone(),
            random: random.clone(),
        });
        let started = Arc::new(AuthorizationService {
            authorizations: authorizations.clone(),
            grants: grants.clone(),
            outbox: outbox.clone(),
            providers: Arc::clone(&providers),
            keyring: Arc::clone(&keyring),
            cache: Arc::clone(&cache),
            watchers: Arc::new(watchers),
            tasks: Arc::clone(&tasks),
            public_url: settings.public_url.clone(),
            link_ttl: settings.link_ttl,
            metrics: metrics.clone(),
        });
        let callbacks = Arc::new(CallbackService {
            authorizations: authorizations.clone(),
            outbox: outbox.clone(),
            providers: Arc::clone(&providers),
            bots: Arc::clone(&bots),
            breakers,
            form_keyring: keyring.derived("form_post"),
            keyring,
            health: Arc::clone(&health),
            cache: Arc::clone(&cache),
            tasks: Arc::clone(&tasks),
            browser_permits: Semaphore::new(BROWSER_PERMITS),
            exchange_waiters: ExchangeWaiters::default(),
            public_url: settings.public_url.clone(),
            confirmation_ttl: settings.confirmation_ttl,
            metrics: metrics.clone(),
            random: random.clone(),
        });
        let revocations = Arc::new(RevocationService {
            grants: grants.clone(),
            authorizations,
            outbox,
            providers: Arc::clone(&providers),
            cache: Arc::clone(&cache),
        });
        let tokens = Arc::new(TokenService {
            grants: grants.clone(),
            invalidations,
            providers: Arc::clone(&providers),
            refreshes: Arc::clone(&refreshes),
            authorizations: Arc::clone(&started),
            health: Arc::clone(&health),
            cache,
            used: Used::default(),
        });
        let lists = ListService { grants, providers: Arc::clone(&providers) };
        let database = Arc::new(DatabaseService::new(storage, health));
        Arc::new(Self {
            tokens,
            refreshes,
            authorizations: started,
            callbacks,
            revocations,
            lists,
            database,
            tasks,
            providers,
            bots,
            settings,
            metrics,
            random,
        })
    }
}

/// `Debug` of a service shows none of its parts, because some are secrets.
macro_rules! opaque {
    ($($service:ident),*) => {
        $(impl std::fmt::Debug for $service {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_struct(stringify!($service)).finish_non_exhaustive()
            }
        })*
    };
}

opaque!(
    TokenService,
    RefreshService,
    AuthorizationService,
    CallbackService,
    RevocationService,
    ListService
);
