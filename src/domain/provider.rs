//! A configured OAuth 2.0 authorization server.

use std::fmt;

use secrecy::SecretString;
use url::Url;

use super::name::Name;
use super::scope::Scopes;

/// What the broker knows of a provider: its endpoints and the broker's registration there.
#[derive(Clone)]
pub struct Provider {
    /// The name that a grant's key takes.
    pub name: Name,
    /// For people.
    pub display_name: String,
    /// The issuer identifier. Where it is known, `iss` in a redirect must equal it (RFC 9207
    /// section 2.4).
    pub issuer: Option<String>,
    /// Where the user's browser goes (RFC 6749 section 3.1).
    pub authorization_endpoint: Url,
    /// Where codes and refresh tokens are exchanged (RFC 6749 section 3.2).
    pub token_endpoint: Url,
    /// Where tokens are revoked (RFC 7009). Absent: the provider has no way to revoke.
    pub revocation_endpoint: Option<Url>,
    /// What a revocation ends there besides the token.
    pub revocation_reach: RevocationReach,
    /// The broker's registration.
    pub client: Client,
    /// Asked for where the caller names no scopes.
    pub default_scopes: Scopes,
}

/// What a revocation ends besides the token that it names. RFC 7009 section 2.1 leaves it to the
/// provider.
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
    /// How the client proves itself.
    pub auth: ClientAuth,
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

impl fmt::Debug for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Provider")
            .field("name", &self.name)
            .field("token_endpoint", &self.token_endpoint.as_str())
            .finish_non_exhaustive()
    }
}
