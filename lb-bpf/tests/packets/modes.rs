//! GUE, L2, NAT without a translated source, and tunnels between the families.
use crate::{
    frame::{ACK, Frame, OWN, ROUTER, SYN, Transport, Tunnel, checksum, pseudo_header},
    rig::World,
    scene::{
        BACKEND_PORT, Case, Expect, Family, V4, V6, backend, backend_macs, case, flow_key, request, returned,
        tunnel, with_slots, world,
    },
};
use lb_bpf::abi::{Config, DecapKey, FlowEntry, FlowKey, Mode, Slot, Verdict, flow_hash};
use std::net::{IpAddr, SocketAddr};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for inner in [V4, V6] {
        for outer in [V4, V6] {
            cases.extend(gue(inner, outer));
            if inner != outer {
                cases.extend(mixed_ipip(inner, outer));
            }
        }
        cases.extend(l2(inner));
        cases.extend(dnat(inner));
    }
    cases
}

/// The world of services of one family whose backends are of another.
fn mixed(inner: Family, outer: Family, mode: Mode) -> World {
    World { backends: (1..=4).map(|index| backend(outer, mode, index)).collect(), ..world(inner, mode) }
}

/// The UDP header and what follows it, of a packet in GUE.
fn in_udp(tunnel: &Tunnel, frame: &Frame, port: u16) -> Vec<u8> {
    let inner = frame.clone().ttl(frame.ttl - 1).ip();
    let length = (8 + inner.len()) as u16;
    let mut udp =
        [&port.to_be_bytes()[..], &6080_u16.to_be_bytes(), &length.to_be_bytes(), &[0, 0], &inner].concat();
    let has_checksum = frame.transport != Transport::UdpWithoutChecksum && frame.fragment & 0x3fff == 0;
    if matches!(tunnel.dst, IpAddr::V6(_)) && has_checksum {
        let sum = checksum(&[&pseudo_header(tunnel.src, tunnel.dst, 17, udp.len()), &udp]);
        udp[6..8].copy_from_slice(&(if sum == 0 { 0xffff } else { sum }).to_be_bytes());
    }
    udp
}

/// How `frame` leaves for the backend at `index` in GUE.
fn in_gue(outer: Family, frame: &Frame, index: u32) -> Vec<u8> {
    let tunnel = Tunnel { proto: 17, ..tunnel(outer, frame, index) };
    let port = 0xc000 | (flow_hash(&flow_key(frame)) >> 16 & 0x3fff) as u16;
    let udp = in_udp(&tunnel, frame, port);
    tunnel.around(&udp, udp.len())
}

fn gue(inner: Family, outer: Family) -> Vec<Case> {
    let base = mixed(inner, outer, Mode::Gue);
    let name = |text: &str| format!("GUE {inner:?} in {outer:?}: {text}");
    let sent = |text: &str, frame: &Frame, new| {
        let bytes = in_gue(outer, frame, 1);
        case(name(text), base.clone(), frame.bytes(), Expect::Sent { backend: 1, new, bytes })
    };
    let tcp = |flags| request(inner, Transport::Tcp(flags));
    let mut cases = vec![
        sent("SYN", &tcp(SYN), true),
        sent("established", &tcp(ACK), false),
        sent("class and last hop", &tcp(ACK).class(0xb9).ttl(2), false),
        sent("UDP", &request(inner, Transport::Udp), false),
        sent("UDP without checksum", &request(inner, Transport::UdpWithoutChecksum), false),
        sent("odd length", &tcp(ACK).payload([1, 2, 3]), false),
        sent("no payload", &tcp(ACK).payload([]), false),
    ];
    // Many payloads: the checksum is never looked at as a whole, and must be right.
    for number in 0..16_u16 {
        let payload: Vec<u8> = (0..number * 3).map(|n| (n.wrapping_mul(number) >> 2) as u8).collect();
        let mut frame = request(inner, Transport::Udp).payload(payload);
        frame.src.set_port(1000 + number);
        cases.push(sent(&format!("payload {number}"), &frame, false));
    }
    let overhead = outer.header() + 8;
    let most = tcp(ACK).payload(vec![7; 1500 - overhead - inner.header() - 20]);
    cases.push(sent("fills the MTU", &most, false));
    let over = tcp(ACK).payload(vec![7; 1501 - overhead - inner.header() - 20]);
    let busy = World { busy: true, ..base.clone() };
    cases.push(case(name("over the MTU"), busy, over.bytes(), Expect::Untouched(Verdict::TooBig)));
    if inner == V4 {
        let options = tcp(ACK).options(&[1, 1, 1, 0]);
        cases.push(sent("IPv4 options", &options, false));
    }
    cases.extend(gue_decap(inner, outer));
    cases
}

