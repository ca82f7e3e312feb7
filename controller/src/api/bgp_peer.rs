//! BGPPeer: a neighbour of the routers that select it.
use super::community::Community;
use super::crds::rules;
use super::scalar::{
    Address, Asn, Cidr, HoldSeconds, Hops, LongLivedSeconds, Metric, Millis, Multiplier, PeerLimit, Port,
    Prefix, PrefixLimit, Prepend, RestartSeconds, RetrySeconds, Seconds, Ttl, UNSPECIFIED, quoted,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt};

/// A neighbour: exactly one of `address`, `interface`, `discover` and `range`.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "BGPPeer",
    plural = "bgppeers",
    shortname = "bgpp",
    category = "fairlead",
    doc = "BGPPeer: a BGP neighbour of the routers that select it.",
    status = "BGPPeerStatus",
    derive = "PartialEq",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Range", type_ = "string", json_path = ".spec.range.prefix"),
    printcolumn(name = "ASN", type_ = "string", json_path = ".spec.asn"),
    printcolumn(name = "Sessions", type_ = "integer", json_path = ".status.sessions"),
    printcolumn(name = "Established", type_ = "integer", json_path = ".status.establishedSessions"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "[has(self.address), has(self.interface), has(self.discover), has(self.range)].filter(x, x).size() == 1",
        ONE_NEIGHBOUR,
    ),
    ("!(has(self.ttlSecurity) && has(self.ebgpMultihop))", TTL_EXCLUSIVE),
    ("!has(self.localAddress) || has(self.address)", LOCAL_ADDRESS),
    (
        "!has(self.localAddress) || !has(self.address) || self.localAddress.contains(':') == self.address.contains(':')",
        LOCAL_FAMILY,
    ),
    (
        "!has(self.localAddress) || !has(self.address) || self.localAddress != self.address",
        LOCAL_IS_NEIGHBOUR,
    ),
    ("!has(self.interface) || !has(self.ebgpMultihop)", ON_LINK),
    ("!has(self.interface) || !has(self.ttlSecurity) || self.ttlSecurity.hops <= 1", ON_LINK),
    ("!has(self.interface) || !has(self.auth)", KEYS_OF_ADDRESSES),
    (
        "!has(self.address) || !isIP(self.address) || !ip(self.address).isUnspecified()",
        UNSPECIFIED,
    ),
    (
        "!has(self.address) || !isIP(self.address) || ip(self.address).family() == 4 || !ip(self.address).isLinkLocalUnicast()",
        LINK_LOCAL_NEIGHBOUR,
    ),
])))]
pub struct BGPPeerSpec {
    /// Address of the neighbour.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// Interface at whose other end an unnumbered neighbour is, known by its link-local address (RFC 8950).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    pub interface: Option<String>,
    /// Where the neighbour is found.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discover: Option<Discover>,
    /// Neighbours that come by themselves: whoever dials from these addresses, and is never dialled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<PeerRange>,
    /// Address of ours to dial from; none: the kernel chooses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_address: Option<Address>,
    /// AS of the neighbour: a number, `external` or `internal`.
    pub asn: PeerAsn,
    /// TCP port of the neighbour.
    #[serde(default = "bgp_port")]
    pub port: Port,
    /// The neighbour is not dialled: it has to.
    #[serde(default)]
    pub passive: bool,
    /// Timers of the session.
    #[serde(default)]
    pub timers: Timers,
    /// Address families that are offered.
    #[serde(default = "both_families")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub families: Vec<Family>,
    /// Authentication of the session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// Packets from further away are refused (RFC 5082).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_security: Option<TtlSecurity>,
    /// The neighbour is not on the link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ebgp_multihop: Option<EbgpMultihop>,
    /// Routes outlive a restart of either side (RFC 4724).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graceful_restart: Option<GracefulRestart>,
    /// What the node is to an external neighbour: route leaks are neither taken in nor made (RFC 9234).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<LocalRole>,
    /// The path is watched (RFC 5880).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bfd: Option<Bfd>,
    /// Several paths of one prefix (RFC 7911).
    #[serde(default)]
    pub add_path: AddPath,
    /// More prefixes than this end the session (RFC 4486).
    #[serde(default = "default_max_prefixes")]
    pub max_prefixes: PrefixLimit,
    /// For so many seconds the session stays down then.
    #[serde(default = "default_max_prefixes_restart")]
    pub max_prefixes_restart_seconds: Seconds,
    /// The session is down, and the neighbour is told so, with this text of at most 255 octets (RFC 9003).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 255), extend("x-kubernetes-validations" = rules(&[
        ("bytes(self).size() <= 255", SHUTDOWN_TEXT),
    ])))]
    pub shutdown: Option<String>,
    /// What is taken in.
    #[serde(default)]
    pub import: Import,
    /// What the neighbour is told otherwise than BGPAdvertisements say.
    #[serde(default)]
    pub export: Export,
    /// The neighbour is to look for other ways: routes to it have the community GRACEFUL_SHUTDOWN (RFC 8326).
    #[serde(default)]
    pub graceful_shutdown: bool,
}

