//! The kernel's maps as one trait: what can be read, and the few operations that change them. There is the real
//! one ([`kernel`]), one in memory ([`fake`]) and one that breaks when told ([`faulty`]).
pub mod dump;
pub mod fake;
pub mod faulty;
#[cfg(feature = "loader")]
pub mod kernel;
#[cfg(feature = "loader")]
pub(crate) mod raw;
pub mod sizes;
#[cfg_attr(not(any(feature = "loader", test)), expect(dead_code, reason = "only the kernel has such arrays"))]
pub(crate) mod vip_index;

use crate::service::ServiceKey;
use lb_bpf_common::{
    Addr, Backend, Config, Counter, DecapKey, DropKey, Filter, FlowEntry, FlowKey, RangeKey, ReverseEntry,
    Slot, Vip, VipKey,
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

/// How many entries each map has room for. Takes effect when the maps are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Sizes {
    /// Frontends, and one more for each address; two less than this fit, for index 0 is never used, and one entry is
    /// there to replace another. 64 bytes each and 32 to 64 in the index, allocated at once.
    pub vips: u32,
    /// Slots of all services together; 8 bytes each, allocated at once. Changing a table takes it twice.
    pub slots: u32,
    /// Backends of all services together, those that drain included; 64 bytes each, allocated at once.
    pub backends: u32,
    /// Flows that are tracked: those of dirty slots and of NAT services. Some 120 bytes each when in use, and
    /// as much again for the way back of NAT; 16 to 32 each at once, for what is remembered about them.
    pub flows: u32,
    /// Pairs of tunnel end and VIP.
    pub decap: u32,
    /// Source ranges of all services together. Some 100 bytes each when in use.
    pub ranges: u32,
    /// Rules of all packet filters together, up to [`Filter::MOST`]; 92 bytes each, and 32 on each CPU, allocated at
    /// once.
    pub filters: u32,
}

impl Sizes {
    /// For most hosts.
    pub const DEFAULT: Sizes = Sizes {
        vips: 8192,
        slots: 1 << 22,
        backends: 1 << 16,
        flows: 1 << 18,
        decap: 8192,
        ranges: 1 << 16,
        filters: 256,
    };
}

impl Default for Sizes {
    fn default() -> Self {
        Sizes::DEFAULT
    }
}

/// Longest [`ServiceKey`] that the map `names` takes, bytes of UTF-8.
pub const NAME_LENGTH: usize = 512;

/// Reads and changes the maps of one datapath.
pub trait Maps {
    /// The sizes that the maps really have.
    fn sizes(&self) -> Sizes;
    /// One entry of `vips`.
    fn vip(&self, key: &VipKey) -> Result<Option<Vip>, MapError>;
    /// One entry of `backends`, if it is in use.
    fn backend(&self, index: u32) -> Result<Option<Backend>, MapError>;
    /// Who a service id is.
    fn name(&self, id: u32) -> Result<Option<ServiceKey>, MapError>;
    /// All of `vips`.
    fn vips(&self) -> Result<BTreeMap<VipKey, Vip>, MapError>;
    /// Of each frontend with a table that learns, or lately did: [`Frontend::learns_until`](lb_bpf_common::Frontend).
    fn learning(&self) -> Result<BTreeMap<VipKey, u32>, MapError>;
    /// `size` entries of `slots` from `base` on.
    fn slots(&self, base: u32, size: u32) -> Result<Vec<Slot>, MapError>;
    /// The entries of `backends` that are in use.
    fn backends(&self) -> Result<BTreeMap<u32, Backend>, MapError>;
    /// Who the service ids are.
    fn names(&self) -> Result<BTreeMap<u32, ServiceKey>, MapError>;
    /// All of `decap`, with what becomes of the inner packets: [`DecapKey::TO_STACK`] or [`DecapKey::TO_LOCAL`].
    fn decap(&self) -> Result<BTreeMap<DecapKey, u32>, MapError>;
    /// The entry of `config`.
    fn config(&self) -> Result<Config, MapError>;
    /// A part of `flows`.
    fn flows(&self, from: Cursor, limit: usize) -> Result<Chunk<FlowEntry>, MapError>;
    /// A part of `reverse`.
    fn replies(&self, from: Cursor, limit: usize) -> Result<Chunk<ReverseEntry>, MapError>;
    /// One entry of `flows`.
    fn flow(&self, key: &FlowKey) -> Result<Option<FlowEntry>, MapError>;
    /// One entry of `reverse`.
    fn reply(&self, key: &FlowKey) -> Result<Option<ReverseEntry>, MapError>;
    /// The sums over all CPUs of the first `count` entries of `backend_counters`.
    fn backend_counters(&self, count: u32) -> Result<Vec<Counter>, MapError>;
    /// The sums over all CPUs of `verdict_counters`.
    fn verdict_counters(&self) -> Result<Vec<Counter>, MapError>;
    /// All of `ranges`: whether clients are let in.
    fn ranges(&self) -> Result<BTreeMap<RangeKey, bool>, MapError>;
    /// Whether a service lets a client in: by the longest prefix in `ranges`. Nothing when none covers it.
    fn lets_in(&self, service: u32, client: Addr) -> Result<Option<bool>, MapError>;
    /// The entries of `filters` that are in use.
    fn filters(&self) -> Result<BTreeMap<u32, Filter>, MapError>;
    /// What an index of `filters` is called.
    fn filter_name(&self, index: u32) -> Result<Option<String>, MapError>;
    /// What the indexes of `filters` are called.
    fn filter_names(&self) -> Result<BTreeMap<u32, String>, MapError>;
    /// The sums over all CPUs of the first `count` entries of `filter_counters`.
    fn filter_counters(&self, count: u32) -> Result<Vec<Counter>, MapError>;
    /// The sums over all CPUs of `service_drops`.
    fn service_drops(&self) -> Result<BTreeMap<DropKey, Counter>, MapError>;
    /// The keys of `ports`.
    fn ports(&self) -> Result<BTreeSet<u32>, MapError>;
    /// Does one operation.
    fn apply(&mut self, op: &Op) -> Result<(), MapError>;
}

