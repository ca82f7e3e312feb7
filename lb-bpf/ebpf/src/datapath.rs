//! The way of a packet: what it is, whose it is, where it goes.
use crate::{
    context::Context,
    encap::{encapsulate, forward_on_link},
    family::{Family, Network, Part, V4, V6, extensions},
    flow::{self, Choice, Tracked, backend_at},
    fragment, global, local,
    maps::{self, Scratch, backend_counters, slots, verdict_counters},
    packet::{ETH, Packet, ether_type},
    parse::Segment,
    vip,
};
use lb_bpf_common::{
    Action, Addr, Backend, Config, Counter, GUE_PORT, Mode, Slot, Tags, Verdict, Vip,
    decide::{self, Phase},
    proto, scope, slot_hash, slot_of,
};

/// What was decided about a packet.
#[derive(Clone, Copy)]
pub struct Outcome {
    /// The decision.
    pub verdict: Verdict,
    /// Where a packet that is sent goes out.
    pub ifindex: u32,
    /// The VLAN of a packet that goes to a backend. See [`lb_bpf_common::Backend::vlan`].
    pub vlan: u16,
    /// Nothing is decided but that the packet, which is in [`Scratch`], goes to a backend of this host.
    pub is_local: bool,
}

impl Outcome {
    /// A verdict that sends nothing.
    #[inline(always)]
    pub const fn verdict(verdict: Verdict) -> Self {
        Outcome::answer(verdict, 0)
    }

    /// A verdict that sends an answer out through an interface.
    #[inline(always)]
    pub const fn answer(verdict: Verdict, ifindex: u32) -> Self {
        Outcome { verdict, ifindex, vlan: 0, is_local: false }
    }

    /// See [`Outcome::is_local`].
    pub const LOCAL: Outcome = Outcome { verdict: Verdict::Translated, ifindex: 0, vlan: 0, is_local: true };
}

/// Handles one packet; gives what the program returns.
#[inline(always)]
pub fn run<C: Context>(ctx: &C) -> i32 {
    let bytes = ctx.packet().len() as u64;
    let mut own = Tags::NONE;
    let mut outcome = match ctx.strip(&mut own) {
        true => handle(ctx, &own, bytes),
        false => Outcome::verdict(Verdict::NotOurs),
    };
    if outcome.is_local {
        outcome = local::deliver(ctx);
    }
    let Outcome { mut verdict, ifindex, vlan, .. } = outcome;
    let tags = match verdict {
        // Without an interface it goes up the stack, as it came.
        verdict if verdict.is_to_backend() && ifindex != 0 => Tags::one(vlan),
        Verdict::Returned => Scratch::get().map_or(Tags::NONE, |all| all.tags),
        _ => own,
    };
    let is_kept = !matches!(verdict.action(), Action::Drop);
    if !tags.is_empty() && is_kept && !ctx.push(&tags) {
        verdict = Verdict::NoHeadroom;
    }
    // Counted with the backend, or not at all: it is the path of all other traffic of the host.
    if !verdict.is_to_backend() && !matches!(verdict, Verdict::NotOurs) {
        count(verdict_counters.get_ptr_mut(verdict as u32), bytes, false);
    }
    ctx.action(verdict, ifindex)
}

#[inline(always)]
fn handle<C: Context>(ctx: &C, tags: &Tags, bytes: u64) -> Outcome {
    let packet = ctx.packet();
    match ether_type(&packet) {
        V4::ETHER_TYPE => balance::<C, V4>(ctx, &packet, tags, bytes),
        V6::ETHER_TYPE => balance::<C, V6>(ctx, &packet, tags, bytes),
        _ => Outcome::verdict(Verdict::NotOurs),
    }
}

/// One packet on its way.
struct Way<'a, C> {
    ctx: &'a C,
    packet: &'a Packet,
    config: &'a Config,
    /// The tags that it came with.
    tags: &'a Tags,
    /// Length of the frame.
    bytes: u64,
}

