//! Ethernet frames built from scratch: what goes in, and what must come out. All checksums are computed over the
//! whole, with none of the datapath's code.
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Address of the router that the client's packets come from.
pub(crate) const ROUTER: [u8; 6] = [2, 0, 0, 0, 0, 0x11];
/// Address of our interface.
pub(crate) const OWN: [u8; 6] = [2, 0, 0, 0, 0, 0x22];

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const RST: u8 = 4;
pub(crate) const ACK: u8 = 16;

/// Transport protocol with what matters of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    /// TCP with these flags.
    Tcp(u8),
    /// UDP with a checksum.
    Udp,
    /// UDP whose checksum field is 0.
    UdpWithoutChecksum,
}

/// A TCP or UDP packet in an Ethernet frame.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) eth_dst: [u8; 6],
    pub(crate) eth_src: [u8; 6],
    pub(crate) src: SocketAddr,
    pub(crate) dst: SocketAddr,
    pub(crate) transport: Transport,
    pub(crate) payload: Vec<u8>,
    pub(crate) ttl: u8,
    /// TOS or traffic class.
    pub(crate) class: u8,
    /// Bytes of IPv4 options.
    pub(crate) options: Vec<u8>,
    /// IPv4: flags and offset.
    pub(crate) fragment: u16,
    /// Zero bytes behind the IP packet.
    pub(crate) padding: usize,
}

impl Frame {
    /// From a client (or backend) to us: TTL 64, a few bytes of payload.
    pub(crate) fn new(transport: Transport, src: SocketAddr, dst: SocketAddr) -> Self {
        Frame {
            eth_dst: OWN,
            eth_src: ROUTER,
            src,
            dst,
            transport,
            payload: b"The quick brown fox".to_vec(),
            ttl: 64,
            class: 0,
            options: Vec::new(),
            fragment: 0,
            padding: 0,
        }
    }

    pub(crate) fn macs(self, eth_dst: [u8; 6], eth_src: [u8; 6]) -> Self {
        Frame { eth_dst, eth_src, ..self }
    }

    pub(crate) fn ttl(self, ttl: u8) -> Self {
        Frame { ttl, ..self }
    }

    pub(crate) fn class(self, class: u8) -> Self {
        Frame { class, ..self }
    }

    pub(crate) fn payload(self, payload: impl Into<Vec<u8>>) -> Self {
        Frame { payload: payload.into(), ..self }
    }

    pub(crate) fn padding(self, padding: usize) -> Self {
        Frame { padding, ..self }
    }

    pub(crate) fn fragment(self, fragment: u16) -> Self {
        Frame { fragment, ..self }
    }

    pub(crate) fn options(self, options: &[u8]) -> Self {
        assert_eq!(options.len() % 4, 0);
        Frame { options: options.to_vec(), ..self }
    }

    /// The whole frame.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = ethernet(self.eth_dst, self.eth_src, self.src.ip());
        bytes.extend(self.ip());
        bytes.resize(bytes.len() + self.padding, 0);
        bytes
    }

    /// The frame as it must leave in a tunnel: one hop less inside, nothing else changed.
    pub(crate) fn tunnelled(&self, tunnel: &Tunnel) -> Vec<u8> {
        let mut inner = self.clone().ttl(self.ttl - 1).ip();
        inner.resize(inner.len() + self.padding, 0);
        tunnel.around(&inner, inner.len() - self.padding)
    }

    /// The IP packet.
    pub(crate) fn ip(&self) -> Vec<u8> {
        let proto = if matches!(self.transport, Transport::Tcp(_)) { 6 } else { 17 };
        let segment = self.segment(proto);
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = Header4 { class: self.class, fragment: self.fragment, ttl: self.ttl, proto };
                let mut bytes = header.bytes(src.octets(), dst.octets(), segment.len(), &self.options);
                bytes.extend(segment);
                bytes
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let mut bytes = header6(self.class, 0, self.ttl, proto, src, dst, segment.len());
                bytes.extend(segment);
                bytes
            }
            other => panic!("mixed families: {other:?}"),
        }
    }

    fn segment(&self, proto: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.src.port().to_be_bytes());
        bytes.extend(self.dst.port().to_be_bytes());
        let checksum_at = match self.transport {
            Transport::Tcp(flags) => {
                bytes.extend([
                    0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0x50, flags, 0xfa, 0xf0, 0, 0, 0, 0,
                ]);
                16
            }
            Transport::Udp | Transport::UdpWithoutChecksum => {
                bytes.extend((8 + self.payload.len() as u16).to_be_bytes());
                bytes.extend([0, 0]);
                6
            }
        };
        bytes.extend(&self.payload);
        if self.transport != Transport::UdpWithoutChecksum {
            let mut sum =
                checksum(&[&pseudo_header(self.src.ip(), self.dst.ip(), proto, bytes.len()), &bytes]);
            if proto == 17 && sum == 0 {
                sum = 0xffff;
            }
            bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        bytes
    }
}

