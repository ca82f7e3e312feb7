//! VLAN tags (IEEE 802.1Q): off before anything looks at a frame, on again when it leaves. Only frames that have tags pay
//! for them.
use crate::packet::{Macs, Packet};
use aya_ebpf::{helpers::bpf_xdp_adjust_head, programs::XdpContext};
use lb_bpf_common::Tags;

use crate::context::Context;

/// Offset of the first tag: behind the two addresses.
const FIRST: usize = size_of::<Macs>();

/// Whether a word behind the addresses, or behind a tag, is a tag: of a customer (0x8100) or of a provider (0x88a8).
#[inline(always)]
pub const fn is_tag(word: u32) -> bool {
    matches!(u16::from_be(word as u16), 0x8100 | 0x88a8)
}

/// Takes the tags off and notes them. If there are more than two the frame stays as it is, and there are none.
#[inline(never)]
pub fn strip(ctx: &XdpContext, tags: &mut Tags) -> bool {
    let packet = ctx.packet();
    let Some(found) = read(&packet) else {
        return false;
    };
    let Some(macs) = packet.at::<Macs>(0) else {
        return false;
    };
    // SAFETY: `at` has checked the bounds.
    let macs = unsafe { *macs };
    // SAFETY: the context is the kernel's. All pointers into the packet end here.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, found.len() as i32) } != 0 {
        return false;
    }
    let Some(head) = ctx.packet().at::<Macs>(0) else {
        return false;
    };
    // SAFETY: `at` has checked the bounds.
    unsafe { *head = macs };
    *tags = found;
    true
}

/// The tags of a frame; nothing if there are more than two.
#[inline(always)]
fn read(packet: &Packet) -> Option<Tags> {
    let words = packet.at::<[u32; 2]>(FIRST)?;
    // SAFETY: `at` has checked the bounds.
    let [first, second] = unsafe { *words };
    if !is_tag(second) {
        return Some(Tags([first, 0]));
    }
    let third = packet.at::<u32>(FIRST + 8)?;
    // SAFETY: `at` has checked the bounds.
    let third = unsafe { *third };
    if is_tag(third) { None } else { Some(Tags([first, second])) }
}

/// Puts tags on.
#[inline(never)]
pub fn push(ctx: &XdpContext, tags: &Tags) -> bool {
    let Some(macs) = ctx.packet().at::<Macs>(0) else {
        return false;
    };
    // SAFETY: `at` has checked the bounds.
    let macs = unsafe { *macs };
    // SAFETY: the context is the kernel's. All pointers into the packet end here.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(tags.len() as i32)) } != 0 {
        return false;
    }
    let packet = ctx.packet();
    let (Some(head), Some(first)) = (packet.at::<Macs>(0), packet.at::<u32>(FIRST)) else {
        return false;
    };
    // SAFETY: `at` has checked the bounds.
    unsafe {
        *head = macs;
        *first = tags.0[0];
    }
    if tags.0[1] != 0 {
        let Some(second) = packet.at::<u32>(FIRST + 4) else {
            return false;
        };
        // SAFETY: `at` has checked the bounds.
        unsafe { *second = tags.0[1] };
    }
    true
}
