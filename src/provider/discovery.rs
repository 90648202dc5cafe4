//! Reads an issuer's metadata: OpenID Connect Discovery 1.0 and RFC 8414.

use serde_json::Value;
use url::Url;

use super::error::ProviderError;
use super::http::{Call, Http, Operation};
use crate::domain::address;
use crate::domain::name::Name;
use crate::domain::provider::{ClientAuth, ConfiguredAuth, Endpoints, OPENID, Provider, Server};

impl Http {
    /// Reads the metadata of a provider's issuer, and lays what the configuration names over it.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] where the issuer cannot be asked, has no metadata, or has some that must
    /// not be used.
    pub(super) async fn discover(
        &self,
        provider: &std::sync::Arc<Provider>,
    ) -> Result<Server, ProviderError> {
        let issuer = provider.issuer.as_deref().unwrap_or_default();
        let places = well_known(issuer)
            .ok_or_else(|| ProviderError::ConnectError("the issuer is no URL".to_owned()))?;
        let mut passes = None;
        for place in &places {
            match self.json(Call(Operation::Discovery, &provider.name), place).await {
                Ok(Some(metadata)) => return self.server(provider, issuer, &metadata),
                Ok(None) => {}
                // The next place may answer. If none does, this one may later.
                Err(error) => passes = passes.or(Some(error)),
            }
        }
        let paths: Vec<_> = places.iter().map(Url::path).collect();
        let paths = paths.join(", ");
        Err(passes.unwrap_or_else(|| odd(format!("{issuer} has no metadata at any of: {paths}"))))
    }

    fn server(
        &self,
        provider: &std::sync::Arc<Provider>,
        issuer: &str,
        metadata: &Value,
    ) -> Result<Server, ProviderError> {
        // Compared as strings (RFC 8414 section 3.3): otherwise one issuer could pose as another.
        let named = metadata["issuer"].as_str().unwrap_or_default();
        if named != issuer {
            let named: String = named.chars().take(SHOWN).collect();
            return Err(odd(format!(
                "the metadata of {issuer} is of another issuer, {named:?}; if that is the one, \
                 write it as issuer, letter by letter"
            )));
        }
        let found = |name: &str| self.endpoint((&provider.name, issuer), metadata, name);
        let Endpoints { authorization, token, revocation, userinfo, jwks } =
            provider.endpoints.clone();
        let required = |configured: Option<Url>, name: &str| match configured {
            Some(url) => Ok(url),
            None => {
                found(name)?.ok_or_else(|| odd(format!("the metadata of {issuer} names no {name}")))
            }
        };
        let optional = |configured: Option<Url>, name: &str| match configured {
            Some(url) => Ok(Some(url)),
            None => found(name),
        };
        let jwks_uri = optional(jwks, "jwks_uri")?;
        let is_checked = !provider.ignores_id_tokens && provider.default_scopes.contains(OPENID);
        if jwks_uri.is_none() && is_checked {
            return Err(odd(format!(
                "the metadata of {issuer} names no jwks_uri, without which the ID tokens that its \
                 scopes ask for cannot be checked; name it, or take {OPENID} out of the scopes"
            )));
        }
        Ok(Server {
            provider: std::sync::Arc::clone(provider),
            authorization_endpoint: required(authorization, "authorization_endpoint")?,
            token_endpoint: required(token, "token_endpoint")?,
            revocation_endpoint: optional(revocation, "revocation_endpoint")?,
            userinfo_endpoint: optional(userinfo, "userinfo_endpoint")?,
            jwks_uri,
            client_auth: client_auth(provider, issuer, metadata)?,
            iss_required: metadata["authorization_response_iss_parameter_supported"] == true,
        })
    }

    fn endpoint(
        &self,
        (provider, issuer): (&Name, &str),
        metadata: &Value,
        name: &str,
    ) -> Result<Option<Url>, ProviderError> {
        let text = match &metadata[name] {
            Value::Null => return Ok(None),
            Value::String(text) if text.is_empty() => return Ok(None),
            Value::String(text) => text,
            _ => return Err(odd(format!("the {name} of {issuer} is no text"))),
        };
        let wrong = |wrong: String| odd(format!("the {name} of {issuer} {wrong}"));
        let url = address::endpoint(text).map_err(wrong)?;
        // An issuer out there has no business with plain HTTP on this machine.
        let here = Url::parse(issuer).is_ok_and(|issuer| address::is_loopback(&issuer));
        if url.scheme() == "http" && !here {
            return Err(wrong("must be an https URL".to_owned()));
        }
        self.egress()
            .check(provider, &url)
            .map_err(|forbidden| wrong(format!("is refused: {forbidden}")))?;
        Ok(Some(url))
    }
}

/// The longest part of another issuer's name that is shown, in characters.
const SHOWN: usize = 200;

/// The places of the metadata: OpenID Connect Discovery 1.0 section 4 appends the well-known path to the issuer, RFC
/// 8414 section 3.1 inserts it between host and path. Some providers do either with the other's name.
fn well_known(issuer: &str) -> Option<Vec<Url>> {
    let issuer = Url::parse(issuer).ok()?;
    let path = issuer.path().trim_end_matches('/');
    let at = |path: String| {
        let mut url = issuer.clone();
        url.set_path(&path);
        url
    };
    let mut places = vec![
        at(format!("{path}/.well-known/openid-configuration")),
        at(format!("/.well-known/oauth-authorization-server{path}")),
    ];
    if !path.is_empty() {
        places.push(at(format!("{path}/.well-known/oauth-authorization-server")));
        places.push(at(format!("/.well-known/openid-configuration{path}")));
    }
    Some(places)
}

