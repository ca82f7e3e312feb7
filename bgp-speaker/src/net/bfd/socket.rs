//! UDP sockets as BFD wants them (RFC 5881 sections 4 and 5, RFC 5883): one to send from for each session, with a
//! port of its own, and one to receive on for each family and kind of session.
use crate::bfd::{Datagram, Destination, HOP_LIMIT, Hops, MULTIHOP_PORT, SINGLE_HOP_PORT};
use nix::sys::socket::{
    ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt,
    sockopt::{Ipv4RecvTtl, Ipv6RecvHopLimit},
};
use socket2::{Domain, Protocol, Socket, Type};
use std::{
    io::{self, IoSliceMut},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket},
    ops::RangeInclusive,
    os::fd::{AsRawFd, OwnedFd},
};
use tokio::io::Interest;

/// Ports to send from (RFC 5881 section 4).
const SOURCE_PORTS: RangeInclusive<u16> = 49152..=65535;
/// So many of them are tried.
const TRIES: u64 = 64;
/// Class selector 6, network control (RFC 4594 section 3.1), as a TOS octet: before other traffic where a link is full.
const NETWORK_CONTROL: u32 = 0xc0;
/// Longest datagram that is of interest; what is longer is cut, and its length is then wrong.
const DATAGRAM: usize = 128;

/// A family and a kind of session: what a socket receives.
pub(super) type Inlet = (bool, Hops);

/// The inlet at which the packets of a peer come in.
pub(super) fn inlet(of: Destination) -> Inlet {
    (of.address.is_ipv6(), of.hops)
}

/// Receives control packets of one family and kind.
#[derive(Debug)]
pub(super) struct Receiver {
    socket: tokio::net::UdpSocket,
    hops: Hops,
}

impl Receiver {
    /// Receives on all addresses.
    pub(super) fn bind((is_ipv6, hops): Inlet) -> io::Result<Self> {
        let any = if is_ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let socket = udp(is_ipv6)?;
        if is_ipv6 {
            setsockopt(&socket, Ipv6RecvHopLimit, &true)?;
        } else {
            setsockopt(&socket, Ipv4RecvTtl, &true)?;
        }
        let address = SocketAddr::new(any, port(hops));
        socket
            .bind(&address.into())
            .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
        Ok(Receiver { socket: tokio::net::UdpSocket::from_std(socket.into())?, hops })
    }

    /// Goes on with the socket of another program.
    pub(super) fn resume(socket: OwnedFd, hops: Hops) -> io::Result<Self> {
        let socket = UdpSocket::from(socket);
        socket.set_nonblocking(true)?;
        Ok(Receiver { socket: tokio::net::UdpSocket::from_std(socket)?, hops })
    }

    /// Gives the socket away.
    pub(super) fn into_socket(self) -> io::Result<OwnedFd> {
        Ok(self.socket.into_std()?.into())
    }

    /// The readiness of the socket.
    pub(super) fn socket(&self) -> &tokio::net::UdpSocket {
        &self.socket
    }

    /// Gives the next datagram to `take`; false: there is none.
    pub(super) fn receive(&self, take: impl FnOnce(Datagram<'_>)) -> io::Result<bool> {
        let mut buffer = [0; DATAGRAM];
        // On the heap, where it is aligned.
        let mut control = nix::cmsg_space!(i32);
        let received = self.socket.try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let fd = self.socket.as_raw_fd();
            let message = recvmsg::<SockaddrStorage>(fd, &mut parts, Some(&mut control), MsgFlags::empty())?;
            let hop_limit = message.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv4Ttl(limit) | ControlMessageOwned::Ipv6HopLimit(limit) => Some(limit),
                _ => None,
            });
            Ok((message.address, hop_limit, message.bytes))
        });
        let (address, hop_limit, length) = match received {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error),
        };
        let v4 =
            address.as_ref().and_then(SockaddrStorage::as_sockaddr_in).map(|v4| (IpAddr::V4(v4.ip()), 0));
        let v6 = address.as_ref().and_then(SockaddrStorage::as_sockaddr_in6);
        let v6 = v6.map(|v6| {
            let scope = if v6.ip().is_unicast_link_local() { v6.scope_id() } else { 0 };
            (IpAddr::V6(v6.ip()), scope)
        });
        let hop_limit = hop_limit.and_then(|limit| u8::try_from(limit).ok());
        // Both are always there.
        if let (Some((address, scope)), Some(hop_limit)) = (v4.or(v6), hop_limit) {
            let from = Destination { address, scope, hops: self.hops };
            take(Datagram { from, hop_limit, bytes: &buffer[..length] });
        }
        Ok(true)
    }
}

