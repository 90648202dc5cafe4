//! ListGrants and ListProviders, page by page.

use libtest_mimic::Trial;
use token_broker::domain::bot::{Providers, SubjectPattern};
use token_broker_client::{Client, proto};
use tonic::Code;

use super::support::{add_providers, at, bad_fields, grant, grants, key_at, refused, why};
use crate::harness::world::{bot, key, name};
use crate::harness::{World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("rpc::list_grants_tells_every_field_and_no_token", fields),
        trial("rpc::grants_are_listed_in_order_whatever_the_page_size", pages),
        trial("rpc::filters_narrow_the_list", filters),
        trial("rpc::page_tokens_belong_to_their_filters", tokens_of_filters),
        trial("rpc::a_list_goes_on_where_a_grant_has_gone", changed_between_pages),
        trial("rpc::page_sizes_are_bounded_and_never_negative", sizes),
        trial("rpc::a_bot_lists_what_its_policy_allows", policy),
        trial("rpc::list_providers_tells_every_field", providers),
        trial("rpc::providers_are_listed_in_order_page_by_page", provider_pages),
    ]
}

/// Subject, provider and account, in the order of the list.
const KEYS: [(&str, &str, &str); 7] = [
    ("U1", "acme", ""),
    ("u1", "acme", ""),
    ("u1", "acme", "work"),
    ("u1", "beta", ""),
    ("u1*", "acme", ""),
    ("u10", "acme", ""),
    ("ü", "beta", "büro"),
];

/// A world with two providers and the grants of [`KEYS`], made in another order.
async fn world() -> World {
    let world = World::with(|setup| add_providers(setup, &["beta"])).await;
    let mut client = world.client();
    for index in [3, 0, 6, 2, 5, 1, 4] {
        let (subject, provider, account) = KEYS[index];
        grant(&mut client, key_at(provider, subject, account), &[]).await;
    }
    world
}

fn keys_of(grants: &[proto::Grant]) -> Vec<(&str, &str, &str)> {
    grants
        .iter()
        .map(|grant| {
            let key = grant.key.as_ref().expect("a key");
            (key.subject.as_str(), key.provider.as_str(), key.account.as_str())
        })
        .collect()
}

async fn page(client: &mut Client, request: proto::ListGrantsRequest) -> proto::ListGrantsResponse {
    client.list_grants(request).await.expect("a page").into_inner()
}

async fn fields() {
    let world = World::start().await;
    let mut client = world.client();
    assert_eq!(grants(&mut client).await, []);
    let granted = grant(&mut client, key("u1"), &[]).await;
    let expected = proto::Grant {
        key: Some(key("u1")),
        state: proto::GrantState::Active.into(),
        scopes: vec!["email".into(), "profile".into()],
        create_time: at(0),
        refresh_time: at(0),
        expire_time: at(300),
        refreshable: true,
        ..Default::default()
    };
    assert_eq!(granted, expected);
    assert_eq!(grants(&mut client).await, [expected]);
    // What is not confirmed is no grant.
    world.consent("u2").await;
    assert_eq!(grants(&mut client).await.len(), 1);
}

async fn pages() {
    let world = world().await;
    let mut client = world.client();
    assert_eq!(keys_of(&grants(&mut client).await), KEYS);
    for page_size in [0, 1, 2, 3, 6, 7, 8, 1000, i32::MAX] {
        let mut request = proto::ListGrantsRequest { page_size, ..Default::default() };
        let mut seen = Vec::new();
        let mut count = 0;
        loop {
            let page = page(&mut client, request.clone()).await;
            count += 1;
            assert!(!page.grants.is_empty(), "page size {page_size}");
            seen.extend(page.grants);
            if page.next_page_token.is_empty() {
                break;
            }
            request.page_token = page.next_page_token;
        }
        assert_eq!(keys_of(&seen), KEYS, "page size {page_size}");
        let size = if page_size == 0 { 100 } else { usize::try_from(page_size).expect("a size") };
        assert_eq!(count, KEYS.len().div_ceil(size), "page size {page_size}");
    }
}

