//! A successor in the place of our daemon, where more than the session goes on: BFD, several paths of a prefix, unnumbered
//! links, keys of a range, a large table, routes in the kernel. The router sees no event.
use super::{
    add_path::{self, THIRD, has_path},
    bfd::{self, Kind},
    command::{launch, peers},
    handover::{EVENTS, packets, starts},
    harness::{
        Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, ROUTER6, US, US6, run, wait_for, wait_until, within,
    },
    routers::{Bird, Frr, Router, THEIRS},
    unnumbered::{self, SAME},
};
use bgp_speaker::config::{BfdStatus, PeerStatus};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{fmt::Write as _, future::ready, path::Path, sync::Arc, time::Instant};

/// The file of the daemon: peers and routes as they are written there.
fn config(peers: &[String], routes: &str) -> String {
    let listen = "\"0.0.0.0:179\", \"[::]:179\"";
    let peers = peers.join(", ");
    format!("{{asn: {OUR_ASN}, routerID: {US}, listen: [{listen}], peers: [{peers}], routes: [{routes}]}}")
}

/// A peer at this address; without a local address it may be any of ours.
fn peer(address: &str, asn: u32, more: &str) -> String {
    format!(
        "{{address: \"{address}\", asn: {asn}, timers: {{holdSeconds: 9, connectRetrySeconds: 1}}, \
         import: {{accept: [any], install: true}}{more}}}"
    )
}

/// BGP and BFD on the cable, from now on.
struct Capture {
    file: String,
    us: String,
    _tcpdump: Process,
}

impl Capture {
    fn start(cable: &Cable) -> Self {
        let file = cable.directory.join("capture.pcap").display().to_string();
        let arguments = ["-i", "us0", "-U", "-w", &file, "tcp port 179 or udp port 3784"];
        let log = cable.directory.join("tcpdump.log");
        let tcpdump = Process::start(&cable.us, "/usr/bin/tcpdump", &arguments, &log);
        wait_until("it captures", || Path::new(&file).exists());
        let link: Value =
            serde_json::from_str(&run("ip", &["-n", &cable.us, "-j", "link", "show", "us0"])).unwrap();
        Capture { file, us: link[0]["address"].as_str().unwrap().to_owned(), _tcpdump: tcpdump }
    }

    /// No session, of BGP or BFD, was seen to end or to begin, and we told no route again.
    fn check(&self) {
        // The third speaker goes on to dial a router that does not know it.
        let events = format!("({EVENTS}) && !(ip.addr == {THIRD} && ip.addr == {ROUTER})");
        assert_eq!(packets(&self.file, &events), "", "a session is seen to end or to begin");
        assert_eq!(packets(&self.file, "bfd && bfd.sta != 3"), "", "a path is not up");
        let told = format!("bgp.type == 2 && eth.src == {}", self.us);
        assert_eq!(packets(&self.file, &told), "", "a route is told again");
        assert!(
            packets(&self.file, "bgp.type == 4").lines().count() > 2,
            "the capture has seen the sessions"
        );
    }
}

/// The daemon is replaced twice, and its sessions go on: they last as long as they should, and for longer than the hold
/// time.
fn twice(cable: &Cable, daemon: &mut Process) {
    let capture = Capture::start(cable);
    let before = peers(cable).unwrap();
    for _ in 0..2 {
        let start = Instant::now();
        let count = starts(cable);
        daemon.signal(Signal::SIGUSR2);
        wait_until("the successor runs", || starts(cable) > count);
        println!("from the signal to the work of the successor: {:?}", start.elapsed());
    }
    let lasts = |peers: Vec<PeerStatus>| {
        assert_eq!(peers.len(), before.len());
        peers.iter().zip(&before).all(|(now, before)| {
            let state = (now.state.as_str(), now.established_count, now.flap_count);
            assert_eq!(state, ("Established", 1, 0), "{now:?}");
            assert_eq!(
                (now.prefixes_received, now.prefixes_sent),
                (before.prefixes_received, before.prefixes_sent)
            );
            if let (Some(now), Some(before)) = (&now.bfd, &before.bfd) {
                let same = |bfd: &BfdStatus| {
                    (
                        bfd.state.clone(),
                        bfd.up_count,
                        bfd.failure_count,
                        bfd.discriminator,
                        bfd.remote_discriminator,
                    )
                };
                assert_eq!(same(now), same(before));
            }
            now.since_seconds > before.since_seconds + 12
        })
    };
    wait_until("the sessions go on", || peers(cable).is_some_and(lasts));
    assert_eq!(daemon.0.try_wait().unwrap(), None, "it is the same process");
    capture.check();
}

