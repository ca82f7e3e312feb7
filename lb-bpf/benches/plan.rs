//! Time to plan 10,000 services of 10 backends: from nothing, after a restart, without a change, with one; and to change
//! one backend of a service of 600, whose table has 65,537 slots, and of one of 1000, whose table has 131,071. The floor is a
//! clone of the desired set, which touches every service and backend once.
//! `cargo bench -p lb-bpf --no-default-features --bench plan`
mod services;

use imbl::OrdMap;
use lb_bpf::{
    maglev,
    maps::{Maps, Op, fake::FakeMaps},
    service::Desired,
    state::{Hop, NextHop, NextHops, Now, State},
};
use services::{BACKENDS, SERVICES, SIZES, anew, desired, service};
use std::{hint::black_box, net::Ipv4Addr, sync::Arc, time::Instant};

fn main() {
    let mut desired = desired();
    let hops = Arc::new(hops());
    let (floor, _) = time(|| black_box(anew(&desired)));
    println!("{SERVICES} services of {BACKENDS} backends                   ms   x floor");
    let print = |what: &str, ms: f64, ops: usize| {
        println!("{what:<44} {ms:>8.2} {:>8.1}   {ops} operations", ms / floor)
    };
    print("floor: clone the desired set", floor, 0);

    let mut maps = FakeMaps::new(SIZES);
    let mut state = restore(&maps);
    let (ms, ops) = time(|| plan(&mut state, &maps, &desired, &hops));
    print("plan: from nothing", ms, ops.len());
    let (ms, ()) =
        time(|| ops.iter().for_each(|op| maps.apply(op).unwrap_or_else(|error| panic!("{error}"))));
    print("apply (in memory): from nothing", ms, ops.len());
    let (ms, restored) = time(|| restore(&maps));
    print("restore", ms, 0);
    state = restored;
    let (ms, ops) = time(|| plan(&mut state, &maps, &desired, &hops));
    print("plan: after a restart", ms, ops.len());
    let (ms, ops) = time(|| plan(&mut state, &maps, &desired, &hops));
    print("plan: nothing has changed", ms, ops.len());
    desired = anew(&desired);
    let (ms, ops) = time(|| plan(&mut state, &maps, &desired, &hops));
    print("plan: nothing has changed, all made anew", ms, ops.len());
    let first = desired.services.keys().next().cloned();
    if let Some(service) = first.and_then(|key| desired.services.get_mut(&key)) {
        let target = Arc::make_mut(service).backends.values_mut().next();
        target.into_iter().for_each(|target| target.up = false);
    }
    let (ms, ops) = time(|| plan(&mut state, &maps, &desired, &hops));
    print("plan: one backend is down", ms, ops.len());
    let (ms, report) = time(|| state.sweep(&mut maps, Now(2_000_000)));
    print("sweep", ms, report.map_or(0, |report| report.slots_settled));
    for backends in [600, 1000] {
        let (plan, apply, slots) = change_one_of(backends, &hops);
        print(&format!("plan: one backend of {backends} changes"), plan, slots);
        print(&format!("apply (in memory): one backend of {backends}"), apply, slots);
    }
}

/// Plans and applies that one backend of a service goes down or comes back; the least milliseconds of
/// both in some runs, and the number of slots.
fn change_one_of(backends: u32, hops: &Arc<NextHops>) -> (f64, f64, usize) {
    const RUNS: usize = 21;
    let mut maps = FakeMaps::new(SIZES);
    let mut state = restore(&maps);
    let (key, service) = service(0, backends);
    let mut desired = Desired { services: OrdMap::unit(key.clone(), service), ..Desired::default() };
    let (mut plans, mut applies) = (Vec::new(), Vec::new());
    for run in 0..=RUNS {
        let (ms, ops) = time(|| plan(&mut state, &maps, &desired, hops));
        plans.push(ms);
        let apply = || ops.iter().for_each(|op| maps.apply(op).unwrap_or_else(|error| panic!("{error}")));
        applies.push(time(apply).0);
        let service = Arc::make_mut(&mut desired.services[&key]);
        service.backends.values_mut().take(1).for_each(|target| target.up = run % 2 == 1);
    }
    // The first one made all of it.
    let least = |times: &[f64]| times[1..].iter().copied().fold(f64::INFINITY, f64::min);
    (least(&plans), least(&applies), maglev::table_size(backends as usize) as usize)
}

fn restore(maps: &FakeMaps) -> State {
    State::restore(maps).unwrap_or_else(|error| panic!("{error}"))
}

fn plan(state: &mut State, maps: &FakeMaps, desired: &Desired, hops: &Arc<NextHops>) -> Vec<Op> {
    let changes = state.compare(desired);
    let plan = state.plan_changes(maps, changes, hops, Now(1_000_000));
    plan.unwrap_or_else(|error| panic!("{error}")).ops
}

fn hops() -> NextHops {
    let hop = Hop {
        source: Ipv4Addr::new(10, 255, 0, 1).into(),
        tunnel_source: None,
        mac: [2, 0, 0, 0, 0, 1],
        source_mac: [2, 0, 0, 0, 0, 2],
        ifindex: 2,
        mtu: 1500,
        vlan: None,
        gateway: false,
    };
    (0..5000).map(|n| (Ipv4Addr::from(0x0a00_0000 + n).into(), NextHop::Known(hop))).collect()
}

/// Milliseconds.
fn time<T>(work: impl FnOnce() -> T) -> (f64, T) {
    let start = Instant::now();
    let result = work();
    (start.elapsed().as_secs_f64() * 1e3, result)
}
