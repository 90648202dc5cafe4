//! Keys at start: another one under the same id, and one that is lost.

use base64::prelude::{BASE64_STANDARD, Engine};
use libtest_mimic::Trial;
use token_broker_client::{Reason, proto};

use super::child::{Ended, Running, Serving, binary};
use super::life::token;
use super::premises::{Premises, with_line};
use super::site::Site;
use crate::harness::world::{get_token, key};
use crate::harness::{postgres, tools, trial, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::keyrings::no_two_new_keys_have_one_id", unique),
        trial("process::keyrings::another_key_under_a_known_id_ends_serve", another),
        trial_with(
            &[tools::POSTGRESQL],
            "process::keyrings::another_key_under_a_known_id_ends_serve_on_postgresql",
            another_on_postgresql,
        ),
        trial("process::keyrings::a_lost_key_is_given_up", lost),
    ]
}

async fn unique() {
    let new = || async { Running::start(binary(["keys", "new", "--line"])).ended().await };
    let (one, other) = (new().await, new().await);
    let id = |ended: &Ended| ended.stdout.split(':').next().expect("an id").to_owned();
    assert_ne!(id(&one), id(&other));
    assert!(id(&one).len() <= 32, "{}", one.stdout);
}

fn keys(id: &str, byte: u8) -> String {
    // One byte 32 times is refused.
    let mut bytes = [byte; 32];
    bytes[31] = 0;
    format!("keys = [{{ id = \"{id}\", key = \"{}\" }}]", BASE64_STANDARD.encode(bytes))
}

async fn another() {
    refused(Site::new().await).await;
}

async fn another_on_postgresql() {
    refused(Site::at(Premises::on(postgres::database().await)).await).await;
}

async fn refused(site: Site) {
    let serving = site.serve().await;
    let first = site.granted(&serving, "u1").await;
    serving.terminate().await;
    let right = site.config();
    site.write(&with_line(&right, "keys", &keys("test", 9)));
    let reason = "encryption.keys: the database has rows that were sealed with another key under \
                  the id test; configure that key, and give the new one an id of its own";
    for command in ["serve", "check"] {
        let ended = site.run(&[command]).await;
        assert_eq!(ended.code, Some(1), "{command}: {ended:?}");
        let told = format!("{}{}", ended.stdout, ended.stderr);
        assert!(told.contains(reason), "{command}: {told}");
    }
    // With the right key nothing has changed.
    site.write(&right);
    let serving = site.serve().await;
    assert_eq!(token(&serving, "u1").await, first);
}

async fn revoke(serving: &Serving, subject: &str) -> proto::Revocation {
    let request = proto::RevokeRequest { key: Some(key(subject)) };
    serving.client().await.revoke(request).await.expect("a revocation").into_inner().revocation()
}

async fn lost() {
    let site = Site::new().await;
    let serving = site.serve().await;
    let (first, second) = (site.granted(&serving, "u1").await, site.granted(&serving, "u2").await);
    site.granted(&serving, "u3").await;
    serving.terminate().await;
    let right = site.config();
    site.write(&with_line(&right, "keys", &keys("new", 9)));
    let mut serving = site.serve().await;
    let line = |line: &str| line.contains("rows are sealed with a key").then_some(());
    serving.process.stderr.line(line).await;
    // Without its key a user can be forgotten and can authorize again; nothing is given up by itself.
    assert_eq!(revoke(&serving, "u1").await, proto::Revocation::Pending);
    assert!(site.provider.is_living(&first), "nobody can tell the provider yet");
    site.granted(&serving, "u3").await;

    let refused = site.run(&["keys", "forget", "test"]).await;
    assert!(refused.stderr.contains("add --yes to do so"), "{refused:?}");
    let known = site.run(&["keys", "forget", "new", "--yes"]).await;
    assert!(known.stderr.contains("encryption.keys has the key new"), "{known:?}");
    let mistyped = site.run(&["keys", "forget", "tset", "--yes"]).await;
    assert!(mistyped.stderr.contains("no row was sealed with the key tset"), "{mistyped:?}");
    assert!(mistyped.stderr.contains("not configured: test"), "{mistyped:?}");
    // Beside `serve`.
    let given_up = site.run(&["keys", "forget", "test", "--yes"]).await;
    assert_eq!(given_up.code, Some(0), "{given_up:?}");
    assert!(given_up.stdout.starts_with("gave up the key test: 1 grants"), "{given_up:?}");
    let refused = serving.client().await.get_token(get_token("u2")).await;
    let refusal = token_broker_client::Refusal::of(&refused.expect_err("refused"));
    assert_eq!(refusal.expect("a refusal").reason, Reason::ReauthorizationRequired);
    assert_ne!(site.granted(&serving, "u2").await, second);
    serving.terminate().await;
    let checked = site.run(&["check"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
}
