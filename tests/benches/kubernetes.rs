//! A cluster of 10,000 Services with 10 endpoints each, in a real API server: how long `fairlead controller` and `fairlead
//! agent` take from cold, how much memory they hold, and how soon a change is in the kernel's maps and on the wire. Needs root.
//! `cargo bench -p lab --bench kubernetes [-- SERVICES]`
//!
//! - *controller*: from its start until the API server has taken an address for each Service; 1,000 Nodes, from the moment
//!   that there is a pool for them until each has its pod CIDR.
//! - *agent*: from its start until a router has heard of each address, which is not before all is in the maps.
//! - *maps*: from the moment that a write of an EndpointSlice begins until the kernel's tables send a flow elsewhere (they are
//!   read every few milliseconds, through the agent's socket). *wire*: until the router has read the UPDATE.
//! - Floors of the same run: a plain list of the same objects, in pages and decoded; the write itself, until it is answered.
//!
//! API server, etcd and the measured process share the CPUs of one machine; etcd does not sync.
use common::{PAUSE, http, report, write_all};
use controller::demo::{
    netns::Process,
    topology::{ROUTER_ASN, Topology},
};
use lab::{
    Error,
    control_plane::{Api, ControlPlane},
    fairlead, wait_until,
};
use peer::News;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::{IpAddr, TcpStream},
    path::{Path, PathBuf},
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

#[path = "kubernetes/common.rs"]
mod common;
#[path = "kubernetes/peer.rs"]
mod peer;

const ENDPOINTS: usize = 10;
const NAMESPACES: usize = 100;
/// Where the processes serve their metrics.
const METRICS: &str = "127.0.0.1:9617";
const CONFIG: &str = "\
kind: AddressPool\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: vips}\nspec: {blocks: [{cidr: 10.64.0.0/16}]}\n---\n\
kind: BGPRouter\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: all}\nspec: {asn: 65010}\n---\n\
kind: BGPPeer\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: router}\nspec: {address: 10.0.0.1, asn: 65000}\n---\n\
kind: BGPAdvertisement\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: all}\nspec: {source: LoadBalancer}\n";
const POD_CIDRS: &str = "\
kind: AddressPool\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: pods}\n\
spec: {use: PodCIDR, blocks: [{cidr: 10.192.0.0/12}], nodeMask: {ipv4: 26}}\n";

fn main() -> Result<(), Error> {
    // `cargo test --benches` runs benches, too, to see that they work.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let services = std::env::args().find_map(|argument| argument.parse().ok());
    let size = match (is_bench, services) {
        (true, services) => Size { services: services.unwrap_or(10_000), nodes: 1_000, changes: 200 },
        (false, _) => Size { services: 100, nodes: 10, changes: 4 },
    };
    let bench = Bench::start(size)?;
    let controller = bench.controller()?;
    let (agent, news) = bench.agent()?;
    bench.changes(&news)?;
    bench.memory("agent", &agent)?;
    bench.pod_cidrs()?;
    bench.memory("controller", &controller)
}

/// How much there is of everything.
#[derive(Clone, Copy)]
struct Size {
    services: usize,
    nodes: usize,
    changes: usize,
}

struct Bench {
    size: Size,
    api: Api,
    plane: ControlPlane,
    /// Dropped after the processes.
    topology: Topology,
}

impl Bench {
    /// An API server with all objects but Nodes, and none of our processes.
    fn start(size: Size) -> Result<Self, Error> {
        let topology = Topology::build("flk")?;
        let router = &topology.router;
        let plane = ControlPlane::start_in(&router.namespace, router.ipv4.into())?;
        let manifests = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes");
        // Objects of a kind that was defined a moment ago: the second time they are taken.
        wait_until("the manifests are taken", || {
            Ok(plane.kubectl(&["apply", "--server-side", "-k", manifests]).is_ok())
        })?;
        plane.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"])?;
        plane.apply(CONFIG)?;
        let bench = Bench { size, api: plane.api()?, plane, topology };
        bench.fill()?;
        Ok(bench)
    }

    fn fill(&self) -> Result<(), Error> {
        let start = Instant::now();
        self.post_all(NAMESPACES.min(self.size.services), |n| {
            let object = json!({"metadata": {"name": format!("namespace-{n}")}});
            ("/api/v1/namespaces".to_owned(), object)
        })?;
        self.post_all(self.size.services, |n| {
            (format!("/api/v1/namespaces/{}/services", namespace(n)), service(n))
        })?;
        self.post_all(self.size.services, |n| (slices(n), slice(n, ENDPOINTS, true)))?;
        println!("filled in {:.1} s", start.elapsed().as_secs_f64());
        for path in ["/api/v1/services", "/apis/discovery.k8s.io/v1/endpointslices"] {
            let start = Instant::now();
            let objects = self.list(path)?.len();
            println!("floor: plain list of {objects} {path}: {:.1} s", start.elapsed().as_secs_f64());
        }
        Ok(())
    }

