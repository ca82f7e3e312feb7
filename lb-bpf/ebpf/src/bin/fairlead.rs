//! The object that the loader takes: entry points only.
#![no_std]
#![no_main]
use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use fairlead_ebpf::{context::Skb, datapath};

/// The datapath.
#[xdp]
#[inline(always)]
pub fn fairlead_xdp(ctx: XdpContext) -> u32 {
    datapath::run(&ctx) as u32
}

/// The datapath for packets that come in where no XDP program can be.
#[classifier]
#[inline(always)]
pub fn fairlead_tc_in(ctx: TcContext) -> i32 {
    datapath::run(&Skb::<false>::new(ctx.skb.skb))
}

/// The datapath for packets of this host that go out.
#[classifier]
#[inline(always)]
pub fn fairlead_tc_out(ctx: TcContext) -> i32 {
    datapath::run(&Skb::<true>::new(ctx.skb.skb))
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
