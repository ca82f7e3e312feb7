//! From a desired set to the operations that bring the maps there, in an order in which a packet may run between
//! any two of them, and the process may die there.
//!
//! For each service: entries of backends first, then the new table in a free range and the source ranges, then the
//! frontends, each by one update. What a frontend pointed to before is given back when no packet can be reading it any
//! more.
use super::{
    Named, NextHop, NextHops, Now, Programmed, State, dirt::Dirt, entries::moved, filters, is_resolved,
    ping_key, server_ids::server_id_bytes, sources, tables::Table, vip_key,
};
use crate::{
    maglev,
    maps::{MapError, Maps, NAME_LENGTH, Op},
    service::{Desired, Endpoint, Frontend, Scope, Service, ServiceKey},
    status::InstalledService,
};
use lb_bpf_common::{Addr, Config, DecapKey, Mode, Vip, VipKey};
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// Source ports of NAT: below the ports that the kernel takes for connections of its own
/// (`net.ipv4.ip_local_port_range`, 32768 on) and above those of most servers.
const NAT_PORTS: (u16, u16) = (16384, 32767);

/// The value of an address's entry for ICMP.
const PING: Vip = Vip { service: 0, flags: 0, base: 0, size: 0 };

/// Why there is no plan. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Two services want the same frontend.
    #[error("frontend {} port {}: claimed by {first} and by {second}", frontend.address, frontend.port)]
    FrontendTwice {
        /// The frontend.
        frontend: Frontend,
        /// The service that comes first in the order of names.
        first: ServiceKey,
        /// The other one.
        second: ServiceKey,
    },
    /// The map `names` cannot hold the name.
    #[error("service {0:?}: the name must have 1 to {NAME_LENGTH} bytes, none of them zero")]
    BadName(ServiceKey),
    /// A map has no room left.
    #[error("map {map} is full: {needed} more entries are needed, {available} are free")]
    Full {
        /// Name of the map.
        map: &'static str,
        /// How many entries are needed.
        needed: u32,
        /// How many are free; of `slots`, in a row.
        available: u32,
    },
    /// A map could not be read.
    #[error(transparent)]
    Map(#[from] MapError),
}

/// What differs between what is desired and what a [`State`] has dealt with.
pub struct Changes<'a> {
    desired: &'a Desired,
    /// Services that need something.
    changed: BTreeMap<&'a ServiceKey, &'a Arc<Service>>,
    /// What is known of these, and of those that are not desired any more, is not true any more.
    others: BTreeSet<ServiceKey>,
    /// There was no plan before.
    is_first: bool,
}

impl Changes<'_> {
    /// Whether there was no plan before, since the state was made.
    pub fn is_first(&self) -> bool {
        self.is_first
    }
}

/// What is to be done, and what becomes of it.
#[derive(Debug)]
pub struct Plan {
    /// The operations, to be applied in this order.
    pub ops: Vec<Op>,
    /// The services that are not what they were before, gone or new ones included: see [`State::installed_service`].
    pub touched: BTreeSet<ServiceKey>,
}

