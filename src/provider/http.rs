//! One HTTP call to a provider: no redirect, a limit on the whole time and on the size.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Request, StatusCode};
use http_body::{Frame, SizeHint};
use opentelemetry::trace::Status;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde_json::Value;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::Url;

use super::egress::Egress;
use super::error::{OAuthError, ProviderError};
use super::response;
use crate::domain::name::Name;
use crate::domain::token::RawAnswer;
use crate::telemetry::{Metrics, pass_on, record_trace_id};

/// How long one call may take in total, from the first byte sent to the last one read.
pub const TIMEOUT: Duration = Duration::from_secs(10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// How large an answer may be, after decompression.
const MAX_BODY: usize = 1024 * 1024;

/// The longest `Retry-After` that is believed.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60 * 60);

/// The client for all providers.
#[derive(Debug, Clone)]
pub struct Http {
    client: reqwest::Client,
    timeout: Duration,
    egress: Arc<Egress>,
    metrics: Metrics,
}

/// What a call is for. Its words stand in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Exchange,
    Refresh,
    Revoke,
    Userinfo,
    Discovery,
    Keys,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Exchange => "exchange",
            Self::Refresh => "refresh",
            Self::Revoke => "revoke",
            Self::Userinfo => "userinfo",
            Self::Discovery => "discovery",
            Self::Keys => "keys",
        }
    }
}

/// Whether a request may still be sent.
pub type InTime = Arc<dyn Fn() -> bool + Send + Sync>;

/// A body that is written only while that is in time: when the connection stands at last, the process may
/// have been held still, and what it was to send may be another's by now.
struct Punctual {
    body: Option<Bytes>,
    in_time: InTime,
    late: Arc<AtomicBool>,
}

impl http_body::Body for Punctual {
    type Data = Bytes;
    type Error = Late;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Late>>> {
        let Some(body) = self.body.take() else { return Poll::Ready(None) };
        if (self.in_time)() {
            return Poll::Ready(Some(Ok(Frame::data(body))));
        }
        self.late.store(true, Ordering::SeqCst);
        Poll::Ready(Some(Err(Late)))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.body.as_ref().map_or(0, |body| body.len() as u64))
    }
}

#[derive(Debug, thiserror::Error)]
#[error("too late to be sent")]
struct Late;

/// Whom a call goes to, and what for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a>(pub(super) Operation, pub(super) &'a Name);

impl Http {
    /// A client with the limits of this module.
    ///
    /// # Errors
    ///
    /// [`reqwest::Error`] where TLS cannot be set up.
    pub fn new(egress: Egress, metrics: Metrics) -> Result<Self, reqwest::Error> {
        Self::with_timeout(egress, metrics, TIMEOUT)
    }

