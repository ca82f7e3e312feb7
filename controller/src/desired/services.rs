//! Services: every port of a LoadBalancer or of a Service, in every address family, becomes a service of the datapath; its
//! backends are up or down as the checks say. With pods that are reached through their nodes there are two: one that
//! chooses the node, and on a node that has some, one that chooses among them.
use super::{
    HealthPort, addresses,
    delivery::{Nodes, PodNode, Pods, Via},
    sources::{self, Host, Source, policy_of},
    spill::{Share, spill},
};
use crate::{
    api::{
        Cidr, Kind, Policy,
        load_balancer::Protocol,
        policy::{Affinity, SourceRanges, WithoutBackends},
    },
    declared::Declared,
    observed::{Check, Failure, Health, Healths, Targets},
};
use imbl::ordmap::DiffItem;
use ipam::{Assignment, Family};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_bpf::{
    Installed, InstalledService,
    abi::Mode,
    filter::Filter,
    service::{Decap, Desired, Endpoint, Frontend, Rules, Scope, Service, ServiceKey, Target},
};
use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

/// What the node has to do for all sources.
#[derive(Debug)]
pub(super) struct Services {
    /// In the order of the sources.
    pub(super) all: Vec<Balanced>,
    pub(super) datapath: Arc<Desired>,
    /// The services of `datapath`, in their order, each with its index among those of all sources.
    order: Vec<(ServiceKey, usize)>,
    pub(super) targets: Arc<Targets>,
    pub(super) health_ports: BTreeMap<u16, HealthPort>,
    /// The addresses in effect of all sources.
    pub(super) in_effect: Vec<IpAddr>,
    /// How many Services each ServicePolicy counts for, by its name.
    pub(super) policies: BTreeMap<String, i64>,
    /// Whether each check that is asked for has come to a result.
    is_checked: bool,
}

/// A source as this node sees it.
#[derive(Debug)]
pub(super) struct Balanced {
    pub(super) source: Arc<Source>,
    /// What it was given.
    pub(super) assignment: Arc<Assignment>,
    /// The addresses in effect.
    pub(super) addresses: Vec<IpAddr>,
    /// The results of its checks.
    healths: Box<[Option<Health>]>,
    pub(super) plan: Arc<Plan>,
    /// Index of its first service among those of all sources.
    first: usize,
}

/// What this node has to do for a source.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// Its services in the datapath; when the node does not balance, only those that choose among its pods.
    services: Vec<Port>,
    pub(super) backends: Backends,
    /// What is to be said of pods that cannot be reached.
    pub(super) refused: Vec<String>,
    decap: Vec<Decap>,
    local_vips: Vec<IpAddr>,
}

/// A service of the datapath.
#[derive(Debug)]
pub(super) struct Port {
    key: ServiceKey,
    service: Arc<Service>,
    pub(super) scope: Scope,
    pub(super) family: Family,
    /// Backends that are up and have a weight.
    pub(super) serving: u32,
    /// The sum of their weights.
    pub(super) weight: u64,
}

/// The backends of a source in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Backends {
    pub(super) declared: u32,
    /// Up on all ports.
    pub(super) healthy: u32,
    /// Not up, and no check has said so yet.
    pub(super) unknown: u32,
    /// One of those that are down, and why.
    pub(super) failed: Option<(Endpoint, Failure)>,
}

