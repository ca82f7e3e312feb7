//! Random histories against the fake maps and a simple model of the kernel program.
mod crash;
mod flows;
mod idle;
mod packets;

use super::{Hop, NextHop, NextHops, Now, State, ping_key};
use crate::{
    maps::{Maps, Op, Sizes, fake::FakeMaps},
    service::{Desired, Endpoint, Frontend, Protocol, Rules, Service, ServiceKey, Target},
};
use lb_bpf_common::Mode;
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

const SIZES: Sizes =
    Sizes { vips: 16, slots: 1 << 15, backends: 200, flows: 10_000, decap: 16, ..Sizes::DEFAULT };
const START: Now = Now(1_000_000_000);

fn endpoint(n: u8) -> Endpoint {
    Endpoint { address: Ipv4Addr::new(10, 0, 0, n).into(), port: 8080 }
}

fn frontend(n: u8) -> Frontend {
    Frontend { address: Ipv4Addr::new(203, 0, 113, n).into(), protocol: Protocol::Tcp, port: 80 }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey(name.into())
}

fn service(frontends: &[u8], backends: &[(u8, u16, bool)]) -> Service {
    let backend = |&(n, weight, up): &(u8, u16, bool)| (endpoint(n), Target { weight, up });
    Service {
        frontends: frontends.iter().map(|n| frontend(*n)).collect(),
        mode: Mode::Ipip,
        backends: backends.iter().map(backend).collect(),
        drain_seconds: 10,
        rules: Rules::default(),
    }
}

fn desired(services: impl IntoIterator<Item = (&'static str, Service)>) -> Desired {
    let services = services.into_iter().map(|(name, service)| (key(name), service));
    Desired { services: services.collect(), ..Desired::default() }
}

/// Next hops of all backends that tests use.
fn hops() -> NextHops {
    let hop = |n: u8| Hop {
        source: Ipv4Addr::new(10, 0, 0, 254).into(),
        mac: [2, 0, 0, 0, 0, n],
        source_mac: [2, 0, 0, 0, 1, 0],
        ifindex: 7,
        mtu: 1500,
        vlan: None,
        gateway: false,
    };
    (0..50).map(|n| (endpoint(n).address, NextHop::Known(hop(n)))).collect()
}

/// Up to two services with disjoint frontends, and up to six backends each.
fn any_desired() -> impl Strategy<Value = Desired> {
    let weight = prop_oneof![1 => Just(0_u16), 4 => 1..4_u16];
    let target = (weight, prop::bool::weighted(0.8)).prop_map(|(weight, up)| Target { weight, up });
    let backends = prop::collection::btree_map((1..8_u8).prop_map(endpoint), target, 0..6);
    let service = (backends, prop::bool::weighted(0.2)).prop_map(|(backends, is_nat)| Service {
        frontends: BTreeSet::new(),
        mode: if is_nat { Mode::Nat } else { Mode::Ipip },
        backends,
        drain_seconds: 10,
        rules: Rules::default(),
    });
    // Which of the two services has each of four frontends, if any.
    let owners = prop::collection::vec(prop::option::weighted(0.8, prop::bool::weighted(0.3)), 4);
    (service.clone(), service, owners).prop_map(|(first, second, owners)| {
        let mut services = BTreeMap::from([(key("a"), first), (key("b"), second)]);
        for (n, owner) in (1..).zip(owners) {
            let name = match owner {
                Some(false) => "a",
                Some(true) => "b",
                None => continue,
            };
            if let Some(service) = services.get_mut(&key(name)) {
                service.frontends.insert(frontend(n));
            }
        }
        services.retain(|_, service| !service.frontends.is_empty());
        Desired { services, ..Desired::default() }
    })
}

/// Plans, applies, and checks that the mirror is what the maps hold.
fn install(state: &mut State, maps: &mut FakeMaps, desired: &Desired, now: Now) -> Vec<Op> {
    let mut ops = state.plan(maps, desired, &hops(), now).unwrap();
    ops.iter().for_each(|op| maps.apply(op).unwrap());
    let prune = state.plan_prune(now);
    prune.iter().for_each(|op| maps.apply(op).unwrap());
    ops.extend(prune);
    assert_eq!(state.vips, maps.vips);
    assert_eq!(state.backends, maps.backends().unwrap());
    assert_eq!(state.names, maps.names);
    assert_eq!(state.config, maps.config);
    ops
}

#[test]
fn an_example_from_empty_maps_to_empty_maps() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let web = service(&[1, 2], &[(1, 1, true), (2, 2, true), (3, 1, false), (4, 0, true)]);
    let one = desired([("web", web.clone())]);
    install(&mut state, &mut maps, &one, START);
    let installed = &state.installed()[&key("web")];
    assert_eq!(installed.frontends, web.frontends);
    assert_eq!((installed.table_size, installed.resolved), (1021, true));
    let shares: Vec<u32> = installed.slots.values().copied().collect();
    assert_eq!(shares, [340, 681, 0, 0]);
    assert_eq!(State::restore(&maps).unwrap().found(&maps).unwrap()[&key("web")].slots.len(), 2);
    assert_eq!(install(&mut state, &mut maps, &one, START), [], "nothing to do");

    install(&mut state, &mut maps, &Desired::default(), START);
    for second in 0..5 {
        state.sweep(&mut maps, Now(START.0 + second * 1000)).unwrap();
    }
    let mut empty = FakeMaps::new(SIZES);
    // What nobody names stays as it is.
    empty.slots.clone_from(&maps.slots);
    assert_eq!(maps.backends().unwrap(), BTreeMap::new());
    empty.backends.clone_from(&maps.backends);
    assert_eq!(maps, empty);
    assert_eq!(state.ranges.available(), SIZES.slots, "all slots were given back");
}

