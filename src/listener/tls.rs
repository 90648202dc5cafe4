//! TLS of a listener, with certificates that are replaced without a restart.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;

use zeroize::Zeroizing;

use super::Place;
use crate::crypto::sealed::length_prefixed;

/// The time that a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The interval at which the files are read again.
const RELOAD: Duration = Duration::from_secs(10);

/// The files of a listener's TLS, in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The listener's certificate, and those between it and its CA.
    pub certificate: PathBuf,
    /// The key of the certificate.
    pub key: PathBuf,
    /// CAs of client certificates. With it, clients are asked for a certificate, which must then be valid.
    pub client_ca: Option<PathBuf>,
}

/// The application protocol that a listener negotiates (ALPN).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC.
    Http2,
    /// Browsers.
    Http1,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds nothing of its kind.
    #[error("{path}: {reason}")]
    File {
        /// The file.
        path: String,
        /// The reason.
        reason: String,
    },
    /// The key is not that of the certificate, or neither can be used.
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(String),
}

/// The TLS of one listener.
pub struct Tls {
    files: TlsFiles,
    protocol: Protocol,
    current: RwLock<Current>,
}

struct Current {
    /// Of the files' contents, to see that they have changed.
    digest: [u8; 32],
    config: Arc<ServerConfig>,
}

/// A connection with or without TLS.
pub type MaybeTls = Either<TcpStream, TlsStream<TcpStream>>;

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if they cannot be used.
    pub fn load(files: TlsFiles, protocol: Protocol) -> Result<Self, TlsError> {
        let contents = files.read()?;
        let config = Arc::new(config(&files, &contents, protocol)?);
        let current = Current { digest: digest(&contents), config };
        Ok(Self { files, protocol, current: RwLock::new(current) })
    }

    /// Reads the files again. Returns `true` if they have changed, and are used from now on.
    ///
    /// # Errors
    ///
    /// [`TlsError`] if they cannot be used. Then the earlier ones stay.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let contents = self.files.read()?;
        let digest = digest(&contents);
        if self.current.read().unwrap_or_else(PoisonError::into_inner).digest == digest {
            return Ok(false);
        }
        let config = Arc::new(config(&self.files, &contents, self.protocol)?);
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Current { digest, config };
        Ok(true)
    }

    /// Replaces certificates when their files change, until `stopping`.
    pub async fn watch(&self, stopping: CancellationToken) {
        let mut last_error = None;
        loop {
            tokio::select! {
                () = tokio::time::sleep(RELOAD) => {}
                () = stopping.cancelled() => return,
            }
            let path = self.files.certificate.display();
            match self.reload() {
                Ok(changed) => {
                    if changed {
                        tracing::info!(certificate = %path, "TLS certificate replaced");
                    }
                    last_error = None;
                }
                Err(error) => {
                    let error = error.to_string();
                    if last_error.as_ref() != Some(&error) {
                        tracing::error!(
                            error,
                            "cannot replace the TLS certificate; the earlier one stays in use"
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
            tracing::debug!(%error, peer = %place.peer(), "TLS handshake failed");
            None
        }
        Err(_) => None,
    }
}

impl TlsFiles {
    fn read(&self) -> Result<Vec<Zeroizing<Vec<u8>>>, TlsError> {
        let paths = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        let read = |path: &PathBuf| {
            std::fs::read(path).map(Zeroizing::new).map_err(|error| wrong(path, &error))
        };
        paths.into_iter().flatten().map(read).collect()
    }
}

fn digest(contents: &[Zeroizing<Vec<u8>>]) -> [u8; 32] {
    let framed = length_prefixed(contents.iter().map(|content| content.as_slice()));
    Sha256::digest(Zeroizing::new(framed).as_slice()).into()
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("files", &self.files).finish_non_exhaustive()
    }
}

fn wrong(path: &Path, reason: &impl ToString) -> TlsError {
    TlsError::File { path: path.display().to_string(), reason: reason.to_string() }
}

fn config(
    files: &TlsFiles,
    contents: &[Zeroizing<Vec<u8>>],
    protocol: Protocol,
) -> Result<ServerConfig, TlsError> {
    let certificates = certificates(&files.certificate, &contents[0])?;
    let key =
        PrivateKeyDer::from_pem_slice(&contents[1]).map_err(|error| wrong(&files.key, &error))?;
    let unusable = |error: rustls::Error| TlsError::Unusable(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(unusable)?;
    let builder = match &files.client_ca {
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for ca in self::certificates(path, &contents[2])? {
                roots.add(ca).map_err(|error| wrong(path, &error))?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|error| wrong(path, &error))?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_single_cert(certificates, key).map_err(unusable)?;
    config.alpn_protocols = vec![match protocol {
        Protocol::Http2 => b"h2".to_vec(),
        Protocol::Http1 => b"http/1.1".to_vec(),
    }];
    Ok(config)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let found = found.map_err(|error| wrong(path, &error))?;
    if found.is_empty() {
        return Err(wrong(path, &"has no certificate in PEM"));
    }
    Ok(found)
}
