//! Dirty slots: connections stay where they are while the table changes under them.
use crate::{
    frame::{ACK, FIN, Frame, RST, SYN, Transport},
    rig::World,
    scene::{
        Case, Expect, Family, V4, V6, case, entry, flow_key, request, slot_index, tunnelled, with_slots,
        world,
    },
};
use lb_bpf::abi::{Backend, FlowEntry, Mode, Slot, Verdict};

pub(crate) fn cases() -> Vec<Case> {
    [V4, V6].into_iter().flat_map(family_cases).collect()
}

/// Moved from backend 2 to backend 1.
const LEARNING: Slot = Slot { current: 1, previous: 2 };
const SETTLED: Slot = Slot { current: 1, previous: 2 | Slot::SETTLED };

fn family_cases(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Ipip);
    let learning = with_slots(base.clone(), LEARNING);
    let settled = with_slots(base.clone(), SETTLED);
    let name = |text: &str| format!("dirty {family:?}: {text}");
    let sent = move |frame: &Frame, backend, new| Expect::Sent {
        backend,
        new,
        bytes: tunnelled(family, frame, backend),
    };
    let [syn, ack, fin, rst] = [SYN, ACK, FIN | ACK, RST].map(|flags| request(family, Transport::Tcp(flags)));
    let udp = request(family, Transport::Udp);
    // One packet of an unknown flow, and the backend where it is pinned.
    let unknown = |text: &str, world: &World, frame: &Frame, backend| {
        let (key, slot) = (flow_key(frame), slot_index(frame));
        let half_open = frame.transport == Transport::Tcp(SYN);
        let state = if half_open { FlowEntry::HALF_OPEN } else { 0 };
        case(name(text), world.clone(), frame.bytes(), sent(frame, backend, true))
            .then(
                frame.bytes(),
                sent(frame, backend, !matches!(frame.transport, Transport::Tcp(ACK) | Transport::Udp)),
            )
            .check(move |rig| {
                let entry = rig.flow(&key).expect("pinned");
                assert_eq!(
                    (entry.backend, entry.slot, entry.nat_port, entry.state),
                    (backend, slot, 0, state)
                );
                assert!(entry.seen > 0);
            })
    };
    // One packet of a flow that has an entry.
    let known =
        |text: &str, world: &World, change: &dyn Fn(&mut World), frame: &Frame, backend, new, state| {
            let mut world = world.clone();
            world.flows = vec![(flow_key(frame), entry(frame, 3, 0))];
            change(&mut world);
            let key = flow_key(frame);
            case(name(text), world, frame.bytes(), sent(frame, backend, new)).check(move |rig| {
                let entry = rig.flow(&key).unwrap();
                assert_eq!((entry.backend, entry.state), (backend, state));
                assert!(entry.seen > 1, "refreshed");
            })
        };
    let nothing: &dyn Fn(&mut World) = &|_| {};
    let full = |world: &World| {
        let other = request(family, Transport::Tcp(SYN)).payload("other");
        let mut other_key = flow_key(&other);
        other_key.src_port = 1;
        World { max_flows: 1, flows: vec![(other_key, entry(&other, 1, 0))], ..world.clone() }
    };
    let mut previous_free = learning.clone();
    previous_free.backends[1].mode = 0;
    let mut previous_down = learning.clone();
    previous_down.backends[1].flags = Backend::DOWN;
    let mut all_free = previous_free.clone();
    all_free.backends[0].mode = 0;
    let no_current = with_slots(base.clone(), Slot { current: 0, previous: 2 });

    let mut cases = vec![
        unknown("learning, running connection: previous", &learning, &ack, 2),
        unknown("learning, SYN: current", &learning, &syn, 1),
        unknown("learning, UDP: current", &learning, &udp, 1),
        unknown("settled, running connection: current", &settled, &ack, 1),
        unknown("settled, SYN: current", &settled, &syn, 1),
        unknown("settled, UDP: current", &settled, &udp, 1),
        unknown("previous is free: current", &previous_free, &ack, 1),
        unknown("previous is down: current", &previous_down, &ack, 1),
        unknown("no current, running connection: previous", &no_current, &ack, 2),
        case(name("no current, SYN"), no_current.clone(), syn.bytes(), Expect::Untouched(Verdict::NoBackend)),
        case(name("no backend left"), all_free, ack.bytes(), Expect::Untouched(Verdict::NoBackend)),
        case(name("SYN, then ACK stays"), learning.clone(), syn.bytes(), sent(&syn, 1, true))
            .then(ack.bytes(), sent(&ack, 1, false)),
        known("known while learning", &learning, nothing, &ack, 3, false, 0),
        known("known when settled", &settled, nothing, &ack, 3, false, 0),
        known("known UDP", &learning, nothing, &udp, 3, false, 0),
        known("FIN is noted", &learning, nothing, &fin, 3, false, FlowEntry::FIN_CLIENT),
        known("RST is noted", &learning, nothing, &rst, 3, false, FlowEntry::RST),
        known(
            "a SYN of a known flow goes to the current backend",
            &learning,
            nothing,
            &syn,
            1,
            true,
            FlowEntry::HALF_OPEN,
        ),
        known(
            "its backend is free: previous",
            &learning,
            &|world| world.backends[2].mode = 0,
            &ack,
            2,
            true,
            0,
        ),
        known(
            "its backend is free, settled: current",
            &settled,
            &|world| world.backends[2].mode = 0,
            &ack,
            1,
            true,
            0,
        ),
        known(
            "its backend is down",
            &settled,
            &|world| world.backends[2].flags = Backend::DOWN,
            &ack,
            1,
            true,
            0,
        ),
        known(
            "its index is another service's now",
            &settled,
            &|world| world.backends[2].service = 4,
            &ack,
            1,
            true,
            0,
        ),
        case(name("table full, running connection"), full(&learning), ack.bytes(), sent(&ack, 2, true)),
        case(
            name("table full, SYN"),
            full(&learning),
            syn.bytes(),
            Expect::Untouched(Verdict::FlowTableFull),
        ),
        case(name("table full, SYN, settled"), full(&settled), syn.bytes(), sent(&syn, 1, true)),
        case(name("table full, UDP"), full(&learning), udp.bytes(), sent(&udp, 1, true)),
    ];
    // A SYN that finds its own finished connection starts it anew.
    let mut finished = learning.clone();
    let closed = FlowEntry { state: FlowEntry::FIN_CLIENT | FlowEntry::RST, ..entry(&syn, 1, 0) };
    finished.flows = vec![(flow_key(&syn), closed)];
    let key = flow_key(&syn);
    cases.push(
        case(name("SYN of a finished connection"), finished, syn.bytes(), sent(&syn, 1, true))
            .check(move |rig| assert_eq!(rig.flow(&key).unwrap().state, FlowEntry::HALF_OPEN)),
    );
    // The entry keeps the connection through the end of the learning window and another change of the slot.
    let (key, slot) = (flow_key(&ack), slot_index(&ack));
    cases.push(
        case(name("pinned, then the slot moves on"), learning, ack.bytes(), sent(&ack, 2, true)).check(
            move |rig| {
                for moved in [
                    SETTLED,
                    Slot { current: 4, previous: 1 },
                    Slot { current: 4, previous: 1 | Slot::SETTLED },
                ] {
                    rig.set_slot(slot, moved);
                    assert_eq!(rig.run(&ack.bytes()).bytes, tunnelled(family, &ack, 2), "{moved:?}");
                }
                rig.set_flow(&key, None);
                rig.renew();
                assert_eq!(rig.run(&ack.bytes()).bytes, tunnelled(family, &ack, 4));
            },
        ),
    );
    cases
}
