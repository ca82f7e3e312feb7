//! The routes of one address family: every prefix once, with the paths that peers gave for it (their
//! Adj-RIBs-In together) and the best of them in front (the Loc-RIB), RFC 4271 section 3.2.
//!
//! Prefixes are numbered densely, so that what a peer was told (its Adj-RIB-Out) is a plain vector. A lone path
//! lies in the entry itself: 40 bytes for a prefix. A peer may tell several paths (RFC 7911): a path is known by its
//! source and the identifier that the source gave it; the identifier that we give it, should we pass it on, is
//! another one, and stays as long as the path is there. The index keeps 32 bits of the hash beside each number, so
//! that neither a search nor its growth touches entries of other prefixes: 11 to 21 bytes more.
use super::{index::Index, intern::AttributesId};
use crate::wire::PathId;
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
    /// By which the source knows it.
    pub(crate) id: PathId,
    /// Held in the Adj-RIB-In only: import policy refused it (it may accept it later), or it is a loop.
    pub(crate) refused: bool,
    pub(crate) attributes: AttributesId,
}

impl Path {
    fn is(&self, source: Source, id: PathId) -> bool {
        self.source == source && self.id == id
    }
}

/// What a change of a path did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) prefix: PrefixId,
    /// Its identifier from the source.
    pub(crate) path: PathId,
    /// The path that was there.
    pub(crate) old: Option<Path>,
    /// The path that is there now.
    pub(crate) new: Option<Path>,
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

/// The best path first. There may be one only, if its identifier is not [`FIRST`].
#[derive(Debug)]
struct PathList {
    paths: Vec<Path>,
    /// What we call them when we tell them, in the same order; no two are the same.
    identifiers: Vec<PathId>,
}

/// What we call a lone path.
const FIRST: PathId = PathId(1);

impl PathList {
    fn new(one: Path) -> Self {
        PathList { paths: vec![one], identifiers: vec![FIRST] }
    }

    fn push(&mut self, path: Path) {
        let highest = self.identifiers.iter().max().map_or(0, |id| id.0);
        let next = highest.checked_add(1).map(PathId);
        let unused = || (1..).map(PathId).find(|id| !self.identifiers.contains(id));
        let identifier = next.or_else(unused).unwrap_or(FIRST);
        self.paths.push(path);
        self.identifiers.push(identifier);
    }

    fn remove(&mut self, at: usize) -> Path {
        self.identifiers.remove(at);
        self.paths.remove(at)
    }

    fn prefer(&mut self, at: usize) {
        self.paths.swap(0, at);
        self.identifiers.swap(0, at);
    }
}

