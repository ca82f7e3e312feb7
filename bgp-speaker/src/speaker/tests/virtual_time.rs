//! Two speakers and more: they converge, whatever happened before.
use super::{sim::World, *};
use crate::{
    config::State,
    speaker::{Input, Output},
};
use proptest::prelude::*;
use std::{collections::BTreeMap, time::Duration};

const SECOND: Duration = Duration::from_secs(1);

/// Two speakers that dial each other.
fn pair(asns: [u32; 2], seed: u64) -> World {
    let mut world = World::new(2, seed);
    for (host, other) in [(0, 1), (1, 0)] {
        world.with(host, |speaker, now| {
            speaker.set_global(global(host as u8, asns[host]).with_id(host), now).unwrap()
        });
        world
            .with(host, |speaker, now| speaker.set_peers(vec![peer(other as u8, asns[other])], now).unwrap());
    }
    world
}

impl Global {
    /// Identifiers must not be 0.0.0.0, and host 0 is there.
    fn with_id(mut self, host: usize) -> Self {
        self.router_id = Ipv4Addr::new(1, 1, 1, host as u8 + 1);
        self
    }
}

/// Prefix → MED of what a speaker learned.
fn learned(world: &World, host: usize) -> BTreeMap<String, Option<u32>> {
    let rows = world.nodes[host].speaker.routes();
    rows.into_iter()
        .filter(|row| row.table == "adj-in")
        .map(|row| (row.prefix.to_string(), row.med))
        .collect()
}

fn expected(routes: &[Route]) -> BTreeMap<String, Option<u32>> {
    routes.iter().map(|route| (route.prefix.to_string(), route.attributes.med)).collect()
}

#[test]
fn two_speakers_converge_and_hold() {
    for asns in [[65001, 65002], [65001, 65001], [4_200_000_000, 65002]] {
        let mut world = pair(asns, 1);
        let routes = vec![route("10.1.0.0/16", 1), route("2001:db8::/32", 2)];
        world.with(0, |speaker, _| speaker.set_routes(routes.clone()).unwrap());
        world.run(SECOND);
        assert_eq!((world.state(0, 1), world.state(1, 0)), (State::Established, State::Established));
        assert_eq!(learned(&world, 1), expected(&routes));
        // An hour goes by, and nothing happens but keepalives.
        let changes = world.nodes.iter().map(|node| node.changes.len()).sum::<usize>();
        world.run(3600 * SECOND);
        assert_eq!(world.nodes.iter().map(|node| node.changes.len()).sum::<usize>(), changes);
        assert!(world.steps > 4 * 1200, "{}", world.steps);
    }
}

#[test]
fn sessions_are_up_at_once() {
    let mut world = pair([65001, 65002], 2);
    world.run(Duration::from_millis(10));
    assert_eq!((world.state(0, 1), world.state(1, 0)), (State::Established, State::Established));
}

#[test]
fn collisions_leave_one_session_whatever_the_delay() {
    for seed in 0..50 {
        for asns in [[65001, 65002], [65001, 65001]] {
            let mut world = World::new(2, seed);
            world.delay = Duration::from_millis(1 + 7 * (seed % 5));
            let start = |world: &mut World, host: usize| {
                world.with(host, |speaker, now| {
                    speaker.set_global(global(host as u8, asns[host]).with_id(host), now).unwrap()
                });
                let other = 1 - host;
                world.with(host, |speaker, now| {
                    speaker.set_peers(vec![peer(other as u8, asns[other])], now).unwrap()
                });
            };
            let first = (seed % 2) as usize;
            start(&mut world, first);
            world.run(Duration::from_millis(seed % 11));
            start(&mut world, 1 - first);
            world.run(3 * SECOND);
            assert_eq!((world.state(0, 1), world.state(1, 0)), (State::Established, State::Established));
            assert!(
                world
                    .nodes
                    .iter()
                    .all(|node| { node.speaker.slots().all(|(_, slot)| slot.peer.established_count == 1) })
            );
        }
    }
}

