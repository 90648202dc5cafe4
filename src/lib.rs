//! token-broker keeps OAuth 2.0 tokens of chat users, and issues access tokens to bots over gRPC.
//!
//! # Map
//!
//! Imports run downward only:
//!
//! ```text
//! main, cli, demo            parse the command line, compose, run
//! runtime                    listeners, workers, health, the way to a clean end
//! grpc        http           the two edges: parse, call the broker, render
//!     listener               accepts their connections, and bounds them
//! workers                    jobs: proactive refresh, refresh recovery, the outbox, the sweep, invalidations,
//!                            the health of the database
//!     broker                 the services, one use case a file
//! provider  storage  crypto  what the broker needs from outside
//!     domain                 plain types and state machines
//! ```
//!
//! [`config`] reads what the operator wrote into domain types; [`telemetry`]
//! logs, traces and counts.
//!
//! A call goes `grpc/service.rs`, then `broker/*.rs`, then `provider` or `storage`, and back.
//!
//! `CONTRIBUTING.md` says where to add an RPC, a provider setting, a configuration key, a metric or a column.

// The futures of a use case nest more deeply in an optimized build than the default allows.
#![recursion_limit = "256"]

pub mod broker;
pub mod cli;
pub mod config;
pub mod crypto;
pub mod demo;
pub mod domain;
mod file_access;
pub mod grpc;
pub mod http;
pub mod listener;
pub mod provider;
pub mod runtime;
pub mod storage;
pub mod telemetry;
pub mod workers;
