//! Packets that cannot be, and the shape of the JSON; that a trace agrees with the kernel is proved in
//! `tests/packets/trace.rs`.
use super::*;
use crate::maps::{Sizes, fake::FakeMaps};

fn packet(protocol: Protocol, source: &str, destination: &str, syn: bool) -> Result<Packet, BadPacket> {
    Packet::new(protocol, source.parse().unwrap(), destination.parse().unwrap(), syn)
}

#[test]
fn a_packet_has_one_family_and_only_tcp_has_syns() {
    let (v4, v6, mapped) = ("192.0.2.1:1", "[2001:db8::1]:1", "[::ffff:192.0.2.1]:1");
    assert!(packet(Protocol::Tcp, v4, v4, true).is_ok());
    assert!(packet(Protocol::Udp, v6, v6, false).is_ok());
    for (source, destination) in [(v4, v6), (v6, v4), (mapped, v4), (v6, mapped), (mapped, mapped)] {
        assert!(packet(Protocol::Tcp, source, destination, false).is_err(), "{source} {destination}");
    }
    assert_eq!(packet(Protocol::Udp, v4, v4, true), Err(BadPacket::SynOfUdp));
}

#[test]
fn a_trace_survives_json() {
    let sizes = Sizes { vips: 1, slots: 1, backends: 1, flows: 1, decap: 1, ..Sizes::DEFAULT };
    let packet = packet(Protocol::Tcp, "192.0.2.1:1", "192.0.2.2:80", true).unwrap();
    let trace = trace(&FakeMaps::new(sizes), |_| None, &packet, 0).unwrap();
    assert!(!trace.is_sent());
    let text = serde_json::to_string(&trace).unwrap();
    assert!(text.contains(r#""verdict":"not_ours""#), "{text}");
    assert_eq!(serde_json::from_str::<Trace>(&text).unwrap(), trace);
    assert!(serde_json::from_str::<Trace>(&text.replace("not_ours", "nonsense")).is_err());
}
