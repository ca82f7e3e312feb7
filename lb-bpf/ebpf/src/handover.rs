//! Packets that XDP has made ready to be sent, but that an interface does not take from XDP: a veth whose peer does not poll
//! (neither GRO nor a program there), a bridge, a driver without `ndo_xdp_xmit`. XDP notes in front of the packet where it
//! is to leave and passes it up; at the ingress of TC the first program reads that, and sends it on as the stack does.
use crate::{
    context::{Context, Skb},
    datapath::count,
    global,
    maps::{config, mark, ports, verdict_counters},
    packet::{ETH, Packet},
    vlan,
};
use aya_ebpf::{
    bindings::{__sk_buff, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action},
    helpers::{bpf_redirect, bpf_skb_vlan_pop, bpf_xdp_adjust_meta},
    programs::XdpContext,
};
use lb_bpf_common::{Config, Marker, Verdict};

/// Redirects a frame to another interface, or has it sent there; gives what the program returns.
#[inline(always)]
pub fn redirect(ctx: &XdpContext, ifindex: u32) -> u32 {
    match ports.redirect(ifindex, xdp_action::XDP_PASS as u64) {
        Ok(action) => action,
        Err(_) => global::fairlead_hand_over(ctx.ctx, ifindex),
    }
}

/// Whether what is sent back may have to be handed over. It is asked at the end: to keep what is known from the begin would take
/// room on the stack, of which there is none to spare.
#[inline(always)]
pub fn is_wary() -> bool {
    config.get(0).is_some_and(|known| known.flags & Config::WARY != 0)
}

/// Sends a frame back through the interface where it came in, or has that done; gives what the program returns.
#[inline(always)]
pub fn send_back(ctx: &XdpContext, ifindex: u32) -> u32 {
    match ports.get_ifindex(ifindex) {
        Some(_) => xdp_action::XDP_TX,
        None => send(ctx, ifindex),
    }
}

/// Has a frame sent out through an interface that takes none; gives what the program returns.
#[inline(always)]
pub fn send(ctx: &XdpContext, ifindex: u32) -> u32 {
    if mark_for(ctx, ifindex).is_some() {
        return xdp_action::XDP_PASS;
    }
    let bytes = (ctx.data_end() - ctx.data()) as u64;
    count(verdict_counters.get_ptr_mut(Verdict::NotHandedOver as u32), bytes, false);
    // SAFETY: no pointer is passed.
    unsafe { bpf_redirect(ifindex, 0) as u32 }
}

#[inline(always)]
fn mark_for(ctx: &XdpContext, ifindex: u32) -> Option<()> {
    let datapath = *mark.get(0)?;
    // SAFETY: the kernel gives the bounds, and only this program sees the packet.
    let packet = unsafe { Packet::new(ctx.data(), ctx.data_end(), ctx.data_end() - ctx.data()) };
    let (tags, source) = (tags_of(&packet), source_of(&packet)?);
    // SAFETY: the context is the kernel's. All pointers into the packet end here.
    if unsafe { bpf_xdp_adjust_meta(ctx.ctx, -(size_of::<Marker>() as i32)) } != 0 {
        return None;
    }
    let (begin, end) = (ctx.metadata(), ctx.metadata_end());
    if begin + size_of::<Marker>() > end {
        return None;
    }
    // SAFETY: the bounds were checked.
    unsafe { *(begin as *mut Marker) = Marker { datapath, ifindex, tags, source } };
    Some(())
}

/// How many VLAN tags are in front of what the datapath sends: two at most.
#[inline(always)]
fn tags_of(packet: &Packet) -> u16 {
    let is_tag = |offset| match packet.at::<u32>(offset) {
        // SAFETY: `at` has checked the bounds.
        Some(word) => vlan::is_tag(unsafe { *word }),
        None => false,
    };
    if !is_tag(ETH - 2) {
        return 0;
    }
    1 + is_tag(ETH + 2) as u16
}

/// The source address of a frame.
#[inline(always)]
fn source_of(packet: &Packet) -> Option<[u16; 3]> {
    // SAFETY: `at` has checked the bounds.
    packet.at(6).map(|source| unsafe { *source })
}

/// Sends on a packet that has a marker of this datapath, unless that has been done, and somebody has routed the packet back to
/// here; gives what the program returns. All others pay one compare.
#[inline(always)]
pub fn take(skb: *mut __sk_buff) -> i32 {
    // SAFETY: the kernel's context.
    let (begin, end) = unsafe { ((*skb).data_meta as usize, (*skb).data as usize) };
    if begin + size_of::<Marker>() > end {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the bounds were checked, and nobody writes there.
    let marker = unsafe { *(begin as *const Marker) };
    match mark.get(0) {
        Some(datapath) if *datapath == marker.datapath => {}
        _ => return TC_ACT_UNSPEC,
    }
    if source_of(&Skb::<false>(skb).packet()) != Some(marker.source) {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the kernel's context.
    if unsafe { (*skb).vlan_present } != 0 && global::fairlead_has_old_tag(skb, marker.tags as u32) != 0 {
        // SAFETY: likewise. All pointers into the packet end here.
        if unsafe { bpf_skb_vlan_pop(skb) } != 0 {
            return TC_ACT_SHOT as i32;
        }
    }
    // SAFETY: no pointer is passed.
    unsafe { bpf_redirect(marker.ifindex, 0) as i32 }
}

/// Whether a packet, which has a VLAN tag beside it, has more tags than XDP has left in it: then that one is of before. (The
/// kernel has put the first of those in it beside it, if there was none.)
#[inline(always)]
pub fn has_old_tag(packet: &Packet, tags: u32) -> bool {
    1 + tags_of(packet) as u32 > tags
}
