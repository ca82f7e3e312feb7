//! Graceful restart in virtual time: speaker 0 restarts, speaker 1 keeps its routes.
use super::{
    super::restart::{DEFERRAL, STALE},
    sim::World,
    *,
};
use crate::{
    Time,
    config::State,
    speaker::Speaker,
    wire::{Notification, Reason},
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);
/// Restart time of both speakers, seconds.
const AWAY: u16 = 60;

fn keeping(host: u8) -> PeerConfig {
    PeerConfig { graceful_restart: Some(AWAY), ..peer(host, 65001 + u32::from(host)) }
}

fn start(world: &mut World, host: u8, peers: &[u8]) {
    let at = usize::from(host);
    world.with(at, |speaker, now| speaker.set_global(ours(host), now).unwrap());
    let peers = peers.iter().map(|peer| keeping(*peer)).collect();
    world.with(at, |speaker, now| speaker.set_peers(peers, now).unwrap());
}

fn ours(host: u8) -> Global {
    Global { router_id: Ipv4Addr::new(1, 1, 1, host + 1), ..global(host, 65001 + u32::from(host)) }
}

fn announce(world: &mut World, nets: &[u8]) {
    let routes = nets.iter().map(|net| route(&format!("10.{net}.0.0/16"), 1)).collect();
    world.with(0, |speaker, _| speaker.set_routes(routes).unwrap());
}

/// Two speakers with a session, 0 announces 10.1 to 10.3.
fn pair(seed: u64) -> World {
    let mut world = World::new(2, seed);
    start(&mut world, 0, &[1]);
    start(&mut world, 1, &[0]);
    announce(&mut world, &[1, 2, 3]);
    world.run(20 * SECOND);
    assert_eq!(learned(&world), "1 2 3");
    world
}

/// What speaker 1 has of speaker 0: the second octets.
fn learned(world: &World) -> String {
    let rows = world.nodes[1].speaker.routes();
    let nets = rows.iter().filter(|row| row.table == "adj-in").map(|row| match row.prefix.addr() {
        IpAddr::V4(address) => address.octets()[1].to_string(),
        IpAddr::V6(_) => unreachable!(),
    });
    nets.collect::<Vec<_>>().join(" ")
}

/// Stale prefixes, and for how many seconds.
fn stale(world: &World) -> Option<(u64, Option<u64>)> {
    let status = world.nodes[1].speaker.peers(world.now).remove(0).graceful_restart;
    status.map(|status| (status.stale_prefixes, status.stale_seconds))
}

fn is_up(world: &World) -> bool {
    (world.state(0, 1), world.state(1, 0)) == (State::Established, State::Established)
}

/// The process of speaker 0 is another one now: its sockets are closed if the kernel could, its state is gone.
fn replace(world: &mut World, restarted: bool) {
    let speaker = Speaker::new(99);
    world.replace(0, if restarted { speaker.restarted() } else { speaker });
}

#[test]
fn a_session_that_breaks_costs_no_route() {
    let mut world = pair(1);
    world.cut(0, 1, true);
    world.reset(0, 1);
    world.cut(0, 1, false);
    world.run(Duration::from_millis(10));
    assert!(!is_up(&world));
    assert_eq!((learned(&world).as_str(), stale(&world)), ("1 2 3", Some((3, Some(59)))));
    // One of them is not there any more when it is back.
    announce(&mut world, &[1, 3]);
    world.run(5 * SECOND);
    assert!(is_up(&world));
    assert_eq!((learned(&world).as_str(), stale(&world)), ("1 3", Some((0, None))));
    let status = world.nodes[1].speaker.peers(world.now).remove(0).graceful_restart.unwrap();
    assert_eq!((status.restart_seconds, status.notification, status.families.len()), (AWAY, true, 2));
    assert_eq!(status.end_of_rib, status.families);
}

#[test]
fn who_does_not_come_back_is_forgotten() {
    let mut world = pair(2);
    world.cut(0, 1, true);
    // The hold timer of both ends it (RFC 8538), and the restart time begins.
    world.run(10 * SECOND);
    assert!(!is_up(&world));
    assert_eq!(learned(&world), "1 2 3");
    world.run(Duration::from_secs(u64::from(AWAY) - 10));
    assert_eq!(learned(&world), "1 2 3");
    world.run(10 * SECOND);
    assert_eq!((learned(&world).as_str(), stale(&world)), ("", None));
}

