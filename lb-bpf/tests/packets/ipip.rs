//! IPIP on clean slots: the table alone decides.
use crate::{
    frame::{ACK, FIN, RST, SYN, Transport, Tunnel},
    icmp::time_exceeded,
    rig::World,
    scene::{Case, Expect, Family, V4, V6, case, flow_key, request, tunnel, tunnelled, with_slots, world},
};
use lb_bpf::abi::{Backend, Mode, Slot, Verdict, flow_hash, outer_header_sum};
use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

pub(crate) fn cases() -> Vec<Case> {
    let varying =
        [V4, V6].into_iter().flat_map(|family| [1, 8, 16].map(|bits| varying_sources(family, bits)));
    [V4, V6].into_iter().flat_map(family_cases).chain(varying).collect()
}

/// The outer source is one of a prefix, by the flow.
fn varying_sources(family: Family, bits: u8) -> Case {
    let first: IpAddr = if family == V4 { "198.18.0.0" } else { "2001:db8:5::" }.parse().unwrap();
    let mut world = world(family, Mode::Ipip);
    for backend in &mut world.backends {
        backend.source = first.into();
        backend.flags = bits << Backend::VARYING_SHIFT;
        if family == V4 {
            backend.header_sum = outer_header_sum(&backend.source, &backend.addr);
        }
    }
    let mut sources = BTreeSet::new();
    let mut steps = (1000..1020).map(|port| {
        let mut frame = request(family, Transport::Tcp(ACK));
        frame.src.set_port(port);
        let varying = flow_hash(&flow_key(&frame)) & ((1 << bits) - 1);
        let src = match first {
            IpAddr::V4(first) => Ipv4Addr::from(u32::from(first) | varying).into(),
            IpAddr::V6(first) => Ipv6Addr::from(u128::from(first) | u128::from(varying)).into(),
        };
        sources.insert(src);
        let bytes = frame.tunnelled(&Tunnel { src, ..tunnel(family, &frame, 1) });
        (frame.bytes(), Expect::Sent { backend: 1, new: false, bytes })
    });
    let (packet, expect) = steps.next().unwrap();
    let all = case(format!("IPIP {family:?}: {bits} bits of the source vary"), world.clone(), packet, expect);
    let all = steps.fold(all, |all, (packet, expect)| all.then(packet, expect));
    assert!(sources.len() >= (1 << bits).min(15), "{sources:?}");
    all
}

