//! `fairlead services`: what the datapath does, by service and backend.
use super::{
    Failure, Question,
    output::{or_dash, print, table},
};
use crate::serve::rows::{BackendRow, ServiceRow};

/// Shows the services of the datapath: frontends, backends, weights, health, slots and counters
///
/// A service is one port of a LoadBalancer or Service in one address family. Pods that are reached through their nodes
/// have two: its backends are nodes, and those of the one with /pods at the end the pods of this node. PROGRAMMED says whether the kernel
/// has all its frontends; SHARE is the part of its Maglev
/// table that points to the backend; PACKETS, BYTES (as received, Ethernet header included) and FLOWS (begun
/// with the backend) count from when the backend was added, also across restarts. DROPS are packets of the whole service
/// that were not sent on, by reason.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    question: Question,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let services: Vec<ServiceRow> = self.question.instance.ask("/v1/services")?;
        self.question.instance.warn_of_faults();
        print(&self.question.shown(&services[..], services_table)?)
    }
}

fn services_table(services: &[ServiceRow]) -> String {
    let header = [
        "SERVICE",
        "FRONTEND",
        "MODE",
        "PROGRAMMED",
        "BACKEND",
        "WEIGHT",
        "HEALTH",
        "SLOTS",
        "SHARE",
        "PACKETS",
        "BYTES",
        "FLOWS",
        "DROPS",
    ];
    table(&header, services.iter().flat_map(rows))
}

/// One row per backend, each with the service's own cells, so that `grep` finds whole rows.
fn rows(service: &ServiceRow) -> Vec<Vec<String>> {
    let frontends = service.frontends.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let programmed = if service.programmed { "True" } else { "False" };
    let drops = drops(service);
    let row = |cells: Vec<String>| {
        let own = [service.name.clone(), frontends.clone(), service.mode.clone(), programmed.to_owned()];
        own.into_iter().chain(cells).chain([drops.clone()]).collect()
    };
    if service.backends.is_empty() {
        return vec![row(vec!["-".to_owned(); 8])];
    }
    service.backends.iter().map(|backend| row(backend_cells(backend).into())).collect()
}

/// How many packets of the service were not sent on, and why.
fn drops(service: &ServiceRow) -> String {
    let packets: u64 = service.drops.values().map(|drops| drops.packets).sum();
    let reasons = service.drops.iter().map(|(verdict, drops)| format!("{verdict} {}", drops.packets));
    match packets {
        0 => "0".to_owned(),
        packets => format!("{packets} ({})", reasons.collect::<Vec<_>>().join(", ")),
    }
}

fn backend_cells(backend: &BackendRow) -> [String; 8] {
    [
        match (std::net::SocketAddr::new(backend.address, backend.port), &backend.node) {
            (address, Some(node)) => format!("{address} (node {node})"),
            (address, None) => address.to_string(),
        },
        match backend.weight {
            Some(0) if backend.health != "Unhealthy" => "0 (drain)".to_owned(),
            weight => or_dash(weight),
        },
        match &backend.health_reason {
            Some(reason) => format!("{} ({reason})", backend.health),
            None => backend.health.clone(),
        },
        backend.slots.to_string(),
        format!("{:.1}%", backend.share * 100.0),
        backend.packets.to_string(),
        backend.bytes.to_string(),
        backend.flows.to_string(),
    ]
}