/// Why a peer without an address, or with two kinds of them, is refused.
pub(crate) const ONE_NEIGHBOUR: &str = "needs exactly one of address, interface, discover and range";
/// Why two rules for the TTL are refused.
pub(crate) const TTL_EXCLUSIVE: &str = "ttlSecurity and ebgpMultihop exclude each other";

/// With what an address to dial from can be said.
pub(crate) const LOCAL_ADDRESS: &str = "localAddress counts beside address only";
/// Of what family it has to be.
pub(crate) const LOCAL_FAMILY: &str = "localAddress is of another family than address";
/// Whose it cannot be.
pub(crate) const LOCAL_IS_NEIGHBOUR: &str = "localAddress is the address of the neighbour";
/// How long the text of a shutdown may be (RFC 9003 section 2).
pub(crate) const SHUTDOWN_TEXT: &str = "is longer than 255 octets";
/// Why a range is refused that holds all addresses.
pub(crate) const EVERYBODY: &str = "is everybody";

/// Why an unnumbered peer is not further away.
pub(crate) const ON_LINK: &str = "has no sense with an interface: the neighbour is on the link";
/// Why an address is that of no neighbour.
const LINK_LOCAL_NEIGHBOUR: &str = "is link-local, and no interface is known";
/// Why the session of an unnumbered peer cannot be signed.
pub(crate) const KEYS_OF_ADDRESSES: &str = "has no sense with an interface: keys belong to addresses";

/// AS of a neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerAsn {
    /// This one.
    Number(Asn),
    /// Any but ours.
    External,
    /// Ours.
    Internal,
}

impl fmt::Display for PeerAsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAsn::Number(asn) => asn.fmt(f),
            PeerAsn::External => f.write_str("external"),
            PeerAsn::Internal => f.write_str("internal"),
        }
    }
}

impl Serialize for PeerAsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            PeerAsn::Number(asn) => asn.serialize(serializer),
            word => serializer.collect_str(word),
        }
    }
}

impl<'de> Deserialize<'de> for PeerAsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PeerAsnVisitor)
    }
}

/// What the AS of a neighbour is.
const PEER_ASN: &str = "an AS number (1 to 4294967295), external or internal";

struct PeerAsnVisitor;

impl de::Visitor<'_> for PeerAsnVisitor {
    type Value = PeerAsn;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PEER_ASN)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<PeerAsn, E> {
        let asn = u32::try_from(value).ok().and_then(Asn::new).map(PeerAsn::Number);
        asn.ok_or_else(|| E::custom(format_args!("{value} is not {PEER_ASN}")))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<PeerAsn, E> {
        self.visit_i64(i64::try_from(value).unwrap_or(i64::MAX))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<PeerAsn, E> {
        match text {
            "external" => Ok(PeerAsn::External),
            "internal" => Ok(PeerAsn::Internal),
            _ => Err(E::custom(format_args!("{} is not {PEER_ASN}", quoted(text)))),
        }
    }
}

impl JsonSchema for PeerAsn {
    fn schema_name() -> Cow<'static, str> {
        "PeerAsn".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let rule =
            "type(self) == string ? self in ['external', 'internal'] : self >= 1 && self <= 4294967295";
        let message = format!("is not {PEER_ASN}");
        json_schema!({"x-kubernetes-int-or-string": true, "x-kubernetes-validations": rules(&[(rule, &message)])})
    }
}

/// Where a neighbour is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Discover {
    /// The next hop of the node's default route, IPv4 before IPv6, unless it is link-local.
    DefaultGateway,
}

/// Neighbours that are known by the range of their addresses.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("!self.prefix.endsWith('/0')", EVERYBODY)])))]
pub struct PeerRange {
    /// Their addresses. Of ranges that overlap the longest prefix counts; a BGPPeer with an address counts before all.
    pub prefix: Cidr,
    /// At most so many sessions at a time; one more is refused without a word.
    pub limit: PeerLimit,
}

