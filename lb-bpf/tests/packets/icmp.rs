//! ICMP: pings to a VIP, errors about flows, and answers to what is too big.
use crate::{
    frame::{ACK, Frame, Header4, OWN, ROUTER, SYN, Transport, checksum, ethernet, header6, pseudo_header},
    rig::World,
    scene::{
        BACKEND_PORT, Case, Expect, Family, PORTS, V4, V6, backend_macs, case, entry, flow_key, request,
        returned, translated, tunnel, tunnelled, with_slots, world,
    },
};
use lb_bpf::abi::{Mode, Slot, Verdict};
use std::net::{IpAddr, SocketAddr};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        cases.extend(pings(family));
        cases.extend(relayed_in_tunnels(family));
        cases.extend(translated_errors(family));
        for mode in [Mode::Ipip, Mode::Nat] {
            cases.extend(errors_not_relayed(family, mode));
            cases.extend(too_big(family, mode));
        }
    }
    cases
}

/// An ICMP message in an Ethernet frame.
#[derive(Clone)]
pub(crate) struct Message {
    pub(crate) macs: ([u8; 6], [u8; 6]),
    pub(crate) src: IpAddr,
    pub(crate) dst: IpAddr,
    kind: u8,
    code: u8,
    rest: [u8; 4],
    body: Vec<u8>,
    pub(crate) ttl: u8,
    pub(crate) class: u8,
    /// IPv4: flags and offset.
    pub(crate) fragment: u16,
    /// Bytes of IPv4 options.
    options: Vec<u8>,
}

/// "Time exceeded" about a packet to a VIP, from the VIP: its header and 8 bytes are quoted.
pub(crate) fn time_exceeded(family: Family, frame: &Frame) -> Expect {
    let (kind, class) = if family == V4 { ((11, 0), 0xc0) } else { ((3, 0), 0) };
    let quoted = &frame.ip()[..family.header() + 8];
    let message = Message::new(frame.dst.ip(), frame.src.ip(), kind, [0; 4], quoted);
    let answer = Message { macs: (ROUTER, OWN), class, fragment: 0x4000, ttl: 64, ..message };
    Expect::Answered(Verdict::TtlAnswered, answer.bytes())
}

impl Message {
    /// From the router's side to us.
    pub(crate) fn new(src: IpAddr, dst: IpAddr, (kind, code): (u8, u8), rest: [u8; 4], body: &[u8]) -> Self {
        let (class, fragment, options) = (0, 0, Vec::new());
        Message {
            macs: (OWN, ROUTER),
            src,
            dst,
            kind,
            code,
            rest,
            body: body.to_vec(),
            ttl: 61,
            class,
            fragment,
            options,
        }
    }

    /// The answer to this ping.
    fn answer(&self, kind: u8) -> Self {
        let (macs, src, dst) = ((ROUTER, OWN), self.dst, self.src);
        Message { macs, src, dst, kind, ttl: 64, ..self.clone() }
    }

    pub(crate) fn ip(&self) -> Vec<u8> {
        let mut icmp = [&[self.kind, self.code, 0, 0][..], &self.rest, &self.body].concat();
        let mut bytes = match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let sum = checksum(&[&icmp]);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                let header = Header4 { class: self.class, fragment: self.fragment, ttl: self.ttl, proto: 1 };
                header.bytes(src.octets(), dst.octets(), icmp.len(), &self.options)
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let sum = checksum(&[&pseudo_header(self.src, self.dst, 58, icmp.len()), &icmp]);
                icmp[2..4].copy_from_slice(&sum.to_be_bytes());
                header6(self.class, 0, self.ttl, 58, src, dst, icmp.len())
            }
            other => panic!("mixed families: {other:?}"),
        };
        bytes.extend(icmp);
        bytes
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = ethernet(self.macs.0, self.macs.1, self.src);
        bytes.extend(self.ip());
        bytes
    }
}

/// Echo request and reply.
fn echo_kinds(family: Family) -> (u8, u8) {
    if family == V4 { (8, 0) } else { (128, 129) }
}

/// A router between the client and us.
fn router(family: Family) -> IpAddr {
    (if family == V4 { "192.0.2.99" } else { "2001:db8:99::1" }).parse().unwrap()
}

