//! More clients than the table of flows has room for.
use super::{DEADLINE, SIZES, install_resolved, options, service};
use crate::{
    network::{self, Network},
    traffic::{ask, connect, serve_both},
};
use lb_bpf::{Datapath, Options, Sizes, abi::Mode};
use socket2::{Domain, SockAddr, Socket, Type};
use std::{
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

/// Room for so many flows.
const FLOWS: u32 = 1024;
/// SYNs in a burst: alone they fill the table.
const BURST: u32 = 4 * FLOWS;
const BURSTS: u32 = 10;

/// SYNs of made-up clients, each from another one. Their checksum is wrong: no backend answers them.
struct Flood {
    socket: Socket,
    vip: SocketAddr,
    sent: u32,
}

impl Flood {
    fn new(network: &Network, vip: &str) -> Self {
        // IPPROTO_RAW: the IP header is ours.
        let raw = || Socket::new(Domain::IPV4, Type::RAW, Some(255.into())).unwrap();
        Flood { socket: network.inside_peer(raw), vip: vip.parse().unwrap(), sent: 0 }
    }

    fn burst(&mut self) {
        let SocketAddr::V4(vip) = self.vip else { panic!("IPv4") };
        for _ in 0..BURST {
            self.sent += 1;
            let source = Ipv4Addr::from_bits(Ipv4Addr::new(100, 64, 0, 0).to_bits() + self.sent);
            let mut packet = vec![0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0];
            packet.extend(source.octets());
            packet.extend(vip.ip().octets());
            packet.extend(40_000_u16.to_be_bytes());
            packet.extend(vip.port().to_be_bytes());
            // Sequence and acknowledgement numbers; 20 bytes of header, SYN; window, checksum, urgent pointer.
            packet.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
            self.socket.send_to(&packet, &SockAddr::from(self.vip)).unwrap();
        }
    }
}

/// Lines of this kind in the dump.
fn entries(datapath: &Datapath, kind: &str) -> usize {
    datapath.dump().unwrap().lines().filter(|line| line.starts_with(kind)).count()
}

#[test]
fn a_full_table_of_flows_breaks_no_connection_and_grows_no_further() {
    network::test(async |network| {
        let _pass = serve_both(network);
        let options = Options { sizes: Sizes { flows: FLOWS, ..SIZES }, ..options(network) };
        let mut datapath = Datapath::open(options).await.unwrap();
        let web = service("203.0.113.10", 80, Mode::Nat, &["10.0.0.2", "10.0.0.3"]);
        install_resolved(&mut datapath, &super::desired(&[("web", web)])).await;
        let mut connections = connect(network, 40);
        let mut flood = Flood::new(network, "203.0.113.10:80");
        for burst in 1..=BURSTS {
            flood.burst();
            for (stream, server) in &mut connections {
                assert_eq!(ask(stream).unwrap(), *server, "after burst {burst}");
            }
            for entry in ["flow ", "reverse "] {
                let count = entries(&datapath, entry);
                assert!(count <= FLOWS as usize, "{count} entries {entry}");
            }
            datapath.sweep().unwrap();
        }
        let full = datapath.counters().unwrap().verdicts["flow_table_full"].packets;
        assert!(full > 0, "the table was never full");

        // What is half-open is swept some seconds after: there is room again, and the others are there still.
        let emptied = async {
            while entries(&datapath, "flow ") > FLOWS as usize / 2 {
                datapath.sweep().unwrap();
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(DEADLINE, emptied).await.expect("room for new flows");
        connections.extend(connect(network, 10));
        for (stream, server) in &mut connections {
            assert_eq!(ask(stream).unwrap(), *server);
        }
        datapath.detach().await.unwrap();
    });
}
