//! The outbox: tokens that are still to be revoked at their provider.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "revocations")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub created_at: i64,
    pub namespace: String,
    pub provider: String,
    pub subject: String,
    pub account: String,
    pub identity: String,
    pub kind: String,
    /// Sealed.
    pub token: Vec<u8>,
    pub attempts: i64,
    pub next_attempt_at: i64,
    /// The end of the claim of the replica that sends it to the provider.
    pub claimed_until: Option<i64>,
    pub expires_at: i64,
    pub last_error: Option<String>,
    /// The table, column and row that `token` is sealed for, if not this row: it was moved here unopened,
    /// because no key of this process opens it.
    pub sealed_table: Option<String>,
    pub sealed_column: Option<String>,
    pub sealed_row: Option<Vec<u8>>,
}

impl ActiveModelBehavior for ActiveModel {}
