//! AddressPool: blocks of addresses that services are given from, or the pods of nodes.
use super::{
    crds::rules,
    scalar::{Address, Cidr, Ipv4Length, Ipv6Length, LINK_LOCAL, LOOPBACK, Seconds, UNSPECIFIED},
    selector::Selector,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// Blocks of addresses to give from.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "AddressPool",
    plural = "addresspools",
    shortname = "apool",
    category = "fairlead",
    doc = "AddressPool: blocks of addresses that services and nodes are given from.",
    status = "AddressPoolStatus",
    derive = "PartialEq",
    printcolumn(name = "Use", type_ = "string", json_path = ".spec.use"),
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority", priority = 1),
    printcolumn(name = "IPv4-Assigned", type_ = "integer", json_path = ".status.ipv4.assigned"),
    printcolumn(name = "IPv4-Available", type_ = "integer", json_path = ".status.ipv4.available"),
    printcolumn(name = "IPv6-Assigned", type_ = "integer", json_path = ".status.ipv6.assigned"),
    printcolumn(
        name = "IPv6-Available",
        type_ = "integer",
        json_path = ".status.ipv6.available",
        priority = 1
    ),
    printcolumn(
        name = "Accepted",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Accepted\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("(self.use == 'PodCIDR') == has(self.nodeMask)", NODE_MASK),
    (
        "self.use != 'PodCIDR' || (!has(self.serviceSelector.matchExpressions) && \
         (!has(self.serviceSelector.matchLabels) || size(self.serviceSelector.matchLabels) == 0))",
        OF_SERVICES
    ),
    (
        "self.use != 'PodCIDR' || (!has(self.namespaceSelector.matchExpressions) && \
         (!has(self.namespaceSelector.matchLabels) || size(self.namespaceSelector.matchLabels) == 0))",
        OF_SERVICES
    ),
    (
        "self.use == 'PodCIDR' || (!has(self.nodeSelector.matchExpressions) && \
         (!has(self.nodeSelector.matchLabels) || size(self.nodeSelector.matchLabels) == 0))",
        OF_PODS
    ),
    ("!has(self.clusters) || size(self.clusters) != 1", TWO_CLUSTERS),
    ("!has(self.clusters) || self.clusters.all(c, self.clusters.exists_one(d, d == c))", UNIQUE_CLUSTERS),
    (
        "!has(self.clusters) || self.clusters.all(c, c.matches('^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$'))",
        CLUSTER_NAMES
    ),
])))]
pub struct AddressPoolSpec {
    /// What the addresses are for.
    #[serde(default, rename = "use")]
    pub usage: PoolUse,
    /// The addresses; blocks must not overlap.
    #[schemars(length(min = 1, max = 256))]
    pub blocks: Vec<Block>,
    /// Parts of the blocks that are never given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub reserved: Vec<Cidr>,
    /// Whether services that name no pool may be given an address from here.
    #[serde(default = "default_true")]
    pub auto_assign: bool,
    /// Of several pools that match, the one with the highest priority is used first.
    #[serde(default)]
    pub priority: i32,
    /// How long, in seconds, a released address rests before another service may have it, or a block before another node.
    #[serde(default = "no_seconds")]
    pub reuse_delay_seconds: Seconds,
    /// Services that may have an address from here, by their labels.
    #[serde(default)]
    pub service_selector: Selector,
    /// Namespaces whose services may have an address from here, by their labels.
    #[serde(default)]
    pub namespace_selector: Selector,
    /// Nothing more is given from here; what was given stays.
    #[serde(default)]
    pub disabled: bool,
    /// For `use: PodCIDR`: the size of a node's block.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_mask: Option<NodeMask>,
    /// For `use: PodCIDR`: nodes that are given a block from here, by their labels.
    #[serde(default)]
    pub node_selector: Selector,
    /// Clusters that share the pool, by name, our own among them: each declares it with the same name, use and blocks, and all are
    /// linked with each other. Empty: it is not shared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 63)))]
    pub clusters: Vec<String>,
}

/// Why one cluster alone is refused.
pub(crate) const TWO_CLUSTERS: &str = "clusters has at least two, or none";
/// Why a cluster that stands twice is refused.
pub(crate) const UNIQUE_CLUSTERS: &str = "a cluster stands in clusters once";
/// What a cluster is called.
pub(crate) const CLUSTER_NAMES: &str = "clusters has names of clusters, which are labels of the DNS";

/// Which pools have a size of blocks.
pub(crate) const NODE_MASK: &str = "nodeMask is needed with use PodCIDR, and only there";
/// What pools for pods do not have.
pub(crate) const OF_SERVICES: &str = "serviceSelector and namespaceSelector are of use LoadBalancer only";
/// What pools for services do not have.
pub(crate) const OF_PODS: &str = "nodeSelector is of use PodCIDR only";

/// What the addresses of a pool are for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PoolUse {
    /// For services.
    #[default]
    LoadBalancer,
    /// For the pods of nodes.
    PodCIDR,
}

