//! A user's browser, as far as OAuth needs one: cookies by origin, redirects by hand, forms.

use std::collections::HashMap;

use reqwest::header::{COOKIE, HeaderMap, LOCATION, SET_COOKIE};
use scraper::{Html, Selector};
use url::Url;

/// A browser with its own cookies.
pub struct Browser {
    client: reqwest::Client,
    /// By origin, then name.
    pub cookies: HashMap<String, HashMap<String, String>>,
}

/// Somebody with an account at an authorization server.
pub struct User {
    pub name: &'static str,
    pub password: &'static str,
}

/// The one user that every server of the tests has.
pub const ALICE: User = User { name: "alice", password: "correct horse battery" };

/// What the browser shows in the end.
#[derive(Debug)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

/// A client that follows nothing.
pub fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .build()
        .expect("a client")
}

impl Browser {
    pub fn new() -> Self {
        Self { client: client(), cookies: HashMap::new() }
    }

    /// One GET, without following anything.
    pub async fn get(&mut self, url: &str) -> Page {
        let url: Url = url.parse().expect("a URL");
        let request = self.client.get(url.clone());
        self.send(url, request).await
    }

    /// One POST of a form, without following anything.
    pub async fn post(&mut self, url: &str, form: &[(String, String)]) -> Page {
        let url: Url = url.parse().expect("a URL");
        let request = self.client.post(url.clone()).form(form);
        self.send(url, request).await
    }

    async fn send(&mut self, url: Url, mut request: reqwest::RequestBuilder) -> Page {
        let origin = url.origin().ascii_serialization();
        if let Some(cookies) = self.cookies.get(&origin) {
            let pairs: Vec<_> = cookies.iter().map(|(k, v)| format!("{k}={v}")).collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        let response = request.send().await.expect("an answer");
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        for cookie in headers.get_all(SET_COOKIE) {
            let text = cookie.to_str().expect("a cookie");
            let pair = text.split(';').next().unwrap_or_default();
            let (name, value) = pair.split_once('=').expect("a cookie");
            let jar = self.cookies.entry(origin.clone()).or_default();
            jar.insert(name.to_owned(), value.to_owned());
        }
        Page { url, status, headers, body: response.text().await.expect("a body") }
    }

    /// Opens a start link and goes through the pages of a real authorization server as `user`, who
    /// agrees to everything. Gives the redirect URI that the browser is sent to in the end, unopened.
    pub async fn sign_in(&mut self, link: &str, user: &User, redirect_uri: &str) -> Url {
        let mut page = self.get(link).await;
        // More pages than any server has.
        for _ in 0..30 {
            page = match page.location() {
                Some(next) if next.as_str().starts_with(redirect_uri) => return next,
                Some(next) => self.get(next.as_str()).await,
                None => {
                    let (target, form) = page.filled_in(user);
                    self.post(target.as_str(), &form).await
                }
            };
        }
        panic!("no redirect after many pages: {page:?}");
    }

    /// Follows redirects from a page until one is shown.
    pub async fn follow(&mut self, mut page: Page) -> Page {
        while let Some(next) = page.location() {
            page = self.get(next.as_str()).await;
        }
        page
    }

    /// Opens a start link, and gives the provider's page.
    pub async fn open(&mut self, link: &str) -> Page {
        let page = self.get(link).await;
        self.follow(page).await
    }

    /// Presses a button on the provider's page, and gives the redirect URI that the provider sends
    /// the browser to, unopened.
    pub async fn decide(&mut self, page: &Page, decision: &str) -> Url {
        let mut form: Vec<(String, String)> = page.url.query_pairs().into_owned().collect();
        form.push(("csrf".into(), page.field("csrf").expect("a csrf field")));
        form.push(("decision".into(), decision.into()));
        let mut target = page.url.clone();
        target.set_query(None);
        let answer = self.post(target.as_str(), &form).await;
        assert_eq!(answer.status, 303, "{}", answer.body);
        answer.location().expect("a redirect")
    }

    /// Opens a start link, allows, and gives the result page.
    pub async fn allow(&mut self, link: &str) -> Page {
        let redirect = self.redirect_of(link, "allow").await;
        let page = self.get(redirect.as_str()).await;
        self.follow(page).await
    }

    /// Opens a start link, decides, and gives the redirect URI, unopened.
    pub async fn redirect_of(&mut self, link: &str, decision: &str) -> Url {
        let page = self.open(link).await;
        assert_eq!(page.status, 200, "{}", page.body);
        self.decide(&page, decision).await
    }
}

impl Page {
    /// Where a redirect leads.
    pub fn location(&self) -> Option<Url> {
        let location = self.headers.get(LOCATION)?.to_str().expect("a URL");
        Some(self.url.join(location).expect("a URL"))
    }

    /// The page's one form as a user fills it in who agrees to what is asked.
    fn filled_in(&self, user: &User) -> (Url, Vec<(String, String)>) {
        assert_eq!(self.status, 200, "{}", self.body);
        let document = Html::parse_document(&self.body);
        let select = |selector: &str| Selector::parse(selector).expect("a selector");
        let form = document.select(&select("form")).next();
        let form = form.unwrap_or_else(|| panic!("no form in {}", self.body));
        let mut fields = Vec::new();
        for input in form.select(&select("input[name]")) {
            let value = input.attr("value").unwrap_or_default();
            let name = input.attr("name").unwrap_or_default();
            let value = match (input.attr("type").unwrap_or("text"), name) {
                ("hidden", _) => value,
                ("password", _) => user.password,
                ("text" | "email", "login" | "username") => user.name,
                _ => continue,
            };
            fields.push((name.to_owned(), value.to_owned()));
        }
        let agree = form.select(&select("button[name][value=accept]")).next();
        if let Some(name) = agree.and_then(|button| button.attr("name")) {
            fields.push((name.to_owned(), "accept".to_owned()));
        }
        let target = self.url.join(form.attr("action").unwrap_or_default()).expect("a URL");
        (target, fields)
    }

    /// The value of a hidden field.
    pub fn field(&self, name: &str) -> Option<String> {
        let start = self.body.find(&format!("name=\"{name}\""))?;
        let rest = self.body[start..].split_once("value=\"")?.1;
        Some(rest.split('"').next()?.to_owned())
    }

    /// The digits of the confirmation code, as they are shown.
    pub fn confirmation_code(&self) -> Option<String> {
        let rest = self.body.split_once("id=\"confirmation-code\">")?.1;
        Some(rest.split('<').next()?.to_owned())
    }

    /// The one heading.
    pub fn heading(&self) -> String {
        let rest = self.body.split_once("<h1>").expect("a heading").1;
        rest.split('<').next().unwrap_or_default().to_owned()
    }
}
