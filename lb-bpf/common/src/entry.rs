//! Keys and values of the maps. The name of the map stands in the first line of each doc comment.
use crate::Addr;

/// Who has an entry in `vips`: a frontend; or, with the number of the family's ICMP and port 0, an address that answers
/// pings; or a QUIC server ID ([`VipKey::server_id`]).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct VipKey {
    /// The VIP.
    pub addr: Addr,
    /// Network byte order.
    pub port: u16,
    /// IANA protocol number.
    pub proto: u8,
    /// A [`scope`](crate::scope) of a frontend; else 0.
    pub scope: u8,
}

/// What a frontend has in `vips`: where its Maglev table lies in `slots`, and what holds for its packets. Replaced as
/// a whole, so that a packet sees the old table or the new one, never a mixture.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Vip {
    /// Id of the service; 0 in an address's entry for ICMP, which belongs to all services of the address, and in that of a QUIC
    /// server ID, whose key says it.
    pub service: u32,
    /// Bits: [`Vip::AFFINITY`], [`Vip::RANGES`], [`Vip::PASS`], [`Vip::QUIC`].
    pub flags: u32,
    /// Index of the table's first slot in `slots`; of a QUIC server ID the index of its backend in `backends`.
    pub base: u32,
    /// Number of slots, a prime; 0 when the service has no backend.
    pub size: u32,
}

impl Vip {
    /// Bit of `flags`: all flows of a client have one slot ([`crate::slot_hash`]).
    pub const AFFINITY: u32 = 1;
    /// Bit of `flags`: `ranges` says which clients are let in.
    pub const RANGES: u32 = 1 << 1;
    /// Bit of `flags`: without a backend, packets go up the stack and are not dropped.
    pub const PASS: u32 = 1 << 2;
}

/// Value of `vips` (array with `BPF_F_MMAPABLE`, index 0 is never used): a frontend and what it has; one cache line.
/// Packets find it through `vip_index` and compare the key. Packets read it while it is written: `vip` changes as two
/// words of 8 bytes, service with flags and base with size, and the service of an entry in use never changes; for another
/// service take another entry. `edition` changes before `vip`.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Frontend {
    /// Whose entry it is.
    pub key: VipKey,
    /// Reserved, 0.
    pub zero: u32,
    /// What it has.
    pub vip: Vip,
    /// Another number whenever `vip` changes: what was remembered about its flows ([`crate::Memo`]) is void then.
    pub edition: u32,
    /// Second of CLOCK_MONOTONIC at which the last slot of the table stops learning ([`Slot::SETTLED`]); 0: not known. Only
    /// user space reads this, after a restart.
    pub learns_until: u32,
    /// Reserved, 0: fills the cache line.
    pub rest: [u32; 4],
}

/// Value of `vip_index` (array of words with `BPF_F_MMAPABLE`, as long as a power of two): a hash table with open
/// addressing. The entry of a key lies at [`VipWord::place`] or in one of the words behind it, before the first that
/// was never used, and at most [`VipWord::PROBES`] words on. One word, so each change is seen whole.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct VipWord(pub u64);

impl VipWord {
    /// Never used: the search ends here.
    pub const FREE: VipWord = VipWord(0);
    /// Used before: the search goes on.
    pub const GONE: VipWord = VipWord(1 << 32);
    /// Longest search, words. At a quarter of the words in use a longer one is rarer than one in ten million tables.
    pub const PROBES: u32 = 32;

    /// Of the entry at `index` (not 0) in `vips` whose key has this [`crate::vip_hash`].
    #[inline(always)]
    pub const fn new(hash: u64, index: u32) -> Self {
        VipWord((hash >> 32) << 32 | index as u64)
    }

    /// Index in `vips`; 0: none.
    #[inline(always)]
    pub const fn index(self) -> u32 {
        self.0 as u32
    }

    /// Whether this may be the word of a key with this hash.
    #[inline(always)]
    pub const fn may_be(self, hash: u64) -> bool {
        self.0 >> 32 == hash >> 32
    }

