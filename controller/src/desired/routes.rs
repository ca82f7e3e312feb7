//! Routes: which addresses are announced, to whom, with which attributes, and why the others are not.
//!
//! An address is announced while at least one service behind it is installed, can reach a backend, and has as many
//! healthy backends as the advertisement asks for. If a Service behind it uses endpoints of this node only, and has them on
//! others only, the others announce it, and this node does not: what came here for that Service would be lost. A Service
//! that is served nowhere keeps nobody from the address. Two advertisements that announce the same prefix to a peer are
//! merged for it: all communities of both, the highest LOCAL_PREF, the lowest MED, the fewest prepends, link bandwidth if one has it (a value that
//! neither names stays unset): an advertisement added never makes a route less attractive.
use super::{
    Draft, NO_LABELS, labels, pod_cidrs,
    services::{Balanced, Held},
    speaker::by_kind,
};
use crate::api::{
    BGPAdvertisement, BGPPeer,
    bgp_advertisement::{LinkBandwidth, Source},
    bgp_peer,
    node::EXCLUDED,
};
use bgp_speaker::{
    PeerId,
    config::{Route, RouteAttributes},
};
use ipam::Family;
use ipnet::IpNet;
use lb_bpf::service::Scope;
use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

/// Link bandwidth, octets per second, of a weight of 1: routers show it as 1 Mbit/s.
const BANDWIDTH_OF_WEIGHT: u64 = 125_000;

/// Why an address is not announced by this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NotAnnounced {
    /// There is no BGPRouter.
    NoRouter,
    /// BGPRouters there are, but none selects this node.
    NodeNotSelected,
    /// The speaker cannot run without a router ID.
    NoRouterId,
    /// The node has the label that load balancers are not to use it.
    NodeExcluded,
    /// No BGPAdvertisement selects the service, its pool and this node.
    NoAdvertisement,
    /// The advertisements that do select no peer of this node.
    NoPeer,
    /// The datapath does not hold it yet.
    NotInstalled,
    /// A Service that shares it has its endpoints on other nodes, and uses them only there.
    LocalElsewhere,
    /// The datapath knows no next hop for any of its backends.
    NoNextHop,
    /// No backend is healthy.
    NoHealthyBackend,
    /// Some are, but fewer than `minHealthy`.
    TooFewHealthy {
        /// Healthy backends that have a weight.
        healthy: u32,
        /// The lowest `minHealthy` of the advertisements.
        needed: u32,
    },
}

impl NotAnnounced {
    /// The reason as one CamelCase word.
    pub const fn reason(self) -> &'static str {
        match self {
            NotAnnounced::NoRouter => "NoRouter",
            NotAnnounced::NodeNotSelected => "NodeNotSelected",
            NotAnnounced::NoRouterId => "NoRouterID",
            NotAnnounced::NodeExcluded => "NodeExcluded",
            NotAnnounced::NoAdvertisement => "NoAdvertisement",
            NotAnnounced::NoPeer => "NoPeer",
            NotAnnounced::NotInstalled => "NotInstalled",
            NotAnnounced::LocalElsewhere => "LocalElsewhere",
            NotAnnounced::NoNextHop => "NoNextHop",
            NotAnnounced::NoHealthyBackend => "NoHealthyBackend",
            NotAnnounced::TooFewHealthy { .. } => "TooFewHealthy",
        }
    }
}

impl fmt::Display for NotAnnounced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotAnnounced::NoRouter => f.write_str("there is no BGPRouter"),
            NotAnnounced::NodeNotSelected => f.write_str("no BGPRouter selects this node"),
            NotAnnounced::NoRouterId => f.write_str("the BGP speaker has no router ID"),
            NotAnnounced::NodeExcluded => write!(f, "this node has the label {EXCLUDED}"),
            NotAnnounced::NoAdvertisement => f.write_str("no BGPAdvertisement selects it on this node"),
            NotAnnounced::NoPeer => f.write_str("its BGPAdvertisements select no peer of this node"),
            NotAnnounced::NotInstalled => f.write_str("the datapath does not hold it yet"),
            NotAnnounced::LocalElsewhere => {
                f.write_str("a Service that shares it uses local endpoints only, and they are on other nodes")
            }
            NotAnnounced::NoNextHop => f.write_str("no backend has a next hop"),
            NotAnnounced::NoHealthyBackend => f.write_str("no backend is healthy"),
            NotAnnounced::TooFewHealthy { healthy, needed } => {
                write!(f, "healthy backends: {healthy}, needed: {needed}")
            }
        }
    }
}

