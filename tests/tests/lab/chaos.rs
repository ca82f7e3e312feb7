//! Random failures and changes under traffic, with FRR as the router. `FAIRLEAD_CHAOS_SEED` repeats a run, and
//! `FAIRLEAD_CHAOS_STEPS` makes it longer or shorter.
//!
//! Of requests and connections only these may fail:
//! - requests that were open at some time between the death of a backend's server and the moment when no balancer sent
//!   to it any more: nobody can know earlier than the health checks;
//! - NAT: what was open while the router moved flows between balancers (from a balancer's death until it has it from BGP
//!   only, and from its return until it has both): the way back of a NAT flow is known to one balancer.
//!
//! After each death of a balancer's process its maps are read: they must be what `fairlead services` said, and no flow
//! may be left with a backend that is down or gone.
use crate::restart::{add_echo, ipip, nat};
use controller::{demo::http::Sample, serve::rows::ServiceRow};
use lab::{API, Error, Lab, Routing, WEB, echo, wait_until, watch};
use lb_bpf::{Datapath, Options, Sizes, TunnelSources};
use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    path::Path,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

const STEPS: u64 = 10;
const WEB_TARGETS: [usize; 2] = [0, 1];
const NAT_TARGETS: [usize; 2] = [2, 3];

/// When requests to which targets may fail, and why.
#[derive(Debug)]
struct Excuse {
    from: Instant,
    until: Instant,
    targets: Vec<usize>,
    why: &'static str,
}

impl Excuse {
    fn covers(&self, sample: &Sample) -> bool {
        self.targets.contains(&sample.target) && sample.started <= self.until && sample.ended >= self.from
    }
}

/// xorshift64 (Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n) as usize
    }
}

fn number(variable: &str) -> Result<Option<u64>, Error> {
    env::var(variable).ok().map(|text| Ok(text.parse()?)).transpose()
}

#[test]
fn random_failures_lose_nothing_that_could_be_kept() -> Result<(), Error> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed = number("FAIRLEAD_CHAOS_SEED")?.unwrap_or(time).max(1);
    println!("FAIRLEAD_CHAOS_SEED={seed}");
    let mut random = Random(seed);
    let mut lab = Lab::prepare(Routing::Frr)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let tunnelled = echo::Connections::open(&client, &ipip(), 12)?;
    let mut translated = echo::Connections::open(&client, &nat(), 12)?;
    let mut traffic = lab.traffic();
    let (mut total, mut excused) = (0, 0);
    for step in 0..number("FAIRLEAD_CHAOS_STEPS")?.unwrap_or(STEPS) {
        let (which, balancer, backend) = (random.below(8), random.below(2), random.below(3));
        let (mut excuses, began) = (Vec::new(), Instant::now());
        println!("step {step}: event {which}, lb{}, b{}", balancer + 1, backend + 1);
        match which {
            0 => {
                // Connections through NAT live and die with their balancer.
                translated.close()?;
                excuses = kill_balancer(&mut lab, balancer)?;
                translated = echo::Connections::open(&client, &nat(), 12)?;
            }
            1 => reweigh(&mut lab, 1 + random.below(5))?,
            2 => come_and_go(&mut lab, backend)?,
            3 => broken_file(&mut lab, balancer)?,
            4 => excuses = kill_server(&mut lab, backend)?,
            5 => lab.balancer(balancer).namespace.ip("neigh flush all\nneigh flush all\n")?,
            6 => {
                let host = &lab.balancer(balancer).namespace;
                host.ip("link set eth0 mtu 1550\nlink set eth0 mtu 1600\n")?;
            }
            _ => {
                // The way to a backend, for both families: away with the more specific one, and back.
                let host = &lab.topology.backends[backend];
                let namespace = &lab.balancer(balancer).namespace;
                for _ in 0..3 {
                    namespace.ip(&format!(
                        "route add {v4} via 10.0.0.1\nroute add {v6} via fd00:10::1\n\
                         route del {v4}\nroute del {v6}\nroute del default\nroute add default via 10.0.0.1\n",
                        v4 = host.ipv4,
                        v6 = host.ipv6,
                    ))?;
                }
            }
        }
        let samples = watch(&mut traffic, Duration::from_millis(700))?;
        let failed: Vec<&Sample> = samples.iter().filter(|sample| sample.answer.is_err()).collect();
        let (fine, bad): (Vec<_>, Vec<_>) =
            failed.into_iter().partition(|sample| excuses.iter().any(|excuse| excuse.covers(sample)));
        let at = |time: Instant| time.duration_since(began).as_millis();
        let bad = bad.iter().map(|s| (s.target, at(s.started), at(s.ended), &s.answer)).collect::<Vec<_>>();
        let may = excuses.iter().map(|e| (&e.targets, at(e.from), at(e.until), e.why)).collect::<Vec<_>>();
        assert!(bad.is_empty(), "step {step}, event {which}: {bad:?} (ms); may fail: {may:?}");
        let why: BTreeSet<&str> = excuses.iter().map(|excuse| excuse.why).collect();
        println!("  {} requests, {} failed {why:?}", samples.len(), fine.len());
        (total, excused) = (total + samples.len(), excused + fine.len());
        assert!(samples.len() > 20, "step {step}: {} requests", samples.len());
        let rounds = (tunnelled.echoed(), translated.echoed());
        wait_until("connections go on", || {
            Ok(tunnelled.echoed() > rounds.0 + 48 && translated.echoed() > rounds.1 + 48)
        })?;
    }
    println!("{total} requests, {excused} failed as they may");
    assert!(tunnelled.close()? > 50);
    translated.close()?;
    drop(traffic);
    settles(&mut lab)
}

