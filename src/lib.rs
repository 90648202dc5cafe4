//! token-broker

pub mod crypto;
pub mod domain;
pub mod storage;
