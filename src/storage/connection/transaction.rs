//! One transaction on a connection of its own.

use futures::lock::Mutex;
use sea_orm::{ConnectionTrait, DbBackend, DbErr, ExecResult, QueryResult, Statement};
use tokio::sync::OwnedSemaphorePermit;

use super::{Session, SessionState, ended};

/// One transaction. Dropped without [`Transaction::commit`], it is rolled back.
#[derive(Debug)]
pub(in crate::storage) struct Transaction {
    /// `None` only while the transaction ends.
    session: Mutex<Option<Session>>,
    backend: DbBackend,
    /// The turn to write, released only after the transaction has ended.
    turn: Option<OwnedSemaphorePermit>,
}

impl Transaction {
    /// `session` has begun a transaction.
    pub(super) fn new(
        session: Session,
        backend: DbBackend,
        turn: Option<OwnedSemaphorePermit>,
    ) -> Self {
        Self { session: Mutex::new(Some(session)), backend, turn }
    }

    /// Commits. After an error the transaction may have been committed all the same.
    ///
    /// # Errors
    ///
    /// An error if a statement of the transaction had failed, or `COMMIT` itself fails.
    pub(in crate::storage) async fn commit(mut self) -> Result<(), DbErr> {
        let Some(mut session) = self.session.get_mut().take() else { return Err(ended()) };
        if session.state != SessionState::InTransaction {
            // PostgreSQL would answer COMMIT of a failed transaction with a silent ROLLBACK.
            return Err(DbErr::Custom("a statement of the transaction failed".to_owned()));
        }
        session.command("COMMIT").await?;
        session.state = SessionState::Idle;
        Ok(())
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(mut session) = self.session.get_mut().take() else { return };
        let turn = self.turn.take();
        // SQLite may have rolled back by itself after an error, so such a connection is closed.
        let can_go_on = match self.backend {
            DbBackend::Sqlite => session.state == SessionState::InTransaction,
            _ => matches!(session.state, SessionState::InTransaction | SessionState::Aborted),
        };
        let runtime = tokio::runtime::Handle::try_current().ok().filter(|_| can_go_on);
        let Some(runtime) = runtime else { return };
        runtime.spawn(async move {
            if session.command("ROLLBACK").await.is_ok() {
                session.state = SessionState::Idle;
            }
            drop(session);
            drop(turn);
        });
    }
}

#[sea_orm_migration::async_trait::async_trait]
impl ConnectionTrait for Transaction {
    fn get_database_backend(&self) -> DbBackend {
        self.backend
    }

    async fn execute_raw(&self, statement: Statement) -> Result<ExecResult, DbErr> {
        let mut session = self.session.lock().await;
        session.as_mut().ok_or_else(ended)?.execute(statement).await
    }

    async fn execute_unprepared(&self, sql: &str) -> Result<ExecResult, DbErr> {
        let mut session = self.session.lock().await;
        session.as_mut().ok_or_else(ended)?.command(sql).await
    }

    async fn query_one_raw(&self, statement: Statement) -> Result<Option<QueryResult>, DbErr> {
        Ok(self.query_all_raw(statement).await?.into_iter().next())
    }

    async fn query_all_raw(&self, statement: Statement) -> Result<Vec<QueryResult>, DbErr> {
        let mut session = self.session.lock().await;
        session.as_mut().ok_or_else(ended)?.query_all(statement).await
    }
}