/// The process dies, its maps are looked at, the router turns to the other one, and then the process comes back.
fn kill_balancer(lab: &mut Lab, balancer: usize) -> Result<Vec<Excuse>, Error> {
    let rows = lab.wait_services(balancer, |rows| !rows.is_empty())?;
    let vips = [WEB, API].concat();
    let mut excuses = Vec::new();
    let mut excuse = |from, why| {
        excuses.push(Excuse { from, until: Instant::now(), targets: NAT_TARGETS.to_vec(), why });
    };
    let killed = Instant::now();
    lab.instances[balancer].kill();
    lab.wait_next_hops(&vips, &[1 - balancer])?;
    excuse(killed, "a balancer died");
    let maps = Maps::of(lab, balancer)?;
    assert_eq!(maps.shares(), shares(&rows), "lb{}: tables and rows", balancer + 1);
    maps.check_flows();
    let started = Instant::now();
    lab.instances[balancer].start()?;
    lab.wait_next_hops(&vips, &[0, 1])?;
    excuse(started, "a balancer came back");
    Ok(excuses)
}

/// Another weight for the first backend of `web`, on both balancers.
fn reweigh(lab: &mut Lab, weight: usize) -> Result<(), Error> {
    for balancer in 0..2 {
        let text = lab.instances[balancer].read("web.yaml")?;
        let lines: Vec<String> = text
            .lines()
            .map(|line| match line.split_once("11, weight: ").or_else(|| line.split_once("11\", weight: ")) {
                Some((before, _)) if before.contains("10.1.0.") => format!("{before}11, weight: {weight}}}"),
                Some((before, _)) => format!("{before}11\", weight: {weight}}}"),
                None => line.to_owned(),
            })
            .collect();
        lab.instances[balancer].write("web.yaml", &(lines.join("\n") + "\n"))?;
    }
    for balancer in 0..2 {
        lab.wait_services(balancer, |rows| {
            let mut backends = rows.iter().filter(|r| r.name.contains("/web/")).flat_map(|r| &r.backends);
            backends.all(|b| !is(b, 0) || (b.weight == Some(weight as u16) && b.slots > 0))
        })?;
    }
    Ok(())
}

