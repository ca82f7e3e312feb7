//! A successor in the place of our daemon: the router sees no event of the session.
use super::{
    command::{launch, peers},
    harness::{Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, US, run, wait_until},
    routers::{Bird, Frr, Router, THEIRS},
};
use bgp_speaker::config::PeerStatus;
use nix::sys::signal::Signal;
use std::path::Path;

const STAYS: [&str; 2] = ["203.0.113.0/24", "2001:db8:1::/48"];
const GOES: &str = "203.0.114.0/24";
const COMES: &str = "203.0.115.0/24";
/// What a capture has of the beginnings and ends of sessions.
pub(super) const EVENTS: &str =
    "bgp.type == 1 || bgp.type == 3 || tcp.flags.syn == 1 || tcp.flags.fin == 1 || tcp.flags.reset == 1";

/// The file of the daemon.
fn config(prefixes: &[&str], password: &str) -> String {
    let routes: Vec<String> = prefixes.iter().map(|prefix| format!("{{prefix: \"{prefix}\"}}")).collect();
    let auth =
        if password.is_empty() { String::new() } else { format!("auth: {{md5Password: {password}}}, ") };
    format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"{US}:179\"], peers: [{{address: {ROUTER}, asn: {ROUTER_ASN}, \
         localAddress: {US}, {auth}timers: {{holdSeconds: 9, connectRetrySeconds: 1}}, import: {{accept: [any]}}}}], \
         routes: [{}]}}",
        routes.join(", ")
    )
}

fn status(cable: &Cable) -> Option<PeerStatus> {
    peers(cable)?.pop()
}

/// How often it has begun its work.
pub(super) fn starts(cable: &Cable) -> usize {
    std::fs::read_to_string(cable.directory.join("daemon.log")).unwrap().matches("running").count()
}

/// Packets of a capture that a filter of Wireshark lets through, a line each.
pub(super) fn packets(capture: &str, filter: &str) -> String {
    run("tshark", &["-r", capture, "-Y", filter])
}

/// Hands over twice: to a successor, and to the successor of that.
fn nobody_notices<R: Router>(prepare: impl FnOnce(&R), password: &str) {
    let cable = Cable::new();
    let router = R::start(&cable);
    prepare(&router);
    let mut daemon = launch(&cable, &config(&[&STAYS[..], &[GOES]].concat(), password));
    let has = |prefix: &str| !router.route(prefix).is_empty();
    let stays = || STAYS.iter().for_each(|prefix| assert!(has(prefix), "{prefix}"));
    wait_until("all at the router", || STAYS.iter().chain([&GOES]).all(|prefix| has(prefix)));
    wait_until("all of the router", || {
        status(&cable).is_some_and(|peer| peer.prefixes_received as usize > THEIRS.len())
    });
    let capture = cable.directory.join("capture.pcap").display().to_string();
    let tcpdump = ["-i", "us0", "-U", "-w", &capture, "tcp", "port", "179"];
    let log = cable.directory.join("tcpdump.log");
    let _tcpdump = Process::start(&cable.us, "/usr/bin/tcpdump", &tcpdump, &log);
    wait_until("it captures", || Path::new(&capture).exists());
    let before = status(&cable).unwrap();

    for (run, prefixes) in [[STAYS[0], STAYS[1], COMES], [STAYS[0], STAYS[1], GOES]].iter().enumerate() {
        cable.file("config.yaml", &config(prefixes, password));
        daemon.signal(Signal::SIGUSR2);
        wait_until("the successor runs", || {
            stays();
            starts(&cable) == run + 2
        });
        let [new, old] = if run == 0 { [COMES, GOES] } else { [GOES, COMES] };
        wait_until("what changed is known", || {
            stays();
            has(new) && !has(old)
        });
    }
    // Longer than the hold time.
    wait_until("the session is as old as it should be", || {
        stays();
        status(&cable).is_some_and(|peer| peer.since_seconds > before.since_seconds + 12)
    });
    let after = status(&cable).unwrap();
    assert_eq!((after.state.as_str(), after.established_count, after.flap_count), ("Established", 1, 0));
    assert_eq!(after.prefixes_received, before.prefixes_received);
    assert!(router.is_established());
    assert_eq!(daemon.0.try_wait().unwrap(), None, "it is the same process");
    assert_eq!(packets(&capture, EVENTS), "", "the session is seen to end or to begin");
    assert!(packets(&capture, "bgp.type == 4").lines().count() > 2, "the capture has seen the session");

    // A program that cannot read its file is not started.
    cable.file("config.yaml", "asn: none");
    daemon.signal(Signal::SIGUSR2);
    let log = || std::fs::read_to_string(cable.directory.join("daemon.log")).unwrap();
    wait_until("it says so", || log().contains("not handed over"));
    assert_eq!(status(&cable).unwrap().flap_count, 0);
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
}

#[test]
fn frr_sees_nothing() {
    nobody_notices::<Frr>(|_| (), "");
}

#[test]
fn bird_sees_nothing() {
    nobody_notices::<Bird>(|_| (), "");
}

#[test]
fn frr_that_signs_sees_nothing() {
    nobody_notices::<Frr>(
        |router| {
            let asn = format!("router bgp {ROUTER_ASN}");
            let password = format!("neighbor {US} password s3cret");
            router.show(&["configure terminal", &asn, &password]);
        },
        "s3cret",
    );
}

/// SIGUSR2 that comes while one program takes the place of another ends neither.
#[test]
fn signals_without_a_pause() {
    let cable = Cable::new();
    let router = Frr::start(&cable);
    let mut daemon = launch(&cable, &config(&STAYS, ""));
    let stays = || STAYS.iter().all(|prefix| !router.route(prefix).is_empty());
    wait_until("all at the router", stays);
    wait_until("many successors", || {
        (0..1000).for_each(|_| daemon.signal(Signal::SIGUSR2));
        starts(&cable) > 10
    });
    wait_until("the last one answers", || status(&cable).is_some());
    assert_eq!(daemon.0.try_wait().unwrap(), None, "it lives");
    let status = status(&cable).unwrap();
    assert_eq!((status.established_count, status.flap_count), (1, 0));
    assert!(stays());
}

/// A file that is read again: routes and policies change, a session does not.
#[test]
fn frr_sees_no_reload() {
    let cable = Cable::new();
    let router = Frr::start(&cable);
    let daemon = launch(&cable, &config(&[STAYS[0], GOES], ""));
    let has = |prefix: &str| !router.route(prefix).is_empty();
    wait_until("all at the router", || has(STAYS[0]) && has(GOES));
    let log = || std::fs::read_to_string(cable.directory.join("daemon.log")).unwrap();

    // The routes are right, and a peer is wrong: nothing of it takes effect.
    let path = cable.file("config.yaml", &config(&[STAYS[0], COMES], ""));
    let right = std::fs::read_to_string(&path).unwrap();
    cable.file("config.yaml", &right.replace("holdSeconds: 9", "holdSeconds: 2"));
    daemon.signal(Signal::SIGHUP);
    wait_until("it says so", || log().contains("not reloaded"));
    assert!(has(GOES) && !has(COMES), "{}", log());

    cable.file("config.yaml", &right.replace("[any]", "[192.0.2.0/24]"));
    daemon.signal(Signal::SIGHUP);
    wait_until("routes are other ones", || has(COMES) && !has(GOES) && has(STAYS[0]));
    wait_until("what is not accepted any more goes", || {
        status(&cable).is_some_and(|peer| peer.prefixes_received == 0)
    });
    assert_eq!(status(&cable).unwrap().established_count, 1);
}
