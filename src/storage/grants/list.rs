//! Listing grants, page by page.

use sea_orm::sea_query::{Expr, ExprTrait, Func};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect};

use super::{GRANTS, Storage, StorageError, convert};
use crate::domain::grant::Grant;
use crate::domain::name::Name;
use crate::storage::entity::grants;
use crate::storage::rows;

/// Which grants to list.
#[derive(Debug, Clone)]
pub struct ListFilter {
    /// Whose.
    pub namespace: Name,
    /// At which providers. Absent: any.
    pub providers: Option<Vec<Name>>,
    /// Of which subjects. Absent: any.
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

impl Storage {
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
            let (subject, provider) = (after.subject.as_str(), after.provider.as_str());
            let later_account =
                Condition::all().add(Provider.eq(provider)).add(Account.gt(after.account.as_str()));
            let later_at_subject = Condition::any().add(Provider.gt(provider)).add(later_account);
            select = select.filter(
                Condition::any()
                    .add(Subject.gt(subject))
                    .add(Condition::all().add(Subject.eq(subject)).add(later_at_subject)),
            );
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

/// `SUBSTR` compares characters as they are, where `LIKE` has wild cards and ignores case.
fn starts_with(prefix: &str) -> Expr {
    let characters = i32::try_from(prefix.chars().count()).unwrap_or(i32::MAX);
    Expr::expr(Func::cust("SUBSTR").args([
        Expr::col(grants::Column::Subject),
        Expr::value(1),
        Expr::value(characters),
    ]))
    .eq(prefix)
}
