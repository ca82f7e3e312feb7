//! Many routes, and peers that take them slowly or not at all: the others and the timers do not notice.
use super::*;
use crate::{
    ConnectionId, Endpoints, Time,
    connection::SEND_HOLD,
    speaker::{Input, Output, Speaker},
    wire::{self, Capability, Context, MAX_EXTENDED_LENGTH, MAX_LENGTH, Message, Open},
};
use ipnet::IpNet;
use std::{net::SocketAddr, time::Duration};

const START: Time = Duration::from_secs(10);
/// Hold time and keepalive interval of every session, seconds: the shortest that there are.
const HOLD: u64 = 3;
const KEEPALIVE: u64 = 1;

fn context() -> Context {
    Context { four_octet_as: true, families: [Family::Ipv4Unicast].into(), ..Context::default() }
}

/// The speaker 10.0.0.9, sessions with hosts 1 to `hosts`.
fn sessions(hosts: u8) -> (Speaker, Vec<ConnectionId>) {
    sessions_with(hosts, &[])
}

/// The same, with more capabilities of the hosts.
fn sessions_with(hosts: u8, more: &[Capability]) -> (Speaker, Vec<ConnectionId>) {
    let mut speaker = Speaker::new(1);
    speaker.set_global(global(9, 65000), START).unwrap();
    let timers = Timers { hold_seconds: 3, keepalive_seconds: 1, connect_retry_seconds: 2 };
    let config = |host| PeerConfig { timers, ..peer(host, 65000 + u32::from(host)) };
    speaker.set_peers((1..=hosts).map(config).collect(), START).unwrap();
    let connections = (1..=hosts).map(|host| {
        let connection = speaker.accept_id();
        let end = |host| SocketAddr::new(address(host), 179);
        let next_hops = [(Family::Ipv4Unicast, address(9).into())].into();
        let endpoints = Endpoints { local: end(9), remote: end(host), next_hops };
        speaker.handle(Input::Accepted { connection, endpoints }, START);
        let asn = Asn(65000 + u32::from(host));
        let mut capabilities =
            vec![Capability::MultiProtocol(Family::Ipv4Unicast.into()), Capability::FourOctetAs(asn)];
        capabilities.extend_from_slice(more);
        let router_id = Ipv4Addr::new(10, 0, 0, host);
        let open = Open { asn, hold_seconds: 3, router_id, capabilities };
        say(&mut speaker, connection, &[Message::Open(open), Message::Keepalive], START);
        connection
    });
    let connections = connections.collect();
    (speaker, connections)
}

fn say(speaker: &mut Speaker, connection: ConnectionId, messages: &[Message], now: Time) -> Vec<Output> {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode(&context(), &mut bytes).unwrap();
    }
    speaker.handle(Input::Received { connection, bytes: &bytes }, now)
}

/// Runs for so many seconds, or until a connection is closed: timers when they are due, a KEEPALIVE of every peer each
/// second, and what is done `each` second.
fn run(
    speaker: &mut Speaker,
    peers: &[ConnectionId],
    seconds: u64,
    mut each: impl FnMut(&mut Speaker, Time),
) -> (Time, Vec<Output>) {
    for second in 1..=seconds {
        let now = START + Duration::from_secs(second);
        while let Some(at) = speaker.next_deadline().filter(|at| *at <= now) {
            let outputs = speaker.handle(Input::Tick, at);
            if outputs.iter().any(|output| matches!(output, Output::Close { .. })) {
                return (at, outputs);
            }
        }
        for connection in peers {
            say(speaker, *connection, &[Message::Keepalive], now);
        }
        each(speaker, now);
    }
    (START + Duration::from_secs(seconds), Vec::new())
}

fn net(index: u32) -> IpNet {
    IpNet::new(Ipv4Addr::from_bits(0x0b00_0000 + index * 256).into(), 24).unwrap()
}

fn routes(count: u32, med: u32) -> Vec<Route> {
    (0..count).map(|index| Route { prefix: net(index), ..route("10.0.0.0/8", med) }).collect()
}

/// Writes about so many octets: how many KEEPALIVEs are in them, and whether nothing stands before one.
fn count(speaker: &mut Speaker, connection: ConnectionId, limit: usize) -> (usize, bool) {
    let mut bytes = Vec::new();
    speaker.transmit(connection, limit, &mut bytes);
    let (mut rest, mut keepalives, mut first) = (&bytes[..], 0, true);
    let mut leads = true;
    while let Some(message) = wire::frame(rest, &context()).unwrap() {
        rest = &rest[message.len()..];
        let is_keepalive = wire::decode(message, &context()).unwrap().message == Message::Keepalive;
        keepalives += usize::from(is_keepalive);
        leads &= first || !is_keepalive;
        first = false;
    }
    (keepalives, leads)
}

