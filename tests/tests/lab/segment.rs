//! Modes for backends on the load balancers' own segment: L2, and NAT that leaves the source alone, where the load
//! balancer is the backends' gateway. To the topology comes a second interface of every backend:
//!
//! ```text
//!  router ─┬─ front 10.0.0.0/24, fd00:10::/64 ──── lb1 .2, lb2 .3, eth1 of b1 .11, b2 .12, b3 .13
//!          └─ back  10.1.0.0/24, fd00:20::/64 ──── eth0 of b1 .11, b2 .12, b3 .13
//! ```
//! What a backend says from its address on the front goes to lb1; all else, answers from a VIP too, straight to the router.
use crate::{connections::survive_changes, restart::add_echo};
use controller::demo::topology::Host;
use lab::{Error, Lab, Routing, address, echo};
use std::{net::SocketAddr, process::Command};

/// VIPs of L2, port 7010.
const L2: [&str; 2] = ["203.0.113.30", "2001:db8:1::30"];
/// VIPs of NAT without the source, port 7011.
const DNAT: [&str; 2] = ["203.0.113.31", "2001:db8:1::31"];

const ECHO: &str = r#"
apiVersion: fairlead.dev/v1alpha1
kind: LoadBalancer
metadata: {name: echo-l2}
spec:
  addresses: [203.0.113.30, "2001:db8:1::30"]
  ports: [{port: 7010}]
  backends: [{address: 10.0.0.11}, {address: 10.0.0.12}, {address: 10.0.0.13}, {address: "fd00:10::11"}, {address: "fd00:10::12"}, {address: "fd00:10::13"}]
  policy: {forwarding: {mode: L2}}
---
apiVersion: fairlead.dev/v1alpha1
kind: LoadBalancer
metadata: {name: echo-dnat}
spec:
  addresses: [203.0.113.31, "2001:db8:1::31"]
  ports: [{port: 7011, targetPort: 7007}]
  backends: [{address: 10.0.0.11}, {address: 10.0.0.12}, {address: 10.0.0.13}, {address: "fd00:10::11"}, {address: "fd00:10::12"}, {address: "fd00:10::13"}]
  policy: {forwarding: {mode: NAT, sourceNAT: false}}
"#;

/// Backends are reweighed, drained and removed and come back, and the process is killed in the middle of it: no
/// connection breaks, in either mode and family.
#[test]
fn changes_of_backends_on_the_segment_break_no_connection() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    let (router, gateway) = (&lab.topology.router.namespace, lab.balancer(0));
    for backend in &lab.topology.backends {
        second_interface(&lab, backend, gateway)?;
        echo::serve(&backend.namespace, 7010);
    }
    for vip in [L2, DNAT].concat().into_iter().map(address) {
        router.ip(&format!("route add {vip} via {}", gateway.address(vip.is_ipv4())))?;
    }
    for instance in &lab.instances {
        instance.write("echo.yaml", ECHO)?;
    }
    lab.start_fairlead()?;
    let l2 = L2.map(|vip| SocketAddr::new(address(vip), 7010));
    let dnat = DNAT.map(|vip| SocketAddr::new(address(vip), 7011));
    survive_changes(&mut lab, &[l2, dnat].concat())
}

/// A backend on the front, whose answers from there go to `gateway`.
fn second_interface(lab: &Lab, backend: &Host, gateway: &Host) -> Result<(), Error> {
    let (router, namespace) = (&lab.topology.router.namespace, &backend.namespace);
    let (port, number) = (format!("{}f", backend.name), backend.ipv4.octets()[3]);
    router.ip(&format!(
        "link add {port} mtu 1600 type veth peer name eth1 mtu 1600 netns {}\n\
         link set {port} master front up\n",
        namespace.name()
    ))?;
    namespace.ip(&format!(
        "addr add 10.0.0.{number}/24 dev eth1\n\
         link set eth1 up\n\
         addr add fd00:10::{number}/64 dev eth1 nodad\n\
         route add default via {} dev eth1 table 100\n\
         route add default via {} dev eth1 table 100\n",
        gateway.ipv4, gateway.ipv6
    ))?;
    for (family, segment) in [("-4", "10.0.0.0/24"), ("-6", "fd00:10::/64")] {
        let mut rule = Command::new("ip");
        rule.args([family, "rule", "add", "from", segment, "lookup", "100"]);
        namespace.output(rule)?;
    }
    // XDP sees packets as they are: checksums must be complete.
    router.ethtool(&port, &[("tx", false)])?;
    namespace.ethtool("eth1", &[("tx", false)])?;
    Ok(())
}