/// Timers of a session (RFC 4271 section 10).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.holdSeconds == 0 || self.holdSeconds >= 3", HOLD_TIME),
    ("!has(self.keepaliveSeconds) || self.keepaliveSeconds * 3 <= self.holdSeconds", KEEPALIVE),
])))]
pub struct Timers {
    /// Proposed hold time in seconds: 0 (no keepalives), or 3 to 65535.
    #[serde(default = "default_hold")]
    pub hold_seconds: HoldSeconds,
    /// Keepalive interval in seconds, at most a third of the hold time; none: a third of the hold time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keepalive_seconds: Option<HoldSeconds>,
    /// First delay between attempts to connect, in seconds.
    #[serde(default = "default_retry")]
    pub connect_retry_seconds: RetrySeconds,
}

/// Which hold times there are (RFC 4271 section 4.2).
pub(crate) const HOLD_TIME: &str = "holdSeconds must be 0 or at least 3";
/// How keepalives relate to the hold time (RFC 4271 section 4.4).
pub(crate) const KEEPALIVE: &str = "keepaliveSeconds must be at most a third of holdSeconds";

impl Timers {
    /// Keepalive interval in seconds; 0: none are sent.
    pub fn keepalive(&self) -> u16 {
        self.keepalive_seconds.map_or(self.hold_seconds.get() / 3, HoldSeconds::get)
    }
}

impl Default for Timers {
    fn default() -> Self {
        Timers {
            hold_seconds: default_hold(),
            keepalive_seconds: None,
            connect_retry_seconds: default_retry(),
        }
    }
}

fn default_hold() -> HoldSeconds {
    const HOLD: HoldSeconds = HoldSeconds::new(90).expect("in range");
    HOLD
}

fn default_retry() -> RetrySeconds {
    const RETRY: RetrySeconds = RetrySeconds::new(5).expect("in range");
    RETRY
}

/// Address family (RFC 4760).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
pub enum Family {
    /// AFI 1, SAFI 1.
    #[serde(rename = "ipv4-unicast")]
    Ipv4Unicast,
    /// AFI 2, SAFI 1.
    #[serde(rename = "ipv6-unicast")]
    Ipv6Unicast,
}

impl From<Family> for bgp_speaker::config::Family {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4Unicast => bgp_speaker::config::Family::Ipv4Unicast,
            Family::Ipv6Unicast => bgp_speaker::config::Family::Ipv6Unicast,
        }
    }
}

/// Authentication of a session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Auth {
    /// Where the password of the TCP MD5 signature is (RFC 2385).
    pub md5_secret_ref: SecretReference,
}

/// A key of a Secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SecretReference {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within it.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// How far away the neighbour may be (RFC 5082).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TtlSecurity {
    /// Links between us and the neighbour.
    pub hops: Hops,
}

/// The TTL of our packets to a neighbour that is not on the link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EbgpMultihop {
    /// The TTL.
    pub ttl: Ttl,
}

/// Graceful restart (RFC 4724).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct GracefulRestart {
    /// How long, in seconds, routes are kept for us.
    pub seconds: RestartSeconds,
    /// How long, in seconds, they are kept after that, as the last choice (RFC 9494); none: not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_lived_seconds: Option<LongLivedSeconds>,
    /// What is otherwise for IPv4 routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<FamilyRestart>,
    /// What is otherwise for IPv6 routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<FamilyRestart>,
}

/// Graceful restart of one family, where it is not as for both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FamilyRestart {
    /// How long, in seconds, its routes are kept as the last choice (RFC 9494); 0: not at all.
    pub long_lived_seconds: LongLivedSeconds,
}

impl GracefulRestart {
    /// How long routes of a family are kept as the last choice, in seconds; 0: not at all.
    pub fn long_lived_seconds(&self, family: Family) -> u32 {
        let own = match family {
            Family::Ipv4Unicast => &self.ipv4,
            Family::Ipv6Unicast => &self.ipv6,
        };
        let seconds = own.as_ref().map(|own| own.long_lived_seconds).or(self.long_lived_seconds);
        seconds.map_or(0, LongLivedSeconds::get)
    }
}

/// What the node is to the neighbour (RFC 9234).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LocalRole {
    /// What we are.
    pub local: Role,
    /// A neighbour that does not say what it is gets no session.
    #[serde(default)]
    pub strict: bool,
}

