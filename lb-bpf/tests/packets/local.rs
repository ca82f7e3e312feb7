//! Backends of this host itself, such as the pods of a node: requests that the first table sends here, and what comes out of
//! tunnels for them.
use crate::{
    frame::{ACK, FIN, Frame, OWN, ROUTER, SYN, Transport, Tunnel},
    icmp::{answered, error, errors},
    parts::parts,
    rig::World,
    scene::{
        BACKEND_PORT, BASE, Case, Expect, Family, SLOTS, V4, V6, arriving, backend, backend_macs, case,
        entry, flow_key, request, returned, tunnelled, with_slots, world,
    },
};
use lb_bpf::abi::{
    Backend, Config, DecapKey, FlowEntry, FlowKey, Mode, ReverseEntry, Slot, Verdict, Vip, VipKey, program,
    scope,
};
use std::net::SocketAddr;

/// The id of the service of this host's own backends, and where its table begins.
const LOCAL: u32 = 10;
const LOCAL_BASE: u32 = 20;

/// "The next program decides" (linux/pkt_cls.h: TC_ACT_UNSPEC).
const NEXT: u32 = u32::MAX;

/// The first table leads to this host (backend 1) or in a tunnel to another (2), the second one to pods (3, 4).
fn node(family: Family) -> World {
    let mut base = world(family, Mode::Ipip);
    base.backends[0] = Backend { mode: Mode::Here as u8, ifindex: 0, ..base.backends[0] };
    for pod in [3, 4] {
        base.backends[pod as usize - 1] = Backend { service: LOCAL, ..backend(family, Mode::Dnat, pod) };
    }
    let own: Vec<(VipKey, Vip)> = base
        .vips
        .iter()
        .filter(|(key, _)| key.port != 0)
        .map(|(key, vip)| {
            let key = VipKey { scope: scope::LOCAL, ..*key };
            (key, Vip { service: LOCAL, base: LOCAL_BASE, ..*vip })
        })
        .collect();
    base.vips.extend(own);
    base.slots.resize(LOCAL_BASE as usize, Slot::default());
    base.slots.extend(vec![Slot { current: 3, previous: 0 }; SLOTS as usize]);
    base.config = Config { flags: Config::DNAT, ..Config::default() };
    base.decap = [V4, V6]
        .map(|outer| {
            let key = DecapKey { local: outer.backend(1).into(), vip: family.vip().ip().into() };
            (key, DecapKey::TO_LOCAL)
        })
        .into();
    base
}

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        cases.extend(here(family));
        cases.extend(out_of_tunnels(family));
        cases.extend(messages(family));
        cases.extend(replies(family));
    }
    cases
}

/// A packet as the pod `index` gets it: by the stack, so with the Ethernet addresses that it came with.
fn to_pod(family: Family, frame: &Frame, index: u32) -> Vec<u8> {
    let mut frame = frame.clone().ttl(frame.ttl - 1);
    frame.dst = SocketAddr::new(family.backend(index), BACKEND_PORT);
    frame.bytes()
}

fn local_key(frame: &Frame) -> FlowKey {
    FlowKey { scope: scope::LOCAL, ..flow_key(frame) }
}

