//! What a peer was told of the prefixes of a family: one path of each, in a plain vector (4 bytes for a prefix), or
//! several (RFC 7911), in a map.
use crate::{
    rib::{AttributesId, PathKey, PrefixId},
    wire::PathId,
};
use std::collections::BTreeMap;

/// Attributes by prefix and path. [`AttributesId::NONE`] is never told.
#[derive(Debug)]
pub(crate) enum Sent {
    /// The best path, which has no identifier.
    Best(Vec<AttributesId>),
    /// All paths.
    All(BTreeMap<(PrefixId, PathId), AttributesId>),
}

impl Sent {
    /// Nothing yet; `all`: of several paths.
    pub(crate) fn new(all: bool) -> Self {
        if all { Sent::All(BTreeMap::new()) } else { Sent::Best(Vec::new()) }
    }

    /// Whether the peer takes all paths.
    pub(crate) fn is_all(&self) -> bool {
        matches!(self, Sent::All(_))
    }

    /// What was told of a path.
    pub(crate) fn get(&self, id: PrefixId, path: PathId) -> AttributesId {
        let told = match self {
            Sent::Best(sent) => sent.get(id as usize),
            Sent::All(sent) => sent.get(&(id, path)),
        };
        told.copied().unwrap_or(AttributesId::NONE)
    }

    /// All that was told of a prefix.
    pub(crate) fn of(&self, id: PrefixId) -> impl Iterator<Item = (PathId, AttributesId)> + '_ {
        let (best, all) = match self {
            Sent::Best(sent) => (sent.get(id as usize).filter(|told| **told != AttributesId::NONE), None),
            Sent::All(sent) => (None, Some(sent.range((id, PathId(0))..=(id, PathId(u32::MAX))))),
        };
        let all = all.into_iter().flatten().map(|((_, path), told)| (*path, *told));
        best.map(|told| (PathId::default(), *told)).into_iter().chain(all)
    }

    /// Sets what was told of a path; what was before.
    pub(crate) fn set(&mut self, id: PrefixId, path: PathId, told: AttributesId) -> AttributesId {
        let old = match self {
            Sent::Best(sent) => {
                let at = id as usize;
                if at >= sent.len() {
                    sent.resize(at + 1, AttributesId::NONE);
                }
                Some(std::mem::replace(&mut sent[at], told))
            }
            Sent::All(sent) if told == AttributesId::NONE => sent.remove(&(id, path)),
            Sent::All(sent) => sent.insert((id, path), told),
        };
        old.unwrap_or(AttributesId::NONE)
    }

    /// All that was told.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PathKey, AttributesId)> + '_ {
        let (best, all) = match self {
            Sent::Best(sent) => (Some(sent), None),
            Sent::All(sent) => (None, Some(sent)),
        };
        let best = (0..).zip(best.into_iter().flatten()).map(|(id, told)| ((id, PathId::default()), *told));
        let best = best.filter(|(_, told)| *told != AttributesId::NONE);
        best.chain(all.into_iter().flatten().map(|(path, told)| (*path, *told)))
    }

    /// All that was told, with the number of the prefix.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (PrefixId, &mut AttributesId)> {
        let (best, all) = match self {
            Sent::Best(sent) => (Some(sent.iter_mut()), None),
            Sent::All(sent) => (None, Some(sent.iter_mut())),
        };
        let best = (0..).zip(best.into_iter().flatten()).filter(|(_, told)| **told != AttributesId::NONE);
        best.chain(all.into_iter().flatten().map(|((id, _), told)| (*id, told)))
    }
}