/// The far end of GUE.
fn gue_decap(inner: Family, outer: Family) -> Vec<Case> {
    let name = |text: &str| format!("GUE decap {inner:?} in {outer:?}: {text}");
    let key = DecapKey { local: outer.backend(1).into(), vip: inner.vip().ip().into() };
    let world = World { decap: vec![(key, lb_bpf::abi::DecapKey::TO_STACK)], ..World::default() };
    let frame = request(inner, Transport::Tcp(SYN));
    let outside = Tunnel { eth_dst: OWN, eth_src: ROUTER, proto: 17, ..tunnel(outer, &frame, 1) };
    // As it left, with the hop already taken off.
    let arrived = frame.clone().ttl(frame.ttl - 1);
    let packed = |inner: &Frame, between: &[u8], port: u16| {
        let ip = inner.ip();
        let length = (8 + between.len() + ip.len()) as u16;
        let udp = [
            &50_000_u16.to_be_bytes()[..],
            &port.to_be_bytes(),
            &length.to_be_bytes(),
            &[0, 0],
            between,
            &ip,
        ];
        outside.around(&udp.concat(), usize::from(length))
    };
    let protocol = if inner == V4 { 4 } else { 41 };
    let stripped = |text: &str, packet: Vec<u8>| {
        case(name(text), world.clone(), packet, Expect::Passed(Verdict::Decapsulated, arrived.bytes()))
    };
    let untouched = |text: &str, packet: Vec<u8>, verdict| {
        case(name(text), world.clone(), packet, Expect::Untouched(verdict))
    };
    let mut other = arrived.clone();
    other.dst.set_ip(inner.own());
    let mut short = packed(&arrived, &[], 6080);
    short.truncate(short.len() - 1);
    vec![
        stripped("as we send it", outside.around(&in_udp(&outside, &frame, 49_999), 8 + arrived.ip().len())),
        stripped("without checksum", packed(&arrived, &[], 6080)),
        stripped("the long form", packed(&arrived, &[0, protocol, 0, 0], 6080)),
        untouched("a control message", packed(&arrived, &[0x20, protocol, 0, 0], 6080), Verdict::NotOurs),
        untouched("with optional words", packed(&arrived, &[1, protocol, 0, 0], 6080), Verdict::NotOurs),
        untouched("another port", packed(&arrived, &[], 6081), Verdict::NotOurs),
        untouched("not to a VIP", packed(&other, &[], 6080), Verdict::NotOurs),
        untouched("cut short", short, Verdict::Malformed),
    ]
}

fn mixed_ipip(inner: Family, outer: Family) -> Vec<Case> {
    let base = mixed(inner, outer, Mode::Ipip);
    let name = |text: &str| format!("IPIP {inner:?} in {outer:?}: {text}");
    let sent = |text: &str, frame: &Frame, new| {
        let bytes = frame.tunnelled(&tunnel(outer, frame, 1));
        case(name(text), base.clone(), frame.bytes(), Expect::Sent { backend: 1, new, bytes })
    };
    let ack = request(inner, Transport::Tcp(ACK));
    let over = ack.clone().payload(vec![7; 1501 - outer.header() - inner.header() - 20]);
    let busy = World { busy: true, ..base.clone() };
    vec![
        sent("SYN", &request(inner, Transport::Tcp(SYN)), true),
        sent("established, class", &ack.clone().class(0xff), false),
        sent("UDP", &request(inner, Transport::Udp), false),
        sent(
            "fills the MTU",
            &ack.clone().payload(vec![7; 1500 - outer.header() - inner.header() - 20]),
            false,
        ),
        case(name("over the MTU"), busy, over.bytes(), Expect::Untouched(Verdict::TooBig)),
    ]
}

fn l2(family: Family) -> Vec<Case> {
    let base = world(family, Mode::L2);
    let name = |text: &str| format!("L2 {family:?}: {text}");
    let sent = |text: &str, world: World, frame: &Frame, backend, new| {
        let (eth_dst, eth_src) = backend_macs(backend);
        let bytes = frame.clone().ttl(frame.ttl - 1).macs(eth_dst, eth_src).bytes();
        case(name(text), world, frame.bytes(), Expect::Sent { backend, new, bytes })
    };
    let ack = request(family, Transport::Tcp(ACK));
    let dirty = with_slots(base.clone(), Slot { current: 1, previous: 2 });
    let key = flow_key(&ack);
    let full = ack.clone().payload(vec![7; 1500 - family.header() - 20]);
    vec![
        sent("SYN", base.clone(), &request(family, Transport::Tcp(SYN)), 1, true),
        sent("established, class stays", base.clone(), &ack.clone().class(0xb9), 1, false),
        sent("UDP", base.clone(), &request(family, Transport::Udp), 1, false),
        sent("fills the MTU", base.clone(), &full, 1, false),
        sent("a slot that learns", dirty, &ack, 2, true)
            .check(move |rig| assert_eq!(rig.flow(&key).unwrap().backend, 2)),
    ]
}

