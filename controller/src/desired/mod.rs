//! From what is declared and observed to what this node should have: one pure function, [`desired`].
//!
//! It works in two steps, since a route may only be announced for what is installed: a [`Draft`] says what the
//! datapath should hold; when that is done, [`Draft::finish`] says what is announced and how everything stands.
mod addresses;
mod cluster;
mod delivery;
mod endpoints;
mod filters;
mod fleet;
mod in_use;
mod leases;
mod links;
mod memory;
mod pages;
mod pod_cidrs;
mod report;
mod routes;
mod services;
mod sources;
mod speaker;
mod spill;
mod status;

pub use cluster::{ClusterMemory, cluster, cluster_remembering};
pub use filters::rule_key;
pub use fleet::{Fleet, NodeReport, NodeReports};
pub use memory::Memory;
pub use report::Report;
pub use routes::NotAnnounced;
pub use services::{BackendHealth, backend_health};
pub use sources::forwarding_mode;
pub use speaker::Speaker;
pub(crate) use speaker::md5_key;

use crate::{
    api::{BGPPeer, BGPRouter, bgp_peer::Discover, node::is_excluded},
    declared::Declared,
    observed::{NodeInfo, Observed, Targets},
    status::{Conditions, StatusSet},
};
use bgp_speaker::PeerId;
use bgp_speaker::config::Route;
use ipam::pod_cidr::BlockAssignments;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use lb_bpf::Installed;
use memory::{Context, Ground, Outcome};
use services::{Held, Services};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// Everything that this node should have, and what is to be said about it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// For the datapath.
    pub datapath: Arc<lb_bpf::service::Desired>,
    /// What is to be checked.
    pub targets: Arc<Targets>,
    /// For the BGP speaker; none: this node does not speak BGP.
    pub speaker: Option<Speaker>,
    /// What is announced: only what is installed. Sorted by prefix; several routes of one prefix differ in their
    /// peers, which are disjoint then.
    pub routes: Arc<Vec<Route>>,
    /// When the next packet filter expires, in seconds since the epoch: then something else is desired. None: no one
    /// does.
    pub next_expiry: Option<u64>,
    /// Ports where a load balancer in front of this node asks for endpoints, by number.
    pub health_ports: BTreeMap<u16, HealthPort>,
    /// To be published.
    pub status: Arc<StatusSet>,
}

/// What is to be answered at the health check node port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthPort {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its endpoints on this node that are ready.
    pub local_endpoints: usize,
}

/// What this node should have, given what users declared and what the node observes.
pub fn desired(declared: &Declared, observed: &Observed) -> Desired {
    Draft::new(declared, observed).finish(&observed.installed)
}

/// What the datapath, the checks and the speaker's sessions should be; routes and statuses wait for what becomes
/// installed of it.
pub struct Draft<'a> {
    declared: &'a Declared,
    observed: &'a Observed,
    node: Node<'a>,
    given: Arc<memory::Given>,
    blocks: BlockAssignments,
    services: Services,
    /// The sources that are others than before, while all else is the same; none: all may be.
    changed: Option<BTreeSet<usize>>,
    filters: filters::Filters<'a>,
    speaker: Result<Option<Speaker>, speaker::NoRouterId>,
    memory: Memory,
}

impl<'a> Draft<'a> {
    /// The first step.
    pub fn new(declared: &'a Declared, observed: &'a Observed) -> Self {
        Draft::of(Node::new(declared, observed), declared, observed, Memory::default())
    }

    /// The same with what the pass before came to, see [`Draft::finish_and_remember`].
    pub fn remembering(declared: &'a Arc<Declared>, observed: &'a Observed, memory: Memory) -> Self {
        Draft::of(Node::new(declared, observed), declared, observed, memory).kept(declared)
    }

    /// Remembers what it was made of.
    fn kept(mut self, declared: &Arc<Declared>) -> Self {
        self.memory.snapshot = Some(Arc::clone(declared));
        self
    }

