//! Authorization requests: which are taken, and the way back to the client.

use std::collections::BTreeSet;

use axum::response::{IntoResponse, Response};
use hmac::{Hmac, KeyInit as _, Mac as _};
use http::StatusCode;
use http::header::{CACHE_CONTROL, LOCATION, REFERRER_POLICY};
use sha2::Sha256;
use url::Url;

use super::state::digest;
use super::wire::{self, Params, Refusal};
use super::{DEFAULT_USER, Settings, page};

/// The time for which an authorization page can be answered.
const PAGE_MS: u64 = 10 * 60 * 1000;

/// The longest name of a user, in characters.
const MAX_LOGIN_CHARS: usize = 64;

/// The scope of a link without `scope` (RFC 6749 section 3.3 demands a documented default).
const DEFAULT_SCOPE: &str = "profile";

/// An authorization request that the user may be asked about.
pub(super) struct AuthorizeRequest {
    pub(super) client_id: String,
    /// As the client sent it, because the token call must repeat it.
    pub(super) redirect_uri: String,
    pub(super) back: ReturnTo,
    pub(super) scopes: BTreeSet<String>,
    /// The S256 code challenge (RFC 7636 section 4.2).
    pub(super) challenge: String,
}

/// Why the user is not asked.
pub(super) enum Unacceptable {
    /// The redirect URI cannot be trusted, so the user sees the error (RFC 6749 section 4.1.2.1).
    Page(&'static str),
    /// The client gets the error.
    Redirect(Box<ReturnTo>, Refusal),
}

impl IntoResponse for Unacceptable {
    fn into_response(self) -> Response {
        match self {
            Self::Page(text) => page::problem(text),
            Self::Redirect(back, refusal) => back.refuse(&refusal),
        }
    }
}

impl AuthorizeRequest {
    /// Reads the parameters of a link, or of the page's form, which repeats them.
    pub(super) fn parse(params: &Params, settings: &Settings) -> Result<Self, Unacceptable> {
        if params.repeated(&["client_id", "redirect_uri"]) {
            return Err(Unacceptable::Page("The link names its application more than once."));
        }
        let client_id = params
            .get("client_id")
            .filter(|id| *id == settings.client_id)
            .ok_or(Unacceptable::Page("The application that made this link is not known here."))?;
        let (redirect_uri, target) = params
            .get("redirect_uri")
            .filter(|uri| settings.redirect_uris.iter().any(|known| known == uri))
            .and_then(|uri| Some((uri, Url::parse(uri).ok()?)))
            .ok_or(Unacceptable::Page(
                "The link leads back to an address that is not registered.",
            ))?;
        let state = params.get("state").filter(|_| !params.repeated(&["state"]));
        let back =
            ReturnTo { target, state: state.map(str::to_owned), issuer: settings.issuer.clone() };
        match wanted(params) {
            Ok((scopes, challenge)) => Ok(Self {
                client_id: client_id.to_owned(),
                redirect_uri: redirect_uri.to_owned(),
                back,
                scopes,
                challenge,
            }),
            Err(refusal) => Err(Unacceptable::Redirect(Box::new(back), refusal)),
        }
    }

    /// Returns the parameters of the link, for the page's form.
    pub(super) fn fields(&self) -> Vec<(&'static str, String)> {
        let mut fields = vec![
            ("response_type", "code".to_owned()),
            ("client_id", self.client_id.clone()),
            ("redirect_uri", self.redirect_uri.clone()),
            ("scope", wire::scope_text(&self.scopes)),
            ("code_challenge", self.challenge.clone()),
            ("code_challenge_method", "S256".to_owned()),
        ];
        fields.extend(self.back.state.clone().map(|state| ("state", state)));
        fields
    }
}

/// Scopes and code challenge of a request whose redirect URI is trusted.
fn wanted(params: &Params) -> Result<(BTreeSet<String>, String), Refusal> {
    let once = ["response_type", "state", "scope", "code_challenge", "code_challenge_method"];
    if params.repeated(&once) {
        return Err(Refusal::invalid_request("a parameter is given more than once"));
    }
    match params.get("response_type") {
        Some("code") => {}
        Some(_) => {
            return Err(Refusal::bad("unsupported_response_type", "response_type is not code"));
        }
        None => return Err(Refusal::invalid_request("response_type is missing")),
    }
    // RFC 7636 section 4.4.1; `plain`, the default method, is refused as well.
    let challenge = params
        .get("code_challenge")
        .ok_or(Refusal::invalid_request("code_challenge is required"))?;
    if params.get("code_challenge_method") != Some("S256") {
        return Err(Refusal::invalid_request("code_challenge_method must be S256"));
    }
    let base64url = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if challenge.len() != 43 || !challenge.bytes().all(base64url) {
        return Err(Refusal::invalid_request("code_challenge is no S256 challenge"));
    }
    let scopes = wire::scopes(params.get("scope").unwrap_or(DEFAULT_SCOPE))?;
    if scopes.is_empty() {
        return Err(Refusal::invalid_scope("scope is blank"));
    }
    Ok((scopes, challenge.to_owned()))
}

/// The way back to the client.
pub(super) struct ReturnTo {
    target: Url,
    state: Option<String>,
    issuer: String,
}

impl ReturnTo {
    /// Sends the browser back. 303, so that a POST does not become one at the client.
    pub(super) fn redirect(&self, answer: &[(&str, &str)]) -> Response {
        let mut url = self.target.clone();
        {
            let mut query = url.query_pairs_mut();
            query.extend_pairs(answer);
            if let Some(state) = &self.state {
                query.append_pair("state", state);
            }
            // RFC 9207 section 2: in error answers too.
            query.append_pair("iss", &self.issuer);
        }
        let headers = [
            (LOCATION, url.as_str()),
            (CACHE_CONTROL, "no-store"),
            (REFERRER_POLICY, "no-referrer"),
        ];
        (StatusCode::SEE_OTHER, headers).into_response()
    }

