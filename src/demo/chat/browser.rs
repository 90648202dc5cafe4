//! Plays the user's browser: opens a link, answers the demo provider's page, and reads the result
//! page. It goes to loopback addresses only.

mod page;

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use cookie::Cookie;
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http::{HeaderMap, StatusCode};
use url::{Host, Url};

use super::command::Decision;

/// The time that one page may take. The result page waits for the broker's own call to the provider.
const TIMEOUT: Duration = Duration::from_secs(20);

/// The number of redirects that are followed from one page to the next.
const MAX_REDIRECTS: usize = 10;

/// A browser, with its cookies by host. As in a real one, the port makes no difference; their
/// paths and lifetimes do not matter here.
pub(super) struct Browser {
    http: reqwest::Client,
    cookies: BTreeMap<String, BTreeMap<String, String>>,
}

/// The last page that the browser shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Shown {
    /// The page's heading.
    pub(super) heading: String,
    /// The code for the chat, as the page shows it.
    pub(super) code: Option<String>,
}

/// Why the browser did not get to the end.
#[derive(Debug, thiserror::Error)]
pub(super) enum BrowserError {
    /// A link leads away from this machine, or is none.
    #[error("it opens links to this machine only, which this is not: {0}")]
    NotHere(String),
    /// A server does not answer.
    #[error("no answer ({0})")]
    NoAnswer(String),
    /// Redirects without end.
    #[error("it was sent on more than {MAX_REDIRECTS} times")]
    Redirects,
    /// A page that is not the one that should come next.
    #[error("a page with status {status} says \"{heading}\"")]
    Page { status: u16, heading: String },
}

struct Page {
    url: Url,
    status: StatusCode,
    html: String,
}

impl Browser {
    pub(super) fn new() -> Result<Self, reqwest::Error> {
        // Fails where one has been installed already, which then serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            // By hand, so that it stays on this machine.
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .timeout(TIMEOUT)
            .build()?;
        Ok(Self { http, cookies: BTreeMap::new() })
    }

    /// Opens an authorization link, presses a button, and waits for the page that follows.
    pub(super) async fn visit(
        &mut self,
        link: &str,
        decision: Decision,
    ) -> Result<Shown, BrowserError> {
        let link = Url::parse(link).map_err(|_| BrowserError::NotHere(link.to_owned()))?;
        let asked = self.open(link, None).await?;
        let csrf = match page::csrf(&asked.html) {
            Some(csrf) if asked.status == StatusCode::OK => csrf.to_owned(),
            _ => return Err(asked.unexpected()),
        };
        let form = form(&asked.url, csrf, decision);
        let mut action = asked.url;
        action.set_query(None);
        let result = self.open(action, Some(form)).await?;
        if result.status != StatusCode::OK {
            return Err(result.unexpected());
        }
        let code = page::confirmation_code(&result.html).map(str::to_owned);
        Ok(Shown { heading: result.heading(), code })
    }

    /// Opens a page, by POST where there is a form, and goes where it leads.
    async fn open(
        &mut self,
        mut url: Url,
        mut form: Option<Vec<(String, String)>>,
    ) -> Result<Page, BrowserError> {
        for _ in 0..=MAX_REDIRECTS {
            let host = loopback_host(&url)?;
            let request = match form.take() {
                Some(form) => self.http.post(url.clone()).form(&form),
                // After a redirect, always: the demo's answer forms with 303.
                None => self.http.get(url.clone()),
            };
            let request = match self.cookie_header(&host) {
                Some(cookies) => request.header(COOKIE, cookies),
                None => request,
            };
            let response = request.send().await.map_err(no_answer)?;
            self.keep_cookies(host, response.headers());
            let status = response.status();
            match location(&url, status, response.headers()) {
                Some(next) => url = next?,
                None => {
                    let html = response.text().await.map_err(no_answer)?;
                    return Ok(Page { url, status, html });
                }
            }
        }
        Err(BrowserError::Redirects)
    }

    fn keep_cookies(&mut self, host: String, headers: &HeaderMap) {
        let cookies = self.cookies.entry(host).or_default();
        let set = headers.get_all(SET_COOKIE).into_iter().filter_map(|value| value.to_str().ok());
        for cookie in set.filter_map(|text| Cookie::parse(text).ok()) {
            cookies.insert(cookie.name().to_owned(), cookie.value().to_owned());
        }
    }

    fn cookie_header(&self, host: &str) -> Option<String> {
        let cookies = self.cookies.get(host).filter(|cookies| !cookies.is_empty())?;
        let pairs: Vec<_> = cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        Some(pairs.join("; "))
    }
}

impl Page {
    fn heading(&self) -> String {
        page::heading(&self.html).unwrap_or("nothing").to_owned()
    }

