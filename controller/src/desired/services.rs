//! Services: every port of a LoadBalancer or of a Service, in every address family, becomes a service of the datapath; its
//! backends are up or down as the checks say. With pods that are reached through their nodes there are two: one that
//! chooses the node, and on a node that has some, one that chooses among them.
use super::{
    Node, addresses,
    delivery::{Nodes, Pods, Via},
    joined,
    sources::{self, Host, Source, policy_of},
};
use crate::{
    api::{
        Cidr, Kind, Policy,
        load_balancer::Protocol,
        policy::{Affinity, SourceRanges, WithoutBackends},
    },
    declared::Declared,
    observed::{Check, Failure, Health, Healths, Observed, Targets},
};
use ipam::{Assignment, Family, Name};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_bpf::{
    Installed, InstalledService,
    abi::Mode,
    service::{Decap, Desired, Endpoint, Frontend, Rules, Scope, Service, ServiceKey, Target},
};
use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What the node has to do for all sources.
pub(super) struct Services<'a> {
    /// In the order of the sources.
    pub(super) all: Vec<Balanced<'a>>,
    pub(super) datapath: Desired,
    /// The [`Port::index`]es of the services of `datapath`, in their order.
    order: Vec<usize>,
    pub(super) targets: Targets,
}

/// A source as this node sees it.
pub(super) struct Balanced<'a> {
    pub(super) source: Source<'a>,
    /// What it was given.
    pub(super) assignment: Assignment,
    /// The addresses in effect.
    pub(super) addresses: Vec<IpAddr>,
    /// Its services in the datapath; when the node does not balance, only those that choose among its pods.
    pub(super) services: Vec<Port>,
    pub(super) backends: Backends,
}

/// A service of the datapath.
pub(super) struct Port {
    /// Among the services of all sources.
    index: usize,
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

impl<'a> Services<'a> {
    /// The claims are those of the sources, by [`Source::claim`].
    pub(super) fn new(
        sources: Vec<Source<'a>>,
        observed: &Observed,
        node: &Node<'_>,
        nodes: &Nodes<'_>,
        claims: BTreeMap<Name, Assignment>,
    ) -> Self {
        let mut all = Vec::with_capacity(sources.len());
        let mut services = Vec::with_capacity(sources.len());
        let mut datapath = Desired::default();
        let scene = Scene { balances: node.balances, nodes, installed: &observed.installed };
        let checked = Checked::new(&sources, &observed.health, &scene);
        let mut healths = checked.healths.as_slice();
        // In the same order: LoadBalancers come before Services, and those of a kind have the same prefix.
        for (source, assignment) in sources.into_iter().zip(claims.into_values()) {
            let mut balanced = Balanced {
                addresses: addresses::effective(&assignment, source.before.map(|before| &**before)),
                source,
                assignment,
                services: Vec::new(),
                backends: Backends::default(),
            };
            balanced.take(&observed.node.addresses, nodes, &mut datapath);
            if scene.serves(&balanced.source) {
                let own = healths.split_off(..scene.checks_of(&balanced.source)).unwrap_or_default();
                balanced.plan(own, &scene, &mut services);
            }
            if !node.balances {
                let declared = balanced.source.hosts.len() as u32;
                balanced.backends = Backends { declared, ..Backends::default() };
            }
            all.push(balanced);
        }
        // One end is for all services of a VIP: packets that go up the stack go to the pods of the others, too.
        let delivered = |end: &Decap| datapath.decap.contains(&Decap { deliver: true, ..*end });
        let decap = datapath.decap.iter().filter(|end| end.deliver || !delivered(end)).copied();
        datapath.decap = decap.collect();
        // No key is there twice: validation has refused two ports of one name.
        services.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        let order = services.iter().map(|(.., index)| *index).collect();
        datapath.services = services.into_iter().map(|(key, service, _)| (key, service)).collect();
        Services { all, targets: checked.targets, order, datapath }
    }
}

/// This node among the others, and what it did so far.
struct Scene<'a> {
    balances: bool,
    nodes: &'a Nodes<'a>,
    installed: &'a Installed,
}

