//! Decides on a call by its headers, before any of its message is read: strangers must not make the broker allocate.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::body::TimedBody;
use super::call::Method;
use super::service::{Admitted, Service};
use crate::listener::PeerInfo;

/// The time that a caller may take to send its message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The service behind its admission.
#[derive(Debug, Clone)]
pub(super) struct Admission<S> {
    inner: S,
    service: Arc<Service>,
}

/// An admitted call on its way to its method, in the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Handover(Arc<Mutex<Option<(Admitted, OwnedSemaphorePermit)>>>);

impl Handover {
    /// Takes the call out. Its message has been read, so another one may be.
    pub(super) fn take(&self) -> Option<Admitted> {
        let taken = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.map(|(admitted, _reading)| admitted)
    }
}

impl<S> Admission<S> {
    pub(super) fn new(inner: S, service: Arc<Service>) -> Self {
        Self { inner, service }
    }
}

impl<S: NamedService> NamedService for Admission<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> tower::Service<http::Request<Body>> for Admission<S>
where
    S: tower::Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = Either<Ready<Result<S::Response, Infallible>>, S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let name = request.uri().path().rsplit('/').next().unwrap_or_default();
        let Some(method) = Method::named(name) else {
            let status = Status::unimplemented("the service has no such method");
            return Either::Left(ready(Ok(status.into_http())));
        };
        // Also if the call is refused for another reason: the connection is a bot's.
        let authenticated = || {
            if let Some(peer) = request.extensions().get::<PeerInfo>() {
                peer.authenticated();
            }
        };
        match self.service.admit(method, request.headers(), authenticated) {
            Ok(admitted) => {
                let handover = Handover(Arc::new(Mutex::new(Some(admitted))));
                request.extensions_mut().insert(handover);
                let request = request.map(|body| Body::new(TimedBody::new(body, MESSAGE_TIMEOUT)));
                Either::Right(self.inner.call(request))
            }
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}
