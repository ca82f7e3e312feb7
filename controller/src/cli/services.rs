//! `fairlead services`: what the datapath does, by service and backend.
use super::{
    Failure, Instance,
    output::{Format, json, or_dash, print, table},
};
use crate::serve::rows::{BackendRow, ServiceRow};

/// Shows the services of the datapath: frontends, backends, weights, health, slots and counters
///
/// A service is one port of a LoadBalancer in one address family. SHARE is the part of the service's Maglev
/// table that points to the backend; PACKETS, BYTES (as received, Ethernet header included) and FLOWS (begun
/// with the backend) count from when the backend was added, also across restarts.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    instance: Instance,
    /// Form of the output.
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let services: Vec<ServiceRow> = self.instance.ask("/v1/services")?;
        print(&match self.output {
            Format::Json => json(&services)?,
            Format::Table => services_table(&services),
        })
    }
}

fn services_table(services: &[ServiceRow]) -> String {
    let header = [
        "SERVICE", "FRONTEND", "MODE", "BACKEND", "WEIGHT", "HEALTH", "SLOTS", "SHARE", "PACKETS", "BYTES",
        "FLOWS",
    ];
    table(&header, services.iter().flat_map(rows))
}

/// One row per backend; the service stands in the first of them, and more frontends in the ones below.
fn rows(service: &ServiceRow) -> Vec<Vec<String>> {
    let lines = service.backends.len().max(service.frontends.len()).max(1);
    (0..lines)
        .map(|line| {
            let first = |text: &str| if line == 0 { text.to_owned() } else { " ".to_owned() };
            let mut row = vec![
                first(&service.name),
                service.frontends.get(line).map_or_else(|| first("-"), ToString::to_string),
                first(&if service.programmed {
                    service.mode.clone()
                } else {
                    format!("{} (not programmed)", service.mode)
                }),
            ];
            match service.backends.get(line) {
                Some(backend) => row.extend(backend_cells(backend)),
                None if line == 0 => row.push("-".to_owned()),
                None => {}
            }
            row
        })
        .collect()
}

fn backend_cells(backend: &BackendRow) -> [String; 8] {
    [
        std::net::SocketAddr::new(backend.address, backend.port).to_string(),
        match backend.weight {
            Some(0) => "0 (drain)".to_owned(),
            weight => or_dash(weight),
        },
        backend.health.clone(),
        backend.slots.to_string(),
        format!("{:.1}%", backend.share * 100.0),
        backend.packets.to_string(),
        backend.bytes.to_string(),
        backend.flows.to_string(),
    ]
}