#[test]
fn a_full_map_is_an_error_that_says_so() {
    let mut maps = FakeMaps::new(Sizes { slots: 2000, ..SIZES });
    let mut state = State::restore(&maps).unwrap();
    let backends = [(1, 1, true)];
    let two = desired([("a", service(&[1], &backends)), ("b", service(&[2], &backends))]);
    let error = state.plan(&maps, &two, &hops(), START).unwrap_err();
    assert_eq!(error.to_string(), "map slots is full: 1021 more entries are needed in a row, 979 are free");
    // The error has changed nothing.
    let mut state = State::restore(&maps).unwrap();
    install(&mut state, &mut maps, &desired([("a", service(&[1], &backends))]), START);
}

#[test]
fn a_frontend_has_one_service() {
    let maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let two = desired([("a", service(&[1, 2], &[])), ("b", service(&[2], &[]))]);
    let error = state.plan(&maps, &two, &hops(), START).unwrap_err();
    assert_eq!(error.to_string(), "frontend 203.0.113.2 port 80: claimed by a and by b");
}

#[test]
fn an_address_answers_pings_as_long_as_it_has_a_frontend() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut shared = service(&[2], &[(2, 1, true)]);
    shared.frontends.insert(Frontend { port: 443, ..frontend(1) });
    let two = desired([("a", service(&[1], &[(1, 1, true)])), ("b", shared.clone())]);
    let pings = |maps: &FakeMaps| maps.vips.keys().filter(|key| key.port == 0).copied().collect::<Vec<_>>();
    let both = [1, 2].map(|n| ping_key(&frontend(n)));
    install(&mut state, &mut maps, &two, START);
    assert_eq!(pings(&maps), both);
    assert!(both.iter().all(|key| maps.vips[key].service == 0), "of no service");
    // The process before knew nothing of pings.
    maps.vips.retain(|key, _| key.port != 0);
    let mut state = State::restore(&maps).unwrap();
    install(&mut state, &mut maps, &two, START);
    assert_eq!(pings(&maps), both);
    install(&mut state, &mut maps, &desired([("b", shared)]), START);
    assert_eq!(pings(&maps), both);
    install(&mut state, &mut maps, &desired([("a", service(&[1], &[(1, 1, true)]))]), START);
    assert_eq!(pings(&maps), both[..1]);
    install(&mut state, &mut maps, &Desired::default(), START);
    assert_eq!(maps.vips, BTreeMap::new());
}

#[test]
fn a_service_that_is_renamed_keeps_its_table() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let web = service(&[1], &[(1, 1, true), (2, 1, true)]);
    install(&mut state, &mut maps, &desired([("old", web.clone())]), START);
    let ops = install(&mut state, &mut maps, &desired([("new", web)]), START);
    assert_eq!(ops, [Op::SetName(1, key("new"))]);
}

#[test]
fn next_hops_change_in_place_and_sources_do_not() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let one = desired([("web", service(&[1], &[(1, 1, true)]))]);
    let mut plan = |hops: NextHops| -> Vec<Op> {
        let ops = state.plan(&maps, &one, &hops, START).unwrap();
        ops.iter().for_each(|op| maps.apply(op).unwrap());
        ops
    };
    let with = |next_hop: NextHop| NextHops::from([(endpoint(1).address, next_hop)]);
    let NextHop::Known(hop) = hops()[&endpoint(1).address] else { panic!("known") };
    assert_eq!(
        plan(with(NextHop::Pending)).len(),
        6,
        "name, counters, backend without a way, table, frontend, ping"
    );
    assert!(matches!(plan(with(NextHop::Known(hop)))[..], [Op::SetBackend(1, b)] if b.ifindex == 7));
    assert_eq!(plan(with(NextHop::Pending)), [], "what is installed stays");
    let moved = Hop { mac: [2, 0, 0, 0, 0, 99], ..hop };
    assert!(matches!(plan(with(NextHop::Known(moved)))[..], [Op::SetBackend(1, b)] if b.next_hop[5] == 99));
    assert!(matches!(plan(with(NextHop::Unreachable))[..], [Op::SetBackend(1, b)] if b.ifindex == 0));
    let renumbered = Hop { source: IpAddr::from([10, 0, 0, 253]), ..hop };
    let ops = plan(with(NextHop::Known(renumbered)));
    assert!(matches!(
        ops[..],
        [Op::ResetCounters(2), Op::SetBackend(2, _), Op::WriteTable(..), Op::SetVip(..)]
    ));
}

/// The size of a table changes with the number of backends. Flows that were in the same place mostly stay.
#[test]
fn growing_beyond_a_table_size_moves_few_flows() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let backends: Vec<_> = (1..=11).map(|n| (n, 1, true)).collect();
    install(&mut state, &mut maps, &desired([("web", service(&[1], &backends[..10]))]), START);
    let flows: Vec<_> = (0..4000).map(|n| packets::flow(frontend(1), n)).collect();
    let send = |maps: &mut FakeMaps, opening| -> Vec<_> {
        flows.iter().map(|flow| packets::send(maps, flow, opening, START)).collect()
    };
    let before = send(&mut maps, true);
    install(&mut state, &mut maps, &desired([("web", service(&[1], &backends))]), START);
    assert_eq!(state.installed()[&key("web")].table_size, 8191);
    let after = send(&mut maps, false);
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    // One new slot in eight spans two old ones; of its flows a quarter is in the smaller part on average.
    assert!(moved * 100 < flows.len() * 5, "{moved} of {} flows moved", flows.len());
}
