//! Flows that are tracked: those of dirty slots, and all of NAT services.
use crate::{
    context::Context,
    global,
    maps::{Scratch, backends, flows},
    nat,
    packet::Tcp,
    recent::Place,
};
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_ktime_get_coarse_ns,
};
use lb_bpf_common::{
    Backend, FlowEntry, Slot, Verdict,
    decide::{self, Phase},
};

/// The place of a flow in the table, and what the packet says about it.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tracked {
    /// The slot, as [`Slot::to_bits`].
    pub slot: u64,
    /// Index of the slot.
    pub slot_index: u32,
    /// Id of the service.
    pub service: u32,
    /// [`lb_bpf_common::Frontend::edition`] of the frontend.
    pub edition: u32,
    /// [`Phase`] as a number.
    pub phase: u8,
    /// TCP flags; UDP: 0.
    pub flags: u8,
    /// Reserved.
    pub zero: [u8; 2],
}

/// Where a packet goes.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Choice {
    /// Index of the backend.
    pub index: u32,
    /// NAT: source port towards the backend, network byte order.
    pub nat_port: u16,
    /// Not 0: the packet starts a flow.
    pub new: u16,
}

impl Choice {
    /// Nowhere.
    pub const NONE: Choice = Choice { index: 0, nat_port: 0, new: 0 };
}

/// Seconds of CLOCK_MONOTONIC.
#[inline(always)]
pub fn now() -> u32 {
    // SAFETY: no argument, no effect.
    (unsafe { bpf_ktime_get_coarse_ns() } / 1_000_000_000) as u32
}

/// The backend at `index`, if the index is in use.
#[inline(always)]
pub fn backend_at(index: u32) -> Option<&'static Backend> {
    // The array lives as long as the program.
    backends.get(index).filter(|backend| backend.mode != 0)
}

/// Chooses the backend of the flow in [`Scratch`], and if it needs a port claims one: all is in [`Scratch`] then.
#[inline(always)]
pub fn decide<C: Context>(ctx: &C) -> Result<(), Verdict> {
    let mut verdict = global::verdict(global::fairlead_choose(0));
    if matches!(verdict, Verdict::Unresolved) {
        verdict = ctx.claim();
        if matches!(verdict, Verdict::Translated) {
            verdict = global::verdict(global::fairlead_choose(1));
        }
    }
    match verdict {
        Verdict::Translated => Ok(()),
        verdict => Err(verdict),
    }
}

/// What [`choose`] comes to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Chosen {
    /// It is known where the flow goes.
    There,
    /// The flow first needs a source port towards the chosen backend: [`nat::claim`].
    NeedsPort,
}

/// The backend of the flow in [`Scratch`]: that of its entry, else the one that the slot's state says, and then there is an
/// entry. A SYN always goes where the table says now, for it is a new connection whatever the entry says. `claimed`: the
/// flow's port towards the chosen backend has been claimed.
#[inline(always)]
pub fn choose(claimed: bool) -> Result<Chosen, Verdict> {
    let Scratch { flow, tracked, choice, entry: new_entry, .. } = Scratch::get().ok_or(Verdict::NoBackend)?;
    let Tracked { slot_index, service, .. } = *tracked;
    let (slot, phase) = (Slot::from_bits(tracked.slot), tracked.phase());
    if tracked.is_steady() && !is_translated(slot.current) {
        let index = Place::of(flow, tracked.edition).recall();
        if usable(index, service).is_some() {
            *choice = Choice { index, nat_port: 0, new: 0 };
            return Ok(Chosen::There);
        }
    }
    let now = now();
    let known = flows.get_ptr_mut(&*flow);
    // SAFETY: entries are only freed after the program ends (RCU). Other CPUs write whole words.
    let mut known = known.map(|entry| unsafe { &mut *entry });
    let opening = phase == Phase::Opening;
    let pinned = match &known {
        Some(entry) if !opening => usable(entry.backend, service).map(|backend| (entry.backend, backend)),
        _ => None,
    };
    let new = pinned.is_none();
    let (index, backend) = match pinned {
        Some(pinned) => pinned,
        None => unknown(slot, phase, service)?,
    };
    // An entry that names another backend is replaced as a whole.
    let flags = if known.is_some() { BPF_ANY } else { BPF_NOEXIST };
    let entry = known.take_if(|entry| entry.backend == index);
    let (old_port, fresh) = match &entry {
        Some(entry) => (entry.nat_port, entry.seen == now && !new),
        None => (0, false),
    };
    let is_nat = decide::is_tracked(backend.mode);
    let mut nat_port = old_port;
    if is_nat && !fresh {
        if !claimed {
            *choice = Choice { index, nat_port: old_port, new: new as u16 };
            return Ok(Chosen::NeedsPort);
        }
        if choice.index != index {
            // Another CPU has changed the entry meanwhile. The sweep gives the port back.
            return Err(Verdict::FlowTableFull);
        }
        nat_port = choice.nat_port;
    }
    *choice = Choice { index, nat_port, new: new as u16 };
    if let Some(entry) = entry {
        let state = tracked.next_state(entry.state);
        if !fresh || entry.state != state {
            entry.seen = now;
            entry.state = state;
            entry.nat_port = nat_port;
        }
        if !is_nat {
            remember(Place::of(flow, tracked.edition), index, state);
        }
        return Ok(Chosen::There);
    }
    let state = tracked.first_state();
    *new_entry = FlowEntry { backend: index, slot: slot_index, seen: now, nat_port, state };
    let is_made = flows.insert(&*flow, &*new_entry, flags as u64).is_ok();
    if is_nat && !is_made {
        nat::release(flow, backend, nat_port);
    }
    if !is_nat {
        let state = if is_made { state } else { FlowEntry::ENDING };
        remember(Place::of(flow, tracked.edition), index, state);
    }
    if is_made {
        return Ok(Chosen::There);
    }
    // Another CPU may have been quicker with a packet of the same flow.
    if let Some(entry) = flows.get_ptr_mut(&*flow) {
        // SAFETY: as above.
        let entry = unsafe { *entry };
        usable(entry.backend, service).ok_or(Verdict::FlowTableFull)?;
        *choice = Choice { index: entry.backend, nat_port: entry.nat_port, new: 0 };
        return Ok(Chosen::There);
    }
    // The table is full: go on without an entry where that makes no difference.
    if !is_nat && decide::stays_without_entry(slot, phase, index) {
        return Ok(Chosen::There);
    }
    Err(Verdict::FlowTableFull)
}

