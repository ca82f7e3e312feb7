//! Fairlead against what else could stand in its place, in the same topology and the same run: nftables DNAT, HAProxy in
//! TCP mode, and as the floor the kernel that forwards packets through the same host and changes nothing. Needs root and
//! the Debian packages nftables and haproxy.
//!
//! - *requests/s*: HTTP over a connection each, from the client through router, balancer and backend.
//! - *packets/s*: UDP packets of 66 bytes (80 with Ethernet's header and padding) of 4096 flows, made on the balancer's
//!   link and dropped by the first that sees them come back: nothing but the balancer's work, on one CPU, for the
//!   generator, the balancer and the sink take turns on it. From a rate follows the time of a packet; that of the
//!   generator and the sink alone is taken off: *ns/packet*.
//!
//! What two CPUs in one machine can show: what a packet costs the balancer, one beside the other, since packets/s has
//! nothing else in it. What they cannot: requests/s of a machine that only balances. Client, backends and the router's
//! kernel share these CPUs and take most of the time of a request, so that balancers seem closer to each other than they
//! are; how each of them spreads over many CPUs and queues, what a network card and its driver add or save, and latency
//! under load are not seen at all. A veth has neither interrupts nor DMA. Compare ratios of one run, never two runs.
use controller::demo::{
    http::{Load as Requests, Target, Traffic},
    netns::{Namespace, Process, Tool},
    topology::Host,
};
use lab::{
    Error, Lab, Routing, address,
    load::{self, Load},
    wait_until, watch,
};
use std::{fmt::Write, fs, net::IpAddr, path::PathBuf, process::Command, time::Duration};

/// Modes of Fairlead that work with a router between balancer and backends.
const MODES: [&str; 2] = ["IPIP", "NAT"];
/// Source of what nftables translates: not lb2's own, from which HAProxy connects, for the backends would take a port
/// that both use soon one after the other for the connection before.
const NFT_SOURCE: &str = "10.0.0.103";
/// Ports of the frontends.
const HTTP: u16 = 80;
const DATAGRAMS: u16 = 9000;
/// Flows of UDP, a power of two.
const FLOWS: u64 = 4096;
/// Clients with a request at a time.
const CLIENTS: usize = 16;

const NFT: Tool = Tool::new("nft", "nftables");
const HAPROXY: Tool = Tool::new("haproxy", "haproxy");

fn main() -> Result<(), Error> {
    // `cargo test --benches` runs benches, too, to see that they work.
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let (rounds, time) = if is_bench { (5, Duration::from_secs(2)) } else { (1, Duration::from_millis(500)) };
    let bench = Bench::start()?;
    let mut found = vec![Found::default(); bench.contenders.len()];
    let mut floor = Vec::new();
    for _ in 0..rounds {
        floor.push(bench.generator_alone(time)?);
        for (contender, found) in bench.contenders.iter().zip(&mut found) {
            contender.turn(|| {
                found.requests.push(bench.requests(contender, time)?);
                if contender.datagrams {
                    found.packets.push(bench.packets(contender, time)?);
                }
                Ok(())
            })?;
        }
    }
    print!("{}", bench.report(&found, &floor, rounds));
    Ok(())
}

/// Rates of one contender, one a round.
#[derive(Clone, Debug, Default)]
struct Found {
    requests: Vec<f64>,
    packets: Vec<f64>,
}

/// Who balances.
#[derive(Clone, Debug)]
struct Contender {
    name: String,
    vip: IpAddr,
    /// The load balancer's number: 0 is Fairlead's, 1 the others'.
    host: usize,
    /// Whether it balances UDP.
    datagrams: bool,
    /// What is to be done before its turn and after it.
    rules: Option<Rules>,
}

/// A table of nftables. It is there only in its turn, for it costs the others.
#[derive(Clone, Debug)]
struct Rules {
    namespace: Namespace,
    file: PathBuf,
}

