//! Services: every port of a LoadBalancer in every address family becomes a service of the datapath; its
//! backends are up or down as the checks say.
use super::{Node, addresses, joined, labels};
use crate::{
    api::{
        Backend, Cidr, LoadBalancer, LoadBalancerSpec, LoadBalancerStatus, Policy, ServicePort,
        load_balancer::Protocol,
        policy::{Affinity, SourceRanges, WithoutBackends},
    },
    declared::Declared,
    observed::{Check, Failure, Health, Healths, Observed, Targets},
};
use ipam::{Assignment, Family};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use lb_bpf::{
    Installed, InstalledService,
    service::{Decap, Desired, Endpoint, Frontend, Rules, Service, ServiceKey, Target},
};
use std::{
    borrow::Cow,
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

/// What the node has to do for all LoadBalancers.
pub(super) struct Services<'a> {
    /// In the order of their names.
    pub(super) load_balancers: Vec<Balanced<'a>>,
    pub(super) datapath: Desired,
    /// The [`Port::index`]es of the services of `datapath`, in their order.
    order: Vec<usize>,
    pub(super) targets: Targets,
}

/// A LoadBalancer as this node sees it.
pub(super) struct Balanced<'a> {
    pub(super) name: &'a str,
    pub(super) labels: &'a BTreeMap<String, String>,
    pub(super) object: &'a LoadBalancer,
    /// Its status as last published.
    pub(super) before: Option<&'a Arc<LoadBalancerStatus>>,
    /// What it was given.
    pub(super) assignment: Assignment,
    /// The addresses in effect.
    pub(super) addresses: Vec<IpAddr>,
    /// Its services in the datapath; none when the node does not balance.
    pub(super) services: Vec<Port>,
    pub(super) backends: Backends,
}

/// A service of the datapath.
pub(super) struct Port {
    /// Among the services of all LoadBalancers.
    index: usize,
    pub(super) family: Family,
    /// Backends that are up and have a weight.
    pub(super) serving: u32,
    /// The sum of their weights.
    pub(super) weight: u64,
}

/// The backends of a LoadBalancer in numbers.
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
    pub(super) fn new(
        declared: &'a Declared,
        observed: &Observed,
        node: &Node<'_>,
        claims: BTreeMap<String, Assignment>,
    ) -> Self {
        let mut load_balancers = Vec::with_capacity(declared.load_balancers.len());
        let mut services = Vec::with_capacity(declared.load_balancers.len());
        let mut datapath = Desired::default();
        let checked =
            if node.balances { Checked::new(declared, &observed.health) } else { Checked::default() };
        let mut healths = checked.healths.as_slice();
        // The claims are those of the load balancers, in the same order: all names have the same prefix.
        let known = joined(&declared.load_balancers, &declared.statuses.load_balancers);
        for ((name, object, before), assignment) in known.zip(claims.into_values()) {
            let mut balanced = Balanced {
                name,
                labels: labels(&object.metadata),
                object,
                before,
                addresses: addresses::effective(&assignment, before.map(|before| &**before)),
                assignment,
                services: Vec::new(),
                backends: Backends::default(),
            };
            balanced.take(&observed.node.addresses, &mut datapath);
            if node.balances {
                let own = healths.split_off(..checks_of(object)).unwrap_or_default();
                balanced.plan(own, &observed.installed, &mut services);
            } else {
                balanced.backends.declared = object.spec.backends.len() as u32;
            }
            load_balancers.push(balanced);
        }
        // No key is there twice: validation has refused two ports of one name.
        services.sort_by(|(one, ..), (other, ..)| one.cmp(other));
        let order = services.iter().map(|(.., index)| *index).collect();
        datapath.services = services.into_iter().map(|(key, service, _)| (key, service)).collect();
        Services { load_balancers, targets: checked.targets, order, datapath }
    }
}

/// What is to be checked, and what came of it so far.
#[derive(Default)]
struct Checked {
    targets: Targets,
    /// For each LoadBalancer that has a check, in their order, [`checks_of`] it: by port, then by backend.
    healths: Vec<Option<Health>>,
}

