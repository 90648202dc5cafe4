//! The database as a whole: its schema, the keys, this process among the replicas, and its health.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::boot_instant::BootInstant;
use super::database_health::DatabaseHealth;
use crate::domain::name::Name;
use crate::domain::time::Timestamp;
use crate::storage::{Backlog, KeyReport, Storage, StorageError, UnreadableCounts};

/// The pause between two tries to reach a database that is awaited.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// The interval at which the heartbeat is written on SQLite: with every other look the time is only read, for a write
/// there waits for the disk.
const WRITE_ON_SQLITE: u32 = 10;

/// The time that a heartbeat may take on a session that is open.
const SHORT_BEAT: Duration = Duration::from_millis(250);

/// The time that it may take to answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);

/// The interval at which the log repeats that the database is awaited.
const LOG_AGAIN: Duration = Duration::from_secs(10);

/// Keeps the database in order, and knows whether it answers.
#[derive(Debug)]
pub struct DatabaseService {
    storage: Storage,
    health: Arc<DatabaseHealth>,
}

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

/// Why the database cannot be used.
#[derive(Debug)]
pub struct Failure {
    /// The reason, for the log.
    pub reason: String,
    /// `true` if it cannot be reached at all.
    pub is_away: bool,
}

impl DatabaseService {
    pub(super) fn new(storage: Storage, health: Arc<DatabaseHealth>) -> Self {
        Self { storage, health }
    }

