//! Additional authenticated data, which binds a sealed value to its row and column.

use crate::domain::grant::GrantKey;
use crate::domain::id::Id;

/// The place of a sealed value. A ciphertext that was moved to another table, column, row or
/// owner does not open there.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The table.
    pub table: &'static str,
    /// The column.
    pub column: &'static str,
    /// The row.
    pub row: Id,
    /// The grant of the row.
    pub key: &'a GrantKey,
}

impl Place<'_> {
    /// The additional authenticated data.
    #[must_use]
    pub fn aad(&self) -> Vec<u8> {
        length_prefixed([
            self.table.as_bytes(),
            self.column.as_bytes(),
            self.row.as_bytes(),
            self.key.namespace.as_str().as_bytes(),
            self.key.provider.as_str().as_bytes(),
            self.key.subject.as_str().as_bytes(),
            self.key.account.as_str().as_bytes(),
        ])
    }
}

/// Joins parts so that no two lists of parts give the same bytes.
#[must_use]
pub fn length_prefixed<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut joined = Vec::new();
    for part in parts {
        joined.extend((part.len() as u64).to_be_bytes());
        joined.extend(part);
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::{Account, Subject};
    use crate::domain::name::Name;

    #[test]
    fn every_part_of_the_place_counts() {
        let name = |text| Name::parse(text).expect("a name");
        let key = |namespace, provider, subject: &str, account: &str| GrantKey {
            namespace: name(namespace),
            provider: name(provider),
            subject: Subject::parse(subject).expect("a subject"),
            account: Account::parse(account).expect("an account"),
        };
        let id = |byte| Id::from_bytes([byte; 16]);
        let base = key("n", "p", "s", "a");
        let place = Place { table: "grants", column: "refresh_token", row: id(1), key: &base };
        let other_keys = [
            key("m", "p", "s", "a"),
            key("n", "q", "s", "a"),
            key("n", "p", "t", "a"),
            key("n", "p", "s", ""),
            key("n", "p", "sa", ""),
        ];
        let mut others: Vec<_> =
            other_keys.iter().map(|key| Place { key, ..place }.aad()).collect();
        others.push(Place { table: "revocations", ..place }.aad());
        others.push(Place { column: "access_token", ..place }.aad());
        others.push(Place { row: id(2), ..place }.aad());
        assert!(others.iter().all(|other| *other != place.aad()));
    }
}
