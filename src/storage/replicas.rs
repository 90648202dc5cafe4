//! The processes that share the database, each with a heartbeat, so that the holder of a lease can be
//! distinguished from one that has ended.

use sea_orm::sea_query::{Expr, ExprTrait, OnConflict, Query, SelectStatement};
use sea_orm::{ColumnTrait, ConnectionTrait, EntityTrait, QueryFilter, Statement};
use std::time::Duration;

use super::entity::{grants, replicas};
use super::{CLOCK_TOLERANCE, ReplicaRegistry, Storage, StorageError, StoreContext};
use crate::domain::time::{Timestamp, millis};

/// The time that the row of a replica is kept after its last heartbeat.
const KEPT: Duration = Duration::from_secs(24 * 60 * 60);

impl ReplicaRegistry {
    /// Enters this process among the replicas. A process that was entered with the same location is
    /// gone, and so is every other one on SQLite, which one process serves.
    ///
    /// `location` must be the same only for processes that cannot run at the same time.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn register_replica(
        &self,
        location: Option<&str>,
    ) -> Result<Timestamp, StorageError> {
        let mut gone = sea_orm::Condition::any()
            .add(Expr::col(replicas::Column::HeartbeatAt).lt(self.now_expr().sub(millis(KEPT))));
        gone = match (self.is_shared(), location) {
            (false, _) => gone.add(Expr::value(true)),
            (true, Some(location)) => gone.add(replicas::Column::Location.eq(location)),
            (true, None) => gone,
        };
        let turn = self.turn().await;
        replicas::Entity::delete_many()
            .filter(replicas::Column::Id.ne(self.replica.as_bytes().to_vec()))
            .filter(gone)
            .exec(&self.db)
            .await?;
        drop(turn);
        self.beat(location).await
    }

    /// Writes this process's heartbeat, and returns the time on the database's clock. Fails where the
    /// database accepts no writes.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn heartbeat(&self) -> Result<Timestamp, StorageError> {
        self.beat(None).await
    }

    async fn beat(&self, location: Option<&str>) -> Result<Timestamp, StorageError> {
        let now = self.now_expr();
        let mut insert = Query::insert();
        insert
            .into_table(replicas::Entity)
            .columns([
                replicas::Column::Id,
                replicas::Column::Location,
                replicas::Column::StartedAt,
                replicas::Column::HeartbeatAt,
            ])
            .values_panic([
                Expr::value(self.replica.as_bytes().to_vec()),
                Expr::value(location),
                now.clone(),
                now,
            ])
            .on_conflict(
                OnConflict::column(replicas::Column::Id)
                    .update_column(replicas::Column::HeartbeatAt)
                    .to_owned(),
            )
            .returning_col(replicas::Column::HeartbeatAt);
        let _turn = self.turn().await;
        let row = self.reserved.query_one(&insert).await?;
        let row = row.ok_or_else(|| StorageError::damaged("replicas", "no row was returned"))?;
        Ok(Timestamp::from_millis(row.try_get("", "heartbeat_at")?))
    }

    /// Gives up this process's location before another process can bind its address: until it has left,
    /// it may hold responses.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn leave_location(&self) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        replicas::Entity::update_many()
            .col_expr(replicas::Column::Location, Expr::value(Option::<String>::None))
            .filter(replicas::Column::Id.eq(self.replica.as_bytes().to_vec()))
            .exec(&self.reserved)
            .await?;
        Ok(())
    }

    /// Removes this process from the replicas: it holds no response any more.
    ///
    /// # Errors
    ///
    /// [`StorageError`]; the others then wait until its heartbeat is old.
    pub async fn deregister_replica(&self) -> Result<(), StorageError> {
        let _turn = self.turn().await;
        replicas::Entity::delete_by_id(self.replica.as_bytes().to_vec()).exec(&self.db).await?;
        Ok(())
    }
}

impl StoreContext {
    /// Selects the replica that holds the lease of the grant in the statement around it, if its last
    /// heartbeat is younger than `timeout`.
    pub(super) fn living_holder(&self, timeout: Duration) -> SelectStatement {
        let mut select = Query::select();
        select
            .expr(Expr::value(1))
            .from(replicas::Entity)
            .and_where(
                Expr::col((replicas::Entity, replicas::Column::Id))
                    .equals((grants::Entity, grants::Column::LeaseReplica)),
            )
            .and_where(
                Expr::col((replicas::Entity, replicas::Column::HeartbeatAt))
                    .gt(self.now_once().sub(millis(timeout))),
            )
            // One from the future was written before the clock was set back.
            .and_where(
                Expr::col((replicas::Entity, replicas::Column::HeartbeatAt))
                    .lte(self.now_once().add(millis(CLOCK_TOLERANCE))),
            );
        select
    }
}

impl Storage {
    /// Returns `true` if the server accepts no writes, as a standby does.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn is_read_only(&self) -> Result<bool, StorageError> {
        if !self.is_shared() {
            return Ok(false);
        }
        let shown = "SELECT current_setting('transaction_read_only') AS shown";
        let statement = Statement::from_string(self.db.get_database_backend(), shown);
        let row = self.db.query_one_raw(statement).await?;
        let row = row.ok_or_else(|| StorageError::damaged("none", "SELECT gave no row"))?;
        Ok(row.try_get::<String>("", "shown")? == "on")
    }

    /// The isolation level of this process's sessions, in the server's words. On SQLite, whose
    /// transactions are serializable, `serializable`.
    ///
    /// # Errors
    ///
    /// [`StorageError`].
    pub async fn session_isolation(&self) -> Result<String, StorageError> {
        let shown = "SELECT current_setting('transaction_isolation') AS shown";
        if !self.is_shared() {
            return Ok("serializable".to_owned());
        }
        let statement = Statement::from_string(self.db.get_database_backend(), shown);
        let row = self.db.query_one_raw(statement).await?;
        let row = row.ok_or_else(|| StorageError::damaged("none", "SELECT gave no row"))?;
        Ok(row.try_get("", "shown")?)
    }
}