/// Types, codes and second words of errors.
pub(crate) fn errors(family: Family) -> Vec<((u8, u8), [u8; 4])> {
    if family == V4 {
        vec![((3, 1), [0; 4]), ((3, 4), [0, 0, 5, 120]), ((11, 0), [0; 4]), ((12, 0), [20, 0, 0, 0])]
    } else {
        vec![((1, 0), [0; 4]), ((2, 0), [0, 0, 5, 0]), ((3, 0), [0; 4]), ((4, 1), [0, 0, 0, 40])]
    }
}

fn transports() -> [Transport; 3] {
    [Transport::Tcp(ACK), Transport::Udp, Transport::UdpWithoutChecksum]
}

/// A packet of the VIP to the client, as a router on the way sees it.
pub(crate) fn answered(family: Family, transport: Transport) -> Frame {
    Frame::new(transport, family.vip(), family.client()).ttl(57)
}

/// An error to the VIP about one of its packets, of which `length` bytes of transport are quoted.
pub(crate) fn error(family: Family, about: &Frame, length: usize, kind: ((u8, u8), [u8; 4])) -> Message {
    let quote = about.ip();
    let length = (family.header() + length).min(quote.len());
    Message::new(router(family), about.src.ip(), kind.0, kind.1, &quote[..length])
}

fn pings(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Ipip);
    let (request, reply) = echo_kinds(family);
    let name = |text: &str| format!("ping {family:?}: {text}");
    let (client, vip) = (family.client().ip(), family.vip().ip());
    let ping = Message::new(client, vip, (request, 0), [1, 2, 3, 4], b"the quick brown fox");
    let answered = |text: &str, ping: &Message| {
        case(
            name(text),
            base.clone(),
            ping.bytes(),
            Expect::Answered(Verdict::EchoReply, ping.answer(reply).bytes()),
        )
    };
    let untouched = |text: &str, world: &World, packet: Vec<u8>, verdict| {
        case(name(text), world.clone(), packet, Expect::Untouched(verdict))
    };
    let edit = |change: &dyn Fn(&mut Message)| {
        let mut ping = ping.clone();
        change(&mut ping);
        ping
    };
    let mut without = base.clone();
    without.vips.retain(|(key, _)| key.port != 0);
    let busy = World { busy: true, ..base.clone() };
    let mut lying = ping.bytes();
    lying[14 + if family == V4 { 3 } else { 5 }] += 1;
    let mut short = ping.bytes();
    short[14 + if family == V4 { 3 } else { 5 }] = if family == V4 { 27 } else { 7 };
    let mut padded = edit(&|ping| ping.body.clear()).bytes();
    let mut padded_answer = edit(&|ping| ping.body.clear()).answer(reply).bytes();
    padded.extend([0; 18]);
    padded_answer.extend([0; 18]);
    let mut cases = vec![
        answered("answered", &ping),
        answered("without data", &edit(&|ping| ping.body.clear())),
        answered("nothing but zeros", &edit(&|ping| (ping.rest, ping.body) = ([0; 4], vec![0; 8]))),
        answered("last hop", &edit(&|ping| ping.ttl = 1)),
        answered("with a class", &edit(&|ping| ping.class = 46 << 2)),
        answered("full size", &edit(&|ping| ping.body = (0..1400).map(|n| n as u8).collect())),
        case(name("padding"), base.clone(), padded, Expect::Answered(Verdict::EchoReply, padded_answer)),
        untouched("another address", &base, edit(&|ping| ping.dst = family.own()).bytes(), Verdict::NotOurs),
        untouched("a reply", &base, edit(&|ping| ping.kind = reply).bytes(), Verdict::NotOurs),
        untouched("no VIP any more", &without, ping.bytes(), Verdict::NotOurs),
        untouched("too many", &busy, ping.bytes(), Verdict::EchoLimited),
        untouched("shorter than its length", &base, lying, Verdict::Malformed),
        untouched("length without a whole header", &base, short, Verdict::Malformed),
        untouched(
            "cut within the header",
            &base,
            ping.bytes()[..14 + family.header() + 7].to_vec(),
            Verdict::NotOurs,
        ),
    ];
    if family == V4 {
        cases.push(answered("options", &edit(&|ping| ping.options = vec![1, 1, 1, 0])));
        cases.push(answered("don't fragment", &edit(&|ping| ping.fragment = 0x4000)));
        let first = edit(&|ping| ping.fragment = 0x2000).bytes();
        cases.push(untouched("first fragment", &base, first, Verdict::Fragment));
        let later = edit(&|ping| ping.fragment = 0x2010).bytes();
        cases.push(untouched("later fragment", &base, later, Verdict::Fragment));
    } else {
        let part = |offset: u8, dst| {
            let mut bytes = edit(&|ping| ping.dst = dst).bytes();
            let at = 14 + family.header();
            bytes[20] = 44;
            bytes[19] += 8;
            bytes.splice(at..at, [58, 0, 0, offset | 1, 0xde, 0xad, 0xbe, 0xef]);
            bytes
        };
        cases.push(untouched("first fragment", &base, part(0, vip), Verdict::Fragment));
        cases.push(untouched("later fragment", &base, part(16, vip), Verdict::Fragment));
        cases.push(untouched("first fragment, not ours", &base, part(0, family.own()), Verdict::NotOurs));
    }
    cases
}