async fn filters() {
    let world = world().await;
    let mut client = world.client();
    for (provider, subject) in
        [("acme", ""), ("beta", ""), ("", "u1"), ("", "u1*"), ("acme", "u1"), ("", "nobody")]
    {
        let expected: Vec<_> = KEYS
            .into_iter()
            .filter(|key| provider.is_empty() || key.1 == provider)
            .filter(|key| subject.is_empty() || key.0 == subject)
            .collect();
        let request = proto::ListGrantsRequest {
            provider: provider.into(),
            subject: subject.into(),
            ..Default::default()
        };
        let page = page(&mut client, request).await;
        assert_eq!(keys_of(&page.grants), expected, "{provider:?} {subject:?}");
        assert_eq!(page.next_page_token, "");
    }
}

async fn tokens_of_filters() {
    let world = world().await;
    let mut client = world.client();
    let of_u1 = proto::ListGrantsRequest {
        provider: "acme".into(),
        subject: "u1".into(),
        page_size: 1,
        ..Default::default()
    };
    let token = page(&mut client, of_u1.clone()).await.next_page_token;
    assert!(!token.is_empty());
    let with = |provider: &str, subject: &str, page_token: &str| proto::ListGrantsRequest {
        provider: provider.into(),
        subject: subject.into(),
        page_token: page_token.into(),
        // The size may change from page to page (AIP-158).
        page_size: 5,
    };
    let rest = page(&mut client, with("acme", "u1", &token)).await;
    assert_eq!(keys_of(&rest.grants), [("u1", "acme", "work")]);
    for (provider, subject) in [("", "u1"), ("acme", ""), ("", ""), ("beta", "u1"), ("acme", "u2")]
    {
        let fields = bad_fields(client.list_grants(with(provider, subject, &token)).await);
        assert_eq!(fields, ["page_token"], "{provider:?} {subject:?}");
    }
    let altered = format!("{token}A");
    for garbage in [&altered, &token[1..], "A", "!", "\u{0}", "ä", &"A".repeat(5000)] {
        let fields = bad_fields(client.list_grants(with("acme", "u1", garbage)).await);
        assert_eq!(fields, ["page_token"], "{garbage:?}");
    }
    let providers = proto::ListProvidersRequest { page_size: 1, ..Default::default() };
    let listed = client.list_providers(providers).await.expect("a page").into_inner();
    let fields = bad_fields(client.list_grants(with("", "", &listed.next_page_token)).await);
    assert_eq!(fields, ["page_token"]);
}

async fn changed_between_pages() {
    let world = world().await;
    let mut client = world.client();
    let mut request = proto::ListGrantsRequest { page_size: 3, ..Default::default() };
    let first = page(&mut client, request.clone()).await;
    let last = first.grants[2].key.clone();
    client.revoke(proto::RevokeRequest { key: last }).await.expect("revoked");
    request.page_token = first.next_page_token;
    request.page_size = 0;
    assert_eq!(keys_of(&page(&mut client, request).await.grants), KEYS[3..]);
}

async fn sizes() {
    let world = World::start().await;
    let mut client = world.client();
    for page_size in [-1, i32::MIN] {
        let request = proto::ListGrantsRequest { page_size, ..Default::default() };
        assert_eq!(bad_fields(client.list_grants(request).await), ["page_size"]);
        let request = proto::ListProvidersRequest { page_size, ..Default::default() };
        assert_eq!(bad_fields(client.list_providers(request).await), ["page_size"]);
    }
    let request = proto::ListGrantsRequest {
        provider: "No".into(),
        subject: "a\nb".into(),
        page_size: -1,
        page_token: "no".into(),
    };
    let fields = bad_fields(client.list_grants(request).await);
    assert_eq!(fields, ["provider", "subject", "page_size", "page_token"]);
    let request = proto::ListProvidersRequest { page_size: -1, page_token: "no".into() };
    assert_eq!(bad_fields(client.list_providers(request).await), ["page_size", "page_token"]);
}

