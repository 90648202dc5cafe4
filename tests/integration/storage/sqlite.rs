//! What SQLite alone has: a file, which tells nothing, and which one process serves.

use std::sync::Arc;
use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::crypto::random::Random;
use token_broker::storage::{Clock, Storage};

use super::backend::{
    Backend, Place, Sqlite, Store, answer, disposal, key, keyring, settings, tokens,
};

pub fn trials() -> Vec<Trial> {
    vec![
        Sqlite::trial("nothing_of_a_token_is_in_the_file_in_clear", clear),
        Sqlite::trial("what_was_replaced_leaves_no_bytes_behind", residue),
        Sqlite::trial("migrating_twice_is_harmless", twice),
        Sqlite::trial("two_may_migrate_at_once", migrate_at_once),
        Sqlite::trial("a_second_holder_is_refused_until_the_first_ends", alone),
        Sqlite::trial("the_databases_clock_tells_the_time", real_clock),
    ]
}

/// Everything that is on disk: the database, its log and its index.
fn on_disk(place: &Place) -> Vec<u8> {
    let folder = place.folder.as_ref().expect("a folder").path();
    let entries = std::fs::read_dir(folder).expect("a folder");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.flat_map(|path| std::fs::read(path).expect("a file")).collect()
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

async fn connect(place: &Place) -> Storage {
    let settings = settings(place, Clock::Database);
    let keyring = keyring(&[("test", 7)]);
    Storage::connect(&settings, keyring, Random::system()).await.expect("a database")
}

async fn clear() {
    let store = Store::new::<Sqlite>().await;
    // Tokens in every place that has any.
    let grant = store.grant(&key("u1"), "canary-0").await;
    for label in ["canary-1", "canary-2"] {
        let tokens = tokens(label, store.now());
        store.grants().commit_refresh(&grant, &tokens, &disposal()).await.expect("storage");
    }
    let held = store.held(&key("u1")).await.grant;
    let (answer, token) = (answer("canary-3"), "refresh-canary-4".into());
    let (wait, disposal) = (Duration::from_secs(1), disposal());
    let committed =
        store.grants().commit_partial(&held, &answer, Some(&token), wait, "odd", &disposal);
    committed.await.expect("storage");
    store.awaiting(&key("u2"), "canary-5").await;
    store.grant(&key("u3"), "canary-6").await;
    store.grants().revoke(&key("u3"), &disposal).await.expect("storage");
    assert_eq!(store.doomed().await, 2);

    let look = || {
        let bytes = on_disk(&store.place);
        // What is no secret shows that the right bytes are looked at.
        assert!(holds(&bytes, "email profile") && holds(&bytes, "awaiting_confirmation"));
        assert!(!holds(&bytes, "canary"));
    };
    look();
    store.storage.close().await.expect("closed");
    look();
}

async fn residue() {
    let store = Store::new::<Sqlite>().await;
    let folder = store.place.folder.clone().expect("a folder");
    let grant = store.grant(&key("u1"), "1").await;
    let sealed = store.column(super::backend::REFRESH_TOKEN, grant.id).await;
    let there = |bytes: &[u8]| bytes.windows(sealed.len()).any(|window| window == sealed);
    store.grants().revoke(&key("u1"), &disposal()).await.expect("storage");
    // The log is folded into the file when the last connection closes.
    store.storage.close().await.expect("closed");
    let file = std::fs::read(folder.path().join("token-broker.db")).expect("the database");
    assert!(holds(&file, "revocations"));
    assert!(!there(&file), "a deleted token, sealed or not, is gone");
}

async fn twice() {
    let store = Store::new::<Sqlite>().await;
    store.grant(&key("u1"), "1").await;
    let before = store.storage.migration_status().await.expect("storage");
    assert!(before.pending.is_empty() && !before.applied.is_empty());
    store.storage.migrate().await.expect("the schema");
    let beside = store.beside(keyring(&[("test", 7)])).await;
    beside.storage.migrate().await.expect("the schema");
    assert_eq!(store.storage.migration_status().await.expect("storage"), before);
    assert_eq!(beside.served(&key("u1")).await, "access-1");
}

async fn migrate_at_once() {
    let place = Sqlite::place().await;
    let storage = Arc::new(connect(&place).await);
    let status = storage.migration_status().await.expect("storage");
    assert!(status.applied.is_empty() && !status.pending.is_empty());
    let done = super::backend::at_once(4, |_| {
        let storage = Arc::clone(&storage);
        async move { storage.migrate().await }
    })
    .await;
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    let after = storage.migration_status().await.expect("storage");
    assert_eq!((after.applied, after.pending), (status.pending, Vec::new()));
}

async fn alone() {
    let place = Sqlite::place().await;
    let settings = settings(&place, Clock::Database);
    let first = connect(&place).await.serve_alone(&settings).expect("the only one");
    first.migrate().await.expect("the schema");
    let refused = connect(&place).await.serve_alone(&settings).expect_err("the second");
    assert!(refused.starts_with("another process serves "), "{refused}");
    assert!(refused.contains("token-broker.db"), "{refused}");
    // A command that does not serve may run beside it.
    let beside = connect(&place).await;
    assert!(beside.migration_status().await.expect("storage").pending.is_empty());
    // Another database is another matter.
    let elsewhere = Sqlite::place().await;
    let other = super::backend::settings(&elsewhere, Clock::Database);
    connect(&elsewhere).await.serve_alone(&other).expect("another database");
    drop(first);
    connect(&place).await.serve_alone(&settings).expect("the only one again");
}

async fn real_clock() {
    let place = Sqlite::place().await;
    let storage = connect(&place).await;
    let before = file_time(&place);
    let now = storage.now().await.expect("storage").millis();
    // In milliseconds, and of the same clock as the file system's.
    assert!((now - before).abs() < 60_000, "{now} and {before}");
    let later = storage.now().await.expect("storage").millis();
    assert!(later >= now);
}

/// When a file that is made now counts as changed, in milliseconds since the epoch.
fn file_time(place: &Place) -> i64 {
    let path = place.folder.as_ref().expect("a folder").path().join("now");
    std::fs::write(&path, "").expect("a file");
    let changed = std::fs::metadata(&path).and_then(|metadata| metadata.modified());
    let since = changed.expect("a time").duration_since(std::time::UNIX_EPOCH).expect("after it");
    i64::try_from(since.as_millis()).expect("a time")
}
