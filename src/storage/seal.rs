//! Sealing and opening of columns.

use std::sync::atomic::{AtomicU64, Ordering};

use secrecy::{ExposeSecret, SecretSlice, SecretString};
use zeroize::Zeroizing;

use super::{Storage, StorageError, StoreContext};
use crate::crypto::keyring::OpenError;
use crate::crypto::sealed::Place;
use crate::domain::token::RawAnswer;

impl StoreContext {
    pub(super) fn seal(&self, place: Place<'_>, value: &SecretString) -> Vec<u8> {
        self.keyring.seal(value.expose_secret().as_bytes(), &place.aad(), &self.random)
    }

    pub(super) fn open(
        &self,
        place: Place<'_>,
        sealed: &[u8],
    ) -> Result<SecretString, StorageError> {
        let bytes = self.open_bytes(place, sealed)?;
        String::from_utf8(bytes)
            .map(SecretString::from)
            .map_err(|_| StorageError::damaged(place.table, "a token is not UTF-8"))
    }

    /// `content type | 0 | body`: a content type is a header value and has no zero byte.
    pub(super) fn seal_answer(&self, place: Place<'_>, answer: &RawAnswer) -> Vec<u8> {
        let body = answer.body.expose_secret();
        let mut plain =
            Zeroizing::new(Vec::with_capacity(answer.content_type.len() + 1 + body.len()));
        plain.extend(answer.content_type.as_bytes());
        plain.push(0);
        plain.extend(body);
        self.keyring.seal(&plain, &place.aad(), &self.random)
    }

    pub(super) fn open_answer(
        &self,
        place: Place<'_>,
        sealed: &[u8],
    ) -> Result<RawAnswer, StorageError> {
        let plain = Zeroizing::new(self.open_bytes(place, sealed)?);
        let damaged = || StorageError::damaged(place.table, "a token answer is not of its form");
        let split = plain.iter().position(|byte| *byte == 0).ok_or_else(damaged)?;
        let content_type = std::str::from_utf8(&plain[..split]).map_err(|_| damaged())?.to_owned();
        Ok(RawAnswer { content_type, body: SecretSlice::from(plain[split + 1..].to_vec()) })
    }

    fn open_bytes(&self, place: Place<'_>, sealed: &[u8]) -> Result<Vec<u8>, StorageError> {
        self.keyring.open(sealed, &place.aad()).map_err(|error| {
            self.unreadable.count(&error);
            StorageError::open(place.table, error)
        })
    }
}

/// The number of sealed values that could not be opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnreadableCounts {
    /// Its key is not in this keyring.
    pub unknown_key: u64,
    /// It was altered, or sealed by another key under the same id.
    pub altered: u64,
}

#[derive(Debug, Default)]
pub(super) struct Unreadable {
    unknown_key: AtomicU64,
    altered: AtomicU64,
}

impl Unreadable {
    fn count(&self, error: &OpenError) {
        let counter = match error {
            OpenError::UnknownKey(_) => &self.unknown_key,
            OpenError::Forged => &self.altered,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Storage {
    /// The number of sealed values that could not be opened since the start.
    #[must_use]
    pub fn unreadable_counts(&self) -> UnreadableCounts {
        UnreadableCounts {
            unknown_key: self.unreadable.unknown_key.load(Ordering::Relaxed),
            altered: self.unreadable.altered.load(Ordering::Relaxed),
        }
    }
}