fn here(family: Family) -> Vec<Case> {
    let base = node(family);
    let name = |text: &str| format!("here {family:?}: {text}");
    let delivered = |frame: &Frame, backend, new| {
        let bytes = to_pod(family, frame, backend);
        Expect::Delivered { here: Some(1), backend, new, bytes }
    };
    let one = |text: &str, world: &World, frame: &Frame, backend, new| {
        case(name(text), world.clone(), frame.bytes(), delivered(frame, backend, new))
    };
    let (syn, ack) = (request(family, Transport::Tcp(SYN)), request(family, Transport::Tcp(ACK)));
    let untouched = |text: &str, world: World, frame: &Frame, verdict| {
        case(name(text), world, frame.bytes(), Expect::Untouched(verdict))
    };
    let edit = |change: &dyn Fn(&mut World)| {
        let mut world = base.clone();
        change(&mut world);
        world
    };
    let key = local_key(&syn);
    let mut cases = vec![
        one("SYN", &base, &syn, 3, true)
            .then(
                ack.bytes(),
                Expect::Delivered { here: Some(1), backend: 3, new: false, bytes: to_pod(family, &ack, 3) },
            )
            .check(move |rig| {
                let flows = rig.flows();
                assert_eq!(flows.len(), 1, "the first table was clean: {flows:?}");
                assert_eq!((flows[0].0, flows[0].1.backend), (key, 3));
                let reverse = rig.reverse();
                assert_eq!((reverse.len(), reverse[0].1.ifindex), (1, ReverseEntry::ROUTED));
            }),
        // The next hop does not matter: the stack has it.
        one("pod without a next hop", &edit(&|world| world.backends[2].ifindex = 0), &syn, 3, true),
        untouched(
            "no backend of this host",
            edit(&|world| world.vips.retain(|(key, _)| key.scope == scope::ALL)),
            &syn,
            Verdict::NoBackend,
        )
        .then(ack.bytes(), Expect::Untouched(Verdict::NoBackend)),
        untouched(
            "an empty table",
            edit(&|world| {
                world.vips.iter_mut().for_each(|(key, vip)| {
                    if key.scope == scope::LOCAL {
                        vip.size = 0;
                    }
                })
            }),
            &syn,
            Verdict::NoBackend,
        ),
        untouched(
            "a backend of this host that is elsewhere",
            edit(&|world| world.backends[2].mode = Mode::Ipip as u8),
            &syn,
            Verdict::NoBackend,
        ),
        untouched(
            "larger than the pod's MTU",
            edit(&|world| {
                world.backends[2].mtu = 1400;
                world.busy = true;
            }),
            &ack.clone().payload(vec![7; 1401 - family.header() - 20]),
            Verdict::TooBig,
        ),
        one(
            "as large as the pod's MTU",
            &edit(&|world| world.backends[2].mtu = 1400),
            &ack.clone().payload(vec![7; 1400 - family.header() - 20]),
            3,
            true,
        ),
        case(
            name("UDP"),
            base.clone(),
            request(family, Transport::Udp).bytes(),
            Expect::Delivered {
                here: Some(1),
                backend: 3,
                new: true,
                bytes: to_pod(family, &request(family, Transport::Udp), 3),
            },
        ),
    ];
    // A pod that left its slot keeps its connections; the first table knows nothing of them.
    let mut moved = base.clone();
    moved.slots[LOCAL_BASE as usize..].fill(Slot { current: 4, previous: 3 });
    moved.flows = vec![(key, FlowEntry { slot: LOCAL_BASE, ..entry(&syn, 3, 0) })];
    cases.push(one("a known connection", &moved, &ack, 3, false));
    moved.flows.clear();
    cases.push(one("an unknown connection of a slot that learns", &moved, &ack, 3, true));
    cases.push(one("a new connection of a slot that moved", &moved, &syn, 4, true));
    // A slot of the first table moved away from here: both tables know the flow, each for itself.
    let mut left = base.clone();
    left.slots[BASE as usize..(BASE + SLOTS) as usize].fill(Slot { current: 2, previous: 1 });
    cases.push(one("a connection that belongs here still", &left, &ack, 3, true).check(move |rig| {
        let mut flows: Vec<_> =
            rig.flows().into_iter().map(|(key, entry)| (key.scope, entry.backend)).collect();
        flows.sort_unstable();
        assert_eq!(flows, [(scope::ALL, 1), (scope::LOCAL, 3)]);
    }));
    let bytes = tunnelled(family, &syn, 2);
    cases.push(case(
        name("a new one belongs elsewhere"),
        left,
        syn.bytes(),
        Expect::Sent { backend: 2, new: true, bytes },
    ));
    // The first table alone says who is let in, and what counts as one client.
    let mut affine = with_slots(base.clone(), Slot { current: 1, previous: 0 });
    affine.slots[LOCAL_BASE as usize..].fill(Slot { current: 4, previous: 0 });
    affine.vips.iter_mut().for_each(|(_, vip)| vip.flags |= Vip::AFFINITY);
    cases.push(one("affinity", &affine, &syn, 4, true));
    cases
}