impl Services {
    /// Those of these sources, each with what is known of it: a plan for the same is not made anew. What was given is in
    /// the order of the sources.
    pub(super) fn new(
        sources: Vec<(Arc<Source>, Option<Balanced>)>,
        given: &[Arc<Assignment>],
        scene: &Scene<'_>,
        results: &Healths,
    ) -> Self {
        let checked = Checked::new(&sources, results, scene);
        let mut healths = checked.healths.as_slice();
        let mut all = Vec::with_capacity(sources.len());
        let mut services = Vec::with_capacity(sources.len());
        for ((source, known), assignment) in sources.into_iter().zip(given) {
            let addresses = addresses::effective(assignment, source.before.as_deref());
            let own = healths.split_off(..scene.checks_of(&source)).unwrap_or_default();
            // What is not known yet is as it was installed.
            let is_same = |known: &Balanced| {
                known.addresses == addresses && *known.healths == *own && !own.contains(&None)
            };
            let plan = match known.filter(is_same) {
                Some(known) => known.plan,
                None => Arc::new(scene.plan(&source, &addresses, own)),
            };
            let first = services.len();
            let indexed = (first..).zip(&plan.services);
            services
                .extend(indexed.map(|(index, port)| (port.key.clone(), Arc::clone(&port.service), index)));
            let (assignment, healths) = (Arc::clone(assignment), own.into());
            all.push(Balanced { source, assignment, addresses, healths, plan, first });
        }
        // No key is there twice: validation has refused two ports of one name.
        services.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        let order = services.iter().map(|(key, _, index)| (key.clone(), *index)).collect();
        let (decap, local_vips) = ends(&all);
        let mut policies = BTreeMap::new();
        for policy in all.iter().filter_map(|balanced| balanced.source.policies.first()) {
            *policies.entry(policy.clone()).or_default() += 1;
        }
        let services = services.into_iter().map(|(key, service, _)| (key, service)).collect();
        Services {
            datapath: Arc::new(Desired { services, decap, local_vips, ..Desired::default() }),
            order,
            targets: Arc::new(checked.targets),
            health_ports: health_ports(&all),
            in_effect: all.iter().flat_map(|balanced| balanced.addresses.iter().copied()).collect(),
            policies,
            is_checked: !checked.healths.contains(&None),
            all,
        }
    }

    /// Puts other sources in the place of those that they have come from, which had the same addresses; whether that is
    /// all that had to be done. If not, nothing has changed.
    pub(super) fn renew(&mut self, renewed: &[(usize, Arc<Source>)], scene: &Scene<'_>) -> bool {
        if !self.is_checked {
            return false;
        }
        let mut plans = Vec::with_capacity(renewed.len());
        for (at, source) in renewed {
            let before = &self.all[*at];
            let check = scene.check(source);
            let is_same = |port| scene.looks(source, port).eq(scene.looks(&before.source, port));
            if check != scene.check(&before.source) || !check.is_none_or(|(_, port)| is_same(port)) {
                return false;
            }
            let plan = scene.plan(source, &before.addresses, &before.healths);
            if !plan.keys().eq(before.plan.keys()) {
                return false;
            }
            plans.push(Arc::new(plan));
        }
        let (mut has_ends, mut has_ports) = (false, false);
        for ((at, source), plan) in renewed.iter().zip(plans) {
            let balanced = &mut self.all[*at];
            let changed = plan.services.iter().zip(&balanced.plan.services);
            for (port, _) in changed.filter(|(port, before)| port.service != before.service) {
                let datapath = Arc::make_mut(&mut self.datapath);
                datapath.services.insert(port.key.clone(), Arc::clone(&port.service));
            }
            has_ends |= !plan.has_ends_of(&balanced.plan);
            has_ports |= source.health_port() != balanced.source.health_port();
            (balanced.source, balanced.plan) = (Arc::clone(source), plan);
        }
        if has_ends {
            let datapath = Arc::make_mut(&mut self.datapath);
            (datapath.decap, datapath.local_vips) = ends(&self.all);
        }
        if has_ports {
            self.health_ports = health_ports(&self.all);
        }
        true
    }

    /// Sets the rules of packet filters.
    pub(super) fn filter(&mut self, rules: BTreeMap<String, Filter>) {
        if self.datapath.filters != rules {
            Arc::make_mut(&mut self.datapath).filters = rules;
        }
    }

