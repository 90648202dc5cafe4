//! Metadata: when it is read, what is not believed of it, and what happens without it.

use libtest_mimic::Trial;
use serde_json::json;
use token_broker_client::proto::{self, AuthorizationState, Revocation};
use token_broker_client::{Reason, Refusal};
use tokio::net::TcpListener;

use super::fake::Issuer;
use super::{begin, begun, granted, key, opened, seen, world};
use crate::harness::world::name;
use crate::harness::{Browser, World, trial};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("issuer::discovery::is_done_once_for_many", once),
        trial("issuer::discovery::of_an_issuer_that_is_away_is_done_when_it_is_back", away),
        trial("issuer::discovery::finds_the_document_at_the_second_place", second_place),
        trial("issuer::discovery::takes_a_void_endpoint_for_none", void_endpoint),
        trial("issuer::discovery::refuses_metadata_of_another_issuer", another_issuer),
        trial("issuer::discovery::hands_out_no_link_while_metadata_is_wrong", no_link),
        trial("issuer::discovery::follows_no_redirect", redirected),
        trial("issuer::discovery::connects_to_no_private_address_that_is_not_configured", private),
        trial("issuer::discovery::leads_to_no_host_of_another_provider", other_provider),
        trial("issuer::discovery::a_redirect_without_iss_is_refused_where_it_is_promised", no_iss),
        trial("issuer::discovery::openid_without_keys_to_check_it_by_is_not_asked_for", no_keys),
        trial("issuer::discovery::a_provider_that_cannot_revoke_is_told_so", no_revocation),
        trial("issuer::discovery::is_tried_before_a_refresh_is_claimed", before_a_refresh),
    ]
}

const METADATA: &str = "/.well-known/openid-configuration";

async fn once() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    let many = (0..20).map(|number| {
        let world = &world;
        async move { granted(world, &format!("u{number}")).await }
    });
    futures::future::join_all(many).await;
    assert_eq!((issuer.hits(METADATA), issuer.hits("/jwks")), (1, 1));
}

async fn away() {
    let issuer = Issuer::start().await;
    issuer.break_path(METADATA, 503, "");
    let world = world(&issuer).await;
    // The bot gets its link; only the browser has to wait.
    let started = begin(&world, "u1").await;
    let page = opened(&started).await;
    assert_eq!((page.status, page.heading().as_str()), (502, "The provider does not answer"));
    issuer.mend();
    // The failure is told again for a moment, so that nobody hammers an issuer that is down.
    let page = loop {
        let page = opened(&started).await;
        if page.status != 502 {
            break page;
        }
    };
    assert_eq!((page.status, page.heading().as_str()), (200, "One more step"));
    // What was learnt is kept, whatever becomes of the issuer.
    issuer.break_path(METADATA, 503, "");
    granted(&world, "u2").await;
}

async fn second_place() {
    let issuer = Issuer::start().await;
    issuer.break_path(METADATA, 502, "");
    issuer.also_at_oauth();
    let world = world(&issuer).await;
    granted(&world, "u1").await;
}

async fn void_endpoint() {
    let issuer = Issuer::start().await;
    issuer.set_metadata("revocation_endpoint", json!(""));
    let world = world(&issuer).await;
    granted(&world, "u1").await;
    let request = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = world.client().revoke(request).await.expect("revoked").into_inner();
    assert_eq!(revoked.revocation(), Revocation::Unsupported);
}

async fn another_issuer() {
    let issuer = Issuer::start().await;
    issuer.set_metadata("issuer", json!("https://accounts.example"));
    let (world, started) = begun(&issuer).await;
    let page = opened(&started).await;
    assert_eq!((page.status, page.heading().as_str()), (502, "This service is not set up rightly"));
    assert_eq!(issuer.hits("/authorize"), 0);
    assert_eq!(seen(&world, &started).await.state(), AuthorizationState::Pending);
}

async fn no_link() {
    let issuer = Issuer::start().await;
    let right = json!(issuer.url());
    issuer.set_metadata("issuer", json!("https://accounts.example"));
    let (world, started) = begun(&issuer).await;
    assert_eq!(opened(&started).await.status, 502);

    let authorize = || async {
        let request = proto::AuthorizeRequest { key: Some(key("u1")), ..Default::default() };
        world.client().authorize(request).await
    };
    let get = proto::GetTokenRequest {
        key: Some(key("u1")),
        start_authorization: Some(proto::AuthorizationOptions::default()),
        ..Default::default()
    };
    for refused in [
        authorize().await.expect_err("no link"),
        world.client().get_token(get).await.expect_err("no link"),
    ] {
        let refusal = Refusal::of(&refused).expect("a refusal");
        assert_eq!(refusal.reason, Reason::ProviderMisconfigured);
        assert!(refusal.authorization.is_none());
    }
    // Authorize itself asks the issuer again.
    issuer.set_metadata("issuer", right);
    while authorize().await.is_err() {}
    granted(&world, "u1").await;
}

async fn redirected() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let target = format!("http://{}/", elsewhere.local_addr().expect("an address"));
    for status in [301, 302, 303, 307, 308] {
        let issuer = Issuer::start().await;
        issuer.break_path(METADATA, status, &target);
        let (_world, started) = begun(&issuer).await;
        let page = opened(&started).await;
        assert_eq!(page.status, 502, "{status}");
        // All places were tried, and none was left.
        assert_eq!(issuer.hits("/.well-known/oauth-authorization-server"), 1, "{status}");
    }
    let nobody = futures::FutureExt::now_or_never(elsewhere.accept());
    assert!(nobody.is_none(), "somebody followed a redirect");
}

