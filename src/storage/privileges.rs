//! Privileges of the role by which the database is used.

use sea_orm::{ConnectionTrait as _, DbBackend, Statement};

use super::{Storage, StorageError};

/// One row per privilege that the role lacks. `$1`: whether it applies migrations.
const LACKING: &str = "
    WITH tables AS (
        SELECT name, to_regclass(name) AS oid FROM unnest(ARRAY[
            'access_tokens', 'authorization_attempts', 'authorizations', 'encryption_keys', 'grants',
            'replicas', 'revocations', 'superseded_tokens', 'seaql_migrations'
        ]) AS name
    )
    SELECT 'CREATE in the schema ' || coalesce(current_schema(), '(search_path names none)') AS lacking
        WHERE $1 AND NOT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false)
    UNION ALL
    SELECT 'the ownership of the table ' || name FROM tables JOIN pg_class USING (oid)
        WHERE $1 AND NOT pg_has_role(relowner, 'USAGE')
    UNION ALL
    SELECT privilege || ' on the table ' || name
        FROM tables CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS privilege
        WHERE oid IS NOT NULL AND name <> 'seaql_migrations' AND NOT has_table_privilege(oid, privilege)";

impl Storage {
    /// The privileges that the role lacks for the work of `serve`, in words. `migrates`: whether it also applies
    /// migrations. Empty on SQLite.
    ///
    /// # Errors
    ///
    /// [`StorageError`] if the database cannot be read.
    pub async fn lacking_privileges(&self, migrates: bool) -> Result<Vec<String>, StorageError> {
        if !self.is_shared() {
            return Ok(Vec::new());
        }
        let statement =
            Statement::from_sql_and_values(DbBackend::Postgres, LACKING, [migrates.into()]);
        let rows = self.db.query_all_raw(statement).await?;
        rows.iter().map(|row| row.try_get("", "lacking").map_err(StorageError::from)).collect()
    }
}
