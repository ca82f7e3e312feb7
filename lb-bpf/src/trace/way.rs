//! The steps of the kernel program, one by one.
use super::{Chosen, Flow, FlowState, Holder, NextHop, Reply, Sent, SlotEntry, SlotState, Trace, VipEntry};
use crate::{
    maps::{Chunk, Cursor, MapError, Maps},
    service::mode_label,
    state::endpoint_of,
};
use lb_bpf_common::{
    Backend, Config, Facts, Filter, FlowEntry, FlowKey, GUE_PORT, Mode, ReverseEntry, Slot, Verdict, Vip,
    VipKey,
    decide::{self, NAT_ATTEMPTS, NatPorts, Phase},
    flow_hash, proto, scope, slot_hash, slot_of,
};
use std::net::{IpAddr, SocketAddr};

/// What is decided, and why.
pub(super) type End = (Verdict, String);

/// Why the way of a packet ends early.
pub(super) enum Stop {
    Verdict(End),
    Map(MapError),
}

impl From<MapError> for Stop {
    fn from(error: MapError) -> Self {
        Stop::Map(error)
    }
}

fn stop<T>(verdict: Verdict, why: &str) -> Result<T, Stop> {
    Err(Stop::Verdict((verdict, why.to_owned())))
}

/// The way of a packet.
pub(super) struct Way<'a, M> {
    pub(super) maps: &'a M,
    pub(super) key: FlowKey,
    pub(super) phase: Phase,
    /// Seconds of CLOCK_MONOTONIC.
    pub(super) now: u32,
    /// Entries of `flows` that the packet has made already.
    pub(super) made: u32,
}

/// Where a tracked flow goes.
struct Choice {
    index: u32,
    backend: Backend,
    /// Network byte order.
    nat_port: u16,
    /// Whether the flow gets an entry.
    makes_entry: bool,
    why: String,
}

