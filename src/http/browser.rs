//! The cookie that holds the browser's secret.

use axum::http::{HeaderMap, header};
use cookie::{Cookie, SameSite};
use url::Url;

use crate::broker::BrowserSecret;

/// The time for which a browser keeps its secret: longer than any link works.
const LIFETIME: cookie::time::Duration = cookie::time::Duration::days(30);

/// The most cookies of the broker's name that are looked at.
const MOST: usize = 4;

/// The secrets that the browser sent. A browser may have a stale cookie beside a valid one of the same name. Cookies of
/// other applications may have any bytes.
pub(super) fn secrets(headers: &HeaderMap, public_url: &Url) -> Vec<BrowserSecret> {
    let name = cookie_name(public_url);
    headers
        .get_all(header::COOKIE)
        .iter()
        .map(|value| String::from_utf8_lossy(value.as_bytes()))
        .flat_map(Cookie::split_parse)
        .filter_map(Result::ok)
        .filter(|cookie| cookie.name() == name)
        .filter_map(|cookie| BrowserSecret::parse(cookie.value()))
        .take(MOST)
        .collect()
}

/// The `Set-Cookie` header.
///
/// Lax, because the redirect from the provider is a top-level navigation from another site.
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
        let found = |headers: &HeaderMap| -> Vec<String> {
            secrets(headers, &public).iter().map(BrowserSecret::cookie_value).collect()
        };
        assert_eq!(found(&headers), [browser.cookie_value()]);
        // Bytes of another application's cookie, and two of the broker's, the first one stale.
        let stale = BrowserSecret::new(&Random::seeded(2)).cookie_value();
        let name = "__Host-token-broker";
        let mut value = b"other=\xe4\xff; ".to_vec();
        value.extend(format!("{name}={stale}; {name}={}", browser.cookie_value()).bytes());
        let value = axum::http::HeaderValue::from_bytes(&value).expect("a header");
        headers.insert(header::COOKIE, value);
        assert_eq!(found(&headers), [stale, browser.cookie_value()]);
        // A plain cookie, which any sibling host can set, does not count on https.
        let value = format!("token-broker={}", browser.cookie_value());
        headers.insert(header::COOKIE, value.parse().expect("a header"));
        assert!(found(&headers).is_empty());
    }
}
