//! A replica that is held still (SIGSTOP) while it has the lease, past the lease's end, and goes on as if
//! nothing had been.

use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};
use token_broker_client::proto;
use tokio::task::JoinHandle;

use super::seeding::seed_grants;
use super::{Fleet, get};
use crate::harness::world::refresh;
use crate::harness::{tools, trial_with};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        trial_with(needs, "process::fleet::a_replica_held_still_before_it_sends", before_sending),
        trial_with(needs, "process::fleet::a_replica_held_still_while_it_waits", while_waiting),
        trial_with(needs, "process::fleet::a_replica_held_still_before_its_commit", before_commit),
    ]
}

/// The replica that is held still.
const STILL: usize = 2;

type Caller = JoinHandle<Result<tonic::Response<proto::RefreshResponse>, tonic::Status>>;

struct Scene {
    fleet: Fleet,
    old: String,
    calls: usize,
}

impl Scene {
    async fn new() -> Self {
        let fleet = Fleet::with_grace(Duration::from_secs(60)).await;
        seed_grants(&fleet, 1).await;
        let old = get(fleet.replica(0).client().await, "u0".to_owned()).await;
        let calls = fleet.site.provider.ledger().token_calls;
        Self { fleet, old, calls }
    }

    async fn refresh(&self) -> Caller {
        let mut client = self.fleet.replica(STILL).client().await;
        tokio::spawn(async move { client.refresh(refresh("u0")).await })
    }

    /// Makes whoever would write the grant wait.
    async fn lock(&self) -> DatabaseTransaction {
        let transaction = self.fleet.database.begin().await.expect("a transaction");
        let lock = "SELECT id FROM grants FOR UPDATE";
        transaction.execute_unprepared(lock).await.expect("a lock");
        transaction
    }

    /// Another replica takes the refresh up when the lease has ended, and stores what it gets. Then the
    /// one that was held still goes on.
    async fn taken_up_and_on(&self, sends: usize, caller: Caller) {
        self.fleet.site.provider.wait_for_token_calls(self.calls + sends).await;
        let client = self.fleet.replica(0).client().await;
        while get(client.clone(), "u0".to_owned()).await == self.old {}
        self.fleet.replica(STILL).process.go_on();
        // Whatever its caller is told.
        drop(caller.await.expect("no panic"));
        self.fleet.settled().await;
    }

    /// The newest refresh token is the one that is stored: it has not been sent before.
    async fn assert_newest(&self, sends: usize) {
        let provider = &self.fleet.site.provider;
        let before = provider.ledger();
        assert_eq!(before.token_calls, self.calls + sends, "{before:?}");
        for replica in 0..3 {
            let mut client = self.fleet.replica(replica).client().await;
            let refreshed = client.refresh(refresh("u0")).await.expect("a token").into_inner();
            assert!(provider.is_living(&refreshed.token.expect("a token").access_token));
        }
        let after = provider.ledger();
        assert_eq!(after.repeats, before.repeats, "{after:?}");
        assert_eq!(after.reuse_detections, 0);
        self.fleet.assert_no_double();
    }
}

async fn before_sending() {
    let scene = Scene::new().await;
    let lock = scene.lock().await;
    let caller = scene.refresh().await;
    scene.fleet.waits_for_lock().await;
    scene.fleet.replica(STILL).process.hold_still();
    // It gets its lease, and does not know.
    lock.commit().await.expect("released");
    scene.taken_up_and_on(1, caller).await;
    scene.assert_newest(1).await;
}

async fn while_waiting() {
    let scene = Scene::new().await;
    let pause = scene.fleet.site.provider.pause_token_endpoint();
    let caller = scene.refresh().await;
    scene.fleet.site.provider.wait_for_token_calls(scene.calls + 1).await;
    scene.fleet.replica(STILL).process.hold_still();
    drop(pause);
    scene.taken_up_and_on(2, caller).await;
    scene.assert_newest(2).await;
}

async fn before_commit() {
    let scene = Scene::new().await;
    let pause = scene.fleet.site.provider.pause_token_endpoint();
    let caller = scene.refresh().await;
    scene.fleet.site.provider.wait_for_token_calls(scene.calls + 1).await;
    let lock = scene.lock().await;
    drop(pause);
    scene.fleet.waits_for_lock().await;
    scene.fleet.replica(STILL).process.hold_still();
    lock.commit().await.expect("released");
    scene.taken_up_and_on(2, caller).await;
    scene.assert_newest(2).await;
}
