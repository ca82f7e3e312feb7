//! Random histories: of dirty slots against a model (where every packet goes, what every entry says, and that no
//! connection moves while its backend lives), and of NAT against what must always hold.
use crate::{
    frame::{ACK, FIN, OWN, ROUTER, RST, SYN, Transport},
    rig::Rig,
    scene::{
        BASE, Family, PORTS, SLOTS, V4, V6, backend, flow_key, reply, request, translated, tunnelled, world,
    },
};
use lb_bpf::abi::{Backend, FlowEntry, FlowKey, Mode, Slot};
use proptest::{collection::vec, prelude::*};
use std::{cell::RefCell, collections::BTreeMap};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Step {
    /// A packet of the client with this source port.
    Packet { port: u16, transport: Transport },
    /// User space writes the slot.
    Slot(Slot),
    /// User space changes a backend: in use, down or free.
    Backend { index: u32, mode: u8, flags: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let transport = prop_oneof![
        3 => Just(Transport::Tcp(SYN)),
        6 => Just(Transport::Tcp(ACK)),
        1 => Just(Transport::Tcp(FIN | ACK)),
        1 => Just(Transport::Tcp(RST)),
        3 => Just(Transport::Udp),
    ];
    let slot = (0..4_u32, 0..4_u32, any::<bool>()).prop_map(|(current, previous, settled)| {
        let settled = if settled && previous != 0 { Slot::SETTLED } else { 0 };
        Slot { current, previous: previous | settled }
    });
    let state =
        prop_oneof![Just((Mode::Ipip as u8, 0)), Just((Mode::Ipip as u8, Backend::DOWN)), Just((0, 0))];
    prop_oneof![
        12 => (1..5_u16, transport).prop_map(|(port, transport)| Step::Packet { port, transport }),
        3 => slot.prop_map(Step::Slot),
        2 => (1..4_u32, state).prop_map(|(index, (mode, flags))| Step::Backend { index, mode, flags }),
    ]
}

/// What the datapath should hold.
struct Model {
    slot: Slot,
    backends: BTreeMap<u32, Backend>,
    /// Backend and state of each flow.
    flows: BTreeMap<(u16, bool), (u32, u16)>,
}

impl Model {
    fn in_use(&self, index: u32) -> bool {
        self.backends.get(&index).is_some_and(|backend| backend.mode != 0)
    }

    fn alive(&self, index: u32) -> bool {
        self.in_use(index) && self.backends[&index].flags & Backend::DOWN == 0
    }

    /// The backend that gets the packet, as the rules say it.
    fn packet(&mut self, port: u16, transport: Transport) -> Option<u32> {
        let Slot { current, previous } = self.slot;
        if previous == 0 {
            return self.in_use(current).then_some(current);
        }
        let (is_tcp, syn) = (transport != Transport::Udp, transport == Transport::Tcp(SYN));
        let bits = match transport {
            Transport::Tcp(flags) if flags & FIN != 0 => FlowEntry::FIN_CLIENT,
            Transport::Tcp(flags) if flags & RST != 0 => FlowEntry::RST,
            _ => 0,
        };
        let known = self.flows.get(&(port, is_tcp)).copied();
        let (index, state) = match known {
            Some((pinned, state)) if !syn && self.alive(pinned) => {
                (pinned, state & !(FlowEntry::HALF_OPEN | FlowEntry::RST) | bits)
            }
            _ => {
                let learning = previous & Slot::SETTLED == 0;
                let old = is_tcp && !syn && learning && self.alive(previous);
                let index = if old { previous } else { current };
                let half_open = if syn || !is_tcp { FlowEntry::HALF_OPEN } else { 0 };
                match known {
                    // A duplicate, of a connection that lives.
                    Some((pinned, state)) if syn && pinned == index && state & FlowEntry::ENDING == 0 => {
                        (index, state)
                    }
                    // The entry of a backend that is down, yet the only one.
                    Some((pinned, state)) if !syn && pinned == index => {
                        (index, state & !(FlowEntry::HALF_OPEN | FlowEntry::RST) | bits)
                    }
                    _ => (index, half_open | bits),
                }
            }
        };
        if !self.in_use(index) {
            return None;
        }
        self.flows.insert((port, is_tcp), (index, state));
        Some(index)
    }
}

fn agrees(rig: &mut Rig, family: Family, steps: &[Step]) {
    let world = world(family, Mode::Ipip);
    rig.fill(&world);
    let mut model = Model {
        slot: Slot { current: 1, previous: 0 },
        backends: (1..5).map(|index| (index, backend(family, Mode::Ipip, index))).collect(),
        flows: BTreeMap::new(),
    };
    for step in steps {
        match *step {
            Step::Packet { port, transport } => {
                let mut frame = request(family, transport);
                frame.src.set_port(port);
                let key = (port, transport != Transport::Udp);
                let before = model.flows.get(&key).copied();
                let index = model.packet(port, transport);
                if let (Some((pinned, _)), Some(index)) = (before, index)
                    && model.slot.previous != 0
                    && transport != Transport::Tcp(SYN)
                    && model.alive(pinned)
                {
                    assert_eq!(index, pinned, "the model itself keeps connections");
                }
                let result = rig.run(&frame.bytes());
                match index {
                    Some(index) => assert_eq!(result.bytes, tunnelled(family, &frame, index), "{step:?}"),
                    None => assert_eq!(result.action, crate::rig::DROP, "{step:?}"),
                }
                let entry = rig.flow(&flow_key(&frame)).map(|entry| (entry.backend, entry.state));
                assert_eq!(entry, model.flows.get(&key).copied(), "{step:?}");
            }
            Step::Slot(slot) => {
                if slot.current != model.slot.current {
                    rig.renew();
                }
                model.slot = slot;
                (BASE..BASE + SLOTS).for_each(|index| rig.set_slot(index, slot));
            }
            Step::Backend { index, mode, flags } => {
                let backend = Backend { mode, flags, ..backend(family, Mode::Ipip, index) };
                model.backends.insert(index, backend);
                rig.set_backend(index, backend);
            }
        }
    }
}

#[test]
fn dirty_slots_follow_the_rules_in_any_history() {
    let rig = RefCell::new(Rig::load(16, 16));
    proptest!(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }, |(
        v6 in any::<bool>(),
        steps in vec(step(), 1..60),
    )| {
        agrees(&mut rig.borrow_mut(), if v6 { V6 } else { V4 }, &steps);
    });
}

