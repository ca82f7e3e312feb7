//! NAT in both directions.
use crate::{
    frame::{ACK, FIN, Frame, OWN, ROUTER, RST, SYN, Transport},
    icmp::time_exceeded,
    rig::{DROP, ELSEWHERE, HANDED_OVER, Rig, TX, World},
    scene::{
        Case, Expect, Family, PORTS, V4, V6, backend, case, entry, flow_key, reply, request, returned,
        translated, with_slots, world,
    },
};
use lb_bpf::abi::{Backend, FlowEntry, FlowKey, Mode, ReverseEntry, Slot, Tags, Verdict};

pub(crate) fn cases() -> Vec<Case> {
    [V4, V6].into_iter().flat_map(family_cases).collect()
}

/// The only port of the range.
const PORT: u16 = PORTS.0;

fn sent(family: Family, frame: &Frame, backend: u32, new: bool) -> Expect {
    Expect::Sent { backend, new, bytes: translated(family, frame, backend, PORT) }
}

fn family_cases(family: Family) -> Vec<Case> {
    let name = |text: &str| format!("NAT {family:?}: {text}");
    let mut cases = Vec::new();
    for transport in [Transport::Tcp(SYN), Transport::Tcp(ACK), Transport::Udp] {
        cases.push(round_trip(
            family,
            name(&format!("{transport:?}, there and back")),
            request(family, transport),
        ));
    }
    if family == V4 {
        let frame = request(family, Transport::UdpWithoutChecksum);
        cases.push(round_trip(family, name("UDP without checksum stays without"), frame));
        let frame = request(family, Transport::Tcp(SYN)).options(&[7, 4, 4, 0]);
        cases.push(case(
            name("IPv4 options"),
            world(family, Mode::Nat),
            frame.bytes(),
            sent(family, &frame, 1, true),
        ));
    }
    cases.push(round_trip(
        family,
        name("a checksum that becomes 0"),
        udp_whose_checksum_becomes_zero(family),
    ));
    cases.extend(errors(family));
    cases.extend(flows(family));
    cases.extend(ports(family));
    cases.extend(replies(family));
    cases
}

/// The request, again, and the reply.
fn round_trip(family: Family, name: String, frame: Frame) -> Case {
    let opening = frame.transport == Transport::Tcp(SYN);
    let transport = if opening { Transport::Tcp(SYN | ACK) } else { frame.transport };
    let answer = reply(family, transport, 1, PORT);
    let (key, state) = (flow_key(&frame), if opening { FlowEntry::HALF_OPEN } else { 0 });
    case(name, world(family, Mode::Nat), frame.bytes(), sent(family, &frame, 1, true))
        .then(frame.bytes(), sent(family, &frame, 1, opening))
        .then(answer.bytes(), Expect::Returned(returned(family, &answer)))
        .check(move |rig| {
            let entry = rig.flow(&key).unwrap();
            assert_eq!((entry.backend, entry.nat_port, entry.state), (1, PORT.to_be(), state));
            assert_eq!(rig.reverse().len(), 1);
        })
}

/// RFC 768: a computed checksum of 0 is sent as all ones.
fn udp_whose_checksum_becomes_zero(family: Family) -> Frame {
    let mut frame = request(family, Transport::Udp);
    for value in 0..=u16::MAX {
        frame.payload = value.to_be_bytes().to_vec();
        let out = translated(family, &frame, 1, PORT);
        if out[14 + family.header() + 6..][..2] == [0xff, 0xff] {
            return frame;
        }
    }
    panic!("no such payload");
}