/// To the backend, unchanged but for the hop.
fn relayed_in_tunnels(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Ipip);
    let mut cases = Vec::new();
    let mut add = |text: String, world: World, message: &Message, flow: &Frame, backend: u32| {
        let inner = Message { ttl: message.ttl - 1, ..message.clone() }.ip();
        let bytes = tunnel(family, flow, backend).around(&inner, inner.len());
        let name = format!("ICMP error {family:?} IPIP: {text}");
        cases.push(case(name, world, message.bytes(), Expect::Sent { backend, new: false, bytes }));
    };
    for transport in transports() {
        let (flow, about) = (request(family, transport), answered(family, transport));
        for kind in errors(family) {
            for length in [8, 1000] {
                let text = format!("{kind:?} about {transport:?}, {length} bytes");
                add(text, base.clone(), &error(family, &about, length, kind), &flow, 1);
            }
        }
    }
    let (flow, about) = (request(family, Transport::Tcp(ACK)), answered(family, Transport::Tcp(ACK)));
    let message = error(family, &about, 8, errors(family)[0]);
    // A dirty slot: the flow's entry, else the rule for unknown connections.
    let learning = with_slots(base.clone(), Slot { current: 1, previous: 2 });
    add("slot learns".to_owned(), learning.clone(), &message, &flow, 2);
    let settled = with_slots(base.clone(), Slot { current: 1, previous: 2 | Slot::SETTLED });
    add("slot is settled".to_owned(), settled, &message, &flow, 1);
    let known = World { flows: vec![(flow_key(&flow), entry(&flow, 3, 0))], ..learning };
    add("flow is known".to_owned(), known, &message, &flow, 3);
    if family == V4 {
        let options = Message { options: vec![1, 1, 1, 0], ..message.clone() };
        add("IPv4 options".to_owned(), base.clone(), &options, &flow, 1);
        let inside = error(family, &about.clone().options(&[1; 8]), 16, errors(family)[0]);
        add("IPv4 options inside".to_owned(), base.clone(), &inside, &flow, 1);
        let fragment = error(family, &about.fragment(0x2000), 8, errors(family)[0]);
        add("about a first fragment".to_owned(), base, &fragment, &flow, 1);
    }
    cases
}

