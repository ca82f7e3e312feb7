//! What happens in the demo, one phase after the other, while clients go on asking. Each phase is an event, the
//! effects that are waited for, a while in which nothing may fail any more, and a judgement on every request that
//! was begun meanwhile.
use super::{
    DemoError,
    http::{Load, Sample, Target, Traffic},
    instance::{Instance, serve},
    netns::Process,
    report::{Effect, Phase, Progress, Share, millis},
    router::Frr,
    topology::Topology,
};
use crate::serve::rows::ServiceRow;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

/// How long an effect may take before the demo gives up.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks at what is waited for.
const LOOK: Duration = Duration::from_millis(5);
/// How long traffic goes on after the effect.
const AFTERWARDS: Duration = Duration::from_secs(2);
/// How long nothing happens at first, and again (up to four times) on a machine too slow for [`ENOUGH`].
const STEADY: Duration = Duration::from_secs(5);
/// So many requests show the shares of the backends.
const ENOUGH: usize = 2000;
/// Slots that lately moved from one live backend to another answer differently on different balancers for flows
/// that they do not know; after this time they do not.
const SETTLED: Duration = Duration::from_secs(5);
/// The traffic of the demo.
const LOAD: Load = Load { clients: 4, pause: Duration::from_millis(20) };
/// More faults of one phase than these are only counted.
const FAULTS_SHOWN: usize = 5;

/// A service as clients see it.
#[derive(Clone, Debug)]
struct Service {
    /// Name in the datapath: `LoadBalancer/web/http/ipv4`.
    key: String,
    target: Target,
    nat: bool,
    /// Backends by name, with their weights.
    weights: BTreeMap<String, u16>,
}

/// Which failures of a phase cannot be avoided, by when the request was begun.
#[derive(Clone, Copy, Debug, Default)]
struct Excuse {
    /// Until then, everywhere.
    everywhere: Option<Instant>,
    /// Until then, where a NAT service was asked.
    nat: Option<Instant>,
}

/// What a phase brought about.
#[derive(Debug, Default)]
struct Happened {
    event: String,
    effects: Vec<Effect>,
    excuse: Excuse,
    /// A backend that must not answer a request begun after the instant.
    silent: Option<(String, Instant)>,
}

/// The demo at work.
pub(super) struct Demo<'a> {
    topology: &'a Topology,
    frr: &'a Frr,
    binary: &'a Path,
    progress: Progress,
    stop: &'a AtomicBool,
    /// Load balancers, then backends.
    instances: Vec<Instance>,
    servers: BTreeMap<String, Process>,
    services: Vec<Service>,
    phases: Vec<Phase>,
    shares: Vec<Share>,
}

impl<'a> Demo<'a> {
    /// Lays out the files and starts the backends' servers.
    pub(super) fn new(
        topology: &'a Topology,
        frr: &'a Frr,
        binary: &'a Path,
        progress: Progress,
        stop: &'a AtomicBool,
    ) -> Result<Self, DemoError> {
        let instances = topology.fairlead_hosts().map(|h| Instance::new(&topology.sandbox, h, binary));
        let instances = instances.collect::<Result<_, _>>()?;
        let (servers, services, phases, shares) = Default::default();
        let mut demo =
            Demo { topology, frr, binary, progress, stop, instances, servers, services, phases, shares };
        for backend in 0..topology.backends.len() {
            demo.serve(backend)?;
        }
        Ok(demo)
    }

    /// All phases. What they found so far is there also after an error.
    pub(super) fn run(&mut self) -> Result<(), DemoError> {
        self.learn()?;
        let targets: Vec<_> = self.services.iter().map(|s| s.target.clone()).collect();
        let mut traffic = Traffic::start(&self.topology.client.namespace, &targets, LOAD);
        self.steady(&mut traffic)?;
        self.kill_backend(&mut traffic)?;
        self.restore_backend(&mut traffic)?;
        self.kill_balancer(&mut traffic)?;
        self.drain(&mut traffic)?;
        self.undrain(&mut traffic)?;
        self.restart_balancer(&mut traffic)
    }

    /// What was found.
    pub(super) fn found(&self) -> (Vec<Phase>, Vec<Share>) {
        (self.phases.clone(), self.shares.clone())
    }

    /// Lets all processes live on.
    pub(super) fn leave(&mut self) {
        self.instances.iter_mut().for_each(Instance::leave);
        std::mem::take(&mut self.servers).into_values().for_each(Process::leave);
    }

