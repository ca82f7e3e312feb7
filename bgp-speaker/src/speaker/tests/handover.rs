//! A successor goes on with the sessions of another speaker.
use super::{
    sessions::{NOW, Script, endpoints, told, words},
    *,
};
use crate::{
    ConnectionId, PeerId, Time,
    speaker::{Output, Session, Speaker},
    wire::Message,
};
use std::time::Duration;

const LATER: Time = Duration::from_secs(100);

fn accepting(host: u8) -> PeerConfig {
    PeerConfig {
        accept: vec!["10.0.0.0/8".parse().unwrap()],
        export_learned: true,
        ..peer(host, 65000 + u32::from(host))
    }
}

fn route(prefix: &str) -> Route {
    Route { prefix: prefix.parse().unwrap(), attributes: RouteAttributes::default(), peers: None }
}

/// Hands over as a driver does: by octets, to a speaker with other names of connections.
fn succeed(mut old: Script, peers: Vec<PeerConfig>, routes: Vec<Route>) -> (Script, Vec<ConnectionId>) {
    let mut new = Speaker::new(7);
    let mut inherited = Vec::new();
    let mut connections = Vec::new();
    for (_, session) in old.speaker.hand_over(LATER) {
        let mut octets = Vec::new();
        session.write(&mut octets);
        for end in 0..octets.len() {
            assert_eq!(Session::read(&mut &octets[..end]), None, "cut at {end}");
        }
        let read = Session::read(&mut &octets[..]);
        assert_eq!(read.as_ref(), Some(&session));
        let host = match session.peer {
            PeerId::Address(IpAddr::V4(address)) => address.octets()[3],
            _ => panic!("of IPv4"),
        };
        let connection = new.accept_id();
        connections.push(connection);
        inherited.push((connection, endpoints(host), session));
    }
    new.inherit(inherited);
    new.set_routes(routes).unwrap();
    new.set_peers(peers, LATER).unwrap();
    let outputs = new.set_global(global(9, 65000), LATER).unwrap();
    (Script { speaker: new, outputs }, connections)
}

#[test]
fn a_successor_says_only_what_is_new() {
    let peers = || vec![accepting(1), accepting(2)];
    let mut script = Script::new(peers());
    script.speaker.set_routes(vec![route("203.0.113.0/24"), route("198.51.100.0/24")]).unwrap();
    let first = script.establish(1);
    let second = script.establish(2);
    script.say(first, &[told(1, &["10.1.0.0/16", "10.2.0.0/16"])]);
    script.hear(first);
    script.hear(second);
    // Half a message has come, and one waits to be written.
    let mut next = Vec::new();
    told(1, &["10.3.0.0/16"]).encode(&super::sessions::context(), &mut next).unwrap();
    let (half, rest) = next.split_at(30);
    script.speaker.handle(super::super::Input::Received { connection: first, bytes: half }, NOW);

    let (mut script, connections) =
        succeed(script, peers(), vec![route("203.0.113.0/24"), route("192.0.2.0/24")]);
    let status = script.speaker.peers(LATER);
    assert!(status.iter().all(|peer| (peer.state.as_str(), peer.established_count) == ("Established", 1)));
    assert!(status.iter().all(|peer| peer.since_seconds == (LATER - NOW).as_secs()), "{status:?}");
    assert_eq!((status[0].prefixes_received, status[1].prefixes_sent), (2, 4));
    assert!(!script.outputs.iter().any(|output| matches!(output, Output::Close { .. })));
    assert!(!script.outputs.iter().any(|output| matches!(output, Output::Connect { .. })));
    // The peer is asked again, and hears what changed; its own half message counts.
    script.speaker.handle(super::super::Input::Received { connection: connections[0], bytes: rest }, LATER);
    let heard = words(&script.hear(connections[1]));
    assert_eq!(heard, "Request Request -198.51.100.0/24 +192.0.2.0/24 +10.3.0.0/16");
    let heard = words(&script.hear(connections[0]));
    assert_eq!(heard, "Request Request -198.51.100.0/24 +192.0.2.0/24");
    // It is alive, and the session ends as any other.
    script.speaker.handle(super::super::Input::Tick, LATER);
    assert_eq!(words(&script.hear(connections[0])), "KEEPALIVE");
    assert_eq!(script.speaker.peers(LATER)[0].prefixes_received, 3);
    let bye = Message::Notification(crate::wire::Reason::CEASE_UNSPECIFIC.into());
    script.say(connections[0], &[bye]);
    assert_eq!(script.speaker.peers(LATER)[0].flap_count, 1);
    let heard = words(&script.hear(connections[1]));
    let mut heard: Vec<&str> = heard.split(' ').collect();
    heard.sort_unstable();
    assert_eq!(heard, ["-10.1.0.0/16", "-10.2.0.0/16", "-10.3.0.0/16", "KEEPALIVE"]);
}

#[test]
fn a_session_that_has_to_be_another_one_ends() {
    let mut script = Script::new(vec![accepting(1), accepting(2), accepting(3)]);
    for host in 1..=3 {
        let connection = script.establish(host);
        script.hear(connection);
    }
    let mut other = accepting(1);
    other.families = [Family::Ipv4Unicast].into();
    let shut = PeerConfig { shutdown: Some("bye".to_owned()), ..accepting(2) };
    let (script, connections) = succeed(script, vec![other, shut], vec![]);
    let last: Vec<_> = connections.iter().map(|connection| script.last(*connection)).collect();
    assert_eq!(
        last,
        [
            Some("Cease/Other Configuration Change".to_owned()),
            Some("Cease/Administrative Shutdown \"bye\"".to_owned()),
            Some("Cease/Peer De-configured".to_owned())
        ]
    );
    // The first one is dialled.
    assert!(script.outputs.iter().any(|output| matches!(output, Output::Connect { .. })));
}

/// The node speaks no BGP any more: nobody says who the successor is.
#[test]
fn a_session_without_an_heir_ends() {
    let mut script = Script::new(vec![accepting(1)]);
    let connection = script.establish(1);
    script.hear(connection);
    let session = script.speaker.hand_over(LATER).remove(0).1;
    assert_eq!(session.hold_time(), Some(Duration::from_secs(9)));
    let mut new = Speaker::new(7);
    let connection = new.accept_id();
    new.inherit(vec![(connection, endpoints(1), session)]);
    new.set_routes(vec![]).unwrap();
    new.set_peers(vec![], LATER).unwrap();
    let outputs = new.end_inherited(LATER);
    let script = Script { speaker: new, outputs };
    assert_eq!(script.last(connection).as_deref(), Some("Cease/Peer De-configured"));
}

/// What is kept alive says so after what was left to be said, and nothing else.
#[test]
fn a_session_that_waits_is_kept_alive() {
    let mut script = Script::new(vec![accepting(1)]);
    let connection = script.establish(1);
    script.hear(connection);
    let mut session = script.speaker.hand_over(LATER).remove(0).1;
    session.unsent = vec![1, 2, 3];
    session.keep_alive();
    assert_eq!(session.unsent[..3], [1, 2, 3]);
    let context = super::sessions::context();
    let rest = crate::wire::decode(&session.unsent[3..], &context).unwrap().message;
    assert_eq!(rest, Message::Keepalive);
}