/// A backend of `web` and `api` is taken out of the files of both balancers, and put in again.
fn come_and_go(lab: &mut Lab, backend: usize) -> Result<(), Error> {
    let host = &lab.topology.backends[backend];
    let (v4, v6) = (format!("address: {}", host.ipv4), format!("address: \"{}\"", host.ipv6));
    let mut whole = Vec::new();
    for balancer in 0..2 {
        for file in ["web.yaml", "api.yaml"] {
            let text = lab.instances[balancer].read(file)?;
            let keep = |line: &&str| !line.contains(&v4) && !line.contains(&v6);
            let without = text.lines().filter(keep).collect::<Vec<_>>().join("\n") + "\n";
            assert_ne!(without, text);
            lab.instances[balancer].write(file, &without)?;
            whole.push((balancer, file, text));
        }
    }
    for is_in in [false, true] {
        if is_in {
            for (balancer, file, text) in &whole {
                lab.instances[*balancer].write(file, text)?;
            }
        }
        wait_slots(lab, backend, is_in)?;
    }
    Ok(())
}

/// Waits until the balancers send, or do not send, new flows of `web` and `api` to a backend.
fn wait_slots(lab: &mut Lab, backend: usize, some: bool) -> Result<(), Error> {
    for balancer in 0..2 {
        lab.wait_services(balancer, |rows| {
            let mut rows = rows.iter().filter(|r| r.name.contains("/web/") || r.name.contains("/api/"));
            rows.all(|r| r.backends.iter().any(|b| is(b, backend) && b.slots > 0) == some)
        })?;
    }
    Ok(())
}

fn is(row: &controller::serve::rows::BackendRow, backend: usize) -> bool {
    let text = row.address.to_string();
    [format!("10.1.0.{}", 11 + backend), format!("fd00:20::{}", 11 + backend)].contains(&text)
}

/// A file that cannot be read beside a good change: nothing happens, and it is told; then it goes.
fn broken_file(lab: &mut Lab, balancer: usize) -> Result<(), Error> {
    let before = shares(&lab.wait_services(balancer, |_| true)?);
    lab.instances[balancer].write("zz-broken.yaml", "kind: LoadBalancer\nmetadata: [\n")?;
    wait_until("the fault is told", || {
        let status = lab.instances[balancer].status()?;
        Ok(status.is_some_and(|s| s.faults.iter().any(|f| f.contains("zz-broken.yaml"))))
    })?;
    assert_eq!(shares(&lab.wait_services(balancer, |_| true)?), before);
    lab.instances[balancer].delete("zz-broken.yaml")?;
    wait_until("the fault is gone", || {
        Ok(lab.instances[balancer].status()?.is_some_and(|status| status.ready && status.faults.is_empty()))
    })
}

/// The HTTP server of a backend dies and comes back.
fn kill_server(lab: &mut Lab, backend: usize) -> Result<Vec<Excuse>, Error> {
    let from = Instant::now();
    lab.stop_server(&format!("b{}", backend + 1));
    wait_slots(lab, backend, false)?;
    let until = Instant::now();
    lab.start_server(backend)?;
    wait_slots(lab, backend, true)?;
    let targets = [WEB_TARGETS, NAT_TARGETS].concat();
    Ok(vec![Excuse { from, until, targets, why: "a server died" }])
}

/// (service, backend) to number of slots; backends without slots are left out.
type Shares = BTreeMap<(String, String), u32>;

fn shares(rows: &[ServiceRow]) -> Shares {
    let shares = rows.iter().flat_map(|row| {
        let share = |b: &controller::serve::rows::BackendRow| {
            ((row.name.clone(), std::net::SocketAddr::new(b.address, b.port).to_string()), b.slots)
        };
        row.backends.iter().map(share)
    });
    shares.filter(|(_, slots)| *slots > 0).collect()
}

/// The maps of a balancer whose process is dead, as text, after a sweep.
pub(crate) struct Maps(String);

