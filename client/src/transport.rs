//! The channel as this client uses it: a request that met a connection on its way out is sent again, and
//! every other failure has the code that callers act on.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use http::Request;
use http_body_util::{BodyExt, Full};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::transport::Channel;

/// The number of times that a request is sent which no server has taken, each time on a new connection.
const ATTEMPTS: usize = 4;

/// A channel to the broker. Cheap to clone.
///
/// Servers end connections that have become old ([RFC 9113 section 6.8]). A request that is sent at that
/// moment has not been taken, and the server has said so; it is sent again, as gRPC calls a transparent
/// retry. tonic does none.
///
/// [RFC 9113 section 6.8]: https://www.rfc-editor.org/rfc/rfc9113#section-6.8
#[derive(Debug, Clone)]
pub struct Transport(Channel);

impl Transport {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for Transport {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        self.0.poll_ready(context).map_err(failed)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The clone has not been asked whether it is ready.
        let clone = self.0.clone();
        let mut channel = std::mem::replace(&mut self.0, clone);
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            // A request of this contract is one message, of at most some KiB.
            let body = Full::new(body.collect().await?.to_bytes());
            let request = Request::from_parts(parts, body);
            for _ in 1..ATTEMPTS {
                match channel.call(request.clone().map(Body::new)).await {
                    Err(error) if was_not_taken(&error) => {
                        std::future::poll_fn(|context| channel.poll_ready(context))
                            .await
                            .map_err(failed)?;
                    }
                    ended => return ended.map_err(failed),
                }
            }
            channel.call(request.map(Body::new)).await.map_err(failed)
        })
    }
}

/// Returns `true` if the request was not sent, or the server has said that it is going and did not take it.
fn was_not_taken(error: &tonic::transport::Error) -> bool {
    let mut cause: Option<&dyn Error> = Some(error);
    while let Some(error) = cause {
        let unsent = error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled);
        let going = |error: &h2::Error| {
            error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR)
        };
        if unsent || error.downcast_ref::<h2::Error>().is_some_and(going) {
            return true;
        }
        cause = error.source();
    }
    false
}

/// To its caller, a call that was not taken met a server that is away for a moment, and no cancellation of
/// its own.
fn failed(error: tonic::transport::Error) -> Status {
    if was_not_taken(&error) {
        return Status::unavailable("the connection ended before the call was taken");
    }
    Status::from_error(Box::new(error))
}
