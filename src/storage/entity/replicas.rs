//! The processes that work on the database, each with its heartbeat.

use sea_orm::entity::prelude::*;

#[sea_orm::model]
#[derive(Clone, Debug, PartialEq, Eq, DeriveEntityModel)]
#[sea_orm(table_name = "replicas")]
pub struct Model {
    #[sea_orm(primary_key, auto_increment = false)]
    pub id: Vec<u8>,
    pub location: Option<String>,
    pub started_at: i64,
    pub heartbeat_at: i64,
}

impl ActiveModelBehavior for ActiveModel {}
