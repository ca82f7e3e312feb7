//! What is rare, as global functions: the verifier goes through each once, whoever calls it with whatever it knows, so that
//! they do not multiply (Linux, bpf/verifier: "global functions"). Only the context and numbers are passed; what else
//! there is to say goes through [`crate::maps::Scratch`].
use crate::{
    context::{Context, Skb},
    datapath::Found,
    decap, event,
    family::{Family, V4, V6},
    filter,
    flow::{self, Chosen},
    handover, icmp, local, nat,
    packet::ether_type,
    parse::Transport,
    quic,
    recent::Place,
    vip,
};
use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    programs::XdpContext,
};
use core::hint::black_box;
use lb_bpf_common::{Addr, Memo, Verdict, proto};

/// What a global function gave. For the verifier it may be any number, and so it must be for the compiler, which would
/// leave checks out.
#[inline(always)]
pub fn unknown<T>(given: T) -> T {
    black_box(given)
}

/// A verdict that a global function gave.
#[inline(always)]
pub fn verdict(number: u32) -> Verdict {
    match Verdict::of(unknown(number)) {
        Some(verdict) => verdict,
        None => Verdict::Malformed,
    }
}

/// Calls `$v4` or `$v6`, whatever the packet is.
macro_rules! by_family {
    ($ctx:expr, $v4:expr, $v6:expr) => {{
        let ctx = XdpContext::new($ctx);
        let verdict = match ether_type(&ctx.packet()) {
            V4::ETHER_TYPE => $v4(&ctx),
            V6::ETHER_TYPE => $v6(&ctx),
            _ => Verdict::NotOurs as _,
        };
        verdict as u32
    }};
}

/// Takes a way back over from the version before; 0: it has none.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_take_over() -> u32 {
    nat::take_over().is_some() as u32
}

/// Applies the packet filters to a frame. See [`filter::apply`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_xdp_filter(ctx: *mut xdp_md, limit: u32) -> u32 {
    filter::apply(&XdpContext::new(ctx), limit)
}

/// Likewise to a socket buffer.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_tc_filter(skb: *mut __sk_buff, limit: u32) -> u32 {
    filter::apply(&Skb::<false>(skb), limit)
}

/// What is behind the extension headers of IPv6 in a frame, as [`Found`] packs it.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_xdp_extensions(ctx: *mut xdp_md) -> u64 {
    Found::behind_extensions(&XdpContext::new(ctx))
}

/// Likewise in a socket buffer.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_tc_extensions(skb: *mut __sk_buff) -> u64 {
    Found::behind_extensions(&Skb::<false>(skb))
}

/// Whether an address, given as its words, is a VIP for whatever port.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_is_vip(a: u32, b: u32, c: u32, d: u32, mask: u32) -> u32 {
    let addr = Addr([a, b, c, d]);
    let icmp = if addr.is_v4() { proto::ICMP } else { proto::ICMPV6 };
    vip::find(&addr, 0, icmp, 0, mask).is_some() as u32
}

/// Whether a service lets a client in, given as the words of its address. See [`vip::lets_in`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_lets_in(service: u32, a: u32, b: u32, c: u32, d: u32) -> u32 {
    vip::lets_in(service, &Addr([a, b, c, d])) as u32
}

/// The backend that the connection ID of a QUIC packet names in a frame; 0: none. See [`quic::server`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_xdp_quic(ctx: *mut xdp_md, transport: u32, service: u32, bytes: u32) -> u32 {
    quic::server(&XdpContext::new(ctx), transport, service, bytes)
}

/// Likewise in a socket buffer.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_tc_quic(skb: *mut __sk_buff, transport: u32, service: u32, bytes: u32) -> u32 {
    quic::server(&Skb::<false>(skb), transport, service, bytes)
}

/// Counts a packet of a service that was not sent to a backend. See [`event::count_drop`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_count_drop(service: u32, verdict: u32, bytes: u64) -> u32 {
    event::count_drop(service, verdict, bytes);
    0
}

/// Reports the packet in [`crate::maps::Scratch`]. See [`event::report`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_report(service: u32, verdict: u32, ifindex: u32, bytes: u32) -> u32 {
    if let Some(verdict) = Verdict::of(verdict) {
        event::report(service, verdict, ifindex, bytes);
    }
    0
}

/// Reports a frame whose flow is nowhere yet. See [`event::report_packet`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_xdp_report(ctx: *mut xdp_md, verdict: u32, rule: u32) -> u32 {
    event::report_packet(&XdpContext::new(ctx), verdict, rule);
    0
}

/// Likewise a socket buffer.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_tc_report(skb: *mut __sk_buff, verdict: u32, rule: u32) -> u32 {
    event::report_packet(&Skb::<false>(skb), verdict, rule);
    0
}

/// What [`fairlead_xdp_reply`] and [`fairlead_tc_reply`] take as `judged`: the TCP flags of a packet that is good, or the
/// verdict on it; and whether it leaves this host.
#[inline(always)]
pub const fn reply(judged: Result<Transport, Verdict>, leaves: bool) -> u32 {
    let judged = match judged {
        Ok(transport) => transport.flags as u32,
        Err(verdict) => 0x100 | (verdict as u32) << 16,
    };
    judged | (leaves as u32) << 9
}

/// Remembers that a flow goes to `backend`; 0: forgets where it went. See [`Place::note`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_note(memo: u64, line: u32, backend: u32) -> u32 {
    Place { memo: Memo(memo), line }.note(backend);
    0
}

