//! Long-lived graceful restart in virtual time: speaker 0 is away for longer than its restart time, speaker 1 keeps its
//! routes as the last choice and tells the others.
use super::{super::restart::STALE, sim::World, *};
use crate::{config::RouteStatus, speaker::Speaker, wire::Community};
use std::{collections::BTreeMap, time::Duration};

const SECOND: Duration = Duration::from_secs(1);
/// Restart time, seconds.
const AWAY: u64 = 60;
/// And how long routes are kept then.
const LONGER: u64 = 600;
/// Of the hold timer.
const HOLD: u64 = 9;

fn lasting(host: u8) -> PeerConfig {
    let asn = 65001 + u32::from(host);
    let long_lived_seconds = both(LONGER as u32);
    PeerConfig { graceful_restart: Some(AWAY as u16), long_lived_seconds, ..peer(host, asn) }
}

fn both(seconds: u32) -> BTreeMap<Family, u32> {
    Family::ALL.map(|family| (family, seconds)).into()
}

fn plain(host: u8, asn: u32) -> PeerConfig {
    PeerConfig { graceful_restart: Some(AWAY as u16), ..peer(host, asn) }
}

fn start(world: &mut World, host: u8, asn: u32, peers: Vec<PeerConfig>) {
    let ours = Global { router_id: Ipv4Addr::new(1, 1, 1, host + 1), ..global(host, asn) };
    world.with(usize::from(host), |speaker, now| speaker.set_global(ours, now).unwrap());
    world.with(usize::from(host), |speaker, now| speaker.set_peers(peers, now).unwrap());
}

/// 10.1, and 10.2 with NO_LLGR.
fn announce(world: &mut World, nets: &[u8]) {
    let route = |net: &u8| {
        let mut route = route(&format!("10.{net}.0.0/16"), 1);
        route.attributes.communities.extend((*net == 2).then_some(Community::NO_LLGR.0));
        route
    };
    let routes = nets.iter().map(route).collect();
    world.with(0, |speaker, _| speaker.set_routes(routes).unwrap());
}

/// 1 has sessions with 0, with 2 (external, the same capability), 3 (external) and 4 (internal).
fn world(seed: u64) -> World {
    let mut world = World::new(5, seed);
    start(&mut world, 0, 65001, vec![lasting(1)]);
    start(&mut world, 1, 65002, vec![lasting(0), lasting(2), plain(3, 65004), plain(4, 65002)]);
    start(&mut world, 2, 65003, vec![lasting(1)]);
    start(&mut world, 3, 65004, vec![plain(1, 65002)]);
    start(&mut world, 4, 65002, vec![plain(1, 65002)]);
    announce(&mut world, &[1, 2]);
    world.run(20 * SECOND);
    for host in 1..5 {
        assert_eq!(learned(&world, host), "1 2");
    }
    world
}

fn rows(world: &World, host: usize) -> Vec<RouteStatus> {
    world.nodes[host].speaker.routes().into_iter().filter(|row| row.table == "adj-in").collect()
}

/// What a speaker was told: second octets, `*` if long stale.
fn learned(world: &World, host: usize) -> String {
    let word = |row: &RouteStatus| {
        let IpAddr::V4(address) = row.prefix.addr() else { unreachable!() };
        let stale = row.communities.iter().any(|community| community == "llgr-stale");
        format!("{}{}", address.octets()[1], if stale { "*" } else { "" })
    };
    rows(world, host).iter().map(word).collect::<Vec<_>>().join(" ")
}

/// Stale prefixes, those of them that are the last choice, and for how many seconds.
fn stale(world: &World) -> (u64, u64, Option<u64>) {
    let status = world.nodes[1].speaker.peers(world.now).remove(0).graceful_restart;
    status.map_or((0, 0, None), |s| (s.stale_prefixes, s.long_lived_prefixes, s.stale_seconds))
}