/// The outside of a tunnel packet.
#[derive(Clone, Debug)]
pub(crate) struct Tunnel {
    pub(crate) eth_dst: [u8; 6],
    pub(crate) eth_src: [u8; 6],
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    pub(crate) class: u8,
    /// IPv6.
    pub(crate) flow_label: u32,
    /// IANA number of what is inside.
    pub(crate) proto: u8,
    /// IPv4: flags and offset.
    pub(crate) fragment: u16,
    /// Bytes of IPv4 options.
    pub(crate) options: Vec<u8>,
}

impl Tunnel {
    /// Headers before `inner`, of which `length` bytes are the IP packet.
    pub(crate) fn around(&self, inner: &[u8], length: usize) -> Vec<u8> {
        let mut bytes = ethernet(self.eth_dst, self.eth_src, self.src);
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header =
                    Header4 { class: self.class, fragment: self.fragment, ttl: 64, proto: self.proto };
                bytes.extend(header.bytes(src.octets(), dst.octets(), length, &self.options));
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                bytes.extend(header6(self.class, self.flow_label, 64, self.proto, src, dst, length));
            }
            other => panic!("mixed families: {other:?}"),
        }
        bytes.extend(inner);
        bytes
    }
}

/// An Ethernet header for a packet of the family of `ip`.
pub(crate) fn ethernet(dst: [u8; 6], src: [u8; 6], ip: IpAddr) -> Vec<u8> {
    let ether_type = if ip.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
    [&dst[..], &src, &ether_type].concat()
}

pub(crate) struct Header4 {
    pub(crate) class: u8,
    pub(crate) fragment: u16,
    pub(crate) ttl: u8,
    pub(crate) proto: u8,
}

impl Header4 {
    pub(crate) fn bytes(&self, src: [u8; 4], dst: [u8; 4], payload: usize, options: &[u8]) -> Vec<u8> {
        let words = 5 + options.len() as u8 / 4;
        let mut bytes = vec![0x40 | words, self.class];
        bytes.extend((usize::from(words) * 4 + payload).to_be_bytes()[6..].iter());
        bytes.extend([0, 0]);
        bytes.extend(self.fragment.to_be_bytes());
        bytes.extend([self.ttl, self.proto, 0, 0]);
        bytes.extend(src);
        bytes.extend(dst);
        bytes.extend(options);
        let sum = checksum(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }
}

pub(crate) fn header6(
    class: u8,
    label: u32,
    hops: u8,
    proto: u8,
    src: Ipv6Addr,
    dst: Ipv6Addr,
    payload: usize,
) -> Vec<u8> {
    let mut bytes = (6 << 28 | u32::from(class) << 20 | label).to_be_bytes().to_vec();
    bytes.extend((payload as u16).to_be_bytes());
    bytes.extend([proto, hops]);
    bytes.extend(src.octets());
    bytes.extend(dst.octets());
    bytes
}

pub(crate) fn pseudo_header(src: IpAddr, dst: IpAddr, proto: u8, length: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for ip in [src, dst] {
        match ip {
            IpAddr::V4(ip) => bytes.extend(ip.octets()),
            IpAddr::V6(ip) => bytes.extend(ip.octets()),
        }
    }
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, proto]);
    bytes
}

/// RFC 1071, pair by pair. All parts but the last have even lengths.
pub(crate) fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |&low| u32::from(low));
        if sum > 0xffff {
            sum -= 0xffff;
        }
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A DNS query as captured in a textbook would do as well: the sums of a correct packet are 0.
    #[test]
    fn checksums_verify() {
        let frame =
            Frame::new(Transport::Tcp(SYN), "192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
        let ip = frame.ip();
        assert_eq!(checksum(&[&ip[..20]]), 0);
        let pseudo = pseudo_header(frame.src.ip(), frame.dst.ip(), 6, ip.len() - 20);
        assert_eq!(checksum(&[&pseudo, &ip[20..]]), 0);
        // RFC 1071, section 3: the example's sum is ddf2.
        assert_eq!(!checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), 0xddf2);
    }
}
