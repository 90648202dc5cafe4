//! The bot's messages, in the wording of Rocket.Chat's OAuth commands.

use std::time::SystemTime;

use prost_types::Timestamp;
use token_broker_client::proto::{
    Authorization, AuthorizationState, Grant, GrantState, Revocation, Token,
};
use token_broker_client::{Reason, Refusal};
use tonic::Status;

use super::browser::{BrowserError, Shown};
use super::command::{Decision, HELP, Misunderstanding};

/// The answer to a command.
#[derive(Debug)]
pub(super) enum Answer {
    /// The link for the user.
    Link(String),
    Confirmed(Grant),
    WrongCode {
        attempts_left: String,
    },
    Token(Token),
    Refreshed,
    Revoked(Revocation),
    Grants(Vec<Grant>),
    NoGrant,
    DeadGrant,
    Browsed(Decision, Shown),
    NotBrowsed(BrowserError),
    NoLink,
    Help,
    Misunderstood(Misunderstanding),
    /// The broker's own words.
    Error(String),
}

impl Answer {
    /// Returns `true` if the command failed, rather than had a plain answer such as that there is no grant.
    pub(super) fn is_failure(&self) -> bool {
        match self {
            Self::WrongCode { .. }
            | Self::NotBrowsed(_)
            | Self::NoLink
            | Self::Misunderstood(_)
            | Self::Error(_) => true,
            Self::Link(_)
            | Self::Confirmed(_)
            | Self::Token(_)
            | Self::Refreshed
            | Self::Revoked(_)
            | Self::Grants(_)
            | Self::NoGrant
            | Self::DeadGrant
            | Self::Browsed(..)
            | Self::Help => false,
        }
    }

    /// The answer in words, without a final newline.
    pub(super) fn text(&self, now: SystemTime) -> String {
        match self {
            Self::Link(url) => format!("Please authorize the app by visiting: {url}"),
            Self::Confirmed(grant) => confirmed(grant),
            Self::WrongCode { attempts_left } => {
                let attempts = if attempts_left == "1" { "attempt" } else { "attempts" };
                format!("That is not the code; {attempts_left} {attempts} left.")
            }
            Self::Token(token) => token_text(token, now),
            Self::Refreshed => "Access token refreshed successfully.".to_owned(),
            Self::Revoked(revocation) => revoked(*revocation).to_owned(),
            Self::Grants(grants) if grants.is_empty() => "No grants.".to_owned(),
            Self::Grants(grants) => {
                let lines: Vec<_> = grants.iter().map(|grant| grant_line(grant, now)).collect();
                lines.join("\n")
            }
            Self::NoGrant => NO_GRANT.to_owned(),
            Self::DeadGrant => "Please authorize the app again: type /oauth.".to_owned(),
            Self::Browsed(decision, shown) => browsed(*decision, shown),
            Self::NotBrowsed(error) => format!("The browser did not get there: {error}."),
            Self::NoLink => "Type /oauth first.".to_owned(),
            Self::Help => HELP.to_owned(),
            Self::Misunderstood(Misunderstanding::Unknown) => {
                "Unknown command; /help lists them.".to_owned()
            }
            Self::Misunderstood(Misunderstanding::CodeMissing) => {
                "Type the code that the page shows: /oauth confirm CODE".to_owned()
            }
            Self::Error(message) => {
                format!("An error occurred while processing the OAuth command: {message}")
            }
        }
    }
}

impl From<Misunderstanding> for Answer {
    fn from(misunderstanding: Misunderstanding) -> Self {
        Self::Misunderstood(misunderstanding)
    }
}

impl From<Status> for Answer {
    fn from(status: Status) -> Self {
        let refusal = Refusal::of(&status);
        match refusal.as_ref().map(|refusal| (&refusal.reason, &refusal.metadata)) {
            Some((Reason::AuthorizationRequired, _)) => Self::NoGrant,
            Some((Reason::ReauthorizationRequired, _)) => Self::DeadGrant,
            Some((Reason::ConfirmationMismatch, metadata)) => Self::WrongCode {
                attempts_left: metadata.get("attempts_left").cloned().unwrap_or_default(),
            },
            _ if status.message().is_empty() => Self::Error(status.code().to_string()),
            _ => Self::Error(status.message().to_owned()),
        }
    }
}

