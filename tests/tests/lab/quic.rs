//! QUIC, as far as a load balancer sees it: packets whose connection ID names a backend reach that backend, from whatever port
//! they come, while the backends change and the process dies.
use lab::{Error, Lab, Routing, WEB, address, wait_until};
use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

const PORT: u16 = 7443;
/// Packets to each backend in each family after each change, each from a port of its own.
const COUNT: u32 = 24;

#[test]
fn packets_reach_the_server_that_their_connection_id_names() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    for instance in &lab.instances {
        instance.write("quic.yaml", &service(["", "", ""], 300))?;
    }
    lab.start_fairlead()?;
    let servers = [Servers::listen(&lab, address(WEB[0]))?, Servers::listen(&lab, address(WEB[1]))?];
    let mut sent = 0;
    let mut all_reach = |lab: &Lab| -> Result<(), Error> {
        for servers in &servers {
            for backend in 0..3 {
                for _ in 0..COUNT {
                    sent += 1;
                    assert_eq!(servers.send(lab, 0x43, backend, sent)?, backend, "to {}", servers.vip);
                }
            }
        }
        Ok(())
    };
    all_reach(&lab)?;
    // b2 has more than its share, then no weight, then it is removed; it comes back, and b1 goes.
    for ends in [["", ", weight: 5", ""], ["", ", weight: 0", ""], ["", "-", ""], ["", "", ""], ["-", "", ""]]
    {
        change(&mut lab, ends, 300)?;
        all_reach(&lab)?;
        lab.instances[0].kill();
        all_reach(&lab)?;
        lab.instances[0].start()?;
        wait_until("lb1 is ready", || Ok(lab.instances[0].status()?.is_some_and(|status| status.ready)))?;
        all_reach(&lab)?;
    }
    println!("{sent} packets, each at its server");
    for servers in &servers {
        // Initial packets go by the table: not to b1.
        let mut reached = [0; 3];
        for number in 0..COUNT {
            reached[servers.send(&lab, 0xc3, 0, number)?] += 1;
        }
        assert!(reached[0] == 0 && reached[1] > 0 && reached[2] > 0, "{reached:?}");
    }
    // The drain ends.
    change(&mut lab, ["-", "", ""], 0)?;
    for servers in &servers {
        wait_until("b1 has lost its server ID", || Ok(servers.send(&lab, 0x43, 0, 0)? != 0))?;
        assert_eq!(servers.send(&lab, 0x43, 2, 0)?, 2);
    }
    Ok(())
}

/// The service; what the entries of b1, b2 and b3 end with, or `-`: it is not there.
fn service(ends: [&str; 3], drain_seconds: u32) -> String {
    let mut backends = String::new();
    for (number, end) in (11..).zip(ends).filter(|(_, end)| *end != "-") {
        for address in [format!("10.1.0.{number}"), format!("\"fd00:20::{number}\"")] {
            backends.push_str(&format!("\n  - {{address: {address}{end}}}"));
        }
    }
    let [v4, v6] = WEB;
    format!(
        "kind: LoadBalancer\nmetadata: {{name: quic}}\nspec:\n  addresses: [{v4}, \"{v6}\"]\n  ports: [{{port: {PORT}, \
         protocol: UDP}}]\n  policy: {{drainSeconds: {drain_seconds}, forwarding: {{mode: IPIP}}, quic: \
         {{serverIDBytes: 2}}}}\n  backends:{backends}\n"
    )
}

/// Changes the service at lb1, and waits until it is so.
fn change(lab: &mut Lab, ends: [&str; 3], drain_seconds: u32) -> Result<(), Error> {
    lab.instances[0].write("quic.yaml", &service(ends, drain_seconds))?;
    let weights = ends.map(|end| match end {
        "" => 1.0,
        "-" => 0.0,
        end => end.trim_start_matches(", weight: ").parse().unwrap_or(0.0),
    });
    let total: f64 = weights.iter().sum();
    lab.wait_services(0, |rows| {
        let mut rows = rows.iter().filter(|row| row.name.starts_with("LoadBalancer/quic/"));
        rows.all(|row| {
            let share = |number: usize| {
                let its =
                    row.backends.iter().filter(|b| b.address.to_string().ends_with(&number.to_string()));
                f64::from(its.map(|b| b.slots).sum::<u32>()) / f64::from(row.table_size)
            };
            row.programmed && (0..3).all(|n| (share(11 + n) - weights[n] / total).abs() < 0.02)
        })
    })?;
    Ok(())
}

/// A socket for a VIP on each backend.
struct Servers {
    vip: IpAddr,
    sockets: Vec<UdpSocket>,
}

impl Servers {
    /// Takes the VIP to be on the backends already, or soon.
    fn listen(lab: &Lab, vip: IpAddr) -> Result<Self, Error> {
        let mut sockets = Vec::new();
        for backend in &lab.topology.backends {
            let listen = || backend.namespace.enter(|| UdpSocket::bind((vip, PORT)));
            wait_until("the VIP is on the backend", || match listen()? {
                Ok(socket) => {
                    socket.set_nonblocking(true)?;
                    sockets.push(socket);
                    Ok(true)
                }
                Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Ok(false),
                Err(error) => Err(error.into()),
            })?;
        }
        Ok(Servers { vip, sockets })
    }

    /// Sends a packet from a new port whose connection ID names a backend, with this first byte; gives the backend that got it.
    fn send(&self, lab: &Lab, first: u8, backend: usize, number: u32) -> Result<usize, Error> {
        let packet = packet(first, server_id(backend, self.vip.is_ipv4()), number);
        let any: IpAddr =
            if self.vip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let client = lab.topology.client.namespace.enter(|| UdpSocket::bind((any, 0)))??;
        client.send_to(&packet, SocketAddr::new(self.vip, PORT))?;
        let mut reached = None;
        wait_until("a backend gets the packet", || {
            let mut buffer = [0; 128];
            for (index, socket) in self.sockets.iter().enumerate() {
                match socket.recv(&mut buffer) {
                    Ok(length) => {
                        assert_eq!(buffer[..length], packet, "as it was sent");
                        reached = Some(index);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(reached.is_some())
        })?;
        reached.ok_or_else(|| "nobody".into())
    }
}

/// The last two bytes of a backend's address.
fn server_id(backend: usize, is_v4: bool) -> [u8; 2] {
    let text = if is_v4 { format!("10.1.0.{}", 11 + backend) } else { format!("fd00:20::{}", 11 + backend) };
    match address(&text) {
        IpAddr::V4(address) => [address.octets()[2], address.octets()[3]],
        IpAddr::V6(address) => [address.octets()[14], address.octets()[15]],
    }
}

/// A short header, or a long one of version 1.
fn packet(first: u8, [high, low]: [u8; 2], number: u32) -> Vec<u8> {
    let id = [&[0x2b, high, low], &number.to_be_bytes()[..]].concat();
    match first & 0x80 {
        0 => [&[first][..], &id, b"protected"].concat(),
        _ => [&[first, 0, 0, 0, 1, id.len() as u8][..], &id, b"\0protected"].concat(),
    }
}
