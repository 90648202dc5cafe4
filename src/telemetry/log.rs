//! The filter and the text format of the log.

use std::fmt;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime as _, SystemTime};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

use super::SetupError;

/// The fields of spans that an event is written with.
const CONTEXT: [&str; 5] = ["rpc.method", "bot", "provider", "operation", TRACE_ID];
const TRACE_ID: &str = "trace_id";

/// The filter of the log. A level without a target is that of the service; libraries log warnings and errors, unless
/// a directive names them.
///
/// # Errors
///
/// [`SetupError`] if `directives` are not valid.
pub(super) fn filter(directives: &str) -> Result<EnvFilter, SetupError> {
    let parts = || directives.split(',').map(str::trim).filter(|part| !part.is_empty());
    let level: Option<LevelFilter> = parts().filter_map(|part| part.parse().ok()).next_back();
    let mut all = Vec::new();
    if let Some(level) = level {
        all.push(level.min(LevelFilter::WARN).to_string());
        all.push(format!("token_broker={level}"));
    }
    // The pool of the driver logs an outage once per connection. The database watch logs it once.
    //
    // `sqlx::postgres::notice` must be enabled: the driver asks `enabled!` for it, and tracing-subscriber 0.3 drops the
    // next event of a thread after a filter of one layer has said no.
    if !directives.contains("sqlx") {
        let driver =
            ["sqlx::pool::acquire=off", "sqlx_core::pool=off", "sqlx::postgres::notice=info"];
        all.extend(driver.map(str::to_owned));
    }
    // The later directive of a target holds.
    all.extend(parts().filter(|part| part.parse::<LevelFilter>().is_err()).map(str::to_owned));
    EnvFilter::try_new(all.join(",")).map_err(|error| SetupError(error.to_string()))
}

/// Writes an event on one line: time, level, message, its fields, and those of [`CONTEXT`].
pub(super) struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        SystemTime.format_time(&mut writer)?;
        write!(writer, " {:<5}", event.metadata().level().as_str())?;
        let target = event.metadata().target();
        if !target.starts_with("token_broker") {
            write!(writer, " {target}:")?;
        }
        let mut own = Fields { is_wanted: |_| true, message: String::new(), text: String::new() };
        event.record(&mut own);
        write!(writer, " {}{}", own.message, own.text)?;
        let mut written: Vec<String> = Vec::new();
        let mut trace_id = None;
        for span in context.event_scope().into_iter().flatten() {
            let extensions = span.extensions();
            let Some(fields) = extensions.get::<FormattedFields<N>>() else { continue };
            for field in fields.split(' ').filter(|field| !field.is_empty()) {
                if field.starts_with(TRACE_ID) {
                    trace_id.get_or_insert_with(|| field.to_owned());
                } else if !written.iter().any(|before| before == field) {
                    write!(writer, " {field}")?;
                    written.push(field.to_owned());
                }
            }
        }
        if let Some(trace_id) = trace_id {
            write!(writer, " {trace_id}")?;
        }
        writeln!(writer)
    }
}

/// Keeps the fields of a span that are in [`CONTEXT`], separated by spaces.
pub(super) struct SpanFields;

impl<'writer> FormatFields<'writer> for SpanFields {
    fn format_fields<R: RecordFields>(
        &self,
        mut writer: Writer<'writer>,
        fields: R,
    ) -> fmt::Result {
        let is_wanted = |name: &str| CONTEXT.contains(&name);
        let mut found = Fields { is_wanted, message: String::new(), text: String::new() };
        fields.record(&mut found);
        writer.write_str(&found.text)
    }
}

/// Collects fields as ` name=value`, and the message.
struct Fields {
    is_wanted: fn(&str) -> bool,
    message: String,
    text: String,
}

impl Fields {
    fn write(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            push_escaped(&mut self.message, value);
        } else if (self.is_wanted)(field.name()) {
            self.text.push(' ');
            self.text.push_str(field.name());
            self.text.push('=');
            let is_word = !value.is_empty()
                && !value.contains(|c: char| {
                    c.is_whitespace() || c.is_control() || matches!(c, '"' | '=')
                });
            if is_word {
                self.text.push_str(value);
            } else {
                self.text.push('"');
                push_escaped(&mut self.text, &value.replace('"', "\\\""));
                self.text.push('"');
            }
        }
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, value);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, &format!("{value:?}"));
    }
}

/// A line break in a value must not begin a line of its own.
fn push_escaped(text: &mut String, value: &str) {
    for c in value.chars() {
        if c.is_control() {
            text.extend(c.escape_default());
        } else {
            text.push(c);
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex, PoisonError};

    use tracing_subscriber::fmt::MakeWriter;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Lines {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// Returns the logged lines, without the time in front of each.
    pub(in crate::telemetry) fn logged(directives: &str, log: impl FnOnce()) -> Vec<String> {
        let lines = Lines::default();
        let layer = tracing_subscriber::fmt::layer().with_ansi(false).with_writer(lines.clone());
        let layer = layer.fmt_fields(SpanFields).event_format(Text);
        let registry = tracing_subscriber::registry().with(filter(directives).expect("a filter"));
        tracing::subscriber::with_default(registry.with(layer), log);
        let written = lines.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let written = String::from_utf8(written).expect("UTF-8");
        let without_time = |line: &str| line.split_once(' ').expect("a time").1.to_owned();
        written.lines().map(without_time).collect()
    }

    #[test]
    fn an_event_is_one_line_with_the_fields_of_its_spans_behind_it() {
        let lines = logged("info", || {
            let call = tracing::info_span!(
                "rpc",
                otel.kind = "server",
                rpc.method = "GetToken",
                bot = "helper",
                trace_id = tracing::field::Empty
            );
            call.record("trace_id", "0af7");
            let _call = call.enter();
            let _inner =
                tracing::info_span!("call", provider = %"acme", trace_id = "0af7").entered();
            tracing::info!("refreshed");
            tracing::warn!(error = %"first\nsecond \"x\"", attempt = 2, "refresh\nfailed");
        });
        assert_eq!(
            lines,
            [
                "INFO  refreshed provider=acme rpc.method=GetToken bot=helper trace_id=0af7",
                "WARN  refresh\\nfailed error=\"first\\nsecond \\\"x\\\"\" attempt=2 provider=acme \
                 rpc.method=GetToken bot=helper trace_id=0af7",
            ]
        );
    }

    #[test]
    fn libraries_log_warnings_unless_they_are_named() {
        let log = || {
            tracing::info!(target: "sea_orm_migration::migrator", "applying");
            tracing::warn!(target: "h2::codec", "odd");
            tracing::debug!(target: "token_broker::broker", "detail");
            tracing::info!(target: "token_broker::grpc", "done");
        };
        let [odd, detail, done] = ["WARN  h2::codec: odd", "DEBUG detail", "INFO  done"];
        let applying = "INFO  sea_orm_migration::migrator: applying";
        assert_eq!(logged("info", log), [odd, done]);
        assert_eq!(logged("debug", log), [odd, detail, done]);
        assert_eq!(logged("error", log), [""; 0]);
        assert_eq!(logged("info,sea_orm_migration=info", log), [applying, odd, done]);
        assert_eq!(logged("token_broker::broker=debug,info", log), [odd, detail, done]);
        assert_eq!(logged("info,token_broker=warn", log), [odd]);
    }
}
