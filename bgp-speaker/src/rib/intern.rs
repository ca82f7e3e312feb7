//! Keeps one copy of each distinct value and names it by a small number, so that a path costs 8 bytes however
//! long its attributes are. Counted: a value lives as long as somebody holds its number.
use hashbrown::HashTable;
use std::hash::{Hash, Hasher};
use xxhash_rust::xxh3::Xxh3;

/// Names an interned attribute set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct AttributesId(pub(crate) u32);

impl AttributesId {
    /// Stands for "no attributes" in dense tables.
    pub(crate) const NONE: AttributesId = AttributesId(u32::MAX);
}

/// The set of values.
#[derive(Debug)]
pub(crate) struct Interner<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    index: HashTable<u32>,
    /// Keyed hashing: a peer chooses the values, and must not be able to choose where they collide.
    seed: u64,
}

#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    hash: u64,
    holders: u32,
}

impl<T: Hash + Eq> Interner<T> {
    /// An empty set; `seed` keys the hash.
    pub(crate) fn new(seed: u64) -> Self {
        Interner { slots: Vec::new(), free: Vec::new(), index: HashTable::new(), seed }
    }

    /// The number of `value`, which the caller now holds once more.
    pub(crate) fn intern(&mut self, value: T) -> AttributesId {
        let mut hasher = Xxh3::with_seed(self.seed);
        value.hash(&mut hasher);
        let hash = hasher.finish();
        let slots = &mut self.slots;
        if let Some(&found) =
            self.index.find(hash, |&slot| slots[slot as usize].value.as_ref() == Some(&value))
        {
            slots[found as usize].holders += 1;
            return AttributesId(found);
        }
        let slot = Slot { value: Some(value), hash, holders: 1 };
        let id = match self.free.pop() {
            Some(id) => {
                slots[id as usize] = slot;
                id
            }
            None => {
                slots.push(slot);
                (slots.len() - 1) as u32
            }
        };
        self.index.insert_unique(hash, id, |&slot| slots[slot as usize].hash);
        AttributesId(id)
    }

    /// The value of a number that somebody holds.
    pub(crate) fn get(&self, id: AttributesId) -> &T {
        self.slots[id.0 as usize].value.as_ref().expect("a held number has a value")
    }

    /// One holder more.
    pub(crate) fn retain(&mut self, id: AttributesId) {
        self.slots[id.0 as usize].holders += 1;
    }

    /// One holder fewer; the last one frees the value.
    pub(crate) fn release(&mut self, id: AttributesId) {
        let slot = &mut self.slots[id.0 as usize];
        slot.holders -= 1;
        if slot.holders == 0 {
            slot.value = None;
            let hash = slot.hash;
            if let Ok(entry) = self.index.find_entry(hash, |&other| other == id.0) {
                entry.remove();
            }
            self.free.push(id.0);
        }
    }
}

#[cfg(test)]
impl<T> Interner<T> {
    /// How many hold each value.
    pub(crate) fn holders(&self) -> std::collections::BTreeMap<AttributesId, u32> {
        (0..)
            .map(AttributesId)
            .zip(&self.slots)
            .filter(|(_, s)| s.holders > 0)
            .map(|(id, s)| (id, s.holders))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    proptest! {
        #[test]
        fn counts_like_a_multiset(steps in prop::collection::vec((0u8..12, any::<bool>()), 0..200)) {
            let mut interner = Interner::new(1);
            let mut held: BTreeMap<u8, Vec<AttributesId>> = BTreeMap::new();
            for (value, take) in steps {
                if take {
                    let id = interner.intern(value);
                    held.entry(value).or_default().push(id);
                } else if let Some(id) = held.get_mut(&value).and_then(Vec::pop) {
                    interner.release(id);
                }
                held.retain(|_, ids| !ids.is_empty());
                prop_assert_eq!(interner.index.len(), held.len());
                for (value, ids) in &held {
                    prop_assert!(ids.iter().all(|id| id == &ids[0]));
                    prop_assert_eq!(interner.get(ids[0]), value);
                }
            }
        }
    }
}