async fn policy() {
    let world = World::with(|setup| {
        add_providers(setup, &["beta"]);
        let pattern = |text| SubjectPattern::parse(text).expect("a pattern");
        let mut narrow = bot("narrow");
        narrow.namespace = name("helper");
        narrow.subjects = Some(vec![pattern("u1"), pattern("ü*"), pattern("U_*")]);
        setup.bots.push(narrow);
        let mut star = bot("star");
        star.namespace = name("helper");
        star.subjects = Some(vec![pattern("u1*")]);
        star.providers = Providers::Only([name("acme"), name("unconfigured")].into());
        setup.bots.push(star);
    })
    .await;
    let mut client = world.client();
    for (subject, provider, account) in KEYS {
        grant(&mut client, key_at(provider, subject, account), &[]).await;
    }
    // An exact pattern is no prefix, `_` is no wild card, and case counts.
    let seen = grants(&mut world.client_of("narrow")).await;
    assert_eq!(keys_of(&seen), [KEYS[1], KEYS[2], KEYS[3], KEYS[6]]);
    let seen = grants(&mut world.client_of("star")).await;
    assert_eq!(keys_of(&seen), [KEYS[1], KEYS[2], KEYS[4], KEYS[5]]);

    let filtered = |provider: &str, subject: &str| proto::ListGrantsRequest {
        provider: provider.into(),
        subject: subject.into(),
        ..Default::default()
    };
    let mut star = world.client_of("star");
    for provider in ["beta", "unconfigured", "nowhere"] {
        let told = refused(star.list_grants(filtered(provider, "")).await);
        assert_eq!(told.reason, "PROVIDER_NOT_ALLOWED");
        assert_eq!((told.code, told.metadata("provider")), (Code::PermissionDenied, provider));
    }
    let told = why(star.list_grants(filtered("acme", "ü")).await);
    assert_eq!(told, (Code::PermissionDenied, "SUBJECT_NOT_ALLOWED".into()));
}

async fn providers() {
    let world = World::with(|setup| {
        add_providers(setup, &["beta"]);
        setup.providers[1].display_name = "Beta & Söhne".into();
        setup.providers[1].default_scopes = Default::default();
    })
    .await;
    let listed = world.client().list_providers(proto::ListProvidersRequest::default()).await;
    let listed = listed.expect("a page").into_inner();
    let provider = |name: &str, display_name: &str, scopes: &[&str]| proto::Provider {
        name: name.into(),
        display_name: display_name.into(),
        default_scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
        flows: vec![proto::Flow::AuthorizationCode.into()],
        subjectless: false,
    };
    let expected =
        [provider("acme", "Acme", &["email", "profile"]), provider("beta", "Beta & Söhne", &[])];
    assert_eq!((listed.providers.as_slice(), listed.next_page_token.as_str()), (&expected[..], ""));
}

async fn provider_pages() {
    let world = World::with(|setup| {
        add_providers(setup, &["zeta", "a1", "beta", "a-1"]);
        let mut few = bot("few");
        few.providers = Providers::Only(["beta", "zeta", "unconfigured"].map(name).into());
        setup.bots.push(few);
        let mut none = bot("none");
        none.providers = Providers::Only([].into());
        setup.bots.push(none);
    })
    .await;
    let all: &[&str] = &["a-1", "a1", "acme", "beta", "zeta"];
    for (bot, expected) in [("helper", all), ("few", &["beta", "zeta"]), ("none", &[])] {
        let mut client = world.client_of(bot);
        for page_size in [0, 1, 2, 4, 5, 1000, i32::MAX] {
            let mut request = proto::ListProvidersRequest { page_size, ..Default::default() };
            let mut names = Vec::new();
            loop {
                let page = client.list_providers(request.clone()).await.expect("a page");
                let page = page.into_inner();
                names.extend(page.providers.into_iter().map(|provider| provider.name));
                if page.next_page_token.is_empty() {
                    break;
                }
                assert_eq!(names.len() % usize::try_from(page_size).expect("a size"), 0);
                request.page_token = page.next_page_token;
            }
            assert_eq!(names, expected, "{bot}, page size {page_size}");
        }
    }
    let mut client = world.client();
    for garbage in ["A", "!", "ä"] {
        let request =
            proto::ListProvidersRequest { page_token: garbage.into(), ..Default::default() };
        assert_eq!(bad_fields(client.list_providers(request).await), ["page_token"]);
    }
}
