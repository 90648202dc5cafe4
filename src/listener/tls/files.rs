//! The files of a listener's TLS: read, checked and turned into a configuration of rustls.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Protocol;
use crate::crypto::sealed::length_prefixed;
use crate::file_access::{Access, Content};

const CERTIFICATE: &str = "certificate_file";
const KEY: &str = "key_file";
const CLIENT_CA: &str = "client_ca_file";

/// The time before the end of a certificate from which on it is reported.
const SOON: Duration = Duration::from_secs(14 * 24 * 60 * 60);

/// The end of the year 9999 in seconds since 1970, which stands for no end (RFC 5280 section 4.1.2.5).
const MOST: i64 = 253_402_300_799;

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

/// Why a file cannot be used: the key of the configuration, the path, and the reason with its remedy.
#[derive(Debug, thiserror::Error)]
#[error("{section}.{key}: {path}: {reason}")]
pub struct TlsError {
    section: &'static str,
    key: &'static str,
    path: String,
    reason: String,
}

/// The time in which a certificate is valid. Both ends belong to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    not_before: SystemTime,
    not_after: SystemTime,
}

/// The contents of the files.
pub(super) struct Contents<'a> {
    section: &'static str,
    files: &'a TlsFiles,
    certificate: Zeroizing<Vec<u8>>,
    key: Zeroizing<Vec<u8>>,
    client_ca: Option<Zeroizing<Vec<u8>>>,
}

/// The result of reading the files.
pub(super) struct Loaded {
    pub(super) digest: [u8; 32],
    pub(super) config: ServerConfig,
    pub(super) validity: Validity,
}

impl TlsFiles {
    pub(super) fn read(&self, section: &'static str) -> Result<Contents<'_>, TlsError> {
        let read = |key, path: &PathBuf| {
            std::fs::read(path).map(Zeroizing::new).map_err(|error| {
                let reason =
                    format!("cannot be read: {error}; name a file that this process can read");
                wrong(section, key, path, reason)
            })
        };
        Ok(Contents {
            section,
            files: self,
            certificate: read(CERTIFICATE, &self.certificate)?,
            key: read(KEY, &self.key)?,
            client_ca: self.client_ca.as_ref().map(|path| read(CLIENT_CA, path)).transpose()?,
        })
    }

    /// Refuses files that every user can change, as at the start.
    pub(super) fn check_modes(&self, section: &'static str) -> Result<(), TlsError> {
        let files = [
            (CERTIFICATE, Some(&self.certificate), Content::Public),
            (KEY, Some(&self.key), Content::Secret),
            (CLIENT_CA, self.client_ca.as_ref(), Content::Public),
        ];
        for (key, path, content) in files {
            let Some(path) = path else { continue };
            let access = Access::of(path);
            if access.all_write {
                let remedy = content.remedy();
                let reason = format!("every user can write it; run {remedy} on it");
                return Err(wrong(section, key, path, reason));
            }
            for weakness in access.weaknesses(content) {
                tracing::warn!(section, path = %path.display(), "{key} names a file {weakness}");
            }
        }
        Ok(())
    }
}

impl Contents<'_> {
    pub(super) fn digest(&self) -> [u8; 32] {
        let contents = [Some(&self.certificate), Some(&self.key), self.client_ca.as_ref()];
        let framed =
            length_prefixed(contents.into_iter().flatten().map(|content| content.as_slice()));
        Sha256::digest(Zeroizing::new(framed).as_slice()).into()
    }

    pub(super) fn load(&self, protocol: Protocol) -> Result<Loaded, TlsError> {
        let certificates =
            self.certificates(CERTIFICATE, &self.files.certificate, &self.certificate)?;
        let validity =
            Validity::of(&certificates).map_err(|reason| self.certificate_error(reason))?;
        let key = PrivateKeyDer::from_pem_slice(&self.key).map_err(|error| {
            let reason =
                format!("has no private key in PEM: {error}; name the key of the certificate");
            wrong(self.section, KEY, &self.files.key, reason)
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| self.certificate_error(error.to_string()))?;
        let builder = match (&self.files.client_ca, &self.client_ca) {
            (Some(path), Some(content)) => {
                let unusable = |error: String| {
                    let reason =
                        format!("cannot be used: {error}; name the CAs of the clients in PEM");
                    wrong(self.section, CLIENT_CA, path, reason)
                };
                let mut roots = RootCertStore::empty();
                for ca in self.certificates(CLIENT_CA, path, content)? {
                    roots.add(ca).map_err(|error| unusable(error.to_string()))?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()
                        .map_err(|error| unusable(error.to_string()))?;
                builder.with_client_cert_verifier(verifier)
            }
            _ => builder.with_no_client_auth(),
        };
        let mut config =
            builder.with_single_cert(certificates, key).map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => {
                    let certificate = self.files.certificate.display();
                    let reason = format!(
                        "is not the key of {certificate}; name the key that it was issued for"
                    );
                    wrong(self.section, KEY, &self.files.key, reason)
                }
                error => self.certificate_error(format!(
                    "cannot be used with its key: {error}; issue both again"
                )),
            })?;
        config.alpn_protocols = vec![match protocol {
            Protocol::Http2 => b"h2".to_vec(),
            Protocol::Http1 => b"http/1.1".to_vec(),
        }];
        Ok(Loaded { digest: self.digest(), config, validity })
    }

