//! The tokens of earlier authorizations of a grant, which its revocation ends too.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "superseded_tokens")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub grant_id: Vec<u8>,
    pub created_at: i64,
    /// `access_token` or `refresh_token`.
    pub kind: String,
    /// Sealed.
    pub token: Vec<u8>,
    pub expires_at: Option<i64>,
}

impl ActiveModelBehavior for ActiveModel {}
