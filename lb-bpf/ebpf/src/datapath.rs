//! The way of a packet: what it is, whose it is, where it goes.
use crate::{
    decap::decapsulate,
    encap::encapsulate,
    family::{Family, Network, Part, V4, V6},
    flow::{Choice, Tracked, backend_at},
    icmp,
    maps::{backend_counters, slots, verdict_counters, vips},
    nat,
    packet::{ETH, Eth, Packet},
    parse::Segment,
};
use aya_ebpf::{bindings::xdp_action, helpers::bpf_redirect, programs::XdpContext};
use core::mem::MaybeUninit;
use lb_bpf_common::{
    Action, Backend, Counter, Mode, ReverseEntry, Slot, Verdict, VipKey,
    decide::{self, Phase},
    flow_hash, proto, slot_of,
};

/// What was decided about a packet.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// The decision.
    pub verdict: Verdict,
    /// Where a packet that is sent goes out.
    pub ifindex: u32,
}

impl Outcome {
    /// A verdict that sends nothing.
    #[inline(always)]
    pub const fn verdict(verdict: Verdict) -> Self {
        Outcome { verdict, ifindex: 0 }
    }
}

/// Handles one packet; gives the XDP action.
#[inline(always)]
pub fn run(ctx: &XdpContext) -> u32 {
    let packet = current_packet(ctx);
    let bytes = packet.len() as u64;
    let Outcome { verdict, ifindex } = handle(ctx, &packet);
    match verdict {
        // Counted with the backend, or not at all: it is the path of all other traffic of the host.
        Verdict::Encapsulated | Verdict::Translated | Verdict::NotOurs => {}
        _ => count(verdict_counters.get_ptr_mut(verdict as u32), bytes, false),
    }
    match verdict.action() {
        Action::Pass => xdp_action::XDP_PASS,
        Action::Drop => xdp_action::XDP_DROP,
        Action::Transmit if ifindex == ingress(ctx) => xdp_action::XDP_TX,
        // SAFETY: no pointer is passed.
        Action::Transmit => (unsafe { bpf_redirect(ifindex, 0) }) as u32,
    }
}

/// The packet as it is now: pointers from before a change of its head are void.
#[inline(always)]
pub fn current_packet(ctx: &XdpContext) -> Packet {
    // SAFETY: the kernel gives the bounds, and only this program sees the packet.
    unsafe { Packet::new(ctx.data(), ctx.data_end()) }
}

/// Index of the interface where the packet came in.
#[inline(always)]
pub fn ingress(ctx: &XdpContext) -> u32 {
    ctx.ingress_ifindex() as u32
}

#[inline(always)]
fn handle(ctx: &XdpContext, packet: &Packet) -> Outcome {
    let Some(eth) = packet.at::<Eth>(0) else {
        return Outcome::verdict(Verdict::NotOurs);
    };
    // SAFETY: `at` has checked the bounds.
    match unsafe { (*eth).ether_type } {
        V4::ETHER_TYPE => balance::<V4>(ctx, packet),
        V6::ETHER_TYPE => balance::<V6>(ctx, packet),
        _ => Outcome::verdict(Verdict::NotOurs),
    }
}

#[inline(always)]
fn balance<F: Family>(ctx: &XdpContext, packet: &Packet) -> Outcome {
    let Some(network) = F::network(packet, ETH) else {
        return Outcome::verdict(Verdict::NotOurs);
    };
    if network.part == Part::Later {
        return Outcome::verdict(Verdict::NotOurs); // no ports
    }
    match network.proto {
        proto::TCP | proto::UDP => {}
        proto::IPIP | proto::IPV6 => return Outcome::verdict(decapsulate::<F>(ctx)),
        proto if proto == F::ICMP => return icmp::message::<F>(ctx, packet, &network),
        _ => return Outcome::verdict(Verdict::NotOurs),
    }
    let Some(segment) = Segment::parse(packet, network) else {
        return Outcome::verdict(Verdict::NotOurs);
    };
    let outcome = match nat::entry_of_reply(&segment.flow) {
        Some(entry) => reply::<F>(ctx, packet, &segment, entry),
        None => request::<F>(ctx, packet, &segment),
    };
    outcome.unwrap_or_else(Outcome::verdict)
}

