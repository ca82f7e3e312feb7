//! What is known of another cluster: ServiceExports, Services, EndpointSlices and Nodes come and go in any order; what is exported
//! comes out. Pure. Of each object only what counts is kept.
use super::{
    super::raw::Raw,
    kept::ServiceExport,
    nodes::{Listed, Nodes},
    overlap::Networks,
};
use crate::{
    api::EndpointSlice,
    mcs::{Export, Exports, Facts, Invalid, slice_name},
    neighbours::NeighbourPool,
};
use k8s_openapi::{
    api::core::v1::{Node, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

/// The parts of exports.
#[derive(Debug)]
pub(super) struct Known {
    cluster: String,
    /// By `NAMESPACE/NAME`.
    parts: HashMap<Arc<str>, Box<Parts>>,
    /// How many objects they consist of.
    objects: usize,
    /// By `NAMESPACE/NAME` of a slice: the service that it is of.
    services_of_slices: HashMap<Box<str>, Arc<str>>,
    pools: BTreeMap<String, NeighbourPool>,
    nodes: Nodes,
    /// What is exported, as it was told last.
    told: Exports,
    /// Services of which something has changed since.
    stale: HashSet<Arc<str>>,
    /// Whether that may be so of all.
    are_all_stale: bool,
}

/// What is there under one name.
#[derive(Debug, Default)]
struct Parts {
    export: Option<Box<ServiceExport>>,
    service: Option<Result<Arc<Facts>, Invalid>>,
    /// Addresses that others reach the Service by.
    addresses: Box<[IpAddr]>,
    /// In the order of their names.
    slices: Vec<Listed>,
}

impl Parts {
    /// How many objects there are.
    fn len(&self) -> usize {
        usize::from(self.export.is_some()) + usize::from(self.service.is_some()) + self.slices.len()
    }
}

/// What is exported, with its service.
pub(super) fn export(
    declared: &ServiceExport,
    service: Result<Arc<Facts>, Invalid>,
    slices: Box<[Arc<EndpointSlice>]>,
) -> Export {
    Export {
        created: declared.created,
        labels: declared.labels.clone(),
        annotations: declared.annotations.clone(),
        service,
        slices,
    }
}

impl Known {
    /// Nothing yet of a cluster.
    pub(super) fn new(cluster: &str) -> Self {
        Known {
            cluster: cluster.to_owned(),
            parts: HashMap::new(),
            objects: 0,
            services_of_slices: HashMap::new(),
            pools: BTreeMap::new(),
            nodes: Nodes::default(),
            told: Exports::new(),
            stale: HashSet::new(),
            are_all_stale: false,
        }
    }

    /// Changes what is there under a name, which is given back.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut Parts)) -> Arc<str> {
        let name = self.parts.get_key_value(name).map_or_else(|| name.into(), |(name, _)| Arc::clone(name));
        let parts = self.parts.entry(Arc::clone(&name)).or_default();
        let before = parts.len();
        change(parts);
        self.objects = self.objects + parts.len() - before;
        if parts.len() == 0 {
            self.parts.remove(&name);
        }
        self.stale.insert(Arc::clone(&name));
        name
    }

    /// Changes what is there under each name.
    fn change_all(&mut self, change: impl Fn(&mut Parts)) {
        self.parts.values_mut().for_each(|parts| change(parts));
        self.parts.retain(|_, parts| parts.len() > 0);
        self.objects = self.parts.values().map(|parts| parts.len()).sum();
        self.are_all_stale = true;
    }

    pub(super) fn export(&mut self, object: &Raw) {
        let export = Box::new(ServiceExport::from(object));
        self.change(&name(&object.metadata), |parts| parts.export = Some(export));
    }

    pub(super) fn service(&mut self, object: &Service) {
        let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
        let addresses = ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect();
        let facts = Facts::of(object).map(Facts::shared);
        self.change(&name(&object.metadata), |parts| {
            (parts.service, parts.addresses) = (Some(facts), addresses);
        });
    }

    /// A node. Whether that makes a difference: what a kubelet tells is mostly something else.
    pub(super) fn node(&mut self, object: &Node) -> bool {
        let is_other = self.nodes.put(object);
        self.are_all_stale |= is_other;
        is_other
    }

    /// A pool; none: it is there, and cannot be read.
    pub(super) fn pool(&mut self, metadata: &ObjectMeta, pool: Option<NeighbourPool>) {
        let name = metadata.name.clone().unwrap_or_default();
        match pool {
            Some(pool) => drop(self.pools.insert(name, pool)),
            None => drop(self.pools.remove(&name)),
        }
    }

    /// A slice; none: it is there, and cannot be read.
    pub(super) fn slice(&mut self, metadata: &ObjectMeta, slice: Option<&EndpointSlice>) {
        self.forget_slice(metadata);
        let Some(slice) = slice else { return };
        let Some(service) = &slice.metadata.service else { return };
        let listed = Listed::new(slice, Export::imported(service, &self.cluster, slice, false));
        let service = [metadata.namespace.as_deref().unwrap_or_default(), "/", service].concat();
        let service = self.change(&service, |parts| {
            let place = parts.slices.partition_point(|other| other.name() < listed.name());
            // Most services have one.
            parts.slices.reserve_exact(1);
            parts.slices.insert(place, listed);
        });
        self.services_of_slices.insert(name(metadata).into(), service);
    }

    pub(super) fn forget_export(&mut self, metadata: &ObjectMeta) {
        self.change(&name(metadata), |parts| parts.export = None);
    }

    pub(super) fn forget_service(&mut self, metadata: &ObjectMeta) {
        self.change(&name(metadata), |parts| (parts.service, parts.addresses) = (None, Box::default()));
    }

    pub(super) fn forget_node(&mut self, metadata: &ObjectMeta) {
        self.are_all_stale |= self.nodes.forget(metadata);
    }

    pub(super) fn forget_slice(&mut self, metadata: &ObjectMeta) {
        let Some(service) = self.services_of_slices.remove(&*name(metadata)) else { return };
        let of = service.split_once('/').map_or("", |(_, name)| name);
        let gone = slice_name(of, &self.cluster, metadata.name.as_deref().unwrap_or_default());
        self.change(&service, |parts| parts.slices.retain(|listed| listed.name() != gone));
    }

    /// All ServiceExports are listed anew.
    pub(super) fn forget_exports(&mut self) {
        self.change_all(|parts| parts.export = None);
    }

    /// All Services are listed anew.
    pub(super) fn forget_services(&mut self) {
        self.change_all(|parts| (parts.service, parts.addresses) = (None, Box::default()));
    }

    /// All Nodes are listed anew. Whether there were some.
    pub(super) fn forget_nodes(&mut self) -> bool {
        let had_some = mem::take(&mut self.nodes).len() > 0;
        self.are_all_stale |= had_some;
        had_some
    }

    /// All AddressPools are listed anew.
    pub(super) fn forget_pools(&mut self) {
        self.pools.clear();
    }

    /// All EndpointSlices are listed anew.
    pub(super) fn forget_slices(&mut self) {
        self.services_of_slices.clear();
        self.change_all(|parts| parts.slices.clear());
    }

    /// Which cluster it is.
    pub(super) fn cluster(&self) -> &str {
        &self.cluster
    }

    /// How many objects are known.
    pub(super) fn len(&self) -> usize {
        self.objects + self.pools.len() + self.nodes.len()
    }

    /// Its pools.
    pub(super) fn pools(&self) -> &BTreeMap<String, NeighbourPool> {
        &self.pools
    }

    /// Addresses of what is exported.
    pub(super) fn addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let exported = self.parts.iter().filter(|(_, parts)| parts.export.is_some());
        exported
            .filter(|(_, parts)| !parts.addresses.is_empty())
            .map(|(name, parts)| (name.to_string(), parts.addresses.to_vec()))
            .collect()
    }

    /// What its nodes have.
    pub(super) fn networks(&self) -> Networks {
        self.nodes.networks()
    }

    /// What is exported. Exports that have not changed are the very same as before.
    pub(super) fn exports(&mut self) -> Exports {
        let mut stale = mem::take(&mut self.stale);
        if mem::take(&mut self.are_all_stale) {
            let told = self.told.keys().map(|name| name.as_str().into());
            stale = self.parts.keys().cloned().chain(told).collect();
        }
        for name in stale {
            match self.export_of(&name) {
                Some(export) if self.told.get(&*name).is_some_and(|told| **told == export) => {}
                Some(export) => drop(self.told.insert(name.to_string(), Arc::new(export))),
                None => drop(self.told.remove(&name)),
            }
        }
        self.told.clone()
    }

    /// What is exported of a service, and how its pods are reached by now.
    fn export_of(&mut self, name: &str) -> Option<Export> {
        let parts = self.parts.get_mut(name)?;
        let declared = parts.export.as_deref()?;
        let facts = parts.service.clone().unwrap_or(Err(Invalid::NoService));
        let reached = facts.as_deref().ok().filter(|_| !parts.addresses.is_empty());
        let reached = reached.map(|facts| (&*parts.addresses, facts));
        for listed in &mut parts.slices {
            listed.set_delivery(reached, declared.mode.as_deref(), &self.nodes);
        }
        let slices = parts.slices.iter().map(|listed| Arc::clone(&listed.slice)).collect();
        Some(export(declared, facts.clone(), slices))
    }
}

