//! A peer made of a socket and bytes: what no router would send, and the exact answer.
use super::{
    command::launch,
    harness::{
        self, Cable, OUR_ASN, ROUTER, ROUTER_ASN, US, enter, global, run, wait_for, wait_until, within,
    },
};
use bgp_speaker::{
    config::{Asn, Family, PeerConfig, Route, RouteAttributes, Timers},
    spawn,
    wire::{Capability, Context, Message, Notification, Open, Reason, Update, decode, frame},
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    unistd::Pid,
};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// One connection to the speaker.
pub(super) struct Raw {
    pub(super) stream: TcpStream,
    buffer: Vec<u8>,
    context: Context,
}

impl Raw {
    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let families = Family::ALL.into();
        Raw {
            stream,
            buffer: Vec::new(),
            context: Context { four_octet_as: true, families, ..Context::default() },
        }
    }

    /// Dials, from the address that this peer is known by.
    pub(super) fn dial() -> Self {
        Raw::dial_with_ttl(64)
    }

    fn dial_with_ttl(ttl: u32) -> Self {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let socket = socket(ttl);
            match socket.connect(&speaker()) {
                Ok(()) => return Raw::new(socket.into()),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            thread::yield_now();
        }
    }

    pub(super) fn send(&mut self, message: &Message) {
        let mut bytes = Vec::new();
        message.encode(&self.context, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    /// The next message as it came.
    fn receive_octets(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = frame(&self.buffer, &self.context).unwrap().map(<[u8]>::len) {
                return Some(self.buffer.drain(..length).collect());
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk).unwrap() {
                0 => return None,
                octets => self.buffer.extend_from_slice(&chunk[..octets]),
            }
        }
    }

    /// The next message; none: the speaker has closed the connection.
    pub(super) fn receive(&mut self) -> Option<Message> {
        loop {
            if let Some(bytes) = frame(&self.buffer, &self.context).unwrap() {
                let (length, decoded) = (bytes.len(), decode(bytes, &self.context).unwrap());
                assert_eq!(decoded.errors, []);
                self.buffer.drain(..length);
                return Some(decoded.message);
            }
            let mut chunk = [0; 65536];
            match self.stream.read(&mut chunk).unwrap() {
                0 => return None,
                octets => self.buffer.extend_from_slice(&chunk[..octets]),
            }
        }
    }

    /// Sends OPEN and goes on until the session is up.
    pub(super) fn establish(mut self) -> Self {
        self.send(&open(ROUTER));
        loop {
            match self.receive() {
                Some(Message::Open(_)) => self.send(&Message::Keepalive),
                Some(Message::Keepalive) => return self,
                other => panic!("{other:?}"),
            }
        }
    }

    /// What the speaker says before it closes; it must close.
    pub(super) fn last_words(mut self) -> Option<Notification> {
        let mut last = None;
        while let Some(message) = self.receive() {
            if let Message::Notification(notification) = message {
                last = Some(notification);
            }
        }
        last
    }
}

/// The peer as the speaker knows it. It keeps no session alive: that must not matter.
pub(super) fn peer() -> PeerConfig {
    let timers = Timers { hold_seconds: 180, keepalive_seconds: 60, connect_retry_seconds: 1 };
    PeerConfig { timers, ..harness::peer() }
}

fn open(router_id: &str) -> Message {
    Message::Open(Open {
        asn: Asn(ROUTER_ASN),
        hold_seconds: 180,
        router_id: router_id.parse::<Ipv4Addr>().unwrap(),
        capabilities: vec![
            Capability::MultiProtocol(Family::Ipv4Unicast.into()),
            Capability::MultiProtocol(Family::Ipv6Unicast.into()),
            Capability::FourOctetAs(Asn(ROUTER_ASN)),
        ],
    })
}

