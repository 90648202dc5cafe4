//! Three replicas on one PostgreSQL that are killed, held still and cut off. The judge is the provider's
//! own ledger: which refresh token came how often, and what lives.
//!
//! How much they do is told in `harness/soak.rs`.

mod background;
mod cached;
mod clocks;
mod databases;
mod failover;
mod herd;
mod impatient;
mod isolation;
mod killed;
mod outbox;
mod partition;
mod proactive;
mod revoked;
mod seeding;
mod steps;
mod stopped;
mod terminated;
mod unstored;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use libtest_mimic::Trial;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use token_broker_client::{Client, Reason, Refusal};

pub use self::seeding::seeder;
use super::child::{Serving, earlier_build};
use super::premises::Premises;
use super::site::Site;
use crate::harness::soak::seed;
use crate::harness::world::{get_token, refresh};

pub fn trials() -> Vec<Trial> {
    let all = [
        herd::trials(),
        revoked::trials(),
        cached::trials(),
        killed::trials(),
        stopped::trials(),
        terminated::trials(),
        unstored::trials(),
        clocks::trials(),
        outbox::trials(),
        proactive::trials(),
        background::trials(),
        failover::trials(),
        impatient::trials(),
        isolation::trials(),
        partition::trials(),
        steps::trials(),
    ];
    all.into_iter().flatten().collect()
}

/// The time for which a silent replica may still hold a response.
const REPLICA_TIMEOUT: &str = "TOKEN_BROKER__DATABASE__REPLICA_TIMEOUT";

/// The number of replicas that a fleet has.
const REPLICAS: usize = 3;

/// Clients of the replicas that live.
#[derive(Default)]
struct Directory(Mutex<Vec<Option<Client>>>);

impl Directory {
    fn set(&self, number: usize, client: Option<Client>) {
        let mut clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if clients.len() <= number {
            clients.resize(number + 1, None);
        }
        clients[number] = client;
    }

    /// One of those that live, other than this one.
    fn any(&self, random: &mut StdRng, other_than: Option<usize>) -> (usize, Client) {
        let clients = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let living: Vec<_> = clients
            .iter()
            .enumerate()
            .filter(|(number, _)| Some(*number) != other_than)
            .filter_map(|(number, client)| client.clone().map(|client| (number, client)))
            .collect();
        living[random.random_range(0..living.len())].clone()
    }
}