/// What two neighbours are to each other (RFC 9234 section 3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Role {
    /// The neighbour is a customer of ours.
    Provider,
    /// The neighbour is a client of our route server.
    RouteServer,
    /// The neighbour is a route server.
    RouteServerClient,
    /// The neighbour is our provider.
    Customer,
    /// Each tells the other its own routes and those of its customers.
    Peer,
}

impl From<Role> for bgp_speaker::config::Role {
    fn from(role: Role) -> Self {
        use bgp_speaker::config::Role as Speaker;
        match role {
            Role::Provider => Speaker::Provider,
            Role::RouteServer => Speaker::RouteServer,
            Role::RouteServerClient => Speaker::RouteServerClient,
            Role::Customer => Speaker::Customer,
            Role::Peer => Speaker::Peer,
        }
    }
}

/// Bidirectional forwarding detection (RFC 5880).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bfd {
    /// Desired min TX interval, ms.
    pub min_tx_millis: Millis,
    /// Required min RX interval, ms.
    pub min_rx_millis: Millis,
    /// Detection multiplier.
    pub multiplier: Multiplier,
}

/// Several paths of one prefix (RFC 7911).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct AddPath {
    /// We tell several, should we know several.
    pub send: bool,
    /// We take several.
    pub receive: bool,
}

/// What is taken in from a neighbour.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Import {
    /// Prefixes that are accepted: these and longer ones; `any`: all; empty: none.
    #[schemars(length(max = 1000))]
    pub accept: Vec<Prefix>,
    /// Prefixes that are not accepted: these and longer ones, whatever `accept` says.
    #[schemars(length(max = 1000))]
    pub deny: Vec<Prefix>,
    /// Communities, of which an accepted route has to have one; empty: they do not matter.
    #[schemars(length(max = 64))]
    pub communities: Vec<Community>,
    /// Whether accepted routes go to the node's routing table.
    pub install: bool,
}

/// What a neighbour is told otherwise. What is said for a family counts before what is said for both.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Export {
    /// Whether it is told what other neighbours told, and `import` took.
    pub learned: bool,
    /// Whether learned routes have our address as the next hop if the neighbour is of our AS; of another one they always
    /// have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_self: Option<bool>,
    /// How many times our AS is prepended more, if the neighbour is of another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepend: Option<Prepend>,
    /// MULTI_EXIT_DISC of all routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub med: Option<Metric>,
    /// LOCAL_PREF of all routes, if the neighbour is of our AS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<Metric>,
    /// Communities that are added to all routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub communities: Option<Vec<Community>>,
    /// What is otherwise for IPv4 routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<FamilyExport>,
    /// What is otherwise for IPv6 routes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<FamilyExport>,
}

/// What a neighbour is told otherwise of one family.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct FamilyExport {
    /// As for both families.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_hop_self: Option<bool>,
    /// As for both families.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepend: Option<Prepend>,
    /// As for both families.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub med: Option<Metric>,
    /// As for both families.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<Metric>,
    /// As for both families; in their place.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub communities: Option<Vec<Community>>,
}

impl Export {
    /// What counts for a family.
    pub fn of(&self, family: Family) -> FamilyExport {
        let own = match family {
            Family::Ipv4Unicast => &self.ipv4,
            Family::Ipv6Unicast => &self.ipv6,
        };
        let own = own.clone().unwrap_or_default();
        FamilyExport {
            next_hop_self: own.next_hop_self.or(self.next_hop_self),
            prepend: own.prepend.or(self.prepend),
            med: own.med.or(self.med),
            local_pref: own.local_pref.or(self.local_pref),
            communities: own.communities.or_else(|| self.communities.clone()),
        }
    }
}

fn bgp_port() -> Port {
    const BGP: Port = Port::new(179).expect("in range");
    BGP
}

fn both_families() -> Vec<Family> {
    vec![Family::Ipv4Unicast, Family::Ipv6Unicast]
}

fn default_max_prefixes() -> PrefixLimit {
    const LIMIT: PrefixLimit = PrefixLimit::new(100_000).expect("in range");
    LIMIT
}

fn default_max_prefixes_restart() -> Seconds {
    const RESTART: Seconds =
        Seconds::new(bgp_speaker::config::MAX_PREFIXES_RESTART_SECONDS).expect("in range");
    RESTART
}

/// What became of a peer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BGPPeerStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Sessions with this peer, one for each node that has it; of a range those that are established.
    pub sessions: i64,
    /// Those of them that are established.
    pub established_sessions: i64,
}