/// Runs a speaker with these peers while `part` runs, in a thread of its own at the router's end.
pub(super) fn against<T: Send>(
    peers: Vec<PeerConfig>,
    routes: Vec<Route>,
    part: impl FnOnce() -> T + Send,
) -> T {
    let cable = Cable::new();
    let namespace = cable.router.clone();
    thread::scope(|scope| {
        let part = scope.spawn(move || {
            enter(&namespace);
            part()
        });
        within(&cable.us, async {
            let speaker = spawn();
            speaker.set_routes(routes).await.unwrap();
            speaker.set_peers(peers).await.unwrap();
            // With it we listen: whoever connects then is known.
            speaker.set_global(global()).await.unwrap();
            // The other side's own deadlines end it.
            while !part.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            speaker.shutdown().await;
        });
        part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

pub(super) fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).unwrap().to_be_bytes();
    [&[0xFF; 16], &length[..], &[kind], body].concat()
}

/// Both sides dialled, and both connections got as far as OPEN: that of the higher identifier stays (RFC 4271
/// section 6.8).
#[test]
fn collision() {
    for (their_id, dialled_stays) in [("198.18.0.1", false), ("198.18.0.3", true)] {
        against(vec![peer()], Vec::new(), move || {
            let listener = TcpListener::bind((ROUTER, 179)).unwrap();
            let mut theirs = Raw::new(listener.accept().unwrap().0);
            let mut ours = Raw::dial();
            for raw in [&mut theirs, &mut ours] {
                assert!(matches!(raw.receive(), Some(Message::Open(_))));
            }
            theirs.send(&open(their_id));
            assert_eq!(theirs.receive(), Some(Message::Keepalive));
            ours.send(&open(their_id));
            let (mut stays, goes) = if dialled_stays { (ours, theirs) } else { (theirs, ours) };
            assert_eq!(goes.last_words(), Some(Reason::CONNECTION_COLLISION_RESOLUTION.into()));
            stays.send(&Message::Keepalive);
            let mut messages = std::iter::from_fn(|| stays.receive());
            assert!(messages.any(|message| message == Message::EndOfRib(Family::Ipv6Unicast)));
        });
    }
}

/// A peer that closes its session and dials again at once is a peer that came back, not one too many: the end of
/// the one connection counts before the other one. Against the daemon, whose threads may run in any order; the packets
/// must not, so they all leave from one CPU: each has a queue of its own, and a loaded one may be slow.
#[test]
fn closed_and_dialled_again() {
    let cable = Cable::new();
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"{US}:179\"], peers: [{{address: {ROUTER}, asn: {ROUTER_ASN}}}]}}"
    );
    let _daemon = launch(&cable, &config);
    enter(&cable.router);
    stay_on_one_cpu();
    for round in 0..200 {
        let mut raw = Raw::dial().establish();
        if round % 2 == 0 {
            raw.send(&Message::Notification(Reason::ADMINISTRATIVE_RESET.into()));
        }
        // To drop it is not enough: the child that another test makes holds it, too, until it is another program. The
        // speaker may have ended it already.
        let _: Result<_, _> = raw.stream.shutdown(Shutdown::Both);
    }
}

/// Packets of a thread that does not move are delivered in the order in which they were sent.
fn stay_on_one_cpu() {
    let this_thread = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_thread).unwrap();
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu).unwrap()).unwrap();
    let mut only = CpuSet::new();
    only.set(first).unwrap();
    sched_setaffinity(this_thread, &only).unwrap();
}

/// A peer that takes nothing costs no memory and no time of another one's.
#[test]
fn a_peer_that_does_not_read_delays_no_other() {
    const ROUTES: u32 = 200_000;
    let second = "198.18.0.9";
    let routes = (0..ROUTES).map(|index| Route {
        prefix: ipnet::Ipv4Net::new(Ipv4Addr::from_bits(0x0b00_0000 + index * 16), 28).unwrap().into(),
        attributes: RouteAttributes::default(),
        peers: None,
    });
    let routes: Vec<Route> = routes.collect();
    let cable = Cable::new();
    run("ip", &["-n", &cable.router, "address", "add", "198.18.0.9/24", "dev", "router0"]);
    let peers = vec![peer(), PeerConfig { address: second.parse().unwrap(), ..peer() }];
    let namespace = cable.router.clone();
    thread::scope(|scope| {
        let part = scope.spawn(move || {
            enter(&namespace);
            let deaf = Raw::dial().establish();
            let mut reads = Raw::new(dial_from(second)).establish();
            let mut count = 0;
            while count < ROUTES {
                match reads.receive().expect("the session stays") {
                    Message::Update(Update { announced: Some(announced), .. }) => {
                        count += announced
                            .reach
                            .iter()
                            .map(|reach| u32::try_from(reach.prefixes.len()).unwrap())
                            .sum::<u32>();
                    }
                    Message::Notification(notification) => panic!("{notification}"),
                    _ => {}
                }
            }
            // Still there, and still deaf.
            drop(deaf);
            count
        });
        within(&cable.us, async {
            let speaker = spawn();
            speaker.set_peers(peers).await.unwrap();
            speaker.set_global(global()).await.unwrap();
            wait_for("both sessions", || async {
                speaker.peers().await.iter().all(|peer| peer.state == "Established")
            })
            .await;
            let before = resident();
            speaker.set_routes(routes).await.unwrap();
            // The deaf one never is: the wait ends by itself.
            tokio::time::timeout(PATIENCE, speaker.flushed()).await.unwrap();
            while !part.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            let grown = resident().saturating_sub(before);
            // The routes themselves, not a megabyte of messages for the deaf one beside.
            assert!(grown < 300 << 20, "{grown} octets more");
            speaker.shutdown().await;
        });
        assert_eq!(part.join().unwrap(), ROUTES);
    });
}

/// Octets of memory in use by this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

