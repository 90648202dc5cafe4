//! Converts between protobuf and domain types. Every field is parsed once, here, and all invalid ones are reported
//! together.

mod pages;

use std::time::Duration;

use token_broker_client::proto;

pub(super) use pages::{grants_page, providers_page};

use super::error::{CallError, Violation};
use crate::broker::authorize::{AuthorizeOptions, AuthorizeRequest, Started};
use crate::broker::confirm::ConfirmRequest;
use crate::broker::get_token::{GetTokenRequest, IssuedToken};
use crate::broker::refresh::{RefreshRequest, etag};
use crate::broker::revoke::RevocationState;
use crate::broker::watch_authorization::View;
use crate::broker::{BrokerError, CachedToken};
use crate::domain::authorization::{Flow, Options, State};
use crate::domain::grant::{Account, Grant, GrantKey, GrantState, Subject};
use crate::domain::id::Id;
use crate::domain::name::Name;
use crate::domain::provider::Provider;
use crate::domain::scope::Scopes;
use crate::domain::time::Timestamp;
use crate::domain::token::{AccessToken, DEFAULT_MIN_TTL};

/// The longest login hint, etag or page token, in bytes.
const MAX_TEXT: usize = 1024;

/// The most scopes in one request.
const MAX_SCOPES: usize = 100;

/// Collects what is wrong with a request.
#[derive(Default)]
pub(super) struct Violations(Vec<Violation>);

impl Violations {
    pub(super) fn add(&mut self, field: &'static str, problem: impl Into<String>) {
        self.0.push(Violation { field, problem: problem.into() });
    }

    /// The value, unless anything was wrong.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, CallError> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(CallError::Invalid(self.0)),
        }
    }

    pub(super) fn provider(&mut self, field: &'static str, text: &str) -> Option<Name> {
        if text.is_empty() {
            self.add(field, "is missing: name a provider, such as those that ListProviders gives");
            return None;
        }
        match Name::parse(text) {
            Ok(name) => Some(name),
            Err(problem) => {
                self.add(field, problem.to_string());
                None
            }
        }
    }

    pub(super) fn subject(&mut self, field: &'static str, text: &str) -> Option<Subject> {
        let subject = Subject::parse(text);
        if subject.is_none() {
            self.add(field, "must be 1 to 255 bytes without control characters");
        }
        subject
    }

    fn key(&mut self, namespace: &Name, key: Option<proto::GrantKey>) -> Option<GrantKey> {
        let Some(key) = key else {
            self.add("key", "is missing: name a provider and a subject");
            return None;
        };
        let provider = self.provider("key.provider", &key.provider);
        let subject = self.subject("key.subject", &key.subject);
        let account = Account::parse(&key.account);
        if account.is_none() {
            self.add("key.account", "must be at most 63 bytes without control characters");
        }
        Some(GrantKey {
            namespace: namespace.clone(),
            provider: provider?,
            subject: subject?,
            account: account?,
        })
    }

    fn scopes(&mut self, scopes: &[String]) -> Option<Scopes> {
        if scopes.len() > MAX_SCOPES {
            self.add("scopes", format!("are more than {MAX_SCOPES}"));
            return None;
        }
        Scopes::parse(scopes).map_err(|problem| self.add("scopes", problem.to_string())).ok()
    }

    /// Token sets and resources come with providers that have them; there is none yet.
    fn plain_token_only(&mut self, token_set: &str, resources: &[String]) {
        if !token_set.is_empty() {
            self.add("token_set", "names a set that this provider does not have; leave it empty");
        }
        if !resources.is_empty() {
            self.add("resources", "are not supported by this provider; leave them empty");
        }
    }
}

/// The paths of the options' fields in a request.
struct OptionFields {
    flow: &'static str,
    return_url: &'static str,
    login_hint: &'static str,
    variables: &'static str,
    resources: &'static str,
}

const IN_AUTHORIZE: OptionFields = OptionFields {
    flow: "options.flow",
    return_url: "options.return_url",
    login_hint: "options.login_hint",
    variables: "options.variables",
    resources: "options.resources",
};

const IN_GET_TOKEN: OptionFields = OptionFields {
    flow: "start_authorization.flow",
    return_url: "start_authorization.return_url",
    login_hint: "start_authorization.login_hint",
    variables: "start_authorization.variables",
    resources: "start_authorization.resources",
};

