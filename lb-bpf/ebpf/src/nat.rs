//! NAT in both directions: destination and source are translated (RFC 2663, section 4.3, "twice NAT"), so replies
//! come back through this host whatever the backend's routes are; or the destination only, where they do anyway.
use crate::{
    context::Context,
    family::{Addresses, Family, change, difference},
    flow::{backend_at, now, state_bits},
    global,
    maps::{Scratch, config, flows, reverse, reverse_before},
    packet::{Eth, Macs, Tcp, Udp},
};
use aya_ebpf::bindings::BPF_NOEXIST;
use core::mem::offset_of;
use lb_bpf_common::{
    Addr, Backend, Config, FlowEntry, FlowKey, Mode, ReverseEntry, Tags, Verdict,
    decide::{NAT_ATTEMPTS, NatPorts, is_nat_port},
    flow_hash, proto, scope,
};

/// An entry of `reverse` while it is made: in [`Scratch`], for it is large. The value is written in words of 8 bytes, too.
#[repr(C, align(8))]
pub struct WayBack {
    key: FlowKey,
    value: ReverseEntry,
}

/// Makes sure that the flow in [`Scratch`] has a source port towards the chosen backend: the one in the choice if that is
/// the flow's, else (0, or the entry was lost) a free one, which is then in the choice. Called with the first packet, and from
/// then on once a second and with every SYN, so that replies follow the client's packets to another router.
#[inline(always)]
pub fn claim<C: Context>(ctx: &C) -> Result<(), Verdict> {
    let Scratch { flow, choice, tags, way_back: WayBack { key, value }, .. } =
        Scratch::get().ok_or(Verdict::NatPortsExhausted)?;
    let backend = backend_at(choice.index).ok_or(Verdict::NoBackend)?;
    let now = now();
    *key = flow.answer(backend, choice.nat_port);
    if choice.nat_port != 0
        && let Some(entry) = entry_of(key)
        && is_of(entry, flow)
    {
        entry.seen = now;
        set_way_back(entry, flow, ctx, tags);
        return Ok(());
    }
    let all = config.get(0).ok_or(Verdict::NatPortsExhausted)?;
    // A client that keeps its address keeps its port, too, unless a flow of its own to another VIP has that.
    let is_kept = backend.mode == Mode::Dnat as u8;
    let own = u16::from_be(flow.src_port);
    let (first, last) =
        if is_kept && all.nat_port_first == 0 { (own, own) } else { (all.nat_port_first, all.nat_port_last) };
    // Not by the hash of the slot: all flows of a client may have that in common.
    let mut ports = NatPorts::new(first, last, flow_hash(flow)).ok_or(Verdict::NatPortsExhausted)?;
    let mut is_first = is_kept;
    (value.client, value.client_port) = (flow.src, flow.src_port);
    (value.vip, value.vip_port) = (flow.dst, flow.dst_port);
    value.seen = now;
    set_way_back(value, flow, ctx, tags);
    for _ in 0..NAT_ATTEMPTS {
        key.dst_port = if is_first { flow.src_port } else { ports.port() };
        match reverse.insert(&*key, &*value, BPF_NOEXIST as u64) {
            Ok(()) => {
                choice.nat_port = key.dst_port;
                return Ok(());
            }
            Err(EEXIST) => {}
            Err(_) => return Err(Verdict::FlowTableFull),
        }
        // The flow's own, whose entry in `flows` was removed: the backend knows the flow by this port.
        if let Some(entry) = installed(key)
            && is_of(entry, flow)
        {
            entry.seen = now;
            set_way_back(entry, flow, ctx, tags);
            choice.nat_port = key.dst_port;
            return Ok(());
        }
        if is_first {
            is_first = false;
        } else {
            ports.advance();
        }
    }
    Err(Verdict::NatPortsExhausted)
}

/// The flow that has this way back, as the client sends it to a frontend of the scope `of`.
#[inline(always)]
const fn request_of(entry: &ReverseEntry, key: &FlowKey, of: u8) -> FlowKey {
    FlowKey {
        src: entry.client,
        dst: entry.vip,
        src_port: entry.client_port,
        dst_port: entry.vip_port,
        proto: key.proto,
        scope: of,
        zero: [0; 2],
    }
}

/// Whether packets of a flow go to their backend by the routes of this host.
#[inline(always)]
const fn is_routed<C: Context>(flow: &FlowKey) -> bool {
    C::ROUTES && flow.scope == scope::LOCAL
}

