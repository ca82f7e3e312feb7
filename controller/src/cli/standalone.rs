//! `fairlead standalone`: see [`crate::standalone`].
use super::{DEFAULT_API_SOCKET, Failure};
use crate::{
    serve::metrics::DEFAULT_ADDRESS,
    standalone::{self, Source},
};
use std::{net::SocketAddr, path::PathBuf};

/// Runs this node from a directory of YAML files: no Kubernetes is needed
///
/// Every file in the directory that ends in .yaml, .yml or .json counts; changes are taken up at once, all of
/// them or none: while the directory has a fault, what was in force stays in force. Needs root.
///
/// SIGTERM and SIGINT end the BGP sessions with a Cease (without a word where there is gracefulRestart: these peers
/// keep our routes for its time) and leave the datapath in the kernel, where it forwards on. The next start takes it
/// up as it is.
///
/// SIGUSR2 starts the program that lies at the path of this one, with the same arguments, in the place of this one. It
/// goes on with the BGP sessions: the peers see nothing. If its files are not valid for it, nothing happens.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Directory of the YAML files.
    #[arg(long, value_name = "DIR")]
    config_dir: PathBuf,
    /// Directory for what must survive a restart: the addresses given to LoadBalancers.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/fairlead")]
    state_dir: PathBuf,
    #[command(flatten)]
    node: Node,
}

/// How this node is set up, wherever its objects come from.
#[derive(Debug, clap::Args)]
pub(super) struct Node {
    /// Interface where clients' packets (and backends' replies) arrive; may be given several times [default:
    /// that of the default route].
    #[arg(long = "interface", value_name = "IF")]
    interfaces: Vec<String>,
    /// Interface of pods, whose packets TC takes as they come in; with a * at the end, all whose names begin so, also
    /// those that come later; may be given several times.
    #[arg(long = "pod-interface", value_name = "IF|BEGIN*")]
    pod_interfaces: Vec<String>,
    /// How many entries a map has room for: vips, slots, backends, flows, decap, ranges or filters; may be given several
    /// times. Maps that are there already keep their sizes.
    #[arg(long = "map-size", value_name = "NAME=N")]
    map_sizes: Vec<String>,
    /// Prefix that the outer sources of IPIP are taken from, another one for each flow, so that backends spread them over
    /// their processors; one for IPv4, one for IPv6. Route it here, lest errors about the tunnel get lost [default: this
    /// host's address].
    #[arg(long = "tunnel-source", value_name = "PREFIX")]
    tunnel_sources: Vec<String>,
    /// Unix socket to make for the other commands, mode 0600.
    #[arg(long, value_name = "PATH", default_value = DEFAULT_API_SOCKET)]
    api_socket: PathBuf,
    /// Where /metrics, /healthz and /readyz are served, over HTTP.
    #[arg(long, value_name = "ADDR:PORT", default_value_t = DEFAULT_ADDRESS)]
    metrics: SocketAddr,
    /// Name of this node, as nodeSelectors see it [default: the host name].
    #[arg(long, value_name = "NAME")]
    node_name: Option<String>,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        self.node.run(Source::Files { config_dir: self.config_dir, state_dir: self.state_dir })
    }
}

impl Node {
    /// Runs the node until a signal.
    pub(super) fn run(self, source: Source) -> Result<(), Failure> {
        let map_sizes = self.map_sizes.join(",").parse();
        let tunnel_sources = self.tunnel_sources.join(",").parse();
        let options = standalone::Options {
            source,
            interfaces: self.interfaces,
            pod_interfaces: self.pod_interfaces,
            map_sizes: map_sizes.map_err(|error| Failure::Usage(format!("--map-size: {error}")))?,
            tunnel_sources: tunnel_sources
                .map_err(|error| Failure::Usage(format!("--tunnel-source: {error}")))?,
            api_socket: self.api_socket,
            metrics: self.metrics,
            node_name: self.node_name,
        };
        standalone::run(&options).map_err(|e| Failure::No(e.to_string()))
    }
}
