//! Services as an operator sees them: what is desired, what is installed, and what was counted, side by side.
use super::rows::{BackendRow, BackendStatus, DropRow, FrontendRow, ServiceRow, TraceRow};
use crate::{
    api::node::internal_ips,
    desired::{BackendHealth, backend_health},
    observed::Health,
    reconcile::View,
};
use lb_bpf::{
    Counter, Counters, InstalledService,
    service::{Endpoint, Service, ServiceKey, Target, mode_label},
    trace::Trace,
};
use std::{
    borrow::Cow,
    cell::OnceCell,
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

/// One row per desired service.
pub(super) fn service_rows(view: &View, counters: &Counters) -> Vec<ServiceRow> {
    let services = view.desired.datapath.services.iter();
    let nodes = Nodes::new(view);
    services
        .map(|(key, service)| {
            let held = view.installed.as_ref().and_then(|installed| installed.services.get(key));
            let held = held.map(|held| &**held);
            let counted = counters.services.get(key);
            let dirt = view.dirt.get(key).copied().unwrap_or_default();
            ServiceRow {
                name: key.to_string(),
                frontends: service.frontends.iter().map(FrontendRow::from).collect(),
                mode: mode_label(service.mode).to_owned(),
                programmed: held.is_some_and(|held| held.frontends.is_superset(&service.frontends)),
                table_size: held.map_or(0, |held| held.table_size),
                learning_slots: dirt.learning,
                settled_slots: dirt.settled,
                backends: backend_rows(view, &nodes, key, service, held, counted),
                drops: drop_rows(counters, key),
            }
        })
        .collect()
}

/// A trace with what is known of its backend.
pub(super) fn trace_row(view: &View, trace: Trace) -> TraceRow {
    let key = trace.vip.as_ref().and_then(|vip| vip.service.as_ref());
    let backend_status = key.zip(trace.backend.as_ref()).map(|(key, backend)| {
        let service = view.desired.datapath.services.get(key);
        let target = service.and_then(|service| service.backends.get(&backend.endpoint));
        let nodes = Nodes::new(view);
        let node = service.and_then(|service| nodes.of(service, backend.endpoint));
        let (health, health_reason) = health(view, key, backend.endpoint, node.and(target));
        BackendStatus { weight: target.map(|target| target.weight), health: health.to_owned(), health_reason }
    });
    TraceRow { trace, backend_status }
}

/// Names of nodes by their addresses; those of another cluster begin with its name. Made when the first one is asked for: with
/// endpoints of other clusters there are many.
struct Nodes<'a> {
    view: &'a View,
    names: OnceCell<HashMap<IpAddr, Cow<'a, str>>>,
}

impl<'a> Nodes<'a> {
    fn new(view: &'a View) -> Self {
        Nodes { view, names: OnceCell::new() }
    }

    fn names(view: &'a View) -> HashMap<IpAddr, Cow<'a, str>> {
        let nodes = view.declared.nodes.iter();
        let own = nodes.flat_map(|(name, node)| internal_ips(node).map(move |ip| (ip, Cow::from(name))));
        let imports =
            view.declared.endpoint_slices.values().filter_map(|slice| slice.metadata.import.as_ref());
        let others = imports.flat_map(|import| {
            let nodes = import.delivery.iter().flat_map(|delivery| &delivery.nodes);
            nodes.flat_map(|node| {
                let name = [&*import.cluster, "/", &*node.name].concat();
                node.addresses.iter().map(move |address| (*address, Cow::from(name.clone())))
            })
        });
        // Of two with one address ours counts.
        others.chain(own).collect()
    }

    /// The node that a backend is, which delivers to its pods.
    fn of(&self, service: &Service, endpoint: Endpoint) -> Option<&str> {
        let names = service.mode.is_tunnel().then(|| self.names.get_or_init(|| Nodes::names(self.view)))?;
        names.get(&endpoint.address).map(|name| &**name)
    }
}

/// Backends that are declared, and those that are no longer but still have slots or are counted while they drain.
fn backend_rows(
    view: &View,
    nodes: &Nodes<'_>,
    key: &ServiceKey,
    service: &Service,
    held: Option<&InstalledService>,
    counted: Option<&BTreeMap<Endpoint, Counter>>,
) -> Vec<BackendRow> {
    let slots = held.map(|held| &held.slots);
    let endpoints: BTreeSet<&Endpoint> = (service.backends.keys())
        .chain(slots.into_iter().flat_map(BTreeMap::keys))
        .chain(counted.into_iter().flat_map(BTreeMap::keys))
        .collect();
    let row = |endpoint: &Endpoint| {
        let owned = slots.and_then(|slots| slots.get(endpoint)).copied().unwrap_or(0);
        let size = held.map_or(0, |held| held.table_size).max(1);
        let Counter { packets, bytes, flows } =
            counted.and_then(|counted| counted.get(endpoint)).copied().unwrap_or_default();
        let (target, node) = (service.backends.get(endpoint), nodes.of(service, *endpoint));
        let (health, health_reason) = health(view, key, *endpoint, node.and(target));
        BackendRow {
            address: endpoint.address,
            port: endpoint.port,
            node: node.map(str::to_owned),
            weight: target.map(|target| target.weight),
            health: health.to_owned(),
            health_reason,
            slots: owned,
            share: f64::from(owned) / f64::from(size),
            packets,
            bytes,
            flows,
        }
    };
    endpoints.into_iter().map(row).collect()
}

fn drop_rows(counters: &Counters, key: &ServiceKey) -> BTreeMap<String, DropRow> {
    let drops = counters.drops.get(key).into_iter().flatten();
    drops
        .map(|(verdict, Counter { packets, bytes, .. })| {
            ((*verdict).to_owned(), DropRow { packets: *packets, bytes: *bytes })
        })
        .collect()
}

/// `node`: how the backend stands, if it is a node: of that, only the pods are checked.
fn health(
    view: &View,
    key: &ServiceKey,
    endpoint: Endpoint,
    node: Option<&Target>,
) -> (&'static str, Option<String>) {
    match backend_health(&view.declared, &view.observed.health, key, endpoint) {
        BackendHealth::Known(Health::Healthy) => ("Healthy", None),
        BackendHealth::Known(Health::Unhealthy(failure)) => ("Unhealthy", Some(failure.to_string())),
        BackendHealth::Unknown => match node {
            Some(Target { up: true, .. }) => ("Healthy", None),
            Some(_) => ("Unhealthy", Some("none of its pods".to_owned())),
            None => ("Unknown", None),
        },
        BackendHealth::Unchecked => ("Unchecked", None),
    }
}