    /// Creates objects, many at once.
    fn post_all(&self, count: usize, object: impl Fn(usize) -> (String, Value) + Sync) -> Result<(), Error> {
        write_all(count, |n| {
            let (path, object) = object(n);
            self.api.post(&path, &object)?.object().map(drop)
        })
    }

    /// All objects of a kind, page by page.
    fn list(&self, path: &str) -> Result<Vec<Value>, Error> {
        let (mut objects, mut from) = (Vec::new(), String::new());
        loop {
            let mut page = self.api.get(&format!("{path}?limit=500&continue={from}"))?.object()?;
            objects.append(page["items"].as_array_mut().ok_or("no list")?);
            match page["metadata"]["continue"].as_str() {
                Some(next) if !next.is_empty() => next.clone_into(&mut from),
                _ => return Ok(objects),
            }
        }
    }

    /// Starts a process of ours on a host.
    fn spawn(&self, host: &controller::demo::topology::Host, arguments: &[&str]) -> Result<Process, Error> {
        let config = self.plane.kubeconfig_of("fairlead-system", &format!("fairlead-{}", arguments[0]))?;
        let mut command = Command::new(fairlead());
        command.args(arguments).args([Path::new("--kubeconfig"), &config]);
        command.args(["--namespace", "fairlead-system", "--metrics", METRICS]);
        Ok(host
            .namespace
            .spawn(command, &self.topology.sandbox.dir().join(format!("{}.log", arguments[0])))?)
    }

    /// A controller that has given each Service its address.
    fn controller(&self) -> Result<Process, Error> {
        let start = Instant::now();
        let process = self.spawn(&self.topology.router, &["controller"])?;
        wait_until("all Services have addresses", || {
            Ok(self.written()?.is_some_and(|written| written >= self.size.services))
        })?;
        println!("controller: all have addresses after {:.1} s", start.elapsed().as_secs_f64());
        self.memory("controller", &process)?;
        Ok(process)
    }

    /// Statuses that the controller has written; none: it does not answer yet.
    fn written(&self) -> Result<Option<usize>, Error> {
        let page = self.topology.router.namespace.enter(|| -> Option<String> {
            let mut stream = TcpStream::connect(METRICS).ok()?;
            http(&mut stream, "/metrics").ok()
        })?;
        let number = |page: String| {
            let line = page.lines().find(|line| line.starts_with("fairlead_store_writes_total "))?.to_owned();
            line.split(' ').nth(1)?.parse().ok()
        };
        Ok(page.and_then(number))
    }

    /// An agent that has announced each Service, and what the router hears from it from then on.
    fn agent(&self) -> Result<(Process, mpsc::Receiver<News>), Error> {
        let (sender, news) = mpsc::channel();
        let router = (self.topology.router.ipv4, 179).into();
        self.topology.router.namespace.thread(move || {
            if let Err(error) = peer::listen(router, ROUTER_ASN, sender) {
                eprintln!("the router: {error}");
            }
        });
        let socket = self.socket();
        let socket = socket.to_str().ok_or("a path that is no text")?;
        let sizes = "vips=32768,slots=16777216,backends=131072";
        // What is pinned under the name of a namespace goes with the sandbox.
        let node = self.topology.balancers[0].namespace.name();
        let start = Instant::now();
        let arguments = [
            "agent",
            "--interface",
            "eth0",
            "--node-name",
            node,
            "--api-socket",
            socket,
            "--map-size",
            sizes,
        ];
        let process = self.spawn(&self.topology.balancers[0], &arguments)?;
        let mut announced = BTreeSet::new();
        while announced.len() < self.size.services {
            let News { address, is_announced, .. } = news.recv_timeout(PATIENCE)?;
            let _ = if is_announced { announced.insert(address) } else { announced.remove(&address) };
        }
        println!("agent: all are programmed and announced after {:.1} s", start.elapsed().as_secs_f64());
        self.memory("agent", &process)?;
        Ok((process, news))
    }

    fn socket(&self) -> PathBuf {
        self.topology.sandbox.dir().join("agent.sock")
    }

    /// Changes single slices, one after the other.
    fn changes(&self, news: &mpsc::Receiver<News>) -> Result<(), Error> {
        let services = self.list("/api/v1/services")?;
        let vip = |service: &Value| -> Option<(String, IpAddr)> {
            let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str()?;
            Some((service["metadata"]["name"].as_str()?.to_owned(), address.parse().ok()?))
        };
        let vips: BTreeMap<_, _> = services.iter().filter_map(vip).collect();
        let (mut maps, mut wire, mut writes) = (Vec::new(), Vec::new(), Vec::new());
        for change in 0..self.size.changes / 2 {
            let n = change * 37 % self.size.services;
            let vip = *vips.get(&format!("service-{n}")).ok_or("a Service without an address")?;
            let last = address(n, ENDPOINTS - 1);
            let flow =
                (1024..u16::MAX).find(|port| self.backend(vip, *port).is_ok_and(|backend| backend == last));
            let flow = flow.ok_or_else(|| format!("no flow to {vip} goes to {last}"))?;
            for (endpoints, has_last) in [(ENDPOINTS - 1, false), (ENDPOINTS, true)] {
                let start = Instant::now();
                let written = self.write(n, endpoints, true, || {
                    while (self.backend(vip, flow)? == last) != has_last {
                        if start.elapsed() > PATIENCE {
                            return Err("the table does not change".into());
                        }
                        // To ask takes the agent some milliseconds: all the time, that would be what is measured.
                        thread::sleep(PAUSE);
                    }
                    maps.push(start.elapsed());
                    Ok(())
                })?;
                writes.push(written);
            }
            for ready in [false, true] {
                let start = Instant::now();
                self.write(n, ENDPOINTS, ready, || {
                    loop {
                        let said = news.recv_timeout(PATIENCE)?;
                        if said.address == vip && said.is_announced == ready {
                            wire.push(said.at - start);
                            return Ok(());
                        }
                    }
                })?;
            }
        }
        report("floor: the write is answered", writes);
        report("slice changes -> maps", maps);
        report("slice changes -> UPDATE", wire);
        Ok(())
    }

