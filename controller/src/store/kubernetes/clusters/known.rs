//! What is known of another cluster: ServiceExports, Services, EndpointSlices and Nodes come and go in any order; what is exported
//! comes out. Pure. Of each object only what counts is kept.
use super::{
    nodes::{Listed, Nodes},
    overlap::PodCidrs,
};
use crate::{
    api::EndpointSlice,
    mcs::{Export, Exports, Facts, Invalid, slice_name},
    neighbours::NeighbourPool,
    status::seconds,
};
use k8s_openapi::{
    api::core::v1::{Node, Service},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::api::DynamicObject;
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    mem,
    net::IpAddr,
    sync::Arc,
};

/// The parts of exports, by `NAMESPACE/NAME` of their services.
#[derive(Debug)]
pub(super) struct Known {
    cluster: String,
    exports: BTreeMap<String, Declared>,
    services: HashMap<String, Result<Arc<Facts>, Invalid>>,
    /// Addresses that others reach Services by, where there are some.
    addresses: HashMap<String, Vec<IpAddr>>,
    pools: BTreeMap<String, NeighbourPool>,
    slices: HashMap<String, BTreeMap<String, Listed>>,
    /// By `NAMESPACE/NAME` of a slice: the service that it is of.
    services_of_slices: HashMap<String, String>,
    nodes: Nodes,
    /// Services of whose slices it is not worked out yet how their pods are reached.
    stale: HashSet<String>,
    /// Whether that is so of all.
    are_all_stale: bool,
}

/// What counts of a ServiceExport.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Declared {
    created: u64,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

impl Declared {
    pub(super) fn of(object: &DynamicObject) -> Self {
        let texts = |field: &str| -> BTreeMap<String, String> {
            let entries = object.data["spec"][field].as_object().into_iter().flatten();
            entries
                .filter_map(|(key, value): (&String, &Value)| Some((key.clone(), value.as_str()?.to_owned())))
                .collect()
        };
        Declared {
            created: object.metadata.creation_timestamp.as_ref().map_or(0, seconds),
            labels: texts("exportedLabels"),
            annotations: texts("exportedAnnotations"),
        }
    }

    /// The export, with its service.
    pub(super) fn export(
        &self,
        service: Result<Arc<Facts>, Invalid>,
        slices: BTreeMap<String, Arc<EndpointSlice>>,
    ) -> Export {
        Export {
            created: self.created,
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            service,
            slices,
        }
    }
}

impl Known {
    /// Nothing yet of a cluster.
    pub(super) fn new(cluster: &str) -> Self {
        Known {
            cluster: cluster.to_owned(),
            exports: BTreeMap::new(),
            services: HashMap::new(),
            addresses: HashMap::new(),
            pools: BTreeMap::new(),
            slices: HashMap::new(),
            services_of_slices: HashMap::new(),
            nodes: Nodes::default(),
            stale: HashSet::new(),
            are_all_stale: false,
        }
    }

    pub(super) fn export(&mut self, object: &DynamicObject) {
        self.exports.insert(name(&object.metadata), Declared::of(object));
    }

