//! SeaORM models of the tables. They stay in this layer.

pub(super) mod access_tokens;
pub(super) mod authorization_attempts;
pub(super) mod authorizations;
pub(super) mod encryption_keys;
pub(super) mod grants;
pub(super) mod replicas;
pub(super) mod revocations;
pub(super) mod superseded_tokens;
