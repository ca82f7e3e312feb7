//! Several paths of a prefix (RFC 7911) with BIRD, FRR, GoBGP and OpenBGPD, told and taken. A third speaker tells both sides
//! what each knows already, so that each has two paths to tell the other.
use super::{
    harness::{Cable, OUR_ASN, ROUTER, ROUTER_ASN, US, global, peer, run, wait_for, wait_until, within},
    others::{GoBgp, OpenBgpd},
    routers::{Bird, Frr},
};
use bgp_speaker::{
    Handle,
    config::{AddPath, Asn, Family, Global, PeerAsn, PeerConfig, Route, RouteAttributes},
    spawn,
};
use std::future::ready;

/// Announced by us and by the third one to us.
pub(super) const OURS: &str = "203.0.113.0/24";
/// Announced by the router and by the third one to it.
pub(super) const THEIRS: &str = "10.1.0.0/16";
pub(super) const THIRD: &str = "198.18.0.3";
pub(super) const THIRD_ASN: u32 = 65003;

fn route(prefix: &str, to: &str) -> Route {
    let peers = Some([to.parse().unwrap()].into());
    Route { prefix: prefix.parse().unwrap(), attributes: RouteAttributes::default(), peers }
}

/// The third speaker, with what it announces to us and to the router.
pub(super) async fn third() -> Handle {
    let third = spawn();
    let local = THIRD.parse().unwrap();
    third.set_global(Global { asn: Asn(THIRD_ASN), router_id: local, listen: [].into() }).await.unwrap();
    let to = |address: &str, asn| PeerConfig {
        address: address.parse().unwrap(),
        asn: PeerAsn::Is(Asn(asn)),
        local_address: Some(local.into()),
        families: [Family::Ipv4Unicast].into(),
        ..peer()
    };
    third.set_peers(vec![to(US, OUR_ASN), to(ROUTER, ROUTER_ASN)]).await.unwrap();
    third.set_routes(vec![route(OURS, US), route(THEIRS, ROUTER)]).await.unwrap();
    third
}

/// The paths of the prefix here: identifier and AS path.
async fn learned(speaker: &Handle) -> Vec<(Option<u32>, String)> {
    let rows = speaker.routes().await.into_iter();
    let mut paths: Vec<_> = rows
        .filter(|row| row.table == "adj-in" && row.prefix.to_string() == THEIRS)
        .map(|row| (row.path_id, row.as_path))
        .collect();
    paths.sort_by_key(|(_, as_path)| as_path.len());
    paths
}

/// `start` starts a router that has all paths and tells them, `shown` is what it says of a prefix.
fn both_ways<R>(start: impl FnOnce(&Cable) -> R, shown: impl Fn(&R, &str) -> String) {
    let cable = Cable::new();
    run("ip", &["-n", &cable.us, "address", "add", &format!("{THIRD}/24"), "dev", "us0"]);
    within(&cable.us, async {
        let router = start(&cable);
        // Else the first connection would be refused, and that would be an error of the session.
        let listening = ["netns", "exec", &cable.router, "ss", "-Hltn", "sport = :179"];
        wait_until("the router listens", || !run("ip", &listening).is_empty());
        let speaker = spawn();
        speaker.set_global(global()).await.unwrap();
        speaker.set_routes(vec![route(OURS, ROUTER)]).await.unwrap();
        let add_path = AddPath { send: true, receive: true };
        let router_config = PeerConfig { add_path, export_learned: true, ..peer() };
        let third_config = PeerConfig {
            address: THIRD.parse().unwrap(),
            asn: PeerAsn::Is(Asn(THIRD_ASN)),
            passive: true,
            ..peer()
        };
        speaker.set_peers(vec![router_config, third_config]).await.unwrap();
        let third = third().await;

        wait_for("two paths here", || async { learned(&speaker).await.len() == 2 }).await;
        let paths = learned(&speaker).await;
        assert!(paths[0].0.is_some() && paths[1].0.is_some() && paths[0].0 != paths[1].0, "{paths:?}");
        assert_eq!((paths[0].1.as_str(), paths[1].1.as_str()), ("65001", "65001 65003"));
        let has_ours = || has_path(&shown(&router, OURS), "65002");
        let has_thirds = || has_path(&shown(&router, OURS), "65002 65003");
        wait_for("two paths at the router", || ready(has_ours() && has_thirds())).await;

        // One goes, and comes back; the other stays.
        third.set_routes(vec![]).await.unwrap();
        wait_for("one path at the router", || {
            assert!(has_ours());
            ready(!has_thirds())
        })
        .await;
        wait_for("one path here", || async {
            let paths = learned(&speaker).await;
            assert_eq!(paths[0].1, "65001");
            paths.len() == 1
        })
        .await;
        third.set_routes(vec![route(OURS, US), route(THEIRS, ROUTER)]).await.unwrap();
        wait_for("two paths at the router again", || ready(has_thirds())).await;
        wait_for("two paths here again", || async { learned(&speaker).await.len() == 2 }).await;
        speaker.set_routes(vec![]).await.unwrap();
        wait_for("the other path at the router", || {
            assert!(has_thirds());
            ready(!has_ours())
        })
        .await;
        let status = speaker.peers().await.remove(0);
        assert_eq!((status.established_count, status.last_error), (1, None));
        assert!(status.add_path.send.contains(&Family::Ipv4Unicast), "{:?}", status.add_path);
    });
}

