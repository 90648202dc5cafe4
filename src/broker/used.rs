//! Records which grants are used, because only those are refreshed proactively.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use crate::domain::id::Id;

/// The grants whose tokens were issued since they were last recorded. At most [`MOST`] of them: it is a help
/// to the worker that refreshes ahead, and no record.
#[derive(Debug, Default)]
pub(super) struct Used(Mutex<HashSet<Id>>);

const MOST: usize = 100_000;

impl Used {
    pub(super) fn note(&self, grant: Id) {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if used.len() < MOST {
            used.insert(grant);
        }
    }

    /// Returns the grants to record, and forgets them.
    pub(super) fn take(&self) -> Vec<Id> {
        let mut used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        used.drain().collect()
    }
}
