//! Two sites, `east` and `west`, each with a cluster of its own: an API server, a controller, two nodes with pods behind them, a
//! router that runs FRR, and a client. A link leads from router to router.
//!
//! ```text
//!  client ─┐           ┌─ lb1 ── pods      10.N.0.0/24, fd00:N::/64: router .1, lb1 .2, lb2 .3, plane .9
//!          ├─ router ──┼─ lb2 ── pods      pods: blocks of 10.24N.0.0/16, fd00:24N::/48
//!          │    │      └─ plane            N is 1 in the east, 2 in the west
//!          │    └─ link: 198.18.0.N, fd00:18::N
//!          └─ 198.51.N.2, 2001:db8:2:N::2
//! ```
//! A node speaks BGP with the router of its site, and tells it VIPs and its pod CIDRs, which the controller has given it. The
//! routers tell each other all that they know. The Service `shop` has the same VIPs ([`WEB`]) at both sites, is exported from
//! both, and prefers pods of its own site.
use crate::{Error, WEB, address, control_plane::ControlPlane, fairlead, pod::plug, turn, wait_until};
use controller::demo::{
    DemoError,
    http::{Load, Target, Traffic},
    instance::{self, Instance},
    netns::{Namespace, Process, Sandbox},
    router::{Frr, RouterConfig},
    topology::{self, FABRIC_MTU, Host, Segment},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::MutexGuard,
    thread,
    time::Duration,
};

mod loss;

pub use loss::Loss;

/// Names of the sites, and of their clusters.
pub const NAMES: [&str; 2] = ["east", "west"];
/// Nodes of a site.
pub const NODES: usize = 2;
/// Pods of a node.
pub const PODS: u8 = 2;

const NAMESPACE: &str = "fairlead-system";

/// Both sites at work.
#[derive(Debug)]
pub struct Sites {
    /// East and west.
    pub sites: [Site; 2],
    /// Where all of it lives. Dropped after the processes.
    pub sandbox: Sandbox,
    _turn: MutexGuard<'static, ()>,
}

impl Sites {
    /// Builds both. When it returns, each imports from the other, and all nodes announce the VIPs.
    pub fn start() -> Result<Self, Error> {
        let turn = turn();
        fairlead();
        let sandbox = Sandbox::create("fll")?;
        let [east, west] = NAMES.map(|name| topology::router(&sandbox, &format!("{name}-router")));
        let routers = [east?, west?];
        join(&routers)?;
        let sites = thread::scope(|scope| {
            let starting = [0, 1].map(|number| {
                let (sandbox, router) = (&sandbox, routers[number].clone());
                scope.spawn(move || Site::start(sandbox, number, router))
            });
            starting.map(|site| site.join().unwrap_or_else(|_| Err("a site panicked".into())))
        });
        let [east, west] = sites;
        let mut sites = Sites { sites: [east?, west?], sandbox, _turn: turn };
        for [own, other] in [[0, 1], [1, 0]] {
            sites.link(own, other)?;
        }
        for site in &mut sites.sites {
            site.wait_link("Imported")?;
        }
        for site in &mut sites.sites {
            site.wait_announced(&[0, 1])?;
        }
        Ok(sites)
    }

    /// The cable between the routers is pulled, or plugged in again.
    pub fn set_cable(&self, state: &str) -> Result<(), Error> {
        Ok(self.sites[0].router.namespace.ip(&format!("link set wan {state}"))?)
    }

