//! Whether the caller of a use case still waits for it.
//!
//! A use case runs in a task of its own and is not cancelled. What only waits in it, for a refresh that
//! goes on by itself, ends when nobody waits for its result: it would keep a place among the calls.

use tokio_util::sync::CancellationToken;

tokio::task_local! {
    static GONE: CancellationToken;
}

/// Runs a use case whose caller may go away, which cancels the token.
pub async fn with_caller<T>(gone: CancellationToken, work: impl Future<Output = T>) -> T {
    GONE.scope(gone, work).await
}

/// Waits until the caller has gone. Never ends where there is none, as for a worker.
pub(super) async fn gone() {
    match GONE.try_with(Clone::clone) {
        Ok(token) => token.cancelled().await,
        Err(_) => std::future::pending().await,
    }
}
