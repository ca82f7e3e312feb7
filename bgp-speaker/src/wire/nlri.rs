//! Prefixes on the wire (RFC 4271 section 4.3): length in bits, then as many octets as it takes; before them a path
//! identifier where that was negotiated (RFC 7911 section 3).
use super::parse::{Malformed, Parsed, cause};
use crate::config::Family;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use nom::{
    bytes::complete::take,
    number::complete::{be_u8, be_u32},
};
use std::fmt;

/// Path identifier (RFC 7911): tells the paths that a speaker tells of a prefix from each other. Any number; 0 where
/// none were negotiated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PathId(pub u32);

/// A prefix as UPDATEs name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nlri {
    /// The prefix, without host bits.
    pub prefix: IpNet,
    /// Which of its paths is meant.
    pub path: PathId,
}

impl From<IpNet> for Nlri {
    /// The only path of a prefix.
    fn from(prefix: IpNet) -> Self {
        Nlri { prefix, path: PathId::default() }
    }
}

impl fmt::Display for Nlri {
    /// `10.0.0.0/8`, `10.0.0.0/8#2`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.path.0 {
            0 => self.prefix.fmt(f),
            path => write!(f, "{}#{path}", self.prefix),
        }
    }
}

/// All the prefixes of a field; `add_path`: with path identifiers. Bits beyond the length of a prefix are of no meaning,
/// and cleared.
pub(super) fn prefixes(family: Family, add_path: bool, input: &[u8]) -> Result<Vec<Nlri>, Malformed> {
    // Most prefixes of IPv4 take four octets and most of IPv6 more.
    let mut prefixes = Vec::with_capacity(input.len().div_ceil(if add_path { 8 } else { 4 }));
    // A loop of its own: the decoder spends most of its time here.
    let mut rest = input;
    while !rest.is_empty() {
        let (after, path) = if add_path { be_u32(rest).map_err(cause)? } else { (rest, 0) };
        let (after, prefix) = prefix(family, after).map_err(cause)?;
        prefixes.push(Nlri { prefix, path: PathId(path) });
        rest = after;
    }
    Ok(prefixes)
}

fn prefix(family: Family, input: &[u8]) -> Parsed<'_, IpNet> {
    match family {
        Family::Ipv4Unicast => ipv4_prefix(input).map(|(rest, prefix)| (rest, prefix.into())),
        Family::Ipv6Unicast => ipv6_prefix(input).map(|(rest, prefix)| (rest, prefix.into())),
    }
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

/// Appends a prefix; `add_path`: with its path identifier.
pub(super) fn write(out: &mut Vec<u8>, Nlri { prefix, path }: &Nlri, add_path: bool) {
    if add_path {
        out.extend_from_slice(&path.0.to_be_bytes());
    }
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
        for add_path in [false, true] {
            let path = PathId(if add_path { u32::MAX - 7 } else { 0 });
            for length in 0..=32 {
                let prefix = IpNet::new("203.0.113.255".parse().unwrap(), length).unwrap().trunc();
                let mut bytes = Vec::new();
                write(&mut bytes, &Nlri { prefix, path }, add_path);
                assert_eq!(prefixes(Family::Ipv4Unicast, add_path, &bytes), Ok(vec![Nlri { prefix, path }]));
            }
            for length in 0..=128 {
                let prefix = IpNet::new("2001:db8:ffff:ffff::ffff".parse().unwrap(), length).unwrap().trunc();
                let mut bytes = Vec::new();
                write(&mut bytes, &Nlri { prefix, path }, add_path);
                assert!(bytes.len() <= 17 + if add_path { 4 } else { 0 });
                assert_eq!(prefixes(Family::Ipv6Unicast, add_path, &bytes), Ok(vec![Nlri { prefix, path }]));
            }
        }
    }

    #[test]
    fn host_bits_are_cleared() {
        let prefix: IpNet = "10.128.0.0/9".parse().unwrap();
        assert_eq!(prefixes(Family::Ipv4Unicast, false, &[9, 10, 255]), Ok(vec![prefix.into()]));
        let second = Nlri { prefix, path: PathId(258) };
        assert_eq!(prefixes(Family::Ipv4Unicast, true, &[0, 0, 1, 2, 9, 10, 255]), Ok(vec![second]));
        assert_eq!(second.to_string(), "10.128.0.0/9#258");
    }

    #[test]
    fn malformed() {
        for bytes in [&[33, 1, 2, 3, 4, 5][..], &[255], &[24, 1, 2], &[0, 8]] {
            assert_eq!(prefixes(Family::Ipv4Unicast, false, bytes), Err(Malformed(None)), "{bytes:?}");
        }
        let long = [[129].as_slice(), &[0; 17]].concat();
        assert_eq!(prefixes(Family::Ipv6Unicast, false, &long), Err(Malformed(None)));
        for bytes in [&[0, 0, 1][..], &[0, 0, 0, 1], &[0, 0, 0, 1, 8], &[0, 0, 0, 1, 33, 1, 2, 3, 4, 5]] {
            assert_eq!(prefixes(Family::Ipv4Unicast, true, bytes), Err(Malformed(None)), "{bytes:?}");
        }
    }
}
