//! CancelAuthorization: the link no longer works, and tokens that awaited confirmation go.

use super::follow::View;
use super::{Broker, BrokerError};
use crate::domain::bot::Bot;
use crate::domain::id::Id;

impl Broker {
    /// Cancels an authorization of the bot's namespace. One that is final stays as it is.
    ///
    /// # Errors
    ///
    /// [`BrokerError::AuthorizationNotFound`], or where storage is away.
    pub async fn cancel(&self, bot: &Bot, id: Id) -> Result<View, BrokerError> {
        let view = self.get_authorization(bot, id).await?;
        if view.state.is_final() {
            return Ok(view);
        }
        let disposal = self.disposal(&view.authorization.key.provider);
        self.storage.cancel_authorization(&view.authorization, &disposal).await?;
        tracing::info!(authorization.id = %id, "authorization cancelled");
        self.get_authorization(bot, id).await
    }
}
