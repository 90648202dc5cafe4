//! Claims of a user, for the holder of their access token (OpenID Connect Core section 5.3, or an endpoint of the
//! provider's own).

use secrecy::SecretString;
use serde_json::{Map, Value};
use url::Url;

use super::classify;
use super::error::ProviderError;
use super::http::{Call, Http, Operation};
use crate::domain::name::Name;

/// An answer of a userinfo endpoint.
#[derive(Debug)]
pub(super) enum Userinfo {
    Plain(Map<String, Value>),
    /// A signed JWT, which is still to be verified.
    Signed(String),
}

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
