//! What differs between IPv4 and IPv6; everything else is written once, for any [`Family`].
use crate::packet::{ETH, Extension, Icmp, Ipv4, Ipv6, Packet};
use lb_bpf_common::{Addr, Backend, Verdict, fold, proto, protocol_sum};

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
    /// Identification of the packet that this is a part of, as it lies in the packet.
    pub id: u32,
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
    /// IANA number of a packet of the family in IP.
    const IN_IP: u8;
    /// IANA number of the family's ICMP.
    const ICMP: u8;
    /// ICMP type of an echo request.
    const ECHO: u8;
    /// ICMP type of an echo reply.
    const ECHO_REPLY: u8;
    /// Whether the ICMP checksum covers the addresses (RFC 4443, section 2.3).
    const PSEUDO_HEADER: bool;
    /// How much of a packet an ICMP error quotes: as much as makes a message of 576 bytes (RFC 1812, section 4.3.2.3)
    /// or 1280 (RFC 4443, section 2.4). A multiple of 4.
    const QUOTE: usize;
    /// What every link carries, bytes.
    const LEAST_MTU: usize;
    /// How much of a packet without hops is quoted: its header and 8 bytes (RFC 792), since it may be short.
    const SHORT_QUOTE: usize = Self::OUTER + 8;

    /// Reads the header at `offset`. `None`: there is none, or one that only the stack can judge.
    fn network(packet: &Packet, offset: usize) -> Option<Network>;

    /// Whether a protocol is that of an extension header, behind which [`extensions`] finds the packet's own.
    fn is_extension(proto: u8) -> bool;

    /// Takes one hop off, and changes the addresses by `delta`'s worth of checksum. The header starts at [`ETH`].
    /// `None` cannot happen after [`Family::network`], but the verifier wants it.
    fn forward(packet: &Packet, addresses: Option<Addresses>) -> Option<()>;

    /// Writes the outer header at [`ETH`] for `length` bytes of protocol `proto`. `class` is that of the inner packet,
    /// from [`Family::class`]; `source` is what comes on top of the source in `backend`.
    fn write_outer(
        packet: &Packet,
        backend: &Backend,
        source: u32,
        class: u32,
        hash: u32,
        length: usize,
        proto: u8,
    ) -> Option<()>;

    /// What the outer header takes over from the inner one at [`ETH`]: the DSCP, in the upper six bits of a byte.
    /// ECN is not taken over (RFC 6040, section 4.1, compatibility mode), so the far end need not merge it.
    fn class(packet: &Packet) -> Option<u32>;

    /// The sum of the header at [`ETH`] less that of the pseudo header that the transport checksum covers: with a good
    /// transport checksum, the sum of the whole packet.
    fn sum_beyond_transport(packet: &Packet, network: &Network) -> Option<u64>;

    /// Whether an ICMP type is that of an error about a packet.
    fn is_error(kind: u8) -> bool;

    /// Swaps the addresses of the header at [`ETH`], for an answer.
    fn turn_round(packet: &Packet) -> Option<()>;

    /// Changes the addresses of a quoted header at `offset`. What the written words add to an inverted checksum over them.
    fn readdress(packet: &Packet, offset: usize, addresses: Addresses) -> Option<u64>;

    /// Whether the sender of the packet at [`ETH`] wants to be told when it is too big, for nobody may fragment it.
    fn asks_for_mtu(packet: &Packet) -> Option<bool>;

    /// Writes the header of an ICMP message of `length` bytes at [`ETH`]. What the pseudo header adds to its checksum.
    fn write_icmp(packet: &Packet, addresses: Addresses, length: usize) -> Option<u64>;

    /// The two words of an ICMP header that says: too big, `mtu` bytes would fit. The checksum is 0.
    fn too_big(mtu: usize) -> [u32; 2];

    /// The first word of an ICMP header that says: no hops left. The checksum is 0.
    const TIME_EXCEEDED: u32;
}

/// New addresses of a translated packet.
#[derive(Clone, Copy)]
pub struct Addresses {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
}

/// Hops of an outer header and of an answer.
const HOPS: u8 = 64;

