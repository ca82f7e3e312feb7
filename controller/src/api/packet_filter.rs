//! PacketFilter: rules against packets of death, applied to every IP packet before anything else looks at it.
use super::{
    crds::rules,
    packet::{HexBytes, IpProtocol, PortRange},
    scalar::{Cidr, PacketLength, PacketOffset},
    selector::{DNS_LABEL, Selector},
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use lb_bpf::{
    Counter,
    filter::{Filter, FilterBytes},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Rules that drop or count packets, on the nodes that are selected, until they expire.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "PacketFilter",
    plural = "packetfilters",
    shortname = "pf",
    category = "fairlead",
    doc = "PacketFilter: rules that drop or count packets before anything else looks at them.",
    status = "PacketFilterStatus",
    derive = "PartialEq",
    printcolumn(name = "Rules", type_ = "string", json_path = ".status.rules[*].name"),
    printcolumn(name = "Packets", type_ = "string", json_path = ".status.rules[*].packets"),
    printcolumn(
        name = "Active",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Active\")].status"
    ),
    printcolumn(
        name = "Programmed",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Programmed\")].status"
    ),
    printcolumn(name = "Expires", type_ = "string", json_path = ".spec.expiresAt"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.rules.all(r, !has(r.name) || self.rules.exists_one(q, has(q.name) && q.name == r.name))", UNIQUE_RULE_NAMES),
])))]
pub struct PacketFilterSpec {
    /// The rules. A packet that several match is counted by each, up to the first that drops it; which comes first is
    /// not said.
    #[schemars(length(min = 1, max = 64))]
    pub rules: Vec<FilterRule>,
    /// Nodes that apply them, by their labels.
    #[serde(default)]
    pub node_selector: Selector,
    /// From when on they are applied no more; none: they are applied for as long as the object is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
}

/// Why two rules of one name are refused.
pub(crate) const UNIQUE_RULE_NAMES: &str = "the names of rules must be unique";

/// A rule. A packet matches if all that is named is so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    (
        "self.action != 'Drop' || has(self.protocol) || has(self.source) || has(self.destination) || \
         has(self.sourcePorts) || has(self.destinationPorts) || has(self.length) || has(self.tcpFlags) || \
         has(self.fragment) || has(self.bytes)",
        DROPS_EVERYTHING
    ),
    (
        "!has(self.source) || !has(self.destination) || \
         cidr(self.source).ip().family() == cidr(self.destination).ip().family()",
        ONE_FAMILY
    ),
    (
        "!has(self.protocol) || !(has(self.sourcePorts) || has(self.destinationPorts)) || \
         (type(self.protocol) == string ? self.protocol in ['TCP', 'UDP', 'SCTP'] : self.protocol in [6, 17, 132])",
        PORTS_OF_PROTOCOL
    ),
    (
        "!has(self.protocol) || !has(self.tcpFlags) || \
         (type(self.protocol) == string ? self.protocol == 'TCP' : self.protocol == 6)",
        FLAGS_OF_PROTOCOL
    ),
])))]
pub struct FilterRule {
    /// Name, unique within the filter: a DNS label; none: the rule's number, from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), extend("x-kubernetes-validations" = rules(&[DNS_LABEL])))]
    pub name: Option<String>,
    /// What becomes of packets that match.
    pub action: FilterAction,
    /// Protocol: `TCP`, `UDP`, `ICMP`, `ICMPv6`, `SCTP`, or its IANA number. In IPv6 the one behind the extension
    /// headers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<IpProtocol>,
    /// Source addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Cidr>,
    /// Destination addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Cidr>,
    /// Source ports of TCP, UDP or SCTP: `80` or `1000-2000`. No fragment but the first has ports.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_ports: Option<PortRange>,
    /// Destination ports, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_ports: Option<PortRange>,
    /// Length of the IP packet as its header says it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<LengthRange>,
    /// Flags of TCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tcp_flags: Option<TcpFlags>,
    /// Whether the packet is a fragment, the first included.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment: Option<bool>,
    /// Bytes at an offset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<BytesAt>,
}

/// Why a rule that drops everything is refused.
pub(crate) const DROPS_EVERYTHING: &str = "a rule that drops must name what it matches";
/// Why prefixes of two families are refused.
pub(crate) const ONE_FAMILY: &str = "source and destination must be of one address family";
/// Which protocols have ports.
pub(crate) const PORTS_OF_PROTOCOL: &str = "only TCP, UDP and SCTP have ports";
/// Which protocol has flags.
pub(crate) const FLAGS_OF_PROTOCOL: &str = "only TCP has tcpFlags";

impl FilterRule {
    /// Whether it matches every packet.
    pub fn is_everything(&self) -> bool {
        *self == FilterRule { name: self.name.clone(), ..FilterRule::new(self.action) }
    }

    /// A rule that names nothing.
    pub const fn new(action: FilterAction) -> Self {
        FilterRule {
            name: None,
            action,
            protocol: None,
            source: None,
            destination: None,
            source_ports: None,
            destination_ports: None,
            length: None,
            tcp_flags: None,
            fragment: None,
            bytes: None,
        }
    }

    /// Its name, or its number if it has none.
    pub fn label(&self, number: usize) -> String {
        self.name.clone().unwrap_or_else(|| number.to_string())
    }