    /// The places of these LoadBalancers, and of the sources that are one of these Services or use them.
    pub(super) fn places(
        &self,
        balancers: &HashSet<&str>,
        services: &HashSet<(&str, &str)>,
    ) -> BTreeSet<usize> {
        let is_service = |balanced: &Balanced| balanced.source.kind() == Kind::Service;
        let first = self.all.partition_point(|balanced| !is_service(balanced));
        let find = |of: &[Balanced], name: &str| {
            of.binary_search_by(|balanced| (*balanced.source.name).cmp(name)).ok()
        };
        let mut places: BTreeSet<_> =
            balancers.iter().filter_map(|name| find(&self.all[..first], name)).collect();
        if !services.is_empty() {
            let uses = |source: &Source| source.object.services(&source.name).any(|s| services.contains(&s));
            let all = self.all[..first].iter().enumerate();
            places.extend(all.filter(|(_, balanced)| uses(&balanced.source)).map(|(at, _)| at));
            let own = services.iter().map(|(namespace, name)| [namespace, "/", name].concat());
            places.extend(own.filter_map(|name| Some(first + find(&self.all[first..], &name)?)));
        }
        places
    }

    /// The index of the source of a service, and that of the service among those of all sources.
    fn find(&self, key: &ServiceKey) -> Option<(usize, usize)> {
        let at = self.order.binary_search_by(|(other, _)| other.cmp(key)).ok()?;
        let index = self.order[at].1;
        let source = self.all.partition_point(|balanced| balanced.first <= index);
        Some((source.checked_sub(1)?, index))
    }
}

/// The tunnel ends of this node, and the VIPs that it gets packets for as they are.
fn ends(all: &[Balanced]) -> (BTreeSet<Decap>, BTreeSet<IpAddr>) {
    let ends: BTreeSet<_> = all.iter().flat_map(|balanced| &balanced.plan.decap).copied().collect();
    // One end is for all services of a VIP: packets that go up the stack go to the pods of the others, too.
    let delivered = |end: &Decap| ends.contains(&Decap { deliver: true, ..*end });
    let decap = ends.iter().filter(|end| end.deliver || !delivered(end)).copied().collect();
    (decap, all.iter().flat_map(|balanced| &balanced.plan.local_vips).copied().collect())
}

/// What is to be answered at health check node ports.
fn health_ports(all: &[Balanced]) -> BTreeMap<u16, HealthPort> {
    all.iter().filter_map(|balanced| balanced.source.health_port()).collect()
}

impl Balanced {
    /// Its services in the datapath, with what the datapath holds of each.
    pub(super) fn services<'b>(
        &'b self,
        held: &'b Held,
    ) -> impl Iterator<Item = (&'b Port, Option<&'b Arc<InstalledService>>)> {
        (self.first..).zip(&self.plan.services).map(|(index, port)| (port, held.services[index].as_ref()))
    }
}

impl Port {
    /// As it is desired.
    pub(super) fn service(&self) -> &Service {
        &self.service
    }
}

/// This node among the others, and what it did so far.
pub(super) struct Scene<'a> {
    pub(super) balances: bool,
    pub(super) nodes: &'a Nodes,
    /// The addresses of this node.
    pub(super) local: &'a BTreeSet<IpAddr>,
    pub(super) installed: &'a Installed,
}

impl Scene<'_> {
    /// Whether this node has a part in a source: it balances, or has pods to deliver to.
    fn serves(&self, source: &Source) -> bool {
        self.balances || self.nodes.delivers(source)
    }

    /// Whether this node sends packets to a host.
    fn uses(&self, host: &Host) -> bool {
        self.balances || host.node.as_ref().is_some_and(|node| self.nodes.is_own(node))
    }

    /// The check that a source asks for, and its port if it has one of its own.
    fn check(&self, source: &Source) -> Option<(Check, Option<u16>)> {
        source.policy.health_check.as_ref().filter(|_| self.serves(source)).map(Check::of)
    }

    /// What is to be checked for a source, at this port or at that of the target: by port, then by target.
    fn looks(&self, source: &Source, port: Option<u16>) -> impl Iterator<Item = Look> {
        source.ports.iter().flat_map(|port| &port.targets).map(move |(host, number)| {
            let host = &source.hosts[*host];
            match host.node {
                Some(PodNode::Elsewhere(_)) => Look::Trusted,
                _ if self.uses(host) => {
                    Look::At(Endpoint { address: host.address, port: port.unwrap_or(*number) })
                }
                _ => Look::Unused,
            }
        })
    }

    /// How many checks a source asks for: one for each target of each port.
    fn checks_of(&self, source: &Source) -> usize {
        let targets = || source.ports.iter().map(|port| port.targets.len()).sum();
        if source.policy.health_check.is_some() && self.serves(source) { targets() } else { 0 }
    }
}

