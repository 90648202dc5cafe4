//! One HTTP call to a provider: no redirect, a limit on the whole time and on the size.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;
use http::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, HeaderValue,
};
use http_body::{Frame, SizeHint};
use opentelemetry::trace::Status;
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde_json::Value;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::Url;

use super::classify::{self, Response};
use super::content;
use super::egress::Egress;
use super::error::ProviderError;
use super::retry_after::retry_after;
use crate::domain::name::Name;
use crate::domain::token::RawAnswer;
use crate::telemetry::{Metrics, pass_on, record_trace_id};

/// The time that one call may take in total, from the first byte sent to the last one read.
pub const TIMEOUT: Duration = Duration::from_secs(10);

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// The longest answer that is read, in bytes, also after decompression.
const MAX_BODY: usize = 1024 * 1024;

/// The most headers of an answer.
const MAX_HEADERS: usize = 1000;

/// The client for all providers.
#[derive(Debug, Clone)]
pub struct Http {
    /// For hosts that the configuration of the provider names.
    named: reqwest::Client,
    /// For all others: connects to allowed addresses only.
    others: reqwest::Client,
    timeout: Duration,
    egress: Arc<Egress>,
    metrics: Metrics,
}

/// The purpose of a call, as metrics name it.
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

/// Returns `true` if a request may still be sent.
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

/// The purpose and the provider of a call.
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
        let named = client(reqwest::Client::builder)?;
        let others = client(|| reqwest::Client::builder().dns_resolver(egress.resolver()))?;
        Ok(Self { named, others, timeout, egress, metrics })
    }

    /// Gets a document in JSON: metadata or keys. Returns `None` if there is none, as a 4xx
    /// or a redirect says, or something that is no JSON.
    pub(super) async fn json(
        &self,
        call: Call<'_>,
        url: &Url,
    ) -> Result<Option<Value>, ProviderError> {
        let request = get(url, None)?;
        self.send(call, request, None, |response| classify::document(&response)).await
    }

    /// The addresses that may be connected to.
    pub(super) fn egress(&self) -> &Egress {
        &self.egress
    }

    /// Sends a request and classifies its answer. The metrics and the trace go by the classification. Nothing of
    /// the body is sent once it is not `in_time` any more.
    ///
    /// # Errors
    ///
    /// [`ProviderError`] from the classification, or if there is no answer.
    pub(super) async fn send<T>(
        &self,
        call: Call<'_>,
        mut request: Request<Vec<u8>>,
        in_time: Option<InTime>,
        classify: impl FnOnce(Response) -> Result<T, ProviderError>,
    ) -> Result<T, ProviderError> {
        let Call(operation, provider) = call;
        let began = Instant::now();
        let span = span(call, &request);
        pass_on(&span, request.headers_mut());
        request.headers_mut().insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let sent = self.exchange(provider, request, in_time).instrument(span.clone()).await;
        if let Ok(response) = &sent {
            let status = i64::from(response.status.as_u16());
            span.set_attribute("http.response.status_code", status);
        }
        let classified = sent.and_then(classify);
        let label = classified.as_ref().err().map_or(OK, ProviderError::label);
        self.metrics.provider_call(provider, operation.as_str(), label, began.elapsed());
        if label != OK {
            span.set_attribute("error.type", label);
            span.set_status(Status::error(label));
        }
        classified
    }

    /// One exchange within the time limit.
    async fn exchange(
        &self,
        provider: &Name,
        request: Request<Vec<u8>>,
        in_time: Option<InTime>,
    ) -> Result<Response, ProviderError> {
        let ends = tokio::time::Instant::now() + self.timeout;
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
            .map_err(|_| ProviderError::ConnectError("the endpoint is no URL".to_owned()))?;
        self.egress
            .check(provider, request.url())
            .map_err(|forbidden| ProviderError::ConnectError(forbidden.to_string()))?;
        let timed_out = |_| ProviderError::NoResponse("timed out".to_owned());
        let is_named = self.egress.names(provider, request.url());
        let client = if is_named { &self.named } else { &self.others };
        let sent = tokio::time::timeout_at(ends, client.execute(request));
        // Errors are reported without their URL, which may hold a secret parameter.
        let mut answer = sent.await.map_err(timed_out)?.map_err(|error| {
            let text = describe(&error);
            if late.load(Ordering::SeqCst) {
                ProviderError::ConnectError("the process was held still for too long".to_owned())
            } else if error.is_connect() || error.is_builder() {
                ProviderError::ConnectError(text)
            } else {
                ProviderError::NoResponse(text)
            }
        })?;
        let header = |name| answer.headers().get(name).and_then(|value| value.to_str().ok());
        let content_type = header(CONTENT_TYPE).unwrap_or_default().to_owned();
        let encoding = header(CONTENT_ENCODING).unwrap_or_default().to_owned();
        let (status, retry_after) = (answer.status(), retry_after(answer.headers()));
        let mut body = Vec::new();
        // From here on the provider has answered. What arrives is used as far as it goes.
        let is_whole = loop {
            match tokio::time::timeout_at(ends, answer.chunk()).await {
                Ok(Ok(Some(chunk))) => {
                    let room = MAX_BODY - body.len();
                    body.extend_from_slice(&chunk[..chunk.len().min(room)]);
                    if chunk.len() > room {
                        break false;
                    }
                }
                Ok(Ok(None)) => break true,
                Ok(Err(_)) | Err(_) => break false,
            }
        };
        let body = content::decode(&encoding, body, MAX_BODY as u64);
        let content = RawAnswer { content_type, body: SecretSlice::from(body) };
        Ok(Response { status, retry_after, is_whole, content })
    }
}

