//! Reading one grant with its access token. On PostgreSQL, reads that come while others are under way
//! share a statement, which takes the server far less time than a statement for each.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::sea_query::ArrayType;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, FromQueryResult, QueryResult, Statement, Value};
use tokio::sync::oneshot;

use super::convert::{self, GrantRow};
use super::{CLOCK_TOLERANCE, Held, LEASE};
use crate::domain::grant::GrantKey;
use crate::domain::time::{Timestamp, millis};
use crate::storage::connection::{Connection, Database};
use crate::storage::entity::access_tokens;
use crate::storage::{Clock, ErrorKind, Storage, StorageError};
use crate::telemetry;

/// How many statements run at once. With more, each would carry fewer reads.
const STATEMENTS: usize = 2;

/// How many reads share a statement at most.
const READS: usize = 64;

/// The columns of [`GrantRow`], the lease and the access token.
const COLUMNS: &str = "g.id, g.state, g.generation, g.token_version, g.scopes, g.requested_scopes, \
     g.identity, g.sub, g.provider_values, g.created_at, g.issued_at, g.expires_at, \
     g.refresh_expires_at, g.failing_since, \
     g.refresh_token IS NOT NULL AS refreshable, g.failures, g.next_attempt_at, g.last_error, \
     g.last_used_at, g.lease_until, t.grant_id AS t_grant_id, t.token_set AS t_token_set, \
     t.resources_hash AS t_resources_hash, t.access_token AS t_access_token, \
     t.token_type AS t_token_type, t.scopes AS t_scopes, t.issued_at AS t_issued_at, \
     t.expires_at AS t_expires_at";

/// How many statements run on a connection before it is given back to those who wait for one.
const LOAN: u32 = 100;

/// How long a connection is kept without a statement.
const KEPT: Duration = Duration::from_millis(5);

type Answer = Result<Option<QueryResult>, StorageError>;

/// Rows by the places of their keys, which count from 1.
type Rows = HashMap<i32, QueryResult>;

/// The reads of a process.
#[derive(Debug)]
pub(in crate::storage) struct Reads {
    db: Database,
    clock: Clock,
    /// Reads one grant.
    one: String,
    /// Reads several grants: a row for each that there is, with its place among the keys.
    several: String,
    queue: Mutex<Queue>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: VecDeque<Waiting>,
    /// The statements under way.
    statements: usize,
    /// Connections that have just been used, and since when they are idle.
    kept: Vec<(Loan, Instant)>,
    /// Whether a task is there to return them.
    returns: bool,
}

/// A connection that is used for several statements.
#[derive(Debug)]
struct Loan {
    connection: Connection,
    /// How many statements it has run.
    statements: u32,
}

impl Loan {
    /// Counts a statement. Returns `true` if it was the last one.
    fn ends(&mut self) -> bool {
        self.statements += 1;
        self.statements >= LOAN
    }
}

#[derive(Debug)]
struct Waiting {
    key: GrantKey,
    answer: oneshot::Sender<Answer>,
}

impl Reads {
    pub(in crate::storage) fn new(db: Database, clock: Clock) -> Arc<Self> {
        let backend = db.get_database_backend();
        let one = format!(
            "SELECT {COLUMNS}, {now} AS now FROM grants g LEFT JOIN access_tokens t \
             ON t.grant_id = g.id AND t.token_set = '' AND t.resources_hash = $5 \
             WHERE g.namespace = $1 AND g.provider = $2 AND g.subject = $3 AND g.account = $4",
            now = clock.now_sql(backend, 6),
        );
        // LIMIT keeps each part a search of its index, whatever the statistics say. PostgreSQL estimates as
        // many rows for `generate_subscripts` whatever the arrays, so that it keeps one plan; `unnest` would
        // be planned anew each time.
        let several = format!(
            "SELECT {COLUMNS}, {now} AS now, k.place FROM generate_subscripts($1, 1) AS k (place) \
             CROSS JOIN LATERAL (SELECT * FROM grants g WHERE g.namespace = ($1)[k.place] \
             AND g.provider = ($2)[k.place] AND g.subject = ($3)[k.place] \
             AND g.account = ($4)[k.place] LIMIT 1) g \
             LEFT JOIN LATERAL (SELECT * FROM access_tokens t WHERE t.grant_id = g.id \
             AND t.token_set = '' AND t.resources_hash = '' LIMIT 1) t ON TRUE",
            now = clock.now_sql(backend, 5),
        );
        Arc::new(Self { db, clock, one, several, queue: Mutex::default() })
    }

