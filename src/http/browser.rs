//! The cookie that holds the browser's secret.

use axum::http::{HeaderMap, header};
use cookie::{Cookie, SameSite};
use url::Url;

use crate::broker::BrowserSecret;

/// How long a browser keeps its secret: longer than any link works.
const LIFETIME: cookie::time::Duration = cookie::time::Duration::days(30);

/// The secret that the browser sent. Absent where there is none, or none of the form.
pub(super) fn secret(headers: &HeaderMap, public_url: &Url) -> Option<BrowserSecret> {
    let name = cookie_name(public_url);
    headers
        .get_all(header::COOKIE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(Cookie::split_parse)
        .filter_map(Result::ok)
        .find(|cookie| cookie.name() == name)
        .and_then(|cookie| BrowserSecret::parse(cookie.value()))
}

/// The `Set-Cookie` header.
///
/// Lax, for the redirect from the provider is a top-level navigation from another site.
pub(super) fn set_cookie(browser: &BrowserSecret, public_url: &Url) -> String {
    Cookie::build((cookie_name(public_url), browser.cookie_value()))
        .path("/")
        .http_only(true)
        .secure(is_https(public_url))
        .same_site(SameSite::Lax)
        .max_age(LIFETIME)
        .build()
        .to_string()
}

/// `__Host-`: only this very host can have set it, over https. On loopback http, where Safari
/// takes no secure cookie, a plain name.
fn cookie_name(public_url: &Url) -> &'static str {
    if is_https(public_url) { "__Host-token-broker" } else { "token-broker" }
}

fn is_https(public_url: &Url) -> bool {
    public_url.scheme() == "https"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypto::random::Random;

    #[test]
    fn the_cookie_is_bound_to_the_host() {
        let browser = BrowserSecret::new(&Random::seeded(1));
        let public = Url::parse("https://broker.example.com").expect("a URL");
        let header = set_cookie(&browser, &public);
        for part in ["__Host-token-broker=", "HttpOnly", "SameSite=Lax", "Secure", "Path=/"] {
            assert!(header.contains(part), "{header}");
        }
        assert!(!header.contains("Domain"));
        let loopback = Url::parse("http://127.0.0.1:8080").expect("a URL");
        let header = set_cookie(&browser, &loopback);
        assert!(header.starts_with("token-broker=") && !header.contains("Secure"), "{header}");
    }

    #[test]
    fn the_cookie_is_found_among_others() {
        let public = Url::parse("https://broker.example.com").expect("a URL");
        let browser = BrowserSecret::new(&Random::seeded(1));
        let mut headers = HeaderMap::new();
        let value = format!("a=b; __Host-token-broker={}; c", browser.cookie_value());
        headers.insert(header::COOKIE, value.parse().expect("a header"));
        assert_eq!(
            secret(&headers, &public).map(|found| found.cookie_value()),
            Some(browser.cookie_value())
        );
        // A plain cookie, which any sibling host can set, does not count on https.
        let value = format!("token-broker={}", browser.cookie_value());
        headers.insert(header::COOKIE, value.parse().expect("a header"));
        assert!(secret(&headers, &public).is_none());
    }
}
