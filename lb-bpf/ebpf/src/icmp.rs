//! ICMP and ICMPv6: a VIP answers pings, an error goes to the end of the flow that it is about, and the sender of
//! a packet that does not fit is told the MTU.
use crate::{
    context::Context,
    datapath::{count, fits, slot_at},
    encap::{encapsulate, forward_on_link},
    family::{Addresses, Family, Network, Part, change, difference},
    flow::{backend_at, unknown, usable},
    maps::{Scratch, backend_counters, config, flows, icmp_limits},
    nat,
    packet::{ETH, Eth, Icmp, Macs, Packet, Tcp, Udp},
    vip,
};
use aya_ebpf::{
    helpers::{bpf_csum_diff, bpf_ktime_get_coarse_ns, bpf_xdp_adjust_head, bpf_xdp_adjust_tail},
    programs::XdpContext,
};
use core::{mem::offset_of, ptr};
use lb_bpf_common::{
    Addr, Backend, FlowKey, Limit, Mode, ReverseEntry, Tags, Verdict, Vip,
    decide::{self, Phase},
    fold, proto, scope, slot_hash, slot_of,
};

/// Handles an ICMP message that did not come in fragments, and says in [`Scratch`] where it goes. `of` is the scope of the
/// frontends that it is for.
#[inline(always)]
pub fn message<F: Family>(ctx: &XdpContext, of: u8) -> Verdict {
    let packet = ctx.packet();
    let Some(network) = F::network(&packet, ETH) else {
        return Verdict::NotOurs;
    };
    if network.proto != F::ICMP {
        return Verdict::NotOurs; // behind extension headers
    }
    let Some(icmp) = packet.at::<Icmp>(network.end) else {
        return Verdict::NotOurs;
    };
    let Some(out) = Scratch::get() else {
        return Verdict::NotOurs;
    };
    (out.ifindex, out.vlan, out.tags) = (ctx.interface(), 0, Tags::NONE);
    // SAFETY: `at` has checked the bounds.
    let kind = unsafe { (*icmp).kind };
    let decided = if kind == F::ECHO && of == scope::ALL {
        echo::<F>(&packet, &network)
    } else if F::is_error(kind) {
        match Quote::read::<F>(ctx, &packet, &network, &mut out.flow, of) {
            Some(mut quote) => quote.relay::<F>(&mut out.ifindex, &mut out.vlan, &mut out.tags),
            None => Err(Verdict::NotOurs),
        }
    } else {
        Err(Verdict::NotOurs)
    };
    decided.unwrap_or_else(|verdict| verdict)
}

/// Answers a ping to a VIP with the same packet (RFC 792; RFC 4443, section 4.2).
#[inline(always)]
fn echo<F: Family>(packet: &Packet, network: &Network) -> Result<Verdict, Verdict> {
    let all = config.get(0).ok_or(Verdict::NotOurs)?;
    vip::find(&network.dst, 0, F::ICMP, scope::ALL, all.vip_mask).ok_or(Verdict::NotOurs)?;
    if !network.holds(packet, size_of::<Icmp>()) {
        return Err(Verdict::Malformed);
    }
    if !allowed(Limit::Echo) {
        return Err(Verdict::EchoLimited);
    }
    let icmp = packet.at::<Icmp>(network.end).ok_or(Verdict::Malformed)?;
    // SAFETY: `at` has checked the bounds.
    let icmp = unsafe { &mut *icmp };
    let checksum = !fold((!icmp.checksum) as u64 + difference(F::ECHO as u32, F::ECHO_REPLY as u32));
    icmp.kind = F::ECHO_REPLY;
    // Both zeros are right, but for a message of nothing but zeros.
    icmp.checksum = if checksum == 0 { 0xffff } else { checksum };
    F::turn_round(packet).ok_or(Verdict::Malformed)?;
    let eth = packet.at::<Eth>(0).ok_or(Verdict::Malformed)?;
    // SAFETY: `at` has checked the bounds.
    unsafe { Macs::read(eth.cast()).swapped().write(eth.cast()) };
    Ok(Verdict::EchoReply)
}

/// An error's message. It quotes a packet that left here: the VIP's to a client (its backend wants to know), or the
/// translated one to a backend (its client does).
struct Quote<'a> {
    ctx: &'a XdpContext,
    packet: &'a Packet,
    /// The flow that the quoted packet is of, as its receiver sends.
    flow: &'a mut FlowKey,
    /// The message.
    outer: &'a Network,
    /// Offset of the quoted packet.
    start: usize,
    /// Offset of its transport header.
    transport: usize,
    /// Whether the message can be sent on.
    fault: Result<(), Verdict>,
}

/// What becomes of a quoted packet.
struct Ends<'a> {
    src: &'a Addr,
    dst: &'a Addr,
    /// Source, then destination.
    ports: u32,
    /// Ethernet destination and source of the message; none: as they are.
    macs: Option<*const u8>,
}