    async fn read(self: &Arc<Self>, key: &GrantKey) -> Answer {
        // A trace shows the statement of its own call.
        if self.db.get_database_backend() == DbBackend::Sqlite || telemetry::is_recorded() {
            return Box::pin(self.alone(key)).await;
        }
        let answered = match self.take_turn(key) {
            Ok(_turn) => return Box::pin(self.first(key)).await,
            Err(answered) => answered,
        };
        answered.await.unwrap_or_else(|_| Err(DbErr::Custom("the read was given up".into()).into()))
    }

    /// Reads at once, on a connection of the read before if there is one.
    async fn first(self: &Arc<Self>, key: &GrantKey) -> Answer {
        let mut loan = self.loan().await?;
        match loan.connection.query_all(self.statement(key)).await.map_err(StorageError::from) {
            Ok(rows) => {
                self.keep(loan);
                Ok(rows.into_iter().next())
            }
            Err(error) if error.is_conflict() => {
                drop(loan);
                self.alone(key).await
            }
            Err(error) => Err(error),
        }
    }

    /// A turn to run a statement, or else a place among those who wait for one.
    fn take_turn(self: &Arc<Self>, key: &GrantKey) -> Result<Turn, oneshot::Receiver<Answer>> {
        let mut queue = self.lock();
        if queue.statements < STATEMENTS {
            queue.statements += 1;
            return Ok(Turn(Arc::clone(self)));
        }
        let (answer, answered) = oneshot::channel();
        queue.waiting.push_back(Waiting { key: key.clone(), answer });
        Err(answered)
    }

    /// Reads until none waits.
    async fn run(self: Arc<Self>) {
        let mut loan = None;
        loop {
            if loan.is_none() {
                loan = Some(self.loan().await);
            }
            // Those who have just been answered may ask for more.
            tokio::task::yield_now().await;
            let Some(waiting) = self.next() else { break };
            let rows = match &mut loan {
                Some(Ok(loan)) => self.together(&mut loan.connection, &waiting).await,
                Some(Err(error)) => Err(error.clone()),
                None => break,
            };
            let ended = loan.take_if(|loan| rows.is_err() || loan.as_mut().is_ok_and(Loan::ends));
            drop(ended);
            self.answer(waiting, rows.map_err(StorageError::from)).await;
        }
        if let Some(Ok(loan)) = loan {
            self.keep(loan);
        }
    }

    /// The connection of a read that has just ended, or one of the pool.
    async fn loan(&self) -> Result<Loan, DbErr> {
        let kept = self.lock().kept.pop();
        match kept {
            Some((loan, _)) => Ok(loan),
            None => Ok(Loan { connection: self.db.connection().await?, statements: 0 }),
        }
    }

    /// Keeps a connection for the next read, so that a busy time need not take one from the pool, and have
    /// it tested by the pool, for each.
    fn keep(self: &Arc<Self>, mut loan: Loan) {
        if loan.ends() {
            return;
        }
        let mut queue = self.lock();
        queue.kept.push((loan, Instant::now()));
        if !std::mem::replace(&mut queue.returns, true) {
            tokio::spawn(Arc::clone(self).return_kept());
        }
    }

    /// Gives back to the pool what is not used again soon.
    async fn return_kept(self: Arc<Self>) {
        loop {
            tokio::time::sleep(KEPT).await;
            let mut queue = self.lock();
            let returned: Vec<_> =
                queue.kept.extract_if(.., |(_, at)| at.elapsed() >= KEPT).collect();
            let is_done = queue.kept.is_empty();
            queue.returns = !is_done;
            drop(queue);
            drop(returned);
            if is_done {
                return;
            }
        }
    }

