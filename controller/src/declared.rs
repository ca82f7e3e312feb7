//! What users declared: all objects, typed and checked, as one value.
use crate::{
    api::{
        AddressPool, BGPAdvertisement, BGPPeer, BGPRouter, ClusterLink, EndpointSlice, LoadBalancer,
        PacketFilter, Secret, ServicePolicy,
    },
    by_name::ByName,
    status::StatusSet,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use std::collections::BTreeSet;

/// A complete snapshot. Objects are by name; their `status` is empty, but for the addresses of nodes: what is known of them is in `statuses`. Snapshots
/// share the objects that are the same, and kinds of which none has changed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// Counts the snapshots of one run of a store, from 1.
    pub generation: u64,
    /// Where addresses come from.
    pub pools: ByName<AddressPool>,
    /// Services without Kubernetes' endpoints, or across several Services.
    pub load_balancers: ByName<LoadBalancer>,
    /// How Kubernetes' Services are balanced.
    pub policies: ByName<ServicePolicy>,
    /// Kubernetes' Services, by `NAMESPACE/NAME`; also those that are none of ours.
    pub services: ByName<Service>,
    /// The endpoints of Services, by `NAMESPACE/NAME`.
    pub endpoint_slices: ByName<EndpointSlice>,
    /// Namespaces, for their labels.
    pub namespaces: ByName<Namespace>,
    /// BGP speakers.
    pub routers: ByName<BGPRouter>,
    /// BGP neighbours.
    pub peers: ByName<BGPPeer>,
    /// What is announced.
    pub advertisements: ByName<BGPAdvertisement>,
    /// Rules against packets of death.
    pub packet_filters: ByName<PacketFilter>,
    /// Other clusters.
    pub cluster_links: ByName<ClusterLink>,
    /// Nodes, for their labels, their addresses and their pod CIDRs.
    pub nodes: ByName<Node>,
    /// What nobody else is to read.
    pub secrets: ByName<Secret>,
    /// Objects that are there and of which no version is in force, `KIND/NAME`: what their statuses hold stays theirs. Only
    /// where each object stands for itself.
    pub refused: BTreeSet<String>,
    /// The statuses as last published: an address takes effect only when it has come back in here.
    pub statuses: StatusSet,
}
