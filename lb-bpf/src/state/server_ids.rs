//! QUIC server IDs ([`lb_bpf_common::quic`]): for each that a service's backends have, an entry of `vips` that names the
//! backend. It is there when the table is, and as long as the connections of the backend are kept: a backend that has left the
//! table has its ID until its drain is over.
use super::{Now, Programmed, State};
use crate::{
    maps::{MapError, Maps, Op},
    service::Service,
};
use lb_bpf_common::{Addr, Vip, VipKey, proto};
use std::collections::BTreeMap;

impl State {
    /// Plans the IDs of a service. Those of backends that are not declared any more stay; what nobody wants is left to
    /// [`State::plan_prune`].
    pub(super) fn add_server_ids(&mut self, programmed: &mut Programmed, now: Now, ops: &mut Vec<Op>) {
        programmed.server_ids.clear();
        let (service, bytes) = (programmed.id, server_id_bytes(&programmed.desired));
        if bytes == 0 {
            return;
        }
        // An ID that two declared backends have is nobody's.
        let mut owners = BTreeMap::<VipKey, Option<u32>>::new();
        for (endpoint, index) in &programmed.entries {
            if let Some(id) = Addr::from(endpoint.address).server_id(bytes) {
                let key = VipKey::server_id(service, bytes, id);
                owners.entry(key).and_modify(|owner| *owner = None).or_insert(Some(*index));
            }
        }
        let all = VipKey::server_id(service, bytes, 0)..=VipKey::server_id(service, bytes, u64::MAX);
        let held: BTreeMap<VipKey, u32> = self.vips.range(all).map(|(key, vip)| (*key, vip.base)).collect();
        for (key, index) in &held {
            owners.entry(*key).or_insert(Some(*index));
        }
        // One that is not in the table has no connections but those that its ID was there for.
        let kept = |(key, owner): (VipKey, Option<u32>)| match owner? {
            index if !programmed.away.contains_key(&index) => Some((key, index)),
            _ => {
                held.get(&key).filter(|index| !programmed.is_drained(**index, now)).map(|index| (key, *index))
            }
        };
        programmed.server_ids = owners.into_iter().filter_map(kept).collect();
        for (key, index) in &programmed.server_ids {
            let vip = Vip { service: 0, flags: 0, base: *index, size: 0 };
            if self.vips.get(key) != Some(&vip) {
                self.push(Op::SetVip(*key, vip), ops);
            }
        }
    }

    /// Takes their IDs from backends whose drain is over.
    pub(super) fn end_server_ids(&mut self, maps: &mut impl Maps, now: Now) -> Result<(), MapError> {
        let mut over = Vec::new();
        for programmed in self.services.values_mut().filter(|programmed| !programmed.server_ids.is_empty()) {
            let mut ids = std::mem::take(&mut programmed.server_ids);
            over.extend(ids.extract_if(.., |_, index| programmed.is_drained(*index, now)));
            programmed.server_ids = ids;
        }
        for (key, _) in over {
            let op = Op::RemoveVip(key);
            maps.apply(&op)?;
            self.mirror(&op);
        }
        Ok(())
    }

    /// Entries of `backends` that IDs name.
    pub(super) fn named_by_ids(&self) -> impl Iterator<Item = u32> {
        let of_no_service = self.by_service.get(&0).into_iter().flatten();
        of_no_service.filter(|key| key.proto == proto::SERVER_ID).map(|key| self.vips[key].base)
    }
}

impl Programmed {
    /// Whether a backend has been out of the table for so long that its connections are not kept any more.
    fn is_drained(&self, index: u32, now: Now) -> bool {
        let over = |since: &u32| since.saturating_add(self.desired.drain_seconds) <= now.seconds();
        self.away.get(&index).is_some_and(over)
    }
}

/// How many bytes the IDs of a service's backends have; 0: it has none. Flows that are translated have entries.
pub(super) fn server_id_bytes(service: &Service) -> u32 {
    if service.mode.is_translated() { 0 } else { service.rules.server_id_bytes.into() }
}
