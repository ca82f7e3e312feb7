//! What is to be balanced, in one form: LoadBalancers, and Kubernetes' Services of our class with their endpoints.
use super::{
    HealthPort, Node,
    delivery::PodNode,
    endpoints::{Endpoints, Slices, State},
    joined, labels,
    spill::{Link, Links},
};
use crate::{
    api::{
        Cidr, Kind, LoadBalancer, LoadBalancerStatus, Policy, ServicePolicy,
        load_balancer::{AssignedAddress, Protocol},
        policy::{Affinity, ForwardingMode},
        service::{Requested, is_ours, source_ranges},
    },
    declared::Declared,
    status::seconds,
};
use ipam::{Family, Name, Request, Sharing};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    iter,
    net::IpAddr,
    ops::Deref,
    sync::{Arc, LazyLock},
};

/// Label of a node with its zone.
pub(super) const ZONE: &str = "topology.kubernetes.io/zone";

/// A LoadBalancer or a Service.
#[derive(Debug)]
pub(super) struct Source {
    pub(super) object: Object,
    pub(super) name: Box<str>,
    /// Its status as last published.
    pub(super) before: Option<Arc<LoadBalancerStatus>>,
    terms: Terms,
}

/// What is declared of a source.
#[derive(Clone, Debug)]
pub(super) enum Object {
    LoadBalancer(Arc<LoadBalancer>),
    Service(Arc<Service>),
}

/// What a source comes to: who serves it, on which ports, and how.
#[derive(Debug)]
pub(super) struct Terms {
    pub(super) policy: PolicyOf,
    /// The ServicePolicies that select it; the first counts.
    pub(super) policies: Vec<String>,
    pub(super) hosts: Vec<Host>,
    pub(super) ports: Vec<Port>,
    pub(super) wish: Wish,
    /// Whether only hosts on this node are used, so that a node without any must not announce.
    pub(super) local_only: bool,
    /// Whether, wherever they are, some of its hosts serve.
    pub(super) is_served: bool,
    /// The node's port where it is asked for local endpoints.
    health_check_node_port: Option<u16>,
    /// What cannot be done for it.
    pub(super) refused: Vec<String>,
}

impl Deref for Source {
    type Target = Terms;

    fn deref(&self) -> &Terms {
        &self.terms
    }
}

/// A policy, where it stands.
#[derive(Debug)]
pub(super) enum PolicyOf {
    /// Nowhere.
    Default,
    /// In the LoadBalancer.
    Balancer(Arc<LoadBalancer>),
    /// In the ServicePolicy that counts.
    Selected(Arc<ServicePolicy>),
    /// One of these, with what the Service itself says.
    Own(Box<Policy>),
}

impl Deref for PolicyOf {
    type Target = Policy;

    fn deref(&self) -> &Policy {
        match self {
            PolicyOf::Default => &DEFAULT,
            PolicyOf::Balancer(object) => &object.spec.policy,
            PolicyOf::Selected(object) => &object.spec.policy,
            PolicyOf::Own(policy) => policy,
        }
    }
}

/// Where backends are.
#[derive(Clone, Debug)]
pub(super) struct Host {
    pub(super) address: IpAddr,
    pub(super) weight: u16,
    /// Whether it may be up at all.
    pub(super) is_up: bool,
    /// The node that delivers to it; none: packets go to it itself, as under NAT all do.
    pub(super) node: Option<PodNode>,
    /// The link to its cluster; none: it is of the own one.
    pub(super) link: Option<Link>,
}

/// A port, and who serves it.
#[derive(Debug)]
pub(super) struct Port {
    /// Its name, or its number.
    pub(super) label: Box<str>,
    pub(super) protocol: Protocol,
    pub(super) number: u16,
    /// Indices of hosts, and their ports.
    pub(super) targets: Vec<(usize, u16)>,
}

