//! Sealing at rest, keyed derivations, and the source of randomness.

pub mod keyring;
pub mod random;
pub mod sealed;
