//! Rules against packets of death: what a packet must be like to be dropped or counted before anything else looks at it,
//! and the form in which the kernel program has them.
use ipnet::IpNet;
use lb_bpf_common::{self as abi, Addr};
use serde::Serialize;
use std::net::IpAddr;

/// One rule. A packet matches if all that is named is so; a rule that names nothing matches every IP packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Filter {
    /// What becomes of packets that match.
    pub action: FilterAction,
    /// IANA number of the protocol; behind extension headers in IPv6.
    pub protocol: Option<u8>,
    /// Source addresses.
    pub source: Option<IpNet>,
    /// Destination addresses, of the same family.
    pub destination: Option<IpNet>,
    /// First and last source port of TCP, UDP or SCTP. A later fragment has no ports, and does not match.
    pub source_ports: Option<(u16, u16)>,
    /// First and last destination port, likewise.
    pub destination_ports: Option<(u16, u16)>,
    /// Least and greatest length of the IP packet by its header, bytes.
    pub length: Option<(u16, u16)>,
    /// Flags of TCP: the bits that count, and what they must be.
    pub tcp_flags: Option<(u8, u8)>,
    /// Whether it must be a fragment, or must not.
    pub fragment: Option<bool>,
    /// Bytes that must be there.
    pub bytes: Option<FilterBytes>,
}

/// What becomes of packets that match a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum FilterAction {
    /// They are dropped and counted.
    Drop,
    /// They are counted.
    Count,
}

/// Up to four bytes at an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterBytes {
    /// From the begin of the IP header, bytes, 0 to 1499.
    pub offset: u16,
    /// The bits that count, in the order of the packet; bytes behind the last one that counts need not be there.
    pub mask: [u8; 4],
    /// What they must be.
    pub value: [u8; 4],
}

impl Filter {
    /// A rule that names nothing.
    pub const fn new(action: FilterAction) -> Self {
        Filter {
            action,
            protocol: None,
            source: None,
            destination: None,
            source_ports: None,
            destination_ports: None,
            length: None,
            tcp_flags: None,
            fragment: None,
            bytes: None,
        }
    }

    /// The rule as the kernel program has it.
    pub fn compile(&self) -> abi::Filter {
        let mut kind = abi::Filter::IN_USE;
        let mut bit = |is_set: bool, bit: u16| kind |= if is_set { bit } else { 0 };
        bit(self.action == FilterAction::Drop, abi::Filter::DROP);
        bit(self.protocol.is_some(), abi::Filter::PROTO);
        bit(self.source_ports.is_some() || self.destination_ports.is_some(), abi::Filter::PORTS);
        bit(self.tcp_flags.is_some(), abi::Filter::TCP_FLAGS);
        bit(self.fragment == Some(true), abi::Filter::FRAGMENT);
        bit(self.fragment == Some(false), abi::Filter::WHOLE);
        bit(self.bytes.is_some(), abi::Filter::BYTES);
        let families = || [self.source, self.destination].into_iter().flatten();
        bit(families().any(|net| matches!(net, IpNet::V4(_))), abi::Filter::V4);
        bit(families().any(|net| matches!(net, IpNet::V6(_))), abi::Filter::V6);
        let (src, src_mask) = self.source.map_or((Addr::NONE, Addr::NONE), masked);
        let (dst, dst_mask) = self.destination.map_or((Addr::NONE, Addr::NONE), masked);
        let range = |ports: Option<(u16, u16)>| ports.map_or([0, u16::MAX], |(first, last)| [first, last]);
        let (tcp_mask, tcp_flags) = self.tcp_flags.unwrap_or_default();
        let bytes = self.bytes.unwrap_or(FilterBytes { offset: 0, mask: [0; 4], value: [0; 4] });
        let mask = u32::from_ne_bytes(bytes.mask);
        abi::Filter {
            src,
            src_mask,
            dst,
            dst_mask,
            src_ports: range(self.source_ports),
            dst_ports: range(self.destination_ports),
            length: range(self.length),
            offset: bytes.offset,
            proto: self.protocol.unwrap_or_default(),
            tcp_mask,
            tcp_flags: tcp_flags & tcp_mask,
            zero: 0,
            kind,
            mask,
            value: u32::from_ne_bytes(bytes.value) & mask,
        }
    }
}

/// A prefix as address and mask.
fn masked(net: IpNet) -> (Addr, Addr) {
    let mask = match net.netmask() {
        // The 96 bits that say that it is IPv4 count all.
        IpAddr::V4(mask) => Addr([u32::MAX, u32::MAX, u32::MAX, u32::from_ne_bytes(mask.octets())]),
        mask @ IpAddr::V6(_) => Addr::from(mask),
    };
    (net.network().into(), mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_names_nothing_matches_all() {
        let all = Filter::new(FilterAction::Count).compile();
        let wanted = abi::Filter {
            kind: abi::Filter::IN_USE,
            src_ports: [0, u16::MAX],
            dst_ports: [0, u16::MAX],
            length: [0, u16::MAX],
            ..abi::Filter::default()
        };
        assert_eq!(all, wanted);
    }

    #[test]
    fn prefixes_name_their_family() {
        let net = |text: &str| Some(text.parse().unwrap());
        let v4 = Filter { source: net("10.1.2.3/8"), ..Filter::new(FilterAction::Drop) }.compile();
        assert_eq!(v4.kind, abi::Filter::IN_USE | abi::Filter::DROP | abi::Filter::V4);
        assert_eq!(v4.src, Addr::from("10.0.0.0".parse::<IpAddr>().unwrap()));
        assert_eq!(v4.src_mask.0[2..], [u32::MAX, 0xff00_0000_u32.to_be()]);
        let v6 = Filter { destination: net("2001:db8::/33"), ..Filter::new(FilterAction::Drop) }.compile();
        assert_eq!(v6.kind, abi::Filter::IN_USE | abi::Filter::DROP | abi::Filter::V6);
        assert_eq!(v6.dst_mask.0, [u32::MAX, 0x8000_0000_u32.to_be(), 0, 0]);
        assert_eq!((v6.src, v6.src_mask), (Addr::NONE, Addr::NONE));
    }
}