    /// Where the search for a hash begins in a table of `mask + 1` words; a table is never longer than 2^32.
    #[inline(always)]
    pub const fn place(hash: u64, mask: u32) -> u32 {
        hash as u32 & mask
    }
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
    /// Encapsulated in UDP to [`crate::GUE_PORT`] (Generic UDP Encapsulation, version 1: the IP packet follows the UDP
    /// header at once; draft-ietf-intarea-gue-09, section 4) in the family of the backend's address; replies go directly
    /// to the client.
    Gue = 3,
    /// As it is, to the Ethernet address of the backend, which is a neighbour; replies go directly to the client.
    L2 = 4,
    /// Only the destination is translated; this host is the backend's gateway, so replies come back through it.
    Dnat = 5,
    /// No way at all: the backend is this host itself, and the frontend of [`LOCAL`](crate::scope::LOCAL) scope chooses one of its own.
    Here = 6,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 6] = [Mode::Nat, Mode::Ipip, Mode::Gue, Mode::L2, Mode::Dnat, Mode::Here];

    /// The mode with this number.
    #[inline(always)]
    pub const fn of(number: u8) -> Option<Mode> {
        match number {
            1 => Some(Mode::Nat),
            2 => Some(Mode::Ipip),
            3 => Some(Mode::Gue),
            4 => Some(Mode::L2),
            5 => Some(Mode::Dnat),
            6 => Some(Mode::Here),
            _ => None,
        }
    }

    /// Whether packets are translated: then every flow has entries, and replies come back through this host.
    #[inline(always)]
    pub const fn is_translated(self) -> bool {
        matches!(self, Mode::Nat | Mode::Dnat)
    }

    /// Whether packets are put into an outer header.
    #[inline(always)]
    pub const fn is_tunnel(self) -> bool {
        matches!(self, Mode::Ipip | Mode::Gue)
    }
}

/// Value of `backends` (array with `BPF_F_MMAPABLE`, index 0 is never used): one backend of one service, one
/// cache line. Packets read it while it is written, so only `next_hop`, `source_mac`, `ifindex`, `mtu`, `vlan` and
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
    /// Bits: [`Backend::DOWN`], and from [`Backend::VARYING_SHIFT`] on how many of the last bits of `source`, which are 0 there,
    /// are the flow's: 0 to 16, and 0 in any mode but [`Mode::Ipip`].
    pub flags: u8,
    /// [`crate::outer_header_sum`] when the mode is a tunnel and the outer header is IPv4, never 0 then; else 0.
    pub header_sum: u32,
    /// Id of the service that the backend belongs to.
    pub service: u32,
    /// Largest IP packet that the interface towards the backend takes, bytes; 0: not known, or more than fits here.
    pub mtu: u16,
    /// Tag control information (802.1Q) of the VLAN towards the backend, host byte order; 0: no tag.
    pub vlan: u16,
}

