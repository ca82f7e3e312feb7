//! The store of a cluster: objects and statuses are those of a Kubernetes API server.
//!
//! Unlike a directory, where all objects are one generation, each object stands for itself. Two kinds of processes use it:
//! the controller, of which one leads and writes statuses (addresses are in them), and the agent of each node, which
//! only reads, but for its own NodeState. An API server that is away changes nothing: the last snapshot stays.
use super::{
    SharedStore, Store, StoreError,
    objects::{Shared, lock, now, publish::Publisher, snapshot::Source},
};
use crate::{
    api::{Kind, NodeState},
    declared::Declared,
    desired::NodeReports,
    fault::Fault,
    neighbours::Neighbours,
    status::StatusSet,
};
use futures::{
    StreamExt,
    future::{self, BoxFuture, FutureExt},
    stream::BoxStream,
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, api::ApiResource};
use prometheus::core::Collector;
use publish::ApiServer;
use raw::Raw;
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinSet},
};
use tokio_stream::wrappers::WatchStream;

mod access;
mod clusters;
pub mod faulty;
mod leader;
pub mod lease;
mod node_state;
mod nodes;
mod patch;
mod publish;
pub(super) mod raw;
pub(super) mod watching;

pub use super::objects::Role;
pub use access::{Access, DEFAULT_NAMESPACE};
pub use clusters::DEFAULT_NAME as DEFAULT_CLUSTER_NAME;

/// Objects in an API server.
pub struct KubernetesStore {
    cluster: Cluster,
    publisher: Publisher<ApiServer>,
    standing: leader::Standing,
    /// Ends with the store.
    _tasks: JoinSet<()>,
}

/// What the tasks of the store need. Cheap to clone.
#[derive(Clone)]
struct Cluster {
    client: Client,
    /// Namespace of the Lease and of Secrets.
    namespace: Arc<str>,
    /// Services that name no class are ours.
    is_default_class: bool,
    shared: Arc<Shared>,
}

impl KubernetesStore {
    /// Begins to watch and, as a controller, to stand for the lead as `identity`, which no other process has. To be
    /// called within a runtime.
    ///
    /// # Errors
    /// The metrics make no sense: a defect.
    pub fn start(access: &Access, role: Role, identity: &str) -> prometheus::Result<Self> {
        let cluster = Cluster {
            client: access.client(),
            namespace: access.namespace().into(),
            is_default_class: access.is_default_class(),
            shared: Arc::new(Shared::new(role)?),
        };
        let standing = leader::Standing::new(cluster.clone(), identity);
        let mut tasks = JoinSet::new();
        for kind in role.kinds() {
            tasks.spawn(watching::follow(Source::All(kind), cluster.clone()));
        }
        tasks.spawn(give_out(cluster.clone()));
        if role == Role::Controller {
            tasks.spawn(standing.clone().stand());
            tasks.spawn(nodes::follow(cluster.clone()));
            tasks.spawn(clusters::follow(cluster.clone(), access.cluster_name()));
        }
        let publisher =
            Publisher::new(ApiServer::new(cluster.clone(), identity), Arc::clone(&cluster.shared));
        Ok(KubernetesStore { cluster, publisher, standing, _tasks: tasks })
    }
}

impl Store for KubernetesStore {
    fn watch(&self) -> BoxStream<'static, Arc<Declared>> {
        WatchStream::new(self.cluster.shared.snapshots.subscribe()).filter_map(future::ready).boxed()
    }

    fn publish<'a>(&'a self, status: &'a StatusSet) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            if !*self.cluster.shared.leader.borrow() {
                return Ok(());
            }
            self.publisher.publish(status).await
        }
        .boxed()
    }

    fn leader(&self) -> watch::Receiver<bool> {
        self.cluster.shared.leader.subscribe()
    }

    fn faults(&self) -> watch::Receiver<Vec<Fault>> {
        self.cluster.shared.faults.subscribe()
    }

    fn node_reports(&self) -> Option<NodeReports> {
        lock(&self.cluster.shared.nodes).reports(now())
    }

    fn neighbours(&self) -> watch::Receiver<Arc<Neighbours>> {
        self.cluster.shared.neighbours.subscribe()
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.cluster.shared.metrics.collectors()
    }
}

impl SharedStore for KubernetesStore {
    fn publish_node<'a>(
        &'a self,
        state: &'a NodeState,
        node: Option<&'a Node>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        node_state::publish(&self.cluster.client, state, node).boxed()
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        self.standing.resign().boxed()
    }
}

/// Gives out what changes when it has come to rest, and follows the Secrets that peers name.
async fn give_out(cluster: Cluster) {
    let shared = &cluster.shared;
    let mut watches = JoinSet::new();
    let mut secrets: BTreeMap<String, AbortHandle> = BTreeMap::new();
    loop {
        shared.changed().await;
        shared.give_out();
        let named = lock(&shared.assembly).named_secrets();
        secrets.retain(|name, watch| {
            let is_named = named.contains(name);
            if !is_named {
                watch.abort();
                lock(&shared.assembly).forget_secret(name);
            }
            is_named
        });
        for name in named {
            secrets
                .entry(name.clone())
                .or_insert_with(|| watches.spawn(watching::follow(Source::Secret(name), cluster.clone())));
        }
    }
}

/// Where the objects of a kind are; those of a namespace only if one is named.
fn api(client: Client, kind: Kind, namespace: Option<&str>) -> Api<Raw> {
    let resource = match kind {
        Kind::Service => ApiResource::erase::<Service>(&()),
        Kind::EndpointSlice => ApiResource::erase::<EndpointSlice>(&()),
        Kind::Namespace => ApiResource::erase::<Namespace>(&()),
        Kind::Node => ApiResource::erase::<Node>(&()),
        Kind::Secret => ApiResource::erase::<Secret>(&()),
        _ => ApiResource {
            group: crate::api::GROUP.to_owned(),
            version: crate::api::VERSION.to_owned(),
            api_version: crate::api::API_VERSION.to_owned(),
            kind: kind.name(),
            plural: kind.plural(),
        },
    };
    match namespace {
        Some(namespace) => Api::namespaced_with(client, namespace, &resource),
        None => Api::all_with(client, &resource),
    }
}