/// A packet of a backend to this host's translated port.
#[inline(always)]
fn reply<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    segment: &Segment,
    entry: &mut ReverseEntry,
) -> Result<Outcome, Verdict> {
    let transport = segment.judge(packet)?;
    let ifindex = entry.ifindex;
    let verdict = nat::translate_reply::<F>(ctx, &segment.flow, segment.network.end, entry, transport.flags);
    Ok(Outcome { verdict, ifindex })
}

/// A packet of a client: VIP, slot, backend.
#[inline(always)]
fn request<F: Family>(ctx: &XdpContext, packet: &Packet, segment: &Segment) -> Result<Outcome, Verdict> {
    let Segment { network, flow } = segment;
    let key = VipKey { addr: flow.dst, port: flow.dst_port, proto: flow.proto, zero: 0 };
    // SAFETY: nothing here changes `vips`, and entries are only freed after the program ends (RCU).
    let vip = unsafe { vips.get(&key) }.ok_or(Verdict::NotOurs)?;
    let transport = segment.judge(packet)?;
    let hash = flow_hash(flow);
    let slot_index = vip.base + slot_of(hash, vip.size);
    if vip.size == 0 {
        return Err(Verdict::NoBackend);
    }
    let slot = slot_at(slot_index).ok_or(Verdict::NoBackend)?;
    let clean = if decide::is_dirty(slot) {
        None
    } else {
        let backend = backend_at(slot.current).ok_or(Verdict::NoBackend)?;
        let opening = transport.phase == Phase::Opening;
        (backend.mode != Mode::Nat as u8).then_some(Choice {
            index: slot.current,
            backend,
            nat_port: 0,
            new: opening,
        })
    };
    let choice = match clean {
        Some(choice) => choice,
        None => {
            let tracked = Tracked { key: flow, hash, service: vip.service, slot_index, slot, transport, ctx };
            let mut choice = MaybeUninit::uninit();
            tracked.choose(&mut choice)?;
            // SAFETY: written where `choose` succeeds.
            unsafe { choice.assume_init() }
        }
    };
    let backend = choice.backend;
    let ifindex = backend.ifindex;
    if ifindex == 0 {
        return Err(Verdict::Unresolved);
    }
    if !fits::<F>(network, backend) {
        let mtu = backend.mtu as usize - overhead::<F>(backend);
        return Ok(Outcome { verdict: icmp::too_big::<F>(ctx, mtu), ifindex: ingress(ctx) });
    }
    let bytes = packet.len() as u64;
    let verdict = if backend.mode == Mode::Nat as u8 {
        nat::translate_request::<F>(ctx, flow, network.end, backend, choice.nat_port)
    } else {
        encapsulate::<F>(ctx, packet, network, hash, backend)?
    };
    count(backend_counters.get_ptr_mut(choice.index), bytes, choice.new);
    Ok(Outcome { verdict, ifindex })
}

/// Whether the packet as `backend` gets it is not longer than its MTU.
#[inline(always)]
pub fn fits<F: Family>(network: &Network, backend: &Backend) -> bool {
    backend.mtu == 0 || network.length + overhead::<F>(backend) <= backend.mtu as usize
}

/// Bytes that a packet gains on the way to `backend`.
#[inline(always)]
const fn overhead<F: Family>(backend: &Backend) -> usize {
    if backend.mode == Mode::Nat as u8 { 0 } else { F::OUTER }
}

/// The slot at `index` of `slots`.
#[inline(always)]
pub fn slot_at(index: u32) -> Option<Slot> {
    let bits = slots.get_ptr(index)?.cast::<u64>();
    // SAFETY: an element of the array. User space writes it at any time, as one word.
    Some(Slot::from_bits(unsafe { bits.read_volatile() }))
}

/// Counts one packet.
#[inline(always)]
pub fn count(counter: Option<*mut Counter>, bytes: u64, new: bool) {
    if let Some(counter) = counter {
        // SAFETY: this CPU's own element.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += bytes;
            if new {
                (*counter).flows += 1;
            }
        }
    }
}
