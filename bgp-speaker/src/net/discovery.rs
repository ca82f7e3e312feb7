//! Finds the neighbours of unnumbered peers: a task watches their interfaces, says on each that we are there, and tells
//! the driver who else does (RFC 4861). Needs CAP_NET_RAW.
use super::driver::Event;
use crate::{
    InterfaceName,
    ndp::{
        self, ADVERTISE, ADVERTISEMENT, ALL_NODES, ALL_ROUTERS, HOP_LIMIT, Message, SOLICIT, SOLICITATION,
    },
    speaker::Link,
};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::{InterfaceFlags, if_nametoindex},
    sys::socket::{
        ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt::Ipv6RecvHopLimit,
    },
};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::{
    collections::{BTreeMap, BTreeSet},
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{Ipv6Addr, SocketAddrV6},
    os::fd::AsRawFd,
    task::Poll,
    time::Duration,
};
use tokio::{
    io::Interest,
    net::UdpSocket,
    sync::{mpsc, watch},
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval},
};

/// Interfaces are looked at so often.
const LOOK: Duration = Duration::from_secs(1);
/// Between advertisements that nobody asked for: what FRR has for its unnumbered peers.
const INTERVAL: Duration = Duration::from_secs(10);
/// So many looks after an interface has come it is advertised at each, and asked as long as nobody was heard.
const HASTY: u32 = 5;
/// Between answers to solicitations (MIN_DELAY_BETWEEN_RAS of section 10 is 3 s, for links with many hosts).
const ANSWER: Duration = Duration::from_secs(1);
/// Longest message that is looked at: what is longer is cut, and its options then have no end.
const MESSAGE: usize = 2048;
/// Messages that are taken from a socket in one go.
const BATCH: usize = 16;

/// The running task; it ends when this is dropped.
pub(super) struct Discovery {
    wanted: watch::Sender<BTreeSet<InterfaceName>>,
    task: AbortHandle,
}

impl Discovery {
    /// Starts it; it tells [`Event::Link`].
    pub(super) fn start(events: mpsc::Sender<Event>) -> Self {
        let (wanted, interfaces) = watch::channel(BTreeSet::new());
        Discovery { wanted, task: tokio::spawn(run(interfaces, events)).abort_handle() }
    }

    /// Watches these interfaces, and no others.
    pub(super) fn watch(&self, interfaces: BTreeSet<InterfaceName>) {
        self.wanted.send_if_modified(|wanted| std::mem::replace(wanted, interfaces) != *wanted);
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn run(mut wanted: watch::Receiver<BTreeSet<InterfaceName>>, events: mpsc::Sender<Event>) {
    let mut all: BTreeMap<InterfaceName, Watched> = BTreeMap::new();
    let mut looks = interval(LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = looks.tick() => look(&mut all),
            () = readable(&all) => all.values_mut().for_each(Watched::receive),
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
                let wanted = wanted.borrow_and_update().clone();
                all.retain(|interface, _| wanted.contains(interface));
                // A peer may have gone and come since this task looked: all is told again.
                all.values_mut().for_each(|watched| watched.told = None);
                for interface in wanted {
                    all.entry(interface).or_default();
                }
                look(&mut all);
            }
        }
        for (&interface, watched) in &mut all {
            let link = watched.link();
            if std::mem::replace(&mut watched.told, link) != link
                && events.send(Event::Link(interface, link)).await.is_err()
            {
                return;
            }
        }
    }
}

/// Sees which interfaces are there, and speaks where it is time.
fn look(all: &mut BTreeMap<InterfaceName, Watched>) {
    if all.is_empty() {
        return;
    }
    let up: BTreeSet<String> = match getifaddrs() {
        Ok(addresses) => {
            let running = InterfaceFlags::IFF_UP | InterfaceFlags::IFF_RUNNING;
            addresses.filter(|of| of.flags.contains(running)).map(|of| of.interface_name).collect()
        }
        Err(error) => return tracing::warn!(%error, "interfaces unknown"),
    };
    for (interface, watched) in all {
        let index = up.get(interface.as_str()).and_then(|name| if_nametoindex(name.as_str()).ok());
        watched.set_index(*interface, index);
        watched.speak();
    }
}

/// An interface of an unnumbered peer.
#[derive(Default)]
struct Watched {
    socket: Option<(u32, UdpSocket)>,
    neighbour: Option<Ipv6Addr>,
    /// Looks since it came.
    looks: u32,
    /// When we spoke last.
    spoke: Option<Instant>,
    told: Option<Link>,
    /// Why it cannot be used, if that was said.
    error: Option<String>,
}

impl Watched {
    fn link(&self) -> Option<Link> {
        self.socket.as_ref().map(|(index, _)| Link { index: *index, neighbour: self.neighbour })
    }

