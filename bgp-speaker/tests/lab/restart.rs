//! Graceful restart with FRR and BIRD, both ways: who restarts, on purpose or not, loses no route at the other side.
use super::{
    command::{launch, peers},
    harness::{Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, US, global, peer, wait_for, wait_until, within},
    routers::{Bird, Frr, PASSING, Restarts, Router, THEIRS},
};
use bgp_speaker::{
    config::{PeerConfig, PeerStatus},
    spawn,
};
use nix::sys::signal::Signal;
use std::cell::Cell;

/// Announced before the restart and after it.
const STAYS: [&str; 2] = ["203.0.113.0/24", "2001:db8:1::/48"];
/// Announced before it only.
const GOES: &str = "203.0.114.0/24";
const RESTART: &str = "{seconds: 60}";

/// Our daemon; `restart` is its `gracefulRestart`.
pub(crate) fn daemon(cable: &Cable, restart: &str, prefixes: &[&str]) -> Process {
    let routes: Vec<String> = prefixes.iter().map(|prefix| format!("{{prefix: \"{prefix}\"}}")).collect();
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"{US}:179\"], peers: [{{address: {ROUTER}, asn: {ROUTER_ASN}, \
         localAddress: {US}, timers: {{holdSeconds: 9, connectRetrySeconds: 1}}, gracefulRestart: {restart}, \
         import: {{accept: [any]}}}}], routes: [{}]}}",
        routes.join(", ")
    );
    launch(cable, &config)
}

fn status(cable: &Cable) -> Option<PeerStatus> {
    peers(cable)?.pop()
}

/// Our daemon is stopped, or killed, and another one takes its place.
fn we_restart<R: Router>() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let cable = Cable::new();
        let router = R::start(&cable);
        let mut first = daemon(&cable, RESTART, &[&STAYS[..], &[GOES]].concat());
        let has = |prefix: &str| !router.route(prefix).is_empty();
        wait_until("all at the router", || STAYS.iter().chain([&GOES]).all(|prefix| has(prefix)));
        wait_until("End-of-RIB of the router", || {
            status(&cable).and_then(|peer| peer.graceful_restart).is_some_and(|r| r.end_of_rib.len() == 2)
        });

        first.signal(signal);
        first.0.wait().unwrap();
        let all_stay =
            || STAYS.iter().chain([&GOES]).for_each(|prefix| assert!(has(prefix), "{signal}: {prefix}"));
        wait_until("the router has seen it", || !router.is_established());
        all_stay();
        let _second = daemon(&cable, RESTART, &STAYS);
        wait_until("the session is back", || {
            STAYS.iter().for_each(|prefix| assert!(has(prefix), "{signal}: {prefix}"));
            router.is_established()
        });
        // And what is not announced any more goes with our End-of-RIB.
        wait_until("the old route is gone", || {
            STAYS.iter().for_each(|prefix| assert!(has(prefix), "{signal}: {prefix}"));
            !has(GOES)
        });
    }
}

#[test]
fn frr_keeps_our_routes() {
    we_restart::<Frr>();
}

#[test]
fn bird_keeps_our_routes() {
    we_restart::<Bird>();
}

/// The router's daemon dies and comes back.
async fn it_restarts<R: Restarts>(cable: &Cable) {
    let mut router = R::start(cable);
    let speaker = spawn();
    speaker.set_global(global()).await.unwrap();
    speaker.set_peers(vec![PeerConfig { graceful_restart: Some(60), ..peer() }]).await.unwrap();
    let learned = async |prefix: &str| {
        let routes = speaker.routes().await;
        routes.iter().any(|route| route.table == "adj-in" && route.prefix.to_string() == prefix)
    };
    let all = THEIRS.into_iter().chain([PASSING]);
    for prefix in all.clone() {
        wait_for(prefix, || learned(prefix)).await;
    }
    let restart = async || speaker.peers().await.remove(0).graceful_restart;
    wait_for("End-of-RIB", || async { restart().await.is_some_and(|restart| restart.end_of_rib.len() == 2) })
        .await;

    router.crash();
    wait_for("the session is lost", || async { speaker.peers().await[0].state != "Established" }).await;
    for prefix in all.clone() {
        assert!(learned(prefix).await, "{prefix}");
    }
    let kept = restart().await.unwrap();
    assert!(kept.stale_prefixes == 3 && kept.stale_seconds.is_some(), "{kept:?}");
    router.come_back(cable);
    let lost = Cell::new(false);
    wait_for("it is back and has told everything", || async {
        let missing = !learned(THEIRS[0]).await || !learned(THEIRS[1]).await;
        let peer = speaker.peers().await.remove(0);
        let ended = peer.graceful_restart.map_or(0, |restart| restart.end_of_rib.len());
        lost.set(lost.get() || missing && !(peer.established_count == 2 && ended > 0));
        peer.established_count == 2 && ended == 2
    })
    .await;
    assert!(!lost.get());
    assert_eq!((learned(PASSING).await, restart().await.unwrap().stale_prefixes), (false, 0));
    // FRR 8.4 says End-of-RIB before it tells its routes.
    for prefix in THEIRS {
        wait_for(prefix, || learned(prefix)).await;
    }
    speaker.shutdown().await;
}

#[test]
fn we_keep_the_routes_of_frr() {
    let cable = Cable::new();
    within(&cable.us, it_restarts::<Frr>(&cable));
}

#[test]
fn we_keep_the_routes_of_bird() {
    let cable = Cable::new();
    within(&cable.us, it_restarts::<Bird>(&cable));
}

/// FRR 8.4 knows RFC 8538: a reset by its operator costs no route, the removal of the peer does, on both sides.
#[test]
fn notifications_with_frr() {
    let cable = Cable::new();
    within(&cable.us, async {
        let router = Frr::start(&cable);
        let speaker = spawn();
        speaker.set_global(global()).await.unwrap();
        let config = PeerConfig { graceful_restart: Some(60), ..peer() };
        speaker.set_peers(vec![config.clone()]).await.unwrap();
        let count =
            async || speaker.routes().await.into_iter().filter(|route| route.table == "adj-in").count();
        wait_for("its routes", || async { count().await == 3 }).await;
        router.show(&[
            "configure terminal",
            &format!("router bgp {ROUTER_ASN}"),
            "no bgp hard-administrative-reset",
        ]);
        router.reset();
        let lost = Cell::new(false);
        wait_for("the reset", || async {
            lost.set(lost.get() || count().await != 3);
            let peer = speaker.peers().await.remove(0);
            peer.last_error.is_some() && peer.state != "Established" || peer.established_count == 2
        })
        .await;
        assert!(!lost.get());
        wait_for("the session is back", || async { speaker.peers().await[0].established_count == 2 }).await;
        let error = speaker.peers().await.remove(0).last_error.unwrap();
        assert!(error.contains("Cease/Administrative Reset"), "{error}");

        speaker.set_peers(vec![]).await.unwrap();
        assert_eq!(count().await, 0);
        wait_for("the router knows why", || async {
            let reason = router.neighbor()["lastNotificationReason"].to_string();
            reason.contains("Peer Unconfigured") || reason.contains("De-configured")
        })
        .await;
        assert_eq!(router.neighbor()["lastNotificationHardReset"], true, "{}", router.neighbor());
        speaker.shutdown().await;
    });
}