/// What there is to check of a target.
#[derive(PartialEq)]
enum Look {
    At(Endpoint),
    /// It is behind a node of another cluster: whether it can be reached from here says nothing.
    Trusted,
    /// This node does not use it.
    Unused,
}

/// What is to be checked, and what came of it so far.
#[derive(Default)]
struct Checked {
    targets: Targets,
    /// For each source that has a check, in their order, [`Scene::checks_of`] it: by port, then by target. Nothing for what
    /// is not used.
    healths: Vec<Option<Health>>,
}

impl Checked {
    /// Whether or not there is an address yet: so the first pass that has one can announce. There may be very many
    /// endpoints: they are sorted once, for the targets, and walked beside the results then.
    fn new(sources: &[(Arc<Source>, Option<Balanced>)], results: &Healths, scene: &Scene<'_>) -> Self {
        let mut by_check: BTreeMap<Check, Vec<(Endpoint, usize)>> = BTreeMap::new();
        let mut trusted = Vec::new();
        let mut length = 0;
        for (source, _) in sources {
            let Some((check, port)) = scene.check(source) else { continue };
            let endpoints = by_check.entry(check).or_default();
            for (index, look) in (length..).zip(scene.looks(source, port)) {
                match look {
                    Look::At(endpoint) => endpoints.push((endpoint, index)),
                    Look::Trusted => trusted.push(index),
                    Look::Unused => {}
                }
            }
            length += scene.checks_of(source);
        }
        let mut healths = vec![None; length];
        trusted.into_iter().for_each(|index| healths[index] = Some(Health::Healthy));
        let targets = by_check.into_iter().map(|(check, mut endpoints)| {
            endpoints.sort_unstable_by_key(|(endpoint, _)| *endpoint);
            let mut known = results.get(&check).into_iter().flatten().peekable();
            for (endpoint, index) in &endpoints {
                while known.next_if(|(other, _)| *other < endpoint).is_some() {}
                healths[*index] =
                    known.peek().filter(|(other, _)| *other == endpoint).map(|(_, health)| **health);
            }
            endpoints.dedup_by_key(|(endpoint, _)| *endpoint);
            (check, endpoints.into_iter().map(|(endpoint, _)| endpoint).collect())
        });
        let targets = targets.collect();
        Checked { targets, healths }
    }
}

impl Scene<'_> {
    /// What is to be done for a source; `healths` as in [`Checked`].
    fn plan(&self, source: &Source, addresses: &[IpAddr], healths: &[Option<Health>]) -> Plan {
        let mut plan = Plan::default();
        plan.take(source, addresses, self.local, self.nodes);
        if self.serves(source) {
            plan.balance(source, addresses, healths, self);
        }
        if !self.balances {
            plan.backends = Backends { declared: source.hosts.len() as u32, ..Backends::default() };
        }
        plan
    }
}

impl Plan {
    /// The names of its services.
    fn keys(&self) -> impl Iterator<Item = &ServiceKey> {
        self.services.iter().map(|port| &port.key)
    }

    /// Whether what this node needs as a backend is the same.
    fn has_ends_of(&self, other: &Plan) -> bool {
        (&self.decap, &self.local_vips) == (&other.decap, &other.local_vips)
    }