impl State {
    /// Compares what is desired with what is dealt with already: what [`State::plan_changes`] takes, as long as no other
    /// plan comes between. Services that are equal are compared once: they are the same ones from then on.
    pub fn compare<'a>(&mut self, desired: &'a Desired) -> Changes<'a> {
        let (mut changed, mut others) = (BTreeMap::new(), BTreeSet::new());
        // Side by side: both are in the order of the names. Mostly they are the same ones, and that costs one look.
        let mut programmed = self.services.iter_mut().peekable();
        for (key, service) in &desired.services {
            let mut before = programmed.next_if(|(other, _)| *other == key);
            if before.is_none() {
                while let Some((other, _)) = programmed.next_if(|(other, _)| *other < key) {
                    others.insert(other.clone());
                }
                before = programmed.next_if(|(other, _)| *other == key);
            }
            if let Some((_, before)) = before {
                debug_assert_eq!(self.names.get(&before.id), Some(key));
                debug_assert!(before.is_held(&self.vips), "{key}: not what the maps hold");
                // The same one, or an equal one.
                if before.desired == *service {
                    if !Arc::ptr_eq(&before.desired, service) {
                        before.desired = Arc::clone(service);
                    }
                    continue;
                }
                others.insert(key.clone());
            }
            changed.insert(key, service);
        }
        others.extend(programmed.map(|(other, _)| other.clone()));
        Changes { desired, changed, others, is_first: self.named.is_none() }
    }

    /// The addresses whose next hops a plan wants to know: of all backends that have an entry, those that drain included,
    /// and of those that will get one; not of this host itself. None: those that [`State::addresses_are_known`] was said of.
    pub fn addresses(&self, changes: &Changes<'_>) -> Option<BTreeSet<IpAddr>> {
        let is_elsewhere = |index: &u32| self.backends[index].mode != Mode::Here as u8;
        let targets = changes.changed.values().flat_map(|service| &service.backends);
        let mut targets = targets.filter(|(_, target)| !target.here).map(|(endpoint, _)| endpoint.address);
        let has = |address| {
            let mut entries = self.by_address.range((address, 0)..=(address, u32::MAX));
            entries.any(|(_, index)| is_elsewhere(index))
        };
        if self.addresses_are_known && targets.clone().all(has) {
            return None;
        }
        let known = self.by_address.iter().filter(|(_, index)| is_elsewhere(index));
        let mut addresses: BTreeSet<IpAddr> = known.map(|(address, _)| *address).collect();
        addresses.extend(&mut targets);
        Some(addresses)
    }

    /// The next hops of the addresses of now are looked after.
    pub const fn addresses_are_known(&mut self) {
        self.addresses_are_known = true;
    }

    /// The operations of [`State::plan_changes`], for who has the next hops already.
    pub fn plan(
        &mut self,
        maps: &impl Maps,
        desired: &Desired,
        hops: &NextHops,
        now: Now,
    ) -> Result<Vec<Op>, PlanError> {
        let changes = self.compare(desired);
        Ok(self.plan_changes(maps, changes, &Arc::new(hops.clone()), now)?.ops)
    }

    /// Plans to add and change what is desired; no frontend and no tunnel end is taken away. The maps are
    /// only read. The caller applies the operations in their order; if it cannot, or if there is an error, this state
    /// is wrong and must be [restored](State::restore).
    pub fn plan_changes(
        &mut self,
        maps: &impl Maps,
        mut changes: Changes<'_>,
        hops: &Arc<NextHops>,
        now: Now,
    ) -> Result<Plan, PlanError> {
        let moved = moved(&self.hops, hops);
        let vips = self.vips.len();
        self.add_moved(&mut changes, &moved);
        let Changes { desired, changed, others, .. } = changes;
        let claimed = self.claims(&changed, &others)?;
        self.named = Some(named(desired, self.room_for_filters));
        self.has_leftovers |= others.iter().any(|key| self.leaves_something(key, changed.get(key)));
        let mut touched = others.clone();
        touched.extend(changed.keys().copied().cloned());
        self.release(now);
        let mut ops = Vec::new();
        self.add_filters(&desired.filters, &mut ops);
        let flags = changed.values().fold(0, |flags, service| flags | translation(service.mode as u8));
        if flags != 0 {
            let config = Config {
                flags: self.config.flags | flags,
                nat_port_first: NAT_PORTS.0,
                nat_port_last: NAT_PORTS.1,
                ..self.config
            };
            if self.config != config {
                self.push(Op::SetConfig(config), &mut ops);
            }
        }
        let mut known = std::mem::take(&mut self.leaving);
        for key in others {
            if let Some(programmed) = self.services.remove(&key) {
                known.insert(programmed.id, (key, programmed));
            }
        }
        let ids = self.identify(&changed, &known);
        for (key, service) in changed {
            if service.frontends.is_empty() {
                continue;
            }
            let id = ids[key];
            if self.names.get(&id) != Some(key) {
                self.push(Op::SetName(id, key.clone()), &mut ops);
            }
            let before = known.remove(&id).map(|(_, programmed)| programmed);
            let programmed = self.program(maps, id, service, before, &claimed, hops, now, &mut ops)?;
            self.services.insert(key.clone(), programmed);
            let of_clients = service.frontends.iter().filter(|frontend| frontend.scope == Scope::All);
            for ping in of_clients.map(ping_key) {
                if self.vips.get(&ping) != Some(&PING) {
                    self.push(Op::SetVip(ping, PING), &mut ops);
                }
            }
        }
        if self.vips.len() > self.room_for_vips {
            let (needed, available) = (self.vips.len() - vips, self.room_for_vips.saturating_sub(vips));
            return Err(PlanError::Full { map: "vips", needed: needed as u32, available: available as u32 });
        }
        for decap in &desired.decap {
            let key = DecapKey { local: decap.local.into(), vip: decap.vip.into() };
            let value = if decap.deliver { DecapKey::TO_LOCAL } else { DecapKey::TO_STACK };
            if self.decap.get(&key) != Some(&value) {
                self.push(Op::SetDecap(key, value), &mut ops);
            }
        }
        self.leaving = known;
        if !moved.is_empty() {
            self.refresh_absent(&moved, hops, &mut ops);
        }
        self.hops.clone_from(hops);
        self.retire_tables(now);
        Ok(Plan { ops, touched })
    }

    /// Plans to remove every frontend and tunnel end that the last plan did not name.
    pub fn plan_prune(&mut self, now: Now) -> Vec<Op> {
        let Some(named) = &self.named else { return Vec::new() };
        let mut ops = Vec::new();
        let ends: Vec<_> = self.decap.keys().filter(|key| !named.decap.contains(key)).copied().collect();
        let left = if std::mem::take(&mut self.has_leftovers) {
            self.leftovers()
        } else {
            debug_assert_eq!(self.leftovers(), Leftovers::default());
            Leftovers::default()
        };
        for key in left.vips {
            self.push(Op::RemoveVip(key), &mut ops);
        }
        for key in ends {
            self.push(Op::RemoveDecap(key), &mut ops);
        }
        if let Some(op) = self.without_translation() {
            self.push(op, &mut ops);
        }
        self.remove_filters(&mut ops);
        for id in left.names {
            self.push(Op::RemoveName(id), &mut ops);
        }
        for id in left.sources {
            self.remove_sources(id, &BTreeMap::new(), &mut ops);
        }
        self.leaving.clear();
        self.retire_tables(now);
        ops
    }

    /// Whether a service that is not as it was will have left something behind.
    fn leaves_something(&self, key: &ServiceKey, service: Option<&&Arc<Service>>) -> bool {
        let programmed = self.services.get(key);
        let before = programmed.map(|programmed| &programmed.desired.frontends);
        before != service.map(|service| &service.frontends)
            || programmed.is_some_and(|programmed| !programmed.server_ids.is_empty())
    }

    /// What there is of services that the last plan did not name.
    fn leftovers(&self) -> Leftovers {
        let frontends = self.services.values().flat_map(|programmed| &programmed.desired.frontends);
        let server_ids = self.services.values().flat_map(|programmed| programmed.server_ids.keys().copied());
        let wanted: HashSet<VipKey> =
            frontends.flat_map(|it| [vip_key(it), ping_key(it)]).chain(server_ids).collect();
        let kept: BTreeSet<u32> = self.services.values().map(|programmed| programmed.id).collect();
        Leftovers {
            vips: self.vips.keys().filter(|key| !wanted.contains(key)).copied().collect(),
            names: self.names.keys().filter(|id| !kept.contains(id)).copied().collect(),
            sources: self.sources.keys().filter(|id| !kept.contains(id)).copied().collect(),
        }
    }

    /// The operation that tells packets which modes that translate are not there any more, if they do not know.
    pub(super) fn without_translation(&self) -> Option<Op> {
        self.named.as_ref()?;
        let mut over = self.config.flags & (Config::NAT | Config::DNAT);
        let mut services = self.services.values();
        while over != 0
            && let Some(programmed) = services.next()
        {
            over &= !translation(programmed.desired.mode as u8);
        }
        if over == 0 {
            return None;
        }
        let drain = self.backends.values().fold(0, |flags, backend| flags | translation(backend.mode));
        let flags = self.config.flags & !(over & !drain);
        (flags != self.config.flags).then_some(Op::SetConfig(Config { flags, ..self.config }))
    }

    pub(super) fn push(&mut self, op: Op, ops: &mut Vec<Op>) {
        self.mirror(&op);
        ops.push(op);
    }

    /// Adds the services with backends among the addresses whose next hops are others now.
    fn add_moved(&self, changes: &mut Changes<'_>, moved: &BTreeSet<IpAddr>) {
        for index in self.entries_at(moved) {
            let Some(key) = self.declaring(index) else { continue };
            if let Some((key, service)) = changes.desired.services.get_key_value(key)
                && changes.changed.insert(key, service).is_none()
            {
                changes.others.insert(key.clone());
            }
        }
    }

    /// The frontends of the services that need something. An error if one of them is another's, too, or if there is no room.
    fn claims(
        &self,
        changed: &BTreeMap<&ServiceKey, &Arc<Service>>,
        others: &BTreeSet<ServiceKey>,
    ) -> Result<BTreeSet<VipKey>, PlanError> {
        let mut owners = Vec::with_capacity(changed.len());
        for (&key, service) in changed {
            if key.0.is_empty() || key.0.len() > NAME_LENGTH || key.0.contains('\0') {
                return Err(PlanError::BadName(key.clone()));
            }
            for frontend in &service.frontends {
                let vip = vip_key(frontend);
                owners.push((vip, key, frontend));
                // What needs nothing holds all its frontends.
                let holder = self.vips.get(&vip).and_then(|held| self.names.get(&held.service));
                let holder = holder.filter(|holder| !others.contains(holder));
                let its = holder.and_then(|holder| Some((holder, self.services.get(holder)?)));
                if let Some((holder, _)) = its.filter(|(_, its)| its.desired.frontends.contains(frontend)) {
                    owners.push((vip, holder, frontend));
                }
            }
        }
        owners.sort_unstable();
        owners.dedup();
        if let Some([(_, first, frontend), (_, second, _)]) = owners.array_windows().find(|[a, b]| a.0 == b.0)
        {
            let (first, second) = ((*first).clone(), (*second).clone());
            return Err(PlanError::FrontendTwice { frontend: **frontend, first, second });
        }
        let keys = owners.iter().flat_map(|(vip, _, frontend)| [*vip, ping_key(frontend)]);
        let new: BTreeSet<VipKey> = keys.filter(|key| !self.vips.contains_key(key)).collect();
        let available = self.room_for_vips.saturating_sub(self.vips.len());
        if new.len() > available {
            let (needed, available) = (new.len() as u32, available as u32);
            return Err(PlanError::Full { map: "vips", needed, available });
        }
        Ok(owners.into_iter().map(|(vip, ..)| vip).collect())
    }

    /// Gives every changed service its id: the one it has, else the one that its frontends have in the map (it was
    /// renamed), else a new one. `known` are the services by id that need something or are not desired any more.
    fn identify<'a>(
        &self,
        changed: &BTreeMap<&'a ServiceKey, &Arc<Service>>,
        known: &BTreeMap<u32, (ServiceKey, Programmed)>,
    ) -> BTreeMap<&'a ServiceKey, u32> {
        let same = |key: &ServiceKey| changed.get_key_value(key).map(|(&key, _)| key);
        let mut ids: BTreeMap<&ServiceKey, u32> =
            known.iter().filter_map(|(&id, (key, _))| Some((same(key)?, id))).collect();
        if ids.len() == changed.len() {
            return ids;
        }
        ids.extend(self.names.iter().filter_map(|(&id, key)| Some((same(key)?, id))));
        let mut taken: BTreeSet<u32> = ids.values().copied().collect();
        let stays = |id: &u32| self.names.get(id).is_some_and(|name| self.services.contains_key(name));
        for (&key, service) in changed {
            if ids.contains_key(key) {
                continue;
            }
            let mut votes = BTreeMap::<u32, usize>::new();
            for vip in service.frontends.iter().filter_map(|frontend| self.vips.get(&vip_key(frontend))) {
                if !taken.contains(&vip.service) && !stays(&vip.service) {
                    *votes.entry(vip.service).or_default() += 1;
                }
            }
            let most = votes.into_iter().max_by_key(|&(id, votes)| (votes, std::cmp::Reverse(id)));
            if let Some((id, _)) = most {
                ids.insert(key, id);
                taken.insert(id);
            }
        }
        let mut fresh = (1..).filter(|id| {
            let has_backends = self.by_target.range(((*id, Addr::NONE, 0, 0), 0)..).next();
            !self.names.contains_key(id)
                && !self.by_service.contains_key(id)
                && has_backends.is_none_or(|((owner, ..), _)| owner != id)
        });
        for &key in changed.keys() {
            if !ids.contains_key(key)
                && let Some(id) = fresh.next()
            {
                ids.insert(key, id);
            }
        }
        ids
    }

    /// Plans one service.
    #[expect(clippy::too_many_arguments, reason = "all of them are one call's context")]
    fn program(
        &mut self,
        maps: &impl Maps,
        id: u32,
        service: &Arc<Service>,
        before: Option<Programmed>,
        claimed: &BTreeSet<VipKey>,
        hops: &NextHops,
        now: Now,
        ops: &mut Vec<Op>,
    ) -> Result<Programmed, PlanError> {
        let mut entries = BTreeMap::new();
        for (endpoint, target) in &service.backends {
            let hop = hops.get(&endpoint.address).unwrap_or(&NextHop::Pending);
            let last = before.as_ref().and_then(|before| before.entries.get(endpoint).copied());
            let mode = service.mode_of(target);
            let index = self.set_backend(id, mode, endpoint, target.up, hop, last, ops)?;
            entries.insert(*endpoint, index);
        }
        let members: Vec<(Endpoint, u16, u32)> = service
            .backends
            .iter()
            .filter(|(_, target)| target.up && target.weight > 0)
            .map(|(endpoint, target)| (*endpoint, target.weight, entries[endpoint]))
            .collect();
        let size = maglev::table_size(service.backends.len());
        let installed = self.tables_of(id);
        let mut programmed = match before {
            Some(before)
                if before.members == members
                    && installed.iter().all(|vip| *vip == before.vip)
                    && (before.vip.size == size || service.backends.is_empty()) =>
            {
                Programmed { desired: service.clone(), entries, ..before }
            }
            before => {
                let old = self.old_table(maps, &installed, before, service.drain_seconds, now)?;
                let table = Table { size, members, entries };
                self.switch(maps, id, service, old, table, now, ops)?
            }
        };
        // Those that are not desired any more stay with their service until they are pruned; those that go to another
        // service stay as they are until it takes them.
        let mut keys = self.by_service.get(&id).cloned().unwrap_or_default();
        keys.retain(|key| !claimed.contains(key));
        keys.extend(service.frontends.iter().map(vip_key));
        let sources = sources::compile(id, &service.rules);
        programmed.vip.flags = flags(service, !sources.is_empty());
        self.add_sources(id, &sources, ops)?;
        self.note_absent(&mut programmed, now);
        self.add_server_ids(&mut programmed, now, ops);
        let until = programmed.dirty.values().filter_map(Dirt::learns_until).max();
        for key in keys {
            if self.vips.get(&key) != Some(&programmed.vip) {
                self.push(Op::SetVip(key, programmed.vip), ops);
            }
            // Only then: of a table that is not in use yet it would say nothing.
            if let Some(until) = until.filter(|until| self.learning.get(&key) != Some(until)) {
                self.push(Op::SetLearning(key, until), ops);
            }
        }
        self.remove_sources(id, &sources, ops);
        self.report(&mut programmed);
        Ok(programmed)
    }

    /// Notes which entries of the service are out of its table, and since when.
    fn note_absent(&self, programmed: &mut Programmed, now: Now) {
        let members: BTreeSet<u32> = programmed.members.iter().map(|(_, _, index)| *index).collect();
        let of_service = self.by_target.range(((programmed.id, Addr::NONE, 0, 0), 0)..);
        let absent = of_service
            .take_while(|((id, ..), _)| *id == programmed.id)
            .map(|(_, index)| *index)
            .filter(|index| !members.contains(index));
        programmed.away = absent
            .map(|index| (index, programmed.away.get(&index).copied().unwrap_or(now.seconds())))
            .collect();
    }

    /// Says of a service what there is now; who owns how many slots is said already.
    fn report(&self, programmed: &mut Programmed) {
        let owned = |endpoint| programmed.report.slots.get(endpoint).copied().unwrap_or(0);
        programmed.report = Arc::new(InstalledService {
            frontends: programmed.desired.frontends.clone(),
            table_size: programmed.vip.size,
            slots: programmed.entries.keys().map(|endpoint| (*endpoint, owned(endpoint))).collect(),
            resolved: programmed.members.iter().any(|(_, _, index)| is_resolved(&self.backends[index])),
        });
    }
}

