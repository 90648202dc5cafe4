//! One run of a flow each.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "authorizations")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub created_at: i64,
    pub namespace: String,
    pub bot: String,
    pub provider: String,
    pub subject: String,
    pub account: String,
    pub scopes: String,
    pub flow: String,
    /// JSON.
    pub options: String,
    pub state: String,
    pub error: Option<String>,
    pub error_description: Option<String>,
    /// The number of codes that the provider has refused.
    pub refused_codes: i64,
    pub confirmation_code_hash: Option<Vec<u8>>,
    pub confirmation_attempts: i64,
    /// Sealed: the raw token answer that awaits confirmation.
    pub quarantine: Option<Vec<u8>>,
    /// The displayed name of the user who consented.
    pub identity: Option<String>,
    /// Of their checked ID token.
    pub sub: Option<String>,
    /// When the code was sent: no token of the answer is older.
    pub exchanged_at: Option<i64>,
    pub link_expires_at: i64,
    pub expires_at: i64,
    pub finished_at: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