    /// The services and their backends.
    fn balance(
        &mut self,
        source: &Source,
        addresses: &[IpAddr],
        mut healths: &[Option<Health>],
        scene: &Scene<'_>,
    ) {
        let only = only_family(source);
        let vias = scene.nodes.vias(source, addresses, only);
        let takes = |at: usize| vias.get(at).copied().flatten().is_none_or(|via| via.refusal.is_none());
        self.backends.declared = (0..source.hosts.len()).filter(|at| takes(*at)).count() as u32;
        // By host: whether it is up on all ports, and whether some port was not checked yet.
        let mut standing: Vec<_> =
            source.hosts.iter().enumerate().map(|(at, host)| (host.is_up && takes(at), false)).collect();
        for port in &source.ports {
            // Empty without a check.
            let healths = healths.split_off(..port.targets.len()).unwrap_or_default();
            for family in Family::ALL {
                let frontends = |scope| -> BTreeSet<_> {
                    let own = addresses.iter().filter(|address| Family::of(**address) == family);
                    let (protocol, port) = (port.protocol.into(), port.number);
                    own.map(|address| Frontend { address: *address, protocol, port, scope }).collect()
                };
                let of_clients = frontends(Scope::All);
                // The backends count with the service that they are of.
                let counts_elsewhere = of_clients.is_empty() && only.is_some() && !addresses.is_empty();
                // Without a frontend there is no service; its backends count all the same.
                let key = (!of_clients.is_empty()).then(|| service_key(source, port, family));
                let before = LazyCell::new(|| scene.installed.services.get(key.as_ref()?));
                let before_here = LazyCell::new(|| scene.installed.services.get(&pods_key(key.as_ref()?)));
                let (mut serving, mut healthy_weight) = (0, 0);
                let mut backends = Vec::with_capacity(port.targets.len());
                let mut shares = Vec::with_capacity(port.targets.len());
                let mut pods = Pods::default();
                for (index, (at, number)) in port.targets.iter().enumerate() {
                    let (host, standing) = (&source.hosts[*at], &mut standing[*at]);
                    let via = vias.get(*at).copied().flatten();
                    let is_of_service = match via {
                        Some(_) => Family::of(host.address) == family,
                        None => Family::of(host.address) == only.unwrap_or(family) && !counts_elsewhere,
                    };
                    if !is_of_service || !takes(*at) || !scene.uses(host) {
                        continue;
                    }
                    if host.node.as_ref().is_some_and(|node| !node.takes(port.protocol, port.number)) {
                        standing.0 = false;
                        continue;
                    }
                    let endpoint = Endpoint { address: host.address, port: *number };
                    let weight = host.weight;
                    let health = healths.get(index).copied();
                    let is_up = host.is_up && via.is_none_or(|via| via.end.is_some());
                    let up = is_up
                        && match health {
                            // No check is declared.
                            None => true,
                            Some(Some(health)) => health == Health::Healthy,
                            Some(None) => match via {
                                // Of another cluster, it has no slots while nothing spills over.
                                None if host.link.is_some() => was_up(*before, endpoint, 0),
                                None => was_up(*before, endpoint, weight),
                                Some(via) if via.here => was_up(*before_here, endpoint, weight),
                                // What is known of it is known of its node.
                                Some(Via { end: Some(address), .. }) => {
                                    was_up(*before, Endpoint { address, port: port.number }, weight)
                                }
                                Some(_) => false,
                            },
                        };
                    if let Some(Some(Health::Unhealthy(failure))) = health {
                        let check = source.policy.health_check.as_ref().map(Check::of);
                        let port = check.and_then(|(_, port)| port).unwrap_or(endpoint.port);
                        self.backends.failed.get_or_insert((Endpoint { port, ..endpoint }, failure));
                    }
                    // What drains is up as long as nobody knows better; that is not to be healthy.
                    let is_unknown = is_up && health == Some(None) && (!up || weight == 0);
                    standing.0 &= up && !is_unknown;
                    standing.1 |= is_unknown;
                    serving += u32::from(up && weight > 0);
                    healthy_weight += if up { u64::from(weight) } else { 0 };
                    let target = Target { weight, up, here: false };
                    match via {
                        None => {
                            shares.push(Share::of(host.link, &target, is_unknown && !up));
                            backends.push((endpoint, target));
                        }
                        Some(via) => {
                            pods.add(via, host.link, port.number, endpoint, (target, is_unknown && !up));
                        }
                    }
                }
                let (nodes, own) = pods.levels();
                let has_nodes = nodes.len() > 0;
                for (endpoint, (target, share)) in nodes {
                    shares.push(share);
                    backends.push((endpoint, target));
                }
                let clusters = source.policy.clusters.as_ref();
                if let Some(clusters) = clusters.filter(|_| shares.iter().any(|share| share.link.is_some())) {
                    let has_slots = |service: &&Arc<InstalledService>| service.slots.values().any(|n| *n > 0);
                    spill(clusters, before.filter(has_slots).is_some(), &mut backends, &shares);
                    let all = backends.iter().zip(&shares);
                    let up = all.filter(|((_, target), _)| target.up && target.weight > 0);
                    (serving, healthy_weight) = up.fold((0, 0), |(count, sum), ((_, target), share)| {
                        (count + share.serving, sum + u64::from(target.weight))
                    });
                }
                let Some(key) = key else { continue };
                let mut rules = rules(&source.policy, port, family);
                let mut add = |key, scope, service| {
                    let (service, weight) = (Arc::new(service), healthy_weight);
                    self.services.push(Port { key, service, scope, family, serving, weight });
                };
                if !own.is_empty() {
                    let service = Service {
                        frontends: frontends(Scope::Local),
                        mode: Mode::Dnat,
                        backends: own,
                        drain_seconds: source.policy.drain_seconds.get(),
                        // Who may come in has been decided before.
                        rules: Rules { client_affinity: rules.client_affinity, ..Rules::default() },
                    };
                    add(pods_key(&key), Scope::Local, service);
                }
                if scene.balances {
                    if has_nodes {
                        rules.server_id_bytes = 0;
                    }
                    let service = Service {
                        frontends: of_clients,
                        mode: source.policy.forwarding.datapath_mode(),
                        backends: backends.into_iter().collect(),
                        drain_seconds: source.policy.drain_seconds.get(),
                        rules,
                    };
                    add(key, Scope::All, service);
                }
            }
        }
        self.backends.healthy = standing.iter().filter(|(up, _)| *up).count() as u32;
        self.backends.unknown = standing.iter().filter(|(_, unknown)| *unknown).count() as u32;
        self.refused = scene.nodes.refusals(source, &vias);
    }

