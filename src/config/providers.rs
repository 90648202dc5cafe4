//! `[providers.NAME]`: the authorization servers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::url::Url;

use super::address;
use super::problem::Reported;
use super::section::{Section, all};
use super::value::{choice, duration, filled, parsed};
use crate::domain::name::Name;
use crate::domain::provider::{
    Client, ClientAuth, ConfiguredAuth, Endpoints, OPENID, Provider, RevocationReach,
};
use crate::domain::scope::{ScopeNames, Scopes};

/// Keys of later versions.
const UNSUPPORTED: [&str; 4] = ["preset", "device_authorization_endpoint", "grant", "private"];

/// The one flow of this version.
const FLOW: &str = "authorization_code";

const MOST_GRACE: Duration = Duration::from_secs(60 * 60);

const LEAST_IDLE: Duration = Duration::from_secs(60);

/// Two years, as durations count them.
const MOST_IDLE: Duration = Duration::from_secs(2 * 31_557_600);

#[derive(Clone, Copy)]
enum Auth {
    Basic,
    Post,
    None,
}

/// The result of reading `providers`.
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
    let identity = section.optional("identity", parsed(pointer));
    let reaches = [
        ("token", RevocationReach::Token),
        ("grant", RevocationReach::Grant),
        ("user_client", RevocationReach::UserClient),
    ];
    let revocation_reach =
        section.or("revocation_reach", RevocationReach::default(), choice(&reaches));
    let refresh_grace =
        section.or("refresh_grace", Duration::ZERO, duration(Duration::ZERO..=MOST_GRACE));
    let refresh_idle = section.optional("refresh_idle", duration(LEAST_IDLE..=MOST_IDLE));
    let client_id =
        section.required("client_id", "write what the provider calls the broker", filled);
    let asked = |named: &Endpoints| named.authorization.is_none() || named.token.is_none();
    let discovered = matches!(issuer, Ok(Some(_))) && endpoints.as_ref().is_ok_and(asked);
    let auth = client_auth(&mut section, discovered);
    let default_scopes = section.list("scopes", scope);
    let scope_aliases = scope_aliases(&mut section);
    let unreported_scopes = section.list("unreported_scopes", scope);
    let dead_grant_errors = section.list("dead_grant_errors", error_code);
    let id_tokens = [("check", false), ("ignore", true)];
    let ignores_id_tokens = section.or("id_token", false, choice(&id_tokens));
    let flows = section.filled_list("flows", "remove it", |flow| {
        let wrong = || format!("must be {FLOW:?}, the only flow of this version");
        (flow == FLOW).then_some(()).ok_or_else(wrong)
    });
    section.refuse(&UNSUPPORTED);
    let keys = match ignores_id_tokens {
        Ok(true) => Ok(()),
        _ => keys(&section, &issuer, &endpoints, &default_scopes),
    };
    section.finish();

    flows?;
    keys?;
    Ok(Provider {
        name: parsed_name?,
        display_name: display_name?,
        issuer: issuer?,
        endpoints: endpoints?,
        revocation_reach: revocation_reach?,
        refresh_grace: refresh_grace?,
        refresh_idle: refresh_idle?,
        client: Client { id: client_id?, auth: auth? },
        default_scopes: joined(&default_scopes?.unwrap_or_default()),
        scope_names: ScopeNames {
            aliases: scope_aliases?,
            unreported: joined(&unreported_scopes?.unwrap_or_default()),
        },
        dead_grant_errors: dead_grant_errors?.unwrap_or_default(),
        ignores_id_tokens: ignores_id_tokens?,
        identity: identity?,
    })
}

/// The exact text, for issuers are compared as strings (RFC 9207 section 2.4).
fn issuer(text: &str) -> Result<String, String> {
    if text.contains("/.well-known/") {
        return Err("must be the issuer itself; remove /.well-known and what follows".to_owned());
    }
    address::base(text).map(|_| text.to_owned())
}