#[test]
fn an_upgrade_is_seen_by_nobody() {
    for crash in [false, true] {
        let mut world = pair(3);
        if !crash {
            world.with(0, |speaker, now| speaker.shutdown(now));
        }
        replace(&mut world, true);
        world.run(SECOND);
        let error = world.nodes[1].speaker.peers(world.now)[0].last_error.clone().unwrap();
        assert_eq!((error.as_str(), learned(&world).as_str()), ("connection: closed", "1 2 3"), "no Cease");
        start(&mut world, 0, &[1]);
        // The session is up long before the program knows its routes: nothing is lost meanwhile.
        world.run(20 * SECOND);
        assert!(is_up(&world));
        assert_eq!(
            (learned(&world).as_str(), stale(&world)),
            ("1 2 3", Some((3, Some(STALE.as_secs() - 20))))
        );
        announce(&mut world, &[1, 3]);
        world.run(SECOND);
        assert_eq!((learned(&world).as_str(), stale(&world).unwrap().0), ("1 2 3", 1));
        // 10.2 is really gone.
        world.with(0, |speaker, _| speaker.routes_complete());
        world.run(SECOND);
        assert_eq!((learned(&world).as_str(), stale(&world)), ("1 3", Some((0, None))));
        let count = world.nodes[1].changes.iter().filter(|(_, state)| *state == State::Established).count();
        assert_eq!(count, 2);
    }
}

#[test]
fn a_program_that_never_says_that_it_is_complete() {
    let mut world = pair(4);
    replace(&mut world, true);
    start(&mut world, 0, &[1]);
    announce(&mut world, &[1]);
    world.run(DEFERRAL - SECOND);
    assert_eq!(learned(&world), "1 2 3");
    world.run(2 * SECOND);
    assert_eq!(learned(&world), "1");
}

/// The machine has booted: what it announced before leads nowhere.
#[test]
fn a_cold_start_ends_what_was_kept() {
    let mut world = pair(5);
    replace(&mut world, false);
    start(&mut world, 0, &[1]);
    world.run(Duration::from_millis(100));
    assert!(is_up(&world));
    assert_eq!((learned(&world).as_str(), stale(&world)), ("", Some((0, None))));
}

/// A peer that loses its power says nothing at all, and is back before the hold timer knows.
#[test]
fn a_peer_that_comes_back_unannounced_is_believed() {
    let mut world = pair(6);
    world.forget(0, 1);
    replace(&mut world, true);
    start(&mut world, 0, &[1]);
    announce(&mut world, &[1, 2]);
    world.run(Duration::from_millis(100));
    assert!(is_up(&world));
    assert_eq!(learned(&world), "1 2 3");
    world.with(0, |speaker, _| speaker.routes_complete());
    world.run(SECOND);
    assert_eq!(learned(&world), "1 2");
}

#[test]
fn the_second_loss_in_a_row_takes_what_the_first_left() {
    let mut world = pair(7);
    replace(&mut world, true);
    start(&mut world, 0, &[1]);
    announce(&mut world, &[2]);
    world.run(15 * SECOND);
    assert_eq!((learned(&world).as_str(), stale(&world).unwrap().0), ("1 2 3", 2));
    world.reset(0, 1);
    world.run(Duration::from_millis(10));
    assert_eq!((learned(&world).as_str(), stale(&world).unwrap().0), ("2", 1));
}

