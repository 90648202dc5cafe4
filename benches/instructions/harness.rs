//! Parts of the harness of the integration tests.
#![expect(dead_code, reason = "the tests use more of it")]

#[path = "../../tests/integration/harness/bare.rs"]
pub mod bare;
#[path = "../../tests/integration/harness/grants.rs"]
pub mod grants;
