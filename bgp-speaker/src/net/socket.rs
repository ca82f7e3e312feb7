//! Sockets as BGP wants them.
use super::options;
use crate::{Md5Key, Transport};
use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on one address of one family; connections from the addresses of `keys` must be signed.
pub(super) fn listen(address: SocketAddr, keys: &BTreeMap<IpNet, Md5Key>) -> io::Result<TcpListener> {
    let socket = tcp(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    // The answer to a handshake passes the GTSM of any peer; what follows has the TTL of the peer (`prepare`).
    set_ttl(&socket, address, u8::MAX)?;
    options::save_syn(&socket)?;
    for (remote, key) in keys.iter().filter(|(remote, _)| remote.addr().is_ipv4() == address.is_ipv4()) {
        options::set_md5(&socket, *remote, Some(key))?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Goes on with a listener of another process, which has the keys of `before`.
pub(super) fn resume(
    socket: OwnedFd,
    address: SocketAddr,
    before: &[IpNet],
    keys: &BTreeMap<IpNet, Md5Key>,
) -> io::Result<TcpListener> {
    let gone = before.iter().filter(|remote| !keys.contains_key(remote)).map(|remote| (remote, None));
    for (remote, key) in gone.chain(keys.iter().map(|(remote, key)| (remote, Some(key)))) {
        if remote.addr().is_ipv4() == address.is_ipv4() {
            options::set_md5(&socket, *remote, key)?;
        }
    }
    TcpListener::from_std(socket.into())
}

/// Dials.
pub(super) async fn dial(
    remote: SocketAddr,
    local: Option<IpAddr>,
    transport: &Transport,
) -> io::Result<TcpStream> {
    let socket = tcp(remote)?;
    set_transport(&socket, remote, transport)?;
    if let Some(key) = &transport.md5 {
        options::set_md5(&socket, remote.ip().into(), Some(key))?;
    }
    if let Some(local) = local {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    let stream = TcpSocket::from_std_stream(socket.into()).connect(remote).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Makes an accepted connection what a dialled one is.
///
/// # Errors
/// The kernel's, or the handshake came from further away than the peer is: data that came before this call would
/// have as well.
pub(super) fn prepare(stream: &TcpStream, transport: &Transport) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let remote = stream.peer_addr()?;
    set_transport(&SockRef::from(stream), remote, transport)?;
    if transport.min_ttl > 0 && options::saved_syn_ttl(stream, remote)? < Some(transport.min_ttl) {
        return Err(io::Error::other(format!("{}: from too far away", remote.ip())));
    }
    Ok(())
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn set_transport(socket: &Socket, remote: SocketAddr, transport: &Transport) -> io::Result<()> {
    options::set_min_ttl(socket, remote, transport.min_ttl)?;
    set_ttl(socket, remote, transport.ttl)
}

fn set_ttl(socket: &Socket, address: SocketAddr, ttl: u8) -> io::Result<()> {
    if address.is_ipv6() { socket.set_unicast_hops_v6(ttl.into()) } else { socket.set_ttl_v4(ttl.into()) }
}