#[inline(always)]
fn balance<C: Context, F: Family>(ctx: &C, packet: &Packet, tags: &Tags, bytes: u64) -> Outcome {
    let Some(mut network) = F::network(packet, ETH) else {
        return Outcome::verdict(Verdict::NotOurs);
    };
    let Some(config) = maps::config.get(0) else {
        return Outcome::verdict(Verdict::NotOurs);
    };
    if F::is_extension(network.proto) {
        let found = Found(global::unknown(ctx.behind_extensions()));
        if let Some(verdict) = found.put_into(&mut network) {
            return of_vip(ctx, config, &network.dst, verdict);
        }
    }
    if C::FIRST && config.filters != 0 {
        let rule = ctx.filter(config.filters);
        if rule != 0 {
            return early(ctx, config, Outcome::verdict(Verdict::Filtered), rule);
        }
    }
    let later = matches!(network.part, Part::Later);
    if !matches!(network.proto, proto::TCP | proto::UDP) {
        let is_part_of_icmp = network.proto == F::ICMP && !matches!(network.part, Part::Whole);
        if later || is_part_of_icmp {
            return of_vip(ctx, config, &network.dst, Verdict::Fragment);
        }
        return early(ctx, config, ctx.control::<F>(&network), 0);
    }
    let ports = if later {
        match fragment::ports(&network) {
            Some(ports) => ports,
            None => return of_vip(ctx, config, &network.dst, Verdict::Fragment),
        }
    } else {
        match packet.at::<[u16; 2]>(network.end) {
            // SAFETY: `at` has checked the bounds.
            Some(ports) => unsafe { *ports },
            None => return of_vip(ctx, config, &network.dst, Verdict::Malformed),
        }
    };
    let segment = Segment::new(network, ports);
    let mut packet = *packet;
    if segment.flow.dst_port == GUE_PORT.to_be() && network.proto == proto::UDP && !later {
        let outcome = ctx.gue();
        if !matches!(outcome.verdict, Verdict::NotOurs) {
            return outcome;
        }
        packet = ctx.packet();
    }
    if config.flags & Config::NAT != 0 && decide::is_nat_port(config, segment.flow.dst_port) {
        let way = Way { ctx, packet: &packet, config, tags, bytes };
        let outcome = way.reply(&segment);
        if !matches!(outcome.verdict, Verdict::NotOurs) {
            return outcome;
        }
        packet = ctx.packet();
    }
    let way = Way { ctx, packet: &packet, config, tags, bytes };
    let Some(found) =
        vip::find(&segment.flow.dst, segment.flow.dst_port, segment.flow.proto, scope::ALL, config.vip_mask)
    else {
        return if config.flags & Config::DNAT != 0 {
            way.reply(&segment)
        } else {
            Outcome::verdict(Verdict::NotOurs)
        };
    };
    let outcome = match way.request::<F>(&segment, &found) {
        Ok(outcome) => outcome,
        Err(verdict) => Outcome::verdict(verdict),
    };
    if !outcome.verdict.is_to_backend() {
        global::fairlead_count_drop(found.vip.service, outcome.verdict as u32, bytes);
        way.report(&segment, found.vip.service, outcome.verdict, Choice::NONE);
    }
    outcome
}

