//! What holds for the packets of a service beyond where they go, and packet filters.
use crate::{
    frame::{ACK, Frame, RST, SYN, Transport},
    rig::World,
    scene::{
        BASE, Case, Expect, Family, SERVICE, SLOTS, V4, V6, case, flow_key, request, tunnelled, with_slots,
        world,
    },
};
use lb_bpf::{
    abi::{Addr, DropKey, Mode, RangeKey, Slot, Verdict, Vip, slot_hash, slot_of},
    filter::{Filter, FilterAction, FilterBytes},
};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in [V4, V6] {
        cases.extend(affinity(family));
        cases.extend(ranges(family));
        cases.extend(without_backend(family));
        cases.extend(filters(family));
    }
    cases
}

fn with_flags(mut world: World, flags: u32) -> World {
    for (key, vip) in &mut world.vips {
        if key.port != 0 {
            vip.flags = flags;
        }
    }
    world
}

/// All ports and both protocols of a client have one slot.
fn affinity(family: Family) -> Vec<Case> {
    let mut base = with_flags(world(family, Mode::Ipip), Vip::AFFINITY);
    for (index, slot) in base.slots.iter_mut().enumerate() {
        *slot = Slot { current: 1 + index as u32 % 4, previous: 0 };
    }
    let first = request(family, Transport::Tcp(ACK));
    let hash = slot_hash(&flow_key(&first), true);
    let backend = 1 + (BASE + slot_of(hash, SLOTS)) % 4;
    let mut cases: Option<Case> = None;
    for port in 1..30 {
        let transport = if port % 2 == 0 { Transport::Udp } else { Transport::Tcp(ACK) };
        let mut frame = request(family, transport);
        frame.src.set_port(port);
        let mut tunnel = crate::scene::tunnel(family, &frame, backend);
        tunnel.flow_label = u32::from_be_bytes(hash.to_ne_bytes()) & 0xf_ffff;
        let expect = Expect::Sent { backend, new: false, bytes: frame.tunnelled(&tunnel) };
        cases = Some(match cases {
            None => case(format!("affinity {family:?}"), base.clone(), frame.bytes(), expect),
            Some(cases) => cases.then(frame.bytes(), expect),
        });
    }
    cases.into_iter().collect()
}

/// A prefix of the client's address, of `bits` bits.
fn range(family: Family, client: Addr, bits: u32, service: u32) -> RangeKey {
    let bits = if family == V4 { 96 + bits } else { bits };
    let mut addr = client;
    for (index, word) in addr.0.iter_mut().enumerate() {
        let kept = bits.saturating_sub(index as u32 * 32).min(32);
        let mask = if kept == 0 { 0 } else { u32::MAX << (32 - kept) };
        *word &= mask.to_be();
    }
    RangeKey { bits: 32 + bits, service, addr }
}

fn ranges(family: Family) -> Vec<Case> {
    let client: Addr = family.client().ip().into();
    let ack = request(family, Transport::Tcp(ACK));
    let allowed = Expect::Sent { backend: 1, new: false, bytes: tunnelled(family, &ack, 1) };
    let denied = || Expect::Untouched(Verdict::SourceDenied);
    let with = |text: &str, flags: u32, ranges: &[(u32, u32, u32)], expect: Expect| {
        let mut world = with_flags(world(family, Mode::Ipip), flags);
        world.ranges = ranges
            .iter()
            .map(|&(bits, service, allow)| (range(family, client, bits, service), allow))
            .collect();
        case(format!("ranges {family:?}: {text}"), world, ack.bytes(), expect)
    };
    let longest = if family == V4 { 32 } else { 128 };
    vec![
        with("not asked for", 0, &[(0, SERVICE, 0)], allowed.clone()),
        with("none", Vip::RANGES, &[], denied()),
        with("all allowed", Vip::RANGES, &[(0, SERVICE, 1)], allowed.clone()),
        with("none allowed", Vip::RANGES, &[(0, SERVICE, 0)], denied()),
        with("of another service", Vip::RANGES, &[(0, SERVICE + 1, 1)], denied()),
        with(
            "the longest counts: allowed",
            Vip::RANGES,
            &[(0, SERVICE, 0), (16, SERVICE, 0), (24, SERVICE, 1)],
            allowed.clone(),
        ),
        with(
            "the longest counts: denied",
            Vip::RANGES,
            &[(0, SERVICE, 1), (8, SERVICE, 1), (longest, SERVICE, 0)],
            denied(),
        ),
        with("one address", Vip::RANGES, &[(0, SERVICE, 0), (longest, SERVICE, 1)], allowed).check(|rig| {
            assert_eq!(rig.drops(), []);
        }),
        with("counted by service", Vip::RANGES, &[(0, SERVICE, 0)], denied()).check(|rig| {
            let key = DropKey { service: SERVICE, verdict: Verdict::SourceDenied as u32 };
            // And each of the shorter packets that were dropped as malformed.
            assert!(rig.drops().contains(&(key, 1)), "{:?}", rig.drops());
        }),
    ]
}

fn without_backend(family: Family) -> Vec<Case> {
    let syn = request(family, Transport::Tcp(SYN));
    let nobody = |flags| with_slots(with_flags(world(family, Mode::Ipip), flags), Slot::default());
    let mut empty = with_flags(world(family, Mode::Ipip), Vip::PASS);
    empty.vips.iter_mut().for_each(|(_, vip)| vip.size = 0);
    let name = |text: &str| format!("no backend {family:?}: {text}");
    let (passed, dropped) = (Verdict::NoBackendPassed, Verdict::NoBackend);
    vec![
        case(name("dropped"), nobody(0), syn.bytes(), Expect::Untouched(dropped)),
        case(name("passed"), nobody(Vip::PASS), syn.bytes(), Expect::Untouched(passed)),
        case(name("no table, passed"), empty, syn.bytes(), Expect::Untouched(passed)),
    ]
}

