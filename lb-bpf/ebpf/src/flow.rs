//! Flows that are tracked: those of dirty slots, and all of NAT services.
use crate::{
    maps::{backends, flows},
    nat,
    packet::Tcp,
    parse::Transport,
};
use aya_ebpf::{
    bindings::{BPF_ANY, BPF_NOEXIST},
    helpers::bpf_ktime_get_coarse_ns,
    programs::XdpContext,
};
use core::mem::MaybeUninit;
use lb_bpf_common::{
    Backend, FlowEntry, FlowKey, Mode, Slot, Verdict,
    decide::{self, Phase},
};

/// A flow with its place in the table.
pub struct Tracked<'a> {
    /// The flow, as the client sends it.
    pub key: &'a FlowKey,
    /// Of the flow.
    pub hash: u32,
    /// Id of the service.
    pub service: u32,
    /// Index of the slot.
    pub slot_index: u32,
    /// The slot.
    pub slot: Slot,
    /// What the packet says about the flow.
    pub transport: Transport,
    /// The packet, for how it came in.
    pub ctx: &'a XdpContext,
}

/// Where a packet goes.
#[derive(Clone, Copy)]
pub struct Choice {
    /// Index of the backend.
    pub index: u32,
    /// The backend.
    pub backend: &'static Backend,
    /// NAT: source port towards the backend, network byte order.
    pub nat_port: u16,
    /// Whether the packet starts a flow.
    pub new: bool,
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

impl Tracked<'_> {
    /// The flow's backend: that of its entry, else the one that the slot's state says, and then there is an entry.
    /// A SYN always goes where the table says now, for it is a new connection whatever the entry says.
    ///
    /// One copy for both families, and out of the way of the clean path: a call of its own.
    #[inline(never)]
    pub fn choose(&self, choice: &mut MaybeUninit<Choice>) -> Result<(), Verdict> {
        let now = now();
        let known = flows.get_ptr_mut(self.key);
        // SAFETY: entries are only freed after the program ends (RCU). Other CPUs write whole words.
        let mut known = known.map(|entry| unsafe { &mut *entry });
        let opening = self.transport.phase == Phase::Opening;
        let pinned = match &known {
            Some(entry) if !opening => {
                usable(entry.backend, self.service).map(|backend| (entry.backend, backend))
            }
            _ => None,
        };
        let new = pinned.is_none();
        let (index, backend) = match pinned {
            Some(pinned) => pinned,
            None => unknown(self.slot, self.transport.phase, self.service)?,
        };
        // An entry that names another backend is replaced as a whole.
        let flags = if known.is_some() { BPF_ANY } else { BPF_NOEXIST };
        let entry = known.take_if(|entry| entry.backend == index);
        let (old_port, fresh) = match &entry {
            Some(entry) => (entry.nat_port, entry.seen == now && !new),
            None => (0, false),
        };
        let is_nat = backend.mode == Mode::Nat as u8;
        let nat_port = if is_nat && !fresh { nat::claim(self, backend, old_port, now)? } else { old_port };
        choice.write(Choice { index, backend, nat_port, new });
        if let Some(entry) = entry {
            let state = self.next_state(entry.state);
            if !fresh || entry.state != state {
                entry.seen = now;
                entry.state = state;
                entry.nat_port = nat_port;
            }
            return Ok(());
        }
        let state = self.first_state();
        let entry = FlowEntry { backend: index, slot: self.slot_index, seen: now, nat_port, state };
        if flows.insert(self.key, entry, flags as u64).is_ok() {
            return Ok(());
        }
        if is_nat {
            nat::release(self, backend, nat_port);
        }
        // Another CPU may have been quicker with a packet of the same flow.
        if let Some(entry) = flows.get_ptr_mut(self.key) {
            // SAFETY: as above.
            let entry = unsafe { *entry };
            let backend = usable(entry.backend, self.service).ok_or(Verdict::FlowTableFull)?;
            choice.write(Choice { index: entry.backend, backend, nat_port: entry.nat_port, new: false });
            return Ok(());
        }
        // The table is full: go on without an entry where that makes no difference.
        if !is_nat && decide::stays_without_entry(self.slot, self.transport.phase, index) {
            return Ok(());
        }
        Err(Verdict::FlowTableFull)
    }

    /// [`FlowEntry::state`] of an entry that this packet makes.
    #[inline(always)]
    fn first_state(&self) -> u16 {
        let half_open = if self.transport.phase == Phase::Running { 0 } else { FlowEntry::HALF_OPEN };
        state_bits(self.transport.flags, FlowEntry::FIN_CLIENT) | half_open
    }

    /// What this packet makes of [`FlowEntry::state`]. A SYN starts a finished connection anew; to one that lives it is
    /// a stray duplicate (RFC 5961, section 4). A RST that was made up has not ended a connection whose client goes
    /// on; if it was real, the client's packet will be answered with another.
    #[inline(always)]
    fn next_state(&self, state: u16) -> u16 {
        if self.transport.phase != Phase::Opening {
            let bits = state_bits(self.transport.flags, FlowEntry::FIN_CLIENT);
            return state & !(FlowEntry::HALF_OPEN | FlowEntry::RST) | bits;
        }
        if state & FlowEntry::ENDING == 0 { state } else { FlowEntry::HALF_OPEN }
    }
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
