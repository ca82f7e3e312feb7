//! Five linked clusters with 2,000 exported Services each, of 1 to 5 endpoints: how long `fairlead controller` takes to import
//! them, what it holds for them, how soon a change there is written here and in the kernel's maps, and how soon a link is whole again.
//! Needs root. `cargo bench -p lab --bench clusters [-- SERVICES]`
//!
//! One real API server stands for all five clusters, by five links through one proxy: so each change comes five times at once,
//! and counts when it has come from all five. Here each exported Service is a load balancer, too, of one agent, by a policy that
//! takes the endpoints of all clusters.
//!
//! - *slice*: from the moment that a write of an EndpointSlice begins there until the five slices here show it (they are listed
//!   every few milliseconds).
//! - *maps*: until the kernel's tables send a flow elsewhere (they are read every few milliseconds, through the agent's socket).
//! - *recovery*: from the moment that the way is free again until all five links are `Connected` and what has changed meanwhile is
//!   here.
//! - *memory*: what the controller has more than before the links, per imported endpoint.
//! - Floor of the same run: the write itself, until it is answered.
//!
//! Both API servers, etcd, the controller and the agent share the CPUs of one machine; etcd does not sync.
use common::{PAUSE, backend, report, write_all};
use controller::demo::{netns::Process, topology::Topology};
use lab::{
    Error,
    control_plane::{Api, ControlPlane, Fault, Proxy},
    fairlead, wait_until,
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

#[path = "kubernetes/common.rs"]
mod common;

const LINKS: [&str; 5] = ["east1", "east2", "east3", "east4", "east5"];
const NAMESPACES: usize = 100;
const CONFIG: &str = "\
kind: AddressPool\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: vips}\nspec: {blocks: [{cidr: 10.64.0.0/16}]}\n---\n\
kind: BGPRouter\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: all}\nspec: {asn: 65010}\n---\n\
kind: ServicePolicy\napiVersion: fairlead.dev/v1alpha1\nmetadata: {name: all}\n\
spec: {policy: {clusters: {prefer: None}}}\n";
/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);

fn main() -> Result<(), Error> {
    // `cargo test --benches` runs benches, too, to see that they work.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let services = std::env::args().find_map(|argument| argument.parse().ok());
    let (services, changes) = if is_bench { (services.unwrap_or(2_000), 100) } else { (20, 2) };
    let topology = Topology::build("flc")?;
    let start = || -> Result<ControlPlane, Error> {
        let plane = ControlPlane::start_in(&topology.router.namespace, topology.router.ipv4.into())?;
        plane.install_multicluster()?;
        Ok(plane)
    };
    let (home, east) = (start()?, start()?);
    let (api, remote) = (home.api()?, east.api()?);
    home.apply(CONFIG)?;
    fill(&api, &remote, services)?;
    Bench { services, home, east, api, remote, topology }.run(changes)
}

/// Both clusters, and what is in them.
struct Bench {
    services: usize,
    home: ControlPlane,
    east: ControlPlane,
    api: Api,
    remote: Api,
    /// Dropped after the processes.
    topology: Topology,
}

impl Bench {
    fn run(&self, changes: usize) -> Result<(), Error> {
        let controller = self.spawn("controller", &[])?;
        wait_until("all Services have addresses", || Ok(self.vips()?.len() == self.services))?;
        let before = anonymous(&controller)?;
        let (start, way) = (Instant::now(), self.link()?);
        wait_until("all is imported", || {
            let links = self.links()?;
            let want = self.services as u64;
            Ok(links.iter().all(|link| link["status"]["importedServices"].as_u64() == Some(want)))
        })?;
        let wanted: usize = (0..self.services).map(endpoints).sum::<usize>() * LINKS.len();
        wait_until("all slices are written", || {
            // To list all takes long.
            let last = self.services - 1;
            Ok(self.shows(last, endpoints(last))? && self.imported()? == self.services * LINKS.len())
        })?;
        let after = anonymous(&controller)?;
        println!("import of {wanted} endpoints: {:.1} s", start.elapsed().as_secs_f64());
        let each = (after.saturating_sub(before)) as f64 / wanted as f64;
        println!("memory: {before} kB without links, {after} kB with them; {each:.2} kB per endpoint");
        let _agent = self.agent()?;
        self.changes(changes)?;
        self.recovery((changes / 20).max(1), &way)
    }

    /// Starts a process of ours: the controller at the router, the agent on a balancer.
    fn spawn(&self, role: &str, more: &[&str]) -> Result<Process, Error> {
        let host = if role == "agent" { &self.topology.balancers[0] } else { &self.topology.router };
        let mut command = Command::new(fairlead());
        command.arg(role).args(more).args(["--namespace", "fairlead-system", "--metrics", "127.0.0.1:9617"]);
        let config = self.home.kubeconfig_of("fairlead-system", &format!("fairlead-{role}"))?;
        command.arg("--kubeconfig").arg(config);
        Ok(host.namespace.spawn(command, &self.topology.sandbox.dir().join(format!("{role}.log")))?)
    }

