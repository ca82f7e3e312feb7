//! PacketFilter: rules against packets of death, applied to every IP packet before anything else looks at it.
use super::{
    crds::rules,
    scalar::{Cidr, PacketLength, PacketOffset, Text, quoted},
    selector::Selector,
};
use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use lb_bpf::{
    Counter,
    abi::proto,
    filter::{Filter, FilterBytes},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr};

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
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
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
        self.mask.unwrap_or(HexBytes { bytes: [0xff; 4], length: self.value.length })
    }
}

/// Protocol above IP, by its IANA number. The common ones are written by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IpProtocol(pub u8);

impl IpProtocol {
    const NAMES: [(&'static str, u8); 5] = [
        ("TCP", proto::TCP),
        ("UDP", proto::UDP),
        ("ICMP", proto::ICMP),
        ("ICMPv6", proto::ICMPV6),
        ("SCTP", proto::SCTP),
    ];

    /// Whether its packets have ports.
    pub const fn has_ports(self) -> bool {
        matches!(self.0, proto::TCP | proto::UDP | proto::SCTP)
    }

    /// Whether its packets have the flags of TCP.
    pub const fn has_tcp_flags(self) -> bool {
        self.0 == proto::TCP
    }
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => f.write_str(name),
            None => self.0.fmt(f),
        }
    }
}

impl FromStr for IpProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = Self::NAMES.iter().find(|(name, _)| *name == text);
        named
            .map(|(_, number)| IpProtocol(*number))
            .ok_or_else(|| format!("{} is not {PROTOCOL}", quoted(text)))
    }
}

const PROTOCOL: &str = "a protocol: TCP, UDP, ICMP, ICMPv6, SCTP or a number (0 to 255)";

/// Ports: one, or from the first to the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first.
    pub first: u16,
    /// The last, not less than the first.
    pub last: u16,
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.first == self.last {
            true => self.first.fmt(f),
            false => write!(f, "{}-{}", self.first, self.last),
        }
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // `u16::from_str` would take a sign.
        let port = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (port(first), port(last)) {
            (Some(first), Some(last)) if first <= last => Ok(PortRange { first, last }),
            _ => Err(format!("{} is not {PORTS}", quoted(text))),
        }
    }
}

const PORTS: &str = "a port or a range of ports such as 1000-2000 (0 to 65535)";

/// One to four bytes, written as `0xdeadbeef`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HexBytes {
    bytes: [u8; 4],
    length: usize,
}

impl HexBytes {
    /// The bytes in the order of the packet.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The bytes and as many zeros as four take.
    fn four(&self) -> [u8; 4] {
        let mut four = [0; 4];
        four[..self.length].copy_from_slice(self.bytes());
        four
    }
}

impl fmt::Display for HexBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for HexBytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.strip_prefix("0x").unwrap_or_default().as_bytes();
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let mut parsed = HexBytes { bytes: [0; 4], length: digits.len() / 2 };
        let well_formed = (1..=4).contains(&parsed.length) && digits.len().is_multiple_of(2);
        for (byte, pair) in parsed.bytes.iter_mut().zip(digits.chunks_exact(2)) {
            match (digit(pair[0]), digit(pair[1])) {
                (Some(high), Some(low)) if well_formed => *byte = (high << 4 | low) as u8,
                _ => return Err(format!("{} is not {BYTES}", quoted(text))),
            }
        }
        if well_formed { Ok(parsed) } else { Err(format!("{} is not {BYTES}", quoted(text))) }
    }
}

const BYTES: &str = "one to four bytes in hexadecimal digits, in quotes: \"0xdeadbeef\"";

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text { expected: BYTES, parse: HexBytes::from_str })
    }
}

impl JsonSchema for HexBytes {
    fn schema_name() -> Cow<'static, str> {
        "HexBytes".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 10, "pattern": "^0x([0-9a-fA-F]{2}){1,4}$"})
    }
}

