//! What fails again and again: it is tried later and later, not by all at the same moment, and said once.
use std::{
    fmt::Display,
    hash::{BuildHasher, RandomState},
    time::Duration,
};

/// Something that fails, or does not. To begin with it does not.
#[derive(Debug, Default)]
pub(crate) struct Trouble {
    /// Failures in a row.
    failures: u32,
}

impl Trouble {
    /// It has failed: how long to wait before the next try. `first` after the first failure, then twice as long each time, up
    /// to `longest`.
    pub(crate) fn again(&mut self, first: Duration, longest: Duration) -> Duration {
        let doubled = first.saturating_mul(1 << self.failures.min(16));
        self.failures = self.failures.saturating_add(1);
        doubled.min(longest)
    }

    /// Says so, to be called after [`again`](Self::again): aloud the first time.
    pub(crate) fn say(&self, what: &str, error: &impl Display) {
        match self.failures {
            0 | 1 => tracing::warn!(%error, "{what}"),
            failures => tracing::debug!(%error, failures, "{what}"),
        }
    }

    /// It has not failed; if it had before, that is said.
    pub(crate) fn over(&mut self, what: &str) {
        if self.failures > 0 {
            tracing::info!(failures = self.failures, "{what}");
        }
        self.failures = 0;
    }
}

/// A time between four and six fifths of this one, by chance.
pub(crate) fn jittered(time: Duration) -> Duration {
    // A RandomState is another one each time.
    let chance = RandomState::new().hash_one(0) % 401;
    time.mul_f64(0.8 + chance as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tries_come_later_and_later() {
        let mut trouble = Trouble::default();
        let mut again = || trouble.again(Duration::from_secs(1), Duration::from_secs(20)).as_secs();
        assert_eq!([again(), again(), again(), again(), again(), again()], [1, 2, 4, 8, 16, 20]);
        (0..1000).for_each(|_| assert_eq!(again(), 20));
        trouble.over("");
        assert_eq!(trouble.again(Duration::from_secs(1), Duration::from_secs(20)), Duration::from_secs(1));
    }

    #[test]
    fn not_all_come_at_once() {
        let times: std::collections::BTreeSet<_> =
            (0..100).map(|_| jittered(Duration::from_secs(5))).collect();
        assert!(times.len() > 10);
        assert!(times.iter().all(|t| (Duration::from_secs(4)..=Duration::from_secs(6)).contains(t)));
    }
}