/// Reports an ID token that would be asked for and could not be checked.
fn keys(
    section: &Section<'_>,
    issuer: &Result<Option<String>, Reported>,
    endpoints: &Result<Endpoints, Reported>,
    scopes: &Result<Option<Vec<Scopes>>, Reported>,
) -> Result<(), Reported> {
    let (Ok(issuer), Ok(endpoints), Ok(Some(scopes))) = (issuer, endpoints, scopes) else {
        return Ok(());
    };
    if issuer.is_none() && joined(scopes).contains(OPENID) {
        let remedy = "write the issuer, whose ID tokens can be checked, or remove openid from the scopes, or write \
                      id_token = \"ignore\"";
        return Err(section.missing("issuer", remedy));
    }
    let named = endpoints.authorization.is_some() && endpoints.token.is_some();
    if named && endpoints.jwks.is_none() && joined(scopes).contains(OPENID) {
        let remedy = "write the URL of the keys that its ID tokens are signed with, or remove the \
                      endpoints, so that the issuer is asked for all of them";
        return Err(section.missing("jwks_uri", remedy));
    }
    Ok(())
}

/// Scopes as they are requested, each with the names under which it is reported.
fn scope_aliases(section: &mut Section<'_>) -> Result<BTreeMap<String, Scopes>, Reported> {
    let mut table = section.section("scope_aliases")?;
    let aliases = all(table.keys().into_iter().map(|name| {
        let aliases = table.list(&name, scope);
        let parsed = scope(&name).map_err(|wrong| table.problem(&name, wrong));
        parsed?;
        Ok((name, joined(&aliases?.unwrap_or_default())))
    }));
    aliases.map(|aliases| aliases.into_iter().collect())
}

/// An error code as the provider sends it.
fn error_code(text: &str) -> Result<String, String> {
    let is_of_codes = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
    if !(1..=64).contains(&text.len()) || !text.chars().all(is_of_codes) {
        return Err(
            "must be an error code: at most 64 letters, digits, `_`, `-` and `.`".to_owned()
        );
    }
    Ok(text.to_owned())
}

/// A JSON pointer (RFC 6901) to something.
fn pointer(text: &str) -> Result<String, String> {
    if text.starts_with('/') {
        return Ok(text.to_owned());
    }
    Err("must be a JSON pointer such as \"/login\"".to_owned())
}

/// The endpoints that are named. Without an issuer, which could be asked, two must be.
fn endpoints(section: &mut Section<'_>, has_issuer: bool) -> Result<Endpoints, Reported> {
    let mut named = |key: &str| section.optional(key, parsed(address::endpoint));
    let authorization = named("authorization_endpoint");
    let token = named("token_endpoint");
    let revocation = named("revocation_endpoint");
    let userinfo = named("userinfo_endpoint");
    let jwks = named("jwks_uri");
    let there = |key: &str, found: Result<Option<Url>, Reported>| match found {
        Ok(None) if !has_issuer => {
            let remedy = "write the URL that the provider documents, or name its issuer";
            Err(section.missing(key, remedy))
        }
        found => found,
    };
    let authorization = there("authorization_endpoint", authorization);
    let token = there("token_endpoint", token);
    Ok(Endpoints {
        authorization: authorization?,
        token: token?,
        revocation: revocation?,
        userinfo: userinfo?,
        jwks: jwks?,
    })
}

fn client_auth(section: &mut Section<'_>, discovered: bool) -> Result<ConfiguredAuth, Reported> {
    let options = [("basic", Auth::Basic), ("post", Auth::Post), ("none", Auth::None)];
    let auth = section.optional("client_auth", choice(&options));
    let secret = section.secret("client_secret", "client_secret_file");
    let fixed = match (auth?, secret?) {
        (None, Some(secret)) if discovered => return Ok(ConfiguredAuth::Offered(secret.value)),
        (None | Some(Auth::Basic), Some(secret)) => ClientAuth::Basic(secret.value),
        (Some(Auth::Post), Some(secret)) => ClientAuth::Post(secret.value),
        (Some(Auth::None), None) => ClientAuth::None,
        (Some(Auth::None), Some(secret)) => {
            let problem = "has no use with client_auth = \"none\"; remove it";
            return Err(section.problem(secret.key, problem));
        }
        (None | Some(Auth::Basic | Auth::Post), None) => {
            return Err(section.missing(
                "client_secret",
                "write it, name a client_secret_file, or write client_auth = \"none\" for a \
                 public client",
            ));
        }
    };
    Ok(ConfiguredAuth::Fixed(fixed))
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
mod tests;
