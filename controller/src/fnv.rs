//! FNV-1a, 64 bits, as draft-eastlake-fnv has it: the same in every process and version. Not for what an adversary chooses.

/// Where a digest begins.
pub(crate) const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;

/// The digest with one part more. A 0 ends each part.
pub(crate) fn fnv(digest: u64, part: &[u8]) -> u64 {
    let bytes = part.iter().chain(&[0]);
    bytes.fold(digest, |digest, byte| (digest ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
