//! Accepts connections, and bounds how many of them strangers can keep open.
//!
//! All listeners use this: browsers' (`http`), bots' (`grpc`) and the platform's (`http::ops_router`). A connection is
//! *pending* until it shows a reason to be kept: over HTTP a complete request that is being answered, over gRPC a
//! valid credential. Pending connections have little time and few places. If the places are taken, the connection
//! that has been pending longest gives way to the new one, so that slow strangers cannot keep anyone out.

mod connections;
mod descriptors;
mod guarded;
pub mod http1;
mod peer_rate;
mod tls;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, stream};
use rustix::net::sockopt::set_tcp_user_timeout;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

pub use self::connections::{ConnectionLimits, Place, RunningCall, UnreadResponse};
pub use self::descriptors::{DEFAULT_RATE, LEAST_DESCRIPTORS, ListenerLimits, raise_limit};
pub use self::guarded::{Guarded, PeerInfo};
pub use self::tls::{MaybeTls, Protocol, Tls, TlsError, TlsFiles, Validity, machine_time};

use self::connections::Connections;

/// The number of connections that wait for the gRPC server to take them.
const READY: usize = 16;

/// The time for which a peer may leave what was sent to it unread, in milliseconds. Then the system ends the connection.
const WRITE_TIMEOUT_MS: u32 = 30_000;

/// The time that the listener waits after the system could not accept a connection.
const BACK_OFF: Duration = Duration::from_millis(100);

/// A bound socket with its limits.
#[derive(Debug)]
pub struct Listener {
    inner: TcpListener,
    name: &'static str,
    connections: Arc<Connections>,
    tls: Option<Arc<Tls>>,
    /// The last attempt failed, and that was logged.
    is_failing: bool,
}

impl Listener {
    /// Limits the connections of a socket. `name` appears in logs.
    #[must_use]
    pub fn new(inner: TcpListener, name: &'static str, limits: ConnectionLimits) -> Self {
        let connections = Connections::new(name, limits);
        Self { inner, name, connections, tls: None, is_failing: false }
    }

    /// Has the socket speak TLS.
    #[must_use]
    pub fn with_tls(mut self, tls: Option<Arc<Tls>>) -> Self {
        self.tls = tls;
        self
    }

    /// Turns the socket into the connections of the gRPC server. TLS handshakes do not wait for one another.
    pub fn incoming(mut self) -> impl Stream<Item = io::Result<Guarded<MaybeTls>>> {
        let Some(tls) = self.tls.clone() else {
            // Straight from the socket: a connection that was accepted and not taken by the server would be reset.
            return stream::unfold(self, |mut listener| async {
                let (stream, place) = listener.accept().await;
                Some((Ok(Guarded::new(MaybeTls::Left(stream), place)), listener))
            })
            .left_stream();
        };
        let (ready, incoming) = mpsc::channel(READY);
        tokio::spawn(async move {
            loop {
                let (stream, place) = tokio::select! {
                    accepted = self.accept() => accepted,
                    // The server takes no more.
                    () = ready.closed() => return,
                };
                let (tls, ready) = (Arc::clone(&tls), ready.clone());
                tokio::spawn(async move {
                    if let Some(stream) = tls::secure(Some(&*tls), stream, &place).await {
                        drop(ready.send(Ok(Guarded::new(stream, place))).await);
                    }
                });
            }
        });
        ReceiverStream::new(incoming).right_stream()
    }

    /// Returns the address that the socket is bound to.
    ///
    /// # Errors
    ///
    /// [`io::Error`] of the system.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    /// Returns the next connection, with `TCP_NODELAY` set. Connections beyond the limits are closed.
    ///
    /// It never fails: without free file descriptors or memory it waits, and logs that once.
    pub async fn accept(&mut self) -> (TcpStream, Place) {
        loop {
            match self.inner.accept().await {
                Ok((stream, peer)) => {
                    if self.is_failing {
                        self.is_failing = false;
                        tracing::info!(listener = self.name, "accepting connections again");
                    }
                    // Nagle's algorithm and the peer's delayed ACK add 40 ms to a response.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
                    }
                    if let Err(error) = set_tcp_user_timeout(&stream, WRITE_TIMEOUT_MS) {
                        tracing::debug!(%error, "cannot set TCP_USER_TIMEOUT");
                    }
                    if let Some(place) = self.connections.admit(peer) {
                        return (stream, place);
                    }
                }
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    if !self.is_failing {
                        self.is_failing = true;
                        tracing::error!(
                            listener = self.name,
                            %error,
                            "cannot accept connections; raise the limit of open files if this lasts"
                        );
                    }
                    tokio::time::sleep(BACK_OFF).await;
                }
            }
        }
    }

    /// The connections of this socket, to close the pending ones at the end.
    #[must_use]
    pub fn connections(&self) -> Arc<Connections> {
        Arc::clone(&self.connections)
    }
}

/// The peer gave up before its connection was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
    )
}
