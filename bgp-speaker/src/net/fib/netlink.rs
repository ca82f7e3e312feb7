//! Routes over rtnetlink(7): read all, write many at once, hear of changes of others.
use crate::fib::{Hop, Hops, Kind, METRIC, Operation, Out, PROTOCOL, Snapshot, Way};
use ipnet::IpNet;
use nix::sys::{
    socket::{setsockopt, sockopt::ReceiveTimeout},
    time::{TimeVal, TimeValLike},
};
use rtnetlink::{
    MulticastGroup,
    packet_core::{
        NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        route::{
            RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteNextHop, RouteNextHopFlags,
            RouteProtocol, RouteScope, RouteType, RouteVia,
        },
    },
    sys::{AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};
use socket2::{SockFilter, SockRef};
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// Messages that are sent together: so many answers have room in a socket's buffer.
const TOGETHER: usize = 128;
/// The kernel puts no more octets into a datagram of a dump.
const DATAGRAM: usize = 64 * 1024;
/// The kernel answers at once; whatever happens, we do not wait for ever. Seconds.
const PATIENCE: i64 = 10;
/// A dump that was changed meanwhile is made again, so often.
const DUMPS: usize = 3;

/// Reads and writes routes.
pub(super) struct Routes {
    socket: Socket,
    sequence: u32,
    received: Vec<u8>,
}

impl Routes {
    /// In the network namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // Answers without what was asked: they are shorter.
        socket.set_cap_ack(true)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
        Ok(Routes { socket, sequence: 0, received: Vec::with_capacity(DATAGRAM) })
    }

    /// The main table of both families.
    pub(super) fn read(&mut self) -> io::Result<Snapshot> {
        let mut again = 0;
        loop {
            match self.dump() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted && again < DUMPS => again += 1,
                result => return result,
            }
        }
    }

    /// Does the steps in order. For each how that went.
    ///
    /// # Errors
    /// Nothing is known of how they went.
    pub(super) fn perform(&mut self, operations: &[Operation]) -> io::Result<Vec<io::Result<()>>> {
        let mut results = Vec::with_capacity(operations.len());
        let mut octets = Vec::new();
        for together in operations.chunks(TOGETHER) {
            octets.clear();
            let first = self.sequence.wrapping_add(1);
            for Operation { prefix, kind } in together {
                self.sequence = self.sequence.wrapping_add(1);
                let (message, flags) = match kind {
                    Kind::Add(hops) => (added(*prefix, hops), NLM_F_CREATE | NLM_F_EXCL),
                    Kind::Replace(hops) => (added(*prefix, hops), NLM_F_CREATE | NLM_F_REPLACE),
                    Kind::Remove => (RouteNetlinkMessage::DelRoute(route(*prefix)), 0),
                };
                append(message, flags | NLM_F_ACK, self.sequence, &mut octets);
            }
            self.socket.send(&octets, 0)?;
            let mut left = together.len();
            let mut answers: Vec<io::Result<()>> = together.iter().map(|_| Ok(())).collect();
            while left > 0 {
                self.receive(|message| {
                    let at = message.header.sequence_number.wrapping_sub(first) as usize;
                    if let (Some(answer), NetlinkPayload::Error(error)) =
                        (answers.get_mut(at), message.payload)
                    {
                        left -= 1;
                        let is_gone =
                            || together[at].kind == Kind::Remove && error.raw_code() == -libc::ESRCH;
                        if error.code.is_some() && !is_gone() {
                            *answer = Err(error.to_io());
                        }
                    }
                    Ok(())
                })?;
            }
            results.append(&mut answers);
        }
        Ok(results)
    }

    fn dump(&mut self) -> io::Result<Snapshot> {
        let mut snapshot = Snapshot::default();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            self.sequence = self.sequence.wrapping_add(1);
            let header = RouteHeader { address_family: family, ..RouteHeader::default() };
            let question = RouteNetlinkMessage::GetRoute(message_of(header));
            let (mut octets, sequence) = (Vec::new(), self.sequence);
            append(question, NLM_F_DUMP, sequence, &mut octets);
            self.socket.send(&octets, 0)?;
            let (mut done, mut torn) = (false, false);
            while !done {
                self.receive(|message| {
                    if message.header.sequence_number != sequence {
                        return Ok(());
                    }
                    torn |= message.header.flags & NLM_F_DUMP_INTR != 0;
                    match message.payload {
                        NetlinkPayload::Done(_) => done = true,
                        NetlinkPayload::Error(error) => return Err(error.to_io()),
                        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
                            note(&route, &mut snapshot);
                        }
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            if torn {
                return Err(io::ErrorKind::Interrupted.into());
            }
        }
        Ok(snapshot)
    }

    /// The messages of the next datagram.
    fn receive(
        &mut self,
        mut take: impl FnMut(NetlinkMessage<RouteNetlinkMessage>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.received.clear();
        self.socket.recv(&mut self.received, 0)?;
        let mut rest = &self.received[..];
        while let Some(length) = rest.first_chunk().map(|length| u32::from_ne_bytes(*length) as usize) {
            let message = rest.get(..length).filter(|message| !message.is_empty());
            let message = message.ok_or_else(|| io::Error::other("a message of the kernel is cut"))?;
            // What the library does not understand is no route of ours.
            if let Ok(message) = NetlinkMessage::deserialize(message) {
                take(message)?;
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

/// Hears of what may lead to other ways: links, addresses, routes of others.
pub(super) struct Monitor {
    links: TokioSocket,
    routes: TokioSocket,
    /// What came, which nobody reads.
    scratch: [Vec<u8>; 2],
}

impl Monitor {
    pub(super) fn open() -> io::Result<Self> {
        let links =
            listen(&[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr], &[])?;
        // Classic BPF. A message begins with 16 octets (struct nlmsghdr), and `rtm_protocol` is the sixth after them.
        let others = [
            SockFilter::new(0x30, 0, 0, 21),
            SockFilter::new(0x15, 0, 1, PROTOCOL.into()),
            SockFilter::new(0x06, 0, 0, 0),
            SockFilter::new(0x06, 0, 0, u32::MAX),
        ];
        let routes = listen(&[MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route], &others)?;
        Ok(Monitor { links, routes, scratch: [(); 2].map(|()| Vec::with_capacity(DATAGRAM)) })
    }

    /// Returns when something has changed.
    pub(super) async fn changed(&mut self) -> io::Result<()> {
        let [one, other] = &mut self.scratch;
        one.clear();
        other.clear();
        let result = tokio::select! {
            result = self.links.recv(one) => result,
            result = self.routes.recv(other) => result,
        };
        match result {
            // More has come than there was room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(()),
            result => result,
        }
    }
}

fn listen(groups: &[MulticastGroup], filter: &[SockFilter]) -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    let inner = socket.socket_mut();
    inner.bind_auto()?;
    if !filter.is_empty() {
        SockRef::from(&*inner).attach_filter(filter)?;
    }
    groups.iter().try_for_each(|group| inner.add_membership(*group as u32))?;
    Ok(socket)
}

fn append(message: RouteNetlinkMessage, flags: u16, sequence: u32, octets: &mut Vec<u8>) {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags | NLM_F_REQUEST;
    message.header.sequence_number = sequence;
    message.finalize();
    let start = octets.len();
    octets.resize(start + message.buffer_len().next_multiple_of(4), 0);
    message.serialize(&mut octets[start..]);
}

fn message_of(header: RouteHeader) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header = header;
    message
}

/// What names a route of ours.
fn route(prefix: IpNet) -> RouteMessage {
    let header = RouteHeader {
        address_family: if prefix.addr().is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 },
        destination_prefix_length: prefix.prefix_len(),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Other(PROTOCOL),
        scope: RouteScope::Universe,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    let mut message = message_of(header);
    message.attributes =
        vec![RouteAttribute::Destination(prefix.addr().into()), RouteAttribute::Priority(METRIC)];
    message
}

fn added(prefix: IpNet, hops: &Hops) -> RouteNetlinkMessage {
    let mut message = route(prefix);
    match hops[..] {
        [hop] => message.attributes.extend([RouteAttribute::Oif(hop.interface), gateway(prefix, hop)]),
        _ => {
            let next_hop = |hop: &Hop| {
                let mut next_hop = RouteNextHop::default();
                next_hop.interface_index = hop.interface;
                next_hop.attributes = vec![gateway(prefix, *hop)];
                next_hop
            };
            message.attributes.push(RouteAttribute::MultiPath(hops.iter().map(next_hop).collect()));
        }
    }
    RouteNetlinkMessage::NewRoute(message)
}

fn gateway(prefix: IpNet, hop: Hop) -> RouteAttribute {
    match hop.gateway {
        IpAddr::V6(gateway) if prefix.addr().is_ipv4() => RouteAttribute::Via(RouteVia::Inet6(gateway)),
        gateway => RouteAttribute::Gateway(gateway.into()),
    }
}

/// Notes a route of the main table.
fn note(message: &RouteMessage, snapshot: &mut Snapshot) {
    let header = &message.header;
    if header.table != RouteHeader::RT_TABLE_MAIN || header.tos != 0 {
        return;
    }
    let (mut destination, mut metric) = (None, 0);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let any = match header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        _ => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let prefix = IpNet::new(destination.unwrap_or(any), header.destination_prefix_length);
    let Ok(prefix) = prefix.map(|prefix| prefix.trunc()) else { return };
    let outs = outs(message);
    if header.protocol == RouteProtocol::Other(PROTOCOL) && metric == METRIC {
        let hop = |out: &Out| Some(Hop { gateway: out.gateway?, interface: out.interface });
        let mut hops: Vec<Hop> = outs.iter().filter_map(hop).collect();
        hops.sort_unstable();
        snapshot.ours.insert(prefix, hops.into());
        return;
    }
    let out = match header.kind {
        RouteType::Unicast => outs.first().copied(),
        RouteType::BlackHole | RouteType::Unreachable | RouteType::Prohibit => None,
        _ => return,
    };
    snapshot.others.entry(prefix).or_default().push(Way { metric, out });
}

/// Where a route leads; not by links that are down.
fn outs(message: &RouteMessage) -> Vec<Out> {
    let many = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::MultiPath(many) => Some(many),
        _ => None,
    });
    if let Some(many) = many {
        let alive = many.iter().filter(|hop| !hop.flags.contains(RouteNextHopFlags::Dead));
        return alive.map(|hop| out(&hop.attributes, hop.interface_index)).collect();
    }
    let interface = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    interface.map(|interface| out(&message.attributes, interface)).into_iter().collect()
}

fn out(attributes: &[RouteAttribute], interface: u32) -> Out {
    let gateway = attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(address) => ip(address),
        RouteAttribute::Via(RouteVia::Inet(address)) => Some((*address).into()),
        RouteAttribute::Via(RouteVia::Inet6(address)) => Some((*address).into()),
        _ => None,
    });
    Out { gateway, interface }
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(address) => Some((*address).into()),
        RouteAddress::Inet6(address) => Some((*address).into()),
        _ => None,
    }
}
