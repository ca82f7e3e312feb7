//! `fairlead controller`: see [`crate::cluster`].
use super::{ChosenStore, Cluster, Failure, SharedStore, server_runtime};
use crate::{
    api::selector::is_dns_label,
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
    /// What other clusters call this one, where no ClusterProperty cluster.clusterset.k8s.io says so [default: local].
    #[arg(long, value_name = "NAME", value_parser = cluster_name)]
    cluster_name: Option<String>,
    /// Where /metrics, /healthz and /readyz are served, over HTTP.
    #[arg(long, value_name = "ADDR:PORT", default_value_t = DEFAULT_ADDRESS)]
    metrics: SocketAddr,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let cluster_name = self.cluster_name;
        let source = match self.store.choose()? {
            ChosenStore::Kubernetes(Cluster { kubeconfig, namespace, default_class }) => {
                Source::Kubernetes { kubeconfig, namespace, default_class, cluster_name }
            }
            ChosenStore::Etcd(_) if cluster_name.is_some() => {
                return Err(Failure::Usage("--cluster-name is for --store kubernetes".to_owned()));
            }
            ChosenStore::Etcd(options) => Source::Etcd(options),
        };
        let options = cluster::Options { source, metrics: self.metrics };
        server_runtime()?.block_on(cluster::run(options)).map_err(|e| Failure::No(e.to_string()))
    }
}

/// A name that can be the value of a label.
fn cluster_name(text: &str) -> Result<String, String> {
    match is_dns_label(text) {
        true => Ok(text.to_owned()),
        false => Err("is no name of a cluster: at most 63 lower case letters, digits and -".to_owned()),
    }
}
