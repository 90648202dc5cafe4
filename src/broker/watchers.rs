//! One poll of the database for all streams of WatchAuthorization, instead of one each.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::Tasks;
use crate::crypto::random::Random;
use crate::domain::authorization::State;
use crate::domain::id::Id;
use crate::storage::AuthorizationStore;

/// The interval at which the watched authorizations are read; jitter of a half is added, so that replicas do not
/// move in step.
const POLL: Duration = Duration::from_millis(250);

/// The number of rows that one statement reads.
const AT_ONCE: usize = 500;

/// The authorizations that are watched in this process.
#[derive(Debug)]
pub(super) struct Watchers {
    watched: Mutex<Watched>,
    authorizations: AuthorizationStore,
    tasks: Arc<Tasks>,
    random: Random,
}

#[derive(Debug, Default)]
struct Watched {
    authorizations: HashMap<Id, watch::Sender<Option<Observation>>>,
    is_polled: bool,
}

/// The last reading of an authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Observation {
    State(State),
    /// It was deleted.
    Gone,
    /// The database could not be read.
    Failed,
}

/// One stream's part. Dropped, it ends its interest.
#[derive(Debug)]
pub(super) struct Watching {
    watchers: Arc<Watchers>,
    id: Id,
    changes: watch::Receiver<Option<Observation>>,
}

impl Watchers {
    pub(super) fn new(
        authorizations: AuthorizationStore,
        tasks: Arc<Tasks>,
        random: Random,
    ) -> Self {
        Self { watched: Mutex::default(), authorizations, tasks, random }
    }

    /// Adds a watcher, and starts the poll where there is none.
    pub(super) fn watch(self: &Arc<Self>, id: Id) -> Watching {
        let mut watched = self.lock();
        let sender = watched.authorizations.entry(id).or_insert_with(|| watch::channel(None).0);
        let mut changes = sender.subscribe();
        // The caller has read the state before this: what a poll has seen since is news.
        changes.mark_changed();
        if !std::mem::replace(&mut watched.is_polled, true) {
            let watchers = Arc::clone(self);
            tokio::spawn(async move { watchers.poll().await });
        }
        Watching { watchers: Arc::clone(self), id, changes }
    }

    /// Polls until nothing is watched any more or the broker drains.
    async fn poll(&self) {
        loop {
            let ids: Vec<Id> = {
                let mut watched = self.lock();
                watched.authorizations.retain(|_, sender| sender.receiver_count() > 0);
                if watched.authorizations.is_empty() || self.tasks.are_draining() {
                    watched.is_polled = false;
                    return;
                }
                watched.authorizations.keys().copied().collect()
            };
            for some in ids.chunks(AT_ONCE) {
                let seen = self.authorizations.authorization_states(some).await;
                for id in some {
                    let seen = match &seen {
                        Ok(states) => {
                            states.get(id).cloned().map_or(Observation::Gone, Observation::State)
                        }
                        Err(_) => Observation::Failed,
                    };
                    self.publish(*id, seen);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(POLL + self.random.jitter(POLL / 2)) => {}
                () = self.tasks.draining().cancelled() => {}
            }
        }
    }

    fn publish(&self, id: Id, seen: Observation) {
        if let Some(sender) = self.lock().authorizations.get(&id) {
            sender.send_if_modified(|last| {
                let is_new = last.as_ref() != Some(&seen);
                *last = Some(seen);
                is_new
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.watched.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watching {
    /// Waits for the next change.
    pub(super) async fn changed(&mut self) -> Observation {
        loop {
            if self.changes.changed().await.is_err() {
                return Observation::Failed;
            }
            if let Some(seen) = self.changes.borrow_and_update().clone() {
                return seen;
            }
        }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        let mut watched = self.watchers.lock();
        // The last one: its own receiver is counted still.
        if watched.authorizations.get(&self.id).is_some_and(|sender| sender.receiver_count() <= 1) {
            watched.authorizations.remove(&self.id);
        }
    }
}