    /// A client with another limit on the whole time, for tests of the limit.
    ///
    /// # Errors
    ///
    /// [`reqwest::Error`] where TLS cannot be set up.
    pub fn with_timeout(
        egress: Egress,
        metrics: Metrics,
        timeout: Duration,
    ) -> Result<Self, reqwest::Error> {
        let egress = Arc::new(egress);
        // Fails where a provider has been installed already, which then serves.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = || {
            reqwest::Client::builder()
                // A redirect would carry the code or the client secret to wherever it points.
                .redirect(reqwest::redirect::Policy::none())
                // Nor is a proxy taken from the environment: codes and secrets go where the
                // configuration says.
                .no_proxy()
                .dns_resolver(egress.resolver())
                .connect_timeout(CONNECT_TIMEOUT)
                .user_agent(concat!("token-broker/", env!("CARGO_PKG_VERSION")))
        };
        // A machine may have no certificates, and need none for providers on loopback.
        let client = builder().build().or_else(|error| {
            tracing::error!(
                error = describe(&error),
                "no https provider can be called; install the system's CA certificates"
            );
            builder().tls_certs_only([]).build()
        })?;
        Ok(Self { client, timeout, egress, metrics })
    }

    /// Sends a request and reads a token answer: whatever a 2xx carries, for its body may be the
    /// only copy of a rotated refresh token.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] where there is no 2xx.
    pub(super) async fn token_answer(
        &self,
        call: Call<'_>,
        request: Request<Vec<u8>>,
        in_time: Option<InTime>,
    ) -> Result<RawAnswer, ProviderError> {
        let (status, content_type, body) = self.send_in_time(call, request, in_time).await?;
        let answer = RawAnswer { content_type, body: SecretSlice::from(Vec::from(body)) };
        if status.is_success() {
            return Ok(answer);
        }
        match response::error_in(&answer) {
            Some(error) => Err(refused(status, error)),
            None if status == StatusCode::UNAUTHORIZED => Err(ProviderError::Unauthorized),
            None => Err(ProviderError::Odd(format!("status {}", status.as_u16()))),
        }
    }

    /// Gets a document in JSON: metadata, keys, or who a user is. Absent where there is none, which
    /// a 4xx or a redirect says, or something that is no JSON.
    pub(super) async fn json(
        &self,
        call: Call<'_>,
        url: &Url,
        bearer: Option<&SecretString>,
    ) -> Result<Option<Value>, ProviderError> {
        let mut request = Request::get(url.as_str()).header(ACCEPT, "application/json");
        if let Some(token) = bearer {
            let value = format!("Bearer {}", token.expose_secret());
            let mut value = HeaderValue::try_from(value)
                .map_err(|_| ProviderError::NotSent("the token is no header value".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request
            .body(Vec::new())
            .map_err(|_| ProviderError::NotSent("the endpoint is no URL".to_owned()))?;
        let (status, _, body) = self.send(call, request).await?;
        if !status.is_success() {
            return Ok(None);
        }
        Ok(serde_json::from_slice(&body).ok())
    }

    /// Whether a URL may be connected to, as far as its host tells without being resolved.
    pub(super) fn egress(&self) -> &Egress {
        &self.egress
    }

    /// Sends a request. A 5xx or 429 is an error; any other status is for the caller.
    pub(super) async fn send(
        &self,
        call: Call<'_>,
        request: Request<Vec<u8>>,
    ) -> Result<(StatusCode, String, Bytes), ProviderError> {
        self.send_in_time(call, request, None).await
    }

    async fn send_in_time(
        &self,
        call: Call<'_>,
        mut request: Request<Vec<u8>>,
        in_time: Option<InTime>,
    ) -> Result<(StatusCode, String, Bytes), ProviderError> {
        let Call(operation, provider) = call;
        let began = Instant::now();
        let span = span(call, &request);
        pass_on(&span, request.headers_mut());
        let sending = self.send_unlimited(request, in_time).instrument(span.clone());
        let sent = tokio::time::timeout(self.timeout, sending)
            .await
            .unwrap_or_else(|_| Err(ProviderError::NoAnswer("timed out".to_owned())));
        let outcome = outcome(&sent);
        self.metrics.provider_call(provider, operation.as_str(), outcome, began.elapsed());
        match &sent {
            Ok((status, ..)) => {
                span.set_attribute("http.response.status_code", i64::from(status.as_u16()));
            }
            Err(ProviderError::Broken { status, .. }) => {
                span.set_attribute("http.response.status_code", i64::from(*status));
            }
            Err(_) => {}
        }
        if outcome != OK {
            span.set_attribute("error.type", outcome);
            span.set_status(Status::error(outcome));
        }
        sent
    }

    async fn send_unlimited(
        &self,
        request: Request<Vec<u8>>,
        in_time: Option<InTime>,
    ) -> Result<(StatusCode, String, Bytes), ProviderError> {
        let late = Arc::new(AtomicBool::new(false));
        let request = request.map(|body| match in_time {
            Some(in_time) => reqwest::Body::wrap(Punctual {
                body: Some(body.into()),
                in_time,
                late: Arc::clone(&late),
            }),
            None => body.into(),
        });
        let request = reqwest::Request::try_from(request)
            .map_err(|_| ProviderError::NotSent("the endpoint is no URL".to_owned()))?;
        self.egress
            .check(request.url())
            .map_err(|forbidden| ProviderError::NotSent(forbidden.to_string()))?;
        // Errors are told without their URL, which may hold a secret parameter.
        let mut answer = self.client.execute(request).await.map_err(|error| {
            let text = describe(&error);
            if late.load(Ordering::SeqCst) {
                ProviderError::NotSent("the process was held still for too long".to_owned())
            } else if error.is_connect() || error.is_builder() {
                ProviderError::NotSent(text)
            } else {
                ProviderError::NoAnswer(text)
            }
        })?;
        let status = answer.status();
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let retry_after = header(RETRY_AFTER)
            .and_then(|text| text.trim().parse().ok())
            .map(|seconds| Duration::from_secs(seconds).min(MAX_RETRY_AFTER));
        let content_type = header(CONTENT_TYPE).unwrap_or_default().to_owned();
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(ProviderError::RateLimited { retry_after });
        }
        if status.is_server_error() {
            return Err(ProviderError::Broken { status: status.as_u16(), retry_after });
        }
        let mut body = Vec::new();
        while let Some(chunk) =
            answer.chunk().await.map_err(|error| ProviderError::NoAnswer(describe(&error)))?
        {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(ProviderError::TooLarge(MAX_BODY));
            }
            body.extend_from_slice(&chunk);
        }
        Ok((status, content_type, body.into()))
    }
}

