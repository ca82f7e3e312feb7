//! The routes of one address family: every prefix once, with the paths that peers gave for it (their
//! Adj-RIBs-In together) and the best of them in front (the Loc-RIB), RFC 4271 section 3.2.
//!
//! Prefixes are numbered densely, so that what a peer was told (its Adj-RIB-Out) is a plain vector. A lone path
//! lies in the entry itself: 40 bytes for a prefix. The index keeps 32 bits of the hash beside each number, so
//! that neither a search nor its growth touches entries of other prefixes: 11 to 21 bytes more.
use super::{index::Index, intern::AttributesId};
use ipnet::IpNet;
use std::{hint::black_box, mem};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Number of a prefix in its table.
pub(crate) type PrefixId = u32;

/// Who gave a path: a neighbour by its slot in the speaker, or the speaker itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Source(pub(crate) u16);

impl Source {
    /// Routes of our own.
    pub(crate) const LOCAL: Source = Source(u16::MAX);
}

/// One way to reach a prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) source: Source,
    /// Held in the Adj-RIB-In only: import policy refused it (it may accept it later), or it is a loop.
    pub(crate) refused: bool,
    pub(crate) attributes: AttributesId,
}

/// What a change of a path did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) prefix: PrefixId,
    /// The path that was there from this source.
    pub(crate) old: Option<Path>,
    /// Whether the best path is another one now, or has other attributes.
    pub(crate) best: bool,
}

/// The table.
#[derive(Debug)]
pub(crate) struct Table {
    entries: Vec<Entry>,
    free: Vec<PrefixId>,
    index: Index,
    /// Keyed hashing, see [`Interner`](super::intern::Interner).
    seed: u64,
}

#[derive(Debug)]
struct Entry {
    prefix: IpNet,
    paths: Paths,
}

#[derive(Debug, Default)]
enum Paths {
    #[default]
    None,
    One(Path),
    Many(Box<PathList>),
}

/// Two paths or more, the best one first.
#[derive(Debug)]
struct PathList(Vec<Path>);

impl Paths {
    fn as_slice(&self) -> &[Path] {
        match self {
            Paths::None => &[],
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Many(list) => &list.0,
        }
    }
}

/// Says which of several paths is the best; none if no path may be used.
pub(crate) trait Chooser {
    /// Index of the best path.
    fn best(&self, paths: &[Path]) -> Option<usize>;
}

impl Table {
    pub(crate) fn new(seed: u64) -> Self {
        Table { entries: Vec::new(), free: Vec::new(), index: Index::new(), seed }
    }

    /// One more than the highest number in use.
    pub(crate) fn bound(&self) -> PrefixId {
        self.entries.len() as PrefixId
    }

    pub(crate) fn prefix(&self, id: PrefixId) -> IpNet {
        self.entries[id as usize].prefix
    }

    /// All paths, the best first (if any may be used).
    pub(crate) fn paths(&self, id: PrefixId) -> &[Path] {
        self.entries[id as usize].paths.as_slice()
    }

    /// The path in use: the Loc-RIB's route.
    pub(crate) fn best(&self, id: PrefixId) -> Option<Path> {
        self.paths(id).first().copied().filter(|path| !path.refused)
    }

    pub(crate) fn find(&self, prefix: &IpNet) -> Option<PrefixId> {
        let same = |id: PrefixId| self.entries[id as usize].prefix == *prefix;
        self.index.find(hash(self.seed, prefix), same)
    }

