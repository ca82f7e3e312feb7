//! What users declared: all objects, typed and checked, as one value.
use crate::{
    api::{AddressPool, BGPAdvertisement, BGPPeer, BGPRouter, LoadBalancer, PacketFilter, Secret},
    status::StatusSet,
};
use k8s_openapi::api::core::v1::Node;
use std::{collections::BTreeMap, sync::Arc};

/// A complete snapshot. Objects are by name; their `status` is empty: what is known of them is in `statuses`. Snapshots
/// share the objects that are the same.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Declared {
    /// Counts the snapshots of one run of a store, from 1.
    pub generation: u64,
    /// Where addresses come from.
    pub pools: BTreeMap<String, Arc<AddressPool>>,
    /// Services.
    pub load_balancers: BTreeMap<String, Arc<LoadBalancer>>,
    /// BGP speakers.
    pub routers: BTreeMap<String, Arc<BGPRouter>>,
    /// BGP neighbours.
    pub peers: BTreeMap<String, Arc<BGPPeer>>,
    /// What is announced.
    pub advertisements: BTreeMap<String, Arc<BGPAdvertisement>>,
    /// Rules against packets of death.
    pub packet_filters: BTreeMap<String, Arc<PacketFilter>>,
    /// Nodes, for their labels.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// What nobody else is to read.
    pub secrets: BTreeMap<String, Arc<Secret>>,
    /// The statuses as last published: an address takes effect only when it has come back in here.
    pub statuses: StatusSet,
}