    /// What the cluster as a whole has to know: no node, so nothing for a datapath.
    fn of_cluster(declared: &'a Declared, observed: &'a Observed, memory: Memory) -> Self {
        let node = Node { balances: false, ..Node::new(declared, observed) };
        Draft::of(node, declared, observed, memory)
    }

    fn of(node: Node<'a>, declared: &'a Declared, observed: &'a Observed, mut memory: Memory) -> Self {
        memory.enter(Context {
            policies: declared.policies.clone(),
            nodes: delivery::Nodes::new(declared, node.name),
            zone: node.labels.get(sources::ZONE).cloned(),
            balances: node.balances,
            addresses: observed.node.addresses.clone(),
            faults: observed.faults.clone(),
            links: spill::links(&declared.cluster_links),
        });
        let memory::Balance { mut services, given, changed } = memory.balance(declared, observed, &node);
        let blocks = pod_cidrs::assign(declared, observed);
        let mut filters = filters::Filters::new(declared, observed, &node);
        services.filter(std::mem::take(&mut filters.rules));
        let speaker = speaker::speaker(&node, &declared.secrets, observed, &services.in_effect);
        Draft { declared, observed, node, given, blocks, services, changed, filters, speaker, memory }
    }

    /// For the datapath.
    pub fn datapath(&self) -> &lb_bpf::service::Desired {
        &self.services.datapath
    }

    /// What is to be checked.
    pub fn targets(&self) -> &Targets {
        &self.services.targets
    }

    /// For the BGP speaker's sessions.
    pub fn speaker(&self) -> Option<&Speaker> {
        self.speaker.as_ref().ok().and_then(Option::as_ref)
    }

    /// The second step, with what the datapath holds by now.
    pub fn finish(self, installed: &Arc<Installed>) -> Desired {
        self.finish_and_remember(installed).0
    }

    /// The same, and what is remembered for the next pass.
    pub fn finish_and_remember(mut self, installed: &Arc<Installed>) -> (Desired, Memory) {
        let mut memory = std::mem::take(&mut self.memory);
        let ground = Ground {
            node: self.observed.node.clone(),
            established: self.observed.established.clone(),
            speaks: self.speaker.is_ok(),
        };
        let before = memory.outcome.take();
        // Of which sources the datapath holds something else, too, if nothing that counts for all has changed.
        let (held, changed, announcements, told) = match (self.changed.take(), before) {
            (Some(mut changed), Some(Outcome { ground: known, mut held, announcements, told }))
                if known == ground =>
            {
                changed.extend(held.renew(&self.services, installed));
                (held, Some(changed), Some(announcements), Some(told))
            }
            (_, before) => {
                let held = Held::new(&self.services, installed);
                (held, None, before.map(|before| before.announcements), None)
            }
        };
        let announcements = routes::announce(&self, &held, announcements, changed.as_ref());
        let told = told.zip(changed.as_ref());
        let (status, told) =
            status::status(&self, &held, &installed.filters, &announcements, &mut memory.said, told);
        let desired = Desired {
            datapath: Arc::clone(&self.services.datapath),
            targets: Arc::clone(&self.services.targets),
            speaker: self.speaker.unwrap_or_default(),
            routes: Arc::clone(&announcements.routes),
            next_expiry: self.filters.next_expiry,
            health_ports: self.services.health_ports.clone(),
            status: Arc::new(status),
        };
        memory.outcome = Some(Outcome { ground, held, announcements, told });
        memory.services = Some(self.services);
        (desired, memory)
    }
}

/// This node and what is declared for it.
struct Node<'a> {
    name: &'a str,
    labels: BTreeMap<String, String>,
    /// The router that selects it, with its name.
    router: Option<(&'a str, &'a BGPRouter)>,
    /// Its peers, with their names; of several with one address, interface or range the first by name.
    peers: BTreeMap<PeerId, (&'a str, &'a BGPPeer)>,
    /// Established sessions of its peers; of a range those of all its members.
    established: BTreeMap<PeerId, usize>,
    /// Whether it balances: a router selects it, or there are no routers at all.
    balances: bool,
    /// Whether load balancers are not to use it.
    is_excluded: bool,
}

