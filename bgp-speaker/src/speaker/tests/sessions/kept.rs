//! What is kept of a peer that cannot be asked again, and is away.
use super::*;
use crate::wire::GracefulRestart;

/// A policy that opens makes no stale route one that the peer has told again.
#[test]
fn policy_confirms_nothing() {
    let config = |accept: &[&str]| PeerConfig {
        graceful_restart: Some(60),
        accept: accept.iter().map(|prefix| prefix.parse().unwrap()).collect(),
        ..peer(1, 65001)
    };
    let mut script = Script::new(vec![config(&[])]);
    let connection = script.accept(1);
    let families = vec![(Family::Ipv4Unicast.into(), true)];
    let restart = GracefulRestart { restarting: false, notification: false, seconds: 60, families };
    let said = open(1, |open| {
        let refresh = [Capability::RouteRefresh, Capability::EnhancedRouteRefresh];
        open.capabilities.retain(|capability| !refresh.contains(capability));
        open.capabilities.push(Capability::GracefulRestart(restart));
    });
    script.say(connection, &[said, Message::Keepalive, told(1, &["10.1.0.0/16"])]);
    script.outputs = script.speaker.handle(Input::Closed { connection, reason: "gone".to_owned() }, NOW);
    script.outputs = script.speaker.set_peers(vec![config(&["10.0.0.0/8"])], NOW).unwrap();
    let status = script.speaker.peers(NOW).remove(0);
    assert_eq!((status.prefixes_received, status.graceful_restart.unwrap().stale_prefixes), (1, 1));
    script.outputs = script.speaker.handle(Input::Tick, NOW + Duration::from_secs(60));
    assert!(script.speaker.routes().is_empty());
}
