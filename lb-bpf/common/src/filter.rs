//! What a packet must be like for a rule of `filters`: the kernel program decides with this, and user space says with it
//! what the kernel program would decide.
use crate::{Addr, Filter};

/// What a rule looks at, but for [`Filter::BYTES`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Source and destination port, host byte order; 0 where the packet has none.
    pub ports: [u16; 2],
    /// Of the IP packet, bytes.
    pub length: u16,
    /// [`Filter::V4`] or [`Filter::V6`], [`Filter::FRAGMENT`] or [`Filter::WHOLE`], and [`Filter::PORTS`] and
    /// [`Filter::TCP_FLAGS`], as far as the packet has them.
    pub has: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// TCP flags; 0 where the packet has none.
    pub tcp_flags: u8,
    /// Reserved, 0.
    pub zero: u16,
}

impl Filter {
    /// Whether a packet is what the rule asks for, but for [`Filter::BYTES`].
    ///
    /// Without branches where it can be: every branch here is one in each of the rounds that the verifier takes. All
    /// differences from what is asked are put together; what is not asked for is masked.
    #[inline(always)]
    pub const fn matches(&self, facts: &Facts) -> bool {
        /// Bits of `kind` that ask for something that a packet has or has not.
        const ASKED: u16 =
            Filter::V4 | Filter::V6 | Filter::FRAGMENT | Filter::WHOLE | Filter::PORTS | Filter::TCP_FLAGS;
        let missing = self.kind & ASKED & !facts.has;
        let proto = if self.kind & Filter::PROTO != 0 { self.proto ^ facts.proto } else { 0 };
        let tcp_flags = facts.tcp_flags & self.tcp_mask ^ self.tcp_flags;
        let addresses =
            beyond(&facts.src, &self.src, &self.src_mask) | beyond(&facts.dst, &self.dst, &self.dst_mask);
        if missing as u32 | (proto | tcp_flags) as u32 | addresses != 0 {
            return false;
        }
        // Those of a packet without ports are 0, and then all ports are right or PORTS was missing.
        within(facts.length, &self.length)
            && within(facts.ports[0], &self.src_ports)
            && within(facts.ports[1], &self.dst_ports)
    }
}

#[inline(always)]
const fn within(number: u16, range: &[u16; 2]) -> bool {
    number.wrapping_sub(range[0]) <= range[1].wrapping_sub(range[0])
}

/// 0 if the address is in the network.
#[inline(always)]
const fn beyond(addr: &Addr, net: &Addr, mask: &Addr) -> u32 {
    (addr.0[0] & mask.0[0] ^ net.0[0])
        | (addr.0[1] & mask.0[1] ^ net.0[1])
        | (addr.0[2] & mask.0[2] ^ net.0[2])
        | (addr.0[3] & mask.0[3] ^ net.0[3])
}