    /// How to look around in what was left.
    pub(super) fn guide(&self) -> String {
        let (lb1, binary) = (&self.instances[0], self.binary.display());
        let client = self.topology.client.namespace.name();
        let socket = lb1.socket();
        let socket = socket.display();
        let web = self.services.first().map_or_else(String::new, |s| s.target.address.to_string());
        format!(
            "\nLeft in place, the other hosts by the same pattern. A request:\n  \
             ip netns exec {client} curl -s http://{web}/\n\
             The router:\n  {} -c 'show bgp summary' -c 'show ip route' -c 'show ipv6 route'\n\
             A balancer:\n  {binary} services --api-socket {socket}\n  \
             {binary} bgp routes --api-socket {socket}\n  \
             {binary} get flb --api-socket {socket}\n\
             Its files take effect when saved; its log:\n  ls {}\n  tail -f {}\n\
             Remove it all:\n  sh {}\n",
            self.frr.shell(),
            lb1.config_dir().display(),
            lb1.log().display(),
            self.topology.sandbox.script().display(),
        )
    }

    /// All hosts start; the router learns every VIP from both balancers.
    fn learn(&mut self) -> Result<(), DemoError> {
        let name = "learn";
        self.progress.say(name, "fairlead starts on lb1, lb2, b1, b2 and b3");
        let event = Instant::now();
        for instance in &mut self.instances {
            instance.start()?;
        }
        let wait = self.wait(name, event);
        let rows = wait.until("every service is programmed, with all backends healthy", self, |demo| {
            let both =
                demo.balancers().map(|b| demo.instances[b].services()).collect::<Result<Vec<_>, _>>()?;
            let good = |rows: &Vec<ServiceRow>| {
                let healthy =
                    |r: &ServiceRow| r.backends.iter().all(|b| b.health == "Healthy" && b.slots > 0);
                rows.len() == 4 && rows.iter().all(|r| r.programmed && healthy(r))
            };
            Ok(both
                .iter()
                .all(|r| r.as_ref().is_some_and(good))
                .then(|| both.into_iter().flatten().next())
                .flatten())
        })?;
        let programmed = wait.effect("programmed");
        self.services = rows.iter().filter_map(|row| self.service(row)).collect();
        self.wait_next_hops(&wait, &[0, 1])?;
        let learned = wait.effect("two next hops per VIP in the router's kernel");
        let happened = Happened {
            event: "all processes start".to_owned(),
            effects: vec![programmed, learned],
            ..Happened::default()
        };
        self.judge(name, happened, Vec::new());
        Ok(())
    }

    /// Nothing happens; backends get their shares.
    fn steady(&mut self, traffic: &mut Traffic) -> Result<(), DemoError> {
        let name = "steady";
        self.progress.say(name, &format!("clients ask {} services", self.services.len()));
        let begun = Instant::now();
        let mut samples = Vec::new();
        while samples.len() < ENOUGH && begun.elapsed() < 4 * STEADY {
            self.pause(STEADY)?;
            samples.extend(traffic.until(Instant::now())?);
        }
        self.shares = shares(&self.services, &samples);
        for share in &self.shares {
            let Share { service, mode, backend, requests, share, expected, .. } = share;
            self.progress.say(
                name,
                &format!(
                    "{service} ({mode}) {backend}: {requests} requests, {:.1} % (weight says {:.1} %)",
                    share * 100.0,
                    expected * 100.0
                ),
            );
        }
        self.judge(name, Happened { event: "nothing".to_owned(), ..Happened::default() }, samples);
        Ok(())
    }

    /// The server of b1 dies; the health check takes b1 out on both balancers.
    fn kill_backend(&mut self, traffic: &mut Traffic) -> Result<(), DemoError> {
        let name = "kill";
        self.progress.say(name, "the HTTP server of b1 gets SIGKILL");
        let wait = self.wait(name, Instant::now());
        self.servers.remove("b1");
        self.wait_slots(&wait, &[0, 1], "b1", false)?;
        let out = Instant::now();
        let happened = Happened {
            event: "the server of b1 gets SIGKILL".to_owned(),
            effects: vec![wait.effect("out of both balancers' tables")],
            excuse: Excuse { everywhere: Some(out), nat: None },
            silent: Some(("b1".to_owned(), out)),
        };
        self.conclude(name, happened, traffic)
    }

