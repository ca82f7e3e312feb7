//! Kubernetes' Node (v1) as we read it: its addresses, which pod CIDRs it has, how many it asks for, whether load balancers
//! are to leave it; and our status of it.
use super::scalar::{Address, Cidr};
use k8s_openapi::{
    api::core::v1::Node,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Annotation of a node: how many blocks of each family it needs, 1 to 64; 1 if it is not there.
pub const POD_CIDR_BLOCKS: &str = "fairlead.dev/pod-cidr-blocks";
const MAX_BLOCKS: usize = 64;

/// Label of a node that load balancers are not to use, whatever its value: Kubernetes' own.
pub const EXCLUDED: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What `spec.podCIDRs` says; what is no CIDR is left out.
pub fn pod_cidrs(node: &Node) -> Vec<ipnet::IpNet> {
    let spec = node.spec.as_ref();
    let all = spec.and_then(|spec| spec.pod_cidrs.as_ref()).into_iter().flatten();
    let mut nets: Vec<_> = all.filter_map(|text| text.parse::<Cidr>().ok()).map(|cidr| cidr.0).collect();
    if let Some(first) = spec.and_then(|spec| spec.pod_cidr.as_ref()?.parse::<Cidr>().ok())
        && !nets.contains(&first.0)
    {
        nets.insert(0, first.0);
    }
    nets
}

/// Its addresses of the type `InternalIP`, in which other nodes reach it, in the order of its status; what is no address is
/// left out.
pub fn internal_ips(node: &Node) -> impl Iterator<Item = IpAddr> {
    internal_addresses(node).filter_map(|(_, text)| text.parse::<Address>().ok()).map(|address| address.0)
}

/// What `status.addresses` says to be of the type `InternalIP`, by index.
pub(crate) fn internal_addresses(node: &Node) -> impl Iterator<Item = (usize, &str)> {
    let all = node.status.iter().flat_map(|status| status.addresses.iter().flatten()).enumerate();
    all.filter(|(_, own)| own.type_ == "InternalIP").map(|(index, own)| (index, own.address.as_str()))
}

/// How many blocks of each family it needs.
///
/// # Errors
/// Why the annotation is no number of blocks.
pub fn pod_cidr_blocks(node: &Node) -> Result<usize, String> {
    let annotations = node.metadata.annotations.as_ref();
    let Some(text) = annotations.and_then(|annotations| annotations.get(POD_CIDR_BLOCKS)) else {
        return Ok(1);
    };
    let number = text.parse().ok().filter(|number| (1..=MAX_BLOCKS).contains(number));
    number.ok_or_else(|| {
        format!("{} is not a number of blocks (1 to {MAX_BLOCKS})", super::scalar::quoted(text))
    })
}

/// Whether load balancers are not to use it.
pub fn is_excluded(node: &Node) -> bool {
    node.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(EXCLUDED))
}

/// What became of a node's pod CIDRs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Conditions, sorted by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// Its blocks, sorted. In Kubernetes the first of each family belongs into `spec.podCIDRs`, if that is empty.
    #[serde(rename = "podCIDRs", skip_serializing_if = "Vec::is_empty")]
    pub pod_cidrs: Vec<AssignedBlock>,
}

/// A block of addresses of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AssignedBlock {
    /// The block.
    pub cidr: Cidr,
    /// The pool that it is of; none: it is of no pool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pool: Option<String>,
    /// When it was given.
    pub assigned_at: Time,
}

impl NodeStatus {
    /// What belongs into `spec.podCIDRs` of a node that has none there: the first block of each family, IPv4 first.
    pub fn first_of_each_family(&self) -> Vec<Cidr> {
        let first =
            |v4| self.pod_cidrs.iter().map(|block| block.cidr).find(|cidr| cidr.0.addr().is_ipv4() == v4);
        [true, false].into_iter().filter_map(first).collect()
    }
}