fn out_of_tunnels(family: Family) -> Vec<Case> {
    let base = node(family);
    let mut cases = Vec::new();
    for outer in [V4, V6] {
        let name = |text: &str| format!("tunnel {outer:?} to a pod {family:?}: {text}");
        let tunnel = arriving(outer, family);
        let around = |frame: &Frame| tunnel.around(&frame.ip(), frame.ip().len());
        let in_gue = |frame: &Frame| {
            let length = (8 + frame.ip().len()) as u16;
            let ports = [50_000_u16.to_be_bytes(), 6080_u16.to_be_bytes(), length.to_be_bytes(), [0, 0]];
            let udp = [ports.concat(), frame.ip()].concat();
            Tunnel { proto: 17, ..tunnel.clone() }.around(&udp, udp.len())
        };
        let delivered = |frame: &Frame, new| Expect::Delivered {
            here: None,
            backend: 3,
            new,
            bytes: to_pod(family, frame, 3),
        };
        // UDP over IPv6 has a checksum.
        let bare = (family == V4).then_some(Transport::UdpWithoutChecksum);
        for transport in [Transport::Tcp(SYN), Transport::Udp].into_iter().chain(bare) {
            let frame = request(family, transport).class(0xb9);
            let text = format!("IPIP, {transport:?}");
            cases.push(case(name(&text), base.clone(), around(&frame), delivered(&frame, true)));
            let text = format!("GUE, {transport:?}");
            cases.push(case(name(&text), base.clone(), in_gue(&frame), delivered(&frame, true)));
        }
        let (syn, ack) = (request(family, Transport::Tcp(SYN)), request(family, Transport::Tcp(ACK)));
        // A flow is one, whichever way its packets come.
        cases.push(case(name("then as it is"), base.clone(), around(&syn), delivered(&syn, true)).then(
            ack.bytes(),
            Expect::Delivered { here: Some(1), backend: 3, new: false, bytes: to_pod(family, &ack, 3) },
        ));
        // The table of another host may be newer, or older: who is sent here stays here.
        let elsewhere = {
            let mut world = base.clone();
            world.slots[BASE as usize..(BASE + SLOTS) as usize].fill(Slot { current: 2, previous: 0 });
            world
        };
        cases.push(case(
            name("our own table says elsewhere"),
            elsewhere,
            around(&syn),
            delivered(&syn, true),
        ));
        let whole = request(family, Transport::Udp);
        let of_pod = {
            let mut frame = whole.clone().ttl(whole.ttl - 1);
            frame.dst = SocketAddr::new(family.backend(3), BACKEND_PORT);
            frame
        };
        let [first, later] =
            parts(family, &whole, 16).map(|part| tunnel.around(&part[14..], part.len() - 14));
        let [first_of_pod, later_of_pod] = parts(family, &of_pod, 16);
        let delivered = |new, bytes| Expect::Delivered { here: None, backend: 3, new, bytes };
        cases.push(
            case(name("fragments"), base.clone(), first, delivered(true, first_of_pod))
                .then(later.clone(), delivered(false, later_of_pod)),
        );
    }
    cases
}

