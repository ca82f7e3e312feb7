//! The maps. What they hold is said in `lb_bpf_common`; the sizes here are only defaults that the loader
//! replaces, so nothing in the programs may depend on them.
#![expect(non_upper_case_globals, reason = "the name of the static is the name of the map")]
use crate::{
    flow::{Choice, Tracked},
    local::Arrival,
    nat::WayBack,
};
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf},
    macros::btf_map,
};
use lb_bpf_common::{
    Backend, Config, Counter, DecapKey, DropKey, Facts, Filter, FlowEntry, FlowKey, FragmentEntry,
    FragmentKey, Frontend, Limit, RecentLine, ReverseEntry, Slot, Tags, Verdict, VipWord,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
/// Entries are allocated when they are made: a table that is nearly always empty costs nearly nothing.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Frontends; index 0 is never used.
#[btf_map]
pub static vips: Array<Frontend, 4096, MMAPABLE> = Array::new();

/// Where the frontends are in `vips`, by a hash.
#[btf_map]
pub static vip_index: Array<VipWord, 16384, MMAPABLE> = Array::new();

/// The Maglev tables of all services, one after the other.
#[btf_map]
pub static slots: Array<Slot, 65536, MMAPABLE> = Array::new();

/// Backends; index 0 is never used.
#[btf_map]
pub static backends: Array<Backend, 4096, MMAPABLE> = Array::new();

/// Packets sent to each backend.
#[btf_map]
pub static backend_counters: PerCpuArray<Counter, 4096> = PerCpuArray::new();

/// Packets per verdict.
#[btf_map]
pub static verdict_counters: PerCpuArray<Counter, { Verdict::ALL.len() }> = PerCpuArray::new();

/// Flows of dirty slots and of NAT services.
#[btf_map]
pub static flows: HashMap<FlowKey, FlowEntry, 65536, NO_PREALLOC> = HashMap::new();

/// Where flows of dirty slots went lately. Not pinned: it goes with the program.
#[btf_map]
pub static recent: Array<RecentLine, 32768, MMAPABLE> = Array::new();

/// How replies are translated back.
#[btf_map]
pub static reverse: HashMap<FlowKey, ReverseEntry, 65536, NO_PREALLOC> = HashMap::new();

/// `reverse` of the version before: an entry without its last field. Only in use while that version is replaced.
#[btf_map]
pub static reverse_before: HashMap<FlowKey, [u64; 7], 1, NO_PREALLOC> = HashMap::new();

/// Tunnel ends of this host.
#[btf_map]
pub static decap: HashMap<DecapKey, u32, 1024> = HashMap::new();

/// Which clients a service lets in.
#[btf_map]
pub static ranges: LpmTrie<[u32; 5], u32, 65536> = LpmTrie::new();

/// Rules that are applied before anything else.
#[btf_map]
pub static filters: Array<Filter, 256> = Array::new();

/// Packets that each rule matched.
#[btf_map]
pub static filter_counters: PerCpuArray<Counter, 256> = PerCpuArray::new();

/// Packets of each service that were not sent on.
#[btf_map]
pub static service_drops: PerCpuHashMap<DropKey, Counter, 16384, NO_PREALLOC> = PerCpuHashMap::new();

/// Ports of packets that come in fragments.
#[btf_map]
pub static fragments: LruHashMap<FragmentKey, FragmentEntry, 8192> = LruHashMap::new();

/// What is reported about single packets: [`lb_bpf_common::Event`]. The type does not stand here, for libbpf takes no ring
/// buffer that has one.
#[btf_map]
pub static events: RingBuf<(), 262144> = RingBuf::new();

/// The interfaces that take frames which XDP redirects, each by its index.
#[btf_map]
pub static ports: DevMapHash<4096> = DevMapHash::new();

/// Whose markers are of this datapath: see [`lb_bpf_common::Marker`].
#[btf_map]
pub static mark: Array<[u32; 2], 1> = Array::new();

/// What holds for all services.
#[btf_map]
pub static config: Array<Config, 1> = Array::new();

/// How much of the rate of each [`Limit`] is used up. Not pinned: it goes with the program.
#[btf_map]
pub static icmp_limits: PerCpuArray<u64, { Limit::COUNT }> = PerCpuArray::new();

/// What there is no room for on the stack, and what global functions say beyond a number. Not pinned.
#[btf_map]
pub static scratch: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// What belongs to one packet.
#[repr(C)]
pub struct Scratch {
    /// The flow that is tracked, translated or reported, or that an ICMP error is about.
    pub flow: FlowKey,
    /// The packet that a fragment is part of.
    pub fragment: FragmentKey,
    /// The place of a tracked flow.
    pub tracked: Tracked,
    /// Where a tracked flow goes.
    pub choice: Choice,
    /// The new entry of a tracked flow.
    pub entry: FlowEntry,
    /// The way back of a tracked flow that is translated.
    pub way_back: WayBack,
    /// A key that is looked up: of a way back that is taken over from the version before, or of the flow that a reply is of.
    pub sought: FlowKey,
    /// Interface where a reply, an ICMP message or a packet to a backend of this host goes out.
    pub ifindex: u32,
    /// The VLAN of what goes to a backend.
    pub vlan: u16,
    /// Reserved.
    pub zero: u16,
    /// The VLAN tags that a reply to a client leaves with; of a tracked flow those that it came with.
    pub tags: Tags,
    /// Of a packet that is sent to this host itself.
    pub arrival: Arrival,
    /// What the packet filters go by.
    pub facts: Facts,
}

impl Scratch {
    /// This CPU's. Nothing interrupts the program.
    #[inline(always)]
    pub fn get() -> Option<&'static mut Scratch> {
        // SAFETY: this CPU's own element; it lives as long as the program, and each part of the program uses its own part
        // of it at a time.
        scratch.get_ptr_mut(0).map(|all| unsafe { &mut *all })
    }
}