/// What is announced, and how it came to that.
#[derive(Debug)]
pub(super) struct Announcements {
    pub(super) routes: Arc<Vec<Route>>,
    /// By source, in their order.
    pub(super) voices: Vec<Voice>,
    /// By the name of the advertisement.
    pub(super) advertisements: BTreeMap<String, Advertised>,
    blocks: Voice,
    /// Addresses that other nodes serve better.
    elsewhere: BTreeSet<IpAddr>,
}

/// What is announced of a source, or of this node's pod CIDRs. Advertisements are indices of the rules.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Voice {
    /// By address in effect, in their order.
    pub(super) outcomes: Vec<Result<Announced, NotAnnounced>>,
    /// With the advertisement, and the weight of what stands behind it.
    prefixes: Vec<(IpNet, usize, u64)>,
    /// Advertisements that select something that is held back.
    withheld: Vec<usize>,
}

/// An announced address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Announced {
    /// Peers that may hear of it.
    pub(super) peers: usize,
    /// Those of them whose session is established.
    pub(super) established: usize,
}

/// What became of an advertisement.
#[derive(Clone, Debug, Default)]
pub(super) struct Advertised {
    /// Prefixes.
    pub(super) announced: u32,
    /// Addresses that it selects and that are held back.
    pub(super) withheld: u32,
}

/// What is announced. `changed`: the sources that are to be looked at, while nothing else is another than it was for
/// `before`; none: all are.
pub(super) fn announce(
    draft: &Draft<'_>,
    held: &Held,
    before: Option<Announcements>,
    changed: Option<&BTreeSet<usize>>,
) -> Announcements {
    let rules = Rule::all(draft);
    let blocks = announce_blocks(draft, &rules);
    let all = &draft.services.all;
    // One that is served here only may free its address for others, or take it from them.
    let is_plain = |changed: &&BTreeSet<usize>| changed.iter().all(|at| !all[*at].source.local_only);
    let (voices, elsewhere, known) = match (before, changed.filter(is_plain)) {
        (Some(mut before), Some(changed)) => {
            let mut is_same = before.blocks == blocks;
            for at in changed {
                let voice = Voice::new(draft, &rules, &before.elsewhere, &all[*at], held);
                is_same &= voice == before.voices[*at];
                before.voices[*at] = voice;
            }
            if is_same {
                return before;
            }
            (before.voices, before.elsewhere, Some(before.routes))
        }
        (before, _) => {
            let elsewhere = local_elsewhere(draft, held);
            let voice = |balanced| Voice::new(draft, &rules, &elsewhere, balanced, held);
            (all.iter().map(voice).collect(), elsewhere, before.map(|before| before.routes))
        }
    };
    let (routes, advertisements) = routes(draft, &rules, voices.iter().chain([&blocks]));
    // Who has them already sees at once that they are the same.
    let routes = known.filter(|known| **known == routes).unwrap_or_else(|| Arc::new(routes));
    Announcements { routes, voices, advertisements, blocks, elsewhere }
}

