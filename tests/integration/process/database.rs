//! `serve` on PostgreSQL: before the database is there, while it is away, and beside another replica.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait as _, Database};
use token_broker_client::{Reason, Refusal, proto};
use tonic_health::ServingStatus;
use tonic_health::pb::health_check_response::ServingStatus as Told;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse, health_client::HealthClient};

use super::child::{Running, Serving};
use super::life::token;
use super::premises::Premises;
use super::site::Site;
use crate::harness::proxy::Proxy;
use crate::harness::world::{self, get_token, key};
use crate::harness::{Browser, postgres, tools, trial_with};

pub fn trials() -> Vec<Trial> {
    let needs = &[tools::POSTGRESQL];
    vec![
        trial_with(needs, "process::database::may_come_20_s_after_its_service", late),
        trial_with(needs, "process::database::may_be_created_after_its_service", created_late),
        trial_with(needs, "process::database::stops_and_starts_under_load", stopped_under_load),
        trial_with(needs, "process::database::connections_that_go_silent_are_given_up", silent),
        trial_with(needs, "process::database::an_answer_is_held_while_it_is_away", held),
        trial_with(needs, "process::database::replicas_that_start_together_migrate_once", together),
        trial_with(needs, "process::database::a_role_that_is_refused_ends_serve", refused_role),
        trial_with(
            needs,
            "process::database::check_names_the_privileges_that_a_role_lacks",
            lacking,
        ),
        trial_with(needs, "process::database::is_called_by_tls_and_known_by_its_certificate", tls),
        trial_with(needs, "process::database::check_and_migrate_tell_where_it_is", commands),
    ]
}

/// What health tells of the service, whenever it changes.
pub struct Health(tonic::Streaming<HealthCheckResponse>);

impl Health {
    pub async fn of(serving: &Serving) -> Self {
        let url = format!("http://{}", serving.grpc);
        let channel = token_broker_client::Client::channel(url).expect("a URL").connect().await;
        let service = "tokenbroker.v1.TokenBrokerService".to_owned();
        let watch = HealthClient::new(channel.expect("it listens"))
            .watch(HealthCheckRequest { service })
            .await;
        Self(watch.expect("a watch").into_inner())
    }

    pub async fn becomes(&mut self, wanted: ServingStatus) {
        let wanted = match wanted {
            ServingStatus::Serving => Told::Serving,
            _ => Told::NotServing,
        };
        while self.0.message().await.expect("a message").expect("a message").status() != wanted {}
    }
}

fn reason<T: std::fmt::Debug>(refused: Result<T, tonic::Status>) -> Reason {
    Refusal::of(&refused.expect_err("refused")).expect("a refusal").reason
}

async fn late() {
    let server = postgres::Server::prepared();
    let site = Site::at(Premises::on(server.url("postgres"))).await;
    let mut serving = Serving::bound(site.command(&["serve"])).await;
    let mut health = Health::of(&serving).await;
    health.becomes(ServingStatus::NotServing).await;
    let ready = format!("http://{}/readyz", serving.ops);
    assert_eq!(Browser::new().get(&ready).await.status, 503);
    // It lives: a restart would not help.
    assert_eq!(Browser::new().get(&ready.replace("readyz", "livez")).await.status, 200);
    let refused = serving.client().await.get_token(get_token("u1")).await;
    assert_eq!(reason(refused), Reason::StorageUnavailable);
    // It is said at once, and every 10 s: the third time, 20 s are over.
    let place = server.url("postgres").replace("postgres://broker@", "PostgreSQL at ");
    let place = place.replace("/postgres", ", database postgres: ");
    serving.process.stderr.repeated("waiting for the database", 3, &place).await;
    server.start();
    health.becomes(ServingStatus::Serving).await;
    let granted = site.granted(&serving, "u1").await;
    assert!(site.provider.is_living(&granted));
    assert_eq!(serving.terminate().await.code, Some(0));
}