/// One thing that happens to a NAT service.
#[derive(Clone, Debug)]
enum NatStep {
    /// A packet of the client with this source port.
    Packet { port: u16, transport: Transport },
    /// The table moves to this backend.
    Move(u32),
    /// The sweep takes a flow away, with its way back.
    Sweep { port: u16, transport: Transport },
}

fn nat_step() -> impl Strategy<Value = NatStep> {
    let transport = prop_oneof![Just(Transport::Tcp(SYN)), Just(Transport::Tcp(ACK)), Just(Transport::Udp)];
    prop_oneof![
        8 => (1..9_u16, transport.clone()).prop_map(|(port, transport)| NatStep::Packet { port, transport }),
        2 => (1..5_u32).prop_map(NatStep::Move),
        2 => (1..9_u16, transport).prop_map(|(port, transport)| NatStep::Sweep { port, transport }),
    ]
}

/// Every packet that is let through comes from a port of the range that no other flow has at its backend, and the
/// answer finds its client; a packet is refused only when all ports were taken.
fn translates(rig: &mut Rig, family: Family, steps: &[NatStep]) {
    const LAST: u16 = PORTS.0 + 2;
    let mut world = world(family, Mode::Nat);
    world.config.nat_port_last = LAST;
    rig.fill(&world);
    for step in steps {
        match *step {
            NatStep::Move(current) => {
                (BASE..BASE + SLOTS).for_each(|index| rig.set_slot(index, Slot { current, previous: 0 }));
            }
            NatStep::Sweep { port, transport } => {
                let mut frame = request(family, transport);
                frame.src.set_port(port);
                let key = flow_key(&frame);
                if let Some(entry) = rig.flow(&key) {
                    let backend = backend(family, Mode::Nat, entry.backend);
                    rig.remove_reverse(&FlowKey::reply(&backend, entry.nat_port, key.proto));
                    rig.set_flow(&key, None);
                }
            }
            NatStep::Packet { port, transport } => {
                let mut frame = request(family, transport);
                frame.src.set_port(port);
                let before = rig.reverse();
                let result = rig.run(&frame.bytes());
                let Some(entry) = rig.flow(&flow_key(&frame)) else {
                    assert_eq!(result.action, crate::rig::DROP, "{step:?}");
                    assert!(before.len() >= 3, "{step:?}: refused with {} ports in use", before.len());
                    continue;
                };
                if result.action == crate::rig::DROP {
                    continue; // a SYN whose new backend has no port left
                }
                let nat_port = u16::from_be(entry.nat_port);
                assert!((PORTS.0..=LAST).contains(&nat_port), "{step:?}: port {nat_port}");
                assert_eq!(result.bytes, translated(family, &frame, entry.backend, nat_port), "{step:?}");
                let answer = reply(family, transport, entry.backend, nat_port);
                let mut expected = answer.clone().ttl(answer.ttl - 1).macs(ROUTER, OWN);
                (expected.src, expected.dst) = (frame.dst, frame.src);
                assert_eq!(rig.run(&answer.bytes()).bytes, expected.bytes(), "{step:?}: the answer");
            }
        }
    }
}

#[test]
fn nat_keeps_flows_apart_in_any_history() {
    let rig = RefCell::new(Rig::load(64, 64));
    proptest!(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() }, |(
        v6 in any::<bool>(),
        steps in vec(nat_step(), 1..60),
    )| {
        translates(&mut rig.borrow_mut(), if v6 { V6 } else { V4 }, &steps);
    });
}
