//! `fairlead controller`: gives addresses to the services of a cluster or fleet and writes statuses, if it leads.
//!
//! ```text
//! snapshot ─┐
//! lead     ─┼─> statuses of the cluster (pure) ─> store.publish ─> they come back in the next snapshot
//! timer    ─┘
//! ```
use crate::{
    declared::Declared,
    desired::{self, ClusterMemory, Fleet, NodeReports},
    host,
    observed::Observed,
    serve::{serve, socket::bind_tcp},
    standalone::StartError,
    status::StatusSet,
    store::{
        EtcdStore, KubernetesStore, SharedStore, Store, StoreError, etcd,
        kubernetes::{Access, Role},
    },
};
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use futures::{FutureExt, StreamExt};
use prometheus::{IntCounter, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::{
    fs::File,
    io::{self, Read},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, sleep_until},
};

/// A pass is made at least so often: reuse delays come to their ends.
const SLOWEST: Duration = Duration::from_secs(30);
/// What nodes tell is summed up so often.
const SUM: Duration = Duration::from_secs(2);
/// A pass that failed is repeated after this, then after twice as long, up to [`SLOWEST`].
const FIRST_RETRY: Duration = Duration::from_millis(500);

/// What `fairlead controller` was told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where objects come from.
    pub source: Source,
    /// Where metrics and health are served.
    pub metrics: SocketAddr,
}

/// Where objects come from, and statuses go.
#[derive(Clone, Debug)]
pub enum Source {
    /// An API server. See [`Access::new`].
    Kubernetes {
        /// How to reach it.
        kubeconfig: Option<PathBuf>,
        /// Where the Lease is.
        namespace: Option<String>,
        /// Services that name no class are ours.
        default_class: bool,
        /// What this cluster is called, where no ClusterProperty says so.
        cluster_name: Option<String>,
    },
    /// An etcd cluster.
    Etcd(etcd::Options),
}

/// Runs until SIGTERM or SIGINT; then another one may lead at once.
///
/// # Errors
/// What it was told makes no sense.
pub async fn run(options: Options) -> Result<(), StartError> {
    let caught = || Ok((signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?));
    let (mut terminate, mut interrupt) =
        caught().map_err(|source| StartError::Host { what: "catching signals", source })?;
    let address = options.metrics;
    let socket = bind_tcp(address).await.map_err(|source| StartError::Metrics { address, source })?;
    let identity = identity().map_err(|source| StartError::Host { what: "choosing an identity", source })?;
    let store = open(&options.source, &identity).await?;
    let facts = Facts::new(Arc::clone(&store))?;
    let mut parts = JoinSet::new();
    parts.spawn(serve(socket, router(facts.clone())));
    parts.spawn(reconcile(Arc::clone(&store), facts));
    tracing::info!(identity, source = ?options.source, metrics = %address, version = env!("CARGO_PKG_VERSION"), "started");
    let outcome = tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        // None of them ends by itself.
        Some(ended) = parts.join_next() => {
            Err(StartError::Died(ended.err().map_or_else(|| "it returned".to_owned(), |error| error.to_string())))
        }
    };
    tracing::info!("stopping; another one may lead");
    // First: nothing may be written after the Lease is given back.
    parts.shutdown().await;
    store.resign().await;
    outcome
}

async fn open(source: &Source, identity: &str) -> Result<Arc<dyn SharedStore>, StartError> {
    Ok(match source {
        Source::Kubernetes { kubeconfig, namespace, default_class, cluster_name } => {
            let access = Access::new(kubeconfig.as_deref(), namespace.clone()).await?;
            let access = access.with_default_class(*default_class).with_cluster_name(cluster_name.clone());
            Arc::new(KubernetesStore::start(&access, Role::Controller, identity)?)
        }
        Source::Etcd(options) => {
            let access = etcd::Access::new(options)?;
            Arc::new(EtcdStore::start(&access, Role::Controller, identity, etcd::Registration::default())?)
        }
    })
}

