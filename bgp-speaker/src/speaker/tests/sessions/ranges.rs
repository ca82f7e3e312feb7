//! Peers that are not dialled: passive ones, and those that are known by a range.
use super::*;
use crate::{PeerId, config::PeerRange};

/// 10.0.0.0 to 10.0.0.3.
fn range(limit: u16) -> PeerRange {
    let prefix: IpNet = "10.0.0.0/30".parse().unwrap();
    let peer = PeerConfig { address: prefix.network(), asn: PeerAsn::External, ..peer(1, 65001) };
    PeerRange { prefix, limit, peer }
}

fn with_range(limit: u16) -> Script {
    let mut script = Script::new(Vec::new());
    script.speaker.set_ranges(vec![range(limit)], NOW).unwrap();
    script
}

fn addresses(script: &Script) -> Vec<IpAddr> {
    script.speaker.peers(NOW).into_iter().map(|peer| peer.address).collect()
}

#[test]
fn a_passive_peer_is_not_dialled() {
    let mut script = Script::new(vec![PeerConfig { passive: true, ..peer(1, 65001) }]);
    assert!(!script.outputs.iter().any(|output| matches!(output, Output::Connect { .. })));
    assert_eq!((script.state(), script.speaker.next_deadline()), (State::Active, None));
    let connection = script.establish(1);
    assert_eq!(script.state(), State::Established);
    let reason = "closed".to_owned();
    script.outputs = script.speaker.handle(Input::Closed { connection, reason }, NOW);
    assert!(!script.outputs.iter().any(|output| matches!(output, Output::Connect { .. })));
    assert_eq!((script.state(), script.speaker.next_deadline()), (State::Active, None));
}

#[test]
fn members_of_a_range_come_and_go() {
    let mut script = with_range(2);
    let one = script.establish(1);
    script.establish(2);
    assert_eq!(addresses(&script), [address(1), address(2)]);
    // One too many, one outside.
    for host in [3, 4] {
        let stranger = script.accept(host);
        assert_eq!(script.last(stranger).as_deref(), Some(""));
        assert_eq!(script.speaker.transport(SocketAddr::new(address(host), 179)), None);
    }
    let reason = "closed".to_owned();
    script.outputs = script.speaker.handle(Input::Closed { connection: one, reason }, NOW);
    assert_eq!(addresses(&script), [address(2)]);
    assert!(script.speaker.transport(SocketAddr::new(address(3), 179)).is_some());
    script.establish(3);
    assert_eq!(addresses(&script), [address(2), address(3)]);
}

#[test]
fn a_connection_that_says_nothing_makes_room_in_time() {
    let mut script = with_range(1);
    script.accept(1);
    let due = script.speaker.next_deadline().unwrap();
    script.outputs = script.speaker.handle(Input::Tick, due);
    assert!(addresses(&script).is_empty());
}

#[test]
fn members_go_with_their_range() {
    let mut script = with_range(1);
    let connection = script.establish(1);
    script.outputs = script.speaker.set_ranges(Vec::new(), NOW).unwrap();
    assert_eq!(script.last(connection).as_deref(), Some("Cease/Peer De-configured"));
    assert!(addresses(&script).is_empty());
}

#[test]
fn a_member_becomes_a_peer_of_its_own_and_stays_up() {
    let mut script = with_range(1);
    let connection = script.establish(1);
    // Its session is not another one.
    let config = PeerConfig { passive: true, ..range(1).peer };
    script.outputs =
        script.speaker.set_peers(vec![PeerConfig { address: address(1), ..config }], NOW).unwrap();
    assert_eq!(script.last(connection), None);
    script.outputs = script.speaker.set_ranges(Vec::new(), NOW).unwrap();
    assert_eq!((script.last(connection), addresses(&script)), (None, vec![address(1)]));
    // And a set without it does not touch members.
    let mut script = with_range(1);
    let connection = script.establish(1);
    script.outputs = script.speaker.set_peers(vec![peer(9, 65009)], NOW).unwrap();
    assert_eq!(script.last(connection), None);
}

#[test]
fn routes_name_all_members_by_their_range() {
    let mut script = with_range(1);
    let connection = script.establish(1);
    script.hear(connection);
    let to = |peer: PeerId| Route { peers: Some([peer].into()), ..route("203.0.113.0/24", 1) };
    script.speaker.set_routes(vec![to(address(1).into())]).unwrap();
    assert_eq!(script.hear(connection), []);
    script.speaker.set_routes(vec![to(range(1).id())]).unwrap();
    assert!(matches!(script.hear(connection)[..], [Message::Update(_)]));
}
