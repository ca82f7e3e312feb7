//! What the kernel program does with a packet of a TCP flow, as far as the choice of the backend goes (see
//! `lb-bpf/ebpf/src/datapath.rs` and `flow.rs`, which the tests in `lb-bpf/tests/packets` hold to the same rules).
use super::super::Now;
use crate::{
    maps::fake::FakeMaps,
    service::{Endpoint, Frontend},
};
use lb_bpf_common::{Addr, Backend, FlowEntry, FlowKey, Slot, Vip, decide::is_tracked, slot_hash, slot_of};
use std::net::Ipv4Addr;

/// The n-th flow of a frontend.
pub(super) fn flow(frontend: Frontend, n: u16) -> FlowKey {
    FlowKey {
        src: Addr::from(std::net::IpAddr::from(Ipv4Addr::new(198, 51, 100, (n >> 8) as u8))),
        dst: frontend.address.into(),
        src_port: (1024 + n).to_be(),
        dst_port: frontend.port.to_be(),
        proto: frontend.protocol.number(),
        scope: 0,
        zero: [0; 2],
    }
}

/// The frontend and the slot of a flow, if there are any.
pub(super) fn slot(maps: &FakeMaps, key: &FlowKey) -> Option<(Vip, Slot)> {
    let frontend = maps.vips.iter().find(|(vip, _)| vip.addr == key.dst && vip.port == key.dst_port);
    let (_, vip) = frontend.filter(|(_, vip)| vip.size > 0)?;
    let hash = slot_hash(key, vip.flags & Vip::AFFINITY != 0);
    Some((*vip, maps.slots[(vip.base + slot_of(hash, vip.size)) as usize]))
}

/// Sends one packet; returns the backend that gets it, if one does.
pub(super) fn send(maps: &mut FakeMaps, key: &FlowKey, opening: bool, now: Now) -> Option<(Endpoint, u8)> {
    let (vip, slot) = slot(maps, key)?;
    let at = |index: u32| Some(maps.backends[index as usize]).filter(|backend| backend.mode != 0);
    let usable =
        |index: &u32| at(*index).is_some_and(|b| b.flags & Backend::DOWN == 0 && b.service == vip.service);
    let tracked = at(slot.current).is_some_and(|backend| is_tracked(backend.mode));
    if slot.previous == 0 && !tracked {
        return at(slot.current).map(named);
    }
    let known = maps.flows.get(key).map(|entry| entry.backend).filter(|index| !opening && usable(index));
    let learning = slot.previous != 0 && slot.previous & Slot::SETTLED == 0;
    let unknown = if learning && !opening { slot.previous } else { slot.current };
    let index = known.unwrap_or(if usable(&unknown) { unknown } else { slot.current });
    let backend = at(index)?;
    let state = if opening { FlowEntry::HALF_OPEN } else { 0 };
    let entry = FlowEntry { backend: index, slot: 0, seen: now.seconds(), nat_port: 0, state };
    maps.flows.insert(*key, entry);
    Some(named(backend))
}

pub(super) fn named(backend: Backend) -> (Endpoint, u8) {
    (super::super::endpoint_of(&backend), backend.mode)
}
