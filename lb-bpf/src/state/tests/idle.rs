//! Idle times, and the two entries of a NAT flow.
use super::{
    super::{Now, State, vip_key},
    SIZES, START, desired, frontend, install,
    packets::flow,
    service,
};
use crate::{
    maps::{Maps, fake::FakeMaps},
    service::{Frontend, Protocol, Scope},
};
use lb_bpf_common::{FlowEntry, FlowKey, Mode, ReverseEntry, Tags};
use std::net::{IpAddr, Ipv4Addr};

/// The UDP frontend.
const DATAGRAMS: Frontend = Frontend {
    address: IpAddr::V4(Ipv4Addr::new(203, 0, 113, 1)),
    protocol: Protocol::Udp,
    port: 53,
    scope: Scope::All,
};

struct Nat {
    maps: FakeMaps,
    state: State,
}

impl Nat {
    fn new() -> Self {
        Nat::of(Mode::Nat)
    }

    fn of(mode: Mode) -> Self {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let mut web = service(&[1], &[(1, 1, true)]);
        web.mode = mode;
        web.frontends.insert(DATAGRAMS);
        install(&mut state, &mut maps, &desired([("web", web)]), START);
        assert!(maps.vips.contains_key(&vip_key(&frontend(1))));
        Nat { maps, state }
    }

    /// A flow and its way back, last seen so many seconds ago.
    fn add(&mut self, n: u16, state: u16, flow_age: u32, reply_age: u32) -> (FlowKey, FlowKey) {
        self.add_to(frontend(1), n, state, flow_age, reply_age)
    }

    fn add_to(
        &mut self,
        frontend: Frontend,
        n: u16,
        state: u16,
        flow_age: u32,
        reply_age: u32,
    ) -> (FlowKey, FlowKey) {
        let key = flow(frontend, n);
        let backend = self.maps.backends().unwrap()[&1];
        let is_nat = backend.mode == Mode::Nat as u8;
        let nat_port = if is_nat { (20_000 + n).to_be() } else { 0 };
        let reply_key = key.answer(&backend, nat_port);
        let seen = |age| START.seconds() - age;
        let entry = FlowEntry { backend: 1, slot: 0, seen: seen(flow_age), nat_port, state };
        let reply = ReverseEntry {
            client: key.src,
            vip: key.dst,
            client_port: key.src_port,
            vip_port: key.dst_port,
            ifindex: 7,
            seen: seen(reply_age),
            next_hop: [0; 6],
            source_mac: [0; 6],
            tags: Tags::NONE,
        };
        self.maps.flows.insert(key, entry);
        self.maps.replies.insert(reply_key, reply);
        (key, reply_key)
    }

    fn sweep(&mut self) {
        for _ in 0..3 {
            self.state.sweep(&mut self.maps, START).unwrap();
        }
    }
}

#[test]
fn both_entries_of_a_translated_flow_go_together() {
    let both = FlowEntry::FIN_CLIENT | FlowEntry::FIN_BACKEND;
    // State, age of the flow, age of the way back, whether it is idle.
    let cases = [
        (0, 7000, 7000, false),
        (0, 7500, 7500, true),
        (0, 7500, 10, false), // only the backend sends
        (FlowEntry::RST, 5, 5, false),
        (FlowEntry::RST, 11, 11, true),
        (FlowEntry::FIN_CLIENT, 200, 200, false),
        (FlowEntry::FIN_CLIENT, 241, 241, true),
        (both, 59, 59, false),
        (both, 61, 61, true),
        (FlowEntry::HALF_OPEN, 59, 59, false),
        (FlowEntry::HALF_OPEN, 61, 0, true), // the backend repeats its answer
        (FlowEntry::HALF_OPEN | FlowEntry::RST, 11, 11, true),
    ];
    check_idle(Mode::Nat, frontend(1), &cases);
    check_idle(Mode::Dnat, frontend(1), &cases);
    let cases = [
        (0, 119, 119, false),
        (0, 121, 121, true),
        (0, 121, 10, false),
        (FlowEntry::HALF_OPEN, 29, 29, false),
        (FlowEntry::HALF_OPEN, 31, 31, true),
        (FlowEntry::HALF_OPEN, 600, 10, false), // one question, and answers for minutes
    ];
    check_idle(Mode::Nat, DATAGRAMS, &cases);
    check_idle(Mode::Dnat, DATAGRAMS, &cases);
}