/// A router on the way to a client has something to say about a pod's packet.
fn messages(family: Family) -> Vec<Case> {
    let base = node(family);
    let mut cases = Vec::new();
    let syn = request(family, Transport::Tcp(SYN));
    for kind in errors(family) {
        let message = error(family, &answered(family, Transport::Tcp(ACK)), 20, kind);
        let mut about = answered(family, Transport::Tcp(ACK));
        about.src = SocketAddr::new(family.backend(3), BACKEND_PORT);
        let mut out = error(family, &about, 20, kind);
        (out.src, out.dst, out.ttl) = (family.client().ip(), family.backend(3), message.ttl - 1);
        let opened =
            || Expect::Delivered { here: Some(1), backend: 3, new: true, bytes: to_pod(family, &syn, 3) };
        let told = || Expect::Delivered { here: None, backend: 3, new: false, bytes: out.bytes() };
        let name = |text: &str| format!("ICMP error {family:?} about a pod's packet: {kind:?}, {text}");
        let text = name("as it is");
        cases.push(case(text, base.clone(), syn.bytes(), opened()).then(message.bytes(), told()));
        let ip = message.ip();
        let tunnel = arriving(V4, family);
        let tunnelled = tunnel.around(&ip, ip.len());
        let text = name("out of a tunnel");
        cases.push(case(text, base.clone(), syn.bytes(), opened()).then(tunnelled.clone(), told()));
        let text = name("of a flow that nobody knows");
        cases.push(case(text, base.clone(), message.bytes(), Expect::Untouched(Verdict::NoFlow)));
    }
    cases
}

/// What a pod answers is the stack's until it leaves this host.
fn replies(family: Family) -> Vec<Case> {
    let syn = request(family, Transport::Tcp(SYN));
    let key = local_key(&syn);
    let answer = move |flags| {
        let src = SocketAddr::new(family.backend(3), BACKEND_PORT);
        Frame::new(Transport::Tcp(flags), src, family.client()).macs(ROUTER, OWN)
    };
    let opened = Expect::Delivered { here: Some(1), backend: 3, new: true, bytes: to_pod(family, &syn, 3) };
    let name = format!("here {family:?}: the pod answers");
    let back = answer(SYN | ACK);
    let replied = case(name, node(family), syn.bytes(), opened.clone())
        .then(back.bytes(), Expect::Untouched(Verdict::NotOurs))
        .check(move |rig| {
            let back = answer(SYN | ACK);
            let came_in = rig.run_tc(program::TC_INGRESS, &back.bytes());
            assert_eq!(
                (came_in.action, came_in.bytes),
                (NEXT, back.bytes()),
                "from the pod: the stack routes it"
            );
            let fin = answer(ACK | FIN);
            for frame in [back, fin] {
                let left = rig.run_tc(program::TC_EGRESS, &frame.bytes());
                assert_eq!((left.action, left.bytes), (NEXT, returned(family, &frame)));
            }
            let state = rig.flow(&key).unwrap().state;
            assert_eq!(state, FlowEntry::HALF_OPEN | FlowEntry::FIN_BACKEND);
        });
    // A client in a pod of this host: its packets come in by TC, and go straight to the other pod's interface.
    let name = format!("here {family:?}: from a pod");
    let aside = case(
        name,
        World { busy: true, ..node(family) },
        request(family, Transport::Tcp(ACK | FIN)).ttl(1).bytes(),
        Expect::Untouched(Verdict::TtlExpired),
    )
    .check(move |rig| {
        let (next_hop, source_mac) = backend_macs(3);
        let sent = rig.run_tc(program::TC_INGRESS, &syn.bytes());
        let mut there = syn.clone().ttl(syn.ttl - 1).macs(next_hop, source_mac);
        there.dst = SocketAddr::new(family.backend(3), BACKEND_PORT);
        assert_eq!((sent.action, sent.bytes), (7, there.bytes()), "TC_ACT_REDIRECT");
        let back = answer(SYN | ACK).macs(source_mac, next_hop);
        let returned_to = rig.run_tc(program::TC_INGRESS, &back.bytes());
        assert_eq!((returned_to.action, returned_to.bytes), (7, returned(family, &back)));
    });
    vec![replied, aside]
}
