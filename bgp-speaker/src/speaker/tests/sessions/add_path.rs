//! Several paths of a prefix (RFC 7911), in and out.
use super::*;
use crate::wire::{AddPath, GracefulRestart, Nlri, PathId};
use std::collections::BTreeSet;

const BOTH: AddPath = AddPath { send: true, receive: true };
const NET: &str = "10.1.0.0/16";

/// Peer 1 tells several paths, peer 2 takes several; peer 3 does neither.
fn peers() -> Vec<PeerConfig> {
    let config = |host, add_path| PeerConfig { add_path, ..peer(host, 65000 + u32::from(host)) };
    vec![config(1, BOTH), config(2, BOTH), config(3, AddPath::default())]
}

fn paths(directions: &[(Family, AddPath)]) -> Capability {
    Capability::AddPath(directions.iter().map(|&(family, directions)| (family.into(), directions)).collect())
}

fn establish(script: &mut Script, host: u8) -> ConnectionId {
    let connection = script.accept(host);
    let all = paths(&Family::ALL.map(|family| (family, BOTH)));
    let open = open(host, |open| open.capabilities.extend((host < 3).then_some(all)));
    script.say(connection, &[open, Message::Keepalive]);
    script.hear(connection);
    connection
}

fn with_paths() -> Context {
    let all = || BTreeSet::from(Family::ALL);
    Context { add_path_send: all(), add_path_receive: all(), ..context() }
}

/// Peer 1 says: announced by identifier, with a MED; withdrawn by identifier.
fn say(script: &mut Script, connection: ConnectionId, announced: &[(u32, u32)], withdrawn: &[u32]) {
    let nlri = |path: u32| Nlri { prefix: NET.parse().unwrap(), path: PathId(path) };
    let mut bytes = Vec::new();
    let gone: Vec<Nlri> = withdrawn.iter().map(|path| nlri(*path)).collect();
    wire::withdraw(&gone, &with_paths(), &mut bytes).unwrap();
    for &(path, med) in announced {
        let attributes =
            Attributes { as_path: AsPath::sequence([65001]), med: Some(med), ..Attributes::default() };
        wire::announce(&attributes, address(1).into(), &[nlri(path)], &with_paths(), &mut bytes).unwrap();
    }
    script.outputs = script.speaker.handle(Input::Received { connection, bytes: &bytes }, NOW);
}

/// What a peer hears, in words; it reads path identifiers.
fn hear(script: &mut Script, connection: ConnectionId) -> String {
    let mut bytes = Vec::new();
    script.speaker.transmit(connection, usize::MAX / 2, &mut bytes);
    let (mut rest, mut messages) = (&bytes[..], Vec::new());
    while let Some(message) = wire::frame(rest, &with_paths()).unwrap() {
        rest = &rest[message.len()..];
        messages.push(wire::decode(message, &with_paths()).unwrap().message);
    }
    words(&messages)
}

/// `table peer identifier med best` of all rows.
fn rows(script: &Script, table: &str) -> Vec<(Option<u32>, Option<u32>, bool)> {
    let rows = script.speaker.routes().into_iter().filter(|row| row.table == table);
    rows.map(|row| (row.path_id, row.med, row.best)).collect()
}

