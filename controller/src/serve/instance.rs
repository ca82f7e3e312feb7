//! What the servers read: the view of the reconcile loop, the store's faults, the speaker.
use super::{
    families::{ConditionRow, Facts},
    links::link_rows,
    node_state::node_state,
    rows::{InstanceStatus, InterfaceRow, LinkRow, ServiceRow, TraceRow},
    services::{service_rows, trace_row},
};
use crate::{
    api::{NodeState, PacketFilterStatus, kind::Kind, packet_filter::RuleStatus},
    by_name::ByName,
    desired::{Report, peer_id, rule_key},
    fault::Fault,
    flows::Flows,
    host,
    observed::FilterCounters,
    reconcile::View,
    status::Statuses,
    store::Store,
};
use bgp_speaker::Handle;
use bgp_speaker::PeerId;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use lb_bpf::{Counters, DatapathError, Observer, Sizes, trace::Packet};
use prometheus::{Histogram, HistogramOpts, exponential_buckets};
use serde::Serialize;
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::{Mutex, watch};

/// A running instance, as its servers see it. Cheap to clone.
#[derive(Clone)]
pub struct Instance {
    /// Name of the node.
    pub node: String,
    /// What the reconcile loop knows.
    pub view: watch::Receiver<View>,
    /// Why the newest generation was refused; empty when it is in force.
    pub faults: watch::Receiver<Vec<Fault>>,
    /// Where the objects come from.
    pub store: Arc<dyn Store>,
    /// Durations of the passes, in seconds.
    pub pass_seconds: Histogram,
    /// The BGP speaker.
    pub speaker: Handle,
    /// Sizes of its maps.
    pub map_sizes: Sizes,
    /// Conditions of the NodeState when somebody asked last.
    pub conditions: Arc<Mutex<Vec<Condition>>>,
    /// Reads the maps in the kernel.
    pub observer: Observer,
    /// Held by who reads all counters: one at a time.
    pub counting: Arc<Mutex<()>>,
    /// What becomes of packets.
    pub flows: Flows,
}

impl Instance {
    /// The objects of a kind with their status, by name, as Kubernetes would show them.
    pub(super) fn objects(&self, kind: Kind) -> BTreeMap<String, Value> {
        let View { declared, desired, filters, .. } = &*self.view.borrow();
        let status = &desired.status;
        match kind {
            Kind::AddressPool => with_status(&declared.pools, &status.pools),
            Kind::LoadBalancer => with_status(&declared.load_balancers, &status.load_balancers),
            Kind::ServicePolicy => with_status(&declared.policies, &status.policies),
            Kind::Service => with_status(&declared.services, &status.services),
            Kind::EndpointSlice => with_status(&declared.endpoint_slices, &Statuses::<()>::new()),
            Kind::Namespace => with_status(&declared.namespaces, &Statuses::<()>::new()),
            Kind::BGPRouter => with_status(&declared.routers, &status.routers),
            Kind::BGPPeer => with_status(&declared.peers, &status.peers),
            Kind::BGPAdvertisement => with_status(&declared.advertisements, &status.advertisements),
            Kind::ClusterLink => with_status(&declared.cluster_links, &status.cluster_links),
            Kind::PacketFilter => {
                with_status(&declared.packet_filters, &counted(&status.packet_filters, filters))
            }
            // Nobody declares it: see `node_state`.
            Kind::NodeState => BTreeMap::new(),
            Kind::Node => with_status(&declared.nodes, &status.nodes),
            Kind::Secret => with_status(&declared.secrets, &Statuses::<()>::new()),
        }
    }

    /// The services of the datapath.
    pub(super) async fn services(&self) -> Result<Vec<ServiceRow>, String> {
        let counters = self.counters().await?;
        Ok(service_rows(&self.view.borrow(), &counters))
    }

    /// What the datapath counted until now. Where there are very many backends this takes a while, which neither the reconcile
    /// loop nor other requests wait for.
    async fn counters(&self) -> Result<Counters, String> {
        let _turn = self.counting.lock().await;
        let observer = self.observer.clone();
        let counted = tokio::task::spawn_blocking(move || observer.counters());
        let counted = counted.await.map_err(|error| error.to_string())?;
        counted.map_err(|error| format!("reading the datapath: {error}"))
    }

    /// Links to other clusters.
    pub(super) fn links(&self) -> Vec<LinkRow> {
        let view = self.view.borrow();
        link_rows(&view.declared, &view.desired.status.cluster_links, host::now())
    }

    /// What the kernel would do with a packet now. Reads maps: may take some milliseconds.
    pub(super) fn trace(&self, packet: &Packet) -> Result<TraceRow, DatapathError> {
        let trace = self.observer.trace(packet)?;
        Ok(trace_row(&self.view.borrow(), trace))
    }

    /// Whether it has not yet read what is declared. What was refused is read: nothing of it is in force.
    pub(super) fn awaits_objects(&self) -> bool {
        self.view.borrow().declared.generation == 0 && self.faults.borrow().is_empty()
    }

