//! ICMP through the lab: pings to VIPs, and paths that are too narrow for a tunnel header around a full packet.
use crate::restart::{add_echo, gue, ipip, nat};
use lab::{API, Error, Lab, Routing, WEB, address, wait_until};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    process::Command,
    thread,
    time::Duration,
};

/// Bytes that are sent, and come back.
const BODY: usize = 4 << 20;

/// Pings an address from the client; whether all three were answered by the first hop behind the router.
fn ping(lab: &Lab, vip: &str) -> bool {
    let mut command = Command::new("ping");
    command.args(["-n", "-c", "3", "-i", "0.2", "-W", "1", vip]);
    let output = lab.topology.client.namespace.output(command);
    output.is_ok_and(|text| text.contains(" 3 received") && text.matches("ttl=63").count() == 3)
}

#[test]
fn vips_answer_pings_through_the_router() -> Result<(), Error> {
    let mut lab = Lab::start(Routing::Frr)?;
    for vip in WEB.iter().chain(&API) {
        assert!(ping(&lab, vip), "{vip}");
    }
    // Nobody needs the process for that.
    lab.instances.iter_mut().for_each(|instance| instance.kill());
    lab.topology.router.namespace.ip(&format!("route replace {} via {}", WEB[0], lab.balancer(0).ipv4))?;
    assert!(ping(&lab, WEB[0]));
    Ok(())
}

#[test]
fn a_vip_that_is_gone_answers_no_ping() -> Result<(), Error> {
    let lab = Lab::start(Routing::Static)?;
    for vip in WEB {
        wait_until("the VIP answers", || Ok(ping(&lab, vip)))?;
    }
    lab.instances[0].delete("web.yaml")?;
    for vip in WEB {
        wait_until("the VIP is silent", || Ok(!ping(&lab, vip)))?;
    }
    for vip in API {
        assert!(ping(&lab, vip), "{vip}");
    }
    Ok(())
}

/// Sends a large body to an echo from the client and compares what comes back.
fn echo_body(lab: &Lab, target: SocketAddr) -> Result<(), Error> {
    let body: Vec<u8> = (0..BODY).map(|n| ((n * 31) >> 3) as u8).collect();
    let exchange = move || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&target, Duration::from_secs(30))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_write_timeout(Some(Duration::from_secs(30)))?;
        let mut sender = stream.try_clone()?;
        let sent = body.clone();
        let sending = thread::spawn(move || sender.write_all(&sent));
        let mut back = vec![0; body.len()];
        stream.read_exact(&mut back)?;
        sending.join().map_err(|_| std::io::Error::other("the sender panicked"))??;
        Ok(back == body)
    };
    match lab.topology.client.namespace.enter(exchange)? {
        Ok(true) => Ok(()),
        Ok(false) => Err(format!("{target}: other bytes came back").into()),
        Err(error) => Err(format!("{target}: {error}").into()),
    }
}

/// The links of the load balancers carry 1500 bytes as the client's does: a full packet does not fit into a tunnel until
/// the client has been told.
#[test]
fn a_large_body_goes_through_tunnels_of_the_clients_mtu() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    for balancer in &lab.topology.balancers {
        balancer.namespace.ip("link set eth0 mtu 1500")?;
        lab.topology.router.namespace.ip(&format!("link set {} mtu 1500", balancer.name))?;
    }
    add_echo(&lab)?;
    lab.start_fairlead()?;
    for target in [ipip(), nat()].concat() {
        wait_until("the echo answers", || Ok(echo_body(&lab, target).is_ok()))
            .map_err(|error| format!("{error}: {:?}", echo_body(&lab, target)))?;
    }
    // That the client was told is in its kernel.
    for vip in WEB.map(address) {
        let route = lab.topology.client.namespace.ip_json(&["route", "get", &vip.to_string()])?;
        let mtu = &route[0]["metrics"][0]["mtu"];
        assert_eq!(mtu.as_u64(), Some(if vip.is_ipv4() { 1480 } else { 1460 }), "{vip}: {route}");
    }
    Ok(())
}

/// The link that is too narrow for full packets in a tunnel is behind the router: its ICMP errors are about packets of
/// the load balancer.
#[test]
fn a_large_body_goes_through_tunnels_over_a_narrow_link_behind_a_router() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    lab.topology.router.namespace.ip("link set back mtu 1500")?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    for (targets, least) in [(ipip(), [1480, 1460]), (gue(), [1472, 1452])] {
        for (target, least) in targets.into_iter().zip(least) {
            wait_until("the echo answers", || Ok(echo_body(&lab, target).is_ok()))?;
            let route = lab.topology.client.namespace.ip_json(&["route", "get", &target.ip().to_string()])?;
            assert_eq!(route[0]["metrics"][0]["mtu"].as_u64(), Some(least), "{target}: {route}");
        }
    }
    Ok(())
}

/// What XDP cannot put together again is not answered, and counted as what it is.
#[test]
fn fragmented_pings_are_dropped_and_counted() -> Result<(), Error> {
    let lab = Lab::start(Routing::Static)?;
    for vip in WEB {
        wait_until("the VIP answers", || Ok(ping(&lab, vip)))?;
        let before = fragments(&lab)?;
        let mut command = Command::new("ping");
        command.args(["-n", "-c", "2", "-i", "0.2", "-W", "1", "-s", "3000", vip]);
        assert!(lab.topology.client.namespace.output(command).is_err(), "{vip} has answered");
        wait_until("all fragments are counted", || Ok(fragments(&lab)? >= before + 6))?;
    }
    Ok(())
}

/// How many packets lb1 has dropped with the verdict `fragment`.
fn fragments(lab: &Lab) -> Result<u64, Error> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "http://127.0.0.1:9617/metrics"]);
    let text = lab.balancer(0).namespace.output(command)?;
    let mut lines = text.lines().filter(|line| line.starts_with("fairlead_packets_total{"));
    let line = lines.find(|line| line.contains("\"fragment\""));
    let count = line.and_then(|line| line.rsplit(' ').next()).unwrap_or("0");
    Ok(count.parse()?)
}
