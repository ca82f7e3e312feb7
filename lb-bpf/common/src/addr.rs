//! The one form of an IP address in every map.
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv4 (mapped, RFC 4291 section 2.5.5.2) or IPv6 address: four words as they lie in memory in network
/// byte order, so that the kernel program copies them from the packet and compares them without conversion.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Addr(pub [u32; 4]);

const _: () = assert!(size_of::<Addr>() == 16 && align_of::<Addr>() == 4);

impl Addr {
    /// No address: `::`.
    pub const NONE: Addr = Addr([0; 4]);
    /// The third word of a v4-mapped address.
    pub const V4_MARK: u32 = 0x0000_ffff_u32.to_be();

    /// From the IPv4 address word as it lies in the packet.
    #[inline(always)]
    pub const fn v4(word: u32) -> Self {
        Addr([0, 0, Self::V4_MARK, word])
    }

    /// Whether this is a v4-mapped address.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == Self::V4_MARK
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        let octets = match ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        let word = |i: usize| u32::from_ne_bytes([octets[i], octets[i + 1], octets[i + 2], octets[i + 3]]);
        Addr([word(0), word(4), word(8), word(12)])
    }
}

impl From<Addr> for IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() {
            return IpAddr::V4(Ipv4Addr::from(addr.0[3].to_ne_bytes()));
        }
        let mut octets = [0; 16];
        for (chunk, word) in octets.chunks_exact_mut(4).zip(addr.0) {
            chunk.copy_from_slice(&word.to_ne_bytes());
        }
        IpAddr::V6(Ipv6Addr::from(octets))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_both_families() {
        for text in ["203.0.113.10", "2001:db8:1::10", "0.0.0.0", "::", "::1"] {
            let ip: IpAddr = text.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip, "{text}");
        }
        assert!(Addr::from("10.0.0.1".parse::<IpAddr>().unwrap()).is_v4());
        assert!(!Addr::NONE.is_v4());
    }
}
