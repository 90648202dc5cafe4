//! A user's browser, as far as OAuth needs one: cookies by origin, redirects by hand, forms.

use std::collections::HashMap;

use reqwest::header::{COOKIE, HeaderMap, LOCATION, SET_COOKIE};
use url::Url;

/// A browser with its own cookies.
pub struct Browser {
    client: reqwest::Client,
    /// By origin, then name.
    pub cookies: HashMap<String, HashMap<String, String>>,
}

/// What the browser shows in the end.
#[derive(Debug)]
pub struct Page {
    pub url: Url,
    pub status: u16,
    pub headers: HeaderMap,
    pub body: String,
}

impl Browser {
    pub fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .expect("a client");
        Self { client, cookies: HashMap::new() }
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
