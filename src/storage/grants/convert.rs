//! From rows to domain types.

use std::collections::BTreeMap;

use sea_orm::FromQueryResult;

use super::{ACCESS_TOKENS, GRANTS, StorageError, StoreContext};
use crate::crypto::sealed::Place;
use crate::domain::grant::{Grant, GrantKey, GrantState, Version};
use crate::domain::identity::Identity;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::domain::token::AccessToken;
use crate::storage::entity::{access_tokens, grants};
use crate::storage::rows;

impl StoreContext {
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

/// The columns of a [`Grant`], beside its key.
#[derive(Debug, FromQueryResult)]
pub(super) struct GrantRow {
    id: Vec<u8>,
    state: String,
    generation: i64,
    token_version: i64,
    scopes: String,
    requested_scopes: Option<String>,
    identity: String,
    sub: Option<String>,
    provider_values: String,
    created_at: i64,
    issued_at: i64,
    expires_at: Option<i64>,
    /// `true` if there is a refresh token.
    refreshable: bool,
    refresh_expires_at: Option<i64>,
    failures: i64,
    failing_since: Option<i64>,
    next_attempt_at: Option<i64>,
    last_error: Option<String>,
    last_used_at: Option<i64>,
}

impl From<grants::Model> for GrantRow {
    fn from(model: grants::Model) -> Self {
        Self {
            id: model.id,
            state: model.state,
            generation: model.generation,
            token_version: model.token_version,
            scopes: model.scopes,
            requested_scopes: model.requested_scopes,
            identity: model.identity,
            sub: model.sub,
            provider_values: model.provider_values,
            created_at: model.created_at,
            issued_at: model.issued_at,
            expires_at: model.expires_at,
            refreshable: model.refresh_token.is_some(),
            refresh_expires_at: model.refresh_expires_at,
            failures: model.failures,
            failing_since: model.failing_since,
            next_attempt_at: model.next_attempt_at,
            last_error: model.last_error,
            last_used_at: model.last_used_at,
        }
    }
}

pub(super) fn grant(row: impl Into<GrantRow>, key: GrantKey) -> Result<Grant, StorageError> {
    let row = row.into();
    let provider_values = serde_json::from_str(&row.provider_values)
        .map_err(|_| StorageError::damaged(GRANTS, "provider_values is not of its form"))?;
    Ok(Grant {
        id: rows::id(&row.id)?,
        key,
        state: match row.state.as_str() {
            super::ACTIVE => GrantState::Active,
            super::REAUTHORIZATION_REQUIRED => GrantState::ReauthorizationRequired,
            other => return Err(StorageError::damaged(GRANTS, format!("state {other:?}"))),
        },
        version: Version { generation: row.generation, token_version: row.token_version },
        scopes: Scopes::from_provider(&row.scopes),
        requested: row.requested_scopes.as_deref().map(Scopes::from_provider),
        identity: Identity { name: row.identity, sub: row.sub },
        provider_values,
        created_at: Timestamp::from_millis(row.created_at),
        issued_at: Timestamp::from_millis(row.issued_at),
        expires_at: row.expires_at.map(Timestamp::from_millis),
        refreshable: row.refreshable,
        refresh_expires_at: row.refresh_expires_at.map(Timestamp::from_millis),
        failures: u32::try_from(row.failures).unwrap_or(u32::MAX),
        failing_since: row.failing_since.map(Timestamp::from_millis),
        next_attempt_at: row.next_attempt_at.map(Timestamp::from_millis),
        last_error: row.last_error,
        last_used_at: row.last_used_at.map(Timestamp::from_millis),
    })
}

pub(super) fn json(values: &BTreeMap<String, String>) -> String {
    serde_json::to_string(values).expect("a map of strings is always JSON")
}