/// The addresses that it wants.
#[derive(Debug, PartialEq)]
pub(super) struct Wish {
    pub(super) request: Request,
    pub(super) sharing: Sharing,
    /// Whether an address of each family is needed, or what is there is good enough.
    pub(super) needs_all: bool,
    /// Why what it asks for makes no sense; it keeps what it has.
    pub(super) fault: Option<String>,
}

impl Object {
    pub(super) const fn kind(&self) -> Kind {
        match self {
            Object::LoadBalancer(_) => Kind::LoadBalancer,
            Object::Service(_) => Kind::Service,
        }
    }

    fn metadata(&self) -> &ObjectMeta {
        match self {
            Object::LoadBalancer(object) => &object.metadata,
            Object::Service(object) => &object.metadata,
        }
    }

    /// Whether it is the very same.
    pub(super) fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Object::LoadBalancer(one), Object::LoadBalancer(other)) => Arc::ptr_eq(one, other),
            (Object::Service(one), Object::Service(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }

    /// Namespace and name of the Services whose endpoints it uses; `name` is its own.
    pub(super) fn services<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        let (own, backends) = match self {
            Object::Service(_) => (name.split_once('/'), &[][..]),
            Object::LoadBalancer(object) => (None, &*object.spec.backends),
        };
        let services = backends.iter().filter_map(|backend| backend.service.as_ref());
        own.into_iter().chain(services.map(|service| (&*service.namespace, &*service.name)))
    }
}

/// What is declared of a source, its name, and its status as last published.
pub(super) type Declaration<'a> = (Object, &'a str, Option<&'a Arc<LoadBalancerStatus>>);

/// What is declared of all sources: the LoadBalancers in the order of their names, then the Services in that of theirs.
pub(super) fn declarations(declared: &Declared) -> Vec<Declaration<'_>> {
    let statuses = &declared.statuses;
    let balancers = joined(&declared.load_balancers, &statuses.load_balancers)
        .map(|(name, object, before)| (Object::LoadBalancer(Arc::clone(object)), name.as_str(), before));
    let services = joined(&declared.services, &statuses.services)
        .filter(|(_, object, _)| is_ours(object))
        .map(|(name, object, before)| (Object::Service(Arc::clone(object)), name.as_str(), before));
    balancers.chain(services).collect()
}

/// What sources are made of, beside what is declared of them.
pub(super) struct Maker<'a> {
    declared: &'a Declared,
    node: &'a Node<'a>,
    slices: Slices<'a>,
    /// The oldest first.
    policies: Vec<(&'a String, &'a Arc<ServicePolicy>)>,
}

impl<'a> Maker<'a> {
    /// For sources that use the endpoints of these Services, by namespace and name.
    pub(super) fn new(
        declared: &'a Declared,
        node: &'a Node<'a>,
        links: &'a Links,
        wanted: &BTreeSet<(&str, &str)>,
    ) -> Self {
        let mut policies: Vec<_> = declared.policies.iter().collect();
        // Stable: policies of one age stay in the order of their names.
        policies.sort_by_key(|(_, policy)| created(&policy.metadata));
        Maker { declared, node, slices: Slices::new(declared, links, wanted), policies }
    }

    /// A source; none: it is a Service that says nothing.
    pub(super) fn make(&self, (object, name, before): Declaration<'_>) -> Option<Source> {
        let Maker { declared, node, slices, policies } = self;
        let terms = match &object {
            Object::LoadBalancer(object) => Terms::of_load_balancer(object, before, declared, slices),
            Object::Service(object) => Terms::of_service(name, object, before, policies, node, slices)?,
        };
        Some(Source { object, name: name.into(), before: before.cloned(), terms })
    }
}

impl Source {
    pub(super) fn kind(&self) -> Kind {
        self.object.kind()
    }

    pub(super) fn metadata(&self) -> &ObjectMeta {
        self.object.metadata()
    }

    pub(super) fn labels(&self) -> &BTreeMap<String, String> {
        labels(self.metadata())
    }

    /// Name of its claim; it stands in statuses as the owner of an address.
    pub(super) fn claim(&self) -> Name {
        claim(self.kind(), &self.name)
    }

