//! Delivery to pods: in the tunnel modes a pod is reached through its node, and is chosen in two steps.
//!
//! ```text
//! client ──> any node: the frontend of clients chooses a node, by what its pods weigh; alike on all nodes
//!                 │ through a tunnel, or here
//!                 v
//!            that node: its local frontend chooses among its own pods, and writes address and port of the pod in
//! ```
//! Nodes of another cluster do the same for the addresses that the Service has there, too. What comes out of a tunnel goes to a pod
//! of the node or nowhere, so no packet goes on from site to site.
use super::{
    sources::{Host, Source},
    spill::{Link, Share},
};
use crate::{
    api::{delivery::FORWARDING, endpoint_slice::ImportedFrom, load_balancer::Protocol, node::internal_ips},
    declared::Declared,
};
use ipam::Family;
use lb_bpf::service::{Decap, Endpoint, Target};
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

/// The node that delivers to a pod.
#[derive(Clone, Debug)]
pub(super) enum PodNode {
    /// One of this cluster, by its name.
    Own(Arc<str>),
    /// One of another cluster, which has nothing to do with a node of ours that is called so, too.
    Elsewhere(Elsewhere),
}

/// A node of another cluster.
#[derive(Clone, Debug)]
pub(super) struct Elsewhere {
    import: Arc<ImportedFrom>,
    ends: Ends,
}

impl PodNode {
    /// The node of an endpoint that was imported.
    pub(super) fn elsewhere(import: &Arc<ImportedFrom>, endpoint: IpAddr) -> Self {
        let node = import.delivery.as_ref().and_then(|delivery| delivery.node_of(endpoint));
        let ends = Family::ALL.map(|family| {
            let mut addresses = node.iter().flat_map(|node| node.addresses.iter().copied());
            addresses.find(|address| Family::of(*address) == family)
        });
        PodNode::Elsewhere(Elsewhere { import: Arc::clone(import), ends })
    }

    /// Whether the node takes packets to a port of the service: one of another cluster does if that has the port, too.
    pub(super) fn takes(&self, protocol: Protocol, port: u16) -> bool {
        match self {
            PodNode::Own(_) => true,
            PodNode::Elsewhere(node) => {
                node.import.delivery.as_ref().is_some_and(|delivery| delivery.has_port(protocol, port))
            }
        }
    }
}

impl Elsewhere {
    /// The mode of the service there, if it takes nothing out of tunnels.
    fn mode_without_tunnels(&self) -> Option<&str> {
        self.import.delivery.as_ref()?.mode_without_tunnels()
    }

    /// Whether the service has all of these addresses there that are of a family.
    fn has_all(&self, addresses: &[IpAddr], family: Family) -> bool {
        let Some(delivery) = &self.import.delivery else { return false };
        let mut own = addresses.iter().filter(|address| Family::of(**address) == family).peekable();
        own.peek().is_some() && own.all(|address| delivery.addresses.contains(address))
    }
}

/// Where the nodes of the cluster take packets for their pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Nodes {
    own: String,
    ends: HashMap<String, Ends>,
    addresses: HashSet<IpAddr>,
}

/// The address of a node in each [`Family`]; none: it has none.
type Ends = [Option<IpAddr>; 2];

impl Nodes {
    /// Those that are declared, seen from the node with the name `own`.
    pub(super) fn new(declared: &Declared, own: &str) -> Self {
        let ends = declared.nodes.iter().map(|(name, node)| {
            let of = |family| internal_ips(node).find(|address| Family::of(*address) == family);
            (name.clone(), Family::ALL.map(of))
        });
        let addresses = declared.nodes.values().flat_map(|node| internal_ips(node)).collect();
        Nodes { own: own.to_owned(), ends: ends.collect(), addresses }
    }

    /// Whether a node is this one.
    pub(super) fn is_own(&self, node: &PodNode) -> bool {
        matches!(node, PodNode::Own(name) if **name == *self.own)
    }

    /// Whether a source has pods on this node that this node delivers to.
    pub(super) fn delivers(&self, source: &Source) -> bool {
        source.policy.forwarding.datapath_mode().is_tunnel() && self.own_families(source).next().is_some()
    }

