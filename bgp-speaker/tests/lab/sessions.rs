//! Sessions with real routers: both families over one session, routes both ways, and everything that may happen to
//! a session.
use super::{
    capture::Capture,
    harness::{Cable, ROUTER_ASN, US, US6, global, peer, wait_for, within},
    others::{GoBgp, OpenBgpd},
    routers::{Bird, Frr, PASSING, Router, THEIRS},
};
use bgp_speaker::{
    Handle,
    config::{LocalRole, PeerConfig, PeerStatus, Role, Route, RouteAttributes, RouteStatus, Timers},
    spawn,
};
use nix::sys::signal::Signal;
use std::{future::ready, time::Instant};

const OURS: [&str; 2] = ["203.0.113.0/24", "2001:db8:1::/48"];

fn route(prefix: &str, attributes: &RouteAttributes) -> Route {
    Route { prefix: prefix.parse().unwrap(), attributes: attributes.clone(), peers: None }
}

fn with_attributes() -> RouteAttributes {
    RouteAttributes {
        med: Some(10),
        prepend: 2,
        communities: [65002 << 16 | 1].into(),
        large_communities: [(65002, 1, 2)].into(),
        ..RouteAttributes::default()
    }
}

/// A speaker that announces our routes to the router.
async fn speaker(peer: PeerConfig) -> Handle {
    let speaker = spawn();
    speaker.set_global(global()).await.unwrap();
    speaker.set_routes(OURS.map(|prefix| route(prefix, &with_attributes())).to_vec()).await.unwrap();
    speaker.set_peers(vec![peer]).await.unwrap();
    speaker
}

async fn status(speaker: &Handle) -> PeerStatus {
    speaker.peers().await.remove(0)
}

async fn wait_for_state(speaker: &Handle, state: &str, established: u64) {
    wait_for(&format!("{state} after {established} sessions"), || async {
        let status = status(speaker).await;
        status.state == state && status.established_count >= established
    })
    .await;
}

async fn learned(speaker: &Handle, prefix: &str) -> Option<RouteStatus> {
    let routes = speaker.routes().await;
    routes.into_iter().find(|route| route.table == "adj-in" && route.prefix.to_string() == prefix)
}

/// Everything that all routers do alike.
async fn exchange<R: Router>(cable: &Cable) {
    let router = R::start(cable);
    let speaker = speaker(peer()).await;
    wait_for_state(&speaker, "Established", 1).await;

    // Ours at the router's, with the next hop of each family and all attributes.
    for (prefix, next_hop) in OURS.into_iter().zip([US, US6]) {
        wait_for(&format!("{prefix} at the router"), || ready(!router.route(prefix).is_empty())).await;
        let shown = router.route(prefix);
        for attribute in R::ATTRIBUTES.into_iter().chain([next_hop]) {
            assert!(shown.contains(attribute), "{attribute}: {shown}");
        }
    }
    // Theirs here.
    for &(prefix, next_hop) in R::ANNOUNCES {
        wait_for(&format!("{prefix} here"), || async { learned(&speaker, prefix).await.is_some() }).await;
        let route = learned(&speaker, prefix).await.unwrap();
        assert_eq!(route.next_hop.unwrap().to_string(), next_hop);
        assert_eq!((route.as_path.as_str(), route.med), ("65001 65001 65001", Some(7)));
        assert_eq!(route.communities, ["65001:1", "65001:1:2"]);
    }

    // Withdrawn, both ways; the rest stays.
    wait_for("the passing route", || async { learned(&speaker, PASSING).await.is_some() }).await;
    router.withdraw_passing();
    wait_for("the passing route is gone", || async { learned(&speaker, PASSING).await.is_none() }).await;
    speaker.set_routes(vec![route(OURS[1], &with_attributes())]).await.unwrap();
    wait_for("ours is gone", || ready(router.route(OURS[0]).is_empty())).await;
    assert!(!router.route(OURS[1]).is_empty());
    speaker.set_routes(OURS.map(|prefix| route(prefix, &with_attributes())).to_vec()).await.unwrap();
    speaker.flushed().await;
    wait_for("ours is back", || ready(!router.route(OURS[0]).is_empty())).await;

    // Asked again, told again, without a reset.
    let before = router.updates();
    if router.refresh() {
        wait_for("updates after a refresh", || ready(router.updates() > before)).await;
    }
    assert_eq!(status(&speaker).await.established_count, 1);

    // The router resets the session: all is announced again.
    router.reset();
    wait_for_state(&speaker, "Established", 2).await;
    for prefix in OURS {
        wait_for("ours after the reset", || ready(!router.route(prefix).is_empty())).await;
    }
    wait_for("theirs after the reset", || async { learned(&speaker, THEIRS[0]).await.is_some() }).await;

    // A router that hangs: the hold timer ends the session, its routes go; it wakes up and all is well again.
    router.signal(Signal::SIGSTOP);
    wait_for("the hold time is over", || async {
        status(&speaker).await.last_error.is_some_and(|error| error.contains("Hold Timer Expired"))
    })
    .await;
    assert!(learned(&speaker, THEIRS[0]).await.is_none());
    router.signal(Signal::SIGCONT);
    wait_for_state(&speaker, "Established", 3).await;

    speaker.shutdown().await;
    wait_for("the router has heard", || ready(!router.is_established())).await;
}

