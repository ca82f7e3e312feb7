//! One speaker and peers that follow a script, message by message.
mod add_path;
mod down;
mod kept;
mod ranges;
mod status;
mod stream;

use super::*;
use crate::{
    ConnectionId, Endpoints, Time,
    config::State,
    speaker::{Input, Output, Speaker},
    wire::{
        self, AfiSafi, Announcement, AsPath, Attributes, Capability, Context, Message, Open, Reach,
        RefreshKind, RouteRefresh, Update,
    },
};
use ipnet::IpNet;
use std::{net::SocketAddr, time::Duration};

pub(super) const NOW: Time = Duration::from_secs(10);

/// The speaker is 10.0.0.9, AS 65000, identifier 10.0.0.9.
pub(super) struct Script {
    pub(super) speaker: Speaker,
    pub(super) outputs: Vec<Output>,
}

impl Script {
    pub(super) fn new(peers: Vec<PeerConfig>) -> Self {
        let mut script = Script { speaker: Speaker::new(1), outputs: Vec::new() };
        script.speaker.set_global(global(9, 65000), NOW).unwrap();
        script.outputs = script.speaker.set_peers(peers, NOW).unwrap();
        script
    }

    /// A connection from 10.0.0.`host`.
    fn accept(&mut self, host: u8) -> ConnectionId {
        let connection = self.speaker.accept_id();
        self.outputs = self.speaker.handle(Input::Accepted { connection, endpoints: endpoints(host) }, NOW);
        connection
    }

    /// Answers the last dial.
    fn answer(&mut self, host: u8) -> ConnectionId {
        let connect = |output: &Output| match output {
            Output::Connect { connection, .. } => Some(*connection),
            _ => None,
        };
        let connection = self.outputs.iter().find_map(connect).expect("it dials");
        self.outputs = self.speaker.handle(Input::Connected { connection, endpoints: endpoints(host) }, NOW);
        connection
    }

    pub(super) fn say(&mut self, connection: ConnectionId, messages: &[Message]) {
        let mut bytes = Vec::new();
        for message in messages {
            message.encode(&context(), &mut bytes).unwrap();
        }
        self.outputs = self.speaker.handle(Input::Received { connection, bytes: &bytes }, NOW);
    }

    /// Takes everything that is to be sent.
    pub(super) fn hear(&mut self, connection: ConnectionId) -> Vec<Message> {
        let mut bytes = Vec::new();
        self.speaker.transmit(connection, usize::MAX / 2, &mut bytes);
        messages(&bytes)
    }

    pub(super) fn establish(&mut self, host: u8) -> ConnectionId {
        let connection = self.accept(host);
        self.say(connection, &[open(host, |_| ()), Message::Keepalive]);
        connection
    }

    /// The last words on a connection that was closed; none: it lives.
    pub(super) fn last(&self, connection: ConnectionId) -> Option<String> {
        self.outputs.iter().find_map(|output| match output {
            Output::Close { connection: closed, last } if *closed == connection => {
                let last = messages(last).pop();
                Some(match last {
                    Some(Message::Notification(notification)) => notification.to_string(),
                    _ => String::new(),
                })
            }
            _ => None,
        })
    }

    fn state(&self) -> State {
        self.speaker.slots().next().unwrap().1.peer.state()
    }
}

pub(super) fn endpoints(host: u8) -> Endpoints {
    let end = |host| SocketAddr::new(address(host), 179);
    let v6: IpAddr = "fd00::9".parse().unwrap();
    Endpoints {
        local: end(9),
        remote: end(host),
        next_hops: [(Family::Ipv4Unicast, address(9).into()), (Family::Ipv6Unicast, v6.into())].into(),
    }
}

pub(super) fn context() -> Context {
    let families = Family::ALL.into();
    Context { four_octet_as: true, families, ..Context::default() }
}

fn messages(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(message) = wire::frame(bytes, &context()).unwrap() {
        bytes = &bytes[message.len()..];
        messages.push(wire::decode(message, &context()).unwrap().message);
    }
    messages
}

/// The OPEN of 10.0.0.`host`, AS 65000 + host.
fn open(host: u8, change: impl FnOnce(&mut Open)) -> Message {
    let asn = Asn(65000 + u32::from(host));
    let mut open = Open {
        asn,
        hold_seconds: 90,
        router_id: Ipv4Addr::new(10, 0, 0, host),
        capabilities: vec![
            Capability::MultiProtocol(Family::Ipv4Unicast.into()),
            Capability::MultiProtocol(Family::Ipv6Unicast.into()),
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::FourOctetAs(asn),
        ],
    };
    change(&mut open);
    Message::Open(open)
}

