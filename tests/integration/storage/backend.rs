//! A database of one's own for every test, and short ways to fill it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, Statement, Value};
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;
use token_broker::crypto::keyring::Keyring;
use token_broker::crypto::random::Random;
use token_broker::domain::authorization::{Authorization, Options};
use token_broker::domain::grant::{Account, Grant, GrantKey, Subject};
use token_broker::domain::id::Id;
use token_broker::domain::identity::Identity;
use token_broker::domain::scope::Scopes;
use token_broker::domain::time::Timestamp;
use token_broker::domain::token::{AccessToken, RawAnswer, TokenSet};
use token_broker::provider::response;
use token_broker::storage::{
    Answered, AuthorizationStore, Begun, Clock, Disposal, GrantStore, KeyRegistry,
    NewAuthorization, Revocation, RevocationOutbox, Settings, Storage, StoredGrant, Takeover,
};

use crate::harness::world::{BEGINNING, name};
use crate::harness::{pooler, postgres, tools, trial, trial_with};

/// The time for which links, codes and access tokens of these tests live.
pub const LINK_TTL: Duration = Duration::from_secs(600);
pub const CONFIRMATION_TTL: Duration = Duration::from_secs(300);
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// The hash of the confirmation code; storage does not look into it.
pub const CODE_HASH: &[u8] = b"a keyed hash";

/// A kind of database.
pub trait Backend: Send + Sync + 'static {
    const NAME: &'static str;

    /// An empty database that no other test has.
    fn place() -> impl Future<Output = Place> + Send;

    /// A test on this backend. One that needs a server is skipped by name where there is none.
    fn trial<F>(name: &str, test: fn() -> F) -> Trial
    where
        F: Future<Output = ()> + Send + 'static,
    {
        trial(format!("storage::{}::{name}", Self::NAME), test)
    }
}

/// Where a database is, for as long as this lives.
#[derive(Clone)]
pub struct Place {
    pub url: String,
    pub folder: Option<Arc<TempDir>>,
}

pub struct Sqlite;

impl Backend for Sqlite {
    const NAME: &'static str = "sqlite";

    async fn place() -> Place {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("token-broker.db");
        let url = format!("sqlite://{}?mode=rwc", file.display());
        Place { url, folder: Some(Arc::new(folder)) }
    }
}

pub struct Postgres;

impl Backend for Postgres {
    const NAME: &'static str = "postgres";

    async fn place() -> Place {
        Place { url: postgres::database().await, folder: None }
    }

    fn trial<F>(name: &str, test: fn() -> F) -> Trial
    where
        F: Future<Output = ()> + Send + 'static,
    {
        trial_with(&[tools::POSTGRESQL], format!("storage::{}::{name}", Self::NAME), test)
    }
}

/// PostgreSQL whose transactions are serializable, as on several distributed engines: work that meets
/// other work is repeated.
pub struct Serializable;

impl Backend for Serializable {
    const NAME: &'static str = "postgres_serializable";

    async fn place() -> Place {
        Place { url: serializable(&postgres::database().await), folder: None }
    }

    fn trial<F>(name: &str, test: fn() -> F) -> Trial
    where
        F: Future<Output = ()> + Send + 'static,
    {
        trial_with(&[tools::POSTGRESQL], format!("storage::{}::{name}", Self::NAME), test)
    }
}

/// PostgreSQL where the role may not notify, as where `pg_notify` does not exist.
pub struct WithoutNotify;

impl Backend for WithoutNotify {
    const NAME: &'static str = "postgres_without_notify";

    async fn place() -> Place {
        Place { url: without_notify(&postgres::database().await).await, folder: None }
    }

    fn trial<F>(name: &str, test: fn() -> F) -> Trial
    where
        F: Future<Output = ()> + Send + 'static,
    {
        trial_with(&[tools::POSTGRESQL], format!("storage::{}::{name}", Self::NAME), test)
    }
}

/// The URL of the same database with serializable transactions.
pub fn serializable(url: &str) -> String {
    format!("{url}?options=-c%20default_transaction_isolation%3Dserializable")
}

