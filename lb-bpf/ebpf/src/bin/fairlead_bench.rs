//! The object that the loader takes: entry points only.
#![no_std]
#![no_main]
use aya_ebpf::{bindings::xdp_action, macros::xdp, programs::XdpContext};
use fairlead_ebpf as _;

/// Passes every packet: a veth delivers redirected frames only to a peer that has an XDP program.
#[xdp]
pub fn fairlead_pass(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

/// The datapath.
#[xdp]
pub fn fairlead_xdp(_ctx: XdpContext) -> u32 {
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
