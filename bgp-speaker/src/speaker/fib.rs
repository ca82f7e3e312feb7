//! What of the Loc-RIB goes into the kernel's routing table: the best path of a prefix and those that are equal to it
//! ([`Decision::multipath`](crate::decision::Decision::multipath)), as far as their peers are configured so.
//!
//! As towards a peer, the queue holds numbers of prefixes, each once: when the kernel has room they are looked up, and
//! the last state wins however often it changed meanwhile.
use super::{Output, Speaker};
use crate::{
    config::Family,
    fib::{Change, Hop, Hops, MAX_HOPS, is_link_local},
    rib::{PrefixId, Source},
    wire::NextHop,
};
use std::collections::{BTreeMap, VecDeque};

/// What the kernel's table is to hold, in part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installation {
    /// Of the prefixes that changed.
    pub changes: Vec<Change>,
    /// Once: all routes of a life before that still hold were told again, and what else the kernel has of ours may go.
    pub settled: bool,
}

/// What is to be installed.
#[derive(Debug, Default)]
pub(super) struct Fib {
    /// Some peer has, or had, routes to install.
    active: bool,
    queues: BTreeMap<Family, Marks>,
    /// What is left to do after the end.
    last: Vec<Change>,
    /// The speaker leaves: what is installed stays.
    frozen: bool,
    settled: bool,
    told_settled: bool,
}

impl Fib {
    pub(super) fn uses(&self, family: Family, id: PrefixId) -> bool {
        self.queues.get(&family).is_some_and(|marks| marks.has(id))
    }

    fn is_pending(&self) -> bool {
        self.active
            && (self.settled != self.told_settled
                || !self.last.is_empty()
                || self.queues.values().any(|marks| !marks.queue.is_empty()))
    }
}

impl Speaker {
    /// The next changes of what is to be installed, about `limit` of them; none: there are no more for now.
    pub fn install(&mut self, limit: usize) -> Installation {
        let mut changes = std::mem::take(&mut self.fib.last);
        let mut same: BTreeMap<Vec<Hop>, Hops> = BTreeMap::new();
        for family in Family::ALL {
            let mut looked_up = Vec::new();
            while changes.len() < limit
                && let Some(id) = self.fib.queues.get_mut(&family).and_then(Marks::next)
            {
                let hops = self.hops(family, id);
                let hops = same.entry(hops).or_insert_with_key(|hops| hops.as_slice().into());
                changes.push(Change { prefix: self.rib.table(family).prefix(id), hops: hops.clone() });
                looked_up.push(id);
            }
            self.release_unused(family, looked_up);
        }
        let settled = self.fib.settled && !self.fib.told_settled && changes.len() < limit;
        self.fib.told_settled |= settled;
        Installation { changes, settled }
    }

    /// The paths of a prefix are others now.
    pub(super) fn mark_installed(&mut self, family: Family, id: PrefixId) {
        if self.fib.active && !self.fib.frozen {
            self.fib.queues.entry(family).or_default().mark(id);
        }
    }

    /// From the first peer on whose routes are to be installed.
    pub(super) fn use_fib(&mut self, source: Source) {
        self.fib.active |= self.slot(source).is_some_and(|slot| slot.peer.config.install);
    }

    /// A peer's routes are to be installed, or not any more, or lead elsewhere.
    pub(super) fn installation_changed(&mut self, source: Source) {
        self.use_fib(source);
        if !self.fib.active {
            return;
        }
        for family in Family::ALL {
            let ids: Vec<PrefixId> = self.rib.paths_of(family, source).map(|(id, _)| id).collect();
            ids.into_iter().for_each(|id| self.mark_installed(family, id));
        }
    }

    /// Whether something of a life before may be installed.
    pub(super) fn is_settling(&self) -> bool {
        self.fib.active && !self.fib.settled
    }

    /// There is nothing to wait for any more.
    pub(super) fn settle_installed(&mut self) {
        self.fib.settled = true;
    }

    /// Nothing is to be left at the end.
    pub(super) fn keep_nothing_installed(&mut self) {
        (self.fib.settled, self.fib.told_settled) = (true, false);
    }

    /// What is installed stays, whatever happens from now on; what was to be changed before still is.
    pub(super) fn freeze_installed(&mut self) {
        let told = self.fib.told_settled;
        self.fib.last = self.install(usize::MAX).changes;
        (self.fib.frozen, self.fib.told_settled) = (true, told);
    }

    pub(super) fn push_install(&self, outputs: &mut Vec<Output>) {
        if self.fib.is_pending() {
            outputs.push(Output::Install);
        }
    }

    fn hops(&self, family: Family, id: PrefixId) -> Vec<Hop> {
        let paths = self.rib.table(family).paths(id);
        let hop = |at: usize| {
            let path = paths[at];
            let slot = self.slot(path.source).filter(|slot| slot.peer.config.install)?;
            hop(self.rib.attributes.get(path.attributes).next_hop?, slot.link)
        };
        let mut hops: Vec<Hop> = self.rib.decision().multipath(paths).into_iter().filter_map(hop).collect();
        hops.sort_unstable();
        hops.dedup();
        hops.truncate(MAX_HOPS);
        hops
    }
}

/// The way to a next hop that came over a session on this link; 0: the session is not link-local.
fn hop(next_hop: NextHop, link: u32) -> Option<Hop> {
    let NextHop { address, link_local } = next_hop;
    match link_local.map(Into::into).or_else(|| is_link_local(address).then_some(address)) {
        Some(gateway) if link != 0 => Some(Hop { gateway, interface: link }),
        _ => (!is_link_local(address)).then_some(Hop { gateway: address, interface: 0 }),
    }
}

/// Numbers of prefixes, in the order in which they were marked, each once.
#[derive(Debug, Default)]
struct Marks {
    queue: VecDeque<PrefixId>,
    queued: Vec<u64>,
}

impl Marks {
    fn has(&self, id: PrefixId) -> bool {
        self.queued.get(id as usize / 64).is_some_and(|word| word & 1 << (id % 64) != 0)
    }

    fn mark(&mut self, id: PrefixId) {
        if self.has(id) {
            return;
        }
        let word = id as usize / 64;
        if word >= self.queued.len() {
            self.queued.resize(word + 1, 0);
        }
        self.queued[word] |= 1 << (id % 64);
        self.queue.push_back(id);
    }

    fn next(&mut self) -> Option<PrefixId> {
        let id = self.queue.pop_front()?;
        self.queued[id as usize / 64] &= !(1 << (id % 64));
        Some(id)
    }
}
