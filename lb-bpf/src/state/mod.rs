//! What user space knows of the maps: a mirror of what they hold, and the times that they do not hold. [`plan`]
//! turns a desired set into operations, [`sweep`] ends what has lasted long enough; everything here can be made
//! again from the maps ([`State::restore`]), and nothing here does input or output of its own.
mod dirt;
mod entries;
mod filters;
pub mod plan;
mod server_ids;
mod since;
mod sources;
pub mod sweep;
pub(crate) mod tables;

#[cfg(test)]
mod tests;

use crate::{
    ids::{Indexes, Ranges},
    maps::{MapError, Maps, Op, vip_index},
    ports::{self, Ports},
    service::{Endpoint, Frontend, Protocol, Scope, Service, ServiceKey},
    status::{DirtySlots, InstalledService},
    tunnel_source::TunnelSource,
};
use imbl::OrdMap;
use lb_bpf_common::{Addr, Backend, Config, DecapKey, Filter, Mode, RangeKey, Vip, VipKey, proto, scope};
use since::Since;
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    num::NonZeroU32,
    sync::Arc,
};

/// A moment: milliseconds of CLOCK_MONOTONIC, the clock that the kernel program stamps flows with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Now(pub u64);

impl Now {
    /// Whole seconds, as in [`lb_bpf_common::FlowEntry::seen`].
    pub fn seconds(self) -> u32 {
        (self.0 / 1000) as u32
    }
}

/// How packets reach an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NextHop {
    /// Through this neighbour.
    Known(Hop),
    /// Not known yet: the neighbour is being asked for. What is installed stays.
    Pending,
    /// There is no route, or the neighbour does not answer.
    Unreachable,
}

/// A resolved next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// This host's address towards the backend.
    pub source: IpAddr,
    /// Where the outer source of IPIP is taken from in place of `source`, if the operator named something.
    pub tunnel_source: Option<TunnelSource>,
    /// Ethernet address of the neighbour.
    pub mac: [u8; 6],
    /// Ethernet address of the interface.
    pub source_mac: [u8; 6],
    /// Index of the interface.
    pub ifindex: u32,
    /// MTU of the route or the interface, bytes.
    pub mtu: u32,
    /// The VLAN on that interface, 1 to 4094; none: frames without a tag.
    pub vlan: Option<u16>,
    /// Whether the neighbour is a router on the way and not the backend itself.
    pub gateway: bool,
}

/// Next hops by backend address. One that is missing counts as [`NextHop::Pending`].
pub type NextHops = BTreeMap<IpAddr, NextHop>;

/// The mirror of the maps, and what is known beyond them.
#[derive(Clone, Debug)]
pub struct State {
    ranges: Ranges,
    indexes: Indexes,
    /// Ranges of `slots` that are taken: base → size. Those in `limbo` included.
    tables: BTreeMap<u32, u32>,
    /// Ranges that no frontend points to any more, by the moment from which no packet can still be reading them.
    limbo: BTreeMap<u32, Now>,
    /// By service id, the bases of tables that a frontend has left since tables were retired last.
    left: BTreeSet<(u32, u32)>,
    vips: BTreeMap<VipKey, Vip>,
    /// Until when the tables of frontends learn, as far as the map says it.
    learning: BTreeMap<VipKey, u32>,
    /// The frontends of each service id.
    by_service: BTreeMap<u32, BTreeSet<VipKey>>,
    backends: BTreeMap<u32, Backend>,
    /// Indexes of `backends` by what a backend is, lest it gets a second entry.
    by_target: BTreeSet<(TargetKey, u32)>,
    /// Indexes of `backends` by address.
    by_address: BTreeSet<(IpAddr, u32)>,
    names: BTreeMap<u32, ServiceKey>,
    /// Whether no backend has another address than when its next hop was last asked for.
    addresses_are_known: bool,
    /// Those of the last plan.
    hops: Arc<NextHops>,
    decap: BTreeMap<DecapKey, u32>,
    config: Config,
    /// Source ranges by service id.
    sources: BTreeMap<u32, BTreeMap<RangeKey, bool>>,
    /// How many there are.
    ranges_used: usize,
    filters: BTreeMap<u32, Filter>,
    filter_names: BTreeMap<u32, String>,
    services: BTreeMap<ServiceKey, Programmed>,
    /// By id, services that are not desired any more but not pruned yet.
    leaving: BTreeMap<u32, (ServiceKey, Programmed)>,
    /// What the last plan named beside its services; nothing before the first one, so that nothing is pruned unasked.
    named: Option<Named>,
    /// Whether the maps may hold something of services that the last plan did not name.
    has_leftovers: bool,
    pass: Option<sweep::Pass>,
    /// How many flows the last pass left, and how many the map can hold.
    load: sweep::Load,
    room_for_flows: usize,
    room_for_vips: usize,
    room_for_ranges: usize,
    room_for_filters: u32,
}

