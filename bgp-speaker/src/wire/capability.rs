//! Capabilities (RFC 5492).
use super::{
    EncodeError,
    parse::{Malformed, Parsed, repeat, short_block, whole},
};
use crate::config::{Asn, Family, Role};
use nom::{
    Parser,
    multi::many0,
    number::complete::{be_u8, be_u16, be_u24, be_u32},
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
    /// Messages of up to 65535 octets (RFC 8654), code 6.
    ExtendedMessage,
    /// The sender's role (RFC 9234), code 9, as on the wire.
    Role(u8),
    /// Graceful restart (RFC 4724), code 64.
    GracefulRestart(GracefulRestart),
    /// Long-lived graceful restart (RFC 9494), code 71; counts beside graceful restart only.
    LongLivedGracefulRestart(Vec<LongLived>),
    /// Several paths of a prefix (RFC 7911), code 69, by family.
    AddPath(Vec<(AfiSafi, AddPath)>),
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

/// What a speaker says about its restarts (RFC 4724 section 3, RFC 8538 section 2).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct GracefulRestart {
    /// R: the sender has just restarted, and waits for nobody's End-of-RIB.
    pub restarting: bool,
    /// N: a NOTIFICATION ends a session as gracefully as the loss of TCP does, but for a Hard Reset.
    pub notification: bool,
    /// Restart Time: how long the sender is away at most, seconds, 0 to 4095.
    pub seconds: u16,
    /// Families whose routes are to be kept, and F: whether packets are still forwarded along those of before. None:
    /// the sender keeps the routes of others, no more.
    pub families: Vec<(AfiSafi, bool)>,
}

/// How long the routes of a family are to be kept beyond the restart time (RFC 9494 section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LongLived {
    /// The family.
    pub family: AfiSafi,
    /// F: packets are still forwarded along the routes of before.
    pub forwarding: bool,
    /// Long-lived Stale Time, seconds, 0 to 16777215.
    pub seconds: u32,
}

/// Longest Long-lived Stale Time in seconds (RFC 9494 section 3.1: 24 bits).
pub const MAX_LONG_LIVED_SECONDS: u32 = 0xFF_FFFF;

/// Which way several paths may go (RFC 7911 section 4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddPath {
    /// The sender of the capability tells several.
    pub send: bool,
    /// It takes several.
    pub receive: bool,
}

impl AddPath {
    /// None: a number that means nothing.
    fn from_code(code: u8) -> Option<Self> {
        (1..=3).contains(&code).then_some(AddPath { send: code & 2 != 0, receive: code & 1 != 0 })
    }

    fn code(self) -> u8 {
        u8::from(self.send) << 1 | u8::from(self.receive)
    }
}

/// Longest Restart Time in seconds (RFC 4724 section 3: 12 bits).
pub const MAX_RESTART_SECONDS: u16 = 4095;
/// Flag R, and the same bit of a family: F.
const FIRST: u8 = 0x80;
/// Flag N.
const SECOND: u8 = 0x40;

impl Capability {
    /// The capability code.
    pub fn code(&self) -> u8 {
        match self {
            Capability::MultiProtocol(_) => 1,
            Capability::RouteRefresh => 2,
            Capability::ExtendedNextHop(_) => 5,
            Capability::ExtendedMessage => 6,
            Capability::Role(_) => 9,
            Capability::GracefulRestart(_) => 64,
            Capability::FourOctetAs(_) => 65,
            Capability::AddPath(_) => 69,
            Capability::EnhancedRouteRefresh => 70,
            Capability::LongLivedGracefulRestart(_) => 71,
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
            Capability::ExtendedMessage => f.write_str("extended-message"),
            Capability::Role(code) => match Role::from_code(*code) {
                Some(role) => write!(f, "role {role:?}"),
                None => write!(f, "role {code}"),
            },
            Capability::GracefulRestart(restart) => write!(f, "graceful-restart {}", restart.seconds),
            Capability::AddPath(_) => f.write_str("add-path"),
            Capability::LongLivedGracefulRestart(_) => f.write_str("long-lived-graceful-restart"),
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
        8 => "multiple-labels",
        67 => "dynamic-capability",
        68 => "multisession",
        // With a direction that there is not.
        69 => "add-path",
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
        6 if value.is_empty() => Ok(Capability::ExtendedMessage),
        9 => whole(be_u8, value).map(Capability::Role),
        64 => whole(graceful_restart, value).map(Capability::GracefulRestart),
        65 => whole(be_u32, value).map(|asn| Capability::FourOctetAs(Asn(asn))),
        69 => whole(many0((be_u16, be_u8, be_u8)), value).map(|families| add_path(&families, value)),
        70 if value.is_empty() => Ok(Capability::EnhancedRouteRefresh),
        71 => whole(many0(long_lived), value).map(Capability::LongLivedGracefulRestart),
        2 | 6 | 70 => Err(Malformed(None)),
        code => Ok(Capability::Other { code, value: value.into() }),
    };
    Ok((rest, capability.map_err(nom::Err::Failure)?))
}

fn long_lived(input: &[u8]) -> Parsed<'_, LongLived> {
    let parts = (be_u16, be_u8, be_u8, be_u24);
    let family = |(afi, safi, flags, seconds)| LongLived {
        family: AfiSafi { afi, safi },
        forwarding: flags & FIRST != 0,
        seconds,
    };
    parts.map(family).parse(input)
}

