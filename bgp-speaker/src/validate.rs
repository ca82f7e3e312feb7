//! Whether a configuration makes sense, before anything of it takes effect.
use crate::config::{Asn, ConfigError, Global, PeerConfig, Route};
use ipnet::IpNet;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

/// More peers than this are refused.
const MAX_PEERS: usize = 10_000;
/// Longest additional prepending.
const MAX_PREPEND: u8 = 16;

/// The speaker itself.
pub(crate) fn global(global: &Global) -> Result<(), ConfigError> {
    let error = |field, reason: &str| Err(ConfigError::new("global", field, reason));
    if global.asn == Asn(0) {
        return error("asn", "0 is reserved (RFC 7607)");
    }
    if !is_router_id(global.router_id) {
        return error("router id", "must not be 0.0.0.0 (RFC 6286)");
    }
    Ok(())
}

/// The whole set of neighbours.
pub(crate) fn peers(peers: &[PeerConfig], global: Option<&Global>) -> Result<(), ConfigError> {
    if peers.len() > MAX_PEERS {
        return Err(ConfigError::new("peers", "number", format!("more than {MAX_PEERS}")));
    }
    let mut addresses = BTreeSet::new();
    for config in peers {
        peer(config, global)?;
        if !addresses.insert(config.address) {
            return Err(ConfigError::new(
                format!("peer {}", config.address),
                "address",
                "is there more than once",
            ));
        }
    }
    Ok(())
}

fn peer(peer: &PeerConfig, global: Option<&Global>) -> Result<(), ConfigError> {
    let error = |field, reason: &str| Err(ConfigError::new(format!("peer {}", peer.address), field, reason));
    if !is_unicast(peer.address) {
        return error("address", "is no unicast address");
    }
    if peer.asn == Asn(0) {
        return error("asn", "0 is reserved (RFC 7607)");
    }
    if peer.port == 0 {
        return error("port", "must be 1 to 65535");
    }
    if let Some(local) = peer.local_address {
        if !is_unicast(local) {
            return error("localAddress", "is no unicast address");
        }
        if local.is_ipv4() != peer.address.is_ipv4() {
            return error("localAddress", "is of another family than the address of the peer");
        }
        if local == peer.address {
            return error("localAddress", "is the address of the peer");
        }
    }
    if peer.families.is_empty() {
        return error("families", "is empty: name at least one");
    }
    let timers = peer.timers;
    if matches!(timers.hold_seconds, 1 | 2) {
        return error("timers.holdSeconds", "must be 0 or at least 3 (RFC 4271 section 4.2)");
    }
    if timers.hold_seconds > 0 && timers.keepalive_seconds == 0 {
        return error("timers.keepaliveSeconds", "must be at least 1 where there is a hold time");
    }
    if timers.connect_retry_seconds == 0 {
        return error("timers.connectRetrySeconds", "must be at least 1");
    }
    if peer.multihop_ttl == Some(0) {
        return error("ebgpMultihop.ttl", "must be 1 to 255");
    }
    if peer.multihop_ttl.is_some() && global.is_some_and(|global| global.asn == peer.asn) {
        return error("ebgpMultihop", "is for external peers only");
    }
    for entry in &peer.accept {
        if let Some(reason) = host_bits(entry) {
            return error("import.accept", &reason);
        }
    }
    Ok(())
}

/// The whole set of own routes.
pub(crate) fn routes(routes: &[Route]) -> Result<(), ConfigError> {
    let mut told: BTreeMap<IpNet, Vec<&Route>> = BTreeMap::new();
    for route in routes {
        let error =
            |field, reason: &str| Err(ConfigError::new(format!("route {}", route.prefix), field, reason));
        if let Some(reason) = host_bits(&route.prefix) {
            return error("prefix", &reason);
        }
        if let Some(next_hop) = route.attributes.next_hop {
            if !is_unicast(next_hop) {
                return error("nextHop", "is no unicast address");
            }
            if next_hop.is_ipv4() != matches!(route.prefix, IpNet::V4(_)) {
                return error("nextHop", "is of another family than the prefix");
            }
        }
        if route.attributes.prepend > MAX_PREPEND {
            return error("prepend", "must be 0 to 16");
        }
        let others = told.entry(route.prefix).or_default();
        let same = |other: &&Route| match (&route.peers, &other.peers) {
            (None, None) => true,
            (Some(one), Some(other)) => !one.is_disjoint(other),
            _ => false,
        };
        if others.iter().any(same) {
            return error("peers", "the same peer would hear of the prefix twice");
        }
        others.push(route);
    }
    Ok(())
}

fn host_bits(net: &IpNet) -> Option<String> {
    (net.trunc() != *net).then(|| format!("{net} has host bits set; {} has not", net.trunc()))
}

fn is_router_id(id: Ipv4Addr) -> bool {
    !id.is_unspecified()
}

fn is_unicast(address: IpAddr) -> bool {
    let broadcast = matches!(address, IpAddr::V4(address) if address.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || broadcast)
}
