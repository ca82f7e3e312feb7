//! Where declared objects come from and where their statuses go.
use crate::{
    api::NodeState, declared::Declared, desired::NodeReports, fault::Fault, neighbours::Neighbours,
    status::StatusSet,
};
use futures::{future::BoxFuture, stream::BoxStream};
use k8s_openapi::api::core::v1::Node;
use prometheus::core::Collector;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::sync::watch;

pub mod directory;
pub mod etcd;
pub mod files;
pub mod kubernetes;
pub mod objects;
pub mod status_file;

pub use etcd::EtcdStore;
pub use files::FileStore;
pub use kubernetes::KubernetesStore;

/// A source of complete snapshots.
pub trait Store: Send + Sync + 'static {
    /// Complete snapshots, debounced: the first when everything was read once, then one for each change. A slow
    /// reader gets the newest. Published statuses come back in here.
    fn watch(&self) -> BoxStream<'static, Arc<Declared>>;

    /// Makes the statuses durable; they have come back through [`Store::watch`], or are about to, when this
    /// returns. Publishing what is in force does nothing.
    fn publish<'a>(&'a self, status: &'a StatusSet) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Whether this process may give addresses.
    fn leader(&self) -> watch::Receiver<bool>;

    /// What is wrong with the newest generation, if it was refused; empty when it is in force.
    fn faults(&self) -> watch::Receiver<Vec<Fault>>;

    /// What the nodes tell of themselves; none: that cannot be said now, or never.
    fn node_reports(&self) -> Option<NodeReports> {
        None
    }

    /// What is known of other clusters; nothing, where no links are opened.
    fn neighbours(&self) -> watch::Receiver<Arc<Neighbours>> {
        watch::channel(Arc::default()).1
    }

    /// What it counts, for the page of metrics.
    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        Vec::new()
    }
}

/// A store that many nodes share.
pub trait SharedStore: Store {
    /// Writes how a node is. `node`: the Node that it is, as far as it is known.
    ///
    /// # Errors
    /// The store does not take it.
    fn publish_node<'a>(
        &'a self,
        state: &'a NodeState,
        node: Option<&'a Node>,
    ) -> BoxFuture<'a, Result<(), StoreError>>;

    /// Gives the lead back, so that another one need not wait. Nothing is published afterwards.
    fn resign(&self) -> BoxFuture<'_, ()>;
}

/// Why a store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file or directory could not be used.
    #[error("{}: {action}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file of statuses is not one. Nothing is overwritten: it may hold addresses that are in use.
    #[error("{}: is not a status file: {reason}; restore it, or remove it and every address is given anew", path.display())]
    NotStatus {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no way to the API server.
    #[error("{}: {reason}", access(kubeconfig.as_deref()))]
    Access {
        /// The kubeconfig; none: the account of the pod.
        kubeconfig: Option<PathBuf>,
        /// What is wrong.
        reason: String,
    },
    /// The API server did not do what it was asked, or nobody knows whether it did.
    #[error("{object}: {source}")]
    Api {
        /// `KIND/NAME`.
        object: String,
        /// What it said.
        source: Box<kube::Error>,
    },
    /// What was said of etcd makes no sense.
    #[error("{option}: {reason}")]
    EtcdAccess {
        /// The option of the command line, with its value.
        option: String,
        /// What is wrong.
        reason: String,
    },
    /// etcd did not do what it was asked, or nobody knows whether it did.
    #[error("{object}: etcd: {source}")]
    Etcd {
        /// `KIND/NAME`.
        object: String,
        /// What it said.
        source: etcd::EtcdError,
    },
    /// An object has changed since it was read: it is looked at again.
    #[error("{object}: has changed meanwhile")]
    Changed {
        /// `KIND/NAME`.
        object: String,
    },
    /// Another process leads.
    #[error("this process leads no more")]
    NotLeader,
    /// Another process has the statuses in its hands.
    #[error("{}: is in use by another process", path.display())]
    InUse {
        /// The directory.
        path: PathBuf,
    },
}

fn access(kubeconfig: Option<&Path>) -> String {
    kubeconfig.map_or_else(
        || "the pod's own account (there is no --kubeconfig and no KUBECONFIG)".to_owned(),
        |path| format!("kubeconfig {}", path.display()),
    )
}
