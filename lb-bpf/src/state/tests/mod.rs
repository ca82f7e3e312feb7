//! Random histories against the fake maps and a simple model of the kernel program.
mod crash;
mod filters;
mod flows;
mod idle;
mod local;
mod packets;
mod server_ids;
mod sources;

use super::{
    Hop, NextHop, NextHops, Now, State, dirt, ping_key,
    plan::{Plan, PlanError},
};
use crate::{
    maps::{Maps, Op, Sizes, fake::FakeMaps},
    service::{Desired, Endpoint, Frontend, Protocol, Rules, Scope, Service, ServiceKey, Target},
    status::Counters,
    tunnel_source::TunnelSources,
};
use lb_bpf_common::{Backend, Config, Counter, DropKey, Mode, Verdict};
use proptest::prelude::*;
use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    num::NonZeroU32,
    sync::Arc,
};

const SIZES: Sizes =
    Sizes { vips: 64, slots: 1 << 15, backends: 200, flows: 10_000, decap: 16, filters: 4, ..Sizes::DEFAULT };
/// Of services: [`Mode::Here`] is of single targets.
const MODES: [Mode; 5] = [Mode::Nat, Mode::Ipip, Mode::Gue, Mode::L2, Mode::Dnat];
const START: Now = Now(1_000_000_000);

fn endpoint(n: u8) -> Endpoint {
    Endpoint { address: Ipv4Addr::new(10, 0, 0, n).into(), port: 8080 }
}

fn frontend(n: u8) -> Frontend {
    Frontend {
        address: Ipv4Addr::new(203, 0, 113, n).into(),
        protocol: Protocol::Tcp,
        port: 80,
        scope: Scope::All,
    }
}

fn key(name: &str) -> ServiceKey {
    ServiceKey(name.into())
}

fn service(frontends: &[u8], backends: &[(u8, u16, bool)]) -> Service {
    let backend = |&(n, weight, up): &(u8, u16, bool)| (endpoint(n), Target { weight, up, here: false });
    Service {
        frontends: frontends.iter().map(|n| frontend(*n)).collect(),
        mode: Mode::Ipip,
        backends: backends.iter().map(backend).collect(),
        drain_seconds: 10,
        rules: Rules::default(),
    }
}