const NO_GRANT: &str = "No access token found. Please authorize the app first.";

fn confirmed(grant: &Grant) -> String {
    let scopes = grant.scopes.join(" ");
    format!("Confirmed. The bot may act for you at {}, with: {scopes}.", provider(grant))
}

fn token_text(token: &Token, now: SystemTime) -> String {
    // Only because a token of the demo is worth nothing: a chat is no place for a credential.
    let shown = format!("Access token: {}", token.access_token);
    match &token.expire_time {
        Some(at) => format!("{shown}\nIt {}.", expiry(at, now)),
        None => format!("{shown}\nThe provider did not say when it expires."),
    }
}

fn revoked(revocation: Revocation) -> &'static str {
    match revocation {
        Revocation::Done => "Access token revoked successfully.",
        Revocation::Pending => {
            "Access token revoked here; the provider will be told as soon as it can be reached."
        }
        Revocation::Unsupported => "Access token deleted; the provider has no way to revoke it.",
        Revocation::NotNeeded => NO_GRANT,
        Revocation::Unspecified => "Access token deleted.",
    }
}

fn grant_line(grant: &Grant, now: SystemTime) -> String {
    let mut facts = Vec::new();
    facts.push(match grant.state() {
        GrantState::Active => "active".to_owned(),
        GrantState::ReauthorizationRequired => "to be authorized again".to_owned(),
        GrantState::Unspecified => "in a state that is not known here".to_owned(),
    });
    if !grant.identity.is_empty() {
        facts.push(format!("as {}", grant.identity));
    }
    facts.push(format!("scopes {}", grant.scopes.join(" ")));
    facts.push(match &grant.expire_time {
        Some(at) => expiry(at, now),
        None => "no expiry known".to_owned(),
    });
    facts.push(if grant.refreshable { "refreshable" } else { "not refreshable" }.to_owned());
    let account = grant.key.as_ref().map_or("", |key| key.account.as_str());
    let account = if account.is_empty() { String::new() } else { format!(" ({account})") };
    format!("{}{account}: {}", provider(grant), facts.join("; "))
}

fn provider(grant: &Grant) -> &str {
    grant.key.as_ref().map_or("", |key| key.provider.as_str())
}

fn browsed(decision: Decision, shown: &Shown) -> String {
    let button = match decision {
        Decision::Allow => "Allow",
        Decision::Deny => "Deny",
    };
    let told = match &shown.code {
        Some(code) => format!("the code {code}"),
        None => format!("\"{}\"", shown.heading),
    };
    format!("The browser opened the link, pressed {button}, and was shown {told}.")
}

/// The moment, and how far off it is.
fn expiry(at: &Timestamp, now: SystemTime) -> String {
    let shown = Timestamp { nanos: 0, ..*at };
    match SystemTime::try_from(*at).map(|at| at.duration_since(now)) {
        Ok(Ok(left)) => format!("expires at {shown}, in {} s", left.as_secs()),
        Ok(Err(_)) => format!("expired at {shown}"),
        Err(_) => format!("expires at {shown}"),
    }
}

/// The bot's message about a change of an authorization. Returns `None` if the user need not know.
pub(super) fn news(authorization: &Authorization) -> Option<String> {
    let text = match authorization.state() {
        AuthorizationState::Unspecified | AuthorizationState::Pending => return None,
        AuthorizationState::AwaitingConfirmation => {
            "You came back from the provider. Type the code that the page shows: \
             /oauth confirm CODE"
                .to_owned()
        }
        AuthorizationState::Authorized => "Authorized. Try /oauth token".to_owned(),
        AuthorizationState::Denied => "You refused at the provider.".to_owned(),
        AuthorizationState::Failed => {
            let Authorization { error, error_description, .. } = authorization;
            format!("The authorization failed ({error}): {error_description}")
        }
        AuthorizationState::Expired => {
            "The link, or its code, is too old. Type /oauth for a new one.".to_owned()
        }
        AuthorizationState::Cancelled => {
            "The authorization that was under way is cancelled.".to_owned()
        }
    };
    Some(text)
}

