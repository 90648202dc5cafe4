//! Three replicas on one PostgreSQL. The judge is the provider's own ledger.

use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database};
use token_broker_client::proto::{self, AuthorizationState};
use token_broker_client::{Client, Reason, Refusal};
use tokio::time::Instant;

use super::child::Serving;
use super::life::token;
use super::premises::Premises;
use super::site::Site;
use crate::harness::world::{self, authorize, get_token, key};
use crate::harness::{Browser, postgres, tools, trial_with};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        trial_with(needs, "process::fleet::a_herd_on_one_grant_causes_one_refresh", herd_on_one),
        trial_with(needs, "process::fleet::a_herd_on_many_grants_causes_one_each", herd_on_many),
        trial_with(needs, "process::fleet::fifty_stale_etags_cause_one_refresh", stale_etags),
        trial_with(needs, "process::fleet::a_revocation_is_felt_at_once_without_a_cache", revoked),
        trial_with(needs, "process::fleet::a_revocation_is_felt_within_the_caches_age", noticed),
        trial_with(
            needs,
            "process::fleet::a_watcher_sees_the_redirect_of_another_replica",
            watched,
        ),
        trial_with(
            needs,
            "process::fleet::a_killed_refresh_is_taken_up_by_another_replica",
            killed,
        ),
    ]
}

struct Fleet {
    site: Site,
    replicas: Vec<Serving>,
}

impl Fleet {
    /// Three replicas; the first is the one that browsers find.
    async fn start(variables: &[(&str, &str)]) -> Self {
        let site = Site::at(Premises::on(postgres::database().await)).await;
        let mut replicas = Vec::new();
        for number in 0..3 {
            let mut command = site.command(&["serve"]);
            command.envs(variables.iter().copied());
            if number > 0 {
                command.env("TOKEN_BROKER__HTTP__LISTEN", "127.0.0.1:0");
            }
            replicas.push(Serving::start(command).await);
        }
        Self { site, replicas }
    }

    async fn clients(&self) -> Vec<Client> {
        join_all(self.replicas.iter().map(Serving::client)).await
    }

    async fn granted(&self, subject: &str) -> String {
        self.site.granted(&self.replicas[0], subject).await
    }

    /// Ends the time of every access token, in the broker's eyes.
    async fn expire(&self) {
        let database = Database::connect(&self.site.database_url).await.expect("it answers");
        for table in ["grants", "access_tokens"] {
            let sql = format!("UPDATE {table} SET expires_at = issued_at + 1");
            database.execute_unprepared(&sql).await.expect("a statement");
        }
        database.close().await.expect("closed");
    }
}

fn reason<T: std::fmt::Debug>(refused: Result<T, tonic::Status>) -> Reason {
    Refusal::of(&refused.expect_err("refused")).expect("a refusal").reason
}

async fn get(mut client: Client, subject: String) -> String {
    let lent = client.get_token(get_token(&subject)).await.expect("a token");
    lent.into_inner().token.expect("a token").access_token
}

async fn herd_on_one() {
    const CALLERS: usize = 500;

    let fleet = Fleet::start(&[]).await;
    let old = fleet.granted("u1").await;
    fleet.expire().await;
    let clients = fleet.clients().await;
    let calls = (0..CALLERS).map(|call| get(clients[call % 3].clone(), "u1".to_owned()));
    let tokens = join_all(calls).await;
    assert!(tokens.iter().all(|token| *token == tokens[0] && *token != old));
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (1, 0));
}

async fn herd_on_many() {
    const GRANTS: usize = 100;

    let fleet = Fleet::start(&[]).await;
    for number in 0..GRANTS {
        fleet.granted(&format!("u{number}")).await;
    }
    fleet.expire().await;
    let clients = fleet.clients().await;
    // Each of them from every replica, twice.
    let calls =
        (0..GRANTS * 6).map(|call| get(clients[call % 3].clone(), format!("u{}", call / 6)));
    let tokens = join_all(calls).await;
    for of_one in tokens.chunks(6) {
        assert!(of_one.iter().all(|token| *token == of_one[0]), "{of_one:?}");
    }
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (GRANTS, 0));
    assert_eq!(ledger.most_refreshes_of_one_token(), 1);
}

