//! Unnumbered peers: two links whose other ends have the same address, which come and go.
use super::*;
use crate::{
    ConnectionId, Endpoints, InterfaceName, PeerId, Time,
    speaker::{Input, Link, Output, Speaker},
    wire::{Capability, Context, Message, Open},
};
use std::{
    net::{Ipv6Addr, SocketAddr, SocketAddrV6},
    time::Duration,
};

const NOW: Time = Duration::from_secs(10);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
const OTHER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);

fn interface(name: &str) -> InterfaceName {
    name.parse().unwrap()
}

fn end(address: Ipv6Addr, index: u32) -> SocketAddr {
    SocketAddrV6::new(address, 179, 0, index).into()
}

/// A speaker with eth0 and eth1, of which nothing is known.
fn speaker() -> Speaker {
    let mut speaker = Speaker::new(1);
    speaker.set_global(global(9, 65000), NOW).unwrap();
    let outputs = configure(&mut speaker, |_| ());
    assert!(!outputs.iter().any(|output| matches!(output, Output::Connect { .. })), "{outputs:?}");
    assert_eq!(speaker.interfaces(), [interface("eth0"), interface("eth1")].into());
    speaker
}

fn configure(speaker: &mut Speaker, change: impl Fn(&mut PeerConfig)) -> Vec<Output> {
    let config = |name| {
        let mut config = PeerConfig::unnumbered(interface(name), PeerAsn::External);
        config.accept = vec!["0.0.0.0/0".parse().unwrap()];
        change(&mut config);
        config
    };
    speaker.set_peers(vec![config("eth0"), config("eth1")], NOW).unwrap()
}

fn link(speaker: &mut Speaker, name: &str, link: Option<(u32, Option<Ipv6Addr>)>) -> Vec<Output> {
    let link = link.map(|(index, neighbour)| Link { index, neighbour });
    speaker.handle(Input::Link { interface: interface(name), link }, NOW)
}

/// Where is dialled, and by which connection.
fn dialled(outputs: &[Output]) -> Vec<(SocketAddr, ConnectionId)> {
    let connect = |output: &Output| match output {
        Output::Connect { connection, remote, .. } => Some((*remote, *connection)),
        _ => None,
    };
    outputs.iter().filter_map(connect).collect()
}

/// A connection that comes in; false: it is closed at once.
fn accepted(speaker: &mut Speaker, remote: SocketAddr) -> Option<ConnectionId> {
    let connection = speaker.accept_id();
    let endpoints = Endpoints { local: end(OTHER, 1), remote, next_hops: [].into() };
    let outputs = speaker.handle(Input::Accepted { connection, endpoints }, NOW);
    let closed = Output::Close { connection, last: vec![] };
    (!outputs.contains(&closed)).then_some(connection)
}

/// Brings the session on a connection up.
fn establish(speaker: &mut Speaker, connection: ConnectionId) {
    let open = Open {
        asn: Asn(65001),
        hold_seconds: 90,
        router_id: Ipv4Addr::new(10, 0, 0, 1),
        capabilities: vec![Capability::FourOctetAs(Asn(65001))],
    };
    let mut bytes = Vec::new();
    for message in [Message::Open(open), Message::Keepalive] {
        message.encode(&Context::default(), &mut bytes).unwrap();
    }
    speaker.handle(Input::Received { connection, bytes: &bytes }, NOW);
}

fn status(speaker: &Speaker, name: &str) -> (String, String) {
    let all = speaker.peers(NOW);
    let peer = all.iter().find(|peer| peer.id() == PeerId::Interface(interface(name))).unwrap();
    (peer.state.clone(), peer.address.to_string())
}

