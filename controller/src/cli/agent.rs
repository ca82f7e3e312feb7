//! `fairlead agent`: see [`crate::standalone`].
use super::{ChosenStore, Cluster, Failure, SharedStore, standalone::Node};
use crate::{
    api::selector::{key_fault, value_fault},
    standalone::Source,
};
use std::collections::BTreeMap;

/// Runs this node of a Kubernetes cluster, or of a fleet that shares etcd: datapath and BGP sessions
///
/// Objects and the addresses of services come from the store; `fairlead controller` gives the addresses. A store that is away
/// changes nothing. How the node is stands in its NodeState. On etcd the agent registers its Node: its labels are those of
/// --node-label, and its InternalIPs the first addresses of the first --interface that has any. Needs root.
///
/// SIGTERM and SIGINT do what they do to `fairlead standalone`.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    store: SharedStore,
    /// Label of the Node that is registered, with --store etcd; may be given several times.
    #[arg(long = "node-label", value_name = "KEY=VALUE", value_parser = label)]
    node_labels: Vec<(String, String)>,
    #[command(flatten)]
    node: Node,
}

impl Args {
    pub(super) fn run(self) -> Result<(), Failure> {
        let labels: BTreeMap<_, _> = self.node_labels.into_iter().collect();
        let source = match self.store.choose()? {
            ChosenStore::Kubernetes(_) if !labels.is_empty() => {
                return Err(Failure::Usage("--node-label is for --store etcd".to_owned()));
            }
            ChosenStore::Kubernetes(Cluster { kubeconfig, namespace, default_class }) => {
                Source::Kubernetes { kubeconfig, namespace, default_class }
            }
            ChosenStore::Etcd(options) => Source::Etcd { options, labels },
        };
        self.node.run(source)
    }
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("is not KEY=VALUE")?;
    match key_fault(key).or_else(|| value_fault(value)) {
        None => Ok((key.to_owned(), value.to_owned())),
        Some(reason) => Err(reason),
    }
}