impl Contender {
    fn turn(&self, body: impl FnOnce() -> Result<(), Error>) -> Result<(), Error> {
        let nft = |arguments: &[&str]| {
            self.rules.as_ref().map_or(Ok(()), |Rules { namespace, file }| {
                let mut nft = Command::new(NFT.program());
                nft.args(arguments);
                if arguments == ["-f"] {
                    nft.arg(file);
                }
                namespace.output(nft).map(drop)
            })
        };
        nft(&["-f"])?;
        let done = body();
        nft(&["flush", "ruleset"])?;
        done.map_err(|error| format!("{}: {error}", self.name).into())
    }
}

struct Bench {
    contenders: Vec<Contender>,
    sink: PathBuf,
    pass: PathBuf,
    _haproxy: Process,
    /// Dropped after the processes.
    lab: Lab,
}

impl Bench {
    /// Everybody side by side, each with an address of his own: Fairlead on lb1, the others on lb2.
    fn start() -> Result<Self, Error> {
        for tool in [NFT, HAPROXY] {
            tool.check()?;
        }
        let mut lab = Lab::prepare(Routing::Static)?;
        let modes = (30..).zip(MODES).map(|(number, mode)| contender(&format!("Fairlead {mode}"), number, 0));
        let mut contenders: Vec<_> = modes.collect();
        contenders.push(contender("nftables DNAT", 40, 1));
        contenders.push(Contender { datagrams: false, ..contender("HAProxy TCP", 41, 1) });
        contenders.push(contender("kernel forwarding", 42, 1));
        // lb2 on a link of its own, so that the router can tell what comes from there.
        let (lb2, router) = (lab.balancer(1), &lab.topology.router.namespace);
        let port = &lb2.name;
        router.ip(&format!(
            "link set {port} nomaster up\nroute add {} dev {port}\nroute add {NFT_SOURCE} dev {port}\n",
            lb2.ipv4
        ))?;
        for Contender { vip, host, .. } in &contenders {
            router.ip(&format!("route add {vip} via {}", lab.balancer(*host).ipv4))?;
        }
        for (mode, Contender { vip, .. }) in MODES.iter().zip(&contenders) {
            for instance in &lab.instances {
                instance.write(&format!("{mode}.yaml"), &service(mode, *vip, &lab.topology.backends))?;
            }
        }
        for instance in lab.instances.iter_mut().enumerate().filter(|(number, _)| *number != 1) {
            instance.1.start()?;
        }
        lab.wait_services(0, |rows| {
            let ours: Vec<_> = rows.iter().filter(|row| row.name.contains("/bench-")).collect();
            ours.len() == 2 * MODES.len()
                && ours.iter().all(|r| r.programmed && r.backends.iter().all(|b| b.slots > 0))
        })?;
        let [nft, haproxy, kernel] = &mut contenders[MODES.len()..] else { return Err("contenders".into()) };
        let _haproxy = others(&lab, nft, haproxy, kernel)?;
        let sink =
            PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../lb-bpf/prebuilt/fairlead_load.bpf.o"));
        let pass = lab.topology.sandbox.dir().join("pass.bpf.o");
        Ok(Bench { contenders, sink, pass, _haproxy, lab })
    }

    /// Requests per second. All must be answered.
    fn requests(&self, contender: &Contender, time: Duration) -> Result<f64, Error> {
        let client = &self.lab.topology.client.namespace;
        let target = Target::new(&contender.name, contender.vip, HTTP);
        let load = Requests { clients: CLIENTS, pause: Duration::ZERO };
        let mut traffic = Traffic::start(client, &[target], load);
        watch(&mut traffic, time / 4)?; // neighbours, caches
        let samples = watch(&mut traffic, time)?;
        let failed = lab::failures(&samples);
        if let Some(first) = failed.first() {
            return Err(
                format!("{} of {} requests failed, first: {first}", failed.len(), samples.len()).into()
            );
        }
        Ok(samples.len() as f64 / time.as_secs_f64())
    }

    /// Packets per second that come back to the sink on the balancer's link.
    fn packets(&self, contender: &Contender, time: Duration) -> Result<f64, Error> {
        let (router, host) = (&self.lab.topology.router.namespace, self.lab.balancer(contender.host));
        attach(router, &host.name, &self.sink, "sink")?;
        self.send(contender.host, contender.vip, time / 4)?; // every flow is known
        let before = received(router, &host.name)?;
        let seconds = self.send(contender.host, contender.vip, time)?;
        let packets = received(router, &host.name)? - before;
        self.attach_pass(router, &host.name)?;
        Ok(packets as f64 / seconds)
    }