fn dial_from(address: &str) -> TcpStream {
    let socket = socket(64);
    let local = SocketAddr::new(address.parse::<IpAddr>().unwrap(), 0);
    socket.bind(&local.into()).unwrap();
    socket.connect(&speaker()).unwrap();
    socket.into()
}

fn socket(ttl: u32) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_ttl_v4(ttl).unwrap();
    socket
}

fn speaker() -> SockAddr {
    SocketAddr::new(US.parse().unwrap(), 179).into()
}

/// A stranger gets nothing, not even an OPEN.
#[test]
fn strangers_are_turned_away() {
    let stranger = PeerConfig { address: "198.18.0.77".parse().unwrap(), ..peer() };
    against(vec![stranger], Vec::new(), || {
        let mut raw = Raw::dial();
        let mut octets = [0; 1];
        // End of stream, or a reset.
        assert!(!matches!(raw.stream.read(&mut octets), Ok(1)));
    });
    assert_ne!(OUR_ASN, ROUTER_ASN);
}

/// A peer with GTSM is heard with the highest TTL only.
#[test]
fn what_came_from_far_is_not_heard() {
    let guarded = PeerConfig { ttl_security_hops: Some(1), ..peer() };
    against(vec![guarded], Vec::new(), || {
        let mut raw = Raw::dial_with_ttl(255);
        assert!(matches!(raw.receive(), Some(Message::Open(_))));
        raw.stream.set_ttl(254).unwrap();
        raw.send(&open(ROUTER));
        wait_until("TCP repeats itself", || {
            run("ss", &["-Htino", "dport", "=", ":179"]).lines().any(|line| line.contains("retrans:"))
        });
        raw.stream.set_nonblocking(true).unwrap();
        assert!(raw.stream.read(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock));
        raw.stream.set_nonblocking(false).unwrap();
        raw.stream.set_ttl(255).unwrap();
        assert_eq!(raw.receive(), Some(Message::Keepalive));
    });
}

/// A handshake from further away than a peer with GTSM is a stranger's, whatever is said after it.
#[test]
fn handshakes_from_far_are_closed() {
    let guarded = PeerConfig { ttl_security_hops: Some(2), ..peer() };
    against(vec![guarded], Vec::new(), || {
        // Says that the speaker knows its peers by now.
        let near = Raw::dial_with_ttl(254).establish();
        let mut far = Raw::dial_with_ttl(253);
        // End of stream, or a reset.
        assert!(!matches!(far.stream.read(&mut [0]), Ok(1)));
        drop(near);
    });
}

/// What one external peer tells, octet by octet as it leaves to another one: our AS before a full segment, our
/// address as the next hop, without MED; unknown transitive attributes with Partial, others not at all.
#[test]
fn transit() {
    let second = "198.18.0.9";
    let cable = Cable::new();
    run("ip", &["-n", &cable.router, "address", "add", "198.18.0.9/24", "dev", "router0"]);
    let peers = vec![peer(), PeerConfig { address: second.parse().unwrap(), export_learned: true, ..peer() }];
    let namespace = cable.router.clone();
    let octets = |text: &str| -> Vec<u8> {
        let text: String = text.split_whitespace().collect();
        (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
    };
    let update = |attributes: &[u8]| {
        let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
        message(2, &[&[0, 0], &length[..], attributes, &[24, 203, 0, 113]].concat())
    };
    let full = "0000fde9".repeat(255);
    let told = format!(
        "4001 01 00 5002 03fe 02ff {full} 4003 04 c6120001 8004 04 00000007 4006 00 e007 08 0000fde9 c6120001 \
         c008 04 fde90001 c063 01 aa 8064 01 bb"
    );
    let passed_on = format!(
        "4001 01 00 5002 0404 0201 0000fdea 02ff {full} 4003 04 c6120002 4006 00 e007 08 0000fde9 c6120001 \
         c008 04 fde90001 e063 01 aa"
    );
    let (told, passed_on) = (update(&octets(&told)), update(&octets(&passed_on)));
    thread::scope(|scope| {
        let part = scope.spawn(move || {
            enter(&namespace);
            let mut one = Raw::dial().establish();
            let mut other = Raw::new(dial_from(second)).establish();
            one.stream.write_all(&told).unwrap();
            // End-of-RIB of both families comes before it, or after it.
            let heard = std::iter::from_fn(|| other.receive_octets()).find(|octets| octets.len() > 40);
            assert_eq!(heard, Some(passed_on));
            drop(one);
            let heard = std::iter::from_fn(|| other.receive_octets()).find(|octets| octets.len() == 27);
            assert_eq!(heard, Some(message(2, &[0, 4, 24, 203, 0, 113, 0, 0])));
        });
        within(&cable.us, async {
            let speaker = spawn();
            speaker.set_peers(peers).await.unwrap();
            speaker.set_global(global()).await.unwrap();
            while !part.is_finished() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            speaker.shutdown().await;
        });
        part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}