/// The URL of the same database for a role that may not notify.
pub async fn without_notify(url: &str) -> String {
    let (server, database) = url.rsplit_once('/').expect("a database");
    let db = Database::connect(url).await.expect("a connection");
    let role = format!("plain_{database}");
    for sql in [
        format!("CREATE ROLE {role} LOGIN"),
        format!("ALTER DATABASE {database} OWNER TO {role}"),
        format!("GRANT ALL ON SCHEMA public TO {role}"),
        "REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC".to_owned(),
    ] {
        db.execute_unprepared(&sql).await.expect("a statement");
    }
    db.close().await.expect("closed");
    format!("{}/{database}", server.replace("broker@", &format!("{role}@")))
}

/// The newest major version.
pub struct Postgres18;

impl Backend for Postgres18 {
    const NAME: &'static str = "postgres_18";

    async fn place() -> Place {
        Place { url: postgres::database_18().await, folder: None }
    }

    fn trial<F>(name: &str, test: fn() -> F) -> Trial
    where
        F: Future<Output = ()> + Send + 'static,
    {
        trial_with(&[tools::POSTGRESQL_18], format!("storage::{}::{name}", Self::NAME), test)
    }
}

/// PostgreSQL behind PgBouncer in session mode.
pub struct Pooled;

impl Backend for Pooled {
    const NAME: &'static str = "postgres_pooled";

    async fn place() -> Place {
        let url = postgres::database().await;
        Place { url: pooler::in_front_of(&url).await, folder: None }
    }

    fn trial<F>(name: &str, test: fn() -> F) -> Trial
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let needs = &[tools::POSTGRESQL, tools::PGBOUNCER];
        trial_with(needs, format!("storage::{}::{name}", Self::NAME), test)
    }
}

/// One replica's storage.
#[derive(Clone)]
pub struct Store {
    pub storage: Arc<Storage>,
    pub clock: Arc<AtomicI64>,
    pub place: Place,
}

