//! What is not ours goes up untouched; what is ours and broken goes no further.
use crate::{
    frame::{ACK, Frame, OWN, ROUTER, SYN, Transport},
    scene::{Case, Expect, Family, V4, V6, case, request, world},
};
use lb_bpf::abi::{Mode, Verdict};

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = any_family();
    for (family, mode) in [(V4, Mode::Ipip), (V6, Mode::Ipip), (V4, Mode::Nat), (V6, Mode::Nat)] {
        cases.extend(family_cases(family, mode));
    }
    cases
}

fn any_family() -> Vec<Case> {
    let eth = |ether_type: [u8; 2], rest: &[u8]| [&OWN[..], &ROUTER, &ether_type, rest].concat();
    let pass = |text: &str, packet: Vec<u8>| {
        case(format!("other: {text}"), world(V4, Mode::Ipip), packet, Expect::Untouched(Verdict::NotOurs))
    };
    let syn = request(V4, Transport::Tcp(SYN)).bytes();
    let mut other = request(V4, Transport::Tcp(SYN));
    other.dst.set_port(81);
    vec![
        pass("Ethernet header alone", eth([0x08, 0x00], &[])),
        pass("IPv6 without a byte", eth([0x86, 0xdd], &[])),
        pass("ARP", eth([0x08, 0x06], &[0; 28])),
        pass("802.1Q, not to a VIP", eth([0x81, 0x00], &[&[0, 5, 8, 0], &other.bytes()[14..]].concat())),
        pass("802.1Q without a packet", eth([0x81, 0x00], &[0, 5])),
        pass(
            "three VLAN tags",
            eth([0x88, 0xa8], &[&[0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0], &syn[14..]].concat()),
        ),
        pass("802.3 length", eth([0x00, 0x2e], &[0; 46])),
        pass("IPv6 in an IPv4 frame", eth([0x08, 0x00], &request(V6, Transport::Udp).ip())),
        pass("IPv4 in an IPv6 frame", eth([0x86, 0xdd], &request(V4, Transport::Udp).ip())),
    ]
}

fn family_cases(family: Family, mode: Mode) -> Vec<Case> {
    let base = world(family, mode);
    let name = |text: &str| format!("other {family:?} {mode:?}: {text}");
    let untouched = |text: &str, packet: Vec<u8>, verdict| {
        case(name(text), base.clone(), packet, Expect::Untouched(verdict))
    };
    let patched = |text: &str, frame: &Frame, offset: usize, bytes: &[u8], verdict| {
        let mut packet = frame.bytes();
        packet[14 + offset..][..bytes.len()].copy_from_slice(bytes);
        untouched(text, packet, verdict)
    };
    let cut = |text: &str, frame: &Frame, length: usize, verdict| {
        untouched(text, frame.bytes()[..14 + family.header() + length].to_vec(), verdict)
    };
    let (tcp, udp) = (request(family, Transport::Tcp(ACK)), request(family, Transport::Udp));
    let mut other_port = tcp.clone();
    other_port.dst.set_port(81);
    let mut other_address = tcp.clone();
    other_address.dst.set_ip(family.backend(4));
    let (length_at, proto_at) = if family == V4 { (2, 9) } else { (4, 6) };
    // The length as the header of the family counts it.
    let length = |payload: usize| {
        let total = if family == V4 { payload + 20 } else { payload };
        (total as u16).to_be_bytes()
    };
    let (not_ours, malformed) = (Verdict::NotOurs, Verdict::Malformed);
    let mut cases = vec![
        untouched("another port", other_port.bytes(), not_ours),
        untouched("another address", other_address.bytes(), not_ours),
        patched("ICMP", &tcp, proto_at, &[if family == V4 { 1 } else { 58 }], not_ours),
        patched("SCTP", &tcp, proto_at, &[132], not_ours),
        patched("no version", &tcp, 0, &[0x05], not_ours),
        cut("no byte behind the IP header", &tcp, 0, malformed),
        cut("three bytes of ports", &tcp, 3, malformed),
        cut("TCP cut within the header", &tcp, 19, malformed),
        cut("UDP cut within the header", &udp, 7, malformed),
        cut("TCP shorter than its length", &tcp, 20 + 18, malformed),
        cut("UDP shorter than its length", &udp, 8 + 18, malformed),
        patched("length without a whole TCP header", &tcp, length_at, &length(19), malformed),
        patched("length without a whole UDP header", &udp, length_at, &length(7), malformed),
        patched("length 0", &tcp, length_at, &[0, 0], malformed),
        patched("greatest length", &tcp, length_at, &[0xff, 0xff], malformed),
    ];
    if family == V4 {
        cases.extend([
            untouched(
                "later fragment, first not seen",
                tcp.clone().fragment(0x2010).bytes(),
                Verdict::Fragment,
            ),
            untouched(
                "last fragment, first not seen",
                tcp.clone().fragment(0x0010).bytes(),
                Verdict::Fragment,
            ),
            untouched("later fragment of another", other_address.clone().fragment(0x2010).bytes(), not_ours),
            untouched("first fragment of another", other_port.clone().fragment(0x2000).bytes(), not_ours),
            patched("header length 4 words", &tcp, 0, &[0x44], not_ours),
            patched("header longer than the packet", &tcp.clone().payload([]), 0, &[0x4f], malformed),
        ]);
    } else {
        cases.extend([
            patched("hop-by-hop options longer than the packet", &tcp, proto_at, &[0], Verdict::HeaderChain),
            patched("the same not to a VIP", &other_address, proto_at, &[0], not_ours),
            patched("later fragment of another protocol", &tcp, proto_at, &[44], Verdict::Fragment),
        ]);
    }
    cases
}