/// Where the tracked flow in [`crate::maps::Scratch`] goes; `Translated`: it is there now; `Unresolved`: the flow first needs
/// a port. See [`flow::choose`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_choose(claimed: u32) -> u32 {
    (match flow::choose(claimed != 0) {
        Ok(Chosen::There) => Verdict::Translated,
        Ok(Chosen::NeedsPort) => Verdict::Unresolved,
        Err(verdict) => verdict,
    }) as u32
}

macro_rules! claim {
    ($name:ident, $raw:ty, $context:expr) => {
        /// Claims a port for the flow in [`crate::maps::Scratch`]; `Translated`: it has one. See [`nat::claim`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $name(raw: *mut $raw) -> u32 {
            (match nat::claim(&$context(raw)) {
                Ok(()) => Verdict::Translated,
                Err(verdict) => verdict,
            }) as u32
        }
    };
}

claim!(fairlead_xdp_claim, xdp_md, XdpContext::new);
claim!(fairlead_tc_claim, __sk_buff, Skb::<false>);
claim!(fairlead_tc_claim_own, __sk_buff, Skb::<true>);

macro_rules! translate {
    ($request:ident, $reply:ident, $raw:ty, $context:expr) => {
        /// Translates a request. See [`nat::translate_request`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $request(raw: *mut $raw, transport: u32) -> u32 {
            let (ctx, transport) = ($context(raw), (transport & 0xfff) as usize);
            let verdict = match ether_type(&ctx.packet()) {
                V4::ETHER_TYPE => nat::translate_request::<_, V4>(&ctx, transport),
                _ => nat::translate_request::<_, V6>(&ctx, transport),
            };
            verdict as u32
        }

        /// Translates a reply. See [`nat::translate_reply`].
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $reply(raw: *mut $raw, transport: u32, judged: u32) -> u32 {
            let (ctx, transport) = ($context(raw), (transport & 0xfff) as usize);
            let fault = if judged & 0x100 != 0 { Verdict::of(judged >> 16) } else { None };
            let (flags, leaves) = (judged as u8, judged & 0x200 != 0);
            let verdict = match ether_type(&ctx.packet()) {
                V4::ETHER_TYPE => nat::translate_reply::<_, V4>(&ctx, transport, flags, leaves, fault),
                _ => nat::translate_reply::<_, V6>(&ctx, transport, flags, leaves, fault),
            };
            verdict as u32
        }
    };
}

translate!(fairlead_xdp_request, fairlead_xdp_reply, xdp_md, XdpContext::new);
translate!(fairlead_tc_request, fairlead_tc_reply, __sk_buff, Skb::<false>);

/// Finds the place of the flow in [`crate::maps::Scratch`] among the backends of this host; `Translated`: it is there. See
/// [`local::locate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_locate() -> u32 {
    (match local::locate() {
        Ok(()) => Verdict::Translated,
        Err(verdict) => verdict,
    }) as u32
}

/// Reads a packet that has come out of a tunnel; `Translated`: it is in [`crate::maps::Scratch`]. See [`local::receive`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_receive(ctx: *mut xdp_md) -> u32 {
    by_family!(ctx, local::receive::<V4>, local::receive::<V6>)
}

/// Takes the outer header of GUE off. See [`decap::decapsulate_gue`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_gue(ctx: *mut xdp_md) -> u32 {
    by_family!(ctx, decap::decapsulate_gue::<V4>, decap::decapsulate_gue::<V6>)
}

/// Takes the outer header of IPIP off. See [`decap::decapsulate`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_decapsulate(ctx: *mut xdp_md) -> u32 {
    by_family!(ctx, decap::decapsulate::<V4>, decap::decapsulate::<V6>)
}

/// Handles an ICMP message; where it goes is in [`crate::maps::Scratch`]. See [`icmp::message`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_icmp(ctx: *mut xdp_md, of: u32) -> u32 {
    icmp::message::<V4>(&XdpContext::new(ctx), of as u8) as u32
}

/// Likewise of ICMPv6: a function of its own for the stack's sake.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_icmpv6(ctx: *mut xdp_md, of: u32) -> u32 {
    icmp::message::<V6>(&XdpContext::new(ctx), of as u8) as u32
}

/// Answers that only `mtu` bytes fit. See [`icmp::too_big`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_too_big(ctx: *mut xdp_md, mtu: u32) -> u32 {
    let mtu = mtu as usize;
    by_family!(ctx, |ctx| icmp::too_big::<V4>(ctx, mtu), |ctx| icmp::too_big::<V6>(ctx, mtu))
}

/// Answers that no hops were left. See [`icmp::time_exceeded`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_time_exceeded(ctx: *mut xdp_md) -> u32 {
    by_family!(ctx, icmp::time_exceeded::<V4>, icmp::time_exceeded::<V6>)
}

/// Has a frame sent out through an interface that does not take it; gives what the program returns. See [`handover::send`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_hand_over(ctx: *mut xdp_md, ifindex: u32) -> u32 {
    handover::send(&XdpContext::new(ctx), ifindex)
}

/// Sends a frame back where it came from, if that interface takes it, else has that done. See [`handover::send_back`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_send_back(ctx: *mut xdp_md, ifindex: u32) -> u32 {
    handover::send_back(&XdpContext::new(ctx), ifindex)
}

/// Whether the VLAN tag beside a packet is void. See [`handover::has_old_tag`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn fairlead_has_old_tag(skb: *mut __sk_buff, tags: u32) -> u32 {
    handover::has_old_tag(&Skb::<false>(skb).packet(), tags) as u32
}
