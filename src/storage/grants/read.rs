//! Reading one grant with its access token. On PostgreSQL, reads that come while others are under way are read in
//! batches, a statement each, which takes the server far less time than a statement for each read.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::future::join_all;
use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult, QueryResult, Statement, Value};
use tokio::sync::oneshot;

use super::convert::{self, GrantRow};
use super::{CLOCK_TOLERANCE, LEASE, StoredGrant};
use crate::domain::grant::GrantKey;
use crate::domain::time::{Timestamp, millis};
use crate::storage::connection::{Connection, Database};
use crate::storage::entity::access_tokens;
use crate::storage::{Clock, GrantStore, StorageError};
use crate::telemetry;

/// The number of statements that run at once while they are quick. With more, each batch would be smaller.
const QUICK_STATEMENTS: usize = 2;

/// After this time a waiting read starts another statement: those under way are slow, or their connections hang.
const SLOW: Duration = Duration::from_millis(100);

/// The longest wait of a read, for a connection or for a statement.
const LONGEST_WAIT: Duration = Duration::from_secs(11);

/// The most reads of a batch.
const MAX_BATCH: usize = 64;

/// The number of statements on a connection before it returns to the pool, where others may wait for it.
const MAX_STATEMENTS: u32 = 100;

/// The time without a statement after which a connection returns to the pool.
const IDLE_TIMEOUT: Duration = Duration::from_millis(5);

/// The smallest pool whose connections are held between statements. A smaller one has none to spare.
const SMALLEST_POOL: usize = 4;

/// The columns of [`GrantRow`], the lease and the access token.
const COLUMNS: &str = "g.id, g.state, g.generation, g.token_version, g.scopes, g.requested_scopes, \
     g.identity, g.sub, g.provider_values, g.created_at, g.issued_at, g.expires_at, \
     g.refresh_expires_at, g.failing_since, \
     g.refresh_token IS NOT NULL AS refreshable, g.failures, g.next_attempt_at, g.last_error, \
     g.last_used_at, g.lease_until, t.grant_id AS t_grant_id, t.token_set AS t_token_set, \
     t.resources_hash AS t_resources_hash, t.access_token AS t_access_token, \
     t.token_type AS t_token_type, t.scopes AS t_scopes, t.issued_at AS t_issued_at, \
     t.expires_at AS t_expires_at";

type Answer = Result<Option<QueryResult>, StorageError>;

/// Rows by the places of their keys, which count from 1.
type Rows = HashMap<i32, QueryResult>;

/// Reads grants for the calls of a process.
#[derive(Debug)]
pub(in crate::storage) struct GrantReader {
    db: Database,
    clock: Clock,
    /// Reads one grant.
    single: String,
    /// Reads several grants. A row has the place of its key.
    batch: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Bounded by the calls that may be under way, which wait for their answers.
    pending: VecDeque<PendingRead>,
    /// The number of statements under way.
    statements: usize,
    /// Connections between two statements, with the end of the first.
    idle: Vec<(Checkout, Instant)>,
    is_reaper_running: bool,
}

#[derive(Debug)]
struct PendingRead {
    key: GrantKey,
    answer: oneshot::Sender<Answer>,
}

/// A connection that is held for several statements.
#[derive(Debug)]
struct Checkout {
    connection: Connection,
    /// The number of statements that it has run.
    statements: u32,
}

impl GrantReader {
    pub(in crate::storage) fn new(db: Database, clock: Clock) -> Arc<Self> {
        let backend = db.get_database_backend();
        let single = format!(
            "SELECT {COLUMNS}, {now} AS now FROM grants g LEFT JOIN access_tokens t \
             ON t.grant_id = g.id AND t.token_set = '' AND t.resources_hash = $5 \
             WHERE g.namespace = $1 AND g.provider = $2 AND g.subject = $3 AND g.account = $4",
            now = clock.now_sql(backend, 6),
        );
        // LIMIT makes each part a search of its index under any statistics. PostgreSQL estimates the same number
        // of rows for `generate_subscripts` for all arrays, so that it keeps one plan. It would plan `unnest` for
        // each execution.
        let batch = format!(
            "SELECT {COLUMNS}, {now} AS now, k.place FROM generate_subscripts($1, 1) AS k (place) \
             CROSS JOIN LATERAL (SELECT * FROM grants g WHERE g.namespace = ($1)[k.place] \
             AND g.provider = ($2)[k.place] AND g.subject = ($3)[k.place] \
             AND g.account = ($4)[k.place] LIMIT 1) g \
             LEFT JOIN LATERAL (SELECT * FROM access_tokens t WHERE t.grant_id = g.id \
             AND t.token_set = '' AND t.resources_hash = '' LIMIT 1) t ON TRUE",
            now = clock.now_sql(backend, 5),
        );
        Arc::new(Self { db, clock, single, batch, state: Mutex::default() })
    }

