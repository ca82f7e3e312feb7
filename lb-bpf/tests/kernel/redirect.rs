//! Containers as they come: behind veths that take nothing from XDP, neither GRO nor a program at their end, and with all
//! offloads. They are clients and backends alike; what XDP cannot send itself, TC does.
use super::{DEADLINE, held, install_resolved, ip, options};
use crate::{
    network::{self, Namespace, Network, run},
    stream::{self, Traffic},
    traffic,
};
use lb_bpf::{
    Datapath, Installed, Options, XdpMode,
    abi::{Config, Mode},
    service::{Desired, Endpoint, Frontend, Protocol, Rules, Scope, Service, ServiceKey, Target},
};
use socket2::{Domain, Protocol as Number, Socket, Type};
use std::{
    io::{self, Read, Write},
    mem,
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    panic::resume_unwind,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

const TIMEOUT: Duration = Duration::from_secs(30);
/// VIPs, and the backend behind them.
const VIPS: [&str; 2] = ["203.0.113.10", "2001:db8:ffff::10"];
const BACKENDS: [&str; 2] = ["10.1.0.2", "2001:db8:1::2"];
const STREAM: u16 = 80;
const DATAGRAMS: u16 = 9000;
/// Bytes of a connection, each way.
const BULK: usize = 8 << 20;

/// NAT to the backend, over TCP and UDP, in both families.
fn desired() -> Desired {
    let services = VIPS.into_iter().zip(BACKENDS).flat_map(|(vip, backend)| {
        [(Protocol::Tcp, STREAM), (Protocol::Udp, DATAGRAMS)]
            .map(|(protocol, port)| nat(vip, protocol, port, backend))
    });
    Desired { services: services.collect(), ..Desired::default() }
}

fn nat(vip: &str, protocol: Protocol, port: u16, backend: &str) -> (ServiceKey, Arc<Service>) {
    let target = Target { weight: 1, up: true, here: false };
    let service = Service {
        frontends: [Frontend { address: ip(vip), protocol, port, scope: Scope::All }].into(),
        mode: Mode::Nat,
        backends: [(Endpoint { address: ip(backend), port }, target)].into(),
        drain_seconds: 300,
        rules: Rules::default(),
    };
    (ServiceKey(format!("{vip} {port}").into()), Arc::new(service))
}

/// A backend behind `be0` that sends everything back, and a client (the peer) that knows the way to the VIPs.
fn backend(network: &Network) -> Namespace {
    let backend = Namespace::new();
    backend
        .plug(("be0", &["10.1.0.1/24", "2001:db8:1::1/64"]), ("eth0", &["10.1.0.2/24", "2001:db8:1::2/64"]));
    network.in_peer("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.1"]);
    network.in_peer("ip", &["route", "add", "2001:db8:ffff::/64", "via", "2001:db8::1"]);
    for address in BACKENDS {
        let (listener, socket) = backend.inside(|| {
            let at = |port| SocketAddr::new(ip(address), port);
            (TcpListener::bind(at(STREAM)).unwrap(), UdpSocket::bind(at(DATAGRAMS)).unwrap())
        });
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let mut back = stream.try_clone().unwrap();
                thread::spawn(move || {
                    let _ = io::copy(&mut stream, &mut back);
                    let _ = back.shutdown(std::net::Shutdown::Write);
                });
            }
        });
        thread::spawn(move || {
            let mut packet = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut packet) {
                let _ = socket.send_to(&packet[..length], from);
            }
        });
    }
    backend
}

/// Packets of the client come back from every VIP: datagrams of some lengths, and a connection that fills segments.
fn ask_all(network: &Network) {
    network.inside_peer(|| {
        for vip in VIPS {
            datagrams(SocketAddr::new(ip(vip), DATAGRAMS)).unwrap_or_else(|e| panic!("UDP, {vip}: {e}"));
            bulk(SocketAddr::new(ip(vip), STREAM)).unwrap_or_else(|e| panic!("TCP, {vip}: {e}"));
        }
    });
}

fn datagrams(vip: SocketAddr) -> io::Result<()> {
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let client = UdpSocket::bind(any)?;
    client.connect(vip)?;
    client.set_read_timeout(Some(TIMEOUT))?;
    for length in (1..1400).step_by(97) {
        let sent: Vec<u8> = (0..length).map(|at| (at + length) as u8).collect();
        client.send(&sent)?;
        let mut got = [0; 2048];
        let length = client.recv(&mut got)?;
        assert!(got[..length] == sent, "{length} bytes came back, not what was sent");
    }
    Ok(())
}