    /// Sends the browser back with an error.
    pub(super) fn refuse(&self, refusal: &Refusal) -> Response {
        self.redirect(&[("error", refusal.error), ("error_description", refusal.description)])
    }

    /// The targets that the page's `form-action` must allow: Chromium applies it to the redirect that
    /// follows the form as well.
    pub(super) fn form_action(&self) -> String {
        let origin = self.target.origin();
        // A CSP host source has no form for IPv6 addresses, and an app's own scheme has no origin.
        let plain = !matches!(self.target.host(), Some(url::Host::Ipv6(_)));
        if origin.is_tuple() && plain {
            origin.ascii_serialization()
        } else {
            format!("{}:", self.target.scheme())
        }
    }
}

/// The key that binds a page's form to its parameters. It lives as long as the process; a page
/// from before a restart is too old.
pub(super) struct PageSeal([u8; 64]);

impl PageSeal {
    pub(super) fn new(random: &dyn Fn(&mut [u8])) -> Self {
        let mut key = [0; 64];
        random(&mut key);
        Self(key)
    }

    /// The form's CSRF token. There is no session that it could be bound to (in a demo, anyone who answers is
    /// the user, that is the point of a demo), so it proves that this provider made the form for
    /// these parameters, and when.
    pub(super) fn token(&self, request: &AuthorizeRequest, now: u64) -> String {
        let mac = self.mac(request, now).finalize().into_bytes();
        format!("{now}.{}", hex::encode(mac))
    }

    /// Returns `true` if the token is of this request and not too old.
    pub(super) fn fits(&self, request: &AuthorizeRequest, token: &str, now: u64) -> bool {
        let Some((made, mac)) = token.split_once('.') else {
            return false;
        };
        let (Ok(made), Ok(mac)) = (made.parse::<u64>(), hex::decode(mac)) else {
            return false;
        };
        now.saturating_sub(made) < PAGE_MS && self.mac(request, made).verify_slice(&mac).is_ok()
    }

    fn mac(&self, request: &AuthorizeRequest, made: u64) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new(&self.0.into());
        mac.update(&made.to_be_bytes());
        for (name, value) in request.fields() {
            // With lengths, so that no two sets of fields read the same.
            for text in [name, value.as_str()] {
                mac.update(&(text.len() as u64).to_be_bytes());
                mac.update(text.as_bytes());
            }
        }
        mac
    }
}

/// The user that the form names; `None` where it is no name.
pub(super) fn login(user: Option<&str>) -> Option<String> {
    let login = user.map(str::trim).filter(|name| !name.is_empty()).unwrap_or(DEFAULT_USER);
    let fits = login.chars().count() <= MAX_LOGIN_CHARS && !login.contains(char::is_control);
    fits.then(|| login.to_owned())
}