fn errors(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Nat);
    let name = |text: &str| format!("NAT {family:?}: {text}");
    let (syn, ack) = (request(family, Transport::Tcp(SYN)), request(family, Transport::Tcp(ACK)));
    let edit = |change: &dyn Fn(&mut World)| {
        let mut world = base.clone();
        change(&mut world);
        world
    };
    let untouched = |text: &str, world: World, frame: &Frame, verdict| {
        case(name(text), world, frame.bytes(), Expect::Untouched(verdict))
    };
    let full = ack.clone().payload(vec![1; 1500 - family.header() - 20]);
    let over = ack.clone().payload(vec![1; 1501 - family.header() - 20]);
    let taken = edit(&|world| world.reverse = vec![(reply_key(family, 1, PORT), of_another(family))]);
    let mut other = flow_key(&syn);
    other.src_port = 1;
    let flows_full = edit(&|world| {
        world.max_flows = 1;
        world.flows = vec![(other, entry(&syn, 1, PORT))];
    });
    let reverse_full = edit(&|world| {
        world.max_reverse = 1;
        world.reverse = vec![(reply_key(family, 4, 9), reverse_entry(family, 1))];
    });
    vec![
        case(name("fills the MTU"), base.clone(), full.bytes(), sent(family, &full, 1, true)),
        untouched("one byte over the MTU", edit(&|world| world.busy = true), &over, Verdict::TooBig),
        case(
            name("TTL 1"),
            base.clone(),
            ack.clone().ttl(1).bytes(),
            time_exceeded(family, &ack.clone().ttl(1)),
        ),
        untouched(
            "next hop not resolved",
            edit(&|world| world.backends[0].ifindex = 0),
            &syn,
            Verdict::Unresolved,
        ),
        untouched("no backend", with_slots(base.clone(), Slot::default()), &syn, Verdict::NoBackend),
        untouched("the only port is taken", taken, &syn, Verdict::NatPortsExhausted),
        untouched(
            "no range",
            edit(&|world| world.config.nat_port_first = 0),
            &syn,
            Verdict::NatPortsExhausted,
        ),
        untouched(
            "range upside down",
            edit(&|world| world.config.nat_port_last = 1),
            &syn,
            Verdict::NatPortsExhausted,
        ),
        untouched("reverse full", reverse_full, &syn, Verdict::FlowTableFull),
        untouched("flow table full: the port is given back", flows_full, &syn, Verdict::FlowTableFull)
            .check(|rig| assert_eq!(rig.reverse(), [])),
    ]
}

