//! Who a user is, as the provider tells it to whoever has their access token (OpenID Connect Core
//! section 5.3, or an endpoint of the provider's own).

use secrecy::SecretString;
use serde_json::{Map, Value};
use url::Url;

use super::error::ProviderError;
use super::http::{Call, Http, Operation};
use crate::domain::name::Name;

impl Http {
    /// Asks who the user is. Absent where the provider does not say.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] where the provider cannot be asked.
    pub async fn userinfo(
        &self,
        provider: &Name,
        endpoint: &Url,
        access_token: &SecretString,
    ) -> Result<Option<Map<String, Value>>, ProviderError> {
        let answer =
            self.json(Call(Operation::Userinfo, provider), endpoint, Some(access_token)).await?;
        Ok(answer.and_then(|answer| match answer {
            Value::Object(fields) => Some(fields),
            _ => None,
        }))
    }
}
