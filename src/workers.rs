//! What goes on beside the calls: refreshes ahead of time and to take up, the outbox, the sweep, and the watch over
//! storage.

pub mod changes;
pub mod contact;
pub mod due;
pub mod figures;
pub mod intents;
mod lanes;
pub mod refresh_ahead;
pub mod revocations;
pub mod sweep;
