//! TLS of the listeners: handshakes by other programs, and a certificate that is replaced under load.

use std::process::{Output, Stdio};

use libtest_mimic::Trial;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use token_broker_client::{ApiKey, ChannelError, Client};
use tokio::process::Command;
use tonic::transport::{Certificate, ClientTlsConfig};

use super::child::Serving;
use super::site::Site;
use crate::harness::world::{api_key, get_token};
use crate::harness::{tools, trial, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![
        trial_with(
            &[tools::GRPCURL, "openssl"],
            "process::tls::is_spoken_with_other_programs",
            spoken,
        ),
        trial("process::tls::certificates_are_replaced_under_load", replaced),
        trial("process::tls::files_that_cannot_be_used_are_reported", wrong_files),
        trial("process::tls::an_expired_certificate_is_reported_until_it_is_renewed", expired),
        trial("process::tls::the_client_sends_no_key_in_the_clear", client),
    ]
}

struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).expect("no names");
        params.distinguished_name.push(DnType::CommonName, "a CA of the tests");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// A certificate for this machine, and its key.
    fn certificate(&self) -> (String, String) {
        self.certificate_until(4096)
    }

    /// One that is valid until the start of a year.
    fn certificate_until(&self, year: i32) -> (String, String) {
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).expect("names");
        params.not_after = date_time_ymd(year, 1, 1);
        params.distinguished_name.push(DnType::CommonName, "the broker of the tests");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        (certificate.pem(), key.serialize_pem())
    }
}

/// A site whose listeners have TLS.
async fn site(authority: &Authority) -> Site {
    let site = Site::new().await;
    put(&site, &authority.certificate());
    site.put("ca.pem", &authority.pem());
    let tls = "certificate_file = \"tls.crt\"\nkey_file = \"tls.key\"\n";
    let config = site.config().replace("public_url = \"http:", "public_url = \"https:");
    site.write(&format!("{config}\n[grpc.tls]\n{tls}[http.tls]\n{tls}"));
    site
}

fn put(site: &Site, (certificate, key): &(String, String)) {
    site.put("tls.key", key);
    site.put("tls.crt", certificate);
}

async fn connect(
    serving: &Serving,
    authority: &Authority,
) -> Result<Client, tonic::transport::Error> {
    let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(authority.pem()));
    let endpoint = Client::channel(format!("https://{}", serving.grpc)).expect("a URL");
    let channel = endpoint.tls_config(tls)?.connect().await?;
    Ok(Client::new(channel, ApiKey::new(api_key("helper").expose()).expect("a key")))
}

async fn openssl(address: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", address]).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true).output().await.expect("openssl runs")
}

async fn spoken() {
    let authority = Authority::new();
    let site = site(&authority).await;
    let serving = site.serve().await;
    let ca = site.path("ca.pem").display().to_string();
    let (grpc, http) = (serving.grpc.to_string(), serving.http.to_string());
    for (address, alpn) in [(&grpc, "h2"), (&http, "http/1.1")] {
        for (version, said) in [("-tls1_3", "TLSv1.3"), ("-tls1_2", "TLSv1.2")] {
            let strict = ["-CAfile", &ca, "-verify_return_error", "-alpn", alpn, version];
            let output = openssl(address, &strict).await;
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{version}: {output:?}");
            assert!(
                text.contains(said) && text.contains(&format!("ALPN protocol: {alpn}")),
                "{text}"
            );
            // Not in the whole text, which has a certificate in base64.
            let suite = text.lines().find(|line| line.contains("Cipher is"));
            let suite = suite.unwrap_or_else(|| panic!("no suite in {text}"));
            let weak = ["CBC", "RC4", "3DES", "NULL"].iter().any(|name| suite.contains(name));
            assert!(!weak, "{suite}");
        }
        let old = openssl(address, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]).await;
        assert!(!old.status.success(), "TLS 1.1");
        let weak = openssl(address, &["-tls1_2", "-cipher", "AES128-SHA:AES256-SHA256"]).await;
        assert!(!weak.status.success(), "no forward secrecy");
    }

    let grpcurl = tools::find("grpcurl").expect("the harness has found it");
    let health = Command::new(&grpcurl)
        .args(["-cacert", &ca, &grpc, "grpc.health.v1.Health/Check"])
        .output()
        .await
        .expect("grpcurl runs");
    assert!(String::from_utf8_lossy(&health.stdout).contains("SERVING"), "{health:?}");
    let plain =
        Command::new(&grpcurl).args(["-plaintext", "-max-time", "5", &grpc, "list"]).output();
    assert!(!plain.await.expect("grpcurl runs").status.success(), "without TLS");
    assert_eq!(serving.terminate().await.code, Some(0));
}

