//! `Retry-After` (RFC 9110 section 10.2.3), in the forms that providers write it.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};

/// The longest pause that is believed.
const MOST: Duration = Duration::from_secs(60 * 60);

/// Reads the header: seconds, also with a fraction, or a date. A date counts from the response's own `Date`, so
/// that a wrong clock on either side does no harm. Returns `None` without the header, or if it says nothing.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let value = text(RETRY_AFTER)?;
    let wait = match value.parse::<f64>() {
        Ok(seconds) if seconds >= 0.0 => Duration::try_from_secs_f64(seconds).unwrap_or(MOST),
        Ok(_) => return None,
        Err(_) => {
            let date = |text: &str| -> Option<SystemTime> { httpdate::parse_http_date(text).ok() };
            let now = text(DATE).and_then(date).unwrap_or_else(this_machines_time);
            date(value)?.duration_since(now).unwrap_or_default()
        }
    };
    Some(wait.min(MOST))
}

#[expect(clippy::disallowed_methods, reason = "the date of a response without its own Date")]
fn this_machines_time() -> SystemTime {
    SystemTime::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(value: &str, date: Option<&str>) -> Option<u64> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, value.parse().expect("a value"));
        if let Some(date) = date {
            headers.insert(DATE, date.parse().expect("a value"));
        }
        retry_after(&headers).map(|wait| u64::try_from(wait.as_millis()).expect("short"))
    }

    #[test]
    fn every_form_is_read() {
        assert_eq!(of("12", None), Some(12_000));
        assert_eq!(of(" 12.5 ", None), Some(12_500));
        assert_eq!(of("1e12", None), Some(3_600_000));
        assert_eq!(of("inf", None), Some(3_600_000));
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(of("Sun, 06 Nov 1994 08:50:07 GMT", date), Some(30_000));
        assert_eq!(of("Sunday, 06-Nov-94 08:50:07 GMT", date), Some(30_000));
        assert_eq!(of("Sun Nov  6 08:50:07 1994", date), Some(30_000));
        assert_eq!(of("Sun, 06 Nov 1994 08:00:00 GMT", date), Some(0));
        for nothing in ["", "-1", "nan", "soon"] {
            assert_eq!(of(nothing, date), None, "{nothing:?}");
        }
        // By this machine's clock.
        assert_eq!(of("Sun, 06 Nov 1994 08:50:07 GMT", None), Some(0));
    }
}
