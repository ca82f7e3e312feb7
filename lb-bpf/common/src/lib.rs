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
mod hash;
mod verdict;

pub use addr::Addr;
pub use checksum::{fold, outer_header_sum};
pub use entry::{
    Backend, Config, Counter, DecapKey, FlowEntry, FlowKey, Limit, Mode, ReverseEntry, Slot, Vip, VipKey,
};
pub use hash::{flow_hash, slot_of};
pub use verdict::{Action, Verdict};

/// Version of the layout of all maps. Part of the pin path: maps of another version are never adopted.
pub const ABI_VERSION: u32 = 1;

/// Names of the maps in the object, each the name of its static in `lb-bpf/ebpf/src/maps.rs`.
pub mod map {
    /// Hash: [`crate::VipKey`] to [`crate::Vip`].
    pub const VIPS: &str = "vips";
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
    /// Hash: [`crate::DecapKey`] to `u32`.
    pub const DECAP: &str = "decap";
    /// Array of one: [`crate::Config`].
    pub const CONFIG: &str = "config";
    /// Per-CPU array, one entry per [`crate::Limit`]: `u64`.
    pub const ICMP_LIMITS: &str = "icmp_limits";
}

/// Names of the programs in the object.
pub mod program {
    /// The datapath (XDP).
    pub const DATAPATH: &str = "fairlead_xdp";
    /// Passes every packet (XDP): for the peer of a veth that receives redirected frames.
    pub const PASS: &str = "fairlead_pass";
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
    /// ICMPv6 (RFC 4443).
    pub const ICMPV6: u8 = 58;
}