/// The bot's message when it can no longer watch an authorization.
pub(super) fn lost(message: &str) -> String {
    format!("The bot will not hear when you come back: {message}")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use token_broker_client::proto::GrantKey;

    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn grant() -> Grant {
        Grant {
            key: Some(GrantKey { provider: "demo".to_owned(), ..Default::default() }),
            state: GrantState::Active.into(),
            scopes: vec!["email".to_owned(), "profile".to_owned()],
            expire_time: Some(Timestamp { seconds: 1_000, nanos: 7 }),
            refreshable: true,
            ..Default::default()
        }
    }

    #[test]
    fn a_token_is_shown_with_its_end() {
        let mut token = Token { access_token: "worthless".to_owned(), ..Default::default() };
        token.expire_time = Some(Timestamp { seconds: 1_000, nanos: 5_000 });
        assert_eq!(
            Answer::Token(token.clone()).text(at(700)),
            "Access token: worthless\nIt expires at 1970-01-01T00:16:40Z, in 300 s."
        );
        assert_eq!(
            Answer::Token(token.clone()).text(at(1_001)),
            "Access token: worthless\nIt expired at 1970-01-01T00:16:40Z."
        );
        token.expire_time = None;
        assert_eq!(
            Answer::Token(token).text(at(700)),
            "Access token: worthless\nThe provider did not say when it expires."
        );
    }

    #[test]
    fn grants_are_listed_a_line_each() {
        assert_eq!(Answer::Grants(Vec::new()).text(at(700)), "No grants.");
        let dead = Grant {
            key: Some(GrantKey {
                provider: "other".to_owned(),
                account: "work".to_owned(),
                ..Default::default()
            }),
            state: GrantState::ReauthorizationRequired.into(),
            identity: "you@example.com".to_owned(),
            expire_time: None,
            refreshable: false,
            ..grant()
        };
        assert_eq!(
            Answer::Grants(vec![grant(), dead]).text(at(700)),
            "demo: active; scopes email profile; expires at 1970-01-01T00:16:40Z, in 300 s; \
             refreshable\n\
             other (work): to be authorized again; as you@example.com; scopes email profile; \
             no expiry known; not refreshable"
        );
    }

    #[test]
    fn what_the_broker_cannot_do_is_told_in_its_words() {
        let answer = Answer::from(Status::unavailable("the broker's database cannot be used"));
        assert!(answer.is_failure());
        assert_eq!(
            answer.text(at(0)),
            "An error occurred while processing the OAuth command: the broker's database cannot \
             be used"
        );
    }

    #[test]
    fn that_there_is_nothing_is_no_failure() {
        for answer in [Answer::NoGrant, Answer::Revoked(Revocation::NotNeeded)] {
            assert!(!answer.is_failure());
            assert_eq!(
                answer.text(at(0)),
                "No access token found. Please authorize the app first."
            );
        }
        assert!(!Answer::DeadGrant.is_failure());
        assert!(Answer::WrongCode { attempts_left: "0".to_owned() }.is_failure());
    }

    #[test]
    fn attempts_are_counted() {
        let text = |left: &str| Answer::WrongCode { attempts_left: left.to_owned() }.text(at(0));
        assert_eq!(text("4"), "That is not the code; 4 attempts left.");
        assert_eq!(text("1"), "That is not the code; 1 attempt left.");
    }

    #[test]
    fn news_are_only_what_the_user_needs_to_know() {
        let news = |state: AuthorizationState| {
            news(&Authorization { state: state.into(), ..Default::default() })
        };
        assert_eq!(news(AuthorizationState::Pending), None);
        assert_eq!(
            news(AuthorizationState::Authorized).as_deref(),
            Some("Authorized. Try /oauth token")
        );
        // A state of a later version.
        let later = Authorization { state: 99, ..Default::default() };
        assert_eq!(super::news(&later), None);
    }
}