    /// Adds what a node with these local addresses needs that is a backend, whether or not it balances: tunnel ends, or the
    /// VIPs as its own.
    fn take(&mut self, source: &Source, addresses: &[IpAddr], local: &BTreeSet<IpAddr>, nodes: &Nodes) {
        let mode = source.policy.forwarding.datapath_mode();
        if mode.is_translated() {
            return;
        }
        let only = only_family(source);
        let plain = source.hosts.iter().filter(|host| host.node.is_none()).map(|host| host.address);
        for local in plain.filter(|address| local.contains(address)) {
            let serves = |vip: &IpAddr| Family::of(local) == only.unwrap_or(Family::of(*vip));
            let vips = addresses.iter().copied().filter(serves);
            match mode.is_tunnel() {
                true => self.decap.extend(vips.map(|vip| Decap { local, vip, deliver: false })),
                false => self.local_vips.extend(vips),
            }
        }
        if mode.is_tunnel() {
            self.decap.extend(nodes.decap(source, addresses));
        }
    }
}

/// The one address family of all backends but for pods, if that of the frontend does not matter: a tunnel carries either in
/// either.
fn only_family(source: &Source) -> Option<Family> {
    let plain = source.hosts.iter().filter(|host| host.node.is_none());
    let mut families = plain.map(|host| Family::of(host.address));
    let first = families.next().filter(|_| source.policy.forwarding.datapath_mode().is_tunnel())?;
    families.all(|family| family == first).then_some(first)
}

