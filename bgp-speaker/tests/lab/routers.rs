//! FRR and BIRD at the other end of the cable, each with the same routes.
use super::harness::{Cable, OUR_ASN, Process, ROUTER, ROUTER_ASN, ROUTER6, US, listens, run, wait_until};
use nix::sys::signal::Signal;
use std::path::Path;

/// What both routers announce: MED 7, their AS twice more, communities 65001:1 and 65001:1:2.
pub(crate) const THEIRS: [&str; 2] = ["10.1.0.0/16", "2001:db8:a::/48"];
/// And another one, that can be taken away.
pub(crate) const PASSING: &str = "10.2.0.0/16";

/// What the tests want of a router.
pub(crate) trait Router {
    fn start(cable: &Cable) -> Self;
    fn is_established(&self) -> bool;
    /// What the router says of a route of ours; empty: it has none.
    fn route(&self, prefix: &str) -> String;
    /// MED 10, prepended twice: how the router writes that, with communities 65002:1 and 65002:1:2.
    const ATTRIBUTES: [&str; 4];
    fn withdraw_passing(&self);
    fn reset(&self);
    /// Asks for our routes again; false: the router has kept them and never asks.
    fn refresh(&self) -> bool;
    /// What the router announces on a session over IPv4, with the next hops.
    const ANNOUNCES: &[(&str, &str)] = &[(THEIRS[0], ROUTER), (THEIRS[1], ROUTER6)];
    /// UPDATEs that came from us.
    fn updates(&self) -> u64;
    /// The daemon that speaks BGP.
    fn process(&self) -> &Process;
    /// Stops the router, or lets it go on.
    fn signal(&self, signal: Signal) {
        self.process().signal(signal);
    }
}

pub(crate) struct Frr {
    directory: String,
    bgpd: Process,
    _zebra: Process,
}

impl Frr {
    /// zebra, and bgpd with this configuration.
    pub(crate) fn launch(cable: &Cable, config: &str) -> Self {
        let directory = cable.directory.display().to_string();
        let (zebra_conf, bgpd_conf) = (cable.file("zebra.conf", ""), cable.file("bgpd.conf", config));
        // FRR runs as a user of its own.
        run("chown", &["-R", "frr:frr", &directory]);
        let daemon = |name: &str, config: &Path, more: &[&str]| {
            let (pid, api) = (format!("{directory}/{name}.pid"), format!("{directory}/zserv.api"));
            let config = config.display().to_string();
            let common =
                ["-f", &config, "-i", &pid, "--vty_socket", &directory, "-z", &api, "-A", "127.0.0.1"];
            let log = cable.directory.join(format!("{name}.log"));
            let arguments = [&common[..], more].concat();
            Process::start(&cable.router, &format!("/usr/lib/frr/{name}"), &arguments, &log)
        };
        let zebra = daemon("zebra", &zebra_conf, &["-s", "90000000"]);
        wait_until("zebra is there", || listens(format!("{directory}/zserv.api")));
        let bgpd = daemon("bgpd", &bgpd_conf, &[]);
        wait_until("bgpd is there", || listens(format!("{directory}/bgpd.vty")));
        Frr { directory, bgpd, _zebra: zebra }
    }

    pub(crate) fn show(&self, commands: &[&str]) -> String {
        let commands = commands.iter().flat_map(|command| ["-c", *command]);
        run("vtysh", &["--vty_socket", &self.directory].into_iter().chain(commands).collect::<Vec<_>>())
    }

    pub(crate) fn neighbor(&self) -> serde_json::Value {
        let text = self.show(&[&format!("show bgp neighbors {US} json")]);
        serde_json::from_str::<serde_json::Value>(&text).map(|mut all| all[US].take()).unwrap_or_default()
    }
}

impl Router for Frr {
    const ATTRIBUTES: [&str; 4] = ["\"metric\":10", "65002 65002 65002", "65002:1", "65002:1:2"];

    fn start(cable: &Cable) -> Self {
        let config = format!(
            "router bgp {ROUTER_ASN}
 bgp router-id {ROUTER}
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor {US} remote-as {OUR_ASN}
 neighbor {US} timers 3 9
 neighbor {US} timers connect 1
 address-family ipv4 unicast
  network {} route-map THEIRS
  network {PASSING}
 exit-address-family
 address-family ipv6 unicast
  neighbor {US} activate
  network {} route-map THEIRS
 exit-address-family
route-map THEIRS permit 10
 set metric 7
 set as-path prepend {ROUTER_ASN} {ROUTER_ASN}
 set community 65001:1
 set large-community 65001:1:2
",
            THEIRS[0], THEIRS[1]
        );
        Frr::launch(cable, &config)
    }

