//! The demo's own OAuth 2.0 authorization server, in process and on loopback.
//!
//! It lets a newcomer see the whole life of a token without an account anywhere, and it is the
//! provider of the end-to-end tests: its [`Ledger`] counts what arrived, and calls can be paused
//! or answered by a script. **Its tokens open nothing but its own `/userinfo`**, and it asks for no
//! password, so it is no server for anything real.
//!
//! | endpoint | what it does |
//! | --- | --- |
//! | `GET /authorize` | asks the user (RFC 6749 section 4.1.1, with PKCE, S256) |
//! | `POST /authorize` | the user's answer; sends the browser back |
//! | `POST /token` | codes and refresh tokens for tokens (RFC 6749 sections 4.1.3 and 6) |
//! | `POST /revoke` | RFC 7009 |
//! | `GET /userinfo` | who the access token speaks for: `{"sub": …, "login": …}` |
//! | `GET /.well-known/oauth-authorization-server` | RFC 8414 |
//!
//! # Playing the browser
//!
//! A program that stands in for the user's browser needs no cookie and no script engine:
//!
//! 1. GET the authorization link. The answer is 200 with one form, or 400 with a page that says
//!    what is wrong, or a 303 back to the client with `error`.
//! 2. Take the value of `<input type="hidden" name="csrf" value="…">`. It needs no unescaping
//!    (digits, a dot and hexadecimal digits). The other hidden fields repeat the link's own
//!    parameters under their names (`response_type`, `client_id`, `redirect_uri`, `scope`, `state`,
//!    `code_challenge`, `code_challenge_method`), HTML-escaped.
//! 3. POST the link's parameters and `csrf` as `application/x-www-form-urlencoded` to the link's
//!    path, with `decision=allow` or `decision=deny` and, if wanted, `user=NAME` ([`DEFAULT_USER`]
//!    where absent). The answer is a 303 to the client's redirect URI.
//!
//! `csrf` fits one set of parameters and ten minutes.
//!
//! # What is on disk
//!
//! With a state file, every change is on disk before its answer goes out, so that a client never
//! holds a token that a restart forgets. Token values are stored as SHA-256 hashes: the demo's
//! tokens would do no harm in clear, but hashes cost nothing, and so no file of the demo holds a
//! token. The file says who allowed what (names and scopes) in clear.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::response::Response;
use axum::routing::{get, post};
use http::{HeaderMap, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use url::Url;

use self::authorize::PageSeal;
use self::faults::Faults;
use self::state::{Exchange, Moment, Records, Refresh};
use self::wire::{Params, Refusal};
use crate::domain::provider::RevocationReach;

mod authorize;
mod endpoints;
mod faults;
mod ledger;
mod page;
mod state;
mod wire;

pub use self::faults::{PauseGuard, ScriptedAnswer, ScriptedEndpoint};
pub use self::ledger::Ledger;

/// The user if the authorization form names none.
pub const DEFAULT_USER: &str = "demo-user";

/// A clock: milliseconds since 1970-01-01T00:00:00Z.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// A source of random bytes. It fills the whole slice.
pub type Random = Arc<dyn Fn(&mut [u8]) + Send + Sync>;

/// More than any form of this protocol needs; a larger body is answered with 413.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// The settings of the demo provider: its one client, its address, its clock and its randomness.
#[derive(Clone)]
pub struct Settings {
    /// The client's id.
    pub client_id: String,
    /// The client's secret; the client is confidential (RFC 6749 section 2.1).
    pub client_secret: String,
    /// The client's redirect URIs, compared as texts (RFC 9700 section 2.1).
    pub redirect_uris: Vec<String>,
    /// The time for which an access token works; whole seconds reach the client as `expires_in`.
    pub access_token_lifetime: Duration,
    /// For how long after its first use a refresh token works again, as long as nothing that came
    /// of it has been used. Zero: it works once.
    pub refresh_grace: Duration,
    /// The tokens that a revocation ends beside the one that it names.
    pub revocation_reach: RevocationReach,
    /// The file that the state survives a restart in; `None` keeps it in memory.
    pub state_file: Option<PathBuf>,
    /// The issuer identifier (RFC 8414 section 2): the base of every endpoint, without a path.
    pub issuer: String,
    /// The clock. Expiry is wall-clock time, because it must outlive the process.
    pub clock: Clock,
    /// The source of tokens, codes and the pages' key.
    pub random: Random,
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("client_id", &self.client_id)
            .field("redirect_uris", &self.redirect_uris)
            .field("access_token_lifetime", &self.access_token_lifetime)
            .field("refresh_grace", &self.refresh_grace)
            .field("state_file", &self.state_file)
            .field("issuer", &self.issuer)
            .finish_non_exhaustive()
    }
}

