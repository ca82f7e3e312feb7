//! `fairlead agent`: see [`crate::standalone`].
use super::{Cluster, Failure, standalone::Node};
use crate::standalone::Source;

/// Runs this node of a Kubernetes cluster: datapath and BGP sessions
///
/// Objects and the addresses of services come from the API server; `fairlead controller` gives the addresses. An API
/// server that is away changes nothing. How the node is stands in its NodeState. Needs root.
///
/// SIGTERM and SIGINT do what they do to `fairlead standalone`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    cluster: Cluster,
    #[command(flatten)]
    node: Node,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Cluster { kubeconfig, namespace, default_class } = self.cluster;
        self.node.run(Source::Kubernetes { kubeconfig, namespace, default_class })
    }
}
