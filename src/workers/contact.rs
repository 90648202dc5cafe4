//! The watch over storage: the first contact, and what health says of it from then on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::broker::{BootInstant, Broker};
use crate::storage::{KeyReport, StorageError};

/// The interval at which storage is asked.
const PAUSE: Duration = Duration::from_secs(1);

/// The interval at which the heartbeat is written on SQLite: with every other look the time is only read, for a write
/// there waits for the disk.
const WRITE_ON_SQLITE: u32 = 10;

/// The same while it is away: calls are refused until it has been seen to be back.
const PAUSE_WHILE_AWAY: Duration = Duration::from_millis(250);

/// The time that a heartbeat may take on a session that is open.
const SHORT_BEAT: Duration = Duration::from_millis(250);

/// The time that it may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// The interval at which the log repeats that the database is awaited.
const SAY_AGAIN: Duration = Duration::from_secs(10);

/// The treatment of the schema at the first contact.
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
    let mut probes = 0_u32;
    let mut is_suspected = true;
    loop {
        let probed = probe(&broker, probes, is_suspected).await;
        let answers = probed.is_ok();
        let pause = match &probed {
            Ok(()) => PAUSE,
            Err(failure) => failure.pause(),
        };
        probes = if answers { probes.wrapping_add(1) } else { 0 };
        let changed =
            contact.send_if_modified(|before| std::mem::replace(before, answers) != answers);
        match probed {
            Ok(()) if changed => tracing::info!("storage answers"),
            Err(failure) if changed => {
                tracing::error!(error = failure.reason, "storage does not answer");
            }
            _ => {}
        }
        // A suspicion that was unfounded is not followed up at once.
        let suspected = async {
            if is_suspected {
                tokio::time::sleep(pause).await;
            }
            broker.storage().outage_suspected().await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => is_suspected = !answers,
            () = suspected => is_suspected = true,
            () = broker.draining().cancelled() => {
                // What is still to be stored waits for the database, as no probe will find it back.
                broker.storage().outage_ended();
                return Ok(());
            }
        }
    }
}

/// Why the database cannot be used.
struct Failure {
    reason: String,
    is_away: bool,
}

impl Failure {
    fn pause(&self) -> Duration {
        if self.is_away { PAUSE_WHILE_AWAY } else { PAUSE }
    }
}

/// Asks the database once: whether it answers, accepts writes, and what its clock shows.
async fn probe(broker: &Broker, probes: u32, is_suspected: bool) -> Result<(), Failure> {
    let storage = broker.storage();
    // Before the pool, which would wait for seconds, and not know why.
    if is_suspected && let Some(reason) = unreachable(broker).await {
        // Sessions that are open may still work.
        let beat = tokio::time::timeout(SHORT_BEAT, beat(broker, probes)).await;
        if matches!(beat, Ok(Ok(()))) {
            return Ok(());
        }
        broker.database_failed();
        storage.outage_began();
        return Err(Failure { reason, is_away: true });
    }
    storage.outage_ended();
    let mut beaten = tokio::time::timeout(PATIENCE, beat(broker, probes)).await;
    if let Ok(Err(error)) = &beaten
        && error.is_connection_failure()
    {
        // One session may have ended. Another one is opened.
        beaten = tokio::time::timeout(PATIENCE, beat(broker, probes)).await;
    }
    let reason = match beaten {
        Ok(Ok(())) => return Ok(()),
        Ok(Err(error)) => format!("cannot write the heartbeat: {}", error.reason()),
        Err(_) => no_answer(),
    };
    broker.database_failed();
    // A heartbeat may also fail where calls can still read.
    let unreachable = unreachable(broker).await;
    let is_away = unreachable.is_some();
    if is_away {
        storage.outage_began();
    }
    Err(Failure { reason: unreachable.unwrap_or(reason), is_away })
}

/// Writes the heartbeat, or on SQLite sometimes only reads the time.
async fn beat(broker: &Broker, probes: u32) -> Result<(), StorageError> {
    let storage = broker.storage();
    let asked = BootInstant::now();
    let writes = storage.is_shared() || probes.is_multiple_of(WRITE_ON_SQLITE);
    let shown = if writes { storage.heartbeat().await? } else { storage.now().await? };
    if let Some(step) = broker.database_answered(shown, asked, BootInstant::now()) {
        tracing::warn!(
            step_ms = step,
            "the database's clock was set; leases of other replicas are left alone for a while"
        );
    }
    Ok(())
}

/// Why no connection to the database can be opened, if its server is out of reach. A server that refuses
/// one more connection, or this role, is not.
async fn unreachable(broker: &Broker) -> Option<String> {
    match tokio::time::timeout(PATIENCE, broker.storage().reach()).await {
        Ok(Err(away)) if away.error.is_connection_failure() => Some(away.to_string()),
        Ok(_) => None,
        Err(_) => Some(no_answer()),
    }
}

fn no_answer() -> String {
    format!("no answer within {} s", PATIENCE.as_secs())
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
                // Another replica may have recorded another key under the same id in between.
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
                if unreachable(broker).await.is_some() {
                    storage.outage_began();
                } else {
                    storage.outage_ended();
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
            Ok(()) => storage.outage_ended(),
            Err(away) if away.error.is_out_of_reach() => {
                storage.outage_began();
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
                if said.is_none_or(|at| at.elapsed() >= SAY_AGAIN) {
                    let reason = error.reason();
                    tracing::warn!(error = reason, "cannot migrate the database yet; trying again");
                    said = Some(Instant::now());
                }
                tokio::time::sleep(PAUSE).await;
            }
            Err(error) => return Err(format!("cannot see to the database's schema: {error}")),
        }
    }
}