fn start(
    violations: &mut Violations,
    fields: &OptionFields,
    options: proto::AuthorizationOptions,
) -> AuthorizeOptions {
    let flow = match proto::Flow::try_from(options.flow) {
        Ok(proto::Flow::Unspecified) => None,
        Ok(proto::Flow::AuthorizationCode) => Some(Flow::AuthorizationCode),
        Ok(proto::Flow::DeviceCode) => Some(Flow::DeviceCode),
        Err(_) => {
            violations.add(fields.flow, "is no flow that this version knows");
            None
        }
    };
    let mut text = |field, value: String| {
        if value.len() > MAX_TEXT || value.contains(char::is_control) {
            violations.add(field, "must be at most 1024 bytes without control characters");
        }
        (!value.is_empty()).then_some(value)
    };
    let parsed = Options {
        return_url: text(fields.return_url, options.return_url),
        login_hint: text(fields.login_hint, options.login_hint),
    };
    if !options.variables.is_empty() {
        violations.add(fields.variables, "has names that this provider's endpoints do not use");
    }
    if !options.resources.is_empty() {
        violations.add(fields.resources, "are not supported by this provider");
    }
    AuthorizeOptions { flow, options: parsed }
}

pub(super) fn authorize_request(
    namespace: &Name,
    request: proto::AuthorizeRequest,
) -> Result<AuthorizeRequest, CallError> {
    let mut violations = Violations::default();
    let key = violations.key(namespace, request.key);
    let scopes = violations.scopes(&request.scopes);
    let start = start(&mut violations, &IN_AUTHORIZE, request.options.unwrap_or_default());
    violations.finish(key.zip(scopes).map(|(key, scopes)| AuthorizeRequest { key, scopes, start }))
}

pub(super) fn get_token_response(issued: IssuedToken) -> proto::GetTokenResponse {
    proto::GetTokenResponse { token: Some(token(issued)) }
}

pub(super) fn cached_response(hit: &CachedToken) -> proto::GetTokenResponse {
    let etag = hit.etag().to_owned();
    proto::GetTokenResponse { token: Some(token_message(hit.grant(), hit.token(), etag)) }
}

pub(super) fn get_token_request(
    namespace: &Name,
    request: proto::GetTokenRequest,
) -> Result<GetTokenRequest, CallError> {
    let mut violations = Violations::default();
    let key = violations.key(namespace, request.key);
    let scopes = violations.scopes(&request.scopes);
    let min_ttl = match request.min_ttl {
        None => DEFAULT_MIN_TTL,
        // The sign first: the conversion cannot negate the least number of seconds.
        Some(duration) if duration.seconds < 0 || duration.nanos < 0 => {
            violations.add("min_ttl", "must not be negative");
            DEFAULT_MIN_TTL
        }
        Some(duration) => Duration::try_from(duration).unwrap_or(Duration::MAX),
    };
    violations.plain_token_only(&request.token_set, &request.resources);
    let start =
        request.start_authorization.map(|options| start(&mut violations, &IN_GET_TOKEN, options));
    violations.finish(key.zip(scopes).map(|(key, scopes)| GetTokenRequest {
        key,
        min_ttl,
        scopes,
        start,
    }))
}

pub(super) fn refresh_request(
    namespace: &Name,
    request: proto::RefreshRequest,
) -> Result<RefreshRequest, CallError> {
    let mut violations = Violations::default();
    let key = violations.key(namespace, request.key);
    if request.etag.len() > MAX_TEXT {
        violations.add("etag", "is longer than any that the broker gives");
    }
    violations.plain_token_only(&request.token_set, &[]);
    violations.finish(key.map(|key| RefreshRequest { key, etag: request.etag }))
}

pub(super) fn grant_key(
    namespace: &Name,
    key: Option<proto::GrantKey>,
) -> Result<GrantKey, CallError> {
    let mut violations = Violations::default();
    let key = violations.key(namespace, key);
    violations.finish(key)
}

pub(super) fn confirm_request(
    request: proto::ConfirmAuthorizationRequest,
) -> Result<ConfirmRequest, CallError> {
    let mut violations = Violations::default();
    let subject = violations.subject("subject", &request.subject);
    let code: String =
        request.code.chars().filter(|c| !c.is_whitespace() && !is_dash(*c)).collect();
    if code.len() != 8 || !code.bytes().all(|b| b.is_ascii_digit()) {
        violations.add("code", "must be the 8 digits that the result page shows");
    }
    let subject = violations.finish(subject)?;
    let id = match request.authorization_id.as_str() {
        "" => None,
        text => Some(parse_authorization_id(text)?),
    };
    Ok(ConfirmRequest { subject, code, id })
}

fn is_dash(c: char) -> bool {
    matches!(c, '-' | '\u{2010}'..='\u{2015}' | '\u{2212}')
}

/// The authorization that a request names.
pub(super) fn authorization_id(text: &str) -> Result<Id, CallError> {
    if text.is_empty() {
        let mut violations = Violations::default();
        violations.add("authorization_id", "is missing: Authorize gives it");
        return violations.finish(None);
    }
    parse_authorization_id(text)
}

