//! The endpoints of Kubernetes' Services, from their EndpointSlices: which of them this node uses, and how they stand.
//!
//! An endpoint that is terminating and still serves drains; while a Service has no others, it serves. One that is not
//! ready is down, unless the Service publishes such addresses.
use super::{
    delivery::PodNode,
    spill::{Link, Links},
};
use crate::{
    api::endpoint_slice::{Endpoint, EndpointSlice, SliceMetadata},
    declared::Declared,
};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use std::{
    collections::{BTreeSet, HashMap},
    iter,
    net::IpAddr,
};

/// The EndpointSlices by namespace and name of their Services, imported ones among them, and the links.
pub(super) struct Slices<'a>(HashMap<&'a str, HashMap<&'a str, Vec<&'a EndpointSlice>>>, &'a Links);

impl<'a> Slices<'a> {
    /// Those of the Services that are `wanted`, by namespace and name.
    pub(super) fn new(declared: &'a Declared, links: &'a Links, wanted: &BTreeSet<(&str, &str)>) -> Self {
        let mut slices: HashMap<_, HashMap<_, Vec<_>>> = HashMap::new();
        let namespaces: BTreeSet<_> = wanted.iter().map(|(namespace, _)| *namespace).collect();
        for namespace in namespaces {
            let first = [namespace, "/"].concat();
            let own = declared.endpoint_slices.range(first.clone()..);
            for (name, slice) in own.take_while(|(name, _)| name.starts_with(&first)) {
                if let Some(service) = service_of(name, slice).filter(|service| wanted.contains(service)) {
                    slices.entry(service.0).or_default().entry(service.1).or_default().push(&**slice);
                }
            }
        }
        Slices(slices, links)
    }

    /// Those of a Service, `NAMESPACE/NAME`.
    fn of(&self, service: &str) -> &[&'a EndpointSlice] {
        let found = service.split_once('/').and_then(|(namespace, name)| self.0.get(namespace)?.get(name));
        found.map_or(&[], Vec::as_slice)
    }

    /// The endpoints of a Service, sorted by address.
    pub(super) fn endpoints(&self, name: &str, service: &Service) -> Endpoints<'a> {
        let not_ready = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses);
        let mut found = Vec::new();
        for slice in self.of(name).iter().copied().filter(|slice| slice.metadata.service.is_some()) {
            let endpoints = slice.endpoints.iter();
            found.extend(endpoints.map(|endpoint| Found {
                endpoint,
                state: State::of(endpoint, not_ready.unwrap_or(false)),
                slice,
                others: Vec::new(),
                link: None,
            }));
        }
        Endpoints::new(found, false)
    }

    /// Those of a Service in linked clusters, beside its own. In tunnels (`is_tunnel`) pods of several clusters may have one address.
    pub(super) fn import(&self, name: &str, own: Endpoints<'a>, is_tunnel: bool) -> Endpoints<'a> {
        let mut found = own.0;
        for slice in self.of(name) {
            let import = slice.metadata.import.as_ref();
            let Some(link) = import.and_then(|import| self.1.get(&*import.cluster)) else { continue };
            found.extend(slice.endpoints.iter().map(|endpoint| Found {
                endpoint,
                state: State::of(endpoint, false),
                slice,
                others: Vec::new(),
                link: Some(*link),
            }));
        }
        Endpoints::new(found, is_tunnel)
    }
}

impl<'a> Endpoints<'a> {
    /// Of one address there is one, or one in each cluster.
    fn new(mut found: Vec<Found<'a>>, by_cluster: bool) -> Self {
        let cluster = |found: &Found<'a>| {
            let import = found.slice.metadata.import.as_ref().filter(|_| by_cluster);
            import.map(|import| &*import.cluster)
        };
        // Stable: of one address, those of the first slice come first.
        found.sort_by_key(|found| (found.endpoint.address, cluster(found)));
        found.dedup_by(|next, first| {
            let is_same = (next.endpoint.address, cluster(next)) == (first.endpoint.address, cluster(first));
            if is_same {
                first.others.push(next.slice);
                // In two slices for a moment: what stands better is the newer word.
                if next.state < first.state {
                    (first.endpoint, first.state) = (next.endpoint, next.state);
                }
            }
            is_same
        });
        Endpoints(found)
    }
}

/// Namespace and name of the Service of a slice, imported or not, with the name `NAMESPACE/NAME`.
pub(super) fn service_of<'a>(name: &'a str, slice: &'a EndpointSlice) -> Option<(&'a str, &'a str)> {
    let (namespace, _) = name.split_once('/')?;
    let SliceMetadata { service, import, .. } = &slice.metadata;
    Some((namespace, service.as_deref().or_else(|| Some(&*import.as_ref()?.service))?))
}

/// How an endpoint stands, the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum State {
    /// New connections are welcome.
    Ready,
    /// It serves the connections that it has.
    Draining,
    /// It serves none.
    Down,
}

