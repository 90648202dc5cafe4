//! TLS of a listener, with certificates that are replaced without a restart.

mod files;

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rustls::ServerConfig;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

pub use self::files::{TlsError, TlsFiles, Validity, machine_time};

use super::Place;

/// The time that a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The interval at which the files are read again.
const RELOAD: Duration = Duration::from_secs(10);

/// The time between two log lines about handshakes that failed.
const QUIET: Duration = Duration::from_secs(10);

/// The application protocol that a listener negotiates (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Http2,
    /// Browsers.
    Http1,
}

/// The TLS of one listener.
pub struct Tls {
    /// The section of the configuration, such as `grpc.tls`.
    section: &'static str,
    files: TlsFiles,
    protocol: Protocol,
    current: RwLock<Current>,
    failures: Failures,
}

struct Current {
    /// Of the files' contents, to see that they have changed.
    digest: [u8; 32],
    config: Arc<ServerConfig>,
    validity: Validity,
}

/// A connection with or without TLS.
pub type MaybeTls = Either<TcpStream, TlsStream<TcpStream>>;

impl Tls {
    /// Reads the files that `section` of the configuration names. An expired certificate is used: its clients report
    /// it, and the other listeners keep working.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if they cannot be used.
    pub fn load(
        section: &'static str,
        files: TlsFiles,
        protocol: Protocol,
    ) -> Result<Self, TlsError> {
        let current = Current::of(files.read(section)?.load(protocol)?);
        let failures = Failures::new();
        Ok(Self { section, files, protocol, current: RwLock::new(current), failures })
    }

    /// The time in which the certificate in use is valid.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.current.read().unwrap_or_else(PoisonError::into_inner).validity
    }

    /// Reads the files again. Returns `true` if they have changed, and are used from now on.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if they cannot be used, if every user can write one of them, or if the new certificate is not valid
    /// now. Then the earlier ones stay.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let contents = self.files.read(self.section)?;
        if self.current.read().unwrap_or_else(PoisonError::into_inner).digest == contents.digest() {
            return Ok(false);
        }
        self.files.check_modes(self.section)?;
        let loaded = contents.load(self.protocol)?;
        if let Some(wrong) = loaded.validity.wrong(machine_time()) {
            return Err(contents.certificate_error(wrong));
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current::of(loaded);
        Ok(true)
    }

    /// Replaces certificates when their files change, and logs when one is about to expire, until `stopping`.
    pub async fn watch(&self, stopping: CancellationToken) {
        let section = self.section;
        let mut last_error = None;
        let mut last_warning = None;
        loop {
            let warning = self.validity().warning(machine_time());
            if let Some(warning) = warning.as_ref().filter(|_| warning != last_warning) {
                tracing::warn!(section, "the TLS certificate {warning}");
            }
            last_warning = warning;
            tokio::select! {
                () = tokio::time::sleep(RELOAD) => {}
                () = stopping.cancelled() => return,
            }
            match self.reload() {
                Ok(changed) => {
                    if changed {
                        let not_after = self.validity().not_after();
                        tracing::info!(section, not_after, "TLS files replaced");
                    }
                    last_error = None;
                }
                Err(error) => {
                    let error = error.to_string();
                    if last_error.as_ref() != Some(&error) {
                        tracing::error!(
                            error,
                            "cannot replace the TLS files; the earlier ones stay in use"
                        );
                    }
                    last_error = Some(error);
                }
            }
        }
    }

    fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner).config)
    }

    async fn accept(&self, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        TlsAcceptor::from(self.config()).accept(stream).await
    }

    /// Logs a failed handshake, at most one in ten seconds. Load balancers that only connect are no failures.
    fn failed(&self, error: &io::Error, place: &Place) {
        let is_of_tls = error.get_ref().is_some_and(|inner| inner.is::<rustls::Error>());
        if !is_of_tls {
            tracing::debug!(%error, peer = %place.peer(), "TLS handshake ended");
        } else if let Some(unlogged) = self.failures.count() {
            tracing::info!(
                section = self.section,
                peer = %place.peer(),
                unlogged,
                %error,
                "TLS handshake failed"
            );
        }
    }
}

impl Current {
    fn of(loaded: files::Loaded) -> Self {
        let files::Loaded { digest, config, validity } = loaded;
        Self { digest, config: Arc::new(config), validity }
    }
}

/// Decides which failed handshakes are logged.
struct Failures {
    start: Instant,
    /// The second, counted from `start`, from which on the next one is logged.
    next: AtomicU64,
    unlogged: AtomicU64,
}

impl Failures {
    fn new() -> Self {
        Self { start: Instant::now(), next: AtomicU64::new(0), unlogged: AtomicU64::new(0) }
    }

    /// Returns the number of failures that were not logged since the last log line, if this one is due for one.
    fn count(&self) -> Option<u64> {
        let now = self.start.elapsed().as_secs();
        let next = self.next.load(Ordering::Relaxed);
        let after = now + QUIET.as_secs();
        let is_due = now >= next
            && self
                .next
                .compare_exchange(next, after, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok();
        if is_due {
            return Some(self.unlogged.swap(0, Ordering::Relaxed));
        }
        self.unlogged.fetch_add(1, Ordering::Relaxed);
        None
    }
}

/// Does the handshake of a connection if its listener has TLS. Returns `None` if it fails, takes too long, or if the
/// connection must end.
pub(super) async fn secure(
    tls: Option<&Tls>,
    stream: TcpStream,
    place: &Place,
) -> Option<MaybeTls> {
    let Some(tls) = tls else { return Some(Either::Left(stream)) };
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
    let result = tokio::select! {
        result = handshake => result,
        () = place.ended() => return None,
    };
    match result {
        Ok(Ok(stream)) => Some(Either::Right(stream)),
        Ok(Err(error)) => {
            tls.failed(&error, place);
            None
        }
        Err(_) => None,
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_failures_one_is_logged() {
        let failures = Failures::new();
        assert_eq!(failures.count(), Some(0));
        assert_eq!((failures.count(), failures.count()), (None, None));
        failures.next.store(0, Ordering::Relaxed);
        assert_eq!(failures.count(), Some(2));
    }
}
