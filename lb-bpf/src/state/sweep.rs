//! What ends by itself: learning windows, drains, idle flows, and entries that nobody names any more.
//!
//! A pass looks at every flow once, in chunks, so that one call never takes long. At its end two things are known:
//! which slots have flows that contradict the table (the others become clean), and which entries of `backends` have
//! flows (of the others, those that no service declares and no slot names become free).
use super::{
    Now, Programmed, State,
    dirt::{self, Dirt},
};
use crate::{
    maps::{Cursor, Ended, MapError, Maps, Op},
    status::SweepReport,
};
use lb_bpf_common::{
    Backend, DropKey, FlowEntry, FlowKey, Mode, ReverseEntry, Slot, Vip, VipKey, decide::is_tracked, proto,
    scope, slot_hash, slot_of,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// Flows looked at in one call.
pub const FLOWS_PER_CALL: usize = 32_768;

/// A pass that may free backends lasts at least so long, milliseconds: no packet that read a slot before it began is
/// still in the program when it ends. It also is the least age of a reply entry that counts as lost.
const GRACE: u64 = 1000;

/// Idle times, seconds.
mod idle {
    /// An established TCP connection through NAT: 2 hours 4 minutes (RFC 5382, REQ-5).
    pub(super) const ESTABLISHED: u32 = 7440;
    /// The same while the table is nearly full even without what is half-open.
    pub(super) const ESTABLISHED_CROWDED: u32 = 300;
    /// One side has sent its FIN: 4 minutes (RFC 5382, REQ-5, transitory).
    pub(super) const CLOSING: u32 = 240;
    /// Both sides have: what is retransmitted, and a minute for TIME-WAIT.
    pub(super) const CLOSED: u32 = 60;
    /// A RST was seen.
    pub(super) const RESET: u32 = 10;
    /// The client has sent SYNs only; answers do not count, for a backend under a SYN flood repeats them for a minute.
    /// RFC 5382, REQ-5, would have 4 minutes, but what is lost here is little: the next SYN makes the entry again, and
    /// clients wait less than a minute between the first six (RFC 6298; `tcp_syn_retries`).
    pub(super) const HALF_OPEN: u32 = 60;
    /// UDP: 2 minutes at least (RFC 4787, REQ-5).
    pub(super) const DATAGRAM: u32 = 120;
    /// UDP, one packet of the client and the answers to it: most likely all there is to come.
    pub(super) const QUESTION: u32 = 30;
    /// Half-open, TCP and UDP, while the table is nearly full: longer than an answer takes.
    pub(super) const HALF_OPEN_CROWDED: u32 = 5;
    /// A TCP connection that is pinned to another backend than the table's, at least.
    pub(super) const PINNED: u32 = 300;
}

/// A look at all flows, in progress.
#[derive(Clone, Debug)]
pub(super) struct Pass {
    started: Now,
    stage: Stage,
    /// (service, slot) with flows that contradict the table.
    busy: HashSet<(u32, u32)>,
    /// Entries of `backends` with flows.
    used: HashSet<u32>,
    /// Entries of `backends` that nobody but a flow may name.
    candidates: BTreeSet<u32>,
    load: Load,
}

/// How many flows there are.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Load {
    half_open: usize,
    others: usize,
}

impl Load {
    fn add(&mut self, entry: &FlowEntry) {
        if is_half_open(entry) { self.half_open += 1 } else { self.others += 1 }
    }

    /// The flows of a table with room for `room` fill three quarters of it.
    fn crowds(flows: usize, room: usize) -> bool {
        flows > room / 4 * 3
    }
}

const fn is_half_open(entry: &FlowEntry) -> bool {
    entry.state & FlowEntry::HALF_OPEN != 0
}

#[derive(Clone, Copy, Debug)]
enum Stage {
    Flows(Cursor),
    Replies(Cursor),
    Rest,
}

impl Pass {
    /// The entry is wanted again.
    pub(super) fn keep(&mut self, index: u32) {
        self.candidates.remove(&index);
    }
}

