//! The peers: a table in messages that are made beforehand, and sessions that write and count them.
use crate::{PEERS, harness::US, process::PAUSE};
use bgp_speaker::{
    config::{Asn, Family},
    wire::{
        AsPath, Attributes, Capability, Context, EncodeError, HEADER_LENGTH, Message, Nlri, Open, announce,
        withdraw,
    },
};
use ipnet::{IpNet, Ipv4Net};
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    ops::Range,
    thread,
    time::{Duration, Instant},
};

/// Longest time for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// So often a session says that it lives.
const KEEPALIVE: Duration = Duration::from_secs(5);
const PORT: u16 = 179;
/// Octets read at once.
const READ: usize = 1 << 20;
/// Types of messages (RFC 4271 section 4.1).
const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE_TYPE: u8 = 4;

/// The AS of a peer: one of its own each, for GoBGP and OpenBGPD tell no peer of a path that has its AS.
pub(crate) fn asn(peer: &str) -> u32 {
    let host = peer.rsplit('.').next().and_then(|octet| octet.parse().ok());
    65000 + host.unwrap_or(0)
}

/// Prefixes that share their attributes.
pub(crate) struct Table {
    count: u32,
    announcements: Vec<u8>,
    withdrawals: Vec<u8>,
}

impl Table {
    /// So many /24 networks from 1.0.0.0 on, shuffled.
    pub(crate) fn new(count: u32) -> Result<Self, EncodeError> {
        // An odd factor only permutes what is below a power of two.
        let bound = count.next_power_of_two();
        let prefixes: Vec<Nlri> =
            (0..count).map(|index| network(index.wrapping_mul(0x9e_3779) % bound)).collect();
        let (mut announcements, mut withdrawals) = (Vec::new(), Vec::new());
        let next_hop = next_hop().into();
        announce(&attributes(), next_hop, &prefixes, &context(), &mut announcements)?;
        withdraw(&prefixes, &context(), &mut withdrawals)?;
        Ok(Table { count, announcements, withdrawals })
    }

    pub(crate) fn count(&self) -> u32 {
        self.count
    }

    pub(crate) fn announcements(&self) -> &[u8] {
        &self.announcements
    }

    pub(crate) fn withdrawals(&self) -> &[u8] {
        &self.withdrawals
    }
}

fn network(index: u32) -> Nlri {
    let address = Ipv4Addr::from_bits(0x0100_0000_u32.wrapping_add(index << 8));
    IpNet::from(Ipv4Net::new_assert(address, 24)).into()
}

fn next_hop() -> IpAddr {
    PEERS[0].parse().expect("an address")
}

fn attributes() -> Attributes {
    Attributes { as_path: AsPath::sequence([asn(PEERS[0]), 65100, 65200]), ..Attributes::default() }
}

fn context() -> Context {
    Context { four_octet_as: true, families: [Family::Ipv4Unicast].into(), ..Context::default() }
}

/// What a peer saw of a table.
pub(crate) struct Received {
    /// From when the session was up on our side to the last prefix.
    pub(crate) time: Duration,
    pub(crate) octets_per_message: f64,
}

/// Waits for the router to dial.
pub(crate) struct Listener(TcpListener);

impl Listener {
    pub(crate) fn new(address: &str) -> io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&at(address).into())?;
        socket.listen(16)?;
        socket.set_nonblocking(true)?;
        Ok(Listener(socket.into()))
    }

    pub(crate) fn accept(&self) -> io::Result<Session> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let session = self.0.accept().and_then(|(stream, _)| {
                stream.set_nonblocking(false)?;
                Session::establish(stream)
            });
            if session.is_ok() || Instant::now() > deadline {
                return session;
            }
            thread::sleep(PAUSE);
        }
    }
}

/// An established session.
pub(crate) struct Session {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// What of the buffer has come and not been looked at.
    unread: Range<usize>,
    spoke: Instant,
    up: Instant,
}

