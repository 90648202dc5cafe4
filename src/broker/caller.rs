//! The caller of a use case: whether it still waits, and its share of the work.
//!
//! A use case runs in a task of its own and is not cancelled. One that only waits for a refresh, which continues by
//! itself, ends when its caller has gone, because it would keep a place among the calls. It also gives its share of
//! the work back, so that waiting for a provider that hangs costs its bot nothing.

use std::cell::Cell;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

tokio::task_local! {
    static CALLER: Caller;
}

struct Caller {
    gone: CancellationToken,
    share: Cell<Option<OwnedSemaphorePermit>>,
}

/// Runs a use case whose caller may go away, which cancels the token. `share` is returned when the use case ends, or
/// waits for a refresh.
pub async fn with_caller<T>(
    gone: CancellationToken,
    share: OwnedSemaphorePermit,
    work: impl Future<Output = T>,
) -> T {
    CALLER.scope(Caller { gone, share: Cell::new(Some(share)) }, work).await
}

/// Waits until the caller has gone. Never ends without a caller, as for a worker.
pub(super) async fn gone() {
    match CALLER.try_with(|caller| caller.gone.clone()) {
        Ok(token) => token.cancelled().await,
        Err(_) => std::future::pending().await,
    }
}

/// Returns the caller's share of the work. From here on the use case only waits.
pub(super) fn waits() {
    // Without a caller there is no share.
    let _ = CALLER.try_with(|caller| drop(caller.share.take()));
}
