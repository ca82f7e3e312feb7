//! A generator of packets: run with `BPF_F_TEST_XDP_LIVE_FRAMES` it sends flows of made-up clients out of an interface.
//! The kernel uses a frame again as its receiver has left it, so the head is written anew each time. See
//! `lb-bpf/examples/load.rs`. And a sink for what comes back.
#![no_std]
#![no_main]
#![expect(non_upper_case_globals, reason = "the name of the static is the name of the map")]
use aya_ebpf::{
    bindings::xdp_action,
    btf_maps::{Array, PerCpuArray},
    macros::{btf_map, xdp},
    programs::XdpContext,
};

/// What is sent.
#[repr(C)]
pub struct Load {
    /// The first 80 bytes of the frame. The source port and the last two bytes of the source address are 0; checksums
    /// are right.
    head: [u64; 10],
    /// Number of flows less one; the number is a power of two.
    mask: u32,
    /// Always 0.
    zero: u32,
}

/// One element.
#[btf_map]
static load: Array<Load, 1> = Array::new();

/// State of the generator (xorshift) of each CPU.
#[btf_map]
static random: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Where the `T` at `offset` of the frame lies.
#[inline(always)]
fn at<T>(ctx: &XdpContext, offset: usize) -> Option<*mut T> {
    let first = ctx.data() + offset;
    if first + size_of::<T>() > ctx.data_end() {
        return None;
    }
    Some(first as *mut T)
}

/// Makes a checksum good for two words that were 0 when it was computed (RFC 1624).
#[inline(always)]
fn add(checksum: u16, address: u16, port: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(address) + u32::from(port);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// Writes the head with one of the flows. `ports` is the offset of the transport header, `checksum` that of its
/// checksum, `address` that of the last two bytes of the source.
#[inline(always)]
fn write(ctx: &XdpContext, address: usize, ports: usize, checksum: usize) -> Option<()> {
    let state = random.get_ptr_mut(0)?;
    // SAFETY: the value is this CPU's.
    let mut bits = unsafe { *state };
    if bits == 0 {
        bits = 0x9e37_79b9_7f4a_7c15;
    }
    bits ^= bits << 13;
    bits ^= bits >> 7;
    bits ^= bits << 17;
    // SAFETY: as above.
    unsafe { *state = bits };
    let what = load.get(0)?;
    let flow = (bits >> 20) as u32 & what.mask;
    let (low, port) = ((flow >> 16) as u16, flow as u16);
    let head = at::<[u64; 10]>(ctx, 0)?;
    let source = at::<u16>(ctx, address)?;
    let source_port = at::<u16>(ctx, ports)?;
    let sum = at::<u16>(ctx, checksum)?;
    // SAFETY: `at` has checked the bounds of each; the frame is ours.
    unsafe {
        *head = what.head;
        *source = low;
        *source_port = port;
        *sum = add(*sum, low, port);
    }
    if ports == ETH + IPV4 {
        let sum = at::<u16>(ctx, ETH + 10)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { *sum = add(*sum, low, 0) };
    }
    Some(())
}

const ETH: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;

macro_rules! programs {
    ($($(#[$doc:meta])* $name:ident: $address:expr, $ports:expr, $checksum:expr;)*) => {$(
        $(#[$doc])*
        #[xdp]
        pub fn $name(ctx: XdpContext) -> u32 {
            match write(&ctx, $address, $ports, $ports + $checksum) {
                Some(()) => xdp_action::XDP_TX,
                None => xdp_action::XDP_ABORTED,
            }
        }
    )*};
}

programs! {
    /// TCP over IPv4.
    tcp_v4: ETH + 14, ETH + IPV4, 16;
    /// TCP over IPv6.
    tcp_v6: ETH + 22, ETH + IPV6, 16;
    /// UDP over IPv4.
    udp_v4: ETH + 14, ETH + IPV4, 6;
    /// UDP over IPv6.
    udp_v6: ETH + 22, ETH + IPV6, 6;
}

/// Drops what is left of UDP packets, translated or in a tunnel over IPv4, at the least cost; passes TCP, ICMP and all
/// that is not IPv4.
#[xdp]
pub fn sink(ctx: XdpContext) -> u32 {
    const ETHER_TYPE: u16 = 0x0800_u16.to_be();
    const PASSED: [u8; 2] = [1, 6];
    let (Some(ether_type), Some(proto)) = (at::<u16>(&ctx, 12), at::<u8>(&ctx, ETH + 9)) else {
        return xdp_action::XDP_PASS;
    };
    // SAFETY: `at` has checked the bounds.
    let (ether_type, proto) = unsafe { (*ether_type, *proto) };
    if ether_type == ETHER_TYPE && !PASSED.contains(&proto) {
        return xdp_action::XDP_DROP;
    }
    xdp_action::XDP_PASS
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