    /// The tunnel ends of this node for the pods that a source has on it, by its VIPs: all that other nodes may send to,
    /// which may have other pods in view.
    pub(super) fn decap(&self, source: &Source, vips: &[IpAddr]) -> impl Iterator<Item = Decap> {
        let families: BTreeSet<Family> = self.own_families(source).collect();
        let ends = self.ends.get(&self.own).copied().unwrap_or_default();
        let vips = vips.iter().filter(move |vip| families.contains(&Family::of(**vip)));
        vips.flat_map(move |vip| {
            let vip = *vip;
            ends.into_iter().flatten().map(move |local| Decap { local, vip, deliver: true })
        })
    }

    /// How each host of a source with these addresses is reached, by index: nothing for one that is no pod, and nothing at all
    /// without pods. `plain`: the one family of those that are none, if that of the VIP does not matter.
    ///
    /// All backends of a service are of one family. For pods it is that of the VIP if all their nodes have an address
    /// of it, else the other, if they all have that; if there is none that all have, one that all nodes of this cluster have.
    pub(super) fn vias(
        &self,
        source: &Source,
        addresses: &[IpAddr],
        plain: Option<Family>,
    ) -> Vec<Option<Via>> {
        let is_tunnel = source.policy.forwarding.datapath_mode().is_tunnel();
        if !is_tunnel || source.hosts.iter().all(|host| host.node.is_none()) {
            return Vec::new();
        }
        let holders = self.holders(source, addresses);
        let refusal = |host: &Host| self.refusal(host, addresses, &holders);
        let is_mixed = source.hosts.iter().any(|host| host.node.is_none());
        let ways = Family::ALL.map(|family| {
            let pods = source.hosts.iter().filter(|host| Family::of(host.address) == family);
            let pods = pods.filter(|host| refusal(host).is_none());
            let nodes = pods.filter_map(|host| host.node.as_ref());
            let own = nodes.clone().filter(|node| matches!(node, PodNode::Own(_)));
            let has = |node: &PodNode, way: Family| self.ends(node).is_none_or(|e| e[way as usize].is_some());
            let mut all = [family, other(family)].into_iter();
            match plain {
                _ if is_mixed => plain.unwrap_or(family),
                _ => all
                    .clone()
                    .find(|way| nodes.clone().all(|node| has(node, *way)))
                    .or_else(|| all.find(|way| own.clone().all(|node| has(node, *way))))
                    .unwrap_or(family),
            }
        });
        let via = |host: &Host| {
            let (node, family) = (host.node.as_ref()?, Family::of(host.address));
            let end = self.ends(node).and_then(|ends| ends[ways[family as usize] as usize]);
            Some(Via { end, here: self.is_own(node), refusal: refusal(host) })
        };
        source.hosts.iter().map(via).collect()
    }

    /// Why the node of a host does not get packets to these addresses, as far as they are of its family; none: it does.
    fn refusal(&self, host: &Host, addresses: &[IpAddr], holders: &Holders<'_>) -> Option<Refusal> {
        let Some(PodNode::Elsewhere(node)) = &host.node else { return None };
        let is_held = |end: &IpAddr| holders.get(end).is_some_and(|(_, of)| **of != *node.import.cluster);
        let refusal = self.refusal_alone(node, addresses, Family::of(host.address));
        refusal.or_else(|| node.ends.iter().flatten().any(is_held).then_some(Refusal::OtherNode))
    }

