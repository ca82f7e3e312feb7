//! IPv4 routes over a session of IPv6, on a cable that has no IPv4 address at our end (RFC 8950), with FRR and BIRD.
use super::{
    harness::{Cable, OUR_ASN, ROUTER, ROUTER_ASN, ROUTER6, US6, global, peer, run, wait_for, within},
    routers::{Bird, Frr, Router},
};
use bgp_speaker::{
    config::{Global, PeerConfig, Route, RouteAttributes},
    spawn,
};
use std::future::ready;

const OURS: &str = "203.0.113.0/24";
const THEIRS: &str = "10.1.0.0/16";

/// Each route at the other end, with the other end's IPv6 address as its next hop.
async fn exchange(cable: &Cable, route: impl Fn() -> String) {
    run("ip", &["-n", &cable.us, "address", "flush", "dev", "us0", "scope", "global", "to", "198.18.0.0/24"]);
    let speaker = spawn();
    let ours = Route { prefix: OURS.parse().unwrap(), attributes: RouteAttributes::default(), peers: None };
    speaker.set_routes(vec![ours]).await.unwrap();
    let (address, local_address) = (ROUTER6.parse().unwrap(), Some(US6.parse().unwrap()));
    speaker.set_peers(vec![PeerConfig { address, local_address, ..peer() }]).await.unwrap();
    let listen = [format!("[{US6}]:179").parse().unwrap()].into();
    speaker.set_global(Global { listen, ..global() }).await.unwrap();
    wait_for("our route", || ready(route().contains(US6))).await;
    wait_for("their route", || async {
        let routes = speaker.routes().await;
        let learned =
            routes.iter().find(|route| route.table == "adj-in" && route.prefix.to_string() == THEIRS);
        learned.and_then(|route| route.next_hop) == Some(address)
    })
    .await;
}

#[test]
fn ipv4_over_ipv6_with_frr() {
    let cable = Cable::new();
    let config = format!(
        "router bgp {ROUTER_ASN}
 bgp router-id {ROUTER}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {US6} remote-as {OUR_ASN}
 neighbor {US6} timers 3 9
 neighbor {US6} timers connect 1
 neighbor {US6} capability extended-nexthop
 address-family ipv4 unicast
  network {THEIRS}
 exit-address-family
 address-family ipv6 unicast
  neighbor {US6} activate
"
    );
    let router = Frr::launch(&cable, &config);
    within(&cable.us, exchange(&cable, || router.route(OURS)));
}

#[test]
fn ipv4_over_ipv6_with_bird() {
    let cable = Cable::new();
    let config = format!(
        "router id {ROUTER};
protocol device {{}}
protocol static {{ ipv4; route {THEIRS} blackhole; }}
protocol bgp peer {{ local {ROUTER6} as {ROUTER_ASN}; neighbor {US6} as {OUR_ASN};
  hold time 9; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export all; extended next hop on; next hop self; }}; ipv6 {{ import all; export none; }}; }}
"
    );
    let router = Bird::launch(&cable, &config);
    within(&cable.us, exchange(&cable, || router.route(OURS)));
}