/// Under NAT, in both directions.
fn translated_errors(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Nat);
    let own = SocketAddr::new(family.own(), PORTS.0);
    let target = SocketAddr::new(family.backend(1), BACKEND_PORT);
    let mut cases = Vec::new();
    for transport in transports() {
        let is_tcp = matches!(transport, Transport::Tcp(_));
        let opening = request(family, if is_tcp { Transport::Tcp(SYN) } else { transport });
        let sent = translated(family, &opening, 1, PORTS.0);
        let mut add = |text: String, message: &Message, expect: Expect| {
            let name = format!("ICMP error {family:?} NAT: {text} about {transport:?}");
            let opened = Expect::Sent { backend: 1, new: true, bytes: sent.clone() };
            cases.push(case(name, base.clone(), opening.bytes(), opened).then(message.bytes(), expect));
        };
        for kind in errors(family) {
            // 16 bytes end before the checksum of TCP.
            for length in [8, 16, 18, 1000] {
                // About the VIP's packet: the backend sent it from its own address to ours.
                let message = error(family, &answered(family, transport), length, kind);
                let mut about = answered(family, transport);
                (about.src, about.dst) = (target, own);
                let mut out = error(family, &about, length, kind);
                (out.src, out.dst, out.ttl, out.macs) =
                    (own.ip(), target.ip(), message.ttl - 1, backend_macs(1));
                let expect = Expect::Sent { backend: 1, new: false, bytes: out.bytes() };
                add(format!("{kind:?} to the backend, {length} bytes"), &message, expect);
                // About the translated packet: the client sent it to the VIP.
                let mut about = request(family, transport).ttl(57);
                let (client, vip) = (about.src, about.dst);
                (about.src, about.dst) = (own, target);
                let message = error(family, &about, length, kind);
                (about.src, about.dst) = (client, vip);
                let mut out = error(family, &about, length, kind);
                (out.src, out.dst, out.ttl, out.macs) =
                    (vip.ip(), client.ip(), message.ttl - 1, (ROUTER, OWN));
                add(
                    format!("{kind:?} to the client, {length} bytes"),
                    &message,
                    Expect::Returned(out.bytes()),
                );
            }
        }
    }
    // The way of the answer is not disturbed.
    let syn = request(family, Transport::Tcp(SYN));
    let message = error(family, &answered(family, Transport::Tcp(ACK)), 8, errors(family)[0]);
    let no_flow = Expect::Untouched(Verdict::NoFlow);
    let reply = crate::scene::reply(family, Transport::Tcp(ACK), 1, PORTS.0);
    let opened = Expect::Sent { backend: 1, new: true, bytes: translated(family, &syn, 1, PORTS.0) };
    let unknown = case(format!("ICMP error {family:?} NAT: unknown flow"), base, message.bytes(), no_flow)
        .then(syn.bytes(), opened)
        .then(reply.bytes(), Expect::Returned(returned(family, &reply)));
    cases.push(unknown);
    cases
}

fn errors_not_relayed(family: Family, mode: Mode) -> Vec<Case> {
    let base = {
        let flow = request(family, Transport::Tcp(ACK));
        let flows = vec![(flow_key(&flow), entry(&flow, 1, PORTS.0))];
        World { flows, ..world(family, mode) }
    };
    let name = |text: &str| format!("ICMP error {family:?} {mode:?}, not sent on: {text}");
    let about = answered(family, Transport::Tcp(ACK));
    let message = error(family, &about, 20, errors(family)[0]);
    let untouched = |text: &str, world: &World, message: &Message, verdict| {
        case(name(text), world.clone(), message.bytes(), Expect::Untouched(verdict))
    };
    let edit = |change: &dyn Fn(&mut World)| {
        let mut world = base.clone();
        change(&mut world);
        world
    };
    let mut other_port = about.clone();
    other_port.src.set_port(81);
    let other_port = error(family, &other_port, 20, errors(family)[0]);
    let not_quoted = Message { dst: family.own(), ..message.clone() };
    let mut ping_inside = message.clone();
    ping_inside.body[if family == V4 { 9 } else { 6 }] = if family == V4 { 1 } else { 58 };
    let short = |length: usize| Message {
        body: message.body[..family.header() + length].to_vec(),
        ..message.clone()
    };
    let mut cut = message.bytes();
    cut.truncate(cut.len() - 1);
    let unknown_kind = Message { kind: if family == V4 { 5 } else { 137 }, ..message.clone() };
    let mut cases = vec![
        untouched("another port", &base, &other_port, Verdict::NotOurs),
        untouched("not to whose packet is quoted", &base, &not_quoted, Verdict::NotOurs),
        untouched("about a ping", &base, &ping_inside, Verdict::NotOurs),
        untouched("not an error", &base, &unknown_kind, Verdict::NotOurs),
        untouched(
            "half a header quoted",
            &base,
            &Message { body: message.body[..12].to_vec(), ..message.clone() },
            Verdict::NotOurs,
        ),
        untouched("three bytes of ports", &base, &short(3), Verdict::NotOurs),
        untouched("four bytes of transport", &base, &short(4), Verdict::Malformed),
        case(name("shorter than its length"), base.clone(), cut, Expect::Untouched(Verdict::Malformed)),
        untouched("TTL 1", &base, &Message { ttl: 1, ..message.clone() }, Verdict::TtlExpired),
        untouched(
            "next hop not resolved",
            &edit(&|world| world.backends[0].ifindex = 0),
            &message,
            Verdict::Unresolved,
        ),
        untouched(
            "empty table",
            &edit(&|world| world.vips.iter_mut().for_each(|vip| vip.1.size = 0)),
            &message,
            Verdict::NoBackend,
        ),
        untouched("no VIP any more", &edit(&|world| world.vips.clear()), &message, Verdict::NotOurs),
        untouched(
            "too big for the backend",
            &edit(&|world| world.backends[0].mtu = 60),
            &message,
            Verdict::TooBig,
        ),
    ];
    if family == V4 {
        let first = Message { fragment: 0x2000, ..message.clone() };
        cases.push(untouched("first fragment", &base, &first, Verdict::Fragment));
        let later = error(family, &about.fragment(0x0010), 20, errors(family)[0]);
        cases.push(untouched("about a later fragment", &base, &later, Verdict::NotOurs));
    }
    cases
}

