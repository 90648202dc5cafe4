//! Columns that several tables have in common.

use super::StorageError;
use crate::domain::grant::{Account, GrantKey, Subject};
use crate::domain::id::Id;
use crate::domain::name::Name;

pub(super) fn key(
    table: &'static str,
    namespace: &str,
    provider: &str,
    subject: &str,
    account: &str,
) -> Result<GrantKey, StorageError> {
    let name = |text| {
        Name::parse(text).map_err(|_| StorageError::damaged(table, "a name is not of its form"))
    };
    Ok(GrantKey {
        namespace: name(namespace)?,
        provider: name(provider)?,
        subject: Subject::parse(subject)
            .ok_or_else(|| StorageError::damaged(table, "a subject is not of its form"))?,
        account: Account::parse(account)
            .ok_or_else(|| StorageError::damaged(table, "an account is not of its form"))?,
    })
}

pub(super) fn id(bytes: &[u8]) -> Result<Id, StorageError> {
    bytes
        .try_into()
        .map(Id::from_bytes)
        .map_err(|_| StorageError::damaged("none", "an id has not 16 bytes"))
}

/// The ids that a statement has selected.
pub(super) fn ids(rows: Vec<sea_orm::QueryResult>) -> Result<Vec<Vec<u8>>, StorageError> {
    rows.iter().map(|row| row.try_get("", "id").map_err(StorageError::from)).collect()
}
