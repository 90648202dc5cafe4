//! Requests that are not of the contract's form: every bad field is named at once.

use libtest_mimic::Trial;
use token_broker_client::proto;
use tonic::Code;

use super::support::{bad_fields, begin, key_at, look, refused, why};
use crate::harness::world::{authorize, key};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::every_bad_field_of_a_key_is_told_at_once", keys),
        trial("rpc::a_missing_key_is_told", missing_keys),
        trial("rpc::fields_at_their_longest_are_taken", longest),
        trial("rpc::scopes_that_are_none_are_refused", scopes),
        trial("rpc::bad_options_are_told_at_once", options),
        trial("rpc::other_flows_are_refused", flows),
        trial("rpc::empty_and_bad_fields_of_the_other_methods_are_told", others),
        trial("rpc::an_id_that_cannot_exist_hides_no_bad_field", hidden),
        trial("rpc::a_refusal_of_a_long_scope_arrives", long_garbage),
        trial("rpc::a_refusal_for_many_missing_scopes_arrives", many_missing),
        trial("rpc::a_refusal_for_many_forbidden_scopes_arrives", many_beyond),
    ]
}

async fn keys() {
    let world = World::start().await;
    let mut client = world.client();
    let bad = Some(key_at("No Name", &"ä".repeat(128), &"a".repeat(64)));
    let expected = ["key.provider", "key.subject", "key.account"];
    let authorize = proto::AuthorizeRequest { key: bad.clone(), ..Default::default() };
    assert_eq!(bad_fields(client.authorize(authorize).await), expected);
    let get = proto::GetTokenRequest { key: bad.clone(), ..Default::default() };
    assert_eq!(bad_fields(client.get_token(get).await), expected);
    let refresh = proto::RefreshRequest { key: bad.clone(), ..Default::default() };
    assert_eq!(bad_fields(client.refresh(refresh).await), expected);
    let revoke = proto::RevokeRequest { key: bad };
    assert_eq!(bad_fields(client.revoke(revoke).await), expected);

    let long = "a".repeat(64);
    for provider in ["", "Acme", "acme-", "-acme", "ac--me", "1acme", "ac_me", "acmé", &long] {
        let get =
            proto::GetTokenRequest { key: Some(key_at(provider, "u1", "")), ..Default::default() };
        assert_eq!(bad_fields(client.get_token(get).await), ["key.provider"], "{provider:?}");
    }
    for text in ["a\0b", "a\nb", "a\u{7f}b", "a\u{85}b"] {
        let get =
            proto::GetTokenRequest { key: Some(key_at("acme", text, text)), ..Default::default() };
        let fields = bad_fields(client.get_token(get).await);
        assert_eq!(fields, ["key.subject", "key.account"], "{text:?}");
    }
}

async fn missing_keys() {
    let world = World::start().await;
    let mut client = world.client();
    let answers = [
        bad_fields(client.authorize(proto::AuthorizeRequest::default()).await),
        bad_fields(client.get_token(proto::GetTokenRequest::default()).await),
        bad_fields(client.refresh(proto::RefreshRequest::default()).await),
        bad_fields(client.revoke(proto::RevokeRequest::default()).await),
    ];
    assert!(answers.iter().all(|fields| *fields == ["key"]), "{answers:?}");
    let empty = Some(proto::GrantKey::default());
    let fields = bad_fields(client.revoke(proto::RevokeRequest { key: empty }).await);
    assert_eq!(fields, ["key.provider", "key.subject"]);
}

async fn longest() {
    let world = World::start().await;
    let mut client = world.client();
    // Bytes count, not characters, and nothing is folded or trimmed.
    for (subject, account) in
        [("s".repeat(255), "a".repeat(63)), (" ä\u{1f600}%\"'\\ ".into(), " ß ".into())]
    {
        let key = key_at("acme", &subject, &account);
        let started = begin(&mut client, key.clone(), &[]).await;
        assert_eq!(look(&mut client, &started.authorization_id).await.key, Some(key));
    }
    let scope = "s".repeat(255);
    begin(&mut client, key("u1"), &[&scope, "!#$%&'()*+,-./:;<=>?@[]^_`{|}~"]).await;
    let many: Vec<_> = (0..100).map(|index| format!("s{index}")).collect();
    let request = proto::AuthorizeRequest { scopes: many, ..authorize("u1") };
    client.authorize(request).await.expect("a link");
}

async fn scopes() {
    let world = World::start().await;
    let mut client = world.client();
    let long = "s".repeat(256);
    for scope in ["", " ", "a b", " a", "a\tb", "a\"b", "a\\b", "ä", "a\u{7f}", &long] {
        let scopes = vec!["email".to_owned(), scope.to_owned()];
        let request = proto::AuthorizeRequest { scopes: scopes.clone(), ..authorize("u1") };
        assert_eq!(bad_fields(client.authorize(request).await), ["scopes"], "{scope:?}");
        let request = proto::GetTokenRequest { key: Some(key("u1")), scopes, ..Default::default() };
        assert_eq!(bad_fields(client.get_token(request).await), ["scopes"], "{scope:?}");
    }
    let scopes = vec!["email".to_owned(); 101];
    let request = proto::AuthorizeRequest { scopes, ..authorize("u1") };
    assert_eq!(bad_fields(client.authorize(request).await), ["scopes"]);
}

