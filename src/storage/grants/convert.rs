//! From rows to domain types.

use std::collections::BTreeMap;

use super::{ACCESS_TOKENS, CLOCK_TOLERANCE, GRANTS, Held, LEASE, Storage, StorageError};
use crate::crypto::sealed::Place;
use crate::domain::grant::{Grant, GrantKey, GrantState, Version};
use crate::domain::identity::Identity;
use crate::domain::scope::Scopes;
use crate::domain::time::{Timestamp, millis};
use crate::domain::token::AccessToken;
use crate::storage::entity::{access_tokens, grants};
use crate::storage::rows;

impl Storage {
    pub(super) fn held(
        &self,
        model: grants::Model,
        token: Option<access_tokens::Model>,
        now: Timestamp,
    ) -> Result<Held, StorageError> {
        // As `lease_ended` selects: one that ends too late was written before the clock was set back.
        let latest = now.millis() + millis(LEASE + CLOCK_TOLERANCE);
        let leased =
            model.lease_until.is_some_and(|until| (now.millis()..=latest).contains(&until));
        let key =
            rows::key(GRANTS, &model.namespace, &model.provider, &model.subject, &model.account)?;
        let grant = grant(model, key)?;
        let access_token = token.map(|token| self.access_token(&grant, token)).transpose()?;
        Ok(Held { grant, access_token, leased, now })
    }

    pub(super) fn access_token(
        &self,
        grant: &Grant,
        token: access_tokens::Model,
    ) -> Result<AccessToken, StorageError> {
        let place =
            Place { table: ACCESS_TOKENS, column: "access_token", row: grant.id, key: &grant.key };
        Ok(AccessToken {
            value: self.open(place, &token.access_token)?,
            token_type: token.token_type,
            scopes: Scopes::from_provider(&token.scopes),
            issued_at: Timestamp::from_millis(token.issued_at),
            expires_at: token.expires_at.map(Timestamp::from_millis),
        })
    }
}

pub(super) fn grant(model: grants::Model, key: GrantKey) -> Result<Grant, StorageError> {
    let provider_values = serde_json::from_str(&model.provider_values)
        .map_err(|_| StorageError::damaged(GRANTS, "provider_values is not of its form"))?;
    Ok(Grant {
        id: rows::id(&model.id)?,
        key,
        state: match model.state.as_str() {
            super::ACTIVE => GrantState::Active,
            super::REAUTHORIZATION_REQUIRED => GrantState::ReauthorizationRequired,
            other => return Err(StorageError::damaged(GRANTS, format!("state {other:?}"))),
        },
        version: Version { generation: model.generation, token_version: model.token_version },
        scopes: Scopes::from_provider(&model.scopes),
        identity: Identity { name: model.identity, sub: model.sub },
        provider_values,
        created_at: Timestamp::from_millis(model.created_at),
        issued_at: Timestamp::from_millis(model.issued_at),
        expires_at: model.expires_at.map(Timestamp::from_millis),
        refreshable: model.refresh_token.is_some(),
        failures: u32::try_from(model.failures).unwrap_or(u32::MAX),
        next_attempt_at: model.next_attempt_at.map(Timestamp::from_millis),
        last_error: model.last_error,
        last_used_at: model.last_used_at.map(Timestamp::from_millis),
    })
}

pub(super) fn json(values: &BTreeMap<String, String>) -> String {
    serde_json::to_string(values).expect("a map of strings is always JSON")
}
