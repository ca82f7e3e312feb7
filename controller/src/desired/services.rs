//! Services: every port of a LoadBalancer in every address family becomes a service of the datapath; its
//! backends are up or down as the checks say.
use super::{Node, addresses, joined, labels};
use crate::{
    api::{LoadBalancer, LoadBalancerStatus, ServicePort, policy::ForwardingMode},
    declared::Declared,
    observed::{Check, Failure, Health, Healths, Observed, Targets},
};
use ipam::{Assignment, Family};
use lb_bpf::{
    Installed, InstalledService,
    abi::Mode,
    service::{Decap, Desired, Endpoint, Frontend, Service, ServiceKey, Target},
};
use std::{
    cell::LazyCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

/// What the node has to do for all LoadBalancers.
pub(super) struct Services<'a> {
    /// In the order of their names.
    pub(super) load_balancers: Vec<Balanced<'a>>,
    pub(super) datapath: Desired,
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
    pub(super) key: ServiceKey,
    pub(super) family: Family,
    /// Backends that are up and have a weight.
    pub(super) serving: u32,
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
        let mut services = Vec::new();
        let mut decap = BTreeSet::new();
        let mut targets: BTreeMap<Check, Vec<Endpoint>> = BTreeMap::new();
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
            decap.extend(balanced.decaps(&observed.node.addresses));
            let checker = object.spec.policy.health_check.as_ref().map(|check| {
                let (check, port) = Check::of(check);
                Checker { results: observed.health.get(&check), check, port }
            });
            if node.balances {
                balanced.plan(checker.as_ref(), &observed.installed, &mut services);
                if let Some(checker) = checker {
                    let endpoints = balanced.endpoints(&checker);
                    targets.entry(checker.check).or_default().extend(endpoints);
                }
            } else {
                balanced.backends.declared = object.spec.backends.len() as u32;
            }
            load_balancers.push(balanced);
        }
        let targets = targets.into_iter().map(|(check, endpoints)| (check, endpoints.into_iter().collect()));
        Services {
            load_balancers,
            targets: targets.collect(),
            datapath: Desired { services: services.into_iter().collect(), decap },
        }
    }
}

/// How the backends of a LoadBalancer are checked, and what came of it.
struct Checker<'a> {
    check: Check,
    port: Option<u16>,
    results: Option<&'a BTreeMap<Endpoint, Health>>,
}

impl Checker<'_> {
    /// Where an endpoint is checked: at its own port unless the check names another.
    fn endpoint(&self, endpoint: Endpoint) -> Endpoint {
        Endpoint { port: self.port.unwrap_or(endpoint.port), ..endpoint }
    }

    fn health(&self, endpoint: Endpoint) -> Option<Health> {
        self.results?.get(&self.endpoint(endpoint)).copied()
    }
}