impl Programmed {
    /// Whether the frontends are in the map as they were planned.
    fn is_held(&self, vips: &BTreeMap<VipKey, Vip>) -> bool {
        self.desired.frontends.iter().all(|frontend| vips.get(&vip_key(frontend)) == Some(&self.vip))
    }
}

/// What services that are not desired any more have left behind.
#[derive(Debug, Default, PartialEq, Eq)]
struct Leftovers {
    vips: Vec<VipKey>,
    /// Service ids.
    names: Vec<u32>,
    /// Service ids.
    sources: Vec<u32>,
}

/// The bit of [`Config::flags`] that a backend of this mode needs.
const fn translation(mode: u8) -> u32 {
    match Mode::of(mode) {
        Some(Mode::Nat) => Config::NAT,
        Some(Mode::Dnat) => Config::DNAT,
        _ => 0,
    }
}

/// The bits of [`Vip::flags`].
fn flags(service: &Service, has_ranges: bool) -> u32 {
    let bit = |is_set: bool, bit: u32| if is_set { bit } else { 0 };
    bit(service.rules.client_affinity, Vip::AFFINITY)
        | bit(has_ranges, Vip::RANGES)
        | bit(service.rules.pass_without_backend, Vip::PASS)
        | Vip::quic_flags(server_id_bytes(service))
}

/// What a desired set names beside its services.
fn named(desired: &Desired, room_for_filters: u32) -> Named {
    let decap = desired.decap.iter().map(|end| DecapKey { local: end.local.into(), vip: end.vip.into() });
    let filters =
        desired.filters.keys().filter(|name| filters::is_name(name)).take(room_for_filters as usize);
    Named { decap: decap.collect(), filters: filters.cloned().collect() }
}