/// Declares how a type is written that is a number or a text: `$name`, what it is called in an error, how a number
/// becomes one, whether one is written as a number, and its schema.
macro_rules! number_or_text {
    ($name:ident, $what:ident, $of_number:expr, $to_number:expr, $schema:tt) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let to_number: fn(&$name) -> Option<u16> = $to_number;
                match to_number(self) {
                    Some(number) => serializer.serialize_u16(number),
                    None => serializer.collect_str(self),
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;

                impl de::Visitor<'_> for Visitor {
                    type Value = $name;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }

                    fn visit_u64<E: de::Error>(self, value: u64) -> Result<$name, E> {
                        let of_number: fn(u64) -> Option<$name> = $of_number;
                        of_number(value).ok_or_else(|| E::custom(format_args!("{value} is not {}", $what)))
                    }

                    fn visit_i64<E: de::Error>(self, value: i64) -> Result<$name, E> {
                        let not_one = || E::custom(format_args!("{value} is not {}", $what));
                        u64::try_from(value).map_err(|_| not_one()).and_then(|value| self.visit_u64(value))
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }

                deserializer.deserialize_any(Visitor)
            }
        }

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    };
}

number_or_text! {
    IpProtocol, PROTOCOL,
    |number| u8::try_from(number).ok().map(IpProtocol),
    |protocol| Some(protocol.0.into()).filter(|_| IpProtocol::NAMES.iter().all(|(_, number)| *number != protocol.0)),
    {"x-kubernetes-int-or-string": true, "minimum": 0, "maximum": 255, "maxLength": 6,
     "pattern": "^(TCP|UDP|ICMP|ICMPv6|SCTP)$"}
}
number_or_text! {
    PortRange, PORTS,
    |number| u16::try_from(number).ok().map(|port| PortRange { first: port, last: port }),
    |range| Some(range.first).filter(|first| *first == range.last),
    {"x-kubernetes-int-or-string": true, "minimum": 0, "maximum": 65535, "maxLength": 11,
     "pattern": "^[0-9]{1,5}(-[0-9]{1,5})?$"}
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

    fn fault(yaml: &str) -> String {
        serde_yaml_ng::from_str::<FilterRule>(yaml).expect_err("a fault").to_string()
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

    #[test]
    fn numbers_and_texts_come_back_as_written() {
        for text in [
            "action: Drop\nprotocol: TCP\n",
            "action: Drop\nprotocol: ICMPv6\n",
            "action: Drop\nprotocol: 47\n",
            "action: Count\nsourcePorts: 80\n",
            "action: Count\nsourcePorts: 0-65535\n",
            "action: Count\nbytes:\n  offset: 1499\n  value: '0x00ff'\n  mask: '0x00ff'\n",
        ] {
            assert_eq!(serde_yaml_ng::to_string(&rule(text)).unwrap(), text);
        }
        assert_eq!(rule("{action: Drop, protocol: 6}"), rule("{action: Drop, protocol: TCP}"));
        assert_eq!(rule("{action: Drop, sourcePorts: '80'}"), rule("{action: Drop, sourcePorts: 80-80}"));
    }

    #[test]
    fn what_is_none_is_said() {
        for (field, value) in [
            ("protocol", "tcp"),
            ("protocol", "256"),
            ("protocol", "-1"),
            ("protocol", "'6'"),
            ("sourcePorts", "65536"),
            ("sourcePorts", "-1"),
            ("sourcePorts", "'2000-1000'"),
            ("sourcePorts", "'+80'"),
            ("sourcePorts", "'80-'"),
            ("sourcePorts", "'1-2-3'"),
            ("sourcePorts", "''"),
            ("sourcePorts", "80.5"),
            ("bytes", "{offset: 0, value: deadbeef}"),
            ("bytes", "{offset: 0, value: '0x'}"),
            ("bytes", "{offset: 0, value: '0xabc'}"),
            ("bytes", "{offset: 0, value: '0x0011223344'}"),
            ("bytes", "{offset: 0, value: '0x0é'}"),
            ("bytes", "{offset: 0, value: '0xgg'}"),
            ("bytes", "{offset: 1500, value: '0x00'}"),
            ("tcpFlags", "{mask: [syn]}"),
        ] {
            let fault = fault(&format!("{{action: Drop, {field}: {value}}}"));
            assert!(fault.contains("is not") || fault.contains("expected"), "{field}: {value}: {fault}");
        }
    }
}