fn dnat(family: Family) -> Vec<Case> {
    let mut base = world(family, Mode::Dnat);
    base.config = Config { flags: Config::DNAT, ..Config::default() };
    let name = |text: &str| format!("DNAT {family:?}: {text}");
    let translated = |frame: &Frame| {
        let (eth_dst, eth_src) = backend_macs(1);
        let mut frame = frame.clone().ttl(frame.ttl - 1).macs(eth_dst, eth_src);
        frame.dst = SocketAddr::new(family.backend(1), BACKEND_PORT);
        frame.bytes()
    };
    let answer = |transport| {
        let src = SocketAddr::new(family.backend(1), BACKEND_PORT);
        Frame::new(transport, src, family.client()).macs(OWN, backend_macs(1).0)
    };
    let sent = |frame: &Frame, new| Expect::Sent { backend: 1, new, bytes: translated(frame) };
    let (syn, ack) = (request(family, Transport::Tcp(SYN)), request(family, Transport::Tcp(ACK)));
    let there_and_back = |text: &str, transport| {
        let frame = request(family, transport);
        let back = answer(transport);
        case(name(text), base.clone(), frame.bytes(), sent(&frame, true))
            .then(back.bytes(), Expect::Returned(returned(family, &back)))
    };
    let key = flow_key(&syn);
    let mut other_vip = base.clone();
    // The same client with the same port is at the same backend already, by another VIP.
    let taken = lb_bpf::abi::ReverseEntry {
        client: family.client().ip().into(),
        vip: family.own().into(),
        client_port: family.client().port().to_be(),
        vip_port: 81_u16.to_be(),
        ifindex: 1,
        seen: 1,
        next_hop: ROUTER,
        source_mac: OWN,
        tags: lb_bpf::abi::Tags::NONE,
    };
    let of_backend = backend(family, Mode::Dnat, 1);
    other_vip.reverse = vec![(key.answer(&of_backend, 0), taken)];
    let of_other = FlowKey { dst: taken.vip, dst_port: taken.vip_port, ..key };
    let other_flow = |state| {
        let entry = FlowEntry { state, ..crate::scene::entry(&syn, 1, u16::from_be(key.src_port)) };
        World { flows: vec![(of_other, entry)], ..other_vip.clone() }
    };
    let both = FlowEntry::FIN_CLIENT | FlowEntry::FIN_BACKEND;
    vec![
        there_and_back("TCP", Transport::Tcp(SYN)),
        there_and_back("UDP", Transport::Udp),
        there_and_back("UDP without checksum", Transport::UdpWithoutChecksum),
        case(name("the flow goes on"), base.clone(), syn.bytes(), sent(&syn, true))
            .then(ack.bytes(), sent(&ack, false))
            .check(move |rig| {
                let entry = rig.flow(&key).unwrap();
                assert_eq!((entry.backend, entry.state), (1, 0));
                assert_eq!(entry.nat_port, key.src_port);
            }),
        case(
            name("no reply"),
            base.clone(),
            answer(Transport::Tcp(ACK)).bytes(),
            Expect::Untouched(Verdict::NotOurs),
        ),
        case(
            name("the port is taken"),
            other_flow(FlowEntry::FIN_CLIENT),
            syn.bytes(),
            Expect::Untouched(Verdict::NatPortsExhausted),
        ),
        case(name("the port was taken"), other_flow(both), syn.bytes(), sent(&syn, true)).then(
            answer(Transport::Tcp(SYN | ACK)).bytes(),
            Expect::Returned(returned(family, &answer(Transport::Tcp(SYN | ACK)))),
        ),
        case(name("the port was reset"), other_flow(FlowEntry::RST), syn.bytes(), sent(&syn, true)),
        case(name("the port is nobody's any more"), other_vip, syn.bytes(), sent(&syn, true)),
        case(name("FIN of the backend"), base.clone(), syn.bytes(), sent(&syn, true))
            .then(
                answer(Transport::Tcp(ACK | crate::frame::FIN)).bytes(),
                Expect::Returned(returned(family, &answer(Transport::Tcp(ACK | crate::frame::FIN)))),
            )
            .check(move |rig| {
                let state = rig.flow(&key).unwrap().state;
                assert_eq!(state, FlowEntry::HALF_OPEN | FlowEntry::FIN_BACKEND);
            }),
        case(name("a reply key is the flow's own"), base.clone(), syn.bytes(), sent(&syn, true)).check(
            move |rig| {
                let keys: Vec<FlowKey> = rig.reverse().into_iter().map(|(key, _)| key).collect();
                assert_eq!(keys, [key.answer(&of_backend, 0)]);
            },
        ),
    ]
}