impl<'a> Quote<'a> {
    /// `None`: not an error about a TCP or UDP packet of who gets it.
    #[inline(always)]
    fn read<F: Family>(
        ctx: &'a XdpContext,
        packet: &'a Packet,
        outer: &'a Network,
        flow: &'a mut FlowKey,
        of: u8,
    ) -> Option<Self> {
        let start = outer.end + size_of::<Icmp>();
        let inner = F::network(packet, start)?;
        let has_ports = matches!(inner.proto, proto::TCP | proto::UDP) && inner.part != Part::Later;
        if !has_ports || !nat::same(&inner.src, &outer.dst) {
            return None;
        }
        let ports = packet.at::<[u16; 2]>(inner.end)?;
        // SAFETY: `at` has checked the bounds.
        let [dst_port, src_port] = unsafe { *ports };
        *flow = FlowKey {
            src: inner.dst,
            dst: inner.src,
            src_port,
            dst_port,
            proto: inner.proto,
            scope: of,
            zero: [0; 2],
        };
        let fault = if !outer.holds(packet, inner.end + 8 - outer.end) {
            Err(Verdict::Malformed) // 8 bytes of transport are the least (RFC 792)
        } else if outer.hops <= 1 {
            Err(Verdict::TtlExpired)
        } else {
            Ok(())
        };
        Some(Quote { ctx, packet, flow, outer, start, transport: inner.end, fault })
    }

    #[inline(always)]
    fn relay<F: Family>(
        &mut self,
        ifindex: &mut u32,
        vlan: &mut u16,
        tags: &mut Tags,
    ) -> Result<Verdict, Verdict> {
        let entry = if self.flow.scope == scope::ALL { nat::entry_of_reply(self.flow) } else { None };
        match entry {
            Some(entry) => self.to_client::<F>(entry, ifindex, tags),
            None => self.to_backend::<F>(ifindex, vlan),
        }
    }

    /// From a client's side, about a packet of the VIP: to the backend of the flow.
    #[inline(always)]
    fn to_backend<F: Family>(&mut self, ifindex: &mut u32, vlan: &mut u16) -> Result<Verdict, Verdict> {
        let mut vip = frontend(self.flow)?;
        self.fault?;
        let mut hash = slot_hash(self.flow, vip.flags & Vip::AFFINITY != 0);
        let (mut index, mut backend, mut nat_port) = owner(self.flow, hash, &vip)?;
        if backend.mode == Mode::Here as u8 {
            self.flow.scope = scope::LOCAL;
            vip = frontend(self.flow)?;
            hash = slot_hash(self.flow, vip.flags & Vip::AFFINITY != 0);
            (index, backend, nat_port) = owner(self.flow, hash, &vip)?;
        }
        let is_local = self.flow.scope == scope::LOCAL;
        if backend.ifindex == 0 && !is_local {
            return Err(Verdict::Unresolved);
        }
        if !fits(self.outer.length, decide::overhead(backend), backend) {
            return Err(Verdict::TooBig); // no error about an error (RFC 1122, section 3.2.2)
        }
        // The stack has the way to backends of this host.
        (*ifindex, *vlan) = (if is_local { 0 } else { backend.ifindex }, backend.vlan);
        let bytes = self.packet.len() as u64;
        let verdict = if decide::is_tunnel(backend.mode) {
            encapsulate::<XdpContext, F>(self.ctx, self.packet, self.outer, hash, backend)?
        } else if backend.mode == Mode::L2 as u8 {
            forward_on_link::<F>(self.packet, backend)?
        } else {
            // As the backend answered.
            let own = backend.mode == Mode::Dnat as u8;
            let ends = Ends {
                src: &backend.addr,
                dst: if own { &self.flow.src } else { &backend.source },
                ports: backend.port as u32 | (nat_port as u32) << 16,
                macs: if is_local { None } else { Some(backend.next_hop.as_ptr()) },
            };
            self.translate::<F>(&ends).ok_or(Verdict::Malformed)?;
            Verdict::Translated
        };
        count(backend_counters.get_ptr_mut(index), bytes, false);
        Ok(verdict)
    }

    /// From a backend's side, about a translated packet: to the client, about what the client sent.
    #[inline(always)]
    fn to_client<F: Family>(
        &self,
        entry: &ReverseEntry,
        ifindex: &mut u32,
        tags: &mut Tags,
    ) -> Result<Verdict, Verdict> {
        if matches!(entry.ifindex, 0 | ReverseEntry::ROUTED) {
            return Err(Verdict::NotOurs); // of this host itself, which knows its own errors
        }
        self.fault?;
        (*ifindex, *tags) = (entry.ifindex, entry.tags);
        // As the client asked.
        let ends = Ends {
            src: &entry.client,
            dst: &entry.vip,
            ports: entry.client_port as u32 | (entry.vip_port as u32) << 16,
            macs: Some(entry.next_hop.as_ptr()),
        };
        self.translate::<F>(&ends).ok_or(Verdict::Malformed)?;
        Ok(Verdict::Returned)
    }