pub(super) fn told(host: u8, prefixes: &[&str]) -> Message {
    let attributes =
        Attributes { as_path: AsPath::sequence([65000 + u32::from(host)]), ..Attributes::default() };
    let reach = Reach {
        next_hop: address(host).into(),
        prefixes: prefixes.iter().map(|prefix| prefix.parse::<IpNet>().unwrap().into()).collect(),
    };
    Message::Update(Update {
        withdrawn: vec![],
        announced: Some(Announcement { attributes, reach: vec![reach] }),
    })
}

/// UPDATEs in words: `-prefix` withdrawn, `+prefix` announced, `end` End-of-RIB, `begin`/`refreshed` RFC 7313.
pub(super) fn words(messages: &[Message]) -> String {
    let mut words = Vec::new();
    for message in messages {
        match message {
            Message::Update(update) => {
                words.extend(update.withdrawn.iter().map(|prefix| format!("-{prefix}")));
                let reach = update.announced.iter().flat_map(|announced| &announced.reach);
                words.extend(reach.flat_map(|reach| &reach.prefixes).map(|prefix| format!("+{prefix}")));
            }
            Message::EndOfRib(family) => words.push(format!("end({family:?})")),
            Message::RouteRefresh(refresh) => words.push(format!("{:?}", refresh.kind)),
            Message::Open(_) => words.push("OPEN".to_owned()),
            Message::Keepalive => words.push("KEEPALIVE".to_owned()),
            Message::Notification(notification) => words.push(notification.to_string()),
        }
    }
    words.join(" ")
}

#[test]
fn opens_that_are_refused() {
    type Case = (&'static str, fn(&mut Open), Option<&'static str>);
    let cases: [Case; 8] = [
        ("as it should be", |_| (), None),
        (
            "other AS",
            |open| open.capabilities[4] = Capability::FourOctetAs(Asn(7)),
            Some("OPEN Message Error/Bad Peer AS"),
        ),
        (
            "no common family",
            |open| {
                open.capabilities[0] = Capability::MultiProtocol(AfiSafi { afi: 25, safi: 65 });
                open.capabilities[1] = Capability::MultiProtocol(AfiSafi { afi: 1, safi: 128 });
            },
            Some("OPEN Message Error/Unsupported Capability (010400010001010400020001)"),
        ),
        ("no capabilities", |open| open.capabilities.clear(), None),
        ("our identifier, other AS", |open| open.router_id = Ipv4Addr::new(10, 0, 0, 9), None),
        ("hold time 1", |open| open.hold_seconds = 1, Some("OPEN Message Error/Unacceptable Hold Time")),
        ("hold time 0", |open| open.hold_seconds = 0, None),
        (
            "identifier 0",
            |open| open.router_id = Ipv4Addr::UNSPECIFIED,
            Some("OPEN Message Error/Bad BGP Identifier"),
        ),
    ];
    for (name, change, refused) in cases {
        let mut script = Script::new(vec![peer(1, 65001)]);
        let connection = script.accept(1);
        script.say(connection, &[open(1, change)]);
        let last = script.last(connection);
        // Data of the other reasons is the codec's matter.
        let last = last.as_deref().map(|last| match refused {
            Some(refused) if !refused.contains('(') => last.split(" (").next().unwrap(),
            _ => last,
        });
        assert_eq!(last, refused, "{name}");
        let expected = if refused.is_some() { State::Connect } else { State::OpenConfirm };
        assert_eq!(script.state(), expected, "{name}");
    }
    // Inside an AS identifiers are unique (RFC 6286).
    let mut script = Script::new(vec![peer(1, 65000)]);
    let connection = script.accept(1);
    let ours = open(1, |open| {
        open.router_id = Ipv4Addr::new(10, 0, 0, 9);
        open.asn = Asn(65000);
        open.capabilities[4] = Capability::FourOctetAs(Asn(65000));
    });
    script.say(connection, &[ours]);
    assert_eq!(script.last(connection).as_deref(), Some("OPEN Message Error/Bad BGP Identifier"));
}

