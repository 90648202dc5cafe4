//! How much the tests that break things do: CI a tenth of what `scripts/soak` does. What they draw at
//! random comes of one seed.

/// Returns `true` if all is to be done, and not the tenth that CI does.
pub fn is_full() -> bool {
    std::env::var("TOKEN_BROKER_SOAK").is_ok_and(|value| value == "full")
}

/// How much of something is done.
pub fn size(ci: usize, full: usize) -> usize {
    if is_full() { full } else { ci }
}

/// What everything that is drawn at random comes of.
pub fn seed() -> u64 {
    let set = std::env::var("TOKEN_BROKER_SOAK_SEED").ok();
    set.map_or(4, |text| text.parse().expect("TOKEN_BROKER_SOAK_SEED is a number"))
}

/// Tells the figures of a test, where somebody has asked for them.
#[expect(clippy::print_stdout, reason = "scripts/soak reports what the tests have seen")]
pub fn report(test: &str, figures: &str) {
    if is_full() {
        println!("soak: {test}: {figures} (seed {})", seed());
    }
}
