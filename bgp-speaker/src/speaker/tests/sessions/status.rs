//! What an operator sees of a session.
use super::*;
use crate::{
    config::MessageCounts,
    wire::{GracefulRestart, Notification, Reason},
};

#[test]
fn a_peer_shows_what_was_said_and_counted() {
    let config = PeerConfig {
        accept: vec!["10.0.0.0/8".parse().unwrap()],
        graceful_restart: Some(90),
        ..peer(1, 65001)
    };
    let mut script = Script::new(vec![config]);
    let before = script.speaker.peers(NOW).remove(0);
    assert_eq!((before.restart_state.as_str(), before.remote_hold_seconds), ("Disabled", None));
    let connection = script.accept(1);
    let family = Family::Ipv4Unicast.into();
    let restart = GracefulRestart {
        restarting: true,
        seconds: 70,
        families: vec![(family, true)],
        ..Default::default()
    };
    let opened = open(1, |open| {
        open.hold_seconds = 30;
        open.capabilities.push(Capability::GracefulRestart(restart));
    });
    script.say(connection, &[opened, Message::Keepalive]);
    script.say(connection, &[told(1, &["10.1.0.0/16", "10.2.0.0/16", "192.0.2.0/24"])]);
    let gone =
        Update { withdrawn: vec!["10.1.0.0/16".parse::<ipnet::IpNet>().unwrap().into()], announced: None };
    let begin = Message::RouteRefresh(RouteRefresh { family, kind: RefreshKind::Begin });
    script.say(connection, &[Message::Update(gone), Message::EndOfRib(Family::Ipv4Unicast), begin]);
    script.hear(connection);

    let status = script.speaker.peers(NOW).remove(0);
    assert_eq!((status.hold_seconds, status.local_timers.hold_seconds), (Some(9), 9));
    assert_eq!((status.remote_hold_seconds, status.keepalive_seconds), (Some(30), Some(3)));
    assert!(status.capabilities.contains(&"graceful-restart 70".to_owned()), "{:?}", status.capabilities);
    assert!(status.capabilities_sent.contains(&"graceful-restart 90".to_owned()));
    let counts = status.prefixes[&Family::Ipv4Unicast];
    assert_eq!((counts.received, counts.refused, counts.withdrawn, counts.accepted), (3, 1, 1, 1));
    let MessageCounts { open, update, notification, keepalive, route_refresh } = status.received_by_type;
    assert_eq!((open, update, notification, keepalive, route_refresh), (1, 3, 0, 1, 1));
    // OPEN, KEEPALIVE, an End-of-RIB of each family.
    let MessageCounts { open, update, keepalive, .. } = status.sent_by_type;
    assert_eq!((open, update, keepalive), (1, 2, 1));
    assert_eq!((status.messages_received, status.messages_sent), (6, 4));
    assert_eq!(status.restart_state, "Ready");
    let theirs = status.graceful_restart.unwrap();
    assert!(theirs.restarting && theirs.end_of_rib.contains(&Family::Ipv4Unicast));
    assert_eq!(status.local_restart.unwrap().restart_seconds, 90);

    let reset = Notification::with_communication(Reason::ADMINISTRATIVE_RESET, "maintenance");
    script.say(connection, &[Message::Notification(reset)]);
    let status = script.speaker.peers(NOW + Duration::from_secs(5)).remove(0);
    assert_eq!((status.established_count, status.flap_count), (1, 1));
    let error = status.last_error_detail.unwrap();
    assert_eq!((error.direction.as_str(), error.since_seconds), ("received", Some(5)));
    assert_eq!(error.reason, "Cease/Administrative Reset");
    assert_eq!(error.communication.as_deref(), Some("maintenance"));
    assert_eq!(status.received_by_type.notification, 1);
}