async fn created_late() {
    let server = postgres::Server::prepared();
    server.start();
    let site = Site::at(Premises::on(server.url("not_yet"))).await;
    let mut serving = Serving::bound(site.command(&["serve"])).await;
    let wanted = r#"database "not_yet" does not exist"#;
    serving.process.stderr.repeated("waiting for the database", 1, wanted).await;
    let admin = Database::connect(server.url("postgres")).await.expect("it answers");
    admin.execute_unprepared("CREATE DATABASE not_yet").await.expect("a database");
    admin.close().await.expect("closed");
    Health::of(&serving).await.becomes(ServingStatus::Serving).await;
    site.granted(&serving, "u1").await;
}

async fn stopped_under_load() {
    const CALLERS: usize = 16;

    let server = postgres::Server::prepared();
    server.start();
    let site = Site::at(Premises::on(server.new_database().await)).await;
    let serving = Arc::new(site.serve().await);
    let granted = site.granted(&serving, "u1").await;
    let mut health = Health::of(&serving).await;
    health.becomes(ServingStatus::Serving).await;

    let (stop, served, refused) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicUsize::new(0)),
        Arc::new(AtomicUsize::new(0)),
    );
    let callers: Vec<_> = (0..CALLERS)
        .map(|_| {
            let (serving, stop) = (Arc::clone(&serving), Arc::clone(&stop));
            let (served, refused) = (Arc::clone(&served), Arc::clone(&refused));
            let granted = granted.clone();
            tokio::spawn(async move {
                let mut client = serving.client().await;
                while !stop.load(Ordering::SeqCst) {
                    match client.get_token(get_token("u1")).await {
                        Ok(lent) => {
                            let lent = lent.into_inner().token.expect("a token").access_token;
                            assert_eq!(lent, granted);
                            served.fetch_add(1, Ordering::SeqCst);
                        }
                        Err(status) => {
                            let refusal = Refusal::of(&status).expect("a refusal");
                            assert_eq!(refusal.reason, Reason::StorageUnavailable, "{status:?}");
                            refused.fetch_add(1, Ordering::SeqCst);
                        }
                    }
                }
            })
        })
        .collect();

    for _ in 0..2 {
        server.stop();
        health.becomes(ServingStatus::NotServing).await;
        let ready = format!("http://{}/readyz", serving.ops);
        assert_eq!(Browser::new().get(&ready).await.status, 503);
        server.start();
        health.becomes(ServingStatus::Serving).await;
        // Every caller is served again, over the connection that it had, by the same process.
        let (before, failed) = (served.load(Ordering::SeqCst), refused.load(Ordering::SeqCst));
        while served.load(Ordering::SeqCst) < before + 20 * CALLERS {
            tokio::task::yield_now().await;
        }
        // Calls that waited for a connection when it came back may still have given up.
        let late = refused.load(Ordering::SeqCst) - failed;
        assert!(late <= CALLERS, "{late} calls failed after health had told that all is well");
    }
    stop.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.expect("no panic");
    }
    let serving = Arc::into_inner(serving).expect("nobody else has it");
    let ended = serving.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let told = |message: &str| ended.stderr.matches(&format!("\"message\":\"{message}\"")).count();
    assert_eq!((told("storage does not answer"), told("storage answers")), (2, 3));
}

