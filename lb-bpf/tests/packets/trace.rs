//! What a trace says, against what the kernel does: thousands of random packets through random maps. Every trace is
//! made from the maps as they are before its packet; then the packet runs, and verdict, backend, addresses, next hop and
//! interface must be those that were said.
use crate::{
    frame::{ACK, FIN, Frame, RST, SYN, Transport},
    rig::{DROP, ELSEWHERE, HANDED_OVER, INGRESS, PASS, Rig, SLOTS as ROOM, TX, World},
    scene::{Family, V4, V6, backend, flow_key, reply, request},
};
use lb_bpf::{
    Sizes,
    abi::{
        Action, Addr, Backend, Config, FlowEntry, FlowKey, Mode, RangeKey, ReverseEntry, Slot, Tags, Verdict,
        Vip, VipKey, outer_header_sum, scope, slot_hash, slot_of,
    },
    filter::{Filter, FilterAction},
    maps::fake::FakeMaps,
    service::Protocol,
    trace::{Packet, Sent, SlotState, Trace, trace},
};
use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

/// Random worlds, and packets through each of them.
const WORLDS: u64 = 500;
const PACKETS: usize = 16;
/// Backends of each family: from 1 on for IPv4, from 8 on for IPv6.
const OF_FAMILY: u32 = 7;
/// Slots of each of the four tables.
const TABLE: u32 = 15;

/// Random numbers that are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, end: u32) -> u32 {
        (self.roll() % u64::from(end)) as u32
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.below(count) == 0
    }

    fn of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u32) as usize]
    }
}

/// Seconds of the clock that the program stamps flows with.
pub(crate) fn now() -> u32 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the struct is valid for the call, which cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut time) };
    time.tv_sec as u32
}

/// The index of `backends` of a family, or 0.
fn some_backend(dice: &mut Dice, family: Family) -> u32 {
    if dice.one_in(12) {
        return 0;
    }
    dice.below(OF_FAMILY) + if family == V4 { 1 } else { 1 + OF_FAMILY }
}

/// Two services of each family, 1 and 2 of IPv4, 3 and 4 of IPv6; 5 has an empty table.
fn service(family: Family, number: u32) -> u32 {
    number + if family == V4 { 1 } else { 3 }
}

/// The service of this host's own backends, which both services of a family have in common.
fn local(family: Family) -> u32 {
    if family == V4 { 6 } else { 7 }
}

/// Where its table begins: behind the four others.
fn own_base(family: Family) -> u32 {
    if family == V4 { 4 * TABLE } else { 5 * TABLE }
}

/// The VIPs of a family: of its two services, of the one without a backend, and one that there is not.
fn vip(family: Family, number: u32) -> SocketAddr {
    let mut vip = family.vip();
    vip.set_port(80 + number as u16);
    vip
}

/// A packet from one of a few clients, so that some are of one flow.
fn some_request(dice: &mut Dice, family: Family) -> Frame {
    let transport = match dice.below(8) {
        0..=2 => Transport::Tcp(SYN),
        3..=4 => Transport::Tcp(ACK),
        5 => Transport::Tcp(dice.of(&[FIN | ACK, RST, SYN | ACK])),
        _ => Transport::Udp,
    };
    let mut frame = request(family, transport);
    frame.src.set_port(40_000 + dice.below(12) as u16);
    frame.dst = vip(family, if dice.one_in(4) { 2 + dice.below(2) } else { dice.below(2) });
    frame
}

