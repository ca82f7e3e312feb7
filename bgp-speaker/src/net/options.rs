//! Socket options of TCP that no library has, by system calls.
use crate::Md5Key;
use ipnet::IpNet;
use nix::sys::socket::SockaddrStorage;
use std::{
    io, mem,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    ptr,
};

/// `IP_MINTTL` of linux/in.h.
const IP_MINTTL: libc::c_int = 21;
/// `TCP_MD5SIG_FLAG_PREFIX` of linux/tcp.h.
const TCP_MD5SIG_FLAG_PREFIX: u8 = 1;
/// `IPV6_MINHOPCOUNT` of linux/in6.h.
const IPV6_MINHOPCOUNT: libc::c_int = 73;

/// Packets with a smaller TTL or hop limit do not reach the socket (GTSM, RFC 5082); 0: all do.
pub(super) fn set_min_ttl(socket: &impl AsFd, local: SocketAddr, min_ttl: u8) -> io::Result<()> {
    let (level, name) = match local {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, IP_MINTTL),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT),
    };
    set(socket, level, name, &libc::c_int::from(min_ttl))
}

/// The SYN of each accepted connection is kept for [`saved_syn_ttl`].
pub(super) fn save_syn(listener: &impl AsFd) -> io::Result<()> {
    set(listener, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, &1)
}

/// TTL or hop limit with which the SYN of an accepted connection came, once; none: the kernel did not keep it, as under
/// a flood (SYN cookies).
pub(super) fn saved_syn_ttl(socket: &impl AsFd, remote: SocketAddr) -> io::Result<Option<u8>> {
    // Where the TTL stands in the IP header.
    let at = if remote.is_ipv4() { 8 } else { 7 };
    let mut packet = [0_u8; 256];
    let mut length = libc::socklen_t::try_from(packet.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most `length` octets to `packet`, which is that long, and how many to `length`.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SAVED_SYN,
            packet.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((length > at).then(|| packet[at as usize]))
}

/// `struct tcp_md5sig` of linux/tcp.h.
#[derive(Clone, Copy)]
#[repr(C)]
struct TcpMd5Sig {
    address: SockaddrStorage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: libc::c_int,
    key: [u8; Md5Key::MAX_LENGTH],
}

/// Signs segments to the addresses of `remote`, and drops those from there that have another signature (RFC 2385);
/// none: what was set for exactly these addresses does not hold any more. A connection that is established changes
/// its key so, too.
pub(super) fn set_md5(socket: &impl AsFd, remote: IpNet, key: Option<&Md5Key>) -> io::Result<()> {
    let octets = key.map_or(&[][..], Md5Key::octets);
    let mut signature = TcpMd5Sig {
        address: SocketAddr::new(remote.addr(), 0).into(),
        flags: TCP_MD5SIG_FLAG_PREFIX,
        prefix_length: remote.prefix_len(),
        key_length: octets.len() as u16,
        interface: 0,
        key: [0; Md5Key::MAX_LENGTH],
    };
    signature.key[..octets.len()].copy_from_slice(octets);
    match set(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG_EXT, &signature) {
        // There is no key that could be taken away.
        Err(error) if key.is_none() && error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => {
            Err(io::Error::other("no room for more keys: net.core.optmem_max is too small"))
        }
        result => result,
    }
}

/// `setsockopt` with a plain C value.
fn set<T: Copy>(socket: &impl AsFd, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `length` octets from the value, which is that long and lives through the call.
    let result = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, name, ptr::from_ref(value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