/// [`twice`], on a thread of its own, since a speaker lives on this one.
async fn aside(cable: &Arc<Cable>, mut daemon: Process) -> Process {
    let cable = Arc::clone(cable);
    let done = tokio::task::spawn_blocking(move || {
        twice(&cable, &mut daemon);
        daemon
    });
    done.await.unwrap()
}

fn all_up(cable: &Cable, count: usize) -> bool {
    peers(cable).is_some_and(|peers| {
        let is_up = |peer: &PeerStatus| {
            peer.state == "Established"
                && peer.bfd.as_ref().is_none_or(|bfd| bfd.state == "Up" && bfd.transmit_millis == 50)
        };
        peers.len() == count && peers.iter().all(is_up)
    })
}

/// Over IPv4 and IPv6: the peer's BFD, which bears 150 ms of silence, sees no change of state, and the pace is as before in
/// the end. The router's own packets may come later: it has no real-time priority.
fn bfd_goes_on(kind: Kind) {
    let cable = Cable::new();
    let _router = bfd::start(&cable, kind, false);
    let fast = |local: &str| {
        format!(", localAddress: \"{local}\", bfd: {{minTxMillis: 50, minRxMillis: 300, multiplier: 3}}")
    };
    let both = [peer(ROUTER, ROUTER_ASN, &fast(US)), peer(ROUTER6, ROUTER_ASN, &fast(US6))];
    let mut daemon = launch(&cable, &config(&both, "{prefix: 203.0.113.0/24}"));
    wait_until("all is up", || all_up(&cable, 2));
    // One of each family.
    wait_until("all routes of the router", || {
        let has_all = |peer: &PeerStatus| peer.prefixes_received == peer.families.len() as u64;
        peers(&cable).is_some_and(|peers| peers.iter().all(has_all))
    });
    twice(&cable, &mut daemon);
    wait_until("at its old pace", || all_up(&cable, 2));
}

#[test]
fn bfd_with_frr() {
    bfd_goes_on(Kind::Frr);
}

#[test]
fn bfd_with_bird() {
    bfd_goes_on(Kind::Bird);
}

#[test]
fn several_paths_of_a_prefix() {
    let cable = Arc::new(Cable::new());
    run("ip", &["-n", &cable.us, "address", "add", &format!("{THIRD}/24"), "dev", "us0"]);
    let router = add_path::launch_bird(&cable);
    let all = ", localAddress: 198.18.0.2, families: [ipv4-unicast], addPath: {send: true, receive: true}, export: {learned: true}";
    let third = peer(
        THIRD,
        add_path::THIRD_ASN,
        ", localAddress: 198.18.0.2, passive: true, families: [ipv4-unicast]",
    );
    let routes = format!("{{prefix: {}}}", add_path::OURS);
    let daemon = launch(&cable, &config(&[peer(ROUTER, ROUTER_ASN, all), third], &routes));
    within(&cable.us, async {
        let _third = add_path::third().await;
        let has_all = || {
            let shown = add_path::shown_by_bird(&router, add_path::OURS);
            let ways = ["65002", "65002 65003"].iter().all(|path| has_path(&shown, path));
            ways && peers(&cable).is_some_and(|peers| {
                peers.iter().any(|peer| peer.address.to_string() == ROUTER && peer.prefixes_received == 2)
            })
        };
        wait_for("all paths on both sides", || ready(has_all())).await;
        let _daemon = aside(&cable, daemon).await;
        let shown = add_path::shown_by_bird(&router, add_path::OURS);
        assert!(has_all(), "{shown} {:?}", peers(&cable));
    });
}