    /// The server of b1 starts again.
    fn restore_backend(&mut self, traffic: &mut Traffic) -> Result<(), DemoError> {
        let name = "restore";
        self.progress.say(name, "the HTTP server of b1 starts again");
        let wait = self.wait(name, Instant::now());
        self.serve(0)?;
        self.wait_slots(&wait, &[0, 1], "b1", true)?;
        let happened = Happened {
            event: "the server of b1 starts again".to_owned(),
            effects: vec![wait.effect("in both balancers' tables")],
            ..Happened::default()
        };
        self.conclude(name, happened, traffic)
    }

    /// fairlead on lb1 dies: its datapath goes on, and the router takes lb1 out.
    fn kill_balancer(&mut self, traffic: &mut Traffic) -> Result<(), DemoError> {
        let name = "failover";
        self.pause(SETTLED)?;
        self.progress.say(name, "fairlead on lb1 gets SIGKILL");
        let wait = self.wait(name, Instant::now());
        self.instances[0].kill();
        self.wait_next_hops(&wait, &[1])?;
        let happened = Happened {
            event: "fairlead on lb1 gets SIGKILL".to_owned(),
            effects: vec![wait.effect("one next hop per VIP in the router's kernel")],
            excuse: Excuse { everywhere: None, nat: Some(Instant::now()) },
            silent: None,
        };
        self.conclude(name, happened, traffic)
    }

    /// b2 gets weight 0 on lb2, the balancer that is left.
    fn drain(&mut self, traffic: &mut Traffic) -> Result<(), DemoError> {
        let name = "drain";
        self.progress.say(name, "b2 gets weight 0 in the files of lb2");
        let wait = self.wait(name, Instant::now());
        for file in ["web.yaml", "api.yaml"] {
            let text = self.instances[1].read(file)?;
            self.instances[1].write(file, &drained(&text, &self.topology.backends[1].addresses()))?;
        }
        self.wait_slots(&wait, &[1], "b2", false)?;
        let out = Instant::now();
        let happened = Happened {
            event: "b2 gets weight 0 in the files of lb2".to_owned(),
            effects: vec![wait.effect("out of the tables")],
            silent: Some(("b2".to_owned(), out)),
            ..Happened::default()
        };
        self.conclude(name, happened, traffic)
    }

    /// b2 gets its weight back.
    fn undrain(&mut self, traffic: &mut Traffic) -> Result<(), DemoError> {
        let name = "undrain";
        self.progress.say(name, "b2 gets its weight back");
        let wait = self.wait(name, Instant::now());
        for file in ["web.yaml", "api.yaml"] {
            let text = self.instances[0].read(file)?;
            self.instances[1].write(file, &text)?;
        }
        self.wait_slots(&wait, &[1], "b2", true)?;
        let happened = Happened {
            event: "b2 gets its weight back".to_owned(),
            effects: vec![wait.effect("in the tables")],
            ..Happened::default()
        };
        self.conclude(name, happened, traffic)
    }

    /// fairlead on lb1 starts again and takes up what it finds installed.
    fn restart_balancer(&mut self, traffic: &mut Traffic) -> Result<(), DemoError> {
        let name = "restart";
        self.pause(SETTLED)?;
        self.progress.say(name, "fairlead on lb1 starts again");
        let wait = self.wait(name, Instant::now());
        self.instances[0].start()?;
        self.wait_next_hops(&wait, &[0, 1])?;
        let happened = Happened {
            event: "fairlead on lb1 starts again".to_owned(),
            effects: vec![wait.effect("two next hops per VIP in the router's kernel")],
            excuse: Excuse { everywhere: None, nat: Some(Instant::now()) },
            silent: None,
        };
        self.conclude(name, happened, traffic)
    }

    /// Lets traffic go on for a while and judges all of it.
    fn conclude(&mut self, name: &str, happened: Happened, traffic: &mut Traffic) -> Result<(), DemoError> {
        for effect in &happened.effects {
            self.progress.say(name, &format!("{} after {:.0} ms", effect.what, effect.millis));
        }
        self.pause(AFTERWARDS)?;
        let samples = traffic.until(Instant::now())?;
        self.judge(name, happened, samples);
        Ok(())
    }

