//! Debug of the messages that hold a secret.

use std::fmt;

use crate::proto::{ConfirmAuthorizationRequest, Token};

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("token_type", &self.token_type)
            .field("expire_time", &self.expire_time)
            .field("scopes", &self.scopes)
            .field("etag", &self.etag)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for ConfirmAuthorizationRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfirmAuthorizationRequest")
            .field("subject", &self.subject)
            .field("authorization_id", &self.authorization_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_secret() {
        let token = Token { access_token: "secret-token".into(), ..Default::default() };
        let response = crate::proto::GetTokenResponse { token: Some(token) };
        assert!(!format!("{response:?}").contains("secret-token"));
        let request = ConfirmAuthorizationRequest { code: "12345678".into(), ..Default::default() };
        assert!(!format!("{request:?}").contains("12345678"));
    }
}
