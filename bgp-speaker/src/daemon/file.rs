//! The configuration file: YAML to what the speaker is asked for. The fields of a peer are those of a BGPPeer;
//! what is not supported yet is refused by its name.
use bgp_speaker::{
    config::{self, Asn, Bfd, Family, Global, PeerConfig, Route, RouteAttributes, Timers},
    wire::{Community, LargeCommunity},
};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, de};
use serde_yaml_ng::Value;
use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
    str::FromStr,
};

/// What the file asks for.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) global: Global,
    pub(super) peers: Vec<PeerConfig>,
    pub(super) routes: Vec<Route>,
}

/// Reads a file. The error names the field.
pub(super) fn read(path: &Path) -> Result<Config, String> {
    parse(&std::fs::read_to_string(path).map_err(|error| error.to_string())?)
}

fn parse(text: &str) -> Result<Config, String> {
    let file: File = serde_path_to_error::deserialize(serde_yaml_ng::Deserializer::from_str(text))
        .map_err(|error| described(&error.path().to_string(), &error.inner().to_string()))?;
    let asn = file.asn;
    let peers = file.peers.into_iter().enumerate();
    let peers =
        peers.map(|(index, peer)| peer.config(asn).map_err(|error| format!("peers[{index}].{error}")));
    Ok(Config {
        global: Global { asn, router_id: file.router_id, listen: file.listen },
        peers: peers.collect::<Result<_, _>>()?,
        routes: file.routes.into_iter().map(RouteSpec::route).collect(),
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
struct File {
    asn: Asn,
    #[serde(rename = "routerID")]
    router_id: Ipv4Addr,
    #[serde(default)]
    listen: BTreeSet<SocketAddr>,
    #[serde(default)]
    peers: Vec<PeerSpec>,
    #[serde(default)]
    routes: Vec<RouteSpec>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PeerSpec {
    address: Option<IpAddr>,
    asn: PeerAsn,
    #[serde(default = "bgp_port")]
    port: u16,
    local_address: Option<IpAddr>,
    #[serde(default)]
    timers: TimersSpec,
    #[serde(default = "all_families")]
    families: BTreeSet<Family>,
    ebgp_multihop: Option<Multihop>,
    max_prefixes: Option<u32>,
    #[serde(default)]
    import: Import,
    #[serde(default)]
    export: Export,
    bfd: Option<BfdSpec>,
    #[serde(default)]
    add_path: AddPath,
    // Not supported yet.
    interface: Option<Value>,
    discover: Option<Value>,
    auth: Option<Value>,
    ttl_security: Option<Value>,
    graceful_restart: Option<Value>,
}

fn bgp_port() -> u16 {
    179
}

fn all_families() -> BTreeSet<Family> {
    [Family::Ipv4Unicast, Family::Ipv6Unicast].into()
}

/// A number, `external` or `internal`.
enum PeerAsn {
    Number(Asn),
    External,
    Internal,
}

impl<'de> Deserialize<'de> for PeerAsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = PeerAsn;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an AS number (1 to 4294967295), `external` or `internal`")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<PeerAsn, E> {
                let wrong = || E::invalid_value(de::Unexpected::Unsigned(number), &self);
                u32::try_from(number).map(|asn| PeerAsn::Number(Asn(asn))).map_err(|_| wrong())
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<PeerAsn, E> {
                match text {
                    "external" => Ok(PeerAsn::External),
                    "internal" => Ok(PeerAsn::Internal),
                    _ => Err(E::invalid_value(de::Unexpected::Str(text), &self)),
                }
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct TimersSpec {
    hold_seconds: u16,
    /// None: a third of the hold time.
    keepalive_seconds: Option<u16>,
    connect_retry_seconds: u16,
}

impl Default for TimersSpec {
    fn default() -> Self {
        let Timers { hold_seconds, connect_retry_seconds, .. } = Timers::default();
        TimersSpec { hold_seconds, keepalive_seconds: None, connect_retry_seconds }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Multihop {
    ttl: u8,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct BfdSpec {
    min_tx_millis: u32,
    min_rx_millis: u32,
    multiplier: u8,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Import {
    accept: Vec<Accept>,
    install: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Export {
    learned: bool,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct AddPath {
    send: bool,
    receive: bool,
}

/// `any`, or a prefix that contains what is accepted.
struct Accept(Vec<IpNet>);

impl<'de> Deserialize<'de> for Accept {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let any = || vec![IpNet::V4(Ipv4Net::default()), IpNet::V6(Ipv6Net::default())];
        match text.as_str() {
            "any" => Ok(Accept(any())),
            text => from_text(text, "a prefix or `any`").map(|prefix| Accept(vec![prefix])),
        }
    }
}

impl PeerSpec {
    fn config(self, local: Asn) -> Result<PeerConfig, String> {
        let unsupported = [
            ("interface", self.interface.is_some()),
            ("discover", self.discover.is_some()),
            ("auth", self.auth.is_some()),
            ("ttlSecurity", self.ttl_security.is_some()),
            ("gracefulRestart", self.graceful_restart.is_some()),
            ("addPath.send", self.add_path.send),
            ("addPath.receive", self.add_path.receive),
            ("import.install", self.import.install),
        ];
        if let Some((field, _)) = unsupported.iter().find(|(_, is_there)| *is_there) {
            return Err(format!("{field}: not supported yet"));
        }
        let timers = Timers {
            hold_seconds: self.timers.hold_seconds,
            // A hold time of a second or two is refused for itself.
            keepalive_seconds: self.timers.keepalive_seconds.unwrap_or((self.timers.hold_seconds / 3).max(1)),
            connect_retry_seconds: self.timers.connect_retry_seconds,
        };
        Ok(PeerConfig {
            address: self.address.ok_or("address: missing")?,
            asn: match self.asn {
                PeerAsn::Number(asn) => config::PeerAsn::Is(asn),
                PeerAsn::Internal => config::PeerAsn::Is(local),
                PeerAsn::External => config::PeerAsn::External,
            },
            port: self.port,
            local_address: self.local_address,
            timers,
            families: self.families,
            multihop_ttl: self.ebgp_multihop.map(|multihop| multihop.ttl),
            max_prefixes: self.max_prefixes,
            accept: self.import.accept.into_iter().flat_map(|Accept(prefixes)| prefixes).collect(),
            export_learned: self.export.learned,
            bfd: self.bfd.map(|BfdSpec { min_tx_millis, min_rx_millis, multiplier }| Bfd {
                min_tx_millis,
                min_rx_millis,
                multiplier,
            }),
        })
    }
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
}

impl RouteSpec {
    fn route(self) -> Route {
        let mut attributes = RouteAttributes {
            next_hop: self.next_hop,
            local_pref: self.local_pref,
            med: self.med,
            prepend: self.prepend,
            ..RouteAttributes::default()
        };
        for community in self.communities {
            match community {
                AnyCommunity::Standard(Community(value)) => {
                    attributes.communities.insert(value);
                }
                AnyCommunity::Large(LargeCommunity { global, local1, local2 }) => {
                    attributes.large_communities.insert((global, local1, local2));
                }
            }
        }
        Route { prefix: self.prefix, attributes, peers: None }
    }
}

/// A standard or a large community: the number of colons tells.
enum AnyCommunity {
    Standard(Community),
    Large(LargeCommunity),
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

    const EXAMPLE: &str = r#"
asn: 65002
routerID: 198.18.0.2
listen: ["198.18.0.2:179"]
peers:
- {address: 198.18.0.1, asn: 65001, localAddress: 198.18.0.2, timers: {holdSeconds: 9}, import: {accept: [any]}, export: {learned: true}}
- {address: "fd00:18::1", asn: internal, families: [ipv6-unicast], ebgpMultihop: {ttl: 4}, bfd: {minTxMillis: 50, minRxMillis: 60, multiplier: 3}, maxPrefixes: 10, import: {accept: [10.0.0.0/8]}}
routes:
- {prefix: 203.0.113.0/24, communities: ["65002:1", "65002:1:2", no-export], med: 10, prepend: 2, localPref: 200}
- {prefix: "2001:db8:1::/48"}
"#;

    #[test]
    fn the_example_of_the_manual() {
        let Config { global, peers, routes } = parse(EXAMPLE).unwrap();
        assert_eq!((global.asn, global.listen.len()), (Asn(65002), 1));
        assert_eq!(
            peers[0].timers,
            Timers { hold_seconds: 9, keepalive_seconds: 3, connect_retry_seconds: 5 }
        );
        assert_eq!((peers[0].accept.len(), peers[0].export_learned, peers[0].families.len()), (2, true, 2));
        assert_eq!(
            (peers[1].asn, peers[1].multihop_ttl, peers[1].max_prefixes),
            (config::PeerAsn::Is(Asn(65002)), Some(4), Some(10))
        );
        let bfd = Bfd { min_tx_millis: 50, min_rx_millis: 60, multiplier: 3 };
        assert_eq!((peers[0].bfd, peers[1].bfd), (None, Some(bfd)));
        assert_eq!((peers[1].accept.len(), peers[1].export_learned, peers[1].port), (1, false, 179));
        let attributes = &routes[0].attributes;
        assert_eq!(attributes.communities, [65002 << 16 | 1, 0xFFFF_FF01].into());
        assert_eq!(attributes.large_communities, [(65002, 1, 2)].into());
        assert_eq!(routes.len(), 2);
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
            ("minTxMillis: 50, ", "", "peers[1].bfd: missing field `minTxMillis`"),
            ("maxPrefixes: 10", "import: {install: true}", "duplicate"),
            ("maxPrefixes: 10", "addPath: {send: true}", "peers[1].addPath.send: not supported yet"),
            (
                "maxPrefixes: 10",
                "auth: {md5SecretRef: {name: a, key: b}}",
                "peers[1].auth: not supported yet",
            ),
            ("address: \"fd00:18::1\", ", "", "peers[1].address: missing"),
            ("\"65002:1\"", "\"65002:x\"", "routes[0].communities[0]: `65002:x`: want AS:VALUE"),
            ("2001:db8:1::/48", "2001:db8:1::/129", "routes[1].prefix: "),
        ] {
            let text = EXAMPLE.replace(from, to);
            assert_ne!(text, EXAMPLE);
            let found = parse(&text).unwrap_err();
            assert!(found.contains(error), "{to}: {found}");
        }
    }
}