#[test]
fn messages_at_the_wrong_time() {
    let update = || told(1, &["10.1.0.0/16"]);
    let refresh = || {
        Message::RouteRefresh(RouteRefresh { family: Family::Ipv4Unicast.into(), kind: RefreshKind::Request })
    };
    let (fine, keepalive) = (|| open(1, |_| ()), || Message::Keepalive);
    for (said, state) in [
        (vec![keepalive()], "OpenSent"),
        (vec![update()], "OpenSent"),
        (vec![refresh()], "OpenSent"),
        (vec![fine(), fine()], "OpenConfirm"),
        (vec![fine(), update()], "OpenConfirm"),
        (vec![fine(), refresh()], "OpenConfirm"),
        (vec![fine(), keepalive(), fine()], "Established"),
    ] {
        let mut script = Script::new(vec![peer(1, 65001)]);
        let connection = script.accept(1);
        script.say(connection, &said);
        let expected = format!("Finite State Machine Error/Receive Unexpected Message in {state} State");
        assert_eq!(script.last(connection), Some(expected));
    }
}

/// Two connections, one dialed by us, one by the peer; the OPENs come in either order.
#[test]
fn collisions_in_both_orders() {
    let cease = "Cease/Connection Collision Resolution";
    for (host, peer_wins) in [(1, false), (20, true)] {
        for dialed_first in [true, false] {
            let mut script = Script::new(vec![peer(host, 65000 + u32::from(host))]);
            let dialed = script.answer(host);
            let accepted = script.accept(host);
            let order = if dialed_first { [dialed, accepted] } else { [accepted, dialed] };
            script.say(order[0], &[open(host, |_| ())]);
            assert_eq!(script.outputs.iter().filter(|o| matches!(o, Output::Close { .. })).count(), 0);
            script.say(order[1], &[open(host, |_| ())]);
            let (winner, loser) = if peer_wins { (accepted, dialed) } else { (dialed, accepted) };
            assert_eq!(script.last(loser).as_deref(), Some(cease), "{host} {dialed_first}");
            script.say(winner, &[Message::Keepalive]);
            assert_eq!(script.state(), State::Established);
            // The end of the loser is no error.
            assert_eq!(script.speaker.peers(NOW)[0].last_error, None);
        }
    }
}

/// A peer that dials anew before its session was up has given the older connection up.
#[test]
fn the_newer_of_two_that_came_in_stays() {
    for host in [1, 20] {
        let mut script = Script::new(vec![peer(host, 65000 + u32::from(host))]);
        let old = script.accept(host);
        script.say(old, &[open(host, |_| ())]);
        let new = script.accept(host);
        script.say(new, &[open(host, |_| ())]);
        assert_eq!(script.last(old).as_deref(), Some("Cease/Connection Collision Resolution"));
        script.say(new, &[Message::Keepalive]);
        assert_eq!(script.state(), State::Established);
    }
}

#[test]
fn an_established_session_stays_whatever_else_comes() {
    for host in [1, 20] {
        let mut script = Script::new(vec![peer(host, 65000 + u32::from(host))]);
        let session = script.establish(host);
        let other = script.accept(host);
        script.say(other, &[open(host, |_| ()), Message::Keepalive]);
        assert_eq!(script.last(other).as_deref(), Some("Cease/Connection Collision Resolution"));
        assert_eq!(script.state(), State::Established);
        // A connection that never says anything does not matter either.
        for _ in 0..20 {
            script.accept(host);
        }
        assert!(script.speaker.by_connection.len() <= 6, "and there are not many of them");
        script.say(session, &[Message::Keepalive]);
        assert_eq!(script.state(), State::Established);
    }
}

#[test]
fn a_session_ends_a_dial_under_way() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    script.establish(1);
    let closed = script.outputs.iter().filter(|output| matches!(output, Output::Close { .. })).count();
    assert_eq!(closed, 1);
}

#[test]
fn the_first_dump_ends_with_end_of_rib() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    script.speaker.set_routes(vec![route("10.1.0.0/16", 1), route("2001:db8::/32", 1)]).unwrap();
    let connection = script.establish(1);
    assert_eq!(
        words(&script.hear(connection)),
        "OPEN KEEPALIVE +10.1.0.0/16 end(Ipv4Unicast) +2001:db8::/32 end(Ipv6Unicast)"
    );
    script.speaker.set_routes(vec![route("10.2.0.0/16", 1), route("2001:db8::/32", 2)]).unwrap();
    assert_eq!(words(&script.hear(connection)), "-10.1.0.0/16 +10.2.0.0/16 +2001:db8::/32");
    assert_eq!(words(&script.hear(connection)), "");
}

