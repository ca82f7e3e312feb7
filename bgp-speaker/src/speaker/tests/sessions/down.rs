//! Peers that are kept down: they told too much, or are shut down.
use super::*;

fn told(count: u8) -> Message {
    let prefix = |n| IpNet::new(IpAddr::from([10, n, 0, 0]), 16).unwrap().into();
    let prefixes = (0..count).map(prefix).collect();
    Message::Update(Update {
        withdrawn: Vec::new(),
        announced: Some(Announcement {
            attributes: Attributes { as_path: AsPath::sequence([65001]), ..Attributes::default() },
            reach: vec![Reach { next_hop: address(1).into(), prefixes }],
        }),
    })
}

fn dials(script: &Script) -> bool {
    script.outputs.iter().any(|output| matches!(output, Output::Connect { .. }))
}

fn limited(max: u32) -> PeerConfig {
    PeerConfig { max_prefixes: Some(max), max_prefixes_restart_seconds: 60, ..peer(1, 65001) }
}

#[test]
fn too_many_prefixes_keep_the_peer_down_for_a_while() {
    let mut script = Script::new(vec![limited(2)]);
    let connection = script.establish(1);
    script.say(connection, &[told(3)]);
    assert!(script.last(connection).unwrap().starts_with("Cease/Maximum Number of Prefixes Reached"));
    assert_eq!(script.state(), State::Idle);
    assert!(!dials(&script));
    // It may come, and is not heard.
    let early = script.accept(1);
    assert_eq!(script.last(early).as_deref(), Some(""));
    let end = NOW + Duration::from_secs(60);
    assert_eq!(script.speaker.next_deadline(), Some(end));
    script.outputs = script.speaker.handle(Input::Tick, end);
    assert!(dials(&script));
}

#[test]
fn a_higher_limit_takes_effect_at_once() {
    let mut script = Script::new(vec![limited(2)]);
    let connection = script.establish(1);
    script.say(connection, &[told(3)]);
    script.outputs = script.speaker.set_peers(vec![limited(3)], NOW).unwrap();
    assert!(dials(&script));
    let connection = script.answer(1);
    script.say(connection, &[open(1, |_| ()), Message::Keepalive, told(3)]);
    assert_eq!((script.last(connection), script.state()), (None, State::Established));
}

#[test]
fn a_peer_that_is_shut_down_hears_why() {
    let shut = PeerConfig { shutdown: Some("back at noon".to_owned()), ..peer(1, 65001) };
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.establish(1);
    script.outputs = script.speaker.set_peers(vec![shut.clone()], NOW).unwrap();
    assert_eq!(script.last(connection).as_deref(), Some("Cease/Administrative Shutdown \"back at noon\""));
    assert!(!dials(&script));
    let early = script.accept(1);
    assert_eq!(script.last(early).as_deref(), Some(""));
    assert_eq!((script.state(), script.speaker.next_deadline()), (State::Idle, None));
    script.outputs = script.speaker.set_peers(vec![peer(1, 65001)], NOW).unwrap();
    assert!(dials(&script));
    // From the start.
    let script = Script::new(vec![shut]);
    assert_eq!((script.state(), dials(&script)), (State::Idle, false));
}
