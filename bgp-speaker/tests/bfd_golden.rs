//! BFD control packets that real routers sent, against what they mean and what the encoder makes of that.
use bgp_speaker::bfd::packet::{Diagnostic, Packet, State};

fn packet(state: State, diagnostic: u8, mine: u32, yours: u32, intervals: [u32; 3]) -> Packet {
    let [desired_min_tx, required_min_rx, required_min_echo_rx] = intervals;
    Packet {
        diagnostic: Diagnostic(diagnostic),
        state,
        poll: false,
        r#final: false,
        control_plane_independent: false,
        demand: false,
        multiplier: 3,
        my_discriminator: mine,
        your_discriminator: yours,
        desired_min_tx,
        required_min_rx,
        required_min_echo_rx,
    }
}

/// Each with its source: the router, and what it was configured with.
fn table() -> Vec<(&'static str, &'static str, Packet)> {
    use State::{Down, Init, Up};
    // FRR 8.4.4 bfdd, `neighbor … bfd 3 50 50`; it returns echo packets.
    let (frr, frr_slow) = ([50_000, 50_000, 50_000], [1_000_000, 1_000_000, 50_000]);
    let frr_up = packet(Up, 0, 0xf088_70e4, 0xce4c_6ada, frr);
    // BIRD 2.0.12, `min rx interval 50 ms; min tx interval 50 ms; multiplier 3`.
    let (bird, bird_slow) = ([50_000, 50_000, 0], [1_000_000, 50_000, 0]);
    let bird_up = packet(Up, 0, 0xae67_be9e, 0x7d55_e114, bird);
    vec![
        (
            "FRR: begins",
            "20400318f08870e400000000000f4240000f42400000c350",
            packet(Down, 0, 0xf088_70e4, 0, frr_slow),
        ),
        ("FRR: polls", "20e00318f08870e4ce4c6ada0000c3500000c3500000c350", Packet { poll: true, ..frr_up }),
        (
            "FRR: answers a poll",
            "20d00318f08870e4ce4c6ada0000c3500000c3500000c350",
            Packet { r#final: true, ..frr_up },
        ),
        ("FRR: is up", "20c00318f08870e4ce4c6ada0000c3500000c3500000c350", frr_up),
        (
            "FRR: has heard nothing",
            "214003184fb6e0b4000000000000c3500000c3500000c350",
            packet(Down, 1, 0x4fb6_e0b4, 0, frr),
        ),
        (
            "FRR: hears again",
            "218003184fb6e0b4f859abb9000f4240000f42400000c350",
            packet(Init, 1, 0x4fb6_e0b4, 0xf859_abb9, frr_slow),
        ),
        (
            "BIRD: begins",
            "20400318ae67be9e00000000000f42400000c35000000000",
            packet(Down, 0, 0xae67_be9e, 0, bird_slow),
        ),
        (
            "BIRD: hears",
            "20800318ae67be9e7d55e114000f42400000c35000000000",
            packet(Init, 0, 0xae67_be9e, 0x7d55_e114, bird_slow),
        ),
        ("BIRD: polls", "20e00318ae67be9e7d55e1140000c3500000c35000000000", Packet { poll: true, ..bird_up }),
        ("BIRD: is up", "20c00318ae67be9e7d55e1140000c3500000c35000000000", bird_up),
        (
            "BIRD: answers a poll before it is up",
            "209003182d064ee2d2a03dc1000f42400000c35000000000",
            Packet { r#final: true, ..packet(Init, 0, 0x2d06_4ee2, 0xd2a0_3dc1, bird_slow) },
        ),
        (
            "BIRD: was told that we are down",
            "236003182d064ee2d2a03dc1000f42400000c35000000000",
            Packet { poll: true, ..packet(Down, 3, 0x2d06_4ee2, 0xd2a0_3dc1, bird_slow) },
        ),
        (
            "BIRD: has heard nothing",
            "214003189cc2c88400000000000f42400000c35000000000",
            packet(Down, 1, 0x9cc2_c884, 0, bird_slow),
        ),
    ]
}

#[test]
fn packets_of_routers() {
    for (name, hex, packet) in table() {
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        assert_eq!(Packet::parse(&bytes), Ok(packet), "{name}");
        assert_eq!(packet.encode()[..], bytes, "{name}");
    }
}