/// The slots of a table that is to be written. Most are clean: of these only the owner is kept, for there may be ten
/// million in one plan.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    owners: Vec<u32>,
    /// Of the dirty ones, by place: [`Slot::previous`].
    previous: Vec<(u32, u32)>,
}

impl Slots {
    /// Nothing yet, and room for so many.
    pub fn with_capacity(size: usize) -> Self {
        Slots { owners: Vec::with_capacity(size), previous: Vec::new() }
    }

    /// Adds the next one.
    pub fn push(&mut self, slot: Slot) {
        if slot.previous != 0 {
            self.previous.push((self.owners.len() as u32, slot.previous));
        }
        self.owners.push(slot.current);
    }

    /// How many there are.
    pub const fn len(&self) -> usize {
        self.owners.len()
    }

    /// Whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.owners.is_empty()
    }

    /// In their order.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        let mut dirty = self.previous.iter().peekable();
        (0..).zip(&self.owners).map(move |(place, current)| {
            let previous = dirty.next_if(|(at, _)| *at == place).map_or(0, |(_, previous)| *previous);
            Slot { current: *current, previous }
        })
    }
}

impl FromIterator<Slot> for Slots {
    fn from_iter<I: IntoIterator<Item = Slot>>(all: I) -> Self {
        let mut slots = Slots::default();
        all.into_iter().for_each(|slot| slots.push(slot));
        slots
    }
}

/// One change of the maps. Packets run between any two of them and in the middle of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Replaces the entry of `config`, but for [`Config::vip_mask`] and [`Config::recent_mask`], which belong to the
    /// maps.
    SetConfig(Config),
    /// Sets the counters of a backend to 0.
    ResetCounters(u32),
    /// Writes an entry of `backends`. Of an entry that packets may use, only the fields change that may
    /// (see [`Backend`]).
    SetBackend(u32, Backend),
    /// Marks an entry of `backends` as free.
    FreeBackend(u32),
    /// Writes a table to a range of `slots` that no frontend points to.
    WriteTable(u32, Slots),
    /// Changes `previous` of the slot at this index of `slots`, which packets may use.
    SetPrevious(u32, u32),
    /// Notes who a service id is. Only user space reads this: after a restart, or who dumps the maps.
    SetName(u32, ServiceKey),
    /// Forgets who a service id was.
    RemoveName(u32),
    /// Adds or replaces a frontend; until when its slots learn is not known then.
    SetVip(VipKey, Vip),
    /// Notes at which second of CLOCK_MONOTONIC the last slot of a frontend's table stops learning. Only user space reads
    /// this, after a restart.
    SetLearning(VipKey, u32),
    /// Removes a frontend.
    RemoveVip(VipKey),
    /// Adds or replaces a tunnel end: what becomes of the inner packets.
    SetDecap(DecapKey, u32),
    /// Removes a tunnel end.
    RemoveDecap(DecapKey),
    /// Adds or replaces a source range: whether clients are let in.
    SetRange(RangeKey, bool),
    /// Removes a source range.
    RemoveRange(RangeKey),
    /// Writes an entry of `filters`. While that lasts it is free.
    SetFilter(u32, Filter),
    /// Marks an entry of `filters` as free.
    FreeFilter(u32),
    /// Sets the counters of an entry of `filters` to 0.
    ResetFilterCounters(u32),
    /// Notes what an index of `filters` is called: 1 to [`NAME_LENGTH`] bytes. Only user space reads this.
    SetFilterName(u32, String),
    /// Forgets what an index of `filters` was called.
    RemoveFilterName(u32),
    /// Removes entries of `service_drops`, as far as they are there.
    RemoveDrops(Vec<DropKey>),
    /// Removes entries of `flows` that are still so, and of each that it removes the way back if that is still so: a packet
    /// may have begun the flow anew.
    RemoveFlows(Vec<Ended>),
    /// Removes entries of `reverse` that are still so.
    RemoveReplies(Vec<(FlowKey, ReverseEntry)>),
    /// Has XDP redirect to the interface with this index itself, if it is still there.
    SetPort(u32),
    /// Has TC send to it again.
    RemovePort(u32),
}

/// A flow that has ended, as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its key in `flows`.
    pub key: FlowKey,
    /// Its value there.
    pub entry: FlowEntry,
    /// Its entry in `reverse`.
    pub reply: Option<(FlowKey, ReverseEntry)>,
}

/// Where the reading of a hash map goes on; 0 is its begin.
pub type Cursor = u32;

/// Some entries of a hash map. Entries that come or go meanwhile may be missed; all others are seen once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk<V> {
    /// The entries.
    pub entries: Vec<(FlowKey, V)>,
    /// Where to go on; nothing at the end.
    pub next: Option<Cursor>,
}

/// The kernel refused an operation on a map.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {action}: {source}")]
pub struct MapError {
    /// Name of the map.
    pub map: &'static str,
    /// What was tried.
    pub action: &'static str,
    /// What the kernel said.
    pub source: io::Error,
}

impl MapError {
    /// An error of the map `map` while doing `action`.
    pub fn new(map: &'static str, action: &'static str, source: impl Into<io::Error>) -> Self {
        MapError { map, action, source: source.into() }
    }
}
