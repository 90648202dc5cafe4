//! Decides on a call by its headers, before any of its message is read: strangers must not make the broker allocate.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, Ready, ready};
use pin_project_lite::pin_project;
use tokio::sync::OwnedSemaphorePermit;
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;

use super::body::{PlacedBody, TimedBody};
use super::call::Method;
use super::caller::BotCaller;
use super::error::CallError;
use super::service::{Admitted, Service, refused};
use super::status::reason_of;
use crate::broker::BrokerError;
use crate::domain::name::Name;
use crate::listener::{PeerInfo, RunningCall};

/// The time that a caller may take to send its message.
const MESSAGE_TIMEOUT: Duration = Duration::from_secs(10);

/// The reason in metrics of a call whose message did not arrive whole, in time and in order.
const UNREADABLE: &str = "UNREADABLE";

/// The service behind its admission.
#[derive(Debug, Clone)]
pub(super) struct Admission<S> {
    inner: S,
    service: Arc<Service>,
}

/// An admitted call on its way to its method, in the request's extensions.
#[derive(Debug, Clone)]
pub(super) struct Handover {
    admitted: Arc<Mutex<Option<(Admitted, OwnedSemaphorePermit)>>>,
    peer: Option<PeerInfo>,
}

impl Handover {
    /// Takes the call out, which runs from now on. Its message has been read, so another one may be.
    pub(super) fn take(&self) -> Option<(Admitted, Option<RunningCall>)> {
        let (admitted, _reading) = self.lock().take()?;
        Some((admitted, self.peer.as_ref().map(PeerInfo::run)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Admitted, OwnedSemaphorePermit)>> {
        self.admitted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

pin_project! {
    /// A call that has yet to be answered.
    #[derive(Debug)]
    pub(super) struct Answering<F> {
        #[pin]
        inner: F,
        handover: Handover,
        caller: Arc<BotCaller>,
        method: Method,
    }
}

impl<F> Future for Answering<F>
where
    F: Future<Output = Result<http::Response<Body>, Infallible>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let Ok(response) = std::task::ready!(this.inner.poll(context));
        if this.handover.lock().take().is_some() {
            this.caller.count(*this.method, Some(UNREADABLE));
        }
        if this.method.is_stream {
            return Poll::Ready(Ok(response));
        }
        // A bot that reads none of its responses must not fill the memory with them.
        let Some(place) = this.caller.unread_place(*this.method) else {
            let status = refused(CallError::Broker(BrokerError::Overloaded));
            return Poll::Ready(Ok(status.into_http()));
        };
        let unread = this.handover.peer.as_ref().map(PeerInfo::send);
        let response = response.map(|body| Body::new(PlacedBody::new(body, unread, place)));
        Poll::Ready(Ok(response))
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
    type Future = Either<Ready<Result<S::Response, Infallible>>, Answering<S::Future>>;

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
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let authenticated = |bot: &Name| {
            if let Some(peer) = &peer {
                peer.authenticated(bot);
            }
        };
        let admitted = self.service.admit(method, request.headers(), authenticated);
        let admitted = match admitted {
            Ok((admitted, _)) if peer.as_ref().is_some_and(PeerInfo::is_stalled) => {
                let error = CallError::Broker(BrokerError::Overloaded);
                admitted.caller().count(method, Some(reason_of(&error)));
                Err(refused(error))
            }
            admitted => admitted,
        };
        match admitted {
            Ok((admitted, reading)) => {
                let caller = admitted.caller();
                let admitted = Arc::new(Mutex::new(Some((admitted, reading))));
                let handover = Handover { admitted, peer };
                request.extensions_mut().insert(handover.clone());
                let request = request.map(|body| Body::new(TimedBody::new(body, MESSAGE_TIMEOUT)));
                let inner = self.inner.call(request);
                Either::Right(Answering { inner, handover, caller, method })
            }
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
        }
    }
}
