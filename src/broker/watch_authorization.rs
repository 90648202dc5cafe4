//! GetAuthorization and WatchAuthorization: the present state of one authorization, and its changes.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::time::Instant;

use super::watchers::{Observation, Watching};
use super::{AuthorizationService, BrokerError};
use crate::domain::authorization::{Authorization, State};
use crate::domain::bot::Bot;
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::name::Name;

/// After how long without a change a watcher is sent the same again: balancers close streams that are
/// silent for longer.
const HEARTBEAT: Duration = Duration::from_millis(19_500);

/// An authorization for a caller.
#[derive(Debug, Clone)]
pub struct View {
    /// The authorization.
    pub authorization: Authorization,
    /// Its state when it was read.
    pub state: State,
    /// The grant that it left, once it is authorized.
    pub grant: Option<Grant>,
}

impl AuthorizationService {
    /// One authorization of the bot's namespace.
    ///
    /// # Errors
    ///
    /// [`BrokerError::AuthorizationNotFound`], or where storage is away.
    pub async fn get_authorization(&self, bot: &Bot, id: Id) -> Result<View, BrokerError> {
        let view = self.view(&bot.namespace, id).await?;
        let key = &view.authorization.key;
        // What another bot of a shared namespace may do and this one may not looks absent.
        if bot.may_use(key.provider.as_str()) && bot.may_act_for(key.subject.as_str()) {
            return Ok(view);
        }
        Err(BrokerError::AuthorizationNotFound { id: Some(id.to_string()) })
    }

    pub(super) async fn view(&self, namespace: &Name, id: Id) -> Result<View, BrokerError> {
        let seen = self
            .authorizations
            .find_authorization(Some(namespace), id)
            .await?
            .ok_or(BrokerError::AuthorizationNotFound { id: Some(id.to_string()) })?;
        let state = seen.state();
        let authorization = seen.authorization;
        let grant = match state {
            State::Authorized => self.grants.find_grant_without_token(&authorization.key).await?,
            _ => None,
        };
        Ok(View { authorization, state, grant })
    }

    /// The authorization now, at every change, and at least every 20 s; ends after a final state.
    ///
    /// # Errors
    ///
    /// As [`AuthorizationService::get_authorization`]; the stream also ends with an error when the broker
    /// drains, so that the caller turns to another replica.
    pub async fn watch_authorization(
        self: &Arc<Self>,
        bot: &Bot,
        id: Id,
    ) -> Result<impl Stream<Item = Result<View, BrokerError>> + Send + use<>, BrokerError> {
        let first = self.get_authorization(bot, id).await?;
        let watch = Watch {
            service: Arc::clone(self),
            namespace: bot.namespace.clone(),
            id,
            changes: self.watchers.watch(id),
            last: None,
        };
        Ok(futures::stream::unfold(Next::Tell(watch, Box::new(first)), |next| async {
            match next {
                Next::End => None,
                Next::Tell(watch, view) => Some(watch.tell(*view)),
                Next::Wait(mut watch) => match watch.change().await {
                    Ok(view) => Some(watch.tell(view)),
                    Err(error) => Some((Err(error), Next::End)),
                },
            }
        }))
    }
}

enum Next {
    Tell(Watch, Box<View>),
    Wait(Watch),
    End,
}

struct Watch {
    service: Arc<AuthorizationService>,
    namespace: Name,
    id: Id,
    changes: Watching,
    /// The last message to the caller, and its time.
    last: Option<(View, Instant)>,
}

impl Watch {
    fn tell(mut self, view: View) -> (Result<View, BrokerError>, Next) {
        let next = if view.state.is_final() {
            Next::End
        } else {
            self.last = Some((view.clone(), Instant::now()));
            Next::Wait(self)
        };
        (Ok(view), next)
    }

    /// Waits for another state than the caller was sent last, or for the time of a heartbeat.
    async fn change(&mut self) -> Result<View, BrokerError> {
        loop {
            let heartbeat = self.last.as_ref().map_or_else(Instant::now, |(_, at)| *at + HEARTBEAT);
            tokio::select! {
                seen = self.changes.changed() => match seen {
                    Observation::Failed => return Err(BrokerError::StorageUnavailable),
                    Observation::State(state) if self.sent(&state) => continue,
                    Observation::State(_) | Observation::Gone => {}
                },
                () = tokio::time::sleep_until(heartbeat) => {
                    if let Some((view, _)) = &self.last {
                        return Ok(view.clone());
                    }
                }
                () = self.service.tasks.draining().cancelled() => return Err(BrokerError::Overloaded),
            }
            let (service, namespace, id) =
                (Arc::clone(&self.service), self.namespace.clone(), self.id);
            let view = async move { service.view(&namespace, id).await };
            let view = self.service.tasks.detached(view);
            let view = view.await??;
            if !self.sent(&view.state) {
                return Ok(view);
            }
        }
    }

    fn sent(&self, state: &State) -> bool {
        self.last.as_ref().is_some_and(|(view, _)| public(&view.state) == public(state))
    }
}

/// To callers an exchange is still pending.
fn public(state: &State) -> State {
    match state {
        State::Exchanging => State::Pending,
        state => state.clone(),
    }
}
