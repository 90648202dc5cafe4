//! Work at many providers side by side, one lane each, so that a slow provider holds up no other one.

use std::collections::HashSet;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::broker::Broker;
use crate::domain::name::Name;
use crate::storage::DueWork;

/// Starts a lane at each provider that has work of a kind, until the broker drains, and then waits for the lanes.
pub(super) async fn run<F>(
    broker: &Arc<Broker>,
    mut due: watch::Receiver<DueWork>,
    of_kind: impl Fn(&DueWork) -> Vec<Name>,
    lane: impl Fn(Arc<Broker>, Name) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let mut lanes = Lanes::default();
    loop {
        tokio::select! {
            changed = due.changed() => if changed.is_err() { break },
            () = broker.tasks.draining().cancelled() => break,
        }
        let providers = of_kind(&due.borrow_and_update());
        for provider in providers {
            lanes.start(&provider, lane(Arc::clone(broker), provider.clone()));
        }
    }
    lanes.ended().await;
}

/// The lanes that are running.
#[derive(Default)]
struct Lanes {
    running: HashSet<Name>,
    tasks: JoinSet<Name>,
}

impl Lanes {
    /// Starts work at a provider, unless there is some.
    fn start(&mut self, provider: &Name, work: impl Future<Output = ()> + Send + 'static) {
        while let Some(ended) = self.tasks.try_join_next() {
            match ended {
                Ok(provider) => drop(self.running.remove(&provider)),
                // A crash is one of the whole process, which is then started again.
                Err(crash) if crash.is_panic() => std::panic::resume_unwind(crash.into_panic()),
                Err(_) => {}
            }
        }
        if !self.running.insert(provider.clone()) {
            return;
        }
        let provider = provider.clone();
        self.tasks.spawn(async move {
            work.await;
            provider
        });
    }

    /// Waits until every lane has ended.
    async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