fn filters(family: Family) -> Vec<Case> {
    let drop = Filter::new(FilterAction::Drop);
    let count = Filter::new(FilterAction::Count);
    let (ack, udp) = (request(family, Transport::Tcp(ACK)), request(family, Transport::Udp));
    let rst = request(family, Transport::Tcp(RST | ACK));
    let net = |bits: u8| ipnet::IpNet::new(family.client().ip(), bits).unwrap().trunc();
    let other_net: ipnet::IpNet = (if family == V4 { "10.9.0.0/16" } else { "fd99::/16" }).parse().unwrap();
    let other_family: ipnet::IpNet = (if family == V4 { "::/0" } else { "0.0.0.0/0" }).parse().unwrap();
    let longest: u8 = if family == V4 { 32 } else { 128 };
    let length = ack.ip().len() as u16;
    let hit = |text: &str, filter: Filter, frame: &Frame| {
        let mut world = world(family, Mode::Ipip);
        world.filters = vec![filter.compile()];
        let name = format!("filter {family:?}: {text}");
        case(name, world, frame.bytes(), Expect::Untouched(Verdict::Filtered))
    };
    let miss = |text: &str, filter: Filter, frame: &Frame| {
        let mut world = world(family, Mode::Ipip);
        world.filters = vec![filter.compile()];
        let bytes = tunnelled(family, frame, 1);
        let expect = Expect::Sent { backend: 1, new: false, bytes };
        case(format!("filter {family:?}: not {text}"), world, frame.bytes(), expect)
    };
    let bytes = |offset: usize, mask: [u8; 4], value: [u8; 4]| Filter {
        bytes: Some(FilterBytes { offset: offset as u16, mask, value }),
        ..drop
    };
    let payload = family.header() + 20;
    let ports = |first, last| Some((first, last));
    let mut cases = vec![
        hit("everything", drop, &ack),
        hit("protocol", Filter { protocol: Some(6), ..drop }, &ack),
        miss("protocol", Filter { protocol: Some(6), ..drop }, &udp),
        hit("source", Filter { source: Some(net(24)), ..drop }, &ack),
        hit("source, one address", Filter { source: Some(net(longest)), ..drop }, &ack),
        miss("source", Filter { source: Some(other_net), ..drop }, &ack),
        miss("another family", Filter { source: Some(other_family), ..drop }, &ack),
        miss(
            "destination",
            Filter { destination: Some(net(if family == V4 { 24 } else { 48 })), ..drop },
            &ack,
        ),
        hit("port", Filter { destination_ports: ports(80, 80), ..drop }, &ack),
        hit("ports", Filter { source_ports: ports(40_000, 40_007), ..drop }, &udp),
        miss("ports", Filter { source_ports: ports(40_000, 40_006), ..drop }, &udp),
        miss("ports above", Filter { source_ports: ports(40_008, 65_535), ..drop }, &udp),
        hit("length", Filter { length: Some((length, length)), ..drop }, &ack),
        miss("length", Filter { length: Some((length + 1, u16::MAX)), ..drop }, &ack),
        miss("length below", Filter { length: Some((0, length - 1)), ..drop }, &ack),
        hit("TCP flags", Filter { tcp_flags: Some((RST | SYN, RST)), ..drop }, &rst),
        miss("TCP flags", Filter { tcp_flags: Some((RST | SYN, RST)), ..drop }, &ack),
        miss("TCP flags of UDP", Filter { tcp_flags: Some((RST, 0)), ..drop }, &udp),
        hit("whole", Filter { fragment: Some(false), ..drop }, &ack),
        miss("fragment", Filter { fragment: Some(true), ..drop }, &ack),
        hit("bytes", bytes(payload, [0xff; 4], *b"The "), &ack),
        hit("bytes, masked", bytes(payload, [0xdf, 0, 0, 0], *b"T???"), &ack),
        miss("bytes", bytes(payload, [0xff; 4], *b"the "), &ack),
        hit("the last byte", bytes(payload + 18, [0xff, 0, 0, 0], *b"x\0\0\0"), &ack),
        miss("bytes behind the end", bytes(payload + 18, [0xff; 4], *b"x\0\0\0"), &ack),
        miss("bytes far behind the end", bytes(1400, [1, 0, 0, 0], [0; 4]), &ack),
        hit("two at once", Filter { protocol: Some(6), source: Some(net(16)), ..drop }, &ack),
        miss("two at once", Filter { protocol: Some(17), source: Some(net(16)), ..drop }, &ack),
        miss("what is only counted", count, &ack),
    ];
    // A rule that counts, a free entry, and one that drops: each counts what it matches.
    let mut world = world(family, Mode::Ipip);
    world.filters =
        vec![count.compile(), lb_bpf::abi::Filter::default(), Filter { protocol: Some(6), ..drop }.compile()];
    let sent = Expect::Sent { backend: 1, new: false, bytes: tunnelled(family, &udp, 1) };
    let mut whole =
        case(format!("filter {family:?}: several"), world, ack.bytes(), Expect::Untouched(Verdict::Filtered))
            .then(udp.bytes(), sent);
    whole = whole.check(|rig| {
        assert_eq!((rig.filtered(0), rig.filtered(1), rig.filtered(2)), (2, 0, 1));
    });
    cases.push(whole);
    if family == V4 {
        let part = ack.clone().fragment(0x2010);
        cases.push(hit("a fragment", Filter { fragment: Some(true), ..drop }, &part));
    }
    cases
}
