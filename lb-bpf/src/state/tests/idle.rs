//! Idle times, and the two entries of a NAT flow.
use super::{
    super::{Now, State, vip_key},
    SIZES, START, desired, frontend, install,
    packets::flow,
    service,
};
use crate::maps::{Maps, fake::FakeMaps};
use lb_bpf_common::{FlowEntry, FlowKey, Mode, ReverseEntry};

struct Nat {
    maps: FakeMaps,
    state: State,
}

impl Nat {
    fn new() -> Self {
        let mut maps = FakeMaps::new(SIZES);
        let mut state = State::restore(&maps).unwrap();
        let mut web = service(&[1], &[(1, 1, true)]);
        web.mode = Mode::Nat;
        install(&mut state, &mut maps, &desired([("web", web)]), START);
        assert!(maps.vips.contains_key(&vip_key(&frontend(1))));
        Nat { maps, state }
    }

    /// A flow and its way back, last seen so many seconds ago.
    fn add(&mut self, n: u16, state: u16, flow_age: u32, reply_age: u32) -> (FlowKey, FlowKey) {
        let key = flow(frontend(1), n);
        let backend = self.maps.backends().unwrap()[&1];
        let nat_port = (20_000 + n).to_be();
        let reply_key = FlowKey::reply(&backend, nat_port, key.proto);
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
fn both_entries_of_a_nat_flow_go_together() {
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
    ];
    let mut nat = Nat::new();
    let keys: Vec<_> =
        (1..).zip(&cases).map(|(n, &(state, flow, reply, _))| nat.add(n, state, flow, reply)).collect();
    nat.sweep();
    for ((flow, reply), case) in keys.iter().zip(&cases) {
        assert_eq!(nat.maps.flows.contains_key(flow), !case.3, "{case:?}");
        assert_eq!(nat.maps.replies.contains_key(reply), !case.3, "{case:?}");
    }
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