fn check_idle(mode: Mode, frontend: Frontend, cases: &[(u16, u32, u32, bool)]) {
    let mut nat = Nat::of(mode);
    let mut add = |(n, &(state, flow, reply, _))| nat.add_to(frontend, n, state, flow, reply);
    let keys: Vec<_> = (1..).zip(cases).map(&mut add).collect();
    nat.sweep();
    for ((flow, reply), case) in keys.iter().zip(cases) {
        assert_eq!(nat.maps.flows.contains_key(flow), !case.3, "{case:?}");
        assert_eq!(nat.maps.replies.contains_key(reply), !case.3, "{case:?}");
    }
}

/// The table is nearly full of SYNs: those go, established connections stay however long they are silent.
#[test]
fn a_syn_flood_costs_no_established_connection() {
    let mut nat = Nat::new();
    let room = SIZES.flows as u16;
    let idle: Vec<_> = (0..1000).map(|n| nat.add(n, 0, 7000, 7000)).collect();
    for n in 1000..room {
        nat.add(n, FlowEntry::HALF_OPEN, 6, 1);
    }
    nat.sweep();
    assert_eq!(nat.maps.flows.len(), idle.len());
    assert!(
        idle.iter().all(|(flow, reply)| {
            nat.maps.flows.contains_key(flow) && nat.maps.replies.contains_key(reply)
        })
    );
}

/// It is nearly full of connections that do something from time to time: those that are silent go.
#[test]
fn a_table_full_of_connections_loses_the_silent_ones() {
    let mut nat = Nat::new();
    let (silent, _) = nat.add(0, 0, 301, 301);
    for n in 1..9000 {
        nat.add(n, 0, 200, 200);
    }
    nat.sweep();
    assert!(!nat.maps.flows.contains_key(&silent));
    assert_eq!(nat.maps.flows.len(), 8999);
}

#[test]
fn a_way_back_without_a_flow_goes_unless_it_is_quite_new() {
    let mut nat = Nat::new();
    let (old, old_reply) = nat.add(1, 0, 5, 5);
    let (new, new_reply) = nat.add(2, 0, 0, 0);
    nat.maps.flows.remove(&old);
    nat.maps.flows.remove(&new);
    nat.sweep();
    assert!(!nat.maps.replies.contains_key(&old_reply));
    assert!(nat.maps.replies.contains_key(&new_reply), "its flow may be about to be made");
}

#[test]
fn flows_of_a_frontend_that_is_gone_go() {
    let mut nat = Nat::new();
    nat.add(1, 0, 0, 0);
    install(&mut nat.state, &mut nat.maps, &desired([]), START);
    nat.state.sweep(&mut nat.maps, START).unwrap();
    assert!(nat.maps.flows.is_empty() && nat.maps.replies.is_empty());
    assert_eq!(nat.maps.backends().unwrap().len(), 1, "a packet may be on its way");
    nat.state.sweep(&mut nat.maps, Now(START.0 + 1000)).unwrap();
    assert!(nat.maps.backends().unwrap().is_empty());
}

#[test]
fn one_call_looks_at_a_bounded_number_of_flows() {
    let mut nat = Nat::new();
    for n in 0..40_000 {
        nat.add(n, 0, 0, 0);
    }
    let first = nat.state.sweep(&mut nat.maps, START).unwrap();
    let limit = super::super::sweep::FLOWS_PER_CALL;
    assert!(!first.complete && (limit..limit + 2000).contains(&first.flows_seen), "{first:?}");
    while !nat.state.sweep(&mut nat.maps, START).unwrap().complete {}
    assert_eq!(nat.maps.flows.len(), 40_000);
}