impl State {
    /// Does what is due at `now`, and looks at up to [`FLOWS_PER_CALL`] flows. After an error the state must be
    /// [restored](State::restore).
    pub fn sweep(&mut self, maps: &mut impl Maps, now: Now) -> Result<SweepReport, MapError> {
        let mut report = SweepReport::default();
        self.release(now);
        self.settle(maps, now, &mut report)?;
        self.end_server_ids(maps, now)?;
        let mut pass = match self.pass.take() {
            Some(pass) => pass,
            None => Pass {
                started: now,
                stage: Stage::Flows(0),
                busy: HashSet::new(),
                used: HashSet::new(),
                candidates: self.unreferenced(maps)?,
                load: Load::default(),
            },
        };
        let view = View::new(self, &pass, now);
        while report.flows_seen < FLOWS_PER_CALL {
            let limit = FLOWS_PER_CALL - report.flows_seen;
            pass.stage = match pass.stage {
                Stage::Flows(from) => view.flows(maps, from, limit, &mut pass, &mut report)?,
                Stage::Replies(from) => view.replies(maps, from, limit, now, &mut report)?,
                Stage::Rest => break,
            };
        }
        let rested = pass.candidates.is_empty() || now.0 >= pass.started.0 + GRACE;
        if matches!(pass.stage, Stage::Rest) && rested {
            self.load = pass.load;
            self.clean(maps, &pass, &mut report)?;
            self.free(maps, &pass, &mut report)?;
            self.forget_drops(maps)?;
            report.complete = true;
        } else {
            self.pass = Some(pass);
        }
        report.slots_dirty = self.services.values().map(|service| service.dirty.len()).sum();
        Ok(report)
    }

    /// Ends the learning of slots whose time is over.
    fn settle(&mut self, maps: &mut impl Maps, now: Now, report: &mut SweepReport) -> Result<(), MapError> {
        for service in self.services.values_mut() {
            let due = |dirt: &Dirt| matches!(dirt, Dirt::Learning { until } if *until <= now.seconds());
            for (slot, dirt) in service.dirty.iter_mut().filter(|(_, dirt)| due(dirt)) {
                let index = service.vip.base + slot;
                let held = maps.slots(index, 1)?;
                if let Some(previous) = held.first().and_then(dirt::waiting) {
                    maps.apply(&Op::SetPrevious(index, previous | Slot::SETTLED))?;
                    report.slots_settled += 1;
                }
                *dirt = Dirt::Settled { at: now };
            }
        }
        Ok(())
    }

    /// Cleans the slots that were settled when the pass began and of which it saw no contradicting flow.
    fn clean(&mut self, maps: &mut impl Maps, pass: &Pass, report: &mut SweepReport) -> Result<(), MapError> {
        for service in self.services.values_mut() {
            let (id, base) = (service.id, service.vip.base);
            let is_clean = |slot: u32, dirt: &Dirt| {
                matches!(dirt, Dirt::Settled { at } if *at < pass.started) && !pass.busy.contains(&(id, slot))
            };
            let clean: Vec<u32> = service
                .dirty
                .iter()
                .filter(|(slot, dirt)| is_clean(**slot, dirt))
                .map(|(slot, _)| *slot)
                .collect();
            for slot in clean {
                maps.apply(&Op::SetPrevious(base + slot, 0))?;
                service.dirty.remove(&slot);
                report.slots_cleaned += 1;
            }
        }
        Ok(())
    }

    /// Frees the backends that nobody names.
    fn free(&mut self, maps: &mut impl Maps, pass: &Pass, report: &mut SweepReport) -> Result<(), MapError> {
        if pass.candidates.is_empty() {
            return Ok(());
        }
        let still = self.unreferenced(maps)?;
        for &index in
            pass.candidates.iter().filter(|index| still.contains(index) && !pass.used.contains(index))
        {
            let op = Op::FreeBackend(index);
            maps.apply(&op)?;
            self.mirror(&op);
            for service in self.services.values_mut() {
                service.away.remove(&index);
            }
            report.backends_freed += 1;
        }
        if let Some(op) = self.without_translation() {
            maps.apply(&op)?;
            self.mirror(&op);
        }
        Ok(())
    }

    /// Removes the drop counters of services that are gone.
    fn forget_drops(&self, maps: &mut impl Maps) -> Result<(), MapError> {
        let mut gone: Vec<DropKey> = maps.service_drops()?.into_keys().collect();
        gone.retain(|key| !self.names.contains_key(&key.service));
        if !gone.is_empty() {
            maps.apply(&Op::RemoveDrops(gone))?;
        }
        Ok(())
    }

