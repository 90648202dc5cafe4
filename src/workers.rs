//! What goes on beside the calls: refreshes to take up, the outbox, the sweep, and the watch over
//! storage.

pub mod changes;
pub mod contact;
pub mod intents;
pub mod revocations;
pub mod sweep;