/// What else holds for the packets of the service of a port in an address family.
fn rules(policy: &Policy, port: &sources::Port, family: Family) -> Rules {
    let SourceRanges { allow, deny } = &policy.source_ranges;
    let own = |ranges: &[Cidr]| -> BTreeSet<_> {
        ranges.iter().map(|range| range.0).filter(|range| Family::of(range.addr()) == family).collect()
    };
    let (allowed, mut denied) = (own(allow), own(deny));
    if allowed.is_empty() && !allow.is_empty() {
        // To allow none would let all in.
        denied = BTreeSet::from([everybody(family)]);
    }
    let quic = policy.quic.as_ref().filter(|_| port.protocol == Protocol::UDP);
    Rules {
        client_affinity: policy.affinity == Affinity::ClientIP,
        allow: allowed,
        deny: denied,
        pass_without_backend: policy.without_backends == WithoutBackends::Pass,
        server_id_bytes: quic.map_or(0, |quic| quic.server_id_bytes.get()),
    }
}

/// All addresses of a family.
fn everybody(family: Family) -> IpNet {
    match family {
        Family::Ipv4 => Ipv4Net::default().into(),
        Family::Ipv6 => Ipv6Net::default().into(),
    }
}

/// What the datapath holds of the services.
#[derive(Debug)]
pub(super) struct Held {
    installed: Arc<Installed>,
    /// By their index among those of all sources.
    services: Vec<Option<Arc<InstalledService>>>,
}

impl Held {
    pub(super) fn new(services: &Services, installed: &Arc<Installed>) -> Self {
        let mut held = vec![None; services.order.len()];
        let mut all = installed.services.iter().peekable();
        for (key, index) in &services.order {
            while all.next_if(|(other, _)| *other < key).is_some() {}
            held[*index] = all.next_if(|(other, _)| *other == key).map(|(_, service)| Arc::clone(service));
        }
        Held { installed: Arc::clone(installed), services: held }
    }

    /// Of the same services what the datapath holds by now; gives the sources of those of which it holds something else.
    pub(super) fn renew(&mut self, services: &Services, installed: &Arc<Installed>) -> Vec<usize> {
        let before = mem::replace(&mut self.installed, Arc::clone(installed));
        let mut changed = Vec::new();
        for item in before.services.diff(&installed.services) {
            let (key, after) = match item {
                DiffItem::Add(key, after) | DiffItem::Update { new: (key, after), .. } => (key, Some(after)),
                DiffItem::Remove(key, _) => (key, None),
            };
            if let Some((source, index)) = services.find(key) {
                self.services[index] = after.cloned();
                changed.push(source);
            }
        }
        changed
    }
}

/// Whether a backend that was not checked yet counts as up: as it did when the datapath was last programmed. So a
/// restart, or an edit of the check, neither withdraws nor moves anything.
fn was_up(before: Option<&Arc<InstalledService>>, endpoint: Endpoint, weight: u16) -> bool {
    match before.and_then(|service| service.slots.get(&endpoint)) {
        // One that drains owns no slots either way. Down would cut its connections.
        Some(0) => weight == 0,
        Some(_) => true,
        None => false,
    }
}

/// Name of the service of a port.
fn service_key(source: &Source, port: &sources::Port, family: Family) -> ServiceKey {
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    let kind = if source.kind() == Kind::Service { "Service/" } else { "LoadBalancer/" };
    ServiceKey([kind, &source.name, "/", &port.label, "/", family].concat().into())
}

/// What follows the name of a service in that of the one that chooses among the pods of this node.
const PODS: &str = "/pods";

/// Name of the service that chooses among the pods of this node.
fn pods_key(service: &ServiceKey) -> ServiceKey {
    ServiceKey([&service.0, PODS].concat().into())
}

