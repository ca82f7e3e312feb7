//! What is reported about single packets, while somebody wants to know.
use crate::{
    context::Context,
    family::{Family, Part, V4, V6},
    flow::Choice,
    maps::{Scratch, config, events, service_drops},
    packet::{ETH, ether_type},
    parse::Segment,
};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use lb_bpf_common::{Action, Counter, DropKey, Event, Verdict, proto};

/// Puts an event into the ring buffer: of a packet that is dropped or begins a flow always, of others by chance. The flow and
/// where the packet went are in [`Scratch`]. If there is no room, there is no event.
#[inline(always)]
pub fn report(service: u32, verdict: Verdict, ifindex: u32, bytes: u32) {
    let (Some(all), Some(Scratch { flow, choice, .. })) = (config.get(0), Scratch::get()) else {
        return;
    };
    let is_drop = matches!(verdict.action(), Action::Drop);
    // SAFETY: no argument, no effect.
    if !is_drop && choice.new == 0 && unsafe { bpf_get_prandom_u32() } & all.sample_mask != 0 {
        return;
    }
    let Some(mut entry) = events.reserve_untyped::<Event>(0) else {
        return;
    };
    // SAFETY: as above.
    let time = unsafe { bpf_ktime_get_coarse_ns() };
    entry.write(Event {
        time,
        flow: *flow,
        service,
        backend: choice.index,
        verdict: verdict as u32,
        ifindex,
        bytes,
        flags: if choice.new != 0 { Event::NEW } else { 0 },
    });
    entry.submit(0);
}

/// Likewise of a packet whose flow is not in [`Scratch`] yet: it is read once more, with its ports if they are at hand.
/// `rule` is that of [`Context::filter`].
#[inline(always)]
pub fn report_packet<C: Context>(ctx: &C, verdict: u32, rule: u32) {
    let packet = ctx.packet();
    let Some(all) = Scratch::get() else {
        return;
    };
    let network = match ether_type(&packet) {
        V4::ETHER_TYPE => V4::network(&packet, ETH),
        V6::ETHER_TYPE => V6::network(&packet, ETH),
        _ => None,
    };
    let Some(network) = network else {
        return;
    };
    let has_ports = matches!(network.proto, proto::TCP | proto::UDP) && !matches!(network.part, Part::Later);
    let ports = match packet.at::<[u16; 2]>(network.end) {
        // SAFETY: `at` has checked the bounds.
        Some(ports) if has_ports => unsafe { *ports },
        _ => [0; 2],
    };
    (all.flow, all.choice) = (Segment::new(network, ports).flow, Choice { index: rule, ..Choice::NONE });
    if let Some(verdict) = Verdict::of(verdict) {
        report(0, verdict, ctx.interface(), packet.len() as u32);
    }
}

/// Counts a packet of a service that was not sent to a backend.
#[inline(always)]
pub fn count_drop(service: u32, verdict: u32, bytes: u64) {
    let key = DropKey { service, verdict };
    if let Some(counter) = service_drops.get_ptr_mut(&key) {
        crate::datapath::count(Some(counter), bytes, false);
        return;
    }
    let first = Counter { packets: 1, bytes, flows: 0, zero: 0 };
    // Without room it is counted by verdict only.
    let _ = service_drops.insert(&key, &first, BPF_NOEXIST as u64);
}