    async fn read(self: &Arc<Self>, key: &GrantKey) -> Answer {
        // A trace shows the statement of its own call.
        if self.db.get_database_backend() == DbBackend::Sqlite || telemetry::is_recorded() {
            return Box::pin(self.read_single(key)).await;
        }
        match self.start_or_enqueue(key) {
            Ok(_turn) => Box::pin(self.read_at_once(key)).await,
            Err(answered) => {
                let answered = self.db.unless_away(self.wait(answered));
                match tokio::time::timeout(LONGEST_WAIT, answered).await {
                    Ok(answer) => answer?,
                    Err(_) => Err(given_up()),
                }
            }
        }
    }

    /// Returns a turn to run a statement, or enqueues the read.
    fn start_or_enqueue(
        self: &Arc<Self>,
        key: &GrantKey,
    ) -> Result<Turn, oneshot::Receiver<Answer>> {
        let mut state = self.lock();
        if state.statements < QUICK_STATEMENTS {
            state.statements += 1;
            return Ok(Turn::of(self));
        }
        let (answer, answered) = oneshot::channel();
        state.pending.push_back(PendingRead { key: key.clone(), answer });
        Err(answered)
    }

    /// Waits for the answer, and starts more statements while those under way are slow.
    async fn wait(self: &Arc<Self>, mut answered: oneshot::Receiver<Answer>) -> Answer {
        loop {
            match tokio::time::timeout(SLOW, &mut answered).await {
                Ok(answer) => return answer.unwrap_or_else(|_| Err(given_up())),
                Err(_) => self.start_another(),
            }
        }
    }

    fn start_another(self: &Arc<Self>) {
        let mut state = self.lock();
        if !state.pending.is_empty() && state.statements < self.db.max_connections() {
            state.statements += 1;
            tokio::spawn(Turn::of(self).run());
        }
    }

    /// Reads on the connection of the read before, if it is still held.
    async fn read_at_once(self: &Arc<Self>, key: &GrantKey) -> Answer {
        let mut checkout = self.checkout().await?;
        let rows = checkout.connection.query_all(self.single_statement(key)).await;
        match rows.map_err(StorageError::from) {
            Ok(rows) => {
                self.hold(checkout);
                Ok(rows.into_iter().next())
            }
            Err(error) if error.is_conflict() => {
                drop(checkout);
                self.read_single(key).await
            }
            Err(error) => Err(error),
        }
    }

    async fn read_single(&self, key: &GrantKey) -> Answer {
        Ok(self.db.query_one_raw(self.single_statement(key)).await?)
    }

    fn single_statement(&self, key: &GrantKey) -> Statement {
        let mut values: Vec<Value> = texts(key).map(Value::from).to_vec();
        values.push(Vec::<u8>::new().into());
        values.extend(self.clock.value());
        Statement::from_sql_and_values(self.db.get_database_backend(), &self.single, values)
    }

