//! Capabilities (RFC 5492).
use super::{
    EncodeError,
    parse::{Malformed, Parsed, repeat, short_block, whole},
};
use crate::config::{Asn, Family};
use nom::{
    Parser,
    number::complete::{be_u8, be_u16, be_u32},
};
use std::fmt;

/// Address family and subsequent address family as on the wire (RFC 4760), known or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AfiSafi {
    /// Address Family Identifier.
    pub afi: u16,
    /// Subsequent Address Family Identifier.
    pub safi: u8,
}

impl AfiSafi {
    /// The family, if it is one that this speaker knows.
    pub fn family(self) -> Option<Family> {
        match (self.afi, self.safi) {
            (1, 1) => Some(Family::Ipv4Unicast),
            (2, 1) => Some(Family::Ipv6Unicast),
            _ => None,
        }
    }
}

impl From<Family> for AfiSafi {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4Unicast => AfiSafi { afi: 1, safi: 1 },
            Family::Ipv6Unicast => AfiSafi { afi: 2, safi: 1 },
        }
    }
}

/// A capability of a speaker.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Capability {
    /// Multiprotocol extensions for a family (RFC 4760), code 1.
    MultiProtocol(AfiSafi),
    /// Route refresh (RFC 2918), code 2.
    RouteRefresh,
    /// Next hops of another family (RFC 8950), code 5: routes of the families may have next hops of the AFI beside.
    ExtendedNextHop(Vec<(AfiSafi, u16)>),
    /// Four-octet AS numbers (RFC 6793), code 65, with the sender's AS.
    FourOctetAs(Asn),
    /// Enhanced route refresh (RFC 7313), code 70.
    EnhancedRouteRefresh,
    /// Any other, as received.
    Other {
        /// Capability code.
        code: u8,
        /// Its value, at most 255 octets.
        value: Box<[u8]>,
    },
}

impl Capability {
    /// The capability code.
    pub fn code(&self) -> u8 {
        match self {
            Capability::MultiProtocol(_) => 1,
            Capability::RouteRefresh => 2,
            Capability::ExtendedNextHop(_) => 5,
            Capability::FourOctetAs(_) => 65,
            Capability::EnhancedRouteRefresh => 70,
            Capability::Other { code, .. } => *code,
        }
    }
}

impl fmt::Display for Capability {
    /// The name, as short as an operator would have it: `multiprotocol 1/1`, `four-octet-as 65001`, `add-path`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Capability::MultiProtocol(AfiSafi { afi, safi }) => write!(f, "multiprotocol {afi}/{safi}"),
            Capability::RouteRefresh => f.write_str("route-refresh"),
            Capability::ExtendedNextHop(_) => f.write_str("extended-next-hop"),
            Capability::FourOctetAs(asn) => write!(f, "four-octet-as {}", asn.0),
            Capability::EnhancedRouteRefresh => f.write_str("enhanced-route-refresh"),
            Capability::Other { code, .. } => match name(*code) {
                Some(name) => f.write_str(name),
                None => write!(f, "capability {code}"),
            },
        }
    }
}

/// Names of codes that this speaker shows and does not use (IANA's registry of capability codes).
fn name(code: u8) -> Option<&'static str> {
    Some(match code {
        3 => "outbound-route-filtering",
        6 => "extended-message",
        8 => "multiple-labels",
        9 => "role",
        64 => "graceful-restart",
        67 => "dynamic-capability",
        68 => "multisession",
        69 => "add-path",
        71 => "long-lived-graceful-restart",
        73 => "fqdn",
        75 => "software-version",
        76 => "paths-limit",
        128 => "route-refresh-old",
        131 => "multisession-old",
        _ => return None,
    })
}

/// Address family, a reserved octet, subsequent address family: as in the capability and in ROUTE-REFRESH,
/// where the octet in the middle has a meaning of its own.
pub(super) fn afi_safi(input: &[u8]) -> Parsed<'_, (AfiSafi, u8)> {
    (be_u16, be_u8, be_u8).map(|(afi, middle, safi)| (AfiSafi { afi, safi }, middle)).parse(input)
}

/// One capability. One that is known and of a wrong length is malformed.
pub(super) fn parse(input: &[u8]) -> Parsed<'_, Capability> {
    let (rest, (code, value)) = (be_u8, short_block).parse(input)?;
    let capability = match code {
        1 => whole(afi_safi, value).map(|(family, _)| Capability::MultiProtocol(family)),
        2 if value.is_empty() => Ok(Capability::RouteRefresh),
        5 => {
            let mut families = Vec::new();
            let each = (be_u16, be_u16, be_u16);
            repeat(each, value, |(afi, safi, next_hop)| {
                // The SAFI has two octets here (section 4); no larger one is known.
                families.extend(u8::try_from(safi).ok().map(|safi| (AfiSafi { afi, safi }, next_hop)));
            })
            .map(|()| Capability::ExtendedNextHop(families))
        }
        65 => whole(be_u32, value).map(|asn| Capability::FourOctetAs(Asn(asn))),
        70 if value.is_empty() => Ok(Capability::EnhancedRouteRefresh),
        2 | 70 => Err(Malformed(None)),
        code => Ok(Capability::Other { code, value: value.into() }),
    };
    Ok((rest, capability.map_err(nom::Err::Failure)?))
}

/// Appends a capability.
pub(super) fn write(out: &mut Vec<u8>, capability: &Capability) -> Result<(), EncodeError> {
    out.push(capability.code());
    match capability {
        Capability::MultiProtocol(AfiSafi { afi, safi }) => {
            out.push(4);
            out.extend_from_slice(&afi.to_be_bytes());
            out.extend_from_slice(&[0, *safi]);
        }
        Capability::ExtendedNextHop(families) => {
            let octets = families.iter().flat_map(|(AfiSafi { afi, safi }, next_hop)| {
                [*afi, u16::from(*safi), *next_hop].into_iter().flat_map(u16::to_be_bytes)
            });
            write_value(out, &octets.collect::<Vec<u8>>())?;
        }
        Capability::FourOctetAs(asn) => {
            out.push(4);
            out.extend_from_slice(&asn.0.to_be_bytes());
        }
        Capability::RouteRefresh | Capability::EnhancedRouteRefresh => out.push(0),
        Capability::Other { value, .. } => write_value(out, value)?,
    }
    Ok(())
}

fn write_value(out: &mut Vec<u8>, value: &[u8]) -> Result<(), EncodeError> {
    let length = u8::try_from(value.len()).map_err(|_| EncodeError::TooLong {
        what: "a capability",
        length: value.len(),
        max: usize::from(u8::MAX),
    })?;
    out.push(length);
    out.extend_from_slice(value);
    Ok(())
}
