use secrecy::ExposeSecret as _;

use super::*;
use crate::config::testing;

const ACME: &str = "
    [providers.acme]
    authorization_endpoint = 'https://login.acme.example/authorize'
    token_endpoint = 'https://login.acme.example/token'
    client_id = 'broker'
";

fn providers(text: &str) -> Result<Vec<Provider>, String> {
    testing::read(text, |root| read(root).providers)
}

fn acme(more: &str) -> Result<Provider, String> {
    providers(&format!("{ACME}\n{more}")).map(|mut all| all.remove(0))
}

fn fixed(provider: &Provider) -> &ClientAuth {
    match &provider.client.auth {
        ConfiguredAuth::Fixed(auth) => auth,
        ConfiguredAuth::Offered(_) => panic!("as offered"),
    }
}

#[test]
fn defaults() {
    let acme = acme("client_secret = 's'").expect("a provider");
    assert_eq!(acme.name.as_str(), "acme");
    assert_eq!(acme.display_name, "acme");
    assert_eq!(acme.client.id, "broker");
    assert!(matches!(fixed(&acme), ClientAuth::Basic(s) if s.expose_secret() == "s"));
    assert_eq!((acme.issuer, acme.endpoints.revocation), (None, None));
    assert!(acme.default_scopes.is_empty());
    assert_eq!((acme.refresh_grace, acme.refresh_idle), (Duration::ZERO, None));
}

#[test]
fn everything_set() {
    let acme = acme(
        "display_name = 'Acme'
         issuer = 'https://login.acme.example'
         revocation_endpoint = 'https://login.acme.example/revoke'
         refresh_grace = '30s'
         refresh_idle = '90days'
         userinfo_endpoint = 'https://login.acme.example/userinfo'
         jwks_uri = 'https://login.acme.example/jwks'
         identity = '/login'
         client_auth = 'post'
         client_secret = 's'
         scopes = ['profile', 'email']
         flows = ['authorization_code']",
    )
    .expect("a provider");
    assert_eq!(acme.display_name, "Acme");
    // The URL crate would put a slash behind it.
    assert_eq!(acme.issuer.as_deref(), Some("https://login.acme.example"));
    let endpoints = &acme.endpoints;
    assert!(endpoints.revocation.is_some() && endpoints.userinfo.is_some());
    assert!(endpoints.jwks.is_some() && !acme.is_discovered());
    assert_eq!(acme.identity.as_deref(), Some("/login"));
    assert_eq!(acme.refresh_grace, Duration::from_secs(30));
    assert_eq!(acme.refresh_idle, Some(Duration::from_secs(90 * 24 * 60 * 60)));
    assert!(matches!(fixed(&acme), ClientAuth::Post(s) if s.expose_secret() == "s"));
    assert_eq!(acme.default_scopes.to_string(), "email profile");
}

#[test]
fn a_secret_goes_with_the_way_of_authentication() {
    let public = acme("client_auth = 'none'").expect("a provider");
    assert!(matches!(fixed(&public), ClientAuth::None));
    for (more, expected) in [
        (
            "",
            "client_secret: is required; write it, name a client_secret_file, or write \
             client_auth = \"none\" for a public client",
        ),
        (
            "client_auth = 'none'\nclient_secret = 'hunter2'",
            "client_secret: has no use with client_auth = \"none\"; remove it",
        ),
        (
            "client_auth = 'jwt'\nclient_secret = 'hunter2'",
            "client_auth: must be \"basic\" or \"post\" or \"none\"",
        ),
    ] {
        let expected = format!("providers.acme.{expected}");
        assert_eq!(acme(more).expect_err("problems"), expected);
    }
}

#[test]
fn what_is_not_enforced_is_refused() {
    let wrong = acme(
        "client_secret = 's'
         preset = 'google'
         device_authorization_endpoint = 'https://login.acme.example/device'
         flows = ['authorization_code', 'device_code']
         grant = 'client_credentials'
         private = true",
    );
    assert_eq!(
        wrong.expect_err("problems"),
        "\
providers.acme.flows: item 2 must be \"authorization_code\", the only flow of this version
providers.acme.preset: is not supported by this version yet; remove it
providers.acme.device_authorization_endpoint: is not supported by this version yet; remove it
providers.acme.grant: is not supported by this version yet; remove it
providers.acme.private: is not supported by this version yet; remove it"
    );
}

#[test]
fn endpoints_are_named_and_secure() {
    let wrong = providers(
        "[providers.a]
         client_id = 'a'
         client_auth = 'none'
         authorization_endpoint = 'http://login.acme.example/'
         revocation_endpoint = 'https://login.acme.example/#x'
         [providers.b]
         client_id = 'b'
         client_auth = 'none'
         issuer = 'https://login.acme.example'
         authorization_endpoint = 'https://login.acme.example/authorize'
         token_endpoint = 'https://login.acme.example/token'
         identity = 'login'
         scopes = ['openid']
         [providers.c]
         client_auth = 'none'
         issuer = 'https://login.acme.example/?tenant=a'
         authorization_endpoint = 'https://login.acme.example/authorize'
         token_endpoint = 'https://login.acme.example/token'",
    );
    assert_eq!(
        wrong.expect_err("problems"),
        "\
providers.a.authorization_endpoint: must be an absolute https URL; http is allowed on loopback only
providers.a.revocation_endpoint: must have no fragment; remove the # and what follows
providers.a.token_endpoint: is required; write the URL that the provider documents, or name its issuer
providers.b.identity: must be a JSON pointer such as \"/login\"
providers.b.jwks_uri: is required; write the URL of the keys that its ID tokens are signed with, or remove the endpoints, so that the issuer is asked for all of them
providers.c.issuer: must have no query; remove the ? and what follows
providers.c.client_id: is required; write what the provider calls the broker"
    );
}

#[test]
fn an_issuer_is_enough() {
    let issuer = "[providers.acme]
         issuer = 'https://login.acme.example/t'
         client_id = 'broker'
         client_secret = 's'
         scopes = ['openid']";
    let mut acme = providers(issuer).expect("a provider").remove(0);
    assert!(acme.is_discovered() && acme.may_revoke());
    assert_eq!(acme.endpoints, Endpoints::default());
    assert!(matches!(acme.client.auth, ConfiguredAuth::Offered(_)));
    acme = providers(&format!("{issuer}\nclient_auth = 'basic'")).expect("one").remove(0);
    assert!(matches!(fixed(&acme), ClientAuth::Basic(_)));
}

#[test]
fn names_have_a_form() {
    let wrong = providers(
        "[providers.Google]
         authorization_endpoint = 'https://login.acme.example/authorize'
         token_endpoint = 'https://login.acme.example/token'
         client_id = ''
         client_secret = 's'
         scopes = ['a b']
         [providers]
         token = 1",
    );
    assert_eq!(
        wrong.expect_err("problems"),
        "\
providers.token: must be a table, not an integer
providers.Google: must be of the form [a-z][a-z0-9]*(-[a-z0-9]+)*, at most 63 bytes
providers.Google.client_id: must not be empty
providers.Google.scopes: item 1 must be one scope, of at most 255 printable ASCII characters without space, quote and backslash"
    );
}

#[test]
fn there_must_be_one() {
    assert_eq!(
        providers("").expect_err("problems"),
        "providers: no provider is configured; add [providers.NAME] with its endpoints, \
         client_id and client_secret"
    );
}
