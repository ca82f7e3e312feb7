//! Sockets as BGP wants them.
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io,
    net::{IpAddr, SocketAddr},
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// Listens on one address of one family.
pub(super) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = tcp(address)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Dials.
pub(super) async fn dial(remote: SocketAddr, local: Option<IpAddr>, ttl: u8) -> io::Result<TcpStream> {
    let socket = tcp(remote)?;
    set_ttl(&socket, remote.is_ipv6(), ttl)?;
    if let Some(local) = local {
        socket.bind(&SocketAddr::new(local, 0).into())?;
    }
    let stream = TcpSocket::from_std_stream(socket.into()).connect(remote).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Makes an accepted connection what a dialled one is.
pub(super) fn prepare(stream: &TcpStream, ttl: u8) -> io::Result<()> {
    stream.set_nodelay(true)?;
    set_ttl(&socket2::SockRef::from(stream), stream.local_addr()?.is_ipv6(), ttl)
}

fn tcp(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn set_ttl(socket: &Socket, ipv6: bool, ttl: u8) -> io::Result<()> {
    if ipv6 { socket.set_unicast_hops_v6(ttl.into()) } else { socket.set_ttl_v4(ttl.into()) }
}
