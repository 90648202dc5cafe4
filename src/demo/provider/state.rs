//! Codes, grants and tokens: what the provider remembers. Time and randomness are handed in.
//!
//! A grant is what one user allowed once; all tokens that come of one code are its family. It ends
//! as a whole, and with it goes everything that points to it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use super::wire::{self, Refusal};
use super::{Ledger, SetupError};
use crate::domain::provider::RevocationReach;

/// The time for which a code can be exchanged (RFC 6749 section 4.1.2 allows ten minutes at most).
pub(super) const CODE_MS: u64 = 60 * 1000;

/// The least number of access tokens at which the dead ones are thrown out.
const TIDY_AT: usize = 1000;

/// The surroundings of one change.
pub(super) struct Moment<'a> {
    /// Milliseconds since the epoch.
    pub(super) now: u64,
    pub(super) random: &'a dyn Fn(&mut [u8]),
    /// The lifetime of access tokens that are issued now.
    pub(super) access_token_ms: u64,
    /// For how long after its first use a refresh token works again.
    pub(super) refresh_grace_ms: u64,
    pub(super) revocation_reach: RevocationReach,
}

impl Moment<'_> {
    /// A value with 256 random bits; RFC 6749 section 10.10 asks for 128.
    fn fresh(&self, prefix: &str) -> String {
        let mut bytes = [0; 32];
        (self.random)(&mut bytes);
        format!("{prefix}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

/// The form in which a token or code is kept: its SHA-256, in hexadecimal digits. Salt and stretching would add
/// nothing to 256 random bits.
pub(super) fn digest(value: &str) -> String {
    hex::encode(Sha256::digest(value))
}

/// A code on its way to the client, with all that it is bound to.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct OpenCode {
    pub(super) client_id: String,
    pub(super) redirect_uri: String,
    pub(super) challenge: String,
    pub(super) scopes: BTreeSet<String>,
    pub(super) login: String,
}

/// A token call with a code.
pub(super) struct Exchange {
    pub(super) client_id: String,
    pub(super) code: String,
    pub(super) redirect_uri: String,
    pub(super) verifier: String,
}

/// A token call with a refresh token.
pub(super) struct Refresh {
    pub(super) client_id: String,
    pub(super) token: String,
    /// The scopes that the access token is narrowed to.
    pub(super) scopes: Option<BTreeSet<String>>,
}

/// The tokens of one answer. No `Debug`: values stay out of logs.
pub(super) struct Issued {
    pub(super) access_token: String,
    pub(super) refresh_token: String,
    /// In seconds.
    pub(super) expires_in: u64,
    pub(super) scope: String,
}

type GrantId = u64;

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Code {
    Open {
        bound_to: OpenCode,
        expires: u64,
    },
    /// Remembered as long as its grant lives, so that a second use is noticed.
    Spent {
        grant: GrantId,
    },
}

#[derive(Clone, Serialize, Deserialize)]
struct Grant {
    client_id: String,
    login: String,
    scopes: BTreeSet<String>,
}

#[derive(Clone, Serialize, Deserialize)]
struct AccessToken {
    grant: GrantId,
    expires: u64,
}

#[derive(Clone, Serialize, Deserialize)]
struct RefreshToken {
    grant: GrantId,
    /// When it was first used. Spent ones are remembered as long as their grant lives, so that reuse
    /// is noticed.
    #[serde(default)]
    spent_at: Option<u64>,
    /// The spent tokens, by digest.
    #[serde(default)]
    parent: Option<String>,
    /// `true` if a token that came of it has been used: its answer had arrived.
    #[serde(default)]
    superseded: bool,
}

/// Everything that the provider remembers. Codes and tokens are keyed by their [`digest`].
#[derive(Clone, Default, Serialize, Deserialize)]
pub(super) struct Records {
    codes: BTreeMap<String, Code>,
    grants: BTreeMap<GrantId, Grant>,
    access_tokens: BTreeMap<String, AccessToken>,
    refresh_tokens: BTreeMap<String, RefreshToken>,
    /// Ids are never given twice, so that nothing can point to a later grant.
    next_grant: GrantId,
    /// After how many access tokens the dead ones are thrown out next.
    #[serde(skip)]
    tidy_at: usize,
    /// Its living counts are filled in by [`Records::snapshot`].
    #[serde(skip)]
    pub(super) ledger: Ledger,
}

impl Records {
    /// Reads the state file; a missing one is an empty state.
    pub(super) fn load(path: &Path) -> Result<Self, SetupError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(source) => return Err(SetupError::Read { path: path.to_owned(), source }),
        };
        serde_json::from_slice(&text)
            .map_err(|source| SetupError::Damaged { path: path.to_owned(), source })
    }

    /// Replaces the state file as a whole: after a crash there is the old one or the new one.
    pub(super) fn save(&self, path: &Path) -> io::Result<()> {
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        // In the same folder, because a rename is atomic only within one file system.
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&serde_json::to_vec_pretty(self)?)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|failed| failed.error)?;
        // The rename is an entry of the folder, and has to be synced there.
        #[cfg(unix)]
        std::fs::File::open(folder)?.sync_all()?;
        Ok(())
    }

    /// Makes a code for what the user allowed.
    pub(super) fn open_code(&mut self, bound_to: OpenCode, moment: &Moment<'_>) -> String {
        self.forget_the_dead(moment.now);
        let code = moment.fresh("demo-code-");
        let expires = moment.now.saturating_add(CODE_MS);
        self.codes.insert(digest(&code), Code::Open { bound_to, expires });
        self.ledger.codes_issued += 1;
        code
    }

    /// Exchanges a code for tokens.
    pub(super) fn exchange(
        &mut self,
        exchange: &Exchange,
        moment: &Moment<'_>,
    ) -> Result<Issued, Refusal> {
        self.forget_the_dead(moment.now);
        let key = digest(&exchange.code);
        let bound_to = match self.codes.get(&key) {
            None => return Err(Refusal::invalid_grant("the code is unknown or expired")),
            Some(Code::Spent { grant }) => {
                // RFC 6749 section 4.1.2: another person has the code, so its tokens are not safe.
                let grant = *grant;
                self.end_grant(grant);
                self.ledger.code_replays += 1;
                return Err(Refusal::invalid_grant("the code was used before"));
            }
            Some(Code::Open { bound_to, .. }) => bound_to,
        };
        // A mistaken call leaves the code open: without the verifier it is of no use to a thief.
        if bound_to.client_id != exchange.client_id {
            return Err(Refusal::invalid_grant("the code was made for another client"));
        }
        if bound_to.redirect_uri != exchange.redirect_uri {
            return Err(Refusal::invalid_grant("redirect_uri is not that of the authorization"));
        }
        if !verifier_fits(&exchange.verifier, &bound_to.challenge) {
            return Err(Refusal::invalid_grant("code_verifier does not fit code_challenge"));
        }
        let OpenCode { client_id, login, scopes, .. } = bound_to.clone();
        let grant = self.next_grant;
        self.next_grant += 1;
        self.codes.insert(key, Code::Spent { grant });
        let issued = self.issue(grant, None, &scopes, moment);
        self.grants.insert(grant, Grant { client_id, login, scopes });
        Ok(issued)
    }

    /// A grant without its flow.
    pub(super) fn grant(
        &mut self,
        client_id: String,
        login: String,
        scopes: BTreeSet<String>,
        moment: &Moment<'_>,
    ) -> Issued {
        let grant = self.next_grant;
        self.next_grant += 1;
        let issued = self.issue(grant, None, &scopes, moment);
        self.grants.insert(grant, Grant { client_id, login, scopes });
        issued
    }

    /// Rotates a refresh token (RFC 9700 section 4.14.2): the old one is spent, and if it ever
    /// comes again, two parties have it and the whole family ends. Within the grace, and while
    /// nothing that came of it has been used, its answer may have been lost: then it works again.
    pub(super) fn refresh(
        &mut self,
        refresh: &Refresh,
        moment: &Moment<'_>,
    ) -> Result<Issued, Refusal> {
        self.forget_the_dead(moment.now);
        let unknown = Refusal::invalid_grant("the refresh token is unknown or was revoked");
        let key = digest(&refresh.token);
        let Some(token) = self.refresh_tokens.get_mut(&key) else {
            return Err(unknown);
        };
        let id = token.grant;
        let Some(grant) = self.grants.get(&id) else {
            return Err(unknown);
        };
        // RFC 6749 section 10.4; another client's attempt says nothing about the token's owner.
        if grant.client_id != refresh.client_id {
            return Err(unknown);
        }
        let superseded = token.superseded;
        self.ledger.sends_of_superseded += usize::from(superseded);
        let in_time = |at: u64| moment.now <= at.saturating_add(moment.refresh_grace_ms);
        let has_grace = moment.refresh_grace_ms > 0;
        if token.spent_at.is_some_and(|at| superseded || !has_grace || !in_time(at)) {
            self.end_grant(id);
            self.ledger.reuse_detections += 1;
            return Err(Refusal::invalid_grant("the refresh token was used before"));
        }
        // RFC 6749 section 6: the refresh token that follows keeps the whole scope.
        let scopes = refresh.scopes.as_ref().unwrap_or(&grant.scopes);
        if scopes.is_empty() || !scopes.is_subset(&grant.scopes) {
            return Err(Refusal::invalid_scope("scope is empty, or wider than the user allowed"));
        }
        let scopes = scopes.clone();
        self.ledger.repeats += usize::from(token.spent_at.is_some());
        token.spent_at.get_or_insert(moment.now);
        if let Some(parent) = token.parent.clone()
            && let Some(parent) = self.refresh_tokens.get_mut(&parent)
        {
            parent.superseded = true;
        }
        Ok(self.issue(id, Some(key), &scopes, moment))
    }

    /// Revokes a token of either kind (RFC 7009). How far that reaches is the provider's own affair:
    /// a refresh token takes its family along, or everything that its user has allowed, or nothing;
    /// so does an access token, save that it never takes its family. A token that does not work anyway, a spent refresh token among
    /// them, changes nothing (section 2.2).
    pub(super) fn revoke(&mut self, client_id: &str, token: &str, moment: &Moment<'_>) {
        self.forget_the_dead(moment.now);
        let key = digest(token);
        let access = self.access_tokens.get(&key).map(|token| token.grant);
        let refresh = self
            .refresh_tokens
            .get(&key)
            .filter(|token| token.is_unspent())
            .map(|token| token.grant);
        let owned = |id: &GrantId| self.grants.get(id).is_some_and(|g| g.client_id == client_id);
        let everything = moment.revocation_reach == RevocationReach::UserClient;
        if let Some(id) = refresh.or(access).filter(owned).filter(|_| everything) {
            let login = self.grants.get(&id).map(|grant| grant.login.clone());
            let of_user = |grant: &Grant| Some(&grant.login) == login.as_ref();
            let all: Vec<_> = self.grants.iter().filter(|(_, grant)| of_user(grant)).collect();
            let all: Vec<_> = all.into_iter().map(|(id, _)| *id).collect();
            all.into_iter().for_each(|id| self.end_grant(id));
        } else if let Some(id) = refresh.filter(owned) {
            if moment.revocation_reach == RevocationReach::Token {
                self.refresh_tokens.remove(&key);
            } else {
                self.end_grant(id);
            }
        } else if access.filter(owned).is_some() {
            self.access_tokens.remove(&key);
        } else {
            return;
        }
        self.ledger.revocations += 1;
    }

    /// Returns the user of this access token, if it works.
    pub(super) fn login_of(&self, access_token: &str, now: u64) -> Option<String> {
        let token = self.access_tokens.get(&digest(access_token))?;
        let grant = self.grants.get(&token.grant)?;
        (now < token.expires).then(|| grant.login.clone())
    }

    /// Returns `true` if a token of either kind works.
    pub(super) fn is_living(&self, token: &str, now: u64) -> bool {
        let key = digest(token);
        self.access_tokens.get(&key).is_some_and(|token| now < token.expires)
            || self.refresh_tokens.get(&key).is_some_and(RefreshToken::is_unspent)
    }

    /// Ends the time of all access tokens.
    pub(super) fn expire_access_tokens(&mut self, now: u64) {
        for token in self.access_tokens.values_mut() {
            token.expires = token.expires.min(now);
        }
    }

    /// The ledger with its living counts.
    pub(super) fn snapshot(&self, now: u64) -> Ledger {
        let mut ledger = self.ledger.clone();
        ledger.living_access_tokens =
            self.access_tokens.values().filter(|token| now < token.expires).count();
        ledger.living_refresh_tokens =
            self.refresh_tokens.values().filter(|token| token.is_unspent()).count();
        ledger
    }

    fn issue(
        &mut self,
        grant: GrantId,
        parent: Option<String>,
        scopes: &BTreeSet<String>,
        moment: &Moment<'_>,
    ) -> Issued {
        let access_token = moment.fresh("demo-at-");
        let refresh_token = moment.fresh("demo-rt-");
        let expires = moment.now.saturating_add(moment.access_token_ms);
        self.access_tokens.insert(digest(&access_token), AccessToken { grant, expires });
        let token = RefreshToken { grant, spent_at: None, parent, superseded: false };
        self.refresh_tokens.insert(digest(&refresh_token), token);
        self.ledger.tokens_issued += 1;
        Issued {
            access_token,
            refresh_token,
            expires_in: moment.access_token_ms / 1000,
            scope: wire::scope_text(scopes),
        }
    }

    fn end_grant(&mut self, id: GrantId) {
        self.grants.remove(&id);
        self.codes.retain(|_, code| !matches!(code, Code::Spent { grant } if *grant == id));
        self.access_tokens.retain(|_, token| token.grant != id);
        self.refresh_tokens.retain(|_, token| token.grant != id);
    }

    /// Deletes entries that have no more use, so that the state does not grow.
    fn forget_the_dead(&mut self, now: u64) {
        self.codes.retain(|_, code| !matches!(code, Code::Open { expires, .. } if *expires <= now));
        // Rarely, because it looks at all of them.
        if self.access_tokens.len() >= self.tidy_at {
            self.access_tokens.retain(|_, token| now < token.expires);
            self.tidy_at = (2 * self.access_tokens.len()).max(TIDY_AT);
        }
    }
}

impl RefreshToken {
    fn is_unspent(&self) -> bool {
        self.spent_at.is_none()
    }
}

/// RFC 7636 sections 4.1 and 4.6.
fn verifier_fits(verifier: &str, challenge: &str) -> bool {
    let unreserved = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
    if !(43..=128).contains(&verifier.len()) || !verifier.bytes().all(unreserved) {
        return false;
    }
    let made = URL_SAFE_NO_PAD.encode(Sha256::digest(verifier));
    made.as_bytes().ct_eq(challenge.as_bytes()).into()
}

#[cfg(test)]
mod tests;