/// With a direction that there is not it is one that is not understood (RFC 7911 section 4).
fn add_path(families: &[(u16, u8, u8)], value: &[u8]) -> Capability {
    let family = |&(afi, safi, code)| Some((AfiSafi { afi, safi }, AddPath::from_code(code)?));
    let families: Option<Vec<_>> = families.iter().map(family).collect();
    families.map_or_else(|| Capability::Other { code: 69, value: value.into() }, Capability::AddPath)
}

fn graceful_restart(input: &[u8]) -> Parsed<'_, GracefulRestart> {
    let family = (be_u16, be_u8, be_u8).map(|(afi, safi, flags)| (AfiSafi { afi, safi }, flags & FIRST != 0));
    let (rest, (head, families)) = (be_u16, many0(family)).parse(input)?;
    let [flags, _] = head.to_be_bytes();
    let (restarting, notification) = (flags & FIRST != 0, flags & SECOND != 0);
    Ok((rest, GracefulRestart { restarting, notification, seconds: head & MAX_RESTART_SECONDS, families }))
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
            block(out, |out| out.extend(octets))?;
        }
        Capability::FourOctetAs(asn) => {
            out.push(4);
            out.extend_from_slice(&asn.0.to_be_bytes());
        }
        Capability::Role(code) => out.extend_from_slice(&[1, *code]),
        Capability::GracefulRestart(restart) => {
            let flags =
                if restart.restarting { FIRST } else { 0 } | if restart.notification { SECOND } else { 0 };
            let head = u16::from(flags) << 8 | restart.seconds.min(MAX_RESTART_SECONDS);
            block(out, |out| {
                out.extend_from_slice(&head.to_be_bytes());
                for (AfiSafi { afi, safi }, forwarding) in &restart.families {
                    out.extend_from_slice(&afi.to_be_bytes());
                    out.extend_from_slice(&[*safi, if *forwarding { FIRST } else { 0 }]);
                }
            })?;
        }
        Capability::LongLivedGracefulRestart(families) => block(out, |out| {
            for LongLived { family: AfiSafi { afi, safi }, forwarding, seconds } in families {
                out.extend_from_slice(&afi.to_be_bytes());
                let flags = if *forwarding { FIRST } else { 0 };
                let [_, high, middle, low] = (*seconds).min(MAX_LONG_LIVED_SECONDS).to_be_bytes();
                out.extend_from_slice(&[*safi, flags, high, middle, low]);
            }
        })?,
        Capability::AddPath(families) => block(out, |out| {
            for (AfiSafi { afi, safi }, directions) in families {
                out.extend_from_slice(&afi.to_be_bytes());
                out.extend_from_slice(&[*safi, directions.code()]);
            }
        })?,
        Capability::RouteRefresh | Capability::ExtendedMessage | Capability::EnhancedRouteRefresh => {
            out.push(0)
        }
        Capability::Other { value, .. } => block(out, |out| out.extend_from_slice(value))?,
    }
    Ok(())
}

/// Appends what `content` writes, preceded by its length in one octet.
fn block(out: &mut Vec<u8>, content: impl FnOnce(&mut Vec<u8>)) -> Result<(), EncodeError> {
    let start = out.len();
    out.push(0);
    content(out);
    let length = out.len() - start - 1;
    let max = usize::from(u8::MAX);
    out[start] =
        u8::try_from(length).map_err(|_| EncodeError::TooLong { what: "a capability", length, max })?;
    Ok(())
}
