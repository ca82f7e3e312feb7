//! What packets have, as the rules of PacketFilters write it: protocols, ports, bytes.
use super::{
    crds::rules,
    scalar::{Text, quoted},
};
use lb_bpf::abi::proto;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{borrow::Cow, fmt, str::FromStr};

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

    /// As many bytes with all bits set.
    pub const fn all_bits(&self) -> HexBytes {
        HexBytes { bytes: [0xff; 4], length: self.length }
    }

    /// The bytes and as many zeros as four take.
    pub fn four(&self) -> [u8; 4] {
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
        let rule = "self.matches('^0x([0-9a-fA-F]{2}){1,4}$')";
        let message = format!("is not {BYTES}");
        json_schema!({"type": "string", "maxLength": 10, "x-kubernetes-validations": rules(&[(rule, &message)])})
    }
}

/// Declares how a type is written that is a number or a text: `$name`, what it is called in an error, how a number
/// becomes one, whether one is written as a number, and CEL for what a text and what a number has to be.
macro_rules! number_or_text {
    ($name:ident, $what:ident, $of_number:expr, $to_number:expr, $text:literal, $number:literal) => {
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
                let rule = concat!("type(self) == string ? ", $text, " : ", $number);
                let message = format!("is not {}", $what);
                json_schema!({"x-kubernetes-int-or-string": true, "maxLength": 11,
                    "x-kubernetes-validations": rules(&[(rule, &message)])})
            }
        }
    };
}

number_or_text! {
    IpProtocol, PROTOCOL,
    |number| u8::try_from(number).ok().map(IpProtocol),
    |protocol| Some(protocol.0.into()).filter(|_| IpProtocol::NAMES.iter().all(|(_, number)| *number != protocol.0)),
    "self in ['TCP', 'UDP', 'ICMP', 'ICMPv6', 'SCTP']",
    "0 <= self && self <= 255"
}
number_or_text! {
    PortRange, PORTS,
    |number| u16::try_from(number).ok().map(|port| PortRange { first: port, last: port }),
    |range| Some(range.first).filter(|first| *first == range.last),
    "self.matches('^[0-9]{1,5}(-[0-9]{1,5})?$') && self.split('-').all(p, int(p) <= 65535) && \
     int(self.split('-')[0]) <= int(self.split('-')[size(self.split('-')) - 1])",
    "0 <= self && self <= 65535"
}

#[cfg(test)]
mod tests {
    use crate::api::packet_filter::FilterRule;

    fn rule(yaml: &str) -> FilterRule {
        serde_yaml_ng::from_str(yaml).unwrap()
    }

    fn fault(yaml: &str) -> String {
        serde_yaml_ng::from_str::<FilterRule>(yaml).expect_err("a fault").to_string()
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
