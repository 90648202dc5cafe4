//! The watch over storage: the first contact, and what health says of it from then on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::Broker;
use crate::storage::StorageError;

/// How often storage is asked.
const PAUSE: Duration = Duration::from_secs(1);

/// How many of the newest grants are opened at the start, to see whether the keys fit.
const ROWS_TO_OPEN: u64 = 20;

/// How long it may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// How often it is said that the database is waited for.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// What is to be done about the schema at the first contact.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schema {
    /// Nothing: it has been seen to before.
    Ready,
    /// Apply what is missing.
    Apply,
    /// Refuse a database that lacks anything.
    Expect,
}

/// Waits for the database, sees to its schema, and then tells whether it answers, until the broker
/// drains.
///
/// # Errors
///
/// The reason, where the schema cannot be had.
pub async fn run(
    broker: Arc<Broker>,
    contact: watch::Sender<bool>,
    schema: Schema,
) -> Result<(), String> {
    let prepared = tokio::select! {
        prepared = prepare(&broker, schema) => prepared,
        () = broker.draining().cancelled() => return Ok(()),
    };
    prepared?;
    // Rows that this replica cannot open are nobody's fault but its configuration's.
    if let Err(error @ StorageError::UnknownKey { .. }) = broker.storage().probe(ROWS_TO_OPEN).await
    {
        tracing::error!(%error, "the keyring lacks a key: add it to encryption.keys");
    }
    loop {
        let answers =
            matches!(tokio::time::timeout(PATIENCE, broker.storage().now()).await, Ok(Ok(_)));
        broker.note_storage(answers);
        let changed =
            contact.send_if_modified(|before| std::mem::replace(before, answers) != answers);
        if changed && answers {
            tracing::info!("storage answers");
        } else if changed {
            let reason = broker.storage().reach().await.err().map(|away| away.to_string());
            tracing::error!(error = reason, "storage does not answer");
        }
        tokio::select! {
            () = tokio::time::sleep(PAUSE) => {}
            () = broker.draining().cancelled() => return Ok(()),
        }
    }
}

async fn prepare(broker: &Broker, schema: Schema) -> Result<(), String> {
    let storage = broker.storage();
    let mut said: Option<Instant> = None;
    loop {
        if schema == Schema::Ready {
            return Ok(());
        }
        // The pool would wait for long, and not know why.
        match storage.reach().await {
            Ok(()) => {}
            Err(away) if away.error.is_out_of_reach() => {
                if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    tracing::warn!(error = %away, "waiting for the database");
                    said = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
                continue;
            }
            Err(refused) => {
                return Err(format!(
                    "cannot use {refused}; correct database.url, or the role there"
                ));
            }
        }
        let tried = match schema {
            Schema::Apply => storage.migrate().await.map(|()| 0),
            _ => storage.migration_status().await.map(|status| status.pending.len()),
        };
        match tried {
            Ok(0) => return Ok(()),
            Ok(pending) => {
                return Err(format!(
                    "the database lacks {pending} migrations: run `token-broker migrate --config \
                     FILE`, or set database.migrate = true"
                ));
            }
            // It went away in the middle.
            Err(error) if error.is_out_of_reach() => {
                tracing::warn!(%error, "the database went away; trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(format!("cannot see to the database's schema: {error}")),
        }
    }
}