const OK: &str = "ok";

/// A span of one HTTP call. Its URL ends before the query, which may hold a secret.
fn span(call: Call<'_>, request: &Request<Vec<u8>>) -> Span {
    let Call(operation, provider) = call;
    let span = tracing::info_span!(
        "provider call",
        otel.name = request.method().as_str(),
        otel.kind = "client",
        provider = %provider,
        operation = operation.as_str(),
        trace_id = tracing::field::Empty,
    );
    record_trace_id(&span);
    span.set_attribute("http.request.method", request.method().to_string());
    let uri = request.uri();
    let host = uri.host().unwrap_or_default();
    let scheme = uri.scheme_str().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(if scheme == "http" { 80 } else { 443 });
    span.set_attribute("server.address", host.to_owned());
    span.set_attribute("server.port", i64::from(port));
    span.set_attribute("url.full", format!("{scheme}://{host}:{port}{}", uri.path()));
    span
}

/// How a call went, in a word.
fn outcome(sent: &Result<(StatusCode, String, Bytes), ProviderError>) -> &'static str {
    match sent {
        Ok((status, ..)) if status.is_success() => OK,
        Ok((status, ..)) if *status == StatusCode::UNAUTHORIZED => "unauthorized",
        Ok(_) | Err(ProviderError::Refused { .. }) => "refused",
        Err(ProviderError::NotSent(_)) => "not_sent",
        Err(ProviderError::NoAnswer(_)) => "no_answer",
        Err(ProviderError::Broken { .. }) => "broken",
        Err(ProviderError::RateLimited { .. }) => "rate_limited",
        Err(ProviderError::Unauthorized) => "unauthorized",
        Err(ProviderError::Odd(_)) => "odd",
        Err(ProviderError::TooLarge(_)) => "too_large",
    }
}

fn refused(status: StatusCode, error: OAuthError) -> ProviderError {
    ProviderError::Refused { status: status.as_u16(), error }
}

/// The kind of an error, and its innermost cause; never the URL.
fn describe(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    let kind = if error.is_timeout() { "timed out" } else { "transport" };
    if std::ptr::eq(cause as *const _ as *const (), error as *const _ as *const ()) {
        kind.to_owned()
    } else if error.is_connect() {
        cause.to_string()
    } else {
        format!("{kind}: {cause}")
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;

    use super::*;

    /// Sends a token request to a server that reads for a while and answers nothing; gives what it read.
    async fn sent(in_time: bool) -> (ProviderError, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/token", listener.local_addr().expect("an address"));
        let reading = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("a connection");
            let mut read = Vec::new();
            // Until the other side has had enough.
            let _ = stream.read_to_end(&mut read).await;
            String::from_utf8(read).expect("text")
        });
        let networks = ["127.0.0.0/8".parse().expect("a network")].to_vec();
        let metrics = Metrics::new(None).expect("metrics");
        let egress = Egress::new(&[], networks);
        let http = Http::with_timeout(egress, metrics, Duration::from_millis(300)).expect("TLS");
        let name = Name::parse("acme").expect("a name");
        let request = Request::post(url).body(b"refresh_token=secret".to_vec()).expect("a request");
        let call = Call(Operation::Refresh, &name);
        let ended = http.token_answer(call, request, Some(Arc::new(move || in_time))).await;
        (ended.expect_err("no answer"), reading.await.expect("no panic"))
    }

    #[tokio::test]
    async fn a_request_that_is_late_is_not_written() {
        let (error, read) = sent(false).await;
        assert!(matches!(error, ProviderError::NotSent(_)), "{error:?}");
        assert!(!read.contains("refresh_token"), "{read}");
        let (error, read) = sent(true).await;
        assert!(matches!(error, ProviderError::NoAnswer(_)), "{error:?}");
        assert!(read.ends_with("\r\n\r\nrefresh_token=secret"), "{read}");
        assert!(read.to_ascii_lowercase().contains("content-length: 20\r\n"), "{read}");
    }
}