    async fn read_batch(
        &self,
        connection: &mut Connection,
        batch: &[PendingRead],
    ) -> Result<Rows, DbErr> {
        let column = |part: usize| {
            let values = batch.iter().map(|read| Value::from(texts(&read.key)[part])).collect();
            Value::Array(ArrayType::String, Some(Box::new(values)))
        };
        let mut values: Vec<Value> = (0..4).map(column).collect();
        values.extend(self.clock.value());
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, &self.batch, values);
        let rows = connection.query_all(statement).await?;
        rows.into_iter().map(|row| Ok((row.try_get("", "place")?, row))).collect()
    }

    /// Sends each read its answer. A caller that has gone gets none.
    async fn answer(&self, batch: Vec<PendingRead>, rows: Result<Rows, StorageError>) {
        match rows {
            Ok(mut rows) => {
                for (place, read) in (1..).zip(batch) {
                    let _ = read.answer.send(Ok(rows.remove(&place)));
                }
            }
            Err(error) if concerns_all(&error) => {
                for read in batch {
                    let _ = read.answer.send(Err(error.clone()));
                }
            }
            // One grant must not fail the others of its batch, and a conflict is repeated.
            Err(_) => {
                let singles = batch.into_iter().map(|read| async move {
                    let _ = read.answer.send(self.read_single(&read.key).await);
                });
                join_all(singles).await;
            }
        }
    }

    /// Takes an idle connection, or one of the pool.
    async fn checkout(&self) -> Result<Checkout, DbErr> {
        let idle = self.lock().idle.pop();
        match idle {
            Some((checkout, _)) => Ok(checkout),
            None => Ok(Checkout { connection: self.db.connection().await?, statements: 0 }),
        }
    }

    /// Holds a connection for the next read, so that a busy process need not take one from the pool for each: the
    /// pool pings every connection that returns.
    fn hold(self: &Arc<Self>, mut checkout: Checkout) {
        checkout.statements += 1;
        if !self.may_hold(&checkout) {
            return;
        }
        let mut state = self.lock();
        state.idle.push((checkout, Instant::now()));
        if !std::mem::replace(&mut state.is_reaper_running, true) {
            tokio::spawn(Arc::clone(self).reap());
        }
    }

    fn may_hold(&self, checkout: &Checkout) -> bool {
        checkout.statements < MAX_STATEMENTS && self.db.max_connections() >= SMALLEST_POOL
    }

    /// Returns idle connections to the pool until there are none.
    async fn reap(self: Arc<Self>) {
        loop {
            tokio::time::sleep(IDLE_TIMEOUT).await;
            let mut state = self.lock();
            let idle = |(_, since): &mut (Checkout, Instant)| since.elapsed() >= IDLE_TIMEOUT;
            let returned: Vec<_> = state.idle.extract_if(.., idle).collect();
            let is_done = state.idle.is_empty();
            state.is_reaper_running = !is_done;
            drop(state);
            drop(returned);
            if is_done {
                return;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the statements under way, counted until this is dropped.
#[derive(Debug)]
struct Turn {
    reader: Arc<GrantReader>,
    is_counted: bool,
}

impl Turn {
    fn of(reader: &Arc<GrantReader>) -> Self {
        Self { reader: Arc::clone(reader), is_counted: true }
    }

    /// Reads batches until no read is pending.
    async fn run(mut self) {
        let reader = Arc::clone(&self.reader);
        let mut held = None;
        loop {
            // Callers that have just been answered may read again.
            tokio::task::yield_now().await;
            let checkout = match held.take() {
                Some(checkout) => Ok(checkout),
                None => reader.checkout().await,
            };
            let Some(batch) = self.next_batch() else {
                if let Ok(checkout) = checkout {
                    reader.hold(checkout);
                }
                return;
            };
            let rows = match checkout {
                Ok(mut checkout) => {
                    let rows = reader.read_batch(&mut checkout.connection, &batch).await;
                    checkout.statements += 1;
                    held = Some(checkout).filter(|held| rows.is_ok() && reader.may_hold(held));
                    rows
                }
                Err(error) => Err(error),
            };
            reader.answer(batch, rows.map_err(StorageError::from)).await;
        }
    }

    /// Takes the reads of the next batch. Without any the turn ends.
    fn next_batch(&mut self) -> Option<Vec<PendingRead>> {
        let mut state = self.reader.lock();
        state.pending.retain(|read| !read.answer.is_closed());
        if state.pending.is_empty() {
            state.statements -= 1;
            self.is_counted = false;
            return None;
        }
        let count = state.pending.len().min(MAX_BATCH);
        Some(state.pending.drain(..count).collect())
    }
}

/// Continues with the reads that have become pending.
impl Drop for Turn {
    fn drop(&mut self) {
        if !self.is_counted {
            return;
        }
        let mut state = self.reader.lock();
        let runtime = tokio::runtime::Handle::try_current().ok();
        match runtime.filter(|_| !state.pending.is_empty()) {
            Some(runtime) => drop(runtime.spawn(Self::of(&self.reader).run())),
            None => state.statements -= 1,
        }
    }
}

/// Returns `true` if a statement about any other grant would have failed too.
fn concerns_all(error: &StorageError) -> bool {
    error.is_out_of_reach()
        || error.is_connection_failure()
        || (error.is_contended() && !error.is_conflict())
}

fn given_up() -> StorageError {
    DbErr::Custom(
        "a shared read got no answer in 11 s; look for slow statements and locks".to_owned(),
    )
    .into()
}

fn texts(key: &GrantKey) -> [&str; 4] {
    [key.namespace.as_str(), key.provider.as_str(), key.subject.as_str(), key.account.as_str()]
}

impl GrantStore {
    /// Reads a grant with its main access token, by the unique key.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where the database or the row cannot be read.
    pub async fn find_grant(&self, key: &GrantKey) -> Result<Option<StoredGrant>, StorageError> {
        let Some(row) = self.grant_reader.read(key).await? else { return Ok(None) };
        let token = access_tokens::Model::from_query_result_optional(&row, "t_")?;
        let grant = convert::grant(GrantRow::from_query_result(&row, "")?, key.clone())?;
        let access_token = token.map(|token| self.access_token(&grant, token)).transpose()?;
        let now: i64 = row.try_get("", "now")?;
        // As `lease_ended` selects: one that ends too late was written before the clock was set back.
        let latest = now + millis(LEASE + CLOCK_TOLERANCE);
        let lease_until: Option<i64> = row.try_get("", "lease_until")?;
        let leased = lease_until.is_some_and(|until| (now..=latest).contains(&until));
        Ok(Some(StoredGrant { grant, access_token, leased, now: Timestamp::from_millis(now) }))
    }
}
