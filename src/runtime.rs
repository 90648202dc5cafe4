//! Runs a broker: its listeners, workers and health, and the way to a clean end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::broker::{Broker, Schema};
use crate::listener::{Listener, ListenerLimits, Tls, http1};
use crate::storage::DueWork;
use crate::{grpc, http, workers};

/// The time that calls under way may take to end.
const CALLS_END: Duration = Duration::from_secs(12);
const _: () = assert!(CALLS_END.as_secs() > crate::provider::http::TIMEOUT.as_secs());

/// The time for which health streams stay open after their last message.
const WATCHERS_END: Duration = Duration::from_secs(1);

/// The time for which answers of providers are held for a database that is away. Past that the process ends,
/// and says what was lost.
const COMMITS_END: Duration = Duration::from_secs(30);

/// The interval at which a process that ends writes its heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The time that a process may take to leave the replicas.
const LEAVES: Duration = Duration::from_secs(1);

/// The sockets of a broker.
#[derive(Debug)]
pub struct Listeners {
    /// Bots call here.
    pub grpc: TcpListener,
    /// Browsers come here.
    pub http: TcpListener,
    /// The platform asks here.
    pub ops: TcpListener,
    /// The number of connections that each of them keeps open.
    pub limits: ListenerLimits,
    /// TLS for bots, and for browsers.
    pub tls: ListenerTls,
}

/// TLS of the listeners that can have it.
#[derive(Debug, Clone, Default)]
pub struct ListenerTls {
    /// For bots.
    pub grpc: Option<Arc<Tls>>,
    /// For browsers.
    pub http: Option<Arc<Tls>>,
}

impl Listeners {
    /// Binds the three addresses.
    ///
    /// # Errors
    ///
    /// [`BindError`] if one cannot be bound.
    pub async fn bind(
        grpc: SocketAddr,
        http: SocketAddr,
        ops: SocketAddr,
        limits: ListenerLimits,
        tls: ListenerTls,
    ) -> Result<Self, BindError> {
        let bind = |key, address| async move {
            TcpListener::bind(address).await.map_err(|error| BindError { key, address, error })
        };
        let grpc = bind("grpc.listen", grpc).await?;
        let http = bind("http.listen", http).await?;
        let ops = bind("ops.listen", ops).await?;
        Ok(Self { grpc, http, ops, limits, tls })
    }
}

/// The address that cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error("{key}: cannot listen on {address}: {error}")]
pub struct BindError {
    /// The key of the configuration.
    pub key: &'static str,
    /// The address.
    pub address: SocketAddr,
    /// The reason.
    pub error: io::Error,
}

/// Why a broker ended otherwise than it should.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A part ended by itself.
    #[error("{part}: {reason}")]
    Ended {
        /// The part.
        part: &'static str,
        /// Why.
        reason: String,
    },
    /// A provider's answer could not be stored before the process had to end.
    #[error(
        "storage did not come back in time: some refreshed tokens could not be stored, and their \
         users may have to authorize again"
    )]
    Undrained,
}

