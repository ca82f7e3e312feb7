//! The network of the demo: a client behind a router, and on the router's other side two segments, one with the
//! load balancers and one with the backends.
//!
//! ```text
//!  client ──── router ─┬─ front 10.0.0.0/24, fd00:10::/64 ──── lb1 .2, lb2 .3       (one-armed)
//!  198.51.100.2        └─ back  10.1.0.0/24, fd00:20::/64 ──── b1 .11, b2 .12, b3 .13
//!  2001:db8:2::2          the router is .1, ::1 everywhere
//! ```
//! The fabric's MTU is 1600, so that a full packet of the client (1500) fits with a tunnel header in front of it.
use super::{
    DemoError,
    netns::{Namespace, Sandbox},
};
use lb_bpf::abi::program;
use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// AS of the router in the demo.
pub const ROUTER_ASN: u32 = 65000;
/// AS of the load balancers in the demo: the same on both, which makes the router take both for multipath.
pub const BALANCER_ASN: u32 = 65010;

/// MTU of the segments of load balancers and backends, bytes.
pub const FABRIC_MTU: u32 = 1600;

/// Namespaces and links, with addresses and routes. The router forwards, and spreads equal-cost paths by
/// addresses and ports.
#[derive(Debug)]
pub struct Topology {
    /// Has requests.
    pub client: Host,
    /// Forwards. A routing daemon is not part of the topology, see [`super::router`].
    pub router: Host,
    /// `lb1`, `lb2`.
    pub balancers: Vec<Host>,
    /// `b1`, `b2`, `b3`.
    pub backends: Vec<Host>,
    /// Dropped last: removes all of it.
    pub sandbox: Sandbox,
}

/// A machine of the topology. Its interface is `eth0`.
#[derive(Clone, Debug)]
pub struct Host {
    /// Name in the topology: `lb1`.
    pub name: String,
    /// Where it lives.
    pub namespace: Namespace,
    /// Its IPv4 address.
    pub ipv4: Ipv4Addr,
    /// Its IPv6 address.
    pub ipv6: Ipv6Addr,
}

/// A link of a router, shared by the hosts on it.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    /// Name of the router's bridge.
    pub name: &'static str,
    /// Address of the router, /24.
    pub ipv4: Ipv4Addr,
    /// Address of the router, /64.
    pub ipv6: Ipv6Addr,
    /// MTU, bytes.
    pub mtu: u32,
}

const CLIENTS: Segment = Segment {
    name: "clients",
    ipv4: Ipv4Addr::new(198, 51, 100, 1),
    ipv6: Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 1),
    mtu: 1500,
};
const FRONT: Segment = Segment {
    name: "front",
    ipv4: Ipv4Addr::new(10, 0, 0, 1),
    ipv6: Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 1),
    mtu: FABRIC_MTU,
};
const BACK: Segment = Segment {
    name: "back",
    ipv4: Ipv4Addr::new(10, 1, 0, 1),
    ipv6: Ipv6Addr::new(0xfd00, 0x20, 0, 0, 0, 0, 0, 1),
    mtu: FABRIC_MTU,
};

impl Topology {
    /// Builds it in a new sandbox whose name begins with `prefix`.
    pub fn build(prefix: &str) -> Result<Self, DemoError> {
        let sandbox = Sandbox::create(prefix)?;
        let router = router(&sandbox, "router")?;
        for segment in [CLIENTS, FRONT, BACK] {
            segment.add(&router)?;
        }
        let host =
            |segment: &Segment, name: &str, number: u8| segment.attach(&sandbox, &router, name, number);
        let client = host(&CLIENTS, "client", 2)?;
        let balancers = vec![host(&FRONT, "lb1", 2)?, host(&FRONT, "lb2", 3)?];
        for balancer in &balancers {
            take_xdp_frames(&sandbox, &router, &balancer.name)?;
        }
        let backends = vec![host(&BACK, "b1", 11)?, host(&BACK, "b2", 12)?, host(&BACK, "b3", 13)?];
        for backend in &backends {
            // With a VIP on its loopback a backend must neither answer for it nor ask in its name.
            backend
                .namespace
                .sysctl(&[("net/ipv4/conf/all/arp_ignore", "1"), ("net/ipv4/conf/all/arp_announce", "2")])?;
        }
        let router =
            Host { name: "router".to_owned(), namespace: router, ipv4: FRONT.ipv4, ipv6: FRONT.ipv6 };
        Ok(Topology { client, router, balancers, backends, sandbox })
    }

