//! Runs commands for one chat user.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use token_broker_client::Client;
use token_broker_client::proto::{
    AuthorizationState, AuthorizeRequest, ConfirmAuthorizationRequest, GetTokenRequest, GrantKey,
    ListGrantsRequest, RefreshRequest, RevokeRequest,
};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Status;

use super::answer::{self, Answer};
use super::browser::Browser;
use super::command::{Command, Decision};
use super::console::Console;
use super::watch::{Event, News, Watched};
use super::{ChatError, Settings};

/// The time that a command waits for the news that it must have caused. The broker looks for them
/// twice a second.
const NEWS_WAIT: Duration = Duration::from_secs(5);

/// The bot's memory of its chat with one user.
pub(super) struct Session {
    client: Client,
    subject: String,
    provider: String,
    browser: Browser,
    link: Option<Link>,
    /// By authorization id.
    watched: BTreeMap<String, Watched>,
    sender: mpsc::UnboundedSender<Event>,
    events: mpsc::UnboundedReceiver<Event>,
}

/// The last link that the bot gave.
#[derive(Clone)]
struct Link {
    authorization_id: String,
    url: String,
}

impl Session {
    pub(super) fn new(settings: Settings) -> Result<Self, ChatError> {
        let Settings { client, subject, provider, interactive: _ } = settings;
        let browser = Browser::new().map_err(ChatError::Browser)?;
        let (sender, events) = mpsc::unbounded_channel();
        let watched = BTreeMap::new();
        Ok(Self { client, subject, provider, browser, link: None, watched, sender, events })
    }

    /// The next news. May be dropped and asked again.
    pub(super) async fn event(&mut self) -> Event {
        match self.events.recv().await {
            Some(event) => event,
            // Not while there is a sender here.
            None => std::future::pending().await,
        }
    }

    /// Shows an event to the user.
    pub(super) fn tell(&mut self, event: Event, console: &Console) -> Result<(), ChatError> {
        if let Some(watched) = self.watched.get_mut(&event.authorization_id) {
            watched.note(&event.news);
        }
        let text = match &event.news {
            News::Changed(authorization) => answer::news(authorization),
            News::Lost(status) => Some(answer::lost(status.message())),
        };
        text.map_or(Ok(()), |text| console.say(&text))
    }

    /// Runs a command to its end, with the news that it causes. Whether it succeeded.
    pub(super) async fn execute(
        &mut self,
        command: Command,
        console: &Console,
    ) -> Result<bool, ChatError> {
        let answer = match command {
            Command::Authorize { provider } => self.authorize(provider).await,
            Command::Token { provider } => self.token(provider).await,
            Command::Refresh { provider } => self.refresh(provider).await,
            Command::List { provider } => self.list(provider).await,
            Command::Help => Ok(Answer::Help),
            Command::Confirm { code } => return self.confirm(code, console).await,
            Command::Revoke { provider } => return self.revoke(provider, console).await,
            Command::Browser(decision) => return self.browse(decision, console).await,
            // The one who reads the lines sees to it.
            Command::Quit => return Ok(true),
        };
        say(&answer.unwrap_or_else(Answer::from), console)
    }

    async fn authorize(&mut self, provider: Option<String>) -> Result<Answer, Status> {
        let key = self.key(provider);
        let provider = key.provider.clone();
        let request = AuthorizeRequest { key: Some(key), ..Default::default() };
        let started = self.client.authorize(request).await?.into_inner();
        let id = started.authorization_id;
        let watched =
            Watched::begin(self.client.clone(), provider, id.clone(), self.sender.clone());
        self.watched.retain(|_, watched| watched.open);
        self.watched.insert(id.clone(), watched);
        let url = started.authorization_url;
        self.link = Some(Link { authorization_id: id, url: url.clone() });
        Ok(Answer::Link(url))
    }

    async fn token(&mut self, provider: Option<String>) -> Result<Answer, Status> {
        let request = GetTokenRequest { key: Some(self.key(provider)), ..Default::default() };
        let response = self.client.get_token(request).await?.into_inner();
        Ok(Answer::Token(response.token.unwrap_or_default()))
    }

    async fn refresh(&mut self, provider: Option<String>) -> Result<Answer, Status> {
        let request = RefreshRequest { key: Some(self.key(provider)), ..Default::default() };
        self.client.refresh(request).await?;
        Ok(Answer::Refreshed)
    }

    async fn list(&mut self, provider: Option<String>) -> Result<Answer, Status> {
        let mut request = ListGrantsRequest {
            provider: provider.unwrap_or_default(),
            subject: self.subject.clone(),
            ..Default::default()
        };
        let mut grants = Vec::new();
        loop {
            let page = self.client.list_grants(request.clone()).await?.into_inner();
            grants.extend(page.grants);
            if page.next_page_token.is_empty() {
                return Ok(Answer::Grants(grants));
            }
            request.page_token = page.next_page_token;
        }
    }