    /// An agent that has all in its maps.
    fn agent(&self) -> Result<Process, Error> {
        let (start, socket) = (Instant::now(), self.socket());
        // What is pinned under the name of a namespace goes with the sandbox.
        let node = self.topology.balancers[0].namespace.name();
        let socket = socket.to_str().ok_or("a path that is no text")?;
        // Few flows: a trace, by which the maps are read, counts them all.
        let sizes = "vips=32768,slots=4194304,backends=131072,flows=4096";
        let names = ["--interface", "eth0", "--node-name", node, "--api-socket", socket, "--map-size", sizes];
        let agent = self.spawn("agent", &names)?;
        let vips = self.vips()?;
        wait_until("all are in the maps", || Ok(vips.values().all(|vip| self.backend(*vip, 1024).is_ok())))?;
        println!("agent: all are programmed after {:.1} s", start.elapsed().as_secs_f64());
        wait_until("all Services say so", || {
            let list = self.api.get("/api/v1/services")?.object()?;
            let is_said = |service: &&Value| says(service, "fairlead.dev/Programmed", "True");
            Ok(list["items"].as_array().into_iter().flatten().filter(is_said).count() == self.services)
        })?;
        Ok(agent)
    }

    fn socket(&self) -> PathBuf {
        self.topology.sandbox.dir().join("agent.sock")
    }

    fn backend(&self, vip: IpAddr, port: u16) -> Result<IpAddr, Error> {
        backend(&self.socket(), self.topology.client.ipv4, vip, port)
    }

    /// The addresses of the Services that have one.
    fn vips(&self) -> Result<BTreeMap<String, IpAddr>, Error> {
        let list = self.api.get("/api/v1/services")?.object()?;
        let vip = |service: &Value| -> Option<(String, IpAddr)> {
            let address = service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str()?;
            Some((service["metadata"]["name"].as_str()?.to_owned(), address.parse().ok()?))
        };
        Ok(list["items"].as_array().into_iter().flatten().filter_map(vip).collect())
    }

    /// Takes the last endpoint out of single slices and puts it back in: first while the slices here are looked at, then while the maps are.
    fn changes(&self, changes: usize) -> Result<(), Error> {
        let (mut floor, mut written, mut maps) = (Vec::new(), Vec::new(), Vec::new());
        let vips = self.vips()?;
        // One with a single endpoint has no other one.
        for n in (0..).map(|change| change * 37 % self.services).filter(|n| endpoints(*n) > 1).take(changes) {
            let all = endpoints(n);
            for count in [all - 1, all] {
                let start = Instant::now();
                self.write(n, count)?;
                floor.push(start.elapsed());
                self.wait(n, count)?;
                written.push(start.elapsed());
            }
            let vip = *vips.get(&format!("service-{n}")).ok_or("a Service without an address")?;
            let last = address(n, all - 1);
            let goes_there = |port| self.backend(vip, port).is_ok_and(|backend| backend == last);
            let mut flow = 0;
            wait_until(&format!("a flow to {vip} goes to {last}"), || {
                flow = (1024..2048).find(|port| goes_there(*port)).unwrap_or(0);
                Ok(flow > 0)
            })?;
            for count in [all - 1, all] {
                let start = Instant::now();
                self.write(n, count)?;
                while (self.backend(vip, flow)? == last) != (count == all) {
                    if start.elapsed() > PATIENCE {
                        return Err("the table does not change".into());
                    }
                    thread::sleep(PAUSE);
                }
                maps.push(start.elapsed());
            }
        }
        report("floor: the write is answered", floor);
        report("slice changes there -> five slices here", written);
        report("slice changes there -> maps here", maps);
        Ok(())
    }

    /// Cuts the way of all links and frees it again.
    fn recovery(&self, times: usize, way: &Proxy) -> Result<(), Error> {
        let mut recovered = Vec::new();
        for _ in 0..times {
            way.set(|_| Fault::Close);
            way.cut();
            self.wait_connected("False")?;
            self.write(0, endpoints(0) + 1)?;
            way.set(|_| Fault::None);
            let start = Instant::now();
            self.wait_connected("True")?;
            self.wait(0, endpoints(0) + 1)?;
            recovered.push(start.elapsed());
            self.write(0, endpoints(0))?;
            self.wait(0, endpoints(0))?;
        }
        report("the way is free -> links connected, change here", recovered);
        Ok(())
    }

