//! Jobs beside the calls: proactive refresh, the recovery of refreshes whose outcome is unknown, the outbox, the sweep,
//! invalidations of other replicas, and the health of the database.

pub mod backlog;
pub mod database_health;
pub mod due;
pub mod invalidations;
mod job;
mod lanes;
pub mod proactive_refresh;
pub mod refresh_recovery;
pub mod revocations;
pub mod sweep;