/// Linux error: the entry exists.
const EEXIST: i32 = -17;

/// Gives the port back.
#[inline(always)]
pub fn release(flow: &FlowKey, backend: &Backend, port: u16) {
    // An error would mean that it is gone already.
    let _ = reverse.remove(flow.answer(backend, port));
}

/// Whether this is the way back of `flow`.
#[inline(always)]
fn is_of(entry: &ReverseEntry, flow: &FlowKey) -> bool {
    entry.client_port == flow.src_port
        && entry.vip_port == flow.dst_port
        && same(&entry.client, &flow.src)
        && same(&entry.vip, &flow.dst)
}

/// Whether two addresses are the same: word by word, which is quicker here than `==`.
#[inline(always)]
pub const fn same(a: &Addr, b: &Addr) -> bool {
    a.0[0] == b.0[0] && a.0[1] == b.0[1] && a.0[2] == b.0[2] && a.0[3] == b.0[3]
}

/// Replies leave where this packet came in, or by the routes of this host.
#[inline(always)]
fn set_way_back<C: Context>(entry: &mut ReverseEntry, flow: &FlowKey, ctx: &C, tags: &Tags) {
    const { assert!(offset_of!(ReverseEntry, source_mac) == offset_of!(ReverseEntry, next_hop) + 6) };
    entry.ifindex = if is_routed::<C>(flow) { ReverseEntry::ROUTED } else { ctx.way_back() };
    entry.tags = *tags;
    if let Some(eth) = ctx.packet().at::<Eth>(0) {
        // SAFETY: `at` has checked the bounds; `next_hop` and `source_mac` are 12 bytes in a row.
        unsafe {
            let way_back = (entry as *mut ReverseEntry).cast::<u8>().add(offset_of!(ReverseEntry, next_hop));
            Macs::read(eth.cast()).swapped().write(way_back);
        }
    }
}

/// The entry of a packet that is a reply.
#[inline(always)]
pub fn entry_of(flow: &FlowKey) -> Option<&'static mut ReverseEntry> {
    let entry = installed(flow);
    if entry.is_some() || config.get(0)?.flags & Config::TAKING_OVER == 0 {
        return entry;
    }
    Scratch::get()?.sought = *flow;
    if global::fairlead_take_over() == 0 { None } else { installed(flow) }
}

#[inline(always)]
fn installed(flow: &FlowKey) -> Option<&'static mut ReverseEntry> {
    // SAFETY: entries are only freed after the program ends (RCU). Other CPUs write whole words.
    reverse.get_ptr_mut(flow).map(|entry| unsafe { &mut *entry })
}

/// Takes the entry over that the version before has for the key in [`Scratch`], if there is one.
#[inline(always)]
pub fn take_over() -> Option<()> {
    let Scratch { sought, way_back: WayBack { value, .. }, .. } = Scratch::get()?;
    let old = reverse_before.get_ptr(&*sought)?.cast::<u64>();
    let words = (value as *mut ReverseEntry).cast::<u64>();
    for i in 0..size_of::<[u64; 7]>() / 8 {
        // SAFETY: a [`ReverseEntry`] begins with what it was before. Volatile, lest all words are held on the stack at
        // once, which is short here.
        unsafe { words.add(i).write_volatile(*old.add(i)) };
    }
    value.tags = Tags::NONE;
    // Another CPU, or user space, may have been faster.
    let _ = reverse.insert(&*sought, &*value, BPF_NOEXIST as u64);
    Some(())
}

/// The entry of a packet that is a reply, if there may be any. One whose port is not of the range costs no lookup.
#[inline(always)]
pub fn entry_of_reply(flow: &FlowKey) -> Option<&'static mut ReverseEntry> {
    let all = config.get(0)?;
    let source_is_translated = all.flags & Config::NAT != 0 && is_nat_port(all, flow.dst_port);
    if source_is_translated || all.flags & Config::DNAT != 0 { installed(flow) } else { None }
}

