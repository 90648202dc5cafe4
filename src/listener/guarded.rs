//! A connection of the gRPC listener, which ends if no valid credential comes in time.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::WaitForCancellationFutureOwned;
use tonic::transport::server::Connected;

use super::Place;
use super::connections::{RunningCall, UnreadResponse};
use crate::domain::name::Name;

/// The time for which a connection may stay without a valid credential. Health checks need none.
const CREDENTIAL_TIMEOUT: Duration = Duration::from_secs(60);

/// The time for which a peer may read none of its responses. A peer that reads nothing keeps them in memory.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The same without a valid credential.
const UNREAD_TIMEOUT_OF_STRANGERS: Duration = Duration::from_secs(5);

/// The interval at which that is looked at.
const UNREAD_CHECK: Duration = Duration::from_secs(1);

/// The number of calls without a credential, such as health checks, that one connection has at once.
const OPEN_CALLS: usize = 4;

/// A connection that ends with its [`Place`].
#[derive(Debug)]
pub struct Guarded<T> {
    inner: T,
    place: Arc<Place>,
    open_calls: Arc<Semaphore>,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    timeout: Pin<Box<Sleep>>,
    /// Wakes the connection while responses are unread.
    unread: Pin<Box<Sleep>>,
}

/// The connection of a request, in the request's extensions.
#[derive(Debug, Clone)]
pub struct PeerInfo(Arc<Place>, Arc<Semaphore>);

impl<T> Guarded<T> {
    /// Guards a connection.
    pub fn new(inner: T, place: Place) -> Self {
        let ended = Box::pin(place.ended());
        let timeout = Box::pin(tokio::time::sleep(CREDENTIAL_TIMEOUT));
        let open_calls = Arc::new(Semaphore::new(OPEN_CALLS));
        let unread = Box::pin(tokio::time::sleep(UNREAD_CHECK));
        Self { inner, place: Arc::new(place), open_calls, ended, timeout, unread }
    }

    /// Returns an error once the connection must end. Reads and writes check it: a peer that sends and never reads
    /// blocks the server in a write.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        let is_pending = self.place.is_pending();
        // An active one has polled `ended` while it was pending, and is woken by it.
        let is_over = self.place.is_ended()
            || is_pending
                && (self.ended.as_mut().poll(context).is_ready()
                    || !self.place.has_credential()
                        && self.timeout.as_mut().poll(context).is_ready());
        if is_over || self.is_unread(context, is_pending) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    /// Returns `true` if the peer has left its responses unread for too long.
    fn is_unread(&mut self, context: &mut Context<'_>, is_pending: bool) -> bool {
        let limit = if is_pending { UNREAD_TIMEOUT_OF_STRANGERS } else { UNREAD_TIMEOUT };
        while let Some(unread_for) = self.place.unread_for() {
            if unread_for >= limit {
                tracing::debug!(peer = %self.place.peer(), "the peer reads no response; closing");
                return true;
            }
            if self.unread.as_mut().poll(context).is_pending() {
                return false;
            }
            self.unread.as_mut().reset(tokio::time::Instant::now() + UNREAD_CHECK);
        }
        false
    }
}

impl PeerInfo {
    /// Returns the peer's address.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.0.peer()
    }

    /// The places of the connection's calls that need no credential.
    pub fn open_calls(&self) -> Arc<Semaphore> {
        Arc::clone(&self.1)
    }

    /// Keeps the connection: the peer has shown the valid credential of a bot.
    pub fn authenticated(&self, bot: &Name) {
        self.0.set_active(Some(bot));
    }

    /// Returns `true` if the peer has not read what was sent to it for a second.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.0.is_stalled()
    }

    /// Takes note that a call is under way.
    #[must_use]
    pub fn run(&self) -> RunningCall {
        self.0.run()
    }

    /// Takes note that the peer has yet to read a response.
    #[must_use]
    pub fn send(&self) -> UnreadResponse {
        self.0.send()
    }
}

impl<T> Connected for Guarded<T> {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        PeerInfo(Arc::clone(&self.place), Arc::clone(&self.open_calls))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Guarded<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Guarded<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.place.wrote(written.is_pending());
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, buffers);
        self.place.wrote(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(context)?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}
