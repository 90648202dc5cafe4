//! A client of token-broker.
//!
//! [`Client`] is the generated client with an API key on every call. Errors of the broker are read
//! with [`Refusal::of`], which gives the contract's reason, and the link where the user has to
//! authorize.
//!
//! ```no_run
//! use token_broker_client::proto::{GetTokenRequest, GrantKey};
//! use token_broker_client::{ApiKey, Client, Reason, Refusal};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let channel = Client::channel("http://127.0.0.1:50051")?.connect().await?;
//! let mut client = Client::new(channel, ApiKey::new("the API key")?);
//! let key = GrantKey { provider: "google".into(), subject: "u123".into(), ..Default::default() };
//! let request =
//!     GetTokenRequest { key: Some(key), start_authorization: Some(Default::default()), ..Default::default() };
//! match client.get_token(request).await {
//!     Ok(response) => {
//!         let token = response.into_inner().token.unwrap_or_default();
//!         // Use token.access_token.
//! #       drop(token);
//!     }
//!     Err(status) => match Refusal::of(&status) {
//!         Some(Refusal { reason: Reason::AuthorizationRequired, authorization: Some(started), .. }) => {
//!             // Send started.authorization_url to the user.
//! #           drop(started);
//!         }
//!         _ => return Err(status.into()),
//!     },
//! }
//! # Ok(())
//! # }
//! ```

mod redacted;
mod refusal;
mod transport;

use std::fmt;
use std::net::IpAddr;
use std::ops::{Deref, DerefMut};
use std::time::Duration;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};

pub use refusal::{Reason, Refusal};
pub use transport::Transport;

/// The generated messages and client.
#[expect(clippy::allow_attributes_without_reason, reason = "generated")]
pub mod proto {
    tonic::include_proto!("tokenbroker.v1");
}

/// The domain of the broker's `google.rpc.ErrorInfo`.
pub const ERROR_DOMAIN: &str = "tokenbroker.v1";

/// The time that connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

type Generated = proto::token_broker_service_client::TokenBrokerServiceClient<
    InterceptedService<Transport, ApiKey>,
>;

/// The generated client, whose calls carry an API key. Cheap to clone.
#[derive(Clone)]
pub struct Client(Generated);

impl Client {
    /// Returns an endpoint with settings that suit the broker, to be connected. An `https` URL uses TLS with the
    /// system's CAs; `Endpoint::tls_config` sets others.
    ///
    /// # Errors
    ///
    /// [`ChannelError`] if `url` is no URL, or is an `http` URL of another machine: the API key and tokens would cross
    /// the network in clear text.
    pub fn channel(url: impl Into<String>) -> Result<Endpoint, ChannelError> {
        let endpoint = Self::plaintext_channel(url)?;
        let uri = endpoint.uri();
        if uri.scheme_str() == Some("https") {
            return Ok(endpoint.tls_config(ClientTlsConfig::new().with_enabled_roots())?);
        }
        let host = uri.host().unwrap_or_default();
        if is_loopback(host) { Ok(endpoint) } else { Err(ChannelError::Plaintext(host.to_owned())) }
    }

    /// Returns an endpoint that may be an `http` URL of another machine, for networks that encrypt by themselves, such
    /// as a service mesh.
    ///
    /// # Errors
    ///
    /// [`ChannelError::Url`] if `url` is no URL.
    pub fn plaintext_channel(url: impl Into<String>) -> Result<Endpoint, ChannelError> {
        Ok(Endpoint::from_shared(url.into())?.connect_timeout(CONNECT_TIMEOUT).tcp_nodelay(true))
    }

    /// A client over a channel.
    #[must_use]
    pub fn new(channel: Channel, key: ApiKey) -> Self {
        Self(Generated::new(InterceptedService::new(Transport::new(channel), key)))
    }
}

/// Why there is no channel to a broker.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// The text is no URL, or TLS cannot be set up.
    #[error(transparent)]
    Url(#[from] tonic::transport::Error),
    /// Without TLS, the API key and tokens would cross the network in clear text.
    #[error(
        "{0} is another machine: write https, or use plaintext_channel if the network itself encrypts"
    )]
    Plaintext(String),
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.to_canonical().is_loopback())
}

impl Deref for Client {
    type Target = Generated;

    fn deref(&self) -> &Generated {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Generated {
        &mut self.0
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Client")
    }
}

/// A bot's API key, as the metadata of every call.
#[derive(Clone)]
pub struct ApiKey(MetadataValue<Ascii>);

/// An API key with characters that cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidApiKey;

impl ApiKey {
    /// Takes a key as `token-broker api-key new` printed it.
    ///
    /// # Errors
    ///
    /// [`InvalidApiKey`] where it has characters that metadata cannot carry.
    pub fn new(key: &str) -> Result<Self, InvalidApiKey> {
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", key.trim()).parse().map_err(|_| InvalidApiKey)?;
        // Keeps it out of Debug, and out of the compression state of HTTP/2.
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl Interceptor for ApiKey {
    fn call(
        &mut self,
        mut request: tonic::Request<()>,
    ) -> Result<tonic::Request<()>, tonic::Status> {
        request.metadata_mut().insert("authorization", self.0.clone());
        Ok(request)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey")
    }
}

impl fmt::Display for InvalidApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the API key has characters that cannot be sent; was it copied whole?")
    }
}

impl std::error::Error for InvalidApiKey {}
