//! CancelAuthorization: the link no longer works, and tokens that awaited confirmation go.

use super::access::disposal;
use super::watch_authorization::View;
use super::{AuthorizationService, BrokerError};
use crate::domain::authorization::State;
use crate::domain::bot::Bot;
use crate::domain::id::Id;

impl AuthorizationService {
    /// Cancels an authorization of the bot's namespace. One that is final stays as it is.
    ///
    /// # Errors
    ///
    /// [`BrokerError::AuthorizationNotFound`], or where storage is away.
    pub async fn cancel(&self, bot: &Bot, id: Id) -> Result<View, BrokerError> {
        let view = self.get_authorization(bot, id).await?;
        // The link of one that an error in a redirect ended may still work.
        if view.state.is_final() && !matches!(view.state, State::Denied(_) | State::Failed(_)) {
            return Ok(view);
        }
        let disposal = disposal(&self.providers, &view.authorization.key.provider);
        self.authorizations.cancel_authorization(&view.authorization, &disposal).await?;
        let after = self.get_authorization(bot, id).await?;
        if after.state == State::Cancelled {
            self.metrics.authorization(&after.authorization.key.provider, "cancelled");
            tracing::info!(authorization.id = %id, "authorization cancelled");
        }
        Ok(after)
    }
}
