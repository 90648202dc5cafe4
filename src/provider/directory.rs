//! The configured providers, and what has been learnt of them: endpoints and keys.
//!
//! A broker starts without asking anybody. What an issuer says is kept for an hour, and longer while
//! the issuer cannot be asked: its endpoints hardly ever change.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use super::error::ProviderError;
use super::http::Http;
use super::keys::Keys;
use crate::domain::name::Name;
use crate::domain::provider::{Provider, Server};

/// The time for which metadata is used before it is read again.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// The time for which a failure is reported before the issuer is asked again. It doubles with every further
/// one, up to [`LONGEST_PAUSE`].
const PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// The configured providers.
#[derive(Debug)]
pub struct Directory {
    http: Http,
    entries: BTreeMap<Name, Arc<Entry>>,
}

#[derive(Debug)]
pub(super) struct Entry {
    provider: Arc<Provider>,
    known: RwLock<Option<Known>>,
    /// Its holder asks the issuer; other callers wait for the answer.
    asking: Mutex<Option<Failed>>,
    /// The endpoints are not known, and the last answer was unusable.
    is_wrong: AtomicBool,
    pub(super) keys: Keys,
}

/// The last failures in a row.
#[derive(Debug)]
struct Failed {
    at: Instant,
    pause: Duration,
    error: ProviderError,
}

#[derive(Debug, Clone)]
struct Known {
    server: Arc<Server>,
    /// The time to read it again. `None`: the configuration has everything.
    until: Option<Instant>,
}

impl Directory {
    /// The providers of a configuration. Reads no metadata yet.
    #[must_use]
    pub fn new(http: Http, providers: impl IntoIterator<Item = Provider>) -> Self {
        let entry = |provider: Provider| {
            let provider = Arc::new(provider);
            let known = (!provider.is_discovered()).then(|| provider.server()).flatten();
            Entry {
                known: RwLock::new(
                    known.map(|server| Known { server: Arc::new(server), until: None }),
                ),
                provider,
                asking: Mutex::default(),
                is_wrong: AtomicBool::default(),
                keys: Keys::default(),
            }
        };
        let entries = providers.into_iter().map(|provider| {
            let name = provider.name.clone();
            (name, Arc::new(entry(provider)))
        });
        Self { http, entries: entries.collect() }
    }

    /// The client for calls to providers.
    #[must_use]
    pub fn http(&self) -> &Http {
        &self.http
    }

    /// Returns the provider as configured, or `None` if it is not configured.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Provider>> {
        self.entries.get(name).map(|entry| &entry.provider)
    }

    /// All of them, in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Provider>> {
        self.entries.values().map(|entry| &entry.provider)
    }

    /// A provider with its endpoints, which its issuer is asked for where it must be.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] where the endpoints are not known and cannot be learnt now.
    pub async fn server(&self, provider: &Provider) -> Result<Arc<Server>, ProviderError> {
        let entry = self.entries.get(&provider.name).ok_or_else(|| {
            ProviderError::ConnectError("the provider is not configured".to_owned())
        })?;
        match entry.known() {
            Some(Known { server, until }) => {
                if until.is_some_and(|until| until <= Instant::now()) {
                    let (entry, http) = (Arc::clone(entry), self.http.clone());
                    tokio::spawn(async move { entry.refresh(&http).await });
                }
                Ok(server)
            }
            None => entry.learn(&self.http).await,
        }
    }

    /// Checks that the provider's metadata is not known to be unusable. If it was so, the issuer is asked again, unless
    /// that was a moment ago. An issuer that cannot be reached may be right.
    ///
    /// # Errors
    ///
    /// [`ProviderError::UnexpectedResponse`] if the metadata is still unusable.
    pub async fn check_metadata(&self, provider: &Provider) -> Result<(), ProviderError> {
        let Some(entry) = self.entries.get(&provider.name) else { return Ok(()) };
        if !entry.is_wrong.load(Ordering::Relaxed) {
            return Ok(());
        }
        match entry.learn(&self.http).await {
            Err(wrong @ ProviderError::UnexpectedResponse(_)) => Err(wrong),
            _ => Ok(()),
        }
    }

    /// Reads the metadata of every issuer, so that the first user does not wait and problems are logged early.
    pub async fn learn_all(&self) {
        let all = self.iter().map(|provider| async move {
            // Failures are logged where they happen.
            let _ = self.server(provider).await;
        });
        futures::future::join_all(all).await;
    }

    pub(super) fn entry(&self, name: &Name) -> Option<&Entry> {
        self.entries.get(name).map(Arc::as_ref)
    }
}

impl Entry {
    fn known(&self) -> Option<Known> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Asks the issuer, once for however many callers.
    async fn learn(&self, http: &Http) -> Result<Arc<Server>, ProviderError> {
        let mut last = self.asking.lock().await;
        if let Some(known) = self.known() {
            return Ok(known.server);
        }
        if let Some(failed) = &*last
            && failed.at.elapsed() < failed.pause
        {
            return Err(failed.error.clone());
        }
        match http.discover(&self.provider).await {
            Ok(server) => Ok(self.keep(server)),
            Err(error) => {
                let provider = &self.provider.name;
                tracing::warn!(%provider, %error, "cannot learn the provider's endpoints");
                let pause = last.as_ref().map_or(PAUSE, |failed| failed.pause * 2);
                let pause = pause.min(LONGEST_PAUSE);
                let is_wrong = matches!(error, ProviderError::UnexpectedResponse(_));
                self.is_wrong.store(is_wrong, Ordering::Relaxed);
                *last = Some(Failed { at: Instant::now(), pause, error: error.clone() });
                Err(error)
            }
        }
    }

    /// Reads metadata again that has become old. What is known stays where that fails.
    async fn refresh(&self, http: &Http) {
        let Ok(_asking) = self.asking.try_lock() else { return };
        match http.discover(&self.provider).await {
            Ok(server) => {
                self.keep(server);
            }
            Err(error) => {
                let provider = &self.provider.name;
                tracing::warn!(%provider, %error, "cannot read the provider's metadata again");
                let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(known) = &mut *known {
                    known.until = Some(Instant::now() + FRESH / 60);
                }
            }
        }
    }

    fn keep(&self, server: Server) -> Arc<Server> {
        let server = Arc::new(server);
        let known = Known { server: Arc::clone(&server), until: Some(Instant::now() + FRESH) };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(known);
        self.is_wrong.store(false, Ordering::Relaxed);
        server
    }
}