    /// The same when the balancer's end of the link is the sink.
    fn generator_alone(&self, time: Duration) -> Result<f64, Error> {
        let host = self.lab.balancer(1);
        attach(&host.namespace, "eth0", &self.sink, "sink")?;
        let before = received(&host.namespace, "eth0")?;
        let seconds = self.send(1, self.contenders[0].vip, time)?;
        let packets = received(&host.namespace, "eth0")? - before;
        self.attach_pass(&host.namespace, "eth0")?;
        Ok(packets as f64 / seconds)
    }

    /// Sends to an address through a balancer; gives how long, seconds.
    fn send(&self, host: usize, vip: IpAddr, time: Duration) -> Result<f64, Error> {
        let (router, host) = (&self.lab.topology.router.namespace, self.lab.balancer(host));
        let load = Load {
            tcp: false,
            source: address("100.64.0.0"),
            destination: (vip, DATAGRAMS).into(),
            interface: host.name.clone(),
            macs: [load::mac(router, "front")?, load::mac(&host.namespace, "eth0")?],
            flows: FLOWS,
        };
        let offered = load.start(router, time).join().map_err(|_| "the generator panicked")??;
        Ok(offered.seconds)
    }

    fn attach_pass(&self, namespace: &Namespace, interface: &str) -> Result<(), Error> {
        attach(namespace, interface, &self.pass, lb_bpf::abi::program::PASS)
    }

    fn report(&self, found: &[Found], alone: &[f64], rounds: u32) -> String {
        let nanos = |rate: f64| 1e9 / rate;
        let alone = median(alone);
        let mut text = format!(
            "medians of {rounds} rounds in turn; {CLIENTS} clients, {FLOWS} flows of UDP; the generator and the sink \
             alone: {:.0} ns/packet\n{:20} {:>10} {:>7} {:>12} {:>7} {:>10}\n",
            nanos(alone),
            "",
            "requests/s",
            "ratio",
            "packets/s",
            "ratio",
            "ns/packet"
        );
        let last = found.last().cloned().unwrap_or_default();
        let floor = (median(&last.requests), median(&last.packets));
        for (contender, Found { requests, packets }) in self.contenders.iter().zip(found) {
            let requests = median(requests);
            // Writing to a string does not fail.
            let _ = write!(text, "{:20} {requests:10.0} {:7.2} ", contender.name, requests / floor.0);
            let _ = match contender.datagrams {
                true => {
                    let packets = median(packets);
                    let own = nanos(packets) - nanos(alone);
                    writeln!(text, "{packets:12.0} {:7.2} {own:10.0}", packets / floor.1)
                }
                false => writeln!(text, "{:>12} {:>7} {:>10}", "-", "-", "-"),
            };
        }
        text
    }
}

fn contender(name: &str, number: u8, host: usize) -> Contender {
    let vip = IpAddr::from([203, 0, 113, number]);
    Contender { name: name.to_owned(), vip, host, datagrams: true, rules: None }
}

/// A LoadBalancer of Fairlead.
fn service(mode: &str, vip: IpAddr, backends: &[Host]) -> String {
    let backends: Vec<_> = backends.iter().map(|host| format!("{{address: {}}}", host.ipv4)).collect();
    format!(
        "apiVersion: fairlead.dev/v1alpha1\n\
         kind: LoadBalancer\n\
         metadata: {{name: bench-{}}}\n\
         spec:\n\
         \x20 addresses: [{vip}]\n\
         \x20 ports: [{{name: http, port: {HTTP}}}, {{name: datagrams, protocol: UDP, port: {DATAGRAMS}}}]\n\
         \x20 backends: [{}]\n\
         \x20 policy: {{forwarding: {{mode: {mode}}}}}\n",
        mode.to_lowercase(),
        backends.join(", ")
    )
}

