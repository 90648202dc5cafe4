//! Scripted answers and pauses, for tests.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::CONTENT_TYPE;
use tokio::sync::watch;

/// The endpoints whose answers can be scripted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScriptedEndpoint {
    /// `POST /token`.
    Token,
    /// `POST /revoke`.
    Revoke,
}

/// An answer that one call gets instead of the provider's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptedAnswer {
    /// The HTTP status.
    pub status: u16,
    /// The `Content-Type`; none is sent where it is empty.
    pub content_type: String,
    /// The body, sent as it is.
    pub body: String,
    /// `true` if the call takes effect first, and only its own answer is lost: a code is spent, a
    /// refresh token rotates, a token is revoked.
    pub after_processing: bool,
    /// The time for which the answer is held back, after the effect if there is one.
    pub delay: Option<Duration>,
    /// More headers.
    pub headers: Vec<(String, String)>,
}

impl ScriptedAnswer {
    /// An answer in JSON, at once, instead of processing.
    #[must_use]
    pub fn json(status: u16, body: impl Into<String>) -> Self {
        Self {
            status,
            content_type: "application/json".to_owned(),
            body: body.into(),
            after_processing: false,
            delay: None,
            headers: Vec::new(),
        }
    }
}

impl IntoResponse for ScriptedAnswer {
    fn into_response(self) -> Response {
        let mut builder = Response::builder().status(self.status);
        if !self.content_type.is_empty() {
            builder = builder.header(CONTENT_TYPE, self.content_type);
        }
        for (name, value) in self.headers {
            builder = builder.header(name, value);
        }
        builder.body(Body::from(self.body)).unwrap_or_else(|error| {
            tracing::error!(error.message = %error, "a scripted answer is no HTTP response");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        })
    }
}

/// Answers a call: by its script where it has one.
pub(super) async fn answer(
    scripted: Option<ScriptedAnswer>,
    processing: impl Future<Output = Response>,
) -> Response {
    let Some(scripted) = scripted else {
        return processing.await;
    };
    if scripted.after_processing {
        drop(processing.await);
    }
    if let Some(delay) = scripted.delay {
        tokio::time::sleep(delay).await;
    }
    scripted.into_response()
}

/// The faults that tests have ordered.
#[derive(Default)]
pub(super) struct Faults {
    token_scripts: Mutex<VecDeque<ScriptedAnswer>>,
    revoke_scripts: Mutex<VecDeque<ScriptedAnswer>>,
    /// The number of guards that hold the token endpoint.
    pauses: watch::Sender<usize>,
    /// The number of token calls that have arrived.
    token_calls: watch::Sender<usize>,
    /// The refresh tokens, by digest, of calls that are under way.
    sends: watch::Sender<HashSet<String>>,
    /// The calls that had another one with the same refresh token beside them, which was answered.
    overlaps: AtomicUsize,
    /// The number of calls that wait for another one with the same refresh token to end.
    waiting: Mutex<HashMap<String, usize>>,
}

/// A call that waits for another one with the same refresh token.
struct Waiting<'a> {
    faults: &'a Faults,
    token: &'a str,
}

impl<'a> Waiting<'a> {
    fn of(faults: &'a Faults, token: &'a str) -> Self {
        let mut waiting = faults.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        *waiting.entry(token.to_owned()).or_default() += 1;
        Self { faults, token }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let mut waiting = self.faults.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = waiting.get_mut(self.token) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(self.token);
            }
        }
    }
}

/// The time within which the end of a client must be noticed.
const GONE: Duration = Duration::from_millis(500);

/// A call with a refresh token, until it is answered or its client goes.
pub(super) struct TokenSend {
    faults: Arc<Faults>,
    token: String,
    /// `true` if it is the one that stands for its token.
    first: bool,
    answered: bool,
}

