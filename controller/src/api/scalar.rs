//! Numbers and texts that have rules, each a type that cannot hold anything else: deserializing checks, and the
//! JSON schema says the same to an API server.
use super::crds::rules;
use ipnet::IpNet;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use std::{
    borrow::Cow,
    fmt,
    net::{IpAddr, Ipv4Addr},
    str::FromStr,
};

/// Why an address is nobody's.
pub(super) const UNSPECIFIED: &str = "is the unspecified address";
/// Why an address is not a service's.
pub(super) const LOOPBACK: &str = "is a loopback address";
/// The same.
pub(super) const LINK_LOCAL: &str = "is link-local";

/// Declares an integer newtype with an inclusive range: `$name`, its inner type, its JSON schema format, what
/// it is called in an error, and the range.
macro_rules! ranged {
    ($(#[$doc:meta])* $name:ident($inner:ty as $format:literal), $what:literal, $min:literal ..= $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
        #[serde(transparent)]
        pub struct $name($inner);

        impl $name {
            /// Smallest value.
            pub const MIN: $name = $name($min);
            /// Largest value.
            pub const MAX: $name = $name($max);

            #[doc = concat!("The value, if it is ", $what, ".")]
            pub const fn new(value: $inner) -> Option<Self> {
                if ($min as i128) <= (value as i128) && (value as i128) <= ($max as i128) {
                    Some($name(value))
                } else {
                    None
                }
            }

            /// The number.
            pub const fn get(self) -> $inner {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> $inner {
                value.0
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let range = Range { what: $what, min: $min, max: $max };
                let value = deserializer.deserialize_i64(range)?;
                // The visitor checked the range, which is within that of the inner type.
                <$inner>::try_from(value).map($name).map_err(de::Error::custom)
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
                let (min, max): (i64, i64) = ($min, $max);
                let message = format!("is not {} ({min} to {max})", $what);
                json_schema!({"type": "integer", "format": $format, "minimum": min, "maximum": max,
                    "x-kubernetes-validations": rules(&[(&format!("{min} <= self && self <= {max}"), &message)])})
            }
        }
    };
}

ranged! {
    /// Autonomous system number (RFC 6793). 0 is refused (RFC 7607).
    Asn(u32 as "int64"), "an AS number", 1 ..= 4_294_967_295
}
ranged! {
    /// TCP or UDP port.
    Port(u16 as "int32"), "a port", 1 ..= 65535
}
ranged! {
    /// Port to listen on; 0: do not listen.
    ListenPort(u16 as "int32"), "a port to listen on", 0 ..= 65535
}
ranged! {
    /// Share relative to others; 0: none, drain.
    Weight(u16 as "int32"), "a weight", 0 ..= 65535
}
ranged! {
    /// Duration in seconds, at most a week.
    Seconds(u32 as "int32"), "a number of seconds", 0 ..= 604_800
}
ranged! {
    /// How long a cluster may be out of reach, in seconds, at most a day.
    StaleSeconds(u32 as "int32"), "a time out of reach", 1 ..= 86_400
}
ranged! {
    /// Duration in milliseconds, 10 ms to an hour.
    Millis(u32 as "int32"), "a number of milliseconds", 10 ..= 3_600_000
}
ranged! {
    /// How many results in a row it takes.
    Threshold(u8 as "int32"), "a number of results in a row", 1 ..= 100
}
ranged! {
    /// Length of a QUIC server ID.
    ServerIDBytes(u8 as "int32"), "a length of a server ID", 1 ..= 8
}
ranged! {
    /// BGP hold time in seconds (RFC 4271 section 4.2); 1 and 2 are refused by a rule of their own.
    HoldSeconds(u16 as "int32"), "a hold time", 0 ..= 65535
}
ranged! {
    /// BGP connect retry time in seconds (RFC 4271 section 8).
    RetrySeconds(u16 as "int32"), "a connect retry time", 1 ..= 65535
}
ranged! {
    /// BGP restart time in seconds, 12 bits (RFC 4724 section 3).
    RestartSeconds(u16 as "int32"), "a restart time", 0 ..= 4095
}
ranged! {
    /// BGP long-lived stale time in seconds, 24 bits (RFC 9494 section 3.1).
    LongLivedSeconds(u32 as "int32"), "a long-lived stale time", 0 ..= 16_777_215
}
ranged! {
    /// Time between the statistics of a BMP station in seconds; 0: there are none.
    StatsSeconds(u32 as "int32"), "a time between statistics", 0 ..= 86_400
}
ranged! {
    /// IP time to live of a multihop session.
    Ttl(u8 as "int32"), "a TTL", 1 ..= 255
}
ranged! {
    /// Number of links to a neighbour (RFC 5082): 1 is a neighbour on the link.
    Hops(u8 as "int32"), "a number of hops", 1 ..= 254
}
ranged! {
    /// How many times the AS is prepended more.
    Prepend(u8 as "int32"), "a number of times to prepend", 0 ..= 16
}
ranged! {
    /// Number of prefixes.
    PrefixLimit(u32 as "int64"), "a number of prefixes", 1 ..= 4_294_967_295
}
ranged! {
    /// Number of sessions with neighbours that come by themselves.
    PeerLimit(u16 as "int32"), "a number of sessions", 1 ..= 10_000
}
ranged! {
    /// LOCAL_PREF or MULTI_EXIT_DISC (RFC 4271 section 4.3).
    Metric(u32 as "int64"), "a metric", 0 ..= 4_294_967_295
}
ranged! {
    /// Number of backends.
    BackendCount(u32 as "int32"), "a number of backends", 0 ..= 10_000
}
ranged! {
    /// Length of an IPv4 prefix in bits.
    Ipv4Length(u8 as "int32"), "an IPv4 prefix length", 0 ..= 32
}
ranged! {
    /// Length of an IPv6 prefix in bits.
    Ipv6Length(u8 as "int32"), "an IPv6 prefix length", 0 ..= 128
}
ranged! {
    /// Percentage.
    Percent(u8 as "int32"), "a percentage", 0 ..= 100
}
ranged! {
    /// Length of an IP packet, bytes.
    PacketLength(u16 as "int32"), "a length of a packet", 0 ..= 65535
}
ranged! {
    /// Offset from the begin of an IP header, bytes.
    PacketOffset(u16 as "int32"), "an offset", 0 ..= 1499
}
ranged! {
    /// BFD detection multiplier (RFC 5880 section 4.1).
    Multiplier(u8 as "int32"), "a detection multiplier", 1 ..= 255
}

impl Default for Prepend {
    fn default() -> Self {
        Prepend::MIN
    }
}

impl PacketLength {
    /// [`PacketLength::MIN`].
    pub(super) const fn least() -> Self {
        PacketLength::MIN
    }

    /// [`PacketLength::MAX`].
    pub(super) const fn greatest() -> Self {
        PacketLength::MAX
    }
}

/// Declares a newtype that is written as text: `$name`, its inner type, its `parse` function, and its schema.
macro_rules! text {
    ($(#[$doc:meta])* $name:ident($inner:ty), $parse:path, $expected:literal, $schema:tt) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl From<$name> for $inner {
            fn from(value: $name) -> $inner {
                value.0
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                $parse(text).map($name)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                deserializer.deserialize_str(Text { expected: $expected, parse: $parse }).map($name)
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

text! {
    /// IPv4 or IPv6 address of a host. An IPv4-mapped IPv6 address is refused, for it would be a second name of
    /// an IPv4 address.
    Address(IpAddr), parse_address, "an IP address",
    {"type": "string", "maxLength": 45, "x-kubernetes-validations": [
        {"rule": "isIP(self) || self.startsWith('::ffff:')", "message": "is not an IP address"},
        {"rule": "!self.startsWith('::ffff:')", "message": "is IPv4-mapped: write it as IPv4"}]}
}
text! {
    /// A prefix, `203.0.113.0/24`. Bits beyond the length are refused: they are more often a mistake than not.
    Cidr(IpNet), parse_cidr, "a CIDR such as 203.0.113.0/24",
    {"type": "string", "maxLength": 49, "x-kubernetes-validations": [
        {"rule": "isCIDR(self) || self.startsWith('::ffff:')",
         "message": "is not a CIDR such as 203.0.113.0/24 or 2001:db8::/64"},
        {"rule": "!self.startsWith('::ffff:')", "message": "is IPv4-mapped: write it as IPv4"},
        {"rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()", "message": "has host bits set"}]}
}
text! {
    /// BGP identifier: four octets as an IPv4 address, not 0.0.0.0 (RFC 6286).
    RouterId(Ipv4Addr), parse_router_id, "a router ID such as 10.0.0.2",
    {"type": "string", "maxLength": 15, "x-kubernetes-validations": [
        {"rule": "isIP(self) && ip(self).family() == 4 && self != '0.0.0.0'",
         "message": "is not a router ID: an IPv4 address other than 0.0.0.0"}]}
}

/// What an import policy accepts: `any`, or every prefix within a CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// Every prefix of both families.
    Any,
    /// The prefix itself and all that are longer.
    Within(IpNet),
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "any" { Ok(Prefix::Any) } else { parse_cidr(text).map(Prefix::Within) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Prefix::Any => f.write_str("any"),
            Prefix::Within(net) => net.fmt(f),
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Prefix {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(Text { expected: "a CIDR or `any`", parse: Prefix::from_str })
    }
}

impl JsonSchema for Prefix {
    fn schema_name() -> Cow<'static, str> {
        "Prefix".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 49, "x-kubernetes-validations": [
            {"rule": "self == 'any' || isCIDR(self) || self.startsWith('::ffff:')",
             "message": "is not a CIDR such as 203.0.113.0/24 or 2001:db8::/64"},
            {"rule": "!self.startsWith('::ffff:')", "message": "is IPv4-mapped: write it as IPv4"},
            {"rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()", "message": "has host bits set"}]})
    }
}

/// Visitor of a text that `parse` turns into a value or a reason.
pub(super) struct Text<F> {
    pub(super) expected: &'static str,
    pub(super) parse: F,
}

impl<T, F: FnOnce(&str) -> Result<T, String>> de::Visitor<'_> for Text<F> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).map_err(E::custom)
    }
}

/// Visitor of an integer within a range.
struct Range {
    what: &'static str,
    min: i64,
    max: i64,
}

impl Range {
    fn check<E: de::Error>(&self, value: i128) -> Result<i64, E> {
        i64::try_from(value).ok().filter(|value| (self.min..=self.max).contains(value)).ok_or_else(|| {
            E::custom(format_args!("{value} is not {} ({} to {})", self.what, self.min, self.max))
        })
    }
}

impl de::Visitor<'_> for Range {
    type Value = i64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} to {})", self.what, self.min, self.max)
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<i64, E> {
        self.check(value.into())
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<i64, E> {
        self.check(value.into())
    }
}