/// `NAMESPACE/NAME`.
pub(super) fn name(metadata: &ObjectMeta) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    [part(&metadata.namespace), part(&metadata.name)].join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn metadata(name: &str) -> ObjectMeta {
        ObjectMeta { namespace: Some("n".into()), name: Some(name.into()), ..ObjectMeta::default() }
    }

    fn slice(name: &str, service: &str) -> EndpointSlice {
        let object = json!({"kind": "EndpointSlice", "addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}],
            "metadata": {"namespace": "n", "name": name, "labels": {"kubernetes.io/service-name": service}}});
        match crate::validate::check_object(&object) {
            Ok(crate::object::Object::EndpointSlice(slice)) => (*slice).clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn parts_come_in_any_order_and_go() {
        let mut known = Known::new("west");
        known.slice(&metadata("a-1"), Some(&slice("a-1", "a")));
        assert_eq!(known.exports(), Exports::new());
        let export: Raw = serde_json::from_value(json!({"metadata": metadata("a")})).unwrap();
        known.export(&export);
        assert_eq!(known.exports()["n/a"].service, Err(Invalid::NoService));
        known.service(
            &serde_json::from_value(json!({"metadata": metadata("a"), "spec": {"ports": [{"port": 80}]}}))
                .unwrap(),
        );
        let exported = known.exports()["n/a"].clone();
        assert_eq!((exported.service.as_ref().unwrap().ports[0].port, exported.slices.len()), (80, 1));
        // It is of another service now.
        known.slice(&metadata("a-1"), Some(&slice("a-1", "b")));
        assert_eq!(known.exports()["n/a"].slices.len(), 0);
        known.slice(&metadata("a-1"), Some(&slice("a-1", "a")));
        known.forget_slice(&metadata("a-1"));
        assert_eq!((known.exports()["n/a"].slices.len(), known.services_of_slices.len()), (0, 0));
        known.forget_service(&metadata("a"));
        assert_eq!(known.exports()["n/a"].service, Err(Invalid::NoService));
        known.forget_export(&metadata("a"));
        assert_eq!((known.exports().len(), known.len(), known.parts.len()), (0, 0, 0));
    }

    /// What a cluster keeps of an endpoint of another one.
    #[test]
    fn an_endpoint_takes_less_than_a_kilobyte() {
        assert!(size_of::<crate::api::endpoint_slice::Endpoint>() <= 32);
        assert!(size_of::<EndpointSlice>() <= 256);
    }
}
