//! URLs that people and secrets are sent to.

use url::Url;

/// An `https` URL (or `http` on loopback) without user information and without a fragment, which
/// an endpoint must not have (RFC 6749 sections 3.1 and 3.2).
///
/// # Errors
///
/// What is wrong and what to write instead, without the text itself.
pub fn endpoint(text: &str) -> Result<Url, String> {
    let form = || "must be an absolute https URL; http is allowed on loopback only".to_owned();
    // The parser drops or rewrites these, so that the URL would not be the one that was written.
    if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return Err("must have no white space and no backslash; write it without".to_owned());
    }
    let url = Url::parse(text).map_err(|_| form())?;
    let secure = match url.scheme() {
        "https" => url.has_host(),
        "http" => is_loopback(&url),
        _ => false,
    };
    if !secure {
        return Err(form());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must have no user information; remove what stands before the @".to_owned());
    }
    if url.fragment().is_some() {
        return Err("must have no fragment; remove the # and what follows".to_owned());
    }
    Ok(url)
}

/// The same without a query, as an issuer must be (RFC 8414 section 2) and as a URL must be to
/// which paths are appended.
///
/// # Errors
///
/// What is wrong and what to write instead, without the text itself.
pub fn base(text: &str) -> Result<Url, String> {
    let url = endpoint(text)?;
    if url.query().is_some() {
        return Err("must have no query; remove the ? and what follows".to_owned());
    }
    Ok(url)
}

/// Returns `true` if the URL's host is this machine: `localhost`, 127.0.0.0/8 or `[::1]`.
#[must_use]
pub fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_keep_a_secret() {
        for text in [
            "https://login.acme.example/token",
            "https://login.acme.example/token?tenant=a",
            "http://localhost:8080/token",
            "http://127.0.0.1/token",
            "http://[::1]:1/token",
        ] {
            assert_eq!(endpoint(text).map(|url| url.to_string()), Ok(text.to_owned()));
        }
        for text in [
            "",
            "/token",
            "login.acme.example/token",
            "http://login.acme.example/token",
            "http://localhost.evil.example/",
            "https://user@login.acme.example/",
            "https://:word@login.acme.example/",
            "https://login.acme.example/#a",
            "https:\\\\login.acme.example/",
            "https://login.acme.example/ token",
            "ftp://login.acme.example/",
        ] {
            assert!(endpoint(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_base_has_no_query() {
        assert!(base("https://broker.example.com/prefix").is_ok());
        assert!(base("https://broker.example.com/?").is_err());
        assert!(base("https://broker.example.com/?a=b").is_err());
    }
}
