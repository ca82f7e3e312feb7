//! The parser of packets against another one (etherparse, and the rules of RFC 8200 written out slowly). The first octet
//! says where the IP header is and which (bit 0: IPv6; bits 1 to 6: words behind the Ethernet header, as in a tunnel or an
//! ICMP error; bit 7: the packet is longer than what is at hand), the rest is the frame.
//!
//! The frame lies against memory that cannot be touched, once with its end and once with its beginning: whoever reads out
//! of bounds dies of it. It is aligned as in the kernel, so only every fourth length ends exactly there.
//!
//! The modules are taken as they are, and without the rest of the kernel programs: on the host aya-ebpf would put its own
//! `memcpy` in the place of the C library's.
#![no_main]
use etherparse::{Ipv4HeaderSlice, Ipv6FragmentHeaderSlice, Ipv6HeaderSlice, Ipv6RawExtHeaderSlice};
use family::{Family, Network, Part, V4, V6, extensions};
use lb_bpf_common::{Verdict, decide::Phase, proto};
use libfuzzer_sys::fuzz_target;
use packet::{ETH, Packet};
use parse::Segment;
use std::{net::IpAddr, ptr, sync::OnceLock};

#[path = "../ebpf/src/family.rs"]
#[expect(dead_code, reason = "what writes to packets is not used here")]
mod family;
#[path = "../ebpf/src/packet.rs"]
#[expect(dead_code, reason = "what writes to packets is not used here")]
mod packet;
#[path = "../ebpf/src/parse.rs"]
#[expect(dead_code, reason = "only what calls no helper is used here")]
mod parse;

/// In place of the module that keeps the ports of first fragments in a map.
mod fragment {
    pub(crate) fn note(_network: &crate::Network, _source: u16, _destination: u16) {}
}

/// Octets of a page.
const PAGE: usize = 4096;
/// Where a frame begins, modulo 4: what follows the Ethernet header is aligned.
const ALIGNMENT: usize = 2;

fuzz_target!(|data: &[u8]| {
    let Some((flags, frame)) = data.split_first() else { return };
    let frame = &frame[..frame.len().min(PAGE - 4)];
    let (offset, beyond) = (ETH + usize::from(flags >> 1 & 0x3f) * 4, usize::from(flags >> 7) * 100);
    let is_v6 = flags & 1 != 0;
    let expected = if is_v6 { expected_v6(frame, offset) } else { expected_v4(frame, offset) };
    let expected = expected.map(|headers| headers.map(|headers| headers.finish(frame, offset, beyond)));
    for at_end in [true, false] {
        let packet = between_guards(frame, at_end, beyond);
        let found = if is_v6 { read::<V6>(&packet, offset) } else { read::<V4>(&packet, offset) };
        assert_eq!(found, expected);
        for offset in [0, offset, frame.len(), frame.len().wrapping_sub(1) & 0xfff, 0xfff] {
            assert_eq!(packet.byte(offset), frame.get(offset).copied());
        }
    }
});

/// What a parser says about a packet.
#[derive(Debug, PartialEq)]
struct Headers {
    src: IpAddr,
    dst: IpAddr,
    proto: u8,
    /// Offset of what follows the headers of IP.
    end: usize,
    length: usize,
    hops: u8,
    /// Whether it is the first part of a packet, and another one.
    part: (bool, bool),
    id: u32,
    /// Ports, phase and flags; none: no transport header that could be used.
    transport: Option<([u16; 2], Phase, u8)>,
}

/// Nothing: not a packet of IP. An error: a packet that goes no further.
type Said = Option<Result<Headers, Verdict>>;

/// What the datapath says.
fn read<F: Family>(packet: &Packet, offset: usize) -> Said {
    let mut network = F::network(packet, offset)?;
    if F::is_extension(network.proto)
        && let Err(verdict) = extensions(packet, &mut network)
    {
        return Some(Err(verdict));
    }
    let Network { src, dst, proto, end, length, hops, part, id, .. } = network;
    let has_ports = matches!(proto, proto::TCP | proto::UDP);
    let ports = match part {
        Part::Later => Some([0; 2]),
        // SAFETY: `at` has checked the bounds.
        _ => packet.at::<[u16; 2]>(end).map(|ports| unsafe { ports.read_unaligned() }),
    };
    let transport = ports.filter(|_| has_ports).and_then(|ports| {
        let segment = Segment::new(network, ports);
        let transport = segment.header(packet)?;
        let ports = [segment.flow.src_port, segment.flow.dst_port].map(u16::from_be);
        Some((ports, transport.phase, transport.flags))
    });
    let part = (part == Part::First, part == Part::Later);
    Some(Ok(Headers { src: src.into(), dst: dst.into(), proto, end, length, hops, part, id, transport }))
}

