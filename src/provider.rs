//! Calls to providers: what is sent, and what is made of the answer.

pub mod directory;
mod discovery;
pub mod egress;
pub mod endpoint;
pub mod error;
pub mod exchange;
pub mod http;
pub mod id_token;
mod keys;
pub mod response;
pub mod revoke;
pub mod userinfo;

pub use directory::Directory;
pub use egress::Egress;
pub use error::{INVALID_CLIENT, INVALID_RESPONSE, OAuthError, ProviderError};
pub use http::Http;
pub use id_token::{Expected, IdTokenError, Mismatch};
