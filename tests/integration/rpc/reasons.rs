//! The contract's error table, row by row: each reason is told over the wire, with its code.

use std::collections::BTreeMap;
use std::time::Duration;

use libtest_mimic::Trial;
use sea_orm::{ConnectionTrait, Database};
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker::domain::bot::{Providers, Rate, SubjectPattern};
use token_broker::domain::scope::Scopes;
use token_broker_client::{ApiKey, Client, proto};
use tonic::Code;

use super::support::{add_providers, begin, key_at, look, refused, script_token};
use crate::harness::world::{PROVIDER, authorize, bot, get_token, key, name};
use crate::harness::{Browser, World, trial};

/// The contract's rows. All of them can be reached by now.
const TABLE: [(&str, Code); 21] = [
    ("INVALID_ARGUMENT", Code::InvalidArgument),
    ("FLOW_NOT_SUPPORTED", Code::InvalidArgument),
    ("UNAUTHENTICATED", Code::Unauthenticated),
    ("PROVIDER_NOT_ALLOWED", Code::PermissionDenied),
    ("SCOPE_NOT_ALLOWED", Code::PermissionDenied),
    ("SUBJECT_NOT_ALLOWED", Code::PermissionDenied),
    ("METHOD_NOT_ALLOWED", Code::PermissionDenied),
    ("AUTHORIZATION_REQUIRED", Code::FailedPrecondition),
    ("REAUTHORIZATION_REQUIRED", Code::FailedPrecondition),
    ("SCOPE_MISSING", Code::FailedPrecondition),
    ("NOT_REFRESHABLE", Code::FailedPrecondition),
    ("PROVIDER_MISCONFIGURED", Code::FailedPrecondition),
    ("PROVIDER_ERROR", Code::FailedPrecondition),
    ("AUTHORIZATION_NOT_AWAITING_CONFIRMATION", Code::FailedPrecondition),
    ("CONFIRMATION_MISMATCH", Code::FailedPrecondition),
    ("AUTHORIZATION_NOT_FOUND", Code::NotFound),
    ("RATE_LIMITED", Code::ResourceExhausted),
    ("PROVIDER_UNAVAILABLE", Code::Unavailable),
    ("STORAGE_UNAVAILABLE", Code::Unavailable),
    ("OVERLOADED", Code::Unavailable),
    ("INTERNAL", Code::Internal),
];

pub fn trials() -> Vec<Trial> {
    vec![trial("rpc::every_reason_of_the_contract_is_told_over_the_wire", every_reason)]
}

/// What has been told so far.
#[derive(Default)]
struct Told(BTreeMap<String, Code>);

impl Told {
    fn note<T: std::fmt::Debug>(&mut self, result: Result<tonic::Response<T>, tonic::Status>) {
        // What every refusal owes is checked on the way.
        let told = refused(result);
        self.0.insert(told.reason, told.code);
    }
}

async fn every_reason() {
    let world = World::with(|setup| {
        add_providers(setup, &["forbidden"]);
        let mut narrow = bot("narrow");
        narrow.subjects = Some(vec![SubjectPattern::parse("team/*").expect("a pattern")]);
        narrow.methods = Some(["GetToken".to_owned()].into());
        narrow.providers = Providers::Only([name(PROVIDER)].into());
        let profile = Scopes::parse(["profile"]).expect("scopes");
        narrow.scopes = [(name(PROVIDER), profile)].into();
        let mut slow = bot("slow");
        let one = std::num::NonZeroU32::MIN;
        slow.rate = Some(Rate { per_second: one, burst: one });
        setup.bots.extend([narrow, slow]);
        setup.settings.limits.max_concurrent_calls = one;
    })
    .await;
    let mut told = Told::default();
    of_requests(&world, &mut told).await;
    of_authorizations(&world, &mut told).await;
    of_grants(&world, &mut told).await;
    of_the_broker(world, &mut told).await;
    let expected: BTreeMap<_, _> =
        TABLE.iter().map(|(reason, code)| ((*reason).to_owned(), *code)).collect();
    assert_eq!(told.0, expected);
}

