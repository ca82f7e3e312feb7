//! The maps in memory, with the limits of the real ones: for tests without a kernel.
use super::{Chunk, Cursor, Ended, MapError, Maps, Op, Sizes, vip_index};
use crate::service::ServiceKey;
use lb_bpf_common::{
    Addr, Backend, Config, Counter, DecapKey, DropKey, Filter, FlowEntry, FlowKey, RangeKey, ReverseEntry,
    Slot, Verdict, Vip, VipKey, flow_hash, recent_lines, slot_of,
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
    /// Beside it, until when tables learn.
    pub learning: BTreeMap<VipKey, u32>,
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
    pub decap: BTreeMap<DecapKey, u32>,
    /// The map `config`.
    pub config: Config,
    /// The map `backend_counters`.
    pub backend_counters: Vec<Counter>,
    /// The map `verdict_counters`.
    pub verdict_counters: Vec<Counter>,
    /// The map `ranges`.
    pub ranges: BTreeMap<RangeKey, bool>,
    /// The map `filters`.
    pub filters: Vec<Filter>,
    /// The map `filter_names`.
    pub filter_names: BTreeMap<u32, String>,
    /// The map `filter_counters`.
    pub filter_counters: Vec<Counter>,
    /// The map `service_drops`.
    pub service_drops: BTreeMap<DropKey, Counter>,
    /// The map `ports`.
    pub ports: BTreeSet<u32>,
}

