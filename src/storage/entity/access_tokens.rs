//! The access tokens of grants.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "access_tokens")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub grant_id: Vec<u8>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub token_set: String,
    #[sea_orm(primary_key, auto_increment = false)]
    pub resources_hash: Vec<u8>,
    /// Sealed.
    pub access_token: Vec<u8>,
    pub token_type: String,
    pub scopes: String,
    pub issued_at: i64,
    pub expires_at: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