impl Backend {
    /// Bit of `flags`: the backend does not answer. Known flows leave it for the slot's current backend, and
    /// a dirty slot does not fall back to it. Slots that name it as the current one still send to it.
    pub const DOWN: u8 = 1;
    /// See `flags`.
    pub const VARYING_SHIFT: u8 = 3;
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
    /// In `flows` that of the frontend, a [`scope`](crate::scope): a flow may have an entry of each. In `reverse` 0.
    pub scope: u8,
    /// Always 0.
    pub zero: [u8; 2],
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
    /// Of a flow that is translated the source port towards the backend, network byte order; else 0.
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
            scope: 0,
            zero: [0; 2],
        }
    }

    /// The key in `reverse` of this flow when it is translated to `backend` with the source port `nat_port` (network
    /// byte order): from this host in [`Mode::Nat`], from the client still in [`Mode::Dnat`].
    #[inline(always)]
    pub const fn answer(&self, backend: &Backend, nat_port: u16) -> FlowKey {
        let own = backend.mode == Mode::Dnat as u8;
        let dst = if own { &self.src } else { &backend.source };
        FlowKey {
            src: backend.addr,
            dst: *dst,
            src_port: backend.port,
            dst_port: nat_port,
            proto: self.proto,
            scope: 0,
            zero: [0; 2],
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
    /// Interface where the client's packets arrive; 0: they are of this host itself; [`ReverseEntry::ROUTED`]: the backend is
    /// of this host.
    pub ifindex: u32,
    /// When a packet of either side was last seen: seconds of CLOCK_MONOTONIC.
    pub seen: u32,
    /// Ethernet source of the client's packets: the reply goes back the way the request came.
    pub next_hop: [u8; 6],
    /// Ethernet destination of the client's packets.
    pub source_mac: [u8; 6],
    /// The VLAN tags of the client's packets, the outer one first; see [`Tags`].
    pub tags: Tags,
}

impl ReverseEntry {
    /// `ifindex`: packets go to the backend by the stack of this host, and its replies come back by it: they are translated
    /// where they leave.
    pub const ROUTED: u32 = u32::MAX;
}

/// Up to two VLAN tags (IEEE 802.1Q) of a frame, the outer one first: the two words behind the Ethernet addresses, as
/// they lie in the packet; 0: no tag.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Tags(pub [u32; 2]);

impl Tags {
    /// No tag.
    pub const NONE: Tags = Tags([0; 2]);

    /// One tag with this tag control information, host byte order; 0: none.
    #[inline(always)]
    pub const fn one(tci: u16) -> Tags {
        if tci == 0 { Tags::NONE } else { Tags([(0x8100_0000 | tci as u32).to_be(), 0]) }
    }

    /// Bytes that they take in a frame.
    #[inline(always)]
    pub const fn len(self) -> usize {
        (self.0[0] != 0) as usize * 4 + (self.0[1] != 0) as usize * 4
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_empty(self) -> bool {
        self.0[0] == 0
    }
}

/// Key of `decap` (hash; the value is a `u32`, [`DecapKey::TO_STACK`] or [`DecapKey::TO_LOCAL`]): a tunnel end of this host and
/// the VIP accepted through it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DecapKey {
    /// Destination of the outer header.
    pub local: Addr,
    /// Destination of the inner header.
    pub vip: Addr,
}

impl DecapKey {
    /// Value: the inner packet goes up the stack.
    pub const TO_STACK: u32 = 1;
    /// Value: the inner packet goes to the frontend of [`LOCAL`](crate::scope::LOCAL) scope.
    pub const TO_LOCAL: u32 = 2;
}

/// The one value of `config` (array of one).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// Bits: [`Config::NAT`], [`Config::DNAT`], [`Config::EVENTS`].
    pub flags: u32,
    /// First source port of NAT, host byte order. The range lies below the kernel's ephemeral ports.
    pub nat_port_first: u16,
    /// Last source port of NAT, inclusive, host byte order.
    pub nat_port_last: u16,
    /// Entries of `filters` that are looked at, from index 0 on.
    pub filters: u32,
    /// With [`Config::EVENTS`]: one packet in how many is reported, less one; that number is a power of two. Packets
    /// that are dropped or begin a flow are reported all.
    pub sample_mask: u32,
    /// Words of `vip_index`, less one.
    pub vip_mask: u32,
    /// Lines of `recent`, less one.
    pub recent_mask: u32,
}

impl Config {
    /// Bit of `flags`: there is a service of [`Mode::Nat`], so packets to its ports may be replies.
    pub const NAT: u32 = 1;
    /// Bit of `flags`: there is a service of [`Mode::Dnat`], so any packet may be a reply.
    pub const DNAT: u32 = 1 << 1;
    /// Bit of `flags`: packets are reported in `events`.
    pub const EVENTS: u32 = 1 << 2;
    /// Bit of `flags`: `reverse` is being filled from `reverse_before`, so what it does not have may be there.
    pub const TAKING_OVER: u32 = 1 << 3;
    /// Bit of `flags`: an interface with an XDP program may not take what XDP sends back through it (a veth whose peer does not
    /// poll), so each is looked for in `ports` first.
    pub const WARY: u32 = 1 << 4;
}

/// What XDP leaves in front of a packet (its metadata, where nothing from outside can write) that is ready to be sent, but
/// to an interface that takes no redirected frames: TC sends it on.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker {
    /// Whose it is: the value of `mark`. A packet that goes on to another network namespace keeps its metadata, and there may
    /// be another datapath there.
    pub datapath: [u32; 2],
    /// Index of the interface where the packet is to leave.
    pub ifindex: u32,
    /// How many VLAN tags are in the frame. More than that the packet only has if the driver took one off before XDP saw it,
    /// which is void now.
    pub tags: u16,
    /// The frame's source address. It is another one if the packet has been sent, and somebody has routed it back to here.
    pub source: [u16; 3],
}

impl Marker {
    /// The value of `mark` (array of one), whose id the kernel gives to no other map while it is there.
    pub const fn datapath(id: u32) -> [u32; 2] {
        [u32::from_be_bytes(*b"flhd"), id]
    }
}

