//! Redirects that have been used: the primary key lets each in once.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "authorization_attempts")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub authorization_id: Vec<u8>,
    #[sea_orm(primary_key, auto_increment = false)]
    pub salt: Vec<u8>,
    pub used_at: i64,
}

impl ActiveModelBehavior for ActiveModel {}