async fn options() {
    let world = World::start().await;
    let mut client = world.client();
    let options = proto::AuthorizationOptions {
        flow: 99,
        return_url: "x".repeat(1025),
        login_hint: "a\r\nb".into(),
        variables: [("shop".to_owned(), "x".to_owned())].into(),
        resources: vec!["https://api.example.com".into()],
    };
    let request = proto::AuthorizeRequest {
        key: Some(key_at("", "", "")),
        scopes: vec!["a b".into()],
        options: Some(options),
    };
    let fields = bad_fields(client.authorize(request).await);
    let expected = [
        "key.provider",
        "key.subject",
        "scopes",
        "options.flow",
        "options.return_url",
        "options.login_hint",
        "options.variables",
        "options.resources",
    ];
    assert_eq!(fields, expected);
}

async fn flows() {
    let world = World::start().await;
    let mut client = world.client();
    let with = |flow: proto::Flow| {
        Some(proto::AuthorizationOptions { flow: flow.into(), ..Default::default() })
    };
    let options = with(proto::Flow::DeviceCode);
    let request = proto::AuthorizeRequest { options: options.clone(), ..authorize("u1") };
    let starting = proto::GetTokenRequest {
        key: Some(key("u1")),
        start_authorization: options,
        ..Default::default()
    };
    for told in
        [refused(client.authorize(request).await), refused(client.get_token(starting).await)]
    {
        assert_eq!((told.code, &*told.reason), (Code::InvalidArgument, "FLOW_NOT_SUPPORTED"));
        assert_eq!((told.metadata("provider"), told.metadata("flow")), ("acme", "device_code"));
    }
    for flow in [proto::Flow::Unspecified, proto::Flow::AuthorizationCode] {
        let request = proto::AuthorizeRequest { options: with(flow), ..authorize("u1") };
        client.authorize(request).await.expect("a link");
    }
}

async fn others() {
    let world = World::start().await;
    let mut client = world.client();
    let none = proto::GetAuthorizationRequest::default();
    assert_eq!(bad_fields(client.get_authorization(none).await), ["authorization_id"]);
    let none = proto::CancelAuthorizationRequest::default();
    assert_eq!(bad_fields(client.cancel_authorization(none).await), ["authorization_id"]);
    let none = proto::WatchAuthorizationRequest::default();
    assert_eq!(bad_fields(client.watch_authorization(none).await), ["authorization_id"]);
    let none = proto::ConfirmAuthorizationRequest::default();
    assert_eq!(bad_fields(client.confirm_authorization(none).await), ["subject", "code"]);
    let none = proto::RevokeAllRequest::default();
    assert_eq!(bad_fields(client.revoke_all(none).await), ["subject"]);
    let bad = proto::RevokeAllRequest { subject: "a\nb".into(), provider: "No".into() };
    assert_eq!(bad_fields(client.revoke_all(bad).await), ["subject", "provider"]);
    for code in ["1234567", "123456789", "1234567a", "１２３４５６７８", ""] {
        let request = proto::ConfirmAuthorizationRequest {
            subject: "u1".into(),
            code: code.into(),
            ..Default::default()
        };
        assert_eq!(bad_fields(client.confirm_authorization(request).await), ["code"], "{code:?}");
    }
}

async fn hidden() {
    let world = World::start().await;
    let bad = proto::ConfirmAuthorizationRequest {
        subject: "a\nb".into(),
        code: "x".into(),
        authorization_id: "x".into(),
    };
    let answer = world.client().confirm_authorization(bad).await;
    assert_eq!(bad_fields(answer), ["subject", "code"]);
}

// An answer's details travel in headers, which clients bound, as tonic does to 16 KiB: a refusal that
// repeats what was sent does not arrive, and takes the connection's other calls along.

async fn long_garbage() {
    let world = World::start().await;
    let mut client = world.client();
    let request = proto::AuthorizeRequest { scopes: vec!["s".repeat(60_000)], ..authorize("u1") };
    assert_eq!(bad_fields(client.authorize(request).await), ["scopes"]);
}

async fn many_missing() {
    let world = World::start().await;
    let mut client = world.client();
    world.granted("u1").await;
    let scopes = (0..100).map(|index| format!("{index:0>255}")).collect();
    let request = proto::GetTokenRequest { key: Some(key("u1")), scopes, ..Default::default() };
    let told = why(client.get_token(request).await);
    assert_eq!(told, (Code::FailedPrecondition, "SCOPE_MISSING".into()));
}

async fn many_beyond() {
    let world = World::with(|setup| {
        let none = Default::default();
        setup.bots[0].scopes = [(crate::harness::world::name("acme"), none)].into();
    })
    .await;
    let scopes = (0..100).map(|index| format!("{index:0>255}")).collect();
    let request = proto::AuthorizeRequest { scopes, ..authorize("u1") };
    let told = why(world.client().authorize(request).await);
    assert_eq!(told, (Code::PermissionDenied, "SCOPE_NOT_ALLOWED".into()));
}
