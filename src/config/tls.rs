//! `[grpc.tls]` and `[http.tls]`: certificates of a listener.

use std::path::PathBuf;

use super::problem::Reported;
use super::section::{Section, all};
use super::value::filled;
use crate::file_access::Content;
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
    let given = |path: Option<&String>| path.map(|path| folder.join(path));
    let files = [
        ("certificate_file", given(certificate.as_ref().ok()), Content::Public),
        ("key_file", given(key.as_ref().ok()), Content::Secret),
        (
            "client_ca_file",
            given(client_ca.as_ref().ok().and_then(Option::as_ref)),
            Content::Public,
        ),
    ];
    let checked = all(files.into_iter().filter_map(|(key, path, content)| {
        path.map(|path| section.check_mode(key, &path, content))
    }));
    if matches!(client_ca, Ok(Some(_))) {
        section.note(
            "client_ca_file",
            "a client without a certificate is served too, by its API key; let a mesh or a proxy require one if \
             every bot must have one",
        );
    }
    section.finish();
    checked?;
    Ok(TlsFiles { certificate: at(certificate?), key: at(key?), client_ca: client_ca?.map(at) })
}
