//! Packet filters: rules that are applied before anything else.
use crate::{
    context::Context,
    datapath::count,
    family::{Family, Network, Part, V4, V6, extensions},
    maps::{Scratch, filter_counters, filters},
    packet::{ETH, Eth, Packet, Tcp},
};
use core::mem::offset_of;
use lb_bpf_common::{Addr, Filter, proto};

/// Most rules that are looked at: with more the verifier gives up.
const MOST: u32 = 256;

/// Applies the first `limit` entries of `filters`; whether one of them drops the packet. Each that matches counts it, up to
/// the one that drops. What is no IP packet, or has extension headers that cannot be looked through, is let through.
#[inline(always)]
pub fn apply<C: Context>(ctx: &C, limit: u32) -> bool {
    let packet = ctx.packet();
    let Some(eth) = packet.at::<Eth>(0) else {
        return false;
    };
    // SAFETY: `at` has checked the bounds.
    let network = match unsafe { (*eth).ether_type } {
        V4::ETHER_TYPE => V4::network(&packet, ETH),
        V6::ETHER_TYPE => V6::network(&packet, ETH),
        _ => None,
    };
    let Some(mut network) = network else {
        return false;
    };
    if !network.dst.is_v4() && extensions(&packet, &mut network).is_err() {
        return false;
    }
    let Some(Scratch { facts, .. }) = Scratch::get() else {
        return false;
    };
    facts.read(&packet, &network);
    drops(&packet, facts, limit)
}

#[inline(always)]
fn drops(packet: &Packet, facts: &Facts, limit: u32) -> bool {
    let limit = if limit > MOST { MOST } else { limit };
    for index in 0..limit {
        let Some(filter) = filters.get(index) else {
            return false;
        };
        if filter.kind & Filter::IN_USE != 0 && facts.match_all(packet, filter) {
            count(filter_counters.get_ptr_mut(index), packet.len() as u64, false);
            if filter.kind & Filter::DROP != 0 {
                return true;
            }
        }
    }
    false
}

/// What is read once, whatever the rules ask. It lies in [`Scratch`], not on the stack, where the verifier would follow each
/// value that it can have through all rules.
#[repr(C)]
pub struct Facts {
    src: Addr,
    dst: Addr,
    /// Source and destination, host byte order.
    ports: [u16; 2],
    /// Of the IP packet.
    length: u16,
    /// [`Filter::V4`] or [`Filter::V6`], [`Filter::FRAGMENT`] or [`Filter::WHOLE`], and [`Filter::PORTS`] and
    /// [`Filter::TCP_FLAGS`], as far as the packet has them.
    has: u16,
    proto: u8,
    tcp_flags: u8,
    zero: u16,
}

impl Facts {
    #[inline(always)]
    fn read(&mut self, packet: &Packet, network: &Network) {
        (self.src, self.dst) = (network.src, network.dst);
        (self.length, self.proto) = (network.length as u16, network.proto);
        (self.ports, self.tcp_flags, self.zero) = ([0; 2], 0, 0);
        self.has = if network.dst.is_v4() { Filter::V4 } else { Filter::V6 };
        self.has |= if matches!(network.part, Part::Whole) { Filter::WHOLE } else { Filter::FRAGMENT };
        if matches!(network.part, Part::Later) {
            return;
        }
        if matches!(network.proto, proto::TCP | proto::UDP | proto::SCTP)
            && let Some(ports) = packet.at::<[u16; 2]>(network.end)
        {
            // SAFETY: `at` has checked the bounds.
            let [source, destination] = unsafe { *ports };
            self.ports = [u16::from_be(source), u16::from_be(destination)];
            self.has |= Filter::PORTS;
        }
        if network.proto == proto::TCP
            && let Some(tcp) = packet.at::<[u8; offset_of!(Tcp, flags) + 1]>(network.end)
        {
            // SAFETY: `at` has checked the bounds.
            self.tcp_flags = unsafe { (*tcp)[offset_of!(Tcp, flags)] };
            self.has |= Filter::TCP_FLAGS;
        }
    }

    #[inline(always)]
    fn match_all(&self, packet: &Packet, filter: &Filter) -> bool {
        /// Bits of `kind` that ask for something that a packet has or has not.
        const ASKED: u16 = Filter::V4
            | Filter::V6
            | Filter::FRAGMENT
            | Filter::WHOLE
            | Filter::PORTS
            | Filter::TCP_FLAGS;
        // Without branches where it can be: every branch here is one in each of the rounds that the verifier takes. All
        // differences from what is asked are put together; what is not asked for is masked.
        let missing = filter.kind & ASKED & !self.has;
        let proto = if filter.kind & Filter::PROTO != 0 { filter.proto ^ self.proto } else { 0 };
        let tcp_flags = self.tcp_flags & filter.tcp_mask ^ filter.tcp_flags;
        let addresses =
            beyond(&self.src, &filter.src, &filter.src_mask) | beyond(&self.dst, &filter.dst, &filter.dst_mask);
        if missing as u32 | (proto | tcp_flags) as u32 | addresses != 0 {
            return false;
        }
        // Those of a packet without ports are 0, and then all ports are right or PORTS was missing.
        within(self.length, &filter.length)
            && within(self.ports[0], &filter.src_ports)
            && within(self.ports[1], &filter.dst_ports)
            && (filter.kind & Filter::BYTES == 0 || has_bytes(packet, filter))
    }
}

#[inline(always)]
const fn within(number: u16, range: &[u16; 2]) -> bool {
    number.wrapping_sub(range[0]) <= range[1].wrapping_sub(range[0])
}

/// 0 if the address is in the network.
#[inline(always)]
const fn beyond(addr: &Addr, net: &Addr, mask: &Addr) -> u32 {
    (addr.0[0] & mask.0[0] ^ net.0[0])
        | (addr.0[1] & mask.0[1] ^ net.0[1])
        | (addr.0[2] & mask.0[2] ^ net.0[2])
        | (addr.0[3] & mask.0[3] ^ net.0[3])
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
