//! The maps. What they hold is said in `lb_bpf_common`; the sizes here are only defaults that the loader
//! replaces, so nothing in the programs may depend on them.
#![expect(non_upper_case_globals, reason = "the name of the static is the name of the map")]
use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC},
    btf_maps::{Array, HashMap, PerCpuArray},
    macros::btf_map,
};
use lb_bpf_common::{
    Backend, Config, Counter, DecapKey, FlowEntry, FlowKey, Limit, ReverseEntry, Slot, Verdict, Vip, VipKey,
};

const MMAPABLE: usize = BPF_F_MMAPABLE as usize;
/// Entries are allocated when they are made: a table that is nearly always empty costs nearly nothing.
const NO_PREALLOC: usize = BPF_F_NO_PREALLOC as usize;

/// Frontends.
#[btf_map]
pub static vips: HashMap<VipKey, Vip, 4096> = HashMap::new();

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

/// How replies are translated back.
#[btf_map]
pub static reverse: HashMap<FlowKey, ReverseEntry, 65536, NO_PREALLOC> = HashMap::new();

/// Tunnel ends of this host.
#[btf_map]
pub static decap: HashMap<DecapKey, u32, 1024> = HashMap::new();

/// What holds for all services.
#[btf_map]
pub static config: Array<Config, 1> = Array::new();

/// How much of the rate of each [`Limit`] is used up. Not pinned: it goes with the program.
#[btf_map]
pub static icmp_limits: PerCpuArray<u64, { Limit::COUNT }> = PerCpuArray::new();

/// What [`crate::icmp`] has no room for on the stack, which it shares with the program that calls it. Not pinned.
#[btf_map]
pub static scratch: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// Keys of one packet.
#[repr(C)]
pub struct Scratch {
    /// A flow.
    pub flow: FlowKey,
    /// Its VIP.
    pub vip: VipKey,
}
