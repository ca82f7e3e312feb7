//! The BGP speaker of this node: who it is and whom it talks to.
use super::Node;
use crate::{
    api::{BGPPeer, PeerAsn, Prefix, bgp_router::RouterOverride},
    observed::Observed,
};
use bgp_speaker::config::{self, Asn, Global, PeerConfig, Timers};
use ipnet::IpNet;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// What the speaker is told about itself and its sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Speaker {
    /// Who it is.
    pub global: Global,
    /// Its neighbours, by address.
    pub peers: Vec<PeerConfig>,
}

/// The router names no router ID, and the node has no IPv4 address to take one from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoRouterId;

pub(super) fn speaker(
    node: &Node<'_>,
    observed: &Observed,
    datapath: &lb_bpf::service::Desired,
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
    let router_id = declared_id.or_else(|| default_router_id(node, observed, datapath)).ok_or(NoRouterId)?;
    let port = pick(other, |o| o.listen_port).unwrap_or(spec.listen_port).get();
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    let listen = any.into_iter().filter(|_| port != 0).map(|any| SocketAddr::new(any, port)).collect();
    let peers = node.peers.iter().map(|(address, (_, peer))| peer_config(*address, peer, asn)).collect();
    Ok(Some(Speaker { global: Global { asn, router_id, listen }, peers }))
}

/// The node's own IPv4 address that is most like that of a peer, which is most likely one of the interface towards
/// it. VIPs are none of its own.
fn default_router_id(
    node: &Node<'_>,
    observed: &Observed,
    datapath: &lb_bpf::service::Desired,
) -> Option<Ipv4Addr> {
    let frontends = datapath.services.values().flat_map(|service| &service.frontends).map(|f| f.address);
    let local = datapath.decap.iter().map(|d| d.vip).chain(datapath.local_vips.iter().copied());
    let vips: BTreeSet<IpAddr> = frontends.chain(local).collect();
    let peers: Vec<_> = node.peers.keys().filter_map(v4).collect();
    let common = |own: Ipv4Addr| {
        let bits = |peer: &Ipv4Addr| (own.to_bits() ^ peer.to_bits()).leading_zeros();
        peers.iter().map(bits).max().unwrap_or(0)
    };
    let own = observed.node.addresses.iter().filter(|address| !vips.contains(address)).filter_map(v4);
    // Of equals the lowest.
    own.min_by_key(|address| (u32::MAX - common(*address), *address))
}

fn v4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(v4) => Some(*v4),
        IpAddr::V6(_) => None,
    }
}

fn peer_config(address: IpAddr, peer: &BGPPeer, own: Asn) -> PeerConfig {
    let spec = &peer.spec;
    let any = [IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())];
    let mut accept = Vec::new();
    for prefix in &spec.import.accept {
        match prefix {
            Prefix::Any => accept.extend(any),
            Prefix::Within(net) => accept.push(*net),
        }
    }
    let asn = match spec.asn {
        PeerAsn::Number(asn) => config::PeerAsn::Is(Asn(asn.get())),
        PeerAsn::Internal => config::PeerAsn::Is(own),
        PeerAsn::External => config::PeerAsn::External,
    };
    PeerConfig {
        address,
        asn,
        port: spec.port.get(),
        local_address: None,
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
        max_prefixes: Some(spec.max_prefixes.get()),
        accept,
        export_learned: false,
        bfd: spec.bfd.as_ref().map(|bfd| config::Bfd {
            min_tx_millis: bfd.min_tx_millis.get(),
            min_rx_millis: bfd.min_rx_millis.get(),
            multiplier: bfd.multiplier.get(),
        }),
    }
}
