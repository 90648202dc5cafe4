//! What lies between a broker and its provider: answers that come late, break off, or are something
//! else. Seeded, so that a run can be repeated.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::stream;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The longest that each part of a call takes, and how many calls of a hundred meet what.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Conditions {
    pub before: Duration,
    /// What every call takes besides.
    pub slow: Duration,
    pub after: Duration,
    /// The answer breaks off, after the provider has done its part.
    pub dropped: u32,
    /// No answer, and the provider does nothing.
    pub hung: u32,
    /// 503 instead of the provider's part.
    pub refused: u32,
    /// 502 after the provider has done its part.
    pub lost: u32,
    /// 429 instead of the provider's part.
    pub busy: u32,
    /// A page instead of the provider's answer, before it has done its part.
    pub garbage: u32,
    /// The same after it has.
    pub garbled: u32,
}

const PAGE: &str = "<html>Welcome</html>";

/// Fair unless a test decides otherwise.
pub struct Weather(Mutex<State>);

struct State {
    random: StdRng,
    token: Conditions,
    revoke: Conditions,
}

impl Default for Weather {
    fn default() -> Self {
        let (token, revoke) = (Conditions::default(), Conditions::default());
        Self(Mutex::new(State { random: StdRng::seed_from_u64(0), token, revoke }))
    }
}

#[derive(Clone, Copy)]
enum Fate {
    Fair,
    Dropped,
    Lost,
    Garbled,
    Hung,
    Instead(u16, &'static str),
}

impl Weather {
    /// What token calls meet from here on.
    pub fn set(&self, seed: u64, token: Conditions) {
        let mut state = self.state();
        state.random = StdRng::seed_from_u64(seed);
        state.token = token;
    }

    /// What revocation calls meet from here on.
    pub fn set_revoke(&self, revoke: Conditions) {
        self.state().revoke = revoke;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub async fn pass(&self, request: Request, next: Next) -> Response {
        let Some((fate, before, after)) = self.decide(request.uri().path()) else {
            return next.run(request).await;
        };
        tokio::time::sleep(before).await;
        let response = match fate {
            // Until the caller has had enough.
            Fate::Hung => std::future::pending().await,
            Fate::Instead(status, body) => {
                let status = StatusCode::from_u16(status).expect("a status");
                (status, body).into_response()
            }
            _ => next.run(request).await,
        };
        tokio::time::sleep(after).await;
        match fate {
            Fate::Dropped => {
                let broken = std::io::Error::other("broken off");
                Response::new(Body::from_stream(stream::iter([Err::<Vec<u8>, _>(broken)])))
            }
            Fate::Lost => StatusCode::BAD_GATEWAY.into_response(),
            Fate::Garbled => PAGE.into_response(),
            Fate::Fair | Fate::Instead(..) | Fate::Hung => response,
        }
    }

    fn decide(&self, path: &str) -> Option<(Fate, Duration, Duration)> {
        let state = &mut *self.state();
        let conditions = match path {
            "/token" => state.token,
            "/revoke" => state.revoke,
            _ => return None,
        };
        let mut drawn = state.random.random_range(0..100);
        let fates = [
            (conditions.dropped, Fate::Dropped),
            (conditions.lost, Fate::Lost),
            (conditions.garbled, Fate::Garbled),
            (conditions.hung, Fate::Hung),
            (conditions.refused, Fate::Instead(503, "")),
            (conditions.busy, Fate::Instead(429, "")),
            (conditions.garbage, Fate::Instead(200, PAGE)),
        ];
        let mut fate = Fate::Fair;
        for (share, candidate) in fates {
            if drawn < share {
                fate = candidate;
                break;
            }
            drawn -= share;
        }
        let mut up_to = |most: Duration| most.mul_f64(state.random.random::<f64>());
        Some((fate, conditions.slow + up_to(conditions.before), up_to(conditions.after)))
    }
}