    /// The rule as the datapath knows it.
    pub fn datapath_filter(&self) -> Filter {
        Filter {
            action: match self.action {
                FilterAction::Drop => lb_bpf::filter::FilterAction::Drop,
                FilterAction::Count => lb_bpf::filter::FilterAction::Count,
            },
            protocol: self.protocol.map(|protocol| protocol.0),
            source: self.source.map(IpNet::from),
            destination: self.destination.map(IpNet::from),
            source_ports: self.source_ports.map(|ports| (ports.first, ports.last)),
            destination_ports: self.destination_ports.map(|ports| (ports.first, ports.last)),
            length: self.length.map(|length| (length.min.get(), length.max.get())),
            tcp_flags: self
                .tcp_flags
                .as_ref()
                .map(|flags| (TcpFlag::bits(&flags.mask), TcpFlag::bits(&flags.set))),
            fragment: self.fragment,
            bytes: self.bytes.map(|bytes| FilterBytes {
                offset: bytes.offset.get(),
                mask: bytes.bits().four(),
                value: bytes.value.four(),
            }),
        }
    }
}

/// What becomes of packets that match a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FilterAction {
    /// They are dropped and counted.
    Drop,
    /// They are counted.
    Count,
}

/// Lengths of IP packets, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("self.min <= self.max", MIN_MAX)])))]
pub struct LengthRange {
    /// The least.
    #[serde(default = "PacketLength::least")]
    pub min: PacketLength,
    /// The greatest.
    #[serde(default = "PacketLength::greatest")]
    pub max: PacketLength,
}

/// How the bounds of a length relate.
pub(crate) const MIN_MAX: &str = "min must be at most max";

/// Flags of TCP: those that count, and which of them must be set; the others of those must not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[("self.set.all(f, f in self.mask)", SET_IN_MASK)])))]
pub struct TcpFlags {
    /// The flags that count.
    #[schemars(length(min = 1, max = 8))]
    pub mask: Vec<TcpFlag>,
    /// Those of them that must be set.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub set: Vec<TcpFlag>,
}

/// How the lists of flags relate.
pub(crate) const SET_IN_MASK: &str = "set has flags that mask has not";

/// A flag of TCP (RFC 9293, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "the names are the RFC's")]
pub enum TcpFlag {
    FIN = 1,
    SYN = 1 << 1,
    RST = 1 << 2,
    PSH = 1 << 3,
    ACK = 1 << 4,
    URG = 1 << 5,
    ECE = 1 << 6,
    CWR = 1 << 7,
}

impl TcpFlag {
    /// The flags as they lie in the header.
    fn bits(flags: &[TcpFlag]) -> u8 {
        flags.iter().fold(0, |bits, flag| bits | *flag as u8)
    }
}

/// Up to four bytes at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("!has(self.mask) || size(self.mask) == size(self.value)", MASK_LENGTH),
])))]
pub struct BytesAt {
    /// From the begin of the IP header, bytes.
    pub offset: PacketOffset,
    /// What they must be.
    pub value: HexBytes,
    /// The bits that count; none: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mask: Option<HexBytes>,
}

/// How long a mask is.
pub(crate) const MASK_LENGTH: &str = "mask must be as long as value";

impl BytesAt {
    /// The bits that count.
    pub fn bits(&self) -> HexBytes {
        self.mask.unwrap_or(self.value.all_bits())
    }
}

/// What became of a packet filter.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PacketFilterStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The rules, in their order, with what they matched since they are applied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub rules: Vec<RuleStatus>,
}

/// What a rule matched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Its name, or its number.
    pub name: String,
    /// Packets.
    pub packets: i64,
    /// Bytes of the packets as received, Ethernet header included.
    pub bytes: i64,
}

impl RuleStatus {
    /// Of a rule that is called `name`; without a counter it has counted nothing.
    pub fn new(name: String, counter: Option<Counter>) -> Self {
        let count = |number| i64::try_from(number).unwrap_or(i64::MAX);
        let Counter { packets, bytes, .. } = counter.unwrap_or_default();
        RuleStatus { name, packets: count(packets), bytes: count(bytes) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(yaml: &str) -> FilterRule {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    #[test]
    fn a_rule_becomes_a_filter() {
        let full = rule(
            "{action: Drop, protocol: TCP, source: 192.0.2.0/24, destination: 203.0.113.0/24, sourcePorts: 53, \
             destinationPorts: 1000-2000, length: {min: 40}, tcpFlags: {mask: [SYN, ACK], set: [SYN]}, \
             fragment: false, bytes: {offset: 28, value: '0xdead'}}",
        );
        let wanted = Filter {
            action: lb_bpf::filter::FilterAction::Drop,
            protocol: Some(6),
            source: Some("192.0.2.0/24".parse().unwrap()),
            destination: Some("203.0.113.0/24".parse().unwrap()),
            source_ports: Some((53, 53)),
            destination_ports: Some((1000, 2000)),
            length: Some((40, 65535)),
            tcp_flags: Some((0x12, 0x02)),
            fragment: Some(false),
            bytes: Some(FilterBytes { offset: 28, mask: [0xff, 0xff, 0, 0], value: [0xde, 0xad, 0, 0] }),
        };
        assert_eq!(full.datapath_filter(), wanted);
        assert!(!full.is_everything());
        let none = rule("{name: all, action: Count}");
        assert_eq!(none.datapath_filter(), Filter::new(lb_bpf::filter::FilterAction::Count));
        assert!(none.is_everything());
        let masked =
            rule("{action: Count, bytes: {offset: 0, value: '0x40', mask: '0xF0'}}").datapath_filter();
        assert_eq!(masked.bytes.unwrap().mask, [0xf0, 0, 0, 0]);
    }
}
