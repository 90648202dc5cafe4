//! The one place where a `tonic::Status` is made.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::Message;
use prost_types::Any;
use token_broker_client::ERROR_DOMAIN;
use tonic::{Code, Status};
use tonic_types::pb;

use super::convert;
use super::error::{CallError, Violation};
use crate::broker::BrokerError;
use crate::broker::authorize::Started;
use crate::telemetry;

/// A row of the contract's error table, filled in.
struct Row {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: BTreeMap<&'static str, String>,
    violations: Vec<Violation>,
    retry_after: Option<Duration>,
    started: Option<Box<Started>>,
}

impl Row {
    fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            metadata: BTreeMap::new(),
            violations: Vec::new(),
            retry_after: None,
            started: None,
        }
    }

    fn with(mut self, key: &'static str, value: impl ToString) -> Self {
        self.metadata.insert(key, value.to_string());
        self
    }

    fn retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self.with("retry_after_ms", wait.as_millis())
    }

    fn started(mut self, started: Option<Box<Started>>) -> Self {
        self.started = started;
        self
    }

    fn into_status(self) -> Status {
        let mut details = vec![any(
            "google.rpc.ErrorInfo",
            &pb::ErrorInfo {
                reason: self.reason.to_owned(),
                domain: ERROR_DOMAIN.to_owned(),
                metadata: self.metadata.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            },
        )];
        if !self.violations.is_empty() {
            let field_violations = self
                .violations
                .into_iter()
                .map(|violation| pb::bad_request::FieldViolation {
                    field: violation.field.to_owned(),
                    description: violation.problem,
                    ..Default::default()
                })
                .collect();
            details.push(any("google.rpc.BadRequest", &pb::BadRequest { field_violations }));
        }
        if let Some(wait) = self.retry_after {
            let retry_delay = prost_types::Duration::try_from(wait).ok();
            details.push(any("google.rpc.RetryInfo", &pb::RetryInfo { retry_delay }));
        }
        if let Some(started) = self.started {
            let link = pb::help::Link {
                description: "The user authorizes here".to_owned(),
                url: started.url.to_string(),
            };
            details.push(any("google.rpc.Help", &pb::Help { links: vec![link] }));
            let response = convert::authorize_response(&started);
            details.push(any("tokenbroker.v1.AuthorizeResponse", &response));
        }
        let rich = pb::Status { code: self.code as i32, message: self.message.clone(), details };
        Status::with_details(self.code, self.message, rich.encode_to_vec().into())
    }
}

fn any(name: &str, message: &impl Message) -> Any {
    Any { type_url: format!("type.googleapis.com/{name}"), value: message.encode_to_vec() }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        row(error).into_status()
    }
}

/// The contract's error table.
fn row(error: CallError) -> Row {
    match error {
        CallError::Broker(error) => broker_row(error),
        CallError::Invalid(violations) => invalid(violations),
        CallError::Unauthenticated => Row::new(
            Code::Unauthenticated,
            "UNAUTHENTICATED",
            "no or unknown credential: send the metadata 'authorization: Bearer <api key>'",
        ),
        CallError::MethodNotAllowed { method } => Row::new(
            Code::PermissionDenied,
            "METHOD_NOT_ALLOWED",
            format!("this bot may not call {method}"),
        )
        .with("method", method),
        CallError::RateLimited { retry_after } => Row::new(
            Code::ResourceExhausted,
            "RATE_LIMITED",
            "this bot calls more often than it may on this replica",
        )
        .retry_after(retry_after),
    }
}

fn invalid(violations: Vec<Violation>) -> Row {
    let told: Vec<_> = violations.iter().map(|v| format!("{} {}", v.field, v.problem)).collect();
    let fields: Vec<_> = violations.iter().map(|v| v.field).collect();
    let mut row = Row::new(Code::InvalidArgument, "INVALID_ARGUMENT", told.join("; "))
        .with("fields", fields.join(","));
    row.violations = violations;
    row
}

