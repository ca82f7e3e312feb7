//! GoBGP and OpenBGPD at the other end of the cable, with the routes that FRR and BIRD have, too.
use super::{
    harness::{Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, ROUTER6, US, listens, run, wait_until},
    routers::{PASSING, Router, THEIRS},
};
use nix::{sys::signal::Signal, unistd::Pid};
use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

pub(crate) struct GoBgp {
    target: String,
    gobgpd: Process,
}

impl GoBgp {
    /// gobgpd with this configuration.
    pub(crate) fn launch(cable: &Cable, config: &str) -> Self {
        let config = cable.file("gobgpd.yml", config).display().to_string();
        let target = format!("unix://{}", cable.directory.join("gobgp.sock").display());
        let log = cable.directory.join("gobgpd.log");
        let arguments = ["-t", "yaml", "-f", &config, "--api-hosts", &target];
        let gobgpd = Process::start(&cable.router, "/usr/bin/gobgpd", &arguments, &log);
        wait_until("gobgpd answers", || {
            let mut ask = Command::new("gobgp");
            let ask = ask.args(["--target", &target, "neighbor"]).stdout(Stdio::null()).stderr(Stdio::null());
            ask.status().is_ok_and(|status| status.success())
        });
        GoBgp { target, gobgpd }
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        run("gobgp", &[&["--target", &self.target], arguments].concat())
    }

    fn neighbor(&self) -> serde_json::Value {
        serde_json::from_str(&self.ask(&["-j", "neighbor", US])).unwrap()
    }
}

impl Router for GoBgp {
    const ATTRIBUTES: [&str; 4] =
        ["{Med: 10}", "65002 65002 65002", "{Communities: 65002:1}", "{LargeCommunity: [ 65002:1:2]}"];

    fn start(cable: &Cable) -> Self {
        let config = format!(
            "global: {{config: {{as: {ROUTER_ASN}, router-id: {ROUTER}}}}}
neighbors:
- config: {{neighbor-address: {US}, peer-as: {OUR_ASN}}}
  timers: {{config: {{hold-time: 9, keepalive-interval: 3, connect-retry: 1, idle-hold-time-after-reset: 1}}}}
  transport: {{config: {{local-address: {ROUTER}}}}}
  afi-safis: [{{config: {{afi-safi-name: ipv4-unicast}}}}, {{config: {{afi-safi-name: ipv6-unicast}}}}]
"
        );
        let router = GoBgp::launch(cable, &config);
        for (prefix, family, next_hop) in [(THEIRS[0], "ipv4", ROUTER), (THEIRS[1], "ipv6", ROUTER6)] {
            let attributes = ["aspath", "65001 65001", "med", "7", "community", "65001:1"];
            let route = ["global", "rib", "add", "-a", family, prefix, "nexthop", next_hop];
            router.ask(&[&route[..], &attributes, &["large-community", "65001:1:2"]].concat());
        }
        router.ask(&["global", "rib", "add", "-a", "ipv4", PASSING]);
        router
    }

    fn is_established(&self) -> bool {
        self.neighbor()["state"]["session_state"] == 6
    }

    fn route(&self, prefix: &str) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        let table = self.ask(&["global", "rib", "-a", family]);
        table.lines().find(|line| line.contains(prefix)).unwrap_or_default().to_owned()
    }

    fn withdraw_passing(&self) {
        self.ask(&["global", "rib", "del", "-a", "ipv4", PASSING]);
    }

    fn reset(&self) {
        self.ask(&["neighbor", US, "reset"]);
    }

    fn refresh(&self) -> bool {
        false
    }

    fn updates(&self) -> u64 {
        self.neighbor()["state"]["messages"]["received"]["update"].as_u64().unwrap_or(0)
    }

    fn process(&self) -> &Process {
        &self.gobgpd
    }
}

pub(crate) struct OpenBgpd {
    control: String,
    bgpd: Process,
}

impl OpenBgpd {
    /// The control socket, for the configuration.
    pub(crate) fn control(cable: &Cable) -> String {
        cable.directory.join("bgpd.sock").display().to_string()
    }

    /// bgpd with this configuration.
    pub(crate) fn launch(cable: &Cable, config: &str) -> Self {
        let control = OpenBgpd::control(cable);
        let config = cable.file("bgpd.conf", config);
        fs::set_permissions(&config, fs::Permissions::from_mode(0o600)).unwrap();
        // Its other processes run as a user of their own, in here.
        fs::create_dir_all("/run/openbgpd").unwrap();
        let log = cable.directory.join("bgpd.log");
        let arguments = ["-d", "-f", &config.display().to_string()];
        let bgpd = Process::start(&cable.router, "/usr/sbin/bgpd", &arguments, &log);
        wait_until("bgpd is there", || listens(&control));
        OpenBgpd { control, bgpd }
    }

    pub(crate) fn ask(&self, arguments: &[&str]) -> String {
        run("bgpctl", &[&["-s", &self.control], arguments].concat())
    }

    fn neighbor(&self) -> serde_json::Value {
        let shown: serde_json::Value =
            serde_json::from_str(&self.ask(&["-j", "show", "neighbor", US])).unwrap();
        shown["neighbors"][0].clone()
    }
}

impl Router for OpenBgpd {
    /// Its next hop of IPv6 is `::` there, so that we treat that route as withdrawn.
    const ANNOUNCES: &[(&str, &str)] = &[(THEIRS[0], ROUTER)];
    const ATTRIBUTES: [&str; 4] = ["metric 10", "65002 65002 65002", "65002:1", "65002:1:2"];

    fn start(cable: &Cable) -> Self {
        let control = OpenBgpd::control(cable);
        let config = format!(
            "AS {ROUTER_ASN}
router-id {ROUTER}
socket \"{control}\"
fib-update no
connect-retry 2
network {}
network {PASSING}
network {}
neighbor {US} {{
\tremote-as {OUR_ASN}
\tlocal-address {ROUTER}
\tholdtime 9
\tholdtime min 3
\tannounce IPv4 unicast
\tannounce IPv6 unicast
}}
allow from any
allow to any set {{ metric 7 prepend-self 2 community 65001:1 large-community 65001:1:2 }}
",
            THEIRS[0], THEIRS[1]
        );
        OpenBgpd::launch(cable, &config)
    }

    fn is_established(&self) -> bool {
        self.neighbor()["state"] == "Established"
    }

    fn route(&self, prefix: &str) -> String {
        let shown = self.ask(&["show", "rib", "detail", prefix]);
        if shown.contains(prefix) { shown } else { String::new() }
    }

    fn withdraw_passing(&self) {
        self.ask(&["network", "delete", PASSING]);
    }

    fn reset(&self) {
        self.ask(&["neighbor", US, "clear"]);
    }

    fn refresh(&self) -> bool {
        self.ask(&["neighbor", US, "refresh"]);
        true
    }

    fn updates(&self) -> u64 {
        self.neighbor()["stats"]["update"]["received"]["updates"].as_u64().unwrap_or(0)
    }

    fn process(&self) -> &Process {
        &self.bgpd
    }

    /// Sessions are in a process of their own.
    fn signal(&self, signal: Signal) {
        let pid = self.bgpd.0.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        for child in children.split_whitespace() {
            nix::sys::signal::kill(Pid::from_raw(child.parse().unwrap()), signal).unwrap();
        }
    }
}
