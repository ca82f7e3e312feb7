//! Five linked clusters with 2,000 exported Services each, of 1 to 5 endpoints: how long `fairlead controller` takes to import
//! them, what it holds for them, how soon a change there is written here, and how soon a link is whole again. Needs root.
//! `cargo bench -p lab --bench clusters [-- SERVICES]`
//!
//! One real API server stands for all five clusters, by five links through one proxy: so each change comes five times at once,
//! and counts as written when the last of the five slices is.
//!
//! - *slice*: from the moment that a write of an EndpointSlice begins there until the five slices here show it (they are listed
//!   every few milliseconds).
//! - *recovery*: from the moment that the way is free again until all five links are `Connected` and what has changed meanwhile is
//!   here.
//! - *memory*: what the controller has more than before the links, per imported endpoint.
//! - Floor of the same run: the write itself, until it is answered.
//!
//! Both API servers, etcd and the controller share the CPUs of one machine; etcd does not sync.
use common::{report, write_all};
use controller::demo::netns::{Process, Sandbox};
use lab::{
    Error,
    control_plane::{Api, ControlPlane, Fault, Proxy},
    fairlead, wait_until,
};
use serde_json::{Value, json};
use std::{
    fs,
    net::Ipv4Addr,
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

#[path = "kubernetes/common.rs"]
mod common;

const LINKS: [&str; 5] = ["east1", "east2", "east3", "east4", "east5"];
const NAMESPACES: usize = 100;
/// Between two looks at what is written.
const PAUSE: Duration = Duration::from_millis(2);

fn main() -> Result<(), Error> {
    // `cargo test --benches` runs benches, too, to see that they work.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let services = std::env::args().find_map(|argument| argument.parse().ok());
    let (services, changes) = if is_bench { (services.unwrap_or(2_000), 100) } else { (20, 2) };
    let sandbox = Sandbox::create("flc")?;
    let namespace = sandbox.namespace("home")?;
    let start = || -> Result<ControlPlane, Error> {
        let plane = ControlPlane::start_in(&namespace, Ipv4Addr::LOCALHOST.into())?;
        plane.install()?;
        let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/mcs-api");
        plane.kubectl(&["apply", "--server-side", "-k", definitions.to_str().ok_or("no text")?])?;
        plane.kubectl(&["wait", "--for=condition=Established", "--timeout=120s", "crd", "--all"])?;
        Ok(plane)
    };
    let (home, east) = (start()?, start()?);
    let (api, remote) = (home.api()?, east.api()?);
    fill(&api, &remote, services)?;
    let mut command = Command::new(fairlead());
    let config = home.kubeconfig_of("fairlead-system", "fairlead-controller")?;
    command.args(["controller", "--namespace", "fairlead-system", "--metrics", "127.0.0.1:9617"]);
    command.arg("--kubeconfig").arg(config);
    let controller = namespace.spawn(command, &sandbox.dir().join("controller.log"))?;
    let bench = Bench { services, home, east, api, remote };
    bench.run(&controller, changes)
}

/// Both clusters, and what is in them.
struct Bench {
    services: usize,
    home: ControlPlane,
    east: ControlPlane,
    api: Api,
    remote: Api,
}

impl Bench {
    fn run(&self, controller: &Process, changes: usize) -> Result<(), Error> {
        wait_until("the controller leads", || {
            let lease = self.home.kubectl(&["get", "leases", "-n", "fairlead-system", "-o", "name"]);
            Ok(!lease?.is_empty())
        })?;
        let before = anonymous(controller)?;
        let (start, way) = (Instant::now(), self.link()?);
        wait_until("all is imported", || {
            let links = self.links()?;
            let want = self.services as u64;
            Ok(links.iter().all(|link| link["status"]["importedServices"].as_u64() == Some(want)))
        })?;
        let wanted: usize = (0..self.services).map(endpoints).sum::<usize>() * LINKS.len();
        wait_until("all slices are written", || {
            let last = self.services - 1;
            self.shows(last, endpoints(last))
        })?;
        let after = anonymous(controller)?;
        println!("import of {wanted} endpoints: {:.1} s", start.elapsed().as_secs_f64());
        let each = (after.saturating_sub(before)) as f64 / wanted as f64;
        println!("memory: {before} kB without links, {after} kB with them; {each:.2} kB per endpoint");
        let (mut floor, mut written) = (Vec::new(), Vec::new());
        for change in 0..changes {
            let n = change * 37 % self.services;
            for count in [endpoints(n) + 1, endpoints(n)] {
                let start = Instant::now();
                self.write(n, count)?;
                floor.push(start.elapsed());
                self.wait(n, count)?;
                written.push(start.elapsed());
            }
        }
        report("floor: the write is answered", floor);
        report("slice changes there -> five slices here", written);
        let mut recovered = Vec::new();
        for _ in 0..(changes / 20).max(1) {
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
        let reader = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/kubernetes/remote-reader.yaml");
        self.east.apply(&fs::read_to_string(reader)?)?;
        let way = self.east.proxy(&self.east.kubeconfig_of("fairlead-system", "fairlead-remote")?)?;
        let kubeconfig = fs::read_to_string(way.kubeconfig())?;
        for name in LINKS {
            let secret = json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "fairlead-system"},
                "stringData": {"kubeconfig": kubeconfig},
            });
            let link = json!({
                "apiVersion": "fairlead.dev/v1alpha1", "kind": "ClusterLink", "metadata": {"name": name},
                "spec": {"kubeconfigSecretRef": {"name": name, "key": "kubeconfig"}},
            });
            self.home.apply(&format!("{secret}\n---\n{link}"))?;
        }
        Ok(way)
    }

    fn links(&self) -> Result<Vec<Value>, Error> {
        let list = self.api.get("/apis/fairlead.dev/v1alpha1/clusterlinks")?.object()?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    fn wait_connected(&self, status: &str) -> Result<(), Error> {
        wait_until(&format!("all links have Connected={status}"), || {
            let says = |link: &Value| {
                let conditions = link["status"]["conditions"].as_array();
                let mut conditions = conditions.into_iter().flatten();
                conditions.any(|said| said["type"] == "Connected" && said["status"] == status)
            };
            Ok(self.links()?.iter().all(says))
        })
    }

    fn write(&self, n: usize, count: usize) -> Result<(), Error> {
        self.remote.put(&format!("{}/service-{n}", slices(n)), &slice(n, count))?.object().map(drop)
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
        let (core, mcs) = ("/api/v1", "/apis/multicluster.x-k8s.io/v1alpha1");
        let within = format!("namespaces/{}", namespace(n));
        east.post(&format!("{core}/{within}/services"), &service)?.object()?;
        east.post(&slices(n), &slice(n, endpoints(n)))?.object()?;
        east.post(&format!("{mcs}/{within}/serviceexports"), &export)?.object()?;
        Ok(())
    })
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

fn slice(n: usize, count: usize) -> Value {
    let endpoint = |index: usize| {
        let host = n * 8 + index;
        json!({
            "addresses": [Ipv4Addr::new(10, 128 + (host >> 16) as u8, (host >> 8) as u8, host as u8)],
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