/// Why a demo provider could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// A redirect URI is no absolute URL, or has a fragment (RFC 6749 section 3.1.2).
    #[error("the redirect URI {0:?} is no absolute URL without a fragment")]
    RedirectUri(String),
    /// The state file exists and cannot be read.
    #[error("cannot read the demo provider's state in {}", .path.display())]
    Read {
        /// The state file.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// The state file is no state of this version.
    #[error("{} holds no state of the demo provider; remove it to start afresh", .path.display())]
    Damaged {
        /// The state file.
        path: PathBuf,
        /// The error and its place.
        source: serde_json::Error,
    },
}

/// The tokens of a grant. No `Debug`: values stay out of logs.
pub struct Granted {
    /// The access token.
    pub access_token: String,
    /// The refresh token.
    pub refresh_token: String,
}

/// A handle on the demo provider; clones share everything.
#[derive(Clone)]
pub struct DemoProvider {
    inner: Arc<Inner>,
}

struct Inner {
    settings: Settings,
    seal: PageSeal,
    records: Mutex<Records>,
    faults: Arc<Faults>,
}

impl fmt::Debug for DemoProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DemoProvider")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl DemoProvider {
    /// Makes a provider, with what its state file holds if there is one.
    ///
    /// # Errors
    ///
    /// [`SetupError`] where a redirect URI is none or the state file cannot be used.
    pub fn new(settings: Settings) -> Result<Self, SetupError> {
        for uri in &settings.redirect_uris {
            if !Url::parse(uri).is_ok_and(|url| url.fragment().is_none()) {
                return Err(SetupError::RedirectUri(uri.clone()));
            }
        }
        let records = match &settings.state_file {
            Some(path) => Records::load(path)?,
            None => Records::default(),
        };
        let seal = PageSeal::new(&*settings.random);
        let inner = Inner {
            settings,
            seal,
            records: Mutex::new(records),
            faults: Arc::new(Faults::default()),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The provider's endpoints.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/authorize", get(endpoints::ask).post(endpoints::decide))
            .route("/token", post(endpoints::token))
            .route("/revoke", post(endpoints::revoke))
            .route("/userinfo", get(endpoints::userinfo))
            .route("/.well-known/oauth-authorization-server", get(endpoints::metadata))
            .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
            .with_state(self.clone())
    }

    /// Serves plain HTTP until `shutdown` ends, then answers the calls in flight. A paused call
    /// is in flight.
    ///
    /// # Errors
    ///
    /// Errors of the listener.
    pub async fn serve(
        self,
        listener: TcpListener,
        shutdown: impl Future<Output = ()> + Send + 'static,
    ) -> io::Result<()> {
        axum::serve(listener, self.router()).with_graceful_shutdown(shutdown).await
    }

    /// Returns the counts since the start, and the present number of tokens.
    #[must_use]
    pub fn ledger(&self) -> Ledger {
        let now = self.inner.now();
        let mut ledger = self.inner.records().snapshot(now);
        ledger.overlaps = self.inner.faults.overlaps();
        ledger
    }

    /// Returns `true` if this access or refresh token works now.
    #[must_use]
    pub fn is_living(&self, token: &str) -> bool {
        let now = self.inner.now();
        self.inner.records().is_living(token, now)
    }

    /// Issues the tokens that a user of this name would get by the whole flow. For tests.
    ///
    /// # Errors
    ///
    /// Where the scopes are none, or the state file cannot be written.
    pub async fn grant(&self, login: &str, scopes: &str) -> io::Result<Granted> {
        let scopes = wire::scopes(scopes).map_err(|refusal| io::Error::other(refusal.error))?;
        let (client_id, login) = (self.inner.settings.client_id.clone(), login.to_owned());
        let granting =
            self.change(move |records, moment| records.grant(client_id, login, scopes, moment));
        let issued = granting.await.map_err(|refusal| io::Error::other(refusal.description))?;
        Ok(Granted { access_token: issued.access_token, refresh_token: issued.refresh_token })
    }

    /// Ends the time of every living access token, as if their lifetime had passed. For tests;
    /// the state file learns of it with the next change.
    pub fn expire_access_tokens(&self) {
        let now = self.inner.now();
        self.inner.records().expire_access_tokens(now);
    }

    /// Gives the next call of `endpoint` that has no script yet this answer. Calls take their
    /// scripts in the order in which they arrive, before a pause holds them.
    pub fn script(&self, endpoint: ScriptedEndpoint, answer: ScriptedAnswer) {
        self.inner.faults.script(endpoint, answer);
    }

    /// Takes back what was scripted and not answered yet.
    pub fn clear_scripts(&self) {
        self.inner.faults.clear_scripts();
    }

    /// Holds every token call, before anything of it is processed, until all guards are dropped.
    /// The calls count as arrived. One whose client goes away while it is held never happens.
    #[must_use = "the pause ends when the guard is dropped"]
    pub fn pause_token_endpoint(&self) -> PauseGuard {
        PauseGuard::new(Arc::clone(&self.inner.faults))
    }

    /// Waits until `n` token calls in all have arrived since this provider was made, paused and
    /// scripted ones included; the ledger has them then.
    pub async fn wait_for_token_calls(&self, n: usize) {
        self.inner.faults.wait_for_token_calls(n).await;
    }

    /// InvalidationListener the state, and has the change on disk before it returns.
    #[expect(
        clippy::disallowed_methods,
        reason = "syncing a file blocks, and the demo's broker runs on the same threads"
    )]
    async fn change<T, F>(&self, change: F) -> Result<T, Refusal>
    where
        T: Send + 'static,
        F: FnOnce(&mut Records, &Moment<'_>) -> T + Send + 'static,
    {
        let outcome = if self.inner.settings.state_file.is_some() {
            let inner = Arc::clone(&self.inner);
            tokio::task::spawn_blocking(move || inner.apply(change))
                .await
                .unwrap_or_else(|crash| Err(io::Error::other(crash)))
        } else {
            self.inner.apply(change)
        };
        outcome.map_err(|error| {
            tracing::error!(error.message = %error, "the demo provider cannot save its state");
            Refusal::SERVER_ERROR
        })
    }

    async fn issue(&self, headers: &HeaderMap, params: &Params) -> Result<Response, Refusal> {
        self.check_call(headers, params)?;
        let client_id = self.inner.settings.client_id.clone();
        let issued = match params.get("grant_type") {
            Some("authorization_code") => {
                let exchange = Exchange {
                    client_id,
                    code: params.required("code", "code is missing")?,
                    redirect_uri: params.required("redirect_uri", "redirect_uri is missing")?,
                    verifier: params.required("code_verifier", "code_verifier is missing")?,
                };
                self.change(move |records, moment| records.exchange(&exchange, moment)).await?
            }
            Some("refresh_token") => {
                let refresh = Refresh {
                    client_id,
                    token: params.required("refresh_token", "refresh_token is missing")?,
                    scopes: params.get("scope").map(wire::scopes).transpose()?,
                };
                self.change(move |records, moment| records.refresh(&refresh, moment)).await?
            }
            Some(_) => Err(Refusal::bad(
                "unsupported_grant_type",
                "grant_type is neither authorization_code nor refresh_token",
            )),
            None => Err(Refusal::invalid_request("grant_type is missing")),
        }?;
        Ok(wire::json(
            StatusCode::OK,
            &json!({
                "access_token": issued.access_token,
                "token_type": "Bearer",
                "expires_in": issued.expires_in,
                "refresh_token": issued.refresh_token,
                "scope": issued.scope,
            }),
        ))
    }

    async fn end(&self, headers: &HeaderMap, params: &Params) -> Result<Response, Refusal> {
        self.check_call(headers, params)?;
        let client_id = self.inner.settings.client_id.clone();
        let token = params.required("token", "token is missing")?;
        // token_type_hint is a help for servers that keep the kinds apart (RFC 7009 section 2.1).
        self.change(move |records, moment| records.revoke(&client_id, &token, moment)).await?;
        Ok(wire::empty_ok())
    }

    /// Checks what token and revocation calls have in common.
    fn check_call(&self, headers: &HeaderMap, params: &Params) -> Result<(), Refusal> {
        wire::require_form(headers)?;
        // RFC 6749 section 3.2.
        if params.repeated(&wire::CALL_PARAMS) {
            return Err(Refusal::invalid_request("a parameter is given more than once"));
        }
        wire::authenticate(&self.inner.settings, headers, params)
    }
}

impl Inner {
    fn now(&self) -> u64 {
        (self.settings.clock)()
    }

    /// A panic elsewhere leaves whole records behind: each change is made of infallible steps.
    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock is held while the file is written, so that the file never goes back in time.
    fn apply<T>(&self, change: impl FnOnce(&mut Records, &Moment<'_>) -> T) -> io::Result<T> {
        let millis = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let moment = Moment {
            now: self.now(),
            random: &*self.settings.random,
            access_token_ms: millis(self.settings.access_token_lifetime),
            refresh_grace_ms: millis(self.settings.refresh_grace),
            revocation_reach: self.settings.revocation_reach,
        };
        let mut records = self.records();
        let Some(path) = &self.settings.state_file else {
            return Ok(change(&mut records, &moment));
        };
        // On a copy: what could not be written has not happened, so memory and disk agree.
        let mut next = records.clone();
        let outcome = change(&mut next, &moment);
        next.save(path)?;
        *records = next;
        Ok(outcome)
    }
}
