//! BGPAdvertisement: what is announced, to whom, and with which attributes.
use super::{
    community::Community,
    crds::rules,
    scalar::{BackendCount, Ipv4Length, Ipv6Length, Metric, Prepend},
    selector::Selector,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Why other sources than services have no link bandwidth.
pub(crate) const BANDWIDTH_OF_BACKENDS: &str = "counts backends: it is of source LoadBalancer only";

/// What is announced, to whom, and with which attributes.
#[derive(CustomResource, Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "fairlead.dev",
    version = "v1alpha1",
    kind = "BGPAdvertisement",
    plural = "bgpadvertisements",
    shortname = "bgpa",
    category = "fairlead",
    doc = "BGPAdvertisement: which routes are announced to which peers, and with which attributes.",
    status = "BGPAdvertisementStatus",
    derive = "PartialEq",
    printcolumn(name = "Source", type_ = "string", json_path = ".spec.source"),
    printcolumn(name = "Announced", type_ = "integer", json_path = ".status.announcedRoutes"),
    printcolumn(name = "Withheld", type_ = "integer", json_path = ".status.withheldRoutes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = rules(&[
    ("self.source == 'LoadBalancer' || !has(self.attributes.linkBandwidth)", BANDWIDTH_OF_BACKENDS),
])))]
pub struct BGPAdvertisementSpec {
    /// Where the routes come from.
    #[serde(default)]
    pub source: Source,
    /// Services whose addresses are announced, by their labels.
    #[serde(default)]
    pub service_selector: Selector,
    /// Pools whose addresses are announced, by their labels.
    #[serde(default)]
    pub pool_selector: Selector,
    /// Nodes that announce, by their labels.
    #[serde(default)]
    pub node_selector: Selector,
    /// Peers that hear of it, by the labels of BGPPeer objects.
    #[serde(default)]
    pub peer_selector: Selector,
    /// Announce prefixes of this length instead of single addresses.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aggregate: Option<Aggregate>,
    /// Path attributes.
    #[serde(default)]
    pub attributes: Attributes,
    /// With fewer healthy backends on a node than this, it withdraws.
    #[serde(default = "one")]
    pub min_healthy: BackendCount,
}

/// Where routes come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Source {
    /// The addresses of services.
    #[default]
    LoadBalancer,
    /// The pod CIDRs of the node.
    PodCIDR,
    /// The addresses of the node's interfaces.
    Interface,
}

/// Length of announced prefixes by family; none: single addresses.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Aggregate {
    /// IPv4 prefix length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Ipv4Length>,
    /// IPv6 prefix length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Ipv6Length>,
}

/// Path attributes of announced routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Attributes {
    /// Standard and large communities.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub communities: Vec<Community>,
    /// LOCAL_PREF, to internal peers only; none: 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local_pref: Option<Metric>,
    /// MULTI_EXIT_DISC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub med: Option<Metric>,
    /// How many times our AS is prepended more.
    #[serde(default)]
    pub prepend: Prepend,
    /// Link bandwidth community.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link_bandwidth: Option<LinkBandwidth>,
}

/// What the link bandwidth community says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum LinkBandwidth {
    /// The weight of the healthy backends: each 1 is 125000 octets per second, 1 Mbit/s.
    ByHealthyWeight,
}

fn one() -> BackendCount {
    const ONE: BackendCount = BackendCount::new(1).expect("in range");
    ONE
}

/// What became of an advertisement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct BGPAdvertisementStatus {
    /// Generation of the spec that this status is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions, sorted by type.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Routes that are announced.
    pub announced_routes: i64,
    /// Routes that are held back: fewer healthy backends than `minHealthy`.
    pub withheld_routes: i64,
}