fn flows(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Nat);
    let name = |text: &str| format!("NAT {family:?}: {text}");
    let [syn, ack, fin, rst] = [SYN, ACK, FIN | ACK, RST].map(|flags| request(family, Transport::Tcp(flags)));
    let udp = request(family, Transport::Udp);
    let key = flow_key(&ack);
    let at_2 = Slot { current: 2, previous: 0 };
    let state = move |expected: u16| move |rig: &mut Rig| assert_eq!(rig.flow(&key).unwrap().state, expected);
    let stays =
        case(name("the table changes under a flow"), base.clone(), syn.bytes(), sent(family, &syn, 1, true))
            .check({
                let (syn, ack) = (syn.clone(), ack.clone());
                move |rig| {
                    (0..20).for_each(|index| rig.set_slot(index, at_2));
                    assert_eq!(rig.run(&ack.bytes()).bytes, translated(family, &ack, 1, PORT), "stays");
                    assert_eq!(rig.run(&syn.bytes()).bytes, translated(family, &syn, 2, PORT), "a SYN moves");
                    assert_eq!(
                        rig.run(&ack.bytes()).bytes,
                        translated(family, &ack, 2, PORT),
                        "and stays there"
                    );
                    assert_eq!(rig.reverse().len(), 2, "the old way back lives until it is swept");
                }
            });
    let renewed =
        case(name("the client's router changes"), base.clone(), syn.bytes(), sent(family, &syn, 1, true))
            .check({
                let ack = ack.clone();
                move |rig| {
                    let mut entry = rig.flow(&key).unwrap();
                    entry.seen = 1;
                    rig.set_flow(&key, Some(entry));
                    let other = [2, 0, 0, 0, 0, 0x99];
                    rig.run(&ack.clone().macs(OWN, other).bytes());
                    let (_, way) = rig.reverse()[0];
                    assert_eq!((way.next_hop, way.source_mac, way.ifindex), (other, OWN, 1));
                    assert!(way.seen > 1);
                    let answer = rig.run(&reply(family, Transport::Tcp(ACK), 1, PORT).bytes());
                    assert_eq!((answer.action, &answer.bytes[..6]), (TX, &other[..]));
                }
            });
    let lost =
        case(name("a lost way back is made again"), base.clone(), syn.bytes(), sent(family, &syn, 1, true))
            .check({
                let ack = ack.clone();
                move |rig| {
                    let (reply_key, way) = rig.reverse()[0];
                    rig.remove_reverse(&reply_key);
                    let mut entry = rig.flow(&key).unwrap();
                    entry.seen = 1;
                    rig.set_flow(&key, Some(entry));
                    assert_eq!(rig.run(&ack.bytes()).bytes, translated(family, &ack, 1, PORT));
                    let (again_key, again) = rig.reverse()[0];
                    assert_eq!((again_key, again.client, again.vip), (reply_key, way.client, way.vip));
                }
            });
    // Two ports, one of them taken: whichever comes first, the free one is found.
    let mut one_of_two = base.clone();
    one_of_two.config.nat_port_last = PORT + 1;
    one_of_two.reverse = vec![(reply_key(family, 1, PORT + 1), of_another(family))];
    let probing = case(name("probing"), one_of_two, syn.bytes(), sent(family, &syn, 1, true));
    let mut gone = base.clone();
    gone.flows = vec![(key, entry(&ack, 2, 1))];
    let (mut down, mut free) = (gone.clone(), gone);
    down.backends[1].flags = Backend::DOWN;
    free.backends[1].mode = 0;
    let noted = |text: &str, frame: &Frame, bits| {
        case(name(text), base.clone(), syn.bytes(), sent(family, &syn, 1, true))
            .then(frame.bytes(), sent(family, frame, 1, false))
            .check(state(bits))
    };
    vec![
        stays,
        renewed,
        lost,
        probing,
        noted("FIN of the client is noted", &fin, FlowEntry::FIN_CLIENT),
        noted("RST of the client is noted", &rst, FlowEntry::RST),
        noted("FIN, then ACK", &fin, FlowEntry::FIN_CLIENT).then(ack.bytes(), sent(family, &ack, 1, false)),
        noted("RST that did not end it", &rst, 0).then(ack.bytes(), sent(family, &ack, 1, false)),
        case(name("SYN of a finished connection"), base.clone(), syn.bytes(), sent(family, &syn, 1, true))
            .then(rst.bytes(), sent(family, &rst, 1, false))
            .then(syn.bytes(), sent(family, &syn, 1, true))
            .check(state(FlowEntry::HALF_OPEN)),
        noted("SYN, ACK: established", &ack, 0),
        // A duplicate that was long on its way.
        noted("SYN, ACK, SYN: still established", &ack, 0).then(syn.bytes(), sent(family, &syn, 1, true)),
        case(name("one datagram, then another"), base.clone(), udp.bytes(), sent(family, &udp, 1, true))
            .check({
                let (udp, key) = (udp.clone(), flow_key(&udp));
                move |rig| {
                    assert_eq!(rig.flow(&key).unwrap().state, FlowEntry::HALF_OPEN);
                    rig.run(&udp.bytes());
                    assert_eq!(rig.flow(&key).unwrap().state, 0);
                }
            }),
        case(name("the flow's backend is down"), down, ack.bytes(), sent(family, &ack, 1, true)),
        case(name("the flow's backend is free"), free, ack.bytes(), sent(family, &ack, 1, true)),
        case(
            name("dirty slot, running connection: previous"),
            with_slots(base.clone(), Slot { current: 2, previous: 1 }),
            ack.bytes(),
            sent(family, &ack, 1, true),
        ),
    ]
}