    /// The namespace of a Service.
    pub(super) fn namespace(&self) -> Option<&str> {
        let is_service = self.kind() == Kind::Service;
        is_service.then(|| self.name.split_once('/')).flatten().map(|(namespace, _)| namespace)
    }

    /// Its age as that of its claim: seconds since the epoch, 0 when unknown.
    pub(super) fn created(&self) -> u64 {
        created(self.metadata())
    }

    /// Whether the same is asked of the pools, and the same was given before.
    pub(super) fn asks_the_same(&self, other: &Source) -> bool {
        fn addresses(source: &Source) -> &[AssignedAddress] {
            source.before.as_ref().map_or(&[], |status| &status.addresses)
        }
        let frontends = |source: &Source| -> Vec<_> {
            source.ports.iter().map(|port| (port.protocol, port.number)).collect()
        };
        let (one, two) = (self.metadata(), other.metadata());
        (self.kind(), &self.name) == (other.kind(), &other.name)
            && labels(one) == labels(two)
            && one.creation_timestamp == two.creation_timestamp
            && self.wish == other.wish
            && frontends(self) == frontends(other)
            && addresses(self) == addresses(other)
    }

    /// What is to be answered at its health check node port, and the port.
    pub(super) fn health_port(&self) -> Option<(u16, HealthPort)> {
        let port = self.health_check_node_port.filter(|port| self.local_only && *port > 0)?;
        let (namespace, name) = self.name.split_once('/')?;
        let local_endpoints = self.hosts.iter().filter(|host| host.is_up && host.weight > 0).count();
        Some((port, HealthPort { namespace: namespace.to_owned(), name: name.to_owned(), local_endpoints }))
    }
}

impl Terms {
    fn of_load_balancer(
        object: &Arc<LoadBalancer>,
        before: Option<&Arc<LoadBalancerStatus>>,
        declared: &Declared,
        slices: &Slices<'_>,
    ) -> Self {
        let spec = &object.spec;
        let heaviest = spec.backends.iter().map(|backend| backend.weight.get()).max().unwrap_or(0);
        let spreads = spec.backends.iter().any(|backend| backend.service.is_some());
        // A weight is spread over the endpoints of a Service: that takes finer weights.
        let scale = if spreads { (u16::MAX / heaviest.max(1)).min(FINEST) } else { 1 };
        let (mut hosts, mut refused) = (Vec::with_capacity(spec.backends.len()), Vec::new());
        let mut targets: Vec<Vec<(usize, u16)>> =
            vec![Vec::with_capacity(spec.backends.len()); spec.ports.len()];
        for (index, backend) in spec.backends.iter().enumerate() {
            let weight = backend.weight.get() * scale;
            if let Some(address) = backend.address {
                for (port, targets) in spec.ports.iter().zip(&mut targets) {
                    targets.push((hosts.len(), port.target().get()));
                }
                hosts.push(Host { address: address.0, weight, is_up: true, node: None, link: None });
            }
            let Some(reference) = &backend.service else { continue };
            let name = [&reference.namespace, "/", &reference.name].concat();
            let Some(service) = declared.services.get(&name) else {
                refused.push(format!("backends[{index}]: there is no Service/{name}"));
                continue;
            };
            let mut endpoints = slices.endpoints(&name, service);
            if spec.policy.clusters.is_some() && !spec.policy.forwarding.mode.is_direct_return() {
                endpoints = slices.import(&name, endpoints, false);
            }
            endpoints.serve_terminating();
            let share = if weight == 0 { 0 } else { (weight as usize / endpoints.ready().max(1)).max(1) };
            let first = hosts.len();
            hosts.extend(hosts_of(&endpoints, share as u16));
            for (port, targets) in spec.ports.iter().zip(&mut targets) {
                let named = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
                let number = port.target().get();
                let mut named =
                    named.filter(|own| own.port == i32::from(number) && protocol(own) == Some(port.protocol));
                let Some(own) = named.next() else {
                    refused.push(format!(
                        "backends[{index}]: Service/{name} has no port {number} of protocol {:?}",
                        port.protocol
                    ));
                    continue;
                };
                let ports = (first..).zip(endpoints.ports(own));
                targets.extend(ports.filter_map(|(host, port)| Some((host, port?))));
            }
        }
        let ports = spec.ports.iter().zip(targets).map(|(port, targets)| Port {
            label: port
                .name
                .as_ref()
                .map_or_else(|| port.port.to_string().into_boxed_str(), |name| name.as_str().into()),
            protocol: port.protocol,
            number: port.port.get(),
            targets,
        });
        let request = match spec.addresses.is_empty() {
            false => Request::Addresses(spec.addresses.iter().map(|a| a.0).collect()),
            true => Request::Families {
                pool: spec.pool.as_deref().map(Name::from),
                families: served(&hosts, before.map(|before| &**before)),
            },
        };
        let mut terms = Terms {
            policy: PolicyOf::Balancer(Arc::clone(object)),
            policies: Vec::new(),
            hosts,
            ports: ports.collect(),
            wish: Wish { request, sharing: Sharing::OnRequest, needs_all: false, fault: None },
            local_only: false,
            is_served: true,
            health_check_node_port: None,
            refused,
        };
        if spreads {
            terms.refuse_unreachable();
        }
        terms
    }

