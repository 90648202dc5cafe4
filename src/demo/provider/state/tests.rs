use std::cell::Cell;

use super::*;

const LIFETIME_MS: u64 = 300_000;
const VERIFIER: &str = "verifier-verifier-verifier-verifier-verifier";
const INVALID_GRANT: Option<&str> = Some("invalid_grant");

/// Records with a clock that tests turn and random bytes that never repeat.
struct Desk {
    records: Records,
    now: u64,
    drawn: Cell<u8>,
    grace_ms: u64,
    reach: RevocationReach,
}

impl Desk {
    fn new() -> Self {
        Self {
            records: Records::default(),
            now: 1_000_000,
            drawn: Cell::new(0),
            grace_ms: 0,
            reach: RevocationReach::Grant,
        }
    }

    fn with<T>(&mut self, change: impl FnOnce(&mut Records, &Moment<'_>) -> T) -> T {
        let drawn = &self.drawn;
        let random = |bytes: &mut [u8]| {
            drawn.set(drawn.get() + 1);
            bytes.fill(drawn.get());
        };
        let moment = Moment {
            now: self.now,
            random: &random,
            access_token_ms: LIFETIME_MS,
            refresh_grace_ms: self.grace_ms,
            revocation_reach: self.reach,
        };
        change(&mut self.records, &moment)
    }

    fn code(&mut self) -> String {
        let bound_to = OpenCode {
            client_id: "client".to_owned(),
            redirect_uri: "http://127.0.0.1:1/callback".to_owned(),
            challenge: URL_SAFE_NO_PAD.encode(Sha256::digest(VERIFIER)),
            scopes: scopes("read write"),
            login: "somebody".to_owned(),
        };
        self.with(|records, moment| records.open_code(bound_to, moment))
    }

    fn exchange(&mut self, code: &str) -> Result<Issued, Refusal> {
        self.exchange_as(code, |_| {})
    }

    fn exchange_as(
        &mut self,
        code: &str,
        alter: impl FnOnce(&mut Exchange),
    ) -> Result<Issued, Refusal> {
        let mut exchange = Exchange {
            client_id: "client".to_owned(),
            code: code.to_owned(),
            redirect_uri: "http://127.0.0.1:1/callback".to_owned(),
            verifier: VERIFIER.to_owned(),
        };
        alter(&mut exchange);
        self.with(|records, moment| records.exchange(&exchange, moment))
    }

    fn tokens(&mut self) -> Issued {
        let code = self.code();
        self.exchange(&code).expect("a good code")
    }

    fn refresh(&mut self, token: &str, scope: Option<&str>) -> Result<Issued, Refusal> {
        let refresh = Refresh {
            client_id: "client".to_owned(),
            token: token.to_owned(),
            scopes: scope.map(scopes),
        };
        self.with(|records, moment| records.refresh(&refresh, moment))
    }

    fn revoke(&mut self, token: &str) {
        self.with(|records, moment| records.revoke("client", token, moment));
    }

    fn is_living(&self, token: &str) -> bool {
        self.records.is_living(token, self.now)
    }

    fn ledger(&self) -> Ledger {
        self.records.snapshot(self.now)
    }
}

fn scopes(text: &str) -> BTreeSet<String> {
    wire::scopes(text).expect("good scopes")
}

/// The error code of an answer that should be one.
fn error_of(answer: Result<Issued, Refusal>) -> Option<&'static str> {
    answer.err().map(|refusal| refusal.error)
}

#[test]
fn a_code_becomes_tokens() {
    let mut desk = Desk::new();
    let code = desk.code();
    let issued = desk.exchange(&code).expect("a good code");
    assert!(code.starts_with("demo-code-"));
    assert!(issued.access_token.starts_with("demo-at-"));
    assert!(issued.refresh_token.starts_with("demo-rt-"));
    assert_eq!((issued.expires_in, issued.scope.as_str()), (300, "read write"));
    assert!(desk.is_living(&issued.access_token) && desk.is_living(&issued.refresh_token));
    let login = desk.records.login_of(&issued.access_token, desk.now);
    assert_eq!(login.as_deref(), Some("somebody"));
    assert_eq!(desk.records.login_of(&issued.refresh_token, desk.now), None);
}