/// Service id, address, port (network byte order) and mode: two entries with the same are the same backend.
type TargetKey = (u32, Addr, u16, u8);

#[derive(Clone, Debug, Default)]
struct Named {
    decap: BTreeSet<DecapKey>,
    /// Names of the filters that fit.
    filters: BTreeSet<String>,
}

/// A service that a plan has dealt with since the state was restored.
#[derive(Clone, Debug)]
struct Programmed {
    id: u32,
    desired: Arc<Service>,
    /// What is said of it.
    report: Arc<InstalledService>,
    /// What the frontends hold.
    vip: Vip,
    /// Who is in the table, with weight and index.
    members: Vec<(Endpoint, u16, u32)>,
    /// The index of every declared backend.
    entries: BTreeMap<Endpoint, u32>,
    since: Since,
    /// The dirty slots.
    dirty: BTreeMap<u32, dirt::Dirt>,
    /// Entries of this service that are not in the table, and the second in which they left it.
    away: BTreeMap<u32, u32>,
    /// Index of `backends` by QUIC server ID.
    server_ids: BTreeMap<VipKey, u32>,
}

impl State {
    /// Reads what the maps hold.
    pub fn restore(maps: &impl Maps) -> Result<Self, MapError> {
        let sizes = maps.sizes();
        let (vips, backends) = (maps.vips()?, maps.backends()?);
        let mut ranges = Ranges::new(sizes.slots);
        let tables: BTreeMap<u32, u32> =
            vips.values().filter(|vip| vip.size > 0).map(|vip| (vip.base, vip.size)).collect();
        for (&base, &size) in &tables {
            if !ranges.claim(base, size) {
                let reason = format!("the table at {base} with {size} slots overlaps another or the end");
                let error = io::Error::new(io::ErrorKind::InvalidData, reason);
                return Err(MapError::new("slots", "restore", error));
            }
        }
        let by_target = backends.iter().map(|(index, backend)| (target_key(backend), *index)).collect();
        let by_address = backends.iter().map(|(index, backend)| (backend.addr.into(), *index)).collect();
        let mut by_service = BTreeMap::<_, BTreeSet<VipKey>>::new();
        for (&key, vip) in &vips {
            by_service.entry(vip.service).or_default().insert(key);
        }
        let mut sources = BTreeMap::<_, BTreeMap<_, _>>::new();
        for (key, is_let_in) in maps.ranges()? {
            sources.entry(key.service).or_default().insert(key, is_let_in);
        }
        Ok(State {
            ranges,
            indexes: Indexes::new(sizes.backends, backends.keys().copied()),
            tables,
            limbo: BTreeMap::new(),
            left: BTreeSet::new(),
            learning: maps.learning()?,
            vips,
            by_service,
            backends,
            by_target,
            by_address,
            names: maps.names()?,
            addresses_are_known: false,
            hops: Arc::default(),
            decap: maps.decap()?,
            config: maps.config()?,
            ranges_used: sources.values().map(BTreeMap::len).sum(),
            sources,
            filters: maps.filters()?,
            filter_names: maps.filter_names()?,
            services: BTreeMap::new(),
            leaving: BTreeMap::new(),
            named: None,
            has_leftovers: true,
            pass: None,
            load: sweep::Load::default(),
            room_for_flows: sizes.flows as usize,
            room_for_vips: sizes.vips.saturating_sub(vip_index::RESERVED) as usize,
            room_for_ranges: sizes.ranges as usize,
            room_for_filters: sizes.filters.min(Filter::MOST),
        })
    }

