//! Routes in the kernel: ECMP over two sessions with BIRD, IPv4 over IPv6 with FRR, packets that go there, and what is
//! there after the end of a session, of the daemon, of a link.
use super::{
    command::launch,
    harness::{Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, ROUTER6, US, US6, run, wait_until},
    routers::{Bird, Frr},
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{collections::BTreeSet, fmt::Write, net::Ipv4Addr, process::Command, time::Instant};

/// Another address of the router, with a session of its own, to another address of ours.
const SECOND: &str = "198.18.0.3";
const US_TOO: &str = "198.18.0.4";
/// Told by both sessions, by the second one alone, and with a next hop that is nowhere.
const BOTH: &str = "10.1.0.0/16";
const ONE: &str = "10.2.0.0/16";
const LOST: &str = "10.3.0.0/16";
const BOTH6: &str = "2001:db8:a::/48";

/// BIRD with two sessions.
fn bird(cable: &Cable, more: &str) -> Bird {
    run("ip", &["-n", &cable.router, "address", "add", &format!("{SECOND}/24"), "dev", "router0"]);
    run("ip", &["-n", &cable.us, "address", "add", &format!("{US_TOO}/24"), "dev", "us0"]);
    for address in ["10.1.0.1/32", "10.2.0.1/32"] {
        run("ip", &["-n", &cable.router, "address", "add", address, "dev", "lo"]);
    }
    run("ip", &["-n", &cable.router, "address", "add", "2001:db8:a::1/128", "dev", "lo", "nodad"]);
    let session = |name: &str, local: &str, us: &str, filter: &str| {
        format!(
            "protocol bgp {name} {{
  local {local} as {ROUTER_ASN}; neighbor {us} as {OUR_ASN}; graceful restart on;
  hold time 30; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import none; export filter {{ {filter} if source = RTS_STATIC then accept; reject; }}; }};
  ipv6 {{ import none; export where source = RTS_STATIC; next hop address {ROUTER6}; }};
}}
"
        )
    };
    let lost = format!("if net = {LOST} then {{ bgp_next_hop = 192.0.2.1; accept; }}");
    let config = format!(
        "router id {ROUTER};
protocol device {{}}
protocol static {{ ipv4; route {BOTH} blackhole; route {ONE} blackhole; route {LOST} blackhole; {more} }}
protocol static {{ ipv6; route {BOTH6} blackhole; }}
{}{}",
        session("one", ROUTER, US, &format!("if net = {ONE} then reject; {lost}")),
        session("two", SECOND, US_TOO, &lost)
    );
    Bird::launch(cable, &config)
}

/// Our daemon, which installs what these tell.
fn daemon(cable: &Cable, peers: &[&str], more: &str) -> Process {
    let peer = |address: &&str| {
        let local = if *address == SECOND { US_TOO } else { US };
        format!(
            "{{address: \"{address}\", asn: {ROUTER_ASN}, localAddress: \"{local}\", \
             timers: {{holdSeconds: 30, connectRetrySeconds: 1}}, import: {{accept: [any], install: true}}{more}}}"
        )
    };
    let peers: Vec<String> = peers.iter().map(peer).collect();
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"{US}:179\", \"{US_TOO}:179\"], peers: [{}]}}",
        peers.join(", ")
    );
    launch(cable, &config)
}

/// Our routes in the kernel.
fn routes(cable: &Cable, family: &str) -> Vec<Value> {
    let text = run("ip", &["-n", &cable.us, family, "-j", "route", "show", "proto", "179"]);
    serde_json::from_str(&text).unwrap_or_default()
}