impl Balanced<'_> {
    /// The services and their backends.
    fn plan(
        &mut self,
        checker: Option<&Checker<'_>>,
        installed: &Installed,
        services: &mut Vec<(ServiceKey, Service)>,
    ) {
        let spec = &self.object.spec;
        let mode = match spec.policy.forwarding.mode {
            ForwardingMode::IPIP => Mode::Ipip,
            // Validation has refused the modes that are not supported.
            ForwardingMode::NAT | ForwardingMode::GUE | ForwardingMode::L2 => Mode::Nat,
        };
        self.backends.declared = spec.backends.len() as u32;
        // By backend: whether it is up on all ports, and whether some port was not checked yet.
        let mut standing = vec![(true, false); spec.backends.len()];
        for port in &spec.ports {
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
                // Without a frontend there is no service; its backends count all the same.
                let key = (!frontends.is_empty()).then(|| service_key(self.name, port, family));
                let before = LazyCell::new(|| installed.services.get(key.as_ref()?));
                let mut serving = 0;
                let mut backends = Vec::with_capacity(spec.backends.len());
                for (backend, standing) in spec.backends.iter().zip(&mut standing) {
                    let Some(address) = backend.address.map(|a| a.0) else { continue };
                    if Family::of(address) != family {
                        continue;
                    }
                    let endpoint = Endpoint { address, port: port.target().get() };
                    let weight = backend.weight.get();
                    let health = checker.map(|checker| checker.health(endpoint));
                    let up = match health {
                        // No check is declared.
                        None => true,
                        Some(Some(health)) => health == Health::Healthy,
                        Some(None) => was_up(*before, endpoint, weight),
                    };
                    if let Some(Some(Health::Unhealthy(failure))) = health {
                        let checked = checker.map_or(endpoint, |checker| checker.endpoint(endpoint));
                        self.backends.failed.get_or_insert((checked, failure));
                    }
                    // What drains is up as long as nobody knows better; that is not to be healthy.
                    let is_unknown = health == Some(None) && (!up || weight == 0);
                    standing.0 &= up && !is_unknown;
                    standing.1 |= is_unknown;
                    serving += u32::from(up && weight > 0);
                    backends.push((endpoint, Target { weight, up }));
                }
                let Some(key) = key else { continue };
                let service = Service {
                    frontends,
                    mode,
                    backends: backends.into_iter().collect(),
                    drain_seconds: spec.policy.drain_seconds.get(),
                };
                services.push((key.clone(), service));
                self.services.push(Port { key, family, serving });
            }
        }
        self.backends.healthy = standing.iter().filter(|(up, _)| *up).count() as u32;
        self.backends.unknown = standing.iter().filter(|(_, unknown)| *unknown).count() as u32;
    }

    /// What is to be checked, whether or not there is an address yet: so the first pass that has one can announce.
    fn endpoints(&self, checker: &Checker<'_>) -> Vec<Endpoint> {
        let spec = &self.object.spec;
        let mut endpoints = Vec::with_capacity(spec.backends.len() * spec.ports.len());
        for address in spec.backends.iter().filter_map(|backend| backend.address) {
            let of_ports = spec.ports.iter().map(|port| port.target().get());
            endpoints.extend(of_ports.map(|port| checker.endpoint(Endpoint { address: address.0, port })));
        }
        endpoints
    }

    /// The tunnel ends of a node that has these addresses: it is a backend, whether or not it balances.
    fn decaps(&self, local: &BTreeSet<IpAddr>) -> Vec<Decap> {
        let spec = &self.object.spec;
        if spec.policy.forwarding.mode != ForwardingMode::IPIP {
            return Vec::new();
        }
        let ours = spec.backends.iter().filter_map(|b| b.address).map(|a| a.0).filter(|a| local.contains(a));
        let pairs = ours.flat_map(|local| self.addresses.iter().map(move |vip| Decap { local, vip: *vip }));
        pairs.filter(|decap| Family::of(decap.local) == Family::of(decap.vip)).collect()
    }
}

/// The desired services of which the datapath holds something, with what it holds.
pub(super) struct Held<'a>(HashMap<&'a ServiceKey, (&'a Service, &'a InstalledService)>);

impl<'a> Held<'a> {
    pub(super) fn new(desired: &'a Desired, installed: &'a Installed) -> Self {
        let held = joined(&desired.services, &installed.services);
        Held(held.filter_map(|(key, service, held)| Some((key, (service, held?)))).collect())
    }

    pub(super) fn get(&self, port: &Port) -> Option<(&'a Service, &'a InstalledService)> {
        self.0.get(&port.key).copied()
    }
}

/// Whether a backend that was not checked yet counts as up: as it did when the datapath was last programmed. So a
/// restart, or an edit of the check, neither withdraws nor moves anything.
fn was_up(before: Option<&InstalledService>, endpoint: Endpoint, weight: u16) -> bool {
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
    match &port.name {
        Some(name) => ServiceKey(format!("LoadBalancer/{load_balancer}/{name}/{family}")),
        None => ServiceKey(format!("LoadBalancer/{load_balancer}/{}/{family}", port.port)),
    }
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
    let checker = Checker { results: healths.get(&check), check, port };
    checker.health(endpoint).map_or(BackendHealth::Unknown, BackendHealth::Known)
}