    /// The services of the last plan, as they are programmed.
    pub fn installed(&self) -> BTreeMap<ServiceKey, Arc<InstalledService>> {
        let services = self.services.iter();
        services.map(|(key, programmed)| (key.clone(), programmed.report.clone())).collect()
    }

    /// One of them; nothing when it is not desired.
    pub fn installed_service(&self, key: &ServiceKey) -> Option<Arc<InstalledService>> {
        self.services.get(key).map(|programmed| programmed.report.clone())
    }

    /// What the maps hold, whoever has put it there: right after a restart, what the process before left.
    pub fn found(&self, maps: &impl Maps) -> Result<OrdMap<ServiceKey, Arc<InstalledService>>, MapError> {
        let mut services = OrdMap::new();
        for (id, name) in &self.names {
            let Some(keys) = self.by_service.get(id) else { continue };
            let mut service = InstalledService::default();
            for key in keys {
                service.frontends.extend(frontend_of(key));
            }
            // Several tables only if the process died between two updates; the next plan puts that right.
            let table = keys.first().map(|key| self.vips[key]);
            let slots = table.map_or(Ok(Vec::new()), |vip| maps.slots(vip.base, vip.size))?;
            service.table_size = slots.len() as u32;
            for backend in slots.iter().filter_map(|slot| self.backends.get(&slot.current)) {
                *service.slots.entry(endpoint_of(backend)).or_default() += 1;
                service.resolved |= is_resolved(backend);
            }
            services.insert(name.clone(), Arc::new(service));
        }
        Ok(services)
    }

    /// Of the services that have any, the slots that are dirty now.
    pub fn dirty_slots(&self) -> BTreeMap<ServiceKey, DirtySlots> {
        let dirty = self.services.iter().filter(|(_, service)| !service.dirty.is_empty());
        let slots = dirty.map(|(name, service)| {
            let learning = service.dirty.values().filter_map(dirt::Dirt::learns_until).count() as u32;
            (name.clone(), DirtySlots { learning, settled: service.dirty.len() as u32 - learning })
        });
        slots.collect()
    }

    /// Plans that one packet in `one_in` is reported, rounded up to a power of two; or none at all.
    pub fn plan_sampling(&mut self, one_in: Option<NonZeroU32>) -> Vec<Op> {
        let flags = self.config.flags & !Config::EVENTS;
        let config = match one_in {
            // Above that, the next power of two does not fit.
            Some(one_in) => Config {
                flags: flags | Config::EVENTS,
                sample_mask: one_in.get().checked_next_power_of_two().map_or(u32::MAX, |power| power - 1),
                ..self.config
            },
            None => Config { flags, sample_mask: 0, ..self.config },
        };
        if config == self.config {
            return Vec::new();
        }
        let op = Op::SetConfig(config);
        self.mirror(&op);
        vec![op]
    }

    /// Plans what XDP is to know of interfaces; the map `ports` holds `held`.
    pub fn plan_ports(&mut self, held: &BTreeSet<u32>, wanted: &Ports) -> Vec<Op> {
        let ops = ports::plan(self.config, held, wanted);
        ops.iter().for_each(|op| self.mirror(op));
        ops
    }

