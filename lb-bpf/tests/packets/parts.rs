//! Fragments, IPv6 extension headers and VLAN tags.
use crate::{
    frame::{ACK, Frame, OWN, ROUTER, SYN, Transport, header6},
    icmp::Message,
    rig::Rig,
    scene::{
        BACKEND_PORT, Case, Expect, Family, PORTS, V4, V6, backend_macs, case, flow_key, reply, request,
        returned, translated, tunnelled, world,
    },
    trace::now,
};
use lb_bpf::abi::{FlowEntry, FragmentEntry, FragmentKey, Mode, Tags, Verdict};
use std::net::IpAddr;

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        for mode in [Mode::Ipip, Mode::Nat] {
            cases.extend(fragments(family, mode));
        }
        cases.extend(vlans(family));
    }
    cases.extend(extensions());
    cases
}

/// The parts of `frame`: the first has `first` bytes of the IP payload, a multiple of 8.
pub(crate) fn parts(family: Family, frame: &Frame, first: usize) -> [Vec<u8>; 2] {
    let ip = frame.ip();
    let payload = &ip[family.header()..];
    let eth = &frame.bytes()[..14];
    let part = |offset: usize, bytes: &[u8], more: bool| -> Vec<u8> {
        let flags = (offset as u16) | if family == V4 { u16::from(more) << 13 } else { u16::from(more) };
        match (frame.src.ip(), frame.dst.ip()) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let mut part = frame.clone();
                part.fragment = (flags & 0x2000) | (offset as u16 / 8);
                let mut header = part.ip()[..20].to_vec();
                header[2..4].copy_from_slice(&((20 + bytes.len()) as u16).to_be_bytes());
                header[10..12].copy_from_slice(&[0, 0]);
                let sum = crate::frame::checksum(&[&header]);
                header[10..12].copy_from_slice(&sum.to_be_bytes());
                [eth, &header, bytes].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let header = header6(frame.class, 0, frame.ttl, 44, src, dst, 8 + bytes.len());
                let mut extension = vec![ip[6], 0];
                extension.extend(flags.to_be_bytes());
                extension.extend([0xde, 0xad, 0xbe, 0xef]);
                [eth, &header, &extension, bytes].concat()
            }
            other => panic!("mixed families: {other:?}"),
        }
    };
    [part(0, &payload[..first], true), part(first, &payload[first..], false)]
}

/// The packet as it leaves for backend 1, in as many parts.
fn sent_parts(family: Family, mode: Mode, frame: &Frame, first: usize) -> [Vec<u8>; 2] {
    let whole = |bytes: Vec<u8>| bytes;
    if mode == Mode::Nat {
        let (eth_dst, eth_src) = backend_macs(1);
        let mut after = frame.clone().ttl(frame.ttl - 1).macs(eth_dst, eth_src);
        after.src = std::net::SocketAddr::new(family.own(), PORTS.0);
        after.dst = std::net::SocketAddr::new(family.backend(1), BACKEND_PORT);
        return parts(family, &after, first).map(whole);
    }
    // Each part in a tunnel of its own.
    let inner = parts(family, &frame.clone().ttl(frame.ttl - 1), first);
    let tunnel = crate::scene::tunnel(family, frame, 1);
    inner.map(|part| tunnel.around(&part[14..], part.len() - 14))
}

fn fragments(family: Family, mode: Mode) -> Vec<Case> {
    let base = world(family, mode);
    let name = |text: &str| format!("fragments {family:?} {mode:?}: {text}");
    let udp = request(family, Transport::Udp).payload((0..200).collect::<Vec<u8>>());
    let new = mode == Mode::Nat;
    let [first, last] = parts(family, &udp, 64);
    let [first_out, last_out] = sent_parts(family, mode, &udp, 64);
    let expect = |bytes: &[u8], new| Expect::Sent { backend: 1, new, bytes: bytes.to_vec() };
    let key = FragmentKey {
        src: family.client().ip().into(),
        dst: family.vip().ip().into(),
        id: if family == V4 { 0 } else { u32::from_ne_bytes([0xde, 0xad, 0xbe, 0xef]) },
        proto: 17,
        zero: [0; 3],
    };
    let ports = [family.client().port().to_be(), family.vip().port().to_be()];
    let mut aged = base.clone();
    aged.fragments = vec![(key, FragmentEntry { ports, seen: 0 })];
    let fresh = FragmentEntry { ports, seen: now() };
    let mut other_id = base.clone();
    other_id.fragments = vec![(FragmentKey { id: 77, ..key }, fresh)];
    let mut known = base.clone();
    known.fragments = vec![(key, fresh)];
    let mut cases = vec![
        case(name("in order"), base.clone(), first.clone(), expect(&first_out, new))
            .then(last.clone(), expect(&last_out, false)),
        case(name("the last one twice"), base.clone(), first.clone(), expect(&first_out, new))
            .then(last.clone(), expect(&last_out, false))
            .then(last.clone(), expect(&last_out, false)),
        case(name("the last one first"), base.clone(), last.clone(), Expect::Untouched(Verdict::Fragment))
            .then(first.clone(), expect(&first_out, new)),
        case(name("the first one long ago"), aged, last.clone(), Expect::Untouched(Verdict::Fragment)),
        case(name("another identification"), other_id, last.clone(), Expect::Untouched(Verdict::Fragment)),
        case(name("the first one elsewhere"), known, last.clone(), expect(&last_out, new)),
    ];
    let tiny = parts(family, &request(family, Transport::Tcp(ACK)), 8)[0].clone();
    cases.push(case(
        name("first part without the whole header"),
        base,
        tiny,
        Expect::Untouched(Verdict::Malformed),
    ));
    if mode == Mode::Nat {
        cases.push(fragmented_reply(family));
    }
    cases
}

