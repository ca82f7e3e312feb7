//! What is installed: equal paths, those of the peers that are meant, through changes, restarts and the end.
use super::{sim::World, *};
use crate::speaker::Speaker;
use std::time::Duration;

const PREFIX: &str = "198.51.100.0/24";

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Host 0, which installs what hosts 1 to 3 tell; `change` is made to each of them, at both ends.
fn world(change: impl Fn(&mut PeerConfig)) -> World {
    let mut world = World::new(4, 7);
    let config = |host: u8| {
        let mut config = peer(host, 65000 + u32::from(host));
        change(&mut config);
        config
    };
    for host in 1..4_u8 {
        world.with(host.into(), |speaker, now| {
            let mut outputs = speaker.set_global(global(host, 65000 + u32::from(host)), now).unwrap();
            outputs.extend(speaker.set_routes(vec![route(PREFIX, 0)]).unwrap());
            outputs.extend(speaker.set_peers(vec![PeerConfig { install: false, ..config(0) }], now).unwrap());
            outputs
        });
    }
    start(&mut world, config);
    world.run(seconds(20));
    world
}

fn start(world: &mut World, config: impl Fn(u8) -> PeerConfig) {
    world.with(0, |speaker, now| {
        let installing = |host| PeerConfig { install: true, ..config(host) };
        let mut outputs = speaker.set_global(global(0, 65000), now).unwrap();
        outputs.extend(speaker.set_peers((1..4).map(installing).collect(), now).unwrap());
        outputs.extend(speaker.routes_complete());
        outputs
    });
}

fn gateways(world: &World) -> Vec<u8> {
    let installed = world.nodes[0].installed.get(&PREFIX.parse().unwrap()).into_iter().flatten();
    installed
        .map(|gateway| match gateway {
            IpAddr::V4(gateway) => gateway.octets()[3],
            IpAddr::V6(_) => unreachable!(),
        })
        .collect()
}

#[test]
fn equal_paths_are_installed_together() {
    let mut world = world(|_| ());
    assert_eq!((gateways(&world), world.nodes[0].settled), (vec![1, 2, 3], true));
    // One that is not the best of them goes, and comes back longer, and as before.
    for (routes, installed) in [
        (vec![], vec![1, 2]),
        (
            vec![Route {
                attributes: RouteAttributes { prepend: 1, ..Default::default() },
                ..route(PREFIX, 0)
            }],
            vec![1, 2],
        ),
        (vec![route(PREFIX, 0)], vec![1, 2, 3]),
    ] {
        world.with(3, |speaker, _| speaker.set_routes(routes).unwrap());
        world.run(seconds(1));
        assert_eq!(gateways(&world), installed);
    }
    // A route of our own is nothing to install.
    for (routes, installed) in [(vec![route(PREFIX, 0)], vec![]), (vec![], vec![1, 2, 3])] {
        world.with(0, |speaker, _| speaker.set_routes(routes).unwrap());
        world.run(seconds(1));
        assert_eq!(gateways(&world), installed);
    }
}

#[test]
fn only_what_is_to_be_installed_is() {
    let mut world = world(|_| ());
    let set = |world: &mut World, installing: &[u8]| {
        let config =
            |host| PeerConfig { install: installing.contains(&host), ..peer(host, 65000 + u32::from(host)) };
        world.with(0, |speaker, now| speaker.set_peers((1..4).map(config).collect(), now).unwrap());
        assert_eq!(gateways(world), installing);
    };
    set(&mut world, &[1, 3]);
    set(&mut world, &[]);
    set(&mut world, &[2]);
    world.with(2, |speaker, now| speaker.set_peers(vec![], now).unwrap());
    world.run(seconds(1));
    assert!(gateways(&world).is_empty());
}

#[test]
fn what_is_kept_at_the_end() {
    for (graceful_restart, kept) in [(None, vec![]), (Some(60), vec![1, 2, 3])] {
        let mut world = world(|config| config.graceful_restart = graceful_restart);
        world.with(0, |speaker, now| speaker.shutdown(now));
        assert_eq!(gateways(&world), kept);
        // The next life tells the kernel the same, and only then that the rest may go.
        let mut restarted = Speaker::new(8).restarted();
        restarted.install(1);
        world.replace(0, restarted);
        start(&mut world, |host| PeerConfig { graceful_restart, ..peer(host, 65000 + u32::from(host)) });
        assert_eq!((gateways(&world), world.nodes[0].settled), (kept, graceful_restart.is_none()));
        world.run(seconds(20));
        assert_eq!((gateways(&world), world.nodes[0].settled), (vec![1, 2, 3], true));
    }
}

/// A peer without graceful restart beside those with it: only its way goes.
#[test]
fn a_way_to_a_peer_that_forgets_us_is_not_kept() {
    let mut world = world(|config| {
        config.graceful_restart = (config.address != address(2)).then_some(60);
    });
    world.with(0, |speaker, now| speaker.shutdown(now));
    assert_eq!(gateways(&world), [1, 3]);
}