impl<C: Context> Way<'_, C> {
    /// Puts the flow where global functions find it.
    #[inline(always)]
    fn stash(&self, segment: &Segment) -> Option<&'static mut Scratch> {
        let all = Scratch::get()?;
        all.flow = segment.flow;
        all.tags = *self.tags;
        Some(all)
    }

    /// Reports the packet if somebody wants to know.
    #[inline(always)]
    fn report(&self, segment: &Segment, service: u32, verdict: Verdict, choice: Choice) {
        if C::REPORTS
            && self.config.flags & Config::EVENTS != 0
            && let Some(all) = self.stash(segment)
        {
            all.choice = choice;
            global::fairlead_report(service, verdict as u32, self.ctx.interface(), self.bytes as u32);
        }
    }

    /// A packet of a backend that has been translated for it; else not ours.
    #[inline(always)]
    fn reply(&self, segment: &Segment) -> Outcome {
        let Some(all) = self.stash(segment) else {
            return Outcome::verdict(Verdict::NotOurs);
        };
        let judged = global::reply(segment.judge(self.packet), C::LEAVES);
        let verdict = self.ctx.translate_reply(segment.transport() as u32, judged);
        let (ifindex, tags) = (all.ifindex, all.tags);
        if !matches!(verdict, Verdict::NotOurs) {
            self.report(segment, 0, verdict, Choice::NONE);
            all.tags = tags;
        }
        Outcome::answer(verdict, ifindex)
    }

    /// A packet of a client: slot, backend.
    #[inline(always)]
    fn request<F: Family>(&self, segment: &Segment, found: &vip::Found) -> Result<Outcome, Verdict> {
        let Segment { network, flow } = segment;
        let vip = &found.vip;
        let transport = match segment.judge(self.packet) {
            Err(Verdict::TtlExpired) => {
                return Ok(Outcome::answer(self.ctx.time_exceeded(), self.ctx.interface()));
            }
            judged => judged?,
        };
        if vip.flags & Vip::RANGES != 0 && !lets_in(vip.service, &flow.src) {
            return Err(Verdict::SourceDenied);
        }
        let hash = slot_hash(flow, vip.flags & Vip::AFFINITY != 0);
        let nobody = if vip.flags & Vip::PASS == 0 { Verdict::NoBackend } else { Verdict::NoBackendPassed };
        let slot_index = vip.base + slot_of(hash, vip.size);
        if vip.size == 0 {
            return Err(nobody);
        }
        let mut slot = slot_at(slot_index).ok_or(nobody)?;
        if vip.flags & Vip::QUIC != 0 {
            slot = self.named_slot(segment, vip, slot);
        }
        let opening = transport.phase == Phase::Opening;
        let mut choice = Choice { index: slot.current, nat_port: 0, new: opening as u16 };
        let mut backend = backend_at(slot.current);
        let is_clean = !decide::is_dirty(slot) && !matches!(backend, Some(it) if decide::is_tracked(it.mode));
        if !is_clean {
            let all = self.stash(segment).ok_or(Verdict::NoBackend)?;
            all.tracked = Tracked {
                slot: slot.to_bits(),
                slot_index,
                service: vip.service,
                edition: found.edition,
                phase: transport.phase as u8,
                flags: transport.flags,
                zero: [0; 2],
            };
            flow::decide(self.ctx)
                .map_err(|verdict| if matches!(verdict, Verdict::NoBackend) { nobody } else { verdict })?;
            choice = all.choice;
            backend = backend_at(choice.index);
        }
        let backend = backend.ok_or(nobody)?;
        if backend.mode == Mode::Here as u8 {
            let all = Scratch::get().ok_or(Verdict::NoBackend)?;
            all.arrive(self.ctx, segment, transport, self.tags, choice.index);
            return Ok(Outcome::LOCAL);
        }
        let ifindex = backend.ifindex;
        if ifindex == 0 {
            return Err(Verdict::Unresolved);
        }
        let overhead = decide::overhead(backend);
        if !fits(self.ctx.wire_length(network.length), overhead, backend) {
            let mtu = backend.mtu as usize - overhead;
            return Ok(Outcome::answer(self.ctx.too_big(mtu as u32), self.ctx.interface()));
        }
        let verdict = if decide::is_tunnel(backend.mode) {
            encapsulate::<C, F>(self.ctx, self.packet, network, hash, backend)?
        } else if backend.mode == Mode::L2 as u8 {
            forward_on_link::<F>(self.packet, backend)?
        } else {
            self.ctx.translate_request(segment.transport() as u32)
        };
        count(backend_counters.get_ptr_mut(choice.index), self.bytes, choice.new != 0);
        self.report(segment, vip.service, verdict, choice);
        Ok(Outcome { verdict, ifindex, vlan: backend.vlan, is_local: false })
    }

    /// The slot of a packet; if its QUIC connection ID names a backend, as if it were clean and of that backend. Fragments
    /// have to stay together, and only the first has a connection ID.
    #[inline(always)]
    fn named_slot(&self, segment: &Segment, vip: &Vip, slot: Slot) -> Slot {
        if segment.flow.proto != proto::UDP || !matches!(segment.network.part, Part::Whole) {
            return slot;
        }
        let (transport, bytes) = (segment.transport() as u32, Vip::quic_bytes(vip.flags));
        match self.ctx.quic_server(transport, vip.service, bytes) {
            0 => slot,
            current => Slot { current, previous: 0 },
        }
    }
}