    /// Writes a slice and waits beside that for what comes of it; gives the time until it was answered.
    fn write(
        &self,
        n: usize,
        endpoints: usize,
        ready: bool,
        wait: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Duration, Error> {
        thread::scope(|scope| {
            let write = scope.spawn(|| {
                let start = Instant::now();
                let path = format!("{}/service-{n}", slices(n));
                self.api.put(&path, &slice(n, endpoints, ready))?.object()?;
                Ok::<_, Error>(start.elapsed())
            });
            wait()?;
            write.join().map_err(|_| "the writer panicked")?
        })
    }

    /// See [`common::backend`].
    fn backend(&self, vip: IpAddr, port: u16) -> Result<IpAddr, Error> {
        common::backend(&self.socket(), self.topology.client.ipv4, vip, port)
    }

    /// Gives each node its pod CIDR.
    fn pod_cidrs(&self) -> Result<(), Error> {
        self.post_all(self.size.nodes, |n| {
            ("/api/v1/nodes".to_owned(), json!({"metadata": {"name": format!("node-{n}")}}))
        })?;
        let (before, start) = (self.written()?.unwrap_or(0), Instant::now());
        self.plane.apply(POD_CIDRS)?;
        wait_until("so many writes", || Ok(self.written()?.is_some_and(|n| n >= before + self.size.nodes)))?;
        let has = |node: &Value| node["spec"]["podCIDR"].is_string();
        wait_until("all nodes have pod CIDRs", || Ok(self.list("/api/v1/nodes")?.iter().all(has)))?;
        let seconds = start.elapsed().as_secs_f64();
        println!("controller: {} nodes have pod CIDRs after {seconds:.1} s", self.size.nodes);
        Ok(())
    }

    /// Prints what a process holds.
    fn memory(&self, name: &str, process: &Process) -> Result<(), Error> {
        let id = process.id().ok_or("it does not run")?;
        let status = fs::read_to_string(format!("/proc/{id}/status"))?;
        let megabytes = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field))?;
            Some(line.trim_matches([':', '\t', ' ', 'k', 'B']).parse::<u64>().ok()? / 1000)
        };
        let fields = ["VmHWM", "VmRSS", "RssAnon", "RssShmem", "RssFile"];
        let said: Vec<_> = fields.map(|field| format!("{field} {} MB", megabytes(field).unwrap_or(0))).into();
        println!("{name}: {}", said.join(", "));
        Ok(())
    }
}

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn namespace(n: usize) -> String {
    format!("namespace-{}", n % NAMESPACES)
}

/// Where the slices of a Service's namespace are.
fn slices(n: usize) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", namespace(n))
}

fn service(n: usize) -> Value {
    json!({
        "metadata": {"name": format!("service-{n}"), "labels": {"app": format!("app-{n}")}},
        "spec": {
            "type": "LoadBalancer",
            "loadBalancerClass": "fairlead.dev/lb",
            "allocateLoadBalancerNodePorts": false,
            "selector": {"app": format!("app-{n}")},
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        },
    })
}

/// As its controller writes it.
fn slice(n: usize, endpoints: usize, ready: bool) -> Value {
    let endpoint = |index: usize| {
        let pod = format!("app-{n}-5d4f8c7b9-{index:05}");
        json!({
            "addresses": [address(n, index)],
            "conditions": {"ready": ready, "serving": ready, "terminating": false},
            "nodeName": format!("node-{}", (n + index) % 1000),
            "zone": format!("zone-{}", index % 3),
            "targetRef": {"kind": "Pod", "namespace": namespace(n), "name": pod, "uid": format!("{n:08x}-0000-0000-0000-{index:012x}")},
        })
    };
    let labels = json!({
        "kubernetes.io/service-name": format!("service-{n}"),
        "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
        "app": format!("app-{n}"),
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": format!("service-{n}"), "namespace": namespace(n), "labels": labels},
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..endpoints).map(endpoint).collect::<Vec<_>>(),
    })
}

fn address(n: usize, index: usize) -> IpAddr {
    let host = n * ENDPOINTS + index;
    IpAddr::from([10, 128 + (host >> 16) as u8, (host >> 8) as u8, host as u8])
}
