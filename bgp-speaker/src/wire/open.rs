//! OPEN (RFC 4271 section 4.2) with capabilities (RFC 5492) and extended optional parameters (RFC 9072).
use super::Capability;
use crate::config::Asn;
use std::net::Ipv4Addr;

/// An OPEN message, version 4.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The sender's AS: of the four-octet AS capability if it is there (RFC 6793), else of My Autonomous
    /// System. Not 0 (RFC 7607).
    pub asn: Asn,
    /// Proposed hold time in seconds: 0, or at least 3.
    pub hold_seconds: u16,
    /// BGP identifier; not 0.0.0.0.
    pub router_id: Ipv4Addr,
    /// Capabilities in the order of the wire. To speak four-octet AS, name
    /// [`FourOctetAs`](Capability::FourOctetAs).
    pub capabilities: Vec<Capability>,
}
