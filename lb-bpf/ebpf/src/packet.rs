//! Bounded access to the bytes of a packet, and the headers as they lie there.
//!
//! Headers are read through typed pointers: an unaligned read would become byte loads on this target. The frame
//! starts 2 bytes off a multiple of 4 (the kernel's `NET_IP_ALIGN`; on x86 it does not matter), so everything
//! from the IP header on is aligned.
use core::ptr;

/// Length of an Ethernet header.
pub const ETH: usize = 14;

/// The bytes of a packet.
#[derive(Clone, Copy)]
pub struct Packet {
    start: usize,
    end: usize,
    length: usize,
}

impl Packet {
    /// A packet of `length` bytes, of which those from the address `start` up to `end` are at hand.
    ///
    /// # Safety
    /// All bytes between are readable and writable while this value and pointers made from it are used, and
    /// nothing else refers to them.
    #[inline(always)]
    pub const unsafe fn new(start: usize, end: usize, length: usize) -> Self {
        Packet { start, end, length }
    }

    /// Bytes from the Ethernet header to the end.
    #[inline(always)]
    #[expect(clippy::len_without_is_empty, reason = "there is no empty packet")]
    pub const fn len(&self) -> usize {
        self.length
    }

    /// Where a `T` lies at `offset`, if it lies wholly within the packet. `T` is one of the headers below or an
    /// array of integers: any bytes are a valid value.
    #[inline(always)]
    pub fn at<T>(&self, offset: usize) -> Option<*mut T> {
        let first = self.start + offset;
        if first + size_of::<T>() > self.end {
            return None;
        }
        Some(first as *mut T)
    }

    /// The byte at `offset`, which may be anything up to 4095.
    #[inline(always)]
    pub fn byte(&self, offset: usize) -> Option<u8> {
        // Opaque, so that the comparison stays "one byte behind it is not beyond the end", which the verifier follows.
        let at = core::hint::black_box(self.start + (offset & 0xfff));
        if at + 1 > self.end {
            return None;
        }
        // SAFETY: within the packet.
        Some(unsafe { *(at as *const u8) })
    }

    /// Where `size` bytes lie at `offset`, if they lie wholly within the packet.
    #[inline(always)]
    pub const fn bytes(&self, offset: usize, size: usize) -> Option<*mut u8> {
        let first = self.start + offset;
        if first + size > self.end {
            return None;
        }
        Some(first as *mut u8)
    }
}

/// Ethernet header, without a VLAN tag.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub struct Eth {
    /// Destination, then source.
    pub macs: Macs,
    /// Network byte order.
    pub ether_type: u16,
}

/// The EtherType of a frame, network byte order; 0: it is too short for one.
#[inline(always)]
pub fn ether_type(packet: &Packet) -> u16 {
    match packet.at::<Eth>(0) {
        // SAFETY: `at` has checked the bounds.
        Some(eth) => unsafe { (*eth).ether_type },
        None => 0,
    }
}

/// Destination and source address of an Ethernet header, in words that are quick to copy. Not in longer ones: what
/// lies on the stack must be aligned, and in the map entries they are at multiples of 4.
#[repr(C, packed(2))]
#[derive(Clone, Copy)]
pub struct Macs(u32, u32, u32);

impl Macs {
    /// The addresses at `macs`, which lie there like in a header.
    ///
    /// # Safety
    /// 12 bytes are readable there.
    #[inline(always)]
    pub unsafe fn read(macs: *const u8) -> Self {
        let words = macs.cast::<u32>();
        // SAFETY: by the contract of this function.
        unsafe { Macs(load(words), load(words.add(1)), load(words.add(2))) }
    }

    /// Writes the addresses.
    ///
    /// # Safety
    /// 12 bytes are writable there.
    #[inline(always)]
    pub unsafe fn write(self, macs: *mut u8) {
        let words = macs.cast::<u32>();
        // SAFETY: by the contract of this function.
        unsafe {
            store(words, self.0);
            store(words.add(1), self.1);
            store(words.add(2), self.2);
        }
    }

    /// Source becomes destination and the reverse: the way back.
    #[inline(always)]
    pub const fn swapped(self) -> Self {
        let (first, middle, last) = (self.0, self.1, self.2);
        Macs(middle >> 16 | last << 16, last >> 16 | first << 16, first >> 16 | middle << 16)
    }
}

#[inline(always)]
unsafe fn load<T: Copy>(from: *const T) -> T {
    if cfg!(target_arch = "bpf") {
        // SAFETY: the caller's; the target has no alignment.
        unsafe { *from }
    } else {
        // SAFETY: the caller's.
        unsafe { ptr::read_unaligned(from) }
    }
}

#[inline(always)]
unsafe fn store<T: Copy>(to: *mut T, value: T) {
    if cfg!(target_arch = "bpf") {
        // SAFETY: the caller's; the target has no alignment.
        unsafe { *to = value }
    } else {
        // SAFETY: the caller's.
        unsafe { ptr::write_unaligned(to, value) }
    }
}

/// IPv4 header without options (RFC 791, section 3.1). Network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv4 {
    /// Version, and header length in words.
    pub version_ihl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Length with this header.
    pub total_length: u16,
    /// Identification.
    pub id: u16,
    /// Flags and offset.
    pub fragment: u16,
    /// Time to live.
    pub ttl: u8,
    /// Protocol.
    pub proto: u8,
    /// Header checksum.
    pub checksum: u16,
    /// Source.
    pub src: u32,
    /// Destination.
    pub dst: u32,
}

/// IPv6 header (RFC 8200, section 3). Network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Ipv6 {
    /// Version, traffic class, flow label.
    pub first: u32,
    /// Length without this header.
    pub payload_length: u16,
    /// Next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source.
    pub src: [u32; 4],
    /// Destination.
    pub dst: [u32; 4],
}

/// TCP header without options (RFC 9293, section 3.1). Network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Tcp {
    /// Source and destination port.
    pub ports: [u16; 2],
    /// Sequence and acknowledgment number.
    pub numbers: [u32; 2],
    /// Header length in words, in the high half.
    pub offset: u8,
    /// FIN, SYN, RST, …
    pub flags: u8,
    /// Window.
    pub window: u16,
    /// Checksum.
    pub checksum: u16,
    /// Urgent pointer.
    pub urgent: u16,
}

impl Tcp {
    /// The sender has no more to say.
    pub const FIN: u8 = 1;
    /// Opens a connection.
    pub const SYN: u8 = 2;
    /// Resets the connection.
    pub const RST: u8 = 4;
    /// Acknowledges.
    pub const ACK: u8 = 16;
}

/// ICMP and ICMPv6 header (RFC 792, RFC 4443). Network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Icmp {
    /// Type.
    pub kind: u8,
    /// Code.
    pub code: u8,
    /// Checksum; in IPv6 over a pseudo header, too.
    pub checksum: u16,
    /// Depends on the type.
    pub rest: u32,
}

/// What IPv6 extension headers have in common (RFC 8200, section 4).
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Extension {
    /// Protocol of what follows.
    pub next_header: u8,
    /// Length in units of 8 bytes, less one; of a fragment header reserved.
    pub length: u8,
    /// Of a routing header: type and segments left. Of a fragment header: offset and flags.
    pub middle: [u8; 2],
    /// Of a fragment header: identification.
    pub id: u32,
}

/// UDP header (RFC 768). Network byte order.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Udp {
    /// Source and destination port.
    pub ports: [u16; 2],
    /// Length with this header.
    pub length: u16,
    /// Checksum; 0: there is none.
    pub checksum: u16,
}