impl FakeMaps {
    /// Empty maps.
    pub fn new(sizes: Sizes) -> Self {
        FakeMaps {
            sizes,
            vips: BTreeMap::new(),
            learning: BTreeMap::new(),
            slots: vec![Slot::default(); sizes.slots as usize],
            names: BTreeMap::new(),
            backends: vec![Backend::default(); sizes.backends as usize],
            flows: BTreeMap::new(),
            replies: BTreeMap::new(),
            decap: BTreeMap::new(),
            config: Config {
                vip_mask: vip_index::words(sizes.vips) - 1,
                recent_mask: recent_lines(sizes.flows) - 1,
                ..Config::default()
            },
            backend_counters: vec![Counter::default(); sizes.backends as usize],
            verdict_counters: vec![Counter::default(); Verdict::ALL.len()],
            ranges: BTreeMap::new(),
            filters: vec![Filter::default(); sizes.filters as usize],
            filter_names: BTreeMap::new(),
            filter_counters: vec![Counter::default(); sizes.filters as usize],
            service_drops: BTreeMap::new(),
            ports: BTreeSet::new(),
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

    fn learning(&self) -> Result<BTreeMap<VipKey, u32>, MapError> {
        Ok(self.learning.clone())
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

    fn decap(&self) -> Result<BTreeMap<DecapKey, u32>, MapError> {
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

    fn ranges(&self) -> Result<BTreeMap<RangeKey, bool>, MapError> {
        Ok(self.ranges.clone())
    }

    fn lets_in(&self, service: u32, client: Addr) -> Result<Option<bool>, MapError> {
        let covers = |key: &RangeKey| {
            let differs = u128_of(key.addr) ^ u128_of(client);
            key.service == service && differs.leading_zeros() + 32 >= key.bits
        };
        let longest = self.ranges.iter().filter(|(key, _)| covers(key)).max_by_key(|(key, _)| key.bits);
        Ok(longest.map(|(_, is_let_in)| *is_let_in))
    }

    fn filters(&self) -> Result<BTreeMap<u32, Filter>, MapError> {
        let used = (0..).zip(&self.filters).filter(|(_, filter)| filter.kind != 0);
        Ok(used.map(|(index, filter)| (index, *filter)).collect())
    }

    fn filter_name(&self, index: u32) -> Result<Option<String>, MapError> {
        Ok(self.filter_names.get(&index).cloned())
    }

    fn filter_names(&self) -> Result<BTreeMap<u32, String>, MapError> {
        Ok(self.filter_names.clone())
    }

    fn filter_counters(&self, count: u32) -> Result<Vec<Counter>, MapError> {
        Ok(self.filter_counters.iter().take(count as usize).copied().collect())
    }

    fn service_drops(&self) -> Result<BTreeMap<DropKey, Counter>, MapError> {
        Ok(self.service_drops.clone())
    }

    fn ports(&self) -> Result<BTreeSet<u32>, MapError> {
        Ok(self.ports.clone())
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        match op {
            Op::SetConfig(config) => {
                let Config { vip_mask, recent_mask, .. } = self.config;
                self.config = Config { vip_mask, recent_mask, ..*config };
            }
            Op::ResetCounters(index) => {
                *entry(&mut self.backend_counters, "backend_counters", *index)? = Counter::default();
            }
            Op::SetBackend(index, backend) => *entry(&mut self.backends, "backends", *index)? = *backend,
            Op::FreeBackend(index) => entry(&mut self.backends, "backends", *index)?.mode = 0,
            Op::WriteTable(base, table) => {
                let range = *base as usize..*base as usize + table.len();
                let slots = self.slots.get_mut(range);
                let slots = slots.ok_or_else(|| refused("slots", "write", io::ErrorKind::InvalidInput))?;
                slots.iter_mut().zip(table.iter()).for_each(|(slot, written)| *slot = written);
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
                let room = self.sizes.vips.saturating_sub(vip_index::RESERVED) as usize;
                if self.vips.len() >= room && !self.vips.contains_key(key) {
                    return Err(refused("vips", "insert", io::ErrorKind::StorageFull));
                }
                if self.vips.insert(*key, *vip) != Some(*vip) {
                    self.learning.remove(key);
                }
            }
            Op::SetLearning(key, until) => {
                if self.vips.contains_key(key) {
                    self.learning.insert(*key, *until);
                }
            }
            Op::RemoveVip(key) => {
                self.vips.remove(key);
                self.learning.remove(key);
            }
            Op::SetDecap(key, value) => {
                self.decap.insert(*key, *value);
            }
            Op::RemoveDecap(key) => {
                self.decap.remove(key);
            }
            Op::SetRange(key, is_let_in) => {
                if self.ranges.len() >= self.sizes.ranges as usize && !self.ranges.contains_key(key) {
                    return Err(refused("ranges", "update", io::ErrorKind::StorageFull));
                }
                self.ranges.insert(*key, *is_let_in);
            }
            Op::RemoveRange(key) => {
                self.ranges.remove(key);
            }
            Op::SetFilter(index, filter) => *entry(&mut self.filters, "filters", *index)? = *filter,
            Op::FreeFilter(index) => entry(&mut self.filters, "filters", *index)?.kind = 0,
            Op::ResetFilterCounters(index) => {
                *entry(&mut self.filter_counters, "filter_counters", *index)? = Counter::default();
            }
            Op::SetFilterName(index, name) => {
                self.filter_names.insert(*index, name.clone());
            }
            Op::RemoveFilterName(index) => {
                self.filter_names.remove(index);
            }
            Op::RemoveDrops(keys) => self.service_drops.retain(|key, _| !keys.contains(key)),
            Op::RemoveFlows(flows) => {
                for Ended { key, entry, reply } in flows {
                    let is_removed = remove_unchanged(&mut self.flows, key, entry);
                    if let Some((key, reply)) = reply.as_ref().filter(|_| is_removed) {
                        remove_unchanged(&mut self.replies, key, reply);
                    }
                }
            }
            Op::RemoveReplies(replies) => {
                for (key, reply) in replies {
                    remove_unchanged(&mut self.replies, key, reply);
                }
            }
            Op::SetPort(index) => {
                self.ports.insert(*index);
            }
            Op::RemovePort(index) => {
                self.ports.remove(index);
            }
        }
        Ok(())
    }
}

fn remove_unchanged<V: PartialEq>(map: &mut BTreeMap<FlowKey, V>, key: &FlowKey, judged: &V) -> bool {
    let is_unchanged = map.get(key) == Some(judged);
    if is_unchanged {
        map.remove(key);
    }
    is_unchanged
}

fn entry<'a, T>(array: &'a mut [T], map: &'static str, index: u32) -> Result<&'a mut T, MapError> {
    array.get_mut(index as usize).ok_or_else(|| refused(map, "write", io::ErrorKind::InvalidInput))
}

fn u128_of(addr: Addr) -> u128 {
    addr.0.iter().fold(0, |bits, word| bits << 32 | u128::from(u32::from_be(*word)))
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