/// The gateways of a route of ours; empty: there is none.
fn gateways(cable: &Cable, prefix: &str) -> BTreeSet<String> {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let all = routes(cable, family);
    let Some(route) = all.iter().find(|route| route["dst"] == prefix) else { return BTreeSet::new() };
    assert_eq!(route["metric"], 512, "{route}");
    let hops = route["nexthops"].as_array().cloned().unwrap_or_else(|| vec![route.clone()]);
    let gateway = |hop: &Value| {
        let to = if hop["via"].is_object() { &hop["via"]["host"] } else { &hop["gateway"] };
        to.as_str().unwrap().to_owned()
    };
    hops.iter().map(gateway).collect()
}

/// Whether our route leads there.
pub(super) fn is(cable: &Cable, prefix: &str, expected: &[&str]) -> bool {
    gateways(cable, prefix).iter().eq(expected.iter().collect::<BTreeSet<_>>())
}

fn pings(cable: &Cable, from: &str, to: &str) -> bool {
    let arguments = ["netns", "exec", &cable.us, "ping", "-c", "1", "-W", "1", "-I", from, to];
    Command::new("ip").args(arguments).output().unwrap().status.success()
}

#[test]
fn equal_ways_with_bird() {
    let cable = Cable::new();
    // Of somebody else: with our metric, and with our protocol number but another metric.
    let strangers = [("10.9.0.0/16", "4", "512"), (ONE, "4", "600"), ("10.8.0.0/16", "179", "7")];
    for (prefix, protocol, metric) in strangers {
        let route = ["route", "add", prefix, "via", "198.18.0.99", "proto", protocol, "metric", metric];
        run("ip", &[&["-n", &cable.us][..], &route].concat());
    }
    // And ours, of a life before.
    let left = ["route", "add", "10.7.0.0/16", "via", "198.18.0.99", "proto", "179", "metric", "512"];
    run("ip", &[&["-n", &cable.us][..], &left].concat());
    let bird = bird(&cable, "route 10.9.0.0/16 blackhole;");
    let mut ours = daemon(&cable, &[ROUTER, SECOND], "");
    wait_until("both ways", || is(&cable, BOTH, &[ROUTER, SECOND]) && is(&cable, ONE, &[SECOND]));
    wait_until("IPv6", || is(&cable, BOTH6, &[ROUTER6]));
    for to in ["10.1.0.1", "10.2.0.1"] {
        wait_until(to, || pings(&cable, US, to));
    }
    wait_until("2001:db8:a::1", || pings(&cable, US6, "2001:db8:a::1"));
    assert!(is(&cable, LOST, &[]) && is(&cable, "10.9.0.0/16", &[]));
    let log = std::fs::read_to_string(cable.directory.join("daemon.log")).unwrap();
    assert!(log.contains("192.0.2.1") && log.contains("10.9.0.0/16"), "{log}");
    wait_until("the route of a life before is gone", || is(&cable, "10.7.0.0/16", &[]));

    // Somebody takes one away.
    bird.ask("disable one");
    wait_until("one way", || is(&cable, BOTH, &[SECOND]));
    bird.ask("enable one");
    wait_until("both again", || is(&cable, BOTH, &[ROUTER, SECOND]));
    // The link goes, shorter than the session notices: the kernel forgets all, and is told again.
    for state in ["down", "up"] {
        run("ip", &["-n", &cable.us, "link", "set", "us0", state]);
        if state == "down" {
            assert_eq!(routes(&cable, "-4").len(), 0);
        }
    }
    wait_until("both after the link was away", || is(&cable, BOTH, &[ROUTER, SECOND]));

    ours.signal(Signal::SIGTERM);
    ours.0.wait().unwrap();
    let left = |family: &str| -> Vec<String> {
        let all = routes(&cable, family).into_iter();
        all.filter(|route| route["metric"] == 512).map(|route| route.to_string()).collect()
    };
    assert_eq!((left("-4"), left("-6")), (vec![], vec![]));
}

