//! The router of the demo: FRR's `zebra` and `bgpd` in the router's namespace. It takes what its neighbours
//! announce and puts equal paths into the kernel together (ECMP).
use super::{
    DemoError,
    netns::{Namespace, Tool},
};
use nix::unistd::{User, chown};
use std::{
    fmt::Write,
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    process::Command,
};

const ZEBRA: Tool = Tool::new("/usr/lib/frr/zebra", "frr");
const BGPD: Tool = Tool::new("/usr/lib/frr/bgpd", "frr");
const VTYSH: Tool = Tool::new("vtysh", "frr");

/// FRR at work. The processes end with their sandbox.
#[derive(Debug)]
pub struct Frr {
    dir: PathBuf,
}

/// How a router speaks BGP.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// Its AS.
    pub asn: u32,
    /// Its BGP identifier.
    pub router_id: Ipv4Addr,
    /// Address and AS of each neighbour.
    pub neighbors: Vec<(IpAddr, u32)>,
}

impl Frr {
    /// Starts both daemons in `namespace`, with their files in `dir`, which is made.
    pub fn start(namespace: &Namespace, dir: &Path, config: &RouterConfig) -> Result<Self, DemoError> {
        for tool in [ZEBRA, BGPD, VTYSH] {
            tool.check()?;
        }
        fs::create_dir(dir).map_err(|e| DemoError::io("creating", dir, e))?;
        let configs = [("zebra.conf", "log timestamp precision 3\n".to_owned()), ("bgpd.conf", bgpd(config))];
        for (name, text) in configs {
            let path = dir.join(name);
            fs::write(&path, text).map_err(|e| DemoError::io("writing", &path, e))?;
        }
        // The daemons give up root for this user before they make their sockets.
        let user = User::from_name("frr").ok().flatten();
        let user = user.ok_or(DemoError::Missing { program: "the user frr", package: "frr" })?;
        chown(dir, Some(user.uid), Some(user.gid)).map_err(|e| DemoError::io("chown", dir, e.into()))?;
        for tool in [ZEBRA, BGPD] {
            namespace.output(daemon(tool, dir))?;
        }
        Ok(Frr { dir: dir.to_owned() })
    }

    /// What `vtysh` answers to a command.
    pub fn vtysh(&self, command: &str) -> Result<String, DemoError> {
        let mut vtysh = Command::new(VTYSH.program());
        let output = vtysh.arg("--vty_socket").arg(&self.dir).args(["-c", command]).output();
        let output = output.map_err(|e| DemoError::command("vtysh", e))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(DemoError::command(
            format!("vtysh -c '{command}'"),
            String::from_utf8_lossy(&output.stdout).trim(),
        ))
    }

    /// The command line that opens a shell on the router.
    pub fn shell(&self) -> String {
        format!("vtysh --vty_socket {}", self.dir.display())
    }

    /// FRR's version: `8.4.4`.
    pub fn version(&self) -> Result<String, DemoError> {
        let text = self.vtysh("show version")?;
        let version = text.split_whitespace().find(|w| w.starts_with(|c: char| c.is_ascii_digit()));
        Ok(version.unwrap_or("of unknown version").to_owned())
    }
}

fn daemon(tool: Tool, dir: &Path) -> Command {
    let name = if tool.program() == ZEBRA.program() { "zebra" } else { "bgpd" };
    let mut command = Command::new(tool.program());
    command
        .arg("-d")
        .args([Path::new("-f"), &dir.join(format!("{name}.conf"))])
        .args([Path::new("-i"), &dir.join(format!("{name}.pid"))])
        .args([Path::new("--vty_socket"), dir])
        .args([Path::new("-z"), &dir.join("zserv.api")])
        .args(["--log", &format!("file:{}", dir.join(format!("{name}.log")).display())])
        .args(["-A", "127.0.0.1"]);
    if name == "zebra" {
        // Netlink's receive buffer, bytes: as Debian's own start script sets it.
        command.args(["-s", "90000000"]);
    }
    command
}

fn bgpd(config: &RouterConfig) -> String {
    let RouterConfig { asn, router_id, neighbors } = config;
    let mut text = format!(
        "log timestamp precision 3\n\
         router bgp {asn}\n\
         \x20bgp router-id {router_id}\n\
         \x20no bgp ebgp-requires-policy\n\
         \x20no bgp default ipv4-unicast\n"
    );
    for (address, peer) in neighbors {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            " neighbor {address} remote-as {peer}\n neighbor {address} timers 3 9\n \
             neighbor {address} timers connect 1\n neighbor {address} advertisement-interval 0\n"
        );
    }
    for family in ["ipv4", "ipv6"] {
        let _ = writeln!(text, " address-family {family} unicast\n  maximum-paths 16");
        for (address, _) in neighbors {
            let _ = writeln!(text, "  neighbor {address} activate");
        }
        text.push_str(" exit-address-family\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::topology::{BALANCER_ASN, ROUTER_ASN, Topology};

    #[test]
    fn frr_starts_with_the_neighbours_it_is_given() {
        let topology = Topology::build("flt").unwrap();
        let neighbors = topology.balancers.iter().map(|h| (h.ipv4.into(), BALANCER_ASN)).collect();
        let config = RouterConfig { asn: ROUTER_ASN, router_id: topology.router.ipv4, neighbors };
        let dir = topology.sandbox.dir().join("frr");
        let frr = Frr::start(&topology.router.namespace, &dir, &config).unwrap();
        let summary: serde_json::Value =
            serde_json::from_str(&frr.vtysh("show bgp summary json").unwrap()).unwrap();
        for family in ["ipv4Unicast", "ipv6Unicast"] {
            let peers = &summary[family]["peers"];
            assert_eq!(peers["10.0.0.2"]["remoteAs"], BALANCER_ASN, "{summary}");
            assert_eq!(peers["10.0.0.3"]["remoteAs"], BALANCER_ASN, "{summary}");
        }
        assert!(frr.version().unwrap().starts_with(|c: char| c.is_ascii_digit()));
        assert!(frr.vtysh("nonsense").is_err());
    }
}
