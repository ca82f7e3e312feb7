//! Whether a configuration makes sense, before anything of it takes effect.
use crate::{
    config::{Asn, BmpStation, ConfigError, Global, PeerAsn, PeerConfig, PeerRange, Route},
    wire::{MAX_LONG_LIVED_SECONDS, MAX_RESTART_SECONDS},
};
use ipnet::IpNet;
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
};

/// More stations than this are refused: each hears everything.
const MAX_STATIONS: usize = 16;
/// Longest time between statistics, seconds.
const MAX_STATS_SECONDS: u32 = 86_400;
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
    let mut ids = BTreeSet::new();
    for config in peers {
        peer(config, global)?;
        if !ids.insert(config.id()) {
            return Err(ConfigError::new(
                format!("peer {}", config.id()),
                "address",
                "is there more than once",
            ));
        }
    }
    Ok(())
}

/// The whole set of ranges.
pub(crate) fn stations(stations: &[BmpStation]) -> Result<(), ConfigError> {
    let mut addresses = BTreeSet::new();
    for BmpStation { station, stats_seconds } in stations {
        let error = |field, reason: &str| Err(ConfigError::new(format!("station {station}"), field, reason));
        if station.port() == 0 || station.ip().is_unspecified() || station.ip().is_multicast() {
            return error("station", "is nothing that can be dialled");
        }
        if *stats_seconds > MAX_STATS_SECONDS {
            return error("statsSeconds", "must be 0 to 86400");
        }
        if !addresses.insert(station) {
            return error("station", "is there more than once");
        }
        if addresses.len() > MAX_STATIONS {
            return error("station", "is one of more than 16");
        }
    }
    Ok(())
}

pub(crate) fn ranges(ranges: &[PeerRange], global: Option<&Global>) -> Result<(), ConfigError> {
    let mut prefixes = BTreeSet::new();
    for range in ranges {
        let error =
            |field, reason: &str| Err(ConfigError::new(format!("range {}", range.prefix), field, reason));
        if let Some(reason) = host_bits(&range.prefix) {
            return error("prefix", &reason);
        }
        if range.prefix.prefix_len() == 0 {
            return error("prefix", "is everybody");
        }
        if !(1..=MAX_PEERS).contains(&usize::from(range.limit)) {
            return error("limit", "must be 1 to 10000");
        }
        if !prefixes.insert(range.prefix) {
            return error("prefix", "is there more than once");
        }
        let named = PeerConfig { address: range.prefix.network(), ..range.peer.clone() };
        peer(&named, global)
            .map_err(|fault| ConfigError { object: format!("range {}", range.prefix), ..fault })?;
    }
    Ok(())
}