fn desired(services: impl IntoIterator<Item = (&'static str, Service)>) -> Desired {
    let services = services.into_iter().map(|(name, service)| (key(name), Arc::new(service)));
    Desired { services: services.collect(), ..Desired::default() }
}

/// Next hops of all backends that tests use.
fn hops() -> NextHops {
    let hop = |n: u8| Hop {
        source: Ipv4Addr::new(10, 0, 0, 254).into(),
        tunnel_source: None,
        mac: [2, 0, 0, 0, 0, n],
        source_mac: [2, 0, 0, 0, 1, 0],
        ifindex: 7,
        mtu: 1500,
        vlan: Some(5),
        gateway: false,
    };
    (0..50).map(|n| (endpoint(n).address, NextHop::Known(hop(n)))).collect()
}

/// Up to two services with disjoint frontends, and up to six backends each.
fn any_desired() -> impl Strategy<Value = Desired> {
    let weight = prop_oneof![1 => Just(0_u16), 4 => 1..4_u16];
    let target = (weight, prop::bool::weighted(0.8));
    let target = target.prop_map(|(weight, up)| Target { weight, up, here: false });
    let backends = prop::collection::btree_map((1..8_u8).prop_map(endpoint), target, 0..6);
    // One of them is always the host itself.
    let backends = backends.prop_map(|mut backends| {
        backends.entry(endpoint(7)).and_modify(|target| target.here = true);
        backends
    });
    // Mostly the same mode and rules, so that not every change of a service is one of those, too.
    let mode = prop_oneof![6 => Just(Mode::Ipip), 4 => prop::sample::select(&MODES[..])];
    let rules = prop_oneof![3 => Just(Rules::default()), 1 => sources::any_rules()];
    let server_id_bytes = prop_oneof![2 => Just(0), 1 => Just(1), 1 => Just(3), 1 => Just(5)];
    let rules = (rules, prop::bool::weighted(0.2), server_id_bytes);
    let service =
        (backends, mode, rules).prop_map(|(backends, mode, (rules, client_affinity, server_id_bytes))| {
            Service {
                frontends: BTreeSet::new(),
                mode,
                backends,
                drain_seconds: 10,
                rules: Rules { client_affinity, server_id_bytes, ..rules },
            }
        });
    let filters = prop::collection::btree_map("[a-c]", (1..4_u8).prop_map(filters::rule), 0..3);
    // Which of the two services has each of four frontends, if any.
    let owners = prop::collection::vec(prop::option::weighted(0.8, prop::bool::weighted(0.3)), 4);
    (service.clone(), service, owners, filters).prop_map(|(first, second, owners, filters)| {
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
        let services = services.into_iter().map(|(key, service)| (key, Arc::new(service)));
        Desired { services: services.collect(), filters, ..Desired::default() }
    })
}

/// Plans, applies, and checks that the mirror is what the maps hold, and that the plan says what it touches.
fn install(state: &mut State, maps: &mut FakeMaps, desired: &Desired, now: Now) -> Vec<Op> {
    let changes = state.compare(desired);
    let declared = desired.services.values().flat_map(|service| &service.backends);
    let declared = declared.filter(|(_, target)| !target.here).map(|(endpoint, _)| endpoint.address);
    let entries = maps.backends().unwrap().into_values().filter(|backend| backend.mode != Mode::Here as u8);
    let entries: BTreeSet<IpAddr> = entries.map(|backend| backend.addr.into()).collect();
    let addresses: BTreeSet<IpAddr> = declared.chain(entries.iter().copied()).collect();
    // Those that are not asked for are those of before, which have all their entries by now.
    assert_eq!(state.addresses(&changes).unwrap_or(entries), addresses);
    state.addresses_are_known();
    let mut report = state.installed();
    let Plan { mut ops, touched } = state.plan_changes(maps, changes, &Arc::new(hops()), now).unwrap();
    ops.iter().for_each(|op| maps.apply(op).unwrap());
    for key in touched {
        match state.installed_service(&key) {
            Some(service) => report.insert(key, service),
            None => report.remove(&key),
        };
    }
    assert_eq!(report, state.installed());
    let prune = state.plan_prune(now);
    prune.iter().for_each(|op| maps.apply(op).unwrap());
    ops.extend(prune);
    assert_eq!(state.vips, maps.vips);
    assert_eq!(state.learning, maps.learning);
    assert_eq!(state.backends, maps.backends().unwrap());
    assert_eq!(state.by_address.len(), state.backends.len());
    assert_eq!(state.names, maps.names);
    assert_eq!(state.config, maps.config);
    assert_eq!(
        state.sources.values().flatten().map(|(k, v)| (*k, *v)).collect::<BTreeMap<_, _>>(),
        maps.ranges
    );
    assert_eq!(state.ranges_used, maps.ranges.len());
    assert_eq!(state.filters, maps.filters().unwrap());
    assert_eq!(state.filter_names, maps.filter_names);
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
    let maps = FakeMaps::new(Sizes { slots: 2000, ..SIZES });
    let mut state = State::restore(&maps).unwrap();
    let backends = [(1, 1, true)];
    let two = desired([("a", service(&[1], &backends)), ("b", service(&[2], &backends))]);
    let error = state.plan(&maps, &two, &hops(), START).unwrap_err();
    assert_eq!(error.to_string(), "map slots is full: 1021 more entries are needed, 979 are free");
    let mut maps = FakeMaps::new(Sizes { vips: 16, ..SIZES });
    let mut state = State::restore(&maps).unwrap();
    let frontends: Vec<u8> = (1..=8).collect();
    let error =
        state.plan(&maps, &desired([("a", service(&frontends, &backends))]), &hops(), START).unwrap_err();
    assert_eq!(error.to_string(), "map vips is full: 16 more entries are needed, 14 are free");
    // The errors have changed nothing.
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
fn a_frontend_has_one_service_whichever_of_the_two_is_new() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let (web, greedy) = (service(&[1], &[(1, 1, true)]), service(&[1, 2], &[(2, 1, true)]));
    let one = desired([("web", web.clone())]);
    install(&mut state, &mut maps, &one, START);
    for name in ["api", "www"] {
        let both = desired([("web", web.clone()), (name, greedy.clone())]);
        let error = state.plan(&maps, &both, &hops(), START).unwrap_err();
        let PlanError::FrontendTwice { frontend: shared, first, second } = error else { panic!("{error}") };
        assert_eq!(shared, frontend(1));
        assert_eq!([&first, &second], both.services.keys().collect::<Vec<_>>()[..]);
        assert_eq!(install(&mut state, &mut maps, &one, START), [], "nothing has changed");
    }
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
        [Op::ResetCounters(2), Op::SetBackend(2, _), Op::WriteTable(..), Op::SetVip(..), Op::SetLearning(..)]
    ));
}

