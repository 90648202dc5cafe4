//! Grants without their flows: as the broker would have stored them, under its own keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use token_broker::crypto::keyring::Keyring;
use token_broker::crypto::random::Random;
use token_broker::demo::provider::DemoProvider;
use token_broker::domain::authorization::Options;
use token_broker::domain::grant::{Account, Grant, GrantKey, Subject};
use token_broker::domain::identity::Identity;
use token_broker::domain::scope::Scopes;
use token_broker::domain::token::{AccessToken, RawAnswer, TokenSet};
use token_broker::provider::response;
use token_broker::storage::{
    Answered, Begun, Clock, Disposal, NewAuthorization, Settings, Storage,
};

use super::Fleet;
use crate::harness::world::{PROVIDER, name};
use crate::process::child::earlier_build;
use crate::process::premises::ENCRYPTION_KEY;
use crate::process::site::{Site, TOKEN_LIFETIME};

const SCOPES: &str = "email profile";

/// How many grants are made at once.
const AT_ONCE: usize = 16;

/// Makes grants in a site's database and at its provider.
#[derive(Clone)]
pub struct Seeder {
    pub storage: Arc<Storage>,
    provider: DemoProvider,
}

/// Makes grants for `u0`, `u1` and so on, and gives the names.
pub async fn seed_grants(fleet: &Fleet, count: usize) -> Vec<String> {
    let seeder = Seeder::of(fleet).await;
    let subjects: Vec<_> = (0..count).map(|number| format!("u{number}")).collect();
    seeder.grants(&subjects).await;
    subjects
}

impl Seeder {
    pub(super) async fn of(fleet: &Fleet) -> Self {
        Self::at(&fleet.site).await
    }

    pub async fn at(site: &Site) -> Self {
        let keyring = Arc::new(Keyring::new([("test", ENCRYPTION_KEY)]).expect("a key"));
        let settings = Settings {
            url: site.database_url.clone().into(),
            listen_url: None,
            max_connections: 10,
            clock: Clock::Database,
        };
        let storage = Storage::connect(&settings, keyring, Random::system()).await;
        let storage = Arc::new(storage.expect("a database"));
        if earlier_build().is_some() {
            storage.migrate().await.expect("this version's schema, which the earlier one can use");
        }
        Self { storage, provider: site.provider.clone() }
    }

    pub async fn grants(&self, subjects: &[String]) -> Vec<Grant> {
        stream::iter(subjects.iter().cloned())
            .map(|subject| {
                let seeder = self.clone();
                async move { tokio::spawn(async move { seeder.grant(&subject).await }).await }
            })
            .buffered(AT_ONCE)
            .map(|grant| grant.expect("no panic"))
            .collect()
            .await
    }

    pub async fn grant(&self, subject: &str) -> Grant {
        let key = GrantKey {
            namespace: name("helper"),
            provider: name(PROVIDER),
            subject: Subject::parse(subject).expect("a subject"),
            account: Account::default(),
        };
        let new = NewAuthorization {
            key: &key,
            bot: &name("helper"),
            scopes: &Scopes::from_provider(SCOPES),
            options: &Options::default(),
            link_ttl: TOKEN_LIFETIME,
        };
        let authorization = self.storage.insert_authorization(&new).await.expect("storage");
        let salt: [u8; 8] = Random::system().bytes();
        let begun = self.storage.begin_exchange(authorization.id, &salt).await.expect("storage");
        let Begun::Now(exchanged_at) = begun else { panic!("a fresh authorization") };
        let granted = self.provider.grant(subject, SCOPES).await.expect("a grant");
        let answer = RawAnswer { content_type: String::new(), body: Vec::new().into() };
        let identity = Identity { name: subject.to_owned(), sub: None };
        let answered = Answered { answer: &answer, identity: &identity, exchanged_at };
        let disposal =
            Disposal { revocable: true, reach: Default::default(), read: &response::tokens_in };
        let quarantined = self
            .storage
            .quarantine(&authorization, answered, b"a keyed hash", TOKEN_LIFETIME, &disposal)
            .await;
        assert!(quarantined.expect("storage"));
        let tokens = TokenSet {
            access_token: AccessToken {
                value: granted.access_token.into(),
                token_type: "Bearer".to_owned(),
                scopes: Scopes::from_provider(SCOPES),
                issued_at: exchanged_at,
                expires_at: Some(exchanged_at + TOKEN_LIFETIME),
            },
            refresh_token: Some(granted.refresh_token.into()),
            refresh_expires_at: None,
            id_token: None,
            provider_values: BTreeMap::new(),
        };
        let grant = self.storage.authorize(&authorization, &tokens, &identity, &[]).await;
        grant.expect("storage").expect("a grant")
    }
}
