//! What comes of a peer's octets, however they are cut, and of what it says twice or in words that nobody knows.
use super::*;

fn octets(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        message.encode(&context(), &mut bytes).unwrap();
    }
    bytes
}

/// TCP knows no messages: each octet may come alone.
#[test]
fn each_octet_by_itself() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.accept(1);
    let refresh = RouteRefresh { family: Family::Ipv4Unicast.into(), kind: RefreshKind::Request };
    let all = octets(&[
        open(1, |_| ()),
        Message::Keepalive,
        told(1, &["10.1.0.0/16", "10.2.0.0/16"]),
        Message::RouteRefresh(refresh),
        Message::EndOfRib(Family::Ipv6Unicast),
    ]);
    for octet in all {
        script.outputs = script.speaker.handle(Input::Received { connection, bytes: &[octet] }, NOW);
        assert_eq!(script.last(connection), None);
    }
    let status = script.speaker.peers(NOW).remove(0);
    assert_eq!((status.state.as_str(), status.prefixes_received), ("Established", 2));
    assert_eq!(status.messages_received, 5);
}

/// RFC 7313 section 5: a ROUTE-REFRESH with a subtype that nobody knows is ignored; so is one of a family that was not
/// agreed on (RFC 2918 section 4).
#[test]
fn refreshes_that_mean_nothing() {
    let mut script =
        Script::new(vec![PeerConfig { families: [Family::Ipv4Unicast].into(), ..peer(1, 65001) }]);
    let connection = script.establish(1);
    script.speaker.set_routes(vec![route("10.9.0.0/16", 1)]).unwrap();
    script.hear(connection);
    for (family, kind) in [
        (Family::Ipv4Unicast.into(), RefreshKind::Other(3)),
        (Family::Ipv6Unicast.into(), RefreshKind::Request),
        (AfiSafi { afi: 25, safi: 65 }, RefreshKind::Request),
    ] {
        script.say(connection, &[Message::RouteRefresh(RouteRefresh { family, kind })]);
        assert_eq!((script.last(connection), script.hear(connection)), (None, vec![]), "{family:?} {kind:?}");
    }
}

/// What is said twice counts once (RFC 5492 section 4); of several graceful restarts the last one (RFC 4724 section 3).
#[test]
fn capabilities_that_are_there_twice() {
    let mut script = Script::new(vec![PeerConfig { graceful_restart: Some(60), ..peer(1, 65001) }]);
    let connection = script.accept(1);
    let twice = open(1, |open| {
        let again = open.capabilities.clone();
        open.capabilities.extend(again);
        open.capabilities.extend([10, 20].map(|seconds| {
            let families = Family::ALL.map(|family| (family.into(), false)).into();
            Capability::GracefulRestart(wire::GracefulRestart { seconds, families, ..Default::default() })
        }));
    });
    script.say(connection, &[twice, Message::Keepalive]);
    let status = script.speaker.peers(NOW).remove(0);
    assert_eq!((status.state.as_str(), status.families), ("Established", Family::ALL.into()));
    assert_eq!(status.graceful_restart.unwrap().restart_seconds, 20);
}
