//! Backends of this host itself: packets that were sent here for them, by another host through a tunnel or by a frontend
//! of this host, go by the frontend of local scope to one of them.
use crate::{
    context::{Context, control_message},
    datapath::{Outcome, count, fits, slot_at},
    family::{Family, Part, V6, extensions},
    flow::{self, Choice, Tracked, backend_at},
    fragment, global,
    maps::{Scratch, backend_counters, config},
    packet::{ETH, ether_type},
    parse::{Segment, Transport},
    vip,
};
use aya_ebpf::programs::XdpContext;
use lb_bpf_common::{Config, FlowKey, Tags, Verdict, Vip, decide, proto, scope, slot_hash, slot_of};

/// What [`deliver`] has to know of a packet whose flow is in [`Scratch`].
#[repr(C)]
pub struct Arrival {
    /// Offset of the TCP or UDP header; 0: it is in another fragment.
    pub transport: u32,
    /// See [`Context::wire_length`].
    pub length: u32,
    /// Index of the backend that this host is to a frontend of its own; 0: the packet came out of a tunnel.
    pub host: u32,
}

/// Handles a packet that has come out of a tunnel.
#[inline(always)]
pub fn arrive(ctx: &XdpContext) -> Outcome {
    match global::verdict(global::fairlead_receive(ctx.ctx)) {
        Verdict::Translated => Outcome::LOCAL,
        // Neither TCP nor UDP.
        Verdict::NotOurs => control_message(ctx, ether_type(&ctx.packet()), scope::LOCAL),
        verdict => Outcome::verdict(verdict),
    }
}

/// Sends the packet in [`Scratch`] to a backend of this host.
#[inline(always)]
pub fn deliver<C: Context>(ctx: &C) -> Outcome {
    let bytes = ctx.packet().len() as u64;
    let outcome = translate(ctx, bytes).unwrap_or_else(Outcome::verdict);
    let (Some(all), Some(settings)) = (Scratch::get(), config.get(0)) else {
        return outcome;
    };
    let (service, verdict) = (all.tracked.service, outcome.verdict as u32);
    if !outcome.verdict.is_to_backend() {
        global::fairlead_count_drop(service, verdict, bytes);
    }
    if C::REPORTS && settings.flags & Config::EVENTS != 0 {
        global::fairlead_report(service, verdict, ctx.interface(), bytes as u32);
    }
    outcome
}

#[inline(always)]
fn translate<C: Context>(ctx: &C, bytes: u64) -> Result<Outcome, Verdict> {
    let all = Scratch::get().ok_or(Verdict::NoBackend)?;
    all.choice = Choice::NONE;
    match global::verdict(global::fairlead_locate()) {
        Verdict::Translated => flow::decide(ctx)?,
        verdict => return Err(verdict),
    }
    let choice = all.choice;
    let backend = backend_at(choice.index).ok_or(Verdict::NoBackend)?;
    if !decide::is_tracked(backend.mode) {
        return Err(Verdict::NoBackend);
    }
    if !fits(all.arrival.length as usize, 0, backend) {
        return Ok(Outcome::answer(ctx.too_big(backend.mtu as u32), ctx.interface()));
    }
    let verdict = ctx.translate_request(all.arrival.transport);
    let new = choice.new != 0;
    count(backend_counters.get_ptr_mut(choice.index), bytes, new);
    if all.arrival.host != 0 {
        count(backend_counters.get_ptr_mut(all.arrival.host), bytes, new);
    }
    let ifindex = if C::ROUTES { 0 } else { backend.ifindex };
    Ok(Outcome { verdict, ifindex, vlan: backend.vlan, is_local: false })
}

/// Reads the packet that has come out of a tunnel, and puts it into [`Scratch`]. `Translated`: it is there.
#[inline(always)]
pub fn receive<F: Family>(ctx: &XdpContext) -> Verdict {
    match read::<F>(ctx) {
        Ok(()) => Verdict::Translated,
        Err(verdict) => verdict,
    }
}

#[inline(always)]
fn read<F: Family>(ctx: &XdpContext) -> Result<(), Verdict> {
    let all = Scratch::get().ok_or(Verdict::NoBackend)?;
    all.tracked.service = 0;
    let packet = ctx.packet();
    let mut network = F::network(&packet, ETH).ok_or(Verdict::Malformed)?;
    if F::ETHER_TYPE == V6::ETHER_TYPE {
        extensions(&packet, &mut network)?;
    }
    if !matches!(network.proto, proto::TCP | proto::UDP) {
        return Err(Verdict::NotOurs);
    }
    let ports = if matches!(network.part, Part::Later) {
        fragment::ports(&network).ok_or(Verdict::Fragment)?
    } else {
        // SAFETY: `at` has checked the bounds.
        unsafe { *packet.at::<[u16; 2]>(network.end).ok_or(Verdict::Malformed)? }
    };
    let segment = Segment::new(network, ports);
    let transport = segment.judge(&packet)?;
    all.arrive(ctx, &segment, transport, &Tags::NONE, 0);
    Ok(())
}

impl Scratch {
    /// Notes a packet that is sent to this host itself; `host` is [`Arrival::host`].
    #[inline(always)]
    pub fn arrive<C: Context>(
        &mut self,
        ctx: &C,
        segment: &Segment,
        transport: Transport,
        tags: &Tags,
        host: u32,
    ) {
        self.flow = FlowKey { scope: scope::LOCAL, ..segment.flow };
        self.tags = *tags;
        (self.tracked.phase, self.tracked.flags) = (transport.phase as u8, transport.flags);
        self.arrival = Arrival {
            transport: segment.transport() as u32,
            length: ctx.wire_length(segment.network.length) as u32,
            host,
        };
    }
}

/// Puts the place of the flow in the table of the frontend of local scope into [`Scratch`].
#[inline(always)]
pub fn locate() -> Result<(), Verdict> {
    let Scratch { flow, tracked, .. } = Scratch::get().ok_or(Verdict::NoBackend)?;
    let mask = config.get(0).ok_or(Verdict::NoBackend)?.vip_mask;
    let found = vip::find(&flow.dst, flow.dst_port, flow.proto, scope::LOCAL, mask);
    let vip::Found { vip, edition } = found.ok_or(Verdict::NoBackend)?;
    let Vip { service, flags, base, size } = vip;
    // Inverted: what is remembered of the flow for the frontend of clients is something else.
    *tracked = Tracked { service, edition: !edition, ..*tracked };
    if size == 0 {
        return Err(Verdict::NoBackend);
    }
    tracked.slot_index = base + slot_of(slot_hash(flow, flags & Vip::AFFINITY != 0), size);
    tracked.slot = slot_at(tracked.slot_index).ok_or(Verdict::NoBackend)?.to_bits();
    Ok(())
}
