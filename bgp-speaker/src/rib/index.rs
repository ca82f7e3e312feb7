//! Finds numbers by 32 bits of a hash: 8 bytes a slot, in one array, at most three quarters full. What a hash may lead to
//! lies together from its home slot on (linear probing), so that a search costs one miss of the cache; and searches that
//! are known beforehand can [`touch`](Index::touch) their slots, so that the misses overlap.
//!
//! The home is the upper bits of the hash: growth copies one array in order to another. Keyed hashes only, see
//! [`Interner`](super::intern::Interner).

/// No number: the slot is empty.
const NONE: u32 = u32::MAX;
/// Slots of the smallest array, as a power of two.
const MIN_BITS: u32 = 4;

/// The index.
#[derive(Debug)]
pub(super) struct Index {
    /// A power of two of them, 16 at least.
    slots: Vec<Slot>,
    used: usize,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u32,
    id: u32,
}

impl Index {
    pub(super) fn new() -> Self {
        Index { slots: empty(MIN_BITS), used: 0 }
    }

    /// The number with this hash for which `same` holds.
    pub(super) fn find(&self, hash: u32, same: impl FnMut(u32) -> bool) -> Option<u32> {
        self.position(hash, same).map(|at| self.slots[at].id)
    }

    /// The number that a search for the hash looks at first, or `u32::MAX`: reads one slot and decides nothing.
    pub(super) fn touch(&self, hash: u32) -> u32 {
        self.slots[self.home(hash)].id
    }

    /// Adds a number that is not there; not `u32::MAX`.
    pub(super) fn insert(&mut self, hash: u32, id: u32) {
        debug_assert_ne!(id, NONE);
        if (self.used + 1) * 4 > self.slots.len() * 3 {
            let larger = empty(self.slots.len().ilog2() + 1);
            for slot in std::mem::replace(&mut self.slots, larger) {
                if slot.id != NONE {
                    self.put(slot);
                }
            }
        }
        self.put(Slot { hash, id });
        self.used += 1;
    }

    /// Removes a number; whether it was there.
    pub(super) fn remove(&mut self, hash: u32, id: u32) -> bool {
        let Some(mut hole) = self.position(hash, |other| other == id) else { return false };
        // What was pushed over the hole moves back into it: a search ends at an empty slot.
        let (mut at, mask) = (hole, self.slots.len() - 1);
        loop {
            at = (at + 1) & mask;
            let slot = self.slots[at];
            if slot.id == NONE {
                break;
            }
            let distance = |from: usize| at.wrapping_sub(from) & mask;
            if distance(self.home(slot.hash)) >= distance(hole) {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole].id = NONE;
        self.used -= 1;
        true
    }

    /// All numbers, in no order.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.slots.iter().map(|slot| slot.id).filter(|id| *id != NONE)
    }

    fn position(&self, hash: u32, mut same: impl FnMut(u32) -> bool) -> Option<usize> {
        let (mut at, mask) = (self.home(hash), self.slots.len() - 1);
        // There are empty slots always.
        loop {
            let slot = self.slots[at];
            match slot.id {
                NONE => return None,
                id if slot.hash == hash && same(id) => return Some(at),
                _ => at = (at + 1) & mask,
            }
        }
    }

    fn put(&mut self, slot: Slot) {
        let (mut at, mask) = (self.home(slot.hash), self.slots.len() - 1);
        while self.slots[at].id != NONE {
            at = (at + 1) & mask;
        }
        self.slots[at] = slot;
    }

    fn home(&self, hash: u32) -> usize {
        ((u64::from(hash) * self.slots.len() as u64) >> u32::BITS) as usize
    }
}

fn empty(bits: u32) -> Vec<Slot> {
    vec![Slot { hash: 0, id: NONE }; 1 << bits]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn is_a_map(steps in prop::collection::vec((0u32..80, 0u32..6, any::<bool>()), 0..600)) {
            let mut index = Index::new();
            let mut model = BTreeMap::new();
            for (id, home, adds) in steps {
                // Few homes, the last ones too: runs are long and go over the end.
                let hash = (home.wrapping_sub(3) << 29) | (id % 3);
                match (model.get(&id).copied(), adds) {
                    (None, true) => {
                        index.insert(hash, id);
                        model.insert(id, hash);
                    }
                    (Some(hash), false) => {
                        prop_assert!(index.remove(hash, id));
                        model.remove(&id);
                    }
                    (None, false) => prop_assert!(!index.remove(hash, id)),
                    (Some(_), true) => {}
                }
                for (id, hash) in &model {
                    prop_assert_eq!(index.find(*hash, |other| other == *id), Some(*id));
                }
                prop_assert_eq!(index.find(hash, |_| false), None);
                prop_assert_eq!(index.used, model.len());
            }
            let mut ids: Vec<u32> = index.ids().collect();
            ids.sort_unstable();
            prop_assert!(ids.iter().eq(model.keys()));
        }
    }
}
