//! What the speaker wants watched, and what a failed path does.
use super::{sim::World, *};
use crate::{
    bfd::{Hops, Path},
    config::{Bfd, State},
    speaker::Input,
};
use std::time::Duration;

const BFD: Bfd = Bfd { min_tx_millis: 50, min_rx_millis: 50, multiplier: 3 };

/// Speakers 1 and 2 with a session; 1 is configured like this, and its path is not watched by 2.
fn world(asn: u32, change: impl Fn(&mut PeerConfig)) -> World {
    let mut world = World::new(3, 1);
    world.with(1, |speaker, now| speaker.set_global(global(1, 65001), now).unwrap());
    world.with(2, |speaker, now| speaker.set_global(global(2, asn), now).unwrap());
    world.with(2, |speaker, now| speaker.set_peers(vec![peer(1, 65001)], now).unwrap());
    world.with(2, |speaker, _| speaker.set_routes(vec![route("10.1.0.0/16", 1)]).unwrap());
    configure(&mut world, asn, change);
    world
}

fn configure(world: &mut World, asn: u32, change: impl Fn(&mut PeerConfig)) {
    let mut config = PeerConfig { bfd: Some(BFD), ..peer(2, asn) };
    change(&mut config);
    world.with(1, |speaker, now| speaker.set_peers(vec![config], now).unwrap());
}

fn path(local: Option<u8>, hops: Option<Hops>) -> Option<Path> {
    Some(Path { address: address(2), scope: 0, local: local.map(address), hops, config: BFD })
}

fn watched(world: &World) -> Option<Path> {
    let watched = &world.nodes[1].watched;
    assert!(watched.len() <= 1);
    watched.first().map(|(peer, path)| {
        assert_eq!(*peer, address(2).into());
        *path
    })
}

#[test]
fn a_path_is_watched_from_the_beginning_with_the_ends_of_the_session() {
    for (asn, multihop_ttl, hops) in
        [(65002, None, Some(Hops::Single)), (65002, Some(4), Some(Hops::Multi)), (65001, None, None)]
    {
        let mut world = world(asn, |config| config.multihop_ttl = multihop_ttl);
        assert_eq!(watched(&world), path(None, hops));
        world.run(Duration::from_secs(1));
        assert_eq!((world.state(1, 2), watched(&world)), (State::Established, path(Some(1), hops)));
        // The session ends: the path is watched on.
        world.with(2, |speaker, now| speaker.set_peers(vec![], now).unwrap());
        world.run(Duration::from_secs(1));
        assert_ne!(world.state(1, 2), State::Established);
        assert_eq!(watched(&world), path(Some(1), hops));
        world.with(1, |speaker, now| speaker.set_peers(vec![], now).unwrap());
        assert_eq!(watched(&world), None);
    }
}

#[test]
fn other_parameters_do_not_reset_the_session() {
    let mut world = world(65002, |_| ());
    world.run(Duration::from_secs(1));
    let changes = world.nodes[1].changes.len();
    let slow = Bfd { min_tx_millis: 1000, ..BFD };
    configure(&mut world, 65002, |config| config.bfd = Some(slow));
    assert_eq!(watched(&world).map(|path| path.config), Some(slow));
    configure(&mut world, 65002, |config| config.bfd = None);
    assert_eq!(watched(&world), None);
    world.run(Duration::from_secs(1));
    assert_eq!(world.nodes[1].changes.len(), changes);
}

#[test]
fn a_failed_path_ends_the_session_at_once() {
    let mut world = world(65002, |_| ());
    world.run(Duration::from_secs(1));
    let learned = |world: &World| world.nodes[1].speaker.routes().iter().any(|row| row.table == "adj-in");
    assert!(learned(&world));
    let failed = |peer| Input::PathFailed { peer: address(peer).into(), control_plane_independent: false };
    world.input(1, failed(7));
    assert_eq!(world.state(1, 2), State::Established, "of a stranger");
    world.input(1, failed(2));
    assert_ne!(world.state(1, 2), State::Established);
    assert!(!learned(&world));
    let error = |world: &World, host: usize| world.nodes[host].speaker.peers(world.now)[0].last_error.clone();
    assert_eq!(error(&world, 1).as_deref(), Some("sent Cease/BFD Down"));
    world.run(Duration::from_millis(10));
    assert_eq!(error(&world, 2).as_deref(), Some("received Cease/BFD Down"));
    // BFD does not hold the next session back.
    world.run(Duration::from_secs(20));
    assert!(learned(&world));
}

/// RFC 5882 section 4.3.
#[test]
fn where_routes_outlive_a_restart_the_c_bit_decides() {
    for control_plane_independent in [false, true] {
        let mut world = world(65002, |config| config.graceful_restart = Some(60));
        let keeping = PeerConfig { graceful_restart: Some(60), ..peer(1, 65001) };
        world.with(2, |speaker, now| speaker.set_peers(vec![keeping], now).unwrap());
        world.run(Duration::from_secs(30));
        let learned = |world: &World| world.nodes[1].speaker.routes().iter().any(|row| row.table == "adj-in");
        assert!(learned(&world));
        world.input(1, Input::PathFailed { peer: address(2).into(), control_plane_independent });
        assert_ne!(world.state(1, 2), State::Established);
        assert_eq!(learned(&world), !control_plane_independent);
        world.input(1, Input::PathFailed { peer: address(2).into(), control_plane_independent: true });
        assert!(!learned(&world), "what is kept goes with the forwarding path");
    }
}
