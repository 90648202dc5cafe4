//! What goes on beside the calls: the outbox, the sweep, and the watch over storage.

pub mod contact;
pub mod revocations;
pub mod sweep;