/// A client that opens one connection after the other from the same port (TIME-WAIT reuse: RFC 6191). As long as the
/// table stands still it takes the same way each time; what it left behind at another backend is the sweep's.
fn ports(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Nat);
    let name = |text: &str| format!("NAT {family:?}: port used again: {text}");
    let [syn, ack, fin] = [SYN, ACK, FIN | ACK].map(|flags| request(family, Transport::Tcp(flags)));
    let key = flow_key(&syn);
    let move_to = |rig: &mut Rig, current| {
        (0..20).for_each(|index| rig.set_slot(index, Slot { current, previous: 0 }));
    };
    let start = |text: &str| case(name(text), base.clone(), syn.bytes(), sent(family, &syn, 1, true));
    // Each backend has one port only.
    let connections = {
        let (syn, ack) = (syn.clone(), ack.clone());
        move |rig: &mut Rig, index| {
            for _ in 0..40 {
                for frame in [&syn, &ack, &fin] {
                    assert_eq!(rig.run(&frame.bytes()).bytes, translated(family, frame, index, PORT));
                }
                let answer = reply(family, Transport::Tcp(FIN | ACK), index, PORT);
                assert_eq!(rig.run(&answer.bytes()).bytes, returned(family, &answer));
                let closed = FlowEntry::FIN_CLIENT | FlowEntry::FIN_BACKEND;
                assert_eq!(rig.flow(&key).map(|entry| (entry.backend, entry.state)), Some((index, closed)));
            }
        }
    };
    let again = connections.clone();
    let other = of_another(family);
    vec![
        start("the same backend").check(move |rig| {
            again(rig, 1);
            assert_eq!(rig.reverse().len(), 1);
        }),
        start("another backend each time, and back").check(move |rig| {
            for index in [1, 2, 3, 4] {
                move_to(rig, index);
                connections(rig, index);
                assert_eq!(rig.reverse().len(), index as usize, "one way back at each backend");
            }
        }),
        // The sweep removes the flow and then its way back: between the two it may go on, or begin anew.
        start("what is left of the flow is its way back").check({
            let (syn, ack) = (syn.clone(), ack.clone());
            move |rig| {
                for frame in [&ack, &syn, &ack] {
                    rig.set_flow(&key, None);
                    assert_eq!(rig.run(&frame.bytes()).bytes, translated(family, frame, 1, PORT));
                    assert_eq!(rig.flow(&key).map(|entry| entry.nat_port), Some(PORT.to_be()));
                    assert_eq!(rig.reverse().len(), 1, "it is taken again");
                }
            }
        }),
        start("the port is another flow's by now").check({
            let syn = syn.clone();
            move |rig| {
                rig.set_reverse(&reply_key(family, 1, PORT), other);
                assert_eq!(rig.run(&syn.bytes()).action, DROP, "the only port, and not ours");
                assert_eq!(rig.reverse(), [(reply_key(family, 1, PORT), other)], "the other keeps it");
            }
        }),
        start("no port at the new backend: the connection before lives on").check(move |rig| {
            rig.set_reverse(&reply_key(family, 2, PORT), other);
            move_to(rig, 2);
            assert_eq!(rig.run(&syn.bytes()).action, DROP);
            assert_eq!(rig.run(&ack.bytes()).bytes, translated(family, &ack, 1, PORT));
            assert_eq!(rig.reverse().len(), 2);
        }),
    ]
}

/// A way back to backend 1 of another flow.
fn of_another(family: Family) -> ReverseEntry {
    ReverseEntry { client_port: 9, ..reverse_entry(family, 1) }
}

