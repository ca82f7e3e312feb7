//! The other end of the tunnel: the outer header goes off and the stack gets what the client sent.
use crate::{
    context::Context,
    family::{Family, Network, Part, V4, V6},
    maps::decap,
    packet::{ETH, Eth, Macs, Packet, Udp},
};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_bpf_common::{DecapKey, Verdict, proto};

/// What the functions here give beside verdicts: the inner packet is for a backend of this host.
pub const TO_LOCAL: u32 = 0x100;

/// Strips the outer header of IPIP, of the family `Outer`, if this host accepts the inner destination through this tunnel
/// end.
#[inline(always)]
pub fn decapsulate<Outer: Family>(ctx: &XdpContext) -> u32 {
    let packet = ctx.packet();
    let result = match Outer::network(&packet, ETH) {
        Some(outer) if outer.proto == proto::IPIP => strip::<V4>(ctx, &packet, &outer, 0),
        Some(outer) if outer.proto == proto::IPV6 => strip::<V6>(ctx, &packet, &outer, 0),
        // Behind extension headers.
        _ => Err(Verdict::NotOurs),
    };
    result.unwrap_or_else(|verdict| verdict as u32)
}

/// Likewise the outer headers of GUE: the short form (version 1, the IP packet at once), and the long one without fields
/// (version 0, four bytes; draft-ietf-intarea-gue-09, section 3). The UDP checksum is not looked at: it covers nothing that
/// the inner checksums do not (RFC 6936, section 3). Not ours: it is not for a tunnel end of this host.
#[inline(always)]
pub fn decapsulate_gue<Outer: Family>(ctx: &XdpContext) -> u32 {
    let packet = ctx.packet();
    let Some(outer) = Outer::network(&packet, ETH) else {
        return Verdict::NotOurs as u32;
    };
    if outer.proto != proto::UDP {
        return Verdict::NotOurs as u32; // behind extension headers
    }
    let start = outer.end + size_of::<Udp>();
    let Some(first) = packet.at::<[u8; 4]>(start) else {
        return Verdict::NotOurs as u32;
    };
    // SAFETY: `at` has checked the bounds.
    let first = unsafe { *first };
    /// Length of the long form's header.
    const LONG: usize = 4;
    let result = match (first[0] >> 4, first) {
        (4, _) => strip::<V4>(ctx, &packet, &outer, size_of::<Udp>()),
        (6, _) => strip::<V6>(ctx, &packet, &outer, size_of::<Udp>()),
        // No control message, no optional words, no flags.
        (0, [0, proto::IPIP, 0, 0]) => strip::<V4>(ctx, &packet, &outer, size_of::<Udp>() + LONG),
        (0, [0, proto::IPV6, 0, 0]) => strip::<V6>(ctx, &packet, &outer, size_of::<Udp>() + LONG),
        _ => Err(Verdict::NotOurs),
    };
    match result {
        Err(Verdict::DecapRefused) => Verdict::NotOurs as u32,
        Err(verdict) => verdict as u32,
        Ok(given) => given,
    }
}

/// `between`: bytes between the outer IP header and the inner one.
#[inline(always)]
fn strip<Inner: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    outer: &Network,
    between: usize,
) -> Result<u32, Verdict> {
    let inner = Inner::network(packet, outer.end + between).ok_or(Verdict::DecapRefused)?;
    let key = DecapKey { local: outer.dst, vip: inner.dst };
    // SAFETY: the value is one word.
    let end = *unsafe { decap.get(&key) }.ok_or(Verdict::DecapRefused)?;
    if outer.part != Part::Whole {
        return Err(Verdict::Fragment);
    }
    let header = outer.end - outer.start + between;
    if !outer.holds(packet, between + inner.end - inner.start) || inner.length > outer.length - header {
        return Err(Verdict::Malformed);
    }
    // SAFETY: `at` has checked the bounds.
    let macs = unsafe { Macs::read(packet.at::<Eth>(0).ok_or(Verdict::Malformed)?.cast()) };
    // SAFETY: the context is the kernel's. All pointers into the packet end here.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, header as i32) } != 0 {
        return Err(Verdict::NoHeadroom);
    }
    let eth = ctx.packet().at::<Eth>(0).ok_or(Verdict::NoHeadroom)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        macs.write(eth.cast());
        (*eth).ether_type = Inner::ETHER_TYPE;
    }
    Ok(if end == DecapKey::TO_LOCAL { TO_LOCAL } else { Verdict::Decapsulated as u32 })
}