impl<M: Maps> Way<'_, M> {
    /// Follows the packet to its end, and notes what it meets.
    pub(super) fn follow(&self, trace: &mut Trace) -> Result<End, Stop> {
        let config = self.maps.config()?;
        self.filters(&config, trace)?;
        if config.flags & Config::NAT != 0
            && decide::is_nat_port(&config, self.key.dst_port)
            && let Some(entry) = self.maps.reply(&self.key)?
        {
            return Ok(self.reply(&entry, trace));
        }
        let FlowKey { dst, dst_port, proto, .. } = self.key;
        let Some(vip) = self.maps.vip(&VipKey { addr: dst, port: dst_port, proto, scope: scope::ALL })?
        else {
            if config.flags & Config::DNAT != 0
                && let Some(entry) = self.maps.reply(&self.key)?
            {
                return Ok(self.reply(&entry, trace));
            }
            return Ok((
                Verdict::NotOurs,
                "no service has this address, port and protocol: up the stack".to_owned(),
            ));
        };
        self.request(vip, trace)
    }

    /// Follows a packet to the frontend that has this entry.
    fn request(&self, vip: Vip, trace: &mut Trace) -> Result<End, Stop> {
        let Vip { service, base, size, flags } = vip;
        let is_local = self.key.scope == scope::LOCAL;
        let hash = slot_hash(&self.key, flags & Vip::AFFINITY != 0);
        trace.hash = Some(hash);
        trace.vip = Some(VipEntry {
            service: self.maps.name(service)?,
            service_id: service,
            table_base: base,
            table_size: size,
        });
        let known = self.maps.flow(&self.key)?;
        trace.flow = known.map(|entry| self.flow(&entry)).transpose()?;
        if flags & Vip::RANGES != 0 && !is_local && self.maps.lets_in(service, self.key.src)? != Some(true) {
            return stop(Verdict::SourceDenied, "the service does not let this client in");
        }
        let is_passed = flags & Vip::PASS != 0 && !is_local;
        let nobody = if is_passed { Verdict::NoBackendPassed } else { Verdict::NoBackend };
        if size == 0 {
            return stop(nobody, "the service has no backend: its table is empty");
        }
        let number = slot_of(hash, size);
        let slot_index = base.wrapping_add(number);
        if slot_index >= self.maps.sizes().slots {
            return stop(nobody, "the table lies outside of the map");
        }
        let slot = self.maps.slots(slot_index, 1)?.first().copied().unwrap_or_default();
        trace.slot = Some(self.slot(number, slot)?);
        let chosen = self.choose(service, slot, known).map_err(|stop| match stop {
            Stop::Verdict((Verdict::NoBackend, why)) => Stop::Verdict((nobody, why)),
            stop => stop,
        });
        let Choice { index, backend, nat_port, makes_entry, mut why } = chosen?;
        if flags & Vip::QUIC != 0 && !is_local && self.key.proto == proto::UDP {
            why.push_str("; a QUIC packet whose connection ID names another backend goes to that one");
        }
        let table = self.maps.slots(base, size)?;
        let chosen = Chosen {
            endpoint: endpoint_of(&backend),
            index,
            mode: Mode::of(backend.mode).map_or("unknown", mode_label).to_owned(),
            down: backend.flags & Backend::DOWN != 0,
            slots: table.iter().filter(|slot| slot.current == index).count() as u32,
        };
        if backend.mode == Mode::Here as u8 && !is_local {
            trace.host = Some(chosen);
            return self.deliver(&why, makes_entry, trace);
        }
        trace.backend = Some(chosen);
        if is_local && !decide::is_tracked(backend.mode) {
            return stop(
                Verdict::NoBackend,
                "the backend of this host is not one that packets are translated to",
            );
        }
        if backend.ifindex == 0 && !is_local {
            let why = format!("{why}; the next hop towards it is not resolved: up the stack");
            return Ok((Verdict::Unresolved, why));
        }
        let mode = Mode::of(backend.mode);
        let outer = decide::overhead(&backend) as u32;
        trace.next_hop = (backend.ifindex != 0).then(|| NextHop {
            interface_index: backend.ifindex,
            interface: None,
            mac: mac(backend.next_hop),
            source_mac: mac(backend.source_mac),
            vlan: (backend.vlan != 0).then_some(backend.vlan),
            largest_packet: (backend.mtu != 0).then(|| u32::from(backend.mtu).saturating_sub(outer)),
        });
        let (source, destination) = (IpAddr::from(backend.source), endpoint_of(&backend));
        let (sent, verdict) = match mode {
            Some(Mode::Ipip) => {
                let mut outer = backend.source;
                outer.0[3] |= decide::outer_source_bits(&backend, hash);
                let (source, destination) = (IpAddr::from(outer), destination.address);
                (Sent::Encapsulated { source, destination }, Verdict::Encapsulated)
            }
            Some(Mode::Gue) => {
                let source = SocketAddr::new(source, decide::gue_source(hash));
                let destination = SocketAddr::new(destination.address, GUE_PORT);
                (Sent::InUdp { source, destination }, Verdict::Encapsulated)
            }
            Some(Mode::L2) => (Sent::Forwarded { backend: destination.address }, Verdict::Forwarded),
            Some(Mode::Nat | Mode::Dnat | Mode::Here) | None => {
                let source = match mode {
                    Some(Mode::Dnat) => SocketAddr::new(self.key.src.into(), u16::from_be(nat_port)),
                    _ => SocketAddr::new(source, u16::from_be(nat_port)),
                };
                let destination = SocketAddr::new(destination.address, destination.port);
                (Sent::Translated { source, destination }, Verdict::Translated)
            }
        };
        trace.sent = Some(sent);
        Ok((verdict, why))
    }

    /// Follows a packet that is for a backend of this host itself; `why` that is so.
    fn deliver(&self, why: &str, makes_entry: bool, trace: &mut Trace) -> Result<End, Stop> {
        let key = FlowKey { scope: scope::LOCAL, ..self.key };
        let local = Way { key, made: makes_entry.into(), ..*self };
        let FlowKey { dst, dst_port, proto, scope, .. } = local.key;
        let entry = self.maps.vip(&VipKey { addr: dst, port: dst_port, proto, scope })?;
        let end = match entry {
            Some(vip) => local.request(vip, trace),
            None => stop(Verdict::NoBackend, "which has none of its own"),
        };
        let here = |(verdict, rest): End| (verdict, format!("{why}: this host; {rest}"));
        match end {
            Ok(end) => Ok(here(end)),
            Err(Stop::Verdict(end)) => Err(Stop::Verdict(here(end))),
            Err(error) => Err(error),
        }
    }

    /// Applies the packet filters, as far as they look at what is known of the packet.
    fn filters(&self, config: &Config, trace: &mut Trace) -> Result<(), Stop> {
        if config.filters == 0 {
            return Ok(());
        }
        let family = if self.key.src.is_v4() { Filter::V4 } else { Filter::V6 };
        let is_tcp = self.key.proto == proto::TCP;
        // SYN, or ACK.
        let flags = if self.phase == Phase::Opening { 2 } else { 16 };
        let mut facts = Facts {
            src: self.key.src,
            dst: self.key.dst,
            ports: [u16::from_be(self.key.src_port), u16::from_be(self.key.dst_port)],
            length: 0,
            has: family | Filter::WHOLE | Filter::PORTS | if is_tcp { Filter::TCP_FLAGS } else { 0 },
            proto: self.key.proto,
            tcp_flags: if is_tcp { flags } else { 0 },
            zero: 0,
        };
        let names = self.maps.filter_names()?;
        for (index, filter) in self.maps.filters()?.range(..config.filters) {
            // The length is whatever the rule wants; if it wants any, that is no condition.
            facts.length = filter.length[0];
            if filter.kind & Filter::DROP == 0 || !filter.matches(&facts) {
                continue;
            }
            let name = names.get(index).cloned().unwrap_or_else(|| format!("#{index}"));
            let is_certain = filter.kind & Filter::BYTES == 0 && filter.length == [0, u16::MAX];
            trace.filter.get_or_insert(name);
            if is_certain {
                return stop(Verdict::Filtered, "a packet filter drops it");
            }
        }
        Ok(())
    }

    fn reply(&self, entry: &ReverseEntry, trace: &mut Trace) -> End {
        let client = SocketAddr::new(entry.client.into(), u16::from_be(entry.client_port));
        let vip = SocketAddr::new(entry.vip.into(), u16::from_be(entry.vip_port));
        trace.reply = Some(Reply { client, vip, age_seconds: self.now.saturating_sub(entry.seen) });
        if entry.ifindex == ReverseEntry::ROUTED {
            let why = "a reply of a backend of this host: the stack routes it, and it is from the VIP where it leaves";
            return (Verdict::NotOurs, why.to_owned());
        }
        trace.sent = Some(Sent::Translated { source: vip, destination: client });
        if entry.ifindex == 0 {
            let why = "a backend's reply to this host itself: up the stack, from the VIP";
            return (Verdict::ReturnedHere, why.to_owned());
        }
        let [tag, _] = entry.tags.0;
        trace.next_hop = Some(NextHop {
            interface_index: entry.ifindex,
            vlan: (tag != 0).then(|| u16::from_be((tag >> 16) as u16)),
            interface: None,
            mac: mac(entry.next_hop),
            source_mac: mac(entry.source_mac),
            largest_packet: None,
        });
        (Verdict::Returned, "a backend's reply to a port of NAT: back to the client, from the VIP".to_owned())
    }

    /// The backend, and for a tracked flow its NAT port.
    fn choose(&self, service: u32, slot: Slot, known: Option<FlowEntry>) -> Result<Choice, Stop> {
        const CLEAN: &str = "the slot is clean: the table alone decides";
        if !decide::is_dirty(slot) {
            let Some(backend) = self.maps.backend(slot.current)? else {
                return stop(Verdict::NoBackend, "the slot names no backend that is in use");
            };
            if !decide::is_tracked(backend.mode) {
                let why = CLEAN.to_owned();
                return Ok(Choice { index: slot.current, backend, nat_port: 0, makes_entry: false, why });
            }
        }
        let usable = |index: u32| -> Result<Option<Backend>, MapError> {
            Ok(self.maps.backend(index)?.filter(|backend| decide::is_usable(backend, service)))
        };
        let opening = self.phase == Phase::Opening;
        let pinned = match known.filter(|_| !opening) {
            Some(entry) => usable(entry.backend)?.map(|backend| (entry.backend, backend)),
            None => None,
        };
        let new = pinned.is_none();
        let (index, backend, mut why) = match pinned {
            Some((index, backend)) => {
                (index, backend, "the flow has an entry and its backend answers: it stays there".to_owned())
            }
            None => {
                let index = decide::unknown(slot, self.phase);
                let before = if known.is_some() && !opening {
                    "the backend of the flow's entry is down or gone; "
                } else {
                    ""
                };
                if let Some(backend) = usable(index)? {
                    (index, backend, format!("{before}{}", self.rule(slot)))
                } else if let Some(backend) = self.maps.backend(slot.current)? {
                    let rule = match index == slot.current {
                        true => self.rule(slot),
                        false => {
                            "the slot has moved and its backend before is down or gone: where the table says now"
                        }
                    };
                    (slot.current, backend, format!("{before}{rule}"))
                } else {
                    return stop(Verdict::NoBackend, "the slot names no backend that is in use");
                }
            }
        };
        let entry = known.filter(|entry| entry.backend == index);
        let is_nat = decide::is_tracked(backend.mode);
        let nat_port = match entry {
            Some(entry) if entry.seen == self.now && !new => entry.nat_port,
            _ if is_nat => self.nat_port(&backend, entry.map_or(0, |entry| entry.nat_port))?,
            entry => entry.map_or(0, |entry| entry.nat_port),
        };
        let room = self.maps.sizes().flows.saturating_sub(self.made);
        let mut makes_entry = known.is_none();
        if makes_entry && is_full(room, |from| self.maps.flows(from, CHUNK))? {
            makes_entry = false;
            if is_nat || !decide::stays_without_entry(slot, self.phase, index) {
                return stop(Verdict::FlowTableFull, "the flow needs an entry, and the flow table is full");
            }
            why.push_str("; the flow table is full: it goes without an entry");
        }
        Ok(Choice { index, backend, nat_port, makes_entry, why })
    }

    /// The rule for a flow without an entry.
    fn rule(&self, slot: Slot) -> &'static str {
        match self.phase {
            _ if !decide::is_dirty(slot) => "the slot is clean: the table alone decides",
            Phase::Opening => "the slot has moved: a new connection goes where the table says now",
            Phase::Datagram => {
                "the slot has moved: a UDP flow without an entry goes where the table says now"
            }
            Phase::Running if slot.previous & Slot::SETTLED == 0 => {
                "the slot has moved and still learns: a connection without an entry belongs to its backend before"
            }
            Phase::Running => {
                "the slot has moved and has learned: a connection without an entry goes where the table says now"
            }
        }
    }

    /// The source port of the flow towards `backend`, network byte order: `port` if that is the flow's, else (0, or
    /// the entry was lost) the one that a new entry gets.
    fn nat_port(&self, backend: &Backend, port: u16) -> Result<u16, Stop> {
        let entry = |port| self.maps.reply(&self.key.answer(backend, port));
        if port != 0 && entry(port)?.is_some_and(|entry| is_of(&entry, &self.key)) {
            return Ok(port);
        }
        let Config { nat_port_first, nat_port_last, .. } = self.maps.config()?;
        let is_kept = backend.mode == Mode::Dnat as u8;
        let own = u16::from_be(self.key.src_port);
        let (first, last) =
            if is_kept && nat_port_first == 0 { (own, own) } else { (nat_port_first, nat_port_last) };
        let Some(mut ports) = NatPorts::new(first, last, flow_hash(&self.key)) else {
            return stop(Verdict::NatPortsExhausted, "there are no ports for NAT");
        };
        let mut is_first = is_kept;
        for _ in 0..NAT_ATTEMPTS {
            let tried = if is_first { self.key.src_port } else { ports.port() };
            let holder = entry(tried)?;
            if holder.is_some_and(|entry| is_of(&entry, &self.key)) {
                return Ok(tried);
            }
            if holder.is_none() {
                if is_full(self.maps.sizes().flows, |from| self.maps.replies(from, CHUNK))? {
                    let why = "the flow needs a port of NAT, and the table of ways back is full";
                    return stop(Verdict::FlowTableFull, why);
                }
                return Ok(tried);
            }
            match is_first {
                true => is_first = false,
                false => ports.advance(),
            }
        }
        stop(Verdict::NatPortsExhausted, "the flow needs a port of NAT, and those that were tried are taken")
    }

    fn slot(&self, number: u32, slot: Slot) -> Result<SlotEntry, MapError> {
        let holder = |index: u32| (index != 0).then(|| self.holder(index)).transpose();
        let state = match slot.previous {
            0 => SlotState::Clean,
            previous if previous & Slot::SETTLED == 0 => SlotState::Learning,
            _ => SlotState::Settled,
        };
        let (current, previous) = (holder(slot.current)?, holder(slot.previous & !Slot::SETTLED)?);
        Ok(SlotEntry { number, state, current, previous })
    }

    fn holder(&self, index: u32) -> Result<Holder, MapError> {
        let backend = self.maps.backend(index)?;
        let down = backend.is_some_and(|backend| backend.flags & Backend::DOWN != 0);
        Ok(Holder { index, endpoint: backend.as_ref().map(endpoint_of), down })
    }

    fn flow(&self, entry: &FlowEntry) -> Result<Flow, MapError> {
        let states = [
            (FlowEntry::HALF_OPEN, FlowState::HalfOpen),
            (FlowEntry::FIN_CLIENT, FlowState::FinFromClient),
            (FlowEntry::FIN_BACKEND, FlowState::FinFromBackend),
            (FlowEntry::RST, FlowState::Reset),
        ];
        Ok(Flow {
            backend: self.holder(entry.backend)?,
            nat_port: (entry.nat_port != 0).then(|| u16::from_be(entry.nat_port)),
            age_seconds: self.now.saturating_sub(entry.seen),
            state: states.iter().filter(|(bit, _)| entry.state & bit != 0).map(|(_, state)| *state).collect(),
        })
    }
}

/// Entries read at a time.
const CHUNK: usize = 4096;

/// Whether a map has `limit` entries or more.
fn is_full<V>(limit: u32, read: impl Fn(Cursor) -> Result<Chunk<V>, MapError>) -> Result<bool, MapError> {
    let (mut count, mut from) = (0, Some(0));
    while let Some(cursor) = from {
        let chunk = read(cursor)?;
        count += chunk.entries.len();
        from = chunk.next;
    }
    Ok(count >= limit as usize)
}

/// Whether this is the way back of `flow`.
fn is_of(entry: &ReverseEntry, flow: &FlowKey) -> bool {
    (entry.client, entry.vip, entry.client_port, entry.vip_port)
        == (flow.src, flow.dst, flow.src_port, flow.dst_port)
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}
