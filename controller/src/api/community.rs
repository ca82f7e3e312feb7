//! BGP communities as they are written: `65010:100` (RFC 1997), `65010:1:2` (RFC 8092), or the name of a
//! well-known one.
use super::{
    crds::rules,
    scalar::{Text, quoted},
};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::{borrow::Cow, fmt, str::FromStr};

/// A standard or large community.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    /// Four octets, the first two of them an AS number by convention (RFC 1997).
    Standard(u32),
    /// Global administrator and two local parts (RFC 8092).
    Large(u32, u32, u32),
}

/// The well-known communities, by their names in the IANA registry "BGP Well-known Communities".
const WELL_KNOWN: [(&str, u32); 9] = [
    ("graceful-shutdown", 0xFFFF_0000),   // RFC 8326
    ("accept-own", 0xFFFF_0001),          // RFC 7611
    ("llgr-stale", 0xFFFF_0006),          // RFC 9494
    ("no-llgr", 0xFFFF_0007),             // RFC 9494
    ("blackhole", 0xFFFF_029A),           // RFC 7999
    ("no-export", 0xFFFF_FF01),           // RFC 1997
    ("no-advertise", 0xFFFF_FF02),        // RFC 1997
    ("no-export-subconfed", 0xFFFF_FF03), // RFC 1997
    ("no-peer", 0xFFFF_FF04),             // RFC 3765
];

impl FromStr for Community {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named =
            WELL_KNOWN.iter().find(|(name, _)| *name == text).map(|(_, value)| Community::Standard(*value));
        named.or_else(|| numeric(text)).ok_or_else(|| format!("{} {}", quoted(text), not_one()))
    }
}

/// The names of the well-known communities.
fn names(between: &str) -> String {
    WELL_KNOWN.map(|(name, _)| name).join(between)
}

/// What is said of a text that is no community.
fn not_one() -> String {
    format!("is not a community: 65010:100, 65010:1:2 or one of {}", names(", "))
}

/// `high:low` of 16 bits each, or three numbers of 32 bits each.
fn numeric(text: &str) -> Option<Community> {
    // `u32::from_str` would take a sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit() || byte == b':') {
        return None;
    }
    match *text.split(':').collect::<Vec<_>>() {
        [high, low] => {
            let (high, low) = (high.parse::<u16>().ok()?, low.parse::<u16>().ok()?);
            Some(Community::Standard(u32::from(high) << 16 | u32::from(low)))
        }
        [global, first, second] => {
            Some(Community::Large(global.parse().ok()?, first.parse().ok()?, second.parse().ok()?))
        }
        _ => None,
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Community::Standard(value) => match WELL_KNOWN.iter().find(|(_, known)| *known == value) {
                Some((name, _)) => f.write_str(name),
                None => write!(f, "{}:{}", value >> 16, value & 0xFFFF),
            },
            Community::Large(global, first, second) => write!(f, "{global}:{first}:{second}"),
        }
    }
}

impl Serialize for Community {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Community {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_str(Text { expected: "a community such as 65010:100", parse: Community::from_str })
    }
}

impl JsonSchema for Community {
    fn schema_name() -> Cow<'static, str> {
        "Community".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // What matches has numbers of at most ten digits, so `int` cannot overflow.
        let rule = format!(
            "self.matches('^([0-9]{{1,5}}:[0-9]{{1,5}}|[0-9]{{1,10}}:[0-9]{{1,10}}:[0-9]{{1,10}}|{})$') && \
             (!self.contains(':') || self.split(':').all(n, int(n) <= (size(self.split(':')) == 2 ? 65535 : 4294967295)))",
            names("|")
        );
        json_schema!({"type": "string", "maxLength": 32, "x-kubernetes-validations": rules(&[(&rule, &not_one())])})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        assert_eq!("65010:100".parse(), Ok(Community::Standard(65010 << 16 | 100)));
        assert_eq!("4200000000:1:2".parse(), Ok(Community::Large(4_200_000_000, 1, 2)));
        assert_eq!("no-export".parse(), Ok(Community::Standard(0xFFFF_FF01)));
        assert_eq!("65535:666".parse(), "blackhole".parse::<Community>());
        for text in ["0:0", "65535:65535", "1:2:3", "graceful-shutdown", "no-peer"] {
            assert_eq!(text.parse::<Community>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn refuses_everything_else() {
        for text in [
            "",
            ":",
            "1",
            "65536:1",
            "1:65536",
            "1:2:3:4",
            "4294967296:1:1",
            "+1:2",
            " 1:2",
            "no_export",
            "1:-2",
            "a:b",
        ] {
            assert!(text.parse::<Community>().is_err(), "{text}");
        }
    }
}
