//! Calls to providers: what is sent, and what is made of the answer.

pub mod classify;
mod content;
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
mod retry_after;
pub mod revoke;
mod userinfo;

pub use classify::TokenAnswer;
pub use directory::Directory;
pub use egress::Egress;
pub use error::{Concerns, INVALID_CLIENT, INVALID_RESPONSE, OAuthError, ProviderError};
pub use http::Http;
pub use id_token::{Expected, IdTokenError, Mismatch};
