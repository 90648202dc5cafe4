//! Traces and metrics, as a real collector and a real Prometheus tool see them.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use libtest_mimic::Trial;
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::child::Serving;
use super::site::Site;
use crate::harness::world::{get_token, refresh};
use crate::harness::{Browser, tools, trial, trial_with};

pub fn trials() -> Vec<Trial> {
    vec![
        trial("process::telemetry::a_trace_goes_from_the_caller_to_the_commit", whole_trace),
        trial("process::telemetry::a_cache_hit_has_a_span_only_where_its_caller_records", hits),
        trial("process::telemetry::metrics_go_out_by_otlp_as_they_stand_in_the_text", both_ways),
        trial("process::telemetry::a_collector_that_is_away_keeps_nobody", away),
        trial("process::telemetry::dashboard_and_alerts_ask_for_what_is_there", asked_for),
        trial_with(
            &[tools::PROMTOOL],
            "process::telemetry::promtool_finds_nothing_wrong_with_the_text",
            linted,
        ),
    ]
}

/// A collector that keeps what it is sent.
#[derive(Clone, Default)]
struct Collector {
    traces: Arc<Mutex<Vec<ExportTraceServiceRequest>>>,
    metrics: Arc<Mutex<Vec<ExportMetricsServiceRequest>>>,
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        traces.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let mut metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        metrics.push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    /// Collects on a free port, and gives the endpoint.
    async fn start(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let server = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
            .serve_with_incoming(TcpListenerStream::new(listener));
        tokio::spawn(server);
        endpoint
    }