/// Value of `backend_counters` (per-CPU array, same index as `backends`: the packets sent to the backend) and of
/// `verdict_counters` (per-CPU array, index is the [`crate::Verdict`]). A packet is counted once: those sent to a
/// backend (`Encapsulated`, `Translated`) only there, those that are not ours nowhere, all others by verdict;
/// [`crate::Verdict::NotHandedOver`] comes on top.
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

/// Key of `service_drops` (per-CPU hash, `BPF_F_NO_PREALLOC`; the value is a [`Counter`]): packets of a service that were
/// not sent on, by verdict. They are in `verdict_counters`, too.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DropKey {
    /// Id of the service.
    pub service: u32,
    /// The [`crate::Verdict`].
    pub verdict: u32,
}

/// Key of `ranges` (LPM trie; the value is a `u32`: 1 lets the client in, 0 does not). A service with [`Vip::RANGES`] has
/// an entry for all addresses.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RangeKey {
    /// Bits that count, of service and address: 32 and up to 128 more; of an IPv4 address 96 more than its prefix has.
    pub bits: u32,
    /// Id of the service.
    pub service: u32,
    /// The prefix.
    pub addr: Addr,
}

/// Key of `fragments` (LRU hash): the packet that a fragment is part of (RFC 791, section 3.2; RFC 8200, section 4.5).
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentKey {
    /// Source.
    pub src: Addr,
    /// Destination.
    pub dst: Addr,
    /// Identification, as it lies in the packet.
    pub id: u32,
    /// Protocol of the whole packet.
    pub proto: u8,
    /// Always 0.
    pub zero: [u8; 3],
}

/// Value of `fragments`: what only the first fragment says.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FragmentEntry {
    /// Source and destination port, network byte order.
    pub ports: [u16; 2],
    /// When the first fragment was seen: seconds of CLOCK_MONOTONIC.
    pub seen: u32,
}

impl FragmentEntry {
    /// How long it is good for, seconds: as long as receivers wait for fragments (RFC 8200, section 4.5: 60), and longer
    /// than it takes to use an identification again at the rates that fragments may have (RFC 4963).
    pub const LIFETIME: u32 = 30;
}

/// Value of `filters` (array): a rule that is applied before anything else. All that it names must be so. Write an entry
/// that is not free by freeing it first.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Filter {
    /// Source, with the bits that do not count 0.
    pub src: Addr,
    /// The bits of the source that count; of an IPv4 prefix the first 96 count all.
    pub src_mask: Addr,
    /// Destination, as the source.
    pub dst: Addr,
    /// The bits of the destination that count.
    pub dst_mask: Addr,
    /// First and last source port, host byte order. With [`Filter::PORTS`].
    pub src_ports: [u16; 2],
    /// First and last destination port, host byte order. With [`Filter::PORTS`].
    pub dst_ports: [u16; 2],
    /// Least and greatest length of the IP packet, bytes.
    pub length: [u16; 2],
    /// Where the bytes lie that are compared, from the IP header on. With [`Filter::BYTES`].
    pub offset: u16,
    /// Protocol. With [`Filter::PROTO`].
    pub proto: u8,
    /// The TCP flags that count. With [`Filter::TCP_FLAGS`].
    pub tcp_mask: u8,
    /// What they must be.
    pub tcp_flags: u8,
    /// Reserved, 0.
    pub zero: u8,
    /// Bits: [`Filter::IN_USE`] and those below it.
    pub kind: u16,
    /// The bits of the four bytes at `offset` that count, as they lie in the packet.
    pub mask: u32,
    /// What they must be, as they lie in the packet.
    pub value: u32,
}

impl Filter {
    /// Entries that are looked at, at most: with more the verifier gives up.
    pub const MOST: u32 = 256;
    /// Bit of `kind`: the entry is not free.
    pub const IN_USE: u16 = 1;
    /// Bit of `kind`: what it matches is dropped, else only counted.
    pub const DROP: u16 = 1 << 1;
    /// Bit of `kind`: the protocol must be `proto`.
    pub const PROTO: u16 = 1 << 2;
    /// Bit of `kind`: it must be TCP, UDP or SCTP with these ports; a later fragment has none.
    pub const PORTS: u16 = 1 << 3;
    /// Bit of `kind`: it must be TCP with these flags; a later fragment has none.
    pub const TCP_FLAGS: u16 = 1 << 4;
    /// Bit of `kind`: it must be a fragment, the first or another.
    pub const FRAGMENT: u16 = 1 << 5;
    /// Bit of `kind`: it must not be a fragment.
    pub const WHOLE: u16 = 1 << 6;
    /// Bit of `kind`: the bytes at `offset` must be there and be `value`.
    pub const BYTES: u16 = 1 << 7;
    /// Bit of `kind`: it must be IPv4.
    pub const V4: u16 = 1 << 8;
    /// Bit of `kind`: it must be IPv6.
    pub const V6: u16 = 1 << 9;
}