#[test]
fn only_ipip_takes_its_source_from_a_prefix() {
    let sources = |text: &str| text.parse::<TunnelSources>().unwrap().towards(endpoint(1).address);
    let with = |text: &str| {
        let NextHop::Known(hop) = hops()[&endpoint(1).address] else { panic!("known") };
        NextHops::from([(endpoint(1).address, NextHop::Known(Hop { tunnel_source: sources(text), ..hop }))])
    };
    for mode in MODES {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let mut web = service(&[1], &[(1, 1, true)]);
        web.mode = mode;
        let one = desired([("web", web)]);
        let mut installed = |hops: &NextHops| {
            for op in state.plan(&maps, &one, hops, START).unwrap() {
                maps.apply(&op).unwrap();
            }
            let (index, backend) = maps.backends().unwrap().pop_last().unwrap();
            assert_eq!(backend.header_sum != 0, mode.is_tunnel());
            (index, IpAddr::from(backend.source).to_string(), backend.flags >> Backend::VARYING_SHIFT)
        };
        let own = (1, "10.0.0.254".to_owned(), 0);
        assert_eq!(installed(&with("")), own);
        let (wide, narrow) = (installed(&with("198.18.0.0/16")), installed(&with("198.18.0.0/24")));
        if mode == Mode::Ipip {
            assert_eq!(wide, (2, "198.18.0.0".to_owned(), 16), "an entry keeps its source");
            assert_eq!(narrow, (2, "198.18.0.0".to_owned(), 8));
        } else {
            assert_eq!((&wide, &narrow), (&own, &own), "{mode:?}");
        }
    }
}

#[test]
fn each_mode_has_what_the_kernel_program_needs_of_it() {
    let hop = |source: &str, gateway| {
        let NextHop::Known(hop) = hops()[&endpoint(1).address] else { panic!("known") };
        NextHop::Known(Hop { source: source.parse().unwrap(), gateway, ..hop })
    };
    let v6 = Endpoint { address: "2001:db8::1".parse().unwrap(), port: 80 };
    let hops = NextHops::from([
        (endpoint(1).address, hop("10.0.0.254", true)),
        (endpoint(2).address, hop("10.0.0.254", false)),
        (v6.address, hop("2001:db8::fe", false)),
    ]);
    for mode in MODES {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let mut web = service(&[1], &[(1, 1, true), (2, 1, true)]);
        web.mode = mode;
        web.backends.insert(v6, Target { weight: 1, up: true, here: false });
        let one = desired([("web", web)]);
        for op in state.plan(&maps, &one, &hops, START).unwrap() {
            maps.apply(&op).unwrap();
        }
        let backends: Vec<_> = maps.backends().unwrap().into_values().collect();
        let resolved: Vec<bool> = backends.iter().map(|backend| backend.ifindex != 0).collect();
        assert_eq!(resolved, [mode != Mode::L2, true, true], "{mode:?}: a router is not the backend");
        let has_sum: Vec<bool> = backends.iter().map(|backend| backend.header_sum != 0).collect();
        let outer_v4 = mode.is_tunnel();
        assert_eq!(has_sum, [outer_v4, outer_v4, false], "{mode:?}");
        assert!(backends[1..].iter().all(|backend| backend.vlan == 5));
        let flags = match mode {
            Mode::Nat => Config::NAT,
            Mode::Dnat => Config::DNAT,
            Mode::Ipip | Mode::Gue | Mode::L2 | Mode::Here => 0,
        };
        assert_eq!(maps.config.flags, flags, "{mode:?}");
        // Packets of flows that go on are translated back until the backends are free.
        for op in state.plan(&maps, &Desired::default(), &hops, START).unwrap() {
            maps.apply(&op).unwrap();
        }
        state.plan_prune(START).iter().for_each(|op| maps.apply(op).unwrap());
        assert_eq!(maps.config.flags, flags, "{mode:?}");
        for second in 0..3 {
            state.sweep(&mut maps, Now(START.0 + second * 1000)).unwrap();
        }
        assert_eq!(maps.config.flags, 0, "{mode:?}");
    }
}

