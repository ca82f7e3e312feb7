//! Values of which many are equal, kept once. Of thousands of services most say the same; each with its own strings would take most
//! of what is kept of them. Pure.
use std::{
    collections::HashSet,
    hash::Hash,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// Values that somebody has. Equal ones are the same.
#[derive(Debug)]
pub(crate) struct Shared<T>(LazyLock<Mutex<HashSet<Arc<T>>>>);

impl<T: Eq + Hash> Shared<T> {
    /// None yet.
    pub(crate) const fn new() -> Self {
        Shared(LazyLock::new(Mutex::default))
    }

    /// The one that is equal to this. It goes some time after nobody has it any more.
    pub(crate) fn one(&self, value: T) -> Arc<T> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = all.get(&value) {
            return Arc::clone(known);
        }
        // Before more room is made.
        if all.len() == all.capacity() {
            all.retain(|known| Arc::strong_count(known) > 1);
        }
        let value = Arc::new(value);
        all.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_equal_is_there_once_for_as_long_as_somebody_has_it() {
        let shared = Shared::new();
        let one = shared.one(0);
        assert!(Arc::ptr_eq(&one, &shared.one(0)));
        (1..10_000).for_each(|number| drop(shared.one(number)));
        assert!(shared.0.lock().unwrap().len() < 100);
        assert!(Arc::ptr_eq(&one, &shared.one(0)));
    }
}
