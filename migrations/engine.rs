//! The engine that the migrations run on, as far as their statements differ.

use sea_orm_migration::SchemaManagerConnection;
use sea_orm_migration::sea_orm::{ConnectionTrait, DbBackend, DbErr, Statement};

/// The SQL engine: those that speak PostgreSQL's protocol differ in the schema objects that they build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Engine {
    Sqlite,
    Postgres,
    Cockroach,
    Yugabyte,
}

impl Engine {
    pub(crate) async fn of(db: &SchemaManagerConnection<'_>) -> Result<Self, DbErr> {
        if db.get_database_backend() == DbBackend::Sqlite {
            return Ok(Self::Sqlite);
        }
        let select = Statement::from_string(DbBackend::Postgres, "SELECT version() AS version");
        let row = db.query_one_raw(select).await?;
        let version: String = match row {
            Some(row) => row.try_get("", "version")?,
            None => String::new(),
        };
        Ok(if version.contains("CockroachDB") {
            Self::Cockroach
        } else if version.contains("-YB-") {
            Self::Yugabyte
        } else {
            Self::Postgres
        })
    }
}