impl Checked {
    /// Whether or not there is an address yet: so the first pass that has one can announce. There may be very many
    /// endpoints: they are sorted once, for the targets, and walked beside the results then.
    fn new(declared: &Declared, results: &Healths) -> Self {
        let mut by_check: BTreeMap<Check, Vec<(Endpoint, usize)>> = BTreeMap::new();
        let mut length = 0;
        for object in declared.load_balancers.values() {
            let spec = &object.spec;
            let Some((check, port)) = spec.policy.health_check.as_ref().map(Check::of) else { continue };
            let endpoints = by_check.entry(check).or_default();
            for (index, (service_port, backend)) in ports_and_backends(spec).enumerate() {
                if let Some(address) = backend.address {
                    let port = port.unwrap_or(service_port.target().get());
                    endpoints.push((Endpoint { address: address.0, port }, length + index));
                }
            }
            length += checks_of(object);
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

/// How many checks a LoadBalancer asks for: one for each backend on each port.
fn checks_of(object: &LoadBalancer) -> usize {
    let spec = &object.spec;
    if spec.policy.health_check.is_some() { spec.ports.len() * spec.backends.len() } else { 0 }
}

fn ports_and_backends(spec: &LoadBalancerSpec) -> impl Iterator<Item = (&ServicePort, &Backend)> {
    spec.ports.iter().flat_map(|port| spec.backends.iter().map(move |backend| (port, backend)))
}

impl Balanced<'_> {
    /// The services and their backends; `healths` as in [`Checked`].
    fn plan(
        &mut self,
        healths: &[Option<Health>],
        installed: &Installed,
        services: &mut Vec<(ServiceKey, Arc<Service>, usize)>,
    ) {
        let spec = &self.object.spec;
        let only = only_family(spec);
        self.backends.declared = spec.backends.len() as u32;
        // By backend: whether it is up on all ports, and whether some port was not checked yet.
        let mut standing = vec![(true, false); spec.backends.len()];
        for (port_index, port) in spec.ports.iter().enumerate() {
            // Empty without a check.
            let healths = healths.get(port_index * spec.backends.len()..).unwrap_or_default();
            for family in Family::ALL {
                let frontends: BTreeSet<_> = self
                    .addresses
                    .iter()
                    .filter(|address| Family::of(**address) == family)
                    .map(|address| Frontend {
                        address: *address,
                        protocol: port.protocol.into(),
                        port: port.port.get(),
                    })
                    .collect();
                // The backends count with the service that they are of.
                if frontends.is_empty() && only.is_some() && !self.addresses.is_empty() {
                    continue;
                }
                // Without a frontend there is no service; its backends count all the same.
                let key = (!frontends.is_empty()).then(|| service_key(self.name, port, family));
                let before = LazyCell::new(|| installed.services.get(key.as_ref()?));
                let (mut serving, mut healthy_weight) = (0, 0);
                let mut backends = Vec::with_capacity(spec.backends.len());
                for (index, (backend, standing)) in spec.backends.iter().zip(&mut standing).enumerate() {
                    let Some(address) = backend.address.map(|a| a.0) else { continue };
                    if Family::of(address) != only.unwrap_or(family) {
                        continue;
                    }
                    let endpoint = Endpoint { address, port: port.target().get() };
                    let weight = backend.weight.get();
                    let health = healths.get(index).copied();
                    let up = match health {
                        // No check is declared.
                        None => true,
                        Some(Some(health)) => health == Health::Healthy,
                        Some(None) => was_up(*before, endpoint, weight),
                    };
                    if let Some(Some(Health::Unhealthy(failure))) = health {
                        let check = spec.policy.health_check.as_ref().map(Check::of);
                        let port = check.and_then(|(_, port)| port).unwrap_or(endpoint.port);
                        self.backends.failed.get_or_insert((Endpoint { port, ..endpoint }, failure));
                    }
                    // What drains is up as long as nobody knows better; that is not to be healthy.
                    let is_unknown = health == Some(None) && (!up || weight == 0);
                    standing.0 &= up && !is_unknown;
                    standing.1 |= is_unknown;
                    serving += u32::from(up && weight > 0);
                    healthy_weight += if up { u64::from(weight) } else { 0 };
                    backends.push((endpoint, Target { weight, up }));
                }
                let Some(key) = key else { continue };
                let service = Service {
                    frontends,
                    mode: spec.policy.forwarding.datapath_mode(),
                    backends: backends.into_iter().collect(),
                    drain_seconds: spec.policy.drain_seconds.get(),
                    rules: rules(&spec.policy, port, family),
                };
                self.services.push(Port { index: services.len(), family, serving, weight: healthy_weight });
                services.push((key, Arc::new(service), services.len()));
            }
        }
        self.backends.healthy = standing.iter().filter(|(up, _)| *up).count() as u32;
        self.backends.unknown = standing.iter().filter(|(_, unknown)| *unknown).count() as u32;
    }

    /// Adds what a node with these addresses needs that is a backend, whether or not it balances: tunnel ends, or the
    /// VIPs as its own.
    fn take(&self, local: &BTreeSet<IpAddr>, datapath: &mut Desired) {
        let spec = &self.object.spec;
        let mode = spec.policy.forwarding.datapath_mode();
        if mode.is_translated() {
            return;
        }
        let only = only_family(spec);
        let backends = spec.backends.iter().filter_map(|backend| backend.address);
        for local in backends.map(|address| address.0).filter(|address| local.contains(address)) {
            let serves = |vip: &IpAddr| Family::of(local) == only.unwrap_or(Family::of(*vip));
            let vips = self.addresses.iter().copied().filter(serves);
            match mode.is_tunnel() {
                true => datapath.decap.extend(vips.map(|vip| Decap { local, vip })),
                false => datapath.local_vips.extend(vips),
            }
        }
    }
}

/// The one address family of all backends, if that of the frontend does not matter: a tunnel carries either in either.
fn only_family(spec: &LoadBalancerSpec) -> Option<Family> {
    let mut families = spec.backends.iter().filter_map(|backend| backend.address).map(|a| Family::of(a.0));
    let first = families.next().filter(|_| spec.policy.forwarding.datapath_mode().is_tunnel())?;
    families.all(|family| family == first).then_some(first)
}

/// What else holds for the packets of the service of a port in an address family.
fn rules(policy: &Policy, port: &ServicePort, family: Family) -> Rules {
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
fn service_key(load_balancer: &str, port: &ServicePort, family: Family) -> ServiceKey {
    let family = match family {
        Family::Ipv4 => "ipv4",
        Family::Ipv6 => "ipv6",
    };
    let port =
        port.name.as_ref().map_or_else(|| Cow::Owned(port.port.to_string()), |name| Cow::Borrowed(&**name));
    ServiceKey(["LoadBalancer/", load_balancer, "/", &port, "/", family].concat().into())
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
    let name = service.0.split('/').nth(1);
    let object = name.and_then(|name| declared.load_balancers.get(name));
    let Some(check) = object.and_then(|object| object.spec.policy.health_check.as_ref()) else {
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
        declared.statuses = first.status;
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
