//! Metrics: recorded once, through the OpenTelemetry API, for Prometheus and for OTLP.
//!
//! Names follow the semantic conventions of OpenTelemetry 1.44 where they have one. No attribute names a
//! subject or a grant: their number is not bounded. Bots are those of the configuration.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::metrics::{Counter, Histogram, Meter, MeterProvider as _};
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use prometheus::{Registry, TextEncoder};

use super::{Otlp, SetupError, resource, scope};
use crate::domain::name::Name;

/// The boundaries, in seconds, that the conventions advise for durations of calls.
const SECONDS: [f64; 14] =
    [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// The boundaries of what may take much less, or much longer: a lease ends after 15 s.
const LEASE_SECONDS: [f64; 10] = [0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 30.0];

/// The outcomes of refreshes.
const REFRESHES: [&str; 7] = [
    "stored",
    "partial",
    "lost_race",
    "grant_gone",
    "failed",
    "circuit_open",
    "reauthorization_required",
];

/// The outcomes of authorizations.
const AUTHORIZATIONS: [&str; 5] = ["authorized", "denied", "failed", "expired", "cancelled"];

/// The interval at which figures go out by OTLP.
const INTERVAL: Duration = Duration::from_secs(15);

/// The content type of [`Metrics::text`].
pub const TEXT_FORMAT: &str = prometheus::TEXT_FORMAT;

/// The instruments. Cheap to clone.
#[derive(Clone)]
pub struct Metrics(Arc<Instruments>);

struct Instruments {
    provider: SdkMeterProvider,
    registry: Registry,
    meter: Meter,
    calls: Histogram<f64>,
    provider_calls: Histogram<f64>,
    lease_waits: Histogram<f64>,
    refreshes: Counter<u64>,
    authorizations: Counter<u64>,
    database: Mutex<DatabaseFigures>,
}

/// Counts from the database, as last read. Each replica reports the same.
#[derive(Debug, Clone, Default)]
pub struct DatabaseFigures {
    /// Refreshes in doubt.
    pub open_intents: Option<u64>,
    /// Tokens that are still to be revoked.
    pub revocations: Option<u64>,
    /// The time that the oldest of them has waited.
    pub oldest_revocation: Option<Duration>,
    /// The number of grants that there are, by provider and state. Left out where counting takes too long.
    pub grants: Vec<(String, String, u64)>,
}

/// The present values of the cache and the circuit breakers.
#[derive(Debug, Clone, Default)]
pub struct ProcessFigures {
    /// Tokens that were served from memory.
    pub hits: u64,
    /// Those of them that were served because the database was away.
    pub outage_hits: u64,
    /// Look-ups that found nothing that will do.
    pub misses: u64,
    /// Entries that were thrown out.
    pub invalidations: u64,
    /// The greatest age at which a token was served.
    pub oldest: Duration,
    /// `true` if the database answers.
    pub storage_up: bool,
    /// Notifications of other replicas that could not be sent.
    pub unnotified: u64,
    /// The number of sealed values that could not be opened, by reason.
    pub unreadable: [(&'static str, u64); 2],
    /// The providers, and why calls to them are stopped, where they are.
    pub breakers: Vec<(Name, Option<&'static str>)>,
}

impl Metrics {
    /// Instruments whose figures can be read as text, and go out by OTLP where that is configured.
    ///
    /// # Errors
    ///
    /// [`SetupError`] where the exporter cannot be made.
    pub fn new(otlp: Option<&Otlp>) -> Result<Self, SetupError> {
        let registry = Registry::new();
        let reader = opentelemetry_prometheus::exporter()
            .with_registry(registry.clone())
            .scope_info_enabled(false)
            .build()
            .map_err(|error| SetupError(error.to_string()))?;
        let mut provider =
            SdkMeterProvider::builder().with_resource(resource()).with_reader(reader);
        if let Some(otlp) = otlp {
            let reader = PeriodicReader::builder(otlp.metrics()?).with_interval(INTERVAL);
            provider = provider.with_reader(reader.build());
        }
        let provider = provider.build();
        let meter = provider.meter_with_scope(scope());
        let seconds = |name: &'static str, description: &'static str, boundaries: &[f64]| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(description)
                .with_boundaries(boundaries.to_vec())
                .build()
        };
        let instruments = Instruments {
            calls: seconds("rpc.server.call.duration", "Calls of bots.", &SECONDS),
            provider_calls: seconds(
                "token_broker.provider.call.duration",
                "Calls to providers, by what became of them.",
                &SECONDS,
            ),
            lease_waits: seconds(
                "token_broker.lease.wait.duration",
                "Waiting for the right to refresh a grant.",
                &LEASE_SECONDS,
            ),
            refreshes: meter
                .u64_counter("token_broker.refreshes")
                .with_description("Refreshes, by what became of them.")
                .build(),
            authorizations: meter
                .u64_counter("token_broker.authorizations")
                .with_description("Authorizations that ended, by how.")
                .build(),
            database: Mutex::default(),
            provider,
            registry,
            meter: meter.clone(),
        };
        let metrics = Self(Arc::new(instruments));
        metrics.tell_database();
        Ok(metrics)
    }

    /// A bot's call has ended.
    pub fn call(&self, method: &'static str, code: &'static str, took: Duration) {
        let attributes = [
            KeyValue::new("rpc.system.name", "grpc"),
            KeyValue::new("rpc.method", method),
            KeyValue::new("rpc.response.status_code", code),
        ];
        self.0.calls.record(took.as_secs_f64(), &attributes);
    }

    /// A call to a provider has ended.
    pub fn provider_call(
        &self,
        provider: &Name,
        operation: &'static str,
        outcome: &'static str,
        took: Duration,
    ) {
        let attributes = [
            of(provider),
            KeyValue::new("operation", operation),
            KeyValue::new("outcome", outcome),
        ];
        self.0.provider_calls.record(took.as_secs_f64(), &attributes);
    }

    /// Records the wait for the lease of a refresh, or for the refresh of another caller.
    pub fn lease_wait(&self, provider: &Name, took: Duration) {
        self.0.lease_waits.record(took.as_secs_f64(), &[of(provider)]);
    }

    /// A refresh has ended.
    pub fn refresh(&self, provider: &Name, outcome: &'static str) {
        self.0.refreshes.add(1, &[of(provider), KeyValue::new("outcome", outcome)]);
    }

    /// Begins the counts of a provider with 0: the first event would otherwise not be seen as an increase.
    pub fn begin(&self, provider: &Name) {
        for outcome in REFRESHES {
            self.0.refreshes.add(0, &[of(provider), KeyValue::new("outcome", outcome)]);
        }
        for outcome in AUTHORIZATIONS {
            self.0.authorizations.add(0, &[of(provider), KeyValue::new("outcome", outcome)]);
        }
    }

    /// An authorization has come to its end.
    pub fn authorization(&self, provider: &Name, outcome: &'static str) {
        self.0.authorizations.add(1, &[of(provider), KeyValue::new("outcome", outcome)]);
    }

    /// Replaces the counts from the database.
    pub fn set_database(&self, figures: DatabaseFigures) {
        *self.0.database.lock().unwrap_or_else(PoisonError::into_inner) = figures;
    }

    /// All figures in the text format of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let families = self.0.registry.gather();
        TextEncoder::new().encode_to_string(&families).unwrap_or_else(|error| {
            tracing::error!(%error, "cannot write the metrics");
            String::new()
        })
    }

    /// Sends what was not sent yet, and ends. Blocks for 5 s at most.
    pub(super) fn end(&self) {
        if let Err(error) = self.0.provider.shutdown() {
            tracing::warn!(%error, "the last metrics were not sent");
        }
    }

    fn tell_database(&self) {
        // Weak, because the meter keeps its callbacks, and the instruments keep the meter.
        let figures = |read: fn(&DatabaseFigures) -> Option<f64>| {
            let instruments = Arc::downgrade(&self.0);
            move |observer: &dyn opentelemetry::metrics::AsyncInstrument<f64>| {
                let Some(instruments) = instruments.upgrade() else { return };
                let seen = instruments.database.lock().unwrap_or_else(PoisonError::into_inner);
                if let Some(value) = read(&seen) {
                    observer.observe(value, &[]);
                }
            }
        };
        let gauge = |name: &'static str, description: &'static str| {
            self.0.meter.f64_observable_gauge(name).with_description(description)
        };
        gauge("token_broker.intents.open", "Refreshes of which it is not known what became.")
            .with_callback(figures(|seen| seen.open_intents.map(count)))
            .build();
        gauge("token_broker.revocations.pending", "Tokens that are still to be revoked.")
            .with_callback(figures(|seen| seen.revocations.map(count)))
            .build();
        gauge("token_broker.revocations.oldest.age", "How long the oldest of them has waited.")
            .with_unit("s")
            .with_callback(figures(|seen| seen.oldest_revocation.map(|age| age.as_secs_f64())))
            .build();
        let instruments = Arc::downgrade(&self.0);
        gauge("token_broker.grants", "Grants, by state.")
            .with_callback(move |observer| {
                let Some(instruments) = instruments.upgrade() else { return };
                let seen = instruments.database.lock().unwrap_or_else(PoisonError::into_inner);
                for (provider, state, grants) in &seen.grants {
                    let attributes = [
                        KeyValue::new("provider", provider.clone()),
                        KeyValue::new("state", state.clone()),
                    ];
                    observer.observe(count(*grants), &attributes);
                }
            })
            .build();
    }

    /// Registers the counts of bots' calls. `visit` runs on every scrape or export, and passes on the bot, the method,
    /// the reason and the number.
    pub fn watch_calls(
        &self,
        visit: impl Fn(&mut dyn FnMut(&str, &'static str, &'static str, u64)) + Send + Sync + 'static,
    ) {
        self.0
            .meter
            .u64_observable_counter("token_broker.bot.calls")
            .with_description("Calls of bots, by reason.")
            .with_callback(move |observer| {
                visit(&mut |bot, method, reason, count| {
                    let attributes = [
                        KeyValue::new("bot", bot.to_owned()),
                        KeyValue::new("method", method),
                        KeyValue::new("reason", reason),
                    ];
                    observer.observe(count, &attributes);
                });
            })
            .build();
    }

    /// Registers observable instruments. `figures` runs on every scrape or export.
    pub fn watch(&self, figures: impl Fn() -> Option<ProcessFigures> + Send + Sync + 'static) {
        let meter = &self.0.meter;
        let figures = Arc::new(figures);
        let counter = |name: &'static str, description: &'static str| {
            meter.u64_observable_counter(name).with_description(description)
        };
        let seen = Arc::clone(&figures);
        counter("token_broker.cache.requests", "Look-ups in the cache of tokens, by result.")
            .with_callback(move |observer| {
                let Some(seen) = seen() else { return };
                let hits = seen.hits.saturating_sub(seen.outage_hits);
                for (result, value) in
                    [("hit", hits), ("outage_hit", seen.outage_hits), ("miss", seen.misses)]
                {
                    observer.observe(value, &[KeyValue::new("result", result)]);
                }
            })
            .build();
        let seen = Arc::clone(&figures);
        counter(
            "token_broker.cache.invalidations",
            "Tokens that left the cache before their time.",
        )
        .with_callback(move |observer| {
            if let Some(seen) = seen() {
                observer.observe(seen.invalidations, &[]);
            }
        })
        .build();
        let seen = Arc::clone(&figures);
        counter(
            "token_broker.invalidations.unsent",
            "Notifications of other replicas that the database did not send.",
        )
        .with_callback(move |observer| {
            if let Some(seen) = seen() {
                observer.observe(seen.unnotified, &[]);
            }
        })
        .build();
        let seen = Arc::clone(&figures);
        counter("token_broker.storage.unreadable", "Sealed values that could not be opened.")
            .with_callback(move |observer| {
                for (reason, value) in seen().into_iter().flat_map(|seen| seen.unreadable) {
                    observer.observe(value, &[KeyValue::new("reason", reason)]);
                }
            })
            .build();
        let gauge = |name: &'static str, description: &'static str| {
            meter.f64_observable_gauge(name).with_description(description)
        };
        let seen = Arc::clone(&figures);
        gauge("token_broker.cache.oldest.served", "The greatest age at which a token was served.")
            .with_unit("s")
            .with_callback(move |observer| {
                if let Some(seen) = seen() {
                    observer.observe(seen.oldest.as_secs_f64(), &[]);
                }
            })
            .build();
        let seen = Arc::clone(&figures);
        gauge(
            "token_broker.storage.up",
            "Whether the database answers and accepts writes: 1 or 0.",
        )
        .with_callback(move |observer| {
            if let Some(seen) = seen() {
                observer.observe(f64::from(u8::from(seen.storage_up)), &[]);
            }
        })
        .build();
        gauge("token_broker.breaker.open", "Whether calls to a provider are stopped: 1 or 0.")
            .with_callback(move |observer| {
                for (provider, stopped) in figures().into_iter().flat_map(|seen| seen.breakers) {
                    for reason in ["down", "busy", "refuses"] {
                        let open = f64::from(u8::from(stopped == Some(reason)));
                        observer.observe(open, &[of(&provider), KeyValue::new("reason", reason)]);
                    }
                }
            })
            .build();
    }
}

fn of(provider: &Name) -> KeyValue {
    KeyValue::new("provider", provider.to_string())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge of more than 2^53 things may be a little off"
)]
fn count(things: u64) -> f64 {
    things as f64
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}