/// A client for calls to providers.
fn client(new: impl Fn() -> reqwest::ClientBuilder) -> Result<reqwest::Client, reqwest::Error> {
    let builder = || {
        new()
            // A redirect would carry the code or the client secret to wherever it points.
            .redirect(reqwest::redirect::Policy::none())
            // Nor is a proxy taken from the environment: codes and secrets go where the
            // configuration says.
            .no_proxy()
            .connect_timeout(CONNECT_TIMEOUT)
            // A response may hold the only copy of a refresh token, so it is read as leniently as
            // browsers read it.
            .http1_allow_spaces_after_header_name_in_responses(true)
            .http1_allow_obsolete_multiline_headers_in_responses(true)
            .http1_ignore_invalid_headers_in_responses(true)
            .http1_max_headers(MAX_HEADERS)
            .user_agent(concat!("token-broker/", env!("CARGO_PKG_VERSION")))
    };
    // A machine may have no certificates, and need none for providers on loopback.
    builder().build().or_else(|error| {
        tracing::error!(
            error = describe(&error),
            "no https provider can be called; install the system's CA certificates"
        );
        builder().tls_certs_only([]).build()
    })
}

/// A request for a document.
pub(super) fn get(
    url: &Url,
    bearer: Option<&SecretString>,
) -> Result<Request<Vec<u8>>, ProviderError> {
    let mut request = Request::get(url.as_str()).header(ACCEPT, "application/json");
    if let Some(token) = bearer {
        let value = format!("Bearer {}", token.expose_secret());
        let mut value = HeaderValue::try_from(value)
            .map_err(|_| ProviderError::ConnectError("the token is no header value".to_owned()))?;
        value.set_sensitive(true);
        request = request.header(AUTHORIZATION, value);
    }
    let wrong = |_| ProviderError::ConnectError("the endpoint is no URL".to_owned());
    request.body(Vec::new()).map_err(wrong)
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
        let in_time: InTime = Arc::new(move || in_time);
        let ended = http.send(call, request, Some(in_time), |_| Ok(())).await;
        (ended.expect_err("no answer"), reading.await.expect("no panic"))
    }

    #[tokio::test]
    async fn a_request_that_is_late_is_not_written() {
        let (error, read) = sent(false).await;
        assert!(matches!(error, ProviderError::ConnectError(_)), "{error:?}");
        assert!(!read.contains("refresh_token"), "{read}");
        let (error, read) = sent(true).await;
        assert!(matches!(error, ProviderError::NoResponse(_)), "{error:?}");
        assert!(read.ends_with("\r\n\r\nrefresh_token=secret"), "{read}");
        assert!(read.to_ascii_lowercase().contains("content-length: 20\r\n"), "{read}");
    }
}
