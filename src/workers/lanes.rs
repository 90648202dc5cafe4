//! Work at many providers side by side, one lane each, so that a slow provider holds up no other one.

use std::collections::HashSet;

use tokio::task::JoinSet;

use crate::domain::name::Name;

/// The lanes that are running.
#[derive(Default)]
pub(super) struct Lanes {
    running: HashSet<Name>,
    tasks: JoinSet<Name>,
}

impl Lanes {
    /// Starts work at a provider, unless there is some.
    pub(super) fn start(
        &mut self,
        provider: &Name,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
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
    pub(super) async fn ended(mut self) {
        while self.tasks.join_next().await.is_some() {}
    }
}