/// IPv4.
pub struct V4;

impl Family for V4 {
    const ETHER_TYPE: u16 = 0x0800_u16.to_be();
    const OUTER: usize = size_of::<Ipv4>();
    const IN_IP: u8 = proto::IPIP;
    const ICMP: u8 = proto::ICMP;
    const ECHO: u8 = 8;
    const ECHO_REPLY: u8 = 0;
    const PSEUDO_HEADER: bool = false;
    const QUOTE: usize = 576 - size_of::<Ipv4>() - size_of::<Icmp>();
    const LEAST_MTU: usize = 68;

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
            id: ip.id as u32,
        })
    }

    #[inline(always)]
    fn is_extension(_proto: u8) -> bool {
        false
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
    fn write_outer(
        packet: &Packet,
        backend: &Backend,
        source: u32,
        class: u32,
        _hash: u32,
        length: usize,
        proto: u8,
    ) -> Option<()> {
        let ip = packet.at::<[u32; 5]>(ETH)?;
        let length = ((length + Self::OUTER) as u16).to_be();
        let sum = backend.header_sum + (class << 8) + length as u32 + protocol_sum(proto);
        let checksum = !fold(sum as u64 + source as u64);
        // SAFETY: `at` has checked the bounds.
        unsafe {
            *ip = [
                0x45 | class << 8 | (length as u32) << 16,
                0x0000_4000_u32.to_be(), // don't fragment
                HOPS as u32 | (proto as u32) << 8 | (checksum as u32) << 16,
                backend.source.0[3] | source,
                backend.addr.0[3],
            ];
        }
        Some(())
    }

    #[inline(always)]
    fn class(packet: &Packet) -> Option<u32> {
        let ip = packet.at::<Ipv4>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        Some(unsafe { (*ip).tos } as u32 & 0xfc)
    }

    /// The header's own checksum makes its sum 0.
    #[inline(always)]
    fn sum_beyond_transport(_packet: &Packet, network: &Network) -> Option<u64> {
        let length = network.length - (network.end - network.start);
        Some(!pseudo_sum(network, length) as u64)
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, time exceeded, parameter problem.
        matches!(kind, 3 | 11 | 12)
    }

    #[inline(always)]
    fn turn_round(packet: &Packet) -> Option<()> {
        let ip = packet.at::<Ipv4>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &mut *ip };
        let sum = (!ip.checksum) as u64 + difference(ip.ttl as u32, HOPS as u32);
        ip.ttl = HOPS;
        ip.checksum = !fold(sum);
        (ip.src, ip.dst) = (ip.dst, ip.src);
        Some(())
    }

    #[inline(always)]
    fn readdress(packet: &Packet, offset: usize, Addresses { src, dst }: Addresses) -> Option<u64> {
        let ip = packet.at::<Ipv4>(offset)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &mut *ip };
        let addresses = difference(ip.src, src.0[3]) + difference(ip.dst, dst.0[3]);
        let old = ip.checksum;
        ip.checksum = !fold((!old) as u64 + addresses);
        ip.src = src.0[3];
        ip.dst = dst.0[3];
        Some(addresses + difference(old as u32, ip.checksum as u32))
    }

    #[inline(always)]
    fn asks_for_mtu(packet: &Packet) -> Option<bool> {
        let ip = packet.at::<Ipv4>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        Some(unsafe { (*ip).fragment } & 0x4000_u16.to_be() != 0)
    }

    #[inline(always)]
    fn write_icmp(packet: &Packet, Addresses { src, dst }: Addresses, length: usize) -> Option<u64> {
        let ip = packet.at::<[u32; 5]>(ETH)?;
        let mut words = [
            // Precedence "internetwork control" (RFC 1812, section 4.3.2.5).
            (0x45c0_0000 | (length + Self::OUTER) as u32).to_be(),
            0x0000_4000_u32.to_be(), // don't fragment
            HOPS as u32 | (proto::ICMP as u32) << 8,
            src.0[3],
            dst.0[3],
        ];
        let sum = words[0] as u64 + words[1] as u64 + words[2] as u64 + words[3] as u64 + words[4] as u64;
        words[2] |= (!fold(sum) as u32) << 16;
        // SAFETY: `at` has checked the bounds.
        unsafe { *ip = words };
        Some(0)
    }

    /// Type 3, code 4 (RFC 1191, section 4).
    #[inline(always)]
    fn too_big(mtu: usize) -> [u32; 2] {
        [0x0304_0000_u32.to_be(), (mtu as u32 & 0xffff).to_be()]
    }

    /// Type 11, code 0 (RFC 792).
    const TIME_EXCEEDED: u32 = 0x0b00_0000_u32.to_be();
}

