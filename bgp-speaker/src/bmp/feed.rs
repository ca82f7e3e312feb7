//! What a station is still to hear. Routes that changed wait by number, each once.
use super::message::{Down, Peer};
use crate::{
    Time,
    config::Family,
    rib::{PathKey, PrefixId, Source},
    wire::PathId,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

/// State of one station, from its connection to the end of that.
#[derive(Debug)]
pub(crate) struct Feed {
    /// The station has not heard yet who we are.
    pub(crate) greeting: bool,
    pub(crate) peers: BTreeMap<Source, Monitored>,
    /// Paths of a peer that have changed since the station heard of them, by number of the family.
    changed: [BTreeSet<(PrefixId, Source, PathId)>; Family::ALL.len()],
    /// Time between statistics; none: there are none.
    every: Option<Duration>,
    next_statistics: Option<Time>,
    pub(crate) statistics_due: bool,
}

/// What the station knows of a peer, and is to know.
#[derive(Debug, Default)]
pub(crate) struct Monitored {
    /// The session that the station has heard of.
    pub(crate) told: Option<Peer>,
    /// It is gone: when, and why.
    pub(crate) down: Option<(Time, Down)>,
    /// The session that it is to hear of.
    pub(crate) up: Option<Up>,
    /// All routes are to be told, from this number on. Its end is told, too (End-of-RIB, section 5).
    pub(crate) dumps: BTreeMap<Family, PrefixId>,
}

/// The start of a session.
#[derive(Clone, Debug)]
pub(crate) struct Up {
    pub(crate) peer: Peer,
    pub(crate) at: Time,
    /// Our end and the peer's.
    pub(crate) ends: (SocketAddr, SocketAddr),
    /// OPENs as on the wire.
    pub(crate) sent: Vec<u8>,
    pub(crate) received: Vec<u8>,
    pub(crate) families: BTreeSet<Family>,
}

impl Feed {
    /// For a station that knows nothing. `every`: time between statistics.
    pub(crate) fn new(every: Option<Duration>, now: Time) -> Self {
        Feed {
            greeting: true,
            peers: BTreeMap::new(),
            changed: Default::default(),
            every,
            next_statistics: every.map(|every| now + every),
            statistics_due: false,
        }
    }

    /// A session is up.
    pub(crate) fn up(&mut self, source: Source, up: Up) {
        let monitored = self.peers.entry(source).or_default();
        monitored.dumps = up.families.iter().map(|family| (*family, 0)).collect();
        monitored.up = Some(up);
    }

    /// It is gone. What the station had not heard yet of it, it need not hear: the numbers of these prefixes.
    pub(crate) fn down(&mut self, source: Source, at: Time, down: Down) -> Vec<(Family, PrefixId)> {
        if let Some(monitored) = self.peers.get_mut(&source) {
            monitored.dumps.clear();
            if monitored.up.take().is_none() && monitored.told.is_some() {
                monitored.down = Some((at, down));
            }
        }
        let mut unheard = Vec::new();
        for family in Family::ALL {
            self.changed[family as usize].retain(|&(id, of, _)| {
                unheard.extend((of == source).then_some((family, id)));
                of != source
            });
        }
        unheard
    }

    /// A path of the peer changed.
    pub(crate) fn mark(&mut self, source: Source, family: Family, (id, path): PathKey) {
        let Some(peer) = self.peers.get(&source).filter(|peer| peer.is_known()) else { return };
        // What the dump has not reached will be told as it is then.
        if peer.dumps.get(&family).is_none_or(|next| id < *next) {
            self.changed[family as usize].insert((id, source, path));
        }
    }

    /// Whether the number of the prefix is in use here.
    pub(crate) fn uses(&self, family: Family, id: PrefixId) -> bool {
        let (first, last) = ((Source(u16::MIN), PathId(u32::MIN)), (Source(u16::MAX), PathId(u32::MAX)));
        let of_the_prefix = (id, first.0, first.1)..=(id, last.0, last.1);
        self.changed[family as usize].range(of_the_prefix).next().is_some()
    }

    /// Whether there is something to tell.
    pub(crate) fn is_pending(&self) -> bool {
        self.greeting
            || self.statistics_due
            || self.changed.iter().any(|changed| !changed.is_empty())
            || self.peers.values().any(Monitored::is_pending)
    }

    /// When the next statistics are due.
    pub(crate) fn next_deadline(&self) -> Option<Time> {
        self.next_statistics
    }

    pub(crate) fn tick(&mut self, now: Time) {
        if self.next_statistics.is_some_and(|due| due <= now) {
            self.statistics_due = true;
            self.next_statistics = self.every.map(|every| now + every);
        }
    }

    /// Takes some of the paths that have changed.
    pub(crate) fn take_changed(&mut self, family: Family, count: usize) -> Vec<(Source, PathKey)> {
        let changed = &mut self.changed[family as usize];
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some((id, source, path)) = changed.pop_first()
        {
            taken.push((source, (id, path)));
        }
        taken.sort_unstable();
        taken
    }

    /// Everything that is in use here.
    pub(crate) fn into_changed(self) -> impl Iterator<Item = (Family, PrefixId)> {
        let of = |(family, changed): (Family, BTreeSet<(PrefixId, Source, PathId)>)| {
            changed.into_iter().map(move |(id, ..)| (family, id))
        };
        Family::ALL.into_iter().zip(self.changed).flat_map(of)
    }
}

impl Monitored {
    /// Whether the station hears, or will have heard, of the session that is up.
    fn is_known(&self) -> bool {
        self.up.is_some() || (self.told.is_some() && self.down.is_none())
    }

    fn is_pending(&self) -> bool {
        self.down.is_some() || self.up.is_some() || !self.dumps.is_empty()
    }
}
