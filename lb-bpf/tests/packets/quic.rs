//! QUIC packets whose connection ID names their server, and those that only look like it. The table always names backend 1,
//! the server ID backend 3.
use crate::{
    frame::{ACK, Frame, Transport},
    parts::parts,
    rig::World,
    scene::{Case, Expect, Family, SERVICE, V4, V6, case, request, tunnelled, with_slots, world},
};
use lb_bpf::abi::{Backend, Mode, Slot, Verdict, Vip, VipKey};
use std::net::IpAddr;

pub(crate) fn cases() -> Vec<Case> {
    let of = |family| headers(family).into_iter().chain(worlds(family)).chain(wholes(family));
    [V4, V6].into_iter().flat_map(of).collect()
}

/// Versions of QUIC.
const V1: [u8; 4] = [0, 0, 0, 1];
const V2: [u8; 4] = [0x6b, 0x33, 0x43, 0xcf];

/// The server ID of the backend at `index`.
fn id(family: Family, index: u32, bytes: usize) -> Vec<u8> {
    match family.backend(index) {
        IpAddr::V4(address) => address.octets()[4 - bytes..].to_vec(),
        IpAddr::V6(address) => address.octets()[16 - bytes..].to_vec(),
    }
}

/// A world where services have server IDs of so many bytes.
fn with_ids(family: Family, bytes: usize) -> World {
    let mut world = world(family, Mode::Ipip);
    for (_, vip) in world.vips.iter_mut().filter(|(key, _)| key.port != 0) {
        vip.flags = (bytes as u32) << 3;
    }
    for index in 1..=4 {
        let number = id(family, index, bytes).into_iter().fold(0, |id, byte| id << 8 | u64::from(byte));
        let key = VipKey::server_id(SERVICE, bytes as u32, number);
        world.vips.push((key, Vip { base: index, ..Vip::default() }));
    }
    world
}

/// A connection ID with this first byte that names the backend at `index`, and 6 bytes more.
fn cid(family: Family, first: u8, index: u32, bytes: usize) -> Vec<u8> {
    [&[first][..], &id(family, index, bytes), b"nonce!"].concat()
}

fn short(cid: &[u8]) -> Vec<u8> {
    [&[0x43], cid, b"protected"].concat()
}

fn long(first: u8, version: [u8; 4], cid: &[u8]) -> Vec<u8> {
    [&[first], &version[..], &[cid.len() as u8], cid, b"\x04self and more"].concat()
}

fn udp(family: Family, payload: &[u8]) -> Frame {
    request(family, Transport::Udp).payload(payload)
}

fn sent(family: Family, frame: &Frame, backend: u32) -> Expect {
    Expect::Sent { backend, new: false, bytes: tunnelled(family, frame, backend) }
}

fn headers(family: Family) -> Vec<Case> {
    let name = |text: &str| format!("QUIC {family:?}: {text}");
    let to = |text: &str, bytes: usize, payload: &[u8], backend: u32| {
        let frame = udp(family, payload);
        let expect = sent(family, &frame, backend);
        case(name(text), with_ids(family, bytes), frame.bytes(), expect)
    };
    let cid3 = |first: u8| cid(family, first, 3, 2);
    let good = cid3(0x0f);
    let mut unknown = good.clone();
    unknown[2] = 99;
    let mut cases = vec![
        to("short header", 2, &short(&good), 3),
        to("short header, another configuration", 2, &short(&cid3(0xdf)), 3),
        to("short header, unroutable", 2, &short(&cid3(0xe0)), 1),
        to("short header, unroutable, all bits", 2, &short(&cid3(0xff)), 1),
        to("short header, unknown ID", 2, &short(&unknown), 1),
        to("short header, no more than the ID", 2, &short(&good)[..4], 3),
        to("short header, cut in the ID", 2, &short(&good)[..3], 1),
        to("short header, cut before the ID", 2, &short(&good)[..2], 1),
        to("short header, nothing else", 2, &short(&good)[..1], 1),
        to("no payload", 2, &[], 1),
        to("Initial of version 1", 2, &long(0xc3, V1, &good), 1),
        to("0-RTT of version 1", 2, &long(0xd3, V1, &good), 1),
        to("Handshake of version 1", 2, &long(0xe3, V1, &good), 3),
        to("Retry of version 1", 2, &long(0xf3, V1, &good), 3),
        to("Initial of version 2", 2, &long(0xd3, V2, &good), 1),
        to("0-RTT of version 2", 2, &long(0xe3, V2, &good), 1),
        to("Handshake of version 2", 2, &long(0xf3, V2, &good), 3),
        to("Retry of version 2", 2, &long(0xc3, V2, &good), 3),
        to("unknown version", 2, &long(0xc3, *b"test", &good), 3),
        to("Version Negotiation", 2, &long(0xe3, [0; 4], &good), 1),
        to("Handshake, unknown ID", 2, &long(0xe3, V1, &unknown), 1),
        to("Handshake, unroutable", 2, &long(0xe3, V1, &cid3(0xe0)), 1),
        to("Handshake, no connection ID", 2, &long(0xe3, V1, &[]), 1),
        to("Handshake, connection ID shorter than the ID", 2, &long(0xe3, V1, &good[..2]), 1),
        to("Handshake, connection ID no longer than the ID", 2, &long(0xe3, V1, &good[..3]), 3),
        to("Handshake, cut in the ID", 2, &long(0xe3, V1, &good)[..8], 1),
        to("Handshake, cut in the version", 2, &long(0xe3, V1, &good)[..3], 1),
    ];
    let lengths = if family == V4 { 1..=4 } else { 1..=8 };
    for bytes in lengths {
        for index in 1..=4 {
            let payload = short(&cid(family, 0x4f, index, bytes));
            cases.push(to(&format!("{bytes} bytes, backend {index}"), bytes, &payload, index));
        }
    }
    cases
}