impl<'a> Node<'a> {
    fn new(declared: &'a Declared, observed: &'a Observed) -> Self {
        let name = &observed.node.name;
        let own = declared.nodes.get(name);
        let mut labels = own.map_or_else(BTreeMap::new, |n| labels(&n.metadata).clone());
        labels.insert("kubernetes.io/hostname".to_owned(), name.clone());
        let router = declared.routers.iter().find(|(_, router)| router.spec.node_selector.matches(&labels));
        let mut peers = BTreeMap::new();
        if let Some((_, router)) = router {
            for (name, peer) in &declared.peers {
                let selected = router.spec.peer_selector.matches(self::labels(&peer.metadata));
                if let Some(id) = peer_id(peer, &observed.node).filter(|_| selected) {
                    peers.entry(id).or_insert((name.as_str(), &**peer));
                }
            }
        }
        let mut established = BTreeMap::new();
        for session in &observed.established {
            if let Some((id, _)) = peer_of(&peers, *session) {
                *established.entry(*id).or_default() += 1;
            }
        }
        let balances = router.is_some() || declared.routers.is_empty();
        let router = router.map(|(name, router)| (name.as_str(), &**router));
        Node {
            name,
            labels,
            router,
            peers,
            established,
            balances,
            is_excluded: own.is_some_and(|node| is_excluded(node)),
        }
    }
}

/// The peer whose session this is: the one that is known by the same, or else by the longest range that has its address.
pub(crate) fn peer_of<T>(peers: &BTreeMap<PeerId, T>, session: PeerId) -> Option<(&PeerId, &T)> {
    let range = |peer: &PeerId| match (peer, session) {
        (PeerId::Range(prefix), PeerId::Address(address)) => {
            prefix.contains(&address).then_some(prefix.prefix_len())
        }
        _ => None,
    };
    let longest = || {
        peers.iter().filter_map(|(id, peer)| Some((range(id)?, (id, peer)))).max_by_key(|(length, _)| *length)
    };
    peers.get_key_value(&session).or_else(|| longest().map(|(_, found)| found))
}

/// What a peer is known by: its interface, its range, or its address, which is declared or discovered by this node.
pub(crate) fn peer_id(peer: &BGPPeer, node: &NodeInfo) -> Option<PeerId> {
    if let Some(interface) = &peer.spec.interface {
        // Validation has refused what is no name.
        return interface.parse().ok().map(PeerId::Interface);
    }
    if let Some(range) = &peer.spec.range {
        return Some(PeerId::Range(range.prefix.0));
    }
    let discovered = match peer.spec.discover {
        Some(Discover::DefaultGateway) => node.gateway,
        None => None,
    };
    peer.spec.address.map(|address| address.0).or(discovered).map(PeerId::Address)
}

/// The entries of a map, each with the value that the other map has for its key. Both maps are walked once: with
/// thousands of keys that are alike, a look-up for each would cost more than anything that is done with the values.
pub(crate) fn joined<'a, K: Ord + 'a, A: 'a, B: 'a>(
    map: impl IntoIterator<Item = (&'a K, &'a A)>,
    other: impl IntoIterator<Item = (&'a K, &'a B)>,
) -> impl Iterator<Item = (&'a K, &'a A, Option<&'a B>)> {
    let mut others = other.into_iter().peekable();
    map.into_iter().map(move |(key, value)| {
        while others.next_if(|(other, _)| *other < key).is_some() {}
        (key, value, others.next_if(|(other, _)| *other == key).map(|(_, value)| value))
    })
}

/// The conditions of an object, from those before.
fn conditions<'a>(
    draft: &Draft<'a>,
    before: Option<&'a Vec<Condition>>,
    generation: Option<i64>,
) -> Conditions<'a> {
    Conditions::new(before.map_or(&[], Vec::as_slice), generation, draft.observed.now)
}

static NO_LABELS: BTreeMap<String, String> = BTreeMap::new();

/// The labels of an object.
fn labels(metadata: &ObjectMeta) -> &BTreeMap<String, String> {
    metadata.labels.as_ref().unwrap_or(&NO_LABELS)
}
