//! Randomness as an input: a small seeded generator for jitter. The driver chooses the seed, so a whole
//! peering can be run again exactly as it was.
use std::time::Duration;

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014). Good for
/// jitter, not for secrets.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator that gives the same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// The next number, 0 to 2^64 - 1.
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// `interval` times a factor from 0.75 to 1.0 (RFC 4271 section 10).
    pub fn jitter(&mut self, interval: Duration) -> Duration {
        // 1024 steps are finer than any timer that drives a session.
        let step = (self.draw() >> 54) as u32;
        interval * 3 / 4 + interval / 4 * step / 1023
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_is_between_three_quarters_and_one() {
        let mut random = Random::new(7);
        let drawn: Vec<_> = (0..10_000).map(|_| random.jitter(Duration::from_secs(4))).collect();
        let (low, high) = (drawn.iter().min().unwrap(), drawn.iter().max().unwrap());
        assert!(*low >= Duration::from_secs(3) && *low < Duration::from_millis(3010), "{low:?}");
        assert!(*high <= Duration::from_secs(4) && *high > Duration::from_millis(3990), "{high:?}");
    }
}
