//! Hosts with backends of their own: a frontend that chooses the host, and one of local scope that chooses among them.
use super::{
    super::{Now, State, ping_key, vip_key},
    SIZES, START, desired, endpoint, frontend, install,
    packets::flow,
    service,
};
use crate::{
    maps::{Maps, fake::FakeMaps},
    service::{Decap, Desired, Frontend, Scope, Service},
};
use lb_bpf_common::{DecapKey, FlowEntry, FlowKey, Mode, ReverseEntry, Tags, scope};

fn local(n: u8) -> Frontend {
    Frontend { scope: Scope::Local, ..frontend(n) }
}

/// This host is 10.0.0.1, another one 10.0.0.2; the pods here are 10.0.0.11 and 12.
fn node() -> Desired {
    let mut hosts = service(&[1], &[(1, 2, true), (2, 2, true)]);
    hosts.backends.get_mut(&endpoint(1)).unwrap().here = true;
    let pods = Service {
        frontends: [local(1)].into(),
        mode: Mode::Dnat,
        ..service(&[], &[(11, 1, true), (12, 1, true)])
    };
    let mut node = desired([("web", hosts), ("web/pods", pods)]);
    node.decap.insert(Decap { local: endpoint(1).address, vip: frontend(1).address, deliver: true });
    node
}

#[test]
fn both_frontends_of_a_vip_have_tables_of_their_own() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    install(&mut state, &mut maps, &node(), START);
    let (hosts, pods) = (maps.vips[&vip_key(&frontend(1))], maps.vips[&vip_key(&local(1))]);
    assert!(hosts.service != pods.service && hosts.base != pods.base);
    let modes = |vip: lb_bpf_common::Vip| {
        let slots = maps.slots(vip.base, vip.size).unwrap();
        let mut modes: Vec<_> = slots.iter().map(|slot| maps.backends[slot.current as usize].mode).collect();
        modes.sort_unstable();
        modes.dedup();
        modes
    };
    assert_eq!(modes(hosts), [Mode::Ipip as u8, Mode::Here as u8]);
    assert_eq!(modes(pods), [Mode::Dnat as u8]);
    let end = DecapKey { local: endpoint(1).address.into(), vip: frontend(1).address.into() };
    assert_eq!(maps.decap.get(&end), Some(&DecapKey::TO_LOCAL));
    // What a process finds after a restart is what is desired.
    let mut state = State::restore(&maps).unwrap();
    let again = state.plan(&maps, &node(), &super::hops(), START).unwrap();
    assert_eq!(again, []);
    // The host itself can be reached at any time.
    let report = state.installed_service(&super::key("web")).unwrap();
    assert!(report.resolved && report.slots.values().all(|slots| *slots > 0), "{report:?}");
}

#[test]
fn this_host_is_reached_where_nobody_else_is() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let node = node();
    let asked = state.compare(&node);
    let addresses = state.addresses(&asked).unwrap();
    assert!(!addresses.contains(&endpoint(1).address) && addresses.contains(&endpoint(11).address));
    let ops = state.plan(&maps, &node, &super::NextHops::new(), START).unwrap();
    ops.iter().for_each(|op| maps.apply(op).unwrap());
    let resolved = |name| state.installed_service(&super::key(name)).unwrap().resolved;
    assert_eq!((resolved("web"), resolved("web/pods")), (true, false));
}

#[test]
fn only_frontends_of_clients_answer_pings() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut node = node();
    node.services.remove(&super::key("web"));
    install(&mut state, &mut maps, &node, START);
    assert!(!maps.vips.contains_key(&ping_key(&frontend(1))));
    install(&mut state, &mut maps, &self::node(), START);
    assert!(maps.vips.contains_key(&ping_key(&frontend(1))));
}

#[test]
fn a_tunnel_end_changes_where_it_leads() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut node = node();
    install(&mut state, &mut maps, &node, START);
    let end = node.decap.pop_first().unwrap();
    node.decap.insert(Decap { deliver: false, ..end });
    install(&mut state, &mut maps, &node, START);
    assert_eq!(maps.decap.values().collect::<Vec<_>>(), [&DecapKey::TO_STACK]);
    node.decap.clear();
    install(&mut state, &mut maps, &node, START);
    state.plan_prune(START).iter().for_each(|op| maps.apply(op).unwrap());
    assert!(maps.decap.is_empty());
}

#[test]
fn a_flow_lives_by_the_frontend_of_its_scope() {
    let mut maps = FakeMaps::new(SIZES);
    let mut state = State::restore(&maps).unwrap();
    let mut node = node();
    install(&mut state, &mut maps, &node, START);
    let pod = |maps: &FakeMaps, n| {
        let addr = endpoint(n).address.into();
        maps.backends().unwrap().into_iter().find(|(_, backend)| backend.addr == addr).unwrap()
    };
    let (index, backend) = pod(&maps, 11);
    let key = FlowKey { scope: scope::LOCAL, ..flow(frontend(1), 7) };
    let seen = START.seconds();
    let entry = FlowEntry { backend: index, slot: 0, seen, nat_port: key.src_port, state: 0 };
    let reply = ReverseEntry {
        client: key.src,
        vip: key.dst,
        client_port: key.src_port,
        vip_port: key.dst_port,
        ifindex: ReverseEntry::ROUTED,
        seen,
        next_hop: [0; 6],
        source_mac: [0; 6],
        tags: Tags::NONE,
    };
    maps.flows.insert(key, entry);
    maps.replies.insert(key.answer(&backend, key.src_port), reply);
    let sweep = |state: &mut State, maps: &mut FakeMaps, seconds: u64| {
        for second in 0..3 {
            state.sweep(maps, Now(START.0 + (seconds + second) * 1000)).unwrap();
        }
    };
    sweep(&mut state, &mut maps, 0);
    assert_eq!((maps.flows.len(), maps.replies.len()), (1, 1), "the way back has its flow");
    // Clients are sent elsewhere now; who is here stays.
    node.services.remove(&super::key("web"));
    install(&mut state, &mut maps, &node, START);
    state.plan_prune(START).iter().for_each(|op| maps.apply(op).unwrap());
    sweep(&mut state, &mut maps, 3);
    assert_eq!((maps.flows.len(), maps.replies.len()), (1, 1));
    node.services.clear();
    install(&mut state, &mut maps, &node, START);
    state.plan_prune(START).iter().for_each(|op| maps.apply(op).unwrap());
    sweep(&mut state, &mut maps, 6);
    assert_eq!((maps.flows.len(), maps.replies.len()), (0, 0));
}
