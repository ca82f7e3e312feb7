//! The bpf(2) commands that aya does not wrap: whole parts of a map in one call, arrays as memory, and which
//! interface a link is on. The structs are those of `union bpf_attr` in linux/bpf.h.
use aya::Pod;
use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::NonNull,
    sync::atomic::AtomicU64,
};

const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_int = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    info_len: u32,
    info: u64,
}

/// What one batch gave: the entries, `values_per_key` values for each, and where to go on.
pub(crate) struct Batch<K, V> {
    pub(crate) keys: Vec<K>,
    pub(crate) values: Vec<V>,
    pub(crate) next: Option<u32>,
}

/// BPF_MAP_LOOKUP_BATCH: up to `limit` entries. In a hash map `from` is a bucket and 0 the begin; an array is read
/// from its begin. A per-CPU map has one value for each possible CPU.
pub(crate) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: u32,
    limit: usize,
    values_per_key: usize,
    zero: (K, V),
) -> io::Result<Batch<K, V>> {
    let mut room = limit.max(1);
    loop {
        let mut keys = vec![zero.0; room];
        let mut values = vec![zero.1; room * values_per_key];
        let mut next = 0_u32;
        let mut attr = BatchAttr {
            in_batch: if from == 0 { 0 } else { (&raw const from).addr() as u64 },
            out_batch: (&raw mut next).addr() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: the buffers have room for `count` entries of the map's sizes (the caller's types are those of the
        // map, see `loader::SHAPES`), and they outlive the call. K and V are plain data.
        let result = unsafe { bpf(BPF_MAP_LOOKUP_BATCH, &mut attr) };
        let next = match result {
            Ok(_) => Some(next),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => None,
            // A bucket has more entries than there is room.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 22 => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        keys.truncate(attr.count as usize);
        values.truncate(attr.count as usize * values_per_key);
        return Ok(Batch { keys, values, next });
    }
}

/// BPF_MAP_LOOKUP_AND_DELETE_ELEM (of hash maps since Linux 5.14): removes an entry and gives what it was in that moment.
/// `zero` is filled.
pub(super) fn lookup_and_delete<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    mut zero: V,
) -> io::Result<Option<V>> {
    let mut attr = ElementAttr {
        map_fd: map.as_raw_fd() as u32,
        padding: 0,
        key: std::ptr::from_ref(key).expose_provenance() as u64,
        value: (&raw mut zero).expose_provenance() as u64,
        flags: 0,
    };
    // SAFETY: key and value are of the map's sizes (the caller's types are those of the map, see `loader::SHAPES`) and
    // outlive the call. V is plain data.
    match unsafe { bpf(BPF_MAP_LOOKUP_AND_DELETE_ELEM, &mut attr) } {
        Ok(_) => Ok(Some(zero)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// A ring buffer with this many bytes, a power of two and whole pages.
#[cfg(test)]
pub(super) fn create_ring_buffer(bytes: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_RINGBUF: u32 = 27;
    create([BPF_MAP_TYPE_RINGBUF, 0, 0, bytes])
}

/// A devmap hash with room for so many interfaces.
#[cfg(test)]
pub(super) fn create_devmap_hash(entries: u32) -> io::Result<OwnedFd> {
    const BPF_MAP_TYPE_DEVMAP_HASH: u32 = 25;
    create([BPF_MAP_TYPE_DEVMAP_HASH, 4, 8, entries])
}

/// BPF_MAP_CREATE: type, size of keys and of values, entries.
#[cfg(test)]
fn create(mut attr: [u32; 4]) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: libc::c_int = 0;
    // SAFETY: the command has no address in it.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr)? };
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts `record` into a ring buffer `times` times, as a kernel program does: with one that does nothing else.
#[cfg(test)]
pub(super) fn put_into_ring(ring: BorrowedFd<'_>, record: &[u32], times: u32) -> io::Result<()> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TEST_RUN: libc::c_int = 10;
    const BPF_PROG_TYPE_XDP: u64 = 6;
    const RINGBUF_OUTPUT: i32 = 130;
    let bytes = record.len() as i32 * 4;
    let instruction = |code: u64, registers: u64, offset: i32, immediate: i32| {
        code | registers << 8 | u64::from(offset as u16) << 16 | u64::from(immediate as u32) << 32
    };
    let store = |(n, word): (i32, &u32)| instruction(0x62, 10, n * 4 - bytes, *word as i32);
    let mut program: Vec<u64> = (0..).zip(record).map(store).collect();
    program.extend([
        instruction(0x18, 0x11, 0, ring.as_raw_fd()), // r1 = the map
        0,
        instruction(0xbf, 0xa2, 0, 0),      // r2 = r10
        instruction(0x07, 0x02, 0, -bytes), // r2 -= bytes
        instruction(0xb7, 0x03, 0, bytes),  // r3 = bytes
        instruction(0xb7, 0x04, 0, 0),      // r4 = 0
        instruction(0x85, 0, 0, RINGBUF_OUTPUT),
        instruction(0xb7, 0, 0, 2), // r0 = XDP_PASS
        instruction(0x95, 0, 0, 0),
    ]);
    let count = program.len() as u64;
    let license = c"GPL".as_ptr().expose_provenance() as u64;
    let mut attr =
        [BPF_PROG_TYPE_XDP | count << 32, program.as_ptr().expose_provenance() as u64, license, 0, 0, 0];
    // SAFETY: the addresses are those of `count` instructions and of a string, which outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr)? };
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let packet = [0_u8; 64];
    let (fd, length) = (program.as_raw_fd() as u64, packet.len() as u64);
    let mut attr = [fd, length, packet.as_ptr().expose_provenance() as u64, 0, u64::from(times), 0];
    // SAFETY: the address is that of `length` bytes, which outlive the call; nothing is written.
    unsafe { bpf(BPF_PROG_TEST_RUN, &mut attr)? };
    Ok(())
}

/// Index of the interface that the link with this pin is attached to; 0 when the interface is gone. By its pin and not by its id, for
/// which the kernel wants CAP_SYS_ADMIN.
pub(crate) fn link_ifindex(pin: &Path) -> io::Result<u32> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let mut attr = [path.as_ptr().expose_provenance() as u64, 0];
    // SAFETY: the address is that of a string, which outlives the call.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr)? };
    // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
    let link = unsafe { OwnedFd::from_raw_fd(fd) };
    // `struct bpf_link_info`: type, id, program id, four bytes of padding, and for XDP the interface.
    let mut info = [0_u32; 16];
    let mut attr = InfoAttr {
        fd: link.as_raw_fd() as u32,
        info_len: size_of_val(&info) as u32,
        info: info.as_mut_ptr().expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `info_len` bytes to `info`, which outlives the call.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)? };
    Ok(info[4])
}

/// # Safety
/// `attr` must be what the command expects, and every address in it valid for what the command does there.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the caller's promise; the size is that of `attr`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

/// An array map with BPF_F_MMAPABLE as memory: words of 8 bytes that the kernel program reads at the same time.
#[derive(Debug)]
pub(super) struct Mapping {
    words: NonNull<AtomicU64>,
    length: usize,
}

// SAFETY: the memory is shared with the kernel anyway, is only used through atomics, and lives as long as this.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps an array of `length` words.
    pub(super) fn new(map: BorrowedFd<'_>, length: usize) -> io::Result<Self> {
        // SAFETY: a new mapping at an address that the kernel chooses touches no other memory; the kernel checks the
        // length against the map's size.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length * 8,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let words = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Mapping { words, length })
    }

    /// The words.
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is `length` words long, aligned to a page, and lives until the drop; atomics allow for
        // the kernel's reads.
        unsafe { std::slice::from_raw_parts(self.words.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length are those of the mapping, which nobody uses any more.
        unsafe { libc::munmap(self.words.as_ptr().cast(), self.length * 8) };
    }
}
