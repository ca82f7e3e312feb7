//! BMP as a station hears it, judged by Wireshark.
use super::{
    add_path::{self, THIRD},
    command::{BINARY, api, launch, peers},
    harness::{Cable, OUR_ASN, ROUTER, ROUTER_ASN, US, enter, run, wait_for, wait_until, within},
    routers::{Frr, PASSING, Router, THEIRS},
};
use nix::sys::signal::Signal;
use std::{
    fmt::Write as _,
    future::ready,
    io::Read,
    net::TcpListener,
    sync::{Arc, Mutex},
    thread,
};

/// What came to the station, by connection.
type Heard = Arc<Mutex<Vec<Vec<u8>>>>;

/// The types of its messages (RFC 7854 section 4.1).
fn types(stream: &[u8]) -> Vec<u8> {
    let (mut types, mut rest) = (Vec::new(), stream);
    while let [3, a, b, c, d, kind, ..] = *rest {
        types.push(kind);
        rest = rest.get(u32::from_be_bytes([a, b, c, d]) as usize..).unwrap_or_default();
    }
    types
}

/// Listens in the router's namespace, and closes the first connection when it has heard something.
fn station(cable: &Cable) -> Heard {
    let heard = Heard::default();
    let (namespace, all) = (cable.router.clone(), Arc::clone(&heard));
    let (listening, listens) = std::sync::mpsc::channel();
    thread::spawn(move || {
        enter(&namespace);
        let listener = TcpListener::bind((ROUTER, 11019)).unwrap();
        listening.send(()).unwrap();
        for (connection, stream) in listener.incoming().enumerate() {
            let mut stream = stream.unwrap();
            all.lock().unwrap().push(Vec::new());
            let mut read = [0; 4096];
            while let Ok(octets @ 1..) = stream.read(&mut read) {
                all.lock().unwrap()[connection].extend_from_slice(&read[..octets]);
                if connection == 0 {
                    break;
                }
            }
        }
    });
    listens.recv().unwrap();
    heard
}

/// What Wireshark makes of a stream: each field of each message.
fn dissected(cable: &Cable, stream: &[u8]) -> String {
    let mut dump = String::new();
    // A segment each, so that none is longer than a packet can be.
    for segment in stream.chunks(16 * 1024) {
        for (line, octets) in segment.chunks(16).enumerate() {
            let octets: String = octets.iter().map(|octet| format!(" {octet:02x}")).collect();
            writeln!(dump, "{:06x}{octets}", line * 16).unwrap();
        }
    }
    let dump = cable.file("stream.txt", &dump).display().to_string();
    let capture = cable.directory.join("stream.pcap").display().to_string();
    run("text2pcap", &["-q", "-T", "40000,11019", &dump, &capture]);
    run("tshark", &["-r", &capture, "-d", "tcp.port==11019,bmp", "-O", "bmp,bgp", "-V"])
}

