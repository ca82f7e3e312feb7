//! Prefixes on the wire (RFC 4271 section 4.3): length in bits, then as many octets as it takes.
use super::parse::{Malformed, Parsed, repeat};
use crate::config::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nom::{bytes::complete::take, number::complete::be_u8};

/// All the prefixes of a field. Bits beyond the length of a prefix are of no meaning, and cleared.
pub(super) fn prefixes(family: Family, input: &[u8]) -> Result<Vec<IpNet>, Malformed> {
    // Most prefixes of IPv4 take four octets and most of IPv6 more.
    let mut prefixes = Vec::with_capacity(input.len().div_ceil(4));
    match family {
        Family::Ipv4Unicast => repeat(ipv4_prefix, input, |prefix| prefixes.push(IpNet::V4(prefix)))?,
        Family::Ipv6Unicast => repeat(ipv6_prefix, input, |prefix| prefixes.push(IpNet::V6(prefix)))?,
    }
    Ok(prefixes)
}

fn ipv4_prefix(input: &[u8]) -> Parsed<'_, Ipv4Net> {
    let (rest, (address, length)) = address::<4>(input)?;
    match Ipv4Net::new(address.into(), length) {
        Ok(net) => Ok((rest, net.trunc())),
        Err(_) => Err(nom::Err::Failure(Malformed(None))),
    }
}

fn ipv6_prefix(input: &[u8]) -> Parsed<'_, Ipv6Net> {
    let (rest, (address, length)) = address::<16>(input)?;
    match Ipv6Net::new(address.into(), length) {
        Ok(net) => Ok((rest, net.trunc())),
        Err(_) => Err(nom::Err::Failure(Malformed(None))),
    }
}

/// Octets of an address filled up with zeros, and the length in bits.
fn address<const N: usize>(input: &[u8]) -> Parsed<'_, ([u8; N], u8)> {
    let (input, bits) = be_u8(input)?;
    let (rest, octets) = take(usize::from(bits).div_ceil(8))(input)?;
    let mut address = [0; N];
    match address.get_mut(..octets.len()) {
        Some(start) => start.copy_from_slice(octets),
        None => return Err(nom::Err::Failure(Malformed(None))),
    }
    Ok((rest, (address, bits)))
}

/// The family of a prefix.
pub(super) fn family(prefix: &IpNet) -> Family {
    match prefix {
        IpNet::V4(_) => Family::Ipv4Unicast,
        IpNet::V6(_) => Family::Ipv6Unicast,
    }
}

/// Appends a prefix.
pub(super) fn write(out: &mut Vec<u8>, prefix: &IpNet) {
    let octets = usize::from(prefix.prefix_len()).div_ceil(8);
    out.push(prefix.prefix_len());
    match prefix {
        IpNet::V4(net) => out.extend_from_slice(&net.network().octets()[..octets]),
        IpNet::V6(net) => out.extend_from_slice(&net.network().octets()[..octets]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_every_length() {
        for length in 0..=32 {
            let net = IpNet::new("203.0.113.255".parse().unwrap(), length).unwrap().trunc();
            let mut bytes = Vec::new();
            write(&mut bytes, &net);
            assert_eq!(prefixes(Family::Ipv4Unicast, &bytes), Ok(vec![net]));
        }
        for length in 0..=128 {
            let net = IpNet::new("2001:db8:ffff:ffff::ffff".parse().unwrap(), length).unwrap().trunc();
            let mut bytes = Vec::new();
            write(&mut bytes, &net);
            assert!(bytes.len() <= 17);
            assert_eq!(prefixes(Family::Ipv6Unicast, &bytes), Ok(vec![net]));
        }
    }

    #[test]
    fn host_bits_are_cleared() {
        assert_eq!(prefixes(Family::Ipv4Unicast, &[9, 10, 255]), Ok(vec!["10.128.0.0/9".parse().unwrap()]));
    }

    #[test]
    fn malformed() {
        for bytes in [&[33, 1, 2, 3, 4, 5][..], &[255], &[24, 1, 2], &[0, 8]] {
            assert_eq!(prefixes(Family::Ipv4Unicast, bytes), Err(Malformed(None)), "{bytes:?}");
        }
        let long = [[129].as_slice(), &[0; 17]].concat();
        assert_eq!(prefixes(Family::Ipv6Unicast, &long), Err(Malformed(None)));
    }
}