async fn replaced() {
    let (first, second) = (Authority::new(), Authority::new());
    let site = site(&first).await;
    let mut serving = site.serve().await;
    let mut before = connect(&serving, &first).await.expect("a connection");
    // One that cannot be used changes nothing.
    site.put("tls.crt", "no certificate");
    let kept = "cannot replace the TLS files; the earlier ones stay in use";
    let line = serving.process.stderr.logged(kept).await;
    assert!(line["error"].to_string().contains("tls.certificate_file: "), "{line}");
    connect(&serving, &first).await.expect("the earlier certificate");
    put(&site, &second.certificate_until(2020));
    serving.process.stderr.repeated(kept, 1, "expired at 2020-01-01T00:00:00Z; renew it").await;
    connect(&serving, &first).await.expect("the earlier certificate");
    put(&site, &second.certificate());
    let (mut calls, mut connections) = (0, 0);
    while connect(&serving, &second).await.is_err() {
        connections += 1;
        let status = before.get_token(get_token("u1")).await.expect_err("no grant");
        assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status:?}");
        calls += 1;
    }
    assert!(calls > 0 && connections > 0);
    assert!(connect(&serving, &first).await.is_err(), "the earlier certificate is used no longer");
    before.get_token(get_token("u1")).await.expect_err("no grant");
    assert_eq!(serving.terminate().await.code, Some(0));
}

async fn wrong_files() {
    let (one, other) = (Authority::new().certificate(), Authority::new().certificate());
    let site = site(&Authority::new()).await;
    for ((certificate, key), expected) in [
        ((&one.0, &other.1), "grpc.tls.key_file: "),
        ((&one.0, &other.1), "tls.key: is not the key of "),
        ((&String::new(), &one.1), "tls.crt: has no certificate in PEM; name a file"),
        ((&one.0, &String::new()), "tls.key: has no private key in PEM"),
    ] {
        site.put("tls.key", key);
        site.put("tls.crt", certificate);
        for command in ["check", "serve"] {
            let ended = site.run(&[command]).await;
            let text = format!("{}{}", ended.stdout, ended.stderr);
            assert_eq!(ended.code, Some(1), "{text}");
            assert!(text.contains(expected), "{command}: {text}");
        }
    }
}

/// An expired certificate is an error of `check`. `serve` logs it and runs, for its clients decide.
async fn expired() {
    let authority = Authority::new();
    let site = site(&authority).await;
    put(&site, &authority.certificate_until(2020));
    let checked = site.run(&["check"]).await;
    let expected =
        "certificates: grpc.tls.certificate_file: expired at 2020-01-01T00:00:00Z; renew it";
    assert_eq!(checked.code, Some(1), "{checked:?}");
    assert!(checked.stdout.contains(expected), "{checked:?}");
    let mut serving = site.serve().await;
    let logged = "the TLS certificate expired at 2020-01-01T00:00:00Z; renew it";
    serving.process.stderr.logged(logged).await;
    assert!(connect(&serving, &authority).await.is_err(), "an expired certificate");
    let logged = serving.process.stderr.logged("TLS handshake failed").await;
    assert!(logged.to_string().contains("CertificateExpired"), "{logged}");
    put(&site, &authority.certificate());
    serving.process.stderr.logged("TLS files replaced").await;
    connect(&serving, &authority).await.expect("the renewed certificate");
    assert_eq!(serving.terminate().await.code, Some(0));
}

async fn client() {
    for url in ["http://broker.example:50051", "http://10.0.0.1:50051", "http://[2001:db8::1]:1"] {
        let refused = Client::channel(url);
        assert!(matches!(refused, Err(ChannelError::Plaintext(_))), "{url}");
        assert!(Client::plaintext_channel(url).is_ok());
    }
    for url in
        ["http://127.0.0.1:1", "http://localhost:1", "http://[::1]:1", "https://broker.example"]
    {
        assert!(Client::channel(url).is_ok(), "{url}");
    }
}