    async fn confirm(&mut self, code: String, console: &Console) -> Result<bool, ChatError> {
        let awaiting: Vec<_> = self.watched_ids(|watched| {
            watched.open && watched.state == AuthorizationState::AwaitingConfirmation
        });
        let subject = self.subject.clone();
        // Without an id: the code identifies the authorization.
        let request = ConfirmAuthorizationRequest { subject, code, ..Default::default() };
        let answer = match self.client.confirm_authorization(request).await {
            Ok(response) => Answer::Confirmed(response.into_inner().grant.unwrap_or_default()),
            Err(status) => status.into(),
        };
        let succeeded = say(&answer, console)?;
        // News of one where the code fitted; of all where none has an attempt left.
        match &answer {
            Answer::Confirmed(_) => {
                let before = self.count_open(&awaiting);
                self.hear(console, |session| session.count_open(&awaiting) < before.max(1)).await?;
            }
            Answer::WrongCode { attempts_left } if attempts_left == "0" => {
                self.hear(console, |session| session.count_open(&awaiting) == 0).await?;
            }
            _ => {}
        }
        Ok(succeeded)
    }

    async fn revoke(
        &mut self,
        provider: Option<String>,
        console: &Console,
    ) -> Result<bool, ChatError> {
        let key = self.key(provider);
        // Those end with the grant.
        let under_way =
            self.watched_ids(|watched| watched.open && watched.provider == key.provider);
        let answer = match self.client.revoke(RevokeRequest { key: Some(key) }).await {
            Ok(response) => Answer::Revoked(response.into_inner().revocation()),
            Err(status) => status.into(),
        };
        let succeeded = say(&answer, console)?;
        if matches!(answer, Answer::Revoked(_)) {
            self.hear(console, |session| session.count_open(&under_way) == 0).await?;
        }
        Ok(succeeded)
    }

    /// Plays the user's browser, and the user who types the code.
    async fn browse(&mut self, decision: Decision, console: &Console) -> Result<bool, ChatError> {
        let Some(link) = self.link.clone() else { return say(&Answer::NoLink, console) };
        let shown = match self.browser.visit(&link.url, decision).await {
            Ok(shown) => shown,
            Err(error) => return say(&Answer::NotBrowsed(error), console),
        };
        let code = shown.code.clone();
        say(&Answer::Browsed(decision, shown), console)?;
        let id = &link.authorization_id;
        self.hear(console, |session| !session.is_pending(id)).await?;
        match (decision, code) {
            (Decision::Allow, Some(code)) => {
                console.type_line(&format!("/oauth confirm {code}"))?;
                self.confirm(code, console).await
            }
            (Decision::Allow, None) => Ok(self.state(id) == Some(AuthorizationState::Authorized)),
            (Decision::Deny, _) => Ok(self.state(id) == Some(AuthorizationState::Denied)),
        }
    }

    /// Shows events until `enough`, or until no more can be expected.
    async fn hear(
        &mut self,
        console: &Console,
        enough: impl Fn(&Self) -> bool,
    ) -> Result<(), ChatError> {
        let deadline = Instant::now() + NEWS_WAIT;
        while !enough(self) {
            match tokio::time::timeout_at(deadline, self.event()).await {
                Ok(event) => self.tell(event, console)?,
                Err(_) => break,
            }
        }
        Ok(())
    }

    fn key(&self, provider: Option<String>) -> GrantKey {
        GrantKey {
            provider: provider.unwrap_or_else(|| self.provider.clone()),
            subject: self.subject.clone(),
            account: String::new(),
        }
    }

    fn is_pending(&self, authorization_id: &str) -> bool {
        self.watched
            .get(authorization_id)
            .is_some_and(|watched| watched.open && watched.state == AuthorizationState::Pending)
    }

    fn state(&self, authorization_id: &str) -> Option<AuthorizationState> {
        self.watched.get(authorization_id).map(|watched| watched.state)
    }

    fn watched_ids(&self, wanted: impl Fn(&Watched) -> bool) -> Vec<String> {
        let wanted = self.watched.iter().filter(|(_, watched)| wanted(watched));
        wanted.map(|(id, _)| id.clone()).collect()
    }

    fn count_open(&self, ids: &[String]) -> usize {
        let open = |id: &&String| self.watched.get(*id).is_some_and(|watched| watched.open);
        ids.iter().filter(open).count()
    }
}

/// Says an answer; whether it is of a command that succeeded.
fn say(answer: &Answer, console: &Console) -> Result<bool, ChatError> {
    console.say(&answer.text(now()))?;
    Ok(!answer.is_failure())
}

/// The time, to say how long a token works yet.
#[expect(
    clippy::disallowed_methods,
    reason = "this is a bot, a program of its own, which can't ask the broker's database"
)]
pub(super) fn now() -> SystemTime {
    SystemTime::now()
}
