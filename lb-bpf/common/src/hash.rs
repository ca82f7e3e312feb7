//! The two functions that user space and the kernel program must compute alike.
use crate::FlowKey;

/// 32-bit hash of a flow, the same on every host: the basis of "any host gives the same answer".
#[inline(always)]
pub fn flow_hash(key: &FlowKey) -> u32 {
    const K: u64 = 0x9e37_79b9_7f4a_7c15;
    let ports = (key.src_port as u64) << 32 | (key.dst_port as u64) << 8 | key.proto as u64;
    let mut h = K;
    let words = [
        (key.src.0[0] as u64) << 32 | key.src.0[1] as u64,
        (key.src.0[2] as u64) << 32 | key.src.0[3] as u64,
        (key.dst.0[0] as u64) << 32 | key.dst.0[1] as u64,
        (key.dst.0[2] as u64) << 32 | key.dst.0[3] as u64,
        ports,
    ];
    let mut i = 0;
    while i < words.len() {
        h = (h ^ words[i]).wrapping_mul(K);
        h ^= h >> 32;
        i += 1;
    }
    h = h.wrapping_mul(K);
    (h >> 32) as u32
}

/// The slot, 0 to `size - 1`, of a flow hash: a multiplication in place of a division.
#[inline(always)]
pub fn slot_of(hash: u32, size: u32) -> u32 {
    ((hash as u64 * size as u64) >> 32) as u32
}