fn some_world(dice: &mut Dice, max: u32, now: u32) -> World {
    let mut world = World::default();
    let learning = dice.one_in(2);
    for (table, (family, number)) in (0..).zip([(V4, 0), (V4, 1), (V6, 0), (V6, 1)]) {
        let tcp_flags = dice.of(&[0, 0, Vip::AFFINITY, Vip::RANGES, Vip::PASS, Vip::RANGES | Vip::PASS]);
        // The client is one: let in, or not, or nothing is said.
        let bits = if family == V4 { 96 + 24 } else { 48 };
        let client = Addr::from(match family {
            V4 => "198.51.100.0".parse::<IpAddr>().unwrap(),
            V6 => "2001:db8:7::".parse().unwrap(),
        });
        let key = RangeKey { bits: 32 + bits, service: service(family, number), addr: client };
        world.ranges.extend(dice.of(&[Some(1), Some(1), Some(0), None]).map(|allowed| (key, allowed)));
        for proto in [6, 17] {
            let vip = |number| {
                let vip = vip(family, number);
                VipKey { addr: vip.ip().into(), port: vip.port().to_be(), proto, scope: 0 }
            };
            let flags = if proto == 6 { tcp_flags } else { 0 };
            let entry = Vip { service: service(family, number), base: table * TABLE, size: TABLE, flags };
            world.vips.push((vip(number), entry));
            // Backends of this host itself: mostly there is a table of theirs.
            if !dice.one_in(4) {
                let key = VipKey { scope: scope::LOCAL, ..vip(number) };
                let size = dice.of(&[TABLE, TABLE, TABLE, 0]);
                world.vips.push((key, Vip { service: local(family), base: own_base(family), size, flags }));
            }
            if number == 0 {
                world.vips.push((vip(2), Vip { service: 5, base: 0, size: 0, flags: 0 }));
            }
        }
    }
    for family in [V4, V4, V6, V6, V4, V6] {
        for _ in 0..TABLE {
            let current = some_backend(dice, family);
            let previous = match dice.below(3) {
                0 => 0,
                _ => some_backend(dice, family),
            };
            let settled = if previous != 0 && (!learning || dice.one_in(3)) { Slot::SETTLED } else { 0 };
            world.slots.push(Slot { current, previous: previous | settled });
        }
    }
    for index in 1..=2 * OF_FAMILY {
        let family = if index <= OF_FAMILY { V4 } else { V6 };
        let mode = dice.of(&[
            Mode::Ipip,
            Mode::Nat,
            Mode::Nat,
            Mode::Gue,
            Mode::L2,
            Mode::Dnat,
            Mode::Dnat,
            Mode::Here,
            Mode::Here,
        ]);
        let mut entry = Backend {
            service: match dice.below(3) {
                2 => local(family),
                number => service(family, number),
            },
            flags: if dice.one_in(4) { Backend::DOWN } else { 0 },
            ifindex: dice.of(&[INGRESS, INGRESS, ELSEWHERE, ELSEWHERE, 0]),
            mtu: dice.of(&[0, 1500]),
            ..backend(family, mode, index)
        };
        if mode == Mode::Ipip && dice.one_in(3) {
            // Sources from a prefix.
            entry.source.0[3] &= 0xffff_0000_u32.to_be();
            entry.flags |= dice.of(&[1, 8, 16]) << Backend::VARYING_SHIFT;
            if family == V4 {
                entry.header_sum = outer_header_sum(&entry.source, &entry.addr);
            }
        }
        world.backends.push(if dice.one_in(8) { Backend { mode: 0, ..entry } } else { entry });
    }
    let first = 20_000;
    world.config = match dice.below(8) {
        0 => Config::default(),
        1 => Config { nat_port_first: first, nat_port_last: first + 3, ..Config::default() },
        _ => Config {
            flags: dice.of(&[Config::NAT, Config::NAT | Config::DNAT, Config::DNAT]),
            nat_port_first: first,
            nat_port_last: first + dice.below(6) as u16,
            ..Config::default()
        },
    };
    world.filters = (0..dice.below(4)).map(|_| some_filter(dice)).collect();
    let (mut flows, mut replies) = (BTreeMap::new(), BTreeMap::new());
    for _ in 0..dice.below(max + 1) {
        let family = dice.of(&[V4, V6]);
        let of = dice.of(&[scope::ALL, scope::LOCAL]);
        let key = FlowKey { scope: of, ..flow_key(&some_request(dice, family)) };
        let index = some_backend(dice, family);
        let port = (first + dice.below(4) as u16).to_be();
        let entry = FlowEntry {
            backend: index,
            slot: 0,
            seen: dice.of(&[now, now - 7]),
            nat_port: if dice.one_in(2) { port } else { 0 },
            state: dice.below(16) as u16,
        };
        if index != 0 && !dice.one_in(3) {
            let owner = if dice.one_in(3) { flow_key(&some_request(dice, family)) } else { key };
            let way_back = ReverseEntry {
                client: owner.src,
                vip: owner.dst,
                client_port: owner.src_port,
                vip_port: owner.dst_port,
                ifindex: dice.of(&[INGRESS, INGRESS, ELSEWHERE, ELSEWHERE, 0, ReverseEntry::ROUTED]),
                seen: now - 3,
                next_hop: [2, 0, 0, 0, 3, 1],
                source_mac: [2, 0, 0, 0, 3, 2],
                tags: Tags::NONE,
            };
            let target = &world.backends[index as usize - 1];
            replies.insert(key.answer(target, port), way_back);
        }
        if !dice.one_in(4) {
            flows.insert(key, entry);
        }
    }
    world.flows = flows.into_iter().collect();
    world.reverse = replies.into_iter().collect();
    world
}