fn broker_row(error: BrokerError) -> Row {
    use BrokerError as E;

    let denied = |reason, message| Row::new(Code::PermissionDenied, reason, message);
    let failed = |reason, message| Row::new(Code::FailedPrecondition, reason, message);
    let unavailable = |reason, message| Row::new(Code::Unavailable, reason, message);
    match error {
        E::InvalidArgument { field, problem } => invalid(vec![Violation { field, problem }]),
        E::FlowNotSupported { provider, flow } => Row::new(
            Code::InvalidArgument,
            "FLOW_NOT_SUPPORTED",
            format!("{provider} has no flow {flow} for this bot"),
        )
        .with("provider", provider)
        .with("flow", flow),
        E::ProviderNotAllowed { provider } => denied(
            "PROVIDER_NOT_ALLOWED",
            format!("the provider {provider} is not configured for this bot"),
        )
        .with("provider", provider),
        E::ScopeNotAllowed { scopes } => denied(
            "SCOPE_NOT_ALLOWED",
            format!("this bot may not have the scopes {}", listed(&scopes)),
        )
        .with("scopes", listed(&scopes)),
        E::SubjectNotAllowed { subject } => {
            denied("SUBJECT_NOT_ALLOWED", format!("this bot may not act for {}", subject.as_str()))
                .with("subject", subject.as_str())
        }
        E::AuthorizationRequired { provider, started } => failed(
            "AUTHORIZATION_REQUIRED",
            format!("the user has no grant at {provider}: {}", remedy(&started)),
        )
        .with("provider", provider)
        .started(started),
        E::ReauthorizationRequired { provider, started } => failed(
            "REAUTHORIZATION_REQUIRED",
            format!(
                "the user's grant at {provider} can no longer be renewed: {}",
                remedy(&started)
            ),
        )
        .with("provider", provider)
        .started(started),
        E::ScopeMissing { provider, missing, started } => failed(
            "SCOPE_MISSING",
            format!(
                "the user's grant at {provider} lacks {}: {}, with these scopes",
                listed(&missing),
                remedy(&started)
            ),
        )
        .with("provider", provider)
        .with("missing", listed(&missing))
        .started(started),
        E::NotRefreshable { provider } => failed(
            "NOT_REFRESHABLE",
            format!("the grant at {provider} has no refresh token; its access token still lives"),
        )
        .with("provider", provider),
        E::ProviderMisconfigured { provider, error } => failed(
            "PROVIDER_MISCONFIGURED",
            format!(
                "{provider} refuses the broker ({}): its operator must check the client id, the \
                 client secret and the redirect URI",
                error.code
            ),
        )
        .with("provider", provider)
        .with("error", error.code),
        E::ProviderError { provider, error } => {
            failed("PROVIDER_ERROR", format!("{provider} answered {}", error.code))
                .with("provider", provider)
                .with("error", error.code)
        }
        E::NotAwaitingConfirmation { state } => {
            let state = convert::public_state_name(&state);
            failed(
                "AUTHORIZATION_NOT_AWAITING_CONFIRMATION",
                format!("the authorization is {state}"),
            )
            .with("state", state)
        }
        E::ConfirmationMismatch { attempts_left } => failed(
            "CONFIRMATION_MISMATCH",
            format!("the code is wrong; attempts left: {attempts_left}"),
        )
        .with("attempts_left", attempts_left),
        E::AuthorizationNotFound { id } => {
            let row = |message| Row::new(Code::NotFound, "AUTHORIZATION_NOT_FOUND", message);
            match id {
                Some(id) => row(format!("there is no authorization {id} for this caller"))
                    .with("authorization_id", id),
                None => row("no authorization of this subject awaits a code".to_owned()),
            }
        }
        E::ProviderUnavailable { provider, retry_after } => {
            unavailable("PROVIDER_UNAVAILABLE", format!("{provider} cannot be reached"))
                .with("provider", provider)
                .retry_after(retry_after)
        }
        error if error.is_storage_unavailable() => {
            unavailable("STORAGE_UNAVAILABLE", "the broker's database cannot be used".to_owned())
                .retry_after(RETRY)
        }
        E::Overloaded => {
            unavailable("OVERLOADED", "this replica takes no more calls now".to_owned())
                .retry_after(RETRY)
        }
        E::Internal | E::Storage(_) | E::StorageUnavailable => {
            let trace_id = telemetry::trace_id();
            Row::new(Code::Internal, "INTERNAL", format!("internal error, trace id {trace_id}"))
                .with("trace_id", trace_id)
        }
    }
}

/// The remedy if the user has to authorize.
fn remedy(started: &Option<Box<Started>>) -> &'static str {
    if started.is_some() { "the user authorizes at the link" } else { "call Authorize" }
}

/// Scopes for a message, at most about 2 KiB of them: a status travels in headers, and a client
/// that gets more than it takes ends its whole connection.
fn listed(scopes: &[String]) -> String {
    const MOST: usize = 2 * 1024;
    let mut text = String::new();
    for (index, scope) in scopes.iter().enumerate() {
        if text.len() + scope.len() > MOST {
            text.push_str(&format!(" and {} more", scopes.len() - index));
            break;
        }
        if index > 0 {
            text.push(' ');
        }
        text.push_str(scope);
    }
    text
}

/// When to come back where the error itself does not know.
const RETRY: Duration = crate::broker::error::RETRY;

/// The reason of an error, for the log line of a call.
pub(super) fn reason_of(error: &CallError) -> &'static str {
    row(error.clone()).reason
}
