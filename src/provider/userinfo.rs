//! Claims of a user, read with their access token (OpenID Connect Core section 5.3, or an endpoint of the provider's
//! own).

use secrecy::SecretString;
use url::Url;

use super::classify::{self, Userinfo};
use super::error::ProviderError;
use super::http::{Call, Http, Operation};
use crate::domain::name::Name;

impl Http {
    /// Asks who the user is. Returns `None` if the provider does not say.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] if the provider cannot be asked.
    pub(super) async fn userinfo(
        &self,
        provider: &Name,
        endpoint: &Url,
        access_token: &SecretString,
    ) -> Result<Option<Userinfo>, ProviderError> {
        let request = super::http::get(endpoint, Some(access_token))?;
        let call = Call(Operation::Userinfo, provider);
        self.send(call, request, None, |response| classify::userinfo(&response)).await
    }
}