    /// Keeps the mirror in step with an operation.
    fn mirror(&mut self, op: &Op) {
        match op {
            Op::SetConfig(config) => self.config = *config,
            Op::SetBackend(index, backend) => {
                let is_here = |backend: &Backend| backend.mode == Mode::Here as u8;
                self.addresses_are_known &= self
                    .backends
                    .get(index)
                    .is_some_and(|before| before.addr == backend.addr && is_here(before) == is_here(backend));
                self.by_target.insert((target_key(backend), *index));
                self.by_address.insert((backend.addr.into(), *index));
                self.backends.insert(*index, *backend);
            }
            Op::FreeBackend(index) => {
                self.addresses_are_known = false;
                if let Some(backend) = self.backends.remove(index) {
                    self.by_target.remove(&(target_key(&backend), *index));
                    self.by_address.remove(&(backend.addr.into(), *index));
                }
                self.indexes.give(*index);
            }
            Op::SetName(id, name) => {
                self.names.insert(*id, name.clone());
            }
            Op::RemoveName(id) => {
                self.names.remove(id);
            }
            Op::SetVip(key, vip) => {
                let before = self.vips.insert(*key, *vip);
                if before != Some(*vip) {
                    self.learning.remove(key);
                }
                if let Some(before) = before {
                    self.leave(key, before);
                }
                self.by_service.entry(vip.service).or_default().insert(*key);
            }
            Op::SetLearning(key, until) => {
                self.learning.insert(*key, *until);
            }
            Op::RemoveVip(key) => {
                self.learning.remove(key);
                if let Some(before) = self.vips.remove(key) {
                    self.leave(key, before);
                }
            }
            Op::SetDecap(key, value) => {
                self.decap.insert(*key, *value);
            }
            Op::RemoveDecap(key) => {
                self.decap.remove(key);
            }
            Op::SetRange(key, is_let_in) => {
                let ranges = self.sources.entry(key.service).or_default();
                self.ranges_used += usize::from(ranges.insert(*key, *is_let_in).is_none());
            }
            Op::RemoveRange(key) => {
                if let Some(ranges) = self.sources.get_mut(&key.service) {
                    self.ranges_used -= usize::from(ranges.remove(key).is_some());
                    if ranges.is_empty() {
                        self.sources.remove(&key.service);
                    }
                }
            }
            Op::SetFilter(index, filter) => {
                self.filters.insert(*index, *filter);
            }
            Op::FreeFilter(index) => {
                self.filters.remove(index);
            }
            Op::SetFilterName(index, name) => {
                self.filter_names.insert(*index, name.clone());
            }
            Op::RemoveFilterName(index) => {
                self.filter_names.remove(index);
            }
            // The kernel takes those out that are gone: what the map holds is read whenever it counts.
            Op::SetPort(_) | Op::RemovePort(_) => {}
            Op::ResetCounters(_)
            | Op::ResetFilterCounters(_)
            | Op::RemoveDrops(_)
            | Op::WriteTable(..)
            | Op::SetPrevious(..)
            | Op::RemoveFlows(_)
            | Op::RemoveReplies(_) => {}
        }
    }

    /// A frontend has another value now, or none.
    fn leave(&mut self, key: &VipKey, before: Vip) {
        remove_from(&mut self.by_service, &before.service, key);
        if before.size > 0 {
            self.left.insert((before.service, before.base));
        }
    }
}

fn remove_from<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, key: &K, value: &V) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// The frontend as the map has it.
pub fn vip_key(frontend: &Frontend) -> VipKey {
    VipKey {
        addr: frontend.address.into(),
        port: frontend.port.to_be(),
        proto: frontend.protocol.number(),
        scope: match frontend.scope {
            Scope::All => scope::ALL,
            Scope::Local => scope::LOCAL,
        },
    }
}

/// The entry by which a frontend's address answers pings.
pub fn ping_key(frontend: &Frontend) -> VipKey {
    let proto = if frontend.address.is_ipv4() { proto::ICMP } else { proto::ICMPV6 };
    VipKey { addr: frontend.address.into(), port: 0, proto, scope: 0 }
}

fn frontend_of(key: &VipKey) -> Option<Frontend> {
    let protocol = [Protocol::Tcp, Protocol::Udp].into_iter().find(|p| p.number() == key.proto)?;
    let scope = if key.scope == scope::LOCAL { Scope::Local } else { Scope::All };
    Some(Frontend { address: key.addr.into(), protocol, port: u16::from_be(key.port), scope })
}

/// Whether packets can be sent to a backend, or need not be.
fn is_resolved(backend: &Backend) -> bool {
    backend.ifindex != 0 || backend.mode == Mode::Here as u8
}

pub(crate) fn endpoint_of(backend: &Backend) -> Endpoint {
    Endpoint { address: backend.addr.into(), port: u16::from_be(backend.port) }
}

fn target_key(backend: &Backend) -> TargetKey {
    (backend.service, backend.addr, backend.port, backend.mode)
}