/// The daemon is stopped, or killed, and another one takes its place: the routes stay, and what is not told again goes.
#[test]
fn routes_outlive_a_restart() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let cable = Cable::new();
        let bird = bird(&cable, "");
        let graceful = ", gracefulRestart: {seconds: 60}";
        let mut first = daemon(&cable, &[ROUTER, SECOND], graceful);
        let stays = || is(&cable, BOTH, &[ROUTER, SECOND]) && is(&cable, BOTH6, &[ROUTER6]);
        wait_until("all routes", || stays() && is(&cable, ONE, &[SECOND]));
        first.signal(signal);
        first.0.wait().unwrap();
        assert!(stays() && is(&cable, ONE, &[SECOND]), "{signal}");
        let config = std::fs::read_to_string(cable.directory.join("bird.conf")).unwrap();
        cable.file("bird.conf", &config.replace(&format!("route {ONE} blackhole;"), ""));
        bird.ask("configure");
        let _second = daemon(&cable, &[ROUTER, SECOND], graceful);
        wait_until("what is not told again is gone", || {
            assert!(stays(), "{signal}");
            is(&cable, ONE, &[])
        });
    }
}

#[test]
fn ipv4_over_ipv6_with_frr() {
    let cable = Cable::new();
    run("ip", &["-n", &cable.us, "address", "flush", "dev", "us0", "scope", "global", "to", "198.18.0.0/24"]);
    run("ip", &["-n", &cable.us, "address", "add", "203.0.113.1/32", "dev", "lo"]);
    run("ip", &["-n", &cable.router, "address", "add", "10.1.0.1/32", "dev", "lo"]);
    let back = ["route", "add", "203.0.113.1/32", "via", "inet6", US6, "dev", "router0"];
    run("ip", &[&["-n", &cable.router][..], &back].concat());
    let config = format!(
        "router bgp {ROUTER_ASN}
 bgp router-id {ROUTER}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {US6} remote-as {OUR_ASN}
 neighbor {US6} timers connect 1
 neighbor {US6} capability extended-nexthop
 address-family ipv4 unicast
  network {BOTH}
 exit-address-family
 address-family ipv6 unicast
  neighbor {US6} activate
  network {BOTH6}
"
    );
    let _router = Frr::launch(&cable, &config);
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"[{US6}]:179\"], peers: [{{address: \"{ROUTER6}\", \
         asn: {ROUTER_ASN}, localAddress: \"{US6}\", timers: {{connectRetrySeconds: 1}}, \
         import: {{accept: [any], install: true}}}}]}}"
    );
    let _ours = launch(&cable, &config);
    wait_until("both families", || is(&cable, BOTH, &[ROUTER6]) && is(&cable, BOTH6, &[ROUTER6]));
    wait_until("packets of IPv4", || pings(&cable, "203.0.113.1", "10.1.0.1"));
}

/// What the kernel takes in which time; prints it.
#[test]
fn a_hundred_thousand_routes() {
    const COUNT: u32 = 100_000;
    let cable = Cable::new();
    let mut all = String::new();
    for index in 0..COUNT {
        let network = Ipv4Addr::from_bits(0x1400_0000 + index * 256);
        write!(all, "route {network}/24 blackhole; ").unwrap();
    }
    let bird = bird(&cable, &all);
    bird.ask("disable two");
    let start = Instant::now();
    let mut ours = daemon(&cable, &[ROUTER], "");
    let count = || {
        let text = run("ip", &["-n", &cable.us, "route", "show", "proto", "179"]);
        text.lines().filter(|line| line.starts_with("20.") || line.starts_with("21.")).count()
    };
    wait_until("the first route", || count() > 0);
    let first = start.elapsed();
    wait_until("all routes", || count() == COUNT as usize);
    let installed = start.elapsed();
    let start = Instant::now();
    ours.signal(Signal::SIGTERM);
    ours.0.wait().unwrap();
    println!(
        "{COUNT} routes: the first {first:?} after the start of the daemon, all {installed:?}; removed in {:?}",
        start.elapsed()
    );
    assert_eq!(count(), 0);
}
