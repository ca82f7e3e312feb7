//! The lab: the demo's topology with real routers, the `fairlead` of this workspace on every load balancer and
//! backend, and things to hold against it: [`wait_until`], long-lived connections ([`echo`]), floods ([`load`]), another
//! router ([`bird`]), a Kubernetes control plane ([`control_plane`]), an etcd cluster ([`etcd`]).
use controller::demo::{
    DemoError,
    http::{Load, Sample, Target, Traffic},
    instance::{self, Instance},
    netns::Process,
    router::{Frr, RouterConfig},
    topology::{BALANCER_ASN, Host, ROUTER_ASN, Topology},
};
use controller::serve::rows::ServiceRow;
use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsStr,
    net::IpAddr,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

pub mod bird;
pub mod control_plane;
pub mod dns;
pub mod echo;
pub mod etcd;
pub mod helm;
pub mod load;
pub mod pod;
pub mod probe;
pub mod service_network;
pub mod sites;

/// What a test of the lab fails with.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// VIPs of the service `web` in `deploy/examples`: IPIP, port 80.
pub const WEB: [&str; 2] = ["203.0.113.10", "2001:db8:1::10"];
/// VIPs of the service `api` in `deploy/examples`: NAT, port 8080.
pub const API: [&str; 2] = ["203.0.113.20", "2001:db8:1::20"];

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at what is waited for.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Who routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routing {
    /// FRR, over BGP.
    Frr,
    /// BIRD, over BGP.
    Bird,
    /// Nobody speaks BGP: every packet for a VIP of the examples goes to lb1, by a static route.
    Static,
}

/// A topology at work: a router, HTTP servers on the backends, `fairlead` on load balancers and backends.
#[derive(Debug)]
pub struct Lab {
    /// lb1, lb2, b1, b2, b3.
    pub instances: Vec<Instance>,
    /// HTTP servers by backend.
    pub servers: BTreeMap<String, Process>,
    /// FRR, when it is the router.
    pub frr: Option<Frr>,
    /// BIRD, when it is the router.
    pub bird: Option<bird::Bird>,
    /// Where all of it lives. Dropped after the processes.
    pub topology: Topology,
    _turn: MutexGuard<'static, ()>,
}

impl Lab {
    /// Lays everything out and starts the router and the HTTP servers, but not `fairlead`.
    pub fn prepare(routing: Routing) -> Result<Self, Error> {
        let turn = turn();
        let binary = fairlead();
        let topology = Topology::build("fll")?;
        let neighbors = topology.balancers.iter().map(|h| (h.ipv4.into(), BALANCER_ASN)).collect();
        let config = RouterConfig { asn: ROUTER_ASN, router_id: topology.router.ipv4, neighbors };
        let (router, dir) = (&topology.router.namespace, topology.sandbox.dir().join("router"));
        let (mut frr, mut bird) = (None, None);
        match routing {
            Routing::Frr => frr = Some(Frr::start(router, &dir, &config)?),
            Routing::Bird => bird = Some(bird::Bird::start(router, &dir, &config)?),
            Routing::Static => {
                let lb1 = &topology.balancers[0];
                for vip in WEB.iter().chain(&API).map(|v| address(v)) {
                    router.ip(&format!("route add {vip} via {}", lb1.address(vip.is_ipv4())))?;
                }
            }
        }
        let instances = topology.fairlead_hosts().map(|h| Instance::new(&topology.sandbox, h, binary));
        let instances = instances.collect::<Result<_, _>>()?;
        let servers = topology
            .backends
            .iter()
            .map(|backend| Ok((backend.name.clone(), instance::serve(&topology.sandbox, backend, binary)?)));
        let servers = servers.collect::<Result<_, DemoError>>()?;
        Ok(Lab { instances, servers, frr, bird, topology, _turn: turn })
    }

    /// A lab in which everything runs, all backends of all services are in use, and the router (if it speaks BGP)
    /// has both load balancers as next hops of every VIP.
    pub fn start(routing: Routing) -> Result<Self, Error> {
        let mut lab = Self::prepare(routing)?;
        lab.start_fairlead()?;
        Ok(lab)
    }

    /// Starts `fairlead` everywhere and waits until all that is declared is at work.
    pub fn start_fairlead(&mut self) -> Result<(), Error> {
        for instance in &mut self.instances {
            instance.start()?;
        }
        for balancer in 0..2 {
            self.wait_services(balancer, |rows| {
                let good = |r: &ServiceRow| r.programmed && r.backends.iter().all(|b| b.slots > 0);
                rows.len() >= 4 && rows.iter().all(good)
            })?;
        }
        if self.frr.is_some() || self.bird.is_some() {
            self.wait_next_hops(&[WEB, API].concat(), &[0, 1])?;
        }
        Ok(())
    }

    /// Waits for something that the services of a load balancer must show.
    pub fn wait_services(
        &mut self,
        balancer: usize,
        good: impl Fn(&[ServiceRow]) -> bool,
    ) -> Result<Vec<ServiceRow>, Error> {
        let instance = &mut self.instances[balancer];
        let mut last = None;
        let found = wait_until("the services", || {
            instance.check()?;
            last = instance.services()?;
            Ok(last.as_deref().is_some_and(&good))
        });
        found.map_err(|e| format!("{e}: {last:#?}"))?;
        Ok(last.unwrap_or_default())
    }

