//! Grants, one row per key.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "grants")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub created_at: i64,
    pub updated_at: i64,
    pub namespace: String,
    pub provider: String,
    pub subject: String,
    pub account: String,
    pub state: String,
    pub generation: i64,
    pub token_version: i64,
    pub scopes: String,
    /// `None` if a version before this column stored the row.
    pub requested_scopes: Option<String>,
    /// The name to show.
    pub identity: String,
    /// Of a checked ID token.
    pub sub: Option<String>,
    /// JSON.
    pub provider_values: String,
    pub issued_at: i64,
    pub expires_at: Option<i64>,
    /// Sealed.
    pub refresh_token: Option<Vec<u8>>,
    /// Sealed: the refresh token of a refresh that lost to a sibling.
    pub fallback_refresh_token: Option<Vec<u8>>,
    /// Sealed: an answer that could not be used whole.
    pub last_answer: Option<Vec<u8>>,
    pub refresh_expires_at: Option<i64>,
    pub lease_owner: Option<Vec<u8>>,
    pub lease_until: Option<i64>,
    /// The process that holds or held the lease. `None` also if a version without heartbeats claimed it.
    pub lease_replica: Option<Vec<u8>>,
    /// Since when a refresh token may have been sent without its answer being stored.
    pub intent_at: Option<i64>,
    pub failures: i64,
    /// `None` also if a version before this column counted the failures.
    pub failing_since: Option<i64>,
    pub next_attempt_at: Option<i64>,
    pub last_error: Option<String>,
    /// When the access token was last issued to a bot, as last recorded.
    pub last_used_at: Option<i64>,
    /// When the grant is looked at again for a refresh ahead of time.
    pub next_refresh_at: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