    /// An error of the certificate.
    pub(super) fn certificate_error(&self, reason: String) -> TlsError {
        wrong(self.section, CERTIFICATE, &self.files.certificate, reason)
    }

    fn certificates(
        &self,
        key: &'static str,
        path: &Path,
        pem: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let remedy = "name a file of certificates in PEM";
        let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        let found = found.map_err(|error| {
            wrong(self.section, key, path, format!("is no valid PEM: {error}; {remedy}"))
        })?;
        if found.is_empty() {
            let reason = format!("has no certificate in PEM; {remedy}");
            return Err(wrong(self.section, key, path, reason));
        }
        Ok(found)
    }
}

impl Validity {
    /// The time in which all certificates of a chain are valid.
    fn of(chain: &[CertificateDer<'_>]) -> Result<Self, String> {
        let mut all = Self { not_before: SystemTime::UNIX_EPOCH, not_after: at(MOST) };
        for certificate in chain {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
                .map_err(|error| format!("is no X.509 certificate: {error}; issue it again"))?;
            let validity = parsed.validity();
            all.not_before = all.not_before.max(at(validity.not_before.timestamp()));
            all.not_after = all.not_after.min(at(validity.not_after.timestamp()));
        }
        Ok(all)
    }

    /// The last moment, as in RFC 3339.
    #[must_use]
    pub fn not_after(self) -> String {
        humantime::format_rfc3339_seconds(self.not_after).to_string()
    }

    /// The reason why it cannot be used at `now`, with the remedy.
    #[must_use]
    pub fn wrong(self, now: SystemTime) -> Option<String> {
        if now > self.not_after {
            return Some(format!("expired at {}; renew it", self.not_after()));
        }
        let not_before = humantime::format_rfc3339_seconds(self.not_before);
        let reason =
            || format!("is not valid before {not_before}; wait, or set this machine's clock");
        (now < self.not_before).then(reason)
    }

    /// The warning at `now`: the certificate cannot be used, or expires within two weeks.
    #[must_use]
    pub fn warning(self, now: SystemTime) -> Option<String> {
        let expires_soon = || {
            let is_soon = now + SOON > self.not_after;
            is_soon.then(|| format!("expires at {}; renew it", self.not_after()))
        };
        self.wrong(now).or_else(expires_soon)
    }
}

/// The time on this machine's clock.
#[must_use]
#[expect(
    clippy::disallowed_methods,
    reason = "a certificate is judged by its clients' clocks, not the database's"
)]
pub fn machine_time() -> SystemTime {
    SystemTime::now()
}

fn at(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

fn wrong(section: &'static str, key: &'static str, path: &Path, reason: String) -> TlsError {
    TlsError { section, key, path: path.display().to_string(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_reported_two_weeks_before_its_end() {
        let day = 24 * 60 * 60;
        let validity = Validity { not_before: at(10 * day), not_after: at(100 * day) };
        for (days, expected) in [
            (
                9,
                Some("is not valid before 1970-01-11T00:00:00Z; wait, or set this machine's clock"),
            ),
            (10, None),
            (85, None),
            (87, Some("expires at 1970-04-11T00:00:00Z; renew it")),
            (101, Some("expired at 1970-04-11T00:00:00Z; renew it")),
        ] {
            let now = at(days * day);
            assert_eq!(validity.warning(now).as_deref(), expected, "day {days}");
            assert_eq!(validity.wrong(now).is_some(), !(10..=100).contains(&days), "day {days}");
        }
    }
}