    /// How the instance is.
    pub(super) fn status(&self) -> InstanceStatus {
        let view = self.view.borrow();
        let faults: Vec<String> = self.faults.borrow().iter().map(ToString::to_string).collect();
        let mut reasons = Vec::new();
        if !view.ready {
            reasons.push(match (&view.last_error, faults.is_empty()) {
                (Some(error), _) => error.clone(),
                (None, true) => "the first pass is not complete".to_owned(),
                (None, false) => "the declared objects are refused, and none were in force before".to_owned(),
            });
        }
        let interfaces = view.installed.iter().flat_map(|installed| &installed.interfaces);
        InstanceStatus {
            node: self.node.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ready: view.ready,
            reasons,
            generation: view.declared.generation,
            faults,
            passes: view.passes,
            pass_errors: view.pass_errors,
            last_error: view.last_error.clone(),
            interfaces: interfaces
                .map(|i| InterfaceRow { name: i.name.clone(), mode: format!("{:?}", i.mode) })
                .collect(),
        }
    }

    /// How the node is, as an object.
    pub(super) async fn node_state(&self) -> NodeState {
        let peers = self.speaker.peers().await;
        let view = self.view.borrow().clone();
        let now = host::now();
        let mut conditions = self.conditions.lock().await;
        let mut state = node_state(
            &self.status(),
            view.installed.as_deref(),
            &self.map_sizes,
            &peers,
            &peer_names(&view),
            &conditions,
            now,
        );
        if let Some(status) = &mut state.status {
            Report::new(&view.declared, &view.desired.status, &view.observed.faults).tell(status);
        }
        conditions
            .clone_from(&state.status.as_ref().map(|status| status.conditions.clone()).unwrap_or_default());
        state
    }

    /// A histogram for the durations of passes.
    pub fn pass_histogram() -> prometheus::Result<Histogram> {
        let options = HistogramOpts::new(
            "fairlead_pass_duration_seconds",
            "Duration of the passes of the reconcile loop.",
        );
        // 0.25 ms to 4 s.
        Histogram::with_opts(options.buckets(exponential_buckets(0.000_25, 2.0, 15)?))
    }

    /// The page of metrics.
    pub(super) async fn metrics(&self) -> prometheus::Result<String> {
        let peers = self.speaker.peers().await;
        let counters = self.counters().await.map_err(prometheus::Error::Msg)?;
        let view = self.view.borrow().clone();
        Facts {
            status: &self.status(),
            services: &service_rows(&view, &counters),
            counters: &counters,
            peers: &peers,
            peer_names: &peer_names(&view),
            conditions: &conditions(&view),
            pass_seconds: &self.pass_seconds,
            store: &self.store.collectors(),
        }
        .page()
    }
}

fn with_status<T: Serialize, S: Serialize>(
    objects: &ByName<T>,
    statuses: &Statuses<S>,
) -> BTreeMap<String, Value> {
    let value = |(name, object): (&String, &Arc<T>)| {
        let mut object = serde_json::to_value(&**object).ok()?;
        if let Some(status) = statuses.get(name) {
            object.as_object_mut()?.insert("status".to_owned(), serde_json::to_value(&**status).ok()?);
        }
        Some((name.clone(), object))
    };
    objects.iter().filter_map(value).collect()
}

/// Statuses with what was counted since they were published.
fn counted(
    statuses: &Statuses<PacketFilterStatus>,
    counters: &FilterCounters,
) -> Statuses<PacketFilterStatus> {
    let mut statuses = statuses.clone();
    statuses.change_each(|name, status| {
        for rule in &mut Arc::make_mut(status).rules {
            if let Some(counter) = counters.get(&rule_key(name, &rule.name)) {
                *rule = RuleStatus::new(rule.name.clone(), Some(*counter));
            }
        }
    });
    statuses
}

/// Names of the BGPPeers by address, interface or range; of several with the same one the first by name.
fn peer_names(view: &View) -> BTreeMap<PeerId, String> {
    let mut names = BTreeMap::new();
    for (name, peer) in &view.declared.peers {
        if let Some(id) = peer_id(peer, &view.observed.node) {
            names.entry(id).or_insert_with(|| name.clone());
        }
    }
    names
}

fn conditions(view: &View) -> Vec<ConditionRow> {
    let status = &view.desired.status;
    let mut rows = Vec::new();
    let mut add = |kind: Kind, name: &str, conditions: &[Condition]| {
        rows.extend(conditions.iter().map(|c| ConditionRow {
            kind: kind.to_string(),
            name: name.to_owned(),
            condition: c.type_.clone(),
            status: c.status.clone(),
            reason: c.reason.clone(),
        }));
    };
    status.pools.iter().for_each(|(name, s)| add(Kind::AddressPool, name, &s.conditions));
    status.load_balancers.iter().for_each(|(name, s)| add(Kind::LoadBalancer, name, &s.conditions));
    status.services.iter().for_each(|(name, s)| add(Kind::Service, name, &s.conditions));
    status.policies.iter().for_each(|(name, s)| add(Kind::ServicePolicy, name, &s.conditions));
    status.nodes.iter().for_each(|(name, s)| add(Kind::Node, name, &s.conditions));
    status.routers.iter().for_each(|(name, s)| add(Kind::BGPRouter, name, &s.conditions));
    status.peers.iter().for_each(|(name, s)| add(Kind::BGPPeer, name, &s.conditions));
    status.advertisements.iter().for_each(|(name, s)| add(Kind::BGPAdvertisement, name, &s.conditions));
    status.cluster_links.iter().for_each(|(name, s)| add(Kind::ClusterLink, name, &s.conditions));
    status.packet_filters.iter().for_each(|(name, s)| add(Kind::PacketFilter, name, &s.conditions));
    rows
}