fn family_cases(family: Family) -> Vec<Case> {
    let base = world(family, Mode::Ipip);
    let name = |text: &str| format!("IPIP {family:?}: {text}");
    let sent = |frame: &crate::frame::Frame, backend, new| Expect::Sent {
        backend,
        new,
        bytes: tunnelled(family, frame, backend),
    };
    let (syn, ack) = (request(family, Transport::Tcp(SYN)), request(family, Transport::Tcp(ACK)));
    let udp = request(family, Transport::Udp);
    let edit = |change: &dyn Fn(&mut World)| {
        let mut world = base.clone();
        change(&mut world);
        world
    };
    let at = |current| with_slots(base.clone(), Slot { current, previous: 0 });
    let untouched = |text: &str, world: World, frame: &crate::frame::Frame, verdict| {
        case(name(text), world, frame.bytes(), Expect::Untouched(verdict))
    };
    let mut cases = vec![
        case(name("SYN, out where it came in"), base.clone(), syn.bytes(), sent(&syn, 1, true)),
        case(name("established, out elsewhere"), at(2), ack.bytes(), sent(&ack, 2, false)),
        case(name("UDP"), base.clone(), udp.bytes(), sent(&udp, 1, false)),
        case(
            name("TTL 1"),
            base.clone(),
            ack.clone().ttl(1).bytes(),
            time_exceeded(family, &ack.clone().ttl(1)),
        ),
        case(
            name("TTL 0"),
            base.clone(),
            ack.clone().ttl(0).bytes(),
            time_exceeded(family, &ack.clone().ttl(0)),
        ),
        untouched(
            "TTL 1, too many answers",
            edit(&|world| world.busy = true),
            &ack.clone().ttl(1),
            Verdict::TtlExpired,
        ),
        untouched(
            "next hop not resolved",
            edit(&|world| world.backends[0].ifindex = 0),
            &syn,
            Verdict::Unresolved,
        ),
        untouched(
            "empty table",
            edit(&|world| world.vips.iter_mut().for_each(|vip| vip.1.size = 0)),
            &syn,
            Verdict::NoBackend,
        ),
        untouched("slot without backend", at(0), &syn, Verdict::NoBackend),
        untouched(
            "slot names a free backend",
            edit(&|world| world.backends[0].mode = 0),
            &syn,
            Verdict::NoBackend,
        ),
        untouched("slot names no backend of the map", at(1000), &syn, Verdict::NoBackend),
        untouched(
            "table beyond the map",
            edit(&|world| world.vips.iter_mut().for_each(|vip| vip.1.base = 60_000)),
            &syn,
            Verdict::NoBackend,
        ),
    ];
    for (text, flags) in [("SYN ACK", SYN | ACK), ("FIN", FIN | ACK), ("RST", RST), ("no flag", 0)] {
        let frame = request(family, Transport::Tcp(flags));
        cases.push(case(name(text), base.clone(), frame.bytes(), sent(&frame, 1, false)));
    }
    let last_hop = ack.clone().ttl(2);
    cases.push(case(name("TTL 2"), base.clone(), last_hop.bytes(), sent(&last_hop, 1, false)));
    // EF with ECT(1): the DSCP is copied, ECN is not.
    let marked = ack.clone().class(46 << 2 | 1);
    cases.push(case(name("DSCP and ECN"), base.clone(), marked.bytes(), sent(&marked, 1, false)));
    let all_bits = ack.clone().class(0xff).ttl(255);
    cases.push(case(
        name("all bits of the class"),
        base.clone(),
        all_bits.bytes(),
        sent(&all_bits, 1, false),
    ));
    let padded = ack.clone().payload([]).padding(6);
    cases.push(case(name("padding stays outside"), base.clone(), padded.bytes(), sent(&padded, 1, false)));
    let no_payload = request(family, Transport::Udp).payload([]);
    cases.push(case(name("UDP without data"), base.clone(), no_payload.bytes(), sent(&no_payload, 1, false)));
    let full = ack.clone().payload(vec![7; 1500 - 2 * family.header() - 20]);
    cases.push(case(name("fills the MTU"), base.clone(), full.bytes(), sent(&full, 1, false)));
    let over = ack.clone().payload(vec![7; 1501 - 2 * family.header() - 20]);
    cases.push(untouched("one byte over the MTU", edit(&|world| world.busy = true), &over, Verdict::TooBig));
    let no_mtu = edit(&|world| world.backends[0].mtu = 0);
    cases.push(case(name("MTU not known"), no_mtu, over.bytes(), sent(&over, 1, false)));
    let key = flow_key(&syn);
    let no_entry = case(name("no flow entry on clean slots"), base.clone(), syn.bytes(), sent(&syn, 1, true))
        .then(ack.bytes(), sent(&ack, 1, false))
        .check(move |rig| assert_eq!(rig.flow(&key), None));
    cases.push(no_entry);
    if family == V4 {
        let options = ack.clone().options(&[1, 1, 1, 0, 7, 4, 4, 0]);
        cases.push(case(name("IPv4 options"), base.clone(), options.bytes(), sent(&options, 1, false)));
        let most = request(family, Transport::Udp).options(&[1; 40]);
        cases.push(case(name("40 bytes of options"), base.clone(), most.bytes(), sent(&most, 1, false)));
    }
    // Every slot leads to its own backend: the hash spreads client ports over all of them.
    let mut spread = base.clone();
    for (index, slot) in spread.slots.iter_mut().enumerate() {
        slot.current = 1 + index as u32 % 4;
    }
    let mut case_of_ports = None;
    for port in 1..=40 {
        let mut frame = ack.clone();
        frame.src.set_port(port);
        let backend = 1 + crate::scene::slot_index(&frame) % 4;
        let expect = sent(&frame, backend, false);
        case_of_ports = Some(match case_of_ports {
            None => case(name("spread over the slots"), spread.clone(), frame.bytes(), expect),
            Some(case) => Case::then(case, frame.bytes(), expect),
        });
    }
    cases.extend(case_of_ports);
    cases
}
