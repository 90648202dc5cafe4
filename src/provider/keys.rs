//! The keys that a provider signs ID tokens with (RFC 7517), and their rotation.

use std::sync::Arc;
use std::time::Duration;

use jsonwebtoken::jwk::Jwk;
use tokio::sync::Mutex;
use tokio::time::Instant;
use url::Url;

use super::error::ProviderError;
use super::http::Http;

/// How long keys are used before they are read again: one that was withdrawn must end some time.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// How long keys are used while they cannot be read again.
const STALE: Duration = Duration::from_secs(24 * 60 * 60);

/// The most keys of one provider that are looked at.
const MOST: usize = 100;

/// The keys of one provider.
#[derive(Debug, Default)]
pub(super) struct Keys(Mutex<Option<Read>>);

#[derive(Debug)]
struct Read {
    keys: Arc<[Jwk]>,
    at: Instant,
}

impl Keys {
    /// The keys, among which `wanted` finds one unless the provider has none such. A key that is
    /// not known yet is a reason to read them again (OpenID Connect Core section 10.1.1): once an ID
    /// token, which is once a code.
    pub(super) async fn with(
        &self,
        http: &Http,
        jwks_uri: &Url,
        wanted: impl Fn(&Jwk) -> bool,
    ) -> Result<Arc<[Jwk]>, ProviderError> {
        let mut read = self.0.lock().await;
        let known =
            read.as_ref().filter(|read| read.at.elapsed() < FRESH && read.keys.iter().any(&wanted));
        if let Some(known) = known {
            return Ok(Arc::clone(&known.keys));
        }
        match fetch(http, jwks_uri).await {
            Ok(keys) => {
                *read = Some(Read { keys: Arc::clone(&keys), at: Instant::now() });
                Ok(keys)
            }
            // The provider cannot be asked; what it said before is still good for the key it names.
            Err(error) => {
                let known = read
                    .as_ref()
                    .filter(|read| read.at.elapsed() < STALE && read.keys.iter().any(&wanted));
                known.map(|known| Arc::clone(&known.keys)).ok_or(error)
            }
        }
    }
}

async fn fetch(http: &Http, jwks_uri: &Url) -> Result<Arc<[Jwk]>, ProviderError> {
    let document = http.json(jwks_uri, None).await?;
    let keys = document.as_ref().and_then(|document| document["keys"].as_array());
    let keys =
        keys.ok_or_else(|| ProviderError::Odd("jwks_uri has no key set (RFC 7517)".to_owned()))?;
    // One by one: a key of a kind that is unknown here must not hide the others.
    Ok(keys.iter().take(MOST).filter_map(|key| serde_json::from_value(key.clone()).ok()).collect())
}