/// Translates the request of the flow in [`Scratch`]: to the chosen backend, from this host or from the client still.
/// `transport` is the offset of the TCP or UDP header; 0: it is in another fragment.
#[inline(always)]
pub fn translate_request<C: Context, F: Family>(ctx: &C, transport: usize) -> Verdict {
    let Some(Scratch { flow, choice, .. }) = Scratch::get() else {
        return Verdict::NoBackend;
    };
    let Some(backend) = backend_at(choice.index) else {
        return Verdict::NoBackend;
    };
    let own = backend.mode == Mode::Dnat as u8;
    let target = FlowKey {
        src_port: choice.nat_port,
        dst_port: backend.port,
        src: if own { flow.src } else { backend.source },
        dst: backend.addr,
        ..*flow
    };
    // SAFETY: `next_hop` and `source_mac` are 12 bytes in a row (asserted in `encap`).
    let macs =
        unsafe { Macs::read((backend as *const Backend).cast::<u8>().add(offset_of!(Backend, next_hop))) };
    match rewrite::<C, F>(ctx, flow, transport, &target, (!is_routed::<C>(flow)).then_some(macs)) {
        Some(()) => Verdict::Translated,
        None => Verdict::Malformed,
    }
}

/// Translates the packet of the flow in [`Scratch`] if it is a reply: to the client, from the VIP; where it goes is in
/// [`Scratch`] then. `judged` is what there is against it, `flags` are those of TCP. Not ours: it is no reply.
#[inline(always)]
pub fn translate_reply<C: Context, F: Family>(
    ctx: &C,
    transport: usize,
    flags: u8,
    leaves: bool,
    judged: Option<Verdict>,
) -> Verdict {
    let Some(Scratch { flow, sought, ifindex, tags, .. }) = Scratch::get() else {
        return Verdict::NotOurs;
    };
    let Some(entry) = entry_of(flow) else {
        return Verdict::NotOurs;
    };
    let is_routed = entry.ifindex == ReverseEntry::ROUTED;
    if is_routed && !leaves {
        return Verdict::NotOurs;
    }
    if let Some(verdict) = judged {
        return verdict;
    }
    let now = now();
    if entry.seen != now {
        entry.seen = now;
    }
    (*ifindex, *tags) = (entry.ifindex, entry.tags);
    let state = state_bits(flags, FlowEntry::FIN_BACKEND);
    if state != 0 {
        // Flows within this host, which are redirected, wait for the idle time.
        *sought = request_of(entry, flow, is_routed as u8);
        if let Some(flow) = flows.get_ptr_mut(&*sought) {
            // SAFETY: entries are only freed after the program ends (RCU). Of bits that two CPUs set at once some
            // may be lost: then the sweep waits for the idle time.
            unsafe { (*flow).state |= state };
        }
    }
    let target = FlowKey {
        src: entry.vip,
        dst: entry.client,
        src_port: entry.vip_port,
        dst_port: entry.client_port,
        ..*flow
    };
    // SAFETY: `next_hop` and `source_mac` are 12 bytes in a row (asserted above).
    let macs = unsafe {
        Macs::read((entry as *const ReverseEntry).cast::<u8>().add(offset_of!(ReverseEntry, next_hop)))
    };
    let is_away = entry.ifindex != 0 && !is_routed;
    match rewrite::<C, F>(ctx, flow, transport, &target, is_away.then_some(macs)) {
        Some(()) if !is_away => Verdict::ReturnedHere,
        Some(()) => Verdict::Returned,
        None => Verdict::Malformed,
    }
}

/// Makes the flow `old` in the packet to `new`, takes one hop off and makes the checksums good. Without `macs` the frame
/// stays here. `None` cannot happen after the packet was parsed.
#[inline(always)]
fn rewrite<C: Context, F: Family>(
    ctx: &C,
    old: &FlowKey,
    transport: usize,
    new: &FlowKey,
    macs: Option<Macs>,
) -> Option<()> {
    if transport != 0 {
        let addresses = change(&old.src, &new.src) + change(&old.dst, &new.dst);
        let ports = difference(
            old.src_port as u32 | (old.dst_port as u32) << 16,
            new.src_port as u32 | (new.dst_port as u32) << 16,
        );
        let is_udp = old.proto == proto::UDP;
        let at = if is_udp { offset_of!(Udp, checksum) } else { offset_of!(Tcp, checksum) };
        ctx.fix_checksum(transport + at, is_udp, addresses, ports)?;
        let header = ctx.packet().at::<[u16; 2]>(transport)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { *header = [new.src_port, new.dst_port] };
    }
    let packet = ctx.packet();
    F::forward(&packet, Some(Addresses { src: new.src, dst: new.dst }))?;
    if let Some(macs) = macs {
        let eth = packet.at::<Eth>(0)?;
        // SAFETY: `at` has checked the bounds.
        unsafe { macs.write(eth.cast()) };
    }
    Some(())
}
