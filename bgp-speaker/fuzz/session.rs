//! A whole session's input: a peer that says anything at any time, while another one listens. The octets are records of
//! a kind, a length and so many octets: raw octets of the stream, a message of one type, a pause, or the end of the
//! connection and another one.
#![no_main]
use bgp_speaker::{
    ConnectionId, Endpoints,
    config::{Asn, Family, Global, PeerAsn, PeerConfig},
    speaker::{Input, Output, Speaker},
    wire::{Capability, Context, MAX_EXTENDED_LENGTH, Message, Open, frame},
};
use libfuzzer_sys::fuzz_target;
use std::{net::SocketAddr, time::Duration};

/// The one that says anything, and the one that listens.
const PEERS: [u8; 2] = [1, 2];

fuzz_target!(|data: &[u8]| {
    let mut lab = Lab::new();
    let mut rest = data;
    while let [kind, length, more @ ..] = rest {
        let (bytes, after) = more.split_at(more.len().min(usize::from(*length)));
        rest = after;
        match kind % 8 {
            0 => lab.receive(PEERS[0], bytes),
            kind @ 1..=5 => lab.receive(PEERS[0], &message(kind, bytes)),
            6 => lab.wait(Duration::from_millis(200 * u64::from(*length))),
            _ => {
                lab.close(PEERS[0]);
                lab.accept(PEERS[0]);
            }
        }
    }
    lab.close(PEERS[0]);
    // Whatever was kept of it is forgotten in time.
    lab.wait(Duration::from_secs(5000));
    assert!(lab.speaker.routes().is_empty(), "routes of a peer that is gone");
});

struct Lab {
    speaker: Speaker,
    now: Duration,
    /// By peer; none: it was closed.
    connections: [Option<ConnectionId>; PEERS.len()],
}

impl Lab {
    fn new() -> Self {
        let mut lab = Lab { speaker: Speaker::new(1), now: Duration::from_secs(10), connections: [None; 2] };
        let global = Global { asn: Asn(65000), router_id: [10, 0, 0, 9].into(), listen: [].into() };
        lab.speaker.set_global(global, lab.now).expect("valid");
        let peers = PEERS.map(|host| PeerConfig {
            accept: vec!["0.0.0.0/0".parse().expect("valid"), "::/0".parse().expect("valid")],
            export_learned: true,
            passive: true,
            families: Family::ALL.into(),
            max_prefixes: Some(1000),
            ..PeerConfig::new([10, 0, 0, host].into(), PeerAsn::Is(Asn(65000 + u32::from(host))))
        });
        let outputs = lab.speaker.set_peers(peers.into(), lab.now).expect("valid");
        lab.perform(outputs);
        for host in PEERS {
            lab.accept(host);
            lab.establish(host);
        }
        lab
    }

    fn accept(&mut self, host: u8) {
        let connection = self.speaker.accept_id();
        self.connections[usize::from(host) - 1] = Some(connection);
        let end = |host: u8| SocketAddr::from(([10, 0, 0, host], 179));
        let next_hops = [
            (Family::Ipv4Unicast, std::net::IpAddr::from([10, 0, 0, 9]).into()),
            (Family::Ipv6Unicast, "2001:db8::9".parse::<std::net::IpAddr>().expect("valid").into()),
        ];
        let endpoints = Endpoints { local: end(9), remote: end(host), next_hops: next_hops.into() };
        self.input(Input::Accepted { connection, endpoints });
    }

    fn establish(&mut self, host: u8) {
        let asn = Asn(65000 + u32::from(host));
        let families = Family::ALL.map(|family| Capability::MultiProtocol(family.into()));
        let capabilities = [&families[..], &[Capability::RouteRefresh, Capability::FourOctetAs(asn)]].concat();
        let open = Open { asn, hold_seconds: 0, router_id: [10, 0, 0, host].into(), capabilities };
        let mut bytes = Vec::new();
        for message in [Message::Open(open), Message::Keepalive] {
            message.encode(&Context::default(), &mut bytes).expect("fits");
        }
        self.receive(host, &bytes);
    }

    fn receive(&mut self, host: u8, bytes: &[u8]) {
        if let Some(connection) = self.connections[usize::from(host) - 1] {
            self.input(Input::Received { connection, bytes });
        }
    }

    fn close(&mut self, host: u8) {
        if let Some(connection) = self.connections[usize::from(host) - 1].take() {
            self.input(Input::Closed { connection, reason: "closed".to_owned() });
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.speaker.next_deadline().filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.input(Input::Tick);
            assert!(self.speaker.next_deadline().is_none_or(|due| due > self.now), "a deadline that stays");
        }
        self.now = end;
    }

    fn input(&mut self, input: Input<'_>) {
        let outputs = self.speaker.handle(input, self.now);
        self.perform(outputs);
    }

    /// Everything is written at once, and has to be messages.
    fn perform(&mut self, outputs: Vec<Output>) {
        for output in outputs {
            match output {
                Output::Transmit { connection } => loop {
                    let mut out = Vec::new();
                    self.speaker.transmit(connection, 65536, &mut out);
                    check(&out);
                    if out.is_empty() {
                        break;
                    }
                },
                Output::Close { connection, last } => {
                    check(&last);
                    for mine in &mut self.connections {
                        mine.take_if(|mine| *mine == connection);
                    }
                }
                _ => (),
            }
        }
    }
}

fn check(mut bytes: &[u8]) {
    let context = Context { max_length: MAX_EXTENDED_LENGTH, ..Context::default() };
    while let Some(message) = frame(bytes, &context).expect("what is sent has headers") {
        bytes = &bytes[message.len()..];
    }
    assert!(bytes.is_empty(), "what is sent is whole");
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(19 + body.len()).expect("short");
    [&[0xFF; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}
