//! token-broker

pub mod broker;
pub mod config;
pub mod crypto;
pub mod demo;
pub mod domain;
pub mod grpc;
pub mod http;
pub mod provider;
pub mod storage;
pub mod telemetry;