/// An id that is not of the form names no authorization.
fn parse_authorization_id(text: &str) -> Result<Id, CallError> {
    let not_found = || {
        let id = text.chars().filter(|c| !c.is_control()).take(64).collect();
        CallError::Broker(BrokerError::AuthorizationNotFound { id: Some(id) })
    };
    Id::parse(text).ok_or_else(not_found)
}

pub(super) fn timestamp(at: Timestamp) -> prost_types::Timestamp {
    let nanos = at.millis().rem_euclid(1000) * 1_000_000;
    prost_types::Timestamp {
        seconds: at.millis().div_euclid(1000),
        nanos: i32::try_from(nanos).unwrap_or(0),
    }
}

pub(super) fn authorize_response(started: &Started) -> proto::AuthorizeResponse {
    proto::AuthorizeResponse {
        authorization_id: started.id.to_string(),
        authorization_url: started.url.to_string(),
        expire_time: Some(timestamp(started.link_expires_at)),
        ..Default::default()
    }
}

pub(super) fn key_message(key: &GrantKey) -> proto::GrantKey {
    proto::GrantKey {
        provider: key.provider.to_string(),
        subject: key.subject.as_str().to_owned(),
        account: key.account.as_str().to_owned(),
    }
}

pub(super) fn authorization(view: View) -> proto::Authorization {
    let failure = match &view.state {
        State::Denied(failure) | State::Failed(failure) => Some(failure.clone()),
        _ => None,
    };
    let (error, error_description) =
        failure.map(|failure| (failure.error, failure.description)).unwrap_or_default();
    let expires_at = match view.state {
        State::Pending | State::Exchanging | State::AwaitingConfirmation => {
            Some(view.authorization.expires_at)
        }
        _ => None,
    };
    proto::Authorization {
        authorization_id: view.authorization.id.to_string(),
        key: Some(key_message(&view.authorization.key)),
        state: public_state(&view.state).into(),
        error,
        error_description,
        expire_time: expires_at.map(timestamp),
        grant: view.grant.as_ref().map(grant),
    }
}

fn public_state(state: &State) -> proto::AuthorizationState {
    match state {
        State::Pending | State::Exchanging => proto::AuthorizationState::Pending,
        State::AwaitingConfirmation => proto::AuthorizationState::AwaitingConfirmation,
        State::Authorized => proto::AuthorizationState::Authorized,
        State::Denied(_) => proto::AuthorizationState::Denied,
        State::Failed(_) => proto::AuthorizationState::Failed,
        State::Expired => proto::AuthorizationState::Expired,
        State::Cancelled => proto::AuthorizationState::Cancelled,
    }
}

/// The state as the contract writes it, without the enum's prefix.
pub(super) fn public_state_name(state: &State) -> &'static str {
    let name = public_state(state).as_str_name();
    name.strip_prefix("AUTHORIZATION_STATE_").unwrap_or(name)
}

pub(super) fn token(issued: IssuedToken) -> proto::Token {
    token_message(&issued.grant, &issued.token, etag(&issued.grant, &issued.token))
}

fn token_message(grant: &Grant, token: &AccessToken, etag: String) -> proto::Token {
    use secrecy::ExposeSecret;

    proto::Token {
        etag,
        access_token: token.value.expose_secret().to_owned(),
        token_type: token.token_type.clone(),
        expire_time: token.expires_at.map(timestamp),
        scopes: token.scopes.to_vec(),
        provider_values: grant.provider_values.clone(),
    }
}

pub(super) fn grant(grant: &Grant) -> proto::Grant {
    let state = match grant.state {
        GrantState::Active => proto::GrantState::Active,
        GrantState::ReauthorizationRequired => proto::GrantState::ReauthorizationRequired,
    };
    proto::Grant {
        key: Some(key_message(&grant.key)),
        state: state.into(),
        scopes: grant.scopes.to_vec(),
        create_time: Some(timestamp(grant.created_at)),
        refresh_time: Some(timestamp(grant.issued_at)),
        expire_time: grant.expires_at.map(timestamp),
        refreshable: grant.refreshable,
        identity: grant.identity.name.clone(),
        provider_values: grant.provider_values.clone(),
        refresh_expire_time: grant.refresh_expires_at.map(timestamp),
    }
}

pub(super) fn revocation(state: RevocationState) -> proto::Revocation {
    match state {
        RevocationState::Done => proto::Revocation::Done,
        RevocationState::Pending => proto::Revocation::Pending,
        RevocationState::Unsupported => proto::Revocation::Unsupported,
        RevocationState::NotNeeded => proto::Revocation::NotNeeded,
    }
}

pub(super) fn provider(provider: &Provider) -> proto::Provider {
    proto::Provider {
        name: provider.name.to_string(),
        display_name: provider.display_name.clone(),
        default_scopes: provider.default_scopes.to_vec(),
        flows: vec![proto::Flow::AuthorizationCode.into()],
        subjectless: false,
    }
}