#[test]
fn a_cut_link_is_noticed_by_the_hold_timer_and_heals() {
    let mut world = pair([65001, 65002], 3);
    world.with(0, |speaker, _| speaker.set_routes(vec![route("10.1.0.0/16", 1)]).unwrap());
    world.run(SECOND);
    world.cut(0, 1, true);
    world.run(5 * SECOND);
    assert_eq!(world.state(0, 1), State::Established);
    world.run(5 * SECOND);
    for host in [0, 1] {
        assert!(world.state(host, 1 - host) < State::OpenSent);
        let status = &world.nodes[host].speaker.peers(world.now)[0];
        assert_eq!(status.last_error.as_deref(), Some("sent Hold Timer Expired"));
    }
    assert!(learned(&world, 1).is_empty());
    world.cut(0, 1, false);
    world.run(20 * SECOND);
    assert_eq!((world.state(0, 1), world.state(1, 0)), (State::Established, State::Established));
    assert_eq!(learned(&world, 1).len(), 1);
}

#[test]
fn a_slow_network_collides_only_once() {
    let mut world = pair([65001, 65002], 4);
    world.delay = Duration::from_millis(400);
    world.run(30 * SECOND);
    for host in [0, 1] {
        assert_eq!(world.state(host, 1 - host), State::Established);
        let (_, slot) = world.nodes[host].speaker.slots().next().unwrap();
        assert_eq!(slot.peer.established_count, 1);
    }
}

#[test]
fn a_transit_router_passes_on_and_takes_back() {
    // 0 - 1 - 2
    let mut world = World::new(3, 5);
    for host in 0..3 {
        world.with(host, |speaker, now| {
            speaker.set_global(global(host as u8, 65000 + host as u32).with_id(host), now).unwrap()
        });
    }
    world.with(0, |speaker, now| speaker.set_peers(vec![peer(1, 65001)], now).unwrap());
    world.with(1, |speaker, now| speaker.set_peers(vec![peer(0, 65000), peer(2, 65002)], now).unwrap());
    world.with(2, |speaker, now| speaker.set_peers(vec![peer(1, 65001)], now).unwrap());
    let routes = vec![route("10.1.0.0/16", 1), route("2001:db8::/32", 2)];
    world.with(0, |speaker, _| speaker.set_routes(routes.clone()).unwrap());
    world.run(SECOND);
    let rows = world.nodes[2].speaker.routes();
    let row = rows.iter().find(|row| row.table == "adj-in").unwrap();
    assert_eq!((row.as_path.as_str(), row.med), ("65001 65000", None));
    assert_eq!(row.next_hop, Some(address(1)));
    assert_eq!(learned(&world, 2).len(), 2);
    // The policy changes: what was passed on is taken back, the session stays.
    let mut quiet = peer(2, 65002);
    quiet.export_learned = false;
    world.with(1, |speaker, now| speaker.set_peers(vec![peer(0, 65000), quiet], now).unwrap());
    world.run(SECOND);
    assert_eq!((learned(&world, 2).len(), world.state(2, 1)), (0, State::Established));
    world.with(1, |speaker, now| speaker.set_peers(vec![peer(0, 65000), peer(2, 65002)], now).unwrap());
    world.run(SECOND);
    assert_eq!(learned(&world, 2).len(), 2);
    // The source goes away.
    world.with(0, |speaker, now| speaker.shutdown(now));
    world.run(SECOND);
    assert_eq!(learned(&world, 2).len(), 0);
    let status = &world.nodes[1].speaker.peers(world.now)[0];
    assert_eq!(status.last_error.as_deref(), Some("received Cease/Administrative Shutdown"));
}

