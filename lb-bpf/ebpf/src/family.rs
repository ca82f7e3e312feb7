//! What differs between IPv4 and IPv6; everything else is written once, for any [`Family`].
use crate::packet::{ETH, Ipv4, Ipv6, Packet};
use lb_bpf_common::{Addr, Backend, fold, proto};

/// The network layer of a packet.
#[derive(Clone, Copy)]
pub struct Network {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// IANA number of what follows the header.
    pub proto: u8,
    /// Offset of the header.
    pub start: usize,
    /// Offset of what follows the header.
    pub end: usize,
    /// Length of the IP packet, by its header.
    pub length: usize,
    /// TTL or hop limit.
    pub hops: u8,
    /// Which part of a packet this is.
    pub part: Part,
}

/// Whole, or which fragment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Not fragmented.
    Whole,
    /// First fragment: it holds the transport header.
    First,
    /// Another one.
    Later,
}

impl Network {
    /// Whether the packet is as long as its header says, and has `size` bytes behind the header.
    #[inline(always)]
    pub const fn holds(&self, packet: &Packet, size: usize) -> bool {
        self.length <= packet.len() - self.start && self.length >= self.end - self.start + size
    }
}

/// IPv4 or IPv6.
pub trait Family {
    /// EtherType, network byte order.
    const ETHER_TYPE: u16;
    /// Length of an outer header.
    const OUTER: usize;

    /// Reads the header at `offset`. `None`: there is none, or one that only the stack can judge.
    fn network(packet: &Packet, offset: usize) -> Option<Network>;

    /// Takes one hop off, and changes the addresses by `delta`'s worth of checksum. The header starts at [`ETH`].
    /// `None` cannot happen after [`Family::network`], but the verifier wants it.
    fn forward(packet: &Packet, addresses: Option<Addresses>) -> Option<()>;

    /// Writes the outer header at [`ETH`], for an inner packet of `length` bytes. `class` is that of the inner
    /// packet, from [`Family::class`].
    fn write_outer(packet: &Packet, backend: &Backend, class: u32, hash: u32, length: usize) -> Option<()>;

    /// What the outer header takes over from the inner one at [`ETH`]: the DSCP, where it lies in the first word.
    /// ECN is not taken over (RFC 6040, section 4.1, compatibility mode), so the far end need not merge it.
    fn class(packet: &Packet) -> Option<u32>;
}

/// New addresses of a translated packet.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
}

/// Hops of an outer header.
const HOPS: u8 = 64;

/// IPv4.
pub struct V4;

impl Family for V4 {
    const ETHER_TYPE: u16 = 0x0800_u16.to_be();
    const OUTER: usize = size_of::<Ipv4>();

    #[inline(always)]
    fn network(packet: &Packet, offset: usize) -> Option<Network> {
        let ip = packet.at::<Ipv4>(offset)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &*ip };
        if ip.version_ihl >> 4 != 4 || ip.version_ihl & 0xf < 5 {
            return None;
        }
        const OFFSET: u16 = 0x1fff_u16.to_be();
        const MORE: u16 = 0x2000_u16.to_be();
        let part = match ip.fragment {
            fragment if fragment & (OFFSET | MORE) == 0 => Part::Whole,
            fragment if fragment & OFFSET == 0 => Part::First,
            _ => Part::Later,
        };
        Some(Network {
            src: Addr::v4(ip.src),
            dst: Addr::v4(ip.dst),
            proto: ip.proto,
            start: offset,
            end: offset + ((ip.version_ihl & 0xf) as usize) * 4,
            length: u16::from_be(ip.total_length) as usize,
            hops: ip.ttl,
            part,
        })
    }

    #[inline(always)]
    fn forward(packet: &Packet, addresses: Option<Addresses>) -> Option<()> {
        let ip = packet.at::<Ipv4>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &mut *ip };
        // RFC 1624, equation 3. The TTL is the low byte of its word in memory: it sinks by one.
        let mut sum = (!ip.checksum) as u64 + !1_u16 as u64;
        ip.ttl -= 1;
        if let Some(Addresses { src, dst }) = addresses {
            sum += difference(ip.src, src.0[3]) + difference(ip.dst, dst.0[3]);
            ip.src = src.0[3];
            ip.dst = dst.0[3];
        }
        ip.checksum = !fold(sum);
        Some(())
    }

    #[inline(always)]
    fn write_outer(packet: &Packet, backend: &Backend, class: u32, _hash: u32, length: usize) -> Option<()> {
        let ip = packet.at::<[u32; 5]>(ETH)?;
        let length = ((length + Self::OUTER) as u16).to_be();
        let sum = backend.header_sum + class + length as u32;
        let checksum = !fold(sum as u64);
        // SAFETY: `at` has checked the bounds.
        unsafe {
            *ip = [
                0x45 | class | (length as u32) << 16,
                0x0000_4000_u32.to_be(), // don't fragment
                HOPS as u32 | (proto::IPIP as u32) << 8 | (checksum as u32) << 16,
                backend.source.0[3],
                backend.addr.0[3],
            ];
        }
        Some(())
    }

    #[inline(always)]
    fn class(packet: &Packet) -> Option<u32> {
        let ip = packet.at::<Ipv4>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        Some((unsafe { (*ip).tos } as u32 & 0xfc) << 8)
    }
}

/// IPv6.
pub struct V6;

impl Family for V6 {
    const ETHER_TYPE: u16 = 0x86dd_u16.to_be();
    const OUTER: usize = size_of::<Ipv6>();

    /// Extension headers are left to the stack: their number is the protocol, and no VIP has it.
    #[inline(always)]
    fn network(packet: &Packet, offset: usize) -> Option<Network> {
        let ip = packet.at::<Ipv6>(offset)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &*ip };
        if ip.first & 0xf000_0000_u32.to_be() != 0x6000_0000_u32.to_be() {
            return None;
        }
        Some(Network {
            src: Addr(ip.src),
            dst: Addr(ip.dst),
            proto: ip.next_header,
            start: offset,
            end: offset + size_of::<Ipv6>(),
            length: u16::from_be(ip.payload_length) as usize + size_of::<Ipv6>(),
            hops: ip.hop_limit,
            part: Part::Whole,
        })
    }

    #[inline(always)]
    fn forward(packet: &Packet, addresses: Option<Addresses>) -> Option<()> {
        let ip = packet.at::<Ipv6>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &mut *ip };
        ip.hop_limit -= 1;
        if let Some(Addresses { src, dst }) = addresses {
            ip.src = src.0;
            ip.dst = dst.0;
        }
        Some(())
    }

    /// The flow label is taken from the hash, so that routers spread the tunnelled flows (RFC 6438).
    #[inline(always)]
    fn write_outer(packet: &Packet, backend: &Backend, class: u32, hash: u32, length: usize) -> Option<()> {
        let ip = packet.at::<Ipv6>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        unsafe {
            *ip = Ipv6 {
                first: 0x6000_0000_u32.to_be() | class | hash & 0x000f_ffff_u32.to_be(),
                payload_length: (length as u16).to_be(),
                next_header: proto::IPV6,
                hop_limit: HOPS,
                src: backend.source.0,
                dst: backend.addr.0,
            };
        }
        Some(())
    }

    #[inline(always)]
    fn class(packet: &Packet) -> Option<u32> {
        let ip = packet.at::<Ipv6>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        Some(unsafe { (*ip).first } & 0x0fc0_0000_u32.to_be())
    }
}

/// What a changed word adds to the inverted checksum (RFC 1624, equation 3).
#[inline(always)]
pub const fn difference(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}