impl Voice {
    fn new(
        draft: &Draft<'_>,
        rules: &[Rule<'_>],
        elsewhere: &BTreeSet<IpAddr>,
        balanced: &Balanced,
        held: &Held,
    ) -> Self {
        let mut voice = Voice::default();
        let selecting: Vec<_> = rules.iter().enumerate().filter(|(_, rule)| rule.selects(balanced)).collect();
        for address in &balanced.addresses {
            let outcome = voice.announce(draft, &selecting, elsewhere, balanced, *address, held);
            voice.outcomes.push(outcome);
        }
        voice
    }

    fn announce(
        &mut self,
        draft: &Draft<'_>,
        selecting: &[(usize, &Rule<'_>)],
        elsewhere: &BTreeSet<IpAddr>,
        balanced: &Balanced,
        address: IpAddr,
        held: &Held,
    ) -> Result<Announced, NotAnnounced> {
        if draft.node.router.is_none() {
            let declared = !draft.declared.routers.is_empty();
            return Err(if declared { NotAnnounced::NodeNotSelected } else { NotAnnounced::NoRouter });
        }
        if draft.speaker.is_err() {
            return Err(NotAnnounced::NoRouterId);
        }
        if draft.node.is_excluded {
            return Err(NotAnnounced::NodeExcluded);
        }
        let pool = balanced.assignment.addresses.get(address).and_then(|given| given.pool.as_ref());
        let pool = pool.and_then(|pool| draft.declared.pools.get(&**pool));
        let pool_labels = pool.map_or(&NO_LABELS, |pool| labels(&pool.metadata));
        let serving = Serving::of(balanced, address, held);
        let mut refusal = NotAnnounced::NoAdvertisement;
        let mut peers: Cow<'_, BTreeSet<PeerId>> = Cow::Owned(BTreeSet::new());
        for (index, rule) in selecting {
            if !rule.advertisement.spec.pool_selector.matches(pool_labels) {
                continue;
            }
            let hearing = &rule.hearing[Family::of(address) as usize];
            if hearing.is_empty() {
                refusal = refusal.max(NotAnnounced::NoPeer);
                continue;
            }
            // A node that uses only its own must have one.
            let least = u32::from(balanced.source.local_only);
            let verdict = serving.meets(rule.advertisement.spec.min_healthy.get().max(least));
            let is_free = !elsewhere.contains(&address);
            match verdict.and_then(|()| is_free.then_some(()).ok_or(NotAnnounced::LocalElsewhere)) {
                Ok(()) => {
                    self.prefixes.push((rule.prefix(address.into()), *index, serving.weight));
                    match peers.is_empty() {
                        true => peers = Cow::Borrowed(hearing),
                        false => peers.to_mut().extend(hearing),
                    }
                }
                Err(reason) => {
                    self.withheld.push(*index);
                    refusal = reason.closest(refusal);
                }
            }
        }
        if peers.is_empty() {
            return Err(refusal);
        }
        let established = peers.iter().filter(|peer| draft.node.established.contains_key(peer)).count();
        Ok(Announced { peers: peers.len(), established })
    }
}

/// The routes of all, and what became of the advertisements.
fn routes<'a>(
    draft: &Draft<'_>,
    rules: &[Rule<'_>],
    voices: impl Iterator<Item = &'a Voice>,
) -> (Vec<Route>, BTreeMap<String, Advertised>) {
    let mut advertisements: Vec<Advertised> = vec![Advertised::default(); rules.len()];
    let mut prefixes = Vec::new();
    for voice in voices {
        prefixes.extend_from_slice(&voice.prefixes);
        voice.withheld.iter().for_each(|rule| advertisements[*rule].withheld += 1);
    }
    let mut merged = Merged { rules, all: draft.node.peers.len(), known: BTreeMap::new() };
    prefixes.sort_unstable();
    let mut routes = Vec::with_capacity(prefixes.len());
    for chunk in prefixes.chunk_by(|(one, ..), (other, ..)| one == other) {
        let prefix = chunk[0].0;
        let weight = chunk.iter().map(|(.., weight)| *weight).max();
        let mut set: Vec<_> = chunk.iter().map(|(_, rule, _)| *rule).collect();
        set.dedup();
        set.iter().for_each(|rule| advertisements[*rule].announced += 1);
        routes.extend(merged.of(set).iter().map(|(attributes, peers)| Route {
            prefix,
            attributes: RouteAttributes {
                link_bandwidth:
                    attributes.link_bandwidth.and(weight).map(|weight| weight * BANDWIDTH_OF_WEIGHT),
                ..attributes.clone()
            },
            peers: peers.clone(),
        }));
    }
    let names = rules.iter().map(|rule| rule.name.to_owned());
    (routes, names.zip(advertisements).collect())
}

/// Addresses that other nodes serve better: of Services that use local endpoints only, and have them there.
fn local_elsewhere(draft: &Draft<'_>, held: &Held) -> BTreeSet<IpAddr> {
    let local = draft.services.all.iter().filter(|b| b.source.local_only && b.source.is_served);
    let addresses = local.flat_map(|balanced| {
        // What is not installed is so perhaps everywhere: it takes the address from nobody.
        let is_elsewhere = |address: &&IpAddr| {
            let verdict = Serving::of(balanced, **address, held).meets(1);
            verdict.is_err_and(|reason| reason != NotAnnounced::NotInstalled)
        };
        balanced.addresses.iter().filter(is_elsewhere)
    });
    addresses.copied().collect()
}

/// The pod CIDRs of this node.
fn announce_blocks(draft: &Draft<'_>, rules: &[Rule<'_>]) -> Voice {
    let mut voice = Voice::default();
    let speaks = draft.node.router.is_some() && draft.speaker.is_ok();
    for (net, pool) in pod_cidrs::effective(draft.declared, &draft.node, &draft.blocks).filter(|_| speaks) {
        let pool = pool.and_then(|pool| draft.declared.pools.get(&**pool));
        let pool_labels = pool.map_or(&NO_LABELS, |pool| labels(&pool.metadata));
        for (index, rule) in rules.iter().enumerate() {
            let spec = &rule.advertisement.spec;
            if spec.source != Source::PodCIDR || !spec.pool_selector.matches(pool_labels) {
                continue;
            }
            match rule.hearing[Family::of(net.addr()) as usize].is_empty() {
                true => voice.withheld.push(index),
                false => voice.prefixes.push((rule.prefix(net), index, 0)),
            }
        }
    }
    voice
}

impl NotAnnounced {
    /// Of the refusals by two advertisements the one that comes closest to an announcement.
    fn closest(self, other: NotAnnounced) -> NotAnnounced {
        match (self, other) {
            (
                NotAnnounced::TooFewHealthy { healthy, needed },
                NotAnnounced::TooFewHealthy { needed: other, .. },
            ) => NotAnnounced::TooFewHealthy { healthy, needed: needed.min(other) },
            _ => self.max(other),
        }
    }
}

/// What stands behind an address.
#[derive(Default)]
struct Serving {
    installed: bool,
    /// Most healthy backends of a service of it.
    healthy: u32,
    /// Most healthy backends of a service that can reach its backends.
    reachable: u32,
    /// Highest weight of the healthy backends of a service.
    weight: u64,
}

impl Serving {
    fn of(balanced: &Balanced, address: IpAddr, held: &Held) -> Self {
        let mut serving = Serving::default();
        let of_clients = balanced.services(held).filter(|(port, _)| port.scope == Scope::All);
        for (port, held) in of_clients.filter(|(port, _)| port.family == Family::of(address)) {
            let Some(held) = held else { continue };
            if held.frontends.iter().any(|frontend| frontend.address == address) {
                serving.installed = true;
                serving.healthy = serving.healthy.max(port.serving);
                serving.weight = serving.weight.max(port.weight);
                serving.reachable = serving.reachable.max(if held.resolved { port.serving } else { 0 });
            }
        }
        serving
    }

    fn meets(&self, needed: u32) -> Result<(), NotAnnounced> {
        match *self {
            Serving { installed: false, .. } => Err(NotAnnounced::NotInstalled),
            _ if needed == 0 => Ok(()),
            Serving { healthy: 0, .. } => Err(NotAnnounced::NoHealthyBackend),
            Serving { reachable: 0, .. } => Err(NotAnnounced::NoNextHop),
            Serving { reachable: healthy, .. } if healthy < needed => {
                Err(NotAnnounced::TooFewHealthy { healthy, needed })
            }
            _ => Ok(()),
        }
    }
}

/// An advertisement that applies to this node.
struct Rule<'a> {
    name: &'a str,
    advertisement: &'a BGPAdvertisement,
    attributes: RouteAttributes,
    /// Peers that it selects.
    peers: BTreeSet<PeerId>,
    /// Those of them that take routes of the family, by [`Family`].
    hearing: [BTreeSet<PeerId>; 2],
}

impl<'a> Rule<'a> {
    fn all(draft: &Draft<'a>) -> Vec<Self> {
        let applies =
            |advertisement: &BGPAdvertisement| advertisement.spec.node_selector.matches(&draft.node.labels);
        let rule = |(name, advertisement): (&'a String, &'a Arc<BGPAdvertisement>)| {
            let selects = |peer: &BGPPeer| advertisement.spec.peer_selector.matches(labels(&peer.metadata));
            let peers = draft.node.peers.iter().filter(|(_, (_, peer))| selects(peer));
            let hearing = Family::ALL.map(|wanted| {
                let takes = |peer: &BGPPeer| peer.spec.families.iter().any(|f| family(*f) == wanted);
                peers.clone().filter(|(_, (_, peer))| takes(peer)).map(|(id, _)| *id).collect()
            });
            Rule {
                name,
                advertisement,
                attributes: attributes(advertisement),
                peers: peers.map(|(id, _)| *id).collect(),
                hearing,
            }
        };
        draft.declared.advertisements.iter().filter(|(_, a)| applies(a)).map(rule).collect()
    }