/// More routes change each second than the link takes, six hundred thousand in all: the KEEPALIVE of each second goes
/// before them.
#[test]
fn keepalives_do_not_wait_for_routes() {
    const ROUTES: u32 = 10_000;
    let (mut speaker, peers) = sessions(1);
    speaker.transmit(peers[0], 100, &mut Vec::new());
    speaker.set_routes(routes(ROUTES, 0)).unwrap();
    let (mut sent, mut last) = (0, START);
    let (end, closed) = run(&mut speaker, &peers, 60, |speaker, now| {
        speaker.set_routes(routes(ROUTES, now.as_secs() as u32)).unwrap();
        let (keepalives, leads) = count(speaker, peers[0], MAX_LENGTH);
        assert!(leads && speaker.is_pending());
        if keepalives > 0 {
            last = now;
        }
        assert!((now - last).as_secs() < HOLD, "the peer's hold timer has run out");
        sent += keepalives;
    });
    assert_eq!((closed, speaker.peers(end)[0].established_count), (vec![], 1));
    // Jitter shortens the interval by up to a quarter.
    assert!((60 / KEEPALIVE as usize..=80).contains(&sent), "{sent}");
}

/// A peer whose window is shut and that goes on to send KEEPALIVEs: it costs no other anything, holds no messages, and
/// is let go in the end.
#[test]
fn a_shut_window_is_nobody_elses_matter() {
    let (mut speaker, peers) = sessions(2);
    for &connection in &peers {
        speaker.transmit(connection, MAX_LENGTH, &mut Vec::new());
    }
    speaker.set_routes(routes(20, 0)).unwrap();
    let hold = SEND_HOLD.as_secs();
    let (at, outputs) = run(&mut speaker, &peers, 2 * hold, |speaker, now| {
        // Everything changes, and only the second peer reads.
        speaker.set_routes(routes(20, now.as_secs() as u32)).unwrap();
        count(speaker, peers[1], usize::MAX / 2);
        let deaf = speaker.slots().next().unwrap().1;
        let waiting = deaf.peer.session().unwrap().waiting.len();
        assert!(waiting <= wire::HEADER_LENGTH, "{waiting} octets wait for a peer that reads nothing");
        let other = &speaker.peers(now)[1];
        assert_eq!((other.prefixes_sent, other.established_count), (20, 1));
    });
    let taken = Duration::from_secs(hold);
    assert!((START + taken..=START + taken + Duration::from_secs(3)).contains(&at), "{at:?}");
    let closed: Vec<_> = outputs.iter().filter(|output| matches!(output, Output::Close { .. })).collect();
    assert!(matches!(closed[..], [Output::Close { connection, .. }] if *connection == peers[0]));
    let status = speaker.peers(at);
    assert_eq!(status[0].last_error.as_deref(), Some("sent Send Hold Timer Expired"));
    assert_eq!(status[1].state, "Established");
}

/// Lengths of the UPDATEs that are to be sent, of what is written in pieces of the size that a driver takes.
fn lengths(speaker: &mut Speaker, connection: ConnectionId, context: &Context) -> Vec<usize> {
    let mut lengths = Vec::new();
    loop {
        let mut bytes = Vec::new();
        speaker.transmit(connection, 64 * 1024, &mut bytes);
        let mut rest = &bytes[..];
        if rest.is_empty() {
            return lengths;
        }
        while let Some(message) = wire::frame(rest, context).unwrap() {
            lengths.push(message.len());
            rest = &rest[message.len()..];
        }
    }
}

/// Routes with one set of attributes go in messages that have no room for another prefix, but for the last one; so do
/// their withdrawals.
#[test]
fn messages_are_full() {
    const ROUTES: u32 = 100_000;
    for (capabilities, max_length) in
        [(&[][..], MAX_LENGTH), (&[Capability::ExtendedMessage], MAX_EXTENDED_LENGTH)]
    {
        let context = Context { max_length, ..context() };
        let (mut speaker, peers) = sessions_with(1, capabilities);
        lengths(&mut speaker, peers[0], &context);
        for (set, announced) in [(routes(ROUTES, 0), ROUTES), (Vec::new(), 0)] {
            speaker.set_routes(set).unwrap();
            let mut lengths = lengths(&mut speaker, peers[0], &context);
            assert_eq!(speaker.peers(START)[0].prefixes_sent, u64::from(announced));
            lengths.pop();
            assert!(lengths.len() >= 4 * ROUTES as usize / max_length, "{lengths:?}");
            assert!(lengths.iter().all(|length| length + 4 > max_length), "{lengths:?}");
        }
    }
}