/// Brings the statuses of the cluster to what they should be, for ever; while the store does not lead, does nothing.
pub async fn reconcile(store: Arc<impl Store + ?Sized>, facts: Facts) {
    let (mut snapshots, mut leader, mut faults) = (store.watch(), store.leader(), store.faults());
    let mut neighbours = store.neighbours();
    let mut declared: Option<Arc<Declared>> = None;
    let (mut retry, mut next) = (FIRST_RETRY, Instant::now() + SLOWEST);
    // Whether a set was published since this process leads.
    let mut has_published = false;
    let mut memory = ClusterMemory::default();
    let (mut fleet, mut sums) = (Fleet::default(), tokio::time::interval(SUM));
    sums.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Of which snapshot and which reports the last sum was.
    let mut summed = None;
    loop {
        let mut is_sum = false;
        tokio::select! {
            Some(snapshot) = snapshots.next() => declared = Some(snapshot),
            Ok(()) = leader.changed() => {}
            Ok(()) = faults.changed() => {}
            Ok(()) = neighbours.changed() => {}
            () = sleep_until(next) => {}
            // After a failure the next pass has its time.
            _ = sums.tick(), if retry == FIRST_RETRY => is_sum = true,
        }
        let leads = *leader.borrow_and_update();
        // Asked after the lead: this snapshot is not older than that.
        while let Some(Some(snapshot)) = snapshots.next().now_or_never() {
            declared = Some(snapshot);
        }
        let Some(declared) = &declared else { continue };
        facts.is_ready.send_replace(true);
        let reports = store.node_reports().filter(|_| is_sum && leads);
        let reports = reports.map(|reports| (declared.generation, reports));
        if is_sum && (reports.is_none() || (reports == summed && fleet.is_settled())) {
            continue;
        }
        if !leads {
            has_published = false;
            next = Instant::now() + SLOWEST;
            continue;
        }
        let observed = Observed {
            faults: faults.borrow_and_update().clone(),
            neighbours: Arc::clone(&neighbours.borrow_and_update()),
            now: host::now(),
            takes_over: !has_published,
            ..Observed::default()
        };
        let mut statuses: StatusSet = desired::cluster_remembering(declared, &observed, &mut memory);
        if let Some((generation, reports)) = reports {
            facts.count(&reports);
            fleet.sum_up(declared, &observed, &reports, &mut statuses);
            summed = Some((generation, reports));
        }
        facts.passes.inc();
        let pause = match store.publish(&statuses).await {
            Ok(()) => {
                (retry, has_published) = (FIRST_RETRY, true);
                SLOWEST
            }
            Err(error) => {
                has_published &= !matches!(error, StoreError::NotLeader);
                match &error {
                    StoreError::Changed { .. } | StoreError::NotLeader => {
                        tracing::info!(%error, "not all is written")
                    }
                    _ => {
                        facts.errors.inc();
                        tracing::error!(%error, "not all is written");
                    }
                }
                let pause = retry;
                retry = (retry * 2).min(SLOWEST);
                pause
            }
        };
        facts.generation.set(i64::try_from(declared.generation).unwrap_or(i64::MAX));
        next = Instant::now() + pause;
    }
}

/// What is served about the process. Cheap to clone; clones are one.
#[derive(Clone)]
pub struct Facts {
    registry: Registry,
    passes: IntCounter,
    errors: IntCounter,
    generation: IntGauge,
    /// Agents by whether they are there.
    agents: IntGaugeVec,
    /// A snapshot was there.
    is_ready: Arc<watch::Sender<bool>>,
}

impl Facts {
    /// Of a process with this store.
    ///
    /// # Errors
    /// The metrics make no sense: a defect.
    pub fn new(store: Arc<impl Store + ?Sized>) -> prometheus::Result<Self> {
        let facts = Facts {
            registry: Registry::new(),
            passes: IntCounter::new("fairlead_passes_total", "Passes of the reconcile loop.")?,
            errors: IntCounter::new(
                "fairlead_pass_errors_total",
                "Passes of the reconcile loop that ended with an error.",
            )?,
            generation: IntGauge::new(
                "fairlead_store_generation",
                "Number of the snapshot in force; statuses that come back make a new one, too.",
            )?,
            agents: IntGaugeVec::new(
                Opts::new(
                    "fairlead_agents",
                    "Agents that have a NodeState, as the one that leads sees them.",
                ),
                &["state"],
            )?,
            is_ready: Arc::new(watch::Sender::new(false)),
        };
        facts.registry.register(Box::new(facts.agents.clone()))?;
        facts.registry.register(Box::new(facts.passes.clone()))?;
        facts.registry.register(Box::new(facts.errors.clone()))?;
        facts.registry.register(Box::new(facts.generation.clone()))?;
        for collector in store.collectors() {
            facts.registry.register(collector)?;
        }
        Ok(facts)
    }

    fn count(&self, reports: &NodeReports) {
        let fresh = reports.values().filter(|report| report.is_fresh).count();
        for (state, count) in [("fresh", fresh), ("silent", reports.len() - fresh)] {
            self.agents.with_label_values(&[state]).set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}

fn router(facts: Facts) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(facts)
}

async fn metrics(State(facts): State<Facts>) -> impl IntoResponse {
    match TextEncoder::new().encode_to_string(&facts.registry.gather()) {
        Ok(page) => Ok(([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], page)),
        Err(error) => Err((StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n"))),
    }
}

async fn ready(State(facts): State<Facts>) -> (StatusCode, &'static str) {
    match *facts.is_ready.borrow() {
        true => (StatusCode::OK, "ok\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "the store has not told everything yet\n"),
    }
}

/// The host name and something that no other process has, not even this one after a restart.
fn identity() -> io::Result<String> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(format!("{}_{:016x}", host::name()?, u64::from_ne_bytes(bytes)))
}