fn worlds(family: Family) -> Vec<Case> {
    let frame = udp(family, &short(&cid(family, 0, 3, 2)));
    let ids = with_ids(family, 2);
    let to = |text: &str, change: &dyn Fn(&mut World), expect: Expect| {
        let mut world = ids.clone();
        change(&mut world);
        case(format!("QUIC {family:?}: {text}"), world, frame.bytes(), expect).check(|rig| {
            assert_eq!(rig.flows(), [], "no entry");
        })
    };
    let (table, named) = (|| sent(family, &frame, 1), || sent(family, &frame, 3));
    let unresolved = Expect::Untouched(Verdict::Unresolved);
    vec![
        to("nobody asked", &|world| set_flags(world, 0), table()),
        to("IDs of another length", &|world| set_flags(world, 3 << 3), table()),
        to("the server is down", &|world| world.backends[2].flags = Backend::DOWN, table()),
        to("the server is gone", &|world| world.backends[2].mode = 0, table()),
        to("its index is another service's now", &|world| world.backends[2].service = 4, table()),
        to("its packets would be translated", &|world| world.backends[2].mode = Mode::Nat as u8, table()),
        to("its next hop is not known", &|world| world.backends[2].ifindex = 0, unresolved),
        to("an index beyond the end", &|world| world.vips[5].1.base = 1000, table()),
        to("the slot learns", &|world| world.slots.fill(Slot { current: 1, previous: 2 }), named()),
        to("the slot has learned", &|world| world.slots.fill(settled()), named()),
        to("the slot is nobody's", &|world| world.slots.fill(Slot::default()), named()),
    ]
}

const fn settled() -> Slot {
    Slot { current: 1, previous: 2 | Slot::SETTLED }
}

fn set_flags(world: &mut World, flags: u32) {
    for (_, vip) in world.vips.iter_mut().filter(|(key, _)| key.port != 0) {
        vip.flags = flags;
    }
}

/// From wherever the client sends, in whatever the packet comes.
fn wholes(family: Family) -> Vec<Case> {
    let name = |text: &str| format!("QUIC {family:?}: {text}");
    let ids = with_ids(family, 2);
    let payload = short(&cid(family, 0, 3, 2));
    let frame = udp(family, &payload);
    let mut moving = case(name("the client moves"), ids.clone(), frame.bytes(), sent(family, &frame, 3));
    for port in 1..30 {
        let mut frame = frame.clone();
        frame.src.set_port(port);
        moving = moving.then(frame.bytes(), sent(family, &frame, 3));
    }
    let tcp = request(family, Transport::Tcp(ACK)).payload(&payload[..]);
    // What lies behind the datagram is not of it.
    let padded = udp(family, &payload[..1]).padding(20);
    let mut padding = with_ids(family, 2);
    padding.vips[5].0 = VipKey::server_id(SERVICE, 2, 0);
    let large = udp(family, &[&payload[..], &[7; 100]].concat());
    let inner = parts(family, &large.clone().ttl(large.ttl - 1), 64);
    let tunnel = crate::scene::tunnel(family, &large, 1);
    let [first_out, last_out] = inner.map(|part| tunnel.around(&part[14..], part.len() - 14));
    let [first, last] = parts(family, &large, 64);
    let part = |bytes| Expect::Sent { backend: 1, new: false, bytes };
    let dirty = with_slots(ids.clone(), settled());
    let plain = udp(family, b"\x43 is not what it looks like");
    let tracked = Expect::Sent { backend: 1, new: true, bytes: tunnelled(family, &plain, 1) };
    vec![
        moving,
        case(name("TCP"), ids.clone(), tcp.bytes(), sent(family, &tcp, 1)),
        case(name("padding"), padding, padded.bytes(), sent(family, &padded, 1)),
        case(name("fragments stay together"), ids, first, part(first_out)).then(last, part(last_out)),
        case(name("not QUIC, dirty slot"), dirty, plain.bytes(), tracked)
            .check(|rig| assert_eq!(rig.flows().len(), 1)),
    ]
}