    /// Waits for the database, and sees to its schema.
    ///
    /// # Errors
    ///
    /// The reason, if the schema cannot be had.
    pub async fn prepare(&self, schema: Schema) -> Result<(), String> {
        let storage = &self.storage;
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
                    if said.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
                        tracing::warn!(error = %away, "waiting for the database");
                        said = Some(Instant::now());
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
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
                    if said.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
                        let reason = error.reason();
                        tracing::warn!(
                            error = reason,
                            "cannot migrate the database yet; trying again"
                        );
                        said = Some(Instant::now());
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(error) => return Err(format!("cannot see to the database's schema: {error}")),
            }
        }
    }

    /// Enters this process among the replicas, once its keys fit the database.
    ///
    /// `location` is the same only for processes that cannot run at the same time.
    ///
    /// # Errors
    ///
    /// The reason, if the keys do not fit.
    pub async fn enter(&self, location: Option<&str>) -> Result<(), String> {
        let storage = &self.storage;
        let mut said: Option<Instant> = None;
        loop {
            let entered = async {
                let mut report = storage.keys().check_keys().await?;
                if report.wrong.is_empty() {
                    storage.keys().record_keys(&report).await?;
                    // Another replica may have recorded another key under the same id in between.
                    report = storage.keys().check_keys().await?;
                }
                if report.wrong.is_empty() {
                    storage.replicas().register_replica(location).await?;
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
                    if said.is_none_or(|at| at.elapsed() >= LOG_AGAIN) {
                        let reason = error.reason();
                        tracing::warn!(
                            error = reason,
                            "waiting for a database that accepts writes"
                        );
                        said = Some(Instant::now());
                    }
                    if self.unreachable().await.is_some() {
                        storage.outage_began();
                    } else {
                        storage.outage_ended();
                    }
                    tokio::time::sleep(TRY_AGAIN).await;
                }
                Err(error) => return Err(format!("cannot enter the replicas: {error}")),
            }
        }
        if let Err(error) = storage.invalidations().try_notify().await {
            tracing::warn!(
                %error,
                "the database does not let this role notify other replicas; they notice a revocation \
                 within cache.max_age"
            );
        }
        Ok(())
    }

    /// Asks the database once: whether it answers, accepts writes, and what its clock shows.
    ///
    /// # Errors
    ///
    /// [`Failure`] if it cannot be used.
    pub async fn probe(&self, probes: u32, is_suspected: bool) -> Result<(), Failure> {
        let storage = &self.storage;
        // Before the pool, which would wait for seconds, and not know why.
        if is_suspected && let Some(reason) = self.unreachable().await {
            // Sessions that are open may still work.
            let beat = tokio::time::timeout(SHORT_BEAT, self.beat(probes)).await;
            if matches!(beat, Ok(Ok(()))) {
                return Ok(());
            }
            self.health.mark_down();
            storage.outage_began();
            return Err(Failure { reason, is_away: true });
        }
        storage.outage_ended();
        let mut beaten = tokio::time::timeout(ANSWER_TIMEOUT, self.beat(probes)).await;
        if let Ok(Err(error)) = &beaten
            && error.is_connection_failure()
        {
            // One session may have ended. Another one is opened.
            beaten = tokio::time::timeout(ANSWER_TIMEOUT, self.beat(probes)).await;
        }
        let reason = match beaten {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => format!("cannot write the heartbeat: {}", error.reason()),
            Err(_) => no_answer(),
        };
        self.health.mark_down();
        // A heartbeat may also fail where calls can still read.
        let unreachable = self.unreachable().await;
        let is_away = unreachable.is_some();
        if is_away {
            storage.outage_began();
        }
        Err(Failure { reason: unreachable.unwrap_or(reason), is_away })
    }

    /// Writes the heartbeat, or on SQLite sometimes only reads the time.
    async fn beat(&self, probes: u32) -> Result<(), StorageError> {
        let storage = &self.storage;
        let asked = BootInstant::now();
        let writes = storage.is_shared() || probes.is_multiple_of(WRITE_ON_SQLITE);
        let shown =
            if writes { storage.replicas().heartbeat().await? } else { storage.now().await? };
        if let Some(step) = self.answered(shown, asked, BootInstant::now()) {
            tracing::warn!(
                step_ms = step,
                "the database's clock was set; leases of other replicas are left alone for a while"
            );
        }
        Ok(())
    }

    /// Records that the database answered with the time on its clock, between two times here. Returns by
    /// how many milliseconds its clock was set, if it was.
    fn answered(&self, shown: Timestamp, asked: BootInstant, answered: BootInstant) -> Option<i64> {
        self.health.mark_up();
        self.storage.outage_ended();
        if !self.storage.clock_runs() {
            return None;
        }
        self.health.read_clock(shown, asked, answered)
    }

    /// Why no connection to the database can be opened, if its server is out of reach. A server that refuses
    /// one more connection, or this role, is not.
    async fn unreachable(&self) -> Option<String> {
        match tokio::time::timeout(ANSWER_TIMEOUT, self.storage.reach()).await {
            Ok(Err(away)) if away.error.is_connection_failure() => Some(away.to_string()),
            Ok(_) => None,
            Err(_) => Some(no_answer()),
        }
    }

    /// Waits until a connection fails, or waiting for one takes long.
    pub async fn outage_suspected(&self) {
        self.storage.outage_suspected().await;
    }

    /// Lets statements try again, although no probe will find the database back: what is still to be stored waits
    /// for it.
    pub fn stop_watching(&self) {
        self.storage.outage_ended();
    }

    /// Returns `true` if the database answered when it was last asked.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.health.is_up()
    }

    /// The time on the database's clock: as this replica expects it, or else as the database says.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn now(&self) -> Result<Timestamp, StorageError> {
        match self.health.expected_now() {
            Some(now) => Ok(now),
            None => self.storage.now().await,
        }
    }

    /// Writes a heartbeat: this process lives.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn heartbeat(&self) -> Result<(), StorageError> {
        self.storage.replicas().heartbeat().await.map(|_| ())
    }

    /// Gives this process's address free, so that a successor there does not take this one for ended.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn leave_location(&self) -> Result<(), StorageError> {
        self.storage.replicas().leave_location().await
    }

    /// Removes this process from the replicas: it holds no response of a provider any more.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn leave(&self) -> Result<(), StorageError> {
        self.storage.replicas().deregister_replica().await
    }

    /// Closes the connections.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn close(&self) -> Result<(), StorageError> {
        self.storage.close().await
    }

    /// Counts the pending work at these providers.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn backlog(&self, providers: &[Name]) -> Result<Backlog, StorageError> {
        self.storage.backlog(providers).await
    }

    /// Counts the grants by provider and state.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn count_grants(&self) -> Result<Vec<(String, String, u64)>, StorageError> {
        self.storage.count_grants().await
    }

    /// The rows that could not be opened, since the start.
    #[must_use]
    pub fn unreadable_counts(&self) -> UnreadableCounts {
        self.storage.unreadable_counts()
    }
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

fn no_answer() -> String {
    format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())
}