#[test]
fn a_station_hears_what_the_router_tells() {
    let cable = Cable::new();
    let heard = station(&cable);
    let router = Frr::start(&cable);
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"{US}:179\"], peers: [{{address: {ROUTER}, asn: {ROUTER_ASN}, \
         localAddress: {US}, timers: {{holdSeconds: 9, connectRetrySeconds: 1}}, import: {{accept: [10.1.0.0/16]}}}}], \
         routes: [{{prefix: 203.0.113.0/24}}], bmp: [{{station: \"{ROUTER}:11019\", statsSeconds: 1}}]}}"
    );
    let mut daemon = launch(&cable, &config);
    let stream = || heard.lock().unwrap().get(1).cloned().unwrap_or_default();
    let types = || types(&stream());
    wait_until("a second connection, and statistics", || types().contains(&1) && types().len() > 6);
    wait_until("all routes of the router", || {
        let shown = run(BINARY, &["routes", "--api-socket", &api(&cable)]);
        // The other ones are refused, and came along.
        shown.contains(THEIRS[0]) && types().iter().filter(|kind| **kind == 0).count() >= 5
    });
    wait_until("the route at the router", || !router.route("203.0.113.0/24").is_empty());
    let before = types().len();
    router.withdraw_passing();
    wait_until("the end of a route", || types().iter().skip(before).any(|kind| *kind == 0));
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    wait_until("the last words", || types().last() == Some(&5));

    let text = dissected(&cable, &stream());
    assert!(!text.contains("Malformed") && !text.contains("malformed"), "{text}");
    for expected in [
        "Type: Initiation Message (4)",
        "Type: Peer Up Notification (3)",
        "Type: OPEN Message (1)",
        "Type: Route Monitoring (0)",
        "Type: Statistics Report (1)",
        "Type: Peer Down Notification (2)",
        "Type: Termination Message (5)",
        // Before our policy, which takes 10.1.0.0/16 only.
        THEIRS[0],
        PASSING,
        THEIRS[1],
        "MULTI_EXIT_DISC: 7",
        "65001:1:2",
        "Cease",
    ] {
        assert!(text.contains(expected), "{expected} is missing in\n{text}");
    }
}

/// Of a peer that tells several paths of a prefix (RFC 7911) the station hears each, and of the end of one.
#[test]
fn a_station_hears_all_paths() {
    let cable = Cable::new();
    run("ip", &["-n", &cable.us, "address", "add", &format!("{THIRD}/24"), "dev", "us0"]);
    let heard = station(&cable);
    let _router = add_path::launch_bird(&cable);
    let config = format!(
        "{{asn: {OUR_ASN}, routerID: {US}, listen: [\"{US}:179\"], peers: [{{address: {ROUTER}, asn: {ROUTER_ASN}, \
         localAddress: {US}, families: [ipv4-unicast], addPath: {{send: true, receive: true}}, \
         timers: {{holdSeconds: 9, connectRetrySeconds: 1}}, import: {{accept: [any]}}}}], \
         bmp: [{{station: \"{ROUTER}:11019\", statsSeconds: 1}}]}}"
    );
    let mut daemon = launch(&cable, &config);
    within(&cable.us, async {
        let third = add_path::third().await;
        let learned = || peers(&cable).map_or(0, |peers| peers[0].prefixes_received);
        let stream = || heard.lock().unwrap().get(1).cloned().unwrap_or_default();
        wait_for("two paths", || ready(learned() == 2)).await;
        wait_for("a second connection, and two paths there", || {
            ready(types(&stream()).iter().filter(|kind| **kind == 0).count() >= 2)
        })
        .await;
        let before = types(&stream()).len();
        third.set_routes(vec![]).await.unwrap();
        wait_for("one path", || ready(learned() == 1)).await;
        wait_for("the end of a path", || ready(types(&stream()).iter().skip(before).any(|kind| *kind == 0)))
            .await;
    });
    daemon.signal(Signal::SIGTERM);
    assert_eq!(daemon.0.wait().unwrap().code(), Some(0));
    let stream = || heard.lock().unwrap().get(1).cloned().unwrap_or_default();
    wait_until("the last words", || types(&stream()).last() == Some(&5));
    let text = dissected(&cable, &stream());
    assert!(!text.contains("Malformed") && !text.contains("malformed"), "{text}");
    // The identifier by which a message names the prefix, after this part of the message.
    let path = |after: &str| {
        let rest = text.split_once(after).unwrap_or_else(|| panic!("{after} is missing in\n{text}")).1;
        let rest = rest.split_once("10.1.0.0/16 PathId ").unwrap().1;
        rest.split_whitespace().next().unwrap().to_owned()
    };
    let (own, thirds) = (path("AS_PATH: 65001 \n"), path("AS_PATH: 65001 65003 \n"));
    assert_ne!(own, thirds);
    assert_eq!(path("    Withdrawn Routes\n"), thirds);
}