    /// The next reads for one statement. Without any the turn ends.
    fn next(&self) -> Option<Vec<Waiting>> {
        let mut queue = self.lock();
        if queue.waiting.is_empty() {
            queue.statements -= 1;
            return None;
        }
        let count = queue.waiting.len().min(READS);
        Some(queue.waiting.drain(..count).collect())
    }

    /// Gives each of those who wait its answer. One that has gone is not told.
    async fn answer(&self, waiting: Vec<Waiting>, rows: Result<Rows, StorageError>) {
        match rows {
            Ok(mut rows) => {
                for (place, waiting) in (1..).zip(waiting) {
                    let _ = waiting.answer.send(Ok(rows.remove(&place)));
                }
            }
            // The values of one key must not fail the others; and a conflict is repeated there.
            Err(error) if matches!(error.kind(), ErrorKind::Permanent | ErrorKind::Conflict) => {
                for waiting in waiting {
                    let answer = self.alone(&waiting.key).await;
                    let _ = waiting.answer.send(answer);
                }
            }
            Err(error) => {
                for waiting in waiting {
                    let _ = waiting.answer.send(Err(error.clone()));
                }
            }
        }
    }

    async fn alone(&self, key: &GrantKey) -> Answer {
        Ok(self.db.query_one_raw(self.statement(key)).await?)
    }

    fn statement(&self, key: &GrantKey) -> Statement {
        let mut values: Vec<Value> = texts(key).map(Value::from).to_vec();
        values.push(Vec::<u8>::new().into());
        values.extend(self.clock.value());
        let backend = self.db.get_database_backend();
        Statement::from_sql_and_values(backend, &self.one, values)
    }

    async fn together(
        &self,
        connection: &mut Connection,
        waiting: &[Waiting],
    ) -> Result<Rows, DbErr> {
        let column = |part: usize| {
            let values = waiting.iter().map(|read| Value::from(texts(&read.key)[part])).collect();
            Value::Array(ArrayType::String, Some(Box::new(values)))
        };
        let mut values: Vec<Value> = (0..4).map(column).collect();
        values.extend(self.clock.value());
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, &self.several, values);
        let rows = connection.query_all(statement).await?;
        rows.into_iter().map(|row| Ok((row.try_get("", "place")?, row))).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A statement under way for the reads that wait, or for one caller.
#[derive(Debug)]
struct Turn(Arc<Reads>);

/// What has come to wait is read next.
impl Drop for Turn {
    fn drop(&mut self) {
        let mut queue = self.0.lock();
        let runtime = tokio::runtime::Handle::try_current().ok();
        match runtime.filter(|_| !queue.waiting.is_empty()) {
            Some(runtime) => drop(runtime.spawn(Arc::clone(&self.0).run())),
            None => queue.statements -= 1,
        }
    }
}

fn texts(key: &GrantKey) -> [&str; 4] {
    [key.namespace.as_str(), key.provider.as_str(), key.subject.as_str(), key.account.as_str()]
}

impl Storage {
    /// Reads a grant with its main access token, by the unique key.
    ///
    /// # Errors
    ///
    /// [`StorageError`] where the database or the row cannot be read.
    pub async fn find_grant(&self, key: &GrantKey) -> Result<Option<Held>, StorageError> {
        let Some(row) = self.reads.read(key).await? else { return Ok(None) };
        let token = access_tokens::Model::from_query_result_optional(&row, "t_")?;
        let grant = convert::grant(GrantRow::from_query_result(&row, "")?, key.clone())?;
        let access_token = token.map(|token| self.access_token(&grant, token)).transpose()?;
        let now: i64 = row.try_get("", "now")?;
        // As `lease_ended` selects: one that ends too late was written before the clock was set back.
        let latest = now + millis(LEASE + CLOCK_TOLERANCE);
        let lease_until: Option<i64> = row.try_get("", "lease_until")?;
        let leased = lease_until.is_some_and(|until| (now..=latest).contains(&until));
        Ok(Some(Held { grant, access_token, leased, now: Timestamp::from_millis(now) }))
    }
}