/// The configured method, or else one that the metadata offers; `client_secret_basic` if it
/// does not say (RFC 8414 section 2).
fn client_auth(
    provider: &Provider,
    issuer: &str,
    metadata: &Value,
) -> Result<ClientAuth, ProviderError> {
    let secret = match &provider.client.auth {
        ConfiguredAuth::Fixed(auth) => return Ok(auth.clone()),
        ConfiguredAuth::Offered(secret) => secret.clone(),
    };
    let Some(methods) = metadata["token_endpoint_auth_methods_supported"].as_array() else {
        return Ok(ClientAuth::Basic(secret));
    };
    let offers = |method: &str| methods.iter().any(|offered| offered == method);
    if offers("client_secret_basic") {
        Ok(ClientAuth::Basic(secret))
    } else if offers("client_secret_post") {
        Ok(ClientAuth::Post(secret))
    } else {
        Err(odd(format!(
            "{issuer} takes neither client_secret_basic nor client_secret_post; set client_auth"
        )))
    }
}

fn odd(reason: String) -> ProviderError {
    ProviderError::UnexpectedResponse(reason)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::provider::{Client, RevocationReach};
    use crate::domain::scope::Scopes;
    use crate::provider::Egress;
    use crate::telemetry::Metrics;

    const ISSUER: &str = "https://login.acme.example/tenant";

    fn acme(endpoints: Endpoints) -> Arc<Provider> {
        Arc::new(Provider {
            name: Name::parse("acme").expect("a name"),
            display_name: "Acme".to_owned(),
            issuer: Some(ISSUER.to_owned()),
            endpoints,
            revocation_reach: RevocationReach::default(),
            refresh_grace: std::time::Duration::ZERO,
            refresh_idle: None,
            client: Client {
                id: "broker".to_owned(),
                auth: ConfiguredAuth::Offered("secret".into()),
            },
            default_scopes: Scopes::default(),
            scope_names: Default::default(),
            dead_grant_errors: Vec::new(),
            ignores_id_tokens: false,
            identity: None,
        })
    }

    /// Reads usual metadata with some members replaced.
    fn server(changes: Value, endpoints: Endpoints) -> Result<Server, String> {
        let mut metadata = serde_json::json!({
            "issuer": ISSUER,
            "authorization_endpoint": "https://login.acme.example/authorize",
            "token_endpoint": "https://api.acme.example/token",
            "jwks_uri": "https://api.acme.example/jwks",
        });
        for (name, value) in changes.as_object().expect("an object") {
            metadata[name] = value.clone();
        }
        let provider = acme(endpoints);
        let egress = Egress::new([&*provider], Vec::new());
        let http = Http::new(egress, Metrics::new(None).expect("metrics")).expect("TLS");
        http.server(&provider, ISSUER, &metadata).map_err(|error| error.to_string())
    }

    #[test]
    fn metadata_is_read() {
        let server = server(
            serde_json::json!({
                "authorization_response_iss_parameter_supported": true,
                "token_endpoint_auth_methods_supported": ["private_key_jwt", "client_secret_post"],
            }),
            Endpoints {
                token: Some("https://proxy.acme.example/token".parse().expect("a URL")),
                ..Endpoints::default()
            },
        )
        .expect("a server");
        assert_eq!(server.authorization_endpoint.path(), "/authorize");
        // The configuration's own comes first.
        assert_eq!(server.token_endpoint.as_str(), "https://proxy.acme.example/token");
        assert!(server.checks_id_tokens() && server.iss_required);
        assert_eq!((server.revocation_endpoint, server.userinfo_endpoint), (None, None));
        assert!(matches!(server.client_auth, ClientAuth::Post(_)));
    }

    #[test]
    fn metadata_that_must_not_be_used_is_refused() {
        for (changes, expected) in [
            (serde_json::json!({"issuer": "https://login.acme.example/tenant/"}), "another issuer"),
            (serde_json::json!({"issuer": null}), "another issuer"),
            (serde_json::json!({"token_endpoint": null}), "names no token_endpoint"),
            (serde_json::json!({"token_endpoint": 1}), "is no text"),
            (serde_json::json!({"token_endpoint": ""}), "names no token_endpoint"),
            (serde_json::json!({"token_endpoint": "http://a.example/"}), "an absolute https URL"),
            (serde_json::json!({"token_endpoint": "http://127.0.0.1/"}), "must be an https URL"),
            (serde_json::json!({"jwks_uri": "https://127.0.0.1/"}), "has no public address"),
            (serde_json::json!({"revocation_endpoint": "https://10.0.0.1/"}), "no public address"),
            (serde_json::json!({"userinfo_endpoint": "https://u@a.example/"}), "user information"),
            (serde_json::json!({"token_endpoint_auth_methods_supported": ["none"]}), "client_auth"),
        ] {
            let wrong = server(changes.clone(), Endpoints::default()).expect_err("refused");
            assert!(wrong.contains(expected), "{changes}: {wrong}");
        }
    }

    #[test]
    fn the_places_of_metadata() {
        let places = |issuer| -> Vec<String> {
            well_known(issuer).expect("a URL").into_iter().map(String::from).collect()
        };
        assert_eq!(
            places("https://a.example/t/1/"),
            [
                "https://a.example/t/1/.well-known/openid-configuration",
                "https://a.example/.well-known/oauth-authorization-server/t/1",
                "https://a.example/t/1/.well-known/oauth-authorization-server",
                "https://a.example/.well-known/openid-configuration/t/1",
            ]
        );
        assert_eq!(
            places("https://a.example"),
            [
                "https://a.example/.well-known/openid-configuration",
                "https://a.example/.well-known/oauth-authorization-server",
            ]
        );
    }
}
