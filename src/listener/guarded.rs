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

/// The time for which a connection may stay without a valid credential. Health checks need none.
const CREDENTIAL_TIMEOUT: Duration = Duration::from_secs(60);

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
        Self { inner, place: Arc::new(place), open_calls, ended, timeout }
    }

    /// Returns an error once the connection must end. Reads and writes check it: a peer that sends and never reads
    /// blocks the server in a write.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if !self.place.is_pending() {
            return Ok(());
        }
        let is_over = self.ended.as_mut().poll(context).is_ready()
            || self.timeout.as_mut().poll(context).is_ready();
        if is_over { Err(io::ErrorKind::ConnectionAborted.into()) } else { Ok(()) }
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

    /// Keeps the connection: the peer has shown a valid credential.
    pub fn authenticated(&self) {
        self.0.set_active();
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
        Pin::new(&mut self.inner).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(context)?;
        Pin::new(&mut self.inner).poll_write_vectored(context, buffers)
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