    fn selects(&self, balanced: &Balanced) -> bool {
        let spec = &self.advertisement.spec;
        spec.source == Source::LoadBalancer && spec.service_selector.matches(balanced.source.labels())
    }

    /// What is announced of a prefix: it, or the aggregate that has it.
    fn prefix(&self, net: IpNet) -> IpNet {
        let aggregate = self.advertisement.spec.aggregate.as_ref();
        let length = match net {
            IpNet::V4(_) => aggregate.and_then(|a| a.ipv4).map(|length| length.get()),
            IpNet::V6(_) => aggregate.and_then(|a| a.ipv6).map(|length| length.get()),
        };
        let length = length.map_or(net.prefix_len(), |length| length.min(net.prefix_len()));
        // No longer than the prefix itself.
        IpNet::new(net.addr(), length).map_or(net, |net| net.trunc())
    }
}

fn attributes(advertisement: &BGPAdvertisement) -> RouteAttributes {
    let declared = &advertisement.spec.attributes;
    let (communities, large_communities) = by_kind(&declared.communities);
    RouteAttributes {
        communities,
        large_communities,
        local_pref: declared.local_pref.map(u32::from),
        med: declared.med.map(u32::from),
        prepend: declared.prepend.get(),
        // How much is a matter of the prefix.
        link_bandwidth: declared.link_bandwidth.map(|LinkBandwidth::ByHealthyWeight| 0),
        ..RouteAttributes::default()
    }
}

fn merge(mut a: RouteAttributes, b: &RouteAttributes) -> RouteAttributes {
    a.communities.extend(&b.communities);
    a.large_communities.extend(&b.large_communities);
    a.local_pref = a.local_pref.max(b.local_pref);
    a.med = [a.med, b.med].into_iter().flatten().min();
    a.prepend = a.prepend.min(b.prepend);
    a.link_bandwidth = a.link_bandwidth.or(b.link_bandwidth);
    a
}

type Parts = Vec<(RouteAttributes, Option<BTreeSet<PeerId>>)>;

/// Attributes of sets of advertisements, each computed once: many prefixes have the same set.
struct Merged<'a> {
    rules: &'a [Rule<'a>],
    /// Number of the node's peers.
    all: usize,
    known: BTreeMap<Vec<usize>, Parts>,
}

