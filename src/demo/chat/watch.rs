//! Follows one authorization in the background.

use token_broker_client::Client;
use token_broker_client::proto::{Authorization, AuthorizationState, WatchAuthorizationRequest};
use tokio::sync::mpsc::UnboundedSender;
use tokio_util::task::AbortOnDropHandle;
use tonic::Status;

/// News of an authorization.
#[derive(Debug)]
pub(super) struct Event {
    pub(super) authorization_id: String,
    pub(super) news: News,
}

#[derive(Debug)]
pub(super) enum News {
    /// It has changed.
    Changed(Box<Authorization>),
    /// The broker no longer reports the authorization's state.
    Lost(Status),
}

/// An authorization that is followed until this is dropped.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) provider: String,
    pub(super) state: AuthorizationState,
    /// `true` if there may be news yet.
    pub(super) open: bool,
    _task: AbortOnDropHandle<()>,
}

impl Watched {
    /// Begins to follow an authorization that was started just now.
    pub(super) fn begin(
        client: Client,
        provider: String,
        authorization_id: String,
        events: UnboundedSender<Event>,
    ) -> Self {
        let task = tokio::spawn(async move {
            let send = |news| {
                // The session that does not listen any more has ended.
                let _ = events.send(Event { authorization_id: authorization_id.clone(), news });
            };
            if let Err(status) = follow(client, &authorization_id, &send).await {
                send(News::Lost(status));
            }
        });
        Self {
            provider,
            state: AuthorizationState::Pending,
            open: true,
            _task: AbortOnDropHandle::new(task),
        }
    }

    /// Takes the news in.
    pub(super) fn note(&mut self, news: &News) {
        match news {
            News::Changed(authorization) => {
                self.state = authorization.state();
                self.open = !is_final(self.state);
            }
            News::Lost(_) => self.open = false,
        }
    }
}

async fn follow(
    mut client: Client,
    authorization_id: &str,
    send: &impl Fn(News),
) -> Result<(), Status> {
    let request = WatchAuthorizationRequest { authorization_id: authorization_id.to_owned() };
    let mut messages = client.watch_authorization(request).await?.into_inner();
    let mut last = AuthorizationState::Pending;
    while let Some(message) = messages.message().await? {
        let authorization = message.authorization.unwrap_or_default();
        let state = authorization.state();
        // The broker repeats itself, so that the connection is not taken for dead.
        if state != last {
            last = state;
            send(News::Changed(Box::new(authorization)));
        }
        if is_final(state) {
            return Ok(());
        }
    }
    Err(Status::unavailable("the broker ended the call"))
}

fn is_final(state: AuthorizationState) -> bool {
    match state {
        AuthorizationState::Unspecified
        | AuthorizationState::Pending
        | AuthorizationState::AwaitingConfirmation => false,
        AuthorizationState::Authorized
        | AuthorizationState::Denied
        | AuthorizationState::Failed
        | AuthorizationState::Expired
        | AuthorizationState::Cancelled => true,
    }
}
