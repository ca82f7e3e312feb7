//! Communities: standard (RFC 1997), extended (RFC 4360) and large (RFC 8092), with the text that operators
//! write and read.
use std::{fmt, str::FromStr};

/// A standard community (RFC 1997): AS in the upper 16 bits, value in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

impl Community {
    /// Traffic is about to be drained (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xFFFF_0000);
    /// Not to leave the AS or confederation (RFC 1997).
    pub const NO_EXPORT: Community = Community(0xFFFF_FF01);
    /// Not to be passed to any peer (RFC 1997).
    pub const NO_ADVERTISE: Community = Community(0xFFFF_FF02);
    /// Not to be passed to external peers, members of the confederation among them (RFC 1997).
    pub const NO_EXPORT_SUBCONFED: Community = Community(0xFFFF_FF03);
}

/// The well-known communities by the names of IANA's registry, in lower case with hyphens.
const WELL_KNOWN: [(Community, &str); 9] = [
    (Community::GRACEFUL_SHUTDOWN, "graceful-shutdown"),
    (Community(0xFFFF_0001), "accept-own"),
    (Community(0xFFFF_0006), "llgr-stale"),
    (Community(0xFFFF_0007), "no-llgr"),
    (Community(0xFFFF_029A), "blackhole"),
    (Community::NO_EXPORT, "no-export"),
    (Community::NO_ADVERTISE, "no-advertise"),
    (Community::NO_EXPORT_SUBCONFED, "no-export-subconfed"),
    (Community(0xFFFF_FF04), "no-peer"),
];

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match WELL_KNOWN.iter().find(|(community, _)| community == self) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}:{}", self.0 >> 16, self.0 & 0xFFFF),
        }
    }
}

impl FromStr for Community {
    type Err = ParseCommunityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some((community, _)) = WELL_KNOWN.iter().find(|(_, name)| *name == text) {
            return Ok(*community);
        }
        let error = || ParseCommunityError(text.to_owned());
        let (high, low) = text.split_once(':').ok_or_else(error)?;
        let part = |part: &str| decimal::<u16>(part).ok_or_else(error);
        Ok(Community(u32::from(part(high)?) << 16 | u32::from(part(low)?)))
    }
}

/// A large community (RFC 8092): an AS and two parts of its choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    /// Global administrator: an AS.
    pub global: u32,
    /// Local data, first part.
    pub local1: u32,
    /// Local data, second part.
    pub local2: u32,
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.global, self.local1, self.local2)
    }
}

impl FromStr for LargeCommunity {
    type Err = ParseCommunityError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts: Option<Vec<u32>> = text.split(':').map(decimal::<u32>).collect();
        match parts.as_deref() {
            Some(&[global, local1, local2]) => Ok(LargeCommunity { global, local1, local2 }),
            _ => Err(ParseCommunityError(text.to_owned())),
        }
    }
}

/// An extended community (RFC 4360) as its eight octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedCommunity(pub [u8; 8]);

impl fmt::Display for ExtendedCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ext:{:016x}", u64::from_be_bytes(self.0))
    }
}

/// The text is no community.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is no community: want AS:VALUE (16 bits each), AS:VALUE:VALUE (32 bits each), or a well-known name"
)]
pub struct ParseCommunityError(String);

/// A number of digits alone: `parse` would take a sign, too.
fn decimal<T: FromStr>(text: &str) -> Option<T> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_back() {
        for text in ["65010:100", "0:0", "65535:65535", "no-export", "graceful-shutdown", "blackhole"] {
            assert_eq!(text.parse::<Community>().unwrap().to_string(), text);
        }
        assert_eq!("65535:65281".parse::<Community>().unwrap(), Community::NO_EXPORT);
        assert_eq!("65010:1:2".parse::<LargeCommunity>().unwrap().to_string(), "65010:1:2");
        assert_eq!("4294967295:0:4294967295".parse::<LargeCommunity>().unwrap().global, u32::MAX);
    }

    #[test]
    fn what_is_no_community() {
        for text in ["", "1", "65536:1", "1:65536", "+1:2", "1:-2", "1:2:3", "no_export", " 1:2"] {
            assert!(text.parse::<Community>().is_err(), "{text}");
        }
        for text in ["", "1:2", "1:2:3:4", "4294967296:0:0", "1::2", "+1:2:3"] {
            assert!(text.parse::<LargeCommunity>().is_err(), "{text}");
        }
    }
}
