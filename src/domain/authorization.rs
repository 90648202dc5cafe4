//! One run of a flow, from Authorize to its final state.

use std::time::Duration;

use super::grant::GrantKey;
use super::id::Id;
use super::name::Name;
use super::scope::Scopes;
use super::time::Timestamp;

/// The number of codes that may be tried against one authorization before it fails.
pub const MAX_CONFIRMATION_ATTEMPTS: u32 = 5;

/// The number of codes that a provider may refuse before an authorization fails. Below that the
/// authorization stays pending: garbage from another person must not end the user's flow.
pub const MAX_REFUSED_CODES: u32 = 5;

/// The number of redirects that are recorded for one authorization. Anyone who has the link can make more.
pub const MAX_ATTEMPTS: u64 = 32;

/// The time after the end of the link within which a browser may still come back from the provider.
pub const REDIRECT_GRACE: Duration = Duration::from_secs(5 * 60);

/// The time for which a final authorization can still be read.
pub const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);

/// The time for which an exchange may be under way before it counts as lost with its replica: the HTTP call
/// takes 10 s at most, and an answer that cannot be stored is held for as long as this.
pub const EXCHANGE_LIMIT: Duration = Duration::from_secs(120);

/// An authorization as stored, without the token answer that awaits confirmation.
#[derive(Debug, Clone)]
pub struct Authorization {
    /// The row, and the name that callers know.
    pub id: Id,
    /// The grant it will leave.
    pub key: GrantKey,
    /// The bot that called Authorize.
    pub bot: Name,
    /// The requested scopes.
    pub scopes: Scopes,
    /// The other options of the request.
    pub options: Options,
    /// The present state.
    pub state: State,
    /// A code was exchanged for it, or is being exchanged.
    pub is_exchanged: bool,
    /// Until when the start link works.
    pub link_expires_at: Timestamp,
    /// Until when the present state lasts at most.
    pub expires_at: Timestamp,
}

/// Options that travel with an authorization.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// The address to which the browser goes from the result page. Checked against the bot's policy at Authorize.
    pub return_url: Option<String>,
    /// Passed to the provider as `login_hint` (OpenID Connect Core section 3.1.2.1).
    pub login_hint: Option<String>,
}

/// The flow that an authorization runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// RFC 6749 section 4.1, with PKCE (RFC 7636).
    AuthorizationCode,
    /// RFC 8628.
    DeviceCode,
}

/// The state of an authorization.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// The user has not come back yet.
    Pending,
    /// The code is being exchanged. To callers this is still `Pending`.
    Exchanging,
    /// The sealed tokens await the code from the result page.
    AwaitingConfirmation,
    /// Final: the grant is stored.
    Authorized,
    /// Final: the user refused.
    Denied(Failure),
    /// Final: the provider, the exchange or the confirmation failed.
    Failed(Failure),
    /// Final: the sign-in or the confirmation came too late.
    Expired,
    /// Final: by CancelAuthorization or Revoke.
    Cancelled,
}

/// Why an authorization ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The OAuth error code, or one of the broker's own.
    pub error: String,
    /// A sentence for the user.
    pub description: String,
}

impl Failure {
    /// A failure with the broker's own words.
    #[must_use]
    pub fn new(error: &str, description: &str) -> Self {
        Self { error: error.to_owned(), description: description.to_owned() }
    }

    /// Returns `true` if the words are the broker's own, and not about what the provider answered.
    #[must_use]
    pub fn is_own(&self) -> bool {
        [Self::too_many_wrong_codes(), Self::exchange_interrupted()]
            .iter()
            .any(|own| own.error == self.error)
    }

    /// Five wrong confirmation codes.
    #[must_use]
    pub fn too_many_wrong_codes() -> Self {
        Self::new(
            "too_many_wrong_codes",
            "The confirmation code was wrong too often. Ask the bot for a new link.",
        )
    }

    /// The replica that exchanged the code ended before it could store the answer.
    #[must_use]
    pub fn exchange_interrupted() -> Self {
        Self::new(
            "exchange_interrupted",
            "The sign-in was interrupted. Ask the bot for a new link.",
        )
    }
}

