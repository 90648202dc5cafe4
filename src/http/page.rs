//! The result pages. No script, no token, nothing of the query but known error codes.

use askama::Template;
use axum::http::StatusCode;
use axum::response::{Html, IntoResponse, Response};
use url::Url;

use crate::broker::callback::{CallbackError, CallbackOutcome};
use crate::telemetry;

#[derive(Template)]
#[template(path = "result.html")]
struct Page {
    heading: &'static str,
    paragraphs: Vec<String>,
    code: Option<ConfirmationCode>,
    link: Option<Link>,
    trace_id: Option<String>,
}

struct ConfirmationCode {
    /// In two groups, for reading.
    shown: String,
    bot: String,
    subject: String,
    minutes: u64,
}

struct Link {
    text: &'static str,
    url: String,
}

impl Page {
    fn new(heading: &'static str) -> Self {
        Self { heading, paragraphs: Vec::new(), code: None, link: None, trace_id: None }
    }

    fn say(mut self, sentence: impl Into<String>) -> Self {
        self.paragraphs.push(sentence.into());
        self
    }

    fn back_to(mut self, return_url: Option<&String>) -> Self {
        self.link = return_url.map(|url| Link { text: "Back to the chat", url: url.clone() });
        self
    }

    /// Offers the start link, where it still works.
    fn start_again(mut self, start: Option<&Url>) -> Self {
        match start {
            Some(url) => {
                self.link = Some(Link { text: "Start again", url: url.to_string() });
                self
            }
            None => self.say("The link has ended: ask the bot in your chat for a new one."),
        }
    }

    fn answer(self, status: StatusCode) -> Response {
        match self.render() {
            Ok(html) => (status, Html(html)).into_response(),
            Err(error) => {
                tracing::error!(%error, "cannot render a page");
                StatusCode::INTERNAL_SERVER_ERROR.into_response()
            }
        }
    }
}

pub(super) fn of_callback(outcome: &CallbackOutcome) -> Response {
    match outcome {
        CallbackOutcome::Confirm { code, bot, subject, provider, ttl, return_url } => {
            let (first, second) = code.split_at(code.len() / 2);
            let mut page = Page::new("One more step")
                .say(format!("{provider} has answered. Is it you who asked for this?"))
                .back_to(return_url.as_ref());
            page.code = Some(ConfirmationCode {
                shown: format!("{first} {second}"),
                bot: bot.to_string(),
                subject: subject.as_str().to_owned(),
                minutes: ttl.as_secs().div_ceil(60),
            });
            page.answer(StatusCode::OK)
        }
        CallbackOutcome::Authorized { provider, return_url } => Page::new("All done")
            .say(format!("The bot can use {provider} for you now. You can close this page."))
            .back_to(return_url.as_ref())
            .answer(StatusCode::OK),
        CallbackOutcome::Denied { provider, return_url } => Page::new("Nothing was shared")
            .say(format!("You refused at {provider}, so the bot got nothing."))
            .say("If you change your mind, ask the bot for a new link.")
            .back_to(return_url.as_ref())
            .answer(StatusCode::OK),
        CallbackOutcome::CallbackError(problem) => self::problem(problem),
    }
}

pub(super) fn problem(problem: &CallbackError) -> Response {
    let (page, status) = match problem {
        CallbackError::UnknownLink | CallbackError::UnknownRedirect => (
            Page::new("This link is not known")
                .say("Was it copied whole? If so, ask the bot in your chat for a new one."),
            StatusCode::BAD_REQUEST,
        ),
        CallbackError::EndedLink => (
            Page::new("This link no longer works").say(
                "It was used, cancelled, or is too old. Ask the bot in your chat for a new one.",
            ),
            StatusCode::BAD_REQUEST,
        ),
        CallbackError::OtherBrowser { start } => (
            Page::new("Another browser, or no cookie")
                .say(
                    "The sign-in has to end in the browser in which it began, and that browser \
                     has to keep this site's cookie.",
                )
                .say("Start again here, if it was you who asked the bot for this.")
                .start_again(start.as_ref()),
            StatusCode::BAD_REQUEST,
        ),
        CallbackError::UsedRedirect { start } => {
            let page = Page::new("This page was used before");
            let page = match start {
                Some(_) => page.say("Start again here.").start_again(start.as_ref()),
                None => page.say(
                    "The sign-in went on in another tab: look for the code there, or ask the bot \
                     in your chat for a new link.",
                ),
            };
            (page, StatusCode::BAD_REQUEST)
        }
        CallbackError::WrongRedirect { start } => (
            Page::new("The answer cannot be used")
                .say("What came back from the provider is not of its form. Nothing was stored.")
                .start_again(start.as_ref()),
            StatusCode::BAD_REQUEST,
        ),
        CallbackError::RefusedCode { start } => (
            Page::new("The provider did not take it")
                .say("It refused its own code, as it does when a page is left open for too long.")
                .start_again(start.as_ref()),
            StatusCode::BAD_GATEWAY,
        ),
        CallbackError::ProviderFailed { provider, error } => (
            Page::new("The provider did not play along")
                .say(format!("{provider} answered with an error{}.", known(error)))
                .say("Ask the bot in your chat for a new link and try again later."),
            StatusCode::BAD_GATEWAY,
        ),
        CallbackError::ProviderAway { provider } => (
            Page::new("The provider does not answer")
                .say(format!("{provider} cannot be reached at the moment."))
                .say("Reload this page in a minute."),
            StatusCode::BAD_GATEWAY,
        ),
        CallbackError::Misconfigured { provider } => (
            Page::new("This service is not set up rightly")
                .say(format!("What it was told of {provider} does not fit."))
                .say("Its operator finds the reason in the log."),
            StatusCode::BAD_GATEWAY,
        ),
        CallbackError::Failed { description } => {
            (Page::new("It did not work").say(description.clone()), StatusCode::BAD_REQUEST)
        }
        CallbackError::Unavailable | CallbackError::Outage => (
            Page::new("Not now")
                .say("The service cannot take this at the moment. Reload this page in a minute."),
            StatusCode::SERVICE_UNAVAILABLE,
        ),
    };
    // An outage is logged once, and not for each page.
    let is_logged = *problem != CallbackError::Outage;
    let page = Page { trace_id: is_logged.then(telemetry::trace_id), ..page };
    page.answer(status)
}

pub(super) async fn not_found() -> Response {
    Page::new("There is nothing here")
        .say("Links to this service come from a bot in your chat.")
        .answer(StatusCode::NOT_FOUND)
}

/// The error codes of RFC 6749 sections 4.1.2.1 and 5.2; any other is for the log alone.
fn known(error: &str) -> String {
    let known = [
        "invalid_request",
        "unauthorized_client",
        "unsupported_response_type",
        "invalid_scope",
        "server_error",
        "temporarily_unavailable",
        "invalid_client",
        "invalid_grant",
        "unsupported_grant_type",
    ];
    if known.contains(&error) { format!(" ({error})") } else { String::new() }
}