/// What is put into `events` (ring buffer) about one packet, when [`Config::EVENTS`] is set.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Event {
    /// Nanoseconds of CLOCK_MONOTONIC, of the coarse clock.
    pub time: u64,
    /// The packet's flow, as far as it is known; ports are 0 where the packet has none.
    pub flow: FlowKey,
    /// Id of the service; 0: none.
    pub service: u32,
    /// Index in `backends`; 0: none. Of a packet that is [`Filtered`](crate::Verdict::Filtered): the index in `filters` of
    /// the rule, and 1 more.
    pub backend: u32,
    /// The [`crate::Verdict`].
    pub verdict: u32,
    /// Interface where the packet came in.
    pub ifindex: u32,
    /// Length of the frame, bytes.
    pub bytes: u32,
    /// Bit 0: the packet begins a flow.
    pub flags: u32,
}

impl Event {
    /// Bit of `flags`: the packet begins a flow.
    pub const NEW: u32 = 1;
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
    /// "Time exceeded".
    TimeExceeded = 2,
}

impl Limit {
    /// How many there are.
    pub const COUNT: usize = 3;
    /// Nanoseconds that one packet uses up: 1000 a second on each CPU.
    pub const INTERVAL: u64 = 1_000_000;
    /// Nanoseconds that may be used up ahead: a burst of 100 packets.
    pub const BURST: u64 = 100 * Self::INTERVAL;
}

const _: () = {
    assert!(size_of::<VipKey>() == 20);
    assert!(size_of::<Vip>() == 16);
    assert!(size_of::<Slot>() == 8);
    assert!(size_of::<Frontend>() == 64 && size_of::<Frontend>() == 20 + 4 + 16 + 24);
    assert!(core::mem::offset_of!(Frontend, vip) % 8 == 0);
    assert!(size_of::<Backend>() == 64 && size_of::<Backend>() == 2 * 16 + 2 * 6 + 4 + 2 + 1 + 1 + 3 * 4);
    assert!(size_of::<DropKey>() == 8);
    assert!(size_of::<RangeKey>() == 24);
    assert!(size_of::<FragmentKey>() == 40);
    assert!(size_of::<FragmentEntry>() == 8);
    assert!(size_of::<Filter>() == 92 && size_of::<Filter>() == 4 * 16 + 3 * 4 + 2 + 4 + 2 + 2 * 4);
    assert!(size_of::<Event>() == 72);
    assert!(size_of::<FlowKey>() == 40);
    assert!(size_of::<FlowEntry>() == 16);
    assert!(size_of::<ReverseEntry>() == 64);
    assert!(size_of::<DecapKey>() == 32);
    assert!(size_of::<Config>() == 24);
    assert!(size_of::<Counter>() == 32);
    // What metadata may be (Linux, xdp_metalen_invalid()): whole words, 32 bytes at most.
    assert!(size_of::<Marker>() == 20);
};

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: Addr = Addr::v4(1);
    const HOST: Addr = Addr::v4(2);
    const REAL: Addr = Addr::v4(3);

    /// To whom and which port the backend answers a flow.
    fn answered(mode: Mode) -> (Addr, u16) {
        let flow = FlowKey {
            src: CLIENT,
            dst: Addr::v4(9),
            src_port: 1000,
            dst_port: 80,
            proto: 6,
            scope: 0,
            zero: [0; 2],
        };
        let backend =
            Backend { addr: REAL, source: HOST, port: 8080, mode: mode as u8, ..Backend::default() };
        let key = flow.answer(&backend, 20_000);
        assert_eq!((key.src, key.src_port, key.proto), (REAL, 8080, 6));
        (key.dst, key.dst_port)
    }

    #[test]
    fn a_backend_answers_whom_it_sees() {
        assert_eq!(answered(Mode::Nat), (HOST, 20_000));
        assert_eq!(answered(Mode::Dnat), (CLIENT, 20_000));
    }
}