    /// Entries of `backends` that no desired service declares, no slot sends to and no QUIC server ID names.
    fn unreferenced(&self, maps: &impl Maps) -> Result<BTreeSet<u32>, MapError> {
        // Before the first plan nobody knows what is desired.
        if self.named.is_none() {
            return Ok(BTreeSet::new());
        }
        let entries = || self.services.values().map(|service| &service.entries);
        // As mostly: all are declared.
        if entries().map(BTreeMap::len).sum::<usize>() == self.backends.len() {
            return Ok(BTreeSet::new());
        }
        let declared: HashSet<u32> = entries().flat_map(BTreeMap::values).copied().collect();
        let mut rest: BTreeSet<u32> =
            self.backends.keys().filter(|index| !declared.contains(index)).copied().collect();
        for index in self.named_by_ids() {
            rest.remove(&index);
        }
        let ids: BTreeSet<u32> = rest.iter().map(|index| self.backends[index].service).collect();
        for id in ids {
            let tables: BTreeSet<Vip> =
                self.by_service.get(&id).into_iter().flatten().map(|key| self.vips[key]).collect();
            for vip in tables {
                for slot in maps.slots(vip.base, vip.size)? {
                    rest.remove(&slot.current);
                    if let Some(previous) = dirt::waiting(&slot) {
                        rest.remove(&previous);
                    }
                }
            }
        }
        Ok(rest)
    }
}

/// What a pass needs to know to judge a flow.
struct View<'a> {
    vips: &'a BTreeMap<VipKey, Vip>,
    backends: &'a BTreeMap<u32, Backend>,
    services: HashMap<u32, &'a Programmed>,
    /// Backends whose drain is over.
    cut: HashSet<u32>,
    now: u32,
    /// What is half-open goes early.
    crowded: bool,
    /// What is established, too.
    overcrowded: bool,
}

/// What becomes of a flow's entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Keeps its slot dirty.
    KeepBusy(u32, u32),
    Remove,
}

impl<'a> View<'a> {
    fn new(state: &'a State, pass: &Pass, now: Now) -> Self {
        let seconds = now.seconds();
        let services: HashMap<u32, &Programmed> =
            state.services.values().map(|service| (service.id, service)).collect();
        let over = |service: &&Programmed| {
            let drain = service.desired.drain_seconds;
            let over = move |(_, since): &(&u32, &u32)| since.saturating_add(drain) <= seconds;
            service.away.iter().filter(over).map(|(index, _)| *index).collect::<Vec<_>>()
        };
        let all = |load: &Load| load.half_open + load.others;
        View {
            vips: &state.vips,
            backends: &state.backends,
            cut: services.values().flat_map(over).collect(),
            services,
            now: seconds,
            // Of the pass before, or of this one so far: a table may fill faster than it is looked through.
            crowded: Load::crowds(all(&state.load).max(all(&pass.load)), state.room_for_flows),
            overcrowded: Load::crowds(state.load.others.max(pass.load.others), state.room_for_flows),
        }
    }

    fn flows(
        &self,
        maps: &mut impl Maps,
        from: Cursor,
        limit: usize,
        pass: &mut Pass,
        report: &mut SweepReport,
    ) -> Result<Stage, MapError> {
        let chunk = maps.flows(from, limit)?;
        let mut ended = Vec::new();
        for (key, entry) in &chunk.entries {
            match self.judge(maps, key, entry)? {
                Fate::Keep => {}
                Fate::KeepBusy(id, slot) => {
                    pass.busy.insert((id, slot));
                }
                Fate::Remove => {
                    ended.push(self.ended(maps, key, entry)?);
                    continue;
                }
            }
            pass.used.insert(entry.backend);
            pass.load.add(entry);
        }
        report.flows_seen += chunk.entries.len();
        report.flows_removed += ended.len();
        if !ended.is_empty() {
            maps.apply(&Op::RemoveFlows(ended))?;
        }
        Ok(chunk.next.map_or(Stage::Replies(0), Stage::Flows))
    }

    fn judge(&self, maps: &impl Maps, key: &FlowKey, entry: &FlowEntry) -> Result<Fate, MapError> {
        let vip = VipKey { addr: key.dst, port: key.dst_port, proto: key.proto, scope: key.scope };
        let (Some(vip), Some(backend)) = (self.vips.get(&vip), self.backends.get(&entry.backend)) else {
            return Ok(Fate::Remove);
        };
        let is_gone = backend.service != vip.service
            || backend.flags & Backend::DOWN != 0
            || self.cut.contains(&entry.backend)
            || self.is_idle(maps, key, entry, backend)?;
        if is_gone {
            return Ok(Fate::Remove);
        }
        let number = slot_of(slot_hash(key, vip.flags & Vip::AFFINITY != 0), vip.size);
        let slot = match vip.size {
            0 => Slot::default(),
            _ => maps.slots(vip.base + number, 1)?.first().copied().unwrap_or_default(),
        };
        let is_nat = is_tracked(backend.mode);
        let agrees = slot.current == entry.backend;
        Ok(match slot.previous {
            // The entry is not even looked at.
            0 if !is_nat => Fate::Remove,
            0 => Fate::Keep,
            previous if previous & Slot::SETTLED != 0 && agrees && !is_nat => Fate::Remove,
            // While a slot learns, the entry is what tells a new flow from an old one.
            _ if agrees => Fate::Keep,
            _ => Fate::KeepBusy(vip.service, number),
        })
    }