async fn stale_etags() {
    const CALLERS: usize = 50;

    let fleet = Fleet::start(&[]).await;
    fleet.granted("u1").await;
    let mut clients = fleet.clients().await;
    let lent = clients[0].get_token(get_token("u1")).await.expect("a token").into_inner();
    let etag = lent.token.expect("a token").etag;
    let calls = (0..CALLERS).map(|call| {
        let (mut client, etag) = (clients[call % 3].clone(), etag.clone());
        async move {
            let refresh =
                proto::RefreshRequest { key: Some(key("u1")), etag, ..Default::default() };
            let refreshed = client.refresh(refresh).await.expect("a token").into_inner();
            refreshed.token.expect("a token").access_token
        }
    });
    let tokens = join_all(calls).await;
    assert!(tokens.iter().all(|token| *token == tokens[0]));
    assert_eq!(fleet.site.provider.ledger().refreshes, 1);
}

async fn revoked() {
    let fleet = Fleet::start(&[]).await;
    let mut clients = fleet.clients().await;
    for round in 0..20 {
        let subject = format!("u{round}");
        let granted = fleet.granted(&subject).await;
        for replica in &fleet.replicas {
            assert_eq!(token(replica, &subject).await, granted);
        }
        let revoke = proto::RevokeRequest { key: Some(key(&subject)) };
        clients[round % 3].revoke(revoke).await.expect("revoked");
        for client in &mut clients {
            let refused = client.get_token(get_token(&subject)).await;
            assert_eq!(reason(refused), Reason::AuthorizationRequired);
        }
    }
}

/// How long a replica may go on serving what was revoked on another.
const MAX_AGE: Duration = Duration::from_secs(20);

async fn noticed() {
    let fleet = Fleet::start(&[("TOKEN_BROKER__CACHE__MAX_AGE", "20s")]).await;
    let mut clients = fleet.clients().await;
    let mut longest = Duration::ZERO;
    for round in 0..10 {
        let subject = format!("u{round}");
        let granted = fleet.granted(&subject).await;
        for replica in &fleet.replicas {
            assert_eq!(token(replica, &subject).await, granted);
        }
        let revoke = proto::RevokeRequest { key: Some(key(&subject)) };
        clients[0].revoke(revoke).await.expect("revoked");
        let told = Instant::now();
        // On the replica itself at once.
        let refused = clients[0].get_token(get_token(&subject)).await;
        assert_eq!(reason(refused), Reason::AuthorizationRequired);
        for client in &mut clients[1..] {
            while client.get_token(get_token(&subject)).await.is_ok() {}
        }
        longest = longest.max(told.elapsed());
    }
    // A notice makes it much faster than the age that bounds it.
    assert!(longest < MAX_AGE / 4, "{longest:?}");
}

async fn watched() {
    let fleet = Fleet::start(&[]).await;
    let mut clients = fleet.clients().await;
    let started = clients[1].authorize(authorize("u1")).await.expect("a link").into_inner();
    let watch =
        proto::WatchAuthorizationRequest { authorization_id: started.authorization_id.clone() };
    let mut seen = clients[2].watch_authorization(watch).await.expect("a stream").into_inner();
    // The link's host is the first replica.
    let page = Browser::new().allow(&started.authorization_url).await;
    let code = page.confirmation_code().expect("a code");
    let mut states = Vec::new();
    while let Some(message) = seen.message().await.expect("a message") {
        let state = message.authorization.expect("it").state();
        if states.last() != Some(&state) {
            states.push(state);
        }
        if state == AuthorizationState::AwaitingConfirmation {
            let request = proto::ConfirmAuthorizationRequest {
                subject: "u1".into(),
                code: code.clone(),
                ..Default::default()
            };
            clients[1].confirm_authorization(request).await.expect("a grant");
        }
    }
    assert_eq!(states.last(), Some(&AuthorizationState::Authorized));
}

/// The process ends after the refresh token was sent, and before anything came back.
async fn killed() {
    let mut fleet = Fleet::start(&[]).await;
    let first = fleet.granted("u1").await;
    let pause = fleet.site.provider.pause_token_endpoint();
    let calls = fleet.site.provider.ledger().token_calls;
    let mut client = fleet.replicas[2].client().await;
    let refreshing = tokio::spawn(async move {
        let refresh = world::refresh("u1");
        client.refresh(refresh).await
    });
    fleet.site.provider.wait_for_token_calls(calls + 1).await;
    fleet.replicas.pop().expect("three").kill().await;
    assert!(refreshing.await.expect("no panic").is_err());
    drop(pause);
    // Nobody asks: a worker of another replica takes it up once the lease has ended.
    fleet.site.provider.wait_for_token_calls(calls + 2).await;
    let second = loop {
        let now = token(&fleet.replicas[0], "u1").await;
        if now != first {
            break now;
        }
    };
    assert!(fleet.site.provider.is_living(&second));
    assert_eq!(token(&fleet.replicas[1], "u1").await, second);
    let ledger = fleet.site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (2, 0));
}
