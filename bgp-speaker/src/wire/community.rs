//! Communities: standard (RFC 1997), extended (RFC 4360) and large (RFC 8092), with the text that operators
//! write and read.
use super::open::AS_TRANS;
use crate::config::Asn;
use std::{fmt, str::FromStr};

/// A standard community (RFC 1997): AS in the upper 16 bits, value in the lower.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

impl Community {
    /// Traffic is about to be drained (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Community = Community(0xFFFF_0000);
    /// Whoever told the route is long away (RFC 9494 section 3.2): the last choice.
    pub const LLGR_STALE: Community = Community(0xFFFF_0006);
    /// Not to be kept when who told the route is long away (RFC 9494 section 3.3).
    pub const NO_LLGR: Community = Community(0xFFFF_0007);
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
    (Community::LLGR_STALE, "llgr-stale"),
    (Community::NO_LLGR, "no-llgr"),
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

impl LargeCommunity {
    /// Global administrator and both local parts.
    pub fn parts(self) -> (u32, u32, u32) {
        (self.global, self.local1, self.local2)
    }
}

impl From<(u32, u32, u32)> for LargeCommunity {
    fn from((global, local1, local2): (u32, u32, u32)) -> Self {
        LargeCommunity { global, local1, local2 }
    }
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

impl ExtendedCommunity {
    /// Not beyond the AS (RFC 4360 section 2).
    const NON_TRANSITIVE: u8 = 0x40;
    /// Low-order type of the link bandwidth, of the types with a two-octet AS.
    const LINK_BANDWIDTH: u8 = 4;

    /// Link bandwidth in octets per second (draft-ietf-idr-link-bandwidth section 3); an AS that is too large for it is
    /// AS_TRANS. Not transitive.
    pub fn link_bandwidth(asn: Asn, octets_per_second: u64) -> Self {
        let [high, low] = u16::try_from(asn.0).unwrap_or(AS_TRANS).to_be_bytes();
        // The format has 24 bits of precision.
        let [a, b, c, d] = (octets_per_second as f32).to_be_bytes();
        ExtendedCommunity([Self::NON_TRANSITIVE, Self::LINK_BANDWIDTH, high, low, a, b, c, d])
    }

    /// The same community, transitive.
    pub fn transitive(mut self) -> Self {
        self.0[0] &= !Self::NON_TRANSITIVE;
        self
    }

    /// AS and octets per second, if it is a link bandwidth.
    fn as_link_bandwidth(self) -> Option<(u16, f32)> {
        let [kind, Self::LINK_BANDWIDTH, high, low, a, b, c, d] = self.0 else { return None };
        let bandwidth = f32::from_be_bytes([a, b, c, d]);
        let is_one = kind & !Self::NON_TRANSITIVE == 0 && bandwidth.is_finite() && bandwidth >= 0.0;
        is_one.then_some((u16::from_be_bytes([high, low]), bandwidth))
    }
}

/// `lb:65010:125000` (octets per second); else the octets, `ext:0002fde800000001`.
impl fmt::Display for ExtendedCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((asn, bandwidth)) = self.as_link_bandwidth() {
            return write!(f, "lb:{asn}:{bandwidth}");
        }
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
    fn link_bandwidth() {
        let community = ExtendedCommunity::link_bandwidth(Asn(65010), 125_000);
        assert_eq!(community.0, [0x40, 4, 0xfd, 0xf2, 0x47, 0xf4, 0x24, 0]);
        assert_eq!(community.transitive().0[0], 0);
        assert_eq!(community.to_string(), "lb:65010:125000");
        assert_eq!(ExtendedCommunity::link_bandwidth(Asn(70000), 0).to_string(), "lb:23456:0");
        assert_eq!(ExtendedCommunity([0, 4, 0, 1, 0x7f, 0xff, 0, 0]).to_string(), "ext:000400017fff0000");
        assert_eq!(ExtendedCommunity([0, 2, 0, 1, 0, 0, 0, 1]).to_string(), "ext:0002000100000001");
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
