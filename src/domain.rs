//! Plain types and state machines: no I/O, no clock, no tonic, no SeaORM.

pub mod address;
pub mod authorization;
pub mod bot;
pub mod grant;
pub mod id;
pub mod identity;
pub mod name;
pub mod proactive_refresh;
pub mod provider;
pub mod scope;
pub mod time;
pub mod token;
