//! Packet filters: rules that are applied before anything else.
use crate::{
    context::Context,
    datapath::count,
    family::{Family, Network, Part, V4, V6, extensions},
    maps::{Scratch, filter_counters, filters},
    packet::{ETH, Packet, Tcp, ether_type},
};
use core::mem::offset_of;
use lb_bpf_common::{Facts, Filter, proto};

/// Applies the first `limit` entries of `filters`; which of them drops the packet, its index and 1 more, or 0. Each that matches counts it, up to
/// the one that drops. What is no IP packet, or has extension headers that cannot be looked through, is let through.
#[inline(always)]
pub fn apply<C: Context>(ctx: &C, limit: u32) -> u32 {
    let packet = ctx.packet();
    let network = match ether_type(&packet) {
        V4::ETHER_TYPE => V4::network(&packet, ETH),
        V6::ETHER_TYPE => V6::network(&packet, ETH),
        _ => None,
    };
    let Some(mut network) = network else {
        return 0;
    };
    if !network.dst.is_v4() && extensions(&packet, &mut network).is_err() {
        return 0;
    }
    let Some(Scratch { facts, .. }) = Scratch::get() else {
        return 0;
    };
    read(facts, &packet, &network);
    dropped_by(&packet, facts, limit)
}

#[inline(always)]
fn dropped_by(packet: &Packet, facts: &Facts, limit: u32) -> u32 {
    let limit = if limit > Filter::MOST { Filter::MOST } else { limit };
    for index in 0..limit {
        let Some(filter) = filters.get(index) else {
            return 0;
        };
        let in_use = filter.kind & Filter::IN_USE != 0;
        if in_use && filter.matches(facts) && (filter.kind & Filter::BYTES == 0 || has_bytes(packet, filter))
        {
            count(filter_counters.get_ptr_mut(index), packet.len() as u64, false);
            if filter.kind & Filter::DROP != 0 {
                return index + 1;
            }
        }
    }
    0
}

/// Reads what the rules look at. It lies in [`Scratch`], not on the stack, where the verifier would follow each value that
/// it can have through all rules.
#[inline(always)]
fn read(facts: &mut Facts, packet: &Packet, network: &Network) {
    (facts.src, facts.dst) = (network.src, network.dst);
    (facts.length, facts.proto) = (network.length as u16, network.proto);
    (facts.ports, facts.tcp_flags, facts.zero) = ([0; 2], 0, 0);
    facts.has = if network.dst.is_v4() { Filter::V4 } else { Filter::V6 };
    facts.has |= if matches!(network.part, Part::Whole) { Filter::WHOLE } else { Filter::FRAGMENT };
    if matches!(network.part, Part::Later) {
        return;
    }
    if matches!(network.proto, proto::TCP | proto::UDP | proto::SCTP)
        && let Some(ports) = packet.at::<[u16; 2]>(network.end)
    {
        // SAFETY: `at` has checked the bounds.
        let [source, destination] = unsafe { *ports };
        facts.ports = [u16::from_be(source), u16::from_be(destination)];
        facts.has |= Filter::PORTS;
    }
    if network.proto == proto::TCP
        && let Some(tcp) = packet.at::<[u8; offset_of!(Tcp, flags) + 1]>(network.end)
    {
        // SAFETY: `at` has checked the bounds.
        facts.tcp_flags = unsafe { (*tcp)[offset_of!(Tcp, flags)] };
        facts.has |= Filter::TCP_FLAGS;
    }
}

/// Byte by byte: only those that count have to be there.
#[inline(always)]
fn has_bytes(packet: &Packet, filter: &Filter) -> bool {
    let first = ETH + (filter.offset as usize & 0x7ff);
    let (mut index, mut found, mut there) = (0, 0_u32, 0_u32);
    while index < 4 {
        if let Some(byte) = packet.byte(first + index) {
            found |= (byte as u32) << (index * 8);
            there |= 0xff << (index * 8);
        }
        index += 1;
    }
    (filter.mask & !there) | (found & filter.mask ^ filter.value) == 0
}