#[test]
fn an_import_policy_asks_again() {
    let mut world = pair([65001, 65002], 6);
    world.with(0, |speaker, _| {
        speaker.set_routes(vec![route("10.1.0.0/16", 1), route("10.2.0.0/16", 1)]).unwrap()
    });
    let accept = |world: &mut World, entries: &[&str]| {
        let mut config = peer(0, 65001);
        config.accept = entries.iter().map(|entry| entry.parse().unwrap()).collect();
        world.with(1, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
        world.run(SECOND);
        (learned(world, 1).len(), world.nodes[1].speaker.peers(world.now)[0].established_count)
    };
    assert_eq!(accept(&mut world, &[]), (0, 1));
    assert_eq!(accept(&mut world, &["10.1.0.0/16"]), (1, 1));
    assert_eq!(accept(&mut world, &["10.0.0.0/8"]), (2, 1));
    assert_eq!(accept(&mut world, &["10.2.0.0/16"]), (1, 1));
}

#[test]
fn too_many_prefixes_end_the_session() {
    let mut world = pair([65001, 65002], 7);
    let mut config = peer(0, 65001);
    config.max_prefixes = Some(2);
    world.with(1, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
    let routes = |count: u8| (0..count).map(|net| route(&format!("10.{net}.0.0/16"), 1)).collect();
    world.with(0, |speaker, _| speaker.set_routes(routes(2)).unwrap());
    world.run(SECOND);
    assert_eq!((world.state(1, 0), learned(&world, 1).len()), (State::Established, 2));
    world.with(0, |speaker, _| speaker.set_routes(routes(3)).unwrap());
    world.run(Duration::from_millis(100));
    assert!(world.state(1, 0) < State::Established);
    let status = &world.nodes[0].speaker.peers(world.now)[0];
    let expected = "received Cease/Maximum Number of Prefixes Reached (00010100000002)";
    assert_eq!(status.last_error.as_deref(), Some(expected));
}

#[test]
fn a_change_that_matters_resets_that_peer_only() {
    let mut world = World::new(3, 8);
    for host in 0..3 {
        world.with(host, |speaker, now| {
            speaker.set_global(global(host as u8, 65000 + host as u32).with_id(host), now).unwrap()
        });
    }
    world.with(0, |speaker, now| speaker.set_peers(vec![peer(1, 65001), peer(2, 65002)], now).unwrap());
    world.with(1, |speaker, now| speaker.set_peers(vec![peer(0, 65000)], now).unwrap());
    world.with(2, |speaker, now| speaker.set_peers(vec![peer(0, 65000)], now).unwrap());
    world.run(SECOND);
    let mut changed = peer(2, 65002);
    changed.timers.hold_seconds = 30;
    world.with(0, |speaker, now| speaker.set_peers(vec![peer(1, 65001), changed], now).unwrap());
    world.run(5 * SECOND);
    let status = world.nodes[0].speaker.peers(world.now);
    assert_eq!(status.iter().map(|peer| peer.established_count).collect::<Vec<_>>(), [1, 2]);
    let other = &world.nodes[2].speaker.peers(world.now)[0];
    assert_eq!(other.last_error.as_deref(), Some("received Cease/Other Configuration Change"));
    world.with(0, |speaker, now| speaker.set_peers(vec![peer(1, 65001)], now).unwrap());
    world.run(SECOND);
    let other = &world.nodes[2].speaker.peers(world.now)[0];
    assert_eq!(other.last_error.as_deref(), Some("received Cease/Peer De-configured"));
}

#[test]
fn unchanged_routes_are_not_sent_again() {
    let mut world = pair([65001, 65002], 9);
    let routes = vec![route("10.1.0.0/16", 1), route("10.2.0.0/16", 1)];
    world.with(0, |speaker, _| speaker.set_routes(routes.clone()).unwrap());
    world.run(SECOND);
    let sent = |world: &World| world.nodes[0].speaker.peers(world.now)[0].messages_sent;
    let before = sent(&world);
    world.with(0, |speaker, _| speaker.set_routes(routes).unwrap());
    assert_eq!(sent(&world), before);
    // A flap between two looks at the socket is not seen at all.
    let flap = |speaker: &mut crate::speaker::Speaker| {
        let outputs = speaker.set_routes(vec![]).unwrap();
        assert!(outputs.iter().any(|output| matches!(output, Output::Transmit { .. })));
        speaker.set_routes(vec![route("10.1.0.0/16", 1), route("10.2.0.0/16", 1)]).unwrap()
    };
    world.with(0, |speaker, _| flap(speaker));
    assert_eq!(sent(&world), before);
    world.with(0, |speaker, _| {
        speaker.set_routes(vec![route("10.1.0.0/16", 1), route("10.2.0.0/16", 2)]).unwrap()
    });
    assert_eq!(sent(&world), before + 1);
}

#[test]
fn routes_for_some_peers() {
    let mut world = pair([65001, 65002], 10);
    let mut named = route("10.1.0.0/16", 1);
    named.peers = Some([address(1).into()].into());
    let mut others = route("10.2.0.0/16", 2);
    others.peers = Some([address(7).into()].into());
    let all = [route("10.1.0.0/16", 5), route("10.2.0.0/16", 6), route("10.3.0.0/16", 7)];
    world.with(0, |speaker, _| speaker.set_routes([vec![named, others], all.to_vec()].concat()).unwrap());
    world.run(SECOND);
    let meds: Vec<_> = learned(&world, 1).into_values().collect();
    assert_eq!(meds, [Some(1), Some(6), Some(7)]);
}

#[test]
fn bytes_of_nobody_do_nothing() {
    let mut world = pair([65001, 65002], 11);
    world.run(SECOND);
    for node in &mut world.nodes {
        let connection = node.speaker.accept_id();
        assert_eq!(node.speaker.handle(Input::Received { connection, bytes: &[0; 100] }, world.now), []);
    }
}

/// Something that happens to the network of two.
#[derive(Clone, Debug)]
enum Flap {
    Run(u64),
    Cut(bool),
    Reset,
    Routes(usize, Vec<(u8, u32)>),
    Accept(usize, bool),
    Learned(usize, bool),
    Delay(u64),
}

fn flap() -> impl Strategy<Value = Flap> {
    let routes = prop::collection::btree_map(0u8..6, 0u32..3, 0..6);
    prop_oneof![
        4 => (0u64..6000).prop_map(Flap::Run),
        1 => any::<bool>().prop_map(Flap::Cut),
        1 => Just(Flap::Reset),
        4 => (0usize..2, routes).prop_map(|(host, routes)| Flap::Routes(host, routes.into_iter().collect())),
        1 => (0usize..2, any::<bool>()).prop_map(|(host, all)| Flap::Accept(host, all)),
        1 => (0usize..2, any::<bool>()).prop_map(|(host, all)| Flap::Learned(host, all)),
        1 => (1u64..500).prop_map(Flap::Delay),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]
    #[test]
    fn any_flaps_end_in_the_same_routes(
        seed: u64,
        internal: bool,
        graceful: bool,
        flaps in prop::collection::vec(flap(), 1..40),
    ) {
        let asns = [65001, if internal { 65001 } else { 65002 }];
        let mut world = pair(asns, seed);
        let mut routes = [vec![], vec![]];
        let mut configs = [peer(1, asns[1]), peer(0, asns[0])];
        for (host, config) in configs.iter_mut().enumerate() {
            config.graceful_restart = graceful.then_some(60);
            let config = config.clone();
            world.with(host, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
        }
        for flap in flaps {
            match flap {
                Flap::Run(millis) => world.run(Duration::from_millis(millis)),
                Flap::Cut(cut) => world.cut(0, 1, cut),
                Flap::Reset => world.reset(0, 1),
                Flap::Delay(millis) => world.delay = Duration::from_millis(millis),
                Flap::Routes(host, wanted) => {
                    routes[host] = wanted
                        .iter()
                        .map(|(net, med)| route(&format!("10.{net}.{host}.0/24"), *med))
                        .collect();
                    let wanted = routes[host].clone();
                    world.with(host, |speaker, _| speaker.set_routes(wanted).unwrap());
                }
                Flap::Accept(host, all) => {
                    let entry = if all { "0.0.0.0/0" } else { "10.0.0.0/14" };
                    configs[host].accept = vec![entry.parse().unwrap()];
                    let config = configs[host].clone();
                    world.with(host, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
                }
                Flap::Learned(host, all) => {
                    configs[host].export_learned = all;
                    let config = configs[host].clone();
                    world.with(host, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
                }
            }
        }
        world.cut(0, 1, false);
        world.delay = Duration::from_millis(1);
        world.run(Duration::from_secs(60));
        for host in [0, 1] {
            prop_assert_eq!(world.state(host, 1 - host), State::Established);
            let mut wanted = expected(&routes[1 - host]);
            wanted.retain(|prefix, _| {
                let prefix: ipnet::IpNet = prefix.parse().unwrap();
                configs[host].accept.iter().any(|entry| entry.contains(&prefix))
            });
            prop_assert_eq!(learned(&world, host), wanted);
            prop_assert!(!world.nodes[host].speaker.is_pending());
        }
    }
}