/// A rule that matches little: the length and the bytes of the packets are not known to a trace.
fn some_filter(dice: &mut Dice) -> lb_bpf::abi::Filter {
    let action = dice.of(&[FilterAction::Drop, FilterAction::Drop, FilterAction::Count]);
    let port = 40_000 + dice.below(12) as u16;
    let rule = Filter { source_ports: Some((port, port)), ..Filter::new(action) };
    let rule = match dice.below(5) {
        0 => Filter { protocol: Some(17), ..rule },
        1 => Filter { destination: Some("203.0.113.0/24".parse().unwrap()), ..rule },
        2 => Filter { tcp_flags: Some((SYN | ACK, SYN)), ..rule },
        3 => Filter { fragment: Some(true), ..rule },
        _ => rule,
    };
    if dice.one_in(4) { lb_bpf::abi::Filter::default() } else { rule.compile() }
}

/// The same maps for the trace.
fn mirror(world: &World, max: u32) -> FakeMaps {
    let mut maps =
        FakeMaps::new(Sizes { vips: 32, slots: ROOM, backends: 32, flows: max, decap: 16, ..Sizes::DEFAULT });
    maps.vips = world.vips.iter().copied().collect();
    maps.slots[..world.slots.len()].copy_from_slice(&world.slots);
    maps.backends[1..=world.backends.len()].copy_from_slice(&world.backends);
    maps.flows = world.flows.iter().copied().collect();
    maps.replies = world.reverse.iter().copied().collect();
    maps.config = Config { filters: world.filters.len() as u32, ..world.config };
    maps.ranges = world.ranges.iter().map(|&(key, allowed)| (key, allowed != 0)).collect();
    maps.filters[..world.filters.len()].copy_from_slice(&world.filters);
    maps
}

/// A packet of a client, or of a backend to a port that is somebody's or nobody's.
fn some_packet(dice: &mut Dice, maps: &FakeMaps) -> Frame {
    let family = dice.of(&[V4, V6]);
    if !dice.one_in(6) {
        return some_request(dice, family);
    }
    let known: Vec<&FlowKey> = maps.replies.keys().filter(|key| key.src.is_v4() == (family == V4)).collect();
    let transport = dice.of(&[Transport::Tcp(SYN | ACK), Transport::Tcp(ACK), Transport::Udp]);
    if known.is_empty() || dice.one_in(4) {
        return reply(family, transport, 1, 20_000);
    }
    let key = dice.of(&known);
    let transport = if key.proto == 6 { Transport::Tcp(ACK) } else { Transport::Udp };
    let at = |addr, port| SocketAddr::new(IpAddr::from(addr), u16::from_be(port));
    Frame::new(transport, at(key.src, key.src_port), at(key.dst, key.dst_port))
}

fn packet_of(frame: &Frame) -> Packet {
    let (protocol, syn) = match frame.transport {
        Transport::Tcp(flags) => (Protocol::Tcp, flags & (SYN | ACK) == SYN),
        Transport::Udp | Transport::UdpWithoutChecksum => (Protocol::Udp, false),
    };
    Packet::new(protocol, frame.src, frame.dst, syn).unwrap()
}