impl Maps {
    pub(crate) fn of(lab: &Lab, balancer: usize) -> Result<Self, Error> {
        let pin_dir = Path::new("/sys/fs/bpf/fairlead").join(lab.instances[balancer].node());
        let options = Options {
            pin_dir,
            interfaces: vec!["eth0".to_owned()],
            tunnel_sources: TunnelSources::default(),
            tc_interfaces: vec![],
            sizes: Sizes::default(),
        };
        let read = move || -> Result<String, Error> {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let mut datapath = Datapath::open(options).await?;
                while !datapath.sweep()?.complete {}
                Ok(datapath.dump()?)
            })
        };
        Ok(Maps(lab.balancer(balancer).namespace.enter(read)??))
    }

    /// The lines of one kind: the word after it, and `key=value` pairs; what has no `=` is under its position.
    fn lines(&self, kind: &str) -> Vec<BTreeMap<String, String>> {
        let of_kind = self.0.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
        let pairs = |line: &str| {
            let words = line.split(' ').enumerate();
            let pair = |(position, word): (usize, &str)| match word.split_once('=') {
                Some((key, value)) => (key.to_owned(), value.to_owned()),
                None => (position.to_string(), word.to_owned()),
            };
            words.map(pair).collect()
        };
        of_kind.map(pairs).collect()
    }

    /// How many flows have an entry.
    pub(crate) fn flows(&self) -> usize {
        // Of very many not each has a line.
        let more =
            self.lines("flows").iter().filter_map(|line| line["0"].parse::<usize>().ok()).sum::<usize>();
        self.lines("flow").len() + more
    }

    fn shares(&self) -> Shares {
        let names: BTreeMap<_, _> =
            self.lines("service").iter().map(|l| (l["0"].clone(), l["1"].clone())).collect();
        let backends: BTreeMap<_, _> =
            self.lines("backend").into_iter().map(|line| (line["0"].clone(), line)).collect();
        let share = |line: &BTreeMap<String, String>| {
            let backend = backends.get(&line["backend"])?;
            Some(((names[&backend["service"]].clone(), backend["3"].clone()), line["slots"].parse().ok()?))
        };
        self.lines("table").iter().filter_map(share).collect()
    }

    /// No flow is with a backend that is down or not there.
    fn check_flows(&self) {
        let backends = self.lines("backend");
        let alive: BTreeSet<&String> =
            backends.iter().filter(|line| line["flags"] == "0").map(|line| &line["0"]).collect();
        let flows = self.lines("flow");
        let lost: Vec<_> = flows.iter().filter(|flow| !alive.contains(&flow["backend"])).collect();
        assert!(lost.is_empty(), "{} of {} flows: {lost:#?}\n{}", lost.len(), flows.len(), self.0);
    }

    /// What is left when no service is declared.
    fn is_empty(&self) -> bool {
        ["service", "vip", "table", "slot", "backend", "flow"].iter().all(|kind| self.lines(kind).is_empty())
    }
}

/// The services go from the files, and with them everything from the maps: no slot, flow or backend is forgotten.
fn settles(lab: &mut Lab) -> Result<(), Error> {
    for balancer in 0..2 {
        for file in ["web.yaml", "api.yaml", "echo.yaml"] {
            lab.instances[balancer].delete(file)?;
        }
    }
    for balancer in 0..2 {
        lab.wait_services(balancer, <[_]>::is_empty)?;
        let mut maps = Maps(String::new());
        let emptied = wait_until("the maps are empty", || {
            // Backends become free when a whole pass has seen no flow of theirs.
            let pass = Instant::now();
            wait_until("a sweep or two", || Ok(pass.elapsed() > Duration::from_secs(5)))?;
            lab.instances[balancer].kill();
            maps = Maps::of(lab, balancer)?;
            lab.instances[balancer].start()?;
            Ok(maps.is_empty())
        });
        emptied.map_err(|error| format!("{error}:\n{}", maps.0))?;
    }
    Ok(())
}
