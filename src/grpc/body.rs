//! Bodies with a bound: a request that must arrive in time, and a response that holds a place.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use crate::listener::UnreadResponse;

/// A request's body that must end in time.
#[derive(Debug)]
pub(super) struct TimedBody {
    inner: Body,
    timeout: Duration,
    /// Begins with the first wait: most messages come with their headers.
    timer: Option<Pin<Box<Sleep>>>,
}

impl TimedBody {
    pub(super) fn new(inner: Body, timeout: Duration) -> Self {
        Self { inner, timeout, timer: None }
    }
}

impl http_body::Body for TimedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        let timeout = self.timeout;
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        ready!(timer.as_mut().poll(context));
        let late = format!("the message did not arrive within {} s", timeout.as_secs());
        Poll::Ready(Some(Err(Status::deadline_exceeded(late))))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The largest part of a response, in bytes, so that a peer that reads slowly shows progress.
const PART: usize = 16 * 1024;

/// A response's body that holds places until it ends. It has no `Debug`, which would show tokens.
pub(super) struct PlacedBody<P> {
    inner: Body,
    /// The rest of a large part.
    rest: Bytes,
    unread: Option<UnreadResponse>,
    _places: P,
}

impl<P> PlacedBody<P> {
    pub(super) fn new(inner: Body, unread: Option<UnreadResponse>, places: P) -> Self {
        Self { inner, rest: Bytes::new(), unread, _places: places }
    }
}

impl<P: Unpin> http_body::Body for PlacedBody<P> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(unread) = &self.unread {
            unread.progress();
        }
        if self.rest.is_empty() {
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            let Some(Ok(frame)) = frame else { return Poll::Ready(frame) };
            match frame.into_data() {
                Ok(data) => self.rest = data,
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let length = self.rest.len().min(PART);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let inner = self.inner.size_hint();
        let rest = self.rest.len() as u64;
        let mut hint = SizeHint::new();
        hint.set_lower(inner.lower() + rest);
        if let Some(upper) = inner.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}
