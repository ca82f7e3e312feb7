//! The far end of the tunnels.
use crate::{
    frame::{ACK, Frame, SYN, Transport, Tunnel},
    rig::World,
    scene::{Case, Expect, Family, V4, V6, arriving, case, request},
};
use lb_bpf::abi::{DecapKey, Verdict};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for outer in [V4, V6] {
        for inner in [V4, V6] {
            cases.extend(pair_cases(outer, inner));
        }
    }
    cases
}

fn pair_cases(outer: Family, inner: Family) -> Vec<Case> {
    let name = |text: &str| format!("decap {inner:?} in {outer:?}: {text}");
    let key = DecapKey { local: outer.backend(1).into(), vip: inner.vip().ip().into() };
    let world = World { decap: vec![(key, DecapKey::TO_STACK)], ..World::default() };
    let tunnel = arriving(outer, inner);
    let frame = request(inner, Transport::Tcp(SYN));
    let around = |tunnel: &Tunnel, frame: &Frame| tunnel.around(&frame.ip(), frame.ip().len());
    let stripped = |text: &str, packet: Vec<u8>, frame: &Frame| {
        case(name(text), world.clone(), packet, Expect::Passed(Verdict::Decapsulated, frame.bytes()))
    };
    let untouched = |text: &str, packet: Vec<u8>, verdict| {
        case(name(text), world.clone(), packet, Expect::Untouched(verdict))
    };
    let mut other_vip = frame.clone();
    other_vip.dst.set_port(1);
    let other_port = other_vip.clone();
    other_vip.dst.set_ip(inner.own());
    let ip = frame.ip();
    let mut cases = vec![
        stripped("TCP", around(&tunnel, &frame), &frame),
        stripped("another port of the VIP", around(&tunnel, &other_port), &other_port),
        stripped(
            "UDP, the inner class and TTL stay",
            around(&tunnel, &request(inner, Transport::Udp).class(0xb9).ttl(3)),
            &request(inner, Transport::Udp).class(0xb9).ttl(3),
        ),
        untouched("not to a VIP", around(&tunnel, &other_vip), Verdict::DecapRefused),
        untouched(
            "not to a tunnel end",
            around(&Tunnel { dst: outer.backend(2), ..tunnel.clone() }, &frame),
            Verdict::DecapRefused,
        ),
        untouched("inner header cut short", tunnel.around(&ip[..19], 19), Verdict::DecapRefused),
        untouched(
            "inner packet cut short",
            tunnel.around(&ip[..ip.len() - 1], ip.len() - 1),
            Verdict::Malformed,
        ),
        untouched("outer length beyond the frame", tunnel.around(&ip, ip.len() + 1), Verdict::Malformed),
        untouched(
            "outer length within the inner header",
            tunnel.around(&ip, inner.header() - 1),
            Verdict::Malformed,
        ),
        untouched(
            "neither version inside",
            around(&Tunnel { proto: tunnel.proto ^ 4 ^ 41, ..tunnel.clone() }, &frame),
            Verdict::DecapRefused,
        ),
    ];
    // What lies behind the outer packet stays there.
    let mut padded = around(&tunnel, &frame);
    padded.extend([0; 9]);
    cases.push(stripped("padding", padded, &frame.clone().padding(9)));
    if outer == V4 {
        let options = Tunnel { options: vec![1; 12], ..tunnel.clone() };
        cases.push(stripped("outer options", around(&options, &frame), &frame));
        let first = Tunnel { fragment: 0x2000, ..tunnel.clone() };
        cases.push(untouched("first fragment", around(&first, &frame), Verdict::Fragment));
        let later = Tunnel { fragment: 0x0010, ..tunnel.clone() };
        cases.push(untouched("later fragment", around(&later, &frame), Verdict::NotOurs));
    }
    if inner == V4 {
        let fragment = request(inner, Transport::Tcp(ACK)).fragment(0x2000);
        cases.push(stripped("an inner fragment is the stack's", around(&tunnel, &fragment), &fragment));
    }
    cases
}