fn bulk(vip: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&vip, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let sent: Vec<u8> = (0..BULK as u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut writer = stream.try_clone()?;
    thread::scope(|scope| {
        let writing = scope.spawn(|| {
            writer.write_all(&sent)?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        let mut got = Vec::new();
        stream.read_to_end(&mut got)?;
        assert!(got == sent, "{} of {BULK} bytes came back", got.len());
        writing.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// What the veth says of frames that XDP redirected to it: those that it was given, and those of them that it dropped.
fn redirected(interface: &str) -> (u64, u64) {
    let statistics = run("ethtool", &["-S", interface]);
    let sum = |suffix: &str| {
        let values = statistics.lines().filter_map(|line| line.trim().split_once(": "));
        values
            .filter(|(name, _)| name.ends_with(suffix))
            .map(|(_, value)| value.parse::<u64>().unwrap())
            .sum()
    };
    (sum("_xdp_xmit"), sum("_xdp_xmit_errors"))
}

/// A datapath between the peer and the backend, with all that is wanted.
async fn open(network: &Network) -> (Datapath, Arc<Installed>) {
    let options = Options { interfaces: vec!["lb0".into(), "be0".into()], ..options(network) };
    let mut datapath = Datapath::open(options).await.unwrap();
    let installed = install_resolved(&mut datapath, &desired()).await;
    (datapath, installed)
}

/// Installs at every change, until the map of ports holds what it should.
async fn settle(datapath: &mut Datapath, interfaces: &[&str]) {
    let lines = interfaces.iter().map(|name| format!("port {}", index(name)));
    let wanted: Vec<String> = lines.collect();
    let settled = async {
        loop {
            datapath.install(&desired()).await.unwrap();
            let dump = held(datapath);
            if dump.lines().filter(|line| line.starts_with("port ")).eq(wanted.iter().map(String::as_str)) {
                return;
            }
            datapath.changed().await;
        }
    };
    tokio::time::timeout(DEADLINE, settled).await.expect("the ports are right in time");
}

fn index(interface: &str) -> u32 {
    nix::net::if_::if_nametoindex(interface).unwrap()
}

/// Whether XDP looks before it sends something back where it came from.
fn is_wary(datapath: &Datapath) -> bool {
    let dump = datapath.dump().unwrap();
    let flags = dump.lines().find_map(|line| line.strip_prefix("config flags=")).unwrap();
    flags.split(' ').next().unwrap().parse::<u32>().unwrap() & Config::WARY != 0
}

/// Packets that could not be handed over.
fn not_handed_over(datapath: &Datapath) -> u64 {
    datapath.counters().unwrap().verdicts["not_handed_over"].packets
}

#[test]
fn containers_as_they_come_are_backends_and_clients() {
    network::test(async |network| {
        let backend = backend(network);
        let (mut datapath, installed) = open(network).await;
        assert!(installed.interfaces.iter().all(|interface| interface.mode == XdpMode::Native));
        settle(&mut datapath, &[]).await;
        assert!(is_wary(&datapath));
        ask_all(network);
        assert_eq!([redirected("be0"), redirected("lb0")], [(0, 0); 2], "all by TC");

        // From XDP a packet goes without what its sender has left to the device.
        network.in_peer("ethtool", &["-K", "peer0", "tx", "off"]);
        backend.run("ethtool", &["-K", "eth0", "tx", "off", "gro", "on"]);
        settle(&mut datapath, &["be0"]).await;
        assert!(is_wary(&datapath), "because of lb0");
        ask_all(network);
        let (sent, lost) = redirected("be0");
        assert!(sent > 1000 && lost == 0, "XDP redirects requests: {sent}, {lost} lost");
        assert_eq!(redirected("lb0"), (0, 0), "but no answers");

        network.in_peer("ethtool", &["-K", "peer0", "gro", "on"]);
        settle(&mut datapath, &["lb0", "be0"]).await;
        assert!(!is_wary(&datapath));
        ask_all(network);
        let answers = redirected("lb0");
        assert!(answers.0 > 1000 && answers.1 == 0, "{answers:?}");

        backend.run("ethtool", &["-K", "eth0", "gro", "off"]);
        settle(&mut datapath, &["lb0"]).await;
        assert!(is_wary(&datapath));
        let before = redirected("be0");
        ask_all(network);
        assert_eq!(redirected("be0"), before, "by TC again");
        assert_eq!(not_handed_over(&datapath), 0);

        datapath.detach().await.unwrap();
        assert!(!network.pin_dir.exists(), "nothing is left");
    });
}

/// Who reads what passes an interface, as `tcpdump` does, shares the packets with the stack, and takes nothing from it.
#[test]
fn nothing_is_lost_where_somebody_looks_on() {
    network::test(async |network| {
        let _backend = backend(network);
        let (mut datapath, _) = open(network).await;
        settle(&mut datapath, &[]).await;
        let sockets = ["lb0", "be0"].map(|interface| packet_socket(interface).unwrap());
        ask_all(network);
        for socket in &sockets {
            receive(socket).expect("a packet was seen");
        }
        assert_eq!([redirected("be0"), redirected("lb0")], [(0, 0); 2], "all by TC");
        datapath.detach().await.unwrap();
    });
}

/// A backend behind a container that has two legs here: it routes what it is sent back to here, where the packet, which still
/// has its marker, is the stack's.
#[test]
fn what_is_routed_back_is_not_sent_again() {
    const BEYOND: &str = "10.9.9.9";
    network::test(async |network| {
        let container = Namespace::new();
        container.plug(("be0", &["10.1.0.1/24"]), ("eth0", &["10.1.0.2/24"]));
        container.plug(("be1", &["10.2.0.1/24"]), ("eth1", &["10.2.0.2/24"]));
        container.run("sysctl", &["-qw", "net.ipv4.ip_forward=1", "net.ipv4.conf.all.rp_filter=0"]);
        container.run("ip", &["route", "add", BEYOND, "via", "10.2.0.1"]);
        run("ip", &["route", "add", BEYOND, "via", "10.1.0.2"]);
        // What comes back from there is for this host.
        run("ip", &["rule", "add", "iif", "be1", "lookup", "100"]);
        run("ip", &["route", "add", "local", BEYOND, "dev", "lo", "table", "100"]);
        let settings = ["all.rp_filter=0", "be1.rp_filter=0", "be1.accept_local=1"];
        settings
            .iter()
            .for_each(|setting| drop(run("sysctl", &["-qw", &format!("net.ipv4.conf.{setting}")])));
        let server = UdpSocket::bind(("0.0.0.0", DATAGRAMS)).unwrap();
        server.set_read_timeout(Some(DEADLINE)).unwrap();

        let interfaces = ["lb0", "be0", "be1"].map(String::from).into();
        let mut datapath = Datapath::open(Options { interfaces, ..options(network) }).await.unwrap();
        let services = [nat(VIPS[0], Protocol::Udp, DATAGRAMS, BEYOND)].into_iter().collect();
        install_resolved(&mut datapath, &Desired { services, ..Desired::default() }).await;
        network.in_peer("ip", &["route", "add", VIPS[0], "via", "10.0.0.1"]);
        network.inside_peer(|| {
            let client = UdpSocket::bind("0.0.0.0:0").unwrap();
            client.send_to(b"there and back", (VIPS[0], DATAGRAMS)).unwrap();
        });
        let mut packet = [0; 64];
        let (length, _) = server.recv_from(&mut packet).expect("the packet ends its way here");
        assert_eq!(&packet[..length], b"there and back");
        assert_eq!(not_handed_over(&datapath), 0);
        datapath.detach().await.unwrap();
    });
}

/// The first to come is attached to TC, and stays so: answers to clients go there from XDP.
#[test]
fn answers_go_to_containers_that_tc_is_attached_to() {
    network::test(async |network| {
        let _backend = backend(network);
        let interfaces = (vec!["be0".into()], vec!["lb0".into()]);
        let options = Options { interfaces: interfaces.0, tc_interfaces: interfaces.1, ..options(network) };
        let mut datapath = Datapath::open(options).await.unwrap();
        install_resolved(&mut datapath, &desired()).await;
        ask_all(network);
        datapath.detach().await.unwrap();
    });
}

/// What XDP sends back through the interface where it came in is not lost either; neither is anything while a process
/// ends and the next one replaces its programs.
#[test]
fn nothing_is_lost_where_nobody_polls() {
    network::test(async |network| {
        traffic::servers(network);
        stream::serve_datagrams(network);
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        install_resolved(&mut datapath, &stream::desired()).await;
        let traffic = Traffic::start(network);
        traffic.go_on();
        drop(datapath);
        traffic.go_on();
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        datapath.install(&stream::desired()).await.unwrap();
        assert_eq!(datapath.operations(), 0, "the ports are as they were, too");
        traffic.go_on();
        traffic.stop();
        assert_eq!(not_handed_over(&datapath), 0);
        datapath.detach().await.unwrap();
        assert!(!network.pin_dir.exists(), "nothing is left");
    });
}

/// Answers leave with the VLAN tag that XDP has put on, which the kernel takes off again before TC sees them.
#[test]
fn vlan_tags_are_those_that_xdp_has_put_in() {
    network::test(async |network| {
        let _backend = backend(network);
        let (datapath, _) = open(network).await;
        let macs = [network.own_mac(), network.peer_mac()];
        let socket = network.inside_peer(|| packet_socket("peer0")).unwrap();
        for vlan in [None, Some(7)] {
            let frame = request(&macs, vlan);
            assert_eq!(socket.send(&frame).unwrap(), frame.len());
            let tags = answer(&socket).expect("an answer");
            assert_eq!(tags, vlan, "the answer leaves as the request came");
        }
        datapath.detach().await.unwrap();
    });
}

/// All that passes an interface of the calling thread's namespace, with what the kernel has beside packets.
fn packet_socket(interface: &str) -> io::Result<Socket> {
    const ALL: u16 = (libc::ETH_P_ALL as u16).to_be();
    let socket = Socket::new(Domain::from(libc::AF_PACKET), Type::RAW, Some(Number::from(i32::from(ALL))))?;
    // SAFETY: a struct of numbers, of which all zeros is a value.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    (address.sll_family, address.sll_protocol) = (libc::AF_PACKET as u16, ALL);
    address.sll_ifindex = index(interface) as i32;
    let on = 1_i32;
    let (fd, size) = (socket.as_raw_fd(), mem::size_of_val(&address) as u32);
    // SAFETY: both values are valid for the calls, which are told their sizes.
    let results = unsafe {
        [
            libc::bind(fd, (&raw const address).cast(), size),
            libc::setsockopt(fd, libc::SOL_PACKET, libc::PACKET_AUXDATA, (&raw const on).cast(), 4),
        ]
    };
    if results != [0, 0] {
        return Err(io::Error::last_os_error());
    }
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

/// A datagram to the IPv4 VIP. Nobody has the client's address: answers go where the request came from.
fn request(macs: &[String; 2], vlan: Option<u16>) -> Vec<u8> {
    let mac =
        |text: &str| text.split(':').map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect::<Vec<_>>();
    let mut frame = macs.each_ref().map(|text| mac(text)).concat();
    if let Some(vlan) = vlan {
        frame.extend([0x81, 0, (vlan >> 8) as u8, vlan as u8]);
    }
    let mut header = vec![0x45, 0, 0, 32, 0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 7, 7, 203, 0, 113, 10];
    let sum: u32 = header.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    header[10..12].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
    frame.extend([0x08, 0]);
    frame.extend(header);
    // Each its own flow: the way back is noted once a second.
    frame.extend((5000 + vlan.unwrap_or(0)).to_be_bytes());
    frame.extend(DATAGRAMS.to_be_bytes());
    // Length, no checksum, four bytes.
    frame.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    // As short as a frame may be.
    frame.resize(frame.len().max(60), 0);
    frame
}

/// Waits for the answer: its VLAN tag.
fn answer(socket: &Socket) -> io::Result<Option<u16>> {
    let deadline = Instant::now() + DEADLINE;
    while Instant::now() < deadline {
        let (frame, tag) = receive(socket)?;
        // The kernel takes the tag off before it shows a frame.
        if frame[12..14] == [0x08, 0] && frame[26..30] == [203, 0, 113, 10] && frame[23] == 17 {
            assert_eq!(frame[42..46], [1, 2, 3, 4]);
            return Ok(tag);
        }
    }
    Err(io::ErrorKind::TimedOut.into())
}

/// One frame, and the VLAN tag beside it.
fn receive(socket: &Socket) -> io::Result<(Vec<u8>, Option<u16>)> {
    let (mut frame, mut control) = (vec![0_u8; 2048], [0_u64; 16]);
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    // SAFETY: a struct of numbers and pointers, of which all zeros is a value.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), mem::size_of_val(&control));
    // SAFETY: all that the message points to is valid for the call, which is told the sizes.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).map_err(|_| io::Error::last_os_error())?;
    frame.truncate(length);
    let mut tag = None;
    // SAFETY: the kernel has written the control messages, and says how long they are.
    unsafe {
        let mut at = libc::CMSG_FIRSTHDR(&raw const message);
        while !at.is_null() {
            if ((*at).cmsg_level, (*at).cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA) {
                let data = libc::CMSG_DATA(at).cast::<libc::tpacket_auxdata>().read_unaligned();
                tag = (data.tp_status & libc::TP_STATUS_VLAN_VALID != 0).then_some(data.tp_vlan_tci);
            }
            at = libc::CMSG_NXTHDR(&raw const message, at);
        }
    }
    Ok((frame, tag))
}