    pub(super) fn service(&mut self, object: &Service) {
        let name = name(&object.metadata);
        let status = object.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|status| status.ingress.as_ref()).into_iter().flatten();
        let addresses: Vec<_> = ingress.filter_map(|ingress| ingress.ip.as_ref()?.parse().ok()).collect();
        match addresses.is_empty() {
            true => drop(self.addresses.remove(&name)),
            false => drop(self.addresses.insert(name.clone(), addresses)),
        }
        self.stale.insert(name.clone());
        self.services.insert(name, Facts::of(object).map(Arc::new));
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
        self.services_of_slices.insert(name(metadata), service.clone());
        self.stale.insert(service.clone());
        self.slices.entry(service).or_default().insert(listed.slice.metadata.name.to_string(), listed);
    }

    pub(super) fn forget_export(&mut self, metadata: &ObjectMeta) {
        self.exports.remove(&name(metadata));
    }

    pub(super) fn forget_service(&mut self, metadata: &ObjectMeta) {
        let name = name(metadata);
        self.services.remove(&name);
        self.addresses.remove(&name);
        self.stale.insert(name);
    }

    pub(super) fn forget_node(&mut self, metadata: &ObjectMeta) {
        self.are_all_stale |= self.nodes.forget(metadata);
    }

    pub(super) fn forget_slice(&mut self, metadata: &ObjectMeta) {
        let Some(service) = self.services_of_slices.remove(&name(metadata)) else { return };
        let Some(slices) = self.slices.get_mut(&service) else { return };
        let of = service.split_once('/').map_or("", |(_, name)| name);
        slices.remove(&slice_name(of, &self.cluster, metadata.name.as_deref().unwrap_or_default()));
        if slices.is_empty() {
            self.slices.remove(&service);
        }
    }

    /// All ServiceExports are listed anew.
    pub(super) fn forget_exports(&mut self) {
        self.exports.clear();
    }

    /// All Services are listed anew.
    pub(super) fn forget_services(&mut self) {
        self.services.clear();
        self.addresses.clear();
        self.are_all_stale = true;
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
        self.slices.clear();
        self.services_of_slices.clear();
    }

    /// How many objects are known.
    pub(super) fn len(&self) -> usize {
        let objects = self.exports.len() + self.services.len() + self.services_of_slices.len();
        objects + self.pools.len() + self.nodes.len()
    }

    /// Its pools.
    pub(super) fn pools(&self) -> &BTreeMap<String, NeighbourPool> {
        &self.pools
    }

    /// Addresses of what is exported.
    pub(super) fn addresses(&self) -> BTreeMap<String, Vec<IpAddr>> {
        let exported = self.addresses.iter().filter(|(name, _)| self.exports.contains_key(*name));
        exported.map(|(name, addresses)| (name.clone(), addresses.clone())).collect()
    }

    /// The pod CIDRs of its nodes.
    pub(super) fn pod_cidrs(&self) -> PodCidrs {
        self.nodes.pod_cidrs()
    }

    /// What is exported.
    pub(super) fn exports(&mut self) -> Exports {
        self.freshen();
        let export = |(name, declared): (&String, &Declared)| {
            let service = self.services.get(name).cloned().unwrap_or(Err(Invalid::NoService));
            let slices = self.slices.get(name).into_iter().flatten();
            let slices = slices.map(|(name, listed)| (name.clone(), Arc::clone(&listed.slice)));
            (name.clone(), declared.export(service, slices.collect()))
        };
        self.exports.iter().map(export).collect()
    }

    /// Works out how pods are reached, where something of that has changed.
    fn freshen(&mut self) {
        let Known { services, addresses, slices, nodes, .. } = self;
        let (stale, are_all_stale) = (mem::take(&mut self.stale), mem::take(&mut self.are_all_stale));
        for (name, slices) in slices.iter_mut().filter(|(name, _)| are_all_stale || stale.contains(*name)) {
            let facts = services.get(name).and_then(|facts| facts.as_deref().ok());
            let service = addresses.get(name).zip(facts);
            slices.values_mut().for_each(|listed| listed.set_delivery(service, nodes));
        }
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
        let export: DynamicObject = serde_json::from_value(json!({"metadata": metadata("a")})).unwrap();
        known.export(&export);
        assert_eq!(known.exports()["n/a"].service, Err(Invalid::NoService));
        known.service(
            &serde_json::from_value(json!({"metadata": metadata("a"), "spec": {"ports": [{"port": 80}]}}))
                .unwrap(),
        );
        let exported = known.exports()["n/a"].clone();
        assert_eq!((exported.service.unwrap().ports[0].port, exported.slices.len()), (80, 1));
        // It is of another service now.
        known.slice(&metadata("a-1"), Some(&slice("a-1", "b")));
        assert_eq!(known.exports()["n/a"].slices.len(), 0);
        known.slice(&metadata("a-1"), Some(&slice("a-1", "a")));
        known.forget_slice(&metadata("a-1"));
        assert_eq!((known.exports()["n/a"].slices.len(), known.slices.len()), (0, 0));
        known.forget_service(&metadata("a"));
        assert_eq!(known.exports()["n/a"].service, Err(Invalid::NoService));
        known.forget_export(&metadata("a"));
        assert_eq!((known.exports().len(), known.len()), (0, 0));
    }

    /// What a cluster keeps of an endpoint of another one.
    #[test]
    fn an_endpoint_takes_less_than_a_kilobyte() {
        assert!(size_of::<crate::api::endpoint_slice::Endpoint>() <= 128);
        assert!(size_of::<EndpointSlice>() <= 256);
    }
}