impl Tracked {
    #[inline(always)]
    const fn phase(&self) -> Phase {
        match self.phase {
            0 => Phase::Opening,
            1 => Phase::Running,
            _ => Phase::Datagram,
        }
    }

    /// Whether the packet says nothing about its flow but that it lives.
    #[inline(always)]
    fn is_steady(&self) -> bool {
        self.phase() != Phase::Opening && self.flags & (Tcp::FIN | Tcp::RST) == 0
    }

    /// [`FlowEntry::state`] of an entry that this packet makes.
    #[inline(always)]
    fn first_state(&self) -> u16 {
        let half_open = if self.phase() == Phase::Running { 0 } else { FlowEntry::HALF_OPEN };
        state_bits(self.flags, FlowEntry::FIN_CLIENT) | half_open
    }

    /// What this packet makes of [`FlowEntry::state`]. A SYN starts a finished connection anew; to one that lives it is
    /// a stray duplicate (RFC 5961, section 4). A RST that was made up has not ended a connection whose client goes
    /// on; if it was real, the client's packet will be answered with another.
    #[inline(always)]
    fn next_state(&self, state: u16) -> u16 {
        if self.phase() != Phase::Opening {
            let bits = state_bits(self.flags, FlowEntry::FIN_CLIENT);
            return state & !(FlowEntry::HALF_OPEN | FlowEntry::RST) | bits;
        }
        if state & FlowEntry::ENDING == 0 { state } else { FlowEntry::HALF_OPEN }
    }
}

/// Whether flows to the backend at `index` are translated.
#[inline(always)]
fn is_translated(index: u32) -> bool {
    matches!(backend_at(index), Some(backend) if decide::is_tracked(backend.mode))
}

/// Remembers that packets of a flow whose entry is in this state go to `backend`. Of a flow whose state is bound to change,
/// forgets what was so before.
#[inline(always)]
fn remember(place: Place, backend: u32, state: u16) {
    global::fairlead_note(place.memo.0, place.line, if state == 0 { backend } else { 0 });
}

/// Where a flow of `slot` goes that has no entry.
#[inline(always)]
pub fn unknown(slot: Slot, phase: Phase, service: u32) -> Result<(u32, &'static Backend), Verdict> {
    let index = decide::unknown(slot, phase);
    if let Some(backend) = usable(index, service) {
        return Ok((index, backend));
    }
    let backend = backend_at(slot.current).ok_or(Verdict::NoBackend)?;
    Ok((slot.current, backend))
}

/// The backend at `index`, if known flows of `service` may stay with it.
#[inline(always)]
pub fn usable(index: u32, service: u32) -> Option<&'static Backend> {
    backend_at(index).filter(|backend| decide::is_usable(backend, service))
}

/// Bits of [`FlowEntry::state`] for TCP flags; `fin` is the one for a FIN of this side.
#[inline(always)]
pub const fn state_bits(flags: u8, fin: u16) -> u16 {
    let fin = if flags & Tcp::FIN != 0 { fin } else { 0 };
    let rst = if flags & Tcp::RST != 0 { FlowEntry::RST } else { 0 };
    fin | rst
}