/// Runs until `shutdown`; calls are taken at once, and the service is healthy from the first contact
/// with storage on. Then lets calls under way end and stores what is still to be stored.
///
/// # Errors
///
/// [`RunError`] where a part ended by itself, or not all could be stored.
pub async fn run(
    broker: Arc<Broker>,
    listeners: Listeners,
    schema: Schema,
    shutdown: CancellationToken,
) -> Result<(), RunError> {
    let health = HealthReporter::new();
    let (contact, in_contact) = watch::channel(false);
    let (ready, readiness) = watch::channel(false);
    let stopping = CancellationToken::new();
    let mut parts = JoinSet::new();

    health.set_service_status(grpc::SERVICE_NAME, ServingStatus::NotServing).await;
    let bridged = broker.settings.cache.outage_max_age;
    let reported = report(health.clone(), in_contact.clone(), bridged, ready, stopping.clone());
    let reporting = tokio::spawn(reported);
    let location = location(&listeners);
    let watching = workers::database_health::run(Arc::clone(&broker), contact, schema, location);
    parts.spawn(async move { watching.await.map_err(|reason| ("storage", reason)) });
    // In the background: an endpoint that is still unknown is fetched when it is needed.
    let learning = Arc::clone(&broker);
    let learning = tokio::spawn(async move { learning.providers.learn_all().await });
    workers::backlog::watch(&broker);
    let once = |work: Worker| once(in_contact.clone(), stopping.clone(), work);
    let (due, work) = watch::channel(DueWork::default());
    parts.spawn(once(Box::pin(workers::due::run(Arc::clone(&broker), due))));
    parts.spawn(once(Box::pin(workers::invalidations::run(Arc::clone(&broker)))));
    parts.spawn(once(Box::pin(workers::refresh_recovery::run(Arc::clone(&broker)))));
    parts.spawn(once(Box::pin(workers::revocations::run(Arc::clone(&broker), work.clone()))));
    parts.spawn(once(Box::pin(workers::backlog::run(Arc::clone(&broker)))));
    parts.spawn(once(Box::pin(workers::sweep::run(Arc::clone(&broker)))));
    if broker.settings.proactive_refresh {
        parts.spawn(once(Box::pin(workers::proactive_refresh::run(Arc::clone(&broker), work))));
    }

    let ListenerLimits { grpc, http, ops, http_rate } = listeners.limits;
    for tls in [&listeners.tls.grpc, &listeners.tls.http].into_iter().flatten() {
        let (tls, stopping) = (Arc::clone(tls), stopping.clone());
        parts.spawn(async move {
            tls.watch(stopping).await;
            Ok(())
        });
    }
    let listener = Listener::new(listeners.grpc, "gRPC", grpc).with_tls(listeners.tls.grpc);
    let grpc = grpc::serve(Arc::clone(&broker), listener, health, stopping.clone());
    parts
        .spawn(async move { grpc.await.map_err(|error| ("the gRPC listener", error.to_string())) });
    let public = http::public_router(Arc::clone(&broker));
    let ops_router = http::ops_router(readiness, broker.metrics.clone());
    let http = Listener::new(listeners.http, "redirect", http).with_tls(listeners.tls.http);
    let ops = Listener::new(listeners.ops, "ops", ops);
    for (router, listener, rate) in [(public, http, http_rate), (ops_router, ops, None)] {
        let serving = http1::serve(router, listener, rate, stopping.clone());
        parts.spawn(async move {
            serving.await;
            Ok(())
        });
    }

    // A part that ends before the shutdown is a fault.
    let fault = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = parts.join_next() => Some(fault_of(ended)),
    };
    tracing::info!("stopping");
    // While the address is still this process's own.
    let leaving = broker.database.leave_location();
    drop(tokio::time::timeout(LEAVES, leaving).await);
    stopping.cancel();
    broker.tasks.drain();
    // Until everything is stored, others must not take it for gone.
    let (beating, held) = (Arc::clone(&broker), CancellationToken::new());
    let stored = held.clone();
    let beating = tokio::spawn(async move {
        while !stored.is_cancelled() {
            drop(beating.database.heartbeat().await);
            tokio::select! {
                () = tokio::time::sleep(HEARTBEAT) => {}
                () = stored.cancelled() => {}
            }
        }
    });

    // Hard: what has not ended by then is dropped, save what must be stored.
    let all_ended =
        tokio::time::timeout(CALLS_END, async { while parts.join_next().await.is_some() {} }).await;
    if all_ended.is_err() {
        tracing::warn!("calls under way did not end in time");
        parts.shutdown().await;
    }
    reporting.abort();
    learning.abort();
    let drained = tokio::time::timeout(COMMITS_END, broker.tasks.drained()).await;
    // Its last heartbeat must not come after the row is deleted.
    held.cancel();
    drop(tokio::time::timeout(LEAVES, beating).await);
    if drained.is_ok() {
        // It holds no response any more, so other replicas need not wait until its heartbeat is old.
        let leaving = broker.database.leave();
        if !matches!(tokio::time::timeout(LEAVES, leaving).await, Ok(Ok(()))) {
            tracing::debug!("this process stays among the replicas until its heartbeat is old");
        }
    }
    if let Err(error) = broker.database.close().await {
        tracing::warn!(%error, "the database did not close");
    }
    match fault {
        Some(fault) => Err(fault),
        None if drained.is_err() => Err(RunError::Undrained),
        None => Ok(()),
    }
}

