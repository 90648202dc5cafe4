//! The use cases, as services: each use case is one file that reads from top to bottom, and each service names what it
//! depends on.
//!
//! | service | use cases |
//! | --- | --- |
//! | [`TokenService`] | GetToken, Refresh |
//! | [`AuthorizationService`] | Authorize, GetAuthorization, WatchAuthorization, ConfirmAuthorization, CancelAuthorization; the sweep |
//! | [`CallbackService`] | the start link and the provider's redirect |
//! | [`RevocationService`] | Revoke, RevokeAll; the outbox |
//! | [`ListService`] | ListGrants, ListProviders |
//! | [`RefreshService`] | the refresh of one grant, for callers, proactively and as recovery |
//! | [`DatabaseService`] | schema, keys, heartbeat and health of the database |

mod access;
pub mod authorize;
mod boot_instant;
mod cache;
pub mod callback;
pub mod caller;
pub mod cancel;
pub mod confirm;
mod database;
mod database_health;
pub mod error;
pub mod get_token;
pub mod list;
mod oauth_state;
pub mod refresh;
pub mod revoke;
mod services;
mod settings;
mod tasks;
mod used;
pub mod watch_authorization;
mod watchers;

pub use boot_instant::BootInstant;
pub use cache::{Bounds, CacheCounts, CachedToken, NO_CACHE};
pub use callback::redirect_uri;
pub use database::{DatabaseService, Failure as DatabaseFailure, Schema, wrong_keys};
pub use error::BrokerError;
pub use oauth_state::BrowserSecret;
pub use services::{
    AuthorizationService, Broker, CallbackService, ListService, Parts, RefreshService,
    RevocationService, TokenService,
};
pub use settings::{CallLimits, Settings};
pub use tasks::Tasks;