fn too_big(family: Family, mode: Mode) -> Vec<Case> {
    let base = world(family, mode);
    let name = |text: &str| format!("too big {family:?} {mode:?}: {text}");
    let overhead = if mode == Mode::Ipip { family.header() } else { 0 };
    let tcp = request(family, Transport::Tcp(ACK)).fragment(0x4000);
    // A packet of so many bytes of IP.
    let sized = |frame: &Frame, length: usize| {
        let header = family.header() + if matches!(frame.transport, Transport::Tcp(_)) { 20 } else { 8 };
        frame.clone().payload((header..length).map(|n| (n * 7) as u8).collect::<Vec<_>>())
    };
    let answer = |frame: &Frame, mtu: usize| {
        let (kind, quoted, class) = if family == V4 { ((3, 4), 548, 0xc0) } else { ((2, 0), 1232, 0) };
        let rest = (mtu as u32).to_be_bytes();
        let (vip, client) = (frame.dst.ip(), frame.src.ip());
        let message = Message::new(vip, client, kind, rest, &frame.ip()[..quoted]);
        let (macs, fragment) = ((ROUTER, OWN), 0x4000);
        let bytes = Message { macs, class, fragment, ttl: 64, ..message }.bytes();
        Expect::Answered(Verdict::TooBigAnswered, bytes)
    };
    let with_mtu = |mtu: u16| {
        let mut world = base.clone();
        world.backends[0].mtu = mtu;
        world
    };
    let sent = |frame: &Frame| {
        let bytes = match mode {
            Mode::Ipip => tunnelled(family, frame, 1),
            Mode::Nat => translated(family, frame, 1, PORTS.0),
            _ => unreachable!("not a mode of these cases"),
        };
        Expect::Sent { backend: 1, new: mode == Mode::Nat, bytes }
    };
    let fits = 1500 - overhead;
    let (most, over) = (sized(&tcp, fits), sized(&tcp, fits + 1));
    let udp = sized(&request(family, Transport::Udp).fragment(0x4000), 1500 + 13);
    let dropped = |text: &str, world: World, frame: &Frame| {
        case(name(text), world, frame.bytes(), Expect::Untouched(Verdict::TooBig))
    };
    let mut cases = vec![
        case(name("fits"), base.clone(), most.bytes(), sent(&most)),
        case(name("one byte over"), base.clone(), over.bytes(), answer(&over, fits)),
        case(name("UDP"), base.clone(), udp.bytes(), answer(&udp, fits)),
        case(name("padding"), base.clone(), over.clone().padding(5).bytes(), answer(&over, fits)),
        dropped("too many answers", World { busy: true, ..base.clone() }, &over),
    ];
    if family == V4 {
        let options = over.clone().options(&[1; 8]);
        cases.push(case(name("options"), base.clone(), options.bytes(), answer(&options, fits)));
        cases.push(dropped("may be fragmented", base.clone(), &over.clone().fragment(0)));
        cases.push(dropped("shorter than a quote", with_mtu(200), &sized(&tcp, 547)));
        let jumbo = sized(&tcp, 548);
        cases.push(case(
            name("as long as a quote"),
            with_mtu(200),
            jumbo.bytes(),
            answer(&jumbo, 200 - overhead),
        ));
    } else {
        let narrow = with_mtu(1250);
        let longer = sized(&tcp, 1281);
        cases.push(case(name("never less than 1280"), narrow.clone(), longer.bytes(), answer(&longer, 1280)));
        cases.push(dropped("no longer than 1280", narrow, &sized(&tcp, 1280)));
    }
    cases
}
