//! The other end of the tunnel: the outer header goes off and the stack gets what the client sent.
use crate::{
    datapath::current_packet,
    family::{Family, Network, Part, V4, V6},
    maps::decap,
    packet::{ETH, Eth, Macs, Packet},
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_bpf_common::{DecapKey, Verdict, proto};

/// Strips the outer header, of the family `Outer`, if this host accepts the inner destination through this tunnel end.
/// A call of its own, out of the way of what is balanced.
#[inline(never)]
pub fn decapsulate<Outer: Family>(ctx: &XdpContext) -> Verdict {
    let packet = current_packet(ctx);
    let result = match Outer::network(&packet, ETH) {
        Some(outer) if outer.proto == proto::IPIP => strip::<V4>(ctx, &packet, &outer),
        Some(outer) => strip::<V6>(ctx, &packet, &outer),
        None => Err(Verdict::NotOurs),
    };
    result.unwrap_or_else(|verdict| verdict)
}

#[inline(always)]
fn strip<Inner: Family>(ctx: &XdpContext, packet: &Packet, outer: &Network) -> Result<Verdict, Verdict> {
    let inner = Inner::network(packet, outer.end).ok_or(Verdict::DecapRefused)?;
    let key = DecapKey { local: outer.dst, vip: inner.dst };
    // SAFETY: nothing here changes `decap`, and the value is not used.
    unsafe { decap.get(&key) }.ok_or(Verdict::DecapRefused)?;
    if outer.part != Part::Whole {
        return Err(Verdict::Fragment);
    }
    let header = outer.end - outer.start;
    if !outer.holds(packet, inner.end - inner.start) || inner.length > outer.length - header {
        return Err(Verdict::Malformed);
    }
    // SAFETY: `at` has checked the bounds.
    let macs = unsafe { Macs::read(packet.at::<Eth>(0).ok_or(Verdict::Malformed)?.cast()) };
    // SAFETY: the context is the kernel's. All pointers into the packet end here.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, header as i32) } != 0 {
        return Err(Verdict::NoHeadroom);
    }
    let eth = current_packet(ctx).at::<Eth>(0).ok_or(Verdict::NoHeadroom)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        macs.write(eth.cast());
        (*eth).ether_type = Inner::ETHER_TYPE;
    }
    Ok(Verdict::Decapsulated)
}