#[test]
fn a_refresh_sends_everything_again() {
    let mut script = Script::new(vec![peer(1, 65001), peer(2, 65002)]);
    script.speaker.set_routes(vec![route("10.1.0.0/16", 1), route("10.2.0.0/16", 1)]).unwrap();
    let request = Message::RouteRefresh(RouteRefresh {
        family: Family::Ipv4Unicast.into(),
        kind: RefreshKind::Request,
    });
    let connection = script.establish(1);
    script.hear(connection);
    script.say(connection, std::slice::from_ref(&request));
    assert!(script.outputs.contains(&Output::Transmit { connection }));
    assert_eq!(words(&script.hear(connection)), "Begin +10.1.0.0/16 +10.2.0.0/16 End");
    // What is gone meanwhile is withdrawn all the same, and once.
    script.say(connection, &[request.clone(), request.clone()]);
    script.speaker.set_routes(vec![route("10.2.0.0/16", 1)]).unwrap();
    assert_eq!(words(&script.hear(connection)), "Begin -10.1.0.0/16 +10.2.0.0/16 End");
    // Without RFC 7313.
    let connection = script.accept(2);
    let plain = open(2, |open| drop(open.capabilities.remove(3)));
    script.say(connection, &[plain, Message::Keepalive]);
    script.hear(connection);
    script.say(connection, &[request]);
    assert_eq!(words(&script.hear(connection)), "+10.2.0.0/16");
}

#[test]
fn a_refresh_does_not_swallow_end_of_rib() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    // More than a batch, so that the dump can be interrupted.
    let net = |at: u32| IpNet::new(Ipv4Addr::from(0x0a00_0000 | at << 8).into(), 24).unwrap();
    let routes = (0..20_000).map(|at| Route { prefix: net(at), ..route("10.0.0.0/8", 1) });
    script.speaker.set_routes(routes.collect()).unwrap();
    let connection = script.establish(1);
    let mut bytes = Vec::new();
    script.speaker.transmit(connection, 1, &mut bytes);
    script.speaker.transmit(connection, 1, &mut bytes);
    let begun = messages(&bytes).len();
    let request = Message::RouteRefresh(RouteRefresh {
        family: Family::Ipv4Unicast.into(),
        kind: RefreshKind::Request,
    });
    script.say(connection, &[request]);
    let heard = script.hear(connection);
    let count = words(&heard).split(' ').filter(|word| word.starts_with('+')).count();
    assert!(begun > 2 && count == 20_000, "{begun} {count}");
    let rest: Vec<Message> =
        heard.into_iter().filter(|message| !matches!(message, Message::Update(_))).collect();
    assert_eq!(words(&rest), "Begin End end(Ipv4Unicast) end(Ipv6Unicast)");
}

#[test]
fn what_a_refresh_of_the_peer_does_not_confirm_goes() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.establish(1);
    let bound = |kind| Message::RouteRefresh(RouteRefresh { family: Family::Ipv4Unicast.into(), kind });
    script.say(connection, &[told(1, &["10.1.0.0/16", "10.2.0.0/16"]), bound(RefreshKind::Begin)]);
    assert_eq!(script.speaker.peers(NOW)[0].prefixes_received, 2);
    script.say(connection, &[told(1, &["10.2.0.0/16", "10.3.0.0/16"]), bound(RefreshKind::End)]);
    let rows = script.speaker.routes();
    let known: Vec<_> =
        rows.iter().filter(|row| row.table == "adj-in").map(|row| row.prefix.to_string()).collect();
    assert_eq!(known, ["10.2.0.0/16", "10.3.0.0/16"]);
}

#[test]
fn a_peer_that_reads_slowly_hears_the_last_state_only() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.establish(1);
    script.hear(connection);
    for med in 0..1000 {
        let routes = (0..10).map(|net| route(&format!("10.{net}.0.0/16"), med)).collect();
        script.speaker.set_routes(routes).unwrap();
    }
    let heard = script.hear(connection);
    assert_eq!(heard.len(), 1);
    let [Message::Update(Update { announced: Some(announced), .. })] = &heard[..] else { panic!() };
    assert_eq!((announced.attributes.med, announced.reach[0].prefixes.len()), (Some(999), 10));
}

