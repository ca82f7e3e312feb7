//! The maps in memory, with the limits of the real ones: for tests without a kernel.
use super::{Chunk, Cursor, MapError, Maps, Op, Sizes};
use crate::service::ServiceKey;
use lb_bpf_common::{
    Backend, Config, Counter, DecapKey, FlowEntry, FlowKey, ReverseEntry, Slot, Verdict, Vip, VipKey,
    flow_hash, slot_of,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

/// All maps of one datapath. The fields are what the kernel program would see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FakeMaps {
    sizes: Sizes,
    /// The map `vips`.
    pub vips: BTreeMap<VipKey, Vip>,
    /// The map `slots`.
    pub slots: Vec<Slot>,
    /// The map `names`.
    pub names: BTreeMap<u32, ServiceKey>,
    /// The map `backends`.
    pub backends: Vec<Backend>,
    /// The map `flows`.
    pub flows: BTreeMap<FlowKey, FlowEntry>,
    /// The map `reverse`.
    pub replies: BTreeMap<FlowKey, ReverseEntry>,
    /// The map `decap`.
    pub decap: BTreeSet<DecapKey>,
    /// The map `config`.
    pub config: Config,
    /// The map `backend_counters`.
    pub backend_counters: Vec<Counter>,
    /// The map `verdict_counters`.
    pub verdict_counters: Vec<Counter>,
}

impl FakeMaps {
    /// Empty maps.
    pub fn new(sizes: Sizes) -> Self {
        FakeMaps {
            sizes,
            vips: BTreeMap::new(),
            slots: vec![Slot::default(); sizes.slots as usize],
            names: BTreeMap::new(),
            backends: vec![Backend::default(); sizes.backends as usize],
            flows: BTreeMap::new(),
            replies: BTreeMap::new(),
            decap: BTreeSet::new(),
            config: Config::default(),
            backend_counters: vec![Counter::default(); sizes.backends as usize],
            verdict_counters: vec![Counter::default(); Verdict::ALL.len()],
        }
    }
}

impl Maps for FakeMaps {
    fn sizes(&self) -> Sizes {
        self.sizes
    }

    fn vip(&self, key: &VipKey) -> Result<Option<Vip>, MapError> {
        Ok(self.vips.get(key).copied())
    }

    fn backend(&self, index: u32) -> Result<Option<Backend>, MapError> {
        Ok(self.backends.get(index as usize).copied().filter(|backend| backend.mode != 0))
    }

    fn name(&self, id: u32) -> Result<Option<ServiceKey>, MapError> {
        Ok(self.names.get(&id).cloned())
    }

    fn vips(&self) -> Result<BTreeMap<VipKey, Vip>, MapError> {
        Ok(self.vips.clone())
    }

    fn slots(&self, base: u32, size: u32) -> Result<Vec<Slot>, MapError> {
        let range = base as usize..base as usize + size as usize;
        let slots = self.slots.get(range);
        slots.map(<[_]>::to_vec).ok_or_else(|| refused("slots", "read", io::ErrorKind::InvalidInput))
    }

    fn backends(&self) -> Result<BTreeMap<u32, Backend>, MapError> {
        let used = (0..).zip(&self.backends).filter(|(_, backend)| backend.mode != 0);
        Ok(used.map(|(index, backend)| (index, *backend)).collect())
    }

    fn names(&self) -> Result<BTreeMap<u32, ServiceKey>, MapError> {
        Ok(self.names.clone())
    }

    fn decap(&self) -> Result<BTreeSet<DecapKey>, MapError> {
        Ok(self.decap.clone())
    }

    fn config(&self) -> Result<Config, MapError> {
        Ok(self.config)
    }

    fn flows(&self, from: Cursor, limit: usize) -> Result<Chunk<FlowEntry>, MapError> {
        Ok(chunk(&self.flows, from, limit))
    }

    fn replies(&self, from: Cursor, limit: usize) -> Result<Chunk<ReverseEntry>, MapError> {
        Ok(chunk(&self.replies, from, limit))
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<FlowEntry>, MapError> {
        Ok(self.flows.get(key).copied())
    }

    fn reply(&self, key: &FlowKey) -> Result<Option<ReverseEntry>, MapError> {
        Ok(self.replies.get(key).copied())
    }

    fn backend_counters(&self, count: u32) -> Result<Vec<Counter>, MapError> {
        Ok(self.backend_counters.iter().take(count as usize).copied().collect())
    }

    fn verdict_counters(&self) -> Result<Vec<Counter>, MapError> {
        Ok(self.verdict_counters.clone())
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match op {
            Op::SetConfig(config) => self.config = *config,
            Op::ResetCounters(index) => {
                *entry(&mut self.backend_counters, "backend_counters", *index)? = Counter::default();
            }
            Op::SetBackend(index, backend) => *entry(&mut self.backends, "backends", *index)? = *backend,
            Op::FreeBackend(index) => entry(&mut self.backends, "backends", *index)?.mode = 0,
            Op::WriteTable(base, table) => {
                let range = *base as usize..*base as usize + table.len();
                let slots = self.slots.get_mut(range);
                let slots = slots.ok_or_else(|| refused("slots", "write", io::ErrorKind::InvalidInput))?;
                slots.copy_from_slice(table);
            }
            Op::SetPrevious(index, previous) => {
                entry(&mut self.slots, "slots", *index)?.previous = *previous;
            }
            Op::SetName(id, name) => {
                self.names.insert(*id, name.clone());
            }
            Op::RemoveName(id) => {
                self.names.remove(id);
            }
            Op::SetVip(key, vip) => {
                if self.vips.len() >= self.sizes.vips as usize && !self.vips.contains_key(key) {
                    return Err(refused("vips", "update", io::ErrorKind::ArgumentListTooLong));
                }
                self.vips.insert(*key, *vip);
            }
            Op::RemoveVip(key) => {
                self.vips.remove(key);
            }
            Op::AddDecap(key) => {
                self.decap.insert(*key);
            }
            Op::RemoveDecap(key) => {
                self.decap.remove(key);
            }
            Op::RemoveFlows(keys) => self.flows.retain(|key, _| !keys.contains(key)),
            Op::RemoveReplies(keys) => self.replies.retain(|key, _| !keys.contains(key)),
        }
        Ok(())
    }
}

fn entry<'a, T>(array: &'a mut [T], map: &'static str, index: u32) -> Result<&'a mut T, MapError> {
    array.get_mut(index as usize).ok_or_else(|| refused(map, "write", io::ErrorKind::InvalidInput))
}

fn refused(map: &'static str, action: &'static str, kind: io::ErrorKind) -> MapError {
    MapError::new(map, action, kind)
}

/// Whole buckets, as the kernel gives them: what is removed in one of them does not move the others.
fn chunk<V: Copy>(map: &BTreeMap<FlowKey, V>, from: Cursor, limit: usize) -> Chunk<V> {
    const BUCKETS: Cursor = 64;
    let mut chunk = Chunk { entries: Vec::new(), next: None };
    for bucket in from..BUCKETS {
        if chunk.entries.len() >= limit.max(1) {
            chunk.next = Some(bucket);
            break;
        }
        let in_bucket = map.iter().filter(|(key, _)| slot_of(flow_hash(key), BUCKETS) == bucket);
        chunk.entries.extend(in_bucket.map(|(key, value)| (*key, *value)));
    }
    chunk
}