/// Sends the packets of one session.
#[derive(Debug)]
pub(super) struct Sender(UdpSocket);

impl Sender {
    /// A socket of its own port, towards the peer; `random` chooses the port.
    pub(super) fn open(
        to: Destination,
        local: Option<IpAddr>,
        mut random: impl FnMut() -> u64,
    ) -> io::Result<Self> {
        let is_ipv6 = to.address.is_ipv6();
        let unspecified =
            if is_ipv6 { IpAddr::V6(Ipv6Addr::UNSPECIFIED) } else { IpAddr::V4(Ipv4Addr::UNSPECIFIED) };
        let socket = udp(is_ipv6)?;
        if is_ipv6 {
            socket.set_unicast_hops_v6(HOP_LIMIT.into())?;
            socket.set_tclass_v6(NETWORK_CONTROL)?;
        } else {
            socket.set_ttl_v4(HOP_LIMIT.into())?;
            socket.set_tos_v4(NETWORK_CONTROL)?;
        }
        let from = local.unwrap_or(unspecified);
        let ports = u64::from(SOURCE_PORTS.end() - SOURCE_PORTS.start()) + 1;
        let mut tries = (0..TRIES).map(|_| {
            // In range: the remainder is below the number of ports.
            let port = SOURCE_PORTS.start() + (random() % ports) as u16;
            socket.bind(&scoped(from, to.scope, port).into())
        });
        let in_use = |result: &io::Result<()>| {
            result.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
        };
        tries.find(|result| !in_use(result)).unwrap_or(Err(io::ErrorKind::AddrInUse.into()))?;
        socket.connect(&scoped(to.address, to.scope, port(to.hops)).into())?;
        Ok(Sender(socket.into()))
    }

    /// Our address.
    pub(super) fn local(&self) -> io::Result<IpAddr> {
        Ok(self.0.local_addr()?.ip())
    }

    /// Sends a packet. A full queue and a peer that is not there are no errors: the next packet comes soon.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<()> {
        match self.0.send(bytes) {
            Ok(_) => Ok(()),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionRefused => Ok(()),
                _ => Err(error),
            },
        }
    }
}

impl From<OwnedFd> for Sender {
    fn from(socket: OwnedFd) -> Self {
        Sender(socket.into())
    }
}

impl From<Sender> for OwnedFd {
    fn from(sender: Sender) -> Self {
        sender.0.into()
    }
}

fn port(hops: Hops) -> u16 {
    match hops {
        Hops::Single => SINGLE_HOP_PORT,
        Hops::Multi => MULTIHOP_PORT,
    }
}

fn scoped(address: IpAddr, scope: u32, port: u16) -> SocketAddr {
    match address {
        IpAddr::V4(address) => (address, port).into(),
        IpAddr::V6(address) => SocketAddrV6::new(address, port, 0, scope).into(),
    }
}

fn udp(is_ipv6: bool) -> io::Result<Socket> {
    let domain = if is_ipv6 { Domain::IPV6 } else { Domain::IPV4 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    if is_ipv6 {
        socket.set_only_v6(true)?;
    }
    Ok(socket)
}
