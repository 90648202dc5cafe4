//! Parts of the harness of the integration tests.
#![expect(dead_code, reason = "the tests use more of it")]

#[path = "../../tests/integration/harness/bare.rs"]
pub mod bare;
#[path = "../../tests/integration/harness/grants.rs"]
pub mod grants;
#[path = "../../tests/integration/harness/ports.rs"]
pub mod ports;
#[path = "../../tests/integration/harness/postgres.rs"]
pub mod postgres;
#[path = "../../tests/integration/harness/tools.rs"]
pub mod tools;
