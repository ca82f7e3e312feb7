//! Frontends: found by a hash table in an array, which costs half of what the kernel's hash map does.
use crate::{
    maps::{ranges, vip_index, vips},
    nat::same,
};
use aya_ebpf::btf_maps::lpm_trie::Key;
use core::mem::offset_of;
use lb_bpf_common::{Addr, Frontend, RangeKey, Vip, VipKey, VipWord, vip_hash};

/// What the packet path needs of a frontend.
#[derive(Clone, Copy)]
pub struct Found {
    /// What it has.
    pub vip: Vip,
    /// [`Frontend::edition`].
    pub edition: u32,
}

/// The entry of a frontend; `of` is its [`lb_bpf_common::scope`]. `mask` is [`lb_bpf_common::Config::vip_mask`].
#[inline(always)]
pub fn find(addr: &Addr, port: u16, proto: u8, of: u8, mask: u32) -> Option<Found> {
    let hash = vip_hash(&VipKey { addr: *addr, port, proto, scope: of });
    let mut place = VipWord::place(hash, mask);
    for _ in 0..VipWord::PROBES {
        let word = vip_index.get_ptr(place)?;
        // SAFETY: an element of the array. User space writes it at any time, as one word.
        let word = VipWord(unsafe { word.cast::<u64>().read_volatile() });
        if word.0 == VipWord::FREE.0 {
            return None;
        }
        if word.may_be(hash)
            && let Some(frontend) = vips.get_ptr(word.index())
        {
            // SAFETY: an element of the array; its key is not written while a word leads to it.
            let key = unsafe { &(*frontend).key };
            let is_it = key.port == port && key.proto == proto && key.scope == of;
            if is_it && same(&key.addr, addr) && word.index() != 0 {
                return Some(read(frontend));
            }
        }
        place = (place + 1) & mask;
    }
    None
}

/// Reads `vip` as the two words that user space writes.
#[inline(always)]
fn read(frontend: *const Frontend) -> Found {
    // SAFETY: an element of the array, and `vip` lies at a multiple of 8.
    let [identity, table] = unsafe {
        let words = frontend.cast::<u8>().add(offset_of!(Frontend, vip)).cast::<u64>();
        [words.read_volatile(), words.add(1).read_volatile()]
    };
    let vip = Vip {
        service: identity as u32,
        flags: (identity >> 32) as u32,
        base: table as u32,
        size: (table >> 32) as u32,
    };
    // SAFETY: an element of the array.
    Found { vip, edition: unsafe { (&raw const (*frontend).edition).read_volatile() } }
}

/// Whether a service with [`Vip::RANGES`] lets a client in.
#[inline(always)]
pub fn lets_in(service: u32, client: &Addr) -> bool {
    let key = RangeKey { bits: 32 + 128, service, addr: *client };
    const { assert!(size_of::<RangeKey>() == size_of::<Key<[u32; 5]>>()) };
    // SAFETY: the same bytes. `Key` is packed, and would be written byte by byte.
    let key = unsafe { &*(&raw const key).cast::<Key<[u32; 5]>>() };
    ranges.get(key).is_some_and(|allowed| *allowed != 0)
}
