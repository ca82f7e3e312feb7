//! What is reported about single packets, while somebody wants to know.
use crate::maps::{Scratch, config, events, service_drops};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use lb_bpf_common::{Action, Counter, DropKey, Event, Verdict};

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
    let Some(mut entry) = events.reserve(0) else {
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