    /// Every host that runs fairlead: load balancers and backends.
    pub fn fairlead_hosts(&self) -> impl Iterator<Item = &Host> {
        self.balancers.iter().chain(&self.backends)
    }

    /// See [`next_hops`].
    pub fn next_hops(&self, destination: IpAddr) -> Result<BTreeSet<IpAddr>, DemoError> {
        next_hops(&self.router.namespace, destination)
    }
}

impl Host {
    /// The address of a family.
    pub fn address(&self, ipv4: bool) -> IpAddr {
        if ipv4 { self.ipv4.into() } else { self.ipv6.into() }
    }

    /// Both addresses.
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.ipv4.into(), self.ipv6.into()]
    }
}

impl Segment {
    /// Makes the router's bridge of this segment.
    pub fn add(&self, router: &Namespace) -> Result<(), DemoError> {
        let Segment { name, ipv4, ipv6, mtu } = self;
        router.ip(&format!(
            "link add {name} type bridge mcast_snooping 0\n\
             link set {name} mtu {mtu} up\n\
             addr add {ipv4}/24 dev {name}\n\
             addr add {ipv6}/64 dev {name} nodad\n"
        ))
    }

    /// A host on this segment, with `number` as the last part of its addresses. The port of the router is called as the host
    /// is.
    pub fn attach(
        &self,
        sandbox: &Sandbox,
        router: &Namespace,
        name: &str,
        number: u8,
    ) -> Result<Host, DemoError> {
        let namespace = sandbox.namespace(name)?;
        let [a, b, c, _] = self.ipv4.octets();
        let ipv4 = Ipv4Addr::new(a, b, c, number);
        // The number is written alike in both families: .11 and ::11.
        let mut groups = self.ipv6.segments();
        groups[7] = u16::from(number / 10 * 16 + number % 10);
        let ipv6 = Ipv6Addr::from(groups);
        let Segment { name: bridge, ipv4: gateway4, ipv6: gateway6, mtu } = self;
        let inside = namespace.name();
        router.ip(&format!(
            "link add {name} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {inside}\n\
             link set {name} master {bridge} up\n"
        ))?;
        let mut lines = String::new();
        for (address, length, gateway) in
            [(IpAddr::V4(ipv4), 24, IpAddr::V4(*gateway4)), (ipv6.into(), 64, (*gateway6).into())]
        {
            let nodad = if address.is_ipv6() { " nodad" } else { "" };
            // Writing to a string does not fail.
            let _ = writeln!(lines, "addr add {address}/{length} dev eth0{nodad}");
            if lines.lines().count() == 1 {
                lines.push_str("link set eth0 up\n");
            }
            let _ = writeln!(lines, "route add default via {gateway}");
        }
        namespace.ip(&lines)?;
        // XDP in native mode sees packets as they are: checksums must be complete when they leave the other end.
        router.ethtool(name, &[("tx", false)])?;
        namespace.ethtool("eth0", &[("tx", false)])?;
        Ok(Host { name: name.to_owned(), namespace, ipv4, ipv6 })
    }
}

/// A namespace that forwards, and spreads equal-cost paths by addresses and ports.
pub fn router(sandbox: &Sandbox, name: &str) -> Result<Namespace, DemoError> {
    let router = sandbox.namespace(name)?;
    router.sysctl(&[
        ("net/ipv4/ip_forward", "1"),
        ("net/ipv6/conf/all/forwarding", "1"),
        // Layer 4: a flow stays on its path, flows of one client spread.
        ("net/ipv4/fib_multipath_hash_policy", "1"),
        ("net/ipv6/fib_multipath_hash_policy", "1"),
    ])?;
    Ok(router)
}