    /// Which cluster has each of the addresses of nodes elsewhere. Nobody knows to which one of several a packet goes: all such
    /// packets are meant for that with the oldest link, and a cluster that comes later takes nothing from it.
    fn holders<'s>(&self, source: &'s Source, addresses: &[IpAddr]) -> Holders<'s> {
        let mut holders = Holders::new();
        for host in &source.hosts {
            let Some(PodNode::Elsewhere(node)) = &host.node else { continue };
            if self.refusal_alone(node, addresses, Family::of(host.address)).is_some() {
                continue;
            }
            let claim = (host.link.map_or(0, |link| link.created), &*node.import.cluster);
            for end in node.ends.iter().flatten() {
                let holder = holders.entry(*end).or_insert(claim);
                *holder = claim.min(*holder);
            }
        }
        holders
    }

    /// The same whatever other clusters have. What goes to an address of ours comes to ours.
    fn refusal_alone(&self, node: &Elsewhere, addresses: &[IpAddr], family: Family) -> Option<Refusal> {
        if node.ends.iter().flatten().any(|end| self.addresses.contains(end)) {
            return Some(Refusal::OwnNode);
        }
        if !node.has_all(addresses, family) {
            return Some(Refusal::Address);
        }
        node.mode_without_tunnels().map(|_| Refusal::Mode)
    }

    /// The addresses of a node; none: nobody knows it.
    fn ends(&self, node: &PodNode) -> Option<Ends> {
        match node {
            PodNode::Own(name) => self.ends.get(&**name).copied(),
            PodNode::Elsewhere(node) => Some(node.ends).filter(|ends| ends.iter().any(Option::is_some)),
        }
    }

    /// What is to be said of pods that cannot be reached.
    pub(super) fn refusals(&self, source: &Source, vias: &[Option<Via>]) -> Vec<String> {
        let mut lost = (BTreeSet::new(), 0);
        // By cluster and reason.
        let mut elsewhere: BTreeMap<(&str, Cow<'_, str>), usize> = BTreeMap::new();
        for (host, via) in source.hosts.iter().zip(vias) {
            let Some((node, via)) = host.node.as_ref().zip(via.as_ref()) else { continue };
            match node {
                PodNode::Own(name) if via.end.is_none() => {
                    lost.0.insert(&**name);
                    lost.1 += 1;
                }
                PodNode::Own(_) => {}
                PodNode::Elsewhere(node) => {
                    let reason = match (via.refusal, via.end) {
                        (Some(Refusal::OwnNode), _) => {
                            "their nodes have addresses of nodes of this cluster".into()
                        }
                        (Some(Refusal::OtherNode), _) => {
                            "their nodes have addresses of nodes of another cluster, whose link comes first"
                                .into()
                        }
                        (Some(Refusal::Address), _) => "the Service does not have the address there".into(),
                        (Some(Refusal::Mode), _) => {
                            let mode = node.mode_without_tunnels().unwrap_or_default();
                            format!("the ServiceExport there says {FORWARDING} {mode}, not IPIP or GUE")
                                .into()
                        }
                        (None, None) => "no InternalIP of the right family is known of their nodes".into(),
                        (None, Some(_)) => continue,
                    };
                    *elsewhere.entry((&node.import.cluster, reason)).or_default() += 1;
                }
            }
        }
        let own = lost.0.first().map(|first| {
            let what = if self.ends.contains_key(*first) {
                "has no InternalIP of the right family"
            } else {
                "is not known"
            };
            let others = match lost.0.len() - 1 {
                0 => String::new(),
                others => format!(", and {others} more"),
            };
            format!("Node {first} {what}{others}: {} endpoints count as down", lost.1)
        });
        let elsewhere = elsewhere.into_iter().map(|((cluster, reason), count)| {
            format!("clusters: {count} endpoints of {cluster} are not used: {reason}")
        });
        own.into_iter().chain(elsewhere).collect()
    }

    fn own_families(&self, source: &Source) -> impl Iterator<Item = Family> {
        let own = source.hosts.iter().filter(|host| host.node.as_ref().is_some_and(|node| self.is_own(node)));
        own.map(|host| Family::of(host.address))
    }
}

fn other(family: Family) -> Family {
    match family {
        Family::Ipv4 => Family::Ipv6,
        Family::Ipv6 => Family::Ipv4,
    }
}

/// How a pod is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Via {
    /// Where its node takes packets for it; none: nobody knows.
    pub(super) end: Option<IpAddr>,
    /// Whether it is on this node.
    pub(super) here: bool,
    /// Why its node does not get packets to the VIPs; none: it does.
    pub(super) refusal: Option<Refusal>,
}

/// Clusters by the addresses of their nodes, each with the age of its link.
type Holders<'a> = HashMap<IpAddr, (u64, &'a str)>;

/// Why a node of another cluster gets no packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// A node of ours has an address of it.
    OwnNode,
    /// A node of another cluster, whose link comes first, has an address of it.
    OtherNode,
    /// The service does not have the address there.
    Address,
    /// The service has a mode there in which nothing is taken out of a tunnel.
    Mode,
}