fn peer(peer: &PeerConfig, global: Option<&Global>) -> Result<(), ConfigError> {
    let error = |field, reason: &str| Err(ConfigError::new(format!("peer {}", peer.id()), field, reason));
    if peer.interface.is_some() {
        for (field, given) in [
            ("address", !peer.address.is_unspecified()),
            ("localAddress", peer.local_address.is_some()),
            ("ebgpMultihop", peer.multihop_ttl.is_some()),
            ("ttlSecurity", peer.ttl_security_hops.is_some_and(|hops| hops > 1)),
        ] {
            if given {
                return error(field, "has no sense with an interface: the neighbour is on the link");
            }
        }
        if peer.md5.is_some() {
            return error("auth", "has no sense with an interface: keys belong to addresses");
        }
    } else if !is_unicast(peer.address) {
        return error("address", "is no unicast address");
    }
    if peer.asn == PeerAsn::Is(Asn(0)) {
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
    if peer.shutdown.as_ref().is_some_and(|text| text.len() > 255) {
        return error("shutdown", "is longer than 255 octets (RFC 9003)");
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
    if peer.multihop_ttl.is_some() && global.is_some_and(|global| peer.asn.is_internal(global.asn)) {
        return error("ebgpMultihop", "is for external peers only");
    }
    if let Some(bfd) = peer.bfd {
        for (field, millis) in
            [("bfd.minTxMillis", bfd.min_tx_millis), ("bfd.minRxMillis", bfd.min_rx_millis)]
        {
            if !(10..=3_600_000).contains(&millis) {
                return error(field, "must be 10 to 3600000");
            }
        }
        if bfd.multiplier == 0 {
            return error("bfd.multiplier", "must be 1 to 255");
        }
    }
    if peer.ttl_security_hops.is_some_and(|hops| !(1..=254).contains(&hops)) {
        return error("ttlSecurity.hops", "must be 1 to 254");
    }
    if peer.ttl_security_hops.is_some() && peer.multihop_ttl.is_some() {
        return error("ttlSecurity", "and ebgpMultihop exclude each other");
    }
    for (field, list) in [("import.accept", &peer.accept), ("import.deny", &peer.import.deny)] {
        if let Some(reason) = list.iter().find_map(host_bits) {
            return error(field, &reason);
        }
    }
    if peer.export.values().any(|policy| policy.prepend > MAX_PREPEND) {
        return error("export.prepend", "must be 0 to 16");
    }
    if peer.role.is_some() && global.is_some_and(|global| peer.asn.is_internal(global.asn)) {
        return error("role", "is for external peers only (RFC 9234 section 4)");
    }
    if peer.graceful_restart.is_some_and(|seconds| seconds > MAX_RESTART_SECONDS) {
        return error("gracefulRestart.seconds", "must be 0 to 4095 (RFC 4724 section 3)");
    }
    if peer.long_lived_seconds.values().any(|seconds| *seconds > MAX_LONG_LIVED_SECONDS) {
        return error("gracefulRestart.longLivedSeconds", "must be 0 to 16777215 (RFC 9494 section 3.1)");
    }
    if peer.long_lived_seconds.values().any(|seconds| *seconds > 0) && peer.graceful_restart.is_none() {
        return error("gracefulRestart.longLivedSeconds", "counts beside gracefulRestart.seconds only");
    }
    Ok(())
}

/// The whole set of own routes.
pub(crate) fn routes(routes: &[Route]) -> Result<(), ConfigError> {
    for route in routes {
        let error =
            |field, reason: &str| Err(ConfigError::new(format!("route {}", route.prefix), field, reason));
        if let Some(reason) = host_bits(&route.prefix) {
            return error("prefix", &reason);
        }
        if route.prefix.network().is_multicast() && route.prefix.prefix_len() > 0 {
            return error("prefix", "is of multicast groups");
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
    }
    let mut sorted: Vec<&Route> = routes.iter().collect();
    sorted.sort_by_key(|route| route.prefix);
    sorted.chunk_by(|one, next| one.prefix == next.prefix).try_for_each(of_one_prefix)
}

/// No peer hears of a prefix twice.
fn of_one_prefix(routes: &[&Route]) -> Result<(), ConfigError> {
    for (index, route) in routes.iter().enumerate() {
        let same = |other: &&Route| match (&route.peers, &other.peers) {
            (None, None) => true,
            (Some(one), Some(other)) => !one.is_disjoint(other),
            _ => false,
        };
        if routes[..index].iter().any(same) {
            let (field, reason) = match route.peers {
                None => ("prefix", "is there more than once"),
                Some(_) => ("peers", "the same peer would hear of the prefix twice"),
            };
            return Err(ConfigError::new(format!("route {}", route.prefix), field, reason));
        }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Bfd, Family, RouteAttributes, Timers};
    use std::collections::BTreeMap;

    const BFD: Bfd = Bfd { min_tx_millis: 300, min_rx_millis: 300, multiplier: 3 };

    fn peer_with(change: impl FnOnce(&mut PeerConfig)) -> PeerConfig {
        let mut config = PeerConfig::new(IpAddr::from([10, 0, 0, 1]), PeerAsn::Is(Asn(65001)));
        change(&mut config);
        config
    }

    fn long_lived(seconds: u32) -> BTreeMap<Family, u32> {
        [(Family::Ipv6Unicast, seconds)].into()
    }

    fn route_with(change: impl FnOnce(&mut Route)) -> Route {
        let prefix = "10.0.0.0/8".parse().unwrap();
        let mut route = Route { prefix, attributes: RouteAttributes::default(), peers: None };
        change(&mut route);
        route
    }

    fn words(result: Result<(), ConfigError>) -> String {
        result.err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn stations_that_make_no_sense() {
        let at = |station: &str| BmpStation { station: station.parse().unwrap(), stats_seconds: 60 };
        let many: Vec<BmpStation> = (1..=17).map(|port| at(&format!("192.0.2.1:{port}"))).collect();
        for (list, error) in [
            (&many[..16], ""),
            (&many[..], "station 192.0.2.1:17: station: is one of more than 16"),
            (&[at("192.0.2.1:0")], "station 192.0.2.1:0: station: is nothing that can be dialled"),
            (&[at("[::]:1")], "station [::]:1: station: is nothing that can be dialled"),
            (&[many[0], many[0]], "station 192.0.2.1:1: station: is there more than once"),
            (
                &[BmpStation { stats_seconds: 86_401, ..many[0] }],
                "station 192.0.2.1:1: statsSeconds: must be 0 to 86400",
            ),
        ] {
            let found = stations(list).map_or_else(|error| error.to_string(), |()| String::new());
            assert_eq!(found, error);
        }
    }

    #[test]
    fn globals() {
        let check = |asn, id: [u8; 4]| {
            words(global(&Global { asn: Asn(asn), router_id: id.into(), listen: [].into() }))
        };
        assert_eq!(check(65000, [10, 0, 0, 1]), "");
        assert_eq!(check(0, [10, 0, 0, 1]), "global: asn: 0 is reserved (RFC 7607)");
        assert_eq!(check(65000, [0; 4]), "global: router id: must not be 0.0.0.0 (RFC 6286)");
    }

    #[test]
    fn peers_that_make_no_sense() {
        type Case = (fn(&mut PeerConfig), &'static str);
        let cases: [Case; 29] = [
            (|_| (), ""),
            (|peer| peer.timers = Timers { hold_seconds: 0, keepalive_seconds: 0, ..peer.timers }, ""),
            (|peer| peer.asn = PeerAsn::Is(Asn(0)), "asn: 0 is reserved (RFC 7607)"),
            (|peer| peer.port = 0, "port: must be 1 to 65535"),
            (|peer| peer.families.clear(), "families: is empty: name at least one"),
            (
                |peer| peer.timers.hold_seconds = 2,
                "timers.holdSeconds: must be 0 or at least 3 (RFC 4271 section 4.2)",
            ),
            (
                |peer| peer.timers.keepalive_seconds = 0,
                "timers.keepaliveSeconds: must be at least 1 where there is a hold time",
            ),
            (|peer| peer.timers.connect_retry_seconds = 0, "timers.connectRetrySeconds: must be at least 1"),
            (
                |peer| peer.bfd = Some(Bfd { min_tx_millis: 9, ..BFD }),
                "bfd.minTxMillis: must be 10 to 3600000",
            ),
            (
                |peer| peer.bfd = Some(Bfd { min_rx_millis: 3_600_001, ..BFD }),
                "bfd.minRxMillis: must be 10 to 3600000",
            ),
            (|peer| peer.bfd = Some(Bfd { multiplier: 0, ..BFD }), "bfd.multiplier: must be 1 to 255"),
            (|peer| peer.multihop_ttl = Some(0), "ebgpMultihop.ttl: must be 1 to 255"),
            (
                |peer| (peer.multihop_ttl, peer.asn) = (Some(4), PeerAsn::Is(Asn(65000))),
                "ebgpMultihop: is for external peers only",
            ),
            (|peer| peer.ttl_security_hops = Some(254), ""),
            (|peer| peer.shutdown = Some("x".repeat(255)), ""),
            (|peer| peer.shutdown = Some("x".repeat(256)), "shutdown: is longer than 255 octets (RFC 9003)"),
            (|peer| peer.ttl_security_hops = Some(255), "ttlSecurity.hops: must be 1 to 254"),
            (
                |peer| (peer.multihop_ttl, peer.ttl_security_hops) = (Some(4), Some(1)),
                "ttlSecurity: and ebgpMultihop exclude each other",
            ),
            (
                |peer| peer.accept = vec!["10.0.0.1/8".parse().unwrap()],
                "import.accept: 10.0.0.1/8 has host bits set; 10.0.0.0/8 has not",
            ),
            (
                |peer| peer.local_address = Some("fd00::1".parse().unwrap()),
                "localAddress: is of another family than the address of the peer",
            ),
            (|peer| peer.local_address = Some(peer.address), "localAddress: is the address of the peer"),
            (|peer| peer.local_address = Some(IpAddr::from([0; 4])), "localAddress: is no unicast address"),
            (|peer| peer.address = IpAddr::from([224, 0, 0, 1]), "address: is no unicast address"),
            (|peer| peer.address = IpAddr::from([0; 4]), "address: is no unicast address"),
            (|peer| peer.graceful_restart = Some(4095), ""),
            (
                |peer| peer.graceful_restart = Some(4096),
                "gracefulRestart.seconds: must be 0 to 4095 (RFC 4724 section 3)",
            ),
            (|peer| (peer.graceful_restart, peer.long_lived_seconds) = (Some(0), long_lived(0xFF_FFFF)), ""),
            (
                |peer| (peer.graceful_restart, peer.long_lived_seconds) = (Some(0), long_lived(0x100_0000)),
                "gracefulRestart.longLivedSeconds: must be 0 to 16777215 (RFC 9494 section 3.1)",
            ),
            (
                |peer| peer.long_lived_seconds = long_lived(1),
                "gracefulRestart.longLivedSeconds: counts beside gracefulRestart.seconds only",
            ),
        ];
        let ours = Global { asn: Asn(65000), router_id: [1, 1, 1, 1].into(), listen: [].into() };
        for (change, fault) in cases {
            let config = peer_with(change);
            let fault =
                if fault.is_empty() { String::new() } else { format!("peer {}: {fault}", config.address) };
            assert_eq!(words(peers(&[config], Some(&ours))), fault);
        }
        let twice = [peer_with(|_| ()), peer_with(|peer| peer.asn = PeerAsn::Is(Asn(7)))];
        assert_eq!(words(peers(&twice, None)), "peer 10.0.0.1: address: is there more than once");
    }

    #[test]
    fn ranges_that_make_no_sense() {
        let range = |prefix: &str, limit| PeerRange {
            prefix: prefix.parse().unwrap(),
            limit,
            peer: peer_with(|_| ()),
        };
        let check = |all: &[PeerRange]| words(ranges(all, None));
        assert_eq!(check(&[range("10.0.0.0/24", 1), range("10.0.0.0/8", 10_000)]), "");
        assert_eq!(check(&[range("10.0.0.0/24", 0)]), "range 10.0.0.0/24: limit: must be 1 to 10000");
        assert_eq!(check(&[range("0.0.0.0/0", 1)]), "range 0.0.0.0/0: prefix: is everybody");
        let twice = [range("10.0.0.0/24", 1), range("10.0.0.0/24", 2)];
        assert_eq!(check(&twice), "range 10.0.0.0/24: prefix: is there more than once");
        let mut wrong = range("10.0.0.0/24", 1);
        wrong.peer.families.clear();
        assert_eq!(check(&[wrong]), "range 10.0.0.0/24: families: is empty: name at least one");
    }

    #[test]
    fn routes_that_make_no_sense() {
        let one = |change: fn(&mut Route)| words(routes(&[route_with(change)]));
        assert_eq!(one(|_| ()), "");
        assert_eq!(
            one(|route| route.prefix = "10.0.0.1/24".parse().unwrap()),
            "route 10.0.0.1/24: prefix: 10.0.0.1/24 has host bits set; 10.0.0.0/24 has not"
        );
        assert_eq!(
            one(|route| route.attributes.next_hop = Some("fd00::1".parse().unwrap())),
            "route 10.0.0.0/8: nextHop: is of another family than the prefix"
        );
        assert_eq!(
            one(|route| route.attributes.next_hop = Some(IpAddr::from([255; 4]))),
            "route 10.0.0.0/8: nextHop: is no unicast address"
        );
        assert_eq!(one(|route| route.attributes.prepend = 17), "route 10.0.0.0/8: prepend: must be 0 to 16");
    }

    #[test]
    fn a_peer_hears_of_a_prefix_once() {
        let to = |hosts: &[u8]| {
            let peers = hosts.iter().map(|host| IpAddr::from([10, 0, 0, *host]).into()).collect();
            route_with(|route| route.peers = Some(peers))
        };
        let all = || route_with(|_| ());
        let twice = "route 10.0.0.0/8: peers: the same peer would hear of the prefix twice";
        assert_eq!(words(routes(&[to(&[1, 2]), to(&[3]), all()])), "");
        assert_eq!(words(routes(&[to(&[1, 2]), to(&[2, 3])])), twice);
        let twice = "route 10.0.0.0/8: prefix: is there more than once";
        assert_eq!(words(routes(&[all(), all()])), twice);
        let multicast = Route { prefix: "ff00::/8".parse().unwrap(), ..all() };
        assert_eq!(words(routes(&[multicast])), "route ff00::/8: prefix: is of multicast groups");
    }
}