/// Speaker 0 is out of reach until its restart time is over at 1.
fn long_away(world: &mut World) {
    world.cut(0, 1, true);
    world.run(Duration::from_secs(HOLD + AWAY - 3));
    assert_eq!((learned(world, 1).as_str(), stale(world).0, stale(world).1), ("1 2", 2, 0));
    world.run(Duration::from_secs(10));
    assert_eq!((learned(world, 1).as_str(), stale(world).0, stale(world).1), ("1*", 1, 1));
}

#[test]
fn who_is_long_away_is_the_last_choice() {
    let mut world = world(1);
    long_away(&mut world);
    assert_eq!([2, 3, 4].map(|host| learned(&world, host)), ["1*", "", "1*"].map(str::to_owned));
    let inside = rows(&world, 4).remove(0);
    assert_eq!((inside.local_pref, inside.communities.len()), (Some(0), 2), "and no-export: {inside:?}");
    let outside = rows(&world, 2).remove(0);
    assert_eq!((outside.local_pref, outside.communities.len()), (None, 1), "{outside:?}");
    // It comes back, and all is as before.
    world.cut(0, 1, false);
    world.run(30 * SECOND);
    for host in 1..5 {
        assert_eq!(learned(&world, host), "1 2");
    }
    assert_eq!(stale(&world), (0, 0, None));
    assert_eq!(rows(&world, 4)[0].local_pref, Some(100));
}

#[test]
fn who_never_comes_back_is_forgotten() {
    let mut world = world(2);
    long_away(&mut world);
    world.run(Duration::from_secs(LONGER - 20));
    assert_eq!([1, 2].map(|host| learned(&world, host)), ["1*", "1*"].map(str::to_owned));
    world.run(20 * SECOND);
    assert_eq!([1, 2, 4].map(|host| learned(&world, host)), [""; 3].map(str::to_owned));
    assert_eq!(stale(&world), (0, 0, None));
}

/// It is back for a moment, has not told all, and is away again: the time that it has is not another one.
#[test]
fn a_moment_does_not_prolong_it() {
    let mut world = world(3);
    long_away(&mut world);
    let before = stale(&world).2.unwrap();
    world.cut(0, 1, false);
    world.replace(0, Speaker::new(99).restarted());
    start(&mut world, 0, 65001, vec![lasting(1)]);
    announce(&mut world, &[3]);
    world.run(20 * SECOND);
    assert_eq!((learned(&world, 1).as_str(), stale(&world).0), ("1* 3", 1));
    assert!(stale(&world).2.unwrap() <= STALE.as_secs());
    world.cut(0, 1, true);
    world.reset(0, 1);
    world.run(20 * SECOND);
    assert_eq!((learned(&world, 1).as_str(), stale(&world).1), ("1* 3*", 2));
    assert!(stale(&world).2.unwrap() <= before - 20, "{before} {:?}", stale(&world));
    world.run(Duration::from_secs(before));
    assert_eq!(learned(&world, 1), "");
}

/// The time is over while it tells its routes: it may go on to; but not once more.
#[test]
fn the_end_of_the_time_waits_for_end_of_rib() {
    for lost in [false, true] {
        let mut world = world(4);
        long_away(&mut world);
        world.run(Duration::from_secs(LONGER - 60));
        world.cut(0, 1, false);
        world.replace(0, Speaker::new(99).restarted());
        start(&mut world, 0, 65001, vec![lasting(1)]);
        world.run(100 * SECOND);
        assert_eq!(learned(&world, 1), "1*");
        if lost {
            world.cut(0, 1, true);
            world.reset(0, 1);
        } else {
            world.with(0, |speaker, _| speaker.routes_complete());
        }
        world.run(SECOND);
        assert_eq!(learned(&world, 1), "");
    }
}

