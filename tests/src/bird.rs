//! BIRD 2 as the router: takes what its neighbours announce and merges equal paths in the kernel.
use crate::Error;
use controller::demo::{
    netns::{Namespace, Tool},
    router::RouterConfig,
};
use std::{
    fmt::Write,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

const BIRD: Tool = Tool::new("bird", "bird2");
const BIRDC: Tool = Tool::new("birdc", "bird2");

/// BIRD at work. The process ends with its sandbox.
#[derive(Debug)]
pub struct Bird {
    dir: PathBuf,
}

impl Bird {
    /// Starts it in `namespace`, with its files in `dir`, which is made.
    pub fn start(namespace: &Namespace, dir: &Path, config: &RouterConfig) -> Result<Self, Error> {
        BIRD.check()?;
        BIRDC.check()?;
        fs::create_dir(dir)?;
        let path = dir.join("bird.conf");
        fs::write(&path, text(config))?;
        let mut bird = Command::new(BIRD.program());
        bird.arg("-c").arg(&path).arg("-s").arg(dir.join("bird.ctl")).arg("-P").arg(dir.join("bird.pid"));
        namespace.output(bird)?;
        Ok(Bird { dir: dir.to_owned() })
    }

    /// What `birdc` answers to a command.
    pub fn birdc(&self, command: &str) -> Result<String, Error> {
        let mut birdc = Command::new(BIRDC.program());
        let output = birdc.arg("-s").arg(self.dir.join("bird.ctl")).arg(command).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn text(config: &RouterConfig) -> String {
    let RouterConfig { asn, router_id, neighbors } = config;
    let mut text =
        format!("router id {router_id};\nprotocol device {{}}\nprotocol direct {{ ipv4; ipv6; }}\n");
    for family in ["ipv4", "ipv6"] {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "protocol kernel k{family} {{ {family} {{ export where source = RTS_BGP; }}; merge paths on; }}"
        );
    }
    for (number, (address, peer)) in neighbors.iter().enumerate() {
        let _ = writeln!(
            text,
            "protocol bgp n{number} {{ local {router_id} as {asn}; neighbor {address} as {peer}; \
             hold time 9; keepalive time 3; connect delay time 1; connect retry time 1; error wait time 1,2; \
             ipv4 {{ import all; export none; }}; ipv6 {{ import all; export none; }}; }}"
        );
    }
    text
}