/// Makes lb2 the others' host: gives nftables its rules, starts HAProxy, and lays the way of what is only forwarded.
fn others(lab: &Lab, nft: &mut Contender, haproxy: &Contender, kernel: &Contender) -> Result<Process, Error> {
    let (host, router) = (&lab.balancer(1).namespace, &lab.topology.router.namespace);
    let backends = &lab.topology.backends;
    let dir = lab.topology.sandbox.dir();
    host.sysctl(&[("net/ipv4/ip_forward", "1"), ("net/ipv4/conf/all/send_redirects", "0")])?;
    host.sysctl(&[("net/ipv4/conf/eth0/send_redirects", "0")])?;
    host.ip(&format!(
        "link set dev eth0 xdpdrv object {} program {}\n",
        dir.join("pass.bpf.o").display(),
        lb_bpf::abi::program::PASS
    ))?;

    let numbered = backends.iter().enumerate().map(|(number, host)| format!("{number} : {}", host.ipv4));
    let numbered = numbered.collect::<Vec<_>>().join(", ");
    let (count, vip) = (backends.len(), nft.vip);
    let file = dir.join("rules.nft");
    let rules = format!(
        "table ip bench {{\n\
         chain in {{ type nat hook prerouting priority dstnat;\n\
         ip daddr {vip} dnat to numgen random mod {count} map {{ {numbered} }}\n}}\n\
         chain out {{ type nat hook postrouting priority srcnat; ct status dnat snat to {NFT_SOURCE}\n}}\n}}\n"
    );
    fs::write(&file, rules)?;
    nft.rules = Some(Rules { namespace: host.clone(), file });

    // From the router to lb2, and from there back and to the backends: by where a packet comes from.
    let (vip, port) = (kernel.vip, &lab.balancer(1).name);
    let hops: String = backends.iter().map(|host| format!(" nexthop via {}", host.ipv4)).collect();
    router.ip(&format!("route add {vip} table 100{hops}\nrule add iif {port} lookup 100\n"))?;
    for backend in backends {
        backend.namespace.ip(&format!("addr add {vip}/32 dev lo"))?;
    }

    host.ip(&format!("addr add {NFT_SOURCE}/32 dev eth0\naddr add {}/32 dev lo\n", haproxy.vip))?;
    let servers = backends.iter().map(|host| format!(" server {} {}:{HTTP}\n", host.name, host.ipv4));
    let config = dir.join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n maxconn 1000\n\
             defaults\n mode tcp\n timeout connect 5s\n timeout client 30s\n timeout server 30s\n\
             listen bench\n bind {}:{HTTP}\n balance roundrobin\n{}",
            haproxy.vip,
            servers.collect::<String>()
        ),
    )?;
    let mut command = Command::new(HAPROXY.program());
    command.arg("-db").arg("-f").arg(config);
    let mut process = host.spawn(command, &dir.join("haproxy.log"))?;
    let listens = |vip: IpAddr| {
        lab.topology.client.namespace.enter(move || std::net::TcpStream::connect((vip, HTTP)).is_ok())
    };
    wait_until("HAProxy listens", || match process.ended() {
        Some(how) => Err(how.into()),
        None => Ok(listens(haproxy.vip)?),
    })?;
    wait_until("the kernel forwards", || Ok(listens(kernel.vip)?))?;
    Ok(process)
}

/// Puts an XDP program in the place of the one before.
fn attach(
    namespace: &Namespace,
    interface: &str,
    object: &std::path::Path,
    program: &str,
) -> Result<(), Error> {
    let mut ip = Command::new("ip");
    ip.args(["-force", "link", "set", "dev", interface, "xdpdrv", "object"])
        .arg(object)
        .args(["program", program]);
    Ok(namespace.output(ip).map(drop)?)
}

/// Packets that an interface has received, dropped ones too.
fn received(namespace: &Namespace, interface: &str) -> Result<u64, Error> {
    let link = namespace.ip_json(&["-s", "link", "show", "dev", interface])?;
    Ok(link[0]["stats64"]["rx"]["packets"].as_u64().ok_or_else(|| format!("no packets: {link}"))?)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
