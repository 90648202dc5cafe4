//! ListGrants and ListProviders.

use super::access::{check_subject, provider_for, providers_of};
use super::{BrokerError, ListService};
use crate::domain::bot::Bot;
use crate::domain::grant::{Grant, Subject};
use crate::domain::name::Name;
use crate::domain::provider::Provider;
use crate::storage::{ListFilter, ListPosition, SubjectFilter};

/// A request to list grants.
#[derive(Debug)]
pub struct ListGrantsRequest {
    /// At one provider. `None`: at any.
    pub provider: Option<Name>,
    /// Of one subject. `None`: of any.
    pub subject: Option<Subject>,
    /// At most this many.
    pub page_size: u32,
    /// After which grant.
    pub after: Option<ListPosition>,
}

impl ListService {
    /// The grants that the bot may see, in order, and where the next page begins.
    ///
    /// # Errors
    ///
    /// [`BrokerError`].
    pub async fn list_grants(
        &self,
        bot: &Bot,
        request: ListGrantsRequest,
    ) -> Result<(Vec<Grant>, Option<ListPosition>), BrokerError> {
        if let Some(provider) = &request.provider {
            provider_for(&self.providers, bot, provider)?;
        }
        let subjects = match request.subject {
            Some(subject) => {
                check_subject(bot, &subject)?;
                Some(vec![SubjectFilter::Is(subject.as_str().to_owned())])
            }
            None => bot
                .subjects
                .as_ref()
                .map(|patterns| patterns.iter().map(|pattern| pattern.into()).collect()),
        };
        let mut grants = self
            .grants
            .list_grants(&ListFilter {
                namespace: bot.namespace.clone(),
                providers: Some(providers_of(&self.providers, bot, request.provider.as_ref())),
                subjects,
                after: request.after,
                limit: u64::from(request.page_size) + 1,
            })
            .await?;
        let page = request.page_size as usize;
        let more = grants.len() > page;
        grants.truncate(page);
        let next = grants.last().filter(|_| more).map(|last| ListPosition {
            subject: last.key.subject.as_str().to_owned(),
            provider: last.key.provider.to_string(),
            account: last.key.account.as_str().to_owned(),
        });
        Ok((grants, next))
    }

    /// The providers that the bot may use, by name, after the one that is named.
    pub fn list_providers<'a>(
        &'a self,
        bot: &'a Bot,
        after: Option<&'a Name>,
    ) -> impl Iterator<Item = &'a Provider> {
        self.providers
            .iter()
            .map(AsRef::as_ref)
            .filter(|provider| bot.may_use(provider.name.as_str()))
            .filter(move |provider| after.is_none_or(|after| provider.name > *after))
    }
}

impl From<&crate::domain::bot::SubjectPattern> for SubjectFilter {
    fn from(pattern: &crate::domain::bot::SubjectPattern) -> Self {
        match pattern.prefix() {
            Some(prefix) => Self::StartsWith(prefix.to_owned()),
            None => Self::Is(pattern.as_str().to_owned()),
        }
    }
}
