//! ROUTE-REFRESH (RFC 2918, RFC 7313).
use super::AfiSafi;

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
