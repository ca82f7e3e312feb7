//! Keys and values of the maps. The name of the map stands in the first line of each doc comment.
use crate::Addr;

/// Key of `vips` (hash): a frontend; or, with the number of the family's ICMP and port 0, an address that answers
/// pings.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VipKey {
    /// The VIP.
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// Always 0.
    pub zero: u8,
}

/// Value of `vips`: where the Maglev table of the frontend lies in `slots`. Replaced as a whole, so that a
/// packet sees the old table or the new one, never a mixture.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vip {
    /// Id of the service; 0 only in an address's entry for ICMP, which belongs to all services of the address.
    pub service: u32,
    /// Index of the table's first slot in `slots`.
    pub base: u32,
    /// Number of slots, a prime; 0 when the service has no backend.
    pub size: u32,
    /// Reserved, 0.
    pub flags: u32,
}

/// Value of `slots` (array with `BPF_F_MMAPABLE`, one for all services). Write it with one store of 8 bytes
/// ([`Slot::to_bits`]), for packets read it at the same time.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Slot {
    /// Index in `backends` of the backend that owns the slot; 0: none.
    pub current: u32,
    /// 0: the slot is clean. Else the slot is dirty and this is the index of the backend before, with
    /// [`Slot::SETTLED`] set once unknown flows go to the current backend.
    pub previous: u32,
}

impl Slot {
    /// Bit of `previous`: the learning window of this dirty slot is over. Known flows keep their entry, unknown
    /// flows go to the current backend. Without it an unknown TCP packet that is not a SYN goes to the previous
    /// backend and is pinned there.
    pub const SETTLED: u32 = 1 << 31;

    /// The slot as the one word that lies in the map: `current` in the low half.
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.current as u64 | (self.previous as u64) << 32
    }

    /// From the word in the map.
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Slot { current: bits as u32, previous: (bits >> 32) as u32 }
    }
}

// The word and the struct are the same bytes only where the low half comes first.
const _: () = assert!(cfg!(target_endian = "little"));

/// How a packet reaches its backend.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Mode {
    /// Destination and source are translated; replies come back through this host.
    Nat = 1,
    /// Encapsulated in IPv4 (RFC 2003) or IPv6 (RFC 2473), the family of the backend's address; replies go
    /// directly to the client.
    Ipip = 2,
}

/// Value of `backends` (array with `BPF_F_MMAPABLE`, index 0 is never used): one backend of one service, one
/// cache line. Packets read it while it is written, so only `next_hop`, `source_mac`, `ifindex`, `mtu` and
/// `flags` of an entry in use may change in place; for anything else take another index. Free an entry by
/// setting `mode` to 0 when no slot names it any more.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Backend {
    /// Address of the backend: the outer destination, or the translated destination.
    pub addr: Addr,
    /// Address of this host towards the backend: the outer source, or the translated source.
    pub source: Addr,
    /// Ethernet address of the next hop towards the backend.
    pub next_hop: [u8; 6],
    /// Ethernet address of the interface towards the backend.
    pub source_mac: [u8; 6],
    /// Interface towards the backend; 0: the next hop is not resolved, the packet goes up the stack. Set it
    /// to 0 first and back last when the addresses of the next hop change.
    pub ifindex: u32,
    /// Port of the backend, network byte order.
    pub port: u16,
    /// A [`Mode`]; 0: this entry is free.
    pub mode: u8,
    /// Bits: [`Backend::DOWN`].
    pub flags: u8,
    /// [`crate::outer_header_sum`] of `source` and `addr` when both are IPv4 and the mode is IPIP; else 0.
    pub header_sum: u32,
    /// Id of the service that the backend belongs to.
    pub service: u32,
    /// Largest IP packet that the interface towards the backend takes, bytes; 0: not known.
    pub mtu: u32,
}

impl Backend {
    /// Bit of `flags`: the backend does not answer. Known flows leave it for the slot's current backend, and
    /// a dirty slot does not fall back to it. Slots that name it as the current one still send to it.
    pub const DOWN: u8 = 1;
}

/// Key of `flows` (hash, `BPF_F_NO_PREALLOC`): a flow as the client sends it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowKey {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Source port, network byte order.
    pub src_port: u16,
    /// Destination port, network byte order.
    pub dst_port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

/// Value of `flows`: only for flows of dirty slots, and for every flow of a NAT service.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FlowEntry {
    /// Index in `backends`.
    pub backend: u32,
    /// Index in `slots` of the flow's slot when the entry was made.
    pub slot: u32,
    /// When a packet of the client was last seen: seconds of CLOCK_MONOTONIC. A NAT flow is idle only when
    /// `seen` of its [`ReverseEntry`] is old, too: the backend may be the only one who sends.
    pub seen: u32,
    /// NAT: the source port towards the backend, network byte order; else 0.
    pub nat_port: u16,
    /// Bits `FlowEntry::FIN_*`, `FlowEntry::RST`, `FlowEntry::HALF_OPEN`.
    pub state: u16,
}