/// Source and destination of the first IP header, and the ports behind it.
fn addresses(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let ip = |at: usize| -> IpAddr {
        if bytes[12..14] == [0x08, 0x00] {
            Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).unwrap()).into()
        } else {
            Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).unwrap()).into()
        }
    };
    let (source, destination, ports) =
        if bytes[12..14] == [0x08, 0x00] { (ip(26), ip(30), 34) } else { (ip(22), ip(38), 54) };
    let port = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    (SocketAddr::new(source, port(ports)), SocketAddr::new(destination, port(ports + 2)))
}

fn mac(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Holds a trace against what became of its packet. `counted` is the verdict, or the backend that the packet was
/// counted with.
fn compare(said: &Trace, frame: &Frame, result: &crate::rig::Result, counted: Option<Counted>, why: &str) {
    let why = format!("{why}: {said:#?}");
    match counted {
        None => assert_eq!(said.verdict, Verdict::NotOurs, "{why}"),
        Some(Counted::Verdict(verdict)) => assert_eq!(said.verdict, verdict, "{why}"),
        Some(Counted::Backend(index, mode)) => {
            let verdict = match Mode::of(mode).unwrap() {
                Mode::Nat | Mode::Dnat | Mode::Here => Verdict::Translated,
                Mode::Ipip | Mode::Gue => Verdict::Encapsulated,
                Mode::L2 => Verdict::Forwarded,
            };
            assert_eq!((said.verdict, said.backend.as_ref().unwrap().index), (verdict, index), "{why}");
        }
    }
    assert!(!said.why.is_empty() && !said.why.contains('\n'), "{why}");
    if said.verdict == Verdict::ReturnedHere {
        let Some(Sent::Translated { source, destination }) = said.sent else { panic!("{why}") };
        assert_eq!((result.action, addresses(&result.bytes)), (PASS, (source, destination)), "{why}");
        return;
    }
    let Some(sent) = said.sent else {
        assert!(!said.is_sent() && said.next_hop.is_none(), "{why}");
        let action = if said.verdict.action() == Action::Drop { DROP } else { PASS };
        assert_eq!((result.action, &result.bytes), (action, &frame.bytes()), "{why}");
        return;
    };
    if said.host.is_some() {
        // The stack routes it.
        let Sent::Translated { source, destination } = sent else { panic!("{why}") };
        assert_eq!((result.action, addresses(&result.bytes)), (PASS, (source, destination)), "{why}");
        assert_eq!(result.bytes[..12], frame.bytes()[..12], "{why}");
        return;
    }
    let hop = said.next_hop.as_ref().unwrap();
    let action = if hop.interface_index == INGRESS { TX } else { HANDED_OVER + hop.interface_index };
    assert!(said.is_sent(), "{why}");
    assert_eq!(result.action, action, "{why}");
    assert_eq!(
        (mac(&result.bytes[..6]), mac(&result.bytes[6..12])),
        (hop.mac.clone(), hop.source_mac.clone()),
        "{why}"
    );
    let (from, to) = addresses(&result.bytes);
    match sent {
        Sent::Encapsulated { source, destination } => {
            assert_eq!((from.ip(), to.ip()), (source, destination), "{why}");
        }
        Sent::InUdp { source, destination } | Sent::Translated { source, destination } => {
            assert_eq!((from, to), (source, destination), "{why}");
        }
        Sent::Forwarded { .. } => assert_eq!((from, to), (frame.src, frame.dst), "{why}"),
    }
}

enum Counted {
    Verdict(Verdict),
    Backend(u32, u8),
}

/// What the last packet was counted as.
fn counted(rig: &Rig, before: &crate::rig::Counted, maps: &FakeMaps, said: &Trace) -> Option<Counted> {
    let after = rig.counted();
    let verdict = after.0.iter().find(|entry| !before.0.contains(entry));
    let mut backends: Vec<_> = after.1.iter().filter(|entry| !before.1.contains(entry)).collect();
    if let Some(host) = &said.host
        && said.is_sent()
    {
        let count = backends.len();
        backends.retain(|(index, _)| *index != host.index);
        assert!(
            backends.len() + 1 == count,
            "counted with this host, too: {:?} {:?} {said:#?}",
            before,
            after
        );
    }
    assert!(backends.len() <= 1, "a packet is counted once");
    let backend = backends.first();
    assert!(verdict.is_none() || backend.is_none(), "a packet is counted once");
    match (verdict, backend) {
        (Some((verdict, _)), _) => Some(Counted::Verdict(*verdict)),
        (None, Some((index, _))) => Some(Counted::Backend(*index, maps.backends[*index as usize].mode)),
        (None, None) => None,
    }
}

#[test]
fn a_trace_says_what_the_kernel_does() {
    let mut seen = BTreeMap::<String, u32>::new();
    let mut skipped = 0;
    for max in [48, 4] {
        let mut rig = Rig::load(max, max);
        for seed in 0..WORLDS {
            let dice = &mut Dice(seed << 8 | u64::from(max));
            let world = some_world(dice, max.min(24), now());
            rig.fill(&world);
            let mut maps = mirror(&world, max);
            for number in 0..PACKETS {
                let frame = some_packet(dice, &maps);
                let (before, start) = (rig.counted(), now());
                let said = trace(&maps, |_| None, &packet_of(&frame), start).unwrap();
                let result = rig.run(&frame.bytes());
                if now() == start {
                    let why = format!("tables of {max}, seed {seed}, packet {number}");
                    compare(&said, &frame, &result, counted(&rig, &before, &maps, &said), &why);
                    let key = flow_key(&frame);
                    if let Some(vip) = said.vip.as_ref().filter(|vip| vip.table_size > 0) {
                        let of = if vip.service_id >= local(V4) { scope::LOCAL } else { scope::ALL };
                        let key = VipKey { addr: key.dst, port: key.dst_port, proto: key.proto, scope: of };
                        let hash = slot_hash(&flow_key(&frame), maps.vips[&key].flags & Vip::AFFINITY != 0);
                        assert_eq!(said.hash, Some(hash), "{why}");
                        if let Some(slot) = said.slot {
                            assert_eq!(slot.number, slot_of(hash, vip.table_size), "{why}");
                        }
                    }
                    *seen.entry(said.verdict.label().to_owned()).or_default() += 1;
                    if said.host.is_some() {
                        *seen.entry(format!("here: {}", said.verdict.label())).or_default() += 1;
                    }
                    if let Some(slot) = said.slot {
                        *seen.entry(format!("{:?}", slot.state)).or_default() += 1;
                    }
                    *seen.entry(said.why).or_default() += 1;
                } else {
                    skipped += 1; // the second ended in between: an entry may be fresh for one of the two
                }
                maps.flows = rig.flows().into_iter().collect();
                maps.replies = rig.reverse().into_iter().collect();
            }
        }
    }
    println!("{seen:#?}\nskipped: {skipped}");
    let total = 2 * WORLDS as u32 * PACKETS as u32;
    assert!(skipped * 20 < total, "{skipped} of {total} skipped");
    for what in [
        Verdict::NotOurs,
        Verdict::Encapsulated,
        Verdict::Translated,
        Verdict::Returned,
        Verdict::Unresolved,
        Verdict::NoBackend,
        Verdict::NatPortsExhausted,
        Verdict::FlowTableFull,
        Verdict::Forwarded,
        Verdict::Filtered,
        Verdict::SourceDenied,
        Verdict::NoBackendPassed,
        Verdict::ReturnedHere,
    ] {
        assert!(seen.get(what.label()).is_some_and(|count| *count >= 20), "{what:?}: {seen:#?}");
    }
    for what in [Verdict::Translated, Verdict::NoBackend] {
        let what = format!("here: {}", what.label());
        assert!(seen.get(&what).is_some_and(|count| *count >= 20), "{what}: {seen:#?}");
    }
    for state in [SlotState::Clean, SlotState::Learning, SlotState::Settled] {
        assert!(seen.get(&format!("{state:?}")).is_some_and(|count| *count >= 100), "{state:?}: {seen:#?}");
    }
}
