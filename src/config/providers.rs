//! `[providers.NAME]`: the authorization servers.

use std::collections::BTreeSet;

use ::url::Url;

use super::address;
use super::problem::Reported;
use super::section::{Section, all};
use super::value::{choice, filled, parsed};
use crate::domain::name::Name;
use crate::domain::provider::{Client, ClientAuth, Provider, RevocationReach};
use crate::domain::scope::Scopes;

/// Keys of later versions.
const UNSUPPORTED: [&str; 5] =
    ["preset", "device_authorization_endpoint", "userinfo_endpoint", "grant", "private"];

/// The one flow of this version.
const FLOW: &str = "authorization_code";

#[derive(Clone, Copy)]
enum Auth {
    Basic,
    Post,
    None,
}

/// What was found under `providers`.
pub(super) struct Found {
    /// In order of the names.
    pub(super) providers: Result<Vec<Provider>, Reported>,
    /// The names, also of providers that have problems. Empty: there is a problem already, and
    /// bots need not repeat it.
    pub(super) names: BTreeSet<String>,
}

pub(super) fn read(root: &mut Section<'_>) -> Found {
    let named = root.named("providers").and_then(|named| {
        if named.is_empty() {
            let remedy = "add [providers.NAME] with its endpoints, client_id and client_secret";
            return Err(root.problem("providers", format!("no provider is configured; {remedy}")));
        }
        Ok(named)
    });
    match named {
        Ok(named) => Found {
            names: named.iter().map(|(name, _)| name.clone()).collect(),
            providers: all(named
                .into_iter()
                .map(|(name, section)| section.and_then(|section| provider(&name, section)))),
        },
        Err(reported) => Found { names: BTreeSet::new(), providers: Err(reported) },
    }
}

fn provider(name: &str, mut section: Section<'_>) -> Result<Provider, Reported> {
    let parsed_name = Name::parse(name).map_err(|wrong| section.problem_here(wrong.to_string()));
    let display_name = section.or("display_name", name.to_owned(), filled);
    let issuer = section.optional("issuer", parsed(issuer));
    let endpoints = endpoints(&mut section, !matches!(issuer, Ok(None)));
    let revocation_endpoint = section.optional("revocation_endpoint", parsed(address::endpoint));
    let reaches = [
        ("token", RevocationReach::Token),
        ("grant", RevocationReach::Grant),
        ("user_client", RevocationReach::UserClient),
    ];
    let revocation_reach =
        section.or("revocation_reach", RevocationReach::default(), choice(&reaches));
    let client_id =
        section.required("client_id", "write what the provider calls the broker", filled);
    let auth = client_auth(&mut section);
    let default_scopes = section.list("scopes", scope);
    let flows = section.filled_list("flows", "remove it", |flow| {
        let wrong = || format!("must be {FLOW:?}, the only flow of this version");
        (flow == FLOW).then_some(()).ok_or_else(wrong)
    });
    section.refuse(&UNSUPPORTED);
    section.finish();

    flows?;
    let (authorization_endpoint, token_endpoint) = endpoints?;
    Ok(Provider {
        name: parsed_name?,
        display_name: display_name?,
        issuer: issuer?,
        authorization_endpoint,
        token_endpoint,
        revocation_endpoint: revocation_endpoint?,
        revocation_reach: revocation_reach?,
        client: Client { id: client_id?, auth: auth? },
        default_scopes: joined(&default_scopes?.unwrap_or_default()),
    })
}

/// The exact text, for issuers are compared as strings (RFC 9207 section 2.4).
fn issuer(text: &str) -> Result<String, String> {
    address::base(text).map(|_| text.to_owned())
}

