//! Reads the metrics that come from the database, so that no call waits for them.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::job::{self, Job, Next};
use crate::broker::Broker;
use crate::domain::name::Name;
use crate::telemetry::{DatabaseFigures, ProcessFigures};

/// The interval at which the database is looked at; jitter of a half is added.
const INTERVAL: Duration = Duration::from_secs(10);

/// The factor by which the pause after a count of all grants is longer than the count: where they are many, it
/// must not keep a connection busy.
const SHARE: u32 = 100;

/// A count that fails after this has taken longer than a statement may.
const TOO_LONG: Duration = Duration::from_secs(4);

/// The time for which grants are not counted after a count took longer than a statement may.
const TOO_MANY: Duration = Duration::from_secs(60 * 60);

/// Registers the metrics of this process, which also work without a database.
pub fn watch(broker: &Arc<Broker>) {
    for provider in broker.providers.iter() {
        broker.metrics.begin(&provider.name);
    }
    let watched = Arc::downgrade(broker);
    broker.metrics.watch(move || watched.upgrade().map(|broker| process(&broker)));
}

/// Looks until the broker drains.
pub async fn run(broker: Arc<Broker>) {
    let providers = broker.providers.iter().map(|p| p.name.clone()).collect();
    let job = ReadBacklog { providers, grants: Vec::new(), count_at: Instant::now() };
    job::repeat(&broker, job).await;
}

struct ReadBacklog {
    providers: Vec<Name>,
    /// The last count of all grants, and the time of the next one.
    grants: Vec<(String, String, u64)>,
    count_at: Instant,
}

impl Job for ReadBacklog {
    async fn round(&mut self, broker: &Arc<Broker>) -> Next {
        if Instant::now() >= self.count_at {
            let began = Instant::now();
            let counted = broker.database.count_grants().await;
            let wait = match &counted {
                Err(_) if began.elapsed() >= TOO_LONG => TOO_MANY,
                Err(_) => Duration::ZERO,
                Ok(_) => began.elapsed() * SHARE,
            };
            self.count_at = Instant::now() + wait;
            self.grants = counted.unwrap_or_else(|error| {
                tracing::debug!(%error, "cannot count the grants");
                Vec::new()
            });
        }
        let figures = broker.database.backlog(&self.providers).await.map_or_else(
            // Counts that may be wrong are not reported.
            |_| DatabaseFigures::default(),
            |backlog| DatabaseFigures {
                open_intents: Some(backlog.open_intents),
                revocations: Some(backlog.revocations),
                oldest_revocation: Some(backlog.oldest_revocation),
                grants: self.grants.clone(),
            },
        );
        broker.metrics.set_database(figures);
        Next::About(INTERVAL)
    }
}

fn process(broker: &Broker) -> ProcessFigures {
    let cache = broker.tokens.cache_counts();
    let unreadable = broker.database.unreadable_counts();
    ProcessFigures {
        hits: cache.hits,
        outage_hits: cache.outage_hits,
        misses: cache.misses,
        invalidations: cache.invalidations,
        oldest: cache.oldest,
        storage_up: broker.database.is_up(),
        unnotified: broker.tokens.unnotified(),
        unreadable: [("unknown_key", unreadable.unknown_key), ("altered", unreadable.altered)],
        breakers: broker.refreshes.breakers(),
    }
}
