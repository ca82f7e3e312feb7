//! QUIC connection IDs that name their server: QUIC-LB (draft-ietf-quic-load-balancers-21) with the plaintext algorithm. A
//! connection ID that a server issues begins with an octet whose first three bits are the configuration's number; the server
//! ID follows, then what the server likes.
//!
//! There is one configuration, and it has any number. The server ID of a backend is the end of its address.
use crate::{Addr, Vip, VipKey, proto};

/// Longest server ID, bytes.
pub const MOST_ID: u32 = 8;

/// The first octet of a packet: its header is long (RFC 8999, section 5.1).
pub const LONG_HEADER: u8 = 0x80;

/// Offset of the destination connection ID in a packet with a short header (RFC 9000, section 17.3.1).
pub const SHORT_ID: usize = 1;

/// Offset of the version in a packet with a long header (RFC 8999, section 5.1). The length of the destination connection ID
/// and this ID itself follow.
pub const VERSION: usize = 1;

/// Whether the destination connection ID of a packet with a long header, given its first octet, is one that a server has
/// issued. In Initial and 0-RTT packets it is, or may be, one that the client has made up; what unknown versions send counts as
/// issued. No client sends version 0 (Version Negotiation).
#[inline(always)]
pub const fn is_issued(first: u8, version: u32) -> bool {
    let kind = first >> 4 & 3;
    match version {
        0 => false,
        // RFC 9000, section 17.2.
        1 => kind > 1,
        // RFC 9369, section 3.2: Retry has become 0.
        0x6b33_43cf => kind == 0 || kind == 3,
        _ => true,
    }
}

/// Whether a connection ID with this first octet has a server ID: the number of the configuration is not the one that says
/// "unroutable" (QUIC-LB, section 3.1).
#[inline(always)]
pub const fn is_routable(first: u8) -> bool {
    first >> 5 != 0b111
}

impl Vip {
    /// Bits of `flags`: how many bytes the server IDs in QUIC connection IDs have, 1 to 8; 0: nobody looks there.
    pub const QUIC: u32 = 0xf << Self::QUIC_SHIFT;
    const QUIC_SHIFT: u32 = 3;

    /// The bits of [`Vip::QUIC`] for server IDs of so many bytes.
    #[inline(always)]
    pub const fn quic_flags(bytes: u32) -> u32 {
        (if bytes < MOST_ID { bytes } else { MOST_ID }) << Self::QUIC_SHIFT
    }

    /// How many bytes the server IDs have.
    #[inline(always)]
    pub const fn quic_bytes(flags: u32) -> u32 {
        (flags & Self::QUIC) >> Self::QUIC_SHIFT
    }
}

impl VipKey {
    /// By which `vips` names the backend of a service that has this server ID of so many bytes: the entry's `base` is the index in
    /// `backends`, all else is 0. The bytes are a number in network byte order.
    #[inline(always)]
    pub const fn server_id(service: u32, bytes: u32, id: u64) -> VipKey {
        let addr = Addr([bytes, service, (id >> 32) as u32, id as u32]);
        VipKey { addr, port: 0, proto: proto::SERVER_ID, scope: 0 }
    }
}

impl Addr {
    /// The server ID of so many bytes that a backend with this address has: the end of the address. `None`: the address has no
    /// such end.
    pub fn server_id(&self, bytes: u32) -> Option<u64> {
        let most = if self.is_v4() { 4 } else { MOST_ID };
        if bytes == 0 || bytes > most {
            return None;
        }
        let [.., third, fourth] = self.0;
        let end = u64::from(u32::from_be(third)) << 32 | u64::from(u32::from_be(fourth));
        Some(end & u64::MAX >> (64 - 8 * bytes))
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::net::IpAddr;

    #[test]
    fn a_server_id_is_the_end_of_an_address() {
        let id = |address: &str, bytes| Addr::from(address.parse::<IpAddr>().unwrap()).server_id(bytes);
        assert_eq!(id("10.1.2.3", 1), Some(3));
        assert_eq!(id("10.1.2.3", 3), Some(0x01_0203));
        assert_eq!(id("10.1.2.3", 4), Some(0x0a01_0203));
        assert_eq!(id("10.1.2.3", 5), None);
        assert_eq!(id("2001:db8::1:2:3:4", 3), Some(0x03_0004));
        assert_eq!(id("2001:db8::1:2:3:4", 8), Some(0x0001_0002_0003_0004));
        assert_eq!(id("2001:db8::1:2:3:4", 9), None);
        assert_eq!(id("2001:db8::1:2:3:4", 0), None);
    }

    #[test]
    fn flags_hold_the_length() {
        for bytes in 0..=MOST_ID {
            let flags = Vip::quic_flags(bytes) | Vip::AFFINITY | Vip::RANGES | Vip::PASS;
            assert_eq!(Vip::quic_bytes(flags), bytes);
            assert_eq!(flags & !Vip::QUIC, 7, "no bit is another's");
        }
        assert_eq!(Vip::quic_bytes(Vip::quic_flags(u32::MAX)), MOST_ID);
    }

    #[test]
    fn only_servers_issue_what_is_followed() {
        let issued = |version| [0xc0, 0xd0, 0xe0, 0xf0].map(|first| is_issued(first, version));
        assert_eq!(issued(1), [false, false, true, true]);
        assert_eq!(issued(0x6b33_43cf), [true, false, false, true]);
        assert_eq!(issued(0), [false; 4]);
        assert_eq!(issued(0x0a0a_0a0a), [true; 4]);
        assert!(is_routable(0) && is_routable(0xdf) && !is_routable(0xe0) && !is_routable(0xff));
    }
}
