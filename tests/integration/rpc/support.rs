//! What the tests of this folder share: refusals read whole, grants made by the real flow, times.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use token_broker::demo::provider::{ScriptedAnswer, ScriptedEndpoint};
use token_broker_client::{Client, proto};
use tonic::{Code, Response, Status};
use tonic_types::pb;

use crate::harness::world::{BEGINNING, Setup, name};
use crate::harness::{Browser, World};

/// Everything that a refused call told.
#[derive(Debug, Clone, PartialEq)]
pub struct Refused {
    pub code: Code,
    pub reason: String,
    pub message: String,
    pub metadata: HashMap<String, String>,
    /// The fields of `BadRequest`.
    pub fields: Vec<String>,
    pub retry_after: Option<Duration>,
    /// The URLs of `Help`.
    pub links: Vec<String>,
    pub started: Option<proto::AuthorizeResponse>,
}

impl Refused {
    pub fn metadata(&self, key: &str) -> &str {
        self.metadata.get(key).unwrap_or_else(|| panic!("no {key} in {self:?}"))
    }
}

/// Reads a refusal, and checks what the contract promises of every one of them.
pub fn refusal(status: &Status) -> Refused {
    let rich = pb::Status::decode(status.details()).expect("a google.rpc.Status");
    assert_eq!(rich.code, status.code() as i32, "{status:?}");
    assert_eq!(rich.message, status.message());
    assert!(!status.message().is_empty());
    let mut infos = Vec::new();
    let mut told = Refused {
        code: status.code(),
        reason: String::new(),
        message: rich.message,
        metadata: HashMap::new(),
        fields: Vec::new(),
        retry_after: None,
        links: Vec::new(),
        started: None,
    };
    for detail in &rich.details {
        let bytes = detail.value.as_slice();
        let name = detail.type_url.strip_prefix("type.googleapis.com/").expect("a type URL");
        match name {
            "google.rpc.ErrorInfo" => infos.push(pb::ErrorInfo::decode(bytes).expect(name)),
            "google.rpc.BadRequest" => {
                let bad = pb::BadRequest::decode(bytes).expect(name);
                assert!(bad.field_violations.iter().all(|v| !v.description.is_empty()));
                told.fields.extend(bad.field_violations.into_iter().map(|v| v.field));
            }
            "google.rpc.RetryInfo" => {
                let retry = pb::RetryInfo::decode(bytes).expect(name);
                let delay = retry.retry_delay.expect("a delay");
                told.retry_after = Some(delay.try_into().expect("no negative delay"));
            }
            "google.rpc.Help" => {
                let help = pb::Help::decode(bytes).expect(name);
                told.links.extend(help.links.into_iter().map(|link| link.url));
            }
            "tokenbroker.v1.AuthorizeResponse" => {
                told.started = Some(proto::AuthorizeResponse::decode(bytes).expect(name));
            }
            other => panic!("the contract names no detail {other}"),
        }
    }
    let [info] = infos.try_into().expect("one ErrorInfo");
    assert_eq!(info.domain, "tokenbroker.v1");
    told.reason = info.reason;
    told.metadata = info.metadata;
    let may_pass = matches!(told.code, Code::Unavailable | Code::ResourceExhausted);
    assert_eq!(told.retry_after.is_some(), may_pass, "{told:?}");
    assert_eq!(!told.fields.is_empty(), told.reason == "INVALID_ARGUMENT", "{told:?}");
    told
}

/// The refusal of a call that must not succeed.
pub fn refused<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> Refused {
    refusal(&result.expect_err("a refusal"))
}

/// Code and reason of a call that must not succeed.
pub fn why<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> (Code, String) {
    let told = refused(result);
    (told.code, told.reason)
}

/// The bad fields of a call that must fail for them alone.
pub fn bad_fields<T: std::fmt::Debug>(result: Result<Response<T>, Status>) -> Vec<String> {
    let told = refused(result);
    assert_eq!((told.code, told.reason.as_str()), (Code::InvalidArgument, "INVALID_ARGUMENT"));
    assert_eq!(told.metadata("fields"), told.fields.join(","));
    told.fields
}

/// Seconds after the world's beginning, as the contract writes it.
pub fn at(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds: BEGINNING / 1000 + seconds, nanos: 0 })
}

pub const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// The key of a grant at any provider.
pub fn key_at(provider: &str, subject: &str, account: &str) -> proto::GrantKey {
    proto::GrantKey { provider: provider.into(), subject: subject.into(), account: account.into() }
}

/// Adds providers like the first one, with other names.
pub fn add_providers(setup: &mut Setup, names: &[&str]) {
    for text in names {
        let mut provider = setup.providers[0].clone();
        provider.name = name(text);
        setup.providers.push(provider);
    }
}

/// Begins an authorization of any key.
pub async fn begin(
    client: &mut Client,
    key: proto::GrantKey,
    scopes: &[&str],
) -> proto::AuthorizeResponse {
    let scopes = scopes.iter().map(|&scope| scope.to_owned()).collect();
    let request = proto::AuthorizeRequest { key: Some(key), scopes, options: None };
    client.authorize(request).await.expect("a link").into_inner()
}

/// Hands in the code of a result page.
pub async fn confirm(client: &mut Client, subject: &str, code: String) -> proto::Grant {
    let request =
        proto::ConfirmAuthorizationRequest { subject: subject.into(), code, ..Default::default() };
    let response = client.confirm_authorization(request).await.expect("a grant").into_inner();
    response.grant.expect("a grant")
}

/// Goes through the whole flow for any bot, key and scopes.
pub async fn grant(client: &mut Client, key: proto::GrantKey, scopes: &[&str]) -> proto::Grant {
    let subject = key.subject.clone();
    let started = begin(client, key, scopes).await;
    let page = Browser::new().allow(&started.authorization_url).await;
    confirm(client, &subject, page.confirmation_code().expect("a code")).await
}

/// The state of an authorization, with all that is told of it.
pub async fn look(client: &mut Client, id: &str) -> proto::Authorization {
    let request = proto::GetAuthorizationRequest { authorization_id: id.into() };
    let response = client.get_authorization(request).await.expect("an authorization");
    response.into_inner().authorization.expect("an authorization")
}

/// The token of any key.
pub async fn token_of(client: &mut Client, key: proto::GrantKey) -> proto::Token {
    let request = proto::GetTokenRequest { key: Some(key), ..Default::default() };
    client.get_token(request).await.expect("a token").into_inner().token.expect("a token")
}

/// The grants that a caller sees, all on one page.
pub async fn grants(client: &mut Client) -> Vec<proto::Grant> {
    let request = proto::ListGrantsRequest { page_size: 1000, ..Default::default() };
    let page = client.list_grants(request).await.expect("a page").into_inner();
    assert_eq!(page.next_page_token, "");
    page.grants
}

/// The query of the provider's authorization link that a start link leads to.
pub async fn query_of(start: &str) -> HashMap<String, String> {
    let page = Browser::new().get(start).await;
    let location = page.location().expect("a redirect");
    location.query_pairs().into_owned().collect()
}

/// Answers the provider's next token call with this JSON.
pub fn script_token(world: &World, status: u16, body: &str) {
    world.provider.script(ScriptedEndpoint::Token, ScriptedAnswer::json(status, body));
}

/// Waits until something holds that tells of itself in no other way; the trial's limit ends it.
pub async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
