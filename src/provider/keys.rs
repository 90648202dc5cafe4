//! The keys that a provider signs ID tokens with (RFC 7517), and their rotation.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::error::ProviderError;
use super::http::{Call, Http, Operation};
use crate::domain::name::Name;

/// The time for which keys are used before they are read again: one that was withdrawn must end some time.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// The time for which keys are used while they cannot be read again.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// The time for which a failure is reported before the keys are read again.
const PAUSE: Duration = Duration::from_secs(2);

/// The time in which the provider must send its keys, while a user waits.
const LIMIT: Duration = Duration::from_secs(5);

/// The most keys of one provider that are looked at.
const MOST: usize = 100;

/// The keys of one provider.
#[derive(Debug, Default)]
pub(super) struct Keys {
    read: RwLock<Option<Read>>,
    /// Its holder asks the provider; other callers wait for the result.
    asking: Mutex<Option<(Instant, ProviderError)>>,
}

#[derive(Debug, Clone)]
struct Read {
    keys: Arc<[Jwk]>,
    at: Instant,
}

impl Keys {
    /// The keys, among which `wanted` finds one unless the provider has none such. A key that is
    /// not known yet is a reason to read them again (OpenID Connect Core section 10.1.1).
    pub(super) async fn with(
        &self,
        http: &Http,
        provider: &Name,
        jwks_uri: &Url,
        wanted: impl Fn(&Jwk) -> bool,
    ) -> Result<Arc<[Jwk]>, ProviderError> {
        let began = Instant::now();
        let known = |longest| {
            let read = self.read().filter(|read| read.at.elapsed() < longest);
            read.filter(|read| read.at >= began || read.keys.iter().any(&wanted))
        };
        if let Some(read) = known(FRESH) {
            return Ok(read.keys);
        }
        let mut failed = self.asking.lock().await;
        // Another caller may have read them in between.
        if let Some(read) = known(FRESH) {
            return Ok(read.keys);
        }
        let error = match &*failed {
            Some((at, error)) if at.elapsed() < PAUSE => error.clone(),
            _ => match fetch(http, provider, jwks_uri).await {
                Ok(keys) => {
                    *failed = None;
                    let read = Read { keys: Arc::clone(&keys), at: Instant::now() };
                    *self.read.write().unwrap_or_else(PoisonError::into_inner) = Some(read);
                    return Ok(keys);
                }
                Err(error) => {
                    *failed = Some((Instant::now(), error.clone()));
                    error
                }
            },
        };
        // The provider cannot be asked; what it said before is still good for the key it names.
        known(STALE).map(|read| read.keys).ok_or(error)
    }

    fn read(&self) -> Option<Read> {
        self.read.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn fetch(http: &Http, provider: &Name, jwks_uri: &Url) -> Result<Arc<[Jwk]>, ProviderError> {
    let call = Call(Operation::Keys, provider);
    let document = tokio::time::timeout(LIMIT, http.json(call, jwks_uri))
        .await
        .unwrap_or_else(|_| Err(ProviderError::NoResponse("timed out".to_owned())))?;
    let keys = document.as_ref().and_then(|document| document["keys"].as_array());
    let keys = keys.ok_or_else(|| {
        ProviderError::UnexpectedResponse("jwks_uri has no key set (RFC 7517)".to_owned())
    })?;
    // One by one: a key of a kind that is unknown here must not hide the others.
    let key = |key: &Value| serde_json::from_value(without_padding(key)).ok();
    Ok(keys.iter().take(MOST).filter_map(key).collect())
}

/// A key whose numbers are written without the padding of base64, which RFC 7515 section 2 leaves out.
fn without_padding(key: &Value) -> Value {
    let mut key = key.clone();
    for value in key.as_object_mut().into_iter().flat_map(|key| key.values_mut()) {
        if let Value::String(text) = value {
            text.truncate(text.trim_end_matches('=').len());
        }
    }
    key
}
