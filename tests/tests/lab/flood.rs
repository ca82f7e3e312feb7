//! A SYN flood of made-up clients against a VIP whose connections go on: none of them breaks, and memory stays within
//! its bounds. `cargo test -p lab flood -- --nocapture` prints the rates.
//!
//! What a flood costs depends on where it falls. On clean slots of a mode without translation it costs nothing: no
//! entry is made. On dirty slots, and under NAT, each SYN makes an entry until the table is full, and a sweep removes
//! those that stay half-open. Nobody's entry is pushed out by that: connections that are known stay known.
use crate::{
    chaos::Maps,
    connections::{go_on, set_echo},
    restart::{add_echo, gue, ipip, nat, without_b2},
};
use lab::{
    Error, Lab, Routing, address,
    echo::Connections,
    load::{self, Load, Offered},
    wait_until,
};
use lb_bpf::{
    Sizes,
    abi::{FlowKey, ReverseEntry, map},
};
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// How long a flood lasts, at least.
const FLOOD: Duration = Duration::from_secs(2);
/// It goes on until so many packets were sent.
const LEAST_SYNS: u64 = 100_000;
/// Of these more than so many reach a backend: NAT has no more ports.
const LEAST_ARRIVE: u64 = 10_000;
/// Connections to each address.
const CONNECTIONS: usize = 24;
/// What a process may need more at some moment after a flood than at some moment before, bytes. A call of the sweep reads up
/// to 32,768 entries, as they come from the kernel and then one by one (so twice): of `flows`, then of `reverse`, whose are
/// larger. With or without a flood its memory goes up and down by that every two seconds, for the allocator gives back
/// late what is free.
const SLACK: u64 = 2 * 32_768 * size_of::<(FlowKey, ReverseEntry)>() as u64;

/// How much memory lb1 needs, bytes.
#[derive(Clone, Copy, Debug)]
struct Memory {
    /// The process, resident, without the maps that it shares with the kernel.
    process: u64,
    /// The table of flows, in the kernel.
    flows: u64,
}

impl Memory {
    fn of(lab: &Lab) -> Result<Self, Error> {
        let host = &lab.balancer(0).namespace;
        let mut pids = Command::new("ip");
        pids.args(["netns", "pids", host.name()]);
        let pids = String::from_utf8(pids.output()?.stdout)?;
        let process = pids.lines().map(|pid| resident(pid.trim())).sum::<Result<u64, Error>>()?;
        let mut bpftool = Command::new("bpftool");
        bpftool.args(["-j", "map", "show", "pinned"]).arg(flows(lab)?);
        let output = bpftool.output().map_err(|e| format!("bpftool (apt-get install bpftool): {e}"))?;
        let map: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        let flows = map["bytes_memlock"].as_u64().ok_or_else(|| format!("no size: {map}"))?;
        Ok(Memory { process, flows })
    }
}

/// Where the table of flows of lb1 is pinned.
fn flows(lab: &Lab) -> Result<PathBuf, Error> {
    let node = Path::new("/sys/fs/bpf/fairlead").join(lab.instances[0].node());
    let pins = fs::read_dir(node)?.filter_map(|entry| Some(entry.ok()?.path().join(map::FLOWS)));
    Ok(pins.into_iter().find(|pin| pin.exists()).ok_or("no table of flows is pinned")?)
}

fn resident(pid: &str) -> Result<u64, Error> {
    let status = fs::read_to_string(Path::new("/proc").join(pid).join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()).ok_or("no RssAnon")?;
    Ok(kilobytes.parse::<u64>()? * 1024)
}

/// Packets that the router has sent to the backends.
fn arrived(lab: &Lab) -> Result<u64, Error> {
    let packets = lab.topology.backends.iter().map(|backend| {
        let link = lab.topology.router.namespace.ip_json(&["-s", "link", "show", "dev", &backend.name])?;
        Ok(link[0]["stats64"]["tx"]["packets"].as_u64().ok_or_else(|| format!("no packets: {link}"))?)
    });
    packets.sum()
}

