//! Traffic that goes on while something is done to the datapath: every packet waits for the one before, so not one can be
//! lost unseen. All of it is between the peer and itself, through `lb0`.
use super::{DEADLINE, ip, traffic};
use crate::network::Network;
use lb_bpf::{
    abi::Mode,
    service::{Desired, Endpoint, Frontend, Protocol, Rules, Scope, Service, ServiceKey, Target},
};
use socket2::{Domain, Socket, Type};
use std::{
    io::{self, Read},
    net::{TcpStream, UdpSocket},
    panic::resume_unwind,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// A packet that took longer is lost; so is a connection.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that are there from the begin on.
const CONNECTIONS: usize = 8;

/// Four streams: packets through a tunnel; a UDP flow of a NAT service and back; old connections; new connections.
pub(crate) struct Traffic {
    stop: Arc<AtomicBool>,
    streams: Vec<(Arc<AtomicU64>, JoinHandle<()>)>,
}

/// The services that the streams go to.
pub(crate) fn desired() -> Desired {
    let services = [
        ("tunnel", Mode::Ipip, Protocol::Udp, "203.0.113.20", 9001, &["10.0.0.3"][..]),
        ("datagrams", Mode::Nat, Protocol::Udp, "203.0.113.10", 9000, &["10.0.0.3"]),
        ("connections", Mode::Nat, Protocol::Tcp, "203.0.113.10", 80, &["10.0.0.2", "10.0.0.3"]),
    ];
    let services = services.map(|(name, mode, protocol, vip, port, backends)| {
        let target = Target { weight: 1, up: true, here: false };
        let backends = backends.iter().map(|b| (Endpoint { address: ip(b), port }, target)).collect();
        let frontends = [Frontend { address: ip(vip), protocol, port, scope: Scope::All }].into();
        let rules = Rules::default();
        let service = Service { frontends, mode, backends, drain_seconds: 300, rules };
        (ServiceKey(name.into()), Arc::new(service))
    });
    Desired { services: services.into_iter().collect(), ..Desired::default() }
}

/// Servers for the streams, and a peer that takes what XDP sends back.
pub(crate) fn serve(network: &Network) -> aya::Ebpf {
    serve_datagrams(network);
    traffic::serve_both(network)
}

/// The server for the UDP flow.
pub(crate) fn serve_datagrams(network: &Network) {
    let server = network.inside_peer(|| UdpSocket::bind("10.0.0.3:9000").unwrap());
    thread::spawn(move || {
        let mut packet = [0; 64];
        while let Ok((length, client)) = server.recv_from(&mut packet) {
            let _ = server.send_to(&packet[..length], client);
        }
    });
}

impl Traffic {
    pub(crate) fn start(network: &Network) -> Self {
        let mut traffic = Traffic { stop: Arc::default(), streams: Vec::new() };
        let mut tunnel = Tunnel::new(network, "203.0.113.20:9001");
        traffic.run("tunnel", move || tunnel.send());

        let client = client(network, "203.0.113.10:9000");
        let mut sent = 0_u64;
        traffic.run("datagrams", move || {
            sent += 1;
            client.send(&sent.to_be_bytes())?;
            let mut packet = [0; 64];
            let length = client.recv(&mut packet)?;
            same(&packet[..length], &sent.to_be_bytes())
        });

        let mut connections = traffic::connect(network, CONNECTIONS);
        traffic.run("connections", move || connections.iter_mut().try_for_each(ask));

        let namespace = network.peer_namespace();
        let mut is_inside = false;
        traffic.run("new connections", move || {
            if !std::mem::replace(&mut is_inside, true) {
                nix::sched::setns(&namespace, nix::sched::CloneFlags::CLONE_NEWNET)?;
            }
            let mut connection = traffic::try_connect()?;
            (0..100).try_for_each(|_| ask(&mut connection))
        });
        traffic
    }

    /// Returns when every stream has gone on for some rounds more.
    pub(crate) fn go_on(&self) {
        let rounds = |(rounds, _): &(Arc<AtomicU64>, _)| rounds.load(Ordering::Relaxed);
        let before: Vec<u64> = self.streams.iter().map(rounds).collect();
        let deadline = Instant::now() + DEADLINE;
        while self.streams.iter().zip(&before).any(|(stream, before)| rounds(stream) < before + 20) {
            assert!(self.streams.iter().all(|(_, thread)| !thread.is_finished()), "all streams go on");
            assert!(Instant::now() < deadline, "all streams go on");
            thread::yield_now();
        }
    }

    /// Ends the streams; how many rounds each had. Panics if one has lost something.
    pub(crate) fn stop(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let end = |(rounds, thread): (Arc<AtomicU64>, JoinHandle<()>)| {
            thread.join().unwrap_or_else(|panic| resume_unwind(panic));
            rounds.load(Ordering::Relaxed)
        };
        self.streams.into_iter().map(end).collect()
    }

    fn run(&mut self, name: &'static str, mut round: impl FnMut() -> io::Result<()> + Send + 'static) {
        let rounds = Arc::<AtomicU64>::default();
        let (stop, count) = (Arc::clone(&self.stop), Arc::clone(&rounds));
        let run = move || {
            while !stop.load(Ordering::Relaxed) {
                let result = round();
                let before = count.fetch_add(1, Ordering::Relaxed);
                result.unwrap_or_else(|error| panic!("{name}: after {before} rounds: {error}"));
            }
        };
        self.streams.push((rounds, thread::spawn(run)));
    }
}

/// Packets to a VIP that the backend, which is in the peer, gets in IPIP.
pub(crate) struct Tunnel {
    client: UdpSocket,
    backend: Socket,
    sent: u64,
}

impl Tunnel {
    /// From the peer.
    pub(crate) fn new(network: &Network, vip: &str) -> Self {
        Tunnel::from(network, client(network, vip))
    }

    /// From this client, which is connected to the VIP.
    pub(crate) fn from(network: &Network, client: UdpSocket) -> Self {
        // The kernel gives it only packets whose outer header is right.
        let backend = network.inside_peer(|| Socket::new(Domain::IPV4, Type::RAW, Some(4.into())).unwrap());
        backend.set_read_timeout(Some(TIMEOUT)).unwrap();
        Tunnel { client, backend, sent: 0 }
    }

    /// Sends one packet, and has it in the end.
    pub(crate) fn send(&mut self) -> io::Result<()> {
        self.sent += 1;
        self.client.send(&self.sent.to_be_bytes())?;
        let mut packet = [0; 128];
        let length = self.backend.read(&mut packet)?;
        // Two IPv4 headers, that of UDP, and what was sent.
        same(&packet[..length][48..], &self.sent.to_be_bytes())
    }
}

fn client(network: &Network, vip: &str) -> UdpSocket {
    let client = network.inside_peer(|| UdpSocket::bind("10.0.0.2:0").unwrap());
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    client.connect(vip).unwrap();
    client
}

fn ask((connection, server): &mut (TcpStream, u8)) -> io::Result<()> {
    same(&[traffic::ask(connection)?], &[*server])
}

fn same(got: &[u8], sent: &[u8]) -> io::Result<()> {
    if got == sent { Ok(()) } else { Err(io::Error::other(format!("{got:?}, not {sent:?}"))) }
}