async fn silent() {
    const SUBJECTS: usize = 12;

    let server = postgres::Server::prepared();
    server.start();
    let proxy = Proxy::to(server.address).await;
    let url = server.new_database().await;
    let url = url.replace(&server.address.to_string(), &proxy.address.to_string());
    let site = Site::at(Premises::on(url)).await;
    let serving = Arc::new(site.serve().await);
    for number in 0..SUBJECTS {
        site.granted(&serving, &format!("u{number}")).await;
    }
    let frozen = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..SUBJECTS)
        .map(|number| {
            let (serving, frozen) = (Arc::clone(&serving), Arc::clone(&frozen));
            tokio::spawn(async move {
                let mut client = serving.client().await;
                let key = key(&format!("u{number}"));
                let mut since = 0;
                // Without a deadline, as callers should not be, and some are. Each must be served
                // again.
                while since == 0 {
                    let late = frozen.load(Ordering::SeqCst);
                    let refresh =
                        proto::RefreshRequest { key: Some(key.clone()), ..Default::default() };
                    let refreshed = client.refresh(refresh).await.is_ok();
                    since += usize::from(late && refreshed);
                }
            })
        })
        .collect();
    let calls = site.provider.ledger().token_calls;
    site.provider.wait_for_token_calls(calls + 2 * SUBJECTS).await;
    // New connections work; those that are silent are given up.
    proxy.freeze();
    frozen.store(true, Ordering::SeqCst);
    for caller in callers {
        caller.await.expect("no panic");
    }
    // A silent connection does not keep the process from its end either.
    proxy.freeze();
    let serving = Arc::into_inner(serving).expect("nobody else has it");
    serving.process.send_sigterm().await;
    let ended = serving.process.ended().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert_eq!(site.provider.ledger().reuse_detections, 0);
}

async fn held() {
    let server = postgres::Server::prepared();
    server.start();
    let site = Site::at(Premises::on(server.new_database().await)).await;
    let mut serving = site.serve().await;
    let first = site.granted(&serving, "u1").await;
    let pause = site.provider.pause_token_endpoint();
    let calls = site.provider.ledger().token_calls;
    let mut client = serving.client().await;
    let refreshing = tokio::spawn(async move {
        let refresh = world::refresh("u1");
        client.refresh(refresh).await
    });
    site.provider.wait_for_token_calls(calls + 1).await;
    server.stop();
    drop(pause);
    // The only living refresh token is in the process's memory alone.
    serving.process.stderr.logged("cannot store; held until storage is back").await;
    server.start();
    let refreshed = refreshing.await.expect("no panic").expect("a token").into_inner();
    let second = refreshed.token.expect("a token").access_token;
    assert_ne!(first, second);
    assert_eq!(token(&serving, "u1").await, second);
    let refresh = world::refresh("u1");
    serving.client().await.refresh(refresh).await.expect("the refresh token was kept");
    let ledger = site.provider.ledger();
    assert_eq!((ledger.refreshes, ledger.reuse_detections), (2, 0));
}

async fn together() {
    let site = Site::at(Premises::on(postgres::database().await)).await;
    let start = |variables: &'static [(&str, &str)]| {
        let mut command = site.command(&["serve"]);
        command.envs(variables.iter().copied());
        Serving::start(command)
    };
    let (first, second, third) = tokio::join!(start(&[]), start(&OTHER), start(&OTHER));
    let granted = site.granted(&first, "u1").await;
    for replica in [&second, &third] {
        assert_eq!(token(replica, "u1").await, granted);
    }
    for replica in [first, second, third] {
        let ended = replica.terminate().await;
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }
    let status = site.run(&["migrate", "--status"]).await;
    assert!(status.stdout.lines().all(|line| line.starts_with("applied  ")), "{status:?}");
}

/// Where the second replica of a test takes browsers.
const OTHER: [(&str, &str); 1] = [("TOKEN_BROKER__HTTP__LISTEN", "127.0.0.1:0")];

