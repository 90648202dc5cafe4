//! `serve` against authorization servers that are none of ours: the whole life of a token, on each
//! database, with the process killed between any two steps.

use libtest_mimic::Trial;
use serde_json::json;
use token_broker_client::proto::{self, AuthorizationState, Revocation};
use token_broker_client::{Reason, Refusal};

use super::child::Serving;
use super::life::{state, token};
use super::premises::{CLIENT_ID, Premises, with_line};
use crate::harness::browser::ALICE;
use crate::harness::servers::Kind::{Canaille, OidcProvider};
use crate::harness::servers::{AuthorizationServer, Kind, Registration};
use crate::harness::world::{self, authorize, get_token, key};
use crate::harness::{Browser, postgres, tools, trial_with};

/// With what HTTP's Basic scheme and forms write differently, save the space: Canaille takes the
/// plus sign that stands for it literally, against RFC 6749 section 2.3.1.
const CLIENT_SECRET: &str = "a-secret:+&%/=?";

/// Who `Browser::sign_in` signs in, as both servers describe them.
const EMAIL: &str = "alice@example.com";

pub fn trials() -> Vec<Trial> {
    let both = |kind: Kind| [tools::POSTGRESQL, kind.tool()];
    vec![
        trial_with(
            &[OidcProvider.tool()],
            "process::servers::the_life_of_a_token_of_oidc_provider_on_sqlite",
            || life(OidcProvider, Database::Sqlite),
        ),
        trial_with(
            &[Canaille.tool()],
            "process::servers::the_life_of_a_token_of_canaille_on_sqlite",
            || life(Canaille, Database::Sqlite),
        ),
        trial_with(
            &both(OidcProvider),
            "process::servers::the_life_of_a_token_of_oidc_provider_on_postgres",
            || life(OidcProvider, Database::Postgres),
        ),
        trial_with(
            &both(Canaille),
            "process::servers::the_life_of_a_token_of_canaille_on_postgres",
            || life(Canaille, Database::Postgres),
        ),
        trial_with(
            &[OidcProvider.tool()],
            "process::servers::client_secret_post_is_taken_from_the_metadata",
            posted_secret,
        ),
        trial_with(
            &[OidcProvider.tool()],
            "process::servers::keys_that_rotate_are_read_again",
            rotated_keys,
        ),
        trial_with(
            &[OidcProvider.tool()],
            "process::servers::another_sub_at_a_refresh_flags_the_grant",
            another_sub,
        ),
        trial_with(&[OidcProvider.tool()], "process::servers::check_asks_the_issuer", checked),
    ]
}

#[derive(Clone, Copy)]
enum Database {
    Sqlite,
    Postgres,
}

/// Premises whose provider is a real server.
struct Site {
    premises: Premises,
    server: AuthorizationServer,
}

impl Site {
    async fn new(kind: Kind, database: Database, auth_method: &str) -> Self {
        let premises = match database {
            Database::Sqlite => Premises::on_sqlite(),
            Database::Postgres => Premises::on(postgres::database().await),
        };
        let server = kind
            .start(Registration {
                client_id: CLIENT_ID,
                client_secret: CLIENT_SECRET,
                redirect_uri: &premises.redirect_uri(),
                auth_method,
            })
            .await;
        let scopes = r#"scopes = ["openid", "profile", "email"]"#;
        let config = with_line(&premises.config(&server.issuer), "scopes", scopes);
        let secret = format!("client_secret = \"{CLIENT_SECRET}\"");
        premises.write(&with_line(&config, "client_secret", &secret));
        Self { premises, server }
    }

    /// Ends the process as a power cut would, and starts another one on the same database.
    async fn again(&self, serving: Serving) -> Serving {
        serving.kill().await;
        self.premises.serve().await
    }