async fn private() {
    let inside = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = inside.local_addr().expect("an address").port();
    // The issuer's host is 127.0.0.1, which its configuration names. By any other name, or at any
    // other address, the same machine is private.
    for (member, host) in [
        ("token_endpoint", "localhost"),
        ("token_endpoint", "127.0.0.2"),
        ("token_endpoint", "[::1]"),
        ("token_endpoint", "[::ffff:127.0.0.1]"),
        ("jwks_uri", "localhost"),
        ("userinfo_endpoint", "localhost"),
    ] {
        let issuer = Issuer::start().await;
        let scheme = if host == "[::ffff:127.0.0.1]" { "https" } else { "http" };
        issuer.set_metadata(member, json!(format!("{scheme}://{host}:{port}/")));
        let (_world, started) = begun(&issuer).await;
        let page = opened(&started).await;
        let expected = if member == "userinfo_endpoint" { 200 } else { 502 };
        assert_eq!(page.status, expected, "{member} {host}: {page:?}");
        // An address is refused with the metadata, before anybody goes anywhere.
        if host != "localhost" {
            assert_eq!(page.heading(), "This service is not set up rightly", "{host}");
            assert_eq!(issuer.hits("/authorize"), 0, "{host}");
        }
    }
    let nobody = futures::FutureExt::now_or_never(inside.accept());
    assert!(nobody.is_none(), "somebody connected to a private address");
}

/// Metadata of one provider that points at another provider's host, or at another port of its own.
async fn other_provider() {
    let inside = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", inside.local_addr().expect("an address"));
    for is_configured in [true, false] {
        let issuer = Issuer::start().await;
        issuer.set_metadata("token_endpoint", json!(format!("{url}/token")));
        issuer.hold();
        let (mine, other) = (issuer.provider(), url.clone());
        let world = World::with(|setup| {
            setup.providers.push(mine.clone());
            if is_configured {
                let mut inner = mine;
                inner.name = name("inner");
                inner.issuer = Some(other);
                setup.providers.push(inner);
            }
        })
        .await;
        let started = begin(&world, "u1").await;
        issuer.release();
        assert_eq!(opened(&started).await.heading(), "This service is not set up rightly");
        assert_eq!(issuer.hits("/authorize"), 0);
    }
}

async fn no_iss() {
    let issuer = Issuer::start().await;
    let world = world(&issuer).await;
    let started = begin(&world, "u1").await;
    let mut browser = Browser::new();
    let departure = browser.get(&started.authorization_url).await.location().expect("a redirect");
    let mut back = browser.get(departure.as_str()).await.location().expect("a redirect");
    let kept: Vec<_> = back.query_pairs().into_owned().filter(|(name, _)| name != "iss").collect();
    back.query_pairs_mut().clear().extend_pairs(kept);
    let page = browser.get(back.as_str()).await;
    assert_eq!((page.status, page.heading().as_str()), (400, "The answer cannot be used"));
    assert_eq!(issuer.hits("/token"), 0);
    // The user's own next try works.
    assert_eq!(seen(&world, &started).await.state(), AuthorizationState::Pending);
    assert_eq!(opened(&started).await.status, 200);
}

async fn no_keys() {
    let issuer = Issuer::start().await;
    issuer.set_metadata("jwks_uri", json!(null));
    let (_world, started) = begun(&issuer).await;
    let page = opened(&started).await;
    assert_eq!((page.status, page.heading().as_str()), (502, "This service is not set up rightly"));
    // Neither where a bot asks for it by itself.
    let mut provider = issuer.provider();
    provider.default_scopes = Default::default();
    let world = World::with(|setup| setup.providers.push(provider)).await;
    let openid = proto::AuthorizeRequest {
        key: Some(key("u1")),
        scopes: vec!["openid".to_owned()],
        options: None,
    };
    let started = world.client().authorize(openid).await.expect("a link").into_inner();
    let page = opened(&started).await;
    assert_eq!((page.status, page.heading().as_str()), (502, "This service is not set up rightly"));
    assert_eq!(issuer.hits("/authorize"), 0);
    granted(&world, "u1").await;
}

async fn no_revocation() {
    let issuer = Issuer::start().await;
    issuer.set_metadata("revocation_endpoint", json!(null));
    let world = world(&issuer).await;
    granted(&world, "u1").await;
    let request = proto::RevokeRequest { key: Some(key("u1")) };
    let revoked = world.client().revoke(request).await.expect("revoked").into_inner();
    assert_eq!(revoked.revocation(), Revocation::Unsupported);
    assert_eq!(world.broker.revocations.count_pending().await.expect("storage"), 0);
}

async fn before_a_refresh() {
    let issuer = Issuer::start().await;
    let before = world(&issuer).await;
    granted(&before, "u1").await;
    let folder = before.folder.clone();
    before.stop().await.expect("a clean end");
    // A new process knows nothing of the issuer, which is away.
    issuer.break_path(METADATA, 503, "");
    let provider = issuer.provider();
    let world = World::with(|setup| {
        setup.folder = Some(folder);
        setup.providers.push(provider);
    })
    .await;
    let get = || async {
        let request = proto::GetTokenRequest { key: Some(key("u1")), ..Default::default() };
        world.client().get_token(request).await
    };
    // It is not needed for a token that lives.
    assert_eq!(
        get().await.expect("a token").into_inner().token.expect("it").access_token,
        "access-1"
    );
    world.advance(std::time::Duration::from_secs(301));
    let refused = get().await.expect_err("nobody can refresh it");
    assert_eq!(Refusal::of(&refused).expect("a refusal").reason, Reason::ProviderUnavailable);
    assert_eq!(issuer.hits("/token"), 1);
    issuer.mend();
    // No lease and no open intent stands in the way.
    let token = loop {
        if let Ok(lent) = get().await {
            break lent.into_inner().token.expect("a token").access_token;
        }
    };
    assert_eq!(token, "access-2");
}
