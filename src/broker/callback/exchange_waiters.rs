//! Requests that wait for an exchange which another request began. Anyone with the redirect can reload it, so they are few.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{ALL_EXCHANGE_WAITERS, EXCHANGE_WAITERS};
use crate::domain::id::Id;

/// The waiting requests of each authorization.
#[derive(Debug, Default)]
pub(in crate::broker) struct ExchangeWaiters(Mutex<HashMap<Id, usize>>);

/// One of them. Dropping it ends its wait.
#[derive(Debug)]
pub(super) struct Waiter<'a> {
    waiters: &'a ExchangeWaiters,
    id: Id,
}

impl ExchangeWaiters {
    /// Adds a waiting request. Returns `None` if there are too many already.
    pub(super) fn enter(&self, id: Id) -> Option<Waiter<'_>> {
        let mut waiting = self.lock();
        let count = waiting.get(&id).copied().unwrap_or_default();
        if count >= EXCHANGE_WAITERS || waiting.values().sum::<usize>() >= ALL_EXCHANGE_WAITERS {
            return None;
        }
        waiting.insert(id, count + 1);
        Some(Waiter { waiters: self, id })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Id, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut waiting = self.waiters.lock();
        if let Some(count) = waiting.get_mut(&self.id) {
            *count -= 1;
            if *count == 0 {
                waiting.remove(&self.id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_wait_for_one_authorization_and_not_many_for_all() {
        let waiters = ExchangeWaiters::default();
        let id = |number| Id::from_bytes([number; 16]);
        let of_one: Vec<_> = (0..200).filter_map(|_| waiters.enter(id(0))).collect();
        assert_eq!(of_one.len(), EXCHANGE_WAITERS);
        let of_others: Vec<_> = (1..200).filter_map(|number| waiters.enter(id(number))).collect();
        assert_eq!(of_others.len(), ALL_EXCHANGE_WAITERS - EXCHANGE_WAITERS);
        drop((of_one, of_others));
        assert!(waiters.enter(id(0)).is_some() && waiters.lock().is_empty());
    }
}