/// What is known of the health of a service's backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendHealth {
    /// The checks say so.
    Known(Health),
    /// Not checked yet.
    Unknown,
    /// No check is declared.
    Unchecked,
}

/// What is known of the health of a backend, by the key of its service in the datapath.
pub fn backend_health(
    declared: &Declared,
    healths: &Healths,
    service: &ServiceKey,
    endpoint: Endpoint,
) -> BackendHealth {
    // Kind, name, port, family; the name of a Service has its namespace.
    let service = service.0.strip_suffix(PODS).unwrap_or(&service.0);
    let policy = service.rsplitn(3, '/').nth(2).and_then(|object| object.split_once('/'));
    let policy = policy.and_then(|(kind, name)| policy_of(declared, kind, name));
    let Some(check) = policy.and_then(|policy| policy.health_check.as_ref()) else {
        return BackendHealth::Unchecked;
    };
    let (check, port) = Check::of(check);
    let checked = Endpoint { port: port.unwrap_or(endpoint.port), ..endpoint };
    let health = healths.get(&check).and_then(|results| results.get(&checked));
    health.map_or(BackendHealth::Unknown, |health| BackendHealth::Known(*health))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{desired::desired, observed::Observed, validate::parse_directory};
    use std::path::PathBuf;

    /// Services with checks, without, with several ports, with a port of the check's own; backends that services
    /// share; results for some of them only: each backend is as its own look-up says.
    #[test]
    fn every_backend_has_the_health_of_its_own_check() {
        let mut text =
            String::from("kind: AddressPool\nmetadata: {name: p}\nspec: {blocks: [{cidr: 10.0.0.0/24}]}\n");
        for service in 0..24 {
            let check = match service % 4 {
                0 => "",
                1 => ", policy: {healthCheck: {http: {path: /}}}",
                2 => ", policy: {healthCheck: {http: {path: /, port: 81}}}",
                _ => ", policy: {healthCheck: {tcp: {}}}",
            };
            let backends = (0..5).map(|n| format!("{{address: 192.0.2.{}}}", 1 + (service * 7 + n * 3) % 20));
            let backends = backends.collect::<Vec<_>>().join(", ");
            text += &format!(
                "---\nkind: LoadBalancer\nmetadata: {{name: s-{service}}}\nspec: {{ports: [{{name: a, port: 80}}, \
                 {{port: 82}}], backends: [{backends}]{check}}}\n"
            );
        }
        let mut declared = parse_directory(&BTreeMap::from([(PathBuf::from("a.yaml"), text)])).unwrap();
        let mut observed = Observed::default();
        let first = desired(&declared, &observed);
        declared.statuses = Arc::unwrap_or_clone(first.status);
        let healths = first.targets.iter().map(|(check, endpoints)| {
            let known = endpoints.iter().enumerate().filter(|(index, _)| index % 3 != 0);
            let health = |(index, endpoint): (usize, &Endpoint)| match index % 2 {
                0 => (*endpoint, Health::Healthy),
                _ => (*endpoint, Health::Unhealthy(Failure::TimedOut)),
            };
            (check.clone(), known.map(health).collect())
        });
        observed.health = Arc::new(healths.collect());
        let desired = desired(&declared, &observed);
        assert_eq!(desired.targets, first.targets);
        assert_eq!(desired.targets.len(), 2, "two ways of checking");
        let mut counts = BTreeMap::new();
        for (key, service) in &desired.datapath.services {
            for (endpoint, target) in &service.backends {
                let health = backend_health(&declared, &observed.health, key, *endpoint);
                let up = matches!(health, BackendHealth::Unchecked | BackendHealth::Known(Health::Healthy));
                assert_eq!(target.up, up, "{key} {endpoint:?} {health:?}");
                *counts.entry(format!("{health:?}")).or_insert(0) += 1;
            }
        }
        assert_eq!(counts.len(), 4, "healthy, unhealthy, unknown and unchecked ones: {counts:?}");
    }
}
