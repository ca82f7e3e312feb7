//! `fairlead validate`: what a running instance would say of a directory, without one.
use super::{Failure, output::print};
use crate::{declared::Declared, store::directory, validate::parse_directory};
use std::path::PathBuf;

/// Checks a directory of YAML files as a running instance would, and changes nothing
///
/// Prints a summary and exits with 0, or prints one line per fault (file, document, object, field, what is wrong)
/// and exits with 1.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of the YAML files.
    dir: PathBuf,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        match directory::read(&self.dir).and_then(|files| parse_directory(&files)) {
            Ok(declared) => print(&summary(&declared)),
            Err(faults) => {
                print(&faults.iter().map(|fault| format!("{fault}\n")).collect::<String>())?;
                Err(Failure::No(String::new()))
            }
        }
    }
}

fn summary(declared: &Declared) -> String {
    let Declared { pools, load_balancers, policies, services, endpoint_slices, .. } = declared;
    let Declared { routers, peers, advertisements, packet_filters, cluster_links, nodes, .. } = declared;
    let counts = [
        ("AddressPool", pools.len()),
        ("LoadBalancer", load_balancers.len()),
        ("ServicePolicy", policies.len()),
        ("Service", services.len()),
        ("EndpointSlice", endpoint_slices.len()),
        ("BGPRouter", routers.len()),
        ("BGPPeer", peers.len()),
        ("BGPAdvertisement", advertisements.len()),
        ("PacketFilter", packet_filters.len()),
        ("ClusterLink", cluster_links.len()),
        ("Node", nodes.len()),
    ];
    let present = counts.iter().filter(|(_, count)| *count > 0);
    let list = present.map(|(kind, count)| format!("{count} {kind}")).collect::<Vec<_>>().join(", ");
    format!("valid: {}\n", if list.is_empty() { "no objects" } else { &list })
}