#[test]
fn each_path_is_passed_on_under_a_name_of_ours() {
    let mut script = Script::new(peers());
    let [one, two, three] = [1, 2, 3].map(|host| establish(&mut script, host));
    say(&mut script, one, &[(700, 5), (0, 9)], &[]);
    assert_eq!(rows(&script, "adj-in"), [(Some(0), Some(9), false), (Some(700), Some(5), true)]);
    assert_eq!(script.speaker.peers(NOW)[0].prefixes_received, 2);
    // Both paths have the same attributes without their MED, which others do not hear.
    assert_eq!(hear(&mut script, two), "+10.1.0.0/16#1 +10.1.0.0/16#2");
    assert_eq!(words(&script.hear(three)), "+10.1.0.0/16");
    assert_eq!(hear(&mut script, one), "", "not back to where it came from");
    // Another one is the best now: that is news to who hears of one path, and its route is the same.
    say(&mut script, one, &[(0, 1)], &[]);
    assert_eq!((hear(&mut script, two).as_str(), words(&script.hear(three)).as_str()), ("", ""));
    say(&mut script, one, &[], &[0, 1]);
    assert_eq!(hear(&mut script, two), "-10.1.0.0/16#2", "an identifier that was not there is ignored");
    assert_eq!(words(&script.hear(three)), "");
    // The name of a path stays, whatever becomes of the others.
    say(&mut script, one, &[(8, 3)], &[]);
    assert_eq!(hear(&mut script, two), "+10.1.0.0/16#2");
    say(&mut script, one, &[], &[700]);
    assert_eq!(hear(&mut script, two), "-10.1.0.0/16#1");
    say(&mut script, one, &[], &[8]);
    assert_eq!(
        (hear(&mut script, two).as_str(), words(&script.hear(three)).as_str()),
        ("-10.1.0.0/16#2", "-10.1.0.0/16")
    );
    assert!(script.speaker.routes().is_empty());
}

#[test]
fn our_own_route_is_one_path_among_others() {
    let mut script = Script::new(peers());
    let [one, two] = [1, 2].map(|host| establish(&mut script, host));
    say(&mut script, one, &[(1, 5), (2, 9)], &[]);
    hear(&mut script, two);
    let other = Route { peers: Some([address(2).into()].into()), ..route(NET, 44) };
    script.outputs = script.speaker.set_routes(vec![route(NET, 33), other]).unwrap();
    assert_eq!(
        (hear(&mut script, one).as_str(), hear(&mut script, two).as_str()),
        ("+10.1.0.0/16#3", "+10.1.0.0/16#3")
    );
    let out = rows(&script, "adj-out");
    assert_eq!(
        out,
        [
            (Some(3), Some(33), true),
            (Some(1), None, false),
            (Some(2), None, false),
            (Some(3), Some(44), true)
        ]
    );
    script.outputs = script.speaker.set_routes(vec![]).unwrap();
    assert_eq!(
        (hear(&mut script, one).as_str(), hear(&mut script, two).as_str()),
        ("-10.1.0.0/16#3", "-10.1.0.0/16#3")
    );
}

#[test]
fn a_refresh_confirms_paths() {
    let mut script = Script::new(peers());
    let [one, two] = [1, 2].map(|host| establish(&mut script, host));
    say(&mut script, one, &[(1, 5), (2, 9)], &[]);
    let refresh = |kind| Message::RouteRefresh(RouteRefresh { family: Family::Ipv4Unicast.into(), kind });
    script.say(one, &[refresh(RefreshKind::Begin)]);
    say(&mut script, one, &[(2, 9), (3, 1)], &[]);
    script.say(one, &[refresh(RefreshKind::End)]);
    assert_eq!(rows(&script, "adj-in"), [(Some(2), Some(9), false), (Some(3), Some(1), true)]);
    hear(&mut script, two);
    script.say(two, &[refresh(RefreshKind::Request)]);
    assert_eq!(hear(&mut script, two), "Begin +10.1.0.0/16#2 +10.1.0.0/16#3 End");
    // What policy refuses is untold, path by path; the session stays.
    let mut narrow = peers();
    narrow[0].accept.clear();
    script.outputs = script.speaker.set_peers(narrow, NOW).unwrap();
    assert_eq!(hear(&mut script, two), "-10.1.0.0/16#2 -10.1.0.0/16#3");
}

