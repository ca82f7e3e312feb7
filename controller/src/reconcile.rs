//! The loop that brings the node to what is desired: make, announce, break.
//!
//! ```text
//! snapshot ─┐
//! health    │           ┌ 1 datapath.install   adds and changes, removes nothing
//! next hops ├─> a pass ─┼ 2 speaker.set_*      routes for what is installed, and for nothing else
//! sessions  │           ├ 3 speaker.flushed    the peers know what is withdrawn
//! timer    ─┘           ├ 4 datapath.prune     only now frontends go
//!                       └ 5 store.publish      statuses; addresses take effect when they come back
//! ```
//! A step that fails is reported and tried again; it does not stop the steps that do not depend on it, and what is
//! installed stays. Nothing is pruned unless the steps before it succeeded. The loop has no end.
use crate::{
    appliers::{CheckResult, Checker, Datapath, Host, Speaker},
    declared::Declared,
    desired::{Desired, Draft, Memory},
    observed::{FilterCounters, Observed, Targets},
    store::Store,
};
use futures::{FutureExt, StreamExt, stream::BoxStream};
use lb_bpf::{DirtySlots, Installed, service::ServiceKey};
use prometheus::Histogram;
use std::{collections::BTreeMap, error::Error, mem, num::NonZeroU32, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, MissedTickBehavior},
};

/// A pass is made at least so often: what was lost or changed by others is put right.
const SLOWEST: Duration = Duration::from_secs(30);
/// A pass that failed is repeated after this, then after twice as long, up to [`SLOWEST`].
const FIRST_RETRY: Duration = Duration::from_millis(500);
/// Housekeeping of the datapath.
const SWEEP: Duration = Duration::from_secs(2);
/// While somebody follows the flows, one packet in so many is reported of those that are neither dropped nor the first
/// of a flow. A power of two.
const SAMPLED: NonZeroU32 = NonZeroU32::new(256).expect("not 0");

/// What the instance knows, for the API socket and metrics.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// What was declared in the last pass.
    pub declared: Arc<Declared>,
    /// What was desired in it.
    pub desired: Arc<Desired>,
    /// What was observed before and during it.
    pub observed: Arc<Observed>,
    /// What the datapath held after it; none: it has not said yet.
    pub installed: Option<Arc<Installed>>,
    /// What rules of packet filters counted, a few seconds ago at most.
    pub filters: Arc<FilterCounters>,
    /// Slots of services that are dirty, after the last pass or some seconds later.
    pub dirt: Arc<BTreeMap<ServiceKey, DirtySlots>>,
    /// Whether a pass was complete without an error.
    pub ready: bool,
    /// Passes so far.
    pub passes: u64,
    /// Passes with an error.
    pub pass_errors: u64,
    /// The errors of the last pass, `step: what`; none: it was complete.
    pub last_error: Option<String>,
}

/// The loop and what it acts on.
pub struct Reconciler<S: ?Sized, D, B, C, H> {
    store: Arc<S>,
    datapath: D,
    speaker: B,
    checks: C,
    host: H,
    /// How many follow the flows.
    followers: watch::Receiver<usize>,
    /// Whether the datapath samples; none: not known.
    sampling: Option<bool>,
    view: watch::Sender<View>,
    declared: Option<Arc<Declared>>,
    observed: Observed,
    memory: Memory,
}

impl<S: Store + ?Sized, D: Datapath, B: Speaker, C: Checker, H: Host> Reconciler<S, D, B, C, H> {
    /// A loop that has not begun, and the view that it keeps up to date. Packets are sampled while there are
    /// `followers`.
    pub fn new(
        store: Arc<S>,
        datapath: D,
        speaker: B,
        checks: C,
        host: H,
        followers: watch::Receiver<usize>,
    ) -> (Self, watch::Receiver<View>) {
        let (view, receiver) = watch::channel(View::default());
        let observed = Observed { installed: datapath.installed(), ..Observed::default() };
        let (sampling, declared, memory) = (None, None, Memory::default());
        let reconciler = Reconciler {
            store,
            datapath,
            speaker,
            checks,
            host,
            followers,
            sampling,
            view,
            declared,
            observed,
            memory,
        };
        (reconciler, receiver)
    }