    /// Takes a user to the code of the result page.
    async fn code(&self, serving: &Serving, subject: &str) -> String {
        let started = serving.client().await.authorize(authorize(subject)).await;
        let link = started.expect("a link").into_inner().authorization_url;
        let mut browser = Browser::new();
        let redirect = browser.sign_in(&link, &ALICE, &self.premises.redirect_uri()).await;
        let page = browser.get(redirect.as_str()).await;
        page.confirmation_code().unwrap_or_else(|| panic!("no code: {page:?}"))
    }

    /// The whole flow; gives the access token.
    async fn granted(&self, serving: &Serving, subject: &str) -> String {
        let code = self.code(serving, subject).await;
        confirm(serving, subject, code).await;
        token(serving, subject).await
    }
}

async fn confirm(serving: &Serving, subject: &str, code: String) -> proto::Grant {
    let request =
        proto::ConfirmAuthorizationRequest { subject: subject.into(), code, ..Default::default() };
    let confirmed = serving.client().await.confirm_authorization(request).await;
    confirmed.expect("a grant").into_inner().grant.expect("a grant")
}

async fn life(kind: Kind, database: Database) {
    let site = Site::new(kind, database, "client_secret_basic").await;
    let serving = site.premises.serve().await;
    let started = serving.client().await.authorize(authorize("u1")).await.expect("a link");
    let started = started.into_inner();
    let id = started.authorization_id;

    let serving = site.again(serving).await;
    assert_eq!(state(&serving, &id).await, AuthorizationState::Pending);
    let mut browser = Browser::new();
    let redirect_uri = site.premises.redirect_uri();
    let redirect = browser.sign_in(&started.authorization_url, &ALICE, &redirect_uri).await;
    // Both servers say who they are (RFC 9207).
    let iss = redirect.query_pairs().find(|(name, _)| name == "iss").expect("iss").1;
    assert_eq!(iss, site.server.issuer);

    let serving = site.again(serving).await;
    let page = browser.get(redirect.as_str()).await;
    assert_eq!((page.status, page.heading().as_str()), (200, "One more step"), "{page:?}");
    let code = page.confirmation_code().expect("a code");

    let serving = site.again(serving).await;
    assert_eq!(state(&serving, &id).await, AuthorizationState::AwaitingConfirmation);
    let refused = serving.client().await.get_token(get_token("u1")).await;
    assert_eq!(reason(refused), Reason::AuthorizationRequired);
    assert_eq!(confirm(&serving, "u1", code).await.identity, EMAIL);

    let serving = site.again(serving).await;
    let first = token(&serving, "u1").await;
    assert_eq!(site.server.userinfo_status(&first).await, 200);

    let serving = site.again(serving).await;
    let refresh = world::refresh("u1");
    let second = serving.client().await.refresh(refresh).await.expect("a token").into_inner();
    let second = second.token.expect("a token").access_token;
    assert_ne!(first, second);

    let serving = site.again(serving).await;
    assert_eq!(token(&serving, "u1").await, second);
    assert_eq!(site.server.userinfo_status(&second).await, 200);
    let grants = serving.client().await.list_grants(proto::ListGrantsRequest::default()).await;
    let grants = grants.expect("a list").into_inner().grants;
    assert_eq!(grants.len(), 1);
    assert_eq!((grants[0].identity.as_str(), grants[0].refreshable), (EMAIL, true));

    let serving = site.again(serving).await;
    let revoke = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = serving.client().await.revoke(revoke.clone()).await.expect("revoked");
    assert_eq!(revoked.into_inner().revocation(), Revocation::Done);
    assert_eq!(site.server.userinfo_status(&second).await, 401);

    let serving = site.again(serving).await;
    let again = serving.client().await.revoke(revoke).await.expect("revoked").into_inner();
    assert_eq!(again.revocation(), Revocation::NotNeeded);
    let refused = serving.client().await.get_token(get_token("u1")).await;
    assert_eq!(reason(refused), Reason::AuthorizationRequired);

    for (name, expected) in [
        ("code_exchanges", 1),
        ("refreshes", 1),
        ("token_errors", 0),
        ("living_access_tokens", 0),
        ("living_refresh_tokens", 0),
    ] {
        assert_eq!(site.server.ledger(name).await, expected, "{name}");
    }
}