#[test]
fn directions_are_agreed_on_by_family() {
    let (send, receive) = (AddPath { send: true, receive: false }, AddPath { send: false, receive: true });
    let (ipv4, ipv6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
    let none = BTreeSet::new;
    for (ours, theirs, told, taken) in [
        (BOTH, vec![paths(&[(ipv4, BOTH)])], [ipv4].into(), [ipv4].into()),
        (BOTH, vec![paths(&[(ipv4, send), (ipv6, receive)])], [ipv6].into(), [ipv4].into()),
        (send, vec![paths(&[(ipv4, send), (ipv6, receive)])], [ipv6].into(), none()),
        (receive, vec![paths(&[(ipv4, BOTH), (ipv6, receive)])], none(), [ipv4].into()),
        (AddPath::default(), vec![paths(&[(ipv4, BOTH)])], none(), none()),
        (BOTH, vec![], none(), none()),
        // Several of them, or one family twice.
        (
            BOTH,
            vec![paths(&[(ipv4, send)]), paths(&[(ipv6, send), (ipv4, receive)])],
            none(),
            Family::ALL.into(),
        ),
        // A direction that there is not: all of it is ignored.
        (BOTH, vec![Capability::Other { code: 69, value: [0, 1, 1, 3, 0, 2, 1, 4].into() }], none(), none()),
    ] {
        let mut script = Script::new(vec![PeerConfig { add_path: ours, ..peer(1, 65001) }]);
        let connection = script.accept(1);
        let said = open(1, |open| open.capabilities.extend(theirs.clone()));
        script.say(connection, &[said, Message::Keepalive]);
        let status = script.speaker.peers(NOW).remove(0);
        assert_eq!((status.add_path.send, status.add_path.receive), (told, taken), "{ours:?} {theirs:?}");
        let offered = script.hear(connection).iter().any(|message| match message {
            Message::Open(open) => open.capabilities.contains(&paths(&[(ipv4, ours), (ipv6, ours)])),
            _ => false,
        });
        assert_eq!(offered, ours != AddPath::default());
    }
}

#[test]
fn paths_without_number() {
    let mut script = Script::new(peers());
    let [one, two] = [1, 2].map(|host| establish(&mut script, host));
    let many: Vec<(u32, u32)> = (0..70).map(|path| (path * 7, path)).collect();
    say(&mut script, one, &many, &[]);
    let status = script.speaker.peers(NOW).remove(0);
    assert_eq!(status.prefixes_received, 64);
    assert_eq!(status.last_error.as_deref(), Some("more than 64 paths of 10.1.0.0/16: not taken"));
    assert_eq!(hear(&mut script, two).split(' ').count(), 64);
    // Those that are there may change, and one that goes makes room.
    say(&mut script, one, &[(0, 999), (490, 1)], &[7]);
    assert_eq!(script.speaker.peers(NOW).remove(0).prefixes_received, 64);
    assert!(rows(&script, "adj-in").contains(&(Some(0), Some(999), false)));
    // They count for the limit.
    let mut limited = peers();
    limited[0].max_prefixes = Some(63);
    script.outputs = script.speaker.set_peers(limited, NOW).unwrap();
    assert!(script.last(one).unwrap().contains("Maximum Number of Prefixes"));
    assert_eq!(hear(&mut script, two).split(' ').count(), 64, "all withdrawn");
}

/// What was told by an identifier is stale until it is told again by the same one, or End-of-RIB comes.
#[test]
fn paths_over_a_restart() {
    let mut all = peers();
    all[0].graceful_restart = Some(60);
    let mut script = Script::new(all);
    let session = |script: &mut Script, restarting| {
        let restart = GracefulRestart {
            restarting,
            notification: false,
            seconds: 60,
            families: vec![(Family::Ipv4Unicast.into(), true)],
        };
        let connection = script.accept(1);
        let said = open(1, |open| {
            open.capabilities
                .extend([paths(&[(Family::Ipv4Unicast, BOTH)]), Capability::GracefulRestart(restart)]);
        });
        script.say(connection, &[said, Message::Keepalive]);
        connection
    };
    let one = session(&mut script, false);
    say(&mut script, one, &[(1, 1), (2, 2)], &[]);
    script.outputs = script.speaker.handle(Input::Closed { connection: one, reason: "gone".to_owned() }, NOW);
    assert_eq!(rows(&script, "adj-in").len(), 2);
    let one = session(&mut script, true);
    say(&mut script, one, &[(2, 2), (9, 9)], &[]);
    let stale =
        |script: &Script| script.speaker.peers(NOW)[0].graceful_restart.clone().unwrap().stale_prefixes;
    assert_eq!((rows(&script, "adj-in").len(), stale(&script)), (3, 1));
    script.say(one, &[Message::EndOfRib(Family::Ipv4Unicast)]);
    assert_eq!(rows(&script, "adj-in"), [(Some(2), Some(2), true), (Some(9), Some(9), false)]);
}