impl State {
    /// Returns `true` if nothing can change any more.
    #[must_use]
    pub fn is_final(&self) -> bool {
        !matches!(self, Self::Pending | Self::Exchanging | Self::AwaitingConfirmation)
    }

    /// The word in the database, and in error metadata.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Exchanging => "exchanging",
            Self::AwaitingConfirmation => "awaiting_confirmation",
            Self::Authorized => "authorized",
            Self::Denied(_) => "denied",
            Self::Failed(_) => "failed",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }
}

impl Authorization {
    /// The state at `now`: what waited for too long has ended, whether or not the sweep has
    /// been there yet.
    #[must_use]
    pub fn state_at(&self, now: Timestamp) -> State {
        match &self.state {
            State::Pending | State::AwaitingConfirmation if now >= self.expires_at => {
                State::Expired
            }
            State::Exchanging if now >= self.expires_at => {
                State::Failed(Failure::exchange_interrupted())
            }
            state => state.clone(),
        }
    }

    /// Returns `true` if the start link works at `now`.
    #[must_use]
    pub fn link_works(&self, now: Timestamp) -> bool {
        let is_open = matches!(self.state, State::Pending | State::Exchanging) || self.is_refused();
        is_open && now < self.link_expires_at
    }

    /// Returns `true` if a redirect may still complete the authorization at `now`.
    #[must_use]
    pub fn takes_redirects(&self, now: Timestamp) -> bool {
        match self.state {
            State::Pending => now < self.expires_at,
            _ => self.is_refused() && now < self.link_expires_at + REDIRECT_GRACE,
        }
    }

    /// Returns `true` if it ended by an error in a redirect. Anyone who has the link can forge one, so a later redirect
    /// may still complete the authorization while its link works.
    fn is_refused(&self) -> bool {
        matches!(self.state, State::Denied(_) | State::Failed(_)) && !self.is_exchanged
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::grant::{Account, Subject};

    fn authorization(state: State) -> Authorization {
        let name = |text| Name::parse(text).expect("a name");
        Authorization {
            id: Id::from_bytes([1; 16]),
            key: GrantKey {
                namespace: name("helper"),
                provider: name("acme"),
                subject: Subject::parse("u1").expect("a subject"),
                account: Account::default(),
            },
            bot: name("helper"),
            scopes: Scopes::default(),
            options: Options::default(),
            state,
            is_exchanged: false,
            link_expires_at: Timestamp::from_millis(1_000),
            expires_at: Timestamp::from_millis(2_000),
        }
    }

    #[test]
    fn waiting_states_end_by_themselves() {
        let at = Timestamp::from_millis;
        assert_eq!(authorization(State::Pending).state_at(at(1_999)), State::Pending);
        assert_eq!(authorization(State::Pending).state_at(at(2_000)), State::Expired);
        assert_eq!(authorization(State::AwaitingConfirmation).state_at(at(2_000)), State::Expired);
        assert!(matches!(authorization(State::Exchanging).state_at(at(2_000)), State::Failed(_)));
        assert_eq!(authorization(State::Authorized).state_at(at(9_000)), State::Authorized);
    }

    #[test]
    fn the_link_ends_before_the_redirect_does() {
        let pending = authorization(State::Pending);
        assert!(pending.link_works(Timestamp::from_millis(999)));
        assert!(!pending.link_works(Timestamp::from_millis(1_000)));
        assert!(!authorization(State::Authorized).link_works(Timestamp::from_millis(0)));
    }

    #[test]
    fn an_error_in_a_redirect_does_not_end_the_link() {
        let at = Timestamp::from_millis;
        let mut denied = authorization(State::Denied(Failure::new("access_denied", "")));
        assert!(denied.link_works(at(999)) && denied.takes_redirects(at(999)));
        // A redirect that is on its way may still come.
        assert!(!denied.link_works(at(1_000)) && denied.takes_redirects(at(1_000)));
        let end = at(1_000) + REDIRECT_GRACE;
        assert!(!denied.takes_redirects(end));
        denied.is_exchanged = true;
        assert!(!denied.link_works(at(999)) && !denied.takes_redirects(at(999)));
    }
}
