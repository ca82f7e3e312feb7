//! Connections through the datapath: the peer has the client and two servers, the host balances on one interface.
use super::{held, install_resolved, ip, options, service};
use crate::network::{self, Network};
use aya::{
    Ebpf, EbpfLoader,
    programs::{Xdp, XdpMode},
};
use lb_bpf::{
    Datapath, OBJECT,
    abi::{Mode, program},
    service::{Desired, Endpoint, ServiceKey},
};
use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

const TIMEOUT: Duration = Duration::from_secs(30);

/// The other end of a veth takes frames from XDP if it has a program, too.
pub(crate) fn pass_in_peer(network: &Network) -> Ebpf {
    network.inside_peer(|| {
        let mut object = EbpfLoader::new().load(OBJECT).unwrap();
        let pass: &mut Xdp = object.program_mut(program::PASS).unwrap().try_into().unwrap();
        pass.load().unwrap();
        pass.attach("peer0", XdpMode::Driver).unwrap();
        object
    })
}

/// Answers every byte with the last byte of its own address, for ever.
fn serve(network: &Network, address: IpAddr) {
    let listener = network.inside_peer(|| TcpListener::bind((address, 80)).unwrap());
    let IpAddr::V4(v4) = address else { panic!("IPv4") };
    thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&[v4.octets()[3]]).is_ok() {}
            });
        }
    });
}

/// Two servers in the peer, 10.0.0.2 and 10.0.0.3, and a way to VIPs.
pub(crate) fn servers(network: &Network) {
    network.in_peer("ip", &["route", "add", "203.0.113.0/24", "via", "10.0.0.1"]);
    for server in ["10.0.0.2", "10.0.0.3"] {
        serve(network, ip(server));
    }
}

/// The same, and a peer that takes what XDP sends back.
pub(crate) fn serve_both(network: &Network) -> Ebpf {
    network.in_peer("ethtool", &["-K", "peer0", "tx", "off"]);
    servers(network);
    pass_in_peer(network)
}

/// Which server answers.
pub(crate) fn ask(stream: &mut TcpStream) -> std::io::Result<u8> {
    stream.write_all(&[0])?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    Ok(byte[0])
}

/// A connection from the namespace of this thread, and which server answers.
pub(crate) fn try_connect() -> std::io::Result<(TcpStream, u8)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip("203.0.113.10"), 80), TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let server = ask(&mut stream)?;
    Ok((stream, server))
}

pub(crate) fn connect(network: &Network, count: usize) -> Vec<(TcpStream, u8)> {
    network.inside_peer(|| (0..count).map(|_| try_connect().unwrap()).collect())
}

fn weights(weights: [u16; 2]) -> Desired {
    let mut web = service("203.0.113.10", 80, Mode::Nat, &["10.0.0.2", "10.0.0.3"]);
    web.drain_seconds = 2;
    for (target, weight) in web.backends.values_mut().zip(weights) {
        target.weight = weight;
    }
    super::desired(&[("web", web)])
}

#[test]
fn connections_outlive_a_drain_and_the_process_and_end_with_the_drain() {
    network::test(async |network| {
        let _pass = serve_both(network);

        let mut datapath = Datapath::open(options(network)).await.unwrap();
        install_resolved(&mut datapath, &weights([1, 1])).await;
        let mut before = connect(network, 40);
        let to_second = before.iter().filter(|(_, server)| *server == 3).count();
        assert!((5..36).contains(&to_second), "both servers have connections: {to_second} of 40");

        drop(datapath);
        for (stream, server) in &mut before {
            assert_eq!(ask(stream).unwrap(), *server, "nobody runs the datapath, and it goes on");
        }
        let mut datapath = Datapath::open(options(network)).await.unwrap();
        datapath.install(&weights([1, 0])).await.unwrap();
        datapath.prune().await.unwrap();
        for (stream, server) in &mut before {
            assert_eq!(ask(stream).unwrap(), *server, "the second server drains");
        }
        assert!(connect(network, 20).iter().all(|(_, server)| *server == 2), "no new ones for it");

        let counters = datapath.counters().unwrap();
        let flows: BTreeMap<Endpoint, u64> =
            counters.services[&ServiceKey("web".into())].iter().map(|(e, c)| (*e, c.flows)).collect();
        let at = |address| flows[&Endpoint { address: ip(address), port: 80 }];
        assert_eq!((at("10.0.0.2"), at("10.0.0.3")), (60 - to_second as u64, to_second as u64));

        let second = held(&datapath).lines().find_map(|line| {
            let mut words = line.split(' ');
            (words.next() == Some("backend") && line.contains(" 10.0.0.3:80 "))
                .then(|| words.next().unwrap().to_owned())
        });
        let second = format!("backend={} ", second.unwrap());
        let drained = async {
            loop {
                datapath.sweep().unwrap();
                let dump = held(&datapath);
                if !dump.lines().any(|line| line.starts_with("flow ") && line.contains(&second)) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(super::DEADLINE, drained).await.expect("the drain ends");
        for (stream, server) in &mut before {
            assert_eq!(ask(stream).ok(), (*server == 2).then_some(2), "cut if it was the drained one's");
        }
        datapath.detach().await.unwrap();
    });
}
