//! Long-lived graceful restart (RFC 9494) with BIRD and FRR, both ways: who is away for longer than its restart time keeps its
//! routes at the other side, as the last choice.
use super::{
    command::{launch, peers},
    fib,
    handover::starts,
    harness::{Cable, OUR_ASN, ROUTER, ROUTER_ASN, US, global, peer, wait_for, wait_until, within},
    restart::daemon,
    routers::{Bird, Frr, PASSING, Restarts, Router},
};
use bgp_speaker::{
    config::{Family, PeerConfig},
    spawn,
};
use nix::sys::signal::Signal;

/// Announced before and after.
const STAYS: &str = "203.0.113.0/24";
/// Announced before only.
const GOES: &str = "203.0.114.0/24";
/// Of the router, seconds; ours is as short.
const AWAY: u16 = 2;
const LONGER: u32 = 300;
/// Of the router.
const THEIRS: &str = "10.1.0.0/16";

fn bird(cable: &Cable) -> Bird {
    let config = format!(
        "router id {ROUTER};
protocol device {{}}
protocol static {{ ipv4; route {THEIRS} blackhole; }}
protocol static passing {{ ipv4; route {PASSING} blackhole; }}
protocol bgp peer {{
  local {ROUTER} as {ROUTER_ASN}; neighbor {US} as {OUR_ASN};
  graceful restart on; graceful restart time {AWAY}; long lived graceful restart on; long lived stale time {LONGER};
  hold time 9; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export where source = RTS_STATIC; }};
}}
"
    );
    Bird::launch(cable, &config)
}

fn frr(cable: &Cable) -> Frr {
    let config = format!(
        "router bgp {ROUTER_ASN}
 bgp router-id {ROUTER}
 bgp graceful-restart
 bgp graceful-restart preserve-fw-state
 bgp graceful-restart restart-time {AWAY}
 bgp long-lived-graceful-restart stale-time {LONGER}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {US} remote-as {OUR_ASN}
 neighbor {US} timers 3 9
 neighbor {US} timers connect 1
 address-family ipv4 unicast
  network {THEIRS}
  network {PASSING}
 exit-address-family
"
    );
    Frr::launch(cable, &config)
}

/// The router's daemon is away for longer, and comes back.
async fn it_is_away<R: Restarts>(cable: &Cable, mut router: R) {
    let speaker = spawn();
    speaker.set_global(global()).await.unwrap();
    let long_lived_seconds = Family::ALL.map(|family| (family, LONGER)).into();
    let config = PeerConfig { graceful_restart: Some(AWAY), long_lived_seconds, ..peer() };
    speaker.set_peers(vec![config]).await.unwrap();
    // Whether the prefix is there, and the last choice.
    let learned = async |prefix: &str| {
        let routes = speaker.routes().await.into_iter();
        let route =
            routes.filter(|route| route.table == "adj-in").find(|route| route.prefix.to_string() == prefix);
        route.map(|route| route.communities.iter().any(|community| community == "llgr-stale"))
    };
    for prefix in [THEIRS, PASSING] {
        wait_for(prefix, || async { learned(prefix).await == Some(false) }).await;
    }
    let status = async || speaker.peers().await.remove(0).graceful_restart.unwrap();
    wait_for("End-of-RIB", || async { !status().await.end_of_rib.is_empty() }).await;
    assert_eq!(status().await.long_lived_seconds, LONGER);

    router.crash();
    for prefix in [THEIRS, PASSING] {
        wait_for(prefix, || async { learned(prefix).await.expect("it is kept") }).await;
    }
    assert_eq!(status().await.long_lived_prefixes, 2);
    router.come_back(cable);
    wait_for("all as before", || async { learned(THEIRS).await == Some(false) }).await;
    wait_for("what it does not announce any more is gone", || async { learned(PASSING).await.is_none() })
        .await;
    assert_eq!(status().await.long_lived_prefixes, 0);
    speaker.shutdown().await;
}

/// Our daemon is killed, and comes back late. `stale` is how the router shows LLGR_STALE.
fn we_are_away<R: Router>(cable: &Cable, router: &R, stale: &str) {
    let restart = format!("{{seconds: {AWAY}, longLivedSeconds: {LONGER}}}");
    let mut first = daemon(cable, &restart, &[STAYS, GOES]);
    for prefix in [STAYS, GOES] {
        wait_until(prefix, || !router.route(prefix).is_empty());
        assert!(!router.route(prefix).contains(stale));
    }
    first.signal(Signal::SIGKILL);
    first.0.wait().unwrap();
    for prefix in [STAYS, GOES] {
        wait_until(prefix, || {
            let shown = router.route(prefix);
            assert!(!shown.is_empty(), "{prefix} is kept");
            shown.contains(stale)
        });
    }
    let _second = daemon(cable, &restart, &[STAYS]);
    wait_until("the old route is gone", || {
        assert!(!router.route(STAYS).is_empty());
        router.route(GOES).is_empty()
    });
    wait_until("all as before", || !router.route(STAYS).contains(stale));
}

#[test]
fn we_keep_the_routes_of_bird() {
    let cable = Cable::new();
    within(&cable.us, async { it_is_away(&cable, bird(&cable)).await });
}

#[test]
fn bird_keeps_our_routes() {
    let cable = Cable::new();
    we_are_away(&cable, &bird(&cable), "(65535,6)");
}

/// So does our kernel, also if our daemon is replaced meanwhile: what BIRD does not tell again goes when it has told all.
#[test]
fn our_kernel_keeps_the_routes_of_bird() {
    let cable = Cable::new();
    let mut router = bird(&cable);
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"{US}:179\"], peers: [{{address: {ROUTER}, asn: {ROUTER_ASN}, \
         localAddress: {US}, families: [ipv4-unicast], timers: {{holdSeconds: 9, connectRetrySeconds: 1}}, \
         gracefulRestart: {{seconds: {AWAY}, longLivedSeconds: {LONGER}}}, import: {{accept: [any], install: true}}}}]}}"
    );
    let daemon = launch(&cable, &config);
    let stays = || fib::is(&cable, THEIRS, &[ROUTER]) && fib::is(&cable, PASSING, &[ROUTER]);
    wait_until("all in the kernel", stays);
    let restart = || peers(&cable)?.pop()?.graceful_restart;
    wait_until("End-of-RIB", || restart().is_some_and(|restart| !restart.end_of_rib.is_empty()));
    router.crash();
    wait_until("they are the last choice", || {
        assert!(stays());
        restart().is_some_and(|restart| restart.long_lived_prefixes == 2)
    });
    daemon.signal(Signal::SIGUSR2);
    wait_until("the successor runs", || {
        assert!(stays());
        starts(&cable) == 2
    });
    router.come_back(&cable);
    wait_until("what is not told again is gone", || {
        assert!(fib::is(&cable, THEIRS, &[ROUTER]));
        fib::is(&cable, PASSING, &[])
    });
}

#[test]
fn we_keep_the_routes_of_frr() {
    let cable = Cable::new();
    within(&cable.us, async { it_is_away(&cable, frr(&cable)).await });
}

#[test]
fn frr_keeps_our_routes() {
    let cable = Cable::new();
    we_are_away(&cable, &frr(&cable), "llgr-stale");
}
