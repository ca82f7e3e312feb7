//! The allocators of the datapath: ranges in the slot array, and indexes of backends. Nothing is written down
//! anywhere: after a restart both are made again from what the maps hold.
use std::collections::{BTreeMap, BTreeSet};

/// Free ranges of an array: first fit, and neighbours grow together again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranges {
    /// Start → length. No two touch, none is empty.
    free: BTreeMap<u32, u32>,
}

impl Ranges {
    /// All of `0..length` is free.
    pub fn new(length: u32) -> Self {
        let mut ranges = Ranges { free: BTreeMap::new() };
        if length > 0 {
            ranges.free.insert(0, length);
        }
        ranges
    }

    /// Takes the first range of `size` entries that is free and returns its start.
    pub fn take(&mut self, size: u32) -> Option<u32> {
        let (&start, &length) = self.free.iter().find(|&(_, &length)| length >= size && size > 0)?;
        self.free.remove(&start);
        if length > size {
            self.free.insert(start + size, length - size);
        }
        Some(start)
    }

    /// Takes exactly `start..start + size`. False, and nothing taken, when not all of it is free.
    pub fn claim(&mut self, start: u32, size: u32) -> bool {
        let Some((&at, &length)) = self.free.range(..=start).next_back() else { return false };
        let (Some(end), free_end) = (start.checked_add(size), at + length) else { return false };
        if end > free_end {
            return false;
        }
        self.free.remove(&at);
        if at < start {
            self.free.insert(at, start - at);
        }
        if end < free_end {
            self.free.insert(end, free_end - end);
        }
        true
    }

    /// Gives back what was taken.
    pub fn give(&mut self, start: u32, size: u32) {
        let mut range = (start, size);
        if let Some((&at, &length)) = self.free.range(..start).next_back()
            && at + length == start
        {
            self.free.remove(&at);
            range = (at, length + size);
        }
        if let Some(length) = self.free.remove(&(start + size)) {
            range.1 += length;
        }
        self.free.insert(range.0, range.1);
    }

    /// Length of the longest range that is free.
    pub fn longest(&self) -> u32 {
        self.free.values().max().copied().unwrap_or(0)
    }

    /// How many entries are free in all.
    pub fn available(&self) -> u32 {
        self.free.values().sum()
    }
}

/// Indexes from 1 up; the lowest free one is given out, so that those in use stay close together. Index 0 is
/// never given out: it means "none" everywhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Indexes {
    /// Everything from here to `end` is free.
    fresh: u32,
    /// Free ones below `fresh`.
    returned: BTreeSet<u32>,
    end: u32,
}

impl Indexes {
    /// Those below `end` but 0, without the ones in `used`.
    pub fn new(end: u32, used: impl IntoIterator<Item = u32>) -> Self {
        let used: BTreeSet<u32> = used.into_iter().collect();
        let fresh = used.last().map_or(1, |last| last + 1);
        Indexes { fresh, returned: (1..fresh).filter(|index| !used.contains(index)).collect(), end }
    }

    /// The lowest free index.
    pub fn take(&mut self) -> Option<u32> {
        if let Some(index) = self.returned.pop_first() {
            return Some(index);
        }
        (self.fresh < self.end).then(|| {
            self.fresh += 1;
            self.fresh - 1
        })
    }

    /// Gives back what was taken.
    pub fn give(&mut self, index: u32) {
        self.returned.insert(index);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LENGTH: u32 = 200;

    proptest! {
        #[test]
        fn ranges_agree_with_a_bitmap(steps in prop::collection::vec((any::<bool>(), 1_u32..50, any::<prop::sample::Index>()), 1..100)) {
            let mut ranges = Ranges::new(LENGTH);
            let mut bitmap = [false; LENGTH as usize];
            let mut taken: Vec<(u32, u32)> = Vec::new();
            for (give, size, which) in steps {
                if give && !taken.is_empty() {
                    let (start, size) = taken.swap_remove(which.index(taken.len()));
                    ranges.give(start, size);
                    bitmap[start as usize..(start + size) as usize].fill(false);
                } else {
                    let first_fit = (0..=LENGTH - size).find(|&s| bitmap[s as usize..(s + size) as usize].iter().all(|b| !b));
                    let got = ranges.take(size);
                    prop_assert_eq!(got, first_fit);
                    if let Some(start) = got {
                        bitmap[start as usize..(start + size) as usize].fill(true);
                        taken.push((start, size));
                    }
                }
                // Made again from what is in use, the allocator is the same.
                let mut again = Ranges::new(LENGTH);
                for &(start, size) in &taken {
                    prop_assert!(again.claim(start, size));
                    prop_assert!(!again.clone().claim(start, size));
                }
                prop_assert_eq!(&again, &ranges);
                prop_assert_eq!(ranges.available() as usize, bitmap.iter().filter(|b| !**b).count());
                let longest = bitmap.split(|taken| *taken).map(<[bool]>::len).max().unwrap_or(0);
                prop_assert_eq!(ranges.longest() as usize, longest);
            }
        }

        #[test]
        fn indexes_are_the_lowest_free(steps in prop::collection::vec((any::<bool>(), any::<prop::sample::Index>()), 1..100)) {
            let mut indexes = Indexes::new(20, []);
            let mut used = BTreeSet::new();
            for (give, which) in steps {
                if give && !used.is_empty() {
                    let index = *used.iter().nth(which.index(used.len())).unwrap();
                    used.remove(&index);
                    indexes.give(index);
                } else {
                    let lowest = (1..20).find(|index| !used.contains(index));
                    prop_assert_eq!(indexes.take(), lowest);
                    used.extend(lowest);
                }
                let mut again = Indexes::new(20, used.iter().copied());
                prop_assert_eq!(again.take(), (1..20).find(|index| !used.contains(index)));
            }
        }
    }

    #[test]
    fn claims_outside_the_array_are_refused() {
        let mut ranges = Ranges::new(10);
        assert!(!ranges.claim(5, 6));
        assert!(!ranges.claim(u32::MAX, 2));
        assert!(ranges.claim(5, 5));
        assert_eq!(ranges.take(5), Some(0));
        assert_eq!(ranges.take(1), None);
    }
}