impl Merged<'_> {
    /// Attributes, and the peers that they are for; none: all peers.
    fn of(&mut self, set: Vec<usize>) -> &Parts {
        let (rules, all) = (self.rules, self.all);
        self.known.entry(set).or_insert_with_key(|set| {
            let mut by_peer: BTreeMap<PeerId, RouteAttributes> = BTreeMap::new();
            for rule in set.iter().map(|index| &rules[*index]) {
                for peer in &rule.peers {
                    by_peer
                        .entry(*peer)
                        .and_modify(|merged| *merged = merge(std::mem::take(merged), &rule.attributes))
                        .or_insert_with(|| rule.attributes.clone());
                }
            }
            let mut parts: BTreeMap<RouteAttributes, BTreeSet<PeerId>> = BTreeMap::new();
            for (peer, attributes) in by_peer {
                parts.entry(attributes).or_default().insert(peer);
            }
            parts
                .into_iter()
                .map(|(attributes, peers)| (attributes, (peers.len() < all).then_some(peers)))
                .collect()
        })
    }
}

fn family(family: bgp_peer::Family) -> Family {
    match family {
        bgp_peer::Family::Ipv4Unicast => Family::Ipv4,
        bgp_peer::Family::Ipv6Unicast => Family::Ipv6,
    }
}
