//! Providers that are known by their issuer alone: metadata, ID tokens, and who the user is.
//!
//! What a certified server does is in `process::servers`; here is an issuer that misbehaves.

mod discovery;
pub mod fake;
mod id_tokens;
mod identity;

use libtest_mimic::Trial;
use token_broker_client::proto;

use self::fake::Issuer;
use crate::harness::browser::Page;
use crate::harness::{Browser, World};

/// The provider of these tests.
const FAKE: &str = "fake";

pub fn trials() -> Vec<Trial> {
    [discovery::trials(), id_tokens::trials(), identity::trials()].into_iter().flatten().collect()
}

/// A world that has the issuer among its providers.
async fn world(issuer: &Issuer) -> World {
    let provider = issuer.provider();
    World::with(|setup| setup.providers.push(provider)).await
}

fn key(subject: &str) -> proto::GrantKey {
    proto::GrantKey { provider: FAKE.into(), subject: subject.into(), account: String::new() }
}

async fn begin(world: &World, subject: &str) -> proto::AuthorizeResponse {
    let request = proto::AuthorizeRequest { key: Some(key(subject)), ..Default::default() };
    world.client().authorize(request).await.expect("an authorization").into_inner()
}

/// A world, and a link of it from before its issuer was heard.
async fn begun(issuer: &Issuer) -> (World, proto::AuthorizeResponse) {
    issuer.hold();
    let world = world(issuer).await;
    let started = begin(&world, "u1").await;
    issuer.release();
    (world, started)
}

/// Opens a link, and follows it to the result page: the issuer asks nobody.
async fn opened(started: &proto::AuthorizeResponse) -> Page {
    Browser::new().open(&started.authorization_url).await
}

async fn seen(world: &World, started: &proto::AuthorizeResponse) -> proto::Authorization {
    let request =
        proto::GetAuthorizationRequest { authorization_id: started.authorization_id.clone() };
    let answer = world.client().get_authorization(request).await.expect("an authorization");
    answer.into_inner().authorization.expect("an authorization")
}

/// The whole flow; gives the grant.
async fn granted(world: &World, subject: &str) -> proto::Grant {
    let page = opened(&begin(world, subject).await).await;
    let code = page.confirmation_code().unwrap_or_else(|| panic!("no code: {page:?}"));
    let request =
        proto::ConfirmAuthorizationRequest { subject: subject.into(), code, ..Default::default() };
    let confirmed = world.client().confirm_authorization(request).await.expect("a grant");
    confirmed.into_inner().grant.expect("a grant")
}