impl State {
    fn of(endpoint: &Endpoint, publish_not_ready: bool) -> Self {
        let conditions = endpoint.conditions.as_ref();
        // Nothing said means ready; it serves if it is ready.
        let ready = conditions.and_then(|conditions| conditions.ready).unwrap_or(true);
        let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(ready);
        let terminating = conditions.and_then(|conditions| conditions.terminating).unwrap_or(false);
        match (ready || publish_not_ready && !terminating, serving && terminating) {
            (true, _) => State::Ready,
            (false, true) => State::Draining,
            (false, false) => State::Down,
        }
    }
}

/// Endpoints of a Service, sorted by address.
pub(super) struct Endpoints<'a>(Vec<Found<'a>>);

/// An endpoint.
struct Found<'a> {
    endpoint: &'a Endpoint,
    state: State,
    /// The slice that has it: its ports are those of the endpoint.
    slice: &'a EndpointSlice,
    /// Other slices that have it, too.
    others: Vec<&'a EndpointSlice>,
    /// The link to its cluster; none: it is of the own one.
    link: Option<Link>,
}

impl Found<'_> {
    /// The node that it is on. What is of another cluster names no node of ours.
    fn node(&self) -> Option<PodNode> {
        let import = self.slice.metadata.import.as_ref().filter(|_| self.link.is_some());
        let own = || self.endpoint.node_name().cloned().map(PodNode::Own);
        import.map(|import| PodNode::elsewhere(import, self.endpoint.address)).or_else(own)
    }
}

impl<'a> Endpoints<'a> {
    /// Leaves those of a node.
    pub(super) fn keep_local(&mut self, node: &str) {
        self.0.retain(|found| found.endpoint.is_on(node));
    }

    /// While none is ready, those that drain serve.
    pub(super) fn serve_terminating(&mut self) {
        if self.0.iter().all(|found| found.state != State::Ready) {
            let draining = self.0.iter_mut().filter(|found| found.state == State::Draining);
            draining.for_each(|found| found.state = State::Ready);
        }
    }

    /// Leaves of those that are ready the nearest, as `trafficDistribution` asks for it, for a node of this name and
    /// zone. Those that drain stay: they have connections. What is on the node is in its zone. Those of other clusters stay, too.
    pub(super) fn keep_nearest(&mut self, distribution: &str, node: &str, zone: Option<&str>) {
        let by_node = distribution == "PreferSameNode";
        let by_zone = by_node || matches!(distribution, "PreferSameZone" | "PreferClose");
        let on_node = |endpoint: &Endpoint| endpoint.is_on(node);
        let in_zone = |endpoint: &Endpoint| zone.is_some() && (endpoint.zone() == zone || on_node(endpoint));
        let _ = (by_node && self.keep_ready(on_node)) || (by_zone && self.keep_ready(in_zone));
    }

    /// Leaves of those that are ready the near ones, if there are any.
    fn keep_ready(&mut self, is_near: impl Fn(&Endpoint) -> bool) -> bool {
        let is_ready = |found: &Found<'_>| found.state == State::Ready;
        let any = self.0.iter().any(|found| is_ready(found) && is_near(found.endpoint));
        self.0.retain(|found| !any || !is_ready(found) || is_near(found.endpoint) || found.link.is_some());
        any
    }

    /// Address and state of each, and its node.
    pub(super) fn iter(&self) -> impl Iterator<Item = (IpAddr, State, Option<PodNode>)> {
        self.0.iter().map(|found| (found.endpoint.address, found.state, found.node()))
    }

    /// The link to the cluster of each; none: it is of the own one.
    pub(super) fn links(&self) -> impl Iterator<Item = Option<Link>> {
        self.0.iter().map(|found| found.link)
    }

    /// How many are ready: of the own cluster, or of others if it has none.
    pub(super) fn ready(&self) -> usize {
        let ready = || self.0.iter().filter(|found| found.state == State::Ready);
        match ready().filter(|found| found.link.is_none()).count() {
            0 => ready().count(),
            own => own,
        }
    }

    /// By endpoint, in their order: the port of its own that a port of the Service leads to; none: there is none.
    pub(super) fn ports<'b>(&'b self, port: &'b ServicePort) -> impl Iterator<Item = Option<u16>> + 'b {
        let name = port.name.as_deref().unwrap_or_default();
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        self.0.iter().map(move |found| {
            let slices = iter::once(&found.slice).chain(&found.others);
            let mut ports = slices.flat_map(|slice| &slice.ports);
            let own = ports.find(|own| {
                own.name.as_deref().unwrap_or_default() == name
                    && own.protocol.as_deref().unwrap_or("TCP") == protocol
            });
            u16::try_from(own?.port?).ok().filter(|number| *number > 0)
        })
    }
}
