//! The Internet checksum (RFC 1071), as far as both sides need it.
use crate::Addr;

/// Folds a ones' complement sum of 16- or 32-bit words to 16 bits (RFC 1071, section 2). Words and result are as
/// loaded from the packet: the sum does not depend on the byte order.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32); // 33 bits
    let sum = (sum & 0xffff) + (sum >> 16); // 18 bits
    let sum = (sum & 0xffff) + (sum >> 16); // 17 bits
    (sum as u16).wrapping_add((sum >> 16) as u16)
}

/// First word of the outer IPv4 header without DSCP and total length, as it lies in memory: version 4, five words.
const FIRST_WORD: u64 = 0x4500_0000_u32.to_be() as u64;
/// Identification 0 and "don't fragment": an atomic datagram (RFC 6864), its size is checked before.
const SECOND_WORD: u64 = 0x0000_4000_u32.to_be() as u64;
/// TTL 64, no protocol, no checksum.
const THIRD_WORD: u64 = 0x4000_0000_u32.to_be() as u64;

/// Value of [`crate::Backend::header_sum`]: the folded sum of the outer IPv4 header of a tunnel with DSCP, total
/// length, protocol and checksum 0, so that the kernel program only adds what differs from packet to packet. Never 0.
pub const fn outer_header_sum(source: &Addr, destination: &Addr) -> u32 {
    let sum = FIRST_WORD + SECOND_WORD + THIRD_WORD + source.0[3] as u64 + destination.0[3] as u64;
    fold(sum) as u32
}

/// What the protocol of an outer IPv4 header adds to its sum.
#[inline(always)]
pub const fn protocol_sum(proto: u8) -> u32 {
    ((proto as u16).to_be()) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn folds_every_carry() {
        assert_eq!(fold(0), 0);
        assert_eq!(fold(0xffff), 0xffff);
        assert_eq!(fold(0x1_0000), 1);
        assert_eq!(fold(0xffff_ffff), 0xffff);
        assert_eq!(fold(u64::MAX), 0xffff);
        assert_eq!(fold(0x1_ffff_ffff), 1);
        for sum in [0x1234_5678_9abc_u64, 0xfffe_ffff_ffff, 0x1_ffff_fffe] {
            assert_eq!(u64::from(fold(sum)) % 0xffff, sum % 0xffff, "{sum:#x}");
        }
    }

    #[test]
    fn the_outer_header_sum_is_that_of_a_header_byte_by_byte() {
        let header: [u8; 20] = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 0, 0, 0, 192, 0, 2, 1, 198, 51, 100, 255];
        let sum: u64 =
            header.chunks_exact(2).map(|pair| u64::from(u16::from_ne_bytes([pair[0], pair[1]]))).sum();
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(outer_header_sum(&addr("192.0.2.1"), &addr("198.51.100.255")), u32::from(fold(sum)));
    }
}