    fn unexpected(&self) -> BrowserError {
        BrowserError::Page { status: self.status.as_u16(), heading: self.heading() }
    }
}

/// The answer to the provider's page: the link's own parameters, as the page's hidden fields repeat
/// them, and what the user decides.
fn form(page: &Url, csrf: String, decision: Decision) -> Vec<(String, String)> {
    let decision = match decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    };
    page.query_pairs()
        .map(|(name, value)| (name.into_owned(), value.into_owned()))
        .chain([("csrf".to_owned(), csrf), ("decision".to_owned(), decision.to_owned())])
        .collect()
}

/// The host of a URL that leads to this machine.
fn loopback_host(url: &Url) -> Result<String, BrowserError> {
    let here = match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name == "localhost",
        None => false,
    };
    match url.host_str() {
        Some(host) if here && url.scheme() == "http" => Ok(host.to_owned()),
        // Without its path and query, which may hold a secret.
        _ => Err(BrowserError::NotHere(url.origin().ascii_serialization())),
    }
}

/// Returns the target of a redirect, or `None` if the answer is no redirect.
fn location(
    from: &Url,
    status: StatusCode,
    headers: &HeaderMap,
) -> Option<Result<Url, BrowserError>> {
    let location = headers.get(LOCATION).filter(|_| status.is_redirection())?;
    let target = location.to_str().ok().and_then(|location| from.join(location).ok());
    Some(target.ok_or_else(|| BrowserError::NotHere("a redirect to what is no URL".to_owned())))
}

/// The innermost cause; without the URL, which may hold a secret.
fn no_answer(error: reqwest::Error) -> BrowserError {
    let error = error.without_url();
    let mut cause: &dyn Error = &error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    BrowserError::NoAnswer(cause.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text).expect("a URL")
    }

    #[test]
    fn it_stays_on_this_machine() {
        for here in ["http://127.0.0.1:8080/x?a=b", "http://[::1]:1/", "http://localhost/"] {
            assert!(loopback_host(&url(here)).is_ok(), "{here}");
        }
        for elsewhere in [
            "http://192.0.2.1/",
            "http://0.0.0.0/",
            "https://127.0.0.1/",
            "http://localhost.example.com/",
            "http://127.0.0.1.example.com/",
            "file:///etc/hosts",
        ] {
            assert!(loopback_host(&url(elsewhere)).is_err(), "{elsewhere}");
        }
        let told = loopback_host(&url("https://example.com/?code=secret")).err();
        assert!(told.is_some_and(|error| !error.to_string().contains("secret")));
    }

    #[test]
    fn redirects_are_read() {
        let from = url("http://127.0.0.1:1/a/b?c=d");
        let mut headers = HeaderMap::new();
        assert!(location(&from, StatusCode::SEE_OTHER, &headers).is_none());
        headers.insert(LOCATION, "?e=f".parse().expect("a header"));
        let target = location(&from, StatusCode::SEE_OTHER, &headers).and_then(Result::ok);
        assert_eq!(target, Some(url("http://127.0.0.1:1/a/b?e=f")));
        // Of a page that was made there, not a redirect.
        assert!(location(&from, StatusCode::CREATED, &headers).is_none());
        headers.insert(LOCATION, "http://[".parse().expect("a header"));
        assert!(location(&from, StatusCode::SEE_OTHER, &headers).is_some_and(|to| to.is_err()));
    }

    #[test]
    fn cookies_stay_with_their_host() {
        let mut browser = Browser::new().expect("a client");
        let mut headers = HeaderMap::new();
        headers.append(SET_COOKIE, "a=1; Path=/; HttpOnly".parse().expect("a header"));
        headers.append(SET_COOKIE, "b=2".parse().expect("a header"));
        browser.keep_cookies("127.0.0.1".to_owned(), &headers);
        assert_eq!(browser.cookie_header("127.0.0.1").as_deref(), Some("a=1; b=2"));
        assert_eq!(browser.cookie_header("localhost"), None);
        headers.clear();
        headers.append(SET_COOKIE, "a=3".parse().expect("a header"));
        browser.keep_cookies("127.0.0.1".to_owned(), &headers);
        assert_eq!(browser.cookie_header("127.0.0.1").as_deref(), Some("a=3; b=2"));
    }

    #[test]
    fn the_form_repeats_the_link() {
        let page = url("http://127.0.0.1:1/authorize?scope=a+b&state=s%26t");
        let pairs = form(&page, "1.ab".to_owned(), Decision::Deny);
        let pairs: Vec<_> = pairs.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        assert_eq!(
            pairs,
            [("scope", "a b"), ("state", "s&t"), ("csrf", "1.ab"), ("decision", "deny")]
        );
    }
}
