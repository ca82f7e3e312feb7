//! The configuration file: YAML to what the speaker is asked for. The fields of a peer are those of a BGPPeer;
//! what is not supported yet is refused by its name.
mod peer;

use bgp_speaker::{
    config::{Asn, BmpStation, Global, PeerConfig, PeerRange, Route, RouteAttributes},
    wire::{Community, LargeCommunity},
};
use ipnet::IpNet;
use peer::{Neighbour, PeerSpec};
use serde::{Deserialize, Deserializer, de};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    str::FromStr,
};

/// What the file asks for.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) global: Global,
    pub(super) peers: Vec<PeerConfig>,
    pub(super) ranges: Vec<PeerRange>,
    pub(super) routes: Vec<Route>,
    pub(super) stations: Vec<BmpStation>,
}

/// Reads a file. The error names the field.
pub(super) fn read(path: &Path) -> Result<Config, String> {
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<Config, String> {
    let file: Document = serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text))
        .map_err(|error| described(&error.path().to_string(), &error.inner().to_string()))?;
    let asn = file.asn;
    let (mut peers, mut ranges) = (Vec::new(), Vec::new());
    for (index, peer) in file.peers.into_iter().enumerate() {
        match peer.neighbour(asn).map_err(|error| format!("peers[{index}].{error}"))? {
            Neighbour::One(peer) => peers.push(peer),
            Neighbour::Range(range) => ranges.push(range),
        }
    }
    Ok(Config {
        global: Global { asn, router_id: file.router_id, listen: file.listen },
        peers,
        ranges,
        routes: file.routes.into_iter().map(RouteSpec::route).collect(),
        stations: file.bmp.into_iter().map(StationSpec::station).collect(),
    })
}

