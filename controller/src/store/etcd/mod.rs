//! The store of a fleet of hosts without Kubernetes: objects and statuses are keys of an etcd cluster; see [`keys`] for which.
//!
//! It is used as that of [Kubernetes](super::kubernetes) is: each object stands for itself, a controller that leads writes
//! statuses, and agents read and say how their nodes are. What is written in one transaction comes into one snapshot. An etcd
//! that is away, or has no quorum, changes nothing: the last snapshot stays.
use super::{
    SharedStore, Store, StoreError,
    objects::{Role, Shared, lock, now, publish::Publisher},
};
use crate::{
    api::{Kind, NodeState},
    declared::Declared,
    desired::NodeReports,
    fault::Fault,
    status::StatusSet,
};
use client::Client;
use futures::{
    StreamExt,
    future::{self, BoxFuture, FutureExt},
    stream::BoxStream,
};
use k8s_openapi::api::core::v1::Node;
use keys::Keys;
use kube::ResourceExt;
use leader::Standing;
use mirror::Mirror;
use prometheus::core::Collector;
use std::sync::{Arc, Mutex};
use tokio::{sync::watch, task::JoinSet};
use tokio_stream::wrappers::WatchStream;
use watching::{Following, News};
use write::Etcd;

mod access;
mod client;
pub mod declare;
pub mod keys;
mod leader;
mod mirror;
mod node;
mod watching;
mod wire;
mod write;

pub use access::{Access, Options};
pub use client::EtcdError;
pub use node::Registration;

/// Objects in etcd.
pub struct EtcdStore {
    agent: node::Agent,
    shared: Arc<Shared>,
    publisher: Publisher<Etcd>,
    standing: Standing,
    /// Ends with the store.
    _tasks: JoinSet<()>,
}

impl EtcdStore {
    /// Begins to watch and, as a controller, to stand for the lead; `identity` is for people. `registration`: what an agent says
    /// of its node. To be called within a runtime.
    ///
    /// # Errors
    /// The metrics make no sense: a defect.
    pub fn start(
        access: &Access,
        role: Role,
        identity: &str,
        registration: Registration,
    ) -> prometheus::Result<Self> {
        let Access { client, keys } = access.clone();
        let shared = Arc::new(Shared::new(role)?);
        let mut kinds = role.kinds();
        if role == Role::Agent {
            kinds.push(Kind::Secret);
        }
        let mirror = Arc::new(Mutex::new(Mirror::new(keys.clone(), kinds)));
        let standing = Standing::new(client.clone(), keys.clone(), identity, Arc::clone(&shared));
        let mut tasks = JoinSet::new();
        tasks.spawn(follow(client.clone(), keys.clone(), Arc::clone(&mirror), Arc::clone(&shared)));
        tasks.spawn(give_out(Arc::clone(&shared)));
        if role == Role::Controller {
            tasks.spawn(standing.clone().stand());
            tasks.spawn(node::follow(client.clone(), keys.clone(), Arc::clone(&shared)));
        }
        let target = Etcd { client: client.clone(), keys: keys.clone(), mirror, standing: standing.clone() };
        let publisher = Publisher::new(target, Arc::clone(&shared));
        let agent = node::Agent::new(client, keys, registration);
        Ok(EtcdStore { agent, shared, publisher, standing, _tasks: tasks })
    }
}

impl Store for EtcdStore {
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
        lock(&self.shared.nodes).reports(now())
    }

    fn collectors(&self) -> Vec<Box<dyn Collector>> {
        self.shared.metrics.collectors()
    }
}

impl SharedStore for EtcdStore {
    fn publish_node<'a>(
        &'a self,
        state: &'a NodeState,
        _: Option<&'a Node>,
    ) -> BoxFuture<'a, Result<(), StoreError>> {
        async move {
            let written = self.agent.publish(state).await;
            let object = || format!("{}/{}", Kind::NodeState, state.name_any());
            written.map_err(|source| StoreError::Etcd { object: object(), source })
        }
        .boxed()
    }

    fn resign(&self) -> BoxFuture<'_, ()> {
        self.standing.resign().boxed()
    }
}

/// Follows the objects, for ever.
async fn follow(client: Client, keys: Keys, mirror: Arc<Mutex<Mirror>>, shared: Arc<Shared>) {
    let mut epochs = shared.epochs.subscribe();
    loop {
        let epoch = *epochs.borrow_and_update();
        let mut following = Following::new(client.clone(), keys.objects());
        loop {
            let news = tokio::select! {
                news = following.next("objects") => news,
                Ok(()) = epochs.changed() => break,
            };
            let is_good = !matches!(news, News::Failed);
            // One watch is for all kinds.
            for kind in Kind::ALL.into_iter().filter(|kind| kind.is_declared()) {
                match is_good {
                    true => shared.metrics.watches(kind),
                    false => shared.metrics.watch_failed(kind),
                }
            }
            match news {
                News::Listed(list) => shared.change_all(epoch, |assembly| {
                    lock(&mirror).list(list.kvs, list.revision, assembly);
                }),
                News::Changed(events) if !events.is_empty() => shared.change_all(epoch, |assembly| {
                    lock(&mirror).change(events, assembly);
                }),
                News::Changed(_) | News::Failed => {}
            }
        }
    }
}

/// Gives out what changes when it has come to rest.
async fn give_out(shared: Arc<Shared>) {
    loop {
        shared.changed().await;
        shared.give_out();
    }
}
