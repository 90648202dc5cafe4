//! The source of randomness, handed in so that a test can repeat a run.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::{StdRng, SysRng};
use rand::{Rng, SeedableRng, TryRng};

use crate::domain::id::Id;

/// Random bytes for ids, salts, nonces, keys and jitter.
#[derive(Clone)]
pub struct Random(Source);

#[derive(Clone)]
enum Source {
    System,
    Seeded(Arc<Mutex<StdRng>>),
}

impl Random {
    /// The operating system's source.
    #[must_use]
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A repeatable source, for tests.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self(Source::Seeded(Arc::new(Mutex::new(StdRng::seed_from_u64(seed)))))
    }

    /// Fills `bytes`.
    ///
    /// # Panics
    ///
    /// Panics if the operating system has no randomness: predictable secrets are worse than an end.
    pub fn fill(&self, bytes: &mut [u8]) {
        match &self.0 {
            Source::System => {
                SysRng.try_fill_bytes(bytes).expect("the operating system gives random bytes");
            }
            Source::Seeded(rng) => {
                rng.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
            }
        }
    }

    /// `N` random bytes.
    #[must_use]
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.fill(&mut bytes);
        bytes
    }

    /// A new row id.
    #[must_use]
    pub fn id(&self) -> Id {
        Id::from_bytes(self.bytes())
    }

    /// A duration between zero and `most`: full jitter, so that waiters do not move in step.
    #[must_use]
    pub fn jitter(&self, most: Duration) -> Duration {
        most.mul_f64(self.share())
    }

    /// A number from 0 to 1.
    #[must_use]
    pub fn share(&self) -> f64 {
        f64::from(u32::from_le_bytes(self.bytes())) / f64::from(u32::MAX)
    }
}

impl fmt::Debug for Random {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Random")
    }
}