    fn set_index(&mut self, interface: InterfaceName, index: Option<u32>) {
        if self.socket.as_ref().map(|(index, _)| *index) == index {
            return;
        }
        let socket = index.map(|index| Ok((index, open(interface, index)?))).transpose();
        let error = socket.as_ref().err().map(|error: &io::Error| error.to_string());
        if let Some(reason) = error.as_ref().filter(|reason| self.error.as_ref() != Some(reason)) {
            tracing::warn!(%interface, reason, "neighbours cannot be discovered");
        }
        *self = Watched { socket: socket.unwrap_or_default(), told: self.told, error, ..Watched::default() };
    }

    /// Says that we are there, and asks who else is.
    fn speak(&mut self) {
        self.looks = self.looks.saturating_add(1);
        let hasty = self.looks <= HASTY;
        if hasty && self.neighbour.is_none() {
            self.send(&SOLICIT, ALL_ROUTERS);
        }
        if hasty || self.spoke.is_none_or(|spoke| spoke.elapsed() >= INTERVAL) {
            self.advertise();
        }
    }

    fn advertise(&mut self) {
        self.spoke = Some(Instant::now());
        self.send(&ADVERTISE, ALL_NODES);
    }

    /// What cannot be sent is sent later: the interface may just have lost its address.
    fn send(&self, message: &[u8], to: Ipv6Addr) {
        if let Some((index, socket)) = &self.socket
            && let Err(error) = socket.try_send_to(message, SocketAddrV6::new(to, 0, 0, *index).into())
        {
            tracing::debug!(%error, index, "router discovery");
        }
    }

    fn receive(&mut self) {
        for _ in 0..BATCH {
            let Some((_, socket)) = &self.socket else { return };
            match receive(socket) {
                Ok(Some((from, Message::Advertisement))) => self.neighbour = Some(from),
                Ok(Some((_, Message::Solicitation))) => {
                    if self.spoke.is_none_or(|spoke| spoke.elapsed() >= ANSWER) {
                        self.advertise();
                    }
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => return tracing::debug!(%error, "router discovery"),
            }
        }
    }
}

/// Returns when a socket has something.
async fn readable(all: &BTreeMap<InterfaceName, Watched>) {
    poll_fn(|context| {
        let mut sockets = all.values().filter_map(|watched| Some(&watched.socket.as_ref()?.1));
        if sockets.any(|socket| socket.poll_recv_ready(context).is_ready()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
}

/// A raw socket for the messages of router discovery on one interface. For the runtime it is as one of UDP.
fn open(interface: InterfaceName, index: u32) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV6, Type::RAW.nonblocking(), Some(Protocol::ICMPV6))?;
    // Classic BPF: the type of ICMPv6 is the first octet.
    socket.attach_filter(&[
        SockFilter::new(0x30, 0, 0, 0),
        SockFilter::new(0x15, 1, 0, SOLICITATION.into()),
        SockFilter::new(0x15, 0, 1, ADVERTISEMENT.into()),
        SockFilter::new(0x06, 0, 0, u32::MAX),
        SockFilter::new(0x06, 0, 0, 0),
    ])?;
    socket.bind_device(Some(interface.as_str().as_bytes()))?;
    socket.set_multicast_hops_v6(HOP_LIMIT.into())?;
    socket.set_multicast_if_v6(index)?;
    socket.set_multicast_loop_v6(false)?;
    socket.join_multicast_v6(&ALL_ROUTERS, index)?;
    setsockopt(&socket, Ipv6RecvHopLimit, &true)?;
    UdpSocket::from_std(socket.into())
}

/// The next message and who sent it; none: it is to be discarded.
fn receive(socket: &UdpSocket) -> io::Result<Option<(Ipv6Addr, Message)>> {
    let mut buffer = [0; MESSAGE];
    // On the heap, where it is aligned.
    let mut control = nix::cmsg_space!(i32);
    socket
        .try_io(Interest::READABLE, || {
            let mut parts = [IoSliceMut::new(&mut buffer)];
            let received = recvmsg::<SockaddrStorage>(
                socket.as_raw_fd(),
                &mut parts,
                Some(&mut control),
                MsgFlags::empty(),
            )?;
            let hop_limit = received.cmsgs()?.find_map(|control| match control {
                ControlMessageOwned::Ipv6HopLimit(limit) => u8::try_from(limit).ok(),
                _ => None,
            });
            let from = received.address.as_ref().and_then(SockaddrStorage::as_sockaddr_in6).map(|v6| v6.ip());
            let length = received.bytes;
            Ok((from, hop_limit, length))
        })
        .map(|(from, hop_limit, length)| {
            let from = from?;
            Some((from, ndp::parse(&buffer[..length], from, hop_limit?)?))
        })
}