#[test]
fn a_code_fits_only_its_own_verifier_client_and_redirect_uri() {
    let mut desk = Desk::new();
    let code = desk.code();
    let other = "x".repeat(43);
    let answer = desk.exchange_as(&code, |exchange| exchange.verifier = other);
    assert_eq!(error_of(answer), INVALID_GRANT);
    let answer = desk.exchange_as(&code, |exchange| exchange.verifier.clear());
    assert_eq!(error_of(answer), INVALID_GRANT);
    let answer = desk.exchange_as(&code, |exchange| exchange.client_id.push('x'));
    assert_eq!(error_of(answer), INVALID_GRANT);
    let answer = desk.exchange_as(&code, |exchange| exchange.redirect_uri.push('x'));
    assert_eq!(error_of(answer), INVALID_GRANT);
    assert_eq!(desk.ledger().tokens_issued, 0);
    assert!(desk.exchange(&code).is_ok());
}

#[test]
fn the_verifier_of_rfc_7636_appendix_b_fits_its_challenge() {
    let verifier = "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk";
    assert!(verifier_fits(verifier, "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"));
    assert!(!verifier_fits(verifier, verifier));
}

#[test]
fn a_code_expires() {
    let mut desk = Desk::new();
    let code = desk.code();
    desk.now += CODE_MS;
    assert_eq!(error_of(desk.exchange(&code)), INVALID_GRANT);
}

#[test]
fn a_second_use_of_a_code_ends_what_came_of_the_first() {
    let mut desk = Desk::new();
    let bystander = desk.tokens();
    let code = desk.code();
    let first = desk.exchange(&code).expect("a good code");
    // Long after the code's own time: it is still known.
    desk.now += 2 * CODE_MS;
    let second = desk.refresh(&first.refresh_token, None).expect("a good token");
    assert_eq!(error_of(desk.exchange(&code)), INVALID_GRANT);
    for token in [&first.access_token, &second.access_token, &second.refresh_token] {
        assert!(!desk.is_living(token));
    }
    assert!(desk.is_living(&bystander.access_token) && desk.is_living(&bystander.refresh_token));
    assert_eq!(desk.ledger().code_replays, 1);
}

#[test]
fn a_refresh_rotates() {
    let mut desk = Desk::new();
    let first = desk.tokens();
    let second = desk.refresh(&first.refresh_token, None).expect("a good token");
    assert_ne!(first.access_token, second.access_token);
    assert_ne!(first.refresh_token, second.refresh_token);
    assert!(!desk.is_living(&first.refresh_token));
    // The old access token keeps its time, as with most providers.
    assert!(desk.is_living(&first.access_token));
    assert!(desk.is_living(&second.access_token) && desk.is_living(&second.refresh_token));
    let ledger = desk.ledger();
    assert_eq!((ledger.living_access_tokens, ledger.living_refresh_tokens), (2, 1));
}

#[test]
fn a_reused_refresh_token_ends_its_family() {
    let mut desk = Desk::new();
    let bystander = desk.tokens();
    let first = desk.tokens();
    let second = desk.refresh(&first.refresh_token, None).expect("a good token");
    assert_eq!(error_of(desk.refresh(&first.refresh_token, None)), INVALID_GRANT);
    assert_eq!(error_of(desk.refresh(&second.refresh_token, None)), INVALID_GRANT);
    assert!(!desk.is_living(&first.access_token) && !desk.is_living(&second.access_token));
    assert!(desk.is_living(&bystander.access_token) && desk.is_living(&bystander.refresh_token));
    assert_eq!(desk.ledger().reuse_detections, 1);
}

#[test]
fn a_refresh_may_narrow_the_scope_but_not_widen_it() {
    let mut desk = Desk::new();
    let first = desk.tokens();
    let answer = desk.refresh(&first.refresh_token, Some("read admin"));
    assert_eq!(error_of(answer), Some("invalid_scope"));
    let narrow = desk.refresh(&first.refresh_token, Some("read")).expect("a narrower scope");
    assert_eq!(narrow.scope, "read");
    let whole = desk.refresh(&narrow.refresh_token, None).expect("a good token");
    assert_eq!(whole.scope, "read write");
}

#[test]
fn access_tokens_expire() {
    let mut desk = Desk::new();
    let issued = desk.tokens();
    desk.now += LIFETIME_MS - 1;
    assert!(desk.is_living(&issued.access_token));
    desk.now += 1;
    assert!(!desk.is_living(&issued.access_token));
    assert_eq!(desk.records.login_of(&issued.access_token, desk.now), None);
    let next = desk.refresh(&issued.refresh_token, None).expect("refresh tokens live on");
    desk.records.expire_access_tokens(desk.now);
    assert!(!desk.is_living(&next.access_token) && desk.is_living(&next.refresh_token));
}