impl FlowKey {
    /// The key in `reverse` of a flow that is translated to `backend` with the source port `nat_port` (network
    /// byte order): the flow as the backend answers it.
    #[inline(always)]
    pub const fn reply(backend: &Backend, nat_port: u16, proto: u8) -> Self {
        FlowKey {
            src: backend.addr,
            dst: backend.source,
            src_port: backend.port,
            dst_port: nat_port,
            proto,
            zero: [0; 3],
        }
    }
}

impl FlowEntry {
    /// A FIN from the client was seen.
    pub const FIN_CLIENT: u16 = 1;
    /// A FIN from the backend was seen (NAT only).
    pub const FIN_BACKEND: u16 = 2;
    /// A RST was seen, from either side, and no packet of the client since.
    pub const RST: u16 = 4;
    /// The client has sent nothing but SYNs; of UDP, nothing but the first packet. That costs a sender of made-up
    /// addresses nothing, so such an entry is worth little. Any other packet of the client clears it.
    ///
    /// The bit stands for what is *not* yet known, so that an entry of a program which did not have it (0) counts as
    /// established: [`ABI_VERSION`](crate::ABI_VERSION) did not change with it.
    pub const HALF_OPEN: u16 = 8;
    /// Bits of a connection that ends.
    pub const ENDING: u16 = Self::FIN_CLIENT | Self::FIN_BACKEND | Self::RST;
}

/// Value of `reverse` (hash, `BPF_F_NO_PREALLOC`; its key is a [`FlowKey`] as the backend sends, see
/// [`FlowKey::reply`]): how a reply is translated back.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReverseEntry {
    /// The client: the reply's new destination.
    pub client: Addr,
    /// The VIP: the reply's new source.
    pub vip: Addr,
    /// Network byte order.
    pub client_port: u16,
    /// Network byte order.
    pub vip_port: u16,
    /// Interface where the client's packets arrive.
    pub ifindex: u32,
    /// When a packet of either side was last seen: seconds of CLOCK_MONOTONIC.
    pub seen: u32,
    /// Ethernet source of the client's packets: the reply goes back the way the request came.
    pub next_hop: [u8; 6],
    /// Ethernet destination of the client's packets.
    pub source_mac: [u8; 6],
}

/// Key of `decap` (hash; the value is a `u32`, 1): a tunnel end of this host and the VIP accepted through it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DecapKey {
    /// Destination of the outer header.
    pub local: Addr,
    /// Destination of the inner header.
    pub vip: Addr,
}

/// The one value of `config` (array of one).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Bit 0: there is a NAT service, so replies have to be looked up.
    pub flags: u32,
    /// First source port of NAT, host byte order. The range lies below the kernel's ephemeral ports.
    pub nat_port_first: u16,
    /// Last source port of NAT, inclusive, host byte order.
    pub nat_port_last: u16,
}

impl Config {
    /// Bit of `flags`: there is a NAT service.
    pub const NAT: u32 = 1;
}

/// Value of `backend_counters` (per-CPU array, same index as `backends`: the packets sent to the backend) and of
/// `verdict_counters` (per-CPU array, index is the [`crate::Verdict`]). A packet is counted once: those sent to a
/// backend (`Encapsulated`, `Translated`) only there, those that are not ours nowhere, all others by verdict.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counter {
    /// Packets.
    pub packets: u64,
    /// Bytes of the packets as received, Ethernet header included.
    pub bytes: u64,
    /// TCP SYNs (and, where flows are tracked, first packets of unknown flows); 0 for verdicts.
    pub flows: u64,
    /// Reserved, 0: keeps an entry in one half of a cache line.
    pub zero: u64,
}

/// Index of `icmp_limits` (per-CPU array of `u64`): what is sent of the datapath's own accord, at a limited rate. The
/// value is the moment, nanoseconds of CLOCK_MONOTONIC, up to which what was sent has used the rate up.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// Answers to pings.
    Echo = 0,
    /// "Packet too big".
    TooBig = 1,
}

impl Limit {
    /// How many there are.
    pub const COUNT: usize = 2;
    /// Nanoseconds that one packet uses up: 1000 a second on each CPU.
    pub const INTERVAL: u64 = 1_000_000;
    /// Nanoseconds that may be used up ahead: a burst of 100 packets.
    pub const BURST: u64 = 100 * Self::INTERVAL;
}

const _: () = {
    assert!(size_of::<VipKey>() == 20);
    assert!(size_of::<Vip>() == 16);
    assert!(size_of::<Slot>() == 8);
    assert!(size_of::<Backend>() == 64 && size_of::<Backend>() == 2 * 16 + 2 * 6 + 4 + 2 + 1 + 1 + 3 * 4);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<FlowEntry>() == 16);
    assert!(size_of::<ReverseEntry>() == 56);
    assert!(size_of::<DecapKey>() == 32);
    assert!(size_of::<Config>() == 8);
    assert!(size_of::<Counter>() == 32);
};