    fn of_service(
        name: &str,
        object: &Service,
        before: Option<&Arc<LoadBalancerStatus>>,
        policies: &[(&String, &Arc<ServicePolicy>)],
        node: &Node<'_>,
        slices: &Slices<'_>,
    ) -> Option<Self> {
        let spec = object.spec.as_ref()?;
        let selects = |policy: &ServicePolicy| policy.spec.service_selector.matches(labels(&object.metadata));
        let policies: Vec<_> = policies.iter().filter(|(_, policy)| selects(policy)).collect();
        let local_only = spec.external_traffic_policy.as_deref() == Some("Local");
        let policy = policy(policies.first().map(|(_, policy)| *policy), spec);
        let mut endpoints = slices.endpoints(name, object);
        if imports(&policy) && !local_only {
            let is_tunnel = policy.forwarding.datapath_mode().is_tunnel();
            endpoints = slices.import(name, endpoints, is_tunnel);
        }
        let is_served = endpoints.iter().any(|(_, state, _)| state != State::Down);
        if local_only {
            endpoints.keep_local(node.name);
        }
        endpoints.serve_terminating();
        if let Some(distribution) = spec.traffic_distribution.as_deref() {
            endpoints.keep_nearest(distribution, node.name, node.labels.get(ZONE).map(String::as_str));
        }
        let (mut refused, mut ports) = (Vec::new(), Vec::new());
        for port in spec.ports.iter().flatten() {
            let number = u16::try_from(port.port).ok().filter(|number| *number > 0);
            let label = port.name.as_deref().filter(|name| !name.is_empty());
            let label: Box<str> = label.map_or_else(|| port.port.to_string().into(), Into::into);
            let (Some(protocol), Some(number)) = (protocol(port), number) else {
                refused.push(format!("port {label}: only TCP and UDP are balanced"));
                continue;
            };
            let targets = endpoints.ports(port).enumerate();
            let targets = targets.filter_map(|(host, port)| Some((host, port?))).collect();
            ports.push(Port { label, protocol, number, targets });
        }
        let mut terms = Terms {
            policy,
            policies: policies.iter().map(|(name, _)| (*name).clone()).collect(),
            hosts: hosts_of(&endpoints, 1).collect(),
            ports,
            wish: Wish::of_service(object, spec, before),
            local_only,
            is_served,
            health_check_node_port: spec.health_check_node_port.and_then(|port| u16::try_from(port).ok()),
            refused,
        };
        terms.refuse_unreachable();
        Some(terms)
    }

