//! Work beside the calls: refreshes ahead of time, the recovery of refreshes whose outcome is unknown, the
//! outbox, the sweep, and the watch over storage.

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
