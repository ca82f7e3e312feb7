//! What tasks know together.
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks it, also after a panic of one that held it.
pub(crate) fn lock<T>(known: &Mutex<T>) -> MutexGuard<'_, T> {
    known.lock().unwrap_or_else(PoisonError::into_inner)
}