    /// Runs for ever. Nothing is done before the first snapshot. Durations of passes go to `pass_seconds`.
    pub async fn run(mut self, pass_seconds: Histogram) {
        // Counters outlive the process: nobody shall read 0 first.
        self.look();
        // The process before may have been sampling when it died.
        self.sample();
        let mut snapshots = self.store.watch();
        let mut sessions = self.speaker.changes();
        let mut faults = self.store.faults();
        let mut sweep = tokio::time::interval(SWEEP);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = FIRST_RETRY;
        let mut next = Instant::now() + SLOWEST;
        loop {
            tokio::select! {
                snapshot = snapshots.next() => match snapshot {
                    Some(snapshot) => self.declared = Some(snapshot),
                    None => {
                        tracing::error!("the store gives no more snapshots");
                        snapshots = futures::stream::pending().boxed();
                    }
                },
                results = self.checks.results() => self.note(results),
                () = self.datapath.changed() => tracing::debug!("next hops have changed"),
                Ok(()) = sessions.changed() => {}
                Ok(()) = faults.changed() => {}
                () = tokio::time::sleep_until(next) => {}
                Ok(()) = self.followers.changed() => {
                    self.sample();
                    continue;
                }
                _ = sweep.tick() => {
                    self.sweep();
                    continue;
                }
            }
            self.coalesce(&mut snapshots);
            sessions.mark_unchanged();
            self.observed.faults = faults.borrow_and_update().clone();
            let start = Instant::now();
            let complete = self.pass().await;
            if self.declared.is_some() {
                pass_seconds.observe(start.elapsed().as_secs_f64());
            }
            retry = if complete { FIRST_RETRY } else { (retry * 2).min(SLOWEST) };
            let pause = if complete { SLOWEST } else { retry };
            next = Instant::now() + self.until_expiry().map_or(pause, |until| pause.min(until));
        }
    }

    /// How long until a packet filter expires; none: no one does.
    fn until_expiry(&self) -> Option<Duration> {
        let expiry = self.view.borrow().desired.next_expiry?;
        Some(Duration::from_secs(expiry.saturating_sub(self.host.now())))
    }

    /// Takes in everything else that has happened meanwhile: one pass does for all of it.
    fn coalesce(&mut self, snapshots: &mut BoxStream<'static, Arc<Declared>>) {
        while let Some(Some(snapshot)) = snapshots.next().now_or_never() {
            self.declared = Some(snapshot);
        }
        while let Some(results) = self.checks.results().now_or_never() {
            self.note(results);
        }
    }

    fn note(&mut self, results: Vec<CheckResult>) {
        let health = Arc::make_mut(&mut self.observed.health);
        for CheckResult { check, endpoint, health: now } in results {
            tracing::info!(address = %endpoint.address, port = endpoint.port, health = ?now, "health has changed");
            health.entry(check).or_default().insert(endpoint, now);
        }
    }

    /// One pass; whether all of it worked. Before the first snapshot it does nothing.
    pub async fn pass(&mut self) -> bool {
        let Some(declared) = self.declared.clone() else { return true };
        let mut errors = Errors::default();
        self.observed.node = self.host.node();
        self.observed.now = self.host.now();
        self.observed.established = self.speaker.established().await;
        let observed = Arc::new(self.observed.clone());

        let draft = Draft::remembering(&declared, &observed, mem::take(&mut self.memory));
        self.checks.set_targets(draft.targets());
        self.forget_others(draft.targets());
        let made = errors.note("datapath.install", self.datapath.install(draft.datapath()).await);
        let is_made = made.is_some();
        if let Some(installed) = made {
            self.observed.installed = installed;
        }
        let (desired, memory) = draft.finish_and_remember(&self.observed.installed);
        self.memory = memory;
        self.observed.said = Arc::clone(&desired.status);

        let told = self.announce(&desired, &mut errors).await;
        if told {
            self.speaker.flushed().await;
        }
        if is_made && told {
            errors.note("datapath.prune", self.datapath.prune().await);
        }
        errors.note("store.publish", self.store.publish(&desired.status).await);

        // Before anybody sees what is installed: which slots are dirty for it.
        self.look_at_slots();
        let complete = errors.0.is_empty();
        let last_error = (!complete).then(|| errors.0.join("; "));
        self.view.send_modify(|view| {
            view.ready |= complete;
            view.passes += 1;
            view.pass_errors += u64::from(!complete);
            view.last_error = last_error;
            view.declared = declared.clone();
            view.desired = Arc::new(desired);
            view.observed = Arc::new(self.observed.clone());
            view.installed = Some(self.observed.installed.clone());
        });
        complete
    }

