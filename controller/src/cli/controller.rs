//! `fairlead controller`: see [`crate::cluster`].
use super::{ChosenStore, Cluster, Failure, SharedStore, server_runtime};
use crate::{
    cluster::{self, Source},
    serve::metrics::DEFAULT_ADDRESS,
};
use std::net::SocketAddr;

/// Gives addresses to the services of a Kubernetes cluster, or of a fleet that shares etcd, and writes statuses
///
/// Run two or more: one leads (a Lease says which, or a lease of etcd), and another one takes over within 20 seconds of its death, at once
/// after SIGTERM or SIGINT. Needs no root, and nothing of the node.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    store: SharedStore,
    /// Where /metrics, /healthz and /readyz are served, over HTTP.
    #[arg(long, value_name = "ADDR:PORT", default_value_t = DEFAULT_ADDRESS)]
    metrics: SocketAddr,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let source = match self.store.choose()? {
            ChosenStore::Kubernetes(Cluster { kubeconfig, namespace, default_class }) => {
                Source::Kubernetes { kubeconfig, namespace, default_class }
            }
            ChosenStore::Etcd(options) => Source::Etcd(options),
        };
        let options = cluster::Options { source, metrics: self.metrics };
        server_runtime()?.block_on(cluster::run(options)).map_err(|e| Failure::No(e.to_string()))
    }
}