/// Path and reason; the parser puts a part of the path before some of its reasons.
fn described(path: &str, reason: &str) -> String {
    let said = reason.split_once(": ").filter(|(start, _)| path.starts_with(start));
    let reason = said.map_or(reason, |(_, rest)| rest);
    if path == "." { reason.to_owned() } else { format!("{path}: {reason}") }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    asn: Asn,
    #[serde(rename = "routerID")]
    router_id: Ipv4Addr,
    #[serde(default)]
    listen: BTreeSet<SocketAddr>,
    #[serde(default)]
    peers: Vec<PeerSpec>,
    #[serde(default)]
    routes: Vec<RouteSpec>,
    #[serde(default)]
    bmp: Vec<StationSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RouteSpec {
    prefix: IpNet,
    next_hop: Option<IpAddr>,
    #[serde(default)]
    communities: Vec<AnyCommunity>,
    local_pref: Option<u32>,
    med: Option<u32>,
    #[serde(default)]
    prepend: u8,
    link_bandwidth: Option<u64>,
}

impl RouteSpec {
    fn route(self) -> Route {
        let (communities, large_communities) = by_kind(self.communities);
        let attributes = RouteAttributes {
            next_hop: self.next_hop,
            communities,
            large_communities,
            local_pref: self.local_pref,
            med: self.med,
            prepend: self.prepend,
            link_bandwidth: self.link_bandwidth,
        };
        Route { prefix: self.prefix, attributes, peers: None }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct StationSpec {
    station: SocketAddr,
    #[serde(default)]
    stats_seconds: u32,
}

impl StationSpec {
    fn station(self) -> BmpStation {
        BmpStation { station: self.station, stats_seconds: self.stats_seconds }
    }
}

/// A standard or a large community: the number of colons tells.
#[derive(Clone)]
enum AnyCommunity {
    Standard(Community),
    Large(LargeCommunity),
}

/// Standard and large ones.
fn by_kind(all: Vec<AnyCommunity>) -> (BTreeSet<u32>, BTreeSet<(u32, u32, u32)>) {
    let (mut standard, mut large) = (BTreeSet::new(), BTreeSet::new());
    for community in all {
        match community {
            AnyCommunity::Standard(Community(value)) => drop(standard.insert(value)),
            AnyCommunity::Large(community) => drop(large.insert(community.parts())),
        }
    }
    (standard, large)
}

impl<'de> Deserialize<'de> for AnyCommunity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let wanted = "AS:VALUE, AS:VALUE:VALUE or a well-known community";
        match text.parse() {
            Ok(large) => Ok(AnyCommunity::Large(large)),
            Err(_) => from_text(&text, wanted).map(AnyCommunity::Standard),
        }
    }
}

fn from_text<T: FromStr, E: de::Error>(text: &str, wanted: &str) -> Result<T, E> {
    text.parse().map_err(|_| E::custom(format_args!("`{text}`: want {wanted}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bgp_speaker::{
        Md5Key, PeerId,
        config::{self, Bfd, ExportPolicy, Family, LocalRole, Role, Timers},
    };

    const EXAMPLE: &str = r#"
asn: 65002
routerID: 198.18.0.2
listen: ["198.18.0.2:179"]
peers:
- {address: 198.18.0.1, asn: 65001, localAddress: 198.18.0.2, timers: {holdSeconds: 9}, ttlSecurity: {hops: 2}, role: {local: Customer}, import: {accept: [any]}, export: {learned: true}}
- {address: "fd00:18::1", asn: internal, families: [ipv6-unicast], ebgpMultihop: {ttl: 4}, bfd: {minTxMillis: 50, minRxMillis: 60, multiplier: 3}, auth: {md5Password: s3cret}, maxPrefixes: 10, gracefulRestart: {seconds: 120, longLivedSeconds: 3600, ipv6: {longLivedSeconds: 60}}, addPath: {receive: true}, maxPrefixesRestartSeconds: 5, shutdown: bye, import: {accept: [10.0.0.0/8], deny: [10.1.0.0/16], communities: ["65001:1"], install: true}, export: {nextHopSelf: true, gracefulShutdown: true, prepend: 3, med: 4, localPref: 5, communities: ["1:2:3"], ipv6: {med: 6, prepend: 0, communities: []}}}
- {range: {prefix: 198.18.1.0/24, limit: 10}, asn: external, passive: true}
routes:
- {prefix: 203.0.113.0/24, communities: ["65002:1", "65002:1:2", no-export], med: 10, prepend: 2, localPref: 200, linkBandwidth: 125000}
- {prefix: "2001:db8:1::/48"}
bmp: [{station: "192.0.2.1:11019", statsSeconds: 60}, {station: "192.0.2.2:11019"}]
"#;

    #[test]
    fn the_example_of_the_manual() {
        let Config { global, peers, ranges, routes, stations } = parse(EXAMPLE).unwrap();
        let stats: Vec<u32> = stations.iter().map(|station| station.stats_seconds).collect();
        assert_eq!((stats, stations[0].station.port()), (vec![60, 0], 11019));
        assert_eq!((global.asn, global.listen.len()), (Asn(65002), 1));
        assert_eq!(
            peers[0].timers,
            Timers { hold_seconds: 9, keepalive_seconds: 3, connect_retry_seconds: 5 }
        );
        assert_eq!((peers[0].accept.len(), peers[0].export_learned, peers[0].families.len()), (2, true, 2));
        assert_eq!((peers[0].ttl_security_hops, peers[1].ttl_security_hops), (Some(2), None));
        assert_eq!(
            (peers[1].asn, peers[1].multihop_ttl, peers[1].max_prefixes),
            (config::PeerAsn::Is(Asn(65002)), Some(4), Some(10))
        );
        let bfd = Bfd { min_tx_millis: 50, min_rx_millis: 60, multiplier: 3 };
        assert_eq!((peers[0].bfd, peers[1].bfd), (None, Some(bfd)));
        assert_eq!((peers[1].accept.len(), peers[1].export_learned, peers[1].port), (1, false, 179));
        assert_eq!((peers[0].install, peers[1].install), (false, true));
        assert_eq!((&peers[0].md5, &peers[1].md5), (&None, &Md5Key::new(*b"s3cret").ok()));
        assert_eq!(
            (peers[1].import.deny.len(), &peers[1].import.communities),
            (1, &[65001 << 16 | 1].into())
        );
        assert_eq!((peers[0].max_prefixes_restart_seconds, &peers[0].shutdown), (300, &None));
        assert_eq!((peers[1].max_prefixes_restart_seconds, peers[1].shutdown.as_deref()), (5, Some("bye")));
        let policy = &peers[1].export[&Family::Ipv4Unicast];
        assert_eq!((policy.next_hop_self, policy.graceful_shutdown, policy.prepend), (true, true, 3));
        assert_eq!((policy.med, policy.local_pref), (Some(4), Some(5)));
        assert_eq!(policy.large_communities, [(1, 2, 3)].into());
        let other = ExportPolicy { prepend: 0, med: Some(6), large_communities: [].into(), ..policy.clone() };
        assert_eq!(peers[1].export[&Family::Ipv6Unicast], other);
        assert_eq!(peers[0].export[&Family::Ipv6Unicast], ExportPolicy::default());
        assert_eq!((ranges[0].limit, ranges[0].peer.passive, ranges.len()), (10, true, 1));
        assert_eq!(ranges[0].id(), PeerId::Range("198.18.1.0/24".parse().unwrap()));
        assert_eq!((peers[0].graceful_restart, peers[1].graceful_restart), (None, Some(120)));
        let long_lived = [(Family::Ipv4Unicast, 3600), (Family::Ipv6Unicast, 60)];
        assert_eq!(
            (&peers[0].long_lived_seconds, &peers[1].long_lived_seconds),
            (&[].into(), &long_lived.into())
        );
        assert_eq!(peers[0].add_path, config::AddPath::default());
        assert_eq!(peers[1].add_path, config::AddPath { send: false, receive: true });
        assert_eq!(peers[0].role, Some(LocalRole { local: Role::Customer, strict: false }));
        let attributes = &routes[0].attributes;
        assert_eq!(attributes.communities, [65002 << 16 | 1, 0xFFFF_FF01].into());
        assert_eq!(attributes.large_communities, [(65002, 1, 2)].into());
        assert_eq!((routes.len(), attributes.link_bandwidth), (2, Some(125_000)));
    }

    #[test]
    fn errors_name_the_field() {
        for (from, to, error) in [
            ("asn: 65002", "asn: x", "asn: "),
            ("routerID", "routerId", "unknown field `routerId`"),
            ("198.18.0.2:179", "198.18.0.2", "listen[0]: "),
            ("holdSeconds: 9", "holdSeconds: -1", "peers[0].timers.holdSeconds: "),
            ("holdSeconds: 9", "hold: 9", "peers[0].timers.hold: unknown field"),
            ("[any]", "[all]", "peers[0].import.accept[0]: `all`: want a prefix or `any`"),
            ("asn: internal", "asn: outside", "peers[1].asn: "),
            ("asn: internal", "asn: 4294967296", "peers[1].asn: "),
            (
                "md5Password: s3cret",
                "md5Password: 12345",
                "peers[1].auth.md5Password: want a text: put it in quotes",
            ),
            ("md5Password: s3cret", "md5Password: ''", "peers[1].auth.md5Password: is 0 octets long"),
            ("md5Password: s3cret", "md5PasswordFile: /nowhere", "peers[1].auth.md5PasswordFile: /nowhere: "),
            ("md5Password: s3cret", "", "peers[1].auth.md5Password: needs exactly one"),
            ("minTxMillis: 50, ", "", "peers[1].bfd: missing field `minTxMillis`"),
            ("maxPrefixes: 10", "import: {install: true}", "duplicate"),
            ("{receive: true}", "{both: true}", "peers[1].addPath.both: unknown field"),
            ("ipv6: {med", "ipv6: {learned: true, med", "peers[1].export.ipv6.learned: unknown field"),
            ("range: {", "interface: eth0, range: {", "peers[2].interface: and address exclude each other"),
            ("address: 198.18.0.1", "interface: a/b", "peers[0].interface: is no name of an interface"),
            ("range: {", "address: 10.0.0.1, range: {", "peers[2].range: and address exclude each other"),
            ("md5Password: s3cret", "md5SecretRef: {}", "peers[1].auth.md5SecretRef: unknown field"),
            ("address: \"fd00:18::1\", ", "", "peers[1].address: missing"),
            ("\"65002:1\"", "\"65002:x\"", "routes[0].communities[0]: `65002:x`: want AS:VALUE"),
            ("2001:db8:1::/48", "2001:db8:1::/129", "routes[1].prefix: "),
            ("192.0.2.2:11019", "192.0.2.2", "bmp[1].station: "),
        ] {
            let text = EXAMPLE.replace(from, to);
            assert_ne!(text, EXAMPLE);
            let found = parse(&text).unwrap_err();
            assert!(found.contains(error), "{to}: {found}");
        }
    }
}
