//! The store of a cluster: objects and statuses are those of a Kubernetes API server.
//!
//! Unlike a directory, where all objects are one generation, each object stands for itself. Two kinds of processes use it:
//! the controller, of which one leads and writes statuses (addresses are in them), and the agent of each node, which
//! only reads, but for its own NodeState. An API server that is away changes nothing: the last snapshot stays.
use super::{Store, StoreError};
use crate::{api::Kind, declared::Declared, desired::NodeReports, fault::Fault, status::StatusSet};
use futures::{
    StreamExt,
    future::{self, BoxFuture, FutureExt},
    stream::BoxStream,
};
use k8s_openapi::api::{
    core::v1::{Namespace, Node, Secret, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
};
use prometheus::core::Collector;
use snapshot::{Assembly, Change, Source};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    task::{AbortHandle, JoinSet},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::WatchStream;

mod access;
mod clusters;
pub mod faulty;
mod leader;
pub mod lease;
mod metrics;
mod node_state;
pub mod nodes;
mod plan;
mod publish;
mod snapshot;
mod watching;

pub use access::{Access, DEFAULT_NAMESPACE};
pub use clusters::DEFAULT_NAME as DEFAULT_CLUSTER_NAME;

/// Changes are at rest when nothing happens for so long.
const QUIET: Duration = Duration::from_millis(5);
/// Changes that never rest make a snapshot after so long.
const PATIENCE: Duration = Duration::from_millis(100);

/// What a process does with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gives addresses, imports what other clusters export and writes statuses, if it leads. Reads the Secrets of ClusterLinks.
    Controller,
    /// Reads, and writes the NodeState of its node. Leads never.
    Agent,
}

impl Role {
    /// Kinds that it reads as a whole.
    fn kinds(self) -> Vec<Kind> {
        let is_read = |kind: &Kind| kind.is_declared() && *kind != Kind::Secret;
        Kind::ALL.into_iter().filter(is_read).collect()
    }
}

/// Objects in an API server.
pub struct KubernetesStore {
    shared: Arc<Shared>,
    publisher: publish::Publisher,
    /// Ends with the store.
    _tasks: JoinSet<()>,
}

/// What the store and its tasks share.
struct Shared {
    /// Namespace of the Lease and of Secrets.
    namespace: String,
    /// Services that name no class are ours.
    is_default_class: bool,
    assembly: Mutex<Assembly>,
    /// Something has changed.
    dirty: Notify,
    /// With another number everything is listed anew.
    epochs: watch::Sender<u64>,
    snapshots: watch::Sender<Option<Arc<Declared>>>,
    faults: watch::Sender<Vec<Fault>>,
    leader: watch::Sender<bool>,
    leadership: Mutex<leader::Leadership>,
    /// What agents tell; the controller asks.
    nodes: Mutex<nodes::Nodes>,
    metrics: metrics::Metrics,
}

impl KubernetesStore {
    /// Begins to watch and, as a controller, to stand for the lead as `identity`, which no other process has. To be
    /// called within a runtime.
    ///
    /// # Errors
    /// The metrics make no sense: a defect.
    pub fn start(access: &Access, role: Role, identity: &str) -> prometheus::Result<Self> {
        let client = access.client();
        let shared = Arc::new(Shared {
            namespace: access.namespace().to_owned(),
            is_default_class: access.is_default_class(),
            assembly: Mutex::new(Assembly::new(&role.kinds(), role == Role::Agent)),
            dirty: Notify::new(),
            epochs: watch::Sender::new(0),
            snapshots: watch::Sender::new(None),
            faults: watch::Sender::new(Vec::new()),
            leader: watch::Sender::new(false),
            leadership: Mutex::default(),
            nodes: Mutex::default(),
            metrics: metrics::Metrics::new()?,
        });
        let mut tasks = JoinSet::new();
        for kind in role.kinds() {
            tasks.spawn(watching::follow(Source::All(kind), client.clone(), Arc::clone(&shared)));
        }
        tasks.spawn(give_out(client.clone(), Arc::clone(&shared)));
        if role == Role::Controller {
            tasks.spawn(leader::stand(client.clone(), identity.to_owned(), Arc::clone(&shared)));
            tasks.spawn(nodes::follow(client.clone(), Arc::clone(&shared)));
            tasks.spawn(clusters::follow(client.clone(), Arc::clone(&shared), access.cluster_name()));
        }
        let publisher = publish::Publisher::new(client, identity, Arc::clone(&shared));
        Ok(KubernetesStore { shared, publisher, _tasks: tasks })
    }

