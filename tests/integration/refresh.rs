//! Refresh and revocation over gRPC, against a provider that misbehaves.
//!
//! The provider's ledger is the judge: what was sent how often, and what lives in the end.

mod answers;
mod callers;
mod dead;
mod faults;
mod held;
mod lost;
mod odd_http;
mod oddities;
mod outage;
mod partial;
mod proactive;
mod raw;
mod replaced;
mod revoke;
mod transport;

use std::time::Duration;

use libtest_mimic::Trial;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker_client::{Reason, Refusal, proto};

use crate::harness::World;
use crate::harness::world::{get_token, key};

/// Longer than the access tokens of a world live.
const LIFETIME: Duration = Duration::from_secs(301);

/// Longer than the longest pause after one failure or two, and than a breaker keeps everybody away.
const BACKOFF: Duration = Duration::from_secs(11);

/// After this the token of a world still lives, but is no longer good for [`HALF`].
const LATE: Duration = Duration::from_secs(200);
const HALF: i64 = 120;

/// No event of a test takes this long.
const DEADLINE: Duration = Duration::from_secs(30);

pub fn trials() -> Vec<Trial> {
    [
        proactive::trials(),
        faults::trials(),
        held::trials(),
        answers::trials(),
        partial::trials(),
        lost::trials(),
        odd_http::trials(),
        oddities::trials(),
        outage::trials(),
        transport::trials(),
        callers::trials(),
        dead::trials(),
        replaced::trials(),
        revoke::trials(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// GetToken, as a result of the token.
async fn get(world: &World, subject: &str) -> Result<proto::Token, Refusal> {
    let response = world.client().get_token(get_token(subject)).await;
    told(response.map(|response| response.into_inner().token.expect("a token")))
}

/// GetToken of a token that is to live for so many seconds.
async fn get_for(world: &World, subject: &str, seconds: i64) -> Result<proto::Token, Refusal> {
    let min_ttl = Some(prost_types::Duration { seconds, nanos: 0 });
    let request = proto::GetTokenRequest { min_ttl, ..get_token(subject) };
    let response = world.client().get_token(request).await;
    told(response.map(|response| response.into_inner().token.expect("a token")))
}

/// Refresh of the token that has this etag; of whatever it is where that is empty.
async fn refresh(world: &World, subject: &str, etag: &str) -> Result<proto::Token, Refusal> {
    let request = proto::RefreshRequest {
        key: Some(key(subject)),
        etag: etag.to_owned(),
        ..Default::default()
    };
    let response = world.client().refresh(request).await;
    told(response.map(|response| response.into_inner().token.expect("a token")))
}

async fn revoke(world: &World, subject: &str) -> proto::Revocation {
    let request = proto::RevokeRequest { key: Some(key(subject)) };
    world.client().revoke(request).await.expect("revoked").into_inner().revocation()
}

#[expect(clippy::result_large_err, reason = "refusals are what these tests look at")]
fn told<T>(result: Result<T, tonic::Status>) -> Result<T, Refusal> {
    result.map_err(|status| Refusal::of(&status).unwrap_or_else(|| panic!("{status:?}")))
}

fn reason<T: std::fmt::Debug>(result: Result<T, Refusal>) -> Reason {
    result.expect_err("a refusal").reason
}

/// The grant as ListGrants shows it.
async fn grant(world: &World, subject: &str) -> Option<proto::Grant> {
    let request = proto::ListGrantsRequest { subject: subject.into(), ..Default::default() };
    let listed = world.client().list_grants(request).await.expect("a list").into_inner();
    listed.grants.into_iter().next()
}

async fn state(world: &World, subject: &str) -> proto::GrantState {
    grant(world, subject).await.expect("a grant").state()
}

/// Gives the next token calls these answers.
fn script(world: &World, answers: impl IntoIterator<Item = ScriptedAnswer>) {
    for answer in answers {
        world.provider.script(ScriptedEndpoint::Token, answer);
    }
}

/// The same answer for every attempt that one refresh makes: where there is no telling whether the
/// provider has acted, a second one at once.
fn script_refresh(world: &World, answer: ScriptedAnswer) {
    let attempts = 1 + usize::from(answer.status >= 500 && answer.headers.is_empty());
    script(world, vec![answer; attempts]);
}

fn json(status: u16, body: &str) -> ScriptedAnswer {
    ScriptedAnswer::json(status, body)
}

fn html(status: u16) -> ScriptedAnswer {
    let page = "<!doctype html><title>Sign in</title>";
    ScriptedAnswer { content_type: "text/html".to_owned(), ..json(status, page) }
}

fn with_header(answer: ScriptedAnswer, name: &str, value: &str) -> ScriptedAnswer {
    ScriptedAnswer { headers: vec![(name.to_owned(), value.to_owned())], ..answer }
}

/// Waits until the outbox is empty. The clock moves on meanwhile, so that entries become due, but
/// not so fast that they end before the worker has been there.
async fn outbox_empty(world: &World) {
    let waiting = async {
        while world.broker.revocations.count_pending().await.expect("storage") > 0 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            world.advance(Duration::from_secs(1));
        }
    };
    tokio::time::timeout(DEADLINE, waiting).await.expect("an empty outbox");
}
