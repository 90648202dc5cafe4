//! The first tables: authorizations, their attempts, grants, access tokens, revocations.

use sea_orm_migration::prelude::*;

use crate::engine::Engine;

#[derive(DeriveMigrationName)]
pub(crate) struct Step;

#[sea_orm_migration::async_trait::async_trait]
impl MigrationTrait for Step {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        let columns = Columns { engine: Engine::of(manager.get_connection()).await? };
        manager.create_table(authorizations(&columns)).await?;
        manager.create_table(authorization_attempts(&columns)).await?;
        manager.create_table(grants(&columns)).await?;
        manager.create_table(access_tokens(&columns)).await?;
        manager.create_table(revocations(&columns)).await?;
        for index in indexes() {
            manager.create_index(index).await?;
        }
        Ok(())
    }
}

/// The column types of the present database.
struct Columns {
    engine: Engine,
}

impl Columns {
    /// Text that is compared and ordered by its bytes. SQLite does so anyway; PostgreSQL would
    /// follow the database's locale, which differs between installations and releases.
    fn text(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        match self.engine {
            Engine::Postgres | Engine::Yugabyte => column.custom("TEXT COLLATE \"C\""),
            // CockroachDB orders strings by their bytes, and does not know the name.
            Engine::Sqlite | Engine::Cockroach => column.text(),
        };
        column.not_null();
        column
    }

    fn optional_text(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.text().null();
        column
    }

    fn bytes(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.blob().not_null();
        column
    }

    fn optional_bytes(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.blob().null();
        column
    }

    fn integer(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.big_integer().not_null();
        column
    }

    fn optional_integer(&self, name: &'static str) -> ColumnDef {
        let mut column = ColumnDef::new(name);
        column.big_integer().null();
        column
    }
}

fn table(
    name: &'static str,
    columns: Vec<ColumnDef>,
    key: &[&'static str],
) -> TableCreateStatement {
    let mut table = Table::create();
    table.table(name);
    for column in columns {
        table.col(column);
    }
    let mut primary = Index::create();
    for column in key {
        primary.col(*column);
    }
    table.primary_key(&mut primary);
    table
}

fn authorizations(c: &Columns) -> TableCreateStatement {
    let columns = vec![
        c.bytes("id"),
        c.integer("created_at"),
        c.text("namespace"),
        c.text("bot"),
        c.text("provider"),
        c.text("subject"),
        c.text("account"),
        c.text("scopes"),
        c.text("flow"),
        c.text("options"),
        c.text("state"),
        c.optional_text("error"),
        c.optional_text("error_description"),
        c.integer("refused_codes"),
        c.optional_bytes("confirmation_code_hash"),
        c.integer("confirmation_attempts"),
        c.optional_bytes("quarantine"),
        c.optional_integer("exchanged_at"),
        c.integer("link_expires_at"),
        c.integer("expires_at"),
        c.optional_integer("finished_at"),
    ];
    table("authorizations", columns, &["id"])
}

fn authorization_attempts(c: &Columns) -> TableCreateStatement {
    let columns = vec![c.bytes("authorization_id"), c.bytes("salt"), c.integer("used_at")];
    table("authorization_attempts", columns, &["authorization_id", "salt"])
}

fn grants(c: &Columns) -> TableCreateStatement {
    let columns = vec![
        c.bytes("id"),
        c.integer("created_at"),
        c.integer("updated_at"),
        c.text("namespace"),
        c.text("provider"),
        c.text("subject"),
        c.text("account"),
        c.text("state"),
        c.integer("generation"),
        c.integer("token_version"),
        c.text("scopes"),
        c.text("identity"),
        c.text("provider_values"),
        c.integer("issued_at"),
        c.optional_integer("expires_at"),
        c.optional_bytes("refresh_token"),
        c.optional_bytes("fallback_refresh_token"),
        c.optional_bytes("last_answer"),
        c.optional_integer("refresh_expires_at"),
        c.optional_bytes("lease_owner"),
        c.optional_integer("lease_until"),
        c.optional_integer("intent_at"),
        c.integer("failures"),
        c.optional_integer("next_attempt_at"),
        c.optional_text("last_error"),
    ];
    table("grants", columns, &["id"])
}

fn access_tokens(c: &Columns) -> TableCreateStatement {
    let columns = vec![
        c.bytes("grant_id"),
        c.text("token_set"),
        c.bytes("resources_hash"),
        c.bytes("access_token"),
        c.text("token_type"),
        c.text("scopes"),
        c.integer("issued_at"),
        c.optional_integer("expires_at"),
    ];
    table("access_tokens", columns, &["grant_id", "token_set", "resources_hash"])
}

fn revocations(c: &Columns) -> TableCreateStatement {
    let columns = vec![
        c.bytes("id"),
        c.integer("created_at"),
        c.text("namespace"),
        c.text("provider"),
        c.text("subject"),
        c.text("account"),
        c.text("identity"),
        c.text("kind"),
        c.bytes("token"),
        c.integer("attempts"),
        c.integer("next_attempt_at"),
        c.optional_integer("claimed_until"),
        c.integer("expires_at"),
        c.optional_text("last_error"),
    ];
    table("revocations", columns, &["id"])
}

fn indexes() -> Vec<IndexCreateStatement> {
    let index = |table: &'static str, columns: &[&'static str]| {
        let mut index = Index::create();
        index.name(format!("{table}_{}", columns.join("_"))).table(table);
        for column in columns {
            index.col(*column);
        }
        index
    };
    let mut one_grant_a_key = index("grants", &["namespace", "provider", "subject", "account"]);
    one_grant_a_key.unique();
    vec![
        one_grant_a_key,
        index("grants", &["namespace", "subject"]),
        index("authorizations", &["namespace", "subject", "state"]),
        index("authorizations", &["expires_at"]),
        index("revocations", &["next_attempt_at"]),
        index("revocations", &["namespace", "provider", "subject", "account"]),
    ]
}