fn fragmented_reply(family: Family) -> Case {
    let base = world(family, Mode::Nat);
    let syn = request(family, Transport::Udp);
    let answer = reply(family, Transport::Udp, 1, PORTS.0).payload((0..100).collect::<Vec<u8>>());
    let mut after = answer.clone().ttl(answer.ttl - 1).macs(ROUTER, OWN);
    (after.src, after.dst) = (family.vip(), family.client());
    let ([first, last], [first_out, last_out]) = (parts(family, &answer, 40), parts(family, &after, 40));
    let sent = Expect::Sent { backend: 1, new: true, bytes: translated(family, &syn, 1, PORTS.0) };
    case(format!("fragments {family:?} NAT: of a reply"), base, syn.bytes(), sent)
        .then(first, Expect::Returned(first_out))
        .then(last, Expect::Returned(last_out))
}

fn extensions() -> Vec<Case> {
    let base = world(V6, Mode::Ipip);
    let name = |text: &str| format!("extension headers: {text}");
    let frame = request(V6, Transport::Tcp(ACK));
    // `headers`: number and bytes of each, but for the next header in its first byte.
    let with = |frame: &Frame, headers: &[(u8, Vec<u8>)]| -> Vec<u8> {
        let ip = frame.ip();
        let mut chain = Vec::new();
        for (index, (_, bytes)) in headers.iter().enumerate() {
            let next = headers.get(index + 1).map_or(ip[6], |(number, _)| *number);
            chain.push(next);
            chain.extend(&bytes[1..]);
        }
        let mut head = ip[..40].to_vec();
        head[6] = headers[0].0;
        head[4..6].copy_from_slice(&((ip.len() - 40 + chain.len()) as u16).to_be_bytes());
        [&frame.bytes()[..14], &head, &chain, &ip[40..]].concat()
    };
    let padding = |number: u8, units: u8| {
        (number, [&[0, units, 1, 4][..], &vec![0; 4 + usize::from(units) * 8]].concat())
    };
    let routing = |left: u8| (43, vec![0, 0, 4, left, 0, 0, 0, 0]);
    let atomic = || (44, vec![0, 0, 0, 0, 1, 2, 3, 4]);
    let sent = |text: &str, headers: &[(u8, Vec<u8>)]| {
        let inner = with(&frame.clone().ttl(63), headers);
        let bytes = crate::scene::tunnel(V6, &frame, 1).around(&inner[14..], inner.len() - 14);
        case(name(text), base.clone(), with(&frame, headers), Expect::Sent { backend: 1, new: false, bytes })
    };
    let untouched = |text: &str, headers: &[(u8, Vec<u8>)], verdict| {
        case(name(text), base.clone(), with(&frame, headers), Expect::Untouched(verdict))
    };
    let mut other = frame.clone();
    other.dst.set_ip(V6.backend(4));
    vec![
        sent("hop by hop", &[padding(0, 0)]),
        sent("destination options, long", &[padding(60, 5)]),
        sent("routing header, used up", &[routing(0)]),
        sent("atomic fragment", &[atomic()]),
        sent("all of them", &[padding(0, 1), padding(60, 0), routing(0), atomic(), padding(60, 2)]),
        sent("eight", &vec![padding(60, 0); 8]),
        untouched("nine", &vec![padding(60, 0); 9], Verdict::HeaderChain),
        untouched("routing header with a segment left", &[routing(1)], Verdict::HeaderChain),
        untouched("longer than is looked through", &[padding(60, 64)], Verdict::HeaderChain),
        case(
            name("nine, not to a VIP"),
            base.clone(),
            with(&other, &vec![padding(60, 0); 9]),
            Expect::Untouched(Verdict::NotOurs),
        ),
        case(
            name("cut within the second"),
            base.clone(),
            with(&frame, &[padding(0, 0), padding(60, 0)])[..14 + 40 + 12].to_vec(),
            Expect::Untouched(Verdict::Malformed),
        ),
    ]
}