#[test]
fn revocation_takes_a_family_or_one_access_token() {
    let mut desk = Desk::new();
    let first = desk.tokens();
    let second = desk.refresh(&first.refresh_token, None).expect("a good token");
    desk.revoke(&first.access_token);
    assert!(!desk.is_living(&first.access_token) && desk.is_living(&second.access_token));
    // Spent, unknown and revoked tokens change nothing.
    for token in [first.refresh_token.as_str(), &first.access_token, "demo-rt-unknown"] {
        desk.revoke(token);
    }
    assert!(desk.is_living(&second.refresh_token));
    desk.revoke(&second.refresh_token);
    assert!(!desk.is_living(&second.access_token) && !desk.is_living(&second.refresh_token));
    assert_eq!(desk.ledger().revocations, 2);
}

#[test]
fn a_restart_forgets_nothing_and_the_file_holds_no_token() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("provider.json");
    let mut desk = Desk::new();
    assert!(Records::load(&path).expect("no file yet").grants.is_empty());
    let first = desk.tokens();
    let second = desk.refresh(&first.refresh_token, None).expect("a good token");
    let spent_code = desk.code();
    let third = desk.exchange(&spent_code).expect("a good code");
    let open_code = desk.code();
    desk.records.save(&path).expect("a writable folder");

    let text = std::fs::read_to_string(&path).expect("the file");
    let tokens = [&first, &second, &third].map(|i| [&i.access_token, &i.refresh_token]);
    for value in tokens.into_iter().flatten().chain([&spent_code, &open_code]) {
        let random_part = value.splitn(3, '-').last().unwrap_or(value);
        assert!(!text.contains(random_part));
    }

    desk.records = Records::load(&path).expect("the file that was just written");
    assert!(desk.is_living(&first.access_token) && desk.is_living(&second.refresh_token));
    assert!(desk.exchange(&open_code).is_ok());
    assert_eq!(error_of(desk.exchange(&spent_code)), INVALID_GRANT);
    assert!(!desk.is_living(&third.refresh_token));
    // The family is still known as one.
    assert_eq!(error_of(desk.refresh(&first.refresh_token, None)), INVALID_GRANT);
    assert!(!desk.is_living(&second.refresh_token));
}

#[test]
fn a_damaged_file_is_no_empty_state() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("provider.json");
    std::fs::write(&path, "{\"codes\":").expect("a writable folder");
    assert!(matches!(Records::load(&path), Err(SetupError::Damaged { .. })));
}

#[test]
fn within_the_grace_a_spent_refresh_token_gives_a_sibling() {
    let mut desk = Desk::new();
    desk.grace_ms = 30_000;
    let first = desk.tokens().refresh_token;
    let lost = desk.refresh(&first, None).expect("tokens");
    desk.now += 30_000;
    let kept = desk.refresh(&first, None).expect("tokens");
    assert!(desk.is_living(&lost.refresh_token) && desk.is_living(&kept.refresh_token));
    assert_eq!((desk.ledger().reuse_detections, desk.ledger().sends_of_superseded), (0, 0));
    // The time counts from the first use.
    desk.now += 1;
    assert_eq!(error_of(desk.refresh(&first, None)), INVALID_GRANT);
    assert!(!desk.is_living(&kept.refresh_token));
    assert_eq!(desk.ledger().reuse_detections, 1);
}

#[test]
fn the_grace_ends_when_the_answer_is_known_to_have_arrived() {
    let mut desk = Desk::new();
    desk.grace_ms = 30_000;
    let first = desk.tokens().refresh_token;
    let second = desk.refresh(&first, None).expect("tokens").refresh_token;
    desk.refresh(&second, None).expect("tokens");
    assert_eq!(error_of(desk.refresh(&first, None)), INVALID_GRANT);
    assert_eq!((desk.ledger().reuse_detections, desk.ledger().sends_of_superseded), (1, 1));
}

#[test]
fn a_revocation_reaches_as_far_as_it_is_told() {
    for (reach, family, other) in [
        (RevocationReach::Token, true, true),
        (RevocationReach::Grant, false, true),
        (RevocationReach::UserClient, false, false),
    ] {
        let mut desk = Desk::new();
        desk.reach = reach;
        let (one, another) = (desk.tokens(), desk.tokens());
        desk.revoke(&one.refresh_token);
        assert!(!desk.is_living(&one.refresh_token));
        assert_eq!(desk.is_living(&one.access_token), family, "{reach:?}");
        assert_eq!(desk.is_living(&another.refresh_token), other, "{reach:?}");
    }
}