/// The pods among the backends of a service.
#[derive(Default)]
pub(super) struct Pods {
    nodes: BTreeMap<Endpoint, (Target, Share)>,
    own: BTreeMap<Endpoint, Target>,
}

impl Pods {
    /// Adds a pod, which takes packets to `port` of the VIP; `link`: to its cluster; with its target, whether no check has spoken of
    /// it yet.
    pub(super) fn add(
        &mut self,
        via: Via,
        link: Option<Link>,
        port: u16,
        pod: Endpoint,
        (target, is_unknown): (Target, bool),
    ) {
        if via.here {
            self.own.insert(pod, target);
        }
        let Some(address) = via.end else { return };
        let fresh = (Target { weight: 0, up: false, here: via.here }, Share::new(link));
        let (node, share) = self.nodes.entry(Endpoint { address, port }).or_insert(fresh);
        node.up |= target.up;
        node.weight = node.weight.saturating_add(if target.up { target.weight } else { 0 });
        share.add(&target, is_unknown);
    }

    /// The nodes as backends, and the pods of this node. While none of these is up and has a weight, those that drain
    /// serve: whoever sends here does not know yet.
    pub(super) fn levels(
        self,
    ) -> (impl ExactSizeIterator<Item = (Endpoint, (Target, Share))>, BTreeMap<Endpoint, Target>) {
        let Pods { nodes, mut own } = self;
        if !own.values().any(|target| target.up && target.weight > 0) {
            own.values_mut().filter(|target| target.up).for_each(|target| target.weight = 1);
        }
        (nodes.into_iter(), own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        desired::desired,
        observed::{NodeInfo, Observed},
        validate::parse_directory,
    };
    use lb_bpf::service::{Scope, Service};
    use proptest::prelude::*;
    use std::fmt::Write;

    const NODES: u8 = 4;

    /// An endpoint of the Service.
    #[derive(Clone, Copy, Debug)]
    struct Pod {
        /// From 1; beyond [`NODES`]: not known. 0: no node.
        node: u8,
        state: State,
        is_v6: bool,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum State {
        Ready,
        Draining,
        Down,
    }

    fn pod() -> impl Strategy<Value = Pod> {
        let state = prop::sample::select(vec![State::Ready, State::Ready, State::Draining, State::Down]);
        (0..=NODES + 1, state, any::<bool>()).prop_map(|(node, state, is_v6)| Pod { node, state, is_v6 })
    }

    /// What the node `own` installs for a Service with these endpoints; `has_v6` says which nodes have an IPv6 address.
    fn services(pods: &[Pod], has_v6: &[bool], mode: &str, own: u8) -> lb_bpf::service::Desired {
        let mut text = format!(
            "kind: Service\nmetadata: {{name: a, annotations: {{fairlead.dev/addresses: \"192.0.2.1,2001:db8::1\"}}}}\n\
             spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, ports: [{{port: 80, targetPort: 8080}}]}}\n---\n\
             kind: ServicePolicy\nmetadata: {{name: a}}\nspec: {{policy: {{forwarding: {{mode: {mode}}}}}}}\n"
        );
        for (number, has_v6) in (1..).zip(has_v6) {
            let v6 = if *has_v6 {
                format!(", {{type: InternalIP, address: \"fd00::{number}\"}}")
            } else {
                String::new()
            };
            write!(
                text,
                "---\nkind: Node\nmetadata: {{name: n{number}}}\n\
                 status: {{addresses: [{{type: InternalIP, address: 10.0.0.{number}}}{v6}]}}\n"
            )
            .unwrap();
        }
        for is_v6 in [false, true] {
            let family = if is_v6 { "IPv6" } else { "IPv4" };
            write!(
                text,
                "---\nkind: EndpointSlice\nmetadata: {{name: {}, labels: {{kubernetes.io/service-name: a}}}}\n\
                 addressType: {family}\nports: [{{port: 8080}}]\nendpoints:\n",
                family.to_lowercase()
            )
            .unwrap();
            for (number, pod) in (1..).zip(pods).filter(|(_, pod): &(u8, _)| pod.is_v6 == is_v6) {
                let address = if is_v6 { format!("fd01::{number}") } else { format!("10.1.0.{number}") };
                let node = if pod.node > 0 { format!(", nodeName: n{}", pod.node) } else { String::new() };
                let conditions = match pod.state {
                    State::Ready => "{ready: true}",
                    State::Draining => "{ready: false, serving: true, terminating: true}",
                    State::Down => "{ready: false}",
                };
                writeln!(text, "- {{addresses: [\"{address}\"], conditions: {conditions}{node}}}").unwrap();
            }
        }
        let mut declared = parse_directory(&BTreeMap::from([("a.yaml".into(), text)])).unwrap();
        let node = NodeInfo { name: format!("n{own}"), ..NodeInfo::default() };
        let observed = Observed { node, ..Observed::default() };
        declared.statuses = (*desired(&declared, &observed).status).clone();
        lb_bpf::service::Desired::clone(&desired(&declared, &observed).datapath)
    }

    fn of_scope(datapath: &lb_bpf::service::Desired, scope: Scope) -> impl Iterator<Item = &Service> {
        let services = datapath.services.values().map(|service| &**service);
        services.filter(move |service| service.frontends.iter().all(|frontend| frontend.scope == scope))
    }

    fn serving(service: &Service) -> BTreeSet<Endpoint> {
        let members = service.backends.iter().filter(|(_, target)| target.up && target.weight > 0);
        members.map(|(endpoint, _)| *endpoint).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Whichever node a packet comes to, the same node is chosen, and that one has the pods for it.
        #[test]
        fn nodes_choose_alike_and_have_what_the_others_count_on(
            pods in prop::collection::vec(pod(), 0..12),
            has_v6 in prop::collection::vec(any::<bool>(), usize::from(NODES)),
            mode in prop::sample::select(vec!["IPIP", "GUE"]),
        ) {
            let all: Vec<_> = (1..=NODES).map(|own| services(&pods, &has_v6, mode, own)).collect();
            let alike = |service: &Service| {
                let mut service = service.clone();
                service.backends.values_mut().for_each(|target| target.here = false);
                service
            };
            let first: Vec<_> = of_scope(&all[0], Scope::All).map(alike).collect();
            prop_assert_eq!(first.len(), 2);
            for (own, datapath) in (1..).zip(&all) {
                prop_assert_eq!(&of_scope(datapath, Scope::All).map(alike).collect::<Vec<_>>(), &first);
                for service in of_scope(datapath, Scope::All) {
                    let families: BTreeSet<_> = service.backends.keys().map(|e| Family::of(e.address)).collect();
                    prop_assert!(families.len() < 2, "{:?}", service);
                    let vip = service.frontends.first().unwrap().address;
                    let local = |service: &&Service| service.frontends.first().unwrap().address == vip;
                    let local = of_scope(datapath, Scope::Local).find(local);
                    for (endpoint, target) in &service.backends {
                        let [.., number] = match endpoint.address {
                            IpAddr::V4(v4) => v4.octets(),
                            IpAddr::V6(v6) => v6.octets()[12..].try_into().unwrap(),
                        };
                        let is_node = endpoint.address.to_string().starts_with("10.0.")
                            || endpoint.address.to_string().starts_with("fd00:");
                        prop_assert_eq!(target.here, is_node && number == own);
                        if !target.here {
                            continue;
                        }
                        let local = local.expect("who is sent to has a frontend for it");
                        let sum: u16 = local.backends.values().filter(|t| t.up).map(|t| t.weight).sum();
                        // Those that drain weigh something only when they are alone.
                        prop_assert!(target.weight == 0 || target.weight == sum, "{:?} {:?}", target, local);
                        prop_assert_eq!(target.up, !serving(local).is_empty());
                        let end = Decap { local: endpoint.address, vip, deliver: true };
                        prop_assert!(datapath.decap.contains(&end), "{:?}", datapath.decap);
                    }
                    // Whoever is not sent to has no pods that serve.
                    if !service.backends.values().any(|target| target.here) {
                        prop_assert!(local.is_none_or(|local| serving(local).is_empty()));
                    }
                }
            }
            // Each pod is reached on one node, if its node is known.
            let reached = |datapath| of_scope(datapath, Scope::Local).map(|service| service.backends.len()).sum::<usize>();
            let on_nodes = pods.iter().filter(|pod| (1..=NODES).contains(&pod.node)).count();
            prop_assert_eq!(all.iter().map(reached).sum::<usize>(), on_nodes);
        }
    }
}