fn replies(family: Family) -> Vec<Case> {
    let mut base = world(family, Mode::Nat);
    let request = request(family, Transport::Tcp(ACK));
    base.flows = vec![(flow_key(&request), entry(&request, 1, PORT))];
    base.reverse = vec![(reply_key(family, 1, PORT), reverse_entry(family, 1))];
    let name = |text: &str| format!("NAT {family:?}: reply: {text}");
    let answer = |flags| reply(family, Transport::Tcp(flags), 1, PORT);
    let key = flow_key(&request);
    let returned_case = |text: &str, frame: &Frame, state| {
        let expect = Expect::Returned(returned(family, frame));
        case(name(text), base.clone(), frame.bytes(), expect).check(move |rig| {
            assert_eq!(rig.flow(&key).unwrap().state, state);
            assert!(rig.reverse()[0].1.seen > 1, "refreshed");
        })
    };
    let untouched = |text: &str, world: World, frame: &Frame, verdict| {
        case(name(text), world, frame.bytes(), Expect::Untouched(verdict))
    };
    let mut off = base.clone();
    off.config.flags = 0;
    let mut range_elsewhere = base.clone();
    range_elsewhere.config.nat_port_first = PORT + 1;
    range_elsewhere.config.nat_port_last = PORT + 9;
    let mut other_port = answer(ACK);
    other_port.src.set_port(8081);
    let elsewhere = answer(ACK);
    let mut cases = vec![
        returned_case("ACK", &answer(ACK), 0),
        returned_case("FIN is noted", &answer(FIN | ACK), FlowEntry::FIN_BACKEND),
        returned_case("RST is noted", &answer(RST), FlowEntry::RST),
        returned_case("DSCP and ECN stay", &answer(ACK).class(0xbb), 0),
        untouched("TTL 1", base.clone(), &answer(ACK).ttl(1), Verdict::TtlExpired),
        untouched("unknown", base.clone(), &other_port, Verdict::NotOurs),
        untouched("there is no NAT service", off, &answer(ACK), Verdict::NotOurs),
        untouched("port out of the range", range_elsewhere, &answer(ACK), Verdict::NotOurs),
        case(
            name("to another interface"),
            base.clone(),
            answer(ACK).bytes(),
            Expect::Returned(returned(family, &answer(ACK))),
        )
        .check(move |rig| {
            let (key, mut way) = rig.reverse()[0];
            way.ifindex = ELSEWHERE;
            rig.set_reverse(&key, way);
            assert_eq!(rig.run(&elsewhere.bytes()).action, HANDED_OVER + ELSEWHERE);
        }),
    ];
    if family == V4 {
        let first = answer(ACK).fragment(0x2000);
        let later = answer(ACK).fragment(0x2010);
        cases.push(case(
            name("first fragment"),
            base.clone(),
            first.bytes(),
            Expect::Returned(returned(family, &first)),
        ));
        cases.push(untouched("later fragment of none", base.clone(), &later, Verdict::NotOurs));
    }
    // A VIP may have a port of the range: then what is no reply is a request.
    let mut vip_in_range = base.clone();
    vip_in_range.config.nat_port_first = 80;
    vip_in_range.reverse.clear();
    vip_in_range.flows.clear();
    vip_in_range.backends[0] = backend(family, Mode::Ipip, 1);
    let bytes = crate::scene::tunnelled(family, &request, 1);
    let expect = Expect::Sent { backend: 1, new: false, bytes };
    cases.push(case(name("none: a VIP's port in the range"), vip_in_range, request.bytes(), expect));
    cases
}

fn reply_key(family: Family, index: u32, port: u16) -> FlowKey {
    FlowKey::reply(&backend(family, Mode::Nat, index), port.to_be(), 6)
}

/// The way back to the client, last used long ago.
fn reverse_entry(family: Family, ifindex: u32) -> ReverseEntry {
    ReverseEntry {
        client: family.client().ip().into(),
        vip: family.vip().ip().into(),
        client_port: family.client().port().to_be(),
        vip_port: family.vip().port().to_be(),
        ifindex,
        seen: 1,
        next_hop: ROUTER,
        source_mac: OWN,
        tags: Tags::NONE,
    }
}