/// Both families over a link-local address that is learned, with BFD, and routes into the kernels.
#[test]
fn an_unnumbered_link() {
    let cable = unnumbered::cable();
    let _router = unnumbered::launch_bird(&cable);
    let fast = ", bfd: {minTxMillis: 50, minRxMillis: 300, multiplier: 3}";
    let mut daemon = unnumbered::daemon(&cable, &["us0"], fast);
    let has_ways = || THEIRS.iter().all(|prefix| unnumbered::ways(&cable, prefix) == [format!("{SAME} us0")]);
    wait_until("ways to all", has_ways);
    wait_until("all is up", || all_up(&cable, 1));
    unnumbered::packets_pass(&cable);
    twice(&cable, &mut daemon);
    assert!(has_ways());
    unnumbered::packets_pass(&cable);
}

/// The router comes by itself, and signs with the key of its range.
#[test]
fn a_range_that_signs() {
    let cable = Cable::new();
    let router = Frr::start(&cable);
    let asn = format!("router bgp {ROUTER_ASN}");
    router.show(&["configure terminal", &asn, &format!("neighbor {US} password s3cret")]);
    let range = "{range: {prefix: 198.18.0.0/24, limit: 10}, asn: external, passive: true, auth: {md5Password: s3cret}, \
                 timers: {holdSeconds: 9}, import: {accept: [any], install: true}}"
        .to_owned();
    let mut daemon = launch(&cable, &config(&[range], "{prefix: 203.0.113.0/24}"));
    wait_until("the route at the router", || !router.route("203.0.113.0/24").is_empty());
    wait_until("all of the router", || peers(&cable).is_some_and(|peers| peers[0].prefixes_received == 3));
    twice(&cable, &mut daemon);
    // The listener still has the key, and another session can be made.
    router.reset();
    wait_until("another session", || {
        let is_new = |peer: &PeerStatus| peer.state == "Established" && peer.since_seconds < 10;
        peers(&cable).is_some_and(|peers| peers.first().is_some_and(is_new))
    });
}

/// 100,000 routes in, out again, and in the kernel: they stay there, and the hold times hold.
#[test]
fn a_large_table() {
    const ROUTES: u64 = 100_000;
    let cable = Arc::new(Cable::new());
    run("ip", &["-n", &cable.us, "address", "add", &format!("{THIRD}/24"), "dev", "us0"]);
    let mut routes = String::new();
    for number in 0..ROUTES {
        let [_, a, b, c] = u32::try_from(number).unwrap().to_be_bytes();
        writeln!(routes, "route {}.{b}.{c}.0/24 blackhole;", 16 + a).unwrap();
    }
    let router = format!(
        "router id {ROUTER};
protocol device {{}}
protocol static {{ ipv4; {routes} }}
protocol bgp peer {{
  local {ROUTER} as {ROUTER_ASN}; neighbor {US} as {OUR_ASN};
  hold time 9; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export where source = RTS_STATIC; }};
}}
"
    );
    let _router = Bird::launch(&cable, &router);
    let both = [
        peer(ROUTER, ROUTER_ASN, ", localAddress: 198.18.0.2, families: [ipv4-unicast]"),
        peer(
            THIRD,
            add_path::THIRD_ASN,
            ", localAddress: 198.18.0.2, passive: true, families: [ipv4-unicast], export: {learned: true}",
        ),
    ];
    let daemon = launch(&cable, &config(&both, ""));
    let installed = || {
        let routes = run("ip", &["-n", &cable.us, "-4", "route", "show", "proto", "179"]);
        routes.lines().count() as u64
    };
    within(&cable.us, async {
        let third = add_path::third().await;
        wait_for("all routes, here and at the third", || async {
            third.peers().await.iter().any(|peer| peer.prefixes_received >= ROUTES)
        })
        .await;
        wait_for("all routes in the kernel", || ready(installed() >= ROUTES)).await;
        let _daemon = aside(&cable, daemon).await;
        assert!(third.peers().await.iter().any(|peer| peer.prefixes_received >= ROUTES));
        assert!(installed() >= ROUTES);
    });
}