/// Returns the place where this process runs, by which a successor reports that it is gone: the
/// boot of the machine, the network namespace and the gRPC address, which one process alone can have
/// bound. Returns `None` where the system does not say.
fn location(listeners: &Listeners) -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/net").ok()?;
    let address = listeners.grpc.local_addr().ok()?;
    Some(format!("{} {} {address}", boot.trim(), namespace.display()))
}

/// Does some work from the first contact with storage on, which has its schema by then. Does nothing
/// until the end, where there is none.
async fn once(
    mut in_contact: watch::Receiver<bool>,
    stopping: CancellationToken,
    work: impl Future<Output = ()>,
) -> Part {
    if in_contact.wait_for(|there| *there).await.is_ok() {
        work.await;
    } else {
        // The watch over storage has ended, and says why itself.
        stopping.cancelled().await;
    }
    Ok(())
}

type Worker = Pin<Box<dyn Future<Output = ()> + Send>>;

type Part = Result<(), (&'static str, String)>;

fn fault_of(ended: Option<Result<Part, tokio::task::JoinError>>) -> RunError {
    let (part, reason) = match ended {
        Some(Ok(Err((part, reason)))) => (part, reason),
        Some(Err(error)) => ("a task", error.to_string()),
        Some(Ok(Ok(()))) | None => ("a part", "ended by itself".to_owned()),
    };
    RunError::Ended { part, reason }
}

fn far_away() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(24 * 60 * 60)
}

/// Keeps health and readiness up to date: serving while storage answers, and as long as the cache
/// may serve without it, until the end begins.
async fn report(
    health: HealthReporter,
    mut in_contact: watch::Receiver<bool>,
    bridged: Duration,
    ready: watch::Sender<bool>,
    stopping: CancellationToken,
) {
    // Since when storage is away, once it has been there.
    let mut away: Option<tokio::time::Instant> = None;
    let mut was_there = false;
    loop {
        let there = *in_contact.borrow_and_update();
        was_there |= there;
        away = if there { None } else { away.or_else(|| Some(tokio::time::Instant::now())) };
        // What the cache has is served on for a while.
        let ends = away.filter(|_| was_there).map(|since| since + bridged);
        let bridging = ends.is_some_and(|ends| tokio::time::Instant::now() < ends);
        let serving = (there || bridging) && !stopping.is_cancelled();
        let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
        health.set_service_status(grpc::SERVICE_NAME, status).await;
        ready.send_replace(serving);
        if stopping.is_cancelled() {
            break;
        }
        tokio::select! {
            changed = in_contact.changed() => if changed.is_err() {
                // The watch over storage has ended, and so will this process.
                stopping.cancelled().await;
            },
            () = tokio::time::sleep_until(ends.unwrap_or_else(far_away)), if bridging => {}
            () = stopping.cancelled() => {}
        }
    }
    // A client that watches health would keep its connection, and so this process, for ever. Its last message was
    // sent; a little later the stream ends.
    tokio::time::sleep(WATCHERS_END).await;
    let mut health = health;
    for service in [grpc::SERVICE_NAME, ""] {
        health.clear_service_status(service).await;
    }
}
