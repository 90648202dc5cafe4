//! The provider's counts, for tests.

use std::collections::BTreeMap;

use super::state::digest;

/// The counts since the provider was made, and the present number of tokens.
///
/// Calls are counted when they arrive, whichever answer they get, scripted answers included;
/// the other counts are of things that took effect. Nothing of it survives a restart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Authorization pages that asked the user; error pages don't count.
    pub authorize_pages: usize,
    /// Calls of the token endpoint.
    pub token_calls: usize,
    /// Token calls with `grant_type=authorization_code`.
    pub code_exchanges: usize,
    /// Token calls with `grant_type=refresh_token`.
    pub refreshes: usize,
    /// Codes that were given to the client.
    pub codes_issued: usize,
    /// Token calls that issued tokens.
    pub tokens_issued: usize,
    /// Codes that came a second time, each of which ended its tokens.
    pub code_replays: usize,
    /// Refresh tokens that came a second time, each of which ended its family.
    pub reuse_detections: usize,
    /// Refresh tokens that came again within the grace, and worked.
    pub repeats: usize,
    /// Refresh tokens that came though a token that had come of them was used already: their sender
    /// had the answer.
    pub sends_of_superseded: usize,
    /// Refresh tokens that came while another call with the same one was under way.
    pub overlaps: usize,
    /// Calls of the revocation endpoint.
    pub revoke_calls: usize,
    /// Revocation calls that ended a living token.
    pub revocations: usize,
    /// Access tokens that work at the time of the snapshot.
    pub living_access_tokens: usize,
    /// Refresh tokens that work at the time of the snapshot.
    pub living_refresh_tokens: usize,
    /// By hash, so that a ledger in a failed test's output shows no token.
    refreshes_by_token: BTreeMap<String, usize>,
}

impl Ledger {
    /// The number of token calls with this refresh token.
    #[must_use]
    pub fn refreshes_of(&self, refresh_token: &str) -> usize {
        self.refreshes_by_token.get(&digest(refresh_token)).copied().unwrap_or_default()
    }

    /// The number of token calls with the refresh token that came most often.
    #[must_use]
    pub fn most_refreshes_of_one_token(&self) -> usize {
        self.refreshes_by_token.values().copied().max().unwrap_or_default()
    }

    pub(super) fn token_call_arrived(
        &mut self,
        grant_type: Option<&str>,
        refresh_token: Option<&str>,
    ) {
        self.token_calls += 1;
        match grant_type {
            Some("authorization_code") => self.code_exchanges += 1,
            Some("refresh_token") => {
                self.refreshes += 1;
                if let Some(token) = refresh_token {
                    *self.refreshes_by_token.entry(digest(token)).or_default() += 1;
                }
            }
            _ => {}
        }
    }
}
