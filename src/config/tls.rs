//! `[grpc.tls]` and `[http.tls]`: certificates of a listener.

use std::path::PathBuf;

use super::problem::Reported;
use super::secret::{Access, access_of_all};
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
    let given = |path: Option<&String>| path.map(|path| folder.join(path));
    let key_path = given(key.as_ref().ok());
    let checked = key_path.map_or(Ok(()), |path| section.check_mode("key_file", &path));
    let public = [
        ("certificate_file", given(certificate.as_ref().ok())),
        ("client_ca_file", given(client_ca.as_ref().ok().and_then(Option::as_ref))),
    ];
    let public = public.into_iter().filter_map(|(key, path)| path.map(|path| (key, path)));
    let changeable = public.filter(|(_, path)| access_of_all(path) == Access::Write);
    let refused = changeable.map(|(key, path)| {
        let path = path.display();
        Err(section.problem(
            key,
            format!("names {path}, which every user can write; run chmod go-w on it"),
        ))
    });
    let refused: Result<(), Reported> = refused.collect();
    section.finish();
    checked?;
    refused?;
    Ok(TlsFiles { certificate: at(certificate?), key: at(key?), client_ca: client_ca?.map(at) })
}