    fn judge(&mut self, name: &str, happened: Happened, samples: Vec<Sample>) {
        let Happened { event, effects, excuse, silent } = happened;
        let mut phase = Phase { name: name.to_owned(), event, effects, ..Phase::default() };
        let mut faults = Vec::new();
        for sample in &samples {
            let service = &self.services[sample.target];
            phase.requests += 1;
            match &sample.answer {
                Ok(backend) => {
                    phase.slowest_millis = phase.slowest_millis.max(millis(sample.ended - sample.started));
                    if silent.as_ref().is_some_and(|(b, since)| b == backend && sample.started > *since) {
                        faults.push(format!(
                            "{backend} still gets new connections for {}",
                            service.target.name
                        ));
                    }
                }
                Err(reason) => {
                    phase.failed += 1;
                    let until = excuse.everywhere.max(excuse.nat.filter(|_| service.nat));
                    if until.is_some_and(|until| sample.started <= until) {
                        phase.excused += 1;
                    } else {
                        phase.lost += 1;
                        faults.push(format!("a request to {} was lost: {reason}", service.target.name));
                    }
                }
            }
        }
        let more = faults.len().saturating_sub(FAULTS_SHOWN);
        faults.truncate(FAULTS_SHOWN);
        if more > 0 {
            faults.push(format!("and {more} more"));
        }
        let Phase { requests, failed, excused, lost, .. } = phase;
        if requests > 0 {
            self.progress.say(
                name,
                &format!("{requests} requests, {failed} failed, {excused} of them excused, {lost} lost"),
            );
        }
        for fault in &faults {
            self.progress.say(name, &format!("FAULT: {fault}"));
        }
        phase.faults = faults;
        self.phases.push(phase);
    }

    /// (Re)starts the HTTP server of a backend, a process of its own.
    fn serve(&mut self, backend: usize) -> Result<(), DemoError> {
        let host = &self.topology.backends[backend];
        let server = serve(&self.topology.sandbox, host, self.binary)?;
        self.servers.insert(host.name.clone(), server);
        Ok(())
    }

    /// Positions of the load balancers among the instances.
    fn balancers(&self) -> std::ops::Range<usize> {
        0..self.topology.balancers.len()
    }

    /// The service behind a row of the API.
    fn service(&self, row: &ServiceRow) -> Option<Service> {
        let frontend = row.frontends.first()?;
        let name = row.name.split('/').nth(1)?;
        let weights =
            row.backends.iter().filter_map(|b| Some((self.backend(b.address)?.to_owned(), b.weight?)));
        Some(Service {
            key: row.name.clone(),
            target: Target::new(name, frontend.address, frontend.port),
            nat: row.mode == "NAT",
            weights: weights.collect(),
        })
    }

    /// Name of the backend that has an address.
    fn backend(&self, address: IpAddr) -> Option<&str> {
        let host = self.topology.backends.iter().find(|h| h.addresses().contains(&address))?;
        Some(&host.name)
    }