#[test]
fn a_service_whose_only_neighbours_are_routers_is_not_resolved_in_l2() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut web = service(&[1], &[(1, 1, true)]);
    web.mode = Mode::L2;
    let one = desired([("web", web)]);
    let NextHop::Known(hop) = hops()[&endpoint(1).address] else { panic!("known") };
    for (gateway, resolved) in [(true, false), (false, true), (true, false)] {
        let hops = NextHops::from([(endpoint(1).address, NextHop::Known(Hop { gateway, ..hop }))]);
        for op in state.plan(&maps, &one, &hops, START).unwrap() {
            maps.apply(&op).unwrap();
        }
        assert_eq!(state.installed()[&key("web")].resolved, resolved);
    }
}

#[test]
fn sampling_changes_nothing_else_and_rounds_up() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut web = service(&[1], &[(1, 1, true)]);
    web.mode = Mode::Nat;
    install(&mut state, &mut maps, &desired([("web", web)]), START);
    let before = maps.config;
    let cases = [(1, 0), (2, 1), (3, 3), (1000, 1023), (1 << 31, (1 << 31) - 1), (u32::MAX, u32::MAX)];
    for (one_in, sample_mask) in cases {
        let ops = state.plan_sampling(NonZeroU32::new(one_in));
        ops.iter().for_each(|op| maps.apply(op).unwrap());
        let flags = Config::NAT | Config::EVENTS;
        assert_eq!(maps.config, Config { flags, sample_mask, ..before }, "{one_in}");
        assert_eq!(state.plan_sampling(NonZeroU32::new(one_in)), []);
    }
    state.plan_sampling(None).iter().for_each(|op| maps.apply(op).unwrap());
    assert_eq!(maps.config, before);
}

#[test]
fn drops_are_counted_by_service_as_long_as_it_is_there() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let web = service(&[1], &[(1, 1, true)]);
    let two = desired([("a", web.clone()), ("b", service(&[2], &[]))]);
    install(&mut state, &mut maps, &two, START);
    let drops = |packets| Counter { packets, ..Counter::default() };
    let denied = |service| DropKey { service, verdict: Verdict::SourceDenied as u32 };
    let no_backend = DropKey { service: 2, verdict: Verdict::NoBackend as u32 };
    let unknown = DropKey { service: 2, verdict: 999 };
    maps.service_drops =
        [(denied(1), drops(3)), (denied(2), drops(4)), (no_backend, drops(5)), (unknown, drops(6))].into();
    let seen = |maps: &FakeMaps| -> Vec<(String, &str, u64)> {
        let all = Counters::read(maps).unwrap().drops;
        let all =
            all.into_iter().flat_map(|(key, drops)| drops.into_iter().map(move |drop| (key.clone(), drop)));
        all.map(|(key, (label, counter))| (key.0.to_string(), label, counter.packets)).collect()
    };
    let wanted = [("a", "source_denied", 3), ("b", "no_backend", 5), ("b", "source_denied", 4)]
        .map(|(s, l, n)| (s.to_owned(), l, n));
    assert_eq!(seen(&maps), wanted);
    install(&mut state, &mut maps, &desired([("a", web)]), START);
    while !state.sweep(&mut maps, START).unwrap().complete {}
    assert_eq!(maps.service_drops, [(denied(1), drops(3))].into());
    assert_eq!(seen(&maps), wanted[..1]);
}