    fn is_established(&self) -> bool {
        self.neighbor()["bgpState"] == "Established"
    }

    fn route(&self, prefix: &str) -> String {
        let family = if prefix.contains(':') { "ipv6" } else { "ipv4" };
        let json = self.show(&[&format!("show bgp {family} unicast {prefix} json")]);
        let route: serde_json::Value = serde_json::from_str(&json).unwrap_or_default();
        if route["paths"].is_array() { route.to_string() } else { String::new() }
    }

    fn withdraw_passing(&self) {
        let router = format!("router bgp {ROUTER_ASN}");
        let network = format!("no network {PASSING}");
        self.show(&["configure terminal", &router, "address-family ipv4 unicast", &network]);
    }

    fn reset(&self) {
        self.show(&[&format!("clear bgp {US}")]);
    }

    fn refresh(&self) -> bool {
        self.show(&[&format!("clear bgp {US} soft in")]);
        true
    }

    fn updates(&self) -> u64 {
        self.neighbor()["messageStats"]["updatesRecv"].as_u64().unwrap_or(0)
    }

    fn process(&self) -> &Process {
        &self.bgpd
    }
}

pub(crate) struct Bird {
    control: String,
    bird: Process,
}

impl Bird {
    /// BIRD with this configuration.
    pub(crate) fn launch(cable: &Cable, config: &str) -> Self {
        let config = cable.file("bird.conf", config).display().to_string();
        let control = cable.directory.join("bird.ctl").display().to_string();
        let log = cable.directory.join("bird.log");
        let arguments = ["-f", "-c", &config, "-s", &control];
        let bird = Process::start(&cable.router, "/usr/sbin/bird", &arguments, &log);
        wait_until("bird is there", || listens(&control));
        Bird { control, bird }
    }

    pub(crate) fn ask(&self, question: &str) -> String {
        run("birdc", &["-s", &self.control, question])
    }
}

impl Router for Bird {
    const ATTRIBUTES: [&str; 4] =
        ["BGP.med: 10", "BGP.as_path: 65002 65002 65002", "(65002,1)", "(65002, 1, 2)"];

    fn start(cable: &Cable) -> Self {
        let attributes = "bgp_path.prepend(65001); bgp_path.prepend(65001); \
                          bgp_community.add((65001,1)); bgp_large_community.add((65001,1,2));";
        let config = format!(
            "router id {ROUTER};
filter announced {{ if source != RTS_STATIC then reject; bgp_med = 7; accept; }}
protocol device {{}}
protocol static s4 {{ ipv4; route {} blackhole {{ {attributes} }}; }}
protocol static passing {{ ipv4; route {PASSING} blackhole; }}
protocol static s6 {{ ipv6; route {} blackhole {{ {attributes} }}; }}
protocol bgp peer {{
  local {ROUTER} as {ROUTER_ASN}; neighbor {US} as {OUR_ASN};
  hold time 9; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1,2;
  ipv4 {{ import all; export filter announced; }};
  ipv6 {{ import all; export filter announced; next hop address {ROUTER6}; }};
}}
",
            THEIRS[0], THEIRS[1]
        );
        Bird::launch(cable, &config)
    }

    fn is_established(&self) -> bool {
        self.ask("show protocols peer").contains("Established")
    }

    fn route(&self, prefix: &str) -> String {
        let shown = self.ask(&format!("show route protocol peer all where net = {prefix}"));
        if shown.contains(prefix) { shown } else { String::new() }
    }

    fn withdraw_passing(&self) {
        self.ask("disable passing");
    }

    fn reset(&self) {
        self.ask("restart peer");
    }

    fn refresh(&self) -> bool {
        self.ask("reload in peer");
        true
    }

    fn updates(&self) -> u64 {
        // `Import updates:  received rejected …`, of both families.
        let shown = self.ask("show protocols all peer");
        let received = |line: &str| {
            line.trim().strip_prefix("Import updates:")?.split_whitespace().next()?.parse::<u64>().ok()
        };
        shown.lines().filter_map(received).sum::<u64>()
    }

    fn process(&self) -> &Process {
        &self.bird
    }
}