    /// Declares the links, all through one proxy.
    fn link(&self) -> Result<Proxy, Error> {
        let way = self.east.proxy(&self.east.kubeconfig_of("fairlead-system", "fairlead-remote")?)?;
        let kubeconfig = fs::read_to_string(way.kubeconfig())?;
        for name in LINKS {
            self.home.link(name, &kubeconfig, 60)?;
        }
        Ok(way)
    }

    fn links(&self) -> Result<Vec<Value>, Error> {
        let list = self.api.get("/apis/fairlead.dev/v1alpha1/clusterlinks")?.object()?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    fn wait_connected(&self, status: &str) -> Result<(), Error> {
        wait_until(&format!("all links have Connected={status}"), || {
            Ok(self.links()?.iter().all(|link| says(link, "Connected", status)))
        })
    }

    fn write(&self, n: usize, count: usize) -> Result<(), Error> {
        self.remote.put(&format!("{}/service-{n}", slices(n)), &slice(n, count))?.object().map(drop)
    }

    /// How many slices there are of other clusters.
    fn imported(&self) -> Result<usize, Error> {
        let selector = "multicluster.kubernetes.io/source-cluster";
        let list =
            self.api.get(&format!("/apis/discovery.k8s.io/v1/endpointslices?labelSelector={selector}"))?;
        Ok(list.object()?["items"].as_array().map_or(0, Vec::len))
    }

    /// Whether the slices of all links have so many endpoints.
    fn shows(&self, n: usize, count: usize) -> Result<bool, Error> {
        let selector = format!("multicluster.kubernetes.io/service-name%3Dservice-{n}");
        let list = self.api.get(&format!("{}?labelSelector={selector}", slices(n)))?.object()?;
        let has = |slice: &&Value| slice["endpoints"].as_array().is_some_and(|all| all.len() == count);
        Ok(list["items"].as_array().into_iter().flatten().filter(has).count() == LINKS.len())
    }

    fn wait(&self, n: usize, count: usize) -> Result<(), Error> {
        wait_until(&format!("service-{n} has {count} endpoints of each cluster"), || {
            thread::sleep(PAUSE);
            self.shows(n, count)
        })
    }
}

/// Creates the namespaces in both clusters, and what the other one exports.
fn fill(home: &Api, east: &Api, services: usize) -> Result<(), Error> {
    for n in 0..NAMESPACES.min(services) {
        let object = json!({"metadata": {"name": namespace(n)}});
        for api in [home, east] {
            api.post("/api/v1/namespaces", &object)?.object()?;
        }
    }
    write_all(services, |n| {
        let metadata = json!({"name": format!("service-{n}")});
        let export = json!({
            "apiVersion": "multicluster.x-k8s.io/v1alpha1", "kind": "ServiceExport", "metadata": metadata,
        });
        let service = json!({"metadata": metadata, "spec": {"ports": [{"name": "http", "port": 80}]}});
        let balanced = json!({"metadata": metadata, "spec": {
            "type": "LoadBalancer", "loadBalancerClass": "fairlead.dev/lb", "allocateLoadBalancerNodePorts": false,
            "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
        }});
        let (core, mcs) = ("/api/v1", "/apis/multicluster.x-k8s.io/v1alpha1");
        let within = format!("namespaces/{}", namespace(n));
        east.post(&format!("{core}/{within}/services"), &service)?.object()?;
        home.post(&format!("{core}/{within}/services"), &balanced)?.object()?;
        east.post(&slices(n), &slice(n, endpoints(n)))?.object()?;
        east.post(&format!("{mcs}/{within}/serviceexports"), &export)?.object()?;
        Ok(())
    })
}

/// Whether an object has a condition with this status.
fn says(object: &Value, type_: &str, status: &str) -> bool {
    let mut conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.any(|said| said["type"] == type_ && said["status"] == status)
}

/// How many endpoints a Service has.
fn endpoints(n: usize) -> usize {
    1 + n % 5
}

fn namespace(n: usize) -> String {
    format!("namespace-{}", n % NAMESPACES)
}

/// Where the slices of a Service's namespace are.
fn slices(n: usize) -> String {
    format!("/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices", namespace(n))
}

fn address(n: usize, index: usize) -> IpAddr {
    let host = n * 8 + index;
    Ipv4Addr::new(10, 128 + (host >> 16) as u8, (host >> 8) as u8, host as u8).into()
}

fn slice(n: usize, count: usize) -> Value {
    let endpoint = |index: usize| {
        json!({
            "addresses": [address(n, index)],
            "conditions": {"ready": true, "serving": true, "terminating": false},
        })
    };
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("service-{n}"), "namespace": namespace(n),
            "labels": {"kubernetes.io/service-name": format!("service-{n}")},
        },
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": (0..count).map(endpoint).collect::<Vec<_>>(),
    })
}

/// Resident memory of a process that no file stands behind, in kB.
fn anonymous(process: &Process) -> Result<u64, Error> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id().ok_or("it does not run")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).ok_or("no RssAnon")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
