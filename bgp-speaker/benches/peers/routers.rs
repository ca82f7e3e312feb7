//! The routers: how each is started and configured to take everything from each peer and pass it on.
use crate::{
    harness::{Cable, OUR_ASN, Process, US, run},
    load::asn,
};
use std::{fs, os::unix::fs::PermissionsExt, path::Path};

/// A router.
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) program: &'static str,
    start: fn(&Cable, &str, Side, &[&str]) -> Process,
}

/// Who makes the connection.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The router, as soon as it can.
    Dials,
    /// The peer.
    Listens,
}

impl Contender {
    pub(crate) fn is_there(&self) -> bool {
        Path::new(self.program).exists()
    }

    pub(crate) fn start(&self, cable: &Cable, side: Side, peers: &[&str]) -> Process {
        (self.start)(cable, self.program, side, peers)
    }
}

/// The name of the one that all others are compared with.
pub(crate) const REFERENCE: &str = "BIRD";

pub(crate) fn all() -> [Contender; 5] {
    [
        Contender { name: "bgp-speaker", program: env!("CARGO_BIN_EXE_bgp-speaker"), start: ours },
        Contender { name: REFERENCE, program: "/usr/sbin/bird", start: bird },
        Contender { name: "FRR", program: "/usr/lib/frr/bgpd", start: frr },
        Contender { name: "GoBGP", program: "/usr/bin/gobgpd", start: gobgp },
        Contender { name: "OpenBGPD", program: "/usr/sbin/bgpd", start: openbgpd },
    ]
}

fn start(cable: &Cable, program: &str, arguments: &[&str]) -> Process {
    Process::start(&cable.us, program, arguments, &cable.directory.join("router.log"))
}

/// A part of the configuration for each peer.
fn each(peers: &[&str], part: impl Fn(&str, u32) -> String) -> String {
    peers.iter().map(|peer| part(peer, asn(peer))).collect()
}

fn file(cable: &Cable, name: &str, content: &str) -> String {
    cable.file(name, content).display().to_string()
}

fn ours(cable: &Cable, program: &str, side: Side, peers: &[&str]) -> Process {
    let passive = side == Side::Listens;
    let peers = each(peers, |peer, asn| {
        format!(
            "- {{address: {peer}, asn: {asn}, localAddress: {US}, passive: {passive}, families: [ipv4-unicast], \
             import: {{accept: [any]}}, export: {{learned: true}}}}\n"
        )
    });
    let config = format!("asn: {OUR_ASN}\nrouterID: {US}\nlisten: [\"{US}:179\"]\npeers:\n{peers}");
    let config = file(cable, "speaker.yaml", &config);
    let socket = cable.directory.join("api.sock").display().to_string();
    start(cable, program, &["run", "--config", &config, "--api-socket", &socket])
}

fn bird(cable: &Cable, program: &str, side: Side, peers: &[&str]) -> Process {
    let passive = if side == Side::Listens { "passive on;" } else { "" };
    let peers = each(peers, |peer, asn| {
        format!(
            "protocol bgp {{ local {US} as {OUR_ASN}; neighbor {peer} as {asn}; {passive} \
             connect delay time 1; error wait time 1,1; ipv4 {{ import all; export all; }}; }}\n"
        )
    });
    let config = file(cable, "bird.conf", &format!("router id {US};\nprotocol device {{}}\n{peers}"));
    let control = cable.directory.join("bird.ctl").display().to_string();
    start(cable, program, &["-f", "-c", &config, "-s", &control])
}

/// Without zebra, whose FIB would cost more than BGP does.
fn frr(cable: &Cable, program: &str, side: Side, peers: &[&str]) -> Process {
    let peers = each(peers, |peer, asn| {
        let passive =
            if side == Side::Listens { format!(" neighbor {peer} passive\n") } else { String::new() };
        format!(" neighbor {peer} remote-as {asn}\n{passive} neighbor {peer} timers connect 1\n")
    });
    let config = format!(
        "router bgp {OUR_ASN}\n bgp router-id {US}\n no bgp ebgp-requires-policy\n \
         no bgp network import-check\n{peers}"
    );
    let config = file(cable, "bgpd-frr.conf", &config);
    let directory = cable.directory.display().to_string();
    let pid = cable.directory.join("bgpd.pid").display().to_string();
    // FRR runs as a user of its own.
    run("chown", &["-R", "frr:frr", &directory]);
    let arguments = ["-Z", "-f", &config, "-i", &pid, "--vty_socket", &directory, "-A", "127.0.0.1"];
    start(cable, program, &arguments)
}

fn gobgp(cable: &Cable, program: &str, side: Side, peers: &[&str]) -> Process {
    let passive = side == Side::Listens;
    let peers = each(peers, |peer, asn| {
        format!(
            "- config: {{neighbor-address: {peer}, peer-as: {asn}}}\n  \
             timers: {{config: {{connect-retry: 1, idle-hold-time-after-reset: 1}}}}\n  \
             transport: {{config: {{local-address: {US}, passive-mode: {passive}}}}}\n  \
             afi-safis: [{{config: {{afi-safi-name: ipv4-unicast}}}}]\n"
        )
    });
    let global = format!("global: {{config: {{as: {OUR_ASN}, router-id: {US}}}}}\n");
    let config = file(cable, "gobgpd.yml", &format!("{global}neighbors:\n{peers}"));
    // It does not start where one before it left its socket.
    let socket = cable.directory.join("gobgp.sock");
    let _: Result<_, _> = fs::remove_file(&socket);
    let socket = format!("unix://{}", socket.display());
    start(cable, program, &["-t", "yaml", "-f", &config, "--api-hosts", &socket])
}

fn openbgpd(cable: &Cable, program: &str, side: Side, peers: &[&str]) -> Process {
    let passive = if side == Side::Listens { "\tpassive\n" } else { "" };
    let peers = each(peers, |peer, asn| {
        format!("neighbor {peer} {{\n\tremote-as {asn}\n\tlocal-address {US}\n{passive}}}\n")
    });
    let config = format!(
        "AS {OUR_ASN}\nrouter-id {US}\nlisten on {US}\nsocket \"{}\"\nfib-update no\nconnect-retry 1\n{peers}\
         allow from any\nallow to any\n",
        cable.directory.join("bgpd.sock").display()
    );
    let path = cable.file("bgpd.conf", &config);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    // Its other processes run as a user of their own, in here.
    fs::create_dir_all("/run/openbgpd").unwrap();
    start(cable, program, &["-d", "-f", &path.display().to_string()])
}
