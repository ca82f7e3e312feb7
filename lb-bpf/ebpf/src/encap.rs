//! IPIP: the whole packet inside a new header (RFC 2003, RFC 2473), to the backend that serves the VIP itself.
use crate::{
    datapath::current_packet,
    family::{Family, Network},
    packet::{ETH, Eth, Macs, Packet},
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_bpf_common::{Backend, Verdict};

/// Sends the packet, which [fits](crate::datapath::fits), to `backend` in a tunnel. The inner TTL sinks by one, for this host forwards (RFC 2003, section
/// 3.1; RFC 2473, section 3.1); that also ends a loop of hosts which balance to each other.
#[inline(always)]
pub fn encapsulate<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    network: &Network,
    hash: u32,
    backend: &Backend,
) -> Result<Verdict, Verdict> {
    let (Some(class), Some(())) = (F::class(packet), F::forward(packet, None)) else {
        return Err(Verdict::Malformed);
    };
    // SAFETY: the context is the kernel's. All pointers into the packet end here.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(F::OUTER as i32)) } != 0 {
        return Err(Verdict::NoHeadroom);
    }
    let packet = current_packet(ctx);
    let written = F::write_outer(&packet, backend, class, hash, network.length);
    let (Some(()), Some(eth)) = (written, packet.at::<Eth>(0)) else {
        return Err(Verdict::NoHeadroom);
    };
    // SAFETY: `at` has checked the bounds; the backend's addresses lie one behind the other.
    unsafe {
        Macs::read(backend.next_hop.as_ptr()).write(eth.cast());
        (*eth).ether_type = F::ETHER_TYPE;
    }
    const { assert!(core::mem::offset_of!(Backend, source_mac) == core::mem::offset_of!(Backend, next_hop) + 6) };
    const { assert!(ETH == size_of::<Eth>()) };
    Ok(Verdict::Encapsulated)
}
