//! The process dies and comes back, and nobody notices.
use lab::{API, Error, Lab, Routing, WEB, address, echo, failures, wait_until, watch};
use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

/// Echo behind the modes that work across a router, beside the services of the examples. The VIPs are those of `web` and
/// `api`.
const ECHO: &str = r#"
apiVersion: fairlead.dev/v1alpha1
kind: LoadBalancer
metadata: {name: echo-ipip}
spec:
  addresses: [203.0.113.10, "2001:db8:1::10"]
  ports: [{port: 7007}]
  backends: [{address: 10.1.0.11}, {address: 10.1.0.12}, {address: 10.1.0.13}, {address: "fd00:20::11"}, {address: "fd00:20::12"}, {address: "fd00:20::13"}]
  policy: {forwarding: {mode: IPIP}}
---
apiVersion: fairlead.dev/v1alpha1
kind: LoadBalancer
metadata: {name: echo-gue}
spec:
  addresses: [203.0.113.10, "2001:db8:1::10"]
  ports: [{port: 7009}]
  backends: [{address: 10.1.0.11}, {address: 10.1.0.12}, {address: 10.1.0.13}, {address: "fd00:20::11"}, {address: "fd00:20::12"}, {address: "fd00:20::13"}]
  policy: {forwarding: {mode: GUE}}
---
apiVersion: fairlead.dev/v1alpha1
kind: LoadBalancer
metadata: {name: echo-nat}
spec:
  addresses: [203.0.113.20, "2001:db8:1::20"]
  ports: [{port: 7008, targetPort: 7007}]
  backends: [{address: 10.1.0.11}, {address: 10.1.0.12}, {address: 10.1.0.13}, {address: "fd00:20::11"}, {address: "fd00:20::12"}, {address: "fd00:20::13"}]
"#;

/// Adds the echo services, before `fairlead` starts.
pub(crate) fn add_echo(lab: &Lab) -> Result<(), Error> {
    for backend in &lab.topology.backends {
        // Nothing is translated in a tunnel.
        for port in [7007, 7009] {
            echo::serve(&backend.namespace, port);
        }
    }
    for instance in &lab.instances {
        instance.write("echo.yaml", ECHO)?;
    }
    Ok(())
}

/// Addresses of b2, on its own segment and on that of the load balancers, as they are written in the services of the echo.
const B2: [&str; 4] = ["10.1.0.12", "\"fd00:20::12\"", "10.0.0.12", "\"fd00:10::12\""];

/// The services of the echo as they are without b2.
pub(crate) fn without_b2(echo: &str) -> String {
    B2.iter().fold(echo.to_owned(), |echo, b2| echo.replace(&format!(", {{address: {b2}}}"), ""))
}

/// The services of the echo with another weight of b2.
pub(crate) fn weigh_b2(echo: &str, weight: u32) -> String {
    B2.iter().fold(echo.to_owned(), |echo, b2| {
        echo.replace(&format!("{{address: {b2}}}"), &format!("{{address: {b2}, weight: {weight}}}"))
    })
}

/// Whether a backend of the echo is b2.
pub(crate) fn is_b2(address: IpAddr) -> bool {
    B2.iter().any(|b2| b2.trim_matches('"').parse() == Ok(address))
}

pub(crate) fn ipip() -> Vec<SocketAddr> {
    WEB.map(|vip| SocketAddr::new(address(vip), 7007)).to_vec()
}

pub(crate) fn gue() -> Vec<SocketAddr> {
    WEB.map(|vip| SocketAddr::new(address(vip), 7009)).to_vec()
}

pub(crate) fn nat() -> Vec<SocketAddr> {
    API.map(|vip| SocketAddr::new(address(vip), 7008)).to_vec()
}

