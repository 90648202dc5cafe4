//! The watch over storage: the first contact, and what health says of it from then on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::{BootInstant, Broker};
use crate::storage::{KeyReport, StorageError};

/// How often storage is asked.
const PAUSE: Duration = Duration::from_secs(1);

/// How often the heartbeat is written on SQLite: with every other look the time is only read, for a write
/// there waits for the disk.
const WRITE_ON_SQLITE: u32 = 10;

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

/// Waits for the database, sees to its schema, enters this process among the replicas, and then
/// publishes whether the database answers, until the broker drains.
///
/// `location` is the same only for processes that cannot run at the same time.
///
/// # Errors
///
/// The reason, if the schema cannot be had or the keys do not fit.
pub async fn run(
    broker: Arc<Broker>,
    contact: watch::Sender<bool>,
    schema: Schema,
    location: Option<String>,
) -> Result<(), String> {
    let prepared = tokio::select! {
        prepared = prepare(&broker, schema) => prepared,
        () = broker.draining().cancelled() => return Ok(()),
    };
    prepared?;
    let entered = tokio::select! {
        entered = enter(&broker, location.as_deref()) => entered,
        () = broker.draining().cancelled() => return Ok(()),
    };
    entered?;
    let mut looks = 0_u32;
    loop {
        let answers = look(&broker, looks).await;
        looks = if answers { looks.wrapping_add(1) } else { 0 };
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

/// Asks the database once: whether it answers, accepts writes, and what its clock shows.
async fn look(broker: &Broker, looks: u32) -> bool {
    let storage = broker.storage();
    let asked = BootInstant::now();
    let write = storage.is_shared() || looks.is_multiple_of(WRITE_ON_SQLITE);
    let shown = async { if write { storage.heartbeat().await } else { storage.now().await } };
    match tokio::time::timeout(PATIENCE, shown).await {
        Ok(Ok(shown)) => {
            if let Some(step) = broker.database_answered(shown, asked, BootInstant::now()) {
                tracing::warn!(
                    step_ms = step,
                    "the database's clock was set; leases of other replicas are left alone for a while"
                );
            }
            true
        }
        failed => {
            if let Ok(Err(error)) = &failed
                && broker.storage_answers()
            {
                tracing::warn!(%error, "cannot write the heartbeat; the database is down or accepts no writes");
            }
            broker.database_failed();
            false
        }
    }
}

/// Enters this process among the replicas, once its keys fit the database.
async fn enter(broker: &Broker, location: Option<&str>) -> Result<(), String> {
    let storage = broker.storage();
    let mut said: Option<Instant> = None;
    loop {
        let entered = async {
            let mut report = storage.check_keys().await?;
            if report.wrong.is_empty() {
                storage.record_keys(&report).await?;
                // Another replica may have recorded another key under the same id meanwhile.
                report = storage.check_keys().await?;
            }
            if report.wrong.is_empty() {
                storage.register_replica(location).await?;
            }
            Ok::<_, StorageError>(report)
        };
        match entered.await {
            Ok(report) if !report.wrong.is_empty() => return Err(wrong_keys(&report)),
            Ok(report) => {
                for id in &report.missing {
                    tracing::error!(
                        key = %id,
                        "rows are sealed with a key that is not in encryption.keys: add it, or give \
                         it up by `token-broker keys forget`"
                    );
                }
                break;
            }
            Err(error) if error.is_transient() => {
                if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    let reason = error.reason();
                    tracing::warn!(error = reason, "waiting for a database that accepts writes");
                    said = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(format!("cannot enter the replicas: {error}")),
        }
    }
    if let Err(error) = storage.try_notify().await {
        tracing::warn!(
            %error,
            "the database does not let this role notify other replicas; they notice a revocation \
             within cache.max_age"
        );
    }
    Ok(())
}

/// Why `serve` does not start with these keys.
#[must_use]
pub fn wrong_keys(report: &KeyReport) -> String {
    format!(
        "encryption.keys: the database has rows that were sealed with another key under the id {}; \
         configure that key, and give the new one an id of its own",
        report.wrong.join(", ")
    )
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
            Err(error) if error.is_out_of_reach() || error.is_contended() => {
                tracing::warn!(%error, "cannot migrate the database yet; trying again");
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(format!("cannot see to the database's schema: {error}")),
        }
    }
}