fn parse_address(text: &str) -> Result<IpAddr, String> {
    match text.parse() {
        Ok(IpAddr::V6(address)) => match address.to_ipv4_mapped() {
            Some(_) => Err(format!("{text} is IPv4-mapped: write it as IPv4")),
            None => Ok(IpAddr::V6(address)),
        },
        Ok(address) => Ok(address),
        Err(_) => Err(format!("{} is not an IP address", quoted(text))),
    }
}

pub(super) fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text
        .parse()
        .map_err(|_| format!("{} is not a CIDR such as 203.0.113.0/24 or 2001:db8::/64", quoted(text)))?;
    if let IpAddr::V6(address) = net.addr()
        && address.to_ipv4_mapped().is_some()
    {
        return Err(format!("{text} is IPv4-mapped: write it as IPv4"));
    }
    if net == net.trunc() { Ok(net) } else { Err(format!("{text} has host bits set: write {}", net.trunc())) }
}

fn parse_router_id(text: &str) -> Result<Ipv4Addr, String> {
    text.parse()
        .ok()
        .filter(|id: &Ipv4Addr| !id.is_unspecified())
        .ok_or_else(|| format!("{} is not a router ID: an IPv4 address other than 0.0.0.0", quoted(text)))
}

/// The text for an error: quoted, on one line, and cut if it is long.
pub(crate) fn quoted(text: &str) -> String {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", &text[..end]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fault<T: de::DeserializeOwned + fmt::Debug>(yaml: &str) -> String {
        serde_yaml_ng::from_str::<T>(yaml).expect_err("a fault").to_string()
    }

    #[test]
    fn numbers_are_within_their_range() {
        assert_eq!(serde_yaml_ng::from_str::<Port>("65535").unwrap(), Port::MAX);
        assert_eq!(serde_yaml_ng::from_str::<Asn>("4294967295").unwrap(), Asn::MAX);
        assert_eq!(fault::<Port>("70000"), "70000 is not a port (1 to 65535)");
        assert_eq!(fault::<Port>("-1"), "-1 is not a port (1 to 65535)");
        assert_eq!(fault::<Asn>("0"), "0 is not an AS number (1 to 4294967295)");
        assert_eq!(fault::<Asn>("4294967296"), "4294967296 is not an AS number (1 to 4294967295)");
        assert_eq!(fault::<Port>("http"), "invalid type: string \"http\", expected a port (1 to 65535)");
        assert_eq!(
            fault::<Port>("80.5"),
            "invalid type: floating point `80.5`, expected a port (1 to 65535)"
        );
    }

    #[test]
    fn texts_say_what_is_wrong() {
        assert_eq!(fault::<Address>("10.0.0.300"), "\"10.0.0.300\" is not an IP address");
        assert_eq!(fault::<Address>("'::ffff:10.0.0.1'"), "::ffff:10.0.0.1 is IPv4-mapped: write it as IPv4");
        assert_eq!(fault::<Cidr>("10.0.0.1/24"), "10.0.0.1/24 has host bits set: write 10.0.0.0/24");
        assert!(fault::<Cidr>("10.0.0.0/33").contains("is not a CIDR"));
        assert!(fault::<RouterId>("0.0.0.0").contains("other than 0.0.0.0"));
        assert!(fault::<Address>(&"x".repeat(1000)).len() < 120);
    }

    #[test]
    fn texts_come_back_as_written() {
        for text in ["any", "10.0.0.0/8", "2001:db8::/32"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
    }
}