/// Every packet goes through lb1, whose process is killed, stays dead for a while, and comes back, twice: no request
/// fails, and no connection breaks, in either mode.
#[test]
fn kill_and_restart_lose_nothing_where_packets_still_arrive() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let connections = echo::Connections::open(&client, &[ipip(), nat()].concat(), 8)?;
    let mut traffic = lab.traffic();
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;
    for _ in 0..2 {
        let before = lab.wait_services(0, |_| true)?;
        lab.instances[0].kill();
        samples.extend(watch(&mut traffic, Duration::from_secs(2))?);
        lab.instances[0].start()?;
        let after =
            lab.wait_services(0, |rows| rows.iter().all(|r| r.programmed) && rows.len() == before.len())?;
        wait_until("lb1 is ready", || Ok(lab.instances[0].status()?.is_some_and(|s| s.ready)))?;
        // Counters go on where they were.
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(before.name, after.name);
            for (b, a) in before.backends.iter().zip(&after.backends) {
                assert!(a.packets >= b.packets, "{}: {b:?}, then {a:?}", before.name);
            }
        }
        samples.extend(watch(&mut traffic, Duration::from_secs(2))?);
    }
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    assert!(samples.len() > 500, "{} requests", samples.len());
    assert!(connections.close()? > 50);
    Ok(())
}

/// Both load balancers are killed and come back, one after the other, with FRR between: each time the router moves
/// flows to the other one. Connections through the tunnel never break, for any load balancer gives the same answer, once its
/// slots are clean: backends became healthy one after the other.
#[test]
fn connections_survive_when_the_router_moves_them() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let connections = echo::Connections::open(&client, &ipip(), 16)?;
    let mut traffic = lab.traffic();
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;
    for balancer in [0, 1] {
        lab.wait_clean(1 - balancer)?;
        lab.instances[balancer].kill();
        lab.wait_next_hops(&[WEB, API].concat(), &[1 - balancer])?;
        samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
        lab.instances[balancer].start()?;
        lab.wait_next_hops(&[WEB, API].concat(), &[0, 1])?;
        samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
    }
    // Connections of NAT die with their load balancer, if they are open at that moment.
    samples.retain(|s| s.target < 2);
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    assert!(connections.close()? > 20);
    Ok(())
}

/// With graceful restart the router moves no flow when a load balancer's process ends, in whatever way, and comes back:
/// not even connections through NAT break, which their load balancer alone can serve.
#[test]
fn a_router_that_keeps_the_routes_notices_no_restart() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Frr)?;
    add_echo(&lab)?;
    let peers = include_str!("../../../deploy/examples/bgp.yaml");
    let graceful = peers.replace("  asn: 65000\n", "  asn: 65000\n  gracefulRestart: {seconds: 60}\n");
    assert_ne!(graceful, peers);
    for instance in &lab.instances {
        instance.write("bgp.yaml", &graceful)?;
    }
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let connections = echo::Connections::open(&client, &[ipip(), nat()].concat(), 8)?;
    let mut traffic = lab.traffic();
    let mut samples = watch(&mut traffic, Duration::from_secs(1))?;
    for (balancer, address) in [(0, "10.0.0.2"), (1, "10.0.0.3")] {
        for crash in [false, true] {
            if crash {
                lab.instances[balancer].kill();
            } else {
                let status = lab.instances[balancer].terminate()?;
                assert!(status.success(), "{status}");
            }
            let established = |lab: &Lab| {
                let frr = lab.frr.as_ref().ok_or("no FRR")?;
                let shown = frr.vtysh(&format!("show bgp neighbors {address} json"))?;
                Ok::<_, Error>(shown.contains("\"bgpState\":\"Established\""))
            };
            wait_until("the session is lost", || Ok(!established(&lab)?))?;
            lab.wait_next_hops(&[WEB, API].concat(), &[0, 1])?;
            samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
            lab.instances[balancer].start()?;
            wait_until("the session is back", || established(&lab))?;
            samples.extend(watch(&mut traffic, Duration::from_secs(1))?);
            lab.wait_next_hops(&[WEB, API].concat(), &[0, 1])?;
        }
    }
    assert_eq!(failures(&samples), [""; 0], "of {}", samples.len());
    assert!(connections.close()? > 20);
    Ok(())
}
