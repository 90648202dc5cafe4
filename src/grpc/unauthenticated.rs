//! Services without a credential: health and reflection. Strangers can call them, so they have a few places only.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::Semaphore;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::body::{PlacedBody, TimedBody};
use crate::listener::PeerInfo;

/// A service without authentication, for a few calls at once.
#[derive(Debug, Clone)]
pub(super) struct Unauthenticated<S> {
    inner: S,
    places: Arc<Semaphore>,
    /// Places of streams, which last: they must not keep checks out.
    streams: Arc<Semaphore>,
    /// The time that a caller may take to send its messages.
    timeout: Duration,
}

impl<S> Unauthenticated<S> {
    pub(super) fn new(inner: S, places: usize, timeout: Duration) -> Self {
        let semaphore = || Arc::new(Semaphore::new(places));
        Self { inner, places: semaphore(), streams: semaphore(), timeout }
    }
}

impl<S: NamedService> NamedService for Unauthenticated<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<Body>> for Unauthenticated<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        // One connection must not take all places.
        let of_connection = match request.extensions().get::<PeerInfo>() {
            Some(peer) => peer.open_calls().try_acquire_owned().map(Some),
            None => Ok(None),
        };
        let is_stream = !request.uri().path().ends_with("/Check");
        let places = if is_stream { &self.streams } else { &self.places };
        let (Ok(of_connection), Ok(place)) =
            (of_connection, Arc::clone(places).try_acquire_owned())
        else {
            let status = Status::resource_exhausted("too many calls without a credential");
            return futures::future::ready(Ok(status.into_http())).boxed();
        };
        // A stream stays open without anything to read.
        let peer = request.extensions().get::<PeerInfo>().filter(|_| !is_stream).cloned();
        let request = request.map(|body| Body::new(TimedBody::new(body, self.timeout)));
        let response = self.inner.call(request);
        async move {
            let response = response.await?;
            let unread = peer.map(|peer| peer.send());
            let places = (place, of_connection);
            Ok(response.map(|body| Body::new(PlacedBody::new(body, unread, places))))
        }
        .boxed()
    }
}
