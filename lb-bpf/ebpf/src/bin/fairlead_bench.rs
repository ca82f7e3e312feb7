//! The datapath under wrappers that let BPF_PROG_TEST_RUN repeat it: the kernel does not restore the packet between
//! two runs, so each run draws a flow, runs the datapath and undoes what it did to the packet. The floors do the same
//! around next to nothing. See `lb-bpf/benches/packet.rs`.
#![no_std]
#![no_main]
#![expect(non_upper_case_globals, reason = "the name of the static is the name of the map")]
use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::Array,
    helpers::bpf_xdp_adjust_head,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use fairlead_ebpf::{
    context::Context,
    datapath::{self, Outcome},
    family::{Family, Network, V4, V6},
    packet::{ETH, Ipv4, Ipv6, Packet, Udp},
};
use lb_bpf_common::{Tags, Verdict};

/// What the wrappers go by.
#[repr(C)]
pub struct Bench {
    /// State of the generator (xorshift), never 0.
    random: u64,
    /// Number of flows less one; the number is a power of two, at most 2^24.
    mask: u64,
    /// The first 64 bytes of the packet, as every run finds them (but for the source address).
    head: [u64; 8],
}

/// One element.
#[btf_map]
static bench: Array<Bench, 1> = Array::new();

/// What is to be undone.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Nothing,
    /// An outer header.
    Tunnel,
    /// An outer header and one of UDP.
    Gue,
    /// Addresses, ports, TTL.
    Headers,
}

trait Draw: Family {
    fn set_source(packet: &Packet, flow: u32) -> Option<()>;
}

impl Draw for V4 {
    #[inline(always)]
    fn set_source(packet: &Packet, flow: u32) -> Option<()> {
        let ip = packet.at::<Ipv4>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { (*ip).src = (0x0a00_0000 | flow).to_be() };
        Some(())
    }
}

impl Draw for V6 {
    #[inline(always)]
    fn set_source(packet: &Packet, flow: u32) -> Option<()> {
        let ip = packet.at::<Ipv6>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { (*ip).src[3] = flow.to_be() };
        Some(())
    }
}

#[inline(always)]
fn draw<F: Draw>(ctx: &XdpContext) -> Option<()> {
    // SAFETY: the bench runs on one CPU.
    let state = unsafe { &mut *bench.get_ptr_mut(0)? };
    let mut random = state.random;
    random ^= random << 13;
    random ^= random >> 7;
    random ^= random << 17;
    state.random = random;
    F::set_source(&ctx.packet(), (random >> 20 & state.mask) as u32)
}

#[inline(always)]
fn undo<F: Family>(ctx: &XdpContext, change: Change) -> Option<()> {
    let outer = match change {
        Change::Nothing | Change::Headers => 0,
        Change::Tunnel => F::OUTER,
        Change::Gue => F::OUTER + size_of::<Udp>(),
    };
    // SAFETY: the context is the kernel's.
    if outer > 0 && unsafe { bpf_xdp_adjust_head(ctx.ctx, outer as i32) } != 0 {
        return None;
    }
    let head = &bench.get(0)?.head;
    let packet = ctx.packet();
    if outer > 0 {
        // Ethernet header and TTL.
        let to = packet.at::<[u64; 3]>(0)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { *to = [head[0], head[1], head[2]] };
    } else {
        let to = packet.at::<[u64; 8]>(0)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { *to = *head };
    }
    Some(())
}

/// A frame of which nothing is asked beyond what services need.
struct Bare<'a>(&'a XdpContext);

macro_rules! delegate {
    ($($name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        #[inline(always)]
        fn $name(&self, $($argument: $type),*) $(-> $result)? {
            self.0.$name($($argument),*)
        }
    )*};
}

impl Context for Bare<'_> {
    const FIRST: bool = false;
    const REPORTS: bool = false;
    const ROUTES: bool = true;
    const LEAVES: bool = false;

    delegate! {
        packet() -> Packet;
        interface() -> u32;
        way_back() -> u32;
        wire_length(length: usize) -> usize;
        encapsulate(size: usize, is_v4: bool, is_udp: bool) -> bool;
        fix_checksum(offset: usize, is_udp: bool, addresses: u64, ports: u64) -> Option<()>;
        report_early(verdict: u32, rule: u32);
        strip(tags: &mut Tags) -> bool;
        push(tags: &Tags) -> bool;
        claim() -> Verdict;
        translate_request(transport: u32) -> Verdict;
        translate_reply(transport: u32, judged: u32) -> Verdict;
        behind_extensions() -> u64;
        filter(limit: u32) -> u32;
        quic_server(transport: u32, service: u32, bytes: u32) -> u32;
        gue() -> Outcome;
        too_big(mtu: u32) -> Verdict;
        time_exceeded() -> Verdict;
        action(verdict: Verdict, ifindex: u32) -> i32;
    }

    #[inline(always)]
    fn control<F: Family>(&self, network: &Network) -> Outcome {
        self.0.control::<F>(network)
    }
}

#[inline(always)]
fn bare(ctx: &XdpContext) -> i32 {
    datapath::run(&Bare(ctx))
}

#[inline(always)]
const fn transmit(_ctx: &XdpContext) -> u32 {
    xdp_action::XDP_TX
}

#[inline(always)]
fn head_adjustment<F: Family>(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the kernel's.
    match unsafe { bpf_xdp_adjust_head(ctx.ctx, -(F::OUTER as i32)) } {
        0 => xdp_action::XDP_TX,
        _ => xdp_action::XDP_ABORTED,
    }
}

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $family:ident, $change:ident, $run:path;)*) => {$(
        $(#[$doc])*
        #[xdp]
        #[inline(always)]
        pub fn $name(ctx: XdpContext) -> u32 {
            if draw::<$family>(&ctx).is_none() {
                return xdp_action::XDP_ABORTED;
            }
            let action = $run(&ctx) as u32;
            let changed = Change::$change != Change::Nothing && action == xdp_action::XDP_TX;
            if changed && undo::<$family>(&ctx, Change::$change).is_none() {
                return xdp_action::XDP_ABORTED;
            }
            action
        }
    )*};
}

programs! {
    /// Packets that are not ours.
    pass_v4: V4, Nothing, datapath::run;
    /// IPIP.
    ipip_v4: V4, Tunnel, datapath::run;
    /// IPIP by a program without packet filters and reports.
    bare_v4: V4, Tunnel, bare;
    /// IPIP.
    ipip_v6: V6, Tunnel, datapath::run;
    /// GUE.
    gue_v4: V4, Gue, datapath::run;
    /// GUE.
    gue_v6: V6, Gue, datapath::run;
    /// What changes headers in place: L2, and requests of NAT.
    in_place_v4: V4, Headers, datapath::run;
    /// Likewise.
    in_place_v6: V6, Headers, datapath::run;
    /// The wrapper alone.
    floor_v4: V4, Nothing, transmit;
    /// The wrapper alone.
    floor_v6: V6, Nothing, transmit;
    /// The head is moved and moved back.
    floor_head_v4: V4, Tunnel, head_adjustment::<V4>;
    /// The head is moved and moved back.
    floor_head_v6: V6, Tunnel, head_adjustment::<V6>;
    /// The headers are written again.
    floor_headers_v4: V4, Headers, transmit;
    /// The headers are written again.
    floor_headers_v6: V6, Headers, transmit;
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
