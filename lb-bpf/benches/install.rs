//! Time from a desired set to the kernel's maps, with all that lies between: next hops from the kernel, plan, maps, report.
//! 10,000 services of 10 backends from nothing; then one backend of one of them changes, and one of services of 600 backends,
//! whose table has 65,537 slots, and of 1000 (131,071), beside the others and alone. And how long it takes to write a
//! table and switch a frontend to it, so that packets see it. Needs root; a network namespace of its own.
//! `cargo bench -p lb-bpf --bench install`
mod services;

use aya::maps::MapData;
use imbl::OrdMap;
use lb_bpf::{
    Datapath, Options, TunnelSources,
    abi::{ABI_VERSION, Addr, Slot, Vip, VipKey, proto},
    maps::{MapError, Maps, Op, kernel::KernelMaps},
    service::{Desired, ServiceKey},
};
use services::{BACKENDS, SERVICES, SIZES, anew, desired, service};
use std::{error::Error, io, path::PathBuf, process::Command, sync::Arc, time::Instant};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Where the backends are: behind one router.
const NETWORK: &str = "
link set lo up
link add bench0 type veth peer name bench1
link set bench0 up
link set bench1 up
address add 192.0.2.1/24 dev bench0
neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev bench0 nud permanent
route add 10.0.0.0/8 via 192.0.2.2
";

fn main() -> Outcome<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
    for line in NETWORK.lines().filter(|line| !line.is_empty()) {
        if !Command::new("ip").args(line.split(' ')).status()?.success() {
            return Err(format!("ip {line}").into());
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("least of some runs, the first row of one                    install    prune   ms");
    runtime.block_on(with_others())?;
    for backends in [600, 1000] {
        runtime.block_on(alone(backends))?;
    }
    runtime.block_on(tables())
}

async fn with_others() -> Outcome<()> {
    let mut datapath = open().await?;
    let mut desired = desired();
    let times = pass(&mut datapath, &desired).await?;
    print(&format!("{SERVICES} services of {BACKENDS} backends from nothing"), times);
    print("nothing has changed", changes(&mut datapath, &mut desired, None, false).await?);
    print("nothing has changed, all made anew", changes(&mut datapath, &mut desired, None, true).await?);
    let first = desired.services.keys().next().cloned();
    print("one backend changes", changes(&mut datapath, &mut desired, first.as_ref(), false).await?);
    let times = changes(&mut datapath, &mut desired, first.as_ref(), true).await?;
    print("one backend changes, all made anew", times);
    for backends in [600, 1000] {
        let (key, service) = service(SERVICES + backends, backends);
        desired.services.insert(key.clone(), service);
        let times = changes(&mut datapath, &mut desired, Some(&key), false).await?;
        print(&format!("one backend of {backends} changes beside them"), times);
    }
    Ok(datapath.detach().await?)
}

async fn alone(backends: u32) -> Outcome<()> {
    let mut datapath = open().await?;
    let (key, service) = service(0, backends);
    let mut desired = Desired { services: OrdMap::unit(key.clone(), service), ..Desired::default() };
    let times = changes(&mut datapath, &mut desired, Some(&key), false).await?;
    print(&format!("one backend of {backends} changes, alone"), times);
    Ok(datapath.detach().await?)
}

/// Writes tables of some sizes into the kernel's map, each beside the one before, and switches a frontend to them.
async fn tables() -> Outcome<()> {
    const RUNS: u32 = 21;
    let datapath = open().await?;
    let pins = pin_dir().join(format!("v{ABI_VERSION}"));
    let mut maps = KernelMaps::new(|name| {
        let data = MapData::from_pin(pins.join(name));
        data.map_err(|error| MapError::new(name, "open", io::Error::other(error)))
    })?;
    println!("\nleast of {RUNS} runs                                                write   switch   ms");
    for size in [1021, 65_537, 131_071] {
        let mut least = (f64::INFINITY, f64::INFINITY);
        for run in 1..=RUNS {
            let (base, backends) = (run % 2 * size, 1000);
            let slots = (0..size).map(|slot| Slot { current: 1 + (slot + run) % backends, previous: 0 });
            let write = Op::WriteTable(base, slots.collect());
            let key = VipKey { addr: Addr::NONE, port: 80, proto: proto::TCP, scope: 0 };
            let switch = Op::SetVip(key, Vip { service: 1, flags: 0, base, size });
            let start = Instant::now();
            maps.apply(&write)?;
            let written = Instant::now();
            maps.apply(&switch)?;
            least = (least.0.min(millis(start, written)), least.1.min(millis(written, Instant::now())));
        }
        let (write, switch) = least;
        println!("{:<56} {write:>10.3} {switch:>8.4}", format!("a table of {size} slots"));
    }
    Ok(datapath.detach().await?)
}

/// A backend of a service goes down and comes back, or nothing happens; the least times of some runs. Of the other
/// services the caller has the values that it had before, or makes equal ones.
async fn changes(
    datapath: &mut Datapath,
    desired: &mut Desired,
    key: Option<&ServiceKey>,
    is_made_anew: bool,
) -> Outcome<(f64, f64)> {
    const RUNS: usize = 20;
    pass(datapath, desired).await?;
    let mut least = (f64::INFINITY, f64::INFINITY);
    for run in 0..RUNS {
        if is_made_anew {
            *desired = anew(desired);
        }
        let service = key.and_then(|key| desired.services.get_mut(key)).map(Arc::make_mut);
        if let Some(target) = service.and_then(|service| service.backends.values_mut().next()) {
            target.up = run % 2 == 1;
        }
        let before = datapath.operations();
        let (install, prune) = pass(datapath, desired).await?;
        if (datapath.operations() > before) != key.is_some() {
            return Err("the maps were not changed as expected".into());
        }
        least = (least.0.min(install), least.1.min(prune));
    }
    Ok(least)
}

/// Milliseconds of installing and of pruning.
async fn pass(datapath: &mut Datapath, desired: &Desired) -> Outcome<(f64, f64)> {
    let start = Instant::now();
    datapath.install(desired).await?;
    let installed = Instant::now();
    datapath.prune().await?;
    Ok((millis(start, installed), millis(installed, Instant::now())))
}

fn millis(from: Instant, to: Instant) -> f64 {
    to.duration_since(from).as_secs_f64() * 1e3
}

fn print(what: &str, (install, prune): (f64, f64)) {
    println!("{what:<56} {install:>10.2} {prune:>8.2}");
}

async fn open() -> Outcome<Datapath> {
    let options = Options {
        pin_dir: pin_dir(),
        interfaces: Vec::new(),
        tc_interfaces: Vec::new(),
        sizes: SIZES,
        tunnel_sources: TunnelSources::default(),
    };
    Ok(Datapath::open(options).await?)
}

fn pin_dir() -> PathBuf {
    PathBuf::from(format!("/sys/fs/bpf/fairlead_bench_{}", std::process::id()))
}
