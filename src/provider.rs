//! Calls to providers: what is sent, and what is made of the answer.

pub mod endpoint;
pub mod error;
pub mod exchange;
pub mod http;
pub mod response;
pub mod revoke;

pub use error::{INVALID_RESPONSE, OAuthError, ProviderError};
pub use http::Http;
