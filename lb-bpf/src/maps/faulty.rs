//! Maps that break when told, as a process does that is killed: in front of an operation or in the middle of one.
use super::{Chunk, Cursor, MapError, Maps, Op, Sizes};
use crate::service::ServiceKey;
use lb_bpf_common::{
    Addr, Backend, Config, Counter, DecapKey, DropKey, Filter, FlowEntry, FlowKey, RangeKey, ReverseEntry,
    Slot, Vip, VipKey,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
};

/// Passes everything on until a number of operations is done, then refuses.
#[derive(Debug)]
pub struct FaultyMaps<M> {
    /// The maps behind.
    pub maps: M,
    /// How many operations are let through still.
    pub left: usize,
    /// How many were done.
    pub done: usize,
}

impl<M: Maps> FaultyMaps<M> {
    /// Lets `left` operations through.
    pub fn new(maps: M, left: usize) -> Self {
        FaultyMaps { maps, left, done: 0 }
    }
}

impl<M: Maps> Maps for FaultyMaps<M> {
    fn sizes(&self) -> Sizes {
        self.maps.sizes()
    }

    fn vip(&self, key: &VipKey) -> Result<Option<Vip>, MapError> {
        self.maps.vip(key)
    }

    fn backend(&self, index: u32) -> Result<Option<Backend>, MapError> {
        self.maps.backend(index)
    }

    fn name(&self, id: u32) -> Result<Option<ServiceKey>, MapError> {
        self.maps.name(id)
    }

    fn vips(&self) -> Result<BTreeMap<VipKey, Vip>, MapError> {
        self.maps.vips()
    }

    fn learning(&self) -> Result<BTreeMap<VipKey, u32>, MapError> {
        self.maps.learning()
    }

    fn slots(&self, base: u32, size: u32) -> Result<Vec<Slot>, MapError> {
        self.maps.slots(base, size)
    }

    fn backends(&self) -> Result<BTreeMap<u32, Backend>, MapError> {
        self.maps.backends()
    }

    fn names(&self) -> Result<BTreeMap<u32, ServiceKey>, MapError> {
        self.maps.names()
    }

    fn decap(&self) -> Result<BTreeMap<DecapKey, u32>, MapError> {
        self.maps.decap()
    }

    fn config(&self) -> Result<Config, MapError> {
        self.maps.config()
    }

    fn flows(&self, from: Cursor, limit: usize) -> Result<Chunk<FlowEntry>, MapError> {
        self.maps.flows(from, limit)
    }

    fn replies(&self, from: Cursor, limit: usize) -> Result<Chunk<ReverseEntry>, MapError> {
        self.maps.replies(from, limit)
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<FlowEntry>, MapError> {
        self.maps.flow(key)
    }

    fn reply(&self, key: &FlowKey) -> Result<Option<ReverseEntry>, MapError> {
        self.maps.reply(key)
    }

    fn backend_counters(&self, count: u32) -> Result<Vec<Counter>, MapError> {
        self.maps.backend_counters(count)
    }

    fn verdict_counters(&self) -> Result<Vec<Counter>, MapError> {
        self.maps.verdict_counters()
    }

    fn ranges(&self) -> Result<BTreeMap<RangeKey, bool>, MapError> {
        self.maps.ranges()
    }

    fn lets_in(&self, service: u32, client: Addr) -> Result<Option<bool>, MapError> {
        self.maps.lets_in(service, client)
    }

    fn filters(&self) -> Result<BTreeMap<u32, Filter>, MapError> {
        self.maps.filters()
    }

    fn filter_name(&self, index: u32) -> Result<Option<String>, MapError> {
        self.maps.filter_name(index)
    }

    fn filter_names(&self) -> Result<BTreeMap<u32, String>, MapError> {
        self.maps.filter_names()
    }

    fn filter_counters(&self, count: u32) -> Result<Vec<Counter>, MapError> {
        self.maps.filter_counters(count)
    }

    fn service_drops(&self) -> Result<BTreeMap<DropKey, Counter>, MapError> {
        self.maps.service_drops()
    }

    fn ports(&self) -> Result<BTreeSet<u32>, MapError> {
        self.maps.ports()
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapError> {
        if self.left == 0 {
            // Tables, filters and lists of flows are written piece by piece: half of it gets through.
            let half = match op {
                Op::WriteTable(base, slots) => {
                    let half = slots.iter().take(slots.len() / 2).collect();
                    Some(Op::WriteTable(*base, half))
                }
                Op::RemoveFlows(flows) => Some(Op::RemoveFlows(flows[..flows.len() / 2].to_vec())),
                Op::RemoveReplies(all) => Some(Op::RemoveReplies(all[..all.len() / 2].to_vec())),
                Op::SetFilter(index, _) => Some(Op::FreeFilter(*index)),
                _ => None,
            };
            if let Some(half) = half {
                self.maps.apply(&half)?;
            }
            return Err(MapError::new("any", "broken as told", io::ErrorKind::Interrupted));
        }
        self.left -= 1;
        self.done += 1;
        self.maps.apply(op)
    }
}