/// All of it is captured, and none of it malformed.
fn exchange_with<R: Router>() {
    let cable = Cable::new();
    let capture = Capture::start(&cable);
    within(&cable.us, exchange::<R>(&cable));
    capture.check(&[1, 2, 3, 4]);
}

#[test]
fn exchange_with_frr() {
    exchange_with::<Frr>();
}

#[test]
fn exchange_with_bird() {
    exchange_with::<Bird>();
}

#[test]
fn exchange_with_gobgp() {
    exchange_with::<GoBgp>();
}

#[test]
fn exchange_with_openbgpd() {
    exchange_with::<OpenBgpd>();
}

#[test]
fn too_many_prefixes() {
    let cable = Cable::new();
    within(&cable.us, async {
        let router = Frr::start(&cable);
        let speaker = speaker(PeerConfig { max_prefixes: Some(1), ..peer() }).await;
        wait_for("the router is told", || {
            let reason = router.neighbor()["lastNotificationReason"].to_string();
            ready(reason.contains("Cease/Maximum Number of Prefixes Reached"))
        })
        .await;
        let error = status(&speaker).await.last_error.unwrap();
        assert!(error.contains("Maximum Number of Prefixes Reached"), "{error}");
    });
}

/// A session that nobody else disturbs keeps its time with the shortest hold time there is.
#[test]
fn keepalives_keep_a_session_of_three_seconds() {
    let cable = Cable::new();
    within(&cable.us, async {
        let router = Bird::start(&cable);
        let timers = Timers { hold_seconds: 3, keepalive_seconds: 1, connect_retry_seconds: 1 };
        let speaker = speaker(PeerConfig { timers, ..peer() }).await;
        wait_for_state(&speaker, "Established", 1).await;
        assert_eq!(status(&speaker).await.hold_seconds, Some(3));
        let start = Instant::now();
        wait_for("three hold times", || ready(start.elapsed().as_secs() >= 9)).await;
        let status = status(&speaker).await;
        assert_eq!((status.state.as_str(), status.established_count), ("Established", 1));
        assert!(router.is_established());
    });
}

/// FRR as our provider (RFC 9234): no session unless the roles fit.
#[test]
fn roles_with_frr() {
    let cable = Cable::new();
    within(&cable.us, async {
        let router = Frr::start(&cable);
        let strict = format!("neighbor {US} local-role provider strict-mode");
        router.show(&["configure terminal", &format!("router bgp {ROUTER_ASN}"), &strict]);
        let with = |local| PeerConfig { role: Some(LocalRole { local, strict: true }), ..peer() };
        let speaker = speaker(with(Role::Peer)).await;
        wait_for("they do not fit", || async {
            status(&speaker).await.last_error.is_some_and(|error| error.contains("Role Mismatch"))
        })
        .await;
        speaker.set_peers(vec![with(Role::Customer)]).await.unwrap();
        wait_for_state(&speaker, "Established", 1).await;
        assert!(status(&speaker).await.capabilities.contains(&"role Provider".to_owned()));
        wait_for("theirs", || async { learned(&speaker, THEIRS[0]).await.is_some() }).await;
        wait_for("ours at the router", || ready(!router.route(OURS[0]).is_empty())).await;
    });
}
