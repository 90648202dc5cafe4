//! The checks that every use case makes: the provider, the subject and the scopes that a bot may use.

use std::sync::Arc;

use super::BrokerError;
use crate::domain::bot::Bot;
use crate::domain::grant::{GrantKey, Subject};
use crate::domain::name::Name;
use crate::domain::provider::Provider;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::domain::token::{DoomedToken, RawAnswer};
use crate::provider::{Directory, response};
use crate::storage::Disposal;

/// Returns the provider if this bot may use it. The error does not reveal whether it is configured.
pub(super) fn provider_for<'a>(
    providers: &'a Directory,
    bot: &Bot,
    name: &Name,
) -> Result<&'a Arc<Provider>, BrokerError> {
    providers
        .get(name.as_str())
        .filter(|_| bot.may_use(name.as_str()))
        .ok_or_else(|| BrokerError::ProviderNotAllowed { provider: name.clone() })
}

/// Checks that a bot may act for a subject.
pub(super) fn check_subject(bot: &Bot, subject: &Subject) -> Result<(), BrokerError> {
    if bot.may_act_for(subject.as_str()) {
        return Ok(());
    }
    Err(BrokerError::SubjectNotAllowed { subject: subject.clone() })
}

/// Returns the provider of a key if the bot may use it for the key's subject.
pub(super) fn admit<'a>(
    providers: &'a Directory,
    bot: &Bot,
    key: &GrantKey,
) -> Result<&'a Arc<Provider>, BrokerError> {
    let provider = provider_for(providers, bot, &key.provider)?;
    check_subject(bot, &key.subject)?;
    Ok(provider)
}

/// Checks that a bot may have these scopes.
pub(super) fn check_scopes(bot: &Bot, key: &GrantKey, scopes: &Scopes) -> Result<(), BrokerError> {
    let beyond = bot.scopes_beyond(key.provider.as_str(), scopes);
    if beyond.is_empty() { Ok(()) } else { Err(BrokerError::ScopeNotAllowed { scopes: beyond }) }
}

/// The configured providers that a bot may use, or the one of them that is named.
pub(super) fn providers_of(providers: &Directory, bot: &Bot, only: Option<&Name>) -> Vec<Name> {
    providers
        .iter()
        .map(|provider| &provider.name)
        .filter(|name| bot.may_use(name.as_str()) && only.is_none_or(|only| only == *name))
        .cloned()
        .collect()
}

/// The disposal of a provider's tokens. A provider that is no longer configured cannot be called.
pub(super) fn disposal(providers: &Directory, provider: &Name) -> Disposal<'static> {
    let provider = providers.get(provider.as_str());
    Disposal {
        revocable: provider.is_some_and(|provider| provider.may_revoke()),
        reach: provider.map(|provider| provider.revocation_reach).unwrap_or_default(),
        read: &read_tokens,
    }
}

fn read_tokens(answer: &RawAnswer, issued_at: Timestamp) -> Vec<DoomedToken> {
    response::tokens_in(answer, issued_at)
}
