//! Time that a stopped process notices.

use std::time::Duration;

/// Time since the machine started, sleep included: a process that was stopped, or a machine that
/// slept, must notice that its lease has ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uptime(Duration);

impl Uptime {
    pub(super) fn now() -> Self {
        #[cfg(target_os = "linux")]
        let clock = rustix::time::ClockId::Boottime;
        #[cfg(not(target_os = "linux"))]
        let clock = rustix::time::ClockId::Monotonic;
        let now = rustix::time::clock_gettime(clock);
        let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
        let nanos = u32::try_from(now.tv_nsec).unwrap_or(0);
        Self(Duration::new(seconds, nanos))
    }

    pub(super) fn elapsed(self) -> Duration {
        Self::now().0.saturating_sub(self.0)
    }
}