    /// Makes the quoted packet that of `ends` and sends the message to its source, as if from its destination (who
    /// translates hides the routers on the other side), with all checksums changed by what has changed (RFC 1624;
    /// RFC 5508, section 4). `None` cannot happen without a fault.
    ///
    /// Nothing is kept that can be read again: the stack is short.
    #[inline(always)]
    fn translate<F: Family>(&self, ends: &Ends) -> Option<()> {
        let Quote { ctx, packet, flow, outer, start, transport, .. } = self;
        let mut sum = F::readdress(packet, *start, Addresses { src: *ends.src, dst: *ends.dst })?;
        let ports = packet.at::<[u32; 1]>(*transport)?;
        // SAFETY: `at` has checked the bounds.
        let old_ports = unsafe { core::mem::replace(&mut *ports, [ends.ports]) };
        let changed = difference(old_ports[0], ends.ports);
        sum += changed;
        let is_tcp = flow.proto == proto::TCP;
        let at = if is_tcp { offset_of!(Tcp, checksum) } else { offset_of!(Udp, checksum) };
        // Of TCP's header there may be 8 bytes only.
        if transport + at + 2 <= outer.start + outer.length {
            // Read anew: of the packet as it was the compiler knows that this is within, but the verifier does not.
            let checksum = ctx.packet().at::<u16>(transport + at)?;
            // SAFETY: `at` has checked the bounds.
            let checksum = unsafe { &mut *checksum };
            let old = *checksum;
            // UDP without a checksum stays so.
            if is_tcp || old != 0 {
                let moved = change(&flow.dst, ends.src) + change(&flow.src, ends.dst);
                let good = !fold((!old) as u64 + changed + moved);
                *checksum = if !is_tcp && good == 0 { 0xffff } else { good };
                sum += difference(old as u32, *checksum as u32);
            }
        }
        F::forward(packet, None)?;
        let outside = F::readdress(packet, ETH, Addresses { src: *ends.dst, dst: *ends.src })?;
        if F::PSEUDO_HEADER {
            sum += outside;
        }
        let eth = packet.at::<Eth>(0)?;
        let icmp = ctx.packet().at::<Icmp>(outer.end)?; // as above
        // SAFETY: `at` has checked the bounds; `macs` points to 12 bytes of a map's value.
        unsafe {
            (*icmp).checksum = !fold((!(*icmp).checksum) as u64 + sum);
            if let Some(macs) = ends.macs {
                Macs::read(macs).write(eth.cast());
            }
        }
        Some(())
    }
}

/// What the frontend of a flow has.
#[inline(always)]
fn frontend(flow: &FlowKey) -> Result<Vip, Verdict> {
    let mask = config.get(0).ok_or(Verdict::NotOurs)?.vip_mask;
    let found = vip::find(&flow.dst, flow.dst_port, flow.proto, flow.scope, mask);
    Ok(found.ok_or(Verdict::NotOurs)?.vip)
}

/// Where the flow's packets go, without making an entry: a router's word does not start a flow. Index, backend and
/// NAT port.
#[inline(always)]
fn owner(flow: &FlowKey, hash: u32, vip: &Vip) -> Result<(u32, &'static Backend, u16), Verdict> {
    if vip.size == 0 {
        return Err(Verdict::NoBackend);
    }
    let slot = slot_at(vip.base + slot_of(hash, vip.size)).ok_or(Verdict::NoBackend)?;
    if !decide::is_dirty(slot) {
        let backend = backend_at(slot.current).ok_or(Verdict::NoBackend)?;
        if !decide::is_tracked(backend.mode) {
            return Ok((slot.current, backend, 0));
        }
    }
    // SAFETY: entries are only freed after the program ends (RCU).
    if let Some(entry) = unsafe { flows.get(flow) }
        && let Some(backend) = usable(entry.backend, vip.service)
    {
        return Ok((entry.backend, backend, entry.nat_port));
    }
    let phase = if flow.proto == proto::TCP { Phase::Running } else { Phase::Datagram };
    let (index, backend) = unknown(slot, phase, vip.service)?;
    if decide::is_tracked(backend.mode) { Err(Verdict::NoFlow) } else { Ok((index, backend, 0)) }
}