    /// Tells the speaker; whether it knows the routes now.
    async fn announce(&self, desired: &Desired, errors: &mut Errors) -> bool {
        let (peers, ranges, stations) = match &desired.speaker {
            Some(speaker) => {
                let global = self.speaker.set_global(speaker.global.clone()).await;
                errors.note("speaker.set_global", global);
                (speaker.peers.clone(), speaker.ranges.clone(), speaker.stations.clone())
            }
            None => (Vec::new(), Vec::new(), Vec::new()),
        };
        errors.note("speaker.set_stations", self.speaker.set_stations(stations).await);
        errors.note("speaker.set_peers", self.speaker.set_peers(peers).await);
        errors.note("speaker.set_ranges", self.speaker.set_ranges(ranges).await);
        let routes = self.speaker.set_routes(Arc::clone(&desired.routes)).await;
        let told = errors.note("speaker.set_routes", routes).is_some();
        if told {
            // The first pass after a restart adopts what is installed, health included: nothing is missing.
            self.speaker.routes_complete().await;
        }
        told
    }

    /// Forgets the health of what is no longer checked: should it come back, it is unknown.
    fn forget_others(&mut self, targets: &Targets) {
        let known = self.observed.health.iter();
        let stale =
            known.flat_map(|(check, endpoints)| endpoints.keys().map(move |endpoint| (check, endpoint)));
        let is_target = |(check, endpoint)| targets.get(check).is_some_and(|t| t.contains(endpoint));
        if stale.into_iter().all(is_target) {
            return;
        }
        Arc::make_mut(&mut self.observed.health).retain(|check, endpoints| {
            let targets = targets.get(check);
            endpoints.retain(|endpoint, _| targets.is_some_and(|t| t.contains(endpoint)));
            !endpoints.is_empty()
        });
    }

    fn sweep(&mut self) {
        Errors::default().note("datapath.sweep", self.datapath.sweep());
        self.look();
        // Should it have failed before.
        self.sample();
    }

    fn sample(&mut self) {
        let wanted = *self.followers.borrow_and_update() > 0;
        if self.sampling != Some(wanted) {
            let set = self.datapath.set_sampling(wanted.then_some(SAMPLED));
            self.sampling = Errors::default().note("datapath.set_sampling", set).map(|()| wanted);
        }
    }

    /// Looks at what changes by packets and time.
    fn look(&mut self) {
        let counted = self.datapath.filter_counters();
        if let Some(filters) = Errors::default().note("datapath.filter_counters", counted) {
            self.observed.filters = Arc::new(filters);
            self.view.send_modify(|view| view.filters = Arc::clone(&self.observed.filters));
        }
        self.look_at_slots();
    }

    fn look_at_slots(&self) {
        let slots = self.datapath.dirty_slots();
        if let Some(dirt) = Errors::default().note("datapath.dirty_slots", slots) {
            self.view.send_modify(|view| view.dirt = Arc::new(dirt));
        }
    }
}

/// The errors of a pass.
#[derive(Default)]
struct Errors(Vec<String>);

impl Errors {
    fn note<T, E: Error>(&mut self, step: &'static str, result: Result<T, E>) -> Option<T> {
        result
            .map_err(|error| {
                tracing::error!(step, %error, "step failed");
                self.0.push(format!("{step}: {error}"));
            })
            .ok()
    }
}

#[cfg(test)]
mod tests;