#[test]
fn who_does_not_forward_any_more_is_believed() {
    let mut world = world(5);
    long_away(&mut world);
    world.cut(0, 1, false);
    // The machine has booted.
    world.replace(0, Speaker::new(99));
    start(&mut world, 0, 65001, vec![lasting(1)]);
    world.run(20 * SECOND);
    assert_eq!([1, 2, 4].map(|host| learned(&world, host)), [""; 3].map(str::to_owned));
}

/// Without a restart time it begins at once; who does not offer it gets none; nor does who means to go for good.
#[test]
fn when_it_begins() {
    for (ours, theirs, seconds, left) in
        [(true, true, 0, "1*"), (true, false, 0, ""), (false, true, 0, ""), (true, true, 60, "1 2")]
    {
        let mut world = World::new(2, 6);
        let config = |host, offers| {
            let long_lived_seconds = both(if offers { 600 } else { 0 });
            PeerConfig { graceful_restart: Some(seconds), long_lived_seconds, ..lasting(host) }
        };
        start(&mut world, 0, 65001, vec![config(1, theirs)]);
        start(&mut world, 1, 65002, vec![config(0, ours)]);
        announce(&mut world, &[1, 2]);
        world.run(20 * SECOND);
        world.cut(0, 1, true);
        world.reset(0, 1);
        world.run(SECOND);
        world.cut(0, 1, false);
        world.run(Duration::from_micros(10));
        assert_eq!(learned(&world, 1), left, "{ours} {theirs} {seconds}");
        world.run(30 * SECOND);
        assert_eq!(learned(&world, 1), "1 2");
        world.with(0, |speaker, now| speaker.set_peers(vec![], now).unwrap());
        world.run(SECOND);
        assert_eq!(learned(&world, 1), "");
    }
}

/// Each family has its own time: one that was not offered has none.
#[test]
fn each_family_has_its_own_time() {
    let (ipv4, ipv6) = (Family::Ipv4Unicast, Family::Ipv6Unicast);
    // What 0 asks for, and whether 1 offers IPv6: what is left after the restart time, and after 100 s more.
    for (asked, offers_ipv6, first, later) in [
        ([(ipv4, 60), (ipv6, 600)], true, "4 6", "6"),
        ([(ipv4, 600), (ipv6, 60)], true, "4 6", "4"),
        ([(ipv4, 0), (ipv6, 600)], true, "6", "6"),
        ([(ipv4, 600), (ipv6, 600)], false, "4", "4"),
    ] {
        let mut world = World::new(2, 7);
        let config = |host, long_lived_seconds| PeerConfig { long_lived_seconds, ..lasting(host) };
        start(&mut world, 0, 65001, vec![config(1, asked.into())]);
        let offered = [(ipv4, 1), (ipv6, u32::from(offers_ipv6))].into();
        start(&mut world, 1, 65002, vec![config(0, offered)]);
        let routes = vec![route("10.1.0.0/16", 1), route("2001:db8::/32", 1)];
        world.with(0, |speaker, _| speaker.set_routes(routes).unwrap());
        world.run(20 * SECOND);
        let agreed = world.nodes[1].speaker.peers(world.now).remove(0).graceful_restart.unwrap().long_lived;
        let kept = |family: Family| asked.iter().any(|(asked, seconds)| *asked == family && *seconds > 0);
        assert_eq!(agreed.keys().copied().collect::<Vec<_>>(), {
            let offered = Family::ALL.into_iter().filter(|family| *family == ipv4 || offers_ipv6);
            offered.filter(|family| kept(*family)).collect::<Vec<_>>()
        });
        let left = |world: &World| {
            let families =
                rows(world, 1).into_iter().map(|row| if row.prefix.addr().is_ipv4() { "4" } else { "6" });
            families.collect::<Vec<_>>().join(" ")
        };
        world.cut(0, 1, true);
        world.run(Duration::from_secs(HOLD + AWAY + 10));
        assert_eq!(left(&world), first, "{asked:?}");
        world.run(100 * SECOND);
        assert_eq!(left(&world), later, "{asked:?}");
    }
}
