//! What FRR is told and what is taken from it, when the policy says so, and when the policy changes under the session.
use super::{
    harness::{Cable, ROUTER_ASN, global, peer, wait_for, within},
    routers::{Frr, PASSING, Router, THEIRS},
};
use bgp_speaker::{
    Handle,
    config::{ExportPolicy, Family, ImportFilter, PeerConfig, Route, RouteAttributes, RouteStatus},
    spawn,
};
use std::future::ready;

const OURS: &str = "203.0.113.0/24";

async fn speaker() -> Handle {
    let speaker = spawn();
    let attributes = RouteAttributes { link_bandwidth: Some(125_000), ..RouteAttributes::default() };
    let route = Route { prefix: OURS.parse().unwrap(), attributes, peers: None };
    speaker.set_routes(vec![route]).await.unwrap();
    speaker.set_peers(vec![peer()]).await.unwrap();
    speaker.set_global(global()).await.unwrap();
    speaker
}

async fn learned(speaker: &Handle, prefix: &str) -> Option<RouteStatus> {
    let routes = speaker.routes().await;
    routes.into_iter().find(|route| route.table == "adj-in" && route.prefix.to_string() == prefix)
}

#[test]
fn told_to_frr() {
    let cable = Cable::new();
    within(&cable.us, async {
        let router = Frr::start(&cable);
        let speaker = speaker().await;
        wait_for("our link bandwidth", || ready(router.route(OURS).contains("LB:65002:125000"))).await;
        let policy = ExportPolicy {
            graceful_shutdown: true,
            prepend: 2,
            med: Some(9),
            communities: [65002 << 16 | 7].into(),
            ..ExportPolicy::default()
        };
        let changed = PeerConfig { export: [(Family::Ipv4Unicast, policy)].into(), ..peer() };
        speaker.set_peers(vec![changed]).await.unwrap();
        for shown in ["graceful-shutdown", "65002:7", "65002 65002 65002", "\"metric\":9"] {
            wait_for(shown, || ready(router.route(OURS).contains(shown))).await;
        }
        speaker.set_peers(vec![peer()]).await.unwrap();
        wait_for("all as before", || ready(!router.route(OURS).contains("graceful-shutdown"))).await;
        assert_eq!(speaker.peers().await[0].established_count, 1);
    });
}

#[test]
fn taken_from_frr() {
    let cable = Cable::new();
    within(&cable.us, async {
        let router = Frr::start(&cable);
        let speaker = speaker().await;
        for prefix in [THEIRS[0], THEIRS[1], PASSING] {
            wait_for(prefix, || async { learned(&speaker, prefix).await.is_some() }).await;
        }
        let import = ImportFilter {
            deny: vec!["2001:db8::/32".parse().unwrap()],
            communities: [ROUTER_ASN << 16 | 1].into(),
            ..ImportFilter::default()
        };
        speaker.set_peers(vec![PeerConfig { import, ..peer() }]).await.unwrap();
        assert!(learned(&speaker, THEIRS[1]).await.is_none() && learned(&speaker, PASSING).await.is_none());
        assert!(learned(&speaker, THEIRS[0]).await.is_some());
        // The peer is asked for what was refused.
        speaker.set_peers(vec![peer()]).await.unwrap();
        for prefix in [THEIRS[1], PASSING] {
            wait_for(prefix, || async { learned(&speaker, prefix).await.is_some() }).await;
        }
        router.show(&["configure terminal", &format!("router bgp {ROUTER_ASN}"), "bgp graceful-shutdown"]);
        for prefix in [THEIRS[0], PASSING] {
            wait_for("the last choice", || async {
                learned(&speaker, prefix).await.is_some_and(|route| route.local_pref == Some(0))
            })
            .await;
        }
        assert_eq!(speaker.peers().await[0].established_count, 1);
    });
}
