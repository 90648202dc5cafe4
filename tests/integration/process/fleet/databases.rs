//! The databases that fleets run on. `TOKEN_BROKER_TEST_DATABASE` names another one than the system's
//! PostgreSQL: `postgresql-18`, `serializable`, `without-notify` or `pgbouncer`. `scripts/soak` runs the
//! fleets on each.

use crate::harness::{pooler, postgres};
use crate::storage::backend::{serializable, without_notify};

const VARIABLE: &str = "TOKEN_BROKER_TEST_DATABASE";

fn kind() -> String {
    std::env::var(VARIABLE).unwrap_or_default()
}

/// Returns `true` if replicas hear from each other through the database.
pub fn notifies() -> bool {
    kind() != "without-notify"
}

/// The URL of a database that no other test has.
pub async fn database() -> String {
    match kind().as_str() {
        "" => postgres::database().await,
        "postgresql-18" => postgres::database_18().await,
        "serializable" => serializable(&postgres::database().await),
        "without-notify" => without_notify(&postgres::database().await).await,
        "pgbouncer" => pooler::in_front_of(&postgres::database().await).await,
        other => panic!("{VARIABLE} = {other}"),
    }
}

/// A server of one's own, which does not run yet.
pub fn server() -> postgres::Server {
    if kind() == "postgresql-18" {
        let binaries = postgres::binaries_18().expect("scripts/soak has installed them");
        return postgres::Server::prepared_from(binaries);
    }
    postgres::Server::prepared()
}
