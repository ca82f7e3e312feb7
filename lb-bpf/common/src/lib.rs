//! The ABI between the kernel programs (`lb-bpf/ebpf`) and user space (`lb-bpf`): keys, values, verdicts
//! and the two functions that both sides must compute alike, the flow hash and the slot of a flow.
//!
//! Every struct is `repr(C)`, has no padding and an asserted size. Addresses have one form of 16 bytes
//! (IPv4 as `::ffff:a.b.c.d`), so that IPv4 and IPv6 share every map and every line of code. Ports and
//! addresses are in network byte order, as they lie in the packet; everything else is in host byte order.
//! A change here that either side would misread in maps of the version before is a change of [`ABI_VERSION`], which is
//! part of the path where maps are pinned.
#![no_std]

mod addr;
mod checksum;
pub mod decide;
mod entry;
mod filter;
mod hash;
pub mod quic;
mod recent;
mod verdict;

pub use addr::Addr;
pub use checksum::{fold, outer_header_sum, protocol_sum};
pub use entry::{
    Backend, Config, Counter, DecapKey, DropKey, Event, Filter, FlowEntry, FlowKey, FragmentEntry,
    FragmentKey, Frontend, Limit, Marker, Mode, RangeKey, ReverseEntry, Slot, Tags, Vip, VipKey, VipWord,
};
pub use filter::Facts;
pub use hash::{flow_hash, flow_tag, slot_hash, slot_of, vip_hash};
pub use recent::{MEMOS, Memo, RecentLine, recent_lines};
pub use verdict::{Action, Verdict};

/// Version of the layout of all maps. Part of the pin path: maps of another version are not adopted but taken over, where
/// the loader can read them (`lb-bpf/src/migrate.rs`), or made anew.
pub const ABI_VERSION: u32 = 2;

/// UDP destination port of GUE, host byte order (IANA: `gue`).
pub const GUE_PORT: u16 = 6080;

/// Names of the maps in the object, each the name of its static in `lb-bpf/ebpf/src/maps.rs`.
pub mod map {
    /// Array, mmapable: [`crate::Frontend`].
    pub const VIPS: &str = "vips";
    /// Array, mmapable: [`crate::VipWord`].
    pub const VIP_INDEX: &str = "vip_index";
    /// Array, mmapable: [`crate::Slot`].
    pub const SLOTS: &str = "slots";
    /// Array, mmapable: [`crate::Backend`].
    pub const BACKENDS: &str = "backends";
    /// Per-CPU array, as long as `backends`: [`crate::Counter`].
    pub const BACKEND_COUNTERS: &str = "backend_counters";
    /// Per-CPU array, one entry per [`crate::Verdict`]: [`crate::Counter`].
    pub const VERDICT_COUNTERS: &str = "verdict_counters";
    /// Hash, not preallocated: [`crate::FlowKey`] to [`crate::FlowEntry`].
    pub const FLOWS: &str = "flows";
    /// Hash, not preallocated: [`crate::FlowKey`] to [`crate::ReverseEntry`].
    pub const REVERSE: &str = "reverse";
    /// Hash, not preallocated: `reverse` of the version before, while its entries are copied.
    pub const REVERSE_BEFORE: &str = "reverse_before";
    /// Hash: [`crate::DecapKey`] to `u32`.
    pub const DECAP: &str = "decap";
    /// Array, mmapable, as long as [`crate::recent_lines`] says: [`crate::RecentLine`].
    pub const RECENT: &str = "recent";
    /// Array of one: [`crate::Config`].
    pub const CONFIG: &str = "config";
    /// LPM trie: [`crate::RangeKey`] to `u32`.
    pub const RANGES: &str = "ranges";
    /// Array: [`crate::Filter`].
    pub const FILTERS: &str = "filters";
    /// Per-CPU array, as long as `filters`: [`crate::Counter`].
    pub const FILTER_COUNTERS: &str = "filter_counters";
    /// Per-CPU hash: [`crate::DropKey`] to [`crate::Counter`].
    pub const SERVICE_DROPS: &str = "service_drops";
    /// LRU hash: [`crate::FragmentKey`] to [`crate::FragmentEntry`].
    pub const FRAGMENTS: &str = "fragments";
    /// Ring buffer: [`crate::Event`].
    pub const EVENTS: &str = "events";
    /// Per-CPU array, one entry per [`crate::Limit`]: `u64`.
    pub const ICMP_LIMITS: &str = "icmp_limits";
    /// Devmap hash: the index of an interface to that interface, if its driver takes frames that XDP redirects.
    pub const PORTS: &str = "ports";
    /// Array of one: [`crate::Marker::datapath()`].
    pub const MARK: &str = "mark";
}

/// Names of the programs in the object.
pub mod program {
    /// The datapath (XDP).
    pub const DATAPATH: &str = "fairlead_xdp";
    /// The datapath (TC), for packets that come in.
    pub const TC_INGRESS: &str = "fairlead_tc_in";
    /// The datapath (TC), for packets of this host that go out.
    pub const TC_EGRESS: &str = "fairlead_tc_out";
    /// Sends on (TC) what the datapath in XDP has made ready for an interface that takes no redirected frames.
    pub const HANDOVER: &str = "fairlead_handover";
    /// Passes every packet (XDP). A veth takes redirected frames if its peer has an XDP program, such as this.
    pub const PASS: &str = "fairlead_pass";
}

/// Whose packets a frontend takes.
pub mod scope {
    /// Those of clients.
    pub const ALL: u8 = 0;
    /// Those that were sent to this host for its own backends, through a tunnel end
    /// ([`DecapKey::TO_LOCAL`](crate::DecapKey::TO_LOCAL)) or by a backend that is [here](crate::Mode::Here).
    pub const LOCAL: u8 = 1;
}

/// IANA protocol numbers that the datapath knows.
pub mod proto {
    /// ICMP (RFC 792).
    pub const ICMP: u8 = 1;
    /// IPv4 in IP (RFC 2003).
    pub const IPIP: u8 = 4;
    /// TCP (RFC 9293).
    pub const TCP: u8 = 6;
    /// UDP (RFC 768).
    pub const UDP: u8 = 17;
    /// IPv6 in IP (RFC 2473).
    pub const IPV6: u8 = 41;
    /// IPv6 hop-by-hop options (RFC 8200, section 4.3).
    pub const HOP_BY_HOP: u8 = 0;
    /// IPv6 routing header (RFC 8200, section 4.4).
    pub const ROUTING: u8 = 43;
    /// IPv6 fragment header (RFC 8200, section 4.5).
    pub const FRAGMENT: u8 = 44;
    /// IPv6 destination options (RFC 8200, section 4.6).
    pub const DESTINATION: u8 = 60;
    /// SCTP (RFC 9260).
    pub const SCTP: u8 = 132;
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
    /// Of no packet: keys of QUIC server IDs have it ([`crate::VipKey::server_id`]). For experiments (RFC 3692).
    pub const SERVER_ID: u8 = 253;
}
