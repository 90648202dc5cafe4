//! `[grpc.tls]` and `[http.tls]`: certificates of a listener.

use std::path::PathBuf;

use super::problem::Reported;
use super::section::Section;
use super::value::filled;
use crate::listener::TlsFiles;

/// Support for client certificates on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientCertificates {
    Allowed,
    Refused,
}

/// The files are read when the listener starts, and again when they change.
pub(super) fn read(
    mut section: Section<'_>,
    clients: ClientCertificates,
) -> Result<TlsFiles, Reported> {
    let remedy = "name the certificate in PEM, with those between it and its CA";
    let certificate = section.required("certificate_file", remedy, filled);
    let key = section.required("key_file", "name the key of the certificate in PEM", filled);
    let client_ca = match clients {
        ClientCertificates::Allowed => section.optional("client_ca_file", filled),
        ClientCertificates::Refused => Ok(None),
    };
    let folder = section.report.folder.clone();
    let at = |path: String| -> PathBuf { folder.join(path) };
    let check = |key: &str, path: Option<&String>| match path {
        Some(path) => section.check_mode(key, &folder.join(path)),
        None => Ok(()),
    };
    let checked = check("key_file", key.as_ref().ok());
    section.finish();
    checked?;
    Ok(TlsFiles { certificate: at(certificate?), key: at(key?), client_ca: client_ca?.map(at) })
}