/// The two endpoints that no provider lacks.
fn endpoints(section: &mut Section<'_>, has_issuer: bool) -> Result<(Url, Url), Reported> {
    let authorization = section.optional("authorization_endpoint", parsed(address::endpoint));
    let token = section.optional("token_endpoint", parsed(address::endpoint));
    let absent = matches!(authorization, Ok(None)) || matches!(token, Ok(None));
    if has_issuer && absent {
        return Err(section.problem(
            "issuer",
            "cannot be discovered by this version yet; name authorization_endpoint and \
             token_endpoint as well",
        ));
    }
    let there = |key: &str, found: Result<Option<Url>, Reported>| {
        let remedy = "write the URL that the provider documents";
        found.and_then(|url| url.ok_or_else(|| section.missing(key, remedy)))
    };
    let authorization = there("authorization_endpoint", authorization);
    let token = there("token_endpoint", token);
    Ok((authorization?, token?))
}

fn client_auth(section: &mut Section<'_>) -> Result<ClientAuth, Reported> {
    let options = [("basic", Auth::Basic), ("post", Auth::Post), ("none", Auth::None)];
    let auth = section.or("client_auth", Auth::Basic, choice(&options));
    let secret = section.secret("client_secret", "client_secret_file");
    match (auth?, secret?) {
        (Auth::Basic, Some(secret)) => Ok(ClientAuth::Basic(secret.value)),
        (Auth::Post, Some(secret)) => Ok(ClientAuth::Post(secret.value)),
        (Auth::None, None) => Ok(ClientAuth::None),
        (Auth::None, Some(secret)) => {
            Err(section.problem(secret.key, "has no use with client_auth = \"none\"; remove it"))
        }
        (Auth::Basic | Auth::Post, None) => Err(section.missing(
            "client_secret",
            "write it, name a client_secret_file, or write client_auth = \"none\" for a public \
             client",
        )),
    }
}

/// One scope of a list.
pub(super) fn scope(text: &str) -> Result<Scopes, String> {
    Scopes::parse([text]).map_err(|_| {
        format!(
            "must be one scope, of at most {} printable ASCII characters without space, quote and \
             backslash",
            Scopes::MAX_BYTES
        )
    })
}

/// The scopes of a list as one set.
pub(super) fn joined(scopes: &[Scopes]) -> Scopes {
    scopes.iter().fold(Scopes::default(), |all, scope| all.union(scope))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn defaults() {
        let acme = acme("client_secret = 's'").expect("a provider");
        assert_eq!(acme.name.as_str(), "acme");
        assert_eq!(acme.display_name, "acme");
        assert_eq!(acme.client.id, "broker");
        assert!(matches!(&acme.client.auth, ClientAuth::Basic(s) if s.expose_secret() == "s"));
        assert_eq!((acme.issuer, acme.revocation_endpoint), (None, None));
        assert!(acme.default_scopes.is_empty());
    }

    #[test]
    fn everything_set() {
        let acme = acme(
            "display_name = 'Acme'
             issuer = 'https://login.acme.example'
             revocation_endpoint = 'https://login.acme.example/revoke'
             client_auth = 'post'
             client_secret = 's'
             scopes = ['profile', 'email']
             flows = ['authorization_code']",
        )
        .expect("a provider");
        assert_eq!(acme.display_name, "Acme");
        // The URL crate would put a slash behind it.
        assert_eq!(acme.issuer.as_deref(), Some("https://login.acme.example"));
        assert!(acme.revocation_endpoint.is_some());
        assert!(matches!(&acme.client.auth, ClientAuth::Post(s) if s.expose_secret() == "s"));
        assert_eq!(acme.default_scopes.to_string(), "email profile");
    }

    #[test]
    fn a_secret_goes_with_the_way_of_authentication() {
        let public = acme("client_auth = 'none'").expect("a provider");
        assert!(matches!(public.client.auth, ClientAuth::None));
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
             userinfo_endpoint = 'https://login.acme.example/userinfo'
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
providers.acme.userinfo_endpoint: is not supported by this version yet; remove it
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
             token_endpoint = 'https://login.acme.example/token'
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
providers.a.token_endpoint: is required; write the URL that the provider documents
providers.a.revocation_endpoint: must have no fragment; remove the # and what follows
providers.b.issuer: cannot be discovered by this version yet; name authorization_endpoint and token_endpoint as well
providers.c.issuer: must have no query; remove the ? and what follows
providers.c.client_id: is required; write what the provider calls the broker"
        );
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
}