/// IPv6.
pub struct V6;

impl Family for V6 {
    const ETHER_TYPE: u16 = 0x86dd_u16.to_be();
    const OUTER: usize = size_of::<Ipv6>();
    const IN_IP: u8 = proto::IPV6;
    const ICMP: u8 = proto::ICMPV6;
    const ECHO: u8 = 128;
    const ECHO_REPLY: u8 = 129;
    const PSEUDO_HEADER: bool = true;
    const QUOTE: usize = 1280 - size_of::<Ipv6>() - size_of::<Icmp>();
    const LEAST_MTU: usize = 1280;

    /// With an extension header its number is the protocol: see [`extensions`].
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
            id: 0,
        })
    }

    #[inline(always)]
    fn is_extension(proto: u8) -> bool {
        matches!(proto, proto::HOP_BY_HOP | proto::ROUTING | proto::FRAGMENT | proto::DESTINATION)
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
    fn write_outer(
        packet: &Packet,
        backend: &Backend,
        source: u32,
        class: u32,
        hash: u32,
        length: usize,
        proto: u8,
    ) -> Option<()> {
        let ip = packet.at::<Ipv6>(ETH)?;
        let [a, b, c, d] = backend.source.0;
        // SAFETY: `at` has checked the bounds.
        unsafe {
            *ip = Ipv6 {
                first: (0x6000_0000 | class << 20).to_be() | hash & 0x000f_ffff_u32.to_be(),
                payload_length: (length as u16).to_be(),
                next_header: proto,
                hop_limit: HOPS,
                src: [a, b, c, d | source],
                dst: backend.addr.0,
            };
        }
        Some(())
    }

    #[inline(always)]
    fn class(packet: &Packet) -> Option<u32> {
        let ip = packet.at::<Ipv6>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        Some(u32::from_be(unsafe { (*ip).first }) >> 20 & 0xfc)
    }

    /// The addresses are in both; of the header remain the first word, length, next header and hop limit.
    #[inline(always)]
    fn sum_beyond_transport(packet: &Packet, network: &Network) -> Option<u64> {
        let words = packet.at::<[u32; 2]>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        let [first, second] = unsafe { *words };
        let length = network.length - (network.end - network.start);
        let addresses = fold(sum_of(&network.src) + sum_of(&network.dst)) as u64;
        Some(first as u64 + second as u64 + addresses + !pseudo_sum(network, length) as u64)
    }

    #[inline(always)]
    fn is_error(kind: u8) -> bool {
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        matches!(kind, 1..=4)
    }

    #[inline(always)]
    fn turn_round(packet: &Packet) -> Option<()> {
        let ip = packet.at::<Ipv6>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &mut *ip };
        ip.hop_limit = HOPS;
        (ip.src, ip.dst) = (ip.dst, ip.src);
        Some(())
    }

    #[inline(always)]
    fn readdress(packet: &Packet, offset: usize, Addresses { src, dst }: Addresses) -> Option<u64> {
        let ip = packet.at::<Ipv6>(offset)?;
        // SAFETY: `at` has checked the bounds.
        let ip = unsafe { &mut *ip };
        let sum = change(&Addr(ip.src), &src) + change(&Addr(ip.dst), &dst);
        ip.src = src.0;
        ip.dst = dst.0;
        Some(sum)
    }

    #[inline(always)]
    fn asks_for_mtu(_packet: &Packet) -> Option<bool> {
        Some(true)
    }

    #[inline(always)]
    fn write_icmp(packet: &Packet, Addresses { src, dst }: Addresses, length: usize) -> Option<u64> {
        let ip = packet.at::<Ipv6>(ETH)?;
        // SAFETY: `at` has checked the bounds.
        unsafe {
            *ip = Ipv6 {
                first: 0x6000_0000_u32.to_be(),
                payload_length: (length as u16).to_be(),
                next_header: proto::ICMPV6,
                hop_limit: HOPS,
                src: src.0,
                dst: dst.0,
            };
        }
        let words = (length as u32).to_be() as u64 + (proto::ICMPV6 as u32).to_be() as u64;
        Some(words + change(&Addr::NONE, &src) + change(&Addr::NONE, &dst))
    }

    /// Type 2 (RFC 4443, section 3.2).
    #[inline(always)]
    fn too_big(mtu: usize) -> [u32; 2] {
        [0x0200_0000_u32.to_be(), (mtu as u32).to_be()]
    }

    /// Type 3, code 0 (RFC 4443, section 3.3).
    const TIME_EXCEEDED: u32 = 0x0300_0000_u32.to_be();
}