/// What the caller asks for, or is.
async fn of_requests(world: &World, told: &mut Told) {
    let mut client = world.client();
    told.note(client.get_token(get_token("")).await);
    let mut device = authorize("u1");
    let flow = proto::Flow::DeviceCode as i32;
    device.options = Some(proto::AuthorizationOptions { flow, ..Default::default() });
    told.note(client.authorize(device).await);
    let stranger = ApiKey::new("tbk_nobody").expect("a key");
    told.note(Client::new(world.channel.clone(), stranger).get_token(get_token("u1")).await);

    let mut narrow = world.client_of("narrow");
    let forbidden = Some(key_at("forbidden", "team/ada", ""));
    told.note(narrow.get_token(proto::GetTokenRequest { key: forbidden, ..get_token("") }).await);
    told.note(narrow.get_token(get_token("elsewhere/ada")).await);
    let scopes = vec!["email".to_owned()];
    told.note(narrow.get_token(proto::GetTokenRequest { scopes, ..get_token("team/ada") }).await);
    told.note(narrow.authorize(authorize("team/ada")).await);

    let mut slow = world.client_of("slow");
    // One a second; the machine may be slow, too.
    let refused = loop {
        let listed = slow.list_providers(proto::ListProvidersRequest::default()).await;
        if listed.is_err() {
            break listed;
        }
    };
    told.note(refused);
}

async fn of_authorizations(world: &World, told: &mut Told) {
    let mut client = world.client();
    let started = begin(&mut client, key("u1"), &[]).await;
    let confirm = |code: &str, id: &str| proto::ConfirmAuthorizationRequest {
        subject: "u1".into(),
        code: code.into(),
        authorization_id: id.into(),
    };
    let id = &started.authorization_id;
    told.note(client.confirm_authorization(confirm("12345678", id)).await);
    let page = Browser::new().allow(&started.authorization_url).await;
    let code = page.confirmation_code().expect("a code");
    let wrong = if code.starts_with('0') { "1" } else { "0" };
    told.note(client.confirm_authorization(confirm(&format!("{wrong}{}", &code[1..]), id)).await);
    let unknown = "0".repeat(32);
    told.note(client.confirm_authorization(confirm(&code, &unknown)).await);
    assert_eq!(
        look(&mut client, id).await.state(),
        proto::AuthorizationState::AwaitingConfirmation
    );
}

async fn of_grants(world: &World, told: &mut Told) {
    let mut client = world.client();
    told.note(client.get_token(get_token("nobody")).await);
    world.granted("u2").await;
    let scopes = vec!["calendar".to_owned()];
    told.note(client.get_token(proto::GetTokenRequest { scopes, ..get_token("u2") }).await);
    let refresh = || proto::RefreshRequest { key: Some(key("u2")), ..Default::default() };
    for (status, body) in [
        (401, r#"{"error":"invalid_client"}"#),
        (400, r#"{"error":"invalid_request"}"#),
        // Tried twice at once.
        (503, ""),
        (400, r#"{"error":"invalid_grant"}"#),
    ] {
        script_token(world, status, body);
        if status == 503 {
            script_token(world, status, body);
        }
        told.note(client.refresh(refresh()).await);
        // Past the pause after a failure.
        world.advance(Duration::from_secs(20));
    }
    // A provider that gives no refresh token.
    let once = r#"{"access_token":"only-one","expires_in":300}"#;
    world.provider.script(ScriptedEndpoint::Token, ScriptedAnswer::json(200, once));
    world.granted("u3").await;
    let refresh = proto::RefreshRequest { key: Some(key("u3")), ..Default::default() };
    told.note(client.refresh(refresh).await);
}

/// What is the broker's own trouble.
async fn of_the_broker(world: World, told: &mut Told) {
    let mut client = world.client();
    world.granted("u4").await;
    let file = world.folder.path().join("token-broker.db");
    let database = Database::connect(format!("sqlite://{}", file.display())).await;
    let database = database.expect("the file");
    let run = async |sql: &str| database.execute_unprepared(sql).await.expect("a statement");
    // A statement that fails may succeed later, on a replica of another version.
    run("ALTER TABLE grants RENAME TO away").await;
    told.note(client.get_token(get_token("u4")).await);
    run("ALTER TABLE away RENAME TO grants").await;
    // A row that somebody has altered never will.
    run("UPDATE access_tokens SET access_token = randomblob(80)").await;
    told.note(client.get_token(get_token("u4")).await);

    // One call too many.
    world.granted("u5").await;
    let pause = world.provider.pause_token_endpoint();
    let calls = world.provider.ledger().token_calls;
    let mut refresher = world.client();
    let refresh = proto::RefreshRequest { key: Some(key("u5")), ..Default::default() };
    let refreshing = tokio::spawn(async move { refresher.refresh(refresh).await });
    world.provider.wait_for_token_calls(calls + 1).await;
    told.note(client.get_token(get_token("u5")).await);
    drop(pause);
    refreshing.await.expect("no panic").expect("a token");
}