struct Fleet {
    site: Site,
    replicas: Vec<Option<Serving>>,
    directory: Arc<Directory>,
    variables: Vec<(&'static str, String)>,
    database: DatabaseConnection,
}

impl Fleet {
    async fn start(variables: &[(&'static str, &str)]) -> Self {
        Self::on(databases::database().await, Duration::ZERO, variables).await
    }

    /// At a provider that takes a refresh token again for a while.
    async fn with_grace(grace: Duration) -> Self {
        Self::on(databases::database().await, grace, &[]).await
    }

    /// The first replica is the one that browsers find.
    async fn on(database_url: String, grace: Duration, variables: &[(&'static str, &str)]) -> Self {
        let site = Site::with_grace(Premises::on(database_url.clone()), grace).await;
        let mut variables: Vec<_> =
            variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let seconds = format!("{}s", grace.as_secs());
        variables.push(("TOKEN_BROKER__PROVIDERS__ACME__REFRESH_GRACE", seconds));
        // A replica that was killed is not waited for longer than a test can.
        if !variables.iter().any(|(name, _)| *name == REPLICA_TIMEOUT) {
            variables.push((REPLICA_TIMEOUT, "5s".to_owned()));
        }
        if earlier_build().is_some() {
            variables.retain(|(name, _)| *name != REPLICA_TIMEOUT);
        }
        // The tests' own statements are not repeated where transactions are serializable.
        let plain = database_url.split('?').next().expect("a URL");
        let database = Database::connect(plain).await.expect("it answers");
        let replicas = (0..REPLICAS).map(|_| None).collect();
        let directory = Arc::default();
        let mut fleet = Self { site, replicas, directory, variables, database };
        for number in 0..REPLICAS {
            fleet.restart(number).await;
        }
        fleet
    }

    /// Starts a replica, with more variables of its own.
    async fn restart_with(&mut self, number: usize, more: &[(&str, &str)]) {
        let mut command = self.site.command(&["serve"]);
        command.envs(self.variables.iter().map(|(name, value)| (*name, value.as_str())));
        if number > 0 {
            command.env("TOKEN_BROKER__HTTP__LISTEN", "127.0.0.1:0");
        }
        command.envs(more.iter().copied());
        let serving = Serving::start(command).await;
        self.directory.set(number, Some(serving.client().await));
        self.replicas[number] = Some(serving);
    }

    async fn restart(&mut self, number: usize) {
        self.restart_with(number, &[]).await;
    }

    fn replica(&self, number: usize) -> &Serving {
        self.replicas[number].as_ref().expect("it runs")
    }

    fn take(&mut self, number: usize) -> Serving {
        self.replicas[number].take().expect("it runs")
    }

    async fn clients(&self) -> Vec<Client> {
        join_all((0..REPLICAS).map(|number| self.replica(number).client())).await
    }

    /// The client of a replica that lives.
    fn client(&self, number: usize) -> Client {
        let clients = self.directory.0.lock().unwrap_or_else(PoisonError::into_inner);
        clients[number].clone().expect("it lives")
    }

    async fn granted(&self, subject: &str) -> String {
        self.site.granted(self.replica(0), subject).await
    }

    /// SIGKILL.
    async fn kill(&mut self, number: usize) {
        self.take(number).kill().await;
        self.directory.set(number, None);
    }

    /// Ends the time of every access token, in the broker's eyes.
    async fn expire(&self) {
        for table in ["grants", "access_tokens"] {
            self.execute(&format!("UPDATE {table} SET expires_at = issued_at + 1")).await;
        }
    }

    async fn execute(&self, sql: &str) {
        self.database.execute_unprepared(sql).await.expect("a statement");
    }

    async fn count(&self, sql: &str) -> usize {
        let statement = Statement::from_string(DbBackend::Postgres, sql);
        let row = self.database.query_one_raw(statement).await.expect("a statement");
        let count: i64 = row.expect("a row").try_get("", "count").expect("a number");
        usize::try_from(count).expect("no negative number")
    }

    async fn open_intents(&self) -> usize {
        self.count("SELECT count(*) FROM grants WHERE intent_at IS NOT NULL").await
    }

    /// The number of refreshes that are open whose replicas have ended: those that stay open for longer than a
    /// living one needs, and for less than a lease lasts.
    async fn left_open(&self) -> usize {
        let open = "SELECT encode(id, 'hex') || lease_until AS lease FROM grants \
                    WHERE intent_at IS NOT NULL AND lease_until IS NOT NULL";
        let leases = || async {
            let statement = Statement::from_string(DbBackend::Postgres, open);
            let rows = self.database.query_all_raw(statement).await.expect("a statement");
            let leases = rows.iter().map(|row| row.try_get("", "lease").expect("a text"));
            leases.collect::<BTreeSet<String>>()
        };
        let before = leases().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        before.intersection(&leases().await).count()
    }

    /// Waits until nobody holds a refresh of which it is not known what became of it.
    async fn settled(&self) {
        while self.open_intents().await > 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Waits until a refresh waits for a lock of somebody else's.
    async fn waits_for_lock(&self) {
        let waiting = "SELECT count(*) FROM pg_stat_activity \
                       WHERE wait_event_type = 'Lock' AND query LIKE '%lease_owner%' \
                       AND datname = current_database()";
        while self.count(waiting).await == 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Refreshes each subject once, wherever; gives how many of them must authorize again. Any other
    /// failure is one of the test.
    async fn lost(&self, subjects: &[String]) -> usize {
        let mut random = StdRng::seed_from_u64(seed());
        let mut lost = 0;
        for subject in subjects {
            let (_, mut client) = self.directory.any(&mut random, None);
            let mut ended = client.refresh(refresh(subject)).await;
            // A breaker that is open says nothing of this grant, nor does a database that a replica has
            // not yet seen to be back.
            let later = [Reason::ProviderUnavailable, Reason::StorageUnavailable];
            while ended.as_ref().is_err_and(|status| later.contains(&reason_of(status))) {
                tokio::time::sleep(Duration::from_millis(500)).await;
                ended = client.refresh(refresh(subject)).await;
            }
            match ended {
                Ok(response) => {
                    let token = response.into_inner().token.expect("a token").access_token;
                    assert!(self.site.provider.is_living(&token), "{subject} has a dead token");
                }
                Err(status) if reason_of(&status) == Reason::ReauthorizationRequired => lost += 1,
                Err(status) => panic!("{subject}: {status:?}"),
            }
        }
        lost
    }

    /// No refresh token was sent while another send of it was under way, nor after its answer had
    /// been committed.
    fn assert_no_double(&self) {
        let ledger = self.site.provider.ledger();
        assert_eq!((ledger.overlaps, ledger.sends_of_superseded), (0, 0), "{ledger:?}");
    }
}

fn reason_of(status: &tonic::Status) -> Reason {
    Refusal::of(status).unwrap_or_else(|| panic!("no refusal: {status:?}")).reason
}

fn reason<T: std::fmt::Debug>(refused: Result<T, tonic::Status>) -> Reason {
    reason_of(&refused.expect_err("refused"))
}

async fn get(mut client: Client, subject: String) -> String {
    let lent = client.get_token(get_token(&subject)).await.expect("a token");
    lent.into_inner().token.expect("a token").access_token
}
