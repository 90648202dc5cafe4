//! Listing grants, page by page.

use sea_orm::sea_query::{Expr, ExprTrait, Func};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::{GRANTS, GrantStore, StorageError, convert};
use crate::domain::grant::Grant;
use crate::domain::name::Name;
use crate::storage::entity::grants;
use crate::storage::rows;

/// The grants to list.
#[derive(Debug, Clone)]
pub struct ListFilter {
    /// The namespace.
    pub namespace: Name,
    /// At which providers. `None`: any.
    pub providers: Option<Vec<Name>>,
    /// The subjects. `None`: any.
    pub subjects: Option<Vec<SubjectFilter>>,
    /// After which grant of the order.
    pub after: Option<ListPosition>,
    /// At most this many.
    pub limit: u64,
}

/// Selects subjects.
#[derive(Debug, Clone)]
pub enum SubjectFilter {
    /// This one.
    Is(String),
    /// Those that begin so.
    StartsWith(String),
}

/// A place in the order of grants: by subject, then provider, then account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListPosition {
    /// The subject.
    pub subject: String,
    /// The provider.
    pub provider: String,
    /// The account.
    pub account: String,
}

impl GrantStore {
    /// Lists grants in order of subject, provider and account.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn list_grants(&self, filter: &ListFilter) -> Result<Vec<Grant>, StorageError> {
        use grants::Column::{Account, Namespace, Provider, Subject};

        let mut select = grants::Entity::find().filter(Namespace.eq(filter.namespace.as_str()));
        if let Some(providers) = &filter.providers {
            select = select.filter(Provider.is_in(providers.iter().map(Name::as_str)));
        }
        if let Some(subjects) = &filter.subjects {
            let any = subjects.iter().fold(Condition::any(), |any, subject| match subject {
                SubjectFilter::Is(text) => any.add(Subject.eq(text)),
                SubjectFilter::StartsWith(prefix) => any.add(starts_with(prefix)),
            });
            select = select.filter(any);
        }
        if let Some(after) = &filter.after {
            // A comparison of rows, by which both databases search the index from that place on.
            let place = [Expr::col(Subject), Expr::col(Provider), Expr::col(Account)];
            let after = [
                Expr::value(after.subject.as_str()),
                Expr::value(after.provider.as_str()),
                Expr::value(after.account.as_str()),
            ];
            select = select.filter(Expr::tuple(place).gt(Expr::tuple(after)));
        }
        let models = select
            .order_by_asc(Subject)
            .order_by_asc(Provider)
            .order_by_asc(Account)
            .limit(filter.limit)
            .all(&self.db)
            .await?;
        models
            .into_iter()
            .map(|model| {
                let key = rows::key(
                    GRANTS,
                    &model.namespace,
                    &model.provider,
                    &model.subject,
                    &model.account,
                )?;
                convert::grant(model, key)
            })
            .collect()
    }
}

/// Selects subjects by a range of the index, which is ordered by bytes; and by `SUBSTR`, which compares
/// characters as they are, where `LIKE` has wild cards and ignores case.
fn starts_with(prefix: &str) -> Condition {
    let characters = i32::try_from(prefix.chars().count()).unwrap_or(i32::MAX);
    let exact = Expr::expr(Func::cust("SUBSTR").args([
        Expr::col(grants::Column::Subject),
        Expr::value(1),
        Expr::value(characters),
    ]))
    .eq(prefix);
    let range = Condition::all().add(grants::Column::Subject.gte(prefix)).add(exact);
    match successor(prefix) {
        Some(end) => range.add(grants::Column::Subject.lt(end)),
        None => range,
    }
}

/// The least text that comes after everything that starts with `prefix`, in the order of bytes. `None`
/// if there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut characters: Vec<char> = prefix.chars().collect();
    while let Some(last) = characters.pop() {
        // The gap of the surrogates is no scalar value.
        let next = (u32::from(last) + 1..=u32::from(char::MAX)).find_map(char::from_u32);
        if let Some(next) = next {
            characters.push(next);
            return Some(characters.into_iter().collect());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::successor;

    #[test]
    fn what_comes_after_a_prefix() {
        assert_eq!(successor("acme/").as_deref(), Some("acme0"));
        assert_eq!(successor("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(successor("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(successor("\u{10ffff}"), None);
        assert_eq!(successor(""), None);
    }
}