/// A prefix, or a range from `start` to `stop`, both included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("has(self.cidr) ? !has(self.start) && !has(self.stop) : has(self.start) && has(self.stop)", ONE_BLOCK),
    (
        "!has(self.start) || !has(self.stop) || ip(self.start).family() == ip(self.stop).family()",
        ONE_FAMILY
    ),
    ("!has(self.cidr) || !isCIDR(self.cidr) || !cidr(self.cidr).ip().isUnspecified()", UNSPECIFIED),
    ("!has(self.cidr) || !isCIDR(self.cidr) || !cidr(self.cidr).ip().isLoopback()", LOOPBACK),
    ("!has(self.cidr) || !isCIDR(self.cidr) || !cidr(self.cidr).ip().isLinkLocalUnicast()", LINK_LOCAL),
    ("!has(self.start) || !isIP(self.start) || !ip(self.start).isUnspecified()", UNSPECIFIED),
    ("!has(self.start) || !isIP(self.start) || !ip(self.start).isLoopback()", LOOPBACK),
    ("!has(self.start) || !isIP(self.start) || !ip(self.start).isLinkLocalUnicast()", LINK_LOCAL),
])))]
pub struct Block {
    /// The prefix; all its addresses are given, the first and the last too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cidr: Option<Cidr>,
    /// First address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start: Option<Address>,
    /// Last address, of the same family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop: Option<Address>,
}

/// What a block has to consist of.
pub(crate) const ONE_BLOCK: &str = "needs either cidr, or start and stop";
/// Why a range across families is refused.
pub(crate) const ONE_FAMILY: &str = "start and stop must be of one family";

impl Block {
    /// First and last address, of one family and in this order; none if the block is malformed.
    pub fn bounds(&self) -> Option<(IpAddr, IpAddr)> {
        let (first, last) = match (self.cidr, self.start, self.stop) {
            (Some(Cidr(net)), None, None) => (net.network(), net.broadcast()),
            (None, Some(start), Some(stop)) => (start.0, stop.0),
            _ => return None,
        };
        (first.is_ipv4() == last.is_ipv4() && first <= last).then_some((first, last))
    }
}

/// Size of a node's block by family, as a prefix length.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NodeMask {
    /// IPv4 prefix length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Length>,
    /// IPv6 prefix length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Length>,
}

/// What became of a pool.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressPoolStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// IPv4 addresses in numbers; of `use: PodCIDR`, blocks of nodes.
    pub ipv4: AddressCounts,
    /// IPv6 addresses in numbers; of `use: PodCIDR`, blocks of nodes.
    pub ipv6: AddressCounts,
    /// Addresses that rest until the reuse delay is over, sorted by address.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub released: Vec<ReleasedAddress>,
    /// Blocks of nodes that rest until the reuse delay is over, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub released_blocks: Vec<ReleasedBlock>,
    /// What is given, if the pool has a reuse delay: should its owner go while nobody leads, it rests all the same. At most
    /// 1000 ranges, sorted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub in_use: Vec<AddressRange>,
    /// Of a pool that clusters share: what this cluster says of its chunks. Only its own controller writes it; those of the other
    /// clusters read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub leases: Option<PoolLeases>,
}

/// What a cluster says of the chunks of a pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct PoolLeases {
    /// The highest number of a claim so far.
    pub last_number: i64,
    /// What it asks for, holds, and has granted to others; sorted by prefix.
    pub chunks: Vec<ChunkLease>,
    /// IPv4 addresses are asked for in vain and no chunk is free: others give back what they have in reserve.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub short_of_ipv4: bool,
    /// The same of IPv6.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub short_of_ipv6: bool,
}

/// What a cluster says of one chunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChunkLease {
    /// The chunk.
    #[schemars(with = "String")]
    pub cidr: Cidr,
    /// Whether it asks for it, holds it, or leaves it to another.
    pub state: LeaseState,
    /// Whom it is granted to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// Number of the claim: of this cluster, or of that to which it is granted.
    pub number: i64,
    /// Why it is claimed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<ClaimReason>,
}

/// How a chunk stands with a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LeaseState {
    /// It asks for it.
    Claimed,
    /// It has it: all others have granted it.
    Held,
    /// It leaves it to another until that one has given it back.
    Granted,
}

/// Why a chunk is claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ClaimReason {
    /// Addresses of it are in use here, from before it was shared.
    InUse,
    /// There is too little left of what is held.
    Demand,
}

/// Addresses of one family in numbers; each is cut off at 9223372036854775807.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct AddressCounts {
    /// In the blocks, without what is reserved.
    pub total: i64,
    /// Given to services, or nodes.
    pub assigned: i64,
    /// Resting until the reuse delay is over.
    pub released: i64,
    /// Free to be given now.
    pub available: i64,
    /// Of a pool that clusters share: none of these, and not leased to this cluster.
    #[serde(skip_serializing_if = "is_zero")]
    pub withheld: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// An address that was given back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleasedAddress {
    /// The address.
    pub address: Address,
    /// When it was given back.
    pub released_at: Time,
    /// Who had it, `KIND/NAME`: the same owner may have it back at once. Empty: it is not known.
    pub owner: String,
}

/// A block whose node is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ReleasedBlock {
    /// The block.
    #[schemars(with = "String")]
    pub cidr: Cidr,
    /// When it was given back.
    pub released_at: Time,
    /// The node that had it: should it come back, it may have it at once. Empty: it is not known.
    pub owner: String,
}

/// Addresses from the first to the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AddressRange {
    /// The first.
    pub start: Address,
    /// The last.
    pub stop: Address,
}

fn default_true() -> bool {
    true
}

fn no_seconds() -> Seconds {
    Seconds::MIN
}