/// A user's stable identifier: unlike the login it is no name, as with real providers.
pub(super) fn subject(login: &str) -> String {
    format!("demo-{}", &digest(login)[..16])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http::header::HeaderValue;

    use super::*;
    use crate::domain::provider::RevocationReach;

    const REDIRECT_URI: &str = "http://127.0.0.1:4000/callback?fixed=1";

    fn settings() -> Settings {
        Settings {
            client_id: "client".to_owned(),
            client_secret: "secret".to_owned(),
            redirect_uris: vec![REDIRECT_URI.to_owned()],
            access_token_lifetime: Duration::from_secs(300),
            refresh_grace: Duration::ZERO,
            revocation_reach: RevocationReach::Grant,
            state_file: None,
            issuer: "http://127.0.0.1:5000".to_owned(),
            clock: Arc::new(|| 0),
            random: Arc::new(|bytes: &mut [u8]| bytes.fill(7)),
        }
    }

    /// A good link's query, with some parameters replaced; `None` leaves one out.
    fn query(changes: &[(&str, Option<&str>)]) -> String {
        let challenge = "c".repeat(43);
        let mut pairs = vec![
            ("response_type", "code"),
            ("client_id", "client"),
            ("redirect_uri", REDIRECT_URI),
            ("scope", "b a"),
            ("state", "s&t"),
            ("code_challenge", challenge.as_str()),
            ("code_challenge_method", "S256"),
        ];
        for (name, value) in changes {
            pairs.retain(|(known, _)| known != name);
            pairs.extend(value.map(|value| (*name, value)));
        }
        url::form_urlencoded::Serializer::new(String::new()).extend_pairs(pairs).finish()
    }

    fn parse(changes: &[(&str, Option<&str>)]) -> Result<AuthorizeRequest, Unacceptable> {
        AuthorizeRequest::parse(&Params::parse(query(changes).as_bytes()), &settings())
    }

    fn good() -> AuthorizeRequest {
        parse(&[]).ok().expect("a good link")
    }

    #[test]
    fn what_is_wrong_with_the_client_is_told_to_the_user() {
        for change in [
            ("client_id", None),
            ("client_id", Some("other")),
            ("redirect_uri", None),
            ("redirect_uri", Some("http://127.0.0.1:4000/callback")),
            ("redirect_uri", Some("http://127.0.0.1:4000/callback?fixed=1&more=2")),
        ] {
            assert!(matches!(parse(&[change]), Err(Unacceptable::Page(_))), "{change:?}");
        }
    }

    #[test]
    fn what_is_wrong_with_the_rest_is_told_to_the_client() {
        for (change, error) in [
            (("response_type", None), "invalid_request"),
            (("response_type", Some("token")), "unsupported_response_type"),
            (("code_challenge", None), "invalid_request"),
            (("code_challenge", Some("short")), "invalid_request"),
            (("code_challenge_method", None), "invalid_request"),
            (("code_challenge_method", Some("plain")), "invalid_request"),
            (("scope", Some("\"")), "invalid_scope"),
        ] {
            match parse(&[change]) {
                Err(Unacceptable::Redirect(_, refusal)) => assert_eq!(refusal.error, error),
                _ => panic!("{change:?} was not sent back"),
            }
        }
    }

    #[test]
    fn the_way_back_keeps_the_query_and_names_state_and_issuer() {
        let response = good().back.redirect(&[("code", "x y")]);
        assert_eq!(response.status(), StatusCode::SEE_OTHER);
        let expected = "http://127.0.0.1:4000/callback?fixed=1&code=x+y&state=s%26t\
                        &iss=http%3A%2F%2F127.0.0.1%3A5000";
        assert_eq!(response.headers().get(LOCATION), Some(&HeaderValue::from_static(expected)));
        assert_eq!(good().back.form_action(), "http://127.0.0.1:4000");
    }

    #[test]
    fn a_page_token_fits_its_own_parameters_for_ten_minutes() {
        let seal = PageSeal::new(&|bytes: &mut [u8]| bytes.fill(9));
        let token = seal.token(&good(), 1000);
        assert!(seal.fits(&good(), &token, 1000 + PAGE_MS - 1));
        assert!(!seal.fits(&good(), &token, 1000 + PAGE_MS));
        assert!(!seal.fits(&good(), "", 1000));
        assert!(!seal.fits(&good(), &token.replace("1000.", "1001."), 1001));
        let wider = parse(&[("scope", Some("a b c"))]).ok().expect("a good link");
        assert!(!seal.fits(&wider, &token, 1000));
    }

    #[test]
    fn a_user_has_a_plain_name_or_the_default_one() {
        assert_eq!(login(None).as_deref(), Some(DEFAULT_USER));
        assert_eq!(login(Some("  ")).as_deref(), Some(DEFAULT_USER));
        assert_eq!(login(Some(" Zoë ")).as_deref(), Some("Zoë"));
        assert_eq!(login(Some("a\nb")), None);
        assert_eq!(login(Some(&"a".repeat(65))), None);
    }
}
