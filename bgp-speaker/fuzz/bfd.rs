//! BFD: the parser of control packets (parse → encode → parse), and a session that is told any of them at any time.
//! The octets are records of a length, a pause in tens of milliseconds, and a datagram.
#![no_main]
use bgp_speaker::{
    bfd::{Datagram, Destination, Engine, HOP_LIMIT, Hops, Output, packet::Packet},
    config::Bfd,
};
use libfuzzer_sys::fuzz_target;
use std::time::Duration;

const FAST: Bfd = Bfd { min_tx_millis: 50, min_rx_millis: 50, multiplier: 3 };

fuzz_target!(|data: &[u8]| {
    if let Ok(packet) = Packet::parse(data) {
        assert_eq!(Packet::parse(&packet.encode()), Ok(packet));
    }
    let from = Destination { address: [10, 0, 0, 1].into(), scope: 0, hops: Hops::Single };
    let (mut engine, mut now) = (Engine::new(1), Duration::from_secs(10));
    engine.set(&[(from, FAST)].into(), now);
    let mut rest = data;
    while let [length, pause, more @ ..] = rest {
        let (bytes, after) = more.split_at(more.len().min(usize::from(*length)));
        rest = after;
        let end = now + Duration::from_millis(10 * u64::from(*pause));
        let mut outputs = Vec::new();
        while let Some(due) = engine.next_deadline().filter(|due| *due <= end) {
            // A peer that wants packets faster than before: one may be due already.
            now = now.max(due);
            engine.tick(now, &mut outputs);
            assert!(engine.next_deadline().is_none_or(|due| due > now));
        }
        now = end;
        // Discarded is an answer.
        outputs
            .extend(engine.receive(Datagram { from, hop_limit: HOP_LIMIT, bytes }, now).unwrap_or_default());
        for output in outputs {
            if let Output::Send { bytes, .. } = output {
                assert!(Packet::parse(&bytes).is_ok());
            }
        }
        engine.status(from, now).expect("the session stays");
    }
});
