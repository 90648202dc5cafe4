//! Watches the database: its schema at the first contact, and its health from then on.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::broker::{Broker, DatabaseFailure, Schema};

/// The interval at which the database is asked.
const INTERVAL: Duration = Duration::from_secs(1);

/// The same while it is away: calls are refused until it has been seen to be back.
const INTERVAL_WHILE_AWAY: Duration = Duration::from_millis(250);

/// Waits for the database, sees to its schema, enters this process among the replicas, and then
/// publishes whether the database answers, until the broker drains.
///
/// `location` is the same only for processes that cannot run at the same time.
///
/// # Errors
///
/// The reason, if the schema cannot be had or the keys do not fit.
pub async fn run(
    broker: Arc<Broker>,
    contact: watch::Sender<bool>,
    schema: Schema,
    location: Option<String>,
) -> Result<(), String> {
    let database = &broker.database;
    let prepared = tokio::select! {
        prepared = database.prepare(schema) => prepared,
        () = broker.tasks.draining().cancelled() => return Ok(()),
    };
    prepared?;
    let entered = tokio::select! {
        entered = database.enter(location.as_deref()) => entered,
        () = broker.tasks.draining().cancelled() => return Ok(()),
    };
    entered?;
    let mut probes = 0_u32;
    let mut is_suspected = true;
    loop {
        let probed = database.probe(probes, is_suspected).await;
        let answers = probed.is_ok();
        let pause = match &probed {
            Ok(()) | Err(DatabaseFailure { is_away: false, .. }) => INTERVAL,
            Err(_) => INTERVAL_WHILE_AWAY,
        };
        probes = if answers { probes.wrapping_add(1) } else { 0 };
        let changed =
            contact.send_if_modified(|before| std::mem::replace(before, answers) != answers);
        match probed {
            Ok(()) if changed => tracing::info!("storage answers"),
            Err(failure) if changed => {
                tracing::error!(error = failure.reason, "storage does not answer");
            }
            _ => {}
        }
        // A suspicion that was unfounded is not followed up at once.
        let suspected = async {
            if is_suspected {
                tokio::time::sleep(pause).await;
            }
            database.outage_suspected().await;
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => is_suspected = !answers,
            () = suspected => is_suspected = true,
            () = broker.tasks.draining().cancelled() => {
                // What is still to be stored waits for the database, as no probe will find it back.
                database.stop_watching();
                return Ok(());
            }
        }
    }
}