    /// Gives the Lease back, so that another one need not wait. Nothing is published afterwards.
    pub async fn resign(&self) {
        leader::resign(&self.publisher.client(), &self.shared).await;
    }

    /// Writes how this node is. `node`: the Node that it is, if the cluster has it.
    ///
    /// # Errors
    /// The API server does not take it.
    pub async fn publish_node(
        &self,
        state: &crate::api::NodeState,
        node: Option<&Node>,
    ) -> Result<(), StoreError> {
        node_state::publish(&self.publisher.client(), state, node).await
    }
}

impl Store for KubernetesStore {
    fn watch(&self) -> BoxStream<'static, Arc<Declared>> {
        WatchStream::new(self.shared.snapshots.subscribe()).filter_map(future::ready).boxed()
    }

    fn publish<'a>(&'a self, status: &'a StatusSet) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            if !*self.shared.leader.borrow() {
                return Ok(());
            }
            self.publisher.publish(status).await
        }
        .boxed()
    }

    fn leader(&self) -> watch::Receiver<bool> {
        self.shared.leader.subscribe()
    }

    fn faults(&self) -> watch::Receiver<Vec<Fault>> {
        self.shared.faults.subscribe()
    }

    fn node_reports(&self) -> Option<NodeReports> {
        lock(&self.shared.nodes).reports(leader::now())
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.shared.metrics.collectors()
    }
}

impl Shared {
    /// Takes in what a watch of that epoch says.
    fn change(&self, epoch: u64, source: &Source, change: Change) {
        let mut assembly = lock(&self.assembly);
        // A list that was begun before the epoch says nothing about now.
        if epoch == *self.epochs.borrow() {
            assembly.change(source, change);
            drop(assembly);
            self.dirty.notify_one();
        }
    }

    /// Lists everything anew; there is no snapshot before that is done.
    fn begin_epoch(&self) {
        let mut assembly = lock(&self.assembly);
        assembly.await_again();
        self.epochs.send_modify(|epoch| *epoch += 1);
    }

    /// Gives a snapshot out if there is a new one.
    fn give_out(&self) {
        let mut assembly = lock(&self.assembly);
        if let Some(declared) = assembly.take() {
            let faults = assembly.faults();
            self.faults.send_if_modified(|before| {
                let changed = *before != faults;
                if changed {
                    for fault in faults.iter().filter(|fault| !before.contains(fault)) {
                        tracing::error!(%fault, "declared object refused");
                    }
                    *before = faults;
                }
                changed
            });
            self.metrics.gave_out();
            self.snapshots.send_replace(Some(Arc::new(declared)));
        }
        if assembly.is_complete() {
            self.lead_if_elected();
        }
    }
}

/// Gives out what changes when it has come to rest, and follows the Secrets that peers name.
async fn give_out(client: Client, shared: Arc<Shared>) {
    let mut watches = JoinSet::new();
    let mut secrets: BTreeMap<String, AbortHandle> = BTreeMap::new();
    loop {
        shared.dirty.notified().await;
        let deadline = Instant::now() + PATIENCE;
        while timeout(QUIET, shared.dirty.notified()).await.is_ok() && Instant::now() < deadline {}
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
            secrets.entry(name.clone()).or_insert_with(|| {
                watches.spawn(watching::follow(Source::Secret(name), client.clone(), Arc::clone(&shared)))
            });
        }
    }
}

/// Where the objects of a kind are; those of a namespace only if one is named.
fn api(client: Client, kind: Kind, namespace: Option<&str>) -> Api<DynamicObject> {
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

/// A panic while a lock is held leaves a snapshot at worst that is not given out.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