impl TokenSend {
    /// The call has its answer.
    pub(super) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for TokenSend {
    fn drop(&mut self) {
        if !self.first {
            return;
        }
        self.faults.sends.send_modify(|sends| {
            sends.remove(&self.token);
            // A call that waits for the end of this one arrived during it.
            if self.answered && self.faults.waiting(&self.token) {
                self.faults.overlaps.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
}

impl Faults {
    pub(super) fn script(&self, endpoint: ScriptedEndpoint, answer: ScriptedAnswer) {
        let queue = match endpoint {
            ScriptedEndpoint::Token => &self.token_scripts,
            ScriptedEndpoint::Revoke => &self.revoke_scripts,
        };
        queue.lock().unwrap_or_else(PoisonError::into_inner).push_back(answer);
    }

    /// Takes back what was scripted and not answered yet.
    pub(super) fn clear_scripts(&self) {
        for queue in [&self.token_scripts, &self.revoke_scripts] {
            queue.lock().unwrap_or_else(PoisonError::into_inner).clear();
        }
    }

    /// Counts a token call, wakes its watchers, and returns its script.
    pub(super) fn token_call_arrived(&self) -> Option<ScriptedAnswer> {
        let scripted = next(&self.token_scripts);
        self.token_calls.send_modify(|calls| *calls += 1);
        scripted
    }

    /// Takes note of a call with this refresh token. Where another one with it is under way, waits until
    /// that is answered, which makes them overlap, or until its client is seen to have gone.
    pub(super) async fn send_arrived(self: &Arc<Self>, token: String) -> TokenSend {
        let enter = || {
            let mut entered = false;
            self.sends.send_if_modified(|sends| {
                entered = sends.insert(token.clone());
                entered
            });
            entered
        };
        let send = |first| {
            let (faults, token) = (Arc::clone(self), token.clone());
            TokenSend { faults, token, first, answered: false }
        };
        if enter() {
            return send(true);
        }
        let _waiting = Waiting::of(self, &token);
        let mut sends = self.sends.subscribe();
        let entered = async {
            while !enter() {
                // An error would mean that the sender is gone, but `self` has it.
                drop(sends.wait_for(|sends| !sends.contains(&token)).await);
            }
        };
        if tokio::time::timeout(GONE, entered).await.is_ok() {
            return send(true);
        }
        self.overlaps.fetch_add(1, Ordering::SeqCst);
        send(false)
    }

    fn waiting(&self, token: &str) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.contains_key(token)
    }

    /// The number of calls that overlapped with another one of the same refresh token.
    pub(super) fn overlaps(&self) -> usize {
        self.overlaps.load(Ordering::SeqCst)
    }

    /// Gives a revocation call its script.
    pub(super) fn revoke_call_arrived(&self) -> Option<ScriptedAnswer> {
        next(&self.revoke_scripts)
    }

    /// Waits until no guard holds the token endpoint.
    pub(super) async fn token_endpoint_runs(&self) {
        let mut pauses = self.pauses.subscribe();
        // An error would mean that the sender is gone, but `self` has it.
        drop(pauses.wait_for(|pauses| *pauses == 0).await);
    }

    /// Waits until so many token calls have arrived.
    pub(super) async fn wait_for_token_calls(&self, n: usize) {
        let mut calls = self.token_calls.subscribe();
        drop(calls.wait_for(|calls| *calls >= n).await);
    }
}

fn next(queue: &Mutex<VecDeque<ScriptedAnswer>>) -> Option<ScriptedAnswer> {
    queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

/// Token calls wait while one of these is held.
#[must_use = "the pause ends when the guard is dropped"]
pub struct PauseGuard {
    faults: Arc<Faults>,
}

impl PauseGuard {
    pub(super) fn new(faults: Arc<Faults>) -> Self {
        faults.pauses.send_modify(|pauses| *pauses += 1);
        Self { faults }
    }
}

impl Drop for PauseGuard {
    fn drop(&mut self) {
        self.faults.pauses.send_modify(|pauses| *pauses -= 1);
    }
}

impl fmt::Debug for PauseGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PauseGuard").finish_non_exhaustive()
    }
}
