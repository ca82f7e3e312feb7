//! The BGP speaker of this node: who it is and whom it talks to.
use super::Node;
use crate::{
    api::{
        BGPPeer, BGPPeerSpec, Community, PeerAsn, Prefix, Secret,
        bgp_peer::{Family, Import, SecretReference},
        bgp_router::RouterOverride,
        scalar::quoted,
    },
    by_name::ByName,
    observed::Observed,
};
use bgp_speaker::{
    Md5Key, PeerId,
    config::{self, Asn, BmpStation, ExportPolicy, Global, ImportFilter, PeerConfig, PeerRange, Timers},
};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// What the speaker is told about itself and its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Who it is.
    pub global: Global,
    /// Its neighbours.
    pub peers: Vec<PeerConfig>,
    /// Those that come by themselves.
    pub ranges: Vec<PeerRange>,
    /// Who is told what they tell, by address and port.
    pub stations: Vec<BmpStation>,
}

/// The router names no router ID, and the node has no IPv4 address to take one from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRouterId;

pub(super) fn speaker(
    node: &Node<'_>,
    secrets: &ByName<Secret>,
    observed: &Observed,
    vips: &[IpAddr],
) -> Result<Option<Speaker>, NoRouterId> {
    let Some((_, router)) = node.router else { return Ok(None) };
    let spec = &router.spec;
    let other = spec.overrides.iter().find(|other| other.node_selector.matches(&node.labels));
    let asn = Asn(other.and_then(|o| o.asn).unwrap_or(spec.asn).get());
    // Of the matching override, else of the router.
    fn pick<T>(other: Option<&RouterOverride>, field: fn(&RouterOverride) -> Option<T>) -> Option<T> {
        other.and_then(field)
    }
    let declared_id = pick(other, |o| o.router_id).or(spec.router_id).map(Ipv4Addr::from);
    let router_id = declared_id.or_else(|| default_router_id(node, observed, vips)).ok_or(NoRouterId)?;
    let port = pick(other, |o| o.listen_port).unwrap_or(spec.listen_port).get();
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let listen = any.into_iter().filter(|_| port != 0).map(|any| SocketAddr::new(any, port)).collect();
    // A session that is to be signed and cannot be is not made at all; validation has said why.
    let peer = |(id, (_, peer)): (&PeerId, &(&str, &BGPPeer))| {
        let key = |reference: &SecretReference| md5_key(secrets.get(&reference.name)?, &reference.key).ok();
        let md5 = match &peer.spec.auth {
            Some(auth) => Some(key(&auth.md5_secret_ref)?),
            None => None,
        };
        Some(peer_config(*id, peer, asn, md5))
    };
    let (mut peers, mut ranges) = (Vec::new(), Vec::new());
    for config in node.peers.iter() {
        let Some(peer) = peer(config) else { continue };
        let (_, (_, declared)) = config;
        match &declared.spec.range {
            Some(range) => ranges.push(PeerRange { prefix: range.prefix.0, limit: range.limit.get(), peer }),
            None => peers.push(peer),
        }
    }
    // Of several entries for a station the last counts.
    let stations: BTreeMap<SocketAddr, u32> = (spec.bmp.iter())
        .map(|bmp| (SocketAddr::new(bmp.address.0, bmp.port.get()), bmp.stats_seconds.get()))
        .collect();
    let stations = stations.into_iter();
    let stations = stations.map(|(station, stats_seconds)| BmpStation { station, stats_seconds }).collect();
    Ok(Some(Speaker { global: Global { asn, router_id, listen }, peers, ranges, stations }))
}

/// The key of a session in a Secret.
///
/// # Errors
/// Why there is none that can be used; the reason does not show it.
pub(crate) fn md5_key(secret: &Secret, key: &str) -> Result<Md5Key, String> {
    Md5Key::new(secret.get(key)?).map_err(|error| format!("the value of {} {error}", quoted(key)))
}

/// The node's own IPv4 address that is most like that of a peer, which is most likely one of the interface towards
/// it. VIPs are none of its own.
fn default_router_id(node: &Node<'_>, observed: &Observed, vips: &[IpAddr]) -> Option<Ipv4Addr> {
    let peers: Vec<_> = node.peers.keys().filter_map(address).filter_map(|address| v4(&address)).collect();
    let common = |own: Ipv4Addr| {
        let bits = |peer: &Ipv4Addr| (own.to_bits() ^ peer.to_bits()).leading_zeros();
        peers.iter().map(bits).max().unwrap_or(0)
    };
    let own = observed.node.addresses.iter().filter(|address| !vips.contains(address)).filter_map(v4);
    // Of equals the lowest.
    own.min_by_key(|address| (u32::MAX - common(*address), *address))
}