#[test]
fn who_means_it_takes_the_routes_along() {
    // Not wanted any more; a change of policy; a limit.
    let deconfigured = |world: &mut World| {
        world.with(0, |speaker, now| speaker.set_peers(vec![], now).unwrap());
    };
    let forgotten = |world: &mut World| {
        world.with(1, |speaker, now| speaker.set_peers(vec![], now).unwrap());
    };
    let limited = |world: &mut World| {
        let config = PeerConfig { max_prefixes: Some(2), ..keeping(0) };
        world.with(1, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
    };
    for (name, act, error) in [
        (
            "deconfigured",
            &deconfigured as &dyn Fn(&mut World),
            "received Cease/Hard Reset (Cease/Peer De-configured)",
        ),
        ("forgotten", &forgotten, ""),
        ("limited", &limited, "sent Cease/Maximum Number of Prefixes Reached (00010100000002)"),
    ] {
        let mut world = pair(8);
        act(&mut world);
        world.run(Duration::from_millis(10));
        assert_eq!(learned(&world), "", "{name}");
        let peers = world.nodes[1].speaker.peers(world.now);
        assert_eq!(peers.first().and_then(|peer| peer.last_error.as_deref()).unwrap_or_default(), error);
    }
    // Another hold time needs another session, and that is all.
    let mut world = pair(9);
    let mut config = keeping(1);
    config.timers.hold_seconds = 30;
    world.with(0, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
    world.run(Duration::from_millis(1));
    assert_eq!((learned(&world).as_str(), stale(&world).unwrap().0), ("1 2 3", 3));
    world.run(10 * SECOND);
    assert_eq!((learned(&world).as_str(), stale(&world)), ("1 2 3", Some((0, None))));
    assert!(!Notification::from(Reason::OTHER_CONFIGURATION_CHANGE).is_hard());
}

/// Policy binds what is kept, too, and what is kept of a peer that is removed goes.
#[test]
fn kept_routes_follow_the_configuration() {
    let mut world = pair(10);
    world.cut(0, 1, true);
    world.run(10 * SECOND);
    let narrow = PeerConfig { accept: vec!["10.2.0.0/16".parse().unwrap()], ..keeping(0) };
    world.with(1, |speaker, now| speaker.set_peers(vec![narrow], now).unwrap());
    assert_eq!((learned(&world).as_str(), stale(&world).unwrap().0), ("2", 1));
    world.with(1, |speaker, now| speaker.set_peers(vec![], now).unwrap());
    assert_eq!(learned(&world), "");
}

/// 1 passes on what 0 told, to 2. When 1 restarts, 2 loses nothing, though 1 comes to know 0 late.
#[test]
fn learned_routes_wait_for_all_peers() {
    let mut world = World::new(3, 11);
    start(&mut world, 0, &[1]);
    start(&mut world, 2, &[1]);
    start(&mut world, 1, &[0, 2]);
    announce(&mut world, &[1, 2, 3]);
    world.run(20 * SECOND);
    let known = |world: &World| {
        let rows = world.nodes[2].speaker.routes();
        let stale = world.nodes[2].speaker.peers(world.now).remove(0).graceful_restart.unwrap();
        (rows.iter().filter(|row| row.table == "adj-in").count(), stale.stale_prefixes)
    };
    assert_eq!(known(&world), (3, 0));
    world.cut(0, 1, true);
    world.replace(1, Speaker::new(77).restarted());
    start(&mut world, 1, &[0, 2]);
    world.with(1, |speaker, _| speaker.routes_complete());
    world.run(5 * SECOND);
    assert_eq!((world.state(1, 2), known(&world)), (State::Established, (3, 3)));
    world.cut(0, 1, false);
    announce(&mut world, &[1, 2]);
    world.run(20 * SECOND);
    assert_eq!((world.state(1, 0), known(&world)), (State::Established, (2, 0)));
}

/// Who is not to keep routes keeps none, whoever leaves, though it says that it knows End-of-RIB.
#[test]
fn without_families_nothing_is_kept() {
    for (leaves, said) in [(0, "connection: closed"), (1, "received Cease/Administrative Shutdown")] {
        let mut world = pair(12);
        let plain = PeerConfig { graceful_restart: None, ..keeping(0) };
        world.with(1, |speaker, now| speaker.set_peers(vec![plain], now).unwrap());
        world.run(10 * SECOND);
        assert_eq!((is_up(&world), stale(&world), learned(&world).as_str()), (true, None, "1 2 3"));
        let offered = world.nodes[0].speaker.peers(world.now).remove(0).graceful_restart.unwrap();
        assert_eq!((offered.restart_seconds, offered.notification, offered.families.len()), (0, false, 0));
        world.with(leaves, |speaker, now: Time| speaker.shutdown(now));
        world.run(SECOND);
        let peers = world.nodes[1 - leaves].speaker.peers(world.now);
        assert_eq!(peers[0].last_error.as_deref(), Some(said));
        assert_eq!(learned(&world), "");
    }
}