/// Whether a packet of `length` bytes that gains `overhead` is not longer than the backend's MTU.
#[inline(always)]
pub const fn fits(length: usize, overhead: usize, backend: &Backend) -> bool {
    backend.mtu == 0 || length + overhead <= backend.mtu as usize
}

/// `verdict` if the address is a VIP, for whatever port; else the packet is not ours.
#[inline(always)]
fn of_vip<C: Context>(ctx: &C, config: &Config, addr: &Addr, verdict: Verdict) -> Outcome {
    let [a, b, c, d] = addr.0;
    match global::fairlead_is_vip(a, b, c, d, config.vip_mask) {
        0 => Outcome::verdict(Verdict::NotOurs),
        _ => early(ctx, config, Outcome::verdict(verdict), 0),
    }
}

/// Reports a packet that is dropped before its service is looked for, if somebody wants to know. `rule` is that of
/// [`Context::filter`].
#[inline(always)]
fn early<C: Context>(ctx: &C, config: &Config, outcome: Outcome, rule: u32) -> Outcome {
    if C::REPORTS && config.flags & Config::EVENTS != 0 && matches!(outcome.verdict.action(), Action::Drop) {
        ctx.report_early(outcome.verdict as u32, rule);
    }
    outcome
}

/// Whether a service lets a client in.
#[inline(always)]
fn lets_in(service: u32, client: &Addr) -> bool {
    let [a, b, c, d] = client.0;
    global::fairlead_lets_in(service, a, b, c, d) != 0
}

/// What is behind the extension headers, in one word: so the network layer of other packets need not be in memory.
#[derive(Clone, Copy)]
pub struct Found(u64);

impl Found {
    /// Goes through the extension headers of an IPv6 packet. The result as one word.
    #[inline(always)]
    pub fn behind_extensions<C: Context>(ctx: &C) -> u64 {
        let packet = ctx.packet();
        let Some(mut network) = V6::network(&packet, ETH) else {
            return Found::fault(Verdict::Malformed);
        };
        match extensions(&packet, &mut network) {
            Ok(()) => Found::pack(&network),
            Err(verdict) => Found::fault(verdict),
        }
    }

    #[inline(always)]
    const fn pack(network: &Network) -> u64 {
        let part = match network.part {
            Part::Whole => 0_u64,
            Part::First => 1,
            Part::Later => 2,
        };
        network.id as u64 | (network.proto as u64) << 32 | part << 40 | (network.end as u64) << 48
    }

    #[inline(always)]
    const fn fault(verdict: Verdict) -> u64 {
        verdict as u64 | 3 << 40
    }

    /// Says what follows the extension headers, or what is wrong with them.
    #[inline(always)]
    const fn put_into(self, network: &mut Network) -> Option<Verdict> {
        network.id = self.0 as u32;
        network.proto = (self.0 >> 32) as u8;
        network.end = (self.0 >> 48) as usize & 0x3ff;
        network.part = match (self.0 >> 40) as u8 {
            0 => Part::Whole,
            1 => Part::First,
            2 => Part::Later,
            _ if self.0 as u32 == Verdict::Malformed as u32 => return Some(Verdict::Malformed),
            _ => return Some(Verdict::HeaderChain),
        };
        None
    }
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
