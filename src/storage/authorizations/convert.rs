//! From rows to domain types.

use serde::{Deserialize, Serialize};

use super::{AUTHORIZATIONS, StorageError};
use crate::domain::authorization::{Authorization, Failure, Options, State};
use crate::domain::name::Name;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::storage::entity::authorizations;

/// [`Options`] as stored. Unknown fields are ignored, because a newer replica may have written them.
#[derive(Serialize, Deserialize)]
struct StoredOptions {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    return_url: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    login_hint: Option<String>,
}

pub(super) fn options_to_json(options: &Options) -> String {
    let stored = StoredOptions {
        return_url: options.return_url.clone(),
        login_hint: options.login_hint.clone(),
    };
    serde_json::to_string(&stored).expect("strings are always JSON")
}

pub(super) fn authorization(model: authorizations::Model) -> Result<Authorization, StorageError> {
    let damaged = |reason: &str| StorageError::damaged(AUTHORIZATIONS, reason);
    let options: StoredOptions = serde_json::from_str(&model.options)
        .map_err(|_| damaged("options are not of their form"))?;
    let failure = || Failure {
        error: model.error.clone().unwrap_or_default(),
        description: model.error_description.clone().unwrap_or_default(),
    };
    let state = match model.state.as_str() {
        "pending" => State::Pending,
        "exchanging" => State::Exchanging,
        "awaiting_confirmation" => State::AwaitingConfirmation,
        "authorized" => State::Authorized,
        "denied" => State::Denied(failure()),
        "failed" => State::Failed(failure()),
        "expired" => State::Expired,
        "cancelled" => State::Cancelled,
        other => return Err(damaged(&format!("state {other:?}"))),
    };
    let key = crate::storage::rows::key(
        AUTHORIZATIONS,
        &model.namespace,
        &model.provider,
        &model.subject,
        &model.account,
    )?;
    Ok(Authorization {
        id: crate::storage::rows::id(&model.id)?,
        key,
        bot: Name::parse(&model.bot).map_err(|_| damaged("a bot's name is not of its form"))?,
        scopes: Scopes::from_provider(&model.scopes),
        options: Options { return_url: options.return_url, login_hint: options.login_hint },
        state,
        is_exchanged: model.exchanged_at.is_some(),
        link_expires_at: Timestamp::from_millis(model.link_expires_at),
        expires_at: Timestamp::from_millis(model.expires_at),
    })
}