impl Session {
    /// Dials the router until it takes the session.
    pub(crate) fn dial(from: &str) -> io::Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let session = connect(from).and_then(Session::establish);
            if session.is_ok() || Instant::now() > deadline {
                return session;
            }
            thread::sleep(PAUSE);
        }
    }

    fn establish(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(KEEPALIVE))?;
        let now = Instant::now();
        let mut session = Session { stream, buffer: vec![0; READ], unread: 0..0, spoke: now, up: now };
        let router_id = session.stream.local_addr()?.ip();
        let IpAddr::V4(router_id) = router_id else { return Err(io::Error::other("not IPv4")) };
        let asn = Asn(asn(&router_id.to_string()));
        let capabilities = vec![
            Capability::MultiProtocol(Family::Ipv4Unicast.into()),
            Capability::RouteRefresh,
            Capability::FourOctetAs(asn),
        ];
        session.send(&Message::Open(Open { asn, hold_seconds: 180, router_id, capabilities }))?;
        session.expect(OPEN)?;
        session.send(&Message::Keepalive)?;
        session.up = Instant::now();
        session.expect(KEEPALIVE_TYPE)?;
        Ok(session)
    }

    fn send(&mut self, message: &Message) -> io::Result<()> {
        let mut octets = Vec::new();
        message.encode(&context(), &mut octets).map_err(io::Error::other)?;
        self.write(&octets)
    }

    pub(crate) fn write(&mut self, octets: &[u8]) -> io::Result<()> {
        self.spoke = Instant::now();
        self.stream.write_all(octets)
    }

    /// Says that it lives, if it is time.
    pub(crate) fn keep_alive(&mut self) -> io::Result<()> {
        if self.spoke.elapsed() > KEEPALIVE { self.send(&Message::Keepalive) } else { Ok(()) }
    }

    /// The end, without a word.
    pub(crate) fn close(self) -> io::Result<()> {
        self.stream.shutdown(std::net::Shutdown::Both)
    }

    fn expect(&mut self, kind: u8) -> io::Result<()> {
        let at = self.message()?;
        let message = &self.buffer[at];
        if message[HEADER_LENGTH - 1] == kind {
            return Ok(());
        }
        Err(io::Error::other(format!("unexpected message: {message:02x?}")))
    }

    /// Where in the buffer the next message is; a NOTIFICATION or the end is an error.
    fn message(&mut self) -> io::Result<Range<usize>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let unread = &self.buffer[self.unread.clone()];
            let length = match unread {
                header if header.len() >= HEADER_LENGTH => {
                    usize::from(u16::from_be_bytes([header[16], header[17]]))
                }
                _ => usize::MAX,
            };
            if length <= unread.len() {
                let at = self.unread.start;
                self.unread.start += length;
                let message = &self.buffer[at..at + length];
                return match message[HEADER_LENGTH - 1] {
                    NOTIFICATION => {
                        Err(io::Error::other(format!("NOTIFICATION {:?}", &message[HEADER_LENGTH..])))
                    }
                    _ => Ok(at..at + length),
                };
            }
            self.buffer.copy_within(self.unread.clone(), 0);
            self.unread = 0..self.unread.len();
            match self.stream.read(&mut self.buffer[self.unread.end..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(octets) => self.unread.end += octets,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => (),
                Err(error) => return Err(error),
            }
            self.keep_alive()?;
        }
    }

    /// The next UPDATE that announces something, and how many prefixes.
    fn announcement(&mut self) -> io::Result<(u32, &[u8])> {
        loop {
            let at = self.message()?;
            let message = &self.buffer[at.clone()];
            if message[HEADER_LENGTH - 1] == UPDATE {
                let prefixes = announced(message).ok_or_else(|| io::Error::other("a malformed UPDATE"))?;
                if prefixes > 0 {
                    return Ok((prefixes, &self.buffer[at]));
                }
            }
        }
    }

    /// Reads until all prefixes have come.
    pub(crate) fn receive_table(mut self, count: u32) -> io::Result<Received> {
        let (mut prefixes, mut octets, mut messages) = (0, 0, 0);
        while prefixes < count {
            let (more, message) = self.announcement()?;
            prefixes += more;
            octets += message.len();
            messages += 1;
        }
        Ok(Received { time: self.up.elapsed(), octets_per_message: octets as f64 / f64::from(messages) })
    }
}

/// Announces routes, each when the one before has come out, and withdraws them in the end; how long each took.
pub(crate) fn singles(
    from: &mut Session,
    to: &mut Session,
    count: usize,
    seconds: u64,
) -> io::Result<Vec<Duration>> {
    let begin = Instant::now();
    let (mut times, mut prefixes) = (Vec::new(), Vec::new());
    let (attributes, context) = (attributes(), context());
    while times.is_empty() || times.len() < count && begin.elapsed() < Duration::from_secs(seconds) {
        let prefix = network(0x90_0000 + times.len() as u32);
        let mut octets = Vec::new();
        announce(&attributes, next_hop().into(), &[prefix], &context, &mut octets)
            .map_err(io::Error::other)?;
        let start = Instant::now();
        from.write(&octets)?;
        let (_, message) = to.announcement()?;
        times.push(start.elapsed());
        // The NLRI, which is last: a length and three octets.
        if message[message.len() - 4..] != octets[octets.len() - 4..] {
            return Err(io::Error::other(format!("not {prefix}: {message:02x?}")));
        }
        prefixes.push(prefix);
    }
    let mut octets = Vec::new();
    withdraw(&prefixes, &context, &mut octets).map_err(io::Error::other)?;
    from.write(&octets)?;
    Ok(times)
}

/// Waits until the router before is gone: of OpenBGPD processes outlive the first of them, and listen.
pub(crate) fn wait_for_nobody() -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while connect(PEERS[0]).is_ok() {
        if Instant::now() > deadline {
            return Err(io::Error::other("the router before does not end"));
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

fn connect(from: &str) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from.parse().map_err(io::Error::other)?, 0).into())?;
    socket.connect(&at(US).into())?;
    Ok(socket.into())
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().expect("an address"), PORT)
}

/// Number of prefixes in the NLRI field of an UPDATE.
fn announced<'a>(message: &'a [u8]) -> Option<u32> {
    // Withdrawn routes and path attributes, each after its length.
    let after = |bytes: &'a [u8]| bytes.get(2 + usize::from(u16::from_be_bytes(*bytes.first_chunk()?))..);
    let mut nlri = after(after(message.get(HEADER_LENGTH..)?)?)?;
    let mut count = 0;
    while let [length, rest @ ..] = nlri {
        nlri = rest.get(usize::from(length.div_ceil(8))..)?;
        count += 1;
    }
    Some(count)
}