/// Floods an address from the router's link to lb1; prints how much, and gives the memory before and after.
fn flood(lab: &Lab, vip: SocketAddr) -> Result<[Memory; 2], Error> {
    let router = &lab.topology.router.namespace;
    let lb1 = lab.balancer(0);
    let load = Load {
        tcp: true,
        source: address(if vip.is_ipv4() { "100.64.0.0" } else { "2001:db8:64::" }),
        destination: vip,
        interface: lb1.name.clone(),
        macs: [load::mac(router, "front")?, load::mac(&lb1.namespace, "eth0")?],
        flows: 1 << 32,
    };
    load::program();
    let (before, sent) = (Memory::of(lab)?, arrived(lab)?);
    let mut offered = Offered { packets: 0, seconds: 0.0 };
    while offered.packets < LEAST_SYNS {
        let more = load.start(router, FLOOD).join().map_err(|_| "the generator panicked")??;
        offered.packets += more.packets;
        offered.seconds += more.seconds;
    }
    let (after, sent) = (Memory::of(lab)?, arrived(lab)? - sent);
    println!(
        "{vip}: {:.0} SYN/s offered, {:.0} reached a backend; {before:?}, then {after:?}",
        offered.rate(),
        sent as f64 / offered.seconds
    );
    assert!(sent > LEAST_ARRIVE, "of {offered:?} {sent} arrived");
    Ok([before, after])
}

/// Waits until the process needs no more than it did before.
fn settles(lab: &Lab, before: Memory) -> Result<(), Error> {
    let mut after = before;
    let settled = wait_until("the memory is what it was", || {
        after = Memory::of(lab)?;
        Ok(after.process < before.process + SLACK)
    });
    settled.map_err(|error| format!("{error}: {before:?}, then {after:?}").into())
}

#[test]
fn a_flood_on_clean_slots_costs_nothing() -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let vips = [ipip(), gue()].concat();
    let connections = Connections::open(&client, &vips, CONNECTIONS)?;
    for vip in vips {
        let [before, after] = flood(&lab, vip)?;
        assert_eq!(before.flows, after.flows, "entries were made");
        settles(&lab, before)?;
        go_on(&[&connections])?;
    }
    connections.close()?;
    lab.instances[0].kill();
    assert_eq!(Maps::of(&lab, 0)?.flows(), 0);
    Ok(())
}

/// Tracked connections (their backend is drained, so their slots are dirty) and untracked ones, in one service.
#[test]
fn a_flood_on_dirty_slots_breaks_no_connection() -> Result<(), Error> {
    outlives_flood(&ipip())
}

/// Every connection of NAT is tracked. The flood uses up the ports towards the backends, but nobody loses his.
#[test]
fn a_flood_on_nat_breaks_no_connection() -> Result<(), Error> {
    outlives_flood(&nat())
}

fn outlives_flood(vips: &[SocketAddr]) -> Result<(), Error> {
    let mut lab = Lab::prepare(Routing::Static)?;
    add_echo(&lab)?;
    lab.start_fairlead()?;
    let client = lab.topology.client.namespace.clone();
    let empty = Memory::of(&lab)?.flows;
    let connections = Connections::open(&client, vips, CONNECTIONS)?;
    let echo = without_b2(&lab.instances[0].read("echo.yaml")?);
    set_echo(&mut lab, 0, &echo, 0.0)?;
    go_on(&[&connections])?;
    assert!(Memory::of(&lab)?.flows > empty, "no connection is tracked");
    for vip in vips {
        let [before, _] = flood(&lab, *vip)?;
        settles(&lab, before)?;
        go_on(&[&connections])?;
    }
    let full = Memory::of(&lab)?.flows;
    connections.close()?;
    lab.instances[0].kill();
    let flows = Maps::of(&lab, 0)?.flows();
    println!("{flows} flows have an entry, {} bytes", full - empty);
    assert!(flows <= Sizes::default().flows as usize, "{flows}");
    Ok(())
}