/// Whether a text has the AS path, and not as the beginning of a longer one.
pub(super) fn has_path(shown: &str, path: &str) -> bool {
    let rest = |at: usize| shown[at + path.len()..].trim_start_matches(' ');
    shown.match_indices(path).any(|(at, _)| !rest(at).starts_with(|next: char| next.is_ascii_digit()))
}

/// BIRD with both sessions, and all paths on ours.
pub(super) fn launch_bird(cable: &Cable) -> Bird {
    let config = format!(
        "router id {ROUTER};
protocol device {{}}
protocol static {{ ipv4; route {THEIRS} blackhole; }}
template bgp session {{
  local {ROUTER} as {ROUTER_ASN}; hold time 9; keepalive time 3;
  connect delay time 1; connect retry time 1; error wait time 1,2;
}}
protocol bgp peer from session {{ neighbor {US} as {OUR_ASN}; ipv4 {{ import all; export all; add paths on; }}; }}
protocol bgp third from session {{ neighbor {THIRD} as {THIRD_ASN}; ipv4 {{ import all; export none; }}; }}
"
    );
    Bird::launch(cable, &config)
}

/// What it says of a prefix.
pub(super) fn shown_by_bird(bird: &Bird, prefix: &str) -> String {
    bird.ask(&format!("show route all where net = {prefix}"))
}

#[test]
fn bird() {
    both_ways(launch_bird, shown_by_bird);
}

#[test]
fn frr() {
    let config = format!(
        "router bgp {ROUTER_ASN}
 bgp router-id {ROUTER}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {US} remote-as {OUR_ASN}
 neighbor {US} timers 3 9
 neighbor {US} timers connect 1
 neighbor {THIRD} remote-as {THIRD_ASN}
 neighbor {THIRD} timers connect 1
 address-family ipv4 unicast
  neighbor {US} addpath-tx-all-paths
  network {THEIRS}
 exit-address-family
"
    );
    both_ways(
        |cable| Frr::launch(cable, &config),
        |frr, prefix| frr.show(&[&format!("show bgp ipv4 unicast {prefix}")]),
    );
}

#[test]
fn gobgp() {
    let neighbor = |address, asn, add_paths| {
        format!(
            "- config: {{neighbor-address: {address}, peer-as: {asn}}}
  timers: {{config: {{hold-time: 9, keepalive-interval: 3, connect-retry: 1, idle-hold-time-after-reset: 1}}}}
  transport: {{config: {{local-address: {ROUTER}}}}}
  afi-safis: [{{config: {{afi-safi-name: ipv4-unicast}}{add_paths}}}]
"
        )
    };
    let config = format!(
        "global: {{config: {{as: {ROUTER_ASN}, router-id: {ROUTER}}}}}
neighbors:
{}{}",
        neighbor(US, OUR_ASN, ", add-paths: {config: {receive: true, send-max: 8}}"),
        neighbor(THIRD, THIRD_ASN, "")
    );
    both_ways(
        |cable| {
            let router = GoBgp::launch(cable, &config);
            router.ask(&["global", "rib", "add", "-a", "ipv4", THEIRS, "nexthop", ROUTER]);
            router
        },
        |gobgp, prefix| {
            // `Network, Next Hop, AS_PATH, Age, Attrs`: the age is no AS.
            let shown = gobgp.ask(&["global", "rib", "-a", "ipv4", prefix]);
            shown.replace(" 00:", " age 00:")
        },
    );
}

#[test]
fn openbgpd() {
    both_ways(
        |cable| {
            let control = OpenBgpd::control(cable);
            let config = format!(
                "AS {ROUTER_ASN}
router-id {ROUTER}
socket \"{control}\"
fib-update no
connect-retry 2
network {THEIRS}
neighbor {US} {{
\tremote-as {OUR_ASN}
\tlocal-address {ROUTER}
\tannounce IPv4 unicast
\tannounce add-path recv yes
\tannounce add-path send all
}}
neighbor {THIRD} {{
\tremote-as {THIRD_ASN}
\tlocal-address {ROUTER}
}}
allow from any
allow to any
"
            );
            OpenBgpd::launch(cable, &config)
        },
        |bgpd, prefix| bgpd.ask(&["show", "rib", "detail", prefix]),
    );
}
