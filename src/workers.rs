//! Work beside the calls: refreshes ahead of time, the recovery of refreshes whose outcome is unknown, the
//! outbox, the sweep, and the watch over storage.

pub mod changes;
pub mod contact;
pub mod due;
pub mod figures;
mod lanes;
pub mod proactive_refresh;
pub mod refresh_recovery;
pub mod revocations;
pub mod sweep;