    fn is_idle(
        &self,
        maps: &impl Maps,
        key: &FlowKey,
        entry: &FlowEntry,
        backend: &Backend,
    ) -> Result<bool, MapError> {
        let timeout = self.timeout(key, entry, backend);
        if self.now.saturating_sub(entry.seen) < timeout {
            return Ok(false);
        }
        if is_half_open(entry) && key.proto == proto::TCP {
            return Ok(true);
        }
        // The backend may be the only one who sends.
        let reply = self.reply_key(key, entry).map(|key| maps.reply(&key)).transpose()?.flatten();
        Ok(reply.is_none_or(|reply| self.now.saturating_sub(reply.seen) >= timeout))
    }

    fn timeout(&self, key: &FlowKey, entry: &FlowEntry, backend: &Backend) -> u32 {
        let both = FlowEntry::FIN_CLIENT | FlowEntry::FIN_BACKEND;
        let is_nat = is_tracked(backend.mode);
        match entry.state {
            _ if is_half_open(entry) && self.crowded => idle::HALF_OPEN_CROWDED,
            _ if key.proto == proto::UDP && is_half_open(entry) => idle::QUESTION,
            _ if key.proto == proto::UDP => idle::DATAGRAM,
            state if state & FlowEntry::RST != 0 => idle::RESET,
            state if state & both == both => idle::CLOSED,
            // Only the client's side is seen.
            state if state & both != 0 && !is_nat => idle::CLOSED,
            state if state & both != 0 => idle::CLOSING,
            state if state & FlowEntry::HALF_OPEN != 0 => idle::HALF_OPEN,
            _ if is_nat && self.overcrowded => idle::ESTABLISHED_CROWDED,
            _ if is_nat => idle::ESTABLISHED,
            _ => {
                let drain =
                    self.services.get(&backend.service).map_or(0, |service| service.desired.drain_seconds);
                drain.max(idle::PINNED)
            }
        }
    }

    fn replies(
        &self,
        maps: &mut impl Maps,
        from: Cursor,
        limit: usize,
        now: Now,
        report: &mut SweepReport,
    ) -> Result<Stage, MapError> {
        let chunk = maps.replies(from, limit)?;
        let mut lost = Vec::new();
        for (key, reply) in &chunk.entries {
            let age = now.seconds().saturating_sub(reply.seen);
            // The kernel program makes the way back first and then the flow.
            if u64::from(age) * 1000 > 2 * GRACE && self.is_lost(maps, key, reply)? {
                lost.push((*key, *reply));
            }
        }
        report.flows_seen += chunk.entries.len();
        report.flows_removed += lost.len();
        if !lost.is_empty() {
            maps.apply(&Op::RemoveReplies(lost))?;
        }
        Ok(chunk.next.map_or(Stage::Rest, Stage::Replies))
    }

    /// Whether a way back has no flow that goes there.
    fn is_lost(&self, maps: &impl Maps, key: &FlowKey, reply: &ReverseEntry) -> Result<bool, MapError> {
        let request = FlowKey {
            src: reply.client,
            dst: reply.vip,
            src_port: reply.client_port,
            dst_port: reply.vip_port,
            proto: key.proto,
            scope: scope::ALL,
            zero: [0; 2],
        };
        for request in [request, FlowKey { scope: scope::LOCAL, ..request }] {
            let flow = maps.flow(&request)?;
            if flow.and_then(|flow| self.reply_key(&request, &flow)) == Some(*key) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn ended(&self, maps: &impl Maps, key: &FlowKey, entry: &FlowEntry) -> Result<Ended, MapError> {
        let reply = match self.reply_key(key, entry) {
            Some(key) => maps.reply(&key)?.map(|reply| (key, reply)),
            None => None,
        };
        Ok(Ended { key: *key, entry: *entry, reply })
    }

    /// Where the way back of a flow is that is translated.
    fn reply_key(&self, key: &FlowKey, entry: &FlowEntry) -> Option<FlowKey> {
        let backend = self.backends.get(&entry.backend)?;
        let is_translated = entry.nat_port != 0 || backend.mode == Mode::Dnat as u8;
        is_translated.then(|| key.answer(backend, entry.nat_port))
    }
}
