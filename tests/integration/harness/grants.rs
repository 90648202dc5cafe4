//! Grants without their flows: as the broker would have stored them, under its own keys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt};
use token_broker::crypto::keyring::Keyring;
use token_broker::crypto::random::Random;
use token_broker::demo::provider::DemoProvider;
use token_broker::domain::authorization::Options;
use token_broker::domain::grant::{Account, Grant, GrantKey, Subject};
use token_broker::domain::identity::Identity;
use token_broker::domain::name::Name;
use token_broker::domain::scope::Scopes;
use token_broker::domain::token::{AccessToken, RawAnswer, TokenSet};
use token_broker::provider::response;
use token_broker::storage::{
    Answered, Begun, Clock, Disposal, NewAuthorization, Settings, Storage,
};

const SCOPES: &str = "email profile";

/// The number of grants that are made at once.
const AT_ONCE: usize = 16;

/// Makes grants of the bot `helper` at the provider `acme`, in a database and at that provider.
#[derive(Clone)]
pub struct Seeder {
    pub storage: Arc<Storage>,
    provider: DemoProvider,
    lifetime: Duration,
    /// Access tokens are made this long, in bytes; the provider does not know them then.
    pub token_length: usize,
}

/// Names of users: `u0`, `u1` and so on.
pub fn subjects(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("u{number}")).collect()
}

fn name(text: &str) -> Name {
    Name::parse(text).expect("a name")
}

impl Seeder {
    /// `key` is the one that the broker has under the id `test`; `lifetime` that of access tokens.
    pub async fn new(
        database_url: &str,
        key: &[u8; 32],
        provider: DemoProvider,
        lifetime: Duration,
    ) -> Self {
        let keyring = Arc::new(Keyring::new([("test", key)]).expect("a key"));
        let settings = Settings {
            url: database_url.to_owned().into(),
            listen_url: None,
            max_connections: 10,
            clock: Clock::Database,
        };
        let storage = Storage::connect(&settings, keyring, Random::system()).await;
        let storage = Arc::new(storage.expect("a database"));
        Self { storage, provider, lifetime, token_length: 0 }
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
            provider: name("acme"),
            subject: Subject::parse(subject).expect("a subject"),
            account: Account::default(),
        };
        let new = NewAuthorization {
            key: &key,
            bot: &name("helper"),
            scopes: &Scopes::from_provider(SCOPES),
            options: &Options::default(),
            link_ttl: self.lifetime,
        };
        let authorization =
            self.storage.authorizations().insert_authorization(&new).await.expect("storage");
        let salt: [u8; 8] = Random::system().bytes();
        let begun = self
            .storage
            .authorizations()
            .begin_exchange(authorization.id, &salt)
            .await
            .expect("storage");
        let Begun::Now(exchanged_at) = begun else { panic!("a fresh authorization") };
        let granted = self.provider.grant(subject, SCOPES).await.expect("a grant");
        let answer = RawAnswer { content_type: String::new(), body: Vec::new().into() };
        let identity = Identity { name: subject.to_owned(), sub: None };
        let answered = Answered { answer: &answer, identity: &identity, exchanged_at };
        let disposal =
            Disposal { revocable: true, reach: Default::default(), read: &response::tokens_in };
        let quarantined = self
            .storage
            .authorizations()
            .quarantine(&authorization, answered, b"a keyed hash", self.lifetime, &disposal)
            .await;
        assert!(quarantined.expect("storage"));
        let tokens = TokenSet {
            access_token: AccessToken {
                value: padded(granted.access_token, self.token_length).into(),
                token_type: "Bearer".to_owned(),
                scopes: Scopes::from_provider(SCOPES),
                issued_at: exchanged_at,
                expires_at: Some(exchanged_at + self.lifetime),
            },
            refresh_token: Some(granted.refresh_token.into()),
            refresh_expires_at: None,
            id_token: None,
            provider_values: BTreeMap::new(),
        };
        let grant =
            self.storage.authorizations().authorize(&authorization, &tokens, &identity, &[]).await;
        grant.expect("storage").expect("a grant")
    }
}

fn padded(mut token: String, length: usize) -> String {
    token.extend(std::iter::repeat_n('x', length.saturating_sub(token.len())));
    token
}
