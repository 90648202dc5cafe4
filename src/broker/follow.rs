//! GetAuthorization and WatchAuthorization: one authorization as it stands, and as it goes on.

use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use tokio::time::Instant;

use super::{Broker, BrokerError};
use crate::domain::authorization::{Authorization, State};
use crate::domain::bot::Bot;
use crate::domain::grant::Grant;
use crate::domain::id::Id;
use crate::domain::name::Name;

/// How often an authorization that is watched is read; jitter of as much again is added, so that
/// watchers do not move in step.
const POLL: Duration = Duration::from_millis(250);

/// How long a watcher hears nothing at most: balancers close streams that are silent for longer.
const HEARTBEAT: Duration = Duration::from_secs(20);

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

impl Broker {
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
            .storage
            .find_authorization(Some(namespace), id)
            .await?
            .ok_or(BrokerError::AuthorizationNotFound { id: Some(id.to_string()) })?;
        let state = seen.state();
        let authorization = seen.authorization;
        let grant = match state {
            State::Authorized => {
                self.storage.find_grant(&authorization.key).await?.map(|held| held.grant)
            }
            _ => None,
        };
        Ok(View { authorization, state, grant })
    }

    /// The authorization now, at every change, and at least every 20 s; ends after a final state.
    ///
    /// # Errors
    ///
    /// As [`Broker::get_authorization`]; the stream also ends with an error when the broker
    /// drains, so that the caller turns to another replica.
    pub async fn watch_authorization(
        self: &Arc<Self>,
        bot: &Bot,
        id: Id,
    ) -> Result<impl Stream<Item = Result<View, BrokerError>> + Send + use<>, BrokerError> {
        let first = self.get_authorization(bot, id).await?;
        let watch = Watch {
            broker: Arc::clone(self),
            namespace: bot.namespace.clone(),
            id,
            told: None,
            told_at: Instant::now(),
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
    broker: Arc<Broker>,
    namespace: Name,
    id: Id,
    told: Option<State>,
    told_at: Instant,
}

impl Watch {
    fn tell(mut self, view: View) -> (Result<View, BrokerError>, Next) {
        let next = if view.state.is_final() {
            Next::End
        } else {
            self.told = Some(public(&view.state));
            self.told_at = Instant::now();
            Next::Wait(self)
        };
        (Ok(view), next)
    }

    async fn change(&mut self) -> Result<View, BrokerError> {
        loop {
            let pause = POLL + self.broker.random.jitter(POLL);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.broker.draining.cancelled() => return Err(BrokerError::Overloaded),
            }
            let view = self.broker.view(&self.namespace, self.id).await?;
            let changed = self.told.as_ref() != Some(&public(&view.state));
            if changed || self.told_at.elapsed() >= HEARTBEAT - 2 * POLL {
                return Ok(view);
            }
        }
    }
}

/// To callers an exchange is still pending.
fn public(state: &State) -> State {
    match state {
        State::Exchanging => State::Pending,
        state => state.clone(),
    }
}
