//! A configured OAuth 2.0 authorization server, and what is known of its endpoints.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use secrecy::SecretString;
use url::Url;

use super::name::Name;
use super::scope::{ScopeNames, Scopes};

/// The scope that makes a request one of OpenID Connect (Core section 3.1.2.1).
pub const OPENID: &str = "openid";

/// A provider as configured.
#[derive(Clone)]
pub struct Provider {
    /// The name that a grant's key takes.
    pub name: Name,
    /// For people.
    pub display_name: String,
    /// The issuer identifier (RFC 8414 section 2).
    pub issuer: Option<String>,
    /// The endpoints that the configuration names.
    pub endpoints: Endpoints,
    /// The tokens that a revocation ends beside the one that it names.
    pub revocation_reach: RevocationReach,
    /// For how long after its first use a refresh token that rotates still works. Zero where that
    /// is not known.
    pub refresh_grace: Duration,
    /// After how long without use a refresh token ends. `None`: never, as far as is known.
    pub refresh_idle: Option<Duration>,
    /// The broker's registration.
    pub client: Client,
    /// Asked for where the caller names no scopes.
    pub default_scopes: Scopes,
    /// Names of scopes in its answers.
    pub scope_names: ScopeNames,
    /// Its own error codes for a dead refresh token or a dead code, beside those that are known.
    pub dead_grant_errors: Vec<String>,
    /// ID tokens are neither checked nor relied upon, even if `openid` is requested.
    pub ignores_id_tokens: bool,
    /// The place of the displayed name in the claims of an ID token or in the answer of the userinfo endpoint: a JSON
    /// pointer (RFC 6901). `None`: the usual places.
    pub identity: Option<String>,
}

/// The endpoints of a provider, as far as they are named. Those that are not come from the
/// issuer's metadata.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// The authorization endpoint (RFC 6749 section 3.1).
    pub authorization: Option<Url>,
    /// The token endpoint (RFC 6749 section 3.2).
    pub token: Option<Url>,
    /// The revocation endpoint (RFC 7009).
    pub revocation: Option<Url>,
    /// The userinfo endpoint (OpenID Connect Core section 5.3, or the provider's own).
    pub userinfo: Option<Url>,
    /// The keys that ID tokens are signed with (RFC 7517).
    pub jwks: Option<Url>,
}

/// A provider whose endpoints are known, from its configuration or from its issuer: what it takes
/// to call it.
#[derive(Debug, Clone)]
pub struct Server {
    /// The provider as configured.
    pub provider: Arc<Provider>,
    /// The authorization endpoint.
    pub authorization_endpoint: Url,
    /// The token endpoint.
    pub token_endpoint: Url,
    /// The revocation endpoint. `None`: the provider cannot revoke.
    pub revocation_endpoint: Option<Url>,
    /// The userinfo endpoint.
    pub userinfo_endpoint: Option<Url>,
    /// The keys that ID tokens are signed with.
    pub jwks_uri: Option<Url>,
    /// The client authentication.
    pub client_auth: ClientAuth,
    /// `true` if every redirect must carry `iss` (RFC 9207 section 3).
    pub iss_required: bool,
}

/// The tokens that a revocation ends beside the one that it names. RFC 7009 section 2.1 leaves it to the provider.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RevocationReach {
    /// Nothing else.
    Token,
    /// The grant that the token is of. Assumed where nothing else is known.
    #[default]
    Grant,
    /// Every token that this user has given this client, as at Google.
    UserClient,
}

/// The broker's registration at a provider (RFC 6749 section 2).
#[derive(Clone)]
pub struct Client {
    /// The client identifier.
    pub id: String,
    /// The client authentication (RFC 6749 section 2.3).
    pub auth: ConfiguredAuth,
}

/// Client authentication as the configuration has it.
#[derive(Clone)]
pub enum ConfiguredAuth {
    /// This method, also if the metadata names others.
    Fixed(ClientAuth),
    /// With this secret, in a way that the issuer's metadata offers.
    Offered(SecretString),
}

/// Client authentication at the token and revocation endpoints (RFC 6749 section 2.3).
///
/// Exactly one way is ever tried: a code is single-use, so a second try would fail for certain.
#[derive(Clone)]
pub enum ClientAuth {
    /// `client_secret_basic`.
    Basic(SecretString),
    /// `client_secret_post`.
    Post(SecretString),
    /// `none`: a public client, which PKCE alone protects.
    None,
}

impl Provider {
    /// Returns `true` if endpoints come from the issuer's metadata.
    #[must_use]
    pub fn is_discovered(&self) -> bool {
        self.issuer.is_some()
            && (self.endpoints.authorization.is_none() || self.endpoints.token.is_none())
    }

    /// Returns `true` if there may be a way to revoke.
    #[must_use]
    pub fn may_revoke(&self) -> bool {
        self.endpoints.revocation.is_some() || self.is_discovered()
    }

    /// The provider with the endpoints of its configuration. Returns `None` if they are not all there.
    #[must_use]
    pub fn server(self: &Arc<Self>) -> Option<Server> {
        let Endpoints { authorization, token, revocation, userinfo, jwks } = self.endpoints.clone();
        Some(Server {
            provider: Arc::clone(self),
            authorization_endpoint: authorization?,
            token_endpoint: token?,
            revocation_endpoint: revocation,
            userinfo_endpoint: userinfo,
            jwks_uri: jwks,
            client_auth: match &self.client.auth {
                ConfiguredAuth::Fixed(auth) => auth.clone(),
                // The default of RFC 8414 section 2, where no metadata says otherwise.
                ConfiguredAuth::Offered(secret) => ClientAuth::Basic(secret.clone()),
            },
            iss_required: false,
        })
    }
}

impl Deref for Server {
    type Target = Provider;

    fn deref(&self) -> &Provider {
        &self.provider
    }
}

impl Server {
    /// Returns `true` if ID tokens of this provider can be checked, and so are asked for and relied upon.
    #[must_use]
    pub fn checks_id_tokens(&self) -> bool {
        !self.ignores_id_tokens && self.issuer.is_some() && self.jwks_uri.is_some()
    }
}

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.name)
            .field("display_name", &self.display_name)
            .field("issuer", &self.issuer)
            .field("endpoints", &self.endpoints)
            .field("revocation_reach", &self.revocation_reach)
            .field("refresh_grace", &self.refresh_grace)
            .field("refresh_idle", &self.refresh_idle)
            .field("client", &self.client)
            .field("default_scopes", &self.default_scopes)
            .field("scope_names", &self.scope_names)
            .field("dead_grant_errors", &self.dead_grant_errors)
            .field("ignores_id_tokens", &self.ignores_id_tokens)
            .field("identity", &self.identity)
            .finish()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let auth = match &self.auth {
            ConfiguredAuth::Fixed(auth) => format!("{auth:?}"),
            ConfiguredAuth::Offered(_) => "as offered".to_owned(),
        };
        f.debug_struct("Client").field("id", &self.id).field("auth", &auth).finish()
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Basic(_) => "client_secret_basic",
            Self::Post(_) => "client_secret_post",
            Self::None => "none",
        })
    }
}
