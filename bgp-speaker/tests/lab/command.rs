//! The command: from its file to its exit code.
use super::{
    harness::{Cable, Process, ROUTER, US, wait_until},
    routers::{Frr, Router},
};
use bgp_speaker::config::{PeerStatus, RouteStatus};
use nix::sys::signal::Signal;
use std::{
    os::unix::fs::PermissionsExt,
    process::{Command, Output},
};

pub(crate) const BINARY: &str = env!("CARGO_BIN_EXE_bgp-speaker");

fn bgp_speaker(arguments: &[&str]) -> Output {
    Command::new(BINARY).args(arguments).output().unwrap()
}

/// Where our daemon answers.
pub(crate) fn api(cable: &Cable) -> String {
    cable.directory.join("api.sock").display().to_string()
}

/// Our daemon at its end of the cable, with this file.
pub(crate) fn launch(cable: &Cable, config: &str) -> Process {
    let config = cable.file("config.yaml", config).display().to_string();
    let arguments = ["run", "--config", &config, "--api-socket", &api(cable)];
    Process::start(&cable.us, BINARY, &arguments, &cable.directory.join("daemon.log"))
}

/// What it says of its peers; none: it does not answer.
pub(crate) fn peers(cable: &Cable) -> Option<Vec<PeerStatus>> {
    let output = bgp_speaker(&["peers", "-o", "json", "--api-socket", &api(cable)]);
    serde_json::from_slice(&output.stdout).ok()
}

#[test]
fn run_show_and_leave() {
    let cable = Cable::new();
    let router = Frr::start(&cable);
    let config = format!(
        "asn: 65002
routerID: {US}
listen: [\"{US}:179\"]
peers:
- {{address: {ROUTER}, asn: 65001, localAddress: {US}, timers: {{holdSeconds: 9}}, import: {{accept: [any]}}, export: {{learned: true}}}}
routes: [ {{prefix: 203.0.113.0/24, communities: [\"65002:1\"], med: 10}} ]
"
    );
    let config = cable.file("config.yaml", &config).display().to_string();
    let socket = cable.directory.join("api.sock");
    let api = socket.display().to_string();
    let arguments = ["run", "--config", &config, "--api-socket", &api];
    let mut daemon = Process::start(&cable.us, BINARY, &arguments, &cable.directory.join("daemon.log"));
    wait_until("the route at the router", || router.route("203.0.113.0/24").contains("65002:1"));
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);

    let show = |what: &str, format: &str| {
        let output = bgp_speaker(&[what, "-o", format, "--api-socket", &api]);
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let peers: Vec<PeerStatus> = serde_json::from_str(&show("peers", "json")).unwrap();
    assert_eq!((peers.len(), peers[0].state.as_str()), (1, "Established"));
    assert!(peers[0].capabilities.contains(&"four-octet-as 65001".to_owned()));
    assert!(show("peers", "table").contains("Established"));
    wait_until("a route from the router", || show("routes", "table").contains("10.1.0.0/16"));
    let routes: Vec<RouteStatus> = serde_json::from_str(&show("routes", "json")).unwrap();
    let sent = routes.iter().find(|route| route.table == "adj-out").unwrap();
    assert_eq!((sent.prefix.to_string().as_str(), sent.as_path.as_str()), ("203.0.113.0/24", "65002"));
    // A second instance would take the socket away.
    assert_eq!(bgp_speaker(&arguments).status.code(), Some(1));

    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    assert!(!socket.exists());
    wait_until("the router knows why", || {
        router.neighbor()["lastNotificationReason"].to_string().contains("Cease/Administrative Shutdown")
    });
    // Nobody there any more.
    assert_eq!(bgp_speaker(&["peers", "--api-socket", &api]).status.code(), Some(3));
}

#[test]
fn a_file_that_is_wrong() {
    let cable = Cable::new();
    let api = cable.directory.join("api.sock").display().to_string();
    for (content, error) in [
        (
            "asn: 65002\nrouterID: 198.18.0.2\npeers: [{address: 198.18.0.1, asn: 65001, gracefulRestart: {}}]",
            "peers[0].gracefulRestart",
        ),
        ("asn: 0\nrouterID: 198.18.0.2", "asn"),
        ("asn: 65002\nrouterID: 0.0.0.0", "router id"),
        ("asn: 65002\nrouterID: 198.18.0.2\nlisten: [\"192.0.2.77:179\"]", "192.0.2.77:179"),
        ("asn: 65002\nrouterID: 198.18.0.2\nfoo: 1", "foo"),
        ("[", ""),
    ] {
        let config = cable.file("config.yaml", content).display().to_string();
        let output = bgp_speaker(&["run", "--config", &config, "--api-socket", &api]);
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{content}: {text}");
        assert!(text.contains("config.yaml") && text.contains(error), "{content}: {text}");
    }
    assert_eq!(
        bgp_speaker(&["run", "--config", "/nonexistent", "--api-socket", &api]).status.code(),
        Some(1)
    );
    assert_eq!(bgp_speaker(&["walk"]).status.code(), Some(2));
}
