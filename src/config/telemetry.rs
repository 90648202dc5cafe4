//! `[telemetry]`: logs, traces and metrics.

use tracing_subscriber::EnvFilter;
use url::Url;

use super::problem::Reported;
use super::section::Section;
use super::value::{choice, parsed};
pub use crate::telemetry::Format as LogFormat;
use crate::telemetry::Otlp;

/// Logs, traces and metrics, and their destinations.
#[derive(Debug)]
pub struct Telemetry {
    /// The filter of the log: directives that [`EnvFilter`] accepts.
    pub log: String,
    /// The format of the log. `None`: text on a terminal, JSON elsewhere.
    pub log_format: Option<LogFormat>,
    /// The destination of traces and metrics.
    pub otlp: Option<Otlp>,
}

pub(super) fn read(mut section: Section<'_>) -> Result<Telemetry, Reported> {
    let log = section.or("log", "info".to_owned(), parsed(filter));
    let options = [("json", LogFormat::Json), ("text", LogFormat::Text)];
    let log_format = section.optional("log_format", choice(&options));
    let otlp = section.optional("otlp_endpoint", parsed(collector));
    section.finish();
    let otlp = otlp?.map(|endpoint| Otlp { endpoint });
    Ok(Telemetry { log: log?, log_format: log_format?, otlp })
}

fn collector(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).ok().filter(|url| {
        let bare = url.path() == "/" && url.query().is_none();
        matches!(url.scheme(), "http" | "https") && url.host().is_some() && bare
    });
    let plain = url.filter(|url| url.username().is_empty() && url.password().is_none());
    plain.ok_or_else(|| {
        "must be the URL of a collector that takes OTLP over gRPC, such as \"http://localhost:4317\"; what \
         it asks for besides goes into the variable OTEL_EXPORTER_OTLP_HEADERS"
            .to_owned()
    })
}

fn filter(text: &str) -> Result<String, String> {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    // A lone word is a target to EnvFilter, so that a mistyped level would silence everything.
    let plain = text.split(',').map(str::trim).all(|directive| {
        directive.contains('=') || LEVELS.contains(&directive.to_ascii_lowercase().as_str())
    });
    // EnvFilter panics at some characters that take more than one byte (tracing-subscriber 0.3.23).
    if plain && text.is_ascii() && EnvFilter::try_new(text).is_ok() {
        return Ok(text.to_owned());
    }
    Err("must be a level (off, error, warn, info, debug, trace), or directives such as \
         \"info,token_broker=debug\""
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testing;

    fn telemetry(text: &str) -> Result<Telemetry, String> {
        testing::read(text, |root| root.section("telemetry").and_then(read))
    }

    #[test]
    fn the_log() {
        let default = telemetry("").expect("a section");
        assert_eq!((default.log.as_str(), default.log_format), ("info", None));
        assert!(default.otlp.is_none());
        let text = "telemetry = { log = 'warn,token_broker=trace', log_format = 'text' }";
        assert_eq!(telemetry(text).expect("a section").log_format, Some(LogFormat::Text));
        let text = "telemetry = { log = 'a=b=c', log_format = 'xml', otlp_endpoint = 'x' }";
        assert_eq!(
            telemetry(text).expect_err("problems"),
            "telemetry.log: must be a level (off, error, warn, info, debug, trace), or directives such as \"info,token_broker=debug\"\n\
             telemetry.log_format: must be \"json\" or \"text\"\n\
             telemetry.otlp_endpoint: must be the URL of a collector that takes OTLP over gRPC, such as \"http://localhost:4317\"; what it asks for besides goes into the variable OTEL_EXPORTER_OTLP_HEADERS"
        );
        let endpoint = telemetry("telemetry.otlp_endpoint = 'https://otel.example:4317'");
        assert!(endpoint.expect("a section").otlp.is_some());
    }

    #[test]
    fn a_mistyped_level_does_not_silence_the_log() {
        for text in
            ["inof", "chatty!!", "info,token_broker", "", "a[b{c=d\u{20ac}}]=info", "\u{20ac}=info"]
        {
            assert!(telemetry(&format!("telemetry = {{ log = '{text}' }}")).is_err(), "{text}");
        }
        for text in ["INFO", "off", "warn,token_broker::broker=debug", "h2=trace"] {
            assert!(telemetry(&format!("telemetry = {{ log = '{text}' }}")).is_ok(), "{text}");
        }
    }
}
