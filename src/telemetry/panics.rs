//! Panics in the log.

use std::panic::PanicHookInfo;

/// Logs panics of this process as events from now on, instead of printing them.
pub fn log_panics() {
    std::panic::set_hook(Box::new(log));
}

/// The message is logged only if it is a constant. One that was put together at run time can hold anything, such as
/// the text that was being cut.
fn log(panic: &PanicHookInfo<'_>) {
    let location = panic.location().map(ToString::to_string).unwrap_or_default();
    let message = panic.payload().downcast_ref::<&'static str>();
    let message = message.copied().unwrap_or("not logged, because it may hold data");
    tracing::error!(location, panic.message = message, "a task panicked; please report this bug");
}

#[cfg(test)]
mod tests {
    use super::super::log::tests::logged;
    use super::log_panics;

    #[test]
    fn a_panic_is_one_line_without_data() {
        let lines = logged("info", || {
            let before = std::panic::take_hook();
            log_panics();
            let cut = std::panic::catch_unwind(|| {
                let token = String::from("ya29.token-\u{e9}");
                token[..12].len()
            });
            let constant = std::panic::catch_unwind(|| panic!("a constant"));
            std::panic::set_hook(before);
            assert!(cut.is_err() && constant.is_err());
        });
        let [cut, constant] = &lines[..] else { panic!("{lines:?}") };
        assert!(cut.starts_with(
            "ERROR a task panicked; please report this bug location=src/telemetry/panics.rs:"
        ));
        assert!(cut.ends_with(" panic.message=\"not logged, because it may hold data\""), "{cut}");
        assert!(constant.ends_with(" panic.message=\"a constant\""), "{constant}");
    }
}