#[test]
fn a_small_window_gets_everything_in_the_end() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let routes: Vec<Route> = (0..=255u8)
        .flat_map(|a| (0..8).map(move |b| route(&format!("10.{a}.{b}.0/24"), u32::from(a))))
        .collect();
    let count = routes.len();
    script.speaker.set_routes(routes).unwrap();
    let connection = script.establish(1);
    let mut bytes = Vec::new();
    loop {
        let before = bytes.len();
        script.speaker.transmit(connection, 1, &mut bytes);
        if bytes.len() == before {
            break;
        }
        assert!(bytes.len() - before < 8192, "about what was asked for");
    }
    let heard = messages(&bytes);
    let announced = words(&heard).split(' ').filter(|word| word.starts_with('+')).count();
    assert_eq!(announced, count);
    // OPEN, KEEPALIVE, an UPDATE for each attribute set, and the ends of both families.
    assert_eq!(heard.len(), 2 + 256 + 2);
}

#[test]
fn a_route_that_fits_into_no_message_is_not_announced() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.establish(1);
    script.hear(connection);
    let mut large = route("10.1.0.0/16", 1);
    script.speaker.set_routes(vec![large.clone(), route("10.2.0.0/16", 1)]).unwrap();
    assert_eq!(words(&script.hear(connection)), "+10.1.0.0/16 +10.2.0.0/16");
    large.attributes.communities = (0..1100).collect();
    script.speaker.set_routes(vec![large, route("10.2.0.0/16", 1)]).unwrap();
    assert_eq!(words(&script.hear(connection)), "-10.1.0.0/16");
    let error = script.speaker.peers(NOW)[0].last_error.clone().unwrap();
    assert!(error.starts_with("cannot announce: "), "{error}");
}

/// A customer of us that says so, says something else, or nothing (RFC 9234 section 4.2).
#[test]
fn roles_must_match() {
    let said = |roles: &'static [u8]| {
        open(1, |open| open.capabilities.extend(roles.iter().map(|role| Capability::Role(*role))))
    };
    for (strict, roles, fits) in [
        (true, &[3][..], true),
        (true, &[3, 3], true),
        (true, &[], false),
        (false, &[], true),
        (false, &[0], false),
        (false, &[3, 4], false),
        (false, &[77], false),
    ] {
        let role = Some(LocalRole { local: Role::Provider, strict });
        let mut script = Script::new(vec![PeerConfig { role, ..peer(1, 65001) }]);
        let connection = script.accept(1);
        script.say(connection, &[said(roles)]);
        let refused = (!fits).then_some("OPEN Message Error/Role Mismatch");
        assert_eq!(script.last(connection).as_deref(), refused, "{strict} {roles:?}");
    }
}

/// What a provider tells is marked, told to a customer, and to no other provider; what comes from a customer with the
/// mark is a leak.
#[test]
fn routes_of_a_provider_are_for_customers() {
    let with = |host: u8, local| {
        let role = Some(LocalRole { local, strict: false });
        PeerConfig { role, ..peer(host, 65000 + u32::from(host)) }
    };
    let mut script =
        Script::new(vec![with(1, Role::Customer), with(2, Role::Customer), with(3, Role::Provider)]);
    let [provider, other, customer] = [1, 2, 3].map(|host| script.establish(host));
    for connection in [provider, other, customer] {
        script.hear(connection);
    }
    script.say(provider, &[told(1, &["10.1.0.0/16"])]);
    assert_eq!(words(&script.hear(other)), "");
    let heard = script.hear(customer);
    let [Message::Update(Update { announced: Some(announced), .. })] = &heard[..] else { panic!() };
    assert_eq!(announced.attributes.otc, Some(Asn(65001)));
    let Message::Update(mut leak) = told(3, &["10.3.0.0/16"]) else { panic!() };
    leak.announced.as_mut().unwrap().attributes.otc = Some(Asn(65001));
    script.say(customer, &[told(3, &["10.4.0.0/16"]), Message::Update(leak)]);
    assert_eq!(words(&script.hear(provider)), "+10.4.0.0/16");
}