    /// Brings what searches for the prefixes will read into the cache. One thing at a time, so that the processor, which
    /// looks some hundred instructions ahead, waits for many misses together.
    pub(crate) fn touch<'a>(&self, prefixes: impl IntoIterator<Item = &'a IpNet>) {
        if self.entries.is_empty() {
            return;
        }
        let hashes: Vec<u32> = prefixes.into_iter().map(|prefix| hash(self.seed, prefix)).collect();
        let ids: Vec<PrefixId> = hashes.iter().map(|hash| self.index.touch(*hash)).collect();
        let entries = ids.iter().filter_map(|id| self.entries.get(*id as usize));
        black_box(entries.fold(0, |sum: u8, entry| sum ^ entry.prefix.prefix_len()));
    }

    /// Sets the path of a source.
    pub(crate) fn set(&mut self, prefix: IpNet, path: Path, chooser: &impl Chooser) -> Change {
        let id = self.number(prefix);
        let paths = &mut self.entries[id as usize].paths;
        let before = paths.as_slice().first().copied().filter(|path| !path.refused);
        let old = match paths {
            Paths::None => {
                *paths = Paths::One(path);
                None
            }
            Paths::One(one) if one.source == path.source => Some(mem::replace(one, path)),
            Paths::One(one) => {
                *paths = Paths::Many(Box::new(PathList(vec![*one, path])));
                None
            }
            Paths::Many(list) => match list.0.iter_mut().find(|other| other.source == path.source) {
                Some(other) => Some(mem::replace(other, path)),
                None => {
                    list.0.push(path);
                    None
                }
            },
        };
        let best = self.settle(id, before, chooser);
        Change { prefix: id, old, best }
    }

    /// Removes the path of a source; none if it had none. An entry without paths stays until
    /// [`release`](Self::release), for peers may still have to hear of its end.
    pub(crate) fn remove(&mut self, id: PrefixId, source: Source, chooser: &impl Chooser) -> Option<Change> {
        let paths = &mut self.entries[id as usize].paths;
        let before = paths.as_slice().first().copied().filter(|path| !path.refused);
        let old = match paths {
            Paths::One(one) if one.source == source => {
                let one = *one;
                *paths = Paths::None;
                one
            }
            Paths::Many(list) => {
                let at = list.0.iter().position(|path| path.source == source)?;
                let old = list.0.remove(at);
                if let [one] = list.0[..] {
                    *paths = Paths::One(one);
                }
                old
            }
            _ => return None,
        };
        let best = self.settle(id, before, chooser);
        Some(Change { prefix: id, old: Some(old), best })
    }

    /// Forgets a prefix that has no path.
    pub(crate) fn release(&mut self, id: PrefixId) {
        debug_assert!(self.paths(id).is_empty());
        let hash = hash(self.seed, &self.entries[id as usize].prefix);
        // A number that is free already is not in the index.
        if self.index.remove(hash, id) {
            self.free.push(id);
        }
    }

    /// Numbers of all prefixes, in no order.
    pub(crate) fn ids(&self) -> impl Iterator<Item = PrefixId> + '_ {
        self.index.ids()
    }

    /// Numbers of the prefixes that a source has a path for, in order: each entry is next to the one before.
    pub(crate) fn ids_of(&self, source: Source) -> impl Iterator<Item = PrefixId> + '_ {
        let of = move |entry: &Entry| entry.paths.as_slice().iter().any(|path| path.source == source);
        (0..).zip(&self.entries).filter(move |(_, entry)| of(entry)).map(|(id, _)| id)
    }

    fn number(&mut self, prefix: IpNet) -> PrefixId {
        if let Some(id) = self.find(&prefix) {
            return id;
        }
        let (entries, hash) = (&mut self.entries, hash(self.seed, &prefix));
        let entry = Entry { prefix, paths: Paths::None };
        let id = match self.free.pop() {
            Some(id) => {
                entries[id as usize] = entry;
                id
            }
            None => {
                entries.push(entry);
                (entries.len() - 1) as PrefixId
            }
        };
        self.index.insert(hash, id);
        id
    }

    /// Brings the best path to the front and says whether it differs from `before`.
    fn settle(&mut self, id: PrefixId, before: Option<Path>, chooser: &impl Chooser) -> bool {
        if let Paths::Many(list) = &mut self.entries[id as usize].paths {
            match chooser.best(&list.0) {
                Some(best) => list.0.swap(0, best),
                // Nothing usable: whatever is in front is refused, which is how `best` knows.
                None => debug_assert!(list.0.iter().all(|path| path.refused)),
            }
        }
        self.best(id) != before
    }
}

fn hash(seed: u64, prefix: &IpNet) -> u32 {
    let mut bytes = [0; 17];
    let hash = match prefix {
        IpNet::V4(net) => {
            bytes[..4].copy_from_slice(&net.addr().octets());
            bytes[4] = net.prefix_len();
            xxh3_64_with_seed(&bytes[..5], seed)
        }
        IpNet::V6(net) => {
            bytes[..16].copy_from_slice(&net.addr().octets());
            bytes[16] = net.prefix_len();
            xxh3_64_with_seed(&bytes, seed)
        }
    };
    hash as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    /// The lowest attribute number wins.
    struct Lowest;

    impl Chooser for Lowest {
        fn best(&self, paths: &[Path]) -> Option<usize> {
            (0..paths.len()).filter(|&at| !paths[at].refused).min_by_key(|&at| paths[at].attributes)
        }
    }

    #[test]
    fn an_entry_is_forty_bytes() {
        assert_eq!(size_of::<Entry>(), 40);
    }

    proptest! {
        #[test]
        fn is_a_map_of_maps(steps in prop::collection::vec((0u8..6, 0u16..4, 0u32..5, any::<bool>(), 0u8..3), 0..300)) {
            let mut table = Table::new(3);
            let mut model: BTreeMap<IpNet, BTreeMap<u16, (u32, bool)>> = BTreeMap::new();
            for (net, source, attributes, refused, action) in steps {
                let prefix: IpNet = format!("10.{net}.0.0/16").parse().unwrap();
                let path = Path { source: Source(source), refused, attributes: AttributesId(attributes) };
                let lowest = |model: &BTreeMap<IpNet, BTreeMap<u16, (u32, bool)>>| {
                    model.get(&prefix).and_then(|paths| {
                        paths.values().filter(|(_, refused)| !refused).map(|(attributes, _)| *attributes).min()
                    })
                };
                if action > 0 {
                    let change = table.set(prefix, path, &Lowest);
                    let old = model.entry(prefix).or_default().insert(source, (attributes, refused));
                    prop_assert_eq!(change.old.map(|old| (old.attributes.0, old.refused)), old);
                } else if let Some(id) = table.find(&prefix) {
                    let before = lowest(&model);
                    let change = table.remove(id, Source(source), &Lowest);
                    let old = model.get_mut(&prefix).and_then(|paths| paths.remove(&source));
                    prop_assert_eq!(change.and_then(|change| change.old).map(|old| old.attributes.0), old.map(|old| old.0));
                    if let Some(change) = change && lowest(&model) != before {
                        prop_assert!(change.best);
                    }
                    if table.paths(id).is_empty() {
                        table.release(id);
                        model.remove(&prefix);
                    }
                }
                let found = table.find(&prefix);
                prop_assert_eq!(found.is_some(), model.contains_key(&prefix));
                prop_assert_eq!(
                    found.and_then(|id| table.best(id)).map(|path| path.attributes.0),
                    lowest(&model)
                );
                prop_assert_eq!(table.ids().count(), model.len());
            }
        }
    }
}