/// `frame` with VLAN tags.
fn tagged(frame: &[u8], tags: &[(u16, u16)]) -> Vec<u8> {
    let words = tags.iter().flat_map(|(tpid, tci)| [tpid.to_be_bytes(), tci.to_be_bytes()].concat());
    [&frame[..12], &words.collect::<Vec<u8>>(), &frame[12..]].concat()
}

fn vlans(family: Family) -> Vec<Case> {
    const ONE: &[(u16, u16)] = &[(0x8100, 0x6005)];
    const TWO: &[(u16, u16)] = &[(0x88a8, 7), (0x8100, 9)];
    let base = world(family, Mode::Ipip);
    let nat = world(family, Mode::Nat);
    let name = |text: &str| format!("VLAN {family:?}: {text}");
    let ack = request(family, Transport::Tcp(ACK));
    let sent = |bytes, new| Expect::Sent { backend: 1, new, bytes };
    let mut out = base.clone();
    out.backends[0].vlan = 0x2003;
    let mut other = ack.clone();
    other.dst.set_port(81);
    let (kind, reply_kind) = if family == V4 { (8, 0) } else { (128, 129) };
    let ping = Message::new(family.client().ip(), family.vip().ip(), (kind, 0), [1, 2, 3, 4], b"ping");
    let mut pong =
        Message::new(family.vip().ip(), family.client().ip(), (reply_kind, 0), [1, 2, 3, 4], b"ping");
    (pong.macs, pong.ttl) = ((ROUTER, OWN), 64);
    let syn = request(family, Transport::Tcp(SYN));
    let back = reply(family, Transport::Tcp(SYN | ACK), 1, PORTS.0);
    let mut cases = Vec::new();
    for (text, tags) in [("one tag", ONE), ("two tags", TWO)] {
        let of = |text2: &str| name(&format!("{text}, {text2}"));
        cases.extend([
            case(
                of("to a backend without"),
                base.clone(),
                tagged(&ack.bytes(), tags),
                sent(tunnelled(family, &ack, 1), false),
            ),
            case(
                of("to a backend in another VLAN"),
                out.clone(),
                tagged(&ack.bytes(), tags),
                sent(tagged(&tunnelled(family, &ack, 1), &[(0x8100, 0x2003)]), false),
            ),
            case(
                of("not ours"),
                base.clone(),
                tagged(&other.bytes(), tags),
                Expect::Untouched(Verdict::NotOurs),
            ),
            case(
                of("ping"),
                base.clone(),
                tagged(&ping.bytes(), tags),
                Expect::Answered(Verdict::EchoReply, tagged(&pong.bytes(), tags)),
            ),
            case(
                of("NAT, there and back"),
                nat.clone(),
                tagged(&syn.bytes(), tags),
                sent(translated(family, &syn, 1, PORTS.0), true),
            )
            .then(back.bytes(), Expect::Returned(tagged(&returned(family, &back), tags)))
            .check(|rig: &mut Rig| assert_eq!(rig.reverse().len(), 1)),
        ]);
    }
    cases.push(case(name("none, to a backend in a VLAN"), out, ack.bytes(), {
        sent(tagged(&tunnelled(family, &ack, 1), &[(0x8100, 0x2003)]), false)
    }));
    let key = flow_key(&syn);
    cases.push(
        case(name("the tags of a client may change"), nat, tagged(&syn.bytes(), ONE), {
            sent(translated(family, &syn, 1, PORTS.0), true)
        })
        .then(tagged(&syn.bytes(), TWO), sent(translated(family, &syn, 1, PORTS.0), true))
        .then(back.bytes(), Expect::Returned(tagged(&returned(family, &back), TWO)))
        .check(move |rig| {
            assert_eq!(rig.flow(&key).unwrap().state, FlowEntry::HALF_OPEN);
            assert_ne!(rig.reverse()[0].1.tags, Tags::NONE);
        }),
    );
    cases
}