    /// Leaves out what the mode of forwarding cannot reach. With direct server return a backend sees the port of the
    /// frontend; a pod sees its own, since its node translates, to which packets have to come in a tunnel.
    fn refuse_unreachable(&mut self) {
        let Terms { policy, hosts, ports, refused, .. } = self;
        let mode = policy.forwarding.mode;
        if !mode.is_direct_return() {
            hosts.iter_mut().for_each(|host| host.node = None);
            return;
        }
        // Nodes of other clusters deliver for the addresses of their Services.
        let is_balancer = matches!(policy, PolicyOf::Balancer(_));
        if policy.clusters.is_some() && (is_balancer || mode == ForwardingMode::L2) {
            let modes = if is_balancer { "mode NAT" } else { "modes NAT, IPIP and GUE" };
            refused.push(format!(
                "clusters: endpoints of other clusters are reached in the {modes}, not {mode:?}"
            ));
        }
        let is_pod = |host: usize| hosts[host].node.is_some();
        for Port { label, number, targets, .. } in ports {
            let before = targets.len();
            targets.retain(|(host, own)| is_pod(*host) || own == number);
            if targets.len() < before {
                refused.push(format!(
                    "port {label}: the target port of {} backends is another, which the mode {mode:?} does not translate",
                    before - targets.len()
                ));
            }
            let before = targets.len();
            targets.retain(|(host, _)| !is_pod(*host) || mode != ForwardingMode::L2);
            if targets.len() < before {
                refused.push(format!(
                    "port {label}: {} backends are on nodes (nodeName), which deliver to pods in the modes IPIP and GUE, not {mode:?}",
                    before - targets.len()
                ));
            }
        }
        if policy.quic.is_some() && hosts.iter().any(|host| host.node.is_some()) {
            refused.push(
                "quic: connection IDs lead to no pods; UDP packets go by addresses and ports".to_owned(),
            );
        }
    }
}

/// Finest share of a weight that is spread over endpoints.
const FINEST: u16 = 1000;

/// Name of the claim of an object.
pub(super) fn claim(kind: Kind, name: &str) -> Name {
    let kind = if kind == Kind::Service { "Service/" } else { "LoadBalancer/" };
    [kind, name].concat().into()
}

fn created(metadata: &ObjectMeta) -> u64 {
    metadata.creation_timestamp.as_ref().map_or(0, seconds)
}

fn host((address, state, node): (IpAddr, State, Option<PodNode>), weight: u16) -> Host {
    let weight = if state == State::Draining { 0 } else { weight };
    Host { address, weight, is_up: state != State::Down, node, link: None }
}

fn hosts_of(endpoints: &Endpoints<'_>, weight: u16) -> impl Iterator<Item = Host> {
    let all = endpoints.iter().zip(endpoints.links());
    all.map(move |(endpoint, link)| Host { link, ..host(endpoint, weight) })
}

/// Whether endpoints of other clusters are used: under NAT as they are, in tunnels through their nodes.
fn imports(policy: &Policy) -> bool {
    policy.clusters.is_some() && policy.forwarding.mode != ForwardingMode::L2
}

fn protocol(port: &ServicePort) -> Option<Protocol> {
    match port.protocol.as_deref() {
        None | Some("TCP") => Some(Protocol::TCP),
        Some("UDP") => Some(Protocol::UDP),
        Some(_) => None,
    }
}

/// The families that hosts can serve. One that was given stays while the service stays: backends come and go, and clients
/// know the address.
fn served(hosts: &[Host], before: Option<&LoadBalancerStatus>) -> BTreeSet<Family> {
    let given = before.into_iter().flat_map(|status| status.addresses.iter().map(|a| a.address.0));
    let addresses = hosts.iter().map(|host| host.address).chain(given);
    let mut families = BTreeSet::new();
    families
        .extend(Family::ALL.into_iter().filter(|family| addresses.clone().any(|a| Family::of(a) == *family)));
    if families.is_empty() {
        families.extend(Family::ALL);
    }
    families
}