    /// Waits until all nodes of a site that run send to these pods, and to no others.
    pub fn wait_used(&mut self, site: usize, is_used: impl Fn(&Pod) -> bool) -> Result<(), Error> {
        let pods = self.sites.iter().flat_map(|site| &site.pods).filter(|pod| is_used(pod));
        let want: BTreeSet<_> = pods.flat_map(|pod| pod.host.addresses()).collect();
        let (site, mut last) = (&mut self.sites[site], BTreeSet::new());
        let done = wait_until(&format!("the {} uses {want:?}", NAMES[site.number]), || {
            site.check()?;
            for node in (0..NODES).filter(|node| site.agents[*node].is_some()) {
                last = site.used(node)?;
                if last != want {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        done.map_err(|error| format!("{error}; it uses {last:?}").into())
    }

    /// A link between the clusters, by the rights of `remote-reader.yaml`.
    fn link(&self, own: usize, other: usize) -> Result<(), Error> {
        let [home, remote] = [own, other].map(|site| &self.sites[site].plane);
        home.link(NAMES[other], &remote.reader()?, 120)
    }
}

/// A site at work. Processes first: they end before the network does.
#[derive(Debug)]
pub struct Site {
    agents: [Option<Process>; NODES],
    _controller: Process,
    /// Its pods, by node.
    pub pods: Vec<Pod>,
    /// Its cluster.
    pub plane: ControlPlane,
    /// Its nodes. Their processes are those of `agents`.
    pub nodes: [Instance; NODES],
    /// Asks for the VIPs.
    pub client: Host,
    /// Forwards.
    pub router: Host,
    /// Runs on the router.
    pub frr: Frr,
    /// 0 or 1.
    number: usize,
    dir: PathBuf,
}

/// A pod, which serves HTTP on port 80.
#[derive(Debug)]
pub struct Pod {
    /// Where it lives. It answers with this name, which begins as its site does.
    pub host: Host,
    /// Its site, and its node there.
    pub at: (usize, usize),
    server: Option<Process>,
}

impl Pod {
    /// Whether it has a server.
    pub fn is_up(&self) -> bool {
        self.server.is_some()
    }
}

impl Site {
    fn start(sandbox: &Sandbox, site: usize, router: Namespace) -> Result<Self, Error> {
        let (name, digit) = (NAMES[site], site as u8 + 1);
        let part = u16::from(digit);
        let segments = [
            Segment {
                name: "clients",
                ipv4: Ipv4Addr::new(198, 51, digit, 1),
                ipv6: Ipv6Addr::new(0x2001, 0xdb8, 2, part, 0, 0, 0, 1),
                mtu: 1500,
            },
            Segment {
                name: "nodes",
                ipv4: Ipv4Addr::new(10, digit, 0, 1),
                ipv6: Ipv6Addr::new(0xfd00, part, 0, 0, 0, 0, 0, 1),
                mtu: FABRIC_MTU,
            },
        ];
        for segment in segments {
            segment.add(&router)?;
        }
        let [clients, front] = segments;
        let attach = |segment: Segment, host: &str, number| {
            segment.attach(sandbox, &router, &format!("{name}-{host}"), number)
        };
        let client = attach(clients, "client", 2)?;
        let hosts = [attach(front, "lb1", 2)?, attach(front, "lb2", 3)?];
        let cluster = attach(front, "plane", 9)?;
        for host in &hosts {
            host.namespace.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")])?;
        }
        let neighbors = hosts.each_ref().map(|host| (host.ipv4.into(), asn_of_nodes(site)));
        let other = (Ipv4Addr::new(198, 18, 0, 3 - digit).into(), asn_of_router(1 - site));
        let config = RouterConfig {
            asn: asn_of_router(site),
            router_id: front.ipv4,
            neighbors: neighbors.into_iter().chain([other]).collect(),
        };
        let frr = Frr::start(&router, &sandbox.dir().join(format!("{name}-frr")), &config)?;
        let mut lines = format!("configure terminal\nrouter bgp {}\n", config.asn);
        for family in ["ipv4", "ipv6"] {
            // Writing to a string does not fail.
            let _ = write!(
                lines,
                "address-family {family} unicast\nredistribute connected\nexit-address-family\n"
            );
        }
        frr.vtysh(&lines)?;
        let router = Host { name: name.to_owned(), namespace: router, ipv4: front.ipv4, ipv6: front.ipv6 };
        let nodes = hosts.each_ref().map(|host| Instance::new(sandbox, host, fairlead()));
        let [one, two] = nodes;
        let nodes = [one?, two?];

        let plane = ControlPlane::start_in(&cluster.namespace, cluster.ipv4.into())?;
        plane.install_multicluster()?;
        plane.apply(&declared(site, &router, &nodes))?;
        let config = plane.kubeconfig_of(NAMESPACE, "fairlead-controller")?;
        let dir = sandbox.dir().to_owned();
        let controller = spawn(&dir, &cluster, &["controller", "--cluster-name", name], &config)?;
        let mut pods = Vec::new();
        for (node, instance) in nodes.iter().enumerate() {
            for (first, number) in std::iter::repeat_n(blocks(&plane, instance.node())?, PODS.into()).zip(1..)
            {
                let name = format!("{name}-pod{}{number}", node + 1);
                let host = plug(sandbox, &instance.host.namespace, &name, after(first, 10 + number))?;
                let server = Some(instance::serve(sandbox, &host, fairlead())?);
                pods.push(Pod { host, at: (site, node), server });
            }
        }
        let mut started = Site {
            agents: [None, None],
            _controller: controller,
            pods,
            plane,
            nodes,
            client,
            router,
            frr,
            number: site,
            dir,
        };
        started.write_slices(|_| true)?;
        for node in 0..NODES {
            started.start_agent(node)?;
        }
        Ok(started)
    }

    /// Starts the agent of a node.
    pub fn start_agent(&mut self, node: usize) -> Result<(), Error> {
        let instance = &self.nodes[node];
        let socket = instance.socket();
        let socket = socket.to_str().ok_or("a path that is no text")?;
        let pods = format!("{}-pod*", NAMES[self.number]);
        let arguments = ["agent", "--interface", "eth0", "--pod-interface", &pods];
        let arguments = [&arguments[..], &["--node-name", instance.node(), "--api-socket", socket]].concat();
        let config = self.plane.kubeconfig_of(NAMESPACE, "fairlead-agent")?;
        self.agents[node] = Some(spawn(&self.dir, &instance.host, &arguments, &config)?);
        Ok(())
    }

    /// Nodes die at the same moment: their cables are cut, and their agents killed.
    pub fn kill_nodes(&mut self, nodes: &[usize]) -> Result<(), Error> {
        let lines = nodes.iter().map(|node| format!("link set {} down\n", self.nodes[*node].host.name));
        self.router.namespace.ip(&lines.collect::<String>())?;
        for node in nodes {
            drop(self.agents[*node].take());
        }
        Ok(())
    }

    /// A node that was killed comes back.
    pub fn restore_node(&mut self, node: usize) -> Result<(), Error> {
        self.router.namespace.ip(&format!("link set {} up", self.nodes[node].host.name))?;
        self.start_agent(node)
    }

    /// Ends the HTTP server of a pod, the first of which is 0.
    pub fn stop_server(&mut self, pod: usize) {
        drop(self.pods[pod].server.take());
    }

    /// Starts the HTTP servers of all pods that have none.
    pub fn start_servers(&mut self, sandbox: &Sandbox) -> Result<(), Error> {
        for pod in self.pods.iter_mut().filter(|pod| pod.server.is_none()) {
            pod.server = Some(instance::serve(sandbox, &pod.host, fairlead())?);
        }
        Ok(())
    }

    /// Writes the EndpointSlices of `shop`, as their controller would, with some of the pods.
    pub fn write_slices(&self, has: impl Fn(usize) -> bool) -> Result<(), Error> {
        let slice = |family: &str| {
            let pods = self.pods.iter().enumerate().filter(|(number, _)| has(*number));
            let endpoints = pods.map(|(_, pod)| {
                json!({"addresses": [pod.host.address(family == "IPv4")], "conditions": {"ready": true},
                    "nodeName": self.nodes[pod.at.1].node()})
            });
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
                "metadata": {"name": format!("shop-{}", family.to_lowercase()), "namespace": "default",
                    "labels": {"kubernetes.io/service-name": "shop"}},
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
                "endpoints": endpoints.collect::<Vec<_>>(),
            })
            .to_string()
        };
        self.plane.apply(&["IPv4", "IPv6"].map(slice).join("\n---\n")).map(drop)
    }

    /// Changes fields of the link to the other cluster.
    pub fn set_link(&self, fields: &Value) -> Result<(), Error> {
        let spec = json!({"spec": fields}).to_string();
        let link = ["patch", "clusterlink", NAMES[1 - self.number], "--type=merge", "-p", &spec];
        self.plane.kubectl(&link).map(drop)
    }

    /// Waits for the reason of the condition `Ready` of the link to the other site.
    pub fn wait_link(&self, reason: &str) -> Result<(), Error> {
        let mut last = Value::Null;
        let name = NAMES[1 - self.number];
        let done = wait_until(&format!("the link to {name} says {reason}"), || {
            last = serde_json::from_str(&self.plane.kubectl(&["get", "clusterlink", name, "-o", "json"])?)?;
            let mut conditions = last["status"]["conditions"].as_array().into_iter().flatten();
            Ok(conditions.any(|said| said["type"] == "Ready" && said["reason"] == reason))
        });
        done.map_err(|error| format!("{error}; it is {last}").into())
    }

    /// How often the API server was asked for all objects of a resource so far.
    pub fn lists(&self, resource: &str) -> Result<u64, Error> {
        let text = self.plane.kubectl(&["get", "--raw", "/metrics"])?;
        let of_resource = |line: &&str| {
            line.starts_with("apiserver_request_total{")
                && ["verb=\"LIST\"", &format!("resource=\"{resource}\"")]
                    .iter()
                    .all(|label| line.contains(label))
        };
        let counts = text.lines().filter(of_resource);
        Ok(counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum())
    }

    /// Waits until these nodes, and no others, are the next hops of the VIPs in the kernel of the site's router.
    pub fn wait_announced(&mut self, nodes: &[usize]) -> Result<(), Error> {
        self.wait_next_hops(|site, ipv4| {
            nodes.iter().map(|node| site.nodes[*node].host.address(ipv4)).collect()
        })
    }

    /// Waits until the site's router sends what is for the VIPs to the other site.
    pub fn wait_elsewhere(&mut self) -> Result<(), Error> {
        let digit = 2 - self.number as u8;
        let other: [IpAddr; 2] = [
            Ipv4Addr::new(198, 18, 0, digit).into(),
            Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, digit.into()).into(),
        ];
        // FRR puts a link-local address into the kernel where it has one.
        let is_other =
            |hop: &IpAddr| other.contains(hop) || matches!(hop, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let mut last = BTreeSet::new();
        let done = wait_until("the VIPs are at the other site", || {
            last.clear();
            for vip in WEB {
                last.extend(topology::next_hops(&self.router.namespace, address(vip))?);
            }
            Ok(last.len() == 2 && last.iter().all(is_other))
        });
        done.map_err(|error| format!("{error}; the next hops are {last:?}").into())
    }

    fn wait_next_hops(&mut self, want: impl Fn(&Site, bool) -> BTreeSet<IpAddr>) -> Result<(), Error> {
        let mut last = BTreeSet::new();
        let done = wait_until(&format!("the next hops in the {}", NAMES[self.number]), || {
            self.check()?;
            for vip in WEB.map(address) {
                last = topology::next_hops(&self.router.namespace, vip)?;
                if last != want(self, vip.is_ipv4()) {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        done.map_err(|error| format!("{error}; they are {last:?}").into())
    }

    /// The backends that a node sends to.
    pub fn used(&self, node: usize) -> Result<BTreeSet<IpAddr>, Error> {
        let rows = self.nodes[node].services()?.unwrap_or_default();
        let used = rows.iter().flat_map(|row| &row.backends).filter(|backend| backend.slots > 0);
        Ok(used.map(|backend| backend.address).collect())
    }

    /// What changes in the router when a route comes, goes or is another: the versions of its tables, IPv4 first.
    pub fn route_versions(&self) -> Result<[Option<u64>; 2], Error> {
        Ok(self.summaries()?.map(|summary| summary["tableVersion"].as_u64()))
    }

    /// How often the sessions of the router with the nodes have ended.
    pub fn lost_sessions(&self) -> Result<u64, Error> {
        let [summary, _] = self.summaries()?;
        let lost = |node: &Instance| {
            let lost = &summary["peers"][node.host.ipv4.to_string()]["connectionsDropped"];
            lost.as_u64().ok_or_else(|| format!("no session with {}: {summary}", node.host.name).into())
        };
        self.nodes.iter().map(lost).sum()
    }

    fn summaries(&self) -> Result<[Value; 2], Error> {
        let summary = |family| -> Result<Value, Error> {
            Ok(serde_json::from_str(&self.frr.vtysh(&format!("show bgp {family} unicast summary json"))?)?)
        };
        Ok([summary("ipv4")?, summary("ipv6")?])
    }

    /// Requests of its client to the VIPs.
    pub fn traffic(&self) -> Traffic {
        let targets = WEB.map(|vip| Target::new("shop", address(vip), 80));
        let load = Load { clients: 2, pause: Duration::from_millis(20) };
        Traffic::start(&self.client.namespace, &targets, load)
    }

    /// Lets the router and the nodes watch each other by BFD; returns when they do.
    pub fn watch_nodes(&self) -> Result<(), Error> {
        let bfd = json!({"spec": {"bfd": {"minTxMillis": 200, "minRxMillis": 200, "multiplier": 3}}});
        self.plane.kubectl(&["patch", "bgppeer", "router", "--type=merge", "-p", &bfd.to_string()])?;
        let dir = self.dir.join(format!("{}-frr", NAMES[self.number]));
        fs::write(dir.join("bfdd.conf"), "log timestamp precision 3\n")?;
        // A router has a processor of its own for that.
        let mut bfdd = Command::new("chrt");
        bfdd.args(["--fifo", "1", "/usr/lib/frr/bfdd", "-d"])
            .args(["-A", "127.0.0.1", "--vty_socket"])
            .arg(&dir);
        for (flag, file) in [("-f", "bfdd.conf"), ("-i", "bfdd.pid"), ("-z", "zserv.api")] {
            bfdd.arg(flag).arg(dir.join(file));
        }
        self.router.namespace.output(bfdd)?;
        let mut lines = format!("configure terminal\nrouter bgp {}\n", asn_of_router(self.number));
        for node in &self.nodes {
            // Writing to a string does not fail.
            let _ = writeln!(lines, "neighbor {} bfd 3 200 200", node.host.ipv4);
        }
        self.frr.vtysh(&lines)?;
        wait_until("BFD is up with both nodes", || {
            let peers: Value = serde_json::from_str(&self.frr.vtysh("show bfd peers json")?)?;
            let up = peers.as_array().into_iter().flatten().filter(|peer| peer["status"] == "up");
            Ok(up.count() == NODES)
        })
    }

    /// An error when an agent has ended by itself.
    fn check(&mut self) -> Result<(), Error> {
        match self.agents.iter_mut().flatten().find_map(Process::ended) {
            Some(how) => Err(format!("an agent in the {}: {how}", NAMES[self.number]).into()),
            None => Ok(()),
        }
    }
}

fn asn_of_router(site: usize) -> u32 {
    65001 + site as u32
}

/// The same for both nodes, so that the router takes both for multipath.
fn asn_of_nodes(site: usize) -> u32 {
    65101 + site as u32
}

/// Joins the routers by a link.
fn join([east, west]: &[Namespace; 2]) -> Result<(), DemoError> {
    east.ip(&format!("link add wan type veth peer name wan netns {}", west.name()))?;
    for (router, digit) in [(east, 1), (west, 2)] {
        router.ip(&format!(
            "link set wan mtu {FABRIC_MTU} up\n\
             addr add 198.18.0.{digit}/24 dev wan\n\
             addr add fd00:18::{digit}/64 dev wan nodad\n"
        ))?;
        router.ethtool("wan", &[("tx", false)])?;
    }
    Ok(())
}

/// What is declared in the cluster of a site.
fn declared(site: usize, router: &Host, nodes: &[Instance]) -> String {
    let digit = site + 1;
    let node = |node: &Instance| {
        let metadata = json!({"name": node.node(), "labels": {"role": "balancer"}});
        json!({"apiVersion": "v1", "kind": "Node", "metadata": metadata}).to_string()
    };
    let nodes = nodes.iter().map(node).collect::<Vec<_>>().join("\n---\n");
    let (asn, upstream, router, vips) = (asn_of_nodes(site), asn_of_router(site), router.ipv4, WEB.join(","));
    let ours = |kind: &str, name: &str, spec: &str| {
        format!(
            "---\n{{apiVersion: fairlead.dev/v1alpha1, kind: {kind}, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
        )
    };
    let objects = [
        ours("BGPRouter", "nodes", &format!("asn: {asn}")),
        ours(
            "BGPPeer",
            "router",
            &format!(
                "address: {router}, asn: {upstream}, families: [ipv4-unicast, ipv6-unicast], \
             timers: {{holdSeconds: 9, keepaliveSeconds: 3, connectRetrySeconds: 1}}"
            ),
        ),
        ours("BGPAdvertisement", "services", "source: LoadBalancer, minHealthy: 1"),
        ours("BGPAdvertisement", "pods", "source: PodCIDR"),
        ours(
            "AddressPool",
            "public",
            "blocks: [{cidr: 203.0.113.0/24}, {start: \"2001:db8:1::10\", stop: \"2001:db8:1::ff\"}], clusters: [east, west]",
        ),
        ours(
            "AddressPool",
            "pods",
            &format!(
                "use: PodCIDR, nodeMask: {{ipv4: 24, ipv6: 64}}, \
             blocks: [{{cidr: 10.24{digit}.0.0/16}}, {{cidr: \"fd00:24{digit}::/48\"}}]"
            ),
        ),
        ours(
            "ServicePolicy",
            "sites",
            "policy: {healthCheck: {tcp: {}, intervalMillis: 200, timeoutMillis: 500, rise: 2, fall: 2}, \
             clusters: {prefer: Local, minLocalPercent: 100}}",
        ),
    ];
    format!(
        "{nodes}\n{}---\n\
         {{apiVersion: v1, kind: Service, metadata: {{name: shop, namespace: default,\n\
           annotations: {{fairlead.dev/addresses: \"{vips}\"}}}},\n\
           spec: {{type: LoadBalancer, loadBalancerClass: fairlead.dev/lb, allocateLoadBalancerNodePorts: false,\n\
             ipFamilyPolicy: PreferDualStack, ports: [{{name: http, port: 80}}]}}}}\n---\n\
         {{apiVersion: multicluster.x-k8s.io/v1alpha1, kind: ServiceExport, metadata: {{name: shop, namespace: default}}}}\n",
        objects.concat()
    )
}

/// The first addresses of the pod CIDRs of a node, once it has some of both families.
fn blocks(plane: &ControlPlane, node: &str) -> Result<(Ipv4Addr, Ipv6Addr), Error> {
    let mut found = None;
    wait_until("the node has pod CIDRs", || {
        let node: Value = serde_json::from_str(&plane.kubectl(&["get", "node", node, "-o", "json"])?)?;
        let blocks = node["spec"]["podCIDRs"].as_array().into_iter().flatten();
        let first: Vec<_> = blocks.filter_map(|block| block.as_str()?.split_once('/')).collect();
        let [(ipv4, _), (ipv6, _)] = first[..] else { return Ok(false) };
        found = Some((ipv4.parse()?, ipv6.parse()?));
        Ok(true)
    })?;
    found.ok_or_else(|| "no pod CIDRs".into())
}

/// Addresses that come so much later.
fn after((ipv4, ipv6): (Ipv4Addr, Ipv6Addr), number: u8) -> (Ipv4Addr, Ipv6Addr) {
    ((u32::from(ipv4) + u32::from(number)).into(), (u128::from(ipv6) + u128::from(number)).into())
}

/// Starts a process of a cluster on a host.
fn spawn(dir: &Path, host: &Host, arguments: &[&str], config: &Path) -> Result<Process, Error> {
    let mut command = Command::new(fairlead());
    command.args(arguments).args([Path::new("--kubeconfig"), config]);
    command.args(["--namespace", NAMESPACE, "--metrics", "127.0.0.1:9617"]);
    Ok(host.namespace.spawn(command, &dir.join(format!("{}-cluster.log", host.name)))?)
}
