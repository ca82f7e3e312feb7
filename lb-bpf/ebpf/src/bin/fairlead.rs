//! The object that the loader takes: entry points only.
#![no_std]
#![no_main]
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use fairlead_ebpf::datapath;

/// The datapath.
#[xdp]
#[inline(always)]
pub fn fairlead_xdp(ctx: XdpContext) -> u32 {
    datapath::run(&ctx)
}

/// Passes every packet: a veth delivers redirected frames only to a peer that has an XDP program.
#[xdp]
pub fn fairlead_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