async fn posted_secret() {
    let site = Site::new(OidcProvider, Database::Sqlite, "client_secret_post").await;
    let serving = site.premises.serve().await;
    let token = site.granted(&serving, "u1").await;
    assert_eq!(site.server.userinfo_status(&token).await, 200);
    assert_eq!(site.server.ledger("token_errors").await, 0);
}

async fn rotated_keys() {
    let site = Site::new(OidcProvider, Database::Sqlite, "client_secret_basic").await;
    let serving = site.premises.serve().await;
    site.granted(&serving, "u1").await;
    // The process knows the first key by now, and another one signs from here on.
    site.server.command("rotate-keys", &json!({})).await;
    site.granted(&serving, "u2").await;
    let grants = serving.client().await.list_grants(proto::ListGrantsRequest::default()).await;
    let grants = grants.expect("a list").into_inner().grants;
    assert_eq!(grants.iter().filter(|grant| grant.identity == EMAIL).count(), 2);
}

async fn another_sub() {
    let site = Site::new(OidcProvider, Database::Sqlite, "client_secret_basic").await;
    let serving = site.premises.serve().await;
    let first = site.granted(&serving, "u1").await;
    let change = json!({"from": ALICE.name, "to": "somebody-else"});
    site.server.command("change-sub", &change).await;
    let refresh = world::refresh("u1");
    let refused = serving.client().await.refresh(refresh.clone()).await;
    assert_eq!(reason(refused), Reason::ReauthorizationRequired);
    let grants = serving.client().await.list_grants(proto::ListGrantsRequest::default()).await;
    let grants = grants.expect("a list").into_inner().grants;
    assert_eq!(grants[0].state(), proto::GrantState::ReauthorizationRequired);
    // The token from before is the user's own, and is lent while it lives; the other's never is.
    assert_eq!(token(&serving, "u1").await, first);
    let refused = serving.client().await.refresh(refresh).await;
    assert_eq!(reason(refused), Reason::ReauthorizationRequired);
    assert_eq!(site.server.ledger("refreshes").await, 1);
    // What came for somebody else goes with the grant.
    let revoke = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = serving.client().await.revoke(revoke).await.expect("revoked");
    assert_eq!(revoked.into_inner().revocation(), Revocation::Done);
    assert_eq!(site.server.ledger("living_refresh_tokens").await, 0);
    assert_eq!(site.server.ledger("living_access_tokens").await, 0);
}

async fn checked() {
    let site = Site::new(OidcProvider, Database::Sqlite, "client_secret_basic").await;
    let told = site.premises.run(&["check"]).await;
    assert_eq!((told.code, told.stderr.as_str()), (Some(0), ""), "{told:?}");
    let expected = format!(
        "provider acme: in order (redirect URI to register: {}, endpoints: of the issuer, \
         revocation: yes, ID tokens: checked, client authentication: client_secret_basic)",
        site.premises.redirect_uri()
    );
    assert!(told.stdout.lines().any(|line| line == expected), "{told:?}");

    // An issuer is compared letter by letter.
    let config = site.premises.config(&format!("{}/", site.server.issuer));
    site.premises.write(&config);
    let told = site.premises.run(&["check"]).await;
    assert_eq!(told.code, Some(1), "{told:?}");
    let expected = format!("is of another issuer, {:?}; if that is the one, ", site.server.issuer);
    assert!(told.stdout.contains(&expected), "{told:?}");
}

fn reason<T: std::fmt::Debug>(refused: Result<T, tonic::Status>) -> Reason {
    Refusal::of(&refused.expect_err("refused")).expect("a refusal").reason
}
