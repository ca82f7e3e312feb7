//! The object file of the kernel programs, as `build.rs` chose it.

/// ELF object with the programs of [`crate::abi::program`] and the maps of [`crate::abi::map`].
pub static OBJECT: &[u8] = &Aligned(*include_bytes!(concat!(env!("OUT_DIR"), "/fairlead.bpf.o"))).0;

/// An ELF parser reads headers in place, which wants them aligned.
#[repr(C, align(32))]
struct Aligned<Bytes>(Bytes);