/// Most extension headers that are looked through, and most bytes of them.
const EXTENSIONS: usize = 8;
/// See [`EXTENSIONS`].
const EXTENSIONS_LENGTH: usize = 512;

/// Goes through the extension headers of IPv6 to the protocol that `network` is about (RFC 8200, section 4): `network`
/// then says what follows the last one. Of a later fragment that is the payload of a part. An error: the verdict on a
/// packet to a VIP, for there are too many, or a routing header that still has to be followed.
#[inline(always)]
pub fn extensions(packet: &Packet, network: &mut Network) -> Result<(), Verdict> {
    for _ in 0..EXTENSIONS {
        if !V6::is_extension(network.proto) {
            return Ok(());
        }
        let header = packet.at::<Extension>(network.end).ok_or(Verdict::Malformed)?;
        // SAFETY: `at` has checked the bounds.
        let header = unsafe { &*header };
        let mut length = 8;
        if network.proto == proto::FRAGMENT {
            let fragment = u16::from_be_bytes(header.middle);
            network.id = header.id;
            network.part = match fragment {
                fragment if fragment & 0xfff9 == 0 => Part::Whole, // an atomic fragment (RFC 6946)
                fragment if fragment & 0xfff8 == 0 => Part::First,
                _ => Part::Later,
            };
        } else {
            length += header.length as usize * 8;
            if network.proto == proto::ROUTING && header.middle[1] != 0 {
                return Err(Verdict::HeaderChain);
            }
        }
        network.proto = header.next_header;
        network.end += length;
        if network.end > network.start + EXTENSIONS_LENGTH {
            return Err(Verdict::HeaderChain);
        }
        // What follows is not a header.
        if network.part == Part::Later {
            return Ok(());
        }
    }
    if V6::is_extension(network.proto) { Err(Verdict::HeaderChain) } else { Ok(()) }
}

/// The folded sum of the pseudo header of a transport packet of `length` bytes (RFC 9293, section 3.1; RFC 8200, section
/// 8.1). Zeros do not count, and the mark of an IPv4 address is 0xffff, another 0: so it is the same for both families.
#[inline(always)]
pub fn pseudo_sum(network: &Network, length: usize) -> u16 {
    let rest = (length as u32).to_be() as u64 + (network.proto as u32).to_be() as u64;
    fold(sum_of(&network.src) + sum_of(&network.dst) + rest)
}

/// The sum of an address as it lies in a packet.
#[inline(always)]
const fn sum_of(addr: &Addr) -> u64 {
    addr.0[0] as u64 + addr.0[1] as u64 + addr.0[2] as u64 + addr.0[3] as u64
}

/// What a changed word adds to the inverted checksum (RFC 1624, equation 3).
#[inline(always)]
pub const fn difference(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}
/// What a changed address adds to the inverted checksum.
#[inline(always)]
pub const fn change(old: &Addr, new: &Addr) -> u64 {
    difference(old.0[0], new.0[0])
        + difference(old.0[1], new.0[1])
        + difference(old.0[2], new.0[2])
        + difference(old.0[3], new.0[3])
}