/// Tells the sender of a packet to a VIP that only `mtu` bytes fit (RFC 1191, RFC 8201); the packet turns into the
/// answer. Not if the packet may be fragmented, nor if it is no longer than what every link carries or than what is
/// quoted of it.
#[inline(always)]
pub fn too_big<F: Family>(ctx: &XdpContext, mtu: usize) -> Verdict {
    let packet = ctx.packet();
    let (Some(network), Some(true)) = (F::network(&packet, ETH), F::asks_for_mtu(&packet)) else {
        return Verdict::TooBig;
    };
    let mtu = if mtu < F::LEAST_MTU { F::LEAST_MTU } else { mtu };
    if network.length <= mtu || network.length < F::QUOTE || !allowed(Limit::TooBig) {
        return Verdict::TooBig;
    }
    match answer::<F>(ctx, &packet, &network, F::QUOTE, F::too_big(mtu)) {
        Some(()) => Verdict::TooBigAnswered,
        None => Verdict::NoHeadroom,
    }
}

/// Tells the sender of a packet to a VIP that it had no hops left (RFC 1812, section 5.3.1; RFC 4443, section 3.3); the
/// packet turns into the answer, so routes to a VIP can be traced. Header and 8 bytes are quoted; not those of a packet
/// with IPv4 options, which would be quoted in part.
#[inline(always)]
pub fn time_exceeded<F: Family>(ctx: &XdpContext) -> Verdict {
    let packet = ctx.packet();
    let Some(network) = F::network(&packet, ETH) else {
        return Verdict::TtlExpired;
    };
    let plain = network.end - network.start == F::OUTER && network.part == Part::Whole;
    if !plain || network.length < F::SHORT_QUOTE || !allowed(Limit::TimeExceeded) {
        return Verdict::TtlExpired;
    }
    match answer::<F>(ctx, &packet, &network, F::SHORT_QUOTE, [F::TIME_EXCEEDED, 0]) {
        Some(()) => Verdict::TtlAnswered,
        None => Verdict::NoHeadroom,
    }
}

/// Makes an ICMP error of the packet, with `message` as header and `quote` bytes of the packet: a multiple of 4.
#[inline(always)]
fn answer<F: Family>(
    ctx: &XdpContext,
    packet: &Packet,
    network: &Network,
    quote: usize,
    message: [u32; 2],
) -> Option<()> {
    let addresses = Addresses { src: network.dst, dst: network.src };
    // SAFETY: `at` has checked the bounds.
    let macs = unsafe { Macs::read(packet.at::<Eth>(0)?.cast()).swapped() };
    let shorter = (ETH + quote) as i32 - packet.len() as i32;
    let header = F::OUTER + size_of::<Icmp>();
    // SAFETY: the context is the kernel's. All pointers into the packet end here.
    let moved = unsafe {
        bpf_xdp_adjust_tail(ctx.ctx, shorter) == 0 && bpf_xdp_adjust_head(ctx.ctx, -(header as i32)) == 0
    };
    if !moved {
        return None;
    }
    let packet = ctx.packet();
    let pseudo = F::write_icmp(&packet, addresses, size_of::<Icmp>() + quote)?;
    let [first, rest] = message;
    let quoted = quote_sum(&packet, ETH + header, quote)?;
    let checksum = !fold(pseudo + quoted + first as u64 + rest as u64);
    let icmp = packet.at::<[u32; 2]>(ETH + F::OUTER)?;
    let eth = packet.at::<Eth>(0)?;
    // SAFETY: `at` has checked the bounds.
    unsafe {
        *icmp = [first | (checksum as u32) << 16, rest];
        macs.write(eth.cast());
        (*eth).ether_type = F::ETHER_TYPE;
    }
    Some(())
}

/// The sum of the quoted bytes.
#[inline(always)]
fn quote_sum(packet: &Packet, offset: usize, quote: usize) -> Option<u64> {
    /// Before Linux 6.13 the helper takes no more at a time.
    const CHUNK: usize = 512;
    let mut bytes = packet.bytes(offset, quote)?;
    let (mut left, mut sum) = (quote, 0);
    while left > 0 {
        let size = if left > CHUNK { CHUNK } else { left };
        // SAFETY: `size` bytes are readable; no other buffer is passed.
        sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, bytes.cast(), size as u32, sum as u32) };
        if sum < 0 {
            return None;
        }
        // SAFETY: within the bytes that were checked.
        bytes = unsafe { bytes.add(size) };
        left -= size;
    }
    Some(sum as u64)
}

/// Whether one more packet may be sent, which then counts.
#[inline(always)]
fn allowed(limit: Limit) -> bool {
    let Some(used) = icmp_limits.get_ptr_mut(limit as u32) else {
        return false;
    };
    // SAFETY: this CPU's own element; the helper has no argument and no effect.
    let (used, now) = unsafe { (&mut *used, bpf_ktime_get_coarse_ns()) };
    let begin = if *used > now { *used } else { now };
    if begin - now >= Limit::BURST {
        return false;
    }
    *used = begin + Limit::INTERVAL;
    true
}