impl Wish {
    fn of_service(object: &Service, spec: &ServiceSpec, before: Option<&Arc<LoadBalancerStatus>>) -> Self {
        let needs_all = spec.ip_family_policy.as_deref() == Some("RequireDualStack");
        let held =
            || before.into_iter().flat_map(|before| before.addresses.iter().map(|a| a.address.0)).collect();
        match Requested::of(object) {
            Ok(Requested { addresses, pool, share }) => Wish {
                request: match addresses.is_empty() {
                    true => Request::Families { pool: pool.map(Name::from), families: families(spec) },
                    false => Request::Addresses(addresses.iter().map(|address| address.0).collect()),
                },
                sharing: share.map_or(Sharing::Never, |key| Sharing::Key(key.into())),
                needs_all,
                fault: None,
            },
            Err((field, reason)) => Wish {
                request: Request::Addresses(held()),
                sharing: Sharing::Never,
                needs_all,
                fault: Some(format!("{field}: {reason}")),
            },
        }
    }
}

/// The families of a Service's addresses. Where Kubernetes has not said which is the first one, as in files, it is IPv4.
fn families(spec: &ServiceSpec) -> BTreeSet<Family> {
    let is_dual = matches!(spec.ip_family_policy.as_deref(), Some("PreferDualStack" | "RequireDualStack"));
    let named = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
        "IPv4" => Some(Family::Ipv4),
        "IPv6" => Some(Family::Ipv6),
        _ => None,
    });
    let mut families: BTreeSet<_> = named.take(if is_dual { 2 } else { 1 }).collect();
    match (is_dual, families.is_empty()) {
        (true, _) => families.extend(Family::ALL),
        (false, true) => drop(families.insert(Family::Ipv4)),
        (false, false) => {}
    }
    families
}

static DEFAULT: LazyLock<Policy> = LazyLock::new(Policy::default);

/// The policy, with what the Service itself says: its own word counts.
fn policy(selected: Option<&Arc<ServicePolicy>>, spec: &ServiceSpec) -> PolicyOf {
    let shared = selected.map_or(PolicyOf::Default, |selected| PolicyOf::Selected(Arc::clone(selected)));
    let mut policy = Cow::Borrowed(&*shared);
    if spec.session_affinity.as_deref() == Some("ClientIP") {
        policy.to_mut().affinity = Affinity::ClientIP;
    }
    match source_ranges(spec) {
        Ok(ranges) if ranges.is_empty() => {}
        Ok(ranges) => policy.to_mut().source_ranges.allow = ranges,
        // Who was to be let in is not known: to let all in would be worse than to let nobody in.
        Err(_) => policy.to_mut().source_ranges.deny = everybody().collect(),
    }
    match policy {
        Cow::Borrowed(_) => shared,
        Cow::Owned(policy) => PolicyOf::Own(Box::new(policy)),
    }
}

fn everybody() -> impl Iterator<Item = Cidr> {
    iter::once(IpNet::from(Ipv4Net::default())).chain([Ipv6Net::default().into()]).map(Cidr)
}

/// The mode in which packets to a Service are forwarded; none: we do not balance it.
pub fn forwarding_mode(declared: &Declared, name: &str) -> Option<ForwardingMode> {
    declared.services.get(name).filter(|service| is_ours(service))?;
    Some(policy_of(declared, "Service", name).map_or_else(ForwardingMode::default, |p| p.forwarding.mode))
}

/// The policy of an object: what [`Source`] has, for one whose parts in the datapath are asked for by name.
pub(super) fn policy_of<'a>(declared: &'a Declared, kind: &str, name: &str) -> Option<&'a Policy> {
    if kind == "LoadBalancer" {
        return declared.load_balancers.get(name).map(|object| &object.spec.policy);
    }
    let service = declared.services.get(name)?;
    let selects =
        |policy: &&Arc<ServicePolicy>| policy.spec.service_selector.matches(labels(&service.metadata));
    // Of equally old ones the first.
    let policy = declared.policies.values().filter(selects).min_by_key(|policy| created(&policy.metadata));
    policy.map(|policy| &policy.spec.policy)
}