    /// Waits until the router's kernel has exactly these balancers as next hops of every VIP.
    fn wait_next_hops(&mut self, wait: &Wait, balancers: &[usize]) -> Result<(), DemoError> {
        let vips: BTreeSet<_> = self.services.iter().map(|s| s.target.address.ip()).collect();
        let what = format!("the router's next hops of {vips:?} are {balancers:?}");
        wait.until(&what, self, |demo| {
            for vip in &vips {
                let want: BTreeSet<_> =
                    balancers.iter().map(|b| demo.topology.balancers[*b].address(vip.is_ipv4())).collect();
                if demo.topology.next_hops(*vip)? != want {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    /// Waits until a backend has slots, or none, in every service of these balancers.
    fn wait_slots(
        &mut self,
        wait: &Wait,
        balancers: &[usize],
        name: &str,
        any: bool,
    ) -> Result<(), DemoError> {
        let what = format!("{name} has {} in the tables", if any { "slots" } else { "no slots" });
        wait.until(&what, self, |demo| {
            for balancer in balancers {
                let Some(rows) = demo.instances[*balancer].services()? else { return Ok(None) };
                let of_host = |a: IpAddr| demo.backend(a) == Some(name);
                let as_wanted = |row: &ServiceRow| {
                    let mut slots = row.backends.iter().filter(|b| of_host(b.address)).map(|b| b.slots > 0);
                    slots.next().unwrap_or(false) == any
                };
                let ours = rows.iter().filter(|r| demo.services.iter().any(|s| s.key == r.name));
                if ours.clone().count() != demo.services.len() || !ours.clone().all(as_wanted) {
                    return Ok(None);
                }
            }
            Ok(Some(()))
        })
    }

    fn wait(&self, phase: &str, event: Instant) -> Wait {
        Wait { phase: phase.to_owned(), event }
    }

    /// Lets time pass.
    fn pause(&mut self, time: Duration) -> Result<(), DemoError> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.alive()?;
            thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
        }
        Ok(())
    }

    /// An error when a signal came or a process has ended that should not.
    fn alive(&mut self) -> Result<(), DemoError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(DemoError::Interrupted);
        }
        for instance in &mut self.instances {
            instance.check()?;
        }
        for (name, server) in &mut self.servers {
            if let Some(how) = server.ended() {
                return Err(DemoError::command(format!("the HTTP server of {name}"), how));
            }
        }
        Ok(())
    }
}

/// Waiting for the effects of an event.
struct Wait {
    phase: String,
    event: Instant,
}

impl Wait {
    /// Looks until there is a value.
    fn until<T>(
        &self,
        what: &str,
        demo: &mut Demo<'_>,
        mut look: impl FnMut(&Demo<'_>) -> Result<Option<T>, DemoError>,
    ) -> Result<T, DemoError> {
        loop {
            demo.alive()?;
            if let Some(value) = look(demo)? {
                return Ok(value);
            }
            if self.event.elapsed() > PATIENCE {
                let what = format!("in the phase {}: {what}", self.phase);
                return Err(DemoError::Timeout { what, seconds: PATIENCE.as_secs() });
            }
            thread::sleep(LOOK);
        }
    }

    /// That something was seen just now.
    fn effect(&self, what: &str) -> Effect {
        Effect::new(what, self.event.elapsed())
    }
}

/// Who answered how many requests.
fn shares(services: &[Service], samples: &[Sample]) -> Vec<Share> {
    let mut shares = Vec::new();
    for (index, service) in services.iter().enumerate() {
        let answers =
            || samples.iter().filter(|s| s.target == index).filter_map(|s| s.answer.as_deref().ok());
        let (all, weights) =
            (answers().count(), service.weights.values().copied().map(u64::from).sum::<u64>());
        for (backend, weight) in &service.weights {
            let requests = answers().filter(|b| b == backend).count();
            shares.push(Share {
                service: service.target.name.clone(),
                mode: if service.nat { "NAT" } else { "IPIP" }.to_owned(),
                backend: backend.clone(),
                weight: *weight,
                requests,
                share: requests as f64 / all.max(1) as f64,
                expected: f64::from(*weight) / weights.max(1) as f64,
            });
        }
    }
    shares
}

/// The text of a LoadBalancer's file with weight 0 for the backends that have these addresses.
fn drained(text: &str, addresses: &[IpAddr]) -> String {
    let mut lines = Vec::new();
    for line in text.lines() {
        let quoted = |a: &IpAddr| if a.is_ipv6() { format!("\"{a}\"") } else { a.to_string() };
        let address = addresses.iter().map(quoted).find(|a| {
            line.strip_prefix("  - {address: ")
                .is_some_and(|rest| rest.trim_start_matches(a.as_str()).starts_with([',', '}']))
        });
        lines.push(address.map_or_else(|| line.to_owned(), |a| format!("  - {{address: {a}, weight: 0}}")));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::instance::EXAMPLES;

    #[test]
    fn draining_changes_the_lines_of_one_backend() {
        let addresses = ["10.1.0.12".parse().unwrap(), "fd00:20::12".parse().unwrap()];
        for (name, text) in EXAMPLES {
            let after = drained(text, &addresses);
            let changed: Vec<_> =
                text.lines().zip(after.lines()).filter(|(a, b)| a != b).map(|(_, b)| b).collect();
            let want = ["  - {address: 10.1.0.12, weight: 0}", "  - {address: \"fd00:20::12\", weight: 0}"];
            assert_eq!(text.lines().count(), after.lines().count());
            assert_eq!(
                changed,
                if matches!(name, "api.yaml" | "web.yaml") { &want[..] } else { &[] },
                "{name}"
            );
        }
    }

    #[test]
    fn shares_are_counted_per_service() {
        let service = Service {
            key: "LoadBalancer/web/http/ipv4".to_owned(),
            target: Target::new("web", "203.0.113.10".parse().unwrap(), 80),
            nat: false,
            weights: [("b1".to_owned(), 3), ("b2".to_owned(), 1)].into(),
        };
        let sample = |target, answer: Result<&str, &str>| Sample::new(target, answer);
        let samples = [
            sample(0, Ok("b1")),
            sample(0, Ok("b1")),
            sample(0, Ok("b2")),
            sample(0, Err("connect: refused")),
            sample(1, Ok("b2")),
        ];
        let shares: Vec<_> =
            shares(&[service], &samples).into_iter().map(|s| (s.requests, s.expected)).collect();
        assert_eq!(shares, [(2, 0.75), (1, 0.25)]);
    }
}
