//! What the stores have in common in which each object stands for itself and many processes share them: snapshots of what
//! was seen, statuses that are written step by step, and who leads. How objects are read and written is the store's own.
use crate::{api::Kind, declared::Declared, fault::Fault, neighbours::Neighbours};
use snapshot::{Assembly, Change, Source};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, timeout},
};

mod lead;
pub(super) mod metrics;
pub mod nodes;
pub(super) mod plan;
pub(super) mod publish;
pub(super) mod snapshot;

pub(super) use lead::now;

/// Changes are at rest when nothing happens for so long.
const QUIET: Duration = Duration::from_millis(2);
/// Changes that never rest make a snapshot after so long.
const PATIENCE: Duration = Duration::from_millis(25);
/// How long a request may take whose outcome must be known before others may lead.
pub const REQUEST: Duration = Duration::from_secs(4);

/// What a process does with the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Gives addresses, imports what other clusters export and writes statuses, if it leads. Of Secrets it reads those of
    /// ClusterLinks.
    Controller,
    /// Reads, and writes how its node is. Leads never.
    Agent,
}

impl Role {
    /// Kinds that it reads as a whole.
    pub(super) fn kinds(self) -> Vec<Kind> {
        let is_read = |kind: &Kind| kind.is_declared() && *kind != Kind::Secret;
        Kind::ALL.into_iter().filter(is_read).collect()
    }
}

/// What a store and its tasks share.
pub(super) struct Shared {
    pub(super) assembly: Mutex<Assembly>,
    /// Something has changed.
    dirty: Notify,
    /// With another number everything is listed anew.
    pub(super) epochs: watch::Sender<u64>,
    pub(super) snapshots: watch::Sender<Option<Arc<Declared>>>,
    pub(super) faults: watch::Sender<Vec<Fault>>,
    pub(super) leader: watch::Sender<bool>,
    lead: Mutex<lead::Lead>,
    /// Other clusters, while this process leads.
    pub(super) neighbours: watch::Sender<Arc<Neighbours>>,
    /// What agents tell; the controller asks.
    pub(super) nodes: Mutex<nodes::Nodes>,
    pub(super) metrics: metrics::Metrics,
}

impl Shared {
    pub(super) fn new(role: Role) -> prometheus::Result<Self> {
        Ok(Shared {
            assembly: Mutex::new(Assembly::new(&role.kinds(), role == Role::Agent)),
            dirty: Notify::new(),
            epochs: watch::Sender::new(0),
            snapshots: watch::Sender::new(None),
            faults: watch::Sender::new(Vec::new()),
            leader: watch::Sender::new(false),
            lead: Mutex::default(),
            neighbours: watch::Sender::default(),
            nodes: Mutex::default(),
            metrics: metrics::Metrics::new()?,
        })
    }

    /// Takes in what a watch of that epoch says.
    pub(super) fn change(&self, epoch: u64, source: &Source, change: Change) {
        self.change_all(epoch, |assembly| assembly.change(source, change));
    }

    /// The same of several changes, which come into one snapshot.
    pub(super) fn change_all(&self, epoch: u64, changes: impl FnOnce(&mut Assembly)) {
        let mut assembly = lock(&self.assembly);
        // A list that was begun before the epoch says nothing about now.
        if epoch == *self.epochs.borrow() {
            changes(&mut assembly);
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

    /// Waits until something has changed and changes have come to rest.
    pub(super) async fn changed(&self) {
        self.dirty.notified().await;
        let deadline = Instant::now() + PATIENCE;
        while timeout(QUIET, self.dirty.notified()).await.is_ok() && Instant::now() < deadline {}
    }

    /// Gives a snapshot out if there is a new one.
    pub(super) fn give_out(&self) {
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

/// A panic while a lock is held leaves a snapshot at worst that is not given out.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