impl Paths {
    fn as_slice(&self) -> &[Path] {
        match self {
            Paths::None => &[],
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Many(list) => &list.paths,
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

    /// The path of a source with this identifier.
    pub(crate) fn path(&self, id: PrefixId, source: Source, path: PathId) -> Option<Path> {
        self.paths(id).iter().find(|other| other.is(source, path)).copied()
    }

    /// All paths that may be used, with what we call them.
    pub(crate) fn identified(&self, id: PrefixId) -> impl Iterator<Item = (PathId, Path)> + '_ {
        let paths = &self.entries[id as usize].paths;
        let identifiers = match paths {
            Paths::Many(list) => &list.identifiers,
            _ => std::slice::from_ref(&FIRST),
        };
        let all = identifiers.iter().copied().zip(paths.as_slice().iter().copied());
        all.filter(|(_, path)| !path.refused)
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

    /// Sets a path.
    pub(crate) fn set(&mut self, prefix: IpNet, path: Path, chooser: &impl Chooser) -> Change {
        let id = self.number(prefix);
        let paths = &mut self.entries[id as usize].paths;
        let before = paths.as_slice().first().copied().filter(|path| !path.refused);
        let old = match paths {
            Paths::None => {
                *paths = Paths::One(path);
                None
            }
            Paths::One(one) if one.is(path.source, path.id) => Some(mem::replace(one, path)),
            Paths::One(one) => {
                let mut list = PathList::new(*one);
                list.push(path);
                *paths = Paths::Many(Box::new(list));
                None
            }
            Paths::Many(list) => match list.paths.iter_mut().find(|other| other.is(path.source, path.id)) {
                Some(other) => Some(mem::replace(other, path)),
                None => {
                    list.push(path);
                    None
                }
            },
        };
        let best = self.settle(id, before, chooser);
        Change { prefix: id, path: path.id, old, new: Some(path), best }
    }

    /// Removes a path of a source; none if there is none. An entry without paths stays until
    /// [`release`](Self::release), for peers may still have to hear of its end.
    pub(crate) fn remove(
        &mut self,
        id: PrefixId,
        source: Source,
        path: PathId,
        chooser: &impl Chooser,
    ) -> Option<Change> {
        let paths = &mut self.entries[id as usize].paths;
        let before = paths.as_slice().first().copied().filter(|path| !path.refused);
        let old = match paths {
            Paths::One(one) if one.is(source, path) => {
                let one = *one;
                *paths = Paths::None;
                one
            }
            Paths::Many(list) => {
                let at = list.paths.iter().position(|other| other.is(source, path))?;
                let old = list.remove(at);
                match (&list.paths[..], &list.identifiers[..]) {
                    ([], _) => *paths = Paths::None,
                    (&[one], [FIRST]) => *paths = Paths::One(one),
                    _ => {}
                }
                old
            }
            _ => return None,
        };
        let best = self.settle(id, before, chooser);
        Some(Change { prefix: id, path, old: Some(old), new: None, best })
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

    /// The paths of a source, each with the number of its prefix, by number: in the order in which memory has them.
    pub(crate) fn paths_of(&self, source: Source) -> impl Iterator<Item = (PrefixId, Path)> + '_ {
        // A number that is free has no path.
        let all = (0..)
            .zip(&self.entries)
            .flat_map(|(id, entry)| entry.paths.as_slice().iter().map(move |path| (id, *path)));
        all.filter(move |(_, path)| path.source == source)
    }

    /// The number of a prefix, from now on if it had none.
    pub(crate) fn number(&mut self, prefix: IpNet) -> PrefixId {
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
            match chooser.best(&list.paths) {
                Some(best) => list.prefer(best),
                // Nothing usable: whatever is in front is refused, which is how `best` knows.
                None => debug_assert!(list.paths.iter().all(|path| path.refused)),
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

    type Model = BTreeMap<IpNet, BTreeMap<(u16, u32), (u32, bool)>>;

    proptest! {
        #[test]
        fn is_a_map_of_maps(
            steps in prop::collection::vec((0u8..6, (0u16..4, 0u32..3), 0u32..5, any::<bool>(), 0u8..3), 0..300),
        ) {
            let mut table = Table::new(3);
            let mut model = Model::new();
            // What each path is called as long as it is there.
            let mut names: BTreeMap<(IpNet, (u16, u32)), PathId> = BTreeMap::new();
            for (net, key, attributes, refused, action) in steps {
                let prefix: IpNet = format!("10.{net}.0.0/16").parse().unwrap();
                let (source, path_id) = (Source(key.0), PathId(key.1));
                let path = Path { source, id: path_id, refused, attributes: AttributesId(attributes) };
                let lowest = |model: &Model| {
                    model.get(&prefix).and_then(|paths| {
                        paths.values().filter(|(_, refused)| !refused).map(|(attributes, _)| *attributes).min()
                    })
                };
                if action > 0 {
                    let change = table.set(prefix, path, &Lowest);
                    let old = model.entry(prefix).or_default().insert(key, (attributes, refused));
                    prop_assert_eq!(change.old.map(|old| (old.attributes.0, old.refused)), old);
                } else if let Some(id) = table.find(&prefix) {
                    let before = lowest(&model);
                    let change = table.remove(id, source, path_id, &Lowest);
                    let old = model.get_mut(&prefix).and_then(|paths| paths.remove(&key));
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
                let told = found.map(|id| table.identified(id).collect::<Vec<_>>()).unwrap_or_default();
                let usable = model.get(&prefix).into_iter().flatten().filter(|(_, (_, refused))| !refused);
                prop_assert_eq!(told.len(), usable.count());
                let there = |key: &(u16, u32)| model.get(&prefix).is_some_and(|paths| paths.contains_key(key));
                names.retain(|(other, key), _| *other != prefix || there(key));
                for (name, path) in told {
                    let key = (path.source.0, path.id.0);
                    prop_assert_eq!(*names.entry((prefix, key)).or_insert(name), name);
                }
                let mut all: Vec<_> = names.iter().filter(|((other, _), _)| *other == prefix).map(|(_, name)| name).collect();
                all.sort_unstable();
                prop_assert!(all.windows(2).all(|pair| pair[0] != pair[1]));
                for source in 0..4 {
                    let keys = model.values().flat_map(BTreeMap::keys);
                    prop_assert_eq!(
                        table.paths_of(Source(source)).count(),
                        keys.filter(|key| key.0 == source).count()
                    );
                }
            }
        }
    }
}