fn address(id: &PeerId) -> Option<IpAddr> {
    match id {
        PeerId::Address(address) => Some(*address),
        PeerId::Range(prefix) => Some(prefix.network()),
        PeerId::Interface(_) => None,
    }
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    }
}

fn peer_config(id: PeerId, peer: &BGPPeer, own: Asn, md5: Option<Md5Key>) -> PeerConfig {
    let spec = &peer.spec;
    let asn = match spec.asn {
        PeerAsn::Number(asn) => config::PeerAsn::Is(Asn(asn.get())),
        PeerAsn::Internal => config::PeerAsn::Is(own),
        PeerAsn::External => config::PeerAsn::External,
    };
    let (address, interface) = match id {
        PeerId::Address(address) => (address, None),
        PeerId::Range(prefix) => (prefix.network(), None),
        PeerId::Interface(interface) => (Ipv6Addr::UNSPECIFIED.into(), Some(interface)),
    };
    PeerConfig {
        address,
        interface,
        asn,
        port: spec.port.get(),
        passive: spec.passive,
        local_address: spec.local_address.map(IpAddr::from),
        timers: Timers {
            hold_seconds: spec.timers.hold_seconds.get(),
            keepalive_seconds: spec.timers.keepalive(),
            connect_retry_seconds: spec.timers.connect_retry_seconds.get(),
        },
        families: spec.families.iter().map(|family| (*family).into()).collect(),
        multihop_ttl: spec
            .ebgp_multihop
            .as_ref()
            .filter(|_| !asn.is_internal(own))
            .map(|multihop| multihop.ttl.get()),
        md5,
        ttl_security_hops: spec.ttl_security.as_ref().map(|security| security.hops.get()),
        max_prefixes: Some(spec.max_prefixes.get()),
        max_prefixes_restart_seconds: spec.max_prefixes_restart_seconds.get(),
        shutdown: spec.shutdown.clone(),
        accept: prefixes(&spec.import.accept),
        import: import_filter(&spec.import),
        install: spec.import.install,
        export_learned: spec.export.learned,
        export: spec.families.iter().map(|family| ((*family).into(), export_policy(spec, *family))).collect(),
        role: spec
            .role
            .as_ref()
            .filter(|_| !asn.is_internal(own))
            .map(|role| config::LocalRole { local: role.local.into(), strict: role.strict }),
        add_path: config::AddPath { send: spec.add_path.send, receive: spec.add_path.receive },
        graceful_restart: spec.graceful_restart.as_ref().map(|restart| restart.seconds.get()),
        long_lived_seconds: spec
            .graceful_restart
            .iter()
            .flat_map(|restart| {
                let seconds = |family: &Family| ((*family).into(), restart.long_lived_seconds(*family));
                spec.families.iter().map(seconds)
            })
            .collect(),
        bfd: spec.bfd.as_ref().map(|bfd| config::Bfd {
            min_tx_millis: bfd.min_tx_millis.get(),
            min_rx_millis: bfd.min_rx_millis.get(),
            multiplier: bfd.multiplier.get(),
        }),
    }
}

fn prefixes(declared: &[Prefix]) -> Vec<IpNet> {
    let any = [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())];
    let mut prefixes = Vec::new();
    for prefix in declared {
        match prefix {
            Prefix::Any => prefixes.extend(any),
            Prefix::Within(net) => prefixes.push(*net),
        }
    }
    prefixes
}

fn import_filter(import: &Import) -> ImportFilter {
    let (communities, large_communities) = by_kind(&import.communities);
    ImportFilter { deny: prefixes(&import.deny), communities, large_communities }
}

fn export_policy(spec: &BGPPeerSpec, family: Family) -> ExportPolicy {
    let told = spec.export.of(family);
    let (communities, large_communities) = by_kind(told.communities.as_deref().unwrap_or_default());
    ExportPolicy {
        next_hop_self: told.next_hop_self.unwrap_or_default(),
        graceful_shutdown: spec.graceful_shutdown,
        prepend: told.prepend.unwrap_or_default().get(),
        med: told.med.map(u32::from),
        local_pref: told.local_pref.map(u32::from),
        communities,
        large_communities,
    }
}

/// Standard and large communities.
pub(super) fn by_kind(declared: &[Community]) -> (BTreeSet<u32>, BTreeSet<(u32, u32, u32)>) {
    let (mut standard, mut large) = (BTreeSet::new(), BTreeSet::new());
    for community in declared {
        match *community {
            Community::Standard(value) => drop(standard.insert(value)),
            Community::Large(global, first, second) => drop(large.insert((global, first, second))),
        }
    }
    (standard, large)
}