    fn spans(&self) -> Vec<Span> {
        let traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        let scopes = traces.iter().flat_map(|t| &t.resource_spans).flat_map(|r| &r.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn metric_names(&self) -> BTreeSet<String> {
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        let resources = metrics.iter().flat_map(|m| &m.resource_metrics);
        let scopes = resources.flat_map(|resource| &resource.scope_metrics);
        scopes.flat_map(|scope| &scope.metrics).map(|metric| metric.name.clone()).collect()
    }

    /// Everything that came, as text.
    fn everything(&self) -> String {
        let traces = self.traces.lock().unwrap_or_else(PoisonError::into_inner);
        let metrics = self.metrics.lock().unwrap_or_else(PoisonError::into_inner);
        format!("{traces:?}{metrics:?}")
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// A call of a bot that records its trace.
fn recorded<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let traceparent = format!("00-{TRACE}-{PARENT}-01").parse().expect("metadata");
    request.metadata_mut().insert("traceparent", traceparent);
    request
}

async fn observed(site: &Site, collector: &Collector, more: &[(&str, &str)]) -> Serving {
    let mut command = site.command(&["serve"]);
    command.env("TOKEN_BROKER__TELEMETRY__OTLP_ENDPOINT", collector.start().await);
    command.envs(more.iter().copied());
    Serving::start(command).await
}

fn by_id(spans: &[Span]) -> BTreeMap<Vec<u8>, &Span> {
    spans.iter().map(|span| (span.span_id.clone(), span)).collect()
}

fn attribute(span: &Span, name: &str) -> Option<String> {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;

    let found = span.attributes.iter().find(|attribute| attribute.key == name)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => Some(format!("{other:?}")),
    }
}

async fn whole_trace() {
    let (site, collector) = (Site::new().await, Collector::default());
    let serving = observed(&site, &collector, &[]).await;
    let old = site.granted(&serving, "u1").await;
    let mut client = serving.client().await;
    client.refresh(recorded(refresh("u1"))).await.expect("a token");
    // What was not sent yet is sent at the end.
    assert_eq!(serving.terminate().await.code, Some(0));

    let spans = collector.spans();
    let trace = hex::decode(TRACE).expect("hex");
    let of_trace: Vec<_> = spans.iter().filter(|span| span.trace_id == trace).cloned().collect();
    let ids = by_id(&of_trace);
    let named = |name: &str| {
        let found = of_trace.iter().find(|span| span.name == name);
        found.unwrap_or_else(|| {
            let names: Vec<_> = of_trace.iter().map(|span| &span.name).collect();
            panic!("no span {name} among {names:?}")
        })
    };
    let call = named("tokenbroker.v1.TokenBrokerService/Refresh");
    assert_eq!(call.parent_span_id, hex::decode(PARENT).expect("hex"));
    assert_eq!(call.kind(), SpanKind::Server);
    assert_eq!(attribute(call, "rpc.response.status_code").as_deref(), Some("OK"));
    // Lease, provider, commit: each below the call.
    for name in ["refresh", "UPDATE grants", "POST", "INSERT access_tokens", "COMMIT"] {
        let mut span = named(name);
        while span.span_id != call.span_id {
            let parent = ids.get(&span.parent_span_id);
            span = parent.unwrap_or_else(|| panic!("{name} does not stem from the call"));
        }
    }
    let post = named("POST");
    assert_eq!(post.kind(), SpanKind::Client);
    assert_eq!(attribute(post, "http.response.status_code").as_deref(), Some("200"));
    let parent = hex::encode(&post.span_id);
    assert!(site.traceparents().contains(&format!("00-{TRACE}-{parent}-01")), "it is passed on");

    // Nothing of a token, a code or a secret is in it.
    let everything = collector.everything();
    assert!(everything.contains("TokenBrokerService"));
    for secret in site.passed().iter().chain([&old]) {
        assert!(!everything.contains(secret.as_str()), "{secret} is in the telemetry");
    }
    assert!(!everything.contains("u1"), "nor is it told of whom");
}

async fn hits() {
    let (site, collector) = (Site::new().await, Collector::default());
    let cached = [("TOKEN_BROKER__CACHE__MAX_AGE", "60s")];
    let serving = observed(&site, &collector, &cached).await;
    site.granted(&serving, "u1").await;
    let mut client = serving.client().await;
    for _ in 0..20 {
        client.get_token(get_token("u1")).await.expect("a token");
    }
    client.get_token(recorded(get_token("u1"))).await.expect("a token");
    assert_eq!(serving.terminate().await.code, Some(0));
    let spans = collector.spans();
    let calls: Vec<_> =
        spans.iter().filter(|s| s.name == "tokenbroker.v1.TokenBrokerService/GetToken").collect();
    // The first one read the database; that of a caller that records is seen.
    assert_eq!(calls.len(), 2, "{calls:?}");
    assert!(calls.iter().any(|span| hex::encode(&span.trace_id) == TRACE));
}

async fn text_of(serving: &Serving) -> String {
    let answer = Browser::new().get(&format!("http://{}/metrics", serving.ops)).await;
    assert_eq!(answer.status, 200);
    answer.body
}

/// Every metric that the service has, after something of each kind has happened.
async fn lively(site: &Site, serving: &Serving) -> String {
    site.granted(serving, "u1").await;
    let mut client = serving.client().await;
    client.refresh(refresh("u1")).await.expect("a token");
    client.get_token(get_token("nobody")).await.expect_err("no grant");
    loop {
        let text = text_of(serving).await;
        // The database is looked at now and then.
        if text.contains("token_broker_grants{") {
            return text;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn both_ways() {
    let (site, collector) = (Site::new().await, Collector::default());
    let serving = observed(&site, &collector, &[]).await;
    let text = lively(&site, &serving).await;
    for line in [
        r#"rpc_server_call_duration_seconds_count{rpc_method="tokenbroker.v1.TokenBrokerService/Refresh",rpc_response_status_code="OK",rpc_system_name="grpc"} 1"#,
        r#"rpc_server_call_duration_seconds_count{rpc_method="tokenbroker.v1.TokenBrokerService/GetToken",rpc_response_status_code="FAILED_PRECONDITION",rpc_system_name="grpc"} 1"#,
        r#"token_broker_provider_call_duration_seconds_count{operation="exchange",outcome="ok",provider="acme"} 1"#,
        r#"token_broker_provider_call_duration_seconds_count{operation="refresh",outcome="ok",provider="acme"} 1"#,
        r#"token_broker_refreshes_total{outcome="stored",provider="acme"} 1"#,
        r#"token_broker_authorizations_total{outcome="authorized",provider="acme"} 1"#,
        r#"token_broker_lease_wait_duration_seconds_count{provider="acme"} 1"#,
        r#"token_broker_grants{provider="acme",state="active"} 1"#,
        r#"token_broker_breaker_open{provider="acme",reason="down"} 0"#,
        r#"token_broker_refreshes_total{outcome="lost_race",provider="acme"} 0"#,
        "token_broker_storage_up 1",
        "token_broker_intents_open 0",
        "token_broker_revocations_pending 0",
        "token_broker_revocations_oldest_age_seconds 0",
        "token_broker_cache_invalidations_total 0",
        "token_broker_cache_oldest_served_seconds 0",
        r#"token_broker_cache_requests_total{result="miss"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "no {line} in\n{text}");
    }
    assert!(!text.contains("u1") && !text.contains("nobody"), "{text}");
    assert_eq!(serving.terminate().await.code, Some(0));
    // The same names, as OTLP writes them.
    let names: BTreeSet<_> = collector.metric_names();
    let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    for family in families.filter_map(|line| line.split(' ').next()) {
        let plain = family.trim_end_matches("_total").trim_end_matches("_seconds");
        let found = names.iter().any(|name| name.replace('.', "_") == plain);
        assert!(found || family == "target_info", "{family} is not among {names:?}");
    }
}

async fn away() {
    let site = Site::new().await;
    let mut command = site.command(&["serve"]);
    // Nobody listens there.
    command.env("TOKEN_BROKER__TELEMETRY__OTLP_ENDPOINT", "http://127.0.0.1:9");
    let serving = Serving::start(command).await;
    site.granted(&serving, "u1").await;
    let began = Instant::now();
    let ended = serving.terminate().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
}

async fn linted() {
    let site = Site::new().await;
    let serving = site.serve().await;
    let text = lively(&site, &serving).await;
    let mut promtool = Command::new(tools::find("promtool").expect("the harness has found it"))
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool");
    let mut stdin = promtool.stdin.take().expect("a pipe");
    stdin.write_all(text.as_bytes()).await.expect("it reads");
    drop(stdin);
    let told = promtool.wait_with_output().await.expect("an end");
    let told_text = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(told.status.success(), "{told_text}");
}

/// The words of a text that can be names of metrics or labels of ours.
fn names_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | ':')));
    let ours = |word: &&str| word.starts_with("token_broker_") || word.starts_with("rpc_");
    // What a recording rule makes has a colon.
    words.filter(ours).filter(|word| !word.contains(':')).collect()
}

async fn asked_for() {
    let site = Site::new().await;
    let serving = site.serve().await;
    let text = lively(&site, &serving).await;
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let families: BTreeSet<_> = types.filter_map(|line| line.split(' ').next()).collect();
    for file in ["helm/rules/token-broker.yaml", "helm/dashboards/token-broker.json", GUIDE] {
        let asked = std::fs::read_to_string(tools::root().join(file)).expect("a file");
        let names = names_in(&asked);
        assert!(names.len() > 10, "{file}: {names:?}");
        for name in names {
            let family = ["_bucket", "_count", "_sum"].iter().find_map(|s| name.strip_suffix(s));
            let is_metric = families.contains(name) || family.is_some_and(|f| families.contains(f));
            let is_label = text.contains(&format!("{name}=\""));
            assert!(is_metric || is_label, "{file} names {name}, which is not in\n{text}");
        }
    }
    // And nothing is there that the guide does not explain.
    let guide = std::fs::read_to_string(tools::root().join(GUIDE)).expect("a file");
    for family in families.iter().filter(|family| **family != "target_info") {
        assert!(guide.contains(&format!("`{family}`")), "{GUIDE} does not explain {family}");
    }
}

const GUIDE: &str = "docs/operations.md";
