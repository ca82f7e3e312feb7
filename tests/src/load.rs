//! Packets of made-up clients, as many as one CPU can make: `lb-bpf/examples/load.rs` at work in a namespace.
use crate::{Error, build};
use controller::demo::netns::Namespace;
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::OnceLock,
    thread::JoinHandle,
    time::Duration,
};

/// What is sent.
#[derive(Clone, Debug)]
pub struct Load {
    /// TCP SYNs; else small UDP packets.
    pub tcp: bool,
    /// The clients: the last 16 bits vary.
    pub source: IpAddr,
    /// Where to.
    pub destination: SocketAddr,
    /// Interface in the namespace that sends. Its other end has an XDP program.
    pub interface: String,
    /// Ethernet source and destination.
    pub macs: [String; 2],
    /// Different flows, a power of two up to 2^32.
    pub flows: u64,
}

/// How much was sent.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    /// Packets handed to the interface.
    pub packets: u64,
    /// In this time, seconds.
    pub seconds: f64,
}

impl Offered {
    /// Packets per second.
    pub fn rate(&self) -> f64 {
        self.packets as f64 / self.seconds
    }
}

impl Load {
    /// Sends from `namespace` for a while, on the last CPU. Join the thread to know how much.
    pub fn start(&self, namespace: &Namespace, duration: Duration) -> JoinHandle<Result<Offered, Error>> {
        let cpu = std::thread::available_parallelism().map_or(0, |count| count.get() - 1);
        let mut command = Command::new(program());
        command
            .args([&self.interface, &duration.as_secs_f64().to_string()])
            .arg(if self.tcp { "tcp" } else { "udp" })
            .args([self.source.to_string(), self.destination.to_string()])
            .args(&self.macs)
            .args([self.flows.to_string(), cpu.to_string()]);
        let namespace = namespace.clone();
        std::thread::spawn(move || {
            let text = namespace.output(command)?;
            let (packets, seconds) = text.trim().split_once(' ').ok_or("the generator says nothing")?;
            Ok(Offered { packets: packets.parse()?, seconds: seconds.parse()? })
        })
    }
}

/// The generator; `FAIRLEAD_LOAD` names another.
pub fn program() -> &'static PathBuf {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build("FAIRLEAD_LOAD", &["-p", "lb-bpf", "--example", "load"]))
}

/// Ethernet address of an interface.
pub fn mac(namespace: &Namespace, interface: &str) -> Result<String, Error> {
    let link = namespace.ip_json(&["link", "show", "dev", interface])?;
    Ok(link[0]["address"].as_str().ok_or("an interface without an address")?.to_owned())
}
