//! What the tests have in common: processes with a store, objects, and what etcd says of them.
use controller::{
    api::{NodeState, NodeStateStatus},
    cluster::{self, Facts},
    declared::Declared,
    status::time,
    store::{
        EtcdStore, Store,
        etcd::{
            Access, Options, Registration,
            declare::{Done, wanted},
        },
        objects::Role,
    },
};
use futures::StreamExt;
use lab::{Error, etcd::Etcd, wait_until};
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

/// A process with a store. Dropped it is as if it were killed: nothing is given back, nothing is finished.
pub(super) struct Process {
    pub(super) store: Arc<EtcdStore>,
    /// All snapshots that were given out.
    snapshots: Arc<Mutex<Vec<Arc<Declared>>>>,
    /// Dropped last: ends everything.
    runtime: Runtime,
}

impl Process {
    pub(super) fn start(options: &Options, role: Role, identity: &str) -> Result<Self, Error> {
        let runtime = Runtime::new()?;
        let access = Access::new(options)?;
        let (store, snapshots) =
            runtime.block_on(async { start(&access, role, identity, Registration::default()) })?;
        Ok(Process { store, snapshots, runtime })
    }

    pub(super) fn last(&self) -> Option<Arc<Declared>> {
        self.snapshots.lock().unwrap().last().cloned()
    }

    pub(super) fn wait(&self, what: &str, good: impl Fn(&Declared) -> bool) -> Result<Arc<Declared>, Error> {
        let found = wait_until(what, || Ok(self.last().is_some_and(|last| good(&last))));
        found.map_err(|error| format!("{error}: {:#?}", self.last()))?;
        self.last().ok_or_else(|| "no snapshot".into())
    }

    pub(super) fn snapshots(&self) -> Vec<Arc<Declared>> {
        self.snapshots.lock().unwrap().clone()
    }

    pub(super) fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    pub(super) fn leads(&self) -> bool {
        *self.store.leader().borrow()
    }
}

/// A store, and all snapshots that it gives out; a controller reconciles. Within a runtime.
pub(super) type Started = (Arc<EtcdStore>, Arc<Mutex<Vec<Arc<Declared>>>>);

pub(super) fn start(
    access: &Access,
    role: Role,
    identity: &str,
    registration: Registration,
) -> Result<Started, Error> {
    let store = Arc::new(EtcdStore::start(access, role, identity, registration)?);
    let snapshots = Arc::new(Mutex::new(Vec::new()));
    let (mut stream, list) = (store.watch(), Arc::clone(&snapshots));
    tokio::spawn(async move {
        while let Some(snapshot) = stream.next().await {
            list.lock().unwrap().push(snapshot);
        }
    });
    if role == Role::Controller {
        let facts = Facts::new(Arc::clone(&store))?;
        tokio::spawn(cluster::reconcile(Arc::clone(&store), facts));
    }
    Ok((store, snapshots))
}

/// What a node would say of itself at this time, seconds since the epoch.
pub(super) fn node_state(name: &str, now: u64) -> NodeState {
    let mut state = NodeState::new(name, Default::default());
    state.status = Some(NodeStateStatus { heartbeat_time: Some(time(now)), ..Default::default() });
    state
}

pub(super) fn options(etcd: &Etcd) -> Options {
    Options { endpoints: etcd.endpoints(), ..Options::default() }
}

/// Applies objects, as `fairlead apply` does.
pub(super) fn apply(options: &Options, objects: &[String], prunes: bool) -> Result<Done, Error> {
    let access = Access::new(options)?;
    let text = objects.join("---\n");
    Ok(Runtime::new()?.block_on(access.apply(&wanted([&*text]), prunes))?)
}

pub(super) fn pool(cidr: &str) -> String {
    format!(
        "kind: AddressPool\nmetadata: {{name: vips}}\nspec: {{use: LoadBalancer, blocks: [{{cidr: {cidr}}}], reuseDelaySeconds: 3600}}\n"
    )
}

pub(super) fn balancer(name: &str) -> String {
    format!(
        "kind: LoadBalancer\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: 80}}], backends: [{{address: 10.0.0.1}}]}}\n"
    )
}

/// The addresses of a LoadBalancer that are in effect, as a snapshot says.
pub(super) fn addresses(declared: &Declared, name: &str) -> Vec<String> {
    let status = declared.statuses.load_balancers.get(name);
    status.into_iter().flat_map(|status| &status.addresses).map(|given| given.address.to_string()).collect()
}

pub(super) fn has_address(declared: &Declared, name: &str) -> bool {
    declared.load_balancers.contains_key(name) && addresses(declared, name).len() == 1
}
