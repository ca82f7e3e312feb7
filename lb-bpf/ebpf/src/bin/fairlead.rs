//! The object that the loader takes: entry points only.
#![no_std]
#![no_main]
use aya_ebpf::{
    bindings::xdp_action,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use fairlead_ebpf::{context::Skb, datapath, handover};

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

/// Sends on what [`fairlead_xdp`] has made ready for an interface that takes no redirected frames.
#[classifier]
pub fn fairlead_handover(ctx: TcContext) -> i32 {
    handover::take(ctx.skb.skb)
}

/// Passes every packet. A veth takes redirected frames if its peer has a program, or GRO.
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