/// With affinity the ports do not count; connections stay where they are all the same when a slot moves.
#[test]
fn connections_of_affine_clients_stay() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let with = |backends: &[(u8, u16, bool)]| {
        let mut web = service(&[1], backends);
        web.rules.client_affinity = true;
        desired([("web", web)])
    };
    let three = [(1, 1, true), (2, 1, true), (3, 1, true)];
    install(&mut state, &mut maps, &with(&three), START);
    // Two connections of each of 200 clients.
    let flows: Vec<_> = (0..400).map(|n| packets::flow(frontend(1), (n / 2) * 256 + (n % 2) * 77)).collect();
    let before: Vec<_> = flows.iter().map(|flow| packets::send(&mut maps, flow, true, START)).collect();
    assert!(before.chunks(2).all(|pair| pair[0] == pair[1]), "one backend for each client");
    let mut now = Now(START.0 + 100_000);
    install(&mut state, &mut maps, &with(&[&three[..], &[(4, 1, true)]].concat()), now);
    for _ in 0..60 {
        let after: Vec<_> = flows.iter().map(|flow| packets::send(&mut maps, flow, false, now)).collect();
        let broken = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert_eq!(broken, 0, "after {} seconds", (now.0 - START.0) / 1000);
        now.0 += 1000;
        state.sweep(&mut maps, now).unwrap();
    }
    let moved = flows.iter().filter(|flow| packets::slot(&maps, flow).unwrap().1.previous != 0).count();
    assert!((1..200).contains(&moved), "{moved} connections are not where the table says");
}

/// A process that comes back does not begin the learning of slots anew: as long as it lasts, connections that a router moves
/// here in the middle of their handshake are taken for old ones.
#[test]
fn slots_learn_no_longer_because_of_a_restart() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let of = |backends: &[(u8, u16, bool)]| desired([("web", service(&[1, 2], backends))]);
    let three = of(&[(1, 1, true), (2, 1, true), (3, 1, true)]);
    install(&mut state, &mut maps, &of(&[(1, 1, true), (2, 1, true)]), START);
    let change = Now(START.0 + 100_000);
    install(&mut state, &mut maps, &three, change);
    let learning = |maps: &FakeMaps| maps.slots.iter().filter(|slot| dirt::waiting(slot).is_some()).count();
    assert!(learning(&maps) > 100, "{}", learning(&maps));
    let mut state = State::restore(&maps).unwrap();
    assert_eq!(install(&mut state, &mut maps, &three, Now(change.0 + 8000)), []);
    state.sweep(&mut maps, Now(change.0 + 9000)).unwrap();
    assert!(learning(&maps) > 100, "{}", learning(&maps));
    state.sweep(&mut maps, Now(change.0 + 10_000)).unwrap();
    assert_eq!(learning(&maps), 0);

    // One that crashed before it was noted learns for the whole time.
    install(&mut state, &mut maps, &of(&[(1, 1, true), (3, 1, true)]), Now(change.0 + 100_000));
    maps.learning.clear();
    let mut state = State::restore(&maps).unwrap();
    let ops = install(&mut state, &mut maps, &of(&[(1, 1, true), (3, 1, true)]), Now(change.0 + 108_000));
    assert!(matches!(ops[..], [Op::SetLearning(..), Op::SetLearning(..)]), "{ops:?}");
    state.sweep(&mut maps, Now(change.0 + 117_000)).unwrap();
    assert!(learning(&maps) > 100, "{}", learning(&maps));
    state.sweep(&mut maps, Now(change.0 + 118_000)).unwrap();
    assert_eq!(learning(&maps), 0);
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
