//! Fragments: the first one notes the ports, the others follow it. One whose first has not been seen is not guessed at.
use crate::{
    family::Network,
    flow::now,
    maps::{Scratch, fragments},
};
use aya_ebpf::bindings::BPF_ANY;
use lb_bpf_common::{FragmentEntry, FragmentKey};

/// Notes the ports of a first fragment, as they lie in the packet, for [`ports`]. If the map is full, the least recently
/// used packet is forgotten.
#[inline(always)]
pub fn note(network: &Network, source: u16, destination: u16) {
    let Some(Scratch { fragment, .. }) = Scratch::get() else {
        return;
    };
    *fragment = key(network);
    let entry = FragmentEntry { ports: [source, destination], seen: now() };
    // If it fails, the other fragments are dropped.
    let _ = fragments.insert(&*fragment, &entry, BPF_ANY as u64);
}

/// Source and destination port, as they lie in the first fragment, of the packet that this is another fragment of.
#[inline(always)]
pub fn ports(network: &Network) -> Option<[u16; 2]> {
    let Scratch { fragment, .. } = Scratch::get()?;
    *fragment = key(network);
    // SAFETY: other CPUs may write the entry; both of its words are good by themselves.
    let entry = unsafe { fragments.get(&*fragment) }?;
    (now() - entry.seen <= FragmentEntry::LIFETIME).then_some(entry.ports)
}

#[inline(always)]
const fn key(network: &Network) -> FragmentKey {
    FragmentKey { src: network.src, dst: network.dst, id: network.id, proto: network.proto, zero: [0; 3] }
}