#[test]
fn who_is_heard_is_dialled_on_that_link() {
    let mut speaker = speaker();
    assert_eq!(link(&mut speaker, "eth0", Some((3, None))), []);
    for (name, index) in [("eth0", 3), ("eth1", 4)] {
        let outputs = link(&mut speaker, name, Some((index, Some(ROUTER))));
        assert_eq!(dialled(&outputs).iter().map(|(to, _)| *to).collect::<Vec<_>>(), [end(ROUTER, index)]);
        assert_eq!(status(&speaker, name), ("Connect".to_owned(), ROUTER.to_string()));
        // Said again, it is nothing new; neither is the same configuration.
        assert_eq!(dialled(&link(&mut speaker, name, Some((index, Some(ROUTER))))), []);
    }
    assert_eq!(configure(&mut speaker, |_| ()), []);
    assert_eq!(link(&mut speaker, "eth7", Some((7, Some(ROUTER)))), [], "of nobody");
    // Another router on the link takes its place, for no session is up.
    let outputs = link(&mut speaker, "eth1", Some((4, Some(OTHER))));
    assert_eq!(dialled(&outputs).iter().map(|(to, _)| *to).collect::<Vec<_>>(), [end(OTHER, 4)]);
}

#[test]
fn who_dials_is_the_peer_of_its_link() {
    let mut speaker = speaker();
    assert_eq!(accepted(&mut speaker, end(ROUTER, 3)), None, "the link is not known");
    link(&mut speaker, "eth0", Some((3, None)));
    link(&mut speaker, "eth1", Some((4, Some(ROUTER))));
    // The first was not heard: it has the address from which it dials.
    assert!(accepted(&mut speaker, end(ROUTER, 3)).is_some());
    assert_eq!(status(&speaker, "eth0").1, ROUTER.to_string());
    assert!(accepted(&mut speaker, end(ROUTER, 4)).is_some());
    for stranger in [end(OTHER, 3), end(ROUTER, 5), end("2001:db8::1".parse().unwrap(), 3)] {
        assert_eq!(accepted(&mut speaker, stranger), None, "{stranger}");
    }
}

#[test]
fn a_link_that_goes_ends_its_session_alone() {
    let mut speaker = speaker();
    for (name, index) in [("eth0", 3), ("eth1", 4)] {
        link(&mut speaker, name, Some((index, Some(ROUTER))));
        let connection = accepted(&mut speaker, end(ROUTER, index)).unwrap();
        establish(&mut speaker, connection);
        assert_eq!(status(&speaker, name).0, "Established");
    }
    // While it is up no other router takes its place.
    link(&mut speaker, "eth0", Some((3, Some(OTHER))));
    assert_eq!(status(&speaker, "eth0"), ("Established".to_owned(), ROUTER.to_string()));
    link(&mut speaker, "eth0", None);
    assert_eq!(status(&speaker, "eth0"), ("Idle".to_owned(), "::".to_owned()));
    assert_eq!(status(&speaker, "eth1").0, "Established");
    assert_eq!(speaker.peers(NOW)[0].last_error.as_deref(), Some("connection: the interface is gone"));
    assert_eq!(accepted(&mut speaker, end(ROUTER, 3)), None);
    // It comes back as another one; the same at once, without a moment without it.
    let outputs = link(&mut speaker, "eth0", Some((5, Some(ROUTER))));
    assert_eq!(dialled(&outputs)[0].0, end(ROUTER, 5));
    let outputs = link(&mut speaker, "eth1", Some((6, Some(ROUTER))));
    assert_eq!(dialled(&outputs)[0].0, end(ROUTER, 6));
    assert_eq!(speaker.next_deadline().map(|at| at > NOW), Some(true));
    // Without the peer nothing is watched.
    speaker.set_peers(vec![], NOW).unwrap();
    assert!(speaker.interfaces().is_empty());
}

#[test]
fn the_path_is_watched_on_its_link() {
    let mut speaker = speaker();
    let bfd = crate::config::Bfd { min_tx_millis: 50, min_rx_millis: 50, multiplier: 3 };
    configure(&mut speaker, |config| config.bfd = Some(bfd));
    let watched = |outputs: Vec<Output>| {
        let watch = |output| match output {
            Output::Watch { peer, path } => {
                Some((peer.to_string(), path.map(|path| (path.address, path.scope))))
            }
            _ => None,
        };
        outputs.into_iter().filter_map(watch).collect::<Vec<_>>()
    };
    let up = watched(link(&mut speaker, "eth1", Some((4, Some(ROUTER)))));
    assert_eq!(up, [("eth1".to_owned(), Some((ROUTER.into(), 4)))]);
    assert_eq!(watched(link(&mut speaker, "eth1", None)), [("eth1".to_owned(), None)]);
}