fn expected_v4(frame: &[u8], offset: usize) -> Said {
    let bytes = frame.get(offset..)?;
    bytes.get(..20)?;
    // That options are cut off is seen later.
    let padded = padded(bytes, 60);
    let ip = Ipv4HeaderSlice::from_slice(&padded).ok()?;
    let first = ip.fragments_offset().value() == 0;
    Some(Ok(Headers {
        src: ip.source_addr().into(),
        dst: ip.destination_addr().into(),
        proto: ip.protocol().0,
        end: offset + ip.slice().len(),
        length: ip.total_len().into(),
        hops: ip.ttl(),
        part: (first && ip.more_fragments(), !first),
        // As it lies in the packet.
        id: ip.identification().to_be().into(),
        transport: None,
    }))
}

fn expected_v6(frame: &[u8], offset: usize) -> Said {
    let bytes = frame.get(offset..)?;
    let ip = Ipv6HeaderSlice::from_slice(bytes).ok()?;
    let mut headers = Headers {
        src: IpAddr::from(ip.source_addr()).to_canonical(),
        dst: IpAddr::from(ip.destination_addr()).to_canonical(),
        proto: ip.next_header().0,
        end: offset + 40,
        length: usize::from(ip.payload_length()) + 40,
        hops: ip.hop_limit(),
        part: (false, false),
        id: 0,
        transport: None,
    };
    for count in 0.. {
        const HOP_BY_HOP: u8 = 0;
        const ROUTING: u8 = 43;
        const FRAGMENT: u8 = 44;
        const DESTINATION: u8 = 60;
        if headers.part.1 || ![HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION].contains(&headers.proto) {
            break;
        }
        if count == 8 {
            return Some(Err(Verdict::HeaderChain));
        }
        let Some(bytes) = frame.get(headers.end..).filter(|bytes| bytes.len() >= 8) else {
            return Some(Err(Verdict::Malformed));
        };
        if headers.proto == FRAGMENT {
            let fragment = Ipv6FragmentHeaderSlice::from_slice(bytes).expect("eight octets");
            let first = fragment.fragment_offset().value() == 0;
            headers.part = (first && fragment.more_fragments(), !first);
            headers.id = fragment.identification().to_be();
            headers.proto = fragment.next_header().0;
            headers.end += 8;
        } else {
            let padded = padded(bytes, 8 + 255 * 8);
            let header = Ipv6RawExtHeaderSlice::from_slice(&padded).expect("enough octets");
            let segments_left = bytes[3];
            if headers.proto == ROUTING && segments_left != 0 {
                return Some(Err(Verdict::HeaderChain));
            }
            headers.proto = header.next_header().0;
            headers.end += header.slice().len();
        }
        if headers.end > offset + 512 {
            return Some(Err(Verdict::HeaderChain));
        }
    }
    Some(Ok(headers))
}

impl Headers {
    /// With what the transport header says.
    fn finish(mut self, frame: &[u8], offset: usize, beyond: usize) -> Self {
        let size = match (self.proto, self.part.1) {
            (6 | 17, true) => 0,
            (6, false) => 20,
            (17, false) => 8,
            _ => return self,
        };
        let is_tcp = self.proto == 6;
        let fits = self.length >= self.end - offset + size && offset + self.length <= frame.len() + beyond;
        self.transport = if !fits {
            None
        } else if size == 0 {
            Some(([0; 2], if is_tcp { Phase::Running } else { Phase::Datagram }, 0))
        } else {
            frame.get(self.end..self.end + size).map(|header| {
                let [a, b, c, d] = [header[0], header[1], header[2], header[3]];
                let ports = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
                let flags = if is_tcp { header[13] } else { 0 };
                let (syn, ack) = (flags & 2 != 0, flags & 16 != 0);
                let phase = match is_tcp {
                    true if syn && !ack => Phase::Opening,
                    true => Phase::Running,
                    false => Phase::Datagram,
                };
                (ports, phase, flags)
            })
        };
        self
    }
}

fn padded(bytes: &[u8], length: usize) -> Vec<u8> {
    let mut padded = bytes.to_vec();
    padded.resize(bytes.len().max(length), 0);
    padded
}

/// A copy of the frame in a page between two that nobody may touch: at its end, or at its beginning.
fn between_guards(frame: &[u8], at_end: bool, beyond: usize) -> Packet {
    static PAGES: OnceLock<usize> = OnceLock::new();
    let page = *PAGES.get_or_init(|| {
        // SAFETY: new memory, and all of what is asked for.
        let pages = unsafe {
            libc::mmap(
                ptr::null_mut(),
                3 * PAGE,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(pages, libc::MAP_FAILED);
        let middle = pages as usize + PAGE;
        // SAFETY: the page in the middle.
        let done = unsafe { libc::mprotect(middle as *mut _, PAGE, libc::PROT_READ | libc::PROT_WRITE) };
        assert_eq!(done, 0);
        middle
    });
    let last = page + PAGE - frame.len();
    let start = if at_end { last - (last - ALIGNMENT) % 4 } else { page + ALIGNMENT };
    // SAFETY: the frame fits into the page, which is not used otherwise: there is one thread.
    unsafe {
        ptr::copy_nonoverlapping(frame.as_ptr(), start as *mut u8, frame.len());
        Packet::new(start, start + frame.len(), frame.len() + beyond)
    }
}