pub fn keyring(keys: &[(&'static str, u8)]) -> Arc<Keyring> {
    let keys: Vec<_> = keys.iter().map(|(id, byte)| (*id, [*byte; 32])).collect();
    Arc::new(Keyring::new(keys.iter().map(|(id, key)| (*id, key))).expect("a key"))
}

pub fn scopes(text: &str) -> Scopes {
    Scopes::from_provider(text)
}

pub fn key_at(namespace: &str, provider: &str, subject: &str, account: &str) -> GrantKey {
    GrantKey {
        namespace: name(namespace),
        provider: name(provider),
        subject: Subject::parse(subject).expect("a subject"),
        account: Account::parse(account).expect("an account"),
    }
}

pub fn key(subject: &str) -> GrantKey {
    key_at("helper", "acme", subject, "")
}

/// Tokens whose values end in `label`.
pub fn tokens(label: &str, issued_at: Timestamp) -> TokenSet {
    TokenSet {
        access_token: AccessToken {
            value: format!("access-{label}").into(),
            token_type: "Bearer".to_owned(),
            scopes: scopes("email profile"),
            issued_at,
            expires_at: Some(issued_at + TOKEN_LIFETIME),
        },
        refresh_token: Some(format!("refresh-{label}").into()),
        refresh_expires_at: None,
        id_token: None,
        provider_values: BTreeMap::new(),
    }
}

/// Who consents in these tests.
pub fn identity() -> Identity {
    Identity { name: "ada@acme.example".to_owned(), sub: Some("ada".to_owned()) }
}

/// Whoever held a refresh of unknown outcome before is gone.
pub const TAKEOVER: Option<Takeover> = Some(Takeover { expected_now: None, holder_timeout: None });

/// The answer that the same tokens come in.
pub fn answer(label: &str) -> RawAnswer {
    let seconds = TOKEN_LIFETIME.as_secs();
    let body = format!(
        r#"{{"access_token":"access-{label}","refresh_token":"refresh-{label}","expires_in":{seconds}}}"#
    );
    RawAnswer { content_type: "application/json".to_owned(), body: body.into_bytes().into() }
}

/// Of a provider that can revoke.
pub fn disposal() -> Disposal<'static> {
    Disposal { revocable: true, reach: Default::default(), read: &response::tokens_in }
}

pub fn exposed(token: Option<&SecretString>) -> Option<&str> {
    token.map(ExposeSecret::expose_secret)
}

/// The token values of outbox entries, in order.
pub fn values(entries: &[Revocation]) -> Vec<String> {
    let mut values: Vec<_> =
        entries.iter().map(|entry| entry.token.expose_secret().to_owned()).collect();
    values.sort();
    values
}

/// Runs `n` tasks at once.
pub async fn at_once<T, F>(n: usize, task: impl Fn(usize) -> F) -> Vec<T>
where
    T: Send + 'static,
    F: Future<Output = T> + Send + 'static,
{
    let tasks = (0..n).map(|index| tokio::spawn(task(index)));
    let ended = futures::future::join_all(tasks).await;
    ended.into_iter().map(|ended| ended.expect("no panic")).collect()
}

impl Store {
    pub fn grants(&self) -> &GrantStore {
        self.storage.grants()
    }

    pub fn authorizations(&self) -> &AuthorizationStore {
        self.storage.authorizations()
    }

    pub fn keys(&self) -> &KeyRegistry {
        self.storage.keys()
    }

    pub fn revocations(&self) -> &RevocationOutbox {
        self.storage.revocations()
    }

    pub async fn new<B: Backend>() -> Self {
        let place = B::place().await;
        let clock = Arc::new(AtomicI64::new(BEGINNING));
        let storage = open(&place, &clock, keyring(&[("test", 7)])).await;
        storage.migrate().await.expect("the schema");
        Self { storage: Arc::new(storage), clock, place }
    }

    /// The same database through pools of another size.
    pub async fn with_connections(&self, max_connections: u32) -> Self {
        let clock = Clock::Fixed(Arc::clone(&self.clock));
        let settings = Settings { max_connections, ..settings(&self.place, clock) };
        let keyring = keyring(&[("test", 7)]);
        let storage = Storage::connect(&settings, keyring, Random::system()).await;
        let storage = Arc::new(storage.expect("a database"));
        Self { storage, clock: Arc::clone(&self.clock), place: self.place.clone() }
    }

    /// Another replica, with other keys.
    pub async fn beside(&self, keyring: Arc<Keyring>) -> Self {
        let storage = Arc::new(open(&self.place, &self.clock, keyring).await);
        Self { storage, clock: Arc::clone(&self.clock), place: self.place.clone() }
    }

    pub fn now(&self) -> Timestamp {
        Timestamp::from_millis(self.clock.load(Ordering::SeqCst))
    }

    pub fn advance(&self, by: Duration) {
        let millis = i64::try_from(by.as_millis()).expect("a short time");
        self.clock.fetch_add(millis, Ordering::SeqCst);
    }

    pub async fn begin(&self, key: &GrantKey) -> Authorization {
        self.authorizations()
            .insert_authorization(&NewAuthorization {
                key,
                bot: &name("helper"),
                scopes: &scopes("email profile"),
                options: &Options::default(),
                link_ttl: LINK_TTL,
            })
            .await
            .expect("an authorization")
    }

    /// An authorization whose code is being exchanged.
    pub async fn exchanging(&self, key: &GrantKey) -> Authorization {
        let authorization = self.begin(key).await;
        assert!(self.begin_exchange(authorization.id).await.is_some());
        authorization
    }

    /// Takes a redirect that nobody has seen before.
    pub async fn begin_exchange(&self, id: Id) -> Option<Timestamp> {
        let salt: [u8; 8] = Random::system().bytes();
        match self.authorizations().begin_exchange(id, &salt).await.expect("storage") {
            Begun::Now(at) => Some(at),
            Begun::Closed => None,
            Begun::Before => panic!("a fresh salt was there before"),
        }
    }

    /// An authorization that holds the tokens of `label` until its code comes.
    pub async fn awaiting(&self, key: &GrantKey, label: &str) -> Authorization {
        let authorization = self.exchanging(key).await;
        assert!(self.quarantine(&authorization, label).await);
        authorization
    }

    pub async fn quarantine(&self, authorization: &Authorization, label: &str) -> bool {
        let (answer, identity) = (answer(label), identity());
        let answered = Answered { answer: &answer, identity: &identity, exchanged_at: self.now() };
        self.authorizations()
            .quarantine(authorization, answered, CODE_HASH, CONFIRMATION_TTL, &disposal())
            .await
            .expect("storage")
    }

    /// A grant with the tokens of `label`.
    pub async fn grant(&self, key: &GrantKey, label: &str) -> Grant {
        let authorization = self.awaiting(key, label).await;
        self.authorizations()
            .authorize(&authorization, &tokens(label, self.now()), &identity(), &[])
            .await
            .expect("storage")
            .expect("a grant")
    }

    pub async fn held(&self, key: &GrantKey) -> StoredGrant {
        self.grants().find_grant(key).await.expect("storage").expect("a grant")
    }

    /// The access token that would be served.
    pub async fn served(&self, key: &GrantKey) -> String {
        let token = self.held(key).await.access_token.expect("an access token");
        token.value.expose_secret().to_owned()
    }

    /// Everything of the outbox that is due.
    pub async fn due(&self) -> Vec<String> {
        values(&self.revocations().claim_revocations(&name("acme"), 100).await.expect("storage"))
    }

    /// The number of entries that the outbox has, due or not.
    pub async fn doomed(&self) -> u64 {
        self.revocations().count_revocations().await.expect("storage")
    }

    /// A second connection, as somebody with a database client has it.
    pub async fn raw(&self) -> DatabaseConnection {
        Database::connect(self.place.url.clone()).await.expect("a connection")
    }

    /// Runs a statement as somebody with a database client would.
    pub async fn tamper(&self, sql: &str, values: impl IntoIterator<Item = Value>) -> u64 {
        let db = self.raw().await;
        let statement = Statement::from_sql_and_values(db.get_database_backend(), sql, values);
        let changed = db.execute_raw(statement).await.expect("a statement").rows_affected();
        db.close().await.expect("closed");
        changed
    }

    /// One sealed column.
    pub async fn column(&self, column: Column, id: Id) -> Vec<u8> {
        let db = self.raw().await;
        let Column { table, column, id: of } = column;
        let statement = Statement::from_sql_and_values(
            db.get_database_backend(),
            format!("SELECT {column} AS value FROM {table} WHERE {of} = $1"),
            [id.as_bytes().to_vec().into()],
        );
        let row = db.query_one_raw(statement).await.expect("a statement").expect("a row");
        db.close().await.expect("closed");
        row.try_get("", "value").expect("a value")
    }

    /// Replaces one sealed column.
    pub async fn set_column(&self, column: Column, id: Id, value: Vec<u8>) {
        let Column { table, column, id: of } = column;
        let sql = format!("UPDATE {table} SET {column} = $1 WHERE {of} = $2");
        let values = [value.into(), id.as_bytes().to_vec().into()];
        assert_eq!(self.tamper(&sql, values).await, 1);
    }
}

/// A sealed column, and the column that names its row.
#[derive(Clone, Copy)]
pub struct Column {
    pub table: &'static str,
    pub column: &'static str,
    pub id: &'static str,
}

pub const ACCESS_TOKEN: Column =
    Column { table: "access_tokens", column: "access_token", id: "grant_id" };
pub const REFRESH_TOKEN: Column = Column { table: "grants", column: "refresh_token", id: "id" };
pub const FALLBACK: Column = Column { table: "grants", column: "fallback_refresh_token", id: "id" };
pub const QUARANTINE: Column = Column { table: "authorizations", column: "quarantine", id: "id" };
pub const DOOMED: Column = Column { table: "revocations", column: "token", id: "id" };

async fn open(place: &Place, clock: &Arc<AtomicI64>, keyring: Arc<Keyring>) -> Storage {
    let settings = settings(place, Clock::Fixed(Arc::clone(clock)));
    Storage::connect(&settings, keyring, Random::system()).await.expect("a database")
}

/// A store whose clock is the database's.
pub async fn open_with(place: &Place, keyring: Arc<Keyring>) -> Store {
    let settings = settings(place, Clock::Database);
    let storage = Storage::connect(&settings, keyring, Random::system()).await;
    let storage = storage.expect("a database");
    storage.migrate().await.expect("the schema");
    let now = storage.now().await.expect("it answers").millis();
    Store { storage: Arc::new(storage), clock: Arc::new(AtomicI64::new(now)), place: place.clone() }
}

pub fn settings(place: &Place, clock: Clock) -> Settings {
    Settings { url: place.url.clone().into(), listen_url: None, max_connections: 10, clock }
}
