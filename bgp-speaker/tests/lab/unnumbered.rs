//! Unnumbered peers: two links to FRR whose ends have the same link-local address there, with IPv4 and IPv6 routes into
//! the kernels of both sides and packets that go by them; a link that vanishes and comes back; BIRD, with BFD.
use super::{
    command::{launch, peers},
    harness::{Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, US, run, wait_until},
    routers::{Bird, Frr, Router, THEIRS},
};
use bgp_speaker::config::PeerStatus;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::process::Command;

const OURS: [&str; 2] = ["203.0.113.0/24", "2001:db8:1::/48"];
/// The router's link-local address, on all its links.
pub(super) const SAME: &str = "fe80::1";

/// A cable whose ends have link-local addresses only, and an address of each side for packets.
pub(super) fn cable() -> Cable {
    let cable = Cable::new();
    for (namespace, link, v4, v6) in [
        (&cable.us, "us0", "203.0.113.1", "2001:db8:1::1"),
        (&cable.router, "router0", "10.1.0.1", "2001:db8:a::1"),
    ] {
        run("ip", &["-n", namespace, "address", "flush", "dev", link, "scope", "global"]);
        run("ip", &["-n", namespace, "address", "add", &format!("{v4}/32"), "dev", "lo"]);
        run("ip", &["-n", namespace, "address", "add", &format!("{v6}/128"), "dev", "lo", "nodad"]);
    }
    rename(&cable, "router0");
    cable
}

/// Another link between the two, or the first one again.
fn link(cable: &Cable, us: &str, router: &str) {
    let veth = ["-n", &cable.us, "link", "add", "name", us, "type", "veth"];
    run("ip", &[&veth[..], &["peer", "name", router, "netns", &cable.router]].concat());
    for (namespace, link) in [(&cable.us, us), (&cable.router, router)] {
        let dad = format!("net.ipv6.conf.{link}.accept_dad=0");
        run("ip", &["netns", "exec", namespace, "sysctl", "-qw", &dad]);
        run("ip", &["-n", namespace, "link", "set", link, "up"]);
    }
    rename(cable, router);
}

fn rename(cable: &Cable, link: &str) {
    run("ip", &["-n", &cable.router, "address", "flush", "dev", link, "scope", "link"]);
    run("ip", &["-n", &cable.router, "address", "add", &format!("{SAME}/64"), "dev", link, "nodad"]);
}

pub(super) fn daemon(cable: &Cable, interfaces: &[&str], more: &str) -> Process {
    let peer = |interface: &&str| {
        format!(
            "{{interface: {interface}, asn: external, timers: {{holdSeconds: 9, connectRetrySeconds: 1}}, \
             import: {{accept: [any], install: true}}{more}}}"
        )
    };
    let peers: Vec<String> = interfaces.iter().map(peer).collect();
    let routes = OURS.map(|prefix| format!("{{prefix: \"{prefix}\"}}")).join(", ");
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"[::]:179\"], peers: [{}], routes: [{routes}]}}",
        peers.join(", ")
    );
    launch(cable, &config)
}

fn status(cable: &Cable, interface: &str) -> Option<PeerStatus> {
    peers(cable)?.into_iter().find(|peer| peer.interface.is_some_and(|name| name.as_str() == interface))
}

fn is_up(cable: &Cable, interface: &str) -> bool {
    status(cable, interface).is_some_and(|peer| peer.state == "Established")
}

/// Gateway and interface of each way that our kernel has to a prefix, in order.
pub(super) fn ways(cable: &Cable, prefix: &str) -> Vec<String> {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    let text = run("ip", &["-n", &cable.us, family, "-j", "route", "show", "proto", "179"]);
    let all: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    let Some(route) = all.into_iter().find(|route| route["dst"] == prefix) else { return Vec::new() };
    let hops = route["nexthops"].as_array().cloned().unwrap_or_else(|| vec![route.clone()]);
    let way = |hop: &Value| {
        let to = if hop["via"].is_object() { &hop["via"]["host"] } else { &hop["gateway"] };
        format!("{} {}", to.as_str().unwrap(), hop["dev"].as_str().unwrap())
    };
    let mut ways: Vec<String> = hops.iter().map(way).collect();
    ways.sort();
    ways
}

fn pings(cable: &Cable, from: &str, to: &str) -> bool {
    let arguments = ["netns", "exec", &cable.us, "ping", "-c", "1", "-W", "1", "-I", from, to];
    Command::new("ip").args(arguments).output().unwrap().status.success()
}

pub(super) fn packets_pass(cable: &Cable) {
    for (from, to) in [("203.0.113.1", "10.1.0.1"), ("2001:db8:1::1", "2001:db8:a::1")] {
        wait_until(to, || pings(cable, from, to));
    }
}

