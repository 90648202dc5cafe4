//! The loop of a job that comes again and again.

use std::sync::Arc;
use std::time::Duration;

use crate::broker::Broker;

/// When a job comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At once: there is more to do.
    Now,
    /// After exactly this time.
    After(Duration),
    /// After this time and jitter of at most a half of it, so that replicas do not move in step.
    About(Duration),
}

/// A job of the broker.
pub(super) trait Job: Send {
    /// Does what there is to do now.
    fn round(&mut self, broker: &Arc<Broker>) -> impl Future<Output = Next> + Send;
}

/// Runs a job until the broker drains. A round that has begun ends first.
pub(super) async fn repeat(broker: &Arc<Broker>, mut job: impl Job) {
    while !broker.tasks.draining().is_cancelled() {
        let pause = match job.round(broker).await {
            Next::Now => continue,
            Next::After(pause) => pause,
            Next::About(pause) => pause + broker.random.jitter(pause / 2),
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = broker.tasks.draining().cancelled() => {}
        }
    }
}
