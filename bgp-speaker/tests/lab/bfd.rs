//! BFD with FRR's bfdd and with BIRD: up, the cable cut, the peer frozen, other parameters under load.
use super::{
    harness::{
        Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, ROUTER6, US, US6, global, peer, run, wait_for,
        wait_until, within,
    },
    routers::THEIRS,
};
use bgp_speaker::{
    Handle,
    config::{Bfd, BfdStatus, PeerConfig, PeerStatus},
    spawn,
};
use nix::sys::signal::Signal;
use std::{
    fs,
    net::IpAddr,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

const FAST: Bfd = Bfd { min_tx_millis: 50, min_rx_millis: 50, multiplier: 3 };

/// A router with BGP and BFD over IPv4 and IPv6, single hop or multihop.
pub(super) struct Router {
    /// What BFD needs; stopped to freeze the router.
    bfd: Process,
    _others: Vec<Process>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Frr,
    Bird,
    /// With the lowest real-time priority.
    HurriedBird,
}

pub(super) fn start(cable: &Cable, kind: Kind, multihop: bool) -> Router {
    match kind {
        Kind::Frr => frr(cable, multihop),
        Kind::Bird => bird(cable, multihop, &[]),
        // As our own thread of BFD does: the scheduler's fairness is not enough for 150 ms.
        Kind::HurriedBird => bird(cable, multihop, &["/usr/bin/chrt", "-f", "1"]),
    }
}

fn frr(cable: &Cable, multihop: bool) -> Router {
    let neighbor = |us: &str| {
        let multihop = if multihop { format!(" neighbor {us} ebgp-multihop 4\n") } else { String::new() };
        format!(
            " neighbor {us} remote-as {OUR_ASN}\n neighbor {us} timers 20 60\n neighbor {us} timers connect 1\n{multihop} \
             neighbor {us} bfd 3 50 50\n"
        )
    };
    let bgp = format!(
        "router bgp {ROUTER_ASN}\n bgp router-id {ROUTER}\n no bgp ebgp-requires-policy\n \
         no bgp network import-check\n{}{} address-family ipv4 unicast\n  network {}\n exit-address-family\n \
         address-family ipv6 unicast\n  neighbor {US6} activate\n  network {}\n exit-address-family\n",
        neighbor(US),
        neighbor(US6),
        THEIRS[0],
        THEIRS[1]
    );
    let directory = cable.directory.display().to_string();
    let files = [
        ("zebra", cable.file("zebra.conf", "")),
        ("bfdd", cable.file("bfdd.conf", "")),
        ("bgpd", cable.file("bgpd.conf", &bgp)),
    ];
    run("chown", &["-R", "frr:frr", &directory]);
    let mut processes = files.iter().map(|(name, config)| {
        let (pid, api) = (format!("{directory}/{name}.pid"), format!("{directory}/zserv.api"));
        let config = config.display().to_string();
        let mut arguments =
            vec!["-f", &config, "-i", &pid, "--vty_socket", &directory, "-z", &api, "-A", "127.0.0.1"];
        if *name == "zebra" {
            arguments.extend(["-s", "90000000"]);
        }
        let log = cable.directory.join(format!("{name}.log"));
        let process = Process::start(&cable.router, &format!("/usr/lib/frr/{name}"), &arguments, &log);
        wait_until(name, || Path::new(&format!("{directory}/{name}.vty")).exists());
        process
    });
    let (zebra, bfd, bgpd) =
        (processes.next().unwrap(), processes.next().unwrap(), processes.next().unwrap());
    drop(processes);
    Router { bfd, _others: vec![zebra, bgpd] }
}

/// BIRD, started by a command before it, if there is one.
fn bird(cable: &Cable, multihop: bool, by: &[&str]) -> Router {
    let multihop = if multihop { "multihop 4;" } else { "direct;" };
    let timers = "hold time 60; keepalive time 20; connect delay time 1; connect retry time 1; error wait time 1,2; bfd on;";
    let config = format!(
        "router id {ROUTER};
protocol device {{}}
protocol static s4 {{ ipv4; route {} blackhole; }}
protocol static s6 {{ ipv6; route {} blackhole; }}
protocol bfd {{
  interface \"*\" {{ min rx interval 50 ms; min tx interval 50 ms; multiplier 3; }};
  multihop {{ min rx interval 50 ms; min tx interval 50 ms; multiplier 3; }};
}}
protocol bgp p4 {{ local {ROUTER} as {ROUTER_ASN}; neighbor {US} as {OUR_ASN}; {multihop} {timers} ipv4 {{ import all; export all; }}; }}
protocol bgp p6 {{ local {ROUTER6} as {ROUTER_ASN}; neighbor {US6} as {OUR_ASN}; {multihop} {timers} ipv6 {{ import all; export all; }}; }}
",
        THEIRS[0], THEIRS[1]
    );
    let config = cable.file("bird.conf", &config).display().to_string();
    let control = cable.directory.join("bird.ctl").display().to_string();
    let command = [by, &["/usr/sbin/bird", "-f", "-c", &config, "-s", &control]].concat();
    let log = cable.directory.join("bird.log");
    let bird = Process::start(&cable.router, command[0], &command[1..], &log);
    wait_until("bird is there", || fs::metadata(&control).is_ok());
    Router { bfd: bird, _others: vec![] }
}

fn peers(bfd: Bfd, multihop: bool) -> Vec<PeerConfig> {
    let to = |remote: &str, local: &str| {
        let mut config = peer();
        config.address = remote.parse().unwrap();
        config.local_address = Some(local.parse().unwrap());
        (config.timers.hold_seconds, config.timers.keepalive_seconds) = (60, 20);
        config.multihop_ttl = multihop.then_some(4);
        config.bfd = Some(bfd);
        config
    };
    vec![to(ROUTER, US), to(ROUTER6, US6)]
}

async fn speaker(bfd: Bfd, multihop: bool) -> Handle {
    let speaker = spawn();
    let mut global = global();
    global.listen.insert(format!("[{US6}]:179").parse().unwrap());
    speaker.set_global(global).await.unwrap();
    speaker.set_peers(peers(bfd, multihop)).await.unwrap();
    speaker
}

fn bfd(peer: &PeerStatus) -> BfdStatus {
    peer.bfd.clone().unwrap_or_default()
}

async fn wait_until_up(speaker: &Handle) {
    wait_for("sessions and their paths are up, at full pace", || async {
        let peers = speaker.peers().await;
        peers.iter().all(|peer| {
            let bfd = bfd(peer);
            peer.state == "Established"
                && bfd.state == "Up"
                && (bfd.transmit_millis, bfd.detection_millis) == (50, Some(150))
        })
    })
    .await;
}

/// How often the path to a peer failed, and how often its session came up.
async fn counts(speaker: &Handle) -> Vec<(IpAddr, u64, u64)> {
    let peers = speaker.peers().await;
    peers.iter().map(|peer| (peer.address, bfd(peer).failure_count, peer.established_count)).collect()
}

/// The time until nothing is left of what the router told.
async fn withdrawn(speaker: &Handle, since: Instant) -> Duration {
    let mut changes = speaker.changes();
    while speaker.routes().await.iter().any(|route| route.table == "adj-in") {
        tokio::time::timeout(Duration::from_secs(20), changes.changed()).await.unwrap().unwrap();
    }
    since.elapsed()
}

fn drop_all(cable: &Cable, cut: bool) {
    let rules = "add table inet cut; add chain inet cut in { type filter hook input priority 0; policy drop; }; \
                 add chain inet cut out { type filter hook output priority 0; policy drop; }";
    let rules = if cut { rules } else { "delete table inet cut" };
    run("ip", &["netns", "exec", &cable.us, "nft", rules]);
}

async fn path(cable: &Cable, kind: Kind, multihop: bool) {
    let router = start(cable, kind, multihop);
    let speaker = speaker(FAST, multihop).await;
    wait_until_up(&speaker).await;
    wait_for("routes of both families", || async {
        let routes = speaker.routes().await;
        THEIRS.iter().all(|prefix| routes.iter().any(|route| route.prefix.to_string() == *prefix))
    })
    .await;
    for peer in speaker.peers().await {
        let bfd = bfd(&peer);
        assert_eq!((bfd.multihop, bfd.remote_multiplier, bfd.failure_count), (multihop, Some(3), 0));
    }
    let name = match kind {
        Kind::Frr => "FRR",
        Kind::Bird | Kind::HurriedBird => "BIRD",
    };
    // The cable is cut.
    drop_all(cable, true);
    let cut = Instant::now();
    let time = withdrawn(&speaker, cut).await;
    println!("{name}, multihop {multihop}: cut to withdrawn, both families: {time:?}");
    for peer in speaker.peers().await {
        assert_eq!(bfd(&peer).last_diagnostic.as_deref(), Some("Control Detection Time Expired"));
        assert_eq!(peer.last_error.as_deref(), Some("sent Cease/BFD Down"));
    }
    drop_all(cable, false);
    wait_until_up(&speaker).await;
    wait_for("routes again", || async { speaker.routes().await.iter().any(|route| route.table == "adj-in") })
        .await;
    // The router freezes: its TCP stays, its BFD is silent.
    let frozen = Instant::now();
    router.bfd.signal(Signal::SIGSTOP);
    println!("{name}, multihop {multihop}: frozen to withdrawn: {:?}", withdrawn(&speaker, frozen).await);
    router.bfd.signal(Signal::SIGCONT);
    wait_until_up(&speaker).await;
    speaker.shutdown().await;
}

#[test]
fn frr_single_hop() {
    let cable = Cable::new();
    within(&cable.us, path(&cable, Kind::Frr, false));
}

#[test]
fn frr_multihop() {
    let cable = Cable::new();
    within(&cable.us, path(&cable, Kind::Frr, true));
}

#[test]
fn bird_single_hop() {
    let cable = Cable::new();
    within(&cable.us, path(&cable, Kind::Bird, false));
}

#[test]
fn bird_multihop() {
    let cable = Cable::new();
    within(&cable.us, path(&cable, Kind::Bird, true));
}

/// The router dials from its link-local address; the interface of the path is that of the session.
#[test]
fn link_local() {
    let cable = Cable::new();
    let address = |namespace: &str, link: &str| {
        let shown =
            run("ip", &["-n", namespace, "-6", "-o", "address", "show", "dev", link, "scope", "link"]);
        let address = shown.split_whitespace().find_map(|word| word.strip_suffix("/64"));
        address.unwrap().to_owned()
    };
    let (us, router) = (address(&cable.us, "us0"), address(&cable.router, "router0"));
    let config = format!(
        "router id {ROUTER};
protocol device {{}}
protocol static s6 {{ ipv6; route {} blackhole; }}
protocol bfd {{ interface \"*\" {{ min rx interval 50 ms; min tx interval 50 ms; multiplier 3; }}; }}
protocol bgp ll {{ local as {ROUTER_ASN}; neighbor {us}%router0 as {OUR_ASN}; direct; bfd on;
  connect delay time 1; connect retry time 1; error wait time 1,2; ipv6 {{ import all; export all; }}; }}
",
        THEIRS[1]
    );
    let config = cable.file("bird.conf", &config).display().to_string();
    let control = cable.directory.join("bird.ctl").display().to_string();
    let arguments = ["-f", "-c", &config, "-s", &control];
    let _bird =
        Process::start(&cable.router, "/usr/sbin/bird", &arguments, &cable.directory.join("bird.log"));
    within(&cable.us, async {
        let speaker = spawn();
        let mut global = global();
        global.listen = ["[::]:179".parse().unwrap()].into();
        speaker.set_global(global).await.unwrap();
        let mut config = peer();
        (config.address, config.local_address, config.bfd) = (router.parse().unwrap(), None, Some(FAST));
        speaker.set_peers(vec![config]).await.unwrap();
        wait_until_up(&speaker).await;
        wait_for("its route", || async {
            speaker.routes().await.iter().any(|route| route.table == "adj-in")
        })
        .await;
        drop_all(&cable, true);
        let cut = Instant::now();
        println!("BIRD, link-local: cut to withdrawn: {:?}", withdrawn(&speaker, cut).await);
        speaker.shutdown().await;
    });
}

/// All processors are busy, and the runtime of BGP is blocked for seconds: 50 ms × 3 holds, whatever is changed.
#[test]
fn no_flap_on_a_busy_machine() {
    let cable = Cable::new();
    let _router = start(&cable, Kind::HurriedBird, false);
    within(&cable.us, async {
        let speaker = speaker(FAST, false).await;
        wait_until_up(&speaker).await;
        let before = counts(&speaker).await;
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 * thread::available_parallelism().unwrap().get() {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                });
            }
            // The thread of BGP sees nothing of this time; the BFD of both sides goes on.
            let until = Instant::now() + Duration::from_secs(3);
            while Instant::now() < until {
                std::hint::spin_loop();
            }
            stop.store(true, Ordering::Relaxed);
        });
        for millis in [200, 50, 100, 20, 50] {
            let other = Bfd { min_tx_millis: millis, min_rx_millis: millis, multiplier: 3 };
            speaker.set_peers(peers(other, false)).await.unwrap();
            wait_for("in force on both sides", || async {
                let want = u64::from(millis.max(50));
                speaker.peers().await.iter().all(|peer| {
                    (bfd(peer).transmit_millis, bfd(peer).detection_millis) == (want, Some(3 * want))
                })
            })
            .await;
        }
        let why: Vec<_> = speaker.peers().await.iter().map(|peer| bfd(peer).last_diagnostic).collect();
        assert_eq!(counts(&speaker).await, before, "{why:?}");
        speaker.shutdown().await;
    });
}