async fn refused_role() {
    let url = postgres::database().await.replace("broker@", "nobody:hunter2@");
    let site = Site::at(Premises::on(url)).await;
    let ended = Running::start(site.command(&["serve"])).ended().await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    let told = ended.stderr.lines().last().expect("a line");
    assert!(told.starts_with("token-broker: storage: cannot use PostgreSQL at "), "{ended:?}");
    assert!(told.contains(r#"role "nobody" does not exist"#), "{ended:?}");
    assert!(!ended.stderr.contains("hunter2"), "{ended:?}");
}

async fn lacking() {
    let server = postgres::Server::prepared();
    server.start();
    let url = server.url("postgres");
    let admin = Database::connect(&url).await.expect("a connection");
    let run = async |sql: &str| {
        admin.execute_unprepared(sql).await.unwrap_or_else(|error| panic!("{sql}: {error}"));
    };
    run("CREATE ROLE reader LOGIN; GRANT USAGE ON SCHEMA public TO reader").await;
    let site = Site::at(Premises::on(url.replace("broker@", "reader@"))).await;
    let lacks = async |what: &str| {
        let checked = site.run(&["check"]).await;
        assert_eq!(checked.code, Some(1), "{checked:?}");
        let expected = format!("database: the role of database.url lacks {what}");
        assert!(checked.stdout.contains(&expected), "{expected}: {checked:?}");
    };
    lacks("CREATE in the schema public; grant it that, or run `token-broker migrate`").await;
    // The role of `migrate` may be another one.
    let owner = Site::at(Premises::on(url)).await;
    assert_eq!(owner.run(&["migrate"]).await.code, Some(0));
    run("GRANT SELECT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO reader").await;
    lacks("INSERT on the table access_tokens, INSERT on the table authorization_attempts").await;
    run("GRANT INSERT ON ALL TABLES IN SCHEMA public TO reader").await;
    let checked = site.run(&["check"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    assert_eq!(site.serve().await.terminate().await.code, Some(0));
}

async fn tls() {
    let server = postgres::Server::prepared();
    let certificate = server.start_with_tls();
    let url = server.url("postgres").replace("127.0.0.1", "localhost");
    let certificate = certificate.display();
    let verified = format!("{url}?sslmode=verify-full&sslrootcert={certificate}");
    let site = Site::at(Premises::on(verified.clone())).await;
    let serving = site.serve().await;
    site.granted(&serving, "u1").await;
    assert_eq!(serving.terminate().await.code, Some(0));
    // One that nobody vouches for, and one that is for another name.
    for unknown in
        [format!("{url}?sslmode=verify-full"), verified.replace("localhost", "127.0.0.1")]
    {
        let site = Site::at(Premises::on(unknown)).await;
        let ended = Running::start(site.command(&["serve"])).ended().await;
        assert_eq!(ended.code, Some(1), "{ended:?}");
        assert!(ended.stderr.contains("certificate"), "{ended:?}");
    }
}

async fn commands() {
    let server = postgres::Server::prepared();
    let site = Site::at(Premises::on(server.url("postgres"))).await;
    let away = site.run(&["check"]).await;
    assert_eq!(away.code, Some(1), "{away:?}");
    let told = away.stdout.lines().last().expect("a line");
    let place = server.url("postgres").replace("postgres://broker@", "PostgreSQL at ");
    let place = place.replace("/postgres", ", database postgres: ");
    assert!(told.starts_with(&format!("database: cannot use {place}")), "{away:?}");
    let away = site.run(&["migrate"]).await;
    assert_eq!(away.code, Some(1), "{away:?}");
    assert!(away.stderr.contains(&place) && away.stdout.is_empty(), "{away:?}");

    server.start();
    let pending = site.run(&["migrate", "--status"]).await;
    assert!(pending.stdout.lines().all(|line| line.starts_with("pending  ")), "{pending:?}");
    let refused = site.run_with(&["serve"], &[("TOKEN_BROKER__DATABASE__MIGRATE", "false")]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    assert!(refused.stderr.contains("run `token-broker migrate --config FILE`"), "{refused:?}");
    let done = site.run(&["migrate"]).await;
    assert_eq!(done.code, Some(0), "{done:?}");
    assert!(done.stdout.lines().all(|line| line.ends_with(" (now)")), "{done:?}");
    let checked = site.run(&["check"]).await;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    let expected = format!("applied: {}, to be applied by serve: 0)", done.stdout.lines().count());
    assert!(checked.stdout.lines().any(|line| line.ends_with(&expected)), "{checked:?}");
    let mut command = site.command(&["serve"]);
    command.env("TOKEN_BROKER__DATABASE__MIGRATE", "false");
    assert_eq!(Serving::start(command).await.terminate().await.code, Some(0));
}