/// Where the peer takes longer messages it is announced in one of them (RFC 8654).
#[test]
fn extended_messages_if_both_want_them() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.accept(1);
    let extended = open(1, |open| open.capabilities.push(Capability::ExtendedMessage));
    script.say(connection, &[extended, Message::Keepalive]);
    let mut large = route("10.1.0.0/16", 1);
    large.attributes.communities = (0..1100).collect();
    script.speaker.set_routes(vec![large]).unwrap();
    let mut bytes = Vec::new();
    script.speaker.transmit(connection, usize::MAX / 2, &mut bytes);
    assert!(bytes.len() > wire::MAX_LENGTH);
    let extended = Context { max_length: wire::MAX_EXTENDED_LENGTH, ..context() };
    let (mut rest, mut longest) = (&bytes[..], 0);
    while let Some(message) = wire::frame(rest, &extended).unwrap() {
        rest = &rest[message.len()..];
        longest = longest.max(message.len());
    }
    assert!(longest > 4400 && rest.is_empty(), "{longest}");
    assert_eq!(script.speaker.peers(NOW)[0].last_error, None);
}

#[test]
fn routes_that_came_through_us_are_refused() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.establish(1);
    let path = |asns: &[u32]| {
        let Message::Update(mut update) = told(1, &["10.1.0.0/16"]) else { panic!() };
        update.announced.as_mut().unwrap().attributes.as_path = AsPath::sequence(asns.iter().copied());
        Message::Update(update)
    };
    script.say(connection, &[path(&[65001, 65003])]);
    assert_eq!(script.speaker.peers(NOW)[0].prefixes_received, 1);
    // It takes the place of the one before.
    script.say(connection, &[path(&[65001, 65000, 65003])]);
    assert_eq!(script.speaker.peers(NOW)[0].prefixes_received, 0);
    // Our own address is no next hop.
    let Message::Update(mut update) = told(1, &["10.1.0.0/16"]) else { panic!() };
    update.announced.as_mut().unwrap().reach[0].next_hop = address(9).into();
    script.say(connection, &[Message::Update(update)]);
    assert_eq!(script.speaker.peers(NOW)[0].prefixes_received, 0);
    assert_eq!(script.state(), State::Established);
}

#[test]
fn a_peer_without_route_refresh_needs_no_reset_either() {
    let mut refusing = peer(1, 65001);
    refusing.accept = vec![];
    let mut script = Script::new(vec![refusing]);
    let connection = script.accept(1);
    let plain = open(1, |open| drop(open.capabilities.drain(2..4)));
    let Message::Update(mut looped) = told(1, &["10.2.0.0/16"]) else { panic!() };
    looped.announced.as_mut().unwrap().attributes.as_path = AsPath::sequence([65001, 65000]);
    let told = [told(1, &["10.1.0.0/16"]), Message::Update(looped)];
    script.say(connection, &[vec![plain, Message::Keepalive], told.to_vec()].concat());
    assert_eq!(script.speaker.peers(NOW)[0].prefixes_received, 0);
    script.speaker.set_peers(vec![peer(1, 65001)], NOW).unwrap();
    assert_eq!((script.speaker.peers(NOW)[0].prefixes_received, script.state()), (1, State::Established));
}

#[test]
fn strangers_are_turned_away() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.accept(77);
    assert_eq!(script.outputs, [Output::Close { connection, last: vec![] }]);
}

#[test]
fn a_peer_does_not_hear_its_own_routes() {
    let mut script = Script::new(vec![peer(1, 65001), peer(2, 65002)]);
    let (one, two) = (script.establish(1), script.establish(2));
    script.hear(one);
    script.hear(two);
    script.say(two, &[told(2, &["10.1.0.0/16"])]);
    assert_eq!(words(&script.hear(one)), "+10.1.0.0/16");
    assert_eq!(words(&script.hear(two)), "");
    // Its route becomes the best one: what it was told is no more.
    script.say(one, &[told(1, &["10.1.0.0/16"])]);
    assert_eq!(words(&script.hear(one)), "-10.1.0.0/16");
    assert_eq!(words(&script.hear(two)), "+10.1.0.0/16");
}

#[test]
fn the_dialer_goes_on_when_an_accepted_session_ends() {
    let mut script = Script::new(vec![peer(1, 65001)]);
    let connection = script.establish(1);
    let lost = Input::Closed { connection, reason: "reset".to_owned() };
    script.outputs = script.speaker.handle(lost, NOW);
    assert_eq!(script.state(), State::Active);
    let at = script.speaker.next_deadline().expect("it tries again");
    assert!((NOW + Duration::from_millis(1500)..=NOW + Duration::from_secs(2)).contains(&at), "{at:?}");
    script.outputs = script.speaker.handle(Input::Tick, at);
    assert!(script.outputs.iter().any(|output| matches!(output, Output::Connect { .. })));
    assert_eq!(script.speaker.peers(at)[0].last_error.as_deref(), Some("connection: reset"));
}
