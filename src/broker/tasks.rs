//! Work that outlives its caller, and the end of all work.

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::BrokerError;

/// The tasks of the use cases. They are awaited at shutdown.
#[derive(Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    draining: CancellationToken,
}

impl Tasks {
    /// Runs work in a task of its own, which is awaited at shutdown.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(work);
    }

    /// Runs a use case in a task of its own, and waits for it. A caller that goes away does not cancel
    /// it: a statement that is cancelled costs its connection, and a cancelled use case may leave work
    /// half done.
    ///
    /// # Errors
    ///
    /// [`BrokerError::Internal`] if it panics.
    pub async fn detached<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T, BrokerError> {
        self.tracker.spawn(work.in_current_span()).await.map_err(|crash| {
            tracing::error!(%crash, "a call crashed");
            BrokerError::Internal
        })
    }

    /// Ends when the broker takes no new calls any more.
    #[must_use]
    pub fn draining(&self) -> &CancellationToken {
        &self.draining
    }

    /// Returns `true` if no new work may begin.
    pub(super) fn are_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Takes no new work from here on. [`Tasks::drained`] waits for work in progress.
    pub fn drain(&self) {
        self.draining.cancel();
        self.tracker.close();
    }

    /// Waits until every exchange and refresh under way has been stored.
    pub async fn drained(&self) {
        self.tracker.wait().await;
    }
}