#[test]
fn two_links_to_frr() {
    let cable = cable();
    link(&cable, "us1", "router1");
    let neighbor = |link: &str| {
        format!(
            " neighbor {link} interface remote-as external\n neighbor {link} timers 3 9\n neighbor {link} timers connect 1\n"
        )
    };
    let config = format!(
        "router bgp {ROUTER_ASN}
 bgp router-id {ROUTER}
 no bgp ebgp-requires-policy
 no bgp network import-check
{}{} address-family ipv4 unicast
  network {}
 exit-address-family
 address-family ipv6 unicast
  neighbor router0 activate
  neighbor router1 activate
  network {}
",
        neighbor("router0"),
        neighbor("router1"),
        THEIRS[0],
        THEIRS[1]
    );
    let router = Frr::launch(&cable, &config);
    let mut ours = daemon(&cable, &["us0", "us1"], "");
    let both = [format!("{SAME} us0"), format!("{SAME} us1")];
    for prefix in THEIRS {
        wait_until(prefix, || ways(&cable, prefix) == both);
    }
    let peer = status(&cable, "us1").unwrap();
    assert_eq!((peer.address.to_string().as_str(), peer.asn.0), (SAME, ROUTER_ASN));
    for prefix in OURS {
        wait_until(prefix, || router.route(prefix).contains("fe80::"));
    }
    packets_pass(&cable);

    // A link vanishes, and comes back as another one.
    run("ip", &["-n", &cable.us, "link", "delete", "us0"]);
    wait_until("one way is left", || ways(&cable, THEIRS[0]) == both[1..] && !is_up(&cable, "us0"));
    let gone = status(&cable, "us0").unwrap();
    assert_eq!((gone.address.to_string().as_str(), gone.state.as_str()), ("::", "Idle"));
    assert!(gone.last_error.as_deref().is_some_and(|error| error.contains("interface is gone")), "{gone:?}");
    link(&cable, "us0", "router0");
    for prefix in THEIRS {
        wait_until(prefix, || ways(&cable, prefix) == both);
    }
    packets_pass(&cable);
    ours.signal(Signal::SIGTERM);
    ours.0.wait().unwrap();
    assert!(THEIRS.iter().all(|prefix| ways(&cable, prefix).is_empty()));
}

/// BIRD on the cable, with BFD.
pub(super) fn launch_bird(cable: &Cable) -> Bird {
    let addresses =
        run("ip", &["-n", &cable.us, "-j", "-6", "address", "show", "dev", "us0", "scope", "link"]);
    let addresses: Value = serde_json::from_str(&addresses).unwrap();
    let us = addresses[0]["addr_info"][0]["local"].as_str().unwrap();
    let config = format!(
        "router id {ROUTER};
protocol device {{}}
protocol kernel {{ ipv4 {{ import none; export all; }}; }}
protocol kernel {{ ipv6 {{ import none; export all; }}; }}
protocol radv {{ interface \"router0\" {{ min ra interval 3; max ra interval 4; }}; }}
protocol bfd {{ interface \"router0\" {{ min rx interval 50 ms; min tx interval 50 ms; multiplier 3; }}; }}
protocol static {{ ipv4; route {} blackhole; }}
protocol static {{ ipv6; route {} blackhole; }}
protocol bgp peer {{
  local as {ROUTER_ASN}; neighbor {us}%router0 as {OUR_ASN}; bfd on;
  hold time 60; keepalive time 20; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export where source = RTS_STATIC; extended next hop on; }};
  ipv6 {{ import all; export where source = RTS_STATIC; }};
}}
",
        THEIRS[0], THEIRS[1]
    );
    Bird::launch(cable, &config)
}

#[test]
fn bird_with_bfd() {
    let cable = cable();
    let router = launch_bird(&cable);
    let _ours = daemon(&cable, &["us0"], ", bfd: {minTxMillis: 50, minRxMillis: 50, multiplier: 3}");
    for prefix in THEIRS {
        wait_until(prefix, || ways(&cable, prefix) == [format!("{SAME} us0")]);
    }
    packets_pass(&cable);
    let bfd = || status(&cable, "us0").and_then(|peer| peer.bfd);
    wait_until("BFD", || bfd().is_some_and(|bfd| bfd.state == "Up"));
    router.signal(Signal::SIGSTOP);
    wait_until("the path has failed", || !is_up(&cable, "us0"));
    let failed = status(&cable, "us0").unwrap();
    assert!(failed.last_error.as_deref().is_some_and(|error| error.contains("BFD")), "{failed:?}");
    wait_until("no way is left", || THEIRS.iter().all(|prefix| ways(&cable, prefix).is_empty()));
    router.signal(Signal::SIGCONT);
    wait_until("the session is back", || is_up(&cable, "us0"));
}
