//! Routers that cannot pass a tunnel packet on: "fragmentation needed" (RFC 1191) and "packet too big" (RFC 8201) about
//! packets that the programs have sent, of which no socket knows. The kernel takes the MTU of such a path into its route,
//! and forgets it again (`net.ipv4.route.mtu_expires`, `net.ipv6.route.mtu_expires`, 10 minutes), only if there is a raw
//! socket of the packet's protocol. So there are some, which take in nothing but errors: each means that a route has to
//! be asked for again.
use super::watch::Watch;
use nix::sys::socket::{
    MsgFlags, SockaddrStorage, recvmsg, setsockopt,
    sockopt::{Ipv4RecvErr, Ipv6RecvErr},
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::{
    collections::{BTreeMap, BTreeSet},
    io::{self, IoSliceMut},
    net::IpAddr,
    os::fd::AsRawFd,
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    task::AbortHandle,
    time::{Duration, sleep},
};

/// Errors come in bursts: after each the next one waits so long.
const PAUSE: Duration = Duration::from_millis(100);

/// The sockets, by IANA protocol number.
#[derive(Default)]
pub(super) struct PathErrors(BTreeMap<u8, Vec<Listener>>);

impl PathErrors {
    /// Listens for errors about packets of these protocols, over IPv4 and IPv6, and tells `watch` of each. Without a
    /// socket (no CAP_NET_RAW, no IPv6) there is nothing to hear, and nothing else is worse.
    pub(super) fn follow(&mut self, protocols: &BTreeSet<u8>, watch: &Watch) {
        self.0.retain(|protocol, _| protocols.contains(protocol));
        for &protocol in
            protocols.iter().filter(|protocol| !self.0.contains_key(protocol)).collect::<Vec<_>>()
        {
            let listen = |domain| match open(domain, protocol) {
                Ok(socket) => Some(Listener(tokio::spawn(listen(socket, watch.touch())).abort_handle())),
                Err(error) => {
                    tracing::warn!(protocol, ?domain, %error, "routers' errors about tunnel packets are not heard");
                    None
                }
            };
            self.0.insert(protocol, [Domain::IPV4, Domain::IPV6].into_iter().filter_map(listen).collect());
        }
    }
}

/// Listens until it is dropped.
struct Listener(AbortHandle);

impl Drop for Listener {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A raw socket that takes no packets. For the runtime it is as one of UDP.
fn open(domain: Domain, protocol: u8) -> io::Result<UdpSocket> {
    /// Classic BPF: `return 0`, which takes no packet.
    const NONE: SockFilter = SockFilter::new(6, 0, 0, 0);
    let socket = Socket::new(domain, Type::RAW.nonblocking(), Some(Protocol::from(i32::from(protocol))))?;
    socket.attach_filter(&[NONE])?;
    if domain == Domain::IPV4 {
        setsockopt(&socket, Ipv4RecvErr, &true)?;
    } else {
        setsockopt(&socket, Ipv6RecvErr, &true)?;
    }
    UdpSocket::from_std(socket.into())
}

/// Tells of every error which destination it is about.
async fn listen(socket: UdpSocket, tell: impl Fn(IpAddr)) {
    while socket.ready(Interest::ERROR).await.is_ok() {
        match socket.try_io(Interest::ERROR, || destination(&socket)) {
            Ok(Some(destination)) => tell(destination),
            Ok(None) => {}
            // Mostly that this was the last one of a burst.
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Takes an error from the queue: where the packet was sent to that it is about.
fn destination(socket: &UdpSocket) -> io::Result<Option<IpAddr>> {
    let mut none = [IoSliceMut::new(&mut [])];
    let error = recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut none, None, MsgFlags::MSG_ERRQUEUE)?;
    let address = error.address.as_ref();
    let v4 = address.and_then(|address| Some(address.as_sockaddr_in()?.ip().into()));
    Ok(v4.or_else(|| Some(address?.as_sockaddr_in6()?.ip().into())))
}