    /// Waits until a load balancer has no dirty slot, and so answers for every flow as all others do.
    pub fn wait_clean(&mut self, balancer: usize) -> Result<(), Error> {
        let is_clean = |row: &ServiceRow| row.learning_slots == 0 && row.settled_slots == 0;
        self.wait_services(balancer, |rows| rows.iter().all(is_clean)).map(drop)
    }

    /// Waits until the router's kernel has exactly these load balancers as next hops of these VIPs.
    pub fn wait_next_hops(&mut self, vips: &[&str], balancers: &[usize]) -> Result<(), Error> {
        let mut last = BTreeSet::new();
        let what = format!("the next hops of {vips:?} are the balancers {balancers:?}");
        let done = wait_until(&what, || {
            self.instances.iter_mut().try_for_each(Instance::check)?;
            for vip in vips.iter().map(|v| address(v)) {
                let hosts = balancers.iter().map(|b| &self.topology.balancers[*b]);
                let want: BTreeSet<_> = hosts.map(|h| h.address(vip.is_ipv4())).collect();
                last = self.topology.next_hops(vip)?;
                if last != want {
                    return Ok(false);
                }
            }
            Ok(true)
        });
        done.map_err(|e| format!("{e}; there are {last:?}").into())
    }

    /// Requests to `web` and `api`, IPv4 and IPv6, in this order.
    pub fn traffic(&self) -> Traffic {
        let web = WEB.map(|vip| Target::new("web", address(vip), 80));
        let api = API.map(|vip| Target::new("api", address(vip), 8080));
        let load = Load { clients: 4, pause: Duration::from_millis(20) };
        Traffic::start(&self.topology.client.namespace, &[web, api].concat(), load)
    }

    /// Ends the HTTP server of a backend.
    pub fn stop_server(&mut self, backend: &str) {
        drop(self.servers.remove(backend));
    }

    /// Starts the HTTP server of a backend.
    pub fn start_server(&mut self, backend: usize) -> Result<(), Error> {
        let host = &self.topology.backends[backend];
        let server = instance::serve(&self.topology.sandbox, host, fairlead())?;
        self.servers.insert(host.name.clone(), server);
        Ok(())
    }

    /// A load balancer.
    pub fn balancer(&self, number: usize) -> &Host {
        &self.topology.balancers[number]
    }

    /// What a `fairlead` command prints that asks an instance, and its exit code.
    pub fn ask(&self, instance: usize, arguments: &[&str]) -> Result<(String, i32), Error> {
        let socket = self.instances[instance].socket();
        let output = Command::new(fairlead()).args(arguments).arg("--api-socket").arg(socket).output()?;
        let text = String::from_utf8([output.stdout, output.stderr].concat())?;
        Ok((text, output.status.code().unwrap_or(-1)))
    }

    /// The log of an instance.
    pub fn log(&self, instance: usize) -> Result<String, Error> {
        Ok(std::fs::read_to_string(self.instances[instance].log())?)
    }
}

/// One lab at a time: two would share two CPUs and mistake each other for slowness.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Requests that failed, one line each.
pub fn failures(samples: &[Sample]) -> Vec<String> {
    let failed = samples.iter().filter_map(|s| Some((s.target, s.answer.as_ref().err()?)));
    failed.map(|(target, reason)| format!("target {target}: {reason}")).collect()
}

/// Lets traffic flow for a while and gives all that was begun until then.
pub fn watch(traffic: &mut Traffic, time: Duration) -> Result<Vec<Sample>, Error> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(10));
    }
    Ok(traffic.until(end)?)
}

/// Looks every few milliseconds until `look` says yes, two minutes at most. Looks that take long, as those of `kubectl`, are
/// farther apart: what is waited for needs the CPU.
pub fn wait_until(what: &str, mut look: impl FnMut() -> Result<bool, Error>) -> Result<(), Error> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let began = Instant::now();
        if look()? {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("waited {} s in vain: {what}", PATIENCE.as_secs()).into());
        }
        thread::sleep(began.elapsed().clamp(Duration::from_millis(5), LONGEST_PAUSE));
    }
}

/// An address that is written in a test.
pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap_or_else(|_| panic!("{text} is no address"))
}

/// The program under test; `FAIRLEAD_BIN` names another.
pub fn fairlead() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| build("FAIRLEAD_BIN", &["-p", "controller", "--bin", "fairlead"]))
}

/// An executable: the one that the environment variable `name` names, or one of this workspace, built when it is not up to date, for a
/// bench as the bench is.
fn build(name: &str, what: &[&str]) -> PathBuf {
    if let Some(path) = std::env::var_os(name) {
        return path.into();
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--locked", "--message-format", "json"]).args(what);
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    // What cargo tells this test about itself: packages that look at it (ring) would be built anew, and all above them.
    let of_test =
        |name: &OsStr| name.as_encoded_bytes().starts_with(b"CARGO_PKG_") || name == "CARGO_MANIFEST_DIR";
    for (name, _) in std::env::vars_os().filter(|(name, _)| of_test(name)) {
        build.env_remove(name);
    }
    let output = build.output().unwrap_or_else(|e| panic!("{build:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stdout);
    let mut messages = text.lines().filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok());
    let path = messages.find_map(|m| Some(m["executable"].as_str()?.to_owned()));
    path.unwrap_or_else(|| panic!("{build:?}: {}", String::from_utf8_lossy(&output.stderr))).into()
}
