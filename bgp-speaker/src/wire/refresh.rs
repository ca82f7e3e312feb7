//! ROUTE-REFRESH (RFC 2918, RFC 7313).
use super::{
    AfiSafi, HEADER_LENGTH, Notification, Reason,
    capability::afi_safi,
    frame::{self, Kind},
    parse::whole,
};

/// A ROUTE-REFRESH message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RouteRefresh {
    /// Family asked for; one that was not negotiated is to be ignored (RFC 2918 section 4).
    pub family: AfiSafi,
    /// What is said about it.
    pub kind: RefreshKind,
}

/// Message subtype (RFC 7313 section 3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RefreshKind {
    /// Send your routes again.
    Request,
    /// Beginning of a refresh.
    Begin,
    /// End of a refresh.
    End,
    /// A subtype that is to be ignored.
    Other(u8),
}

impl RouteRefresh {
    /// Parses a message, header included: an error of RFC 7313 section 5 sends it back.
    pub(super) fn parse(message: &[u8]) -> Result<RouteRefresh, Notification> {
        let body = message.get(HEADER_LENGTH..).unwrap_or_default();
        match whole(afi_safi, body) {
            Ok((family, subtype)) => Ok(RouteRefresh { family, kind: RefreshKind::from_code(subtype) }),
            Err(_) if matches!(body.get(2), Some(1 | 2)) => {
                Err(Notification::new(Reason::ROUTE_REFRESH_INVALID_LENGTH, message))
            }
            // What follows the four octets would be filters (RFC 5291), which were not negotiated.
            Err(_) => {
                Err(Notification::new(Reason::BAD_MESSAGE_LENGTH, message.get(16..18).unwrap_or_default()))
            }
        }
    }

    /// Appends the message.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        frame::write(out, Kind::RouteRefresh, |out| {
            out.extend_from_slice(&self.family.afi.to_be_bytes());
            out.extend_from_slice(&[self.kind.code(), self.family.safi]);
        });
    }
}

impl RefreshKind {
    fn from_code(code: u8) -> Self {
        match code {
            0 => RefreshKind::Request,
            1 => RefreshKind::Begin,
            2 => RefreshKind::End,
            code => RefreshKind::Other(code),
        }
    }

    fn code(self) -> u8 {
        match self {
            RefreshKind::Request => 0,
            RefreshKind::Begin => 1,
            RefreshKind::End => 2,
            RefreshKind::Other(code) => code,
        }
    }
}