impl Scene<'_> {
    /// Whether this node has a part in a source: it balances, or has pods to deliver to.
    fn serves(&self, source: &Source<'_>) -> bool {
        self.balances || self.nodes.delivers(source)
    }

    /// Whether this node sends packets to a host.
    fn uses(&self, host: &Host<'_>) -> bool {
        self.balances || host.node.is_some_and(|node| self.nodes.is_own(node))
    }

    /// How many checks a source asks for: one for each target of each port.
    fn checks_of(&self, source: &Source<'_>) -> usize {
        let targets = || source.ports.iter().map(|port| port.targets.len()).sum();
        if source.policy.health_check.is_some() && self.serves(source) { targets() } else { 0 }
    }
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
    fn new(sources: &[Source<'_>], results: &Healths, scene: &Scene<'_>) -> Self {
        let mut by_check: BTreeMap<Check, Vec<(Endpoint, usize)>> = BTreeMap::new();
        let mut length = 0;
        for source in sources.iter().filter(|source| scene.serves(source)) {
            let Some((check, port)) = source.policy.health_check.as_ref().map(Check::of) else { continue };
            let endpoints = by_check.entry(check).or_default();
            let targets = source.ports.iter().flat_map(|port| &port.targets);
            for (index, (host, number)) in targets.enumerate() {
                let host = &source.hosts[*host];
                if scene.uses(host) {
                    let endpoint = Endpoint { address: host.address, port: port.unwrap_or(*number) };
                    endpoints.push((endpoint, length + index));
                }
            }
            length += scene.checks_of(source);
        }
        let mut healths = vec![None; length];
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

impl Balanced<'_> {
    /// The services and their backends; `healths` as in [`Checked`].
    fn plan(
        &mut self,
        mut healths: &[Option<Health>],
        scene: &Scene<'_>,
        services: &mut Vec<(ServiceKey, Arc<Service>, usize)>,
    ) {
        let source = &self.source;
        let only = only_family(source);
        let vias = scene.nodes.vias(source, only);
        self.backends.declared = source.hosts.len() as u32;
        // By host: whether it is up on all ports, and whether some port was not checked yet.
        let mut standing: Vec<_> = source.hosts.iter().map(|host| (host.is_up, false)).collect();
        for port in &source.ports {
            // Empty without a check.
            let healths = healths.split_off(..port.targets.len()).unwrap_or_default();
            for family in Family::ALL {
                let frontends = |scope| -> BTreeSet<_> {
                    let own = self.addresses.iter().filter(|address| Family::of(**address) == family);
                    let (protocol, port) = (port.protocol.into(), port.number);
                    own.map(|address| Frontend { address: *address, protocol, port, scope }).collect()
                };
                let of_clients = frontends(Scope::All);
                // The backends count with the service that they are of.
                let counts_elsewhere = of_clients.is_empty() && only.is_some() && !self.addresses.is_empty();
                // Without a frontend there is no service; its backends count all the same.
                let key = (!of_clients.is_empty()).then(|| service_key(source, port, family));
                let before = LazyCell::new(|| scene.installed.services.get(key.as_ref()?));
                let before_here = LazyCell::new(|| scene.installed.services.get(&pods_key(key.as_ref()?)));
                let (mut serving, mut healthy_weight) = (0, 0);
                let mut backends = Vec::with_capacity(port.targets.len());
                let mut pods = Pods::default();
                for (index, (at, number)) in port.targets.iter().enumerate() {
                    let (host, standing) = (source.hosts[*at], &mut standing[*at]);
                    let via = vias.get(*at).copied().flatten();
                    let is_of_service = match via {
                        Some(_) => Family::of(host.address) == family,
                        None => Family::of(host.address) == only.unwrap_or(family) && !counts_elsewhere,
                    };
                    if !is_of_service || !scene.uses(&host) {
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
                        None => backends.push((endpoint, target)),
                        Some(via) => pods.add(via, port.number, endpoint, target),
                    }
                }
                let Some(key) = key else { continue };
                let mut rules = rules(&source.policy, port, family);
                let (nodes, own) = pods.levels();
                let mut add = |key, scope, service| {
                    let index = services.len();
                    self.services.push(Port { index, scope, family, serving, weight: healthy_weight });
                    services.push((key, Arc::new(service), index));
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
                    if !nodes.is_empty() {
                        rules.server_id_bytes = 0;
                    }
                    let service = Service {
                        frontends: of_clients,
                        mode: source.policy.forwarding.datapath_mode(),
                        backends: backends.into_iter().chain(nodes).collect(),
                        drain_seconds: source.policy.drain_seconds.get(),
                        rules,
                    };
                    add(key, Scope::All, service);
                }
            }
        }
        self.backends.healthy = standing.iter().filter(|(up, _)| *up).count() as u32;
        self.backends.unknown = standing.iter().filter(|(_, unknown)| *unknown).count() as u32;
        self.source.refused.extend(scene.nodes.refusal(&self.source, &vias));
    }

    /// Adds what a node with these addresses needs that is a backend, whether or not it balances: tunnel ends, or the
    /// VIPs as its own.
    fn take(&self, local: &BTreeSet<IpAddr>, nodes: &Nodes<'_>, datapath: &mut Desired) {
        let source = &self.source;
        let mode = source.policy.forwarding.datapath_mode();
        if mode.is_translated() {
            return;
        }
        let only = only_family(source);
        let plain = source.hosts.iter().filter(|host| host.node.is_none()).map(|host| host.address);
        for local in plain.filter(|address| local.contains(address)) {
            let serves = |vip: &IpAddr| Family::of(local) == only.unwrap_or(Family::of(*vip));
            let vips = self.addresses.iter().copied().filter(serves);
            match mode.is_tunnel() {
                true => datapath.decap.extend(vips.map(|vip| Decap { local, vip, deliver: false })),
                false => datapath.local_vips.extend(vips),
            }
        }
        if mode.is_tunnel() {
            datapath.decap.extend(nodes.decap(source, &self.addresses));
        }
    }
}

/// The one address family of all backends but for pods, if that of the frontend does not matter: a tunnel carries either in
/// either.
fn only_family(source: &Source<'_>) -> Option<Family> {
    let plain = source.hosts.iter().filter(|host| host.node.is_none());
    let mut families = plain.map(|host| Family::of(host.address));
    let first = families.next().filter(|_| source.policy.forwarding.datapath_mode().is_tunnel())?;
    families.all(|family| family == first).then_some(first)
}

/// What else holds for the packets of the service of a port in an address family.
fn rules(policy: &Policy, port: &sources::Port<'_>, family: Family) -> Rules {
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

/// By [`Port::index`], the services of which the datapath holds something, with what it holds.
pub(super) struct Held<'a>(Vec<Option<(&'a Service, &'a InstalledService)>>);

impl<'a> Held<'a> {
    pub(super) fn new(services: &'a Services<'_>, installed: &'a Installed) -> Self {
        let mut all = vec![None; services.order.len()];
        let held = joined(&services.datapath.services, &installed.services);
        for ((_, service, held), index) in held.zip(&services.order) {
            all[*index] = held.map(|held| (&**service, &**held));
        }
        Held(all)
    }

    pub(super) fn get(&self, port: &Port) -> Option<(&'a Service, &'a InstalledService)> {
        self.0[port.index]
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
fn service_key(source: &Source<'_>, port: &sources::Port<'_>, family: Family) -> ServiceKey {
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    let kind = if source.kind == Kind::Service { "Service/" } else { "LoadBalancer/" };
    ServiceKey([kind, source.name, "/", &port.label, "/", family].concat().into())
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
    use crate::{desired::desired, validate::parse_directory};
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