/// Lets a port of the router take what a load balancer behind it sends by XDP_TX, as network cards do: a veth does only when
/// its peer has a program, too, or GRO. Without this the frames go through TC, which is slower.
pub fn take_xdp_frames(sandbox: &Sandbox, router: &Namespace, port: &str) -> Result<(), DemoError> {
    let object = sandbox.dir().join(format!("{}.bpf.o", router.name()));
    fs::write(&object, lb_bpf::OBJECT).map_err(|e| DemoError::io("writing", &object, e))?;
    let (object, pass) = (object.display(), program::PASS);
    router.ip(&format!("link set dev {port} xdpdrv object {object} program {pass}"))
}

/// The next hops of a host route in a router's kernel: what forwards packets, whatever a routing daemon
/// believes.
pub fn next_hops(router: &Namespace, destination: IpAddr) -> Result<BTreeSet<IpAddr>, DemoError> {
    let (family, length) = if destination.is_ipv4() { ("-4", 32) } else { ("-6", 128) };
    let prefix = format!("{destination}/{length}");
    let routes = router.ip_json(&[family, "route", "show", &prefix])?;
    let mut hops = BTreeSet::new();
    for route in routes.as_array().into_iter().flatten() {
        // One next hop stands in the route itself, several in a list.
        let list = route["nexthops"].as_array().into_iter().flatten();
        let gateways = std::iter::once(route).chain(list).filter_map(|hop| {
            let via = &hop["via"]["host"];
            hop["gateway"].as_str().or(via.as_str())?.parse::<IpAddr>().ok()
        });
        hops.extend(gateways);
    }
    Ok(hops)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::http::{Load, Target, Traffic, serve};
    use std::time::{Duration, Instant};

    #[test]
    fn the_router_forwards_between_all_segments() {
        let topology = Topology::build("flt").unwrap();
        let b1 = &topology.backends[0];
        assert_eq!(
            (b1.address(true), b1.address(false)),
            ("10.1.0.11".parse().unwrap(), "fd00:20::11".parse().unwrap())
        );
        let _server = b1.namespace.thread(|| serve("b1", 80));
        let targets = [true, false].map(|v4| Target::new("b1", b1.address(v4), 80));
        for from in topology.balancers.iter().chain([&topology.client]) {
            let load = Load { clients: 1, pause: Duration::from_millis(1) };
            let mut traffic = Traffic::start(&from.namespace, &targets, load);
            let mut answered = BTreeSet::new();
            let deadline = Instant::now() + Duration::from_secs(60);
            while answered.len() < 2 && Instant::now() < deadline {
                let samples = traffic.until(Instant::now()).unwrap();
                answered.extend(samples.iter().filter(|s| s.answer.is_ok()).map(|s| s.target));
            }
            assert_eq!(answered.len(), 2, "from {}", from.name);
        }
    }

    #[test]
    fn next_hops_are_those_of_the_kernel() {
        let topology = Topology::build("flt").unwrap();
        let vip: IpAddr = "203.0.113.10".parse().unwrap();
        let vip6: IpAddr = "2001:db8:1::10".parse().unwrap();
        assert!(topology.next_hops(vip).unwrap().is_empty());
        let lines = "route add 203.0.113.10 nexthop via 10.0.0.2 nexthop via 10.0.0.3\n\
                     route add 2001:db8:1::10 via fd00:10::2\n";
        topology.router.namespace.ip(lines).unwrap();
        let balancers = |v4| topology.balancers.iter().map(move |h| h.address(v4)).collect::<Vec<_>>();
        assert_eq!(topology.next_hops(vip).unwrap().into_iter().collect::<Vec<_>>(), balancers(true));
        assert_eq!(topology.next_hops(vip6).unwrap().into_iter().collect::<Vec<_>>(), balancers(false)[..1]);
    }
}
